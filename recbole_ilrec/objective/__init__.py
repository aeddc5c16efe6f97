"""Training losses over token logits.

An objective knows states, logits, targets and trie children (:class:`~recbole_ilrec.schema.LegalTokens`); never items,
prompts, models or RecBole. A new one is a file with a class and a line in :data:`OBJECTIVES`, or a class of the user's
own, ``--objective=module:Class``.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.objective.base import Needs, Objective
from recbole_ilrec.objective.preference import PreferenceObjective
from recbole_ilrec.objective.returned import check_call
from recbole_ilrec.registry import Registry
from recbole_ilrec.settings import ILRecSettings, PreferenceSettings

__all__ = ["OBJECTIVES", "PREFERENCES", "Needs", "Objective", "build_objective", "build_preference"]

OBJECTIVES: Registry = Registry(
    "objective",
    {
        "sft": "recbole_ilrec.objective.sft:SFT",
        "ilrec": "recbole_ilrec.objective.ilrec:ILRec",
    },
    own=True,
)
"""Losses over the supervised tokens of a row."""

PREFERENCES: Registry = Registry(
    "objective",
    {
        "dpo": "recbole_ilrec.objective.preference:DPO",
        "sdpo": "recbole_ilrec.objective.preference:SoftmaxDPO",
        "rosepo": "recbole_ilrec.objective.preference:RosePO",
    },
)
"""Losses over chosen and rejected answers, after supervised fine-tuning."""


def build_objective(
    name: str,
    settings: ILRecSettings,
    item_tokens: Tensor | None = None,
    *,
    eos_id: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """The loss called ``name``.

    Args:
        name: a name in :data:`OBJECTIVES`, in any case, or ``module:Class``.
        settings: hyper-parameters; an objective ignores those of others.
        item_tokens: ``[V]`` bool, tokens that occur in some identifier; needed by the scopes ``item_tokens``.
        eos_id: end token, needed by ``apply_to_eos: false``.
        options: more keyword arguments, for a loss of the user's own.

    Raises:
        UserError: the name is unknown, or the settings ask for something that is not there.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, [*OBJECTIVES, *PREFERENCES])
    objective = OBJECTIVES.get(name)
    if not isinstance(options or {}, Mapping):
        raise UserError(f"objective_options={options!r} is not allowed: give a mapping, e.g. {{gamma: 2}}.")
    try:
        signature(objective).bind(settings, item_tokens, eos_id=eos_id, **(options or {}))
    except TypeError as error:
        raise UserError(
            f"objective '{name}' cannot be made with objective_options={dict(options or {})}: {error}. It is called as "
            f"{getattr(objective, '__name__', name)}(settings, item_tokens, eos_id=..., **objective_options)."
        ) from None
    made: Objective = objective(settings, item_tokens, eos_id=eos_id, **(options or {}))
    if not isinstance(getattr(made, "needs", None), Needs):
        raise UserError(f"objective '{name}' has no attribute 'needs': set needs = Needs() in the class.")
    check_call(name, made)
    return made


def build_preference(name: str, settings: PreferenceSettings) -> PreferenceObjective | None:
    """The preference loss called ``name`` in any case, or ``None`` where ``name`` is none of :data:`PREFERENCES`."""
    return PREFERENCES.get(name)(settings) if name in PREFERENCES else None
