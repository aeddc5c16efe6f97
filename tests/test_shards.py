"""A model of which each process holds a share (FSDP2) trains, decodes and resumes as a whole one in one process."""

import shutil
import sys

import pytest
import torch
from torch import nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.shards import shard
from tests.children import several
from tests.test_adapter import save_model
from tests.test_processes import PLAIN, losses, only_run, weights
from tests.worlds import ring_world, write_dataset

SHARES = {"train.parallel": "fsdp"}
SHORT = {**PLAIN, "max_steps": 2, "save_steps": 1}
UNTIED = {
    **SHORT,
    "mu": 0,
    "k": 1,
    "backbone.layers": 2,
    "backbone.tie_embeddings": False,
    "gradient_accumulation_steps": 2,
    "train.layer_losses": True,
}
RESULTS = ("test_result", "best_valid_result", "policies")


@pytest.fixture
def ring(tmp_path):
    """The ring world as a data set."""
    write_dataset(tmp_path / "dataset", "ring", *ring_world(users=24))
    return tmp_path


def train(ring, name, world, model="ILRec", **settings):
    """The results of a run's processes, and its folder."""
    results = several(ring, world, model, "ring", {**settings, "checkpoint_dir": name})
    assert "error" not in results[0], results[0]
    return results, only_run(ring / name, model)


def state_of(folder):
    return load_state(folder / "checkpoint-2")


def close(got, wanted):
    got, wanted = weights(got), weights(wanted)
    assert got.keys() == wanted.keys()
    return all(torch.allclose(got[name], wanted[name], atol=3e-4) for name in wanted)


def test_shares_in_two_processes_equal_one_and_their_run_goes_on_in_one_process_and_in_two(ring):
    (one,), whole = train(ring, "one", 1, **UNTIED)
    both, shares = train(ring, "two", 2, **UNTIED, **SHARES)
    assert losses(shares) == pytest.approx(losses(whole), rel=1e-4) and len(losses(whole)) == 2
    assert close(shares, whole)
    for result in both:
        assert all(result[key] == one[key] for key in RESULTS)
        layers = [entry["losses"] for entry in result["layer_losses"]]
        assert layers == [pytest.approx(entry["losses"], rel=1e-4) for entry in one["layer_losses"]]
    wanted = state_of(shares)
    for world in (1, 2):
        again = ring / f"again-{world}"
        shutil.copytree(shares / "checkpoint-1", again / "checkpoint-1")
        settings = {**UNTIED, **SHARES, "resume_from_checkpoint": str(again)}
        resumed = several(ring, world, "ILRec", "ring", settings)
        assert all(result["test_result"] == one["test_result"] for result in resumed)
        assert close(again, whole)
    got = state_of(again)
    assert all(torch.equal(got["model"][name], wanted["model"][name]) for name in wanted["model"])
    shapes = [[entry["exp_avg"].shape for entry in at["optimizer"]["state"].values()] for at in (got, state_of(whole))]
    assert shapes[0] == shapes[1]


def test_adapters_and_new_rows_on_tied_embeddings_are_shared_out_however_few_rows_they_have(ring):
    """Two rows of an adapter among three processes: one has none."""
    backbone = {"backbone": save_model(ring / "base", "Llama", tied=True), "backbone.gradient_checkpointing": True}
    short = {name: value for name, value in SHORT.items() if not name.startswith("backbone.")}
    adapter = {"lora": True, "adapter.r": 2, "adapter.dropout": 0.0}
    lora = {**short, **backbone, **adapter, "max_steps": 1, "mu": 0, "train.ema": 0.9}
    (one,), whole = train(ring, "one", 1, **lora)
    every, shares = train(ring, "three", 3, **lora, **SHARES)
    assert losses(shares) == pytest.approx(losses(whole), rel=1e-5) and close(shares, whole)
    assert any("lora_A" in name for name in weights(shares)) and any("tokens_delta" in name for name in weights(shares))
    assert all(result[key] == one[key] for result in every for key in RESULTS)


def test_rejected_items_and_references_come_from_gathered_weights(ring):
    """And training goes on where one process had nothing to search and to score, and so ran no forward pass."""
    settings = {**SHORT, "max_steps": 1, "preference.source": "self_hard", "preference.examples": 16}
    (one,), _ = train(ring, "one", 1, "DPO", **settings)
    for result in train(ring, "two", 2, "DPO", **settings, **SHARES)[0]:
        assert result["test_result"] == pytest.approx(one["test_result"], abs=0.05)


def test_what_cannot_be_shared_out_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    codes = nn.Linear(2, 2)
    codes.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="cannot share out 4-bit weights"):
        shard(codes, [], torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", None)
    with pytest.raises(UserError, match="needs torch 2.6 or newer"):
        shard(nn.Linear(2, 2), [], torch.device("cpu"))
