"""Token rewards r_v: how much of a collaborative model's probability lies behind each next token (Eq. 10).

Items sorted by token sequence make the items below a prefix an interval, so the probability of a prefix is a
difference of two prefix sums. Knows item scores, the catalogue and its trie; never prompts, logits or RecBole.
"""

import torch
from torch import Tensor

from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.trie import Trie
from recbole_ilrec.schema import LegalTokens

SMALLEST_MASS = 1e-12
"""Below this, a difference of prefix sums of a distribution is mostly rounding (float64 carries about 1e-16)."""


def item_probabilities(
    scores: Tensor,
    temperature: float = 1.0,
    *,
    candidates: Tensor | None = None,
    seen: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """R(i), the probability that the collaborative model recommends item i (Eq. 10).

    Choice: the paper does not say how scores become probabilities. We take a softmax over all real items, with
    ``reward.temperature``; items of the history keep theirs unless ``reward.mask_history``. The truth keeps its own
    also where the user returns to it: with a reward of 0 Eq. 11 would teach against what was done. When the history
    holds every item, it is not masked.

    Choice: nor does it say what Eq. 10 becomes where a user chooses among candidates. They take the place of all items:
    R is the softmax over them alone, and tokens that lead to none of them get no reward.

    Args:
        scores: ``[E, I + 1]`` scores of the frozen model; column 0 is padding and gets no probability.
        temperature: > 0, divides the scores.
        candidates: ``[E, C]`` int64, the only items that may have a probability (0 is padding), or ``None``: all.
        seen: ``[E, I + 1]`` bool, items to leave out, or ``None``.
        target: ``[E]`` int64, an item that ``seen`` does not leave out, or ``None``.

    Returns:
        ``[E, I]`` float64, item i in column i - 1; rows sum to 1.
    """
    logits = scores[:, 1:].double() / temperature
    if candidates is None and seen is None:
        return logits.softmax(-1)
    left = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if candidates is not None:
        left = torch.zeros_like(left).scatter_(1, candidates, True)
    left[:, 0] = False
    if seen is not None:
        unseen = left & ~seen
        kept = unseen if target is None else unseen.scatter(1, target[:, None], True)
        left &= kept | ~unseen.any(1, keepdim=True)
    return logits.masked_fill(~left[:, 1:], -torch.inf).softmax(-1)


def legal_tokens(trie: Trie, node: Tensor) -> LegalTokens:
    """The children of each node, without rewards.

    Args:
        trie: on the device of ``node``.
        node: ``[N]`` int64; -1 has none.

    Returns:
        entries in the order of ``node``, tokens of a node ascending.
    """
    row, edge = trie.edges(node)
    return LegalTokens(row, trie.token[edge].long())


def token_rewards(probabilities: Tensor, catalog: Catalog, example: Tensor, node: Tensor) -> LegalTokens:
    """The children of each node with their rewards (Eq. 10).

    ``r_v`` = probability of the items below the child, divided by that of the items below the node. Prefix sums are
    in float64: in float32 they lose small subtrees altogether.

    Choice: "tokens before v" is the true prefix. Where the probability below it is too small to divide by
    (:data:`SMALLEST_MASS`), numbers of items take the place of probabilities.

    Args:
        probabilities: ``[E, I]``, item i in column i - 1 (:func:`item_probabilities`).
        catalog: its trie and item order; moved to the device of ``node``.
        example: ``[N]`` int64, row of ``probabilities`` of each supervised token; not looked at where node is -1.
        node: ``[N]`` int64, trie node before each supervised token; -1 has no entries.

    Returns:
        entries with float32 rewards in [0, 1]; those of a row sum to 1.
    """
    trie = catalog.trie.to(node.device)
    ordered = probabilities[:, catalog.item_order.to(probabilities.device) - 1].double()
    below = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    row, edge = trie.edges(node)
    owner = example[row]
    parent, child = node[row], edge + 1
    mass, items = _mass(below, trie, owner, parent)
    child_mass, child_items = _mass(below, trie, owner, child)
    reward = torch.where(mass > SMALLEST_MASS, child_mass / mass.clamp_min(SMALLEST_MASS), child_items / items)
    return LegalTokens(row, trie.token[edge].long(), reward.float())


def _mass(below: Tensor, trie: Trie, example: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and number of the items below each node, both ``[M]`` float64."""
    low, high = trie.low[node].long(), trie.high[node].long()
    return (below[example, high] - below[example, low]).clamp_min(0), (high - low).double()
