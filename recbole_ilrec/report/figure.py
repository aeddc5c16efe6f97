"""Figures of the same numbers as the tables: lines or bars with error bars, readable in grey. Knows plain values only.

Series differ by lightness and by marker, dash or hatch, never by hue alone.
"""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError

_LINES = ("#000000", "#a87400", "#8a8a8a", "#1f4e8c", "#c9a227", "#555555", "#6f9fd8", "#b8b8b8")
_FILLS = ("#5b7aa8", "#e8c468", "#b5b5b5", "#f4ecd0", "#8fb3de", "#c79a3a", "#dddddd", "#7d7d7d")
_MARKERS, _DASHES = "os^Dv<>P", ("-", "--", ":", "-.")
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "recbole_ilrec",
    "text.parse_math": False,  # a "$" in a title is a "$"
}
_MARKED = 12
"""Points of a curve that get a marker, about."""
SUFFIXES = ("png", "svg")


@dataclass(frozen=True)
class Series:
    """One line, or the bars of one colour.

    Attributes:
        x: places on the axis, numbers or names.
        mean: heights; NaN where there is none.
        deviation: half-lengths of the error bars, 0 for none.
    """

    label: str
    x: tuple[float | str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Picture:
    """A figure: panels side by side with one legend.

    Attributes:
        kind: ``lines``, ``curves`` (the same, over numbers) or ``bars``.
        caption: said below the panels, so that the picture cannot be parted from it.
        from_zero: begin the heights at 0, where what is shown is a size.
    """

    name: str
    kind: str
    caption: str
    x_label: str
    panels: tuple[Panel, ...]
    from_zero: bool = False


def draw(picture: Picture, folder: Path) -> list[Path]:
    """Write ``<folder>/<name>.png`` and ``.svg``, each whole or not at all; the same picture gives the same bytes.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    with _style():
        figure, columns = _figure(picture)
        figure.text(0.01, -0.01, _wrapped(picture.caption, 78 * columns), fontsize=6.5, va="top")
        return [_save(figure, folder / f"{picture.name}.{suffix}") for suffix in SUFFIXES]


def points(picture: Picture) -> str:
    """What is drawn as CSV, a line a point: panel, what its heights are, series, place, mean, deviation."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["panel", "of", "series", "x", "mean", "deviation"])
    for panel in picture.panels:
        for series in panel.series:
            for x, *heights in zip(series.x, series.mean, series.deviation, strict=True):
                writer.writerow([panel.title, panel.y_label, series.label, x, *(f"{value:.6g}" for value in heights)])
    return stream.getvalue()


def svg(picture: Picture) -> str:
    """The picture as an ``<svg>`` element for a page, without its caption: text is text, and colours follow the page.

    Each colour stands as a CSS variable, ``var(--c-1f4e8c, #1f4e8c)``, which a page may set anew for dark paper; black
    is ``currentColor``. Ids are of this picture alone, as long as names of pictures differ.

    Raises:
        UserError: matplotlib is not installed.
    """
    with _style(**{"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        figure, _ = _figure(picture)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    kept = {name for pair in used for name in pair if name}
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in kept else "", text)
    text = re.sub(r"((?:fill|stroke): )(?:#000000|#222222)", r"\1currentColor", text)
    for colour in {*_LINES, *_FILLS} - {"#000000"}:
        text = re.sub(rf"((?:fill|stroke): ){colour}", rf"\1var(--c-{colour[1:]}, {colour})", text)
    return text


def _style(**more: Any) -> Any:
    try:
        from matplotlib import rc_context
    except ImportError:
        raise UserError("Figures need matplotlib: pip install 'recbole_ilrec[page]'.") from None
    return rc_context(_STYLE | more)


def _figure(picture: Picture) -> tuple[Any, int]:
    """The figure without its caption, and how many panels stand side by side."""
    from matplotlib.figure import Figure

    columns = min(len(picture.panels), 2 if len(picture.panels) < 5 else 3)
    rows = -(-len(picture.panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.7 * rows + 0.9), layout="constrained", dpi=160)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    names = {tuple(series.label for series in panel.series) for panel in picture.panels}
    for axes, panel in zip(grid, picture.panels, strict=False):
        (_bars if picture.kind == "bars" else _lines)(axes, panel)
        axes.set(title=panel.title, ylabel=panel.y_label, xlabel=picture.x_label)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
        if len(names) > 1 and len(panel.series) > 1:
            axes.legend(
                frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=4, columnspacing=1
            )
            axes.set_title(panel.title, pad=18)
        if picture.from_zero:
            axes.set_ylim(0, 1.06 * axes.dataLim.y1)
        if picture.kind == "curves" and axes.get_xscale() == "linear":
            axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(picture.panels) :]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    if len(names) == 1 and len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False)
    return figure, columns


def _lines(axes: Any, panel: Panel) -> None:
    place = {x: at for at, x in enumerate(dict.fromkeys(x for series in panel.series for x in series.x))}
    named = any(isinstance(x, str) for x in place)
    if named:  # names have no distances
        axes.set_xticks(list(place.values()), list(map(str, place)))
    for n, series in enumerate(panel.series):
        axes.errorbar(
            [place[x] for x in series.x] if named else series.x,
            series.mean,
            yerr=series.deviation if any(series.deviation) else None,
            label=series.label,
            color=_LINES[n % len(_LINES)],
            marker=_MARKERS[n % len(_MARKERS)],
            linestyle=_DASHES[n % len(_DASHES)],
            linewidth=1.4,
            markersize=4,
            markevery=-(-len(series.x) // _MARKED),
            capsize=2.5,
        )


def _bars(axes: Any, panel: Panel) -> None:
    width = 0.8 / len(panel.series)
    for n, series in enumerate(panel.series):
        axes.bar(
            [place + (n - (len(panel.series) - 1) / 2) * width for place in range(len(series.x))],
            series.mean,
            width,
            yerr=series.deviation if any(series.deviation) else None,
            label=series.label,
            color=_FILLS[n % len(_FILLS)],
            hatch=_HATCHES[n % len(_HATCHES)],
            edgecolor="#222222",
            linewidth=0.5,
            capsize=2.5,
            error_kw={"ecolor": "black", "elinewidth": 1.2},
        )
    names = [str(name) for name in panel.series[0].x]
    longest = max(len(line) for name in names for line in name.split("\n"))
    axes.set_xticks(range(len(names)), names, fontsize=9 if len(names) * longest < 36 else 6.5)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    metadata: Mapping[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    try:
        figure.savefig(temporary, metadata=metadata, bbox_inches="tight")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def layer_names(count: int) -> Sequence[str]:
    """Names of the layers from the lowest to the last: ``L-2``, ``L-1``, ``L``."""
    return [f"L-{count - 1 - n}" if n < count - 1 else "L" for n in range(count)]
