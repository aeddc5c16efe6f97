"""Where the weights of a pretrained backbone are: a folder, the hub, or a ``.gguf`` file that is converted once.

A ``.gguf`` file may also come inside an installed Python package, so that a small real model needs no download.
"""

import hashlib
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole_ilrec.configuration.outcome import contents
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import install, made_once, staging_folder
from recbole_ilrec.runtime import processes
from recbole_ilrec.settings import BackboneSettings

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"


def local_backbone(config: Any) -> BackboneSettings:
    """The run's backbone settings with ``path`` as a folder where the weights are in a ``.gguf`` file.

    Choice: such a file holds quantised weights. They are dequantised when it is read, and trained and kept in
    ``backbone.dtype`` from then on.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    settings: BackboneSettings = config.settings.backbone
    file = packaged_file(settings.package) if settings.package else None
    if file is None and str(settings.path).endswith(SUFFIX):
        file = Path(str(settings.path))
    if file is None:
        return settings
    return settings.model_copy(update={"path": str(_converted(file, settings.dtype, Path(config["cache_dir"])))})


def read_from(config: Any, model: Any) -> list[Any]:
    """What tells the pretrained weights that training begins from: their files, or the hub's commit."""
    commit = getattr(model.backbone.model.config, "_commit_hash", None)
    return [entry for entry in (contents(config.settings, "backbone"), commit) if entry]


def packaged_file(package: str) -> Path | None:
    """The first ``.gguf`` file inside an installed package, which is looked up without being imported."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob(f"*{SUFFIX}"))), None)


def _converted(file: Path, dtype: str, cache: Path) -> Path:
    """The folder with the model of ``file``, made by the first process when it is not there."""
    if not file.is_file():
        raise UserError(f"backbone '{file}' does not exist: give the path of a {SUFFIX} file, a folder or a hub id.")
    if find_spec("gguf") is None:
        raise UserError(f"backbone '{file}' is read with the package gguf: pip install gguf, or give a model folder.")
    state = file.stat()
    identity = f"{file.name} {state.st_size} {state.st_mtime_ns} {dtype}"
    target = cache / "backbones" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    with processes.first_alone(), made_once(target):
        if not target.is_dir():
            logger.info("Converting %s to safetensors in %s (once; cached)", file.name, target)
            with staging_folder(target) as staging:
                _convert(file, staging / "model", dtype)
                install(staging / "model", target)
    return target


def _convert(file: Path, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
    except Exception as error:  # what is wrong in a file has no common base class in the libraries that read it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone '{file}' could not be read ({reason}); give another file or a folder.") from None
    # The library takes the weights for still quantised and refuses to save them, although they are plain by now.
    model.hf_quantizer = None
    del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
