"""One answer of a trained model: what each layer thinks at each of its tokens, and what ILRec does about it.

Joins :func:`~recbole_ilrec.objective.explain.explain` to a user's history, an item and the catalogue; rendering is the
verb's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.collaborative.reward_model import RewardModel
from recbole_ilrec.data.sequences import as_rows
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.objective.explain import Explanation, explain
from recbole_ilrec.objective.ilrec import ILRec
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.reward.token_reward import legal_tokens, token_rewards
from recbole_ilrec.runs.recommendation import Recommender, pairs_of_histories, refuse_new_users
from recbole_ilrec.schema import TokenBatch

EXAMPLES = 2
"""Items named as examples of those below a token."""


class TokenSeen(NamedTuple):
    """A token that may stand at a place of the answer.

    Attributes:
        token: as the tokenizer writes it.
        truth: whether it is the answer's.
        final: its probability in the last layer.
        layers: in the candidate layers, lowest first.
        ensemble: in their ensemble (Eq. 3).
        negative: whether it is one of V_N (Eq. 5).
        weight: w of Eq. 6.
        reward: r of Eq. 10; ``None`` where the run has no reward model.
        items: items whose identifier goes on with it; 0 where it may not follow.
        own: how many of these the user has had, or will have.
        examples: titles of some of them.
    """

    token: str
    truth: bool
    final: float
    layers: tuple[float, ...]
    ensemble: float
    negative: bool
    weight: float
    reward: float | None
    items: int
    own: int
    examples: tuple[str, ...]


class PlaceSeen(NamedTuple):
    """A place of the answer.

    Attributes:
        prefix: the answer's tokens before it.
        items: items below this prefix.
        threshold: of Eq. 4, a probability of the ensemble as a rule.
        negatives: how many tokens are in V_N.
        losses: nats by name: ``ce``, ``cpo``, ``cpd`` and, with a reward model, ``crr``.
        tokens: the most probable ones, the truth and the heaviest negatives among them, by the last layer.
    """

    prefix: tuple[str, ...]
    items: int
    threshold: float
    negatives: int
    losses: Mapping[str, float]
    tokens: tuple[TokenSeen, ...]


class Inspection(NamedTuple):
    """One answer.

    Attributes:
        history: ids of the items before it.
        item: its id.
        title: its title.
        log_prob: the model's log-probability of the whole identifier.
        place: where it stands in the model's list, from 1; ``None`` where it is not in it.
        places: one for each token.
    """

    history: list[str]
    item: str
    title: str
    log_prob: float
    place: int | None
    places: list[PlaceSeen]


def inspect_answer(
    asked: Recommender,
    history: Sequence[str],
    item: str,
    *,
    user: str | None = None,
    own: Sequence[str] = (),
    most: int = 8,
) -> Inspection:
    """Look at the answer ``item`` after a history.

    Args:
        asked: a run of a language model.
        history: ids or titles of the items before it, oldest first.
        item: id or title of the answer.
        user: who it is, for reward models that learn a vector for each user.
        own: ids of all items that the user is known to like, to be found behind penalised tokens.
        most: tokens to show at each place.

    Raises:
        UserError: an unknown item, a run of one of RecBole's models, or a reward model that knows its own users only.
    """
    model, config, names = asked.trained.model, asked.trained.config, asked.names
    if not config.is_llm:
        raise UserError(f"{config.model} has no layers to inspect: give a run of a language model, e.g. ILRec.")
    past, (target, *_) = names.numbers(history), names.numbers([item])
    who = np.array([0 if user is None else names.user_number(user)])
    window, targets = config["MAX_ITEM_LIST_LENGTH"], np.array([target])
    batch, seen = explained(asked, pairs_of_histories([past], window, users=who, targets=targets))
    most_listed = min(model.list_length, len(names.items) - 1)
    (places,) = asked.recommend([history], topk=most_listed, users=None if user is None else [user])
    listed, name = [place.item for place in places], names.items[target]
    liked = torch.from_numpy(names.numbers(own)) if len(own) else torch.empty(0, dtype=torch.long)
    return Inspection(
        history=[names.items[number] for number in past],
        item=name,
        title=names.titles[target],
        log_prob=-float(seen.losses["ce"].sum()),
        place=listed.index(name) + 1 if name in listed else None,
        places=_places(asked, seen, batch, liked, most),
    )


def explained(asked: Recommender, pairs: Pairs) -> tuple[TokenBatch, Explanation]:
    """The tokens of the answers of some rows, and what each layer and each equation makes of them.

    Args:
        asked: a run of a language model.
        pairs: histories and answers; ``batch.target`` is the row that a token belongs to.
    """
    model, config = asked.trained.model, asked.trained.config
    rewards = _rewards(asked, pairs)
    batch: TokenBatch = model.encoder.collate(model.encoded(pairs))
    if rewards is None:
        legal = legal_tokens(model.catalog.trie, batch.node)
    else:
        legal = token_rewards(rewards, model.catalog, batch.target, batch.node)
    objective, device = _objective(asked), model.backbone.device
    here = batch.to(device)
    how = {"apply_final_norm": config.settings.ilrec.apply_final_norm}
    with torch.no_grad():
        states = model.backbone.layer_states(here.input_ids, here.select, objective.settings.layers, **how)
        active = objective.active(here, float("inf"))
        return batch, explain(objective, states, here.targets, legal.to(device), active)


def _objective(asked: Recommender) -> ILRec:
    """ILRec's loss under the run's settings, with no more layers than there are."""
    model, settings = asked.trained.model, asked.trained.config.settings.ilrec
    layers = min(settings.k, model.backbone.num_layers - 1)
    vocabulary, tokenizer = model.backbone.vocab_size, model.backbone.tokenizer
    mask = model.catalog.item_token_mask(vocabulary)
    return ILRec(settings.model_copy(update={"k": layers}), mask, eos_id=tokenizer.eos_token_id)


def _rewards(asked: Recommender, pairs: Pairs) -> Tensor | None:
    """R of Eq. 10, ``[B, I]``, where the run has a reward model, which is trained now if it is gone."""
    model, dataset = asked.trained.model, asked.trained.data.dataset
    if not model.objective.needs.rewards:
        return None
    rewarding: RewardModel = model.reward_model
    if not pairs.user.all():
        refuse_new_users(rewarding.model, dataset)
    return rewarding.probabilities(as_rows(pairs, dataset), pairs.candidates, pairs.seen())


def _places(asked: Recommender, seen: Explanation, batch: TokenBatch, liked: Tensor, most: int) -> list[PlaceSeen]:
    model = asked.trained.model
    catalog, spell = model.catalog, model.backbone.tokenizer.convert_ids_to_tokens
    answer = [str(token) for token in spell(batch.targets.tolist())]
    position = torch.empty(catalog.num_items + 1, dtype=torch.long)
    position[catalog.item_order] = torch.arange(catalog.num_items)
    own, found = position[liked.unique()].sort().values, []
    for place, (node, truth) in enumerate(zip(batch.node.tolist(), batch.targets.tolist(), strict=True)):
        shown = _shown(seen, place, truth, most)
        children = catalog.trie.step(torch.full((len(shown),), node), torch.tensor(shown)).tolist()
        tokens = [
            TokenSeen(
                token=str(spell(token)),
                truth=token == truth,
                final=float(seen.final[place, token]),
                layers=tuple(seen.layers[place, :, token].tolist()),
                ensemble=float(seen.ensemble[place, token]),
                negative=bool(seen.negatives[place, token]),
                weight=float(seen.weights[place, token]),
                reward=None if seen.rewards is None else float(seen.rewards[place, token]),
                **_below(asked, catalog, child, own),
            )
            for token, child in zip(shown, children, strict=True)
        ]
        low, high = (int(bound[node]) for bound in (catalog.trie.low, catalog.trie.high))
        found.append(
            PlaceSeen(
                prefix=tuple(answer[:place]),
                items=high - low,
                threshold=float(seen.threshold[place]),
                negatives=int(seen.negatives[place].sum()),
                losses={name: float(values[place]) for name, values in seen.losses.items()},
                tokens=tuple(tokens),
            )
        )
    return found


def _shown(seen: Explanation, place: int, truth: int, most: int) -> list[int]:
    """The truth, then in turn the most probable tokens and the heaviest negatives until there are enough."""
    final, weights = seen.final[place], seen.weights[place]
    by_final, by_weight = (table.topk(min(most, len(table))).indices.tolist() for table in (final, weights))
    heavy = [token for token in by_weight if weights[token] > 0]
    half = most // 2
    chosen = list(dict.fromkeys([truth, *by_final[: most - half], *heavy[:half], *by_final]))[:most]
    return sorted(chosen, key=lambda token: -float(final[token]))


def _below(asked: Recommender, catalog: Catalog, node: int, own: Tensor) -> dict[str, Any]:
    """What of the catalogue is below a node, and what of the user's own."""
    if node < 0:
        return {"items": 0, "own": 0, "examples": ()}
    low, high = int(catalog.trie.low[node]), int(catalog.trie.high[node])
    mine = int(((own >= low) & (own < high)).sum())
    examples = [asked.names.titles[item] for item in catalog.item_order[low : min(high, low + EXAMPLES)].tolist()]
    return {"items": high - low, "own": mine, "examples": tuple(examples)}
