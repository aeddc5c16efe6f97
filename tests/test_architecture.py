"""Laws of the code itself: who may import whom, what is never used, how long things may be, which pages are generated.

Read from the sources; ``docs/architecture.md`` explains the rules to people.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from recbole_ilrec import reference_pages

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "recbole_ilrec"

BASE = frozenset(("chance", "errors", "registry", "schema", "settings"))
"""Contracts that every part may import."""

# fmt: off
MAY_IMPORT = {
    "preparation": frozenset(),
    "identifiers": frozenset(),
    "prompt": frozenset(("identifiers",)),
    "backbone": frozenset(),
    "reward": frozenset(("identifiers",)),
    "objective": frozenset(),
    "decoding": frozenset(("identifiers", "prompt", "backbone")),
    "evaluation": frozenset(("identifiers",)),
    "report": frozenset(),
    "checks": frozenset(),
}
"""Sub-package -> the other sub-packages it may import."""

SEAMS = (
    "runtime", "configuration", "reference_pages", "data", "metrics", "collaborative", "models", "training", "runs",
    "quick_start", "verbs", "cli", "__main__",
)
"""What joins the method to RecBole: folders, modules at the root. Each imports only the method and seams before it."""
# fmt: on

LOADED_ON_DEMAND = frozenset(("transformers", "peft", "accelerate", "bitsandbytes", "gguf"))
MAY_LOAD_THEM = frozenset(f"training.{name}" for name in ("loop", "epochs", "arguments", "trainer", "measured")) | {
    "backbone.fast_llama"
}
"""Modules that import them at the top and are themselves imported only when a language model is built or trained."""

LONGEST_FILE, LONGEST_FUNCTION = 320, 60


FORBIDDEN_MODULES = frozenset(("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "ray"))
FORBIDDEN_CALLS = frozenset(("eval", "exec", "print", "breakpoint", "input"))
FORBIDDEN_METHODS = frozenset(("torch.load", "torch.save", "np.load", "numpy.load", "yaml.unsafe_load", "os.system"))


@cache
def sources() -> dict[str, ast.Module]:
    """Module name below the package, ``""`` for its ``__init__``, -> its syntax tree."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imported(tree: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Absolute names of imported modules; with ``lazy=False`` those imported when the module itself is."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("recbole_ilrec.") in sources() else str(node.module)
        else:
            yield from imported(node, lazy=lazy)


def own(tree: ast.AST, *, lazy: bool = True) -> set[str]:
    """Modules of this package that are imported, named as in :func:`sources`."""
    names = {name for name in imported(tree, lazy=lazy) if name.partition(".")[0] == "recbole_ilrec"}
    return {name.removeprefix("recbole_ilrec").removeprefix(".") for name in names}


def foreign(tree: ast.AST, *, lazy: bool = True) -> set[str]:
    """Top-level names of the other packages that are imported."""
    return {name.partition(".")[0] for name in imported(tree, lazy=lazy)} - {"recbole_ilrec"}


def part(module: str) -> str:
    """The sub-package of a module, or the root module itself."""
    return module.partition(".")[0]


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_module_has_a_place_in_the_order():
    roots = {part(module) for module in sources() if module}
    assert roots <= {*BASE, *MAY_IMPORT, *SEAMS}, "a new module: give it a place in SEAMS or MAY_IMPORT"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_sub_package_imports_only_what_stands_before_it(package):
    allowed = {*BASE, package, "", *MAY_IMPORT[package]}
    for module, tree in sources().items():
        if part(module) == package:
            assert {part(name) for name in own(tree)} <= allowed, module


def test_a_seam_imports_only_the_method_and_the_seams_before_it():
    for module, tree in sources().items():
        if part(module) in SEAMS:
            later = {*SEAMS[SEAMS.index(part(module)) + 1 :]}
            assert not {name for name in own(tree) if part(name) in later}, module


def test_only_the_seams_import_recbole():
    assert {part(module) for module, tree in sources().items() if "recbole" in foreign(tree)} <= {*SEAMS}


