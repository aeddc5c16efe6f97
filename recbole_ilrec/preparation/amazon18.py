"""Amazon Reviews 2018 (Ni et al., EMNLP 2019), raw: ratings or reviews of one category and its metadata.

The filtering follows LC-Rec's preprocessing. No rating threshold: every rating is a positive.

Choice: LC-Rec keeps interactions in a set before sorting them by time, so ratings of one user with equal times come in
an order that changes from run to run. Here ties are broken by the line number in the raw file, users are in byte order
of their raw ids, and items are numbered as they first appear in that order: the same input gives the same bytes.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.item_text import item_texts
from recbole_ilrec.preparation.json_lines import read_json_lines
from recbole_ilrec.preparation.known import how_to_get, known_dataset
from recbole_ilrec.preparation.source import Source, SourceData

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)

CORE = 5
"""Fewest interactions of every user and every item that stays."""

TIE_RULE = "time, then line number in the raw file; later repeats of one (user, item) dropped"
ROWS_PER_PART = 200_000  # bounds the memory while JSON lines are read
JSON_SUFFIXES = (".json.gz", ".json")


def find(folder: Path, name: str) -> dict[str, Path]:
    """The metadata and the interactions of one category in ``folder``.

    Choice: where a category has several interaction files, the ratings ``X.csv`` are taken (as LC-Rec does), then all
    reviews ``X.json.gz``, then the 5-core reviews ``X_5.json.gz``.

    Raises:
        UserError: no folder, or a file is missing, or it is not clear which category is meant.
    """
    hint = how_to_get(name, "amazon18")
    if not folder.is_dir():
        raise UserError(f"--path={folder} is not a folder: give the folder with the raw files. {hint}")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    metadata = {
        file.removesuffix(suffix).removeprefix("meta_"): file
        for suffix in reversed(JSON_SUFFIXES)
        for file in names
        if file.startswith("meta_") and file.endswith(suffix)
    }
    if not metadata:
        raise UserError(f"No meta_*.json.gz in {folder}: item texts are needed. {hint}")
    known = known_dataset(name)
    wanted = [known.category] if known else [name]
    category = next((c for c in (*wanted, *(metadata if len(metadata) == 1 else ())) if c in metadata), None)
    if category is None:
        raise UserError(
            f"{folder} holds several categories ({', '.join(metadata)}): leave the files of one there, or use the name "
            f"of one."
        )
    if known and category != known.category:
        raise UserError(f"{folder} holds {category}, but {known.name} is made of {known.category}. {hint}")
    stems = [category + ending for ending in (".csv", *JSON_SUFFIXES, *(f"_5{s}" for s in JSON_SUFFIXES))]
    events = next((stem for stem in stems if stem in names), None)
    if events is None:
        raise UserError(f"Neither {category}.csv (ratings) nor {category}_5.json.gz (reviews) is in {folder}: {hint}")
    return {"interactions": folder / events, "metadata": folder / metadata[category]}


def read(files: Mapping[str, Path], work: Path) -> SourceData:
    """Filtered sequences and cleaned texts.

    The raw files are streamed to parquet parts in ``work``. Memory holds, as numbers, the interactions whose user and
    item both have :data:`CORE` raw lines, the raw ids of those users and items, and the texts of the items that stay.

    Raises:
        UserError: a line that is not as published, or nothing left after filtering.
    """
    from tqdm import tqdm

    events, metadata = work / "events", work / "metadata"
    for folder in (events, metadata):
        folder.mkdir(parents=True)
    _stage_metadata(files["metadata"], metadata)
    _stage_events(files["interactions"], events)
    with tqdm(total=3, desc="filtering", unit="step", disable=None) as bar:
        kept, items = _candidates(events, metadata)
        bar.update()
        kept = k_core(first_occurrences(kept), CORE)
        bar.update()
        if kept.is_empty():
            raise UserError(
                f"{files['interactions']}: no interaction is left after the {CORE}-core filter over items with "
                f"metadata. Check that it and {files['metadata'].name} are of the same category and complete."
            )
        order = kept["item"].unique(maintain_order=True)
        texts = _texts(metadata, items.gather(order))
        bar.update()
    return SourceData(_sequences(kept, order), tie_rule=TIE_RULE, texts=texts)


def first_occurrences(events: "pl.DataFrame") -> "pl.DataFrame":
    """Users and items of the events in the order (user, time, line), without later repeats of a (user, item).

    Args:
        events: columns ``user``, ``item`` (UInt32), ``time`` (seconds), ``line`` (number in the raw file, distinct).
    """
    import polars as pl

    ordered = events.sort("user", "time", "line").select("user", "item")
    pair = pl.col("user").cast(pl.UInt64) * 2**32 + pl.col("item")  # a fifth of the memory of a key of two columns
    return ordered.filter(pair.is_first_distinct())


def k_core(events: "pl.DataFrame", k: int) -> "pl.DataFrame":
    """The largest part of ``events`` in which every user and every item has ``k`` rows; the order is kept.

    Args:
        events: columns ``user``, ``item`` (UInt32, numbered from 0, since they are counted in arrays).
        k: fewest rows.
    """
    height = -1
    while height != events.height:
        height = events.height
        for column in ("user", "item"):
            number = events[column].to_numpy()
            events = events.filter((np.bincount(number) >= k)[number])
    return events


def _candidates(events: Path, metadata: Path) -> "tuple[pl.DataFrame, pl.Series]":
    """Events of items with metadata whose user and item have ``CORE`` raw lines each: no other can stay in the core.

    Users and items are UInt32 ranks of their raw ids, a fifth of the memory of text or less, in the same order.

    Returns:
        the events and the raw ids of the items by rank.
    """
    import polars as pl

    rows = pl.scan_parquet(events / "*.parquet")
    described = pl.scan_parquet(metadata / "*.parquet").select("item").unique()
    rows = rows.join(described, on="item", how="semi")
    ranks = {}
    for column in ("user", "item"):
        counts = rows.group_by(column).len().filter(pl.col("len") >= CORE).select(column)
        ranks[column] = counts.collect(engine="streaming").sort(column).with_row_index("rank")
    for column, ranked in ranks.items():
        rows = rows.join(ranked.lazy(), on=column).drop(column).rename({"rank": column})
    return rows.collect(engine="streaming"), ranks["item"]["item"]


def _sequences(kept: "pl.DataFrame", order: "pl.Series") -> Iterator[tuple[str, list[str]]]:
    """Users and their items, numbered from 0; ``order`` holds the items as they first appear."""
    numbers = {item: str(n) for n, item in enumerate(order)}
    items = kept["item"].to_numpy()
    starts = (np.flatnonzero(np.diff(kept["user"])) + 1).tolist()
    for user, (start, end) in enumerate(pairwise([0, *starts, len(items)])):
        yield str(user), [numbers[item] for item in items[start:end].tolist()]


def _stage_events(path: Path, folder: Path) -> None:
    import polars as pl

    if path.suffix == ".csv":
        _stage_ratings(path, folder)
    else:
        schema = {"user": pl.String, "item": pl.String, "time": pl.Int64, "line": pl.Int64}
        _stage(_review_rows(path), schema, folder)


def _stage_ratings(path: Path, folder: Path) -> None:
    """Ratings ``item,user,rating,timestamp`` without a header, to one parquet file; blank lines are left out.

    Whole lines are read and split here, since a CSV reader drops surplus columns without a word.
    """
    import polars as pl

    staged = folder / "part.parquet"
    cells = pl.col("row").str.strip_chars_end("\r").str.split_exact(",", 4)
    item, user, rating, time, surplus = (cells.struct.field(f"field_{n}") for n in range(5))
    complete = (item != "") & (user != "") & rating.is_not_null() & surplus.is_null()
    seconds = time.cast(pl.Int64, strict=False)
    rows = pl.scan_csv(
        path,
        has_header=False,
        schema={"row": pl.String()},
        separator="\x1f",
        quote_char=None,
        row_index_name="line",
        row_index_offset=1,
    ).filter(pl.col("row").str.strip_chars() != "")
    try:
        rows.select(
            user.alias("user"),
            item.alias("item"),
            pl.when(complete).then(seconds).alias("time"),
            pl.col("line").cast(pl.Int64),
        ).sink_parquet(staged)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path} is empty. Download it again.") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"{path}: not lines of item,user,rating,timestamp ({reason}). Download it again.") from None
    faulty = pl.scan_parquet(staged).filter(pl.col("time").is_null())
    line = faulty.select(pl.col("line").min()).collect(engine="streaming").item()
    if line is not None:
        raise UserError(
            f"{path}, line {line}: not 'item,user,rating,timestamp' with whole seconds. The raw file has no header; "
            f"remove or mend the line, or download it again."
        )


def _review_rows(path: Path) -> Iterator[tuple[str, str, int, int]]:
    for line, record in read_json_lines(path):
        time = record.get("unixReviewTime")
        if isinstance(time, bool) or not isinstance(time, int):
            raise _bad_field(path, line, "unixReviewTime", time, "whole seconds")
        yield _raw_id(path, line, "reviewerID", record), _raw_id(path, line, "asin", record), time, line


def _stage_metadata(path: Path, folder: Path) -> None:
    import polars as pl

    _stage(_metadata_rows(path), {"item": pl.String, "record": pl.String, "line": pl.Int64}, folder)


def _metadata_rows(path: Path) -> Iterator[tuple[str, str, int]]:
    for line, record in read_json_lines(path):
        wanted = {field: record.get(field) for field in ("title", "description", "brand", "category")}
        yield _raw_id(path, line, "asin", record), json.dumps(wanted), line


def _raw_id(path: Path, line: int, field: str, record: Mapping[str, object]) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _bad_field(path, line, field, value, "a text")
    return value


def _bad_field(path: Path, line: int, field: str, value: object, allowed: str) -> UserError:
    return UserError(f"{path}, line {line}: {field} is {value!r}, must be {allowed}. Mend or remove the line.")


def _stage(rows: Iterable[tuple], schema: "Mapping[str, type[pl.DataType]]", folder: Path) -> None:
    """Write ``rows`` as parquet parts of bounded size (at least one part, so that an empty file has its columns)."""
    import polars as pl

    rows = iter(rows)
    part = 0
    while (block := list(islice(rows, ROWS_PER_PART))) or part == 0:
        pl.DataFrame(block, schema=dict(schema), orient="row").write_parquet(folder / f"{part:06d}.parquet")
        part += 1


def _texts(metadata: Path, items: "pl.Series") -> dict[str, dict[str, str]]:
    """Texts of the items, numbered in that order. An item described twice takes its last line, as LC-Rec's does."""
    import polars as pl

    wanted = items.to_frame("item").with_row_index("number").lazy()
    rows = pl.scan_parquet(metadata / "*.parquet").join(wanted, on="item").collect(engine="streaming")
    last = rows.sort("number", "line").unique("number", keep="last", maintain_order=True).select("number", "record")
    return {str(number): item_texts(json.loads(record)) for number, record in last.iter_rows()}


AMAZON18 = Source(find, read, settings={"core": CORE, "keep_quotes": True})
