"""RecBole's Caser, stock and with its convolutions as matrix products."""

from types import SimpleNamespace
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.caser import Caser as Stock
from torch import nn

from benchmarks.measure import paired
from recbole_ilrec.collaborative.faster_caser import Caser
from recbole_ilrec.runtime.compat import switch_off_anomaly_detection

switch_off_anomaly_detection()

_FIELDS = {
    "USER_ID_FIELD": "user",
    "ITEM_ID_FIELD": "item",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "length",
    "NEG_PREFIX": "neg_",
    "device": torch.device("cpu"),
    "loss_type": "CE",
    "dropout_prob": 0.4,
    "reg_weight": 1e-4,
    "nh": 8,
    "nv": 4,
}


def caser(rows: int, length: int, width: int, users: int, items: int, rounds: int) -> dict[str, float]:
    """A step without its optimiser, and the scores of a batch, of both.

    Args:
        rows: of a batch.
        length: of the histories.
        width: of an embedding.
        users: with ``[PAD]``.
        items: with ``[PAD]``.
        rounds: of alternating calls.
    """
    config = {**_FIELDS, "MAX_ITEM_LIST_LENGTH": length, "embedding_size": width}
    sizes = SimpleNamespace(user_num=users, num=lambda _: items)
    drawn = torch.Generator().manual_seed(0)
    batch = Interaction({
        "user": torch.randint(1, users, (rows,), generator=drawn),
        "item": torch.randint(1, items, (rows,), generator=drawn),
        "item_list": torch.randint(1, items, (rows, length), generator=drawn),
        "length": torch.full((rows,), length),
    })  # fmt: skip
    models = {"stock": Stock(config, sizes), "ours": Caser(config, sizes)}
    steps = paired({name: lambda model=model: _step(model, batch) for name, model in models.items()}, rounds)
    with torch.no_grad():
        lists = paired({name: lambda model=model: _scores(model, batch) for name, model in models.items()}, rounds)
    return {
        "stock s a step": steps["stock"]["seconds"],
        "of stock's": steps["ours"]["ratio"],
        "scores, of stock's": lists["ours"]["ratio"],
    }


def _step(model: nn.Module, batch: Interaction) -> None:
    model.train().calculate_loss(batch).backward()
    model.zero_grad()


def _scores(model: nn.Module, batch: Interaction) -> Any:
    return model.eval().full_sort_predict(batch)
