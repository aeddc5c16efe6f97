"""Histories and answers to token ids, by concatenation of separately tokenised parts.

Nothing is re-tokenised and compared: what is supervised is known from lengths, so neither a merge across a border nor a
padding id that is also a word can move a label. Knows the tokenizer and the catalogue; never models or data sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.template import OFFER, Template
from recbole_ilrec.schema import TokenBatch

Array = np.ndarray


@dataclass(frozen=True)
class Example:
    """One row to train on.

    Attributes:
        items: item ids, the history followed by the targets (one for a prefix row).
        targets: number of the training target of each supervised item; they are the last ``len(targets)`` items.
        variant: which prompt template.
        candidates: item ids to choose among, in the order in which they are shown; for prompts that name them.
    """

    items: Array
    targets: Array
    variant: int = 0
    candidates: Array | None = None


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one row and what is supervised in it; all int64 arrays."""

    ids: Array
    position: Array
    target: Array
    node: Array
    number: Array


def newest(items: Sequence[Array], separator: Array, room: int) -> list[Array]:
    """The newest items that fit into ``room`` tokens, each followed by the separator.

    Args:
        items: token ids of each item, oldest first.
        separator: token ids, possibly none.
        room: tokens at most.
    """
    start, used = 0, sum(len(tokens) + len(separator) for tokens in items)
    while start < len(items) and used > room:
        used -= len(items[start]) + len(separator)
        start += 1
    return [part for tokens in items[start:] for part in (tokens, separator)]


