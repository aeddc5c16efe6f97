"""Which models exist, and which settings a model reads.

Three families answer to ``--model``, without regard to case: the language models of this package (:data:`MODELS`), its
baselines that only count (:data:`HEURISTICS`), and RecBole's sequential models. ``--model=module:Class`` names a class
of the user's own, a child of any of these or of RecBole's ``SequentialRecommender``.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import recbole
import recbole.model.sequential_recommender as sequential
from recbole.data import dataset as recbole_datasets
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import general_arguments, training_arguments
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments

from recbole_ilrec import settings
from recbole_ilrec.configuration.own_code import code_hash
from recbole_ilrec.configuration.presets import preset
from recbole_ilrec.errors import UserError, did_you_mean, unknown_name
from recbole_ilrec.registry import Registry, is_place, own_class
from recbole_ilrec.runtime.compat import switch_off_anomaly_detection

switch_off_anomaly_detection()

MODELS: Registry[type] = Registry(
    "model",
    {
        name: f"recbole_ilrec.models.methods:{name}"
        for name in ("ILRec", "LCRec", "BIGRec", "DPO", "SDPO", "RosePO", "SPRec")
    },
)
"""Language models as recommenders: the rows of Table 1 that this package trains."""

HEURISTICS = dict.fromkeys(("Pop", "Transitions"), "recbole_ilrec.collaborative.heuristics")
"""Recommenders that count and learn nothing -> their module; they run as RecBole's models do."""

PARADIGM_OF = {"LCRec": "lcrec", "BIGRec": "bigrec"}
"""Models whose name is that of a paradigm."""

# fmt: off
RUN_KEYS = frozenset((
    "model", "dataset", "saved", "resume_from_checkpoint", "device", "cache_dir", "num_threads", "objective_options",
))
# fmt: on
"""Settings of a run that neither RecBole nor the typed settings know."""

_OPTIONS = frozenset(("config_files", "result_file", "debug", "print_config"))

# Read by RecBole's code and set in none of its YAML files.
# fmt: off
_UNLISTED_KEYS = frozenset((
    "encoding", "tail_ratio", "discretization", "numerical_features", "nproc", "ip", "port",
    "world_size", "offset", "group_offset", "local_rank", "wandb_project", "enable_amp",
    "enable_scaler", "transform", "worker", "shuffle",
))
# fmt: on
_READ = re.compile(r"""config(?:\.get\(|\[)\s*["'](\w+)["']""")
_INTERNAL = frozenset(("MODEL_TYPE", "MODEL_INPUT_TYPE", "single_spec", "eval_type"))


def recbole_models() -> dict[str, str]:
    """Name of each of RecBole's sequential models -> its module, in lower case as RecBole names its files."""
    names: dict[str, str] = {}
    for path in sorted(Path(next(iter(sequential.__path__))).glob("[a-z]*.py")):
        found = re.search(rf"^class ({path.stem})\(", path.read_text(encoding="utf-8"), re.IGNORECASE | re.MULTILINE)
        if found:
            names[found.group(1)] = f"{sequential.__name__}.{path.stem}"
    return names


def find_model(name: str | type) -> tuple[str, type, bool]:
    """The model that ``--model=NAME`` means, or that a class is.

    Returns:
        Its exact name, its class, and whether it is a language model of this package.

    Raises:
        UserError: no such model (with a suggestion), or one that needs a pipeline of its own.
    """
    if isinstance(name, type) or is_place(name):
        own = name if isinstance(name, type) else own_class("model", name)
        if is_place(place_of(own)):
            code_hash(own)  # of the text that was imported, before anybody changes it
        return own.__name__, own, _is_language_model(own)
    if name in MODELS:
        exact = next(known for known in MODELS if known.lower() == str(name).lower())
        return exact, MODELS.get(exact), True
    models = {**recbole_models(), **HEURISTICS}
    exact = next((known for known in models if known.lower() == str(name).lower()), "")
    if not exact:
        _refuse_others(str(name))
        raise unknown_name("model", name, [*MODELS, *(model for model in models if not _special_need(model))])
    if need := _special_need(exact):
        raise UserError(
            f"The model '{exact}' needs {need}, which this package does not build: run it with RecBole itself, or "
            "choose another sequential model such as SASRec, GRU4Rec, BERT4Rec or Caser."
        )
    return exact, getattr(import_module(models[exact]), exact), False


