"""Self-hard negatives of many answers: how many there are, how heavy, and what stands behind them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.decoding.users import banned_positions
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective.explain import Explanation
from recbole_ilrec.runs.inspection import explained
from recbole_ilrec.runs.recommendation import Recommender, pairs_of_histories
from recbole_ilrec.schema import TokenBatch

USERS_AT_ONCE = 32


class Negatives(NamedTuple):
    """Means over the tokens at one place of the answers.

    Attributes:
        tokens: answers that have a token there.
        losses: nats by name: ``ce``, ``cpo``, ``cpd`` and, with a reward model, ``crr``; and ``L-n`` of each candidate
            layer's own prediction.
        right: share at which the last layer finds no legal token more probable than the truth.
        penalised: share with a negative.
        negatives: how many negatives.
        legal: share of the weight (Eq. 6) that lies on tokens which may follow, over those with a negative.
        own: share of it on tokens behind which stands an item that the user has had, likewise.
        reward: mean reward (Eq. 10) under these weights; ``None`` without a reward model.
        truth: mean reward of the truth, likewise over those with a negative.
    """

    tokens: int
    losses: Mapping[str, float]
    right: float
    penalised: float
    negatives: float
    legal: float
    own: float
    reward: float | None
    truth: float | None


def negatives_of(asked: Recommender, users: Sequence[str]) -> list[Negatives]:
    """What ILRec's negatives are at each token of the last items of some users, each after all that was before it.

    Args:
        asked: a run of a language model.
        users: ids; those with a single item are passed over.

    Raises:
        UserError: nobody has two items, or a run of one of RecBole's models.
    """
    config, names = asked.trained.config, asked.names
    if not config.is_llm:
        raise UserError(f"{config.model} has no layers to inspect: give a run of a language model, e.g. ILRec.")
    whole = [(names.user_number(user), names.numbers(names.history(user))) for user in users]
    whole = [(number, items) for number, items in whole if len(items) > 1]
    if not whole:
        raise UserError("None of the users has two items, so there is no history before an answer.")
    columns: dict[str, list[Tensor]] = {}
    for low in range(0, len(whole), USERS_AT_ONCE):
        numbers, items = zip(*whole[low : low + USERS_AT_ONCE], strict=True)
        histories, targets = [own[:-1] for own in items], np.array([own[-1] for own in items])
        window = config["MAX_ITEM_LIST_LENGTH"]
        pairs = pairs_of_histories(histories, window, users=np.array(numbers), targets=targets)
        batch, seen = explained(asked, pairs)
        for name, column in _columns(asked, batch, seen, histories).items():
            columns.setdefault(name, []).append(column)
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    place = joined.pop("place")
    return [
        _means({name: column[place == at] for name, column in joined.items()}) for at in range(int(place.max()) + 1)
    ]


def _columns(
    asked: Recommender, batch: TokenBatch, seen: Explanation, histories: Sequence[np.ndarray]
) -> dict[str, Tensor]:
    """``[N]`` each: what is averaged, the place of each token in its answer among them."""
    weights, targets = seen.weights.cpu(), batch.targets[:, None]
    legal, own = _behind(asked, batch, histories, weights.shape)
    final = seen.final.cpu()
    start = torch.searchsorted(batch.target.contiguous(), torch.arange(len(histories)))
    layers = seen.layers.cpu().gather(2, targets[:, None].expand(-1, seen.layers.shape[1], 1)).squeeze(2).log().neg()
    found = {f"loss/{name}": values.cpu() for name, values in seen.losses.items()}
    found |= {f"loss/L-{layers.shape[1] - n}": layers[:, n] for n in range(layers.shape[1])}
    found |= {
        "place": torch.arange(len(targets)) - start[batch.target],
        "right": (final.gather(1, targets) >= (final * legal).amax(1, keepdim=True)).double().squeeze(1),
        "count": seen.negatives.cpu().sum(1).double(),
        "legal": (weights * legal).sum(1),
        "own": (weights * own).sum(1),
    }
    if seen.rewards is not None:
        rewards = seen.rewards.cpu()
        found |= {"reward": (weights * rewards).sum(1), "truth": rewards.gather(1, targets).squeeze(1)}
    return found


def _behind(
    asked: Recommender, batch: TokenBatch, histories: Sequence[np.ndarray], shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """``[N, V]`` of 0 and 1: tokens that may follow, and those behind which stands an item of the history."""
    catalog = asked.trained.model.catalog
    row, edge = catalog.trie.edges(batch.node)
    token, child = catalog.trie.token[edge].long(), edge + 1
    positions = banned_positions(catalog, histories)[batch.target[row]]
    low, high = (bound[child].long()[:, None] for bound in (catalog.trie.low, catalog.trie.high))
    inside = ((positions >= low) & (positions < high)).any(1)
    legal, own = torch.zeros(shape), torch.zeros(shape)
    legal[row, token], own[row, token] = 1.0, inside.float()
    return legal, own


def _means(columns: Mapping[str, Tensor]) -> Negatives:
    penalised = columns["count"] > 0

    def mean(name: str) -> float:
        kept = columns[name][penalised]
        return float(kept.double().mean()) if len(kept) else 0.0

    losses = {name.removeprefix("loss/"): float(v.mean()) for name, v in columns.items() if name.startswith("loss/")}
    rewarded = "reward" in columns
    return Negatives(
        tokens=len(penalised),
        losses=losses,
        right=float(columns["right"].mean()),
        penalised=float(penalised.double().mean()),
        negatives=float(columns["count"].mean()),
        legal=mean("legal"),
        own=mean("own"),
        reward=mean("reward") if rewarded else None,
        truth=mean("truth") if rewarded else None,
    )
