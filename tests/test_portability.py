"""What only some systems have: modules and signals of POSIX, consoles that know few characters, readers that leave."""

import ast
import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest

from recbole_ilrec import cli
from recbole_ilrec.preparation.files import lock_folder
from recbole_ilrec.report.record import append_record, peak_memory_mb
from recbole_ilrec.verbs.launched import why_failed

PROJECT = Path(__file__).resolve().parents[1]
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios"}
NAMES = {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "fork", "getuid", "killpg", "setsid", "sync", "fchmod"}


def test_nothing_that_windows_lacks_is_imported_at_once_or_taken_for_granted():
    for path in (PROJECT / "recbole_ilrec").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
        at_once += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not MODULES.intersection(at_once), path
        named = [
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        ]
        assert not [node.attr for node in named if node.value.id in ("os", "signal") and node.attr in NAMES], path


def test_without_posix_a_record_is_written_no_folder_is_locked_and_a_failure_is_told(tmp_path, monkeypatch):
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(signal, "SIGKILL")
    peak = types.SimpleNamespace(peak_wset=300 * 2**20)
    monkeypatch.setattr(psutil, "Process", lambda: types.SimpleNamespace(memory_info=lambda: peak))
    assert peak_memory_mb() == 300
    for name in ("a", "b"):
        append_record(tmp_path / "records.jsonl", {"run": name})
    assert [json.loads(line)["run"] for line in (tmp_path / "records.jsonl").open()] == ["a", "b"]
    assert lock_folder(tmp_path) is None
    assert why_failed(tmp_path / "no.log", 0, 1) == "ended with exit status 1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="peaks by getrusage")
def test_peak_memory_is_what_the_system_says_in_its_own_unit(monkeypatch):
    import resource

    for system, size in (("linux", 300 * 2**10), ("darwin", 300 * 2**20)):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(resource, "getrusage", lambda _who, size=size: types.SimpleNamespace(ru_maxrss=size))
        assert peak_memory_mb() == 300


def test_a_console_without_a_character_shows_a_question_mark(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    monkeypatch.setattr(cli, "_dispatch", lambda _argv: sys.stdout.write("Gibson \N{GUITAR} é\n") and 0)
    assert cli.main(["recommend"]) == 0
    assert raw.getvalue().decode("cp1252") == "Gibson ? é\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes break otherwise elsewhere")
def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "recbole_ilrec", "run", "--help"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=PROJECT, timeout=120)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (cli.NOT_READ, b"")
