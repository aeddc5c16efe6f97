"""What stands above a table: of whom and of what its numbers are, by which rules and tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_ilrec.report.plan import Plan
from recbole_ilrec.report.runs import lists_told, ranked_among, rows_evaluated
from recbole_ilrec.report.statistics import ALPHA, TEST
from recbole_ilrec.report.table import MARK

_OF_MACHINES = frozenset(("time", "epoch_time", "user_time", "memory", "gpu_memory"))
MARKED = "Best bold, second underlined within a block."
QUICK = (
    "QUICK SETTINGS: a few steps on few users, only to show that every part works; these numbers say nothing about the "
    "methods."
)


def caption(plan: Plan, records: Sequence[Mapping[str, Any]], tests: int, quick: bool, given: Mapping[str, Any]) -> str:
    """The caption of a table of results.

    Args:
        plan: of the table.
        records: of its runs.
        tests: how many comparisons were tested.
        quick: whether the runs were made with ``--quick``.
        given: settings of the command line, over the plan's.
    """
    parts = [f"{_whom(records)}; {spread(plan)}.", *_limits(records), *_lists(records), *_machines(plan, records)]
    certificates = [record["evaluation"] for record in records]
    masked = {certificate["history_masked"] for certificate in certificates}
    policies = sorted({str(c["collisions"]) for c in certificates if c["collisions"] != "torch.topk"})
    if certificates:
        how = "partly " if len(masked) > 1 else "" if True in masked else "not "
        parts.append(f"Items of the history {how}left out.")
    if policies:
        parts.append(f"Items that share an identifier: {', '.join(policies)} rank.")
    parts.append(MARKED)
    if tests:
        parts.append(f"{MARK}: better than the best other line of the block ({TEST}, Holm over {tests}, p < {ALPHA}).")
    return framed(plan, records, parts, quick, given)


def _limits(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who was evaluated among what, where it is not everyone among all items."""
    rows = {rows_evaluated(record, limited=True) for record in records}
    among = sorted({ranked_among(record) for record in records})
    said = [f"{'Partly only' if '' in rows else 'Only'} {' or '.join(sorted(rows - {''}))}."] if rows - {""} else []
    return said + ([f"True items ranked among {' or '.join(among)}."] if among not in ([], ["all items"]) else [])


def _whom(records: Sequence[Mapping[str, Any]]) -> str:
    """How many test users, where all of them were evaluated in every run."""
    tests = [record["evaluation"].get("test") for record in records]
    if not tests or any(test is None or test["rows_evaluated"] != test["rows_in_split"] for test in tests):
        return "Test part"
    counts = sorted({f"{test['users_evaluated']:,}" for test in tests})
    return f"Test part, all {' or '.join(counts)} users"


def _lists(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How long and how full the lists of the language models are."""
    lists = [kept for record in records if (kept := record["evaluation"].get("lists"))]
    return [f"{lists_told(lists).capitalize()}."] if lists else []


def _machines(plan: Plan, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """On what the costs came about."""
    if not _OF_MACHINES.intersection(plan.metrics) or not records:
        return []
    kinds = sorted({_kind(record) for record in records})
    threads = " or ".join(sorted({str(record.get("threads", "?")) for record in records}))
    mixed = "; not comparable where these differ" if len(kinds) > 1 or " or " in threads else ""
    return [f"Costs: {' and '.join(kinds)}, threads: {threads}{mixed}."]


def _kind(record: Mapping[str, Any]) -> str:
    """The machine that a record is of."""
    several = f", {count} processes" if (count := record.get("processes", 1)) > 1 else ""
    return f"{record.get('processor', '?')}, {record.get('gpu') or record.get('device', '?')}{several}"


def spread(plan: Plan) -> str:
    """Over which seeds the numbers are means."""
    seeds = ", ".join(map(str, plan.seeds))
    return f"mean ± standard deviation over seeds {seeds}" if len(plan.seeds) > 1 else f"one seed ({seeds})"


def framed(
    plan: Plan, records: Sequence[Mapping[str, Any]], said: Sequence[str], quick: bool, given: Mapping[str, Any]
) -> str:
    """What is said of numbers between the plan's title, what was ``given``, and by how many versions of the code."""
    changed = ", ".join(f"{key}={value}" for key, value in given.items())
    codes = {record["evaluation"]["code"] for record in records}
    versions = [f"The numbers were made by {len(codes)} versions of the code."] if len(codes) > 1 else []
    data: dict[str, set[str]] = {}
    for record in records:
        if record["evaluation"].get("data"):
            data.setdefault(str(record.get("dataset")), set()).add(record["evaluation"]["data"])
    versions += [
        f"Not comparable within {name}: {len(keys)} versions of its data (files, filters or split)."
        for name, keys in data.items()
        if len(keys) > 1
    ]
    title = f"{plan.title}, with {changed}." if changed else f"{plan.title}."
    return " ".join([*([QUICK] if quick else []), title, *said, *versions])
