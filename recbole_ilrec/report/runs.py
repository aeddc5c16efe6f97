"""Tables over run records: what came out, and under which conditions.

Knows plain values only.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_ilrec.report.statistics import mean_and_deviation
from recbole_ilrec.report.table import Cell, Line, Table, marked
from recbole_ilrec.settings import FLAT_KEYS, SECTIONS

METRICS = {"hit": "Hit", "ndcg": "NDCG", "mrr": "MRR", "recall": "Recall", "precision": "Precision", "map": "MAP"}
"""RecBole's names of metrics -> as they are written."""
LESS_IS_BETTER = frozenset(("averagepopularity", "giniindex", "mae", "rmse", "logloss"))
"""RecBole's metrics whose smallest value is the best."""
_OWN_RULES = ("strict", "optimistic")
"""Rules for items that share an identifier by which numbers are no expectation, as those of other models are."""
_SHOWN = 5
"""Settings named in the label of a line."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        number: by which the page calls it, from 1.
        record: as :mod:`recbole_ilrec.report.record` left it.
        settings: what decides its outcome, dotted name -> value, without the seed.
        history: lines of losses and validations; empty when none were kept.
        unrounded: test metrics whose mean over users is known better than in the four digits of the record.
    """

    number: int
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = field(default=())
    unrounded: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How lists call it."""
        return f"{self.number} {self.record['model']}"

    def test(self, metric: str) -> float | None:
        """A test metric, as exactly as it is known."""
        return self.unrounded.get(metric, self.record["result"]["test_result"].get(metric))

    @property
    def certificate(self) -> Mapping[str, Any]:
        """What its numbers are numbers of; empty where the record does not say."""
        return self.record.get("evaluation") or {}


def metric_label(metric: str) -> str:
    """``ndcg@10`` as ``NDCG@10``."""
    name, at, k = metric.partition("@")
    return f"{METRICS.get(name, name)}{at}{k}"


def less_is_better(metric: str) -> bool:
    """Whether the smallest value of ``giniindex@10`` or the like is the best."""
    return metric.partition("@")[0].lower() in LESS_IS_BETTER


def in_order(metrics: Iterable[str]) -> list[str]:
    """Each metric once, those of a kind together, short lists first."""

    def place(metric: str) -> tuple[str, int]:
        name, _, k = metric.partition("@")
        return name, int(k) if k.isdecimal() else 0

    return sorted(set(metrics), key=place)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def deciding(record: Mapping[str, Any], free: Iterable[str]) -> dict[str, Any]:
    """The settings of a record that decide the outcome, without the seed.

    Args:
        record: one line.
        free: names of settings that change nothing, dotted where they are in a section.
    """
    left_out = {*free, "seed", "model", "dataset"}
    own = {
        key: value
        for key, value in record.get("config", {}).items()
        if key not in FLAT_KEYS and key.partition(".")[0] not in SECTIONS
    }
    settings = flat({**own, **(record.get("settings") or {})})
    return {key: value for key, value in settings.items() if key not in left_out}


def conditions(record: Mapping[str, Any]) -> str:
    """Under which conditions the test numbers came about: numbers are comparable where they are the same."""
    certificate = record.get("evaluation")
    if not certificate:
        return "No certificate in the record: made by an earlier version"
    parts = [rows_evaluated(record) or "no ranks kept"]
    parts.append(f"items of the history {'left out' if certificate['history_masked'] else 'kept'}")
    parts.append(f"ranked among {ranked_among(record)}")
    if certificate.get("collisions") in _OWN_RULES:
        parts.append(f"{certificate['collisions']} rank of a shared identifier")
    return ", ".join([*parts, f"data {certificate['data'][:8]}"])


def certified(certificate: Mapping[str, Any]) -> str:
    """Who was ranked among what by which rules, and how full the lists were: a certificate in one line."""
    lists = certificate.get("lists")
    return conditions({"evaluation": certificate}) + (f", {lists_told([lists])}" if lists else "")


def lists_told(lists: Sequence[Mapping[str, Any]]) -> str:
    """How long and how full the lists of some runs are."""
    lengths = " or ".join(map(str, sorted({kept["length"] for kept in lists})))
    valid, distinct = (min(kept[name] for kept in lists) for name in ("valid", "distinct"))
    full = "all valid and distinct" if valid == distinct == 1 else f"{valid:.2%} valid, {distinct:.2%} distinct or more"
    return f"lists of {lengths}, {full}"


def rows_evaluated(record: Mapping[str, Any], *, limited: bool = False) -> str:
    """How many test rows were evaluated, of how many and why; empty where it is not known.

    Args:
        record: of a run.
        limited: say it only where it is not all of them.
    """
    test = record["evaluation"].get("test")
    if not test or (limited and not test["limited_by"]):
        return ""
    why = f" ({test['limited_by']})" if test["limited_by"] else ""
    return f"{test['rows_evaluated']:,} of {test['rows_in_split']:,} test rows{why}"


def ranked_among(record: Mapping[str, Any]) -> str:
    """Among which items the true one was ranked."""
    candidates = record["evaluation"].get("candidates", "full")
    if isinstance(candidates, Mapping):
        candidates = candidates.get("test", f"{candidates.get('count', '?')} {candidates.get('lists', '')} candidates")
    return "all items" if candidates == "full" else str(candidates)


def results_tables(runs: Sequence[Run]) -> list[Table]:
    """One table a dataset: a line a configuration with its mean over seeds, a block for what is comparable."""
    by_dataset: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_dataset[run.record["dataset"]].append(run)
    return [_results(name, some) for name, some in sorted(by_dataset.items())]


def _results(dataset: str, runs: Sequence[Run]) -> Table:
    metrics = in_order(metric for run in runs for metric in run.record["result"]["test_result"])
    blocks: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in _told_apart(runs):
        blocks[conditions(run.record)][_same(run)].append(run)
    labels = _labels(list({key: some for groups in blocks.values() for key, some in groups.items()}.values()))
    done = [
        (label, marked([_line(labels[some[0].number], some, metrics) for some in groups.values()]))
        for label, groups in sorted(blocks.items())
    ]
    head = (*map(metric_label, metrics), "Ties", "Seeds", "Runs")
    caption = (
        f"{dataset}: test metrics, mean ± sample standard deviation over the seeds listed. A line names the settings "
        "that most lines of its model do not have. Best bold, second underlined among lines of the same conditions; "
        "other lines are not comparable. Ties: how items that share an "
        "identifier or a score are ranked."
    )
    return Table(f"results-{dataset}", caption, (head,), tuple(done))


def _same(run: Run) -> str:
    return json.dumps([run.record["model"], run.settings], sort_keys=True)


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of equal settings that read other files or code of the user's own are of several lines: they say which."""
    made: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        made[_same(run)].add(run.certificate.get("configuration", ""))
    several = {same for same, found in made.items() if len(found - {""}) > 1}
    if not several:
        return list(runs)
    files = {run.number: run.certificate.get("configuration", "")[:8] for run in runs if _same(run) in several}
    return [replace(run, settings={**run.settings, "files": files.get(run.number, "")}) for run in runs]


