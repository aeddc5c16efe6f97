"""The raw texts of a dataset's items."""

import logging
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def texts_by_id(path: Path, item_field: str, tokens: Sequence[str]) -> list[dict[str, str]]:
    """Field -> raw text of each item by internal id, from an ``.item`` file; entry 0 (``[PAD]``) is empty.

    Args:
        path: the file; where there is none, no item has a text.
        item_field: its column of item ids.
        tokens: ids of the items as they stand there, from internal id 1 on. Those without a text in an existing file
            are warned of.
    """
    from recbole_ilrec.preparation.atomic import read_items

    if not path.is_file():
        logger.info("There is no %s: no item has a text.", path)
        return [{} for _ in range(len(tokens) + 1)]
    texts = read_items(path, item_field=item_field)
    missing = [token for token in tokens if not any(texts.get(token, {}).values())]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        logger.warning("%d of %d items have no text in %s: %s.", len(missing), len(tokens), path, some)
    return [{}, *(texts.get(token, {}) for token in tokens)]
