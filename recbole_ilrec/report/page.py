"""A page of results as one HTML file: nothing is loaded, nothing comes from elsewhere. Knows plain values only.

What is missing is said where it would stand. All text of the data is escaped (:mod:`recbole_ilrec.report.markup`), and
a content security policy lets the page load nothing and run no script but its own.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_ilrec.errors import UserError
from recbole_ilrec.report.accounts import costs_table, counts_table, policies_table, stages_table
from recbole_ilrec.report.curves import run_picture
from recbole_ilrec.report.figure import Picture, svg
from recbole_ilrec.report.markup import Markup, facts, table_element, tag
from recbole_ilrec.report.page_style import SCRIPT, STYLE
from recbole_ilrec.report.runs import Run, conditions, list_of_runs, results_tables
from recbole_ilrec.report.table import Table

GENERATOR = "recbole_ilrec report"
"""Named in every page's head, by which one is known again."""


@dataclass(frozen=True)
class Content:
    """All that a page tells.

    Attributes:
        asked: tables that were asked for, each with its picture where it has one.
        missing: sentences on what could not be shown.
        sources: where the records were read.
    """

    title: str
    made: str
    runs: Sequence[Run]
    asked: Sequence[tuple[Table, Picture | None]] = ()
    missing: Sequence[str] = ()
    sources: Sequence[str] = ()
    version: str = field(default="")


def is_page(text: str) -> bool:
    """Whether ``text``, the beginning of a file, is that of such a page."""
    return f'content="{GENERATOR}"' in text


def page(content: Content) -> str:
    """The whole file."""
    sections = [
        ("results", "Results", _results(content)),
        ("asked", "Tables and figures", _asked(content)),
        ("runs", "Runs", _runs(content)),
        ("costs", "Costs", [table_element(costs_table(content.runs), links=_links(content), sortable=True)]),
        ("data", "Data", _data(content)),
        ("versions", "Versions", [_versions(content)]),
        ("missing", "What is not here", _missing(content)),
    ]
    shown = [(name, title, parts) for name, title, parts in sections if parts and (content.runs or name == "missing")]
    contents = [tag("li", tag("a", title, href=f"#{name}"), _contents_of(name, content)) for name, title, _ in shown]
    main = [tag("section", tag("h2", title), *parts, id=name) for name, title, parts in shown]
    body = tag(
        "div",
        _header(content),
        tag("div", tag("nav", tag("ul", *contents), aria_label="Contents"), tag("main", *main), class_="columns"),
        class_="page",
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{_head(content.title)}\n{tag("body", body, _script())}\n</html>\n'


def _head(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="generator", content=GENERATOR),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )


def _script() -> Markup:
    return tag("script", Markup(SCRIPT))


def _header(content: Content) -> Markup:
    count = len(content.runs)
    names = sorted({run.record["dataset"] for run in content.runs})
    said = f"{count} run{'' if count == 1 else 's'}" + (f" on {', '.join(names)}" if names else "")
    made = f"Made {content.made} by recbole_ilrec {content.version} from {', '.join(content.sources) or 'no file'}."
    return tag("header", tag("h1", content.title), tag("p", f"{said}. {made}", class_="soft"))


def _links(content: Content) -> dict[str, str]:
    return {run.name: f"#run-{run.number}" for run in content.runs}


def _contents_of(name: str, content: Content) -> Markup | None:
    """Second level of the contents list."""
    if name == "results":
        links = [(table.name, table.name.removeprefix("results-")) for table in results_tables(content.runs)]
    elif name == "asked":
        links = [(f"asked-{n}", table.name) for n, (table, _) in enumerate(content.asked)]
    else:
        return None
    return tag("ul", *(tag("li", tag("a", text, href=f"#{anchor}")) for anchor, text in links))


# ---- sections


def _results(content: Content) -> list[Markup]:
    return [tag("div", table_element(table), id=table.name) for table in results_tables(content.runs)]


def _asked(content: Content) -> list[Markup]:
    """What ``recbole-ilrec table`` and ``figure`` were asked for, from the runs there are now."""
    parts = []
    for number, (table, picture) in enumerate(content.asked):
        shown = [tag("h3", table.name), table_element(table), _figure(picture, f"asked-{number}") if picture else None]
        parts.append(tag("div", *shown, id=f"asked-{number}"))
    return parts


def _figure(picture: Picture, name: str) -> Markup:
    """A picture with its caption below, or why there is none."""
    try:
        drawn = Markup(svg(Picture(name, picture.kind, "", picture.x_label, picture.panels)))
    except UserError as error:
        return tag("p", f"Not drawn: {error}", class_="note warn")
    label = ", ".join(filter(None, (panel.title or panel.y_label for panel in picture.panels)))
    image = tag("div", drawn, class_="drawn", role="img", aria_label=f"Curves or bars: {label}")
    return tag("figure", image, tag("figcaption", picture.caption))


