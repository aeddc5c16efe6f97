"""``python -m benchmarks [--quick]``: a JSON line for each measurement and the table ``benchmarks/RESULTS.md``.

``--only=NAME[,NAME]`` measures these groups again and leaves the lines of the others as they are.
``--curves`` draws ``step`` and ``search`` in ``benchmarks/figures`` instead (PNG, SVG) and writes ``growth.jsonl``.

CPU time on one thread, so a busy machine moves the numbers little, but for ``prepare`` and ``load``, which are read off
the clock; ratios are of alternating runs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import classical, data, growth, results, search, steps
from benchmarks.measure import child_seconds, in_child
from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.report.record import machine
from recbole_ilrec.runtime.allocator import keep_freed_memory

HERE = Path(__file__).parent
KINDS, SHARES = ("prefix", "sequence"), (0.25, 1.0)


Measured = Iterator[tuple[dict[str, Any], dict[str, float]]]
"""Parameters and numbers."""


def _steps(quick: bool) -> Measured:
    rounds = 3 if quick else 7
    for vocab in _vocabularies(quick):
        for kind in KINDS:
            for share in SHARES:
                what = {"vocabulary": vocab, "rows": kind, "cpd_share": share}
                yield what, steps.ratios(vocab, kind, share, rounds if vocab < 10_000 else 3)


def _items(quick: bool) -> Measured:
    for vocab in _vocabularies(quick)[0 if quick else 1 :]:
        what = {"vocabulary": vocab, "rows": "sequence", "cpd_share": 1.0, "cpd_support": "item_tokens"}
        yield what, steps.ratios(vocab, "sequence", 1.0, 3, "item_tokens")


def _adapter(quick: bool) -> Measured:
    for vocab in _vocabularies(quick)[0 if quick else 1 :][:1]:
        for kind in KINDS:
            yield {"vocabulary": vocab, "rows": kind, "model": "sft"}, steps.adapter(vocab, kind, 3)


def _memory(quick: bool) -> Measured:
    for vocab in _vocabularies(quick):
        for kind in KINDS:
            peaks = {name: int(in_child("--memory", str(vocab), kind, name)) for name in ("sft", "ilrec")}
            numbers = {"memory ratio": peaks["ilrec"] / peaks["sft"], "sft peak GB": peaks["sft"] / 1e9}
            yield {"vocabulary": vocab, "rows": kind, "cpd_share": 1.0}, numbers


def _vocabularies(quick: bool) -> list[int]:
    return list(steps.CASES)[: 1 if quick else None]


def _trie(quick: bool) -> Measured:
    for items in (10**4, 10**5, 10**6) + (() if quick else (10**7,)):
        yield {"items": items}, json.loads(in_child("--trie", str(items)))


def _decode(quick: bool) -> Measured:
    for items, numbers in search.decode((10**4, 10**5, 10**6) + (() if quick else (10**7,))).items():
        yield {"model": "tiny", "users": 64, "prompt tokens": 33, "beams": 20, "items": items}, numbers


def _rewards(quick: bool) -> Measured:
    items = 10**5 if quick else 10**6
    yield {"items": items}, search.rewards(items)


def _search(quick: bool) -> Measured:
    small = [("tiny", 16, 60, 0), ("tiny", 16, 33, 0)]
    large = [("tiny", 64, 33, 0), ("135M", 2, 60, 0), ("135M", 2, 120, 0), ("135M", 4, 90, 35)]
    for model, users, length, shared in small + ([] if quick else large):
        what = {"model": model, "users": users, "prompt tokens": length, "items": 5000, "beams": 20}
        what |= {"shared tokens": shared} if shared else {}
        yield what, search.beams(users, length, 5000, 20, 3, model, shared)


def _caser(quick: bool) -> Measured:
    of = {"rows": 256, "length": 20, "width": 128, "users": 944, "items": 1683}  # ml-100k with the preset
    yield of, classical.caser(**of, rounds=3 if quick else 7)


def _prepare(quick: bool) -> Measured:
    for ratings in (10**5, 10**6) + (() if quick else (10**7,)):
        yield {"ratings": ratings}, json.loads(in_child("--prepare", str(ratings)))


def _load(quick: bool) -> Measured:
    of = {"users": 24_772, "items": 9_922}
    yield of, json.loads(in_child("--load", *map(str, of.values())))


def _start(quick: bool) -> Measured:
    yield {"what": "import recbole_ilrec"}, {"s": child_seconds("-c", "import recbole_ilrec")}
    yield {"what": "--help"}, {"s": child_seconds("-m", "recbole_ilrec", "--help")}


GROUPS: dict[str, Callable[[bool], Measured]] = {
    "step": _steps,
    "items": _items,
    "adapter": _adapter,
    "memory": _memory,
    "trie": _trie,
    "rewards": _rewards,
    "search": _search,
    "decode": _decode,
    "caser": _caser,
    "prepare": _prepare,
    "load": _load,
    "start": _start,
}
"""In the table's order; ``True`` asks for the small sizes only."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only, a minute or two")
    parser.add_argument("--curves", action="store_true", help="how steps and searches grow, as a figure; two minutes")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"these groups only: {', '.join(GROUPS)}")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--trie", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.jsonl and RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run does
    if options.memory:
        vocab, kind, name = options.memory
        _say(steps.memory(int(vocab), kind, name, 1.0))
        return
    if options.trie:
        _say(search.trie(options.trie))
        return
    if options.prepare:
        _say(data.preparation(options.prepare))
        return
    if options.load:
        _say(data.first_step(*options.load))
        return
    if options.curves:
        _curves(options.output, 2 if options.quick else 5)
        return
    try:
        names = wanted(options.only)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    _measure(names, options.quick, options.output)


def wanted(only: str | None) -> list[str]:
    """The groups asked for, all where none is named.

    Raises:
        UserError: there is no such group.
    """
    names = list(GROUPS) if only is None else only.split(",")
    for name in names:
        if name not in GROUPS:
            raise unknown_name("group of measurements in --only", name, GROUPS)
    return names


def _measure(names: list[str], quick: bool, folder: Path) -> None:
    """Measure groups, and put each into the files in ``folder`` as soon as all of it is measured."""
    commit = machine()["commit"]  # before a file of results makes the checkout a changed one
    for name in names:
        lines = []
        for of, numbers in GROUPS[name](quick):
            about = {"device": "cpu, one thread", **machine(), "commit": commit}
            lines.append({"name": name, "of": of, "numbers": numbers, **about})
            _say(lines[-1])
        results.replace_group(folder, lines, order=list(GROUPS))


def _curves(folder: Path, rounds: int) -> None:
    found = {}
    for title, points in growth.curves(rounds):
        found[title] = points
        _say({title: points})
    (folder / "growth.jsonl").write_text("".join(json.dumps({title: points}) + "\n" for title, points in found.items()))
    facts = machine()
    about = f"CPU time on one thread, median of {rounds}; tiny, all positions supervised, cpd_share 0.25, k 2; "
    searched = "search of 64 users, prompts of 33 tokens, 5,000 items, 20 beams. "
    growth.figures(found, folder / "figures", f"{about}{searched}{facts['processor']}, commit {facts['commit']}.")


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
