"""What a trained model recommends after any history: its own users', new users', one or millions.

Joins a run's model, language model or one of RecBole's, to ids and titles as people know them. Files and screens are
the verb's.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from tqdm import tqdm

from recbole_ilrec.collaborative.reward_model import RewardModel
from recbole_ilrec.errors import UserError, did_you_mean
from recbole_ilrec.identifiers.title import item_titles
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.runs.trained import Trained, best_state, load_trained
from recbole_ilrec.schema import Ranking

USERS_AT_ONCE = 256


class Recommended(NamedTuple):
    """A place of a list.

    Attributes:
        item: the item's id as in the data.
        title: its title; the id where it has none.
        score: the log-probability of its identifier, minus the distance of its title under BIGRec's grounding, or what
            RecBole's model gives it. Comparable within a list only.
    """

    item: str
    title: str
    score: float


class Recommender:
    """A trained model that is asked for lists.

    Args:
        trained: see :meth:`load`, which reads it from a run's folder.

    Attributes:
        trained: as given.
        items: ``[I + 1]`` ids of the items, as in the data; entry 0 is none.
        titles: ``[I + 1]`` their titles; ids where there are none.
    """

    def __init__(self, trained: Trained):
        self.trained = trained
        self._dataset = dataset = trained.data.dataset
        self.items: list[str] = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        self.titles: list[str] = self.items
        if (Path(dataset.dataset_path) / f"{dataset.dataset_name}.item").is_file():
            self.titles = ["", *item_titles(dataset.item_texts[1:], self.items[1:])[0]]

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        num_beams: int | None = None,
        exclude_history: bool | None = None,
        **given: Any,
    ) -> "Recommender":
        """The best model of a finished run.

        Args:
            run: the run's folder, ``saved/<Model>-<dataset>-<time>``.
            num_beams: beams of a language model's search; by default as many as in the run.
            exclude_history: leave out what the user has had; by default as the run was evaluated.
            given: settings that say where the model works: ``device``, ``data_path``, ``cache_dir``.

        Raises:
            UserError: no such run, its data are gone, or it chooses among candidates.
        """
        folder, state = best_state(Path(run))
        if state.get("settings", {}).get("task", "full") != "full" or "candidates" in _task(state):
            raise UserError(f"{run} chooses among candidates: recommend takes runs that rank all items (task=full).")
        chosen: dict[str, Any] = {"num_beams": num_beams, "exclude_history": exclude_history}
        decode = {name: value for name, value in chosen.items() if value is not None}
        return cls(load_trained(folder, state, given, decode=decode))

    @property
    def leaves_out_history(self) -> bool:
        """Whether items of the history are left out."""
        return self.trained.config.settings.decode.exclude_history

    # ---- who

    @property
    def users(self) -> list[str]:
        """Ids of all users of the data."""
        return [str(token) for token in self._dataset.field2id_token[self._dataset.uid_field][1:]]

    def history(self, user: str) -> list[str]:
        """All that a user of the data did, oldest first, the items of validation and test included.

        Raises:
            UserError: nobody of that name.
        """
        field = self._dataset.uid_field
        number = self._dataset.field2token_id[field].get(user)
        if not number:
            raise UserError(
                f"There is no user '{user}' in '{self._dataset.dataset_name}'. "
                f"{did_you_mean(user, self.users)}A new user is asked for by a history."
            )
        low, high = self._dataset.sequences.start[number : number + 2].tolist()
        return [self.items[item] for item in self._dataset.sequences.items[low:high].tolist()]

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        """Items by title, lower case."""
        found: dict[str, list[int]] = {}
        for number, title in enumerate(self.titles[1:], start=1):
            found.setdefault(title.lower(), []).append(number)
        return found

    def known(self, name: str) -> str | None:
        """The id of the item with this id or else this title, in any case; ``None`` where there is no such item.

        Raises:
            UserError: several items have the title.
        """
        if self._dataset.field2token_id[self._dataset.iid_field].get(name):
            return name
        items = self._by_name.get(name.strip().lower(), [])
        if len(items) > 1:
            ids = ", ".join(self.items[item] for item in items[:5])
            raise UserError(f"{len(items)} items are called '{name}': give the id of the one that is meant ({ids}).")
        return self.items[items[0]] if items else None

    # ---- what

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        topk: int = 10,
        users: Sequence[str] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[list[Recommended]]:
        """The best items after each history.

        Args:
            histories: ids or titles of each user's items, oldest first.
            topk: length of the lists; they are shorter only where no more items are left.
            users: who they are, for models that learn a vector for each user.
            batch_size: users at once; by default the run's ``eval_batch_size``, 256 at most for RecBole's models.
            progress: show a bar.

        Raises:
            UserError: an unknown item, an empty history, or a model that knows its own users only.
        """
        size = len(self.items) - 1
        if not 1 <= topk <= size:
            raise UserError(f"topk={topk} is not allowed: there are {size:,} items, so 1 to {size:,}.")
        if not histories:
            return []
        past = [self.numbers(history) for history in histories]
        numbers = self._user_numbers(users, len(past))
        pairs = pairs_of_histories(past, self.trained.config["MAX_ITEM_LIST_LENGTH"], users=numbers)
        if self.trained.config.is_llm:
            return self._generated(pairs, topk, batch_size, progress)
        return self._scored(pairs, topk, batch_size, progress)

    def numbers(self, history: Sequence[str]) -> np.ndarray:
        """Internal ids of items.

        Args:
            history: their ids or titles.

        Raises:
            UserError: there is none, or one is not known.
        """
        if not len(history):
            raise UserError("A history is empty: give at least one item.")
        ids = self._dataset.field2token_id[self._dataset.iid_field]
        numbers = []
        for name in history:
            item = self.known(name)
            if item is None:
                near = did_you_mean(name, [*self.items[1:], *self.titles[1:]])
                raise UserError(
                    f"There is no item '{name}' in '{self._dataset.dataset_name}'. {near}Give ids or titles of items "
                    "that the model was trained on."
                )
            numbers.append(ids[item])
        return np.array(numbers, dtype=np.int64)

    def _user_numbers(self, users: Sequence[str] | None, count: int) -> np.ndarray:
        known = self._dataset.field2token_id[self._dataset.uid_field]
        numbers = np.array([known.get(user, 0) for user in users] if users is not None else [0] * count)
        if not numbers.all() and not self.trained.config.is_llm and _learns_users(self.trained.model):
            strange = "" if users is None else f" ('{users[int(np.argmin(numbers))]}' is none of them)"
            raise UserError(
                f"{self.trained.config.model} learns a vector for each user, so it knows the users of its training "
                f"data only{strange}: give --users, or train e.g. SASRec or ILRec for new ones."
            )
        return numbers

    def _generated(self, pairs: Pairs, topk: int, batch_size: int | None, progress: bool) -> list[list[Recommended]]:
        model, config = self.trained.model, self.trained.config
        model.list_length = max(model.list_length, topk)
        label = "Recommend" if progress else None
        with torch.no_grad():
            ranking = model.rank(pairs, batch_size=batch_size or config["eval_batch_size"], progress=label)
        seen = pairs.seen() if self.leaves_out_history else [np.empty(0, np.int64)] * len(pairs)
        return [self._listed(ranking, row, topk, frozenset(items.tolist())) for row, items in enumerate(seen)]

    def _listed(self, ranking: Ranking, row: int, topk: int, banned: frozenset[int]) -> list[Recommended]:
        """Items that share an identifier have its score, in the order of their ids in the data."""
        found: list[Recommended] = []
        for leaf, score in zip(ranking.leaf[row].tolist(), ranking.score[row].tolist(), strict=True):
            items: Iterable[int] = self.trained.model.catalog.items_of(leaf).tolist() if leaf >= 0 else ()
            found += [self._place(item, score) for item in items if item not in banned]
            if len(found) >= topk:
                break
        return found[:topk]

    def _scored(self, pairs: Pairs, topk: int, batch_size: int | None, progress: bool) -> list[list[Recommended]]:
        dataset, found = self._dataset, list[list[Recommended]]()
        model = RewardModel(self.trained.model, dataset)
        seen, most = pairs.seen(), batch_size or min(self.trained.config["eval_batch_size"], USERS_AT_ONCE)
        with tqdm(total=len(pairs), desc="Recommend", disable=not progress, ncols=100, unit="user") as bar:
            for low in range(0, len(pairs), most):
                part = pairs.take(np.arange(low, min(low + most, len(pairs))))
                columns = {
                    dataset.uid_field: part.user,
                    dataset.item_id_list_field: part.history,
                    dataset.item_list_length_field: part.length,
                }
                rows = Interaction({name: torch.from_numpy(column) for name, column in columns.items()})
                scores = model.scores(rows)
                if self.leaves_out_history:
                    for row, items in enumerate(seen[low : low + most]):
                        scores[row, torch.from_numpy(items) - 1] = -torch.inf
                best, item = scores.topk(topk)
                found += [
                    [self._place(i + 1, s) for i, s in zip(*row, strict=True) if s > -np.inf]
                    for row in zip(item.tolist(), best.tolist(), strict=True)
                ]
                bar.update(len(part))
        return found

    def _place(self, item: int, score: float) -> Recommended:
        return Recommended(self.items[item], self.titles[item], score)


def _task(state: Mapping[str, Any]) -> str:
    return str(state["request"]["config_dict"].get("task", ""))


def _learns_users(model: torch.nn.Module) -> bool:
    """RecBole's names for such weights: ``user_embedding``, ``user_lambda``, FPMC's ``UI_emb``."""
    return any(name.lower().startswith("user") or name.startswith("UI") for name, _ in model.named_parameters())


def pairs_of_histories(
    histories: Sequence[np.ndarray], window: int, *, users: np.ndarray | None = None, target: int = 0
) -> Pairs:
    """Histories as rows: the window holds their last items, the past all of them.

    Args:
        histories: internal ids of each one's items, oldest first.
        window: items of a row at most.
        users: internal ids, 0 for new ones; by default all new.
        target: the item after each history; 0 where it is not known.
    """
    lengths = np.array([min(len(history), window) for history in histories])
    table = np.zeros((len(histories), window), dtype=np.int64)
    for row, (history, length) in enumerate(zip(histories, lengths, strict=True)):
        table[row, :length] = history[-length:]
    ends = np.cumsum([len(history) for history in histories])
    past = np.stack([np.r_[0, ends[:-1]], ends], axis=1)
    who = np.zeros(len(histories), dtype=np.int64) if users is None else users
    targets = np.full(len(histories), target)
    return Pairs(who, table, lengths, targets, timeline=np.concatenate(histories), past=past)
