"""Settings that were given and that this model does not read: they change nothing, which is worth a word."""

from collections.abc import Collection

from recbole_ilrec.configuration.config import GIVEN, Config
from recbole_ilrec.configuration.lookup import keys_read_by
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.settings import FLAT_KEYS, SECTIONS

_BY_ALL = frozenset(("eval_users", "task", "decode.exclude_history"))
_OF_RECBOLES_LOOP: dict[str, object] = {
    "learner": None,
    "clip_grad_norm": None,
    "train_neg_sample_args": None,
    "transform": None,
    "loss_decimal_place": None,
    "require_pow": False,
    "enable_amp": False,
    "enable_scaler": False,
    "worker": 0,
    "shuffle": True,
    "log_wandb": False,
    "wandb_project": None,
}
"""RecBole's settings of loaders and training, which language models have of their own -> a value that asks nothing."""


def unread(config: Config) -> list[str]:
    """What was given on the command line (or in ``config_dict``) and is not read; files serve many models."""
    given = [key for key in config.external_config_dict if config.origin.get(key) == GIVEN]
    return [key for key in given if _is_typed(key) and not _is_read(config, key)]


def refuse_unread(config: Config, keys: Collection[str]) -> None:
    """Raise :class:`UserError` where the model reads one of ``keys`` not."""
    if ignored := [key for key in unread(config) if key in keys]:
        raise UserError(f"{config.model} does not read {', '.join(ignored)}: choose another model or other settings.")


def _is_typed(key: str) -> bool:
    return key in FLAT_KEYS or key.partition(".")[0] in SECTIONS or key in _OF_RECBOLES_LOOP


def _is_read(config: Config, key: str) -> bool:
    if key in _OF_RECBOLES_LOOP:
        asks = config.external_config_dict[key] != _OF_RECBOLES_LOOP[key]
        return not (config.is_llm and asks) or key in keys_read_by(config.model_class)
    target = FLAT_KEYS.get(key, key)
    section = target.partition(".")[0]
    if config.is_llm:
        objective = config.settings.objective
        unused = {
            "ilrec": objective == "sft" or objective in PREFERENCES,
            "preference": objective in ("sft", "ilrec"),
            "transitions": True,
        }
        return not unused.get(section, False)
    if key in keys_read_by(config.model_class) or target in _BY_ALL:
        return True
    own = getattr(config.model_class, "sections", ())
    return section in own or (section == "candidates" and config.settings.task == "candidates")
