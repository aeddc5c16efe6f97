"""``python -m benchmarks [--quick]``: a JSON line for each measurement and the table ``benchmarks/RESULTS.md``.

``--curves`` draws ``step`` and ``search`` in ``benchmarks/figures`` instead (PNG, SVG) and writes ``growth.jsonl``.

CPU time on one thread, so a busy machine moves the numbers little, but for ``prepare`` and ``load``, which are read off
the clock; ratios are of alternating runs.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import data, growth, search, steps
from benchmarks.measure import child_seconds, in_child
from recbole_ilrec.report.record import machine
from recbole_ilrec.runtime.allocator import keep_freed_memory

HERE = Path(__file__).parent
KINDS = ("prefix", "sequence")


def measurements(quick: bool) -> Iterator[tuple[str, dict[str, Any], dict[str, float]]]:
    """Name, parameters and numbers of each."""
    rounds = 3 if quick else 7
    for vocab in list(steps.CASES)[: 1 if quick else None]:
        for kind in KINDS:
            for share in (0.25, 1.0):
                what = {"vocabulary": vocab, "rows": kind, "cpd_share": share}
                yield "step", what, steps.ratios(vocab, kind, share, rounds if vocab < 10_000 else 3)
            peaks = {name: int(in_child("--memory", str(vocab), kind, name)) for name in ("sft", "ilrec")}
            numbers = {"memory ratio": peaks["ilrec"] / peaks["sft"], "sft peak GB": peaks["sft"] / 1e9}
            yield "memory", {"vocabulary": vocab, "rows": kind, "cpd_share": 1.0}, numbers
    for items in (10**4, 10**5, 10**6) + (() if quick else (10**7,)):
        yield "trie", {"items": items}, json.loads(in_child("--trie", str(items)))
    yield "Eq. 10", {"items": 10**5 if quick else 10**6}, search.rewards(10**5 if quick else 10**6)
    for users, length in ((16, 60), (16, 33)) + (() if quick else ((64, 33),)):
        what = {"users": users, "prompt tokens": length, "items": 5000, "beams": 20}
        yield "search", what, search.beams(users, length, 5000, 20, 3)
    for ratings in (10**5, 10**6) + (() if quick else (10**7,)):
        yield "prepare", {"ratings": ratings}, json.loads(in_child("--prepare", str(ratings)))
    of = {"users": 24_772, "items": 9_922}
    yield "load", of, json.loads(in_child("--load", *map(str, of.values())))
    yield "start", {"what": "import recbole_ilrec"}, {"s": child_seconds("-c", "import recbole_ilrec")}
    yield "start", {"what": "--help"}, {"s": child_seconds("-m", "recbole_ilrec", "--help")}


def table(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    first = lines[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    text = ["# Benchmarks", "", f"`{first['command']}` at commit {first['commit']}, finished {lines[-1]['finished']}."]
    text += ["", f"{first['processor']}, {first['device']}; Python {first['python']}, {versions}."]
    text += ["", "| what | of | result |", "|---|---|---|"]
    for line in lines:
        what, numbers = (", ".join(f"{k} {_short(v)}" for k, v in line[key].items()) for key in ("of", "numbers"))
        text.append(f"| {line['name']} | {what} | {numbers} |")
    return "\n".join(text) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only, a minute or two")
    parser.add_argument("--curves", action="store_true", help="how steps and searches grow, as a figure; two minutes")
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
    keep_freed_memory()  # as a run does; those above measure what they keep themselves
    if options.curves:
        _curves(options.output, 2 if options.quick else 5)
        return
    lines: list[dict[str, Any]] = []
    for name, of, numbers in measurements(options.quick):
        lines.append({"name": name, "of": of, "numbers": numbers, "device": "cpu, one thread", **machine()})
        _say(lines[-1])
        (options.output / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (options.output / "RESULTS.md").write_text(table(lines))


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