def _runs(content: Content) -> list[Markup]:
    table = table_element(list_of_runs(content.runs), links=_links(content), sortable=True)
    newest = sorted(content.runs, key=lambda run: (run.record.get("finished", ""), run.number), reverse=True)
    return [table, *map(_run, newest)]


def _run(run: Run) -> Markup:
    record = run.record
    certificate = run.certificate
    about = {
        "Conditions": conditions(record),
        "Settings and data": certificate.get("run", "not in the record"),
        "Code": f"{certificate.get('code', 'no key')}, commit {record.get('commit') or 'unknown'}",
        "Weights": certificate.get("weights") or "not in the record",
        "Ties": certificate.get("tie_rule", "not in the record"),
        "Lists": _lists(certificate.get("lists")),
        "Finished": record.get("finished", "not in the record"),
        **({"Note": record["note"]} if record.get("note") else {}),
    }
    numbers, stages = policies_table(run), stages_table(record)
    curves = run_picture(run)
    drawn = _figure(curves, f"run-{run.number}") if curves else tag("p", "No losses were kept.", class_="note")
    every = {"of this package": record.get("settings"), "of RecBole": record.get("config")}
    settings = json.dumps({name: own for name, own in every.items() if own}, indent=1, sort_keys=True)
    return tag(
        "article",
        tag("h3", f"{run.name} on {record['dataset']}, seed {record['seed']}"),
        tag("pre", record.get("command", "")),
        facts(about),
        table_element(numbers) if numbers else tag("p", "No certificate in the record.", class_="note"),
        drawn,
        table_element(stages) if stages else tag("p", "No cost of stages in the record.", class_="note"),
        tag("details", tag("summary", "All settings"), tag("pre", settings)),
        id=f"run-{run.number}",
    )


def _lists(lists: Mapping[str, Any] | None) -> str:
    if not lists:
        return "not in the record"
    parts = (f"{name} {value:.4g}" for name, value in lists.items() if isinstance(value, int | float))
    return "; ".join(parts) + " (valid, distinct, exact: shares of the places and users)"


def _data(content: Content) -> list[Markup]:
    table = counts_table(content.runs)
    parts = [table_element(table)] if table else [tag("p", "No record holds the counts of its dataset.", class_="note")]
    found = {}
    for run in content.runs:
        if run.record.get("findings"):
            found[run.record["dataset"]] = run  # the newest run says how its data were found
    for dataset, run in found.items():
        findings = run.record["findings"]
        told = [finding for finding in findings if finding["level"] != "ok"]
        fine = ", ".join(dict.fromkeys(finding["check"] for finding in findings if finding["level"] == "ok"))
        parts.append(tag("h3", f"Checks of {dataset} (run {run.name})"))
        parts.append(tag("ul", *(_finding(finding) for finding in told)))
        parts.append(tag("p", f"Nothing to say: {fine or 'none'}.", class_="soft"))
    if not found:
        parts.append(tag("p", "No record holds findings: recbole-ilrec doctor shows them.", class_="note"))
    return parts


def _finding(finding: Mapping[str, Any]) -> Markup:
    attention = "warn" if finding["level"] == "attention" else None
    head = tag("strong", f"{finding['group']}, {finding['check']}: {finding['level']}", class_=attention)
    return tag("li", head, f". {finding['text']}")


def _versions(content: Content) -> Markup:
    """Runs made by the same versions on the same kind of machine, together."""
    same: dict[str, list[Run]] = {}
    for run in content.runs:
        record = run.record
        versions = ", ".join(f"{name} {version or '-'}" for name, version in (record.get("versions") or {}).items())
        machine = f"{record.get('processor', '-')}, {record.get('cores', '-')} cores, {record.get('device', '-')}"
        same.setdefault(f"{versions}; Python {record.get('python', '-')}; {machine}", []).append(run)
    pairs = {f"Runs {', '.join(str(run.number) for run in runs)}": text for text, runs in same.items()}
    return facts(pairs)


def _missing(content: Content) -> list[Markup]:
    said = list(content.missing)
    bare = [str(run.number) for run in content.runs if not run.certificate]
    still = [str(run.number) for run in content.runs if not run.history]
    said += [f"Runs {', '.join(bare)}: no certificate in the record."] if bare else []
    said += [f"Runs {', '.join(still)}: no history of losses beside the record."] if still else []
    if not said:
        return [tag("p", "Nothing that was looked for is missing.")]
    return [tag("ul", *(tag("li", text) for text in said))]
