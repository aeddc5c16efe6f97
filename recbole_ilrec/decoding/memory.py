"""Batches that shrink when the memory does not suffice. Knows row numbers; never what is computed of them."""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from recbole_ilrec.errors import UserError

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "can't allocate memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, a GPU's or the machine's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


def each_batch(batches: Sequence[np.ndarray], compute: Callable[[np.ndarray], None]) -> None:
    """``compute`` of every batch of rows; one that does not fit into memory, and all after it, in halves.

    A smaller batch is padded to another length, so its numbers may differ in their last bits.

    Args:
        batches: arrays of row numbers.
        compute: leaves nothing behind when it fails.

    Raises:
        UserError: a single row does not fit.
    """
    waiting = deque(batches)
    limit = max(map(len, batches), default=1)
    while waiting:
        rows = waiting.popleft()
        if len(rows) > limit:
            waiting.extendleft(np.array_split(rows, -(-len(rows) // limit))[::-1])
        elif not _fits(compute, rows):
            if len(rows) == 1:
                raise UserError(
                    "out of memory with a single user: lower --num_beams or MAX_ITEM_LIST_LENGTH, or free memory."
                )
            limit = len(rows) // 2
            waiting.appendleft(rows)
            logger.warning("Out of memory with %d users at once: going on with %d.", len(rows), limit)


def _fits(compute: Callable[[np.ndarray], None], rows: np.ndarray) -> bool:
    try:
        compute(rows)
        return True
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    # Only here, where the error is gone and with it the frames that held tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
