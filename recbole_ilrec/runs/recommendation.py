"""What a trained model recommends after any history: its own users' or new ones', one or many.

Joins a run's model, language model or one of RecBole's, to ids and titles as people know them. Files and screens are
the verb's.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from recbole_ilrec import __version__
from recbole_ilrec.collaborative.reward_model import RewardModel, reward_key, weighs_titles
from recbole_ilrec.configuration.arguments import PLACES
from recbole_ilrec.configuration.outcome import data_key
from recbole_ilrec.data.sequences import as_rows
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.runs.names import Names
from recbole_ilrec.runs.trained import Trained, best_state, load_trained
from recbole_ilrec.runtime.checkpoint import STATE
from recbole_ilrec.schema import Ranking

SCORED_AT_ONCE = 256
"""Users of one of RecBole's models at most, whose scores are a table of users and items."""
BATCHES_OF_A_BLOCK = 8
"""Users of like lengths are decoded together out of so many batches."""


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
        names: ids and titles of its items, its users and what they did.
    """

    def __init__(self, trained: Trained):
        self.trained = trained
        self.names = Names(trained.data.dataset)

    @classmethod
    def load(
        cls, run: str | Path, *, num_beams: int | None = None, exclude_history: bool | None = None, **places: str
    ) -> "Recommender":
        """The best model of a finished run.

        Args:
            run: the run's folder, ``saved/<Model>-<dataset>-<time>``.
            num_beams: beams of a language model's search; by default as many as in the run.
            exclude_history: leave out what the user has had; by default as the run was evaluated.
            places: where things are today if they have moved: ``data_path``, ``cache_dir``, ``index_file``,
                ``backbone``; and ``device``, by default a GPU where there is one.

        Raises:
            UserError: no such run, its data are gone, it chooses among candidates, it reads no ``num_beams``, or an
                argument is none of these.
        """
        for key in places:
            if key not in PLACES:
                raise unknown_name("argument of Recommender.load", key, ("num_beams", "exclude_history", *PLACES))
        if exclude_history is not None and not isinstance(exclude_history, bool):
            raise UserError(f"exclude_history={exclude_history} is not allowed: give true or false.")
        folder, state = best_state(Path(run))
        if state.get("settings", {}).get("task", "full") != "full" or "candidates" in _task(state):
            raise UserError(f"{run} chooses among candidates: only runs that rank all items (task=full) have lists.")
        if num_beams is not None and (not isinstance(num_beams, int) or num_beams < 1):
            raise UserError(f"num_beams={num_beams} is not allowed: give a whole number from 1 on.")
        chosen: dict[str, Any] = {"num_beams": num_beams, "exclude_history": exclude_history}
        decode = {name: value for name, value in chosen.items() if value is not None}
        found = cls(load_trained(folder, state, places, decode=decode))
        if num_beams is not None and not found._has_beams:
            raise UserError(f"num_beams={num_beams} is not read: {run} ranks all items without beams. Leave it out.")
        return found

    def identity(self) -> dict[str, Any]:
        """What lists depend on beside histories and ``topk``: weights and how they came about, data and settings."""
        trained = self.trained
        config, model = trained.config, trained.model
        ranker = model.title_ranker if config.is_llm else None
        rewarded = ranker is not None and weighs_titles(config.settings)
        return {
            "state": hashlib.sha256((trained.folder / STATE).read_bytes()).hexdigest(),
            "data": data_key(config),
            "settings": config.settings.model_dump(mode="json"),
            "gamma": None if ranker is None else ranker.gamma,
            "reward model": reward_key(config, trained.data.train._dataset) if rewarded else None,
            "version": __version__,
        }

    @property
    def leaves_out_history(self) -> bool:
        """Whether items of the history are left out."""
        return self.trained.config.settings.decode.exclude_history

    @property
    def _has_beams(self) -> bool:
        config, model = self.trained.config, self.trained.model
        return config.is_llm and (model.title_ranker is None or config.settings.bigrec.ranker == "hybrid")

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        topk: int = 10,
        users: Sequence[str] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], Any] | bool | None = False,
    ) -> list[list[Recommended]]:
        """The best items after each history.

        Args:
            histories: ids or titles of each user's items, oldest first.
            topk: length of the lists; they are shorter only where no more items are left.
            users: who they are, for models that learn a vector for each user.
            batch_size: users at once; by default the run's ``eval_batch_size``, 256 at most for RecBole's models.
            progress: show a bar; or what is told how many more users are done.

        Raises:
            UserError: an unknown item, an empty history, or a model that knows its own users only.
        """
        past, who = self.check(histories, topk=topk, users=users)
        generates, own = self.trained.config.is_llm, self.trained.config["eval_batch_size"]
        batch = batch_size or (own if generates else min(own, SCORED_AT_ONCE))
        block = batch * (BATCHES_OF_A_BLOCK if generates else 1)
        found: list[list[Recommended]] = []
        with tqdm(total=len(past), desc="Recommend", disable=progress is not True, ncols=100, unit="user") as bar:
            for low in range(0, len(past), block):
                rows = slice(low, low + block)
                pairs = pairs_of_histories(past[rows], self.trained.config["MAX_ITEM_LIST_LENGTH"], users=who[rows])
                found += self._generated(pairs, topk, batch) if generates else self._scored(pairs, topk)
                (progress if callable(progress) else bar.update)(len(pairs))
        return found

    def check(
        self, histories: Sequence[Sequence[str]], *, topk: int = 10, users: Sequence[str] | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Refuse what :meth:`recommend` cannot answer, before anything is computed.

        Args:
            histories: as there.
            topk: as there.
            users: as there.

        Returns:
            internal ids of each history's items; ``[users]`` those of the users, 0 for somebody new.

        Raises:
            UserError: as there.
        """
        size = len(self.names.items) - 1
        if not 1 <= topk <= size:
            raise UserError(f"topk={topk} is not allowed: there are {size:,} items, so 1 to {size:,}.")
        if users is not None and len(users) != len(histories):
            raise UserError(f"{len(users)} users for {len(histories)} histories: name each one's user, or none.")
        past = [self.names.numbers(history) for history in histories]
        who = np.array([0] * len(past) if users is None else list(map(self.names.user_number, users)), dtype=np.int64)
        self.check_users(who, users)
        return past, who

    def check_users(self, numbers: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Refuse new users where a model of RecBole that is asked for scores learns a vector for each of its own.

        Args:
            numbers: internal ids, 0 for somebody new.
            names: as they were given.
        """
        if numbers.all():
            return
        model, dataset = self.trained.model, self.trained.data.dataset
        name = None if names is None else str(names[int(np.argmin(numbers))])
        if not self.trained.config.is_llm:
            refuse_new_users(model, dataset, name)
        elif model.title_ranker is not None and weighs_titles(self.trained.config.settings):
            refuse_new_users(model.reward_model.model, dataset, name)

    def _generated(self, pairs: Pairs, topk: int, batch_size: int) -> list[list[Recommended]]:
        model = self.trained.model
        model.exact_places = topk if self.trained.config.settings.decode.exact else 0
        with torch.no_grad():
            ranking = model.rank(pairs, batch_size=batch_size, count=max(model.list_length, topk))
        seen = pairs.seen() if self.leaves_out_history else [np.empty(0, np.int64)] * len(pairs)
        return [self._listed(ranking, row, topk, frozenset(items.tolist())) for row, items in enumerate(seen)]

    def _listed(self, ranking: Ranking, row: int, topk: int, banned: frozenset[int]) -> list[Recommended]:
        """Items that share an identifier have its score, in the order of their internal ids."""
        found: list[Recommended] = []
        for leaf, score in zip(ranking.leaf[row].tolist(), ranking.score[row].tolist(), strict=True):
            items: Iterable[int] = self.trained.model.catalog.items_of(leaf).tolist() if leaf >= 0 else ()
            found += [self._place(item, score) for item in items if item not in banned]
            if len(found) >= topk:
                break
        return found[:topk]

    def _scored(self, pairs: Pairs, topk: int) -> Iterator[list[Recommended]]:
        dataset = self.trained.data.dataset
        scores = RewardModel(self.trained.model, dataset).scores(as_rows(pairs, dataset)).numpy()
        for own, seen in zip(scores, pairs.seen(), strict=True):
            if self.leaves_out_history:
                own[seen - 1] = -np.inf
            least = max(np.partition(own, -topk)[-topk], np.finfo(own.dtype).min)
            among = np.flatnonzero(own >= least)  # equal scores in the order of the internal ids
            best = among[np.argsort(-own[among], kind="stable")[:topk]]
            yield [self._place(int(item) + 1, float(own[item])) for item in best]

    def _place(self, item: int, score: float) -> Recommended:
        return Recommended(self.names.items[item], self.names.titles[item], score)


def _task(state: Mapping[str, Any]) -> str:
    return str(state["request"]["config_dict"].get("task", ""))


def refuse_new_users(model: torch.nn.Module, dataset: Any, name: str | None = None) -> None:
    """Refuse a user whom a model of RecBole cannot know.

    RecBole names such weights ``user_embedding``, ``user_lambda`` or ``UI_emb``; others have a row for each user.

    Raises:
        UserError: the model learns something for each user.
    """
    rows = {dataset.user_num} - {dataset.item_num}
    for weight, values in model.named_parameters():
        if weight.lower().startswith("user") or weight.startswith("UI") or rows & {*values.shape[:1]}:
            who = "" if name is None else f" ('{name}' is none of them)"
            raise UserError(
                f"{type(model).__name__} learns a vector for each user, so it knows the users of its training data "
                f"only{who}: ask for those, or train e.g. SASRec or ILRec for new ones."
            )


def pairs_of_histories(
    histories: Sequence[np.ndarray],
    window: int,
    *,
    users: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> Pairs:
    """Histories as rows: the window holds their last items, the past all of them.

    Args:
        histories: internal ids of each one's items, oldest first.
        window: items of a row at most.
        users: internal ids, 0 for new ones; by default all new.
        targets: the item after each history; by default none is known.
    """
    lengths = np.array([min(len(history), window) for history in histories])
    table = np.zeros((len(histories), window), dtype=np.int64)
    for row, (history, length) in enumerate(zip(histories, lengths, strict=True)):
        table[row, :length] = history[-length:]
    ends = np.cumsum([len(history) for history in histories])
    past = np.stack([np.r_[0, ends[:-1]], ends], axis=1)
    nothing = np.zeros(len(histories), dtype=np.int64)
    who, answers = (nothing if column is None else column for column in (users, targets))
    return Pairs(who, table, lengths, answers, timeline=np.concatenate(histories), past=past)
