"""Exhaustive scoring of a few candidates: a prompt and all of them in one pass, each as if it stood there alone.

It finds what :func:`~recbole_ilrec.decoding.beam.beam_search` finds with as many beams. Knows rows with answers and
whoever gives their log-probabilities; never data sets or metrics.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.decoding.passes import Keeper, each_user
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.answers import AnswerExample, collate_answers, encode_answers
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.schema import AnswerBatch, Ranking

Array = np.ndarray
_LOGITS_AT_ONCE = 1 << 27


@torch.no_grad()
def rank_candidates(
    log_probs: Callable[[AnswerBatch], Tensor],
    encoder: PromptEncoder,
    histories: Sequence[Array],
    candidates: Sequence[Array],
    *,
    vocabulary: int,
    batch_size: int,
    device: torch.device,
    progress: str | None = None,
    seen: Sequence[Array] | None = None,
    share: tuple[int, int] = (0, 1),
    joined: Callable[[Tensor], Tensor] = lambda scores: scores,
    keeper: Keeper | None = None,
) -> Ranking:
    """All candidates of every user, the most probable name first.

    Args:
        log_probs: ``[B, A]`` log-probability of each answer of a batch.
        encoder: builds the rows.
        histories: item ids of each user, oldest first.
        candidates: item ids of each user, as the prompt shows them.
        vocabulary: V; so many logits for each token bound what is computed together.
        batch_size: users at once, at most.
        device: where the model is.
        progress: label of a progress bar, none without.
        seen: item ids that may not be recommended to each user.
        share: ``(rank, world)`` scores every world-th batch from number rank on.
        joined: the scores of all shares, from those of one, which has -inf for users of others.
        keeper: keeps the scores while they are computed.

    Returns:
        ``[users, W]`` on the CPU, W the longest list; an identifier that two candidates share stands there once.
    """
    width = max(map(len, candidates))
    answers = np.zeros((len(histories), width), dtype=np.int64)
    for row, own in enumerate(candidates):
        left = own if seen is None else own[~np.isin(own, seen[row])]
        answers[row, : len(left)] = left
    tokens = np.where(answers > 0, encoder.catalog.length.numpy()[answers], 0).sum(1)
    rows_at_once = max(1, min(batch_size, _LOGITS_AT_ONCE // (vocabulary * max(int(tokens.max()), 1))))
    score = torch.full(answers.shape, -torch.inf)
    order = np.argsort([len(history) for history in histories], kind="stable")
    order = order[tokens[order] > 0]

    def fill(some: Array) -> None:
        examples = [AnswerExample(histories[row], answers[row], candidates=candidates[row]) for row in some]
        encoded = [encode_answers(encoder, example) for example in examples]
        score[some] = log_probs(collate_answers(encoded, encoder.pad_id).to(device)).float().cpu()

    batches = [order[low : low + rows_at_once] for low in range(0, len(order), rows_at_once)]
    mine = batches[share[0] :: share[1]]
    each_user(mine, fill, {"score": score}, name="candidates", progress=progress, keeper=keeper)
    return _ordered(encoder.catalog, torch.from_numpy(answers), joined(score))


def _ordered(catalog: Catalog, items: Tensor, score: Tensor) -> Ranking:
    leaf = catalog.leaf_of_item[items]
    repeated = ((leaf[:, :, None] == leaf[:, None, :]).tril(-1)).any(-1)
    leaf = leaf.masked_fill(repeated, -1)
    score, order = score.masked_fill(leaf < 0, -torch.inf).sort(dim=1, descending=True, stable=True)
    nothing_dropped = torch.full((len(score),), -torch.inf)
    return Ranking(leaf=leaf.gather(1, order), score=score, bound=nothing_dropped)
