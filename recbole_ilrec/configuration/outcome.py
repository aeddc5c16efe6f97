"""What the outcome of a run depends on, as keys by which a finished run is found again.

Knows settings and files; nothing is built or loaded. The code is no part of a run's key (a finished run stays finished
when a comment changes); every record holds :func:`code_key`, and tables say when their numbers come from several.
"""

import hashlib
import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.preparation.candidate_lists import SUFFIX as LISTS
from recbole_ilrec.settings import FLAT_KEYS, SECTIONS, Settings

# fmt: off
OUTCOME_FREE = frozenset((
    "data_path", "checkpoint_dir", "cache_dir", "device", "gpu_id", "use_gpu", "local_rank",
    "show_progress", "state", "num_threads", "worker", "saved", "eval_batch_size", "log_wandb",
    "wandb_project", "resume_from_checkpoint", "eval_test",
))
# fmt: on
"""Settings that do not change what comes out of a training; results are cached by the others."""
HOW_RUN = {"train": {"save_steps", "save_minutes", "keep_checkpoints", "log_steps", "parallel"}}
"""The same among the typed settings."""
OF_OTHER_MODELS = {"transitions": True}
"""Typed settings that no language model reads."""
_LENGTH = 16


def outcome_settings(config: Config, but: Collection[str] = ()) -> dict[str, Any]:
    """RecBole's settings that decide the outcome; those of this package are in ``config.settings``."""
    left_out = OUTCOME_FREE.union(but)
    return {
        key: value
        for key, value in config.as_dict().items()
        if key not in left_out and key not in FLAT_KEYS and key.partition(".")[0] not in SECTIONS
    }


def data_key(config: Config) -> str:
    """SHA-256 over the data files and the settings that select from them: names what is learned from this data."""
    digest = hashlib.sha256()
    for suffix in (".inter", ".item", LISTS):
        path = Path(config["data_path"]) / f"{config['dataset']}{suffix}"
        if path.is_file():
            digest.update(bytes.fromhex(_file_hash(path)))
        if path.is_file() or suffix != LISTS:
            digest.update(suffix.removeprefix(".").encode())
    selecting = {key: config[key] for key in (*dataset_arguments, "eval_args", "repeatable")}
    digest.update(json.dumps(selecting, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def settings_key(config: Config) -> str:
    """Names the settings that decide the outcome: those that the model reads."""
    if config.is_llm:
        typed = config.settings.model_dump(mode="json", exclude={**HOW_RUN, **_unread(config.settings)})
    else:
        sections = getattr(config.model_class, "sections", ())
        typed = {name: getattr(config.settings, name).model_dump(mode="json") for name in sections}
        typed |= {"exclude_history": config.settings.decode.exclude_history, "eval_users": config.settings.eval_users}
        if config.settings.task == "candidates":
            typed["candidates"] = config.settings.candidates.model_dump(mode="json")
    untested = [] if config["eval_test"] else ["without test"]  # a trial of a search is no line of a table
    return _key([config.model, config.dataset, outcome_settings(config), typed, *untested])


def _unread(settings: Settings) -> dict[str, Any]:
    """Typed settings that a language model with this objective and these identifiers does not read."""
    preferring = settings.objective in PREFERENCES
    others = set() if preferring else {"preference"}
    if preferring or settings.objective.lower() == "sft":
        others.add("ilrec")
    if settings.paradigm == "lcrec" and settings.task == "full":
        others.add("bigrec")
    return {**OF_OTHER_MODELS, **dict.fromkeys(others, True)}


def request_of(config: Config) -> dict[str, Any]:
    """The arguments that make this configuration again, from any folder, in plain values."""
    data, cache = Path(config["data_path"]).resolve(), Path(config["cache_dir"]).resolve()
    given = {**config.external_config_dict, "data_path": data.parent, "cache_dir": cache}
    return {
        "model": config.model,
        "dataset": config.dataset,
        "config_dict": json.loads(json.dumps(given, default=str)),
    }


def run_key(config: Config) -> str:
    """Names a run by its settings and every file of its dataset: equal keys, equal results (on equal machines)."""
    folder = Path(config["data_path"])
    files = sorted(path for path in folder.glob(f"{config['dataset']}.*") if path.is_file())
    given = config.settings.index.file
    files += [Path(given)] if given and Path(given).is_file() else []
    return _key([settings_key(config), {path.name: _file_hash(path) for path in files}])


@cache
def code_key() -> str:
    """Names the code: all modules of this package."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_LENGTH]


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:_LENGTH]


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
