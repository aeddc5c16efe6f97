"""``recbole-ilrec recommend RUN``: a trained model's lists for its users or new ones, on screen or as a file."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recbole_ilrec.configuration.arguments import PLACES, Arguments, listed
from recbole_ilrec.errors import UserError

if TYPE_CHECKING:
    from recbole_ilrec.runs.names import Names
    from recbole_ilrec.runs.recommendation import Recommended, Recommender

HELP = """usage: recbole-ilrec recommend RUN [--users=ID,ID | --history=ITEM,ITEM | --file=FILE] [--out=FILE]

The items that a trained model, language model or one of RecBole's, thinks come next.

  RUN                        the folder of a finished run (saved/<Model>-<dataset>-<time>)
  --users=ID,ID              users of the run's data, after all that they did; without any choice: all users, to --out
  --history=ITEM,ITEM        a new user who had these items, oldest first: ids or titles; separate by ';' where they
                             hold commas
  --file=FILE                new users: a table (.csv, .tsv, .jsonl, .parquet) with user_id, item_id and timestamp
  --topk=10                  length of a list
  --out=FILE                 write user, rank, item, title and score of all places as .csv, .tsv, .jsonl or .parquet;
                             one that was interrupted goes on with the same command
  --exclude_history=true     leave out what the user had; by default as in the run
  --num_beams=N              beams of a language model's search; by default as in the run
  --eval_batch_size=N        users at once
  --num_threads=N            threads of a CPU; where other work goes on beside it, 1 is often fastest
  --data_path=DIR, --cache_dir=DIR, --index_file=FILE, --backbone=DIR
                             where these are today, if they have moved since the run
  --device=cpu               by default a GPU where there is one

A score is comparable within its list only: for a language model the log-probability of the item's identifier.

examples
  recbole-ilrec recommend saved/ILRec-ml-100k-TIME --users=196,186
  recbole-ilrec recommend saved/ILRec-ml-100k-TIME --history="Toy Story;Star Wars" --topk=5
  recbole-ilrec recommend saved/ILRec-ml-100k-TIME --out=lists.parquet
"""

CHOICES = ("users", "history", "file")
NUMBERS = ("num_beams", "eval_batch_size", "num_threads")
OPTIONS = (*CHOICES, "topk", "out", "exclude_history", *NUMBERS, *PLACES)
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
MOST_ON_SCREEN = 50
LAST_ITEMS = 3
"""Items of a history that the screen shows."""


class _Asked(NamedTuple):
    """Who gets lists: names to show, histories as item ids, oldest first."""

    names: list[str]
    histories: list[list[str]]


def recommend(arguments: Arguments) -> int:
    """The verb ``recommend``."""
    run, options = arguments.of_one_run("recommend", OPTIONS), arguments.options
    chosen = [name for name in CHOICES if name in options]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} each say who gets lists: give one of them.")
    out = _target(arguments.take("out"))
    if out is None and not chosen:
        raise UserError("Lists of all users need --out=FILE, e.g. --out=lists.csv; or choose some with --users=ID,ID.")
    topk = number("topk", arguments.take("topk", 10))
    given = {key: str(options[key]) for key in PLACES if key in options}
    beams, batch_size, threads = (number(key, options.get(key)) for key in NUMBERS)
    exclude = options.get("exclude_history")
    assert topk is not None

    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec.runtime.allocator import keep_freed_memory
    from recbole_ilrec.runtime.imports import quick_imports

    with quick_imports():
        import torch

        from recbole_ilrec.runs.recommendation import Recommender

    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    recommender = Recommender.load(run, num_beams=beams, exclude_history=exclude, **given)
    asked = _asked(recommender, options)
    if out is None and len(asked.names) > MOST_ON_SCREEN:
        raise UserError(
            f"{len(asked.names):,} lists are too many for the screen (at most {MOST_ON_SCREEN}): give --out=FILE, "
            "e.g. --out=lists.csv, or choose some with --users."
        )
    known = None if "history" in options else asked.names
    recommender.check(asked.histories, topk=topk, users=known)  # before the first list is made, not after hours

    def make(some: slice, progress: Callable[[int], Any] | None = None) -> "list[list[Recommended]]":
        users = None if known is None else known[some]
        how: dict[str, Any] = {"topk": topk, "users": users, "batch_size": batch_size, "progress": progress}
        return recommender.recommend(asked.histories[some], **how)

    if out is None:
        sys.stdout.write(_shown(recommender, asked, make(slice(None))))
        return 0
    from recbole_ilrec.verbs.lists_file import write_lists

    what = {**recommender.identity(), "topk": topk, "known": known is not None, "histories": asked.histories}
    places = write_lists(out, asked.names, what, make)
    sys.stdout.write(f"{len(asked.names):,} lists, {places:,} places: {out}\n")
    return 0


def _target(given: Any) -> Path | None:
    if given is None:
        return None
    path = Path(str(given)).resolve()  # a link stays one, to the new file
    if path.suffix not in FORMATS:
        raise UserError(f"--out={given} is no table: end it in {', '.join(FORMATS)}.")
    from recbole_ilrec.runs.result_file import check_result_file

    check_result_file(path, "out")
    return path


def number(key: str, value: Any) -> int | None:
    """An option that counts something; ``None`` where it is not given."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"{key}={value} is not allowed: give a whole number from 1 on, e.g. --{key}=20.")
    return value


