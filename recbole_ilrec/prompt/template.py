"""Prompt text as data: what stands before, between and after the items of a history. Knows text; never token ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_ilrec.errors import UserError

SLOT, OFFER = "{history}", "{candidates}"
END = "{end}"
KEYS = ("separator", "frame", "templates")


@dataclass(frozen=True)
class Template:
    """A prompt family; variant 0 is the one used in evaluation.

    Choice: LC-Rec's published evaluation takes one template or the mean over several. Here it is the first of the file,
    ``prompt.template``; another one is evaluated from a file of your own in which it stands first.

    Attributes:
        variants: (text before the history, text after it) of each template, the frame included. The text after it may
            hold ``{candidates}``, where the items to choose among stand.
        separator: text between two items. When nothing follows the history, it also stands after the last one, so
            that the answer continues the list.
        name: where it came from.
        ends_items: whether the end token stands after every item of the history, as it does after the answer
            (``separator: "{end}"`` in the file). Then identifiers may begin one another although the answer continues
            the history.
    """

    variants: tuple[tuple[str, str], ...]
    separator: str
    name: str
    ends_items: bool = False

    @property
    def continues(self) -> bool:
        """Whether the answer continues the history itself, which lets one pass train every position."""
        return len(self.variants) == 1 and not self.variants[0][1]

    @property
    def offers(self) -> bool:
        """Whether the prompt names the items to choose among."""
        return OFFER in self.variants[0][1]

    @property
    def texts(self) -> list[str]:
        """All fixed text, to train a tokenizer on."""
        return [self.separator, *(text for pair in self.variants for part in pair for text in part.split(OFFER))]


def load_template(name: str, folder: Path) -> Template:
    """Read ``<folder>/<name>.yaml``, or ``name`` itself when it is a path to a file.

    Raises:
        UserError: no such template, unknown keys, a template without exactly one ``{history}``.
    """
    return parse_template(*read_template(name, folder))


def read_template(name: str, folder: Path) -> tuple[Any, str]:
    """Content and path of ``<folder>/<name>.yaml``, or of ``name`` itself when it is a path to a file.

    Raises:
        UserError: no such file, or no YAML.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"prompt template '{name}' not found at {path}. Available: {known}, or a path to a .yaml file.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")), str(path)
    except yaml.YAMLError as error:
        raise UserError(f"prompt template {path} is not valid YAML: {error}") from None


def parse_template(spec: Any, where: str) -> Template:
    """A :class:`Template` from the mapping of a YAML file; ``where`` is named in errors."""
    if not isinstance(spec, dict) or not set(spec) <= set(KEYS) or not spec.get("templates"):
        raise UserError(f"prompt template {where} must be a mapping with 'templates' and, if wanted, {KEYS[:2]}.")
    frame = spec.get("frame", "{instruction}")
    variants = []
    for text in spec["templates"]:
        full = frame.replace("{instruction}", str(text))
        if full.count(SLOT) != 1:
            raise UserError(f"prompt template {where}: '{text}' needs exactly one {SLOT}.")
        before, after = full.split(SLOT)
        if full.count(OFFER) > 1 or OFFER in before:
            raise UserError(f"prompt template {where}: '{text}' may hold {OFFER} once, after {SLOT}.")
        variants.append((before, after))
    if len({OFFER in after for _, after in variants}) > 1:
        raise UserError(f"prompt template {where}: {OFFER} must be in all templates or in none.")
    separator = str(spec.get("separator", ""))
    ends_items = separator == END
    return Template(tuple(variants), "" if ends_items else separator, where, ends_items)
