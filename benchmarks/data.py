"""Preparing data from raw files, and what passes before the first step of training."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measure import peak_bytes

NAME = "Raw"
RATINGS_OF_AN_ITEM, RATINGS_OF_A_USER = 20, 8
ROWS = 1_000_000
"""Lines that are drawn together: it bounds the memory of the maker, so that the peak is the reader's."""


@contextmanager
def raw_files(ratings: int) -> Iterator[Path]:
    """A folder with Amazon's raw files of one category: ``Raw.csv`` of so many lines and ``meta_Raw.json``.

    Items and users are drawn with a squared uniform number, so some are met much more often than others.
    """
    chance = np.random.default_rng(0)
    users, items = ratings // RATINGS_OF_A_USER, ratings // RATINGS_OF_AN_ITEM
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / f"{NAME}.csv").open("w") as stream:
            for start in range(0, ratings, ROWS):
                size = min(ROWS, ratings - start)
                user, item = ((chance.random(size) ** 2 * most).astype(int) for most in (users, items))
                times = chance.integers(10**9, 15 * 10**8, size)
                rows = zip(item.tolist(), user.tolist(), times.tolist(), strict=True)
                stream.writelines(f"B{i:09d},A{u:012d},5.0,{t}\n" for i, u, t in rows)
        with (folder / f"meta_{NAME}.json").open("w") as stream:
            stream.writelines(
                json.dumps({"asin": f"B{i:09d}", "title": f"Thing {i}", "brand": "", "description": ["It does it."]})
                + "\n"
                for i in range(items)
            )
        yield folder


def preparation(ratings: int) -> dict[str, float]:
    """``recbole-ilrec prepare --source=amazon18``: time, peak memory, and what is left of the ratings."""
    from recbole_ilrec.preparation.pipeline import prepare

    with raw_files(ratings) as folder:
        before, start, cpu = peak_bytes(), time.perf_counter(), time.process_time()
        counts = prepare(NAME, "amazon18", folder, folder / "out").counts
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "prepare s": seconds,
        "CPU s": cpu,
        "peak GB": peak_bytes() / 1e9,
        "peak GB before": before / 1e9,
        "interactions": counts["interactions"],
        "users": counts["users"],
    }


def first_step(users: int, items: int) -> dict[str, float]:
    """Time from the first import to the end of one step of LCRec: prepared data, published semantic IDs."""
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lcrec_files(folder, users, items, chance)
        from recbole_ilrec.preparation.pipeline import prepare

        prepare(NAME, "lcrec", folder, folder / "dataset")
        start, cpu = time.perf_counter(), time.process_time()
        from recbole_ilrec import run_recbole_ilrec

        settings = {
            "data_path": str(folder / "dataset"),
            "max_steps": 1,
            "eval_test": False,
            "train.valid_users": 1,
            "saved": False,
            "show_progress": False,
            "state": "WARNING",
            "num_threads": 1,
        }
        run_recbole_ilrec("LCRec", NAME, config_dict=settings, saved=False)
        return {"to the first step s": time.perf_counter() - start, "CPU s": time.process_time() - cpu}


def _lcrec_files(folder: Path, users: int, items: int, chance: np.random.Generator) -> None:
    lengths = 5 + chance.poisson(3.3, users)
    drawn = np.concatenate([np.arange(items), (chance.random(lengths.sum()) ** 2 * items).astype(int)])[: lengths.sum()]
    chance.shuffle(drawn)
    parts = np.split(drawn, np.cumsum(lengths)[:-1])
    sequences = {str(user): part.tolist() for user, part in enumerate(parts)}
    codes = np.unique(chance.integers(256, size=(2 * items, 4)), axis=0)[:items]
    index = {str(i): [f"<{'abcd'[n]}_{c}>" for n, c in enumerate(row)] for i, row in enumerate(codes.tolist())}
    for suffix, content in (("inter", sequences), ("index", index)):
        (folder / f"{NAME}.{suffix}.json").write_text(json.dumps(content))
