"""Parts of the split that come ready made (``benchmark_filename``): a row is a user, a history and its target."""

from typing import Any

from recbole_ilrec.errors import UserError


def cut_histories(dataset: Any) -> None:
    """Keep the last ``MAX_ITEM_LIST_LENGTH`` entries of each list, as of histories that are made here.

    Args:
        dataset: of RecBole, its table filtered and its ids numbered.

    Raises:
        UserError: a row without a history.
    """
    frame, suffix, longest = dataset.inter_feat, dataset.config["LIST_SUFFIX"], dataset.max_item_list_len
    items = f"{dataset.iid_field}{suffix}"
    empty = int((frame[items].map(len) == 0).sum())
    if empty:
        raise UserError(
            f"{dataset.dataset_name}: {empty} of {len(frame)} rows of benchmark_filename have an empty {items}: a "
            "model predicts from one item at least, so take these rows out."
        )
    for field in (field for field in frame if field.endswith(suffix)):
        frame[field] = [row[-longest:] for row in frame[field]]
        dataset.field2seqlen[field] = min(longest, dataset.field2seqlen[field])