def test_there_are_no_import_cycles():
    graph = {module: own(tree) - {""} for module, tree in sources().items() if module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_language_model_libraries_are_loaded_on_demand():
    for module, tree in sources().items():
        if module not in MAY_LOAD_THEM:
            assert not foreign(tree, lazy=False) & LOADED_ON_DEMAND, module


def test_a_classical_run_never_loads_transformers():
    reached, waiting = set(), ["quick_start", "collaborative.classical", "cli"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += own(sources()[module], lazy=False) - {""}
    assert not reached & MAY_LOAD_THEM


def test_preparation_needs_neither_torch_nor_recbole():
    for module, tree in sources().items():
        light = ("cli", "reference_pages", "configuration.presets", "configuration.arguments")
        if part(module) in {*BASE, "preparation"} - {"chance", "schema"} or module in light:
            assert not foreign(tree, lazy=False) & {"torch", "recbole", "transformers", "polars"}, module


def test_importing_the_package_and_its_command_line_loads_nothing_heavy():
    heavy = ("torch", "transformers", "recbole", "pandas", "polars", "sklearn", "ray")
    program = f"import sys, recbole_ilrec, recbole_ilrec.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_unpickled_evaluated_or_printed():
    for module, tree in sources().items():
        assert not foreign(tree) & FORBIDDEN_MODULES, module
        assert not {*calls(tree)} & (FORBIDDEN_CALLS | FORBIDDEN_METHODS), module


def test_yaml_is_always_loaded_safely():
    loads = [ast.unparse(node) for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in loads:
        if call.startswith("yaml.load("):
            assert "Loader=Loader" in call or "Loader=yaml.BaseLoader" in call, call  # the latter makes texts only
    from yaml import SafeLoader

    from recbole_ilrec.configuration.presets import Loader

    assert issubclass(Loader, SafeLoader)


def test_private_names_stay_in_their_module():
    # ruff's PLC2701 looks only at imports from other distributions.
    for path in (*PACKAGE.rglob("*.py"), *(PROJECT / "tests").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                assert not private, f"{path.name} imports {private}"


def test_exceptions_are_named():
    for module, tree in sources().items():
        bare = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        assert not bare, module


def test_files_and_functions_stay_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path
    for module, tree in sources().items():
        long = [(name, lines) for name, lines in functions(tree) if lines > LONGEST_FUNCTION]
        assert not long, f"{module}: {long}"


def test_every_public_thing_has_a_docstring():
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name}"


def test_every_objective_names_its_equations():
    from recbole_ilrec.objective import OBJECTIVES

    for name in OBJECTIVES:
        component = OBJECTIVES.get(name)
        text = f"{component.__doc__}\n{sys.modules[component.__module__].__doc__}"
        assert re.search(r"Eq\. ?\d|https?://", text), f"objective '{name}' names neither an equation nor its source"


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_generated_pages_are_up_to_date(name):
    page = PROJECT / "docs" / name
    assert page.read_text(encoding="utf-8") == reference_pages.PAGES[name](), (
        f"docs/{name} is older than its sources: run '{reference_pages.COMMAND}' (make docs)"
    )


def test_every_choice_is_on_the_page():
    # Only the module that looks for the mark holds it outside of a note.
    texts = [p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p.name != "reference_pages.py"]
    page = (PROJECT / "docs" / "choices.md").read_text(encoding="utf-8")
    assert page.count("\n* **") == sum(text.count(reference_pages.MARK) for text in texts)


def test_a_choice_ends_with_its_paragraph_or_its_argument(tmp_path):
    (tmp_path / "some.py").write_text(
        '"""Title.\n\nChoice: one\n``two``: three.\n\nMore.\n"""\n\n\nclass A:\n    def f(self, x, y):\n'
        '        """Verb.\n\n        Args:\n            x: text. Choice: four\n                five.\n'
        '            y: six.\n        """\n'
    )
    notes = list(reference_pages.choice_notes(tmp_path))
    assert [(note.file, note.place, note.text) for note in notes] == [
        ("some.py", "", "one `two`: three."),
        ("some.py", "A.f", "four five."),
    ]


def test_ci_and_make_run_the_tests_as_the_readme_says():
    command = "python -m pytest -n 2 --dist loadfile"
    assert f"\n{command}\n" in (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"\n{command}\n" in (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"\t{command}\n" in (PROJECT / "Makefile").read_text(encoding="utf-8")


def test_relative_links_of_the_documentation_lead_somewhere():
    for page in (*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", target):
                linked = page.parent / target if target else page
                assert linked.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(linked), f"{page.name}: {target}#{anchor}"


def anchors(page):
    """Of its headings, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index():
    pages = {page.name for page in (PROJECT / "docs").glob("*.md")} - {"README.md"}
    index = (PROJECT / "docs" / "README.md").read_text(encoding="utf-8")
    assert pages == set(re.findall(r"^\| \[([\w-]+\.md)\]\(\1\)", index, re.MULTILINE))


def test_files_named_in_the_documentation_exist():
    named = re.compile(r"`((?:recbole_ilrec|properties|tests|docs)/[\w./-]+\.(?:py|yaml|md))`")  # `NAME` stands for any
    for page in (*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")):
        for path in named.findall(page.read_text(encoding="utf-8")):
            if not re.search(r"[A-Z]{4}", path):
                assert (PROJECT / path).is_file(), f"{page.name} names {path}"
