"""``recbole-ilrec compare A B``: two runs on the same data, user by user."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.errors import UserError
from recbole_ilrec.runs.result_file import check_result_file, write_result

if TYPE_CHECKING:
    from recbole_ilrec.checks.comparison import UserRanks

HELP = """usage: recbole-ilrec compare A B [--dataset=DATASET] [--topk=[5,10]] [--json=PATH] [--key=value ...]

Compares two runs by the rank of every test user's true item: Hit@K with McNemar's exact test, NDCG@K (and Hit@K where
items share an identifier) with a paired permutation test, each with the difference A - B and its 95% interval; then by
length of the history and by popularity of the true item; then the users where each run wins by most.

  A, B                       folders of finished runs (saved/<Model>-<dataset>-<time>), or their ranks-test.safetensors
  -d, --dataset=ml-100k      the data both were run on; by default what the files say
  --topk=[5,10]              lengths of the lists
  --examples=3               users to show for each run
  --seed=0                   of the permutation test
  --json=PATH                also write the comparison as JSON

Both runs must have been made on the same data. Where it is and what was selected from it is taken from the folder of
A, or of B; --data_path=..., --user_inter_num_interval=[...] and the like say it for files of ranks alone, and where the
data have moved. The files hold the hash of the data, so others are refused.
"""

_RULES = ("history_masked", "candidates", "collisions")
LAST_ITEMS = 3
"""Items of a history that an example shows."""


def compare(arguments: Arguments) -> int:
    """The verb ``compare``."""
    if len(arguments.words) != 2:
        raise UserError("compare takes two runs: recbole-ilrec compare saved/RUN_A saved/RUN_B.")
    target = arguments.take("json")
    if target is not None:
        check_result_file(Path(target), "json")
    ks = _lengths(arguments.take("topk", [5, 10]))
    examples, seed = _count(arguments, "examples", 3), _count(arguments, "seed", 0)

    from recbole_ilrec.checks.comparison import Example, as_plain, common_users, compared, render

    first, second = (read_user_ranks(Path(word)) for word in arguments.words)
    data, remarks = _data(first, second), _remarks(first, second, ks)
    users = common_users(first, second)
    if not len(users.user):
        raise UserError(f"{first.name} and {second.name} have no user in common: compare runs on the same data.")
    dataset = _dataset(first.about.get("dataset"), second.about.get("dataset"), arguments.take("dataset"))
    selected = {**_selection([Path(word) for word in arguments.words], dataset), **arguments.options}
    world = _World(dataset, selected, users.user, data)
    names = first.name, second.name
    done = compared(
        names, users, world.history_length, world.popularity, ks, examples=examples, seed=seed, remarks=remarks
    )
    shown = {
        run: [Example(*world.words(row), float(users.a.rank[row]), float(users.b.rank[row])) for row in rows]
        for run, rows in done.rows.items()
    }
    sys.stdout.write(render(done, shown) + "\n")
    if target is not None:
        write_result(Path(target), as_plain(done, shown))
    return 0


def read_user_ranks(path: Path) -> "UserRanks":
    """Places of the true items of a run's test users, which give the metrics that the run itself has.

    Args:
        path: its folder (``saved/<Model>-<dataset>-<time>``) or the file of ranks itself.

    Raises:
        UserError: no such file, one that holds something else, or several rows of a user.
    """
    import numpy as np

    from recbole_ilrec.checks.comparison import UserRanks
    from recbole_ilrec.checks.paired import Places
    from recbole_ilrec.evaluation.topk import MISSING
    from recbole_ilrec.evaluation.user_ranks import ranks_file, read_ranks

    file = ranks_file(path, "test") if path.is_dir() else path
    user, places, about = read_ranks(file)
    if about.get("split", "test") != "test":
        raise UserError(f"{file} holds ranks of the {about['split']} part: compare takes those of test users.")
    if len(user.unique()) < len(user):
        raise UserError(f"{file} has several test rows for a user: compare takes runs with one each (leave-one-out).")
    policy = about.get("collisions")
    shared = policy not in ("strict", "optimistic")  # each order equally likely
    before = (places.before if shared else places.ranks(str(policy))[0][:, 0]).double().numpy()
    group = places.group.double().numpy() if shared else np.ones(len(before))
    order = user.argsort().numpy()
    kept = Places(np.where(before < MISSING, before, np.inf), group, _length(about))[order]
    return UserRanks(file.parent.name, user.numpy()[order], kept, about)


def _length(about: Mapping[str, Any]) -> float | None:
    """Items of a run's lists, inf where it ranks all; files of earlier versions do not say it."""
    length = about.get("list_length")
    return float(length) if isinstance(length, int) else float("inf") if "list_length" in about else None