def _is_language_model(model: type) -> bool:
    """Whether a model class is a language model of this package's kind.

    Raises:
        UserError: it is no sequential model.
    """
    if not issubclass(model, SequentialRecommender):
        raise UserError(
            f"The model class '{model.__name__}' ({model.__module__}) is no sequential model: let it inherit from "
            "ILRec or another of recbole_ilrec.models.methods, or from RecBole's SequentialRecommender."
        )
    return bool(getattr(model, "is_language_model", False))


def is_language_model(name: str) -> bool:
    """Whether ``--model=NAME`` means a language model; only for the user's own class is anything imported."""
    return name in MODELS or (is_place(name) and find_model(name)[2])


def place_of(model: type) -> str:
    """The name by which :func:`find_model` finds a model class again, in another process too."""
    published = model.__module__.startswith(("recbole.", "recbole_ilrec."))
    return model.__name__ if published else f"{model.__module__}:{model.__name__}"


def preset_name(model: type) -> str:
    """The name under which a model has presets, here or in RecBole: its own, or that of its nearest parent."""
    theirs = Path(recbole.__file__).parent / "properties" / "model"
    named = (parent.__name__ for parent in model.__mro__)
    with_presets = (name for name in named if preset("model", name).is_file() or (theirs / f"{name}.yaml").is_file())
    return next(with_presets, model.__name__)


def _special_need(name: str) -> str:
    """What a model of RecBole needs that this package does not build; empty: nothing."""
    if hasattr(recbole_datasets, f"{name}Dataset"):
        return "a dataset with a knowledge graph or negative histories"
    return "a pre-training stage" if hasattr(import_module("recbole.trainer"), f"{name}Trainer") else ""


def _refuse_others(name: str) -> None:
    """A model of RecBole that is not sequential is no slip of the pen."""
    if any((Path(recbole.__file__).parent / "model").glob(f"*_recommender/{name.lower()}.py")):
        raise UserError(
            f"'{name}' is a model of RecBole, but no sequential one, and histories are what is read here: choose e.g. "
            "SASRec, GRU4Rec, BERT4Rec or Caser, or run it with RecBole itself."
        )


def keys_read_by(model_class: type) -> set[str]:
    """Names of the settings that a model and its parents in RecBole, or of the user's own, read, by their source."""
    others = ("builtins", "torch", "recbole_ilrec")
    parents = [parent for parent in model_class.__mro__ if parent.__module__.partition(".")[0] not in others]
    return {key for parent in parents for key in _READ.findall(_source(parent))} - _INTERNAL


def read_of(model_class: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a run those that its model reads: by their names, or typed ones by their section."""
    read, sections = keys_read_by(model_class), getattr(model_class, "sections", ())
    return {key: value for key, value in stored.items() if key in read or key.partition(".")[0] in sections}


def _source(model: type) -> str:
    try:
        return inspect.getsource(model)
    except (OSError, TypeError):  # typed in at a prompt
        return ""


def known_keys(model_class: type, from_yaml: Iterable[str]) -> set[str]:
    """Every setting a user may give for this model; ``from_yaml`` are the keys of the YAML files that were loaded."""
    listed = [*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments]
    return {*listed, *from_yaml, *_UNLISTED_KEYS, *RUN_KEYS, *keys_read_by(model_class), *settings.known_keys()}


def refuse_unknown(given: dict[str, Any], known: set[str], origin: dict[str, str]) -> None:
    """Raise :class:`UserError` for the first setting that nothing reads; dotted ones are left to the typed settings."""
    for key in given:
        if key in _OPTIONS:
            raise UserError(
                f"{key} (from {origin.get(key, 'config_dict')}) is no setting but an option of the command 'run': give "
                f"it there, as --{key}=..., or leave it out."
            )
        if key in known or key.partition(".")[0] in settings.SECTIONS:
            continue
        raise UserError(
            f"Unknown setting '{key}' (from {origin.get(key, 'config_dict')}). {did_you_mean(key, known)}"
            "RecBole's settings and those of docs/settings.md are allowed; remove it or correct its name."
        )
