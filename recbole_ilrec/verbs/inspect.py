"""``recbole-ilrec inspect RUN``: one answer of a language model, token by token and layer by layer."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import PLACES, Arguments
from recbole_ilrec.errors import UserError
from recbole_ilrec.runs.result_file import check_result_file, write_result
from recbole_ilrec.verbs.recommend import LAST_ITEMS, items_of, number

if TYPE_CHECKING:
    from recbole_ilrec.runs.inspection import Inspection, PlaceSeen, TokenSeen
    from recbole_ilrec.runs.negatives import Negatives
    from recbole_ilrec.runs.recommendation import Recommender

HELP = """usage: recbole-ilrec inspect RUN (--user=ID | --history=ITEM,ITEM --item=ITEM | --sample=N) [--json=PATH]

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
  --sample=N                 the test items of N users, the same ones each time, in the mean: how many negatives, how
                             much of their weight lies on tokens that may follow and on what the user has had
  --json=PATH                also write all of it as JSON
  --data_path=DIR, --cache_dir=DIR, --index_file=FILE, --backbone=DIR
                             where these are today, if they have moved since the run
  --device=cpu               by default a GPU where there is one
"""

WIDEST_TITLE = 40
TOKENS = 8
OPTIONS = ("user", "history", "item", "tokens", "sample", "json", *PLACES)


def inspect(arguments: Arguments) -> int:
    """The verb ``inspect``."""
    run, options = arguments.of_one_run("inspect", OPTIONS), arguments.options
    if sum(key in options for key in ("user", "history", "sample")) != 1:
        raise UserError(
            "inspect looks at one answer or at many: give --user=ID, --history=ITEM,ITEM with --item=ITEM, or "
            "--sample=N."
        )
    for key in ("item", "tokens") if "sample" in options else ():
        if key in options:
            raise UserError(f"--{key} is of one answer and --sample looks at many: leave one of them out.")
    if "history" in options and "item" not in options:
        raise UserError("--history needs --item=ITEM, the answer to look at.")
    most, sample = (number(key, options.get(key)) for key in ("tokens", "sample"))
    target = options.get("json")
    if target is not None:
        check_result_file(Path(target), "json")

    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    from recbole_ilrec.runtime.imports import quick_imports

    with quick_imports():
        from recbole_ilrec.runs.recommendation import Recommender

    where: dict[str, Any] = {key: str(options[key]) for key in PLACES if key in options}
    asked = Recommender.load(run, **where)
    lines, found = _of_one(asked, options, most or TOKENS) if sample is None else _of_many(asked, sample)
    sys.stdout.write("\n".join(lines) + "\n")
    if target is not None:
        write_result(Path(target), found)
    return 0


def _of_one(asked: "Recommender", options: dict[str, Any], most: int) -> tuple[Iterator[str], dict[str, Any]]:
    from recbole_ilrec.runs.inspection import inspect_answer

    seen = inspect_answer(asked, most=most, **_question(asked, options))
    untested = "user" in options and "item" not in options and str(options["user"]) not in _tested(asked)
    note = "the user's last item is none of the test part: the model may have been trained on it"
    return chain(_lines(asked, seen), ["", note] if untested else []), _plain(seen)


def _tested(asked: "Recommender") -> list[str]:
    """Ids of the users of the test part: the last item of another one may have been trained on."""
    part = asked.trained.data.test._dataset
    numbers = part.inter_feat[part.uid_field].unique().tolist()
    return [asked.names.users[number - 1] for number in sorted(numbers)]


def _of_many(asked: "Recommender", sample: int) -> tuple[Iterator[str], dict[str, Any]]:
    import numpy as np

    from recbole_ilrec.runs.negatives import negatives_of

    users = _tested(asked)
    chosen = np.sort(np.random.default_rng(0).choice(len(users), min(sample, len(users)), replace=False))
    found = negatives_of(asked, [users[row] for row in chosen])
    return _means(asked, found), {"users": len(chosen), "places": [place._asdict() for place in found]}


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


def _means(asked: "Recommender", found: Sequence["Negatives"]) -> Iterator[str]:
    config, settings = asked.trained.config, asked.trained.config.settings.ilrec
    rewarded = found[0].reward is not None
    yield f"{config.model} on {config.dataset}: the test items of {found[0].tokens:,} users, token by token"
    yield f"alpha {settings.alpha:g}, penalty {settings.penalty}, beta {settings.beta:g}"
    yield ""
    losses = "".join(f"{name:>9}" for name in found[0].losses)
    yield f"token  {losses}{'right':>9}{'with neg':>9}{'neg':>9}{'legal':>9}{'own':>9}" + (
        f"{'r of neg':>9}{'r truth':>9}" if rewarded else ""
    )
    for at, place in enumerate(found, start=1):
        numbers = [*place.losses.values(), place.right, place.penalised, place.negatives, place.legal, place.own]
        numbers += [place.reward or 0.0, place.truth or 0.0] if rewarded else []
        yield f"{at:5}  " + "".join(f"{value:9.4f}" for value in numbers)
    yield ""
    yield "losses in nats; right: no legal token is more probable than the truth; with neg: share that has negatives"
    yield "(Eq. 5), neg of them in the mean; legal, own: share of their weight (Eq. 6) on tokens that may follow, and"
    yield "on tokens with items of the history behind them" + (
        "; r of neg, r truth: mean reward (Eq. 10) under these weights, and of the truth" if rewarded else ""
    )


def _lines(asked: "Recommender", seen: "Inspection") -> Iterator[str]:
    config = asked.trained.config
    settings = config.settings.ilrec
    last = " | ".join(_short(asked.names.titles[row]) for row in asked.names.numbers(seen.history[-LAST_ITEMS:]))
    place = f"place {seen.place} of the model's list" if seen.place else "not in the model's list"
    yield f"{config.model} on {config.dataset}: after {len(seen.history)} items, the last: {last}"
    named = f" ({_short(seen.title)})" if seen.title != seen.item else ""
    yield f"answer {seen.item}{named}: log-probability {seen.log_prob:.4f}, {place}"
    yield (
        f"alpha {settings.alpha:g}, beta {settings.beta:g}, lambda {settings.lambda_:g}, mu {settings.mu:g}, "
        f"penalty {settings.penalty}"
    )
    for at, place_seen in enumerate(seen.places, start=1):
        yield ""
        yield from _place(at, place_seen)
    yield ""
    yield "neg: one of V_N (Eq. 5); w: its weight (Eq. 6); r: reward (Eq. 10); own: items of this user behind the token"


def _place(at: int, place: "PlaceSeen") -> Iterator[str]:
    prefix = "".join(place.prefix) or "the beginning"
    losses = ", ".join(f"{name} {value:.4f}" for name, value in place.losses.items())
    yield f"token {at}, after {prefix}: {place.items:,} items left"
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
