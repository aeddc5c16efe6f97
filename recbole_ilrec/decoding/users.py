"""Beam search for many users: like lengths together, results in the users' own order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_ilrec.decoding.beam import Stepper, beam_search
from recbole_ilrec.decoding.free import generate
from recbole_ilrec.decoding.memory import each_batch
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

    Returns:
        ``[users, W]`` on the CPU, in the order of ``histories``; every user is there, those of other shares with -1
        and -inf, so that the shares are joined by their maximum.
    """
    catalog, seen = encoder.catalog, histories if seen is None else seen
    trie = catalog.trie.to(device)
    order = np.argsort([-len(history) for history in histories], kind="stable")
    beams = settings.num_beams if candidates is None else max(map(len, candidates))
    width = min(beams, catalog.num_leaves)
    leaf = torch.full((len(histories), width), -1)
    score = torch.full((len(histories), width), -torch.inf)
    bound = torch.full((len(histories),), -torch.inf)

    def search(rows: np.ndarray, beams: int) -> np.ndarray:
        """Fill in the lists of some users; the users whose first places are not proven."""
        choices = None if candidates is None else [candidates[row] for row in rows]
        ids, mask = encoder.prompts([histories[row] for row in rows], candidates=choices)
        past = [seen[row] for row in rows] if settings.exclude_history else None
        banned, allowed = _limits(catalog, past, choices, device)
        ranking = beam_search(
            stepper,
            trie,
            ids.to(device),
            mask.to(device),
            num_beams=beams,
            renormalise=settings.renormalise,
            banned=banned,
            allowed=allowed,
        )
        found = min(ranking.leaf.shape[1], width)
        leaf[rows, :found], score[rows, :found] = ranking.leaf[:, :found].cpu(), ranking.score[:, :found].cpu()
        assert ranking.bound is not None
        bound[rows] = ranking.bound.cpu()
        return rows[~ranking.certified(exact_places).cpu().numpy()] if exact_places else rows[:0]

    with tqdm(total=len(histories), desc=progress, disable=progress is None, ncols=100, unit="user") as bar:

        def decode(rows: np.ndarray) -> None:
            beams, left = width, search(rows, width)
            while len(left) and beams < catalog.num_leaves:
                beams = min(4 * beams, catalog.num_leaves)
                parts = np.array_split(left, -(-len(left) * beams // (batch_size * width)))
                left = np.concatenate([search(part, beams) for part in parts if len(part)])
            bar.update(len(rows))

        batches = _batches(order, [len(history) for history in histories], batch_size)
        each_batch(batches[share[0] :: share[1]], decode)
    return Ranking(leaf=leaf, score=score, bound=bound)


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
) -> list[list[int]]:
    """The freely generated answer of every user, as token ids in the order of ``histories``; see :func:`rank_users`.

    Users of other shares have an empty answer.
    """
    lengths = [len(history) for history in histories]
    answers: list[list[int]] = [[] for _ in histories]
    with tqdm(total=len(histories), desc=progress, disable=progress is None, ncols=100, unit="user") as bar:

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
                answers[row] = answer
            bar.update(len(rows))

        batches = _batches(np.argsort([-length for length in lengths], kind="stable"), lengths, batch_size)
        each_batch(batches[share[0] :: share[1]], decode)
    return answers


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
