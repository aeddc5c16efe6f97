"""Run records and the table made of them."""

import json
import os
import threading
from pathlib import Path

import pytest

from recbole_ilrec.report.record import Stopwatch, append_record, machine
from recbole_ilrec.report.results import BLOCK, between_marks, read_records, results_table

ROOT = Path(__file__).parents[1]


def test_a_record_is_one_line_and_says_with_what_it_was_made(tmp_path):
    record = {"model": "ILRec", **Stopwatch().read(), **machine()}
    for _ in range(2):
        append_record(tmp_path / "runs" / "records.jsonl", record)
    first, second = read_records(tmp_path / "runs" / "records.jsonl")
    assert first == second == json.loads(json.dumps(record))
    assert first["versions"]["torch"] and first["peak_memory_mb"] > 0


def test_a_half_line_that_a_crash_left_takes_no_record_with_it(tmp_path):
    path = append_record(tmp_path / "records.jsonl", {"n": 1})
    path.write_text(path.read_text() + '{"n": ')
    append_record(append_record(path, {"n": 2}), {"n": 3})
    assert path.read_text().splitlines() == ['{"n": 1}', '{"n": ', '{"n": 2}', '{"n": 3}']


def test_a_line_that_cannot_be_written_whole_is_not_written_at_all(tmp_path, monkeypatch):
    path = append_record(tmp_path / "records.jsonl", {"n": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_record(path, {"n": 2})
    assert read_records(path) == [{"n": 1}]


def test_a_line_that_is_taken_back_takes_none_of_another_writer_with_it(tmp_path, monkeypatch):
    path = append_record(tmp_path / "records.jsonl", {"n": 1})
    write, others = os.write, []

    def cut(descriptor, line):
        if threading.current_thread() is not threading.main_thread():
            return write(descriptor, line)
        others.append(threading.Thread(target=append_record, args=(path, {"n": 2})))
        others[0].start()
        others[0].join(0.2)  # over by then, unless it waits
        return write(descriptor, line[:3])

    monkeypatch.setattr("os.write", cut)
    with pytest.raises(OSError, match="No space"):
        append_record(path, {"n": 3})
    others[0].join()
    assert read_records(path) == [{"n": 1}, {"n": 2}]


def test_numbers_of_single_runs_come_from_the_committed_records():
    table = results_table(read_records(ROOT / "docs" / "records.jsonl"))
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert between_marks(page, BLOCK, table) == page, (
        "python -m recbole_ilrec.report.results docs/records.jsonl docs/tuning.md"
    )
