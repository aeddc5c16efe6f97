"""Typed settings of everything this package adds to RecBole.

Each section is a frozen pydantic model that refuses unknown keys. Users write a section as a YAML mapping
(``decode: {renormalise: true}``) or dotted (``--decode.renormalise=true``); the settings of the paper and the usual
ones also have a short flat name, listed in :data:`FLAT_KEYS` (``--alpha=0.8``). RecBole's own keys stay RecBole's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationError

from recbole_ilrec.errors import UserError, did_you_mean
from recbole_ilrec.registry import as_listed
from recbole_ilrec.settings.items import SEQREC as SEQREC
from recbole_ilrec.settings.items import (
    AlignmentSettings,
    BIGRecSettings,
    CandidateSettings,
    IndexSettings,
    PromptSettings,
)
from recbole_ilrec.settings.method import ILRecSettings, PreferenceSettings, RewardSettings, TransitionsSettings
from recbole_ilrec.settings.model import AdapterSettings, BackboneSettings, DecodeSettings, TrainSettings
from recbole_ilrec.settings.section import Natural, Section


class Settings(Section):
    """All sections, and the two keys that name a row of Table 1."""

    paradigm: Literal["lcrec", "bigrec"] = "lcrec"
    """Item identifiers: semantic IDs (LC-Rec) or titles (BIGRec)."""
    task: Literal["full", "candidates"] = "full"
    """Recommend from all items, or choose among a few that each row offers."""
    objective: Annotated[str, AfterValidator(as_listed)] = "ilrec"
    """Name of a loss in ``recbole_ilrec.objective``, or ``module:Class`` of your own (docs/extending.md)."""
    backbone_name: str = "tiny"
    """Preset, folder or hub id given as ``--backbone``."""
    ilrec: ILRecSettings = ILRecSettings()
    index: IndexSettings = IndexSettings()
    prompt: PromptSettings = PromptSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    bigrec: BIGRecSettings = BIGRecSettings()
    candidates: CandidateSettings = CandidateSettings()
    backbone: BackboneSettings = BackboneSettings()
    adapter: AdapterSettings = AdapterSettings()
    reward: RewardSettings = RewardSettings()
    preference: PreferenceSettings = PreferenceSettings()
    transitions: TransitionsSettings = TransitionsSettings()
    train: TrainSettings = TrainSettings()
    decode: DecodeSettings = DecodeSettings()
    eval_users: Natural | None = None
    """Evaluate the first n users only (for a quick look; the record says so)."""

    @property
    def generates_lists(self) -> bool:
        """Whether a user's list is the beams of the search; false where all items are ranked by distance, or a few."""
        return self.task == "full" and (self.paradigm == "lcrec" or self.bigrec.ranker == "constrained")


FLAT_KEYS: dict[str, str] = {
    **{name: f"ilrec.{name}" for name in ("k", "alpha", "beta", "lambda", "mu", "use_cpo", "use_cpd", "use_crr")},
    "negatives_from": "ilrec.negatives_from",
    "lora": "adapter.lora",
    "quantization": "backbone.quantization",
    "index_file": "index.file",
    "tasks": "alignment.tasks",
    "ilrec_tasks": "alignment.ilrec_tasks",
    "reward_model": "reward.model",
    "reward_checkpoint": "reward.checkpoint",
    "train_rows": "train.rows",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "warmup_ratio": "train.warmup_ratio",
    "max_steps": "train.max_steps",
    "save_steps": "train.save_steps",
    "num_beams": "decode.num_beams",
    "exclude_history": "decode.exclude_history",
    "collisions": "decode.collisions",
    "paradigm": "paradigm",
    "task": "task",
    "objective": "objective",
    "backbone": "backbone_name",
    "eval_users": "eval_users",
}
"""Short names on the command line and in YAML -> dotted settings."""

SECTIONS = tuple(n for n, f in Settings.model_fields.items() if isinstance(f.default, Section))


def known_keys() -> Iterator[str]:
    """Every key a user may give for this package: flat names, sections, dotted names."""
    yield from FLAT_KEYS
    for section in SECTIONS:
        yield section
        for name, field in type(Settings.model_fields[section].default).model_fields.items():
            yield f"{section}.{field.alias or name}"


def build_settings(values: Mapping[str, Any]) -> Settings:
    """Typed settings from a bag of flat, dotted and nested keys; other keys are not looked at.

    A flat or dotted key beats a nested one. ``backbone`` may be a name (``--backbone=tiny``) or a mapping.

    Raises:
        UserError: naming the first bad value, what is allowed and where it is documented.
    """
    tree: dict[str, Any] = {}
    for section in SECTIONS:
        if isinstance(values.get(section), Mapping):
            tree[section] = dict(values[section])
    for key, value in values.items():
        target = FLAT_KEYS.get(key, key if key.partition(".")[0] in SECTIONS else None)
        if target is None or (isinstance(value, Mapping) and target in (*SECTIONS, "backbone_name")):
            continue
        section, _, name = target.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        elif section in SECTIONS:
            raise UserError(f"{section}={value!r} must be a mapping of settings, e.g. --{section}.NAME=VALUE.")
        else:
            tree[section] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _user_error(error) from None


def _user_error(error: ValidationError) -> UserError:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"])
    short = next((flat for flat, target in FLAT_KEYS.items() if target == dotted.replace("lambda_", "lambda")), dotted)
    if first["type"] == "extra_forbidden":
        known = [key for key in known_keys() if "." in key]
        return UserError(f"Unknown setting '{dotted}'. {did_you_mean(dotted, known)}See docs/settings.md for all.")
    return UserError(f"{short}={first['input']!r} is not allowed: {first['msg']}. See docs/settings.md.")


def flat_sections(layer: Mapping[str, Any]) -> dict[str, Any]:
    """``{"decode": {"num_beams": 5}}`` as ``{"decode.num_beams": 5}``, so that layers can be laid over each other."""
    flat: dict[str, Any] = {}
    for key, value in layer.items():
        if key in SECTIONS and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": entry for name, entry in value.items()})
        else:
            flat[key] = value
    return flat


def laid_over(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers as one that means the same: sections by their settings, what was given last comes last."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in flat_sections(layer).items():
            whole[key] = in_parts(key, whole.pop(key, None), value)
    return whole


def in_parts(key: str, before: Any, value: Any) -> Any:
    """A value laid over the one before it: ``eval_args`` and ``objective_options`` may be given in part."""
    parts = key in ("eval_args", "objective_options") and isinstance(before, Mapping) and isinstance(value, Mapping)
    return {**before, **value} if parts else value


def nested(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer in which ``objective_options.gamma: 2`` is ``objective_options: {gamma: 2}``; nobody lists its names."""
    key = "objective_options"
    dotted = {name.removeprefix(f"{key}."): value for name, value in layer.items() if name.startswith(f"{key}.")}
    if not dotted or not isinstance(layer.get(key, {}), Mapping):
        return dict(layer)
    rest = {name: value for name, value in layer.items() if not name.startswith(f"{key}.")}
    return {**rest, key: {**rest.get(key, {}), **dotted}}
