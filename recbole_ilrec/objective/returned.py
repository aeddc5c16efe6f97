"""What a loss of the user's own returned, looked at before anything is computed from it."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.schema import LossTerms

_CALL = "__call__(self, states, batch, legal, *, epoch=0.0, generator=None)"


def check_call(name: str, objective: Any) -> None:
    """Refuse an objective that cannot be called as :class:`~recbole_ilrec.objective.base.Objective` says.

    Raises:
        UserError: it has no such method, or one with other arguments.
    """
    call = objective.forward if isinstance(objective, nn.Module) else objective
    try:
        signature(call).bind(None, None, None, epoch=0.0, generator=None)
    except TypeError as error:
        wanted = _CALL.replace("__call__", "forward") if isinstance(objective, nn.Module) else _CALL
        raise UserError(f"objective '{name}' cannot be called: {error}. Let the class have {wanted}.") from None


def checked_terms(terms: object, model: str, objective: str) -> LossTerms:
    """``terms``, when they are a loss that can be trained by: looks at shapes and names only, never at numbers.

    Args:
        terms: what an objective, or a model's ``loss_terms``, returned.
        model: name of the model, for messages.
        objective: that of its loss.

    Raises:
        UserError: they are no :class:`~recbole_ilrec.schema.LossTerms`, a part is no scalar tensor, has no weight or
            there is none, or nothing in them has a gradient where one is computed.
    """
    who = f"{model} with objective '{objective}' returned"
    if not isinstance(terms, LossTerms):
        raise UserError(
            f"{who} a {type(terms).__name__}, not LossTerms: return LossTerms(parts={{'name': sum over tokens}}, "
            "weights={'name': 1.0})."
        )
    if not isinstance(terms.parts, Mapping) or not terms.parts:
        raise UserError(f"{who} LossTerms without parts: give at least one, e.g. parts={{'name': sum over tokens}}.")
    for kind, values in (("part", terms.parts), ("monitor", terms.monitors)):
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.dim():
                found = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise UserError(
                    f"{who} {kind} '{name}' that is {found}: give a tensor without dimensions, the sum over the tokens."
                )
    if wrong := sorted(terms.parts.keys() ^ terms.weights.keys()):
        without = "part '{}' without a weight" if wrong[0] in terms.parts else "a weight for '{}', which is no part"
        raise UserError(
            f"{who} {without.format(wrong[0])}: the parts are {', '.join(terms.parts)}, the weights "
            f"{', '.join(terms.weights) or 'none'}; give each part one weight."
        )
    if torch.is_grad_enabled() and not terms.total.requires_grad:
        raise UserError(
            f"{who} a loss without a gradient: compute its parts ({', '.join(terms.parts)}) from "
            "states.head(states.final) without detach(), item() or no_grad()."
        )
    return terms
