"""What the rest asks of an identifier scheme: how items are called, before a tokenizer has numbered the tokens."""

from collections.abc import Sequence
from typing import Any, Protocol


class ItemIdentifiers(Protocol):
    """Names of items 1 .. I in one scheme (semantic IDs, titles)."""

    @property
    def new_tokens(self) -> Sequence[str]:
        """Tokens to add to a vocabulary, in the order in which they get their ids."""

    @property
    def texts(self) -> Sequence[str]:
        """Plain text in the names, to train a tokenizer on."""

    def token_ids(self, tokenizer: Any) -> list[list[int]]:
        """Token ids of every item, without an end token; ``tokenizer`` knows the new tokens."""
