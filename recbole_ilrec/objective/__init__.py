"""Training losses over token logits.

An objective knows states, logits, targets and trie children (:class:`~recbole_ilrec.schema.LegalTokens`); never items,
prompts, models or RecBole. A new one is a file with a class and a line in :data:`OBJECTIVES`.
"""

from torch import Tensor

from recbole_ilrec.objective.base import Needs, Objective
from recbole_ilrec.registry import Registry
from recbole_ilrec.settings import ILRecSettings

__all__ = ["OBJECTIVES", "Needs", "Objective", "build_objective"]

OBJECTIVES: Registry = Registry(
    "objective",
    {
        "sft": "recbole_ilrec.objective.sft:SFT",
        "ilrec": "recbole_ilrec.objective.ilrec:ILRec",
    },
)


def build_objective(
    name: str, settings: ILRecSettings, item_tokens: Tensor | None = None, *, eos_id: int | None = None
) -> Objective:
    """The loss called ``name``.

    Args:
        name: a name in :data:`OBJECTIVES`, in any case.
        settings: hyper-parameters; an objective ignores those of others.
        item_tokens: ``[V]`` bool, tokens that occur in some identifier; needed by the scopes ``item_tokens``.
        eos_id: end token, needed by ``apply_to_eos: false``.

    Raises:
        UserError: the name is unknown, or the settings ask for something that is not there.
    """
    return OBJECTIVES.get(name)(settings, item_tokens, eos_id=eos_id)
