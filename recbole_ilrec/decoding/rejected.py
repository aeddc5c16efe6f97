"""Rejected items that the model itself proposes: RosePO's and SPRec's self-hard negatives.

Knows the beam search and the catalogue; never data sets or losses.
"""

from collections.abc import Sequence

import numpy as np
import torch

from recbole_ilrec.decoding.beam import Stepper
from recbole_ilrec.decoding.users import rank_users
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.settings import DecodeSettings


def self_hard_items(
    stepper: Stepper,
    encoder: PromptEncoder,
    histories: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    targets: np.ndarray,
    *,
    count: int,
    num_beams: int,
    renormalise: bool,
    batch_size: int,
    device: torch.device,
    progress: str | None = None,
    candidates: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """The items that the model finds most probable after each history and that are wrong.

    The search leaves out the target, whatever shares its identifier, and the past, so that a wrong item is always found
    where there is one.

    Args:
        stepper: the language model, in evaluation mode.
        encoder: builds the prompts.
        histories: item ids of each row, oldest first.
        seen: item ids that each user has already.
        targets: ``[rows]`` the right items.
        count: R, items of a row.
        num_beams: width of the search.
        renormalise: score a token among the legal ones only.
        batch_size: rows decoded together.
        device: where the model is.
        progress: label of a progress bar, none without.
        candidates: the only item ids to choose from for each row; default: all.

    Returns:
        ``[rows, R]`` int32, the most probable first, 0 where none is left. Of items that share an identifier the first
        that is none of the past and, where there are candidates, one of them.
    """
    catalog = encoder.catalog
    banned = [np.concatenate([past, _twins(catalog, item)]) for past, item in zip(seen, targets, strict=True)]
    settings = DecodeSettings(num_beams=max(num_beams, count), renormalise=renormalise, exclude_history=True)
    ranking = rank_users(
        stepper,
        encoder,
        histories,
        settings,
        batch_size=batch_size,
        device=device,
        progress=progress,
        seen=banned,
        candidates=candidates,
    )
    found = np.zeros((len(histories), count), dtype=np.int32)
    for row, leaves in enumerate(ranking.leaf[:, :count].tolist()):
        offered = None if candidates is None else candidates[row]
        found[row, : len(leaves)] = [_first(catalog, leaf, banned[row], offered) for leaf in leaves]
    return found


def _first(catalog: Catalog, leaf: int, banned: np.ndarray, offered: np.ndarray | None) -> int:
    """The first item with an identifier that may be recommended; 0 where there is no identifier."""
    items = catalog.items_of(leaf).numpy() if leaf >= 0 else np.zeros(1, dtype=np.int64)
    if len(items) > 1:
        items = items[~np.isin(items, banned)]
        items = items if offered is None else items[np.isin(items, offered)]
    return int(items[0])


def _twins(catalog: Catalog, item: int) -> np.ndarray:
    """All items with the identifier of ``item``."""
    return catalog.items_of(int(catalog.leaf_of_item[item])).numpy()
