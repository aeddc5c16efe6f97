"""A table or figure as a grid of runs: read from a YAML plan, narrowed by options, expanded into runs.

Knows plain values only, and which names are the same setting; what a setting means and where runs are made is none of
its business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from recbole_ilrec.errors import UserError, did_you_mean, unknown_name
from recbole_ilrec.settings import FLAT_KEYS, flat_sections

_KEYS = frozenset(
    ("title", "kind", "metrics", "datasets", "backbones", "seeds", "settings", "columns", "blocks", "figure", "paper")
)
_BLOCK_KEYS = frozenset(("label", "rows", "ours", "plain"))
_LISTS, _MAPPINGS = ("metrics", "datasets", "backbones", "seeds", "blocks"), ("settings", "columns", "figure", "paper")
_FIGURES = ("lines", "bars", "curves")


@dataclass(frozen=True)
class Row:
    """A line of a table: ``settings`` hold its ``model``, a name or a mapping from paradigm to name."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Lines that are compared with each other: the best and the second of them are marked, unless ``plain``.

    Attributes:
        ours: label of the line that is tested against the best of the others; ``""`` for none.
    """

    label: str
    rows: tuple[Row, ...]
    ours: str = ""
    plain: bool = False


@dataclass(frozen=True)
class Column:
    """What stands side by side: ``labels`` from the outermost header inwards, ``axis`` the plan's own one."""

    labels: tuple[str, ...]
    axis: str
    dataset: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of the ordinary command line."""

    model: str
    dataset: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        options = (f"--{key}={value}" for key, value in self.settings.items())
        return " ".join([f"--model={self.model}", f"--dataset={self.dataset}", *options])

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True)
class Plan:
    """A whole plan; see :func:`read_plan`.

    Attributes:
        kind: ``runs``, or ``datasets`` for a table of the data themselves.
        backbones: names that stand side by side, none for the backbone of the settings.
        figure: how to draw it: ``kind``, ``x`` (label of the axis); empty for a table only.
        paper: label of a line -> the numbers printed in the paper, in the order of columns and metrics.
    """

    name: str
    title: str
    kind: str
    metrics: tuple[str, ...]
    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    axis: Mapping[str, Mapping[str, Any]]
    blocks: tuple[Block, ...]
    figure: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, Sequence[float | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a seed that stands twice: it would be counted as two.

        Raises:
            UserError: naming it.
        """
        twice = next((seed for n, seed in enumerate(self.seeds) if seed in self.seeds[:n]), None)
        if twice is not None:
            raise UserError(f"table plan '{self.name}': seed {twice} stands twice: give each seed once.")

    def columns(self) -> list[Column]:
        """Every combination of the plan's columns, backbones and datasets, in this order."""
        found = []
        for label, backbone, dataset in product(self.axis or {"": {}}, self.backbones or ("",), self.datasets):
            settings = {**self.axis.get(label, {}), **({"backbone": backbone} if backbone else {})}
            labels = tuple(name for name in (label, backbone, dataset) if name)
            found.append(Column(labels, label, dataset, settings))
        return found

    def rows(self) -> Iterator[tuple[Block, Row]]:
        """All lines with their blocks."""
        yield from ((block, row) for block in self.blocks for row in block.rows)

    def run(self, row: Row, column: Column, seed: int, given: Mapping[str, Any]) -> PlannedRun:
        """The run behind a cell; later wins: the plan's settings, the column's, the line's, the ones ``given``.

        Raises:
            UserError: the line names no model for the paradigm.
        """
        settings = {**self.settings, **column.settings, **row.settings, **given, "seed": seed}
        model = settings.pop("model")
        if isinstance(model, Mapping):
            paradigm = settings.get("paradigm", next(iter(model)))
            if paradigm not in model:
                raise UserError(
                    f"paradigm={paradigm} is not allowed: line '{row.label}' of table '{self.name}' names models for "
                    f"{', '.join(map(str, model))}."
                )
            model = model[paradigm]
        return PlannedRun(str(model), column.dataset, settings)

    def refuse_overwritten(self, given: Mapping[str, Any]) -> None:
        """Refuse options that would stand in place of what lines and columns differ in.

        Raises:
            UserError: naming the first of them.
        """
        options = {_same(key): (key, value) for key, value in flat_sections(given).items()}
        parts = [(f"column '{label}'", settings) for label, settings in self.axis.items()]
        parts += [(f"line '{row.label}'", row.settings) for _, row in self.rows()]
        for where, settings in parts:
            for name, value in flat_sections(settings).items():
                key, wanted = options.get(_same(name), (name, value))
                if wanted != value:
                    raise UserError(
                        f"--{key}={wanted} contradicts {where} of table '{self.name}', which sets {name}={value}: "
                        "leave it out, or leave out that part with --models or --columns."
                    )


def _same(key: str) -> str:
    """One name for the names of a setting."""
    return FLAT_KEYS.get(key, key)