def _lengths(given: Any) -> list[int]:
    ks = given if isinstance(given, list) else [given]
    if not ks or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in ks):
        raise UserError(f"topk={given} must be a list of whole numbers from 1 on, e.g. --topk=[5,10].")
    return ks


def _count(arguments: Arguments, key: str, default: int) -> int:
    value = arguments.take(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{key}={value} must be a whole number from 0 on, e.g. --{key}={default}.")
    return value


def _dataset(first: Any, second: Any, given: Any) -> str:
    if given is not None:
        return str(given)
    if first is None and second is None:
        raise UserError("--dataset is missing: the runs' files do not say what they were run on.")
    if None not in (first, second) and first != second:
        raise UserError(f"The runs are on different data, {first} and {second}: compare runs on the same data.")
    return str(first if first is not None else second)


def _data(first: "UserRanks", second: "UserRanks") -> str | None:
    """The hash of the data of both runs, or of the one that says it: ids mean the same people where it is equal."""
    hashes = [ranks.about["data"] for ranks in (first, second) if ranks.about.get("data")]
    if len({*hashes}) > 1:
        raise UserError(
            f"{first.name} and {second.name} were made on different data (files, filters or split; hashes "
            f"{hashes[0][:8]} and {hashes[1][:8]}), so their user ids may mean other people: compare runs on the same "
            "data."
        )
    return hashes[0] if hashes else None


def _remarks(first: "UserRanks", second: "UserRanks", ks: list[int]) -> list[str]:
    """In what the runs differ beside their lists, by what their files say.

    Raises:
        UserError: they ranked the true items among other items, or fewer than the longest list of ``ks`` takes.
    """
    said: list[str] = []
    for name, run in (("A", first), ("B", second)):
        if "history_masked" not in run.about:
            said.append(
                f"The file of {name}, of an earlier version, does not say whether items of the history were left out, "
                "nor among which items it ranked."
            )
    masked, among, ties = ([run.about.get(key) for run in (first, second)] for key in _RULES)
    if None not in masked and masked[0] != masked[1]:
        left_out, kept = ("A", "B") if masked[0] else ("B", "A")
        said.append(f"Items of the history were left out in {left_out} and kept in {kept}, which makes a difference.")
    if None not in among:
        lists = [{**one, "seed": None} if isinstance(one, dict) else one for one in among]
        if lists[0] != lists[1]:
            raise UserError(
                f"{first.name} ranked true items among {_among(lists[0])} and {second.name} among {_among(lists[1])}: "
                "compare runs with the same choice."
            )
        if among[0] != among[1] or (isinstance(among[0], str) and among[0] != "full"):
            said.append("The runs ranked the true item of a user among other items, each drawn for its run.")
    for name, run in (("A", first), ("B", second)):
        length = run.about.get("list_length")
        if isinstance(length, int) and length < max(ks):
            raise UserError(
                f"topk={max(ks)}: {run.name} ({name}) ranked {length} items for each user, so nothing beyond can be a "
                f"hit: use --topk up to {length}, or runs with a greater num_beams."
            )
    rules = ["expected" if rule in (None, "torch.topk") else rule for rule in ties]
    if rules[0] != rules[1]:
        said.append(f"Items that share an identifier have the {rules[0]} rank in A and the {rules[1]} one in B.")
    return said


def _selection(runs: list[Path], dataset: str) -> dict[str, Any]:
    """Where the data were and what was selected from them, as the first of the runs whose folder says it was asked."""
    from recbole_ilrec.configuration.outcome import data_asked
    from recbole_ilrec.runs.trained import REQUEST
    from recbole_ilrec.runtime.checkpoint import STATE, plain_entry
    from recbole_ilrec.runtime.resumption import BEST

    for run in runs:
        best = (run if run.is_dir() else run.parent) / BEST
        if (best / STATE).is_file():
            request = plain_entry(best, REQUEST)
            if request and request["dataset"] == dataset:
                return data_asked(request)
    return {}


def _among(items: Any) -> str:
    if isinstance(items, str):
        return "all items" if items == "full" else items
    return "published candidates" if items["lists"] == "published" else f"{items['count']} drawn candidates"


class _World:
    """What the data say about the compared users.

    Args:
        dataset: its name.
        options: settings that select data.
        users: ``[U]`` internal ids of the compared users.
        data: hash of the data of the runs; ``None`` where their files do not say.

    Attributes:
        history_length: ``[U]`` items before the true one.
        popularity: ``[U]`` training rows whose target is the true item.

    Raises:
        UserError: the runs saw other data.
    """

    def __init__(self, dataset: str, options: dict[str, Any], users: Any, data: str | None):
        from recbole_ilrec.runtime.compat import require_recbole

        require_recbole()
        import numpy as np

        from recbole_ilrec.configuration.config import Config
        from recbole_ilrec.configuration.outcome import data_key
        from recbole_ilrec.data.dataset import build_data

        config = Config("SASRec", dataset, None, options)
        if data is not None and data_key(config) != data:
            raise UserError(
                f"The data of {dataset} are not those of the runs, so their user ids may mean other people: give the "
                "--data_path and every setting of the runs that selects data (filters, load_col, "
                "MAX_ITEM_LIST_LENGTH, eval_args)."
            )
        parts = build_data(config)
        self.dataset = parts.dataset
        if getattr(self.dataset, "sequences", None) is None:
            raise UserError(
                f"{dataset} was split by files (benchmark_filename), so nobody's whole history is known: compare takes "
                "runs on a NAME.inter file."
            )
        test = parts.test._dataset.inter_feat
        order = {user: row for row, user in enumerate(test[self.dataset.uid_field].tolist())}
        missing = [user for user in users.tolist() if user not in order]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(users)} users of the runs have no test row in {dataset}: give the --data_path "
                "and the filters of the runs."
            )
        rows = test[np.array([order[user] for user in users.tolist()])]
        self._users, self._targets = users, rows[self.dataset.iid_field].numpy()
        bounds = self.dataset.sequences.interval(rows[self.dataset.uid_field], rows[self.dataset.time_field]).numpy()
        self._bounds = bounds
        self.history_length = bounds[:, 1] - bounds[:, 0]
        targets = parts.train._dataset.inter_feat[self.dataset.iid_field].numpy()
        self.popularity = np.bincount(targets, minlength=self.dataset.item_num)[self._targets]

    def words(self, row: int) -> tuple[str, str, list[str]]:
        """User, true item and last items of the history, as people call them."""
        low, high = self._bounds[row]
        items = self.dataset.sequences.items[max(low, high - LAST_ITEMS) : high].tolist()
        user = str(self.dataset.field2id_token[self.dataset.uid_field][self._users[row]])
        return user, self._title(int(self._targets[row])), [self._title(item) for item in items]

    def _title(self, item: int) -> str:
        from recbole_ilrec.identifiers.title import item_titles

        token = str(self.dataset.field2id_token[self.dataset.iid_field][item])
        return item_titles([self.dataset.item_texts[item]], [token])[0][0]
