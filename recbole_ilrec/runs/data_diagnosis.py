"""What the doctor looks at in data and split, for any model, handed to :mod:`recbole_ilrec.checks`."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_ilrec.checks.candidates import candidate_findings
from recbole_ilrec.checks.finding import Finding
from recbole_ilrec.checks.interactions import count_finding, order_findings, published_finding
from recbole_ilrec.checks.leaks import SplitRows, Timeline, ready_made_findings, split_findings
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import interactions_key
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.data.dataset import Data, SequenceDataset
from recbole_ilrec.preparation.known import known_dataset
from recbole_ilrec.preparation.pipeline import tie_rule


def data_findings(config: Config, data: Data) -> list[Finding]:
    """The interactions as they stand in the file."""
    dataset, known = data.dataset, known_dataset(config.dataset)
    found = dataset.user_num, dataset.item_num, int(data.counts["interactions"])
    expected = None if known is None else (known.users, known.items, known.interactions)
    counts = [count_finding(config.dataset, found, expected)]
    if known is not None and known.published:
        counts.append(published_finding(interactions_key(config) == known.published))
    if _whole(data) is None:
        return counts  # rows that come ready made hold no times
    rule = tie_rule(Path(config["data_path"]), config.dataset)
    return [*counts, *order_findings(dataset.time_order, rule)]


def _whole(data: Data) -> Any:
    """Whole sequences; ``None`` where rows come ready made."""
    return getattr(data.dataset, "sequences", None)


def leak_findings(config: Config, data: Data) -> list[Finding]:
    """The split."""
    whole = _whole(data)
    parts = {name: rows_of(getattr(data, name)._dataset) for name in ("train", "valid", "test")}
    if whole is None:
        return ready_made_findings(parts)
    timeline = Timeline(whole.start.numpy(), whole.items.numpy(), whole.times.numpy())
    return split_findings(
        timeline,
        parts,
        positions=data.dataset.time_order.positions,
        exclude_history=config.settings.decode.exclude_history,
    )


def list_findings(config: Config, data: Data) -> list[Finding]:
    """The candidate lists of the test rows, where the task is to choose among them."""
    if config.settings.task != "candidates":
        return []
    test, train = data.test._dataset, data.train._dataset
    rows = rows_of(test)
    histories = [items[:length] for items, length in zip(rows.history, rows.length, strict=True)]
    lists = [shown[shown > 0] for shown in test.inter_feat[CANDIDATES].numpy()]
    known = rows_of(train)
    in_rows = np.concatenate([known.target, known.history[known.inside]])
    counts = [np.bincount(items, minlength=train.item_num) for items in (known.target, in_rows)]
    return candidate_findings(histories, rows.target, lists, counts[0], counts[1] > 0)


def rows_of(part: SequenceDataset) -> SplitRows:
    """The rows of a part of the split as arrays; times are zeros where the rows came ready made."""
    feat, time = part.inter_feat, part.time_field
    history, times = feat[part.history_field].numpy(), f"{time}{part.config['LIST_SUFFIX']}"
    return SplitRows(
        user=feat[part.uid_field].numpy(),
        history=history,
        history_time=feat[times].numpy() if times in feat else np.zeros(history.shape),
        length=feat[part.item_list_length_field].numpy(),
        target=feat[part.iid_field].numpy(),
        time=feat[time].numpy() if time in feat else np.zeros(len(history)),
    )
