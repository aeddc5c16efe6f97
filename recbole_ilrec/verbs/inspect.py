"""``recbole-ilrec inspect RUN``: one answer of a language model, token by token and layer by layer."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.runs.result_file import check_result_file, write_result
from recbole_ilrec.verbs.recommend import LAST_ITEMS, PLACES, items_of

if TYPE_CHECKING:
    from recbole_ilrec.runs.inspection import Inspection, PlaceSeen, TokenSeen
    from recbole_ilrec.runs.recommendation import Recommender

HELP = """usage: recbole-ilrec inspect RUN (--user=ID | --history=ITEM,ITEM --item=ITEM) [--tokens=8] [--json=PATH]

Why this item? For each token of an item's identifier: what the last layer and the layers before it think may stand
there, which tokens are ILRec's self-hard negatives, how much each weighs, what the collaborative model says of them,
and which items stand behind them. Works on any run of a language model over all items, also on one trained without
ILRec, whose settings are then those that it would have had.

  RUN                        the folder of a finished run (saved/<Model>-<dataset>-<time>)
  --user=ID                  a user of the run's data; the answer is the last item (the test item), unless --item says
                             another, and the history all that was before it
  --history=ITEM,ITEM        somebody new: ids or titles, oldest first; separate by ';' where they hold commas
  --item=ITEM                the answer to look at, id or title
  --tokens=8                 tokens to show at each place
  --json=PATH                also write all of it as JSON
  --data_path=DIR, --cache_dir=DIR, --index_file=FILE, --backbone=DIR
                             where these are today, if they have moved since the run
  --device=cpu               by default a GPU where there is one
"""

WIDEST_TITLE = 40
OPTIONS = ("user", "history", "item", "tokens", "json", *PLACES)


def inspect(arguments: Arguments) -> int:
    """The verb ``inspect``."""
    options = arguments.options
    for key in options:
        if key not in OPTIONS:
            raise unknown_name("option of inspect", key, OPTIONS)
    if len(arguments.words) != 1:
        raise UserError("inspect takes one run: recbole-ilrec inspect saved/<Model>-<dataset>-<time> --user=ID.")
    if ("user" in options) == ("history" in options):
        raise UserError("inspect looks at one answer: give --user=ID, or --history=ITEM,ITEM with --item=ITEM.")
    if "history" in options and "item" not in options:
        raise UserError("--history needs --item=ITEM, the answer to look at.")
    most, target = options.get("tokens", 8), options.get("json")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise UserError(f"tokens={most} is not allowed: give a whole number from 1 on, e.g. --tokens=8.")
    if target is not None:
        check_result_file(Path(target), "json")

    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec.runtime.imports import quick_imports

    with quick_imports():
        from recbole_ilrec.runs.recommendation import Recommender

    where: dict[str, Any] = {key: str(options[key]) for key in PLACES if key in options}
    asked = Recommender.load(arguments.words[0], **where)
    from recbole_ilrec.runs.inspection import inspect_answer

    seen = inspect_answer(asked, most=most, **_question(asked, options))
    sys.stdout.write("\n".join(_lines(asked, seen)) + "\n")
    if target is not None:
        write_result(Path(target), _plain(seen))
    return 0


def _question(asked: "Recommender", options: dict[str, Any]) -> dict[str, Any]:
    """The history, the answer, who it is and all items that the user is known to like."""
    if "history" in options:
        return {"history": items_of(asked.names, str(options["history"])), "item": str(options["item"])}
    user = str(options["user"])
    whole = asked.names.history(user)
    if len(whole) < 2:
        raise UserError(f"User '{user}' has one item, so there is no history before it: give another user.")
    return {"history": whole[:-1], "item": str(options.get("item", whole[-1])), "user": user, "own": whole}


def _plain(seen: "Inspection") -> dict[str, Any]:
    places = [{**place._asdict(), "tokens": [token._asdict() for token in place.tokens]} for place in seen.places]
    return {**seen._asdict(), "places": places}


# ---- text


def _lines(asked: "Recommender", seen: "Inspection") -> Iterator[str]:
    config = asked.trained.config
    settings = config.settings.ilrec
    last = " | ".join(_short(asked.names.titles[number]) for number in asked.names.numbers(seen.history[-LAST_ITEMS:]))
    place = f"place {seen.place} of the model's list" if seen.place else "not in the model's list"
    yield f"{config.model} on {config.dataset}: after {len(seen.history)} items, the last: {last}"
    named = f" ({_short(seen.title)})" if seen.title != seen.item else ""
    yield f"answer {seen.item}{named}: log-probability {seen.log_prob:.4f}, {place}"
    yield (
        f"alpha {settings.alpha:g}, beta {settings.beta:g}, lambda {settings.lambda_:g}, mu {settings.mu:g}, "
        f"penalty {settings.penalty}"
    )
    for number, place_seen in enumerate(seen.places, start=1):
        yield ""
        yield from _place(number, place_seen)
    yield ""
    yield "neg: one of V_N (Eq. 5); w: its weight (Eq. 6); r: reward (Eq. 10); own: items of this user behind the token"


def _place(number: int, place: "PlaceSeen") -> Iterator[str]:
    prefix = "".join(place.prefix) or "the beginning"
    losses = ", ".join(f"{name} {value:.4f}" for name, value in place.losses.items())
    yield f"token {number}, after {prefix}: {place.items:,} items left"
    yield f"  {place.negatives} negatives above {place.threshold:.4f} (Eq. 4); {losses}"
    layers = len(place.tokens[0].layers)
    heads = ["last", *(f"L-{layers - n}" for n in range(layers)), "ensemble"]
    rewarded = place.tokens[0].reward is not None
    width = max(5, *(len(token.token) for token in place.tokens))
    yield (
        f"  {'':2}{'token':{width}}"
        + "".join(f"{head:>9}" for head in heads)
        + f"{'neg':>5}{'w':>8}"
        + (f"{'r':>8}" if rewarded else "")
        + f"{'items':>8}{'own':>5}  for example"
    )
    for token in place.tokens:
        yield _token(token, width)


def _token(token: "TokenSeen", width: int) -> str:
    mark = "> " if token.truth else "  "
    numbers = "".join(f"{value:9.4f}" for value in (token.final, *token.layers, token.ensemble))
    weight = f"{token.weight:8.4f}" if token.negative else f"{'':8}"
    reward = "" if token.reward is None else f"{token.reward:8.4f}"
    negative = "  *" if token.negative else ""
    behind = f"{token.items:8,}{token.own or '':>5}" if token.items else f"{'none':>8}{'':5}"
    return f"  {mark}{token.token:{width}}{numbers}{negative:>5}{weight}{reward}{behind}  {_some(token)}"


def _some(token: "TokenSeen") -> str:
    return "; ".join(map(_short, token.examples))


def _short(title: str) -> str:
    return shorten(title, WIDEST_TITLE, placeholder=" ...")
