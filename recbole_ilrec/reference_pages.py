"""The generated pages of the documentation: ``docs/settings.md`` and ``docs/choices.md``.

Settings are described where they are declared and readings of the paper where they are implemented; these pages only
collect both. ``python -m recbole_ilrec.reference_pages docs`` writes them anew; a test compares them with the sources.
Knows the typed settings, the presets' keys and the text of docstrings; imports neither torch nor RecBole.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_ilrec.configuration.presets import preset_names, properties_folder, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.settings import FLAT_KEYS, SECTIONS, Section, Settings

COMMAND = "python -m recbole_ilrec.reference_pages docs"
MARK = "Choice:"
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_ENTRY = re.compile(r"\w+: ")
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}

SETTINGS_HEAD = f"""# Settings

This page is generated from `recbole_ilrec/settings/` by `{COMMAND}`; do not edit it.

Every setting can be given on the command line (`--alpha=0.8`, `--decode.renormalise=true`), in a YAML file named by
`--config_files`, or in `config_dict` of `run_recbole_ilrec(...)`; a section may also be written as a mapping
(`decode: {{renormalise: true}}`). Later wins: RecBole's YAML files, `properties/overall.yaml`, `properties/model`,
`properties/dataset`; for language models `properties/pretrained.yaml` (backbones with a path), `properties/backbone`,
`properties/paradigm` and `properties/task`; `properties/tuned`; your files in their order; `config_dict` or the command
line. `--print_config` shows the value of each setting and where it came from. A name that nothing reads is refused;
one given on the command line that only other models read is warned of.

*Short* is the flat name, where there is one; both names work. *Preset* names the files in `properties/` that set the
value in place of the default, for that model, dataset, backbone, paradigm, task or pair of them. `~` is an empty value.
"""

CHOICES_HEAD = f"""# Choices

This page is generated from the `{MARK}` notes in the docstrings by `{COMMAND}`; do not edit it.

Each note stands where the paper, or the code it builds on, is silent or contradicts itself. It says what the text says,
what we do and which setting changes it. A setting named without its section, such as `penalty`, belongs to `ilrec`
(`--ilrec.penalty=sign_safe`); [settings.md](settings.md) lists all.
"""


@dataclass(frozen=True)
class Note:
    """A reading of the paper, or of the code it builds on.

    Attributes:
        file: path below the package, with ``/``.
        place: qualified name of the class or function, ``""`` for the module.
        text: the note as Markdown, without the leading mark.
    """

    file: str
    place: str
    text: str


def settings_page() -> str:
    """``docs/settings.md``: all typed settings with type, default and meaning."""
    lines = [SETTINGS_HEAD, "## Names of a run", "", *_table(Settings, "")]
    for name in SECTIONS:
        section = type(Settings.model_fields[name].default)
        lines += ["", f"## {name}", "", _markdown(inspect.cleandoc(section.__doc__ or "")), "", *_table(section, name)]
    overall = (properties_folder() / "overall.yaml").read_text(encoding="utf-8").strip()
    lines += ["", "## RecBole's settings", ""]
    lines += ["All of RecBole's own settings are allowed too, under their names. `properties/overall.yaml` sets:", ""]
    lines += ["```yaml", overall, "```", ""]
    return "\n".join(lines)


def _table(section: type[Section], name: str) -> list[str]:
    """Rows of the plain fields of a section; ``name`` is ``""`` for the top level."""
    schema = section.model_json_schema(by_alias=True)["properties"]
    presets = _preset_keys()
    rows = ["| setting | short | type | default | preset | meaning |", "|---|---|---|---|---|---|"]
    for field_name, field in section.model_fields.items():
        if not name and field_name in SECTIONS:
            continue
        key = field.alias or field_name
        dotted = f"{name}.{key}" if name else key
        short = next((flat for flat, target in FLAT_KEYS.items() if target == dotted), "")
        cells = [
            f"`{dotted}`" if name else f"`{short}`",
            f"`{short}`" if name and short else "",
            _kind(schema[key]),
            f"`{_shown(field.get_default(call_default_factory=True))}`",
            ", ".join(sorted(presets.get(dotted, ()))),
            field.description or "",
        ]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return rows


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words, e.g. ``number >= 0`` or ``mean, sum``."""
    if "anyOf" in schema:
        return " or ".join("empty" if s.get("type") == "null" else _kind(s) for s in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    words = {"integer": "whole number", "boolean": "true or false", "string": "text", "object": "mapping"}
    kind = words.get(schema.get("type", ""), schema.get("type", "any value"))
    limits = [f"{sign} {schema[key]:g}" for key, sign in _LIMITS.items() if key in schema]
    return f"{kind} {', '.join(limits)}".strip()


def _shown(value: Any) -> str:
    if value is None:
        return "~"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _cell(text: str) -> str:
    return " ".join(_markdown(text).replace("|", "\\|").split())


def _markdown(text: str) -> str:
    return _ROLE.sub(r"`\1`", text).replace("``", "`")


def _preset_keys() -> dict[str, list[str]]:
    """Dotted setting -> the presets that set it, by kind in the order in which they are laid over each other."""
    found: dict[str, list[str]] = {}
    kinds = ("model", "dataset", "backbone", "paradigm", "task", "tuned")
    for preset in ("pretrained", *(f"{kind}/{name}" for kind in kinds for name in preset_names(kind))):
        for key, value in read_yaml(properties_folder() / f"{preset}.yaml").items():
            names = [f"{key}.{inner}" for inner in value] if key in SECTIONS else [FLAT_KEYS.get(key, key)]
            for dotted in names:
                found.setdefault(dotted, []).append(preset)
    return found


def choices_page(package: Path | None = None) -> str:
    """``docs/choices.md``: every note with its place, file by file."""
    lines, file = [CHOICES_HEAD], ""
    for note in choice_notes(package):
        if note.file != file:
            file = note.file
            lines += [f"## {file}", ""]
        place = f"`{note.place}`" if note.place else "The module"
        lines.append(f"* **{place}.** {note.text[:1].upper()}{note.text[1:]}")
    text = "\n".join(lines) + "\n"
    return re.sub(r"\n(## )", r"\n\n\1", text).replace("\n\n\n", "\n\n")


def choice_notes(package: Path | None = None) -> Iterator[Note]:
    """All notes below ``package`` (this package by default), by file name and line."""
    package = package or Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for place, docstring in _docstrings(tree):
            for text in _notes_in(docstring):
                yield Note(path.relative_to(package).as_posix(), place, text)


def _docstrings(node: ast.AST, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield place, ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{place}.{child.name}" if place else child.name)
        else:
            yield from _docstrings(child, place)


def _notes_in(docstring: str) -> Iterator[str]:
    """The text from each mark to the end of its paragraph, or of its entry under ``Args:``."""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        before, mark, text = line.partition(MARK)
        if not mark:
            continue
        parts = [text]
        for later in lines[number + 1 :]:
            next_entry = bool(before.strip()) and _ENTRY.match(later.strip())
            if not later.strip() or MARK in later or next_entry:
                break
            parts.append(later)
        yield " ".join(_markdown(" ".join(parts)).split())


PAGES = {"settings.md": settings_page, "choices.md": choices_page}
"""Name of a page in ``docs/`` -> the function that makes it."""


def main(argv: list[str]) -> int:
    """Write all pages into the folder ``argv[0]``.

    Raises:
        UserError: not exactly one folder is given.
    """
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        raise UserError(f"Give the folder of the documentation: {COMMAND}.")
    for name, page in PAGES.items():
        (Path(argv[0]) / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
