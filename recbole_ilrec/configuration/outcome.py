"""What the outcome of a run depends on, as keys by which a finished run is found again.

Knows settings and files; nothing is built or loaded. The code is no part of a run's key (a finished run stays finished
when a comment changes); every record holds :func:`code_key`, and tables say when their numbers come from several.
"""

import glob
import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import place_of
from recbole_ilrec.configuration.own_code import code_hash, file_hash
from recbole_ilrec.configuration.presets import preset
from recbole_ilrec.configuration.run_keys import RunKeys
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.preparation.candidate_lists import SUFFIX as LISTS
from recbole_ilrec.registry import is_place, own_class
from recbole_ilrec.runtime.checkpoint import STATE
from recbole_ilrec.runtime.resumption import BEST
from recbole_ilrec.settings import FLAT_KEYS, SECTIONS, Settings
from recbole_ilrec.settings.model import SFT

# fmt: off
OUTCOME_FREE = frozenset((
    "data_path", "checkpoint_dir", "cache_dir", "device", "gpu_id", "use_gpu", "local_rank",
    "show_progress", "state", "num_threads", "saved", "eval_batch_size", "log_wandb",
    "wandb_project", "resume_from_checkpoint", "eval_test",
))
# fmt: on
"""Settings that do not change what comes out of a training; results are cached by the others."""
HOW_RUN = {"train": {"save_steps", "save_minutes", "keep_checkpoints", "log_steps", "parallel", "report_to"}}
"""The same among the typed settings."""
OF_OTHER_MODELS = {"transitions": True}
"""Typed settings that no language model reads."""
_USUAL = (("worker", 0),)  # with others RecBole draws masks and negatives in processes of their own
_SELECTING = (*dataset_arguments, "eval_args", "repeatable")
_PATHS = (
    "backbone.path",
    "prompt.template",
    "alignment.template",
    "index.file",
    "index.encoder",
    "reward.checkpoint",
    "preference.checkpoint",
    "train.init_from",
)
_REPORTING = frozenset(("model", "metrics", "topk"))
_OF_OTHER_STAGES: Any = {
    **dict.fromkeys(("objective", "ilrec", "preference", "reward"), True),
    **OF_OTHER_MODELS,
    "train": HOW_RUN["train"] | {"layer_losses", "init_from"},
}
_LENGTH, _LARGE = 16, 1 << 26
_PACKAGE = Path(__file__).resolve().parents[1]


def outcome_settings(config: Config, but: Collection[str] = ()) -> dict[str, Any]:
    """RecBole's settings that decide the outcome; those of this package are in ``config.settings``."""
    return {
        key: value
        for key, value in config.as_dict().items()
        if decides(key, value) and key not in but and key not in FLAT_KEYS and key.partition(".")[0] not in SECTIONS
    }


def decides(key: str, value: Any) -> bool:
    """Whether one of RecBole's settings with this value has a part in what comes out."""
    return key not in OUTCOME_FREE and (key, value) not in _USUAL


def settings_of_record(config: Config) -> dict[str, Any]:
    """The typed settings as a record holds them: all for a language model, for others those that they read."""
    read: dict[str, Any] | None = None
    if not config.is_llm:
        read = dict.fromkeys((*getattr(config.model_class, "sections", ()), "eval_users", "task"), True)
        read |= {"decode": {"exclude_history"}}
        if config.settings.task == "candidates":
            read["candidates"] = True
    return config.settings.model_dump(mode="json", by_alias=True, include=read)


def supervised_settings(config: Config) -> list[Any]:
    """The settings that supervised fine-tuning depends on, the same for all models that begin with it."""
    settings = without_paths(config.settings).model_dump(mode="json", exclude=_OF_OTHER_STAGES)
    return [outcome_settings(config, but=_REPORTING), settings]


def supervised_key(config: Config) -> str | None:
    """Names the supervised stage of a run, as far as settings do; ``None`` where it has none."""
    objective, train = config.settings.objective, config.settings.train
    if not config.is_llm or not (objective in PREFERENCES or SFT in (objective, train.init_from)):
        return None
    return _key([config.dataset, *supervised_settings(config)])


