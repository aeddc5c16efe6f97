"""A table of numbers with its marks, as Markdown, LaTeX (booktabs) and CSV. Knows plain values only."""

import csv
import io
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

MARK = "†"


@dataclass(frozen=True)
class Cell:
    """One number.

    Attributes:
        values: one a seed; empty when there is none.
        mean: of the values; ``None`` when there is none.
        deviation: over seeds; ``None`` for one seed.
        text: shown in place of the number, e.g. ``failed``.
        digits: after the point.
        lower: whether less is better.
        p: adjusted p-value against the best other line, where it was tested.
        best, second, significant: marks.
    """

    values: tuple[float, ...] = ()
    mean: float | None = None
    deviation: float | None = None
    text: str = ""
    digits: int = 4
    lower: bool = False
    p: float | None = None
    best: bool = False
    second: bool = False
    significant: bool = False

    def shown(self, plus_minus: str = " ± ") -> str:
        """The number, or what stands in its place, without marks."""
        if self.mean is None:
            return self.text or "-"
        if self.text:
            return self.text
        spread = "" if self.deviation is None else f"{plus_minus}{self.deviation:.{self.digits}f}"
        return f"{self.mean:,.{self.digits}f}{spread}"


@dataclass(frozen=True)
class Line:
    """A line: its label and one cell a column."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Header, lines in blocks, what is said above and below.

    Attributes:
        head: header rows from the outermost inwards, each with one label a column.
        blocks: ``(label, lines)``.
    """

    name: str
    caption: str
    head: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, tuple[Line, ...]], ...]
    notes: tuple[str, ...] = field(default=())


def marked(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with the best and the second-best number of each column marked; equal ones share it, NaN has none."""
    if len(lines) < 2:
        return tuple(lines)
    columns = []
    for cells in zip(*(line.cells for line in lines), strict=True):
        means = [None if cell.mean is None or math.isnan(cell.mean) else cell.mean for cell in cells]
        shown = [None if mean is None else round(mean, c.digits) for mean, c in zip(means, cells, strict=True)]
        order = sorted({value for value in shown if value is not None}, reverse=not cells[0].lower)
        best, second = (order + [None, None])[:2] if len(order) > 1 else (None, None)
        columns.append(
            [
                replace(cell, best=v is not None and v == best, second=v is not None and v == second)
                for cell, v in zip(cells, shown, strict=True)
            ]
        )
    by_line = zip(*columns, strict=True)
    return tuple(replace(line, cells=tuple(cells)) for line, cells in zip(lines, by_line, strict=True))


def markdown(table: Table) -> str:
    """A pipe table under its caption; header rows are joined, since Markdown has one."""
    head = ["", *(" ".join(labels) for labels in zip(*table.head, strict=True))]
    rows = [head, ["---"] * len(head)]
    for label, lines in table.blocks:
        if label:
            rows.append([f"*{label}*", *[""] * (len(head) - 1)])
        rows += [[line.label, *map(_markdown_cell, line.cells)] for line in lines]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    notes = "".join(f"\n\n{note}" for note in table.notes)
    return f"**{table.caption}**\n\n{body}{notes}\n"


def _markdown_cell(cell: Cell) -> str:
    text = cell.shown()
    text = f"**{text}**" if cell.best else f"<u>{text}</u>" if cell.second else text
    return text + (MARK if cell.significant else "")


def latex(table: Table) -> str:
    """A ``table`` environment for the package booktabs."""
    columns = len(table.head[0])
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape(' '.join([table.caption, *table.notes]))}}}"]
    lines += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{l{'c' * columns}}}", r"\toprule"]
    for depth, labels in enumerate(table.head):
        groups = spans(labels) if depth + 1 < len(table.head) else [(label, 1) for label in labels]
        lines.append(" & ".join(["", *(_spanning(label, width) for label, width in groups)]) + r" \\")
        lines += [_rules(groups)] if any(width > 1 for _, width in groups) else []
    for label, rows in table.blocks:
        lines.append(r"\midrule")
        if label:
            lines.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\emph{{{_escape(label)}}}}} \\")
        lines += [" & ".join([_escape(row.label), *map(_latex_cell, row.cells)]) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def spans(labels: Sequence[str]) -> list[tuple[str, int]]:
    """Neighbouring equal labels as one, with their number: header cells over several columns."""
    found: list[tuple[str, int]] = []
    for label in labels:
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1] + 1)
        else:
            found.append((label, 1))
    return found


def _spanning(label: str, width: int) -> str:
    return _escape(label) if width == 1 else rf"\multicolumn{{{width}}}{{c}}{{{_escape(label)}}}"


def _rules(groups: Sequence[tuple[str, int]]) -> str:
    rules, first = [], 2
    for _, width in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return " ".join(rules)


def _latex_cell(cell: Cell) -> str:
    text = _escape(cell.shown("~±~"))
    text = rf"\textbf{{{text}}}" if cell.best else rf"\underline{{{text}}}" if cell.second else text
    return text + (r"$^{\dagger}$" if cell.significant else "")


def _greek(letter: str) -> str:
    """Its command in mathematics; the other capitals are those of the Latin alphabet."""
    name = unicodedata.name(letter).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    return rf"$\{name.capitalize() if letter.isupper() else name.lower()}$"


_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "|": r"\textbar{}", "[": "{[}", "~±~": r"~$\pm$~",
    "±": r"$\pm$", "†": r"$\dagger$", "<": r"$<$", ">": r"$>$", "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$",
    "≈": r"$\approx$", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "→": r"$\to$", "∞": r"$\infty$", "µ": r"$\mu$",
    **{letter: _greek(letter) for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"},
}  # fmt: skip


def _escape(text: str) -> str:
    text = text.replace("~±~", "\0")
    return "".join(_ESCAPES["~±~"] if c == "\0" else _ESCAPES.get(c, c) for c in text)


def to_csv(table: Table) -> str:
    """One line a cell: where it stands, mean, deviation, the value of each seed, marks and p-value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    depth = [f"header_{n}" for n in range(1, len(table.head) + 1)]
    numbers = ["mean", "deviation", "values", "best", "second", "p", "significant", "note"]
    writer.writerow(["block", "row", *depth, *numbers])
    for label, lines in table.blocks:
        for line in lines:
            for cell, labels in zip(line.cells, zip(*table.head, strict=True), strict=True):
                values = [_number(cell.mean), _number(cell.deviation), " ".join(map(_number, cell.values))]
                marks = [int(cell.best), int(cell.second), _number(cell.p), int(cell.significant), cell.text]
                writer.writerow([label, line.label, *labels, *values, *marks])
    return stream.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": to_csv}
"""Suffix of a file -> what writes it."""
