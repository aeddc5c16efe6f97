"""Training rows of LC-Rec's alignment tasks: items to texts and back, histories to texts, wishes to items.

A row is a question and its answer in one row of token ids, like a history and the next item. Knows item ids, texts, a
tokenizer and the catalogue; never files, models or RecBole.

Source: the tasks of LC-Rec (arXiv:2311.09049).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recbole_ilrec.errors import UserError
from recbole_ilrec.prompt.encode import EncodedRow, PromptEncoder, newest
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.prompt.task_template import HISTORIES, ITEM_TEXTS, TaskPrompt, TaskTemplates

logger = logging.getLogger(__name__)

Array = np.ndarray


@dataclass(frozen=True)
class UserTexts:
    """What is written about a user.

    Attributes:
        preferences: descriptions of the user's taste, one of which is drawn in each epoch.
        item: the item that the intentions lead to; 0 when there are none.
        user_intention: what the user would say to look for it; one or none.
        item_intention: what the item should be like; one or none.
    """

    preferences: tuple[str, ...] = ()
    item: int = 0
    user_intention: tuple[str, ...] = ()
    item_intention: tuple[str, ...] = ()


@dataclass(frozen=True)
class AlignmentTexts:
    """Texts of a data set; '' and missing users have none.

    Attributes:
        titles: ``[I + 1]``, entry 0 unused.
        descriptions: ``[I + 1]``, entry 0 unused.
        users: internal user id -> texts.
    """

    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    users: Mapping[int, UserTexts] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        yield from filter(None, (*self.titles, *self.descriptions))
        for user in self.users.values():
            yield from (*user.preferences, *user.user_intention, *user.item_intention)


@dataclass(frozen=True)
class _Case:
    """What a row is about: ``item`` is described or recommended, ``number`` its training target (-1: none)."""

    task: str
    item: int = 0
    history: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    number: int = -1
    user: int = 0


class TaskRows:
    """One row for each item, training target or user of each task.

    Choice: LC-Rec fills its prompts with empty texts where an item has none. Here only a prompt whose every slot can be
    filled is drawn, and a row without such a prompt is left out; items without a title are left out of a history of
    titles.

    Choice: LC-Rec takes the history and the item of a search from its user file, and all but a user's last three items
    as the history of a preference. Here both must be a training row of the same user: the last one with the file's
    item, and the user's last one. That is the same on LC-Rec's own files, and no test item gets into training when a
    file belongs to other sequences.

    Args:
        templates: prompts of the tasks to train.
        texts: of items and users.
        pairs: the training pairs; their row number is the number of the target.
        encoder: item tokens, the end token and the longest row.
        tokenizer: reads the texts; each text is tokenised alone, as items are.
        seed: decides prompts and texts together with the epoch, and the sample of ``fusionseqrec``.
        max_text_tokens: tokens of a text at most; a longer one is cut.
        fusion_sample: rows of ``fusionseqrec`` at most. Choice: LC-Rec takes 20,000 to 100,000 by data set, drawn once;
            so do we, 20,000 unless ``alignment.fusion_sample`` says otherwise.

    Raises:
        UserError: a prompt does not fit into ``prompt.max_length``, or a task has no row.
    """

    def __init__(
        self,
        templates: TaskTemplates,
        texts: AlignmentTexts,
        pairs: Pairs,
        encoder: PromptEncoder,
        tokenizer: Any,
        *,
        seed: int,
        max_text_tokens: int,
        fusion_sample: int | None,
    ):
        self.encoder = encoder
        self.seed = seed
        self._end = np.array([tokenizer.eos_token_id], dtype=np.int64)
        self._start = np.array([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], dtype=np.int64)
        fixed = list(dict.fromkeys(templates.texts))
        self._fixed = dict(zip(fixed, _encode(tokenizer, fixed), strict=True))
        self._fixed[""] = np.empty(0, dtype=np.int64)
        self._separator = self._fixed[templates.separator]
        self._texts = texts
        every = list(dict.fromkeys(texts))
        self._tokens = dict(zip(every, (t[:max_text_tokens] for t in _encode(tokenizer, every)), strict=True))
        self._check_room(templates, max_text_tokens)
        cases = (
            case for task in templates.prompts for case in _cases(task, pairs, texts, seed=seed, sample=fusion_sample)
        )
        self._cases: list[_Case] = []
        self._prompts: list[tuple[TaskPrompt, ...]] = []
        for case in cases:
            prompts = templates.prompts[case.task]
            usable = tuple(p for p in prompts if all(self._candidates(slot, case) for slot in p.slots))
            if usable:
                self._cases.append(case)
                self._prompts.append(usable)
        self._report(templates)
        self._epoch = -1

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def tasks(self) -> list[str]:
        """Task of each row."""
        return [case.task for case in self._cases]

    @property
    def num_tokens(self) -> Array:
        """``[rows]`` tokens of each row, as it is in epoch 0."""
        return np.array([len(self.row(0, row).ids) for row in range(len(self))])

    def row(self, epoch: int, row: int) -> EncodedRow:
        """Row ``row`` as it is in epoch ``epoch``; the same whoever asks, in whatever order.

        Trie nodes and the target's number are given only where an item is the answer to a history: elsewhere no reward
        applies.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._chance = np.random.Generator(np.random.Philox([self.seed, epoch, 5])).random((len(self), 3))
        case, prompts, (which, *texts) = self._cases[row], self._prompts[row], self._chance[row]
        prompt = prompts[int(which * len(prompts))]
        answer = self._answer(prompt, case, texts)
        ids = self._question(prompt, case, texts, self.encoder.max_length - len(answer))
        recommends = prompt.recommends
        return EncodedRow(
            ids=np.concatenate([ids, answer]),
            position=len(ids) - 1 + np.arange(len(answer)),
            target=answer,
            node=self.encoder.path(case.item) if recommends else np.full(len(answer), -1),
            number=np.full(len(answer), case.number if recommends else -1),
        )

    def _answer(self, prompt: TaskPrompt, case: _Case, chance: list[float]) -> Array:
        if prompt.answers_item:
            return self.encoder.answer(case.item)
        return np.concatenate([*self._filled(prompt.answer, case, chance), self._end])

    def _question(self, prompt: TaskPrompt, case: _Case, chance: list[float], room: int) -> Array:
        parts = [self._start, *self._filled(prompt.ask, case, chance)]
        listed = next((at for at, part in enumerate(prompt.ask) if at % 2 and part in HISTORIES), None)
        if listed is not None:
            items = self._listed(prompt.ask[listed], case)
            left = newest(items, self._separator, room - sum(map(len, parts)) + len(self._separator))
            parts[listed + 1 : listed + 1] = left[:-1]
        return np.concatenate(parts)

    def _filled(self, parts: Sequence[str], case: _Case, chance: list[float]) -> list[Array]:
        """Token ids of texts and slots, none for a history; ``chance`` draws a preference and a query."""
        filled = []
        for at, part in enumerate(parts):
            if at % 2 == 0 or part in HISTORIES:
                filled.append(self._fixed["" if at % 2 else part])
            elif part == "item":
                filled.append(self.encoder.item(case.item))
            else:
                texts = self._texts_of(part, case)
                filled.append(self._tokens[texts[int(chance[part != "preference"] * len(texts))]])
        return filled

    def _listed(self, slot: str, case: _Case) -> list[Array]:
        if slot == "history":
            return [self.encoder.item(item) for item in case.history]
        return [self._tokens[title] for item in case.history if (title := self._texts.titles[item])]

    def _candidates(self, slot: str, case: _Case) -> Sequence[Any]:
        """What could fill a slot: empty where nothing can."""
        if slot in HISTORIES:
            return self._listed(slot, case)
        return (case.item,) if slot == "item" else self._texts_of(slot, case)

    def _texts_of(self, slot: str, case: _Case) -> tuple[str, ...]:
        if slot in ITEM_TEXTS:
            text = (self._texts.titles if slot == "title" else self._texts.descriptions)[case.item]
            return (text,) if text else ()
        user = self._texts.users[case.user]
        if slot == "query":
            return user.user_intention + user.item_intention
        return user.preferences if slot == "preference" else getattr(user, slot)

    def _check_room(self, templates: TaskTemplates, max_text_tokens: int) -> None:
        """A row without its history fits, whatever the texts are."""
        size = {"item": self.encoder.catalog.depth, **dict.fromkeys(HISTORIES, 0)}
        around = len(self._start) + len(self._end)
        for task, prompts in templates.prompts.items():
            fixed = (sum(len(self._fixed[text]) for text in prompt.texts) for prompt in prompts)
            filled = (sum(size.get(slot, max_text_tokens) for slot in prompt.slots) for prompt in prompts)
            most = around + max(map(sum, zip(fixed, filled, strict=True)))
            if most > self.encoder.max_length:
                raise UserError(
                    f"prompt.max_length={self.encoder.max_length} is too small for {task}: a row may take {most} "
                    "tokens; raise prompt.max_length or lower alignment.max_text_tokens."
                )

    def _report(self, templates: TaskTemplates) -> None:
        tasks = self.tasks
        for task in templates.prompts:
            if task not in tasks:
                raise UserError(
                    f"task {task} has no training row: no item, history or user has the texts that the prompts of "
                    f"{templates.name} ask for. Leave it out of --tasks, or add the texts."
                )
            logger.info("Task %s: %d rows", task, tasks.count(task))


