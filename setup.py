"""Packaging of recbole_ilrec.

RecBole is not in ``install_requires``: its metadata asks for an old ``ray`` that has no wheels for recent Pythons, and
for exact versions of two logging helpers. Install it with ``pip install --no-deps recbole==1.2.1``; what it needs at
run time is listed here.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
PROPERTIES = HERE / "properties"

PAGE = ["matplotlib>=3.8"]
QLORA = ["bitsandbytes>=0.46"]
GGUF = ["gguf>=0.10"]
SEARCH = ["optuna>=4"]
TEST = ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", *PAGE, *QLORA, *GGUF, *SEARCH]

setup(
    name="recbole_ilrec",
    version="0.1.0",
    description="ILRec on RecBole: self-hard negatives from intermediate layers for LLM-based recommendation",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["recbole_ilrec", "recbole_ilrec.*"]), "recbole_ilrec.properties"],
    package_dir={"recbole_ilrec.properties": "properties"},
    package_data={
        "recbole_ilrec.properties": sorted(str(path.relative_to(PROPERTIES)) for path in PROPERTIES.rglob("*.yaml"))
    },
    install_requires=[
        "torch>=2.4",
        "numpy",
        "pandas>=2.2,<3",
        "scipy",
        "scikit-learn",
        "tqdm",
        "pyyaml",
        "colorlog",
        "colorama",
        "tensorboard",
        "texttable",
        "psutil",
        "tabulate",
        "transformers>=5.19",  # before it a trainer divides an accumulated loss twice
        "accelerate",
        "peft",
        "safetensors",
        "pydantic>=2.10",
        "polars",
        "tokenizers",
    ],
    extras_require={
        "test": TEST,
        "dev": TEST,
        "qlora": QLORA,
        "gguf": GGUF,
        "search": SEARCH,
        "page": PAGE,
    },
    entry_points={"console_scripts": ["recbole-ilrec = recbole_ilrec.__main__:main"]},
)
