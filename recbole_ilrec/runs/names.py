"""Ids and titles of a data set's items, its users and what they did: between people and internal numbers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_ilrec.errors import UserError, did_you_mean
from recbole_ilrec.identifiers.title import item_titles


class Names:
    """Names of one data set.

    Args:
        dataset: a :class:`~recbole_ilrec.data.dataset.SequenceDataset`, built.

    Attributes:
        items: ``[I + 1]`` ids of the items, as in the data; entry 0 is none.
        titles: ``[I + 1]`` their titles; ids where there are none.
    """

    def __init__(self, dataset: Any):
        self._dataset = dataset
        self.items: list[str] = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        self.titles: list[str] = self.items
        if (Path(dataset.dataset_path) / f"{dataset.dataset_name}.item").is_file():
            self.titles = ["", *item_titles(dataset.item_texts[1:], self.items[1:])[0]]

    @property
    def users(self) -> list[str]:
        """Ids of all users of the data."""
        return [str(token) for token in self._dataset.field2id_token[self._dataset.uid_field][1:]]

    def history(self, user: str) -> list[str]:
        """All that a user of the data did, oldest first, the items of validation and test included.

        Raises:
            UserError: nobody of that name, or data whose parts are files of their own.
        """
        if getattr(self._dataset, "sequences", None) is None:
            raise UserError(
                f"'{self._dataset.dataset_name}' was split by files (benchmark_filename), so nobody's whole history is "
                "known: ask by histories or a file of clicks."
            )
        number = self.user_number(user)
        if not number:
            raise UserError(
                f"There is no user '{user}' in '{self._dataset.dataset_name}'. "
                f"{did_you_mean(str(user), self.users)}A new user is asked for by a history."
            )
        low, high = self._dataset.sequences.start[number : number + 2].tolist()
        return [self.items[item] for item in self._dataset.sequences.items[low:high].tolist()]

    def user_number(self, user: str) -> int:
        """Internal id of a user; 0 for somebody new."""
        return int(self._dataset.field2token_id[self._dataset.uid_field].get(str(user), 0))

    def has(self, item: str) -> bool:
        """Whether there is an item with this id."""
        return bool(self._dataset.field2token_id[self._dataset.iid_field].get(item))

    @cached_property
    def _by_title(self) -> dict[str, list[int]]:
        """Items by title, lower case; those without one are not in it."""
        found: dict[str, list[int]] = {}
        for number, (token, title) in enumerate(zip(self.items, self.titles, strict=True)):
            if number and title != token:
                found.setdefault(title.lower(), []).append(number)
        return found

    def known(self, name: str) -> str | None:
        """The id of the item with this id or else this title, in any case; ``None`` where there is no such item.

        Raises:
            UserError: several items have the title.
        """
        if self.has(name):
            return name
        items = self._by_title.get(name.strip().lower(), [])
        if len(items) > 1:
            ids = ", ".join(self.items[item] for item in items[:5])
            raise UserError(f"{len(items)} items are called '{name}': give the id of the one that is meant ({ids}).")
        return self.items[items[0]] if items else None

    def numbers(self, history: Sequence[str]) -> np.ndarray:
        """Internal ids of items.

        Args:
            history: their ids or titles.

        Raises:
            UserError: there is none, one is not known, or a text stands in the place of a list.
        """
        if isinstance(history, str):
            raise UserError(f"A history is a list of ids or titles, not the text '{history}': give ['{history}'].")
        if not len(history):
            raise UserError("A history is empty: give at least one item.")
        ids = self._dataset.field2token_id[self._dataset.iid_field]
        numbers = []
        for name in map(str, history):
            item = self.known(name)
            if item is None:
                near = did_you_mean(name, [*self.items[1:], *self.titles[1:]])
                raise UserError(
                    f"There is no item '{name}' in '{self._dataset.dataset_name}'. {near}Give ids or titles of items "
                    "that the model was trained on."
                )
            numbers.append(ids[item])
        return np.array(numbers, dtype=np.int64)
