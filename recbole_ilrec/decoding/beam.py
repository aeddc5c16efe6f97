"""Beam search over the item trie: every beam is an item at every step, and only legal tokens are scored.

Beams of a user share one key-value cache (tree attention), so a prompt is encoded once and never copied. A beam as wide
as the catalogue is exhaustive scoring. Knows the trie and a stepper; never items' names, data sets or metrics.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recbole_ilrec.identifiers.trie import ROOT, Trie
from recbole_ilrec.schema import Ranking


class Stepper(Protocol):
    """What beam search asks of a language model; see :class:`recbole_ilrec.backbone.base.Backbone`."""

    def prefill(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
        """States after the prompts ``[B, 1, H]`` and a cache."""

    def extend(self, state: Any, tokens: Tensor, parent: Tensor) -> Tensor:
        """States ``[B, W, H]`` after one more token on every beam, each grown from a ``parent`` of the step before."""

    def head(self, states: Tensor) -> Tensor:
        """Logits ``[n, V]`` of states ``[n, H]``."""


@dataclass(frozen=True)
class _Beams:
    """The live set, of which the first O beams of a user hold all that are still open, the others are complete.

    ``node``, ``score`` are ``[B, W]``; ``states [B, O, H]``.
    """

    node: Tensor
    score: Tensor
    states: Tensor


@torch.no_grad()
def beam_search(
    stepper: Stepper,
    trie: Trie,
    input_ids: Tensor,
    mask: Tensor,
    *,
    num_beams: int,
    renormalise: bool = False,
    banned: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Ranking:
    """The most probable identifiers of each prompt.

    The score of an identifier is the sum of the log-probabilities of its tokens, over the whole vocabulary or, with
    ``renormalise``, over the legal tokens of each step. No length penalty: identifiers compete as whole sequences, and
    a complete one keeps its place among longer ones by its score. With ``renormalise`` the rest of the only identifier
    below a prefix has probability 1, so the search goes to its end at once; titles need few steps that way.

    A score only falls as an identifier grows, so none can end above the best prefix that was ever dropped: the
    ranking's ``bound``.

    Args:
        stepper: the language model.
        trie: all identifiers, on the device of the prompts.
        input_ids: ``[B, T]`` prompts, padded on the left.
        mask: ``[B, T]`` bool, True at real tokens.
        num_beams: W.
        renormalise: see above.
        banned: ``[B, X]`` int64 item positions in trie order, ascending, that may not be recommended to each user;
            rows are padded with a number past the last item. A prefix is closed once all its items are banned.
        allowed: ``[B, C]`` int64 likewise, the only items that may be recommended to each user. With W >= C all of them
            are found.

    Returns:
        at most W identifiers a user, best first; never an invalid or repeated one.
    """
    states, cache = stepper.prefill(input_ids, mask)
    beams = _root(states)
    bound = torch.full((len(input_ids),), -torch.inf, device=input_ids.device)
    shortcut = trie.only_leaf() if renormalise else None
    while True:
        node, score, parent, token, dropped = _expand(stepper, trie, beams, num_beams, renormalise, banned, allowed)
        bound = torch.maximum(bound, dropped)
        if shortcut is not None:
            node = torch.where(node >= 0, shortcut[node.clamp_min(0)], -1)
        open_beams = (node >= 0) & (trie.leaf[node.clamp_min(0)] < 0)
        if not bool(open_beams.any()):
            leaf = torch.where(node >= 0, trie.leaf[node.clamp_min(0)].long(), -1)
            return Ranking(leaf=leaf, score=score, bound=bound)
        node, score, parent, token = _open_first(open_beams, node, score, parent, token)
        going_on = int(open_beams.sum(1).max())
        parent, token = parent[:, :going_on], token[:, :going_on]
        states = stepper.extend(cache, token.clamp_min(0), parent)
        beams = _Beams(node=node, score=score, states=states)


def _root(states: Tensor) -> _Beams:
    """One beam for each user, which has taken no token yet; ``states`` are ``[B, 1, H]``."""
    batch, device = len(states), states.device
    return _Beams(
        node=torch.full((batch, 1), ROOT, device=device),
        score=torch.zeros(batch, 1, device=device),
        states=states,
    )


def _open_first(open_beams: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Columns ``[B, W]`` with each user's open beams before the others.

    Only open beams go on, which for titles soon are few. To keep the batch rectangular, a user who has fewer of them
    than another carries complete ones along with a dummy token.
    """
    order = open_beams.int().argsort(dim=1, descending=True, stable=True)
    return tuple(column.gather(1, order) for column in columns)


def _expand(
    stepper: Stepper,
    trie: Trie,
    beams: _Beams,
    num_beams: int,
    renormalise: bool,
    banned: Tensor | None,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The best W among all children of open beams and all complete beams: node, score, parent beam, token (``[B, W]``;
    parent and token mean nothing for a beam that was complete before); and the score ``[B]`` of the best left out."""
    batch, width = beams.states.shape[:2]
    first, count = trie.fan_out(beams.node[:, :width])
    fan = max(int(count.max()), 1)
    offsets = torch.arange(fan, device=first.device)
    legal = offsets < count[..., None]
    edge = torch.where(legal, first[..., None] + offsets, 0)
    token = trie.token[edge].long()
    if banned is not None:
        found, items = _count(trie, edge + 1, banned)
        legal = legal & (found < items)
    if allowed is not None:
        legal = legal & (_count(trie, edge + 1, allowed)[0] > 0)
    logits = stepper.head(beams.states.flatten(0, 1)).float().view(batch, width, -1)
    picked = logits.gather(-1, token)
    total = picked.masked_fill(~legal, -torch.inf) if renormalise else logits
    log_mass = total.logsumexp(-1, keepdim=True).masked_fill(count[..., None] == 0, 0.0)
    child_score = (beams.score[:, :width, None] + picked - log_mass).masked_fill(~legal, -torch.inf)
    complete = (beams.node >= 0) & (trie.leaf[beams.node.clamp_min(0)] >= 0)
    kept_score = beams.score.masked_fill(~complete, -torch.inf)
    candidates = torch.cat([child_score.flatten(1), kept_score], dim=1)
    score, index = candidates.topk(min(num_beams + 1, candidates.shape[1]), dim=1)
    dropped = score[:, -1] if score.shape[1] > num_beams else torch.full_like(score[:, 0], -torch.inf)
    score, index = score[:, :num_beams], index[:, :num_beams]
    is_child = index < width * fan
    itself = (index - width * fan).clamp_min(0)
    child_index = index.clamp_max(width * fan - 1)
    node = torch.where(is_child, edge.flatten(1).gather(1, child_index) + 1, beams.node.gather(1, itself))
    node = torch.where(score > -torch.inf, node, -1)
    return node, score, child_index // fan, token.flatten(1).gather(1, child_index), dropped


def _count(trie: Trie, node: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """How many of a user's positions lie below each node ``[B, W, F]``, and how many items do."""
    low = trie.low[node].long().flatten(1)
    high = trie.high[node].long().flatten(1)
    found = torch.searchsorted(positions, high) - torch.searchsorted(positions, low)
    return found.view_as(node), (high - low).view_as(node)
