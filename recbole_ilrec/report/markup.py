"""HTML by construction: what is not made by :func:`tag` is text, and text is escaped. Knows plain values only."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from recbole_ilrec.report.table import MARK, Cell, Line, Table, spans

_EMPTY = frozenset(("meta", "br", "hr"))


class Markup(str):
    """HTML that is already escaped."""


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: e.g. ``"p"``.
        content: :class:`Markup` as it is, any other value as text; ``None`` is left out.
        attributes: by name, ``class_`` for ``class`` and ``_`` for ``-``; ``None`` or ``False`` is left out.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    inside = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in named.items()
        if value is not None and value is not False
    )
    end = "" if name in _EMPTY else f"{joined(content)}</{name}>"
    return Markup(f"<{name}{inside}>{end}")


def joined(content: Iterable[Any]) -> Markup:
    """Elements and texts after each other."""
    parts = (part if isinstance(part, Markup) else escape(str(part)) for part in content if part is not None)
    return Markup("".join(parts))


def facts(pairs: Mapping[str, Any]) -> Markup:
    """Names and what they are, as a list of definitions."""
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items())
    return tag("dl", *rows)


def table_element(table: Table, *, links: Mapping[str, str] | None = None, sortable: bool = False) -> Markup:
    """A table in a frame that scrolls sideways, its caption above and its notes below, where they stay in sight.

    Args:
        table: its cells, marked as in Markdown.
        links: label of a line -> where it leads.
        sortable: mark it for the page's script.
    """
    body = [_block(label, lines, len(table.head[0]), links or {}) for label, lines in table.blocks]
    inner = tag("table", _head(table), *body, data_sortable=sortable)
    frame = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=table.caption)
    notes = (tag("p", note, class_="note") for note in table.notes)
    return tag("figure", tag("figcaption", table.caption), frame, *notes)


def _head(table: Table) -> Markup:
    rows = []
    lines = [line for _, block in table.blocks for line in block]
    numbers = [any(_is_number(line.cells[n]) for line in lines) for n in range(len(table.head[0]))]
    for depth, labels in enumerate(table.head):
        last = depth + 1 == len(table.head)
        if last:
            right = (("number" if number else None) for number in numbers)
            cells = [tag("th", label, scope="col", class_=name) for label, name in zip(labels, right, strict=True)]
        else:
            cells = [tag("th", label, scope="colgroup", colspan=width) for label, width in spans(labels)]
        rows.append(tag("tr", tag("td") if depth else tag("td", class_="corner"), *cells))
    return tag("thead", *rows)


def _block(label: str, lines: Iterable[Line], columns: int, links: Mapping[str, str]) -> Markup:
    head = tag("tr", tag("th", tag("span", label), colspan=columns + 1, scope="rowgroup"), class_="block")
    rows = [tag("tr", _label(line.label, links), *map(_cell, line.cells)) for line in lines]
    return tag("tbody", head if label else None, *rows)


def _label(label: str, links: Mapping[str, str]) -> Markup:
    return tag("th", tag("a", label, href=links[label]) if label in links else label, scope="row")


def _cell(cell: Cell) -> Markup:
    shown: Any = cell.shown()
    shown = tag("strong", shown) if cell.best else tag("u", shown) if cell.second else shown
    return tag("td", shown, MARK if cell.significant else None, class_="number" if _is_number(cell) else None)


def _is_number(cell: Cell) -> bool:
    return cell.mean is not None
