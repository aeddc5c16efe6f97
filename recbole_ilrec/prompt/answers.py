"""Preference rows: a history, the item that was chosen after it and items to reject, in one row of tokens.

Knows item ids and the encoder's token ids; never models or where the rejected items come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.schema import AnswerBatch

Array = np.ndarray


@dataclass(frozen=True)
class AnswerExample:
    """A prompt and what may be answered.

    Attributes:
        history: item ids, oldest first.
        answers: item ids, the chosen one first; 0 where there is none.
        variant: which prompt template.
        candidates: item ids to choose among; for prompts that name them.
    """

    history: Array
    answers: Array
    variant: int = 0
    candidates: Array | None = None


@dataclass(frozen=True)
class AnswerRow:
    """Token ids of one row, laid out as :class:`~recbole_ilrec.schema.AnswerBatch` says; all int64 arrays."""

    ids: Array
    position: Array
    segment: Array
    first: int
    place: Array
    target: Array
    answer: Array
    present: Array


def encode_answers(encoder: PromptEncoder, example: AnswerExample) -> AnswerRow:
    """A prompt followed by its answers, each without its last token, which predicts nothing."""
    prompt = encoder.prompt(example.history, example.variant, example.candidates)
    ids, position, segment = [prompt], [np.arange(len(prompt))], [np.zeros(len(prompt), np.int64)]
    place, target, answer = [], [], []
    done = 1  # place 0 is the prompt's last token: it predicts the first token of every answer
    for column, item in enumerate(example.answers):
        if not item:
            continue
        tokens = encoder.answer(item)
        inner = len(tokens) - 1
        ids.append(tokens[:-1])
        position.append(len(prompt) + np.arange(inner))
        segment.append(np.full(inner, column + 1))
        place.append(np.append(0, done + np.arange(inner)))
        target.append(tokens)
        answer.append(np.full(len(tokens), column))
        done += inner
    return AnswerRow(
        ids=np.concatenate(ids),
        position=np.concatenate(position),
        segment=np.concatenate(segment),
        first=len(prompt) - 1,
        place=np.concatenate(place),
        target=np.concatenate(target),
        answer=np.concatenate(answer),
        present=example.answers > 0,
    )


def collate_answers(
    rows: Sequence[AnswerRow], pad_id: int, reference: Array | None = None, smoothing: Array | None = None
) -> AnswerBatch:
    """Pad rows on the right and list their answer tokens.

    Args:
        rows: with the same number of answers.
        pad_id: any token id; padding is never looked at.
        reference: ``[B, A]``, see :class:`~recbole_ilrec.schema.AnswerBatch`.
        smoothing: ``[B, R]``.
    """
    width = max(len(row.ids) for row in rows)
    padded = {
        "ids": np.full((len(rows), width), pad_id, dtype=np.int64),
        "position": np.zeros((len(rows), width), dtype=np.int64),
        "segment": np.full((len(rows), width), -1, dtype=np.int64),
    }
    for line, row in enumerate(rows):
        for name, table in padded.items():
            table[line, : len(row.ids)] = getattr(row, name)
    select = [line * width + np.arange(row.first, len(row.ids)) for line, row in enumerate(rows)]
    before = np.cumsum([0, *map(len, select)])
    answers = len(rows[0].present)
    flat = (
        np.concatenate(select),
        np.concatenate([row.place + low for row, low in zip(rows, before, strict=False)]),
        np.concatenate([row.target for row in rows]),
        np.concatenate([row.answer + line * answers for line, row in enumerate(rows)]),
        np.stack([row.present for row in rows]),
    )
    extra = (None if table is None else torch.from_numpy(table) for table in (reference, smoothing))
    return AnswerBatch(*map(torch.from_numpy, (*padded.values(), *flat)), *extra)


class PreferenceRows:
    """Training pairs with rejected items.

    Args:
        pairs: the training pairs; a row number is a pair's number.
        rejected: ``[D, rows, R]`` item ids of D draws, 0 where there is none; epoch e uses draw ``e mod D``.
        variants: prompt templates, of which each row takes one.
        seed: decides which; of the run.

    Choice: a row keeps its template in all epochs, since the reference log-probabilities are of that text; supervised
    rows draw one anew in each.
    """

    def __init__(self, pairs: Pairs, rejected: Array, *, variants: int = 1, seed: int = 0):
        self.pairs = pairs
        self.rejected = rejected
        self.seed = seed
        chance = np.random.Generator(np.random.Philox([seed, 2]))
        self._variant = chance.integers(variants, size=len(pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_items(self) -> Array:
        """``[rows]`` items of each history; they decide a row's length."""
        return self.pairs.length

    def example(self, epoch: int, row: int) -> AnswerExample:
        """Row ``row`` as it is in epoch ``epoch``."""
        return self._example(row, self.rejected[epoch % len(self.rejected), row])

    def all_answers(self, row: int) -> AnswerExample:
        """Row ``row`` with the rejected items of all draws, ``1 + D * R`` answers."""
        return self._example(row, self.rejected[:, row].reshape(-1))

    def columns(self, epoch: int) -> Array:
        """``[1 + R]``: where the answers of an epoch stand among those of :meth:`all_answers`."""
        width = self.rejected.shape[2]
        return np.append(0, 1 + epoch % len(self.rejected) * width + np.arange(width))

    def _example(self, row: int, rejected: Array) -> AnswerExample:
        history = self.pairs.history[row, : self.pairs.length[row]]
        answers = np.append(self.pairs.target[row], rejected).astype(np.int64)
        offered = self.pairs.choices(np.array([row]))
        return AnswerExample(history, answers, int(self._variant[row]), offered[0] if offered else None)
