"""Prompts of LC-Rec's alignment tasks as data: what is asked, what is answered, and what may be filled in where.

Knows text and slots; never token ids, items or files other than the template's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError, did_you_mean
from recbole_ilrec.prompt.template import read_template

ITEM_TEXTS = ("title", "description")
USER_TEXTS = ("preference", "user_intention", "item_intention", "query")
HISTORIES = ("history", "titles")

ASKED: dict[str, tuple[str, ...]] = {
    "item2index": ITEM_TEXTS,
    "index2item": ("item",),
    "fusionseqrec": HISTORIES,
    "itemsearch": ("history", *USER_TEXTS),
    "preferenceobtain": ("history",),
}
"""Task -> slots of its questions."""

ANSWERED: dict[str, tuple[str, ...]] = {
    "item2index": ("item",),
    "index2item": ITEM_TEXTS,
    "fusionseqrec": ("item", *ITEM_TEXTS),
    "itemsearch": ("item",),
    "preferenceobtain": ("preference",),
}
"""Task -> slots of its answers."""

_SLOT = re.compile(r"\{(\w+)\}")
_KEYS = ("separator", "frame", "tasks")


@dataclass(frozen=True)
class TaskPrompt:
    """A question and its answer, each as fixed texts and names of slots in turn: text, slot, text, ..., text."""

    ask: tuple[str, ...]
    answer: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """All fixed text."""
        return [text for text in (*self.ask[::2], *self.answer[::2]) if text]

    @property
    def slots(self) -> frozenset[str]:
        """All slots to fill."""
        return frozenset((*self.ask[1::2], *self.answer[1::2]))

    @property
    def answers_item(self) -> bool:
        """Whether the answer is an item's identifier."""
        return "item" in self.answer[1::2]

    @property
    def recommends(self) -> bool:
        """Whether the answer is an item and the question holds a history."""
        return self.answers_item and bool({*HISTORIES} & {*self.ask[1::2]})


@dataclass(frozen=True)
class TaskTemplates:
    """The prompts of some tasks.

    Attributes:
        prompts: task -> its prompts, the frame included.
        separator: text between two items of a history.
        name: where they came from.
    """

    prompts: Mapping[str, tuple[TaskPrompt, ...]]
    separator: str
    name: str

    @property
    def texts(self) -> list[str]:
        """All fixed text, to train a tokenizer on."""
        return [self.separator, *(text for prompts in self.prompts.values() for each in prompts for text in each.texts)]


def load_task_templates(name: str, folder: Path, tasks: tuple[str, ...]) -> TaskTemplates:
    """Read the prompts of ``tasks`` from ``<folder>/<name>.yaml``, or from ``name`` itself when it is a path to a file.

    Raises:
        UserError: no such file, or what :func:`parse_task_templates` refuses.
    """
    spec, where = read_template(name, folder)
    return parse_task_templates(spec, where, tasks)


def parse_task_templates(spec: Any, where: str, tasks: tuple[str, ...]) -> TaskTemplates:
    """The prompts of ``tasks`` from the mapping of a YAML file; ``where`` is named in errors.

    Raises:
        UserError: unknown keys, tasks or slots, or a task without prompts.
    """
    if not isinstance(spec, dict) or not set(spec) <= set(_KEYS) or not isinstance(spec.get("tasks"), dict):
        raise UserError(f"task template {where} must be a mapping with 'tasks' and, if wanted, {_KEYS[:2]}.")
    frame, prompts = str(spec.get("frame", "{instruction}")), {}
    for task, entries in spec["tasks"].items():
        if task not in ASKED:
            raise UserError(f"task template {where}: unknown task '{task}'. {did_you_mean(str(task), list(ASKED))}")
        prompts[task] = tuple(_prompt(entry, frame, f"{where}, {task}", task) for entry in entries or ())
    missing = next((task for task in tasks if not prompts.get(task)), None)
    if missing is not None:
        raise UserError(
            f"task template {where} has no prompt for {missing}: write one, or leave the task out of --tasks."
        )
    return TaskTemplates({task: prompts[task] for task in tasks}, str(spec.get("separator", ", ")), where)


def _prompt(entry: Any, frame: str, where: str, task: str) -> TaskPrompt:
    if not isinstance(entry, dict) or set(entry) != {"ask", "answer"}:
        raise UserError(f"task template {where}: {entry!r} must be {{ask: TEXT, answer: TEXT}}.")
    parts = {}
    for side, allowed in (("ask", ASKED[task]), ("answer", ANSWERED[task])):
        text = str(entry[side])
        slots = _SLOT.findall(text)
        names = ", ".join(f"{{{name}}}" for name in allowed)
        if not slots or not set(slots) <= set(allowed) or len(set(slots)) < len(slots) or {*HISTORIES} <= {*slots}:
            raise UserError(
                f"task template {where}: the {side} '{text}' must hold one or more of {names}, each once and one "
                "history at most."
            )
        if "item" in slots and side == "answer" and text != "{item}":
            raise UserError(f"task template {where}: the answer '{text}' must be '{{item}}' alone or have no item.")
        parts[side] = text
    return TaskPrompt(
        tuple(_SLOT.split(frame.replace("{instruction}", parts["ask"]))), tuple(_SLOT.split(parts["answer"]))
    )
