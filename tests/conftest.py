"""What tests share: one thread for all (two wait for each other and lose badly under load), and the ring world."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

from tests.worlds import ring_world, write_dataset  # noqa: E402


@pytest.fixture
def ring(tmp_path, monkeypatch):
    """The ring world as a data set, in a fresh working folder."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world())
    return tmp_path