# ---- who


def _asked(recommender: "Recommender", options: Mapping[str, Any]) -> _Asked:
    if "history" in options:
        return _Asked(["the history given"], [items_of(recommender.names, str(options["history"]))])
    if "file" in options:
        return _of_file(recommender, Path(str(options["file"])))
    names = listed(options["users"]) if "users" in options else recommender.names.users
    names = list(dict.fromkeys(map(str, names)))
    if not names:
        raise UserError("--users is empty: give ids of users, e.g. --users=196,186.")
    return _Asked(names, [recommender.names.history(name) for name in names])


def items_of(names: "Names", text: str) -> list[str]:
    """One item where the whole text is one, else the parts between ';' or, without any, between commas."""
    if names.known(text) is not None:
        return [text]
    return [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]


def _of_file(recommender: "Recommender", path: Path) -> _Asked:
    """New users from a table; what the model does not know is left out and counted on stderr."""
    from recbole_ilrec.preparation import clicks

    if not path.is_file():
        raise UserError(f"--file={path} is no file: give a table with the columns user_id, item_id and timestamp.")
    if not path.name.endswith(clicks.SUFFIXES):
        raise UserError(f"--file={path} is no table that can be read: end it in {', '.join(clicks.SUFFIXES)}.")
    names, histories, strangers, without = [], [], dict[str, None](), []
    for user, items in clicks.read({"interactions": path}, path.parent).sequences:
        strangers |= dict.fromkeys(item for item in items if not recommender.names.has(item))
        known = [item for item in items if item not in strangers]
        if known:
            names.append(user)
            histories.append(known)
        else:
            without.append(user)
    if strangers:
        _warn(f"{len(strangers):,} items of {path} are unknown to the model and left out: {_some(list(strangers))}.")
    if not names:
        raise UserError(
            f"{path} holds no item that the model was trained on: check that the ids are those of its data."
        )
    if without:
        _warn(f"{len(without):,} users of {path} have no known item and get no list: {_some(without)}.")
    return _Asked(names, histories)


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# ---- what


def _shown(recommender: "Recommender", asked: _Asked, lists: Sequence[Sequence["Recommended"]]) -> str:
    config = recommender.trained.config
    history = "left out" if recommender.leaves_out_history else "may come again"
    text = [f"{config.model} on {config.dataset}; items of the history {history}"]
    title = dict(zip(recommender.names.items, recommender.names.titles, strict=True))
    for name, items, places in zip(asked.names, asked.histories, lists, strict=True):
        last = [title.get(item, item) for item in items[-LAST_ITEMS:]]
        text += ["", f"{name}: {len(items)} items, the last: {' | '.join(last)}"]
        width = max((len(place.item) for place in places), default=0)
        for rank, place in enumerate(places, start=1):
            called = f"  {place.title}" if place.title != place.item else ""
            text.append(f"{rank:4}  {place.item:{width}}  {place.score:9.4f}{called}")
    return "\n".join(text) + "\n"
