"""Beam search for many users: like lengths together, results in the users' own order."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.decoding.beam import Stepper, beam_search
from recbole_ilrec.decoding.free import generate
from recbole_ilrec.decoding.passes import Keeper, each_user
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.schema import Ranking
from recbole_ilrec.settings import BIGRecSettings, DecodeSettings


def banned_positions(catalog: Catalog, histories: Sequence[np.ndarray]) -> Tensor:
    """Trie positions of each history's items, ascending, padded with a number past the last item.

    Returns:
        ``[B, X]`` int64.
    """
    position_of_item = torch.empty(catalog.num_items + 1, dtype=torch.long)
    position_of_item[catalog.item_order] = torch.arange(catalog.num_items)
    width = max(max(map(len, histories)), 1)
    banned = torch.full((len(histories), width), catalog.num_items)
    for row, history in enumerate(histories):
        distinct = torch.from_numpy(np.unique(history))
        banned[row, : len(distinct)] = position_of_item[distinct]
    return banned.sort(1).values


def rank_users(
    stepper: Stepper,
    encoder: PromptEncoder,
    histories: Sequence[np.ndarray],
    settings: DecodeSettings,
    *,
    batch_size: int,
    device: torch.device,
    progress: str | None = None,
    seen: Sequence[np.ndarray] | None = None,
    candidates: Sequence[np.ndarray] | None = None,
    exact_places: int = 0,
    share: tuple[int, int] = (0, 1),
    keeper: Keeper | None = None,
) -> Ranking:
    """The best identifiers of every user.

    Where the first ``exact_places`` of a user are not proven to be the best of all, the search is done again with four
    times the beams until they are; as many beams as identifiers prove everything.

    Args:
        stepper: the language model, in evaluation mode.
        encoder: builds the prompts.
        histories: item ids of each user, oldest first.
        settings: beams, renormalisation, exclusion of the history.
        batch_size: users decoded together.
        device: where the model is.
        progress: label of a progress bar, none without.
        seen: item ids that ``exclude_history`` leaves out for each user; default: ``histories``.
        candidates: the only item ids that each user may get, as the prompt shows them; default: all.
        exact_places: see above; 0 searches once.
        share: ``(rank, world)`` decodes every world-th batch from number rank on; the batches are the same for any
            share, and so are their numbers.
        keeper: keeps the lists while they are made.

    Returns:
        ``[users, W]`` on the CPU, in the order of ``histories``; every user is there, those of other shares with -1
        and -inf, so that the shares are joined by their maximum.
    """
    seen = histories if seen is None else seen
    lists = _Lists(stepper, encoder, histories, seen, candidates, settings, device, exact_places)
    length = [len(history) for history in histories]
    batches = _batches(np.argsort([-size for size in length], kind="stable"), length, batch_size)
    tables = {"leaf": lists.leaf, "score": lists.score, "bound": lists.bound}
    fill = partial(lists.fill, batch_size=batch_size)
    each_user(batches[share[0] :: share[1]], fill, tables, name="lists", progress=progress, keeper=keeper)
    return Ranking(**tables)


class _Lists:
    """The lists of all users, filled in some users at a time; arguments as of :func:`rank_users`."""

    def __init__(
        self,
        stepper: Stepper,
        encoder: PromptEncoder,
        histories: Sequence[np.ndarray],
        seen: Sequence[np.ndarray],
        candidates: Sequence[np.ndarray] | None,
        settings: DecodeSettings,
        device: torch.device,
        exact_places: int,
    ):
        self.stepper, self.encoder, self.settings, self.device = stepper, encoder, settings, device
        self.histories, self.seen, self.candidates, self.exact_places = histories, seen, candidates, exact_places
        self.trie = encoder.catalog.trie.to(device)
        beams = settings.num_beams if candidates is None else max(map(len, candidates))
        self.width = min(beams, encoder.catalog.num_leaves)
        self.leaf = torch.full((len(histories), self.width), -1)
        self.score = torch.full((len(histories), self.width), -torch.inf)
        self.bound = torch.full((len(histories),), -torch.inf)

    def fill(self, rows: np.ndarray, batch_size: int) -> None:
        """Search, and search wider where the first places are not proven."""
        beams, left = self.width, self._search(rows, self.width)
        while len(left) and beams < self.encoder.catalog.num_leaves:
            beams = min(4 * beams, self.encoder.catalog.num_leaves)
            parts = np.array_split(left, -(-len(left) * beams // (batch_size * self.width)))
            left = np.concatenate([self._search(part, beams) for part in parts if len(part)])

    def _search(self, rows: np.ndarray, beams: int) -> np.ndarray:
        """Fill in the lists of some users; the users whose first places are not proven."""
        choices = None if self.candidates is None else [self.candidates[row] for row in rows]
        ids, mask = self.encoder.prompts([self.histories[row] for row in rows], candidates=choices)
        past = [self.seen[row] for row in rows] if self.settings.exclude_history else None
        banned, allowed = _limits(self.encoder.catalog, past, choices, self.device)
        ranking = beam_search(
            self.stepper,
            self.trie,
            ids.to(self.device),
            mask.to(self.device),
            num_beams=beams,
            renormalise=self.settings.renormalise,
            banned=banned,
            allowed=allowed,
        )
        found = min(ranking.leaf.shape[1], self.width)
        self.leaf[rows, :found] = ranking.leaf[:, :found].cpu()
        self.score[rows, :found] = ranking.score[:, :found].cpu()
        assert ranking.bound is not None
        self.bound[rows] = ranking.bound.cpu()
        return rows[~ranking.certified(self.exact_places).cpu().numpy()] if self.exact_places else rows[:0]


def _limits(
    catalog: Catalog, past: list[np.ndarray] | None, choices: list[np.ndarray] | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Trie positions that users may not get, or the only ones that they may get."""
    if choices is not None:
        left = choices if past is None else list(map(np.setdiff1d, choices, past))
        return None, banned_positions(catalog, left).to(device)
    return (None if past is None else banned_positions(catalog, past).to(device)), None