class PromptEncoder:
    """Builds rows for training and prompts for decoding.

    Args:
        tokenizer: a ``transformers`` tokenizer that knows the item tokens.
        catalog: identifiers in that tokenizer's ids.
        template: the prompt.
        max_length: tokens of a row at most; the oldest items are left out first. Choice: the paper limits items
            (20), not tokens; ``prompt.max_length`` only guards against a text prompt that outgrows a model.

    Raises:
        UserError: an answer with the shortest possible prompt does not fit into ``max_length``.
    """

    def __init__(self, tokenizer: Any, catalog: Catalog, template: Template, max_length: int):
        def encode(text: str) -> Array:
            return np.array(tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)

        self.catalog = catalog
        self.template = template
        self.max_length = max_length
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        self._before = [np.concatenate([np.array(bos, np.int64), encode(before)]) for before, _ in template.variants]
        offers = [after.rpartition(OFFER) for _, after in template.variants]
        self._between, self._after = [encode(text) for text, _, _ in offers], [encode(text) for _, _, text in offers]
        self._separator = encode(template.separator)
        end = catalog.eos_id is not None and not template.ends_items
        tokens, length = catalog.tokens.numpy(), catalog.length.numpy()
        self._answer = [row[:size] for row, size in zip(tokens, length, strict=True)]
        self._path = [row[:size] for row, size in zip(catalog.path.numpy(), length, strict=True)]
        self._item = [answer[: len(answer) - end] for answer in self._answer]
        frame = max(sum(map(len, parts)) for parts in zip(self._before, self._between, self._after, strict=True))
        if frame + int(length.max()) > max_length:
            raise UserError(
                f"prompt.max_length={max_length} is too small: prompt {template.name} without any item and the longest "
                f"answer take {frame + int(length.max())} tokens; raise prompt.max_length."
            )

    def longest(self, items: int) -> int:
        """Tokens of the longest row of so many items, where the answer continues the history."""
        return len(self._before[0]) + items * (max(map(len, self._item)) + len(self._separator))

    def row(self, example: Example) -> EncodedRow:
        """Token ids of a training row; supervised are the tokens of the last ``len(example.targets)`` items.

        What is in front of an answer is the prompt of decoding, whose length says nothing of the answer's.
        """
        split = len(example.items) - len(example.targets)
        answers = example.items[split:]
        if len(answers) > 1:
            return self._continued_row(example, split)
        answer = self._answer[answers[0]]
        prompt = self.prompt(example.items[:split], example.variant, example.candidates)
        return EncodedRow(
            ids=np.concatenate([prompt, answer]),
            position=len(prompt) - 1 + np.arange(len(answer)),
            target=answer,
            node=self._path[answers[0]],
            number=np.full(len(answer), example.targets[0]),
        )

    def _continued_row(self, example: Example, split: int) -> EncodedRow:
        """All targets of a sequence in one row: each item is predicted at the end of the ones before it."""
        parts: list[Array] = [self._before[0]]
        at = len(self._before[0])
        position, target, node, number = [], [], [], []
        for place, item in enumerate(example.items):
            tokens = self._item[item]
            if place >= split:
                position.append(at - 1 + np.arange(len(tokens)))
                target.append(tokens)
                node.append(self._path[item][: len(tokens)])
                number.append(np.full(len(tokens), example.targets[place - split]))
            parts += [tokens, self._separator]
            at += len(tokens) + len(self._separator)
        return EncodedRow(*map(np.concatenate, (parts, position, target, node, number)))

    def prompt(self, history: Array, variant: int = 0, candidates: Array | None = None) -> Array:
        """Token ids of a prompt, which leaves room for any answer; ``candidates`` for templates that name them."""
        before, after = self._before[variant], self._rest(variant, candidates)
        items = [self._item[item] for item in history]
        room = self.max_length - self.catalog.depth - len(before) - len(after)
        if candidates is not None and room < 0:
            raise UserError(
                f"prompt.max_length={self.max_length} is too small: a prompt with {len(candidates)} candidates and no "
                f"history takes {-room} tokens more than there are; set --prompt.max_length={2 * self.max_length}."
            )
        listed = newest(items, self._separator, room)
        if len(after):
            listed = listed[:-1]
        return np.concatenate([before, *listed, after])

    def _rest(self, variant: int, candidates: Array | None) -> Array:
        """What stands after the history."""
        if not self.template.offers:
            return self._after[variant]
        if candidates is None:
            raise UserError(f"prompt {self.template.name} names candidates: use it with --task=candidates.")
        offered = [part for item in candidates for part in (self._item[item], self._separator)]
        return np.concatenate([self._between[variant], *offered[:-1], self._after[variant]])

    def pieces(self, variant: int = 0) -> dict[str, list[int]]:
        """Token ids that stand ``before`` and ``after`` the history, and as ``separator`` between its items.

        Where nothing follows the history, the separator also stands after its last item.
        """
        pieces = {"before": self._before[variant], "separator": self._separator, "after": self._after[variant]}
        return {name: tokens.tolist() for name, tokens in pieces.items()}

    def item(self, item: int) -> Array:
        """Token ids of an item in a history."""
        return self._item[item]

    def left_out(self, history: Array, length: Array, candidates: Array | None = None) -> Array:
        """How many of the oldest items of each history do not fit into :meth:`prompt` with the first template.

        Evaluation uses that one; training draws others too, which may be longer.

        Args:
            history: ``[R, L]`` item ids, left-aligned, zeros behind.
            length: ``[R]`` items of each history.
            candidates: ``[R, C]`` item ids, 0 where there are fewer; for prompts that name them.

        Returns:
            ``[R]`` int64.
        """
        sizes = np.array([len(tokens) + len(self._separator) for tokens in self._item])
        inside = np.arange(history.shape[1]) < length[:, None]
        newest = np.where(inside, sizes[history], 0)[:, ::-1].cumsum(1)[:, ::-1]  # tokens from an item to the last one
        used = np.full((len(history), 1), len(self._before[0]) + len(self._after[0]))
        if self.template.offers and candidates is not None:
            offered = np.where(candidates > 0, sizes[candidates], 0).sum(1, keepdims=True)
            used += len(self._between[0]) + offered - len(self._separator)
        return (inside & (used + newest > self.max_length - self.catalog.depth)).sum(1)

    def answer(self, item: int) -> Array:
        """Token ids of an item as an answer, the end token included where there is one."""
        return self._answer[item]

    def path(self, item: int) -> Array:
        """Trie node before each token of :meth:`answer`."""
        return self._path[item]

    def collate(self, rows: Sequence[EncodedRow]) -> TokenBatch:
        """Pad rows on the right and list their supervised tokens."""
        width = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        for line, row in enumerate(rows):
            ids[line, : len(row.ids)] = row.ids
        select = np.concatenate([line * width + row.position for line, row in enumerate(rows)])
        columns = (np.concatenate([getattr(row, name) for row in rows]) for name in ("target", "node", "number"))
        return TokenBatch(torch.from_numpy(ids), *map(torch.from_numpy, (select, *columns)))

    def prompts(
        self, histories: Sequence[Array], variant: int = 0, candidates: Sequence[Array] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left, ready for decoding.

        Returns:
            ids ``[B, T]`` int64 and mask ``[B, T]`` bool.
        """
        nothing: list[Array | None] = [None] * len(histories)
        offered = nothing if candidates is None else candidates
        rows = [self.prompt(history, variant, own) for history, own in zip(histories, offered, strict=True)]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=bool)
        for line, row in enumerate(rows):
            ids[line, width - len(row) :] = row
            mask[line, width - len(row) :] = True
        return torch.from_numpy(ids), torch.from_numpy(mask)
