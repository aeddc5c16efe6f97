"""A small dataset in RecBole's format whose next item follows from the last one, and settings that train in no time."""

import random
from pathlib import Path
from typing import Any

TINY = {
    "epochs": 2,
    "train_batch_size": 64,
    "eval_batch_size": 64,
    "show_progress": False,
    "device": "cpu",
    "MAX_ITEM_LIST_LENGTH": 6,
    "stopping_step": 10,
    "state": "WARNING",
}
SIZES: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "BERT4Rec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16},
    "Caser": {"embedding_size": 16},
}


def write_toy(root: Path, name: str = "toy", users: int = 40, items: int = 30, seed: int = 0) -> Path:
    """``root/name/name.inter`` and ``.item``; times are positions in the sequence. Returns ``root``."""
    generator = random.Random(seed)
    folder = root / name
    folder.mkdir(parents=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        item = generator.randrange(items)
        for time in range(generator.randrange(5, 12)):
            rows.append(f"u{user}\ti{item}\t{time}")
            item = (item * 7 + generator.randrange(1, 4)) % items
    (folder / f"{name}.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    texts = ["item_id:token\ttitle:token_seq", *(f'i{item}\t"No. {item} NA' for item in range(items))]
    (folder / f"{name}.item").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return root


def tiny(root: Path, model: str = "SASRec", **changes: Any) -> dict[str, Any]:
    """Settings for a run on the toy dataset in ``root``."""
    return {**TINY, **SIZES[model], "data_path": str(root), "checkpoint_dir": str(root / "saved"), **changes}