def generate_users(
    stepper: Stepper,
    encoder: PromptEncoder,
    histories: Sequence[np.ndarray],
    settings: BIGRecSettings,
    *,
    eos_id: int,
    batch_size: int,
    device: torch.device,
    progress: str | None = None,
    candidates: Sequence[np.ndarray] | None = None,
    share: tuple[int, int] = (0, 1),
    keeper: Keeper | None = None,
) -> list[list[int]]:
    """The freely generated answer of every user, as token ids in the order of ``histories``; see :func:`rank_users`.

    Users of other shares have an empty answer.
    """
    lengths = [len(history) for history in histories]
    answers = torch.full((len(histories), settings.max_new_tokens), -1)

    def decode(rows: np.ndarray) -> None:
        choices = None if candidates is None else [candidates[row] for row in rows]
        ids, mask = encoder.prompts([histories[row] for row in rows], candidates=choices)
        found = generate(
            stepper,
            ids.to(device),
            mask.to(device),
            eos_id=eos_id,
            num_beams=settings.beams,
            max_new_tokens=settings.max_new_tokens,
        )
        for row, answer in zip(rows, found, strict=True):
            answers[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)

    batches = _batches(np.argsort([-length for length in lengths], kind="stable"), lengths, batch_size)
    tables = {"answer": answers}
    each_user(batches[share[0] :: share[1]], decode, tables, name="answers", progress=progress, keeper=keeper)
    return [row[row >= 0].tolist() for row in answers]


def _batches(order: np.ndarray, length: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Users of one length together where there are enough of them: no padding, no attention mask in the prompt."""
    batches: list[list[int]] = []
    for row in order:
        full = not batches or len(batches[-1]) >= batch_size
        new_length = batches and length[batches[-1][-1]] != length[row] and len(batches[-1]) >= batch_size // 4
        if full or new_length:
            batches.append([])
        batches[-1].append(int(row))
    return [np.array(batch) for batch in batches]
