"""Titles as item identifiers (BIGRec): the answer is the item's title in double quotes.

Titles are what people wrote: some are missing, some are shared by several items, some begin others. Knows texts and
a tokenizer; nothing of prompts, models or files.

Source: BIGRec (arXiv:2308.08434), whose answers are quoted titles.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

TITLE_FIELDS = ("title", "movie_title", "name")
"""Fields of an item that may hold its title; the first with text counts."""
TEXT_FIELDS = (*TITLE_FIELDS, "brand", "categories", "class", "description", "release_year")
"""Fields of an item that say what it is."""
QUOTE = '"'
_PLAIN = {"add_special_tokens": False, "split_special_tokens": True}


@dataclass(frozen=True)
class TitleIdentifiers:
    """Titles of items 1 .. I.

    Attributes:
        titles: clean titles, none empty; several items may have the same and then share an identifier.
        max_tokens: tokens of a quoted title at most.
    """

    titles: tuple[str, ...]
    max_tokens: int

    @property
    def new_tokens(self) -> Sequence[str]:
        """None: a title is text."""
        return ()

    @property
    def texts(self) -> Sequence[str]:
        """The titles as they are written in prompts and answers."""
        return [f"{QUOTE}{title}{QUOTE}" for title in self.titles]

    def token_ids(self, tokenizer: Any) -> list[list[int]]:
        """Token ids of each quoted title, tokenised as a whole and alone.

        Choice: the published code tokenises prompt and answer as one text, so that a tokenizer may merge a quote with
        the comma after it, and a title has other tokens in a history than as an answer. Here a title has the same
        tokens everywhere; what surrounds it is tokenised apart.

        A title of more than ``max_tokens`` tokens is cut and closed with the quote; items that become alike share an
        identifier. Special tokens of the tokenizer that are spelled out in a title are read as plain text.
        """
        close, *rows = tokenizer([QUOTE, *self.texts], **_PLAIN)["input_ids"]
        cut = sum(len(row) > self.max_tokens for row in rows)
        if cut:
            logger.warning(
                "%d of %d titles have more than bigrec.max_title_tokens=%d tokens and are cut",
                cut, len(rows), self.max_tokens,
            )  # fmt: skip
        rows = [row if len(row) <= self.max_tokens else [*row[: self.max_tokens - len(close)], *close] for row in rows]
        distinct = len({tuple(row) for row in rows})
        logger.info("Item identifiers: %d quoted titles, %d distinct", len(rows), distinct)
        return rows

    def lost_tokens(self, tokenizer: Any) -> list[int]:
        """By how many tokens each quoted title is longer than its identifier."""
        return [max(0, len(row) - self.max_tokens) for row in tokenizer(self.texts, **_PLAIN)["input_ids"]]


def clean_title(text: str) -> str:
    """The text without surrounding white space, each run of white space inside as one blank."""
    return " ".join(text.split())


def item_titles(items: Sequence[Mapping[str, str]], tokens: Sequence[str]) -> tuple[list[str], int]:
    """A title for every item.

    Choice: the published preparation leaves out items without a title. That would change what other models are
    compared on, so such an item is called by its external id.

    Args:
        items: text fields of each item.
        tokens: external id of each item.

    Returns:
        The titles, and how many of them are external ids.
    """
    titles, missing = [], 0
    for fields, token in zip(items, tokens, strict=True):
        title = next((t for field in TITLE_FIELDS if (t := clean_title(fields.get(field, "")))), "")
        missing += not title
        titles.append(title or token)
    return titles, missing


def joined_texts(items: Sequence[Mapping[str, str]]) -> list[str]:
    """One text for each item: its fields in a fixed order, joined by blanks; '' where there is none."""
    return [" ".join(t for f in TEXT_FIELDS if (t := fields.get(f, ""))) for fields in items]