def keys_of(config: Config) -> RunKeys:
    """What a run is made of now."""
    of_run, training = settings_key(config), [settings_key(config, tested=tested) for tested in (True, False)]
    files = _file_hashes(config)
    keys = frozenset(_key([settings, files]) for settings in training)
    run, line = _key([of_run, files]), _key([settings_key(config, but=("seed",)), files])
    return RunKeys(data_key(config), interactions_key(config), of_run, run, line, code_key(), keys)


def data_key(config: Config) -> str:
    """SHA-256 over the data files and the settings that select from them: names what is learned from this data."""
    if config.keys is not None:
        return config.keys.data
    digest = hashlib.sha256()
    parts = [f".{part}.inter" for part in config["benchmark_filename"] or ()]
    for suffix in (".inter", ".item", LISTS, *parts):
        path = Path(config["data_path"]) / f"{config['dataset']}{suffix}"
        if path.is_file():
            digest.update(bytes.fromhex(file_hash(path)))
        if path.is_file() or suffix != LISTS:
            digest.update(suffix.removeprefix(".").encode())
    selecting = {key: config[key] for key in _SELECTING}
    digest.update(json.dumps(selecting, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def data_asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """Where the data are and what is selected from them, of :func:`request_of`: what :func:`data_key` depends on."""
    return {key: request["config_dict"][key] for key in ("data_path", *_SELECTING) if key in request["config_dict"]}


def interactions_key(config: Config) -> str | None:
    """SHA-256 of the file of interactions; ``None`` where the parts of the split are files of their own."""
    if config.keys is not None:
        return config.keys.interactions
    path = Path(config["data_path"]) / f"{config['dataset']}.inter"
    return file_hash(path) if path.is_file() else None


def settings_key(config: Config, tested: bool | None = None, but: Collection[str] = ()) -> str:
    """Names the settings that decide the outcome: those that the model reads.

    Args:
        config: all of them.
        tested: whether the test part is evaluated; default: ``eval_test``.
        but: RecBole's settings that are left out.
    """
    if config.is_llm:
        typed = without_paths(config.settings).model_dump(mode="json", exclude=_undecided(config.settings))
    else:
        sections = getattr(config.model_class, "sections", ())
        typed = {name: getattr(config.settings, name).model_dump(mode="json") for name in sections}
        typed |= {"exclude_history": config.settings.decode.exclude_history, "eval_users": config.settings.eval_users}
        if config.settings.task == "candidates":
            typed["candidates"] = config.settings.candidates.model_dump(mode="json")
    untested = [] if (config["eval_test"] if tested is None else tested) else ["without test"]  # no line of a table
    return _key([config.model, config.dataset, outcome_settings(config, but), typed, *untested, *own_code(config)])


def own_code(config: Config) -> list[list[str]]:
    """The user's own model, loss and reward model with a hash of their code: of what changed all is new."""
    objective, reward = config.settings.objective, config.settings.reward.model
    own = {place_of(config.model_class): config.model_class}
    if config.is_llm and is_place(objective):
        own[objective] = own_class("objective", objective)
    if config.is_llm and is_place(reward):
        own[reward] = own_class("model", reward)
    return [[place, code_hash(found)] for place, found in own.items() if is_place(place)]


def own_texts(config: Config) -> dict[str, str]:
    """Hashes of own models and of a prompt's file: what a model is asked through later and its weights do not hold."""
    models = {place: code for place, code in own_code(config) if place != config.settings.objective}
    return models | (contents(config.settings, "prompt") if config.is_llm else {})


def _undecided(settings: Settings) -> dict[str, Any]:
    """Typed settings that decide nothing for a language model with this objective and these identifiers."""
    preferring = settings.objective in PREFERENCES
    others = set() if preferring else {"preference"}
    if preferring or settings.objective == "sft":
        others.add("ilrec")
    if settings.paradigm == "lcrec" and settings.task == "full":
        others.add("bigrec")
    unset = {"init_from"} if settings.train.init_from is None else set()  # keys older than this setting stay
    return {"train": HOW_RUN["train"] | unset, **OF_OTHER_MODELS, **dict.fromkeys(others, True)}


def without_paths(settings: Settings) -> Settings:
    """The same settings without :func:`given_paths`: what these hold is hashed, not how somebody typed them."""
    return _with_paths(settings, dict.fromkeys(given_paths(settings), ""))


def given_paths(settings: Settings) -> dict[str, Path]:
    """Dotted names of typed settings that name a file or folder that exists -> it, from any folder."""
    found = {}
    for name in _PATHS:
        section, _, field = name.partition(".")
        value = getattr(getattr(settings, section), field)
        named = name.endswith(".template") and not str(value).endswith((".yaml", ".yml"))
        if value and not named and (name, value) != ("train.init_from", SFT) and Path(value).exists():
            found[name] = Path(value).resolve()
    return found


def from_anywhere(settings: Settings) -> Settings:
    """The same settings with the paths of :func:`given_paths` in them."""
    return _with_paths(settings, {name: str(path) for name, path in given_paths(settings).items()})


def _with_paths(settings: Settings, paths: Mapping[str, str]) -> Settings:
    sections: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = path
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    return settings.model_copy(update=changed)


def request_of(config: Config) -> dict[str, Any]:
    """The arguments that make this configuration again, from any folder, in plain values."""
    data, cache = Path(config["data_path"]).resolve(), Path(config["cache_dir"]).resolve()
    given = {**config.external_config_dict, "data_path": data.parent, "cache_dir": cache}
    paths = given_paths(config.settings)
    if isinstance(given.get("backbone"), str) and Path(given["backbone"]).exists():
        given["backbone"] = paths.pop("backbone.path", given["backbone"])
    given |= paths
    return {
        "model": place_of(config.model_class),
        "dataset": config.dataset,
        "config_dict": json.loads(json.dumps(given, default=str)),
    }


def run_key(config: Config) -> str:
    """Names a run by its settings and every file of its dataset: equal keys, equal results (on equal machines)."""
    return _key([settings_key(config), _file_hashes(config)])


def _file_hashes(config: Config) -> dict[str, str]:
    """Of every file of the data set and of those that settings name."""
    folder = Path(config["data_path"])
    files = sorted(path for path in folder.glob(f"{glob.escape(config['dataset'])}.*") if path.is_file())
    given = config.settings.index.file
    files += [Path(given)] if given and Path(given).is_file() else []
    hashes = {path.name: file_hash(path) for path in files}
    if config.is_llm:
        hashes |= contents(config.settings, but="index.file")
    return hashes


def contents(settings: Settings, *sections: str, but: str = "") -> dict[str, str]:
    """What the files hold that typed settings name, as hashes.

    Args:
        settings: all of them.
        sections: look at these only; none: at all.
        but: a setting that is left out.
    """
    return {
        f"{name}: {file.name}": _identity(file)
        for name, path in given_paths(settings).items()
        if name != but and (not sections or name.partition(".")[0] in sections)
        for file in _deciding(path)
    }


def _deciding(path: Path) -> list[Path]:
    """The files behind a path: of a checkpoint or run of this package the one that holds the hash of its weights."""
    if path.is_file():
        return [path]
    states = [state for state in (path / BEST / STATE, path / STATE) if state.is_file()]
    return states[:1] or sorted(file for file in path.iterdir() if file.is_file())


def _identity(file: Path) -> str:
    """Its hash; size and time of one that takes long to read."""
    about = file.stat()
    return f"{about.st_size}, {about.st_mtime_ns}" if about.st_size > _LARGE else file_hash(file)


@cache
def code_key() -> str:
    """Names the code: all modules of this package, and its prompts, which no setting of a run holds."""
    digest = hashlib.sha256()
    for path in (*sorted(_PACKAGE.rglob("*.py")), *sorted(preset("prompt", "compact").parent.glob("*.yaml"))):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_LENGTH]


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:_LENGTH]
