"""Readable item texts from Amazon's raw metadata fields.

Public reference: the cleaning steps of LC-Rec's preprocessing of Amazon Reviews 2018.
"""

import html
import re

MAX_LENGTH = 2000
"""Texts of at least this many characters are blanked, as LC-Rec does: they are page sources, not descriptions."""

_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
_BLANKS = re.compile(r"\s+")
_TRAILING_DOTS = re.compile(r"\.{2,}$")
_QUOTES = re.compile(r"[\"']")


def clean_text(raw: object, *, keep_quotes: bool = True) -> str:
    """Plain text on one line: entities unescaped, tags removed, blanks and trailing dots collapsed.

    Choice: LC-Rec also removes quotes, to keep its files readable by simple parsers. Our writer is loss-free, and
    inches and titles need them, so they stay; ``keep_quotes=False`` removes them.

    Args:
        raw: a text, a list of texts (joined by blanks) or ``None``.
        keep_quotes: keep ``"`` and ``'``.

    Returns:
        The text; ``""`` when nothing is left or it has :data:`MAX_LENGTH` characters or more.
    """
    if isinstance(raw, list):
        raw = " ".join(part for part in raw if isinstance(part, str))
    if not isinstance(raw, str):
        return ""
    text = _TAG.sub(" ", html.unescape(raw))
    if not keep_quotes:
        text = _QUOTES.sub("", text)
    text = _TRAILING_DOTS.sub(".", _BLANKS.sub(" ", text).strip())
    return "" if len(text) >= MAX_LENGTH else text


def item_texts(record: dict[str, object]) -> dict[str, str]:
    """The four text fields of one metadata record (``title``, ``description``, ``brand``, ``category``).

    The category path ends where the raw list turns into page source; a brand loses the ``by`` line above it.
    """
    brand = record.get("brand")
    path = record.get("category")
    categories: list[str] = []
    for category in path if isinstance(path, list) else []:
        if not isinstance(category, str) or "</span>" in category:
            break
        categories.append(clean_text(category))
    return {
        "title": clean_text(record.get("title")),
        "description": clean_text(record.get("description")),
        "brand": clean_text(re.sub(r"^\s*by\s*\n", "", brand) if isinstance(brand, str) else None),
        "categories": ", ".join(filter(None, categories)),
    }
