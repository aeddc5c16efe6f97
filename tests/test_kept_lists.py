"""An evaluation that is interrupted goes on where it was, with the numbers of one that was not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_ilrec.decoding.passes import each_user
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import STATE
from recbole_ilrec.training.kept_lists import KeptLists, kept_lists
from tests.worlds import QUICK, newest, ring_world, write_dataset, write_titled_ring

SHORT = {
    **QUICK,
    "epochs": 1,
    "eval_step": 1,
    "train_batch_size": 40,
    "eval_batch_size": 7,
    "topk": [1, 5],
    "valid_metric": "NDCG@5",
}
CHOICE = {"task": "candidates", "candidates.count": 5, "candidates.answers": "free", "bigrec.max_new_tokens": 8}


def watched(patch, *, stop=None, final=True):
    """How many batches of the test part, or of the validation, each pass computes; stopped after number ``stop``."""
    counted, keep = {}, KeptLists.keep

    def count(self, name, tables, done, *, now=False):
        keep(self, name, tables, done, now=now)
        if self.counted == final and not now:
            counted[name] = counted.get(name, 0) + 1
            if counted[name] == stop:
                raise KeyboardInterrupt

    patch.setattr(KeptLists, "keep", count)
    return counted


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Makes a run from the folder of the test and tells how many batches it decoded, see :func:`watched`."""
    monkeypatch.chdir(tmp_path)

    def make(model, settings, **how):
        with monkeypatch.context() as patch:
            counted = watched(patch, **how)
            try:
                result = run_recbole_ilrec(model, "ring", config_dict={**SHORT, **settings})
            except KeyboardInterrupt:
                return None, counted
        return {key: result[key] for key in ("test_result", "best_valid_result", "policies")}, counted

    return make


@pytest.mark.parametrize(
    ("model", "settings", "passes"),
    [
        ("LCRec", {}, ["lists"]),
        ("LCRec", {"decode.exact": True, "num_beams": 5}, ["lists"]),
        ("BIGRec", {"bigrec.ranker": "grounding", "bigrec.max_new_tokens": 8}, ["answers"]),
        ("BIGRec", CHOICE, ["candidates", "answers"]),
    ],
)
@pytest.mark.parametrize("final", [True, False])
def test_the_rest_is_evaluated_and_nothing_twice(tmp_path, evaluated, caplog, model, settings, passes, final):
    if model == "BIGRec":
        write_titled_ring(tmp_path)
    else:
        write_dataset(tmp_path / "dataset", "ring", *ring_world())
    settings = {**settings, "save_steps": 1}
    straight, batches = evaluated(model, settings, final=final)
    assert list(batches) == passes[: 2 if final else 1]
    newest(tmp_path, model).rename(tmp_path / "straight")
    assert evaluated(model, settings, final=final, stop=3)[0] is None
    (kept,) = newest(tmp_path, model).glob("evaluating-*")
    assert [place.name for place in kept.iterdir()] == passes[:1]
    again = {**settings, "resume_from_checkpoint": "auto", "state": "INFO"}
    assert evaluated(model, again, final=final) == (straight, batches | {passes[0]: batches[passes[0]] - 3})
    assert not list(newest(tmp_path, model).glob("evaluating-*"))
    assert "Going on with the evaluation: " in caplog.text


class Counted(torch.nn.Module):
    """Stands for a language model: its lists are its weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.catalog, self.frozen_key = SimpleNamespace(digest="identifiers"), ""
        self.settings = SimpleNamespace(model_dump=lambda **_: {"num_beams": 5})
        self.rows: list[int] = []

    def evaluate(self, folder, minutes, stop=None, users=6, item=1):
        ids = np.arange(users)
        keeper = KeptLists(folder, self, Pairs(ids, ids[:, None], ids, ids + item), minutes, counted=True)
        table, self.rows = torch.zeros(users), []

        def compute(rows):
            if rows[0] == stop:
                raise KeyboardInterrupt
            table[rows] = self.weight.detach()
            self.rows += rows.tolist()

        each_user(np.split(ids, users // 2), compute, {"score": table}, name="lists", keeper=keeper)
        return table.tolist()


def test_what_is_kept_counts_for_the_same_weights_and_rows_only(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Counted().evaluate(tmp_path, None, stop=4)
    for other, how in ((Counted(2.0), {}), (Counted(), {"item": 2}), (Counted(), {"users": 8})):
        assert other.evaluate(tmp_path, None, **how) == [other.weight.item()] * how.get("users", 6)
        assert other.rows == list(range(how.get("users", 6)))
    same = Counted()
    assert same.evaluate(tmp_path, None) == [1.0] * 6 and same.rows == [4, 5]


def test_it_is_written_as_often_as_asked_and_neither_a_full_disk_nor_a_broken_file_stops_it(
    tmp_path, monkeypatch, caplog
):
    Counted().evaluate(tmp_path, 1.0)
    assert not list(tmp_path.iterdir()), "shorter than a minute"
    Counted().evaluate(tmp_path, 1e-9)
    (place,) = tmp_path.glob("evaluating-0-of-1/lists")
    same = Counted()
    assert same.evaluate(tmp_path, 1.0) == [1.0] * 6 and not same.rows
    (place / STATE).write_text("{")
    assert same.evaluate(tmp_path, 1.0) == [1.0] * 6 and len(same.rows) == 6
    assert "The evaluation begins anew" in caplog.text

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recbole_ilrec.training.kept_lists.save_state", full)
    assert Counted().evaluate(tmp_path, 1e-9) == [1.0] * 6


def test_nothing_stays_of_an_evaluation_that_is_done(tmp_path):
    ids = np.arange(2)
    config = SimpleNamespace(settings=SimpleNamespace(train=SimpleNamespace(save_minutes=1e-9)))
    done = torch.tensor([True, False])
    with kept_lists(config, tmp_path, Counted(), Pairs(ids, ids[:, None], ids, ids), final=True) as keeper:
        keeper.keep("lists", {"score": torch.zeros(2)}, done)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