def read_plan(name: str, content: Mapping[str, Any]) -> Plan:
    """A plan from the mapping in its YAML file.

    Raises:
        UserError: a key that is unknown, missing or of the wrong kind, with the name of the plan.
    """
    where = f"table plan '{name}'"
    content = {key: value for key, value in content.items() if value is not None}
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), _KEYS)}See docs/tables.md.")
    _check_kinds(where, content)
    kind = content.get("kind", "runs")
    if kind not in ("runs", "datasets"):
        raise UserError(f"{where}: kind={kind!r} is not allowed: use runs or datasets.")
    for key in ("title", "datasets", *(("metrics", "blocks") if kind == "runs" else ())):
        if not content.get(key):
            raise UserError(f"{where}: '{key}' is missing. See docs/tables.md.")
    figure = content.get("figure", {})
    if figure and figure.get("kind") not in _FIGURES:
        raise UserError(f"{where}: figure.kind={figure.get('kind')!r} is not allowed: use {', '.join(_FIGURES)}.")
    plan = Plan(
        name=name,
        title=str(content["title"]),
        kind=kind,
        metrics=tuple(map(str, content.get("metrics", ()))),
        datasets=tuple(map(str, content["datasets"])),
        backbones=tuple(map(str, content.get("backbones", ()))),
        seeds=tuple(content.get("seeds") or (2020,)),
        settings=content.get("settings", {}),
        axis={str(label): settings or {} for label, settings in content.get("columns", {}).items()},
        blocks=tuple(_block(where, block) for block in content.get("blocks", ())),
        figure={str(key): "" if value is None else str(value) for key, value in figure.items()},
        paper={str(label): values for label, values in content.get("paper", {}).items()},
    )
    width = len(plan.columns()) * len(plan.metrics)
    for label, numbers in plan.paper.items():
        if kind == "runs" and len(numbers) != width:
            raise UserError(f"{where}: paper, '{label}' has {len(numbers)} numbers: give {width}, one a cell.")
    return plan


def _check_kinds(where: str, content: Mapping[str, Any]) -> None:
    """Refuse what is no list or mapping where one is needed, before anything is made of it."""
    for key in _LISTS:
        if not isinstance(content.get(key, []), list):
            raise UserError(f"{where}: {key}={content[key]!r} is not allowed: give a list, e.g. {key}: [..].")
    for key in _MAPPINGS:
        if not isinstance(content.get(key, {}), Mapping):
            raise UserError(f"{where}: {key}={content[key]!r} is not allowed: give a mapping. See docs/tables.md.")
    parts = [
        *(
            ("column", label, settings, Mapping | None, "a mapping")
            for label, settings in content.get("columns", {}).items()
        ),
        *(("paper", label, numbers, list, "a list of numbers") for label, numbers in content.get("paper", {}).items()),
        *(("seed", n, seed, int, "a whole number") for n, seed in enumerate(content.get("seeds", []), 1)),
        *(("block", n, block, Mapping, "a mapping") for n, block in enumerate(content.get("blocks", []), 1)),
    ]
    for what, label, value, kind, wanted in parts:
        if not isinstance(value, kind):
            raise UserError(f"{where}: {what} {label} is {value!r}: give {wanted}. See docs/tables.md.")


def _block(where: str, content: Mapping[str, Any]) -> Block:
    for key in content:
        if key not in _BLOCK_KEYS:
            raise UserError(f"{where}: unknown key '{key}' of a block. {did_you_mean(str(key), _BLOCK_KEYS)}")
    given = content.get("rows")
    if not isinstance(given, Mapping) or not given or not all(map(_names_model, given.values())):
        raise UserError(f"{where}: a block needs 'rows', each with its 'model'. See docs/tables.md.")
    rows = tuple(Row(str(label), settings) for label, settings in given.items())
    ours = str(content.get("ours", ""))
    if ours and ours not in [row.label for row in rows]:
        raise UserError(f"{where}: ours='{ours}' is no row of its block. See docs/tables.md.")
    return Block(str(content.get("label", "")), rows, ours, bool(content.get("plain", False)))


def _names_model(settings: Any) -> bool:
    model = settings.get("model") if isinstance(settings, Mapping) else None
    return bool(model) and isinstance(model, str | Mapping)


def narrowed(
    plan: Plan,
    *,
    datasets: Sequence[str] = (),
    backbones: Sequence[str] = (),
    seeds: Sequence[int] = (),
    models: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Plan:
    """The plan with other datasets, backbones or seeds, and only some of its lines and columns.

    Args:
        plan: the whole one.
        datasets: in place of the plan's.
        backbones: in place of the plan's.
        seeds: in place of the plan's.
        models: labels of lines, in any case, or names of models for all lines of one; a label goes before a name.
        columns: labels of the plan's columns, in any case.

    Raises:
        UserError: no line or column of that name.
    """
    if columns and not plan.axis:
        raise UserError(f"Table '{plan.name}' has no columns of its own to choose from: choose lines with --models.")
    axis = {label: plan.axis[label] for label in _chosen("column", list(plan.axis), columns)}
    labels = {row.label.lower() for _, row in plan.rows()}
    wanted = {name.lower() for name in models}
    known = {name: row.label for _, row in plan.rows() for name in _names(row)}
    for name in models:
        if name.lower() not in (k.lower() for k in known):
            raise unknown_name(f"model of table '{plan.name}':", name, known)
    blocks = []
    for block in plan.blocks:
        rows = tuple(
            row
            for row in block.rows
            if not wanted or row.label.lower() in wanted or (wanted - labels) & {n.lower() for n in _names(row)}
        )
        if rows:
            ours = block.ours if block.ours in [row.label for row in rows] else ""
            blocks.append(replace(block, rows=rows, ours=ours))
    return replace(
        plan,
        datasets=tuple(datasets) or plan.datasets,
        backbones=tuple(backbones) or plan.backbones,
        seeds=tuple(seeds) or plan.seeds,
        axis=axis,
        blocks=tuple(blocks),
    )


def _names(row: Row) -> set[str]:
    model = row.settings["model"]
    return {row.label, *(map(str, model.values()) if isinstance(model, Mapping) else (str(model),))}


def _chosen(what: str, known: list[str], wanted: Sequence[str]) -> list[str]:
    by_lower = {label.lower(): label for label in known}
    for name in wanted:
        if name.lower() not in by_lower:
            raise unknown_name(what, name, known)
    return [by_lower[name.lower()] for name in wanted] if wanted else known