def _encode(tokenizer: Any, texts: list[str]) -> list[Array]:
    if not texts:
        return []
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [np.array(row, dtype=np.int64) for row in rows]


def _cases(task: str, pairs: Pairs, texts: AlignmentTexts, *, seed: int, sample: int | None) -> Iterator[_Case]:
    if task in ("item2index", "index2item"):
        yield from (_Case(task, item) for item in range(1, len(texts.titles)))
        return
    if task == "fusionseqrec":
        rows = np.arange(len(pairs))
        if sample is not None and sample < len(rows):
            chance = np.random.Generator(np.random.Philox([seed, 6]))
            rows = np.sort(chance.choice(rows, sample, replace=False))
        yield from (_case(task, pairs, int(row)) for row in rows)
        return
    last = {(int(user), 0): row for row, user in enumerate(pairs.user)}
    last |= {(int(user), int(item)): row for row, (user, item) in enumerate(zip(pairs.user, pairs.target, strict=True))}
    for user, own in texts.users.items():
        searched = task == "itemsearch"
        found = last.get((user, own.item if searched else 0))
        if found is not None and (own.item or not searched):
            yield _case(task, pairs, found)


def _case(task: str, pairs: Pairs, row: int) -> _Case:
    history = pairs.history[row, : pairs.length[row]]
    return _Case(task, int(pairs.target[row]), history, int(row), int(pairs.user[row]))