def _line(label: str, runs: Sequence[Run], metrics: Sequence[str]) -> Line:
    """One number a seed: of several runs with the same seed, the newest."""
    newest = {run.record["seed"]: run for run in sorted(runs, key=lambda run: run.record.get("finished", ""))}
    seeds = sorted(newest)
    cells = [_mean(metric, [newest[seed] for seed in seeds]) for metric in metrics]
    ties = sorted({str(run.certificate.get("collisions", "-")) for run in runs})
    numbers = ", ".join(str(newest[seed].number) for seed in seeds)
    texts = (", ".join(ties), ", ".join(map(str, seeds)), numbers)
    return Line(label, (*cells, *(Cell(text=text) for text in texts)))


def _mean(metric: str, runs: Sequence[Run]) -> Cell:
    values = [run.test(metric) for run in runs]
    lower = less_is_better(metric)
    if any(value is None for value in values):
        return Cell(text="n/a", lower=lower)
    numbers = tuple(float(value) for value in values if value is not None)
    return Cell(numbers, *mean_and_deviation(numbers), lower=lower)


def _labels(groups: Sequence[Sequence[Run]]) -> dict[int, str]:
    """Number of the first run of a group -> its model, and its settings that most groups of the model do not have."""
    by_model: dict[str, list[Run]] = defaultdict(list)
    for group in groups:
        by_model[group[0].record["model"]].append(group[0])
    labels = {}
    for model, runs in by_model.items():
        shared = set.intersection(*(set(run.settings) for run in runs))
        telling = [key for key in sorted(shared) if len({json.dumps(run.settings[key]) for run in runs}) > 1]
        usual = {key: _usual([json.dumps(run.settings[key]) for run in runs]) for key in telling}
        for run in runs:
            own = [key for key in telling if json.dumps(run.settings[key]) != usual[key]]
            named = [f"{key}={run.settings[key]}" for key in own[:_SHOWN]]
            more = [f"and {len(own) - _SHOWN} more"] if len(own) > _SHOWN else []
            labels[run.number] = ", ".join([model, *named, *more])
    return labels


def _usual(values: Sequence[str]) -> str | None:
    """The value that more of them have than any other."""
    (first, most), *others = Counter(values).most_common()
    return None if others and others[0][1] == most else first


def list_of_runs(runs: Sequence[Run]) -> Table:
    """Every run on a line of its own, newest first."""
    metrics = in_order(metric for run in runs for metric in run.record["result"]["test_result"])
    lines = []
    for run in sorted(runs, key=lambda run: (run.record.get("finished", ""), run.number), reverse=True):
        record = run.record
        test = [_mean(metric, [run]) for metric in metrics]
        certificate = run.certificate
        rows = certificate.get("test", {}).get("rows_evaluated")
        about = (record["dataset"], record["seed"], record.get("finished", "-")[:16].replace("T", " "))
        history = {True: "left out", False: "kept", None: "-"}[certificate.get("history_masked")]
        where = ("-" if rows is None else f"{rows:,}", history, certificate.get("run", "-"))
        texts = [Cell(text=str(text)) for text in about], [Cell(text=str(text)) for text in where]
        lines.append(Line(run.name, (*texts[0], *test, *texts[1])))
    head = ("Dataset", "Seed", "Finished (UTC)", *map(metric_label, metrics), "Test rows", "History", "Certificate")
    caption = "All runs, newest first; the number leads to the run, its certificate and its cost. Test metrics."
    return Table("runs", caption, (head,), (("", tuple(lines)),))
