"""Small worlds with a known answer, shared by tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.prompt.template import parse_template
from recbole_ilrec.settings import BackboneSettings

SMALL = BackboneSettings(hidden_size=32, intermediate_size=64, layers=3, heads=2, dropout=0.1)


def random_identifiers(
    chance: np.random.Generator, items: int, tokens: int, depths: Sequence[int]
) -> list[tuple[int, ...]]:
    """Distinct tuples of token numbers; some begin others when depths differ."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < items:
        found[tuple(int(t) for t in chance.integers(tokens, size=chance.choice(depths)))] = None
    return list(found)


def small_backbone(tokens: int, settings: BackboneSettings = SMALL, seed: int = 0) -> Backbone:
    """A fresh tiny model whose item tokens are ``<t0> .. <t{tokens-1}>``."""
    return build_backbone(settings, [f"<t{i}>" for i in range(tokens)], [], seed)


def small_catalog(backbone: Backbone, identifiers: Sequence[Sequence[int]], end: bool = True) -> Catalog:
    """Identifiers of token numbers as the backbone's token ids."""
    tokenizer = backbone.tokenizer
    ids = [tokenizer.convert_tokens_to_ids([f"<t{t}>" for t in identifier]) for identifier in identifiers]
    return Catalog(ids, tokenizer.eos_token_id if end else None)


def compact_encoder(backbone: Backbone, catalog: Catalog, max_length: int = 256) -> PromptEncoder:
    """The default prompt: item tokens and nothing else."""
    template = parse_template({"templates": ["{history}"]}, "test")
    return PromptEncoder(backbone.tokenizer, catalog, template, max_length)


def pairs_of(sequences: Sequence[Sequence[int]], window: int) -> Pairs:
    """What RecBole's augmentation makes of one sequence a user: every prefix and its next item."""
    rows = [
        (user, sequence[max(0, at - window) : at], sequence[at])
        for user, sequence in enumerate(sequences, start=1)
        for at in range(1, len(sequence))
    ]
    history = np.zeros((len(rows), window), dtype=np.int64)
    for line, (_, past, _) in enumerate(rows):
        history[line, : len(past)] = past
    return Pairs(
        user=np.array([row[0] for row in rows]),
        history=history,
        length=np.array([len(row[1]) for row in rows]),
        target=np.array([row[2] for row in rows]),
    )


def write_dataset(
    root: Path, name: str, sequences: Sequence[Sequence[int]], identifiers: Sequence[Sequence[int]]
) -> Path:
    """A prepared data set in ``root/name``: interactions and an item index; items are numbered from 1."""
    folder = _write_interactions(root, name, sequences)
    index = {f"i{n}": [f"<{'abcdef'[at]}_{t}>" for at, t in enumerate(i)] for n, i in enumerate(identifiers, start=1)}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    return folder


def write_titles(root: Path, name: str, sequences: Sequence[Sequence[int]], titles: Sequence[str | None]) -> Path:
    """A data set in ``root/dataset/name`` with titles of items 1, 2, ...; ``None``: not in the ``.item`` file."""
    folder = _write_interactions(root / "dataset", name, sequences)
    rows = [f"i{n}\t{title}" for n, title in enumerate(titles, start=1) if title is not None]
    (folder / f"{name}.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *rows]) + "\n")
    return folder


def _write_interactions(root: Path, name: str, sequences: Sequence[Sequence[int]]) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{item}\t{at}" for u, sequence in enumerate(sequences) for at, item in enumerate(sequence)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    return folder


def newest(root: Path, name: str) -> Path:
    """Folder of the newest run of a model on the ring world below ``root``."""
    return max((root / "saved").glob(f"{name}-ring-*"), key=lambda path: path.stat().st_mtime)


def ring_world(users: int = 60, items: int = 24, length: int = 9) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """A world with a known answer: the next item is a function of the last one, i -> 7 i + 5 mod ``items``."""
    step = [(7 * item + 5) % items for item in range(items)]
    sequences = []
    for user in range(users):
        item, sequence = user % items, []
        for _ in range(length + user % 3):
            sequence.append(item + 1)
            item = step[item]
        sequences.append(sequence)
    return sequences, [(item // 5, item % 5) for item in range(items)]


TITLES = ["Star", "Star Trek", "Star Trek II", '12" ruler', '12" ruler, steel', "Naïve café 映画", "NA", "the </s> end"]
"""Titles some of which begin others, with marks that tokenizers and tables stumble over."""


RING_TITLES = [*TITLES, "red box", "pale red box", "pale box", None]
"""Those of the ring world of 12 items, the last of which has none."""


def write_titled_ring(root: Path) -> None:
    """The ring world under ``RING_TITLES``."""
    write_titles(root, "ring", ring_world(users=36, items=12)[0], RING_TITLES)


QUICK = {
    "backbone.hidden_size": 32,
    "backbone.intermediate_size": 64,
    "backbone.layers": 4,
    "backbone.heads": 2,
    "backbone.dropout": 0.1,
    "show_progress": False,
    "state": "WARNING",
    "device": "cpu",
    "reward.config": {"hidden_size": 16, "inner_size": 32, "epochs": 2},
}
"""Settings of a run that takes a second or two."""

LEARN = {
    "epochs": 24,
    "eval_step": 12,
    "train_batch_size": 64,
    "learning_rate": 5e-3,
    "train.item_dropout": 0.0,
    "train.ema": 0.0,
    "topk": [1, 5],
    "valid_metric": "NDCG@5",
    "num_beams": 10,
}
"""Settings of a run that learns the ring world by heart."""

LEARN_TITLES = {
    **QUICK,
    **LEARN,
    "epochs": 36,
    "eval_step": 36,
    "train_batch_size": 32,
    "MAX_ITEM_LIST_LENGTH": 4,
    "backbone.dropout": 0.0,
}
"""Settings of a run that learns the ring world under titles by heart."""
