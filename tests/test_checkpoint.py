"""Checkpoints: what is stored comes back, and a broken one says so."""

import json
import os
import random

import numpy as np
import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime import checkpoint
from recbole_ilrec.runtime.checkpoint import load_state, save_state
from recbole_ilrec.runtime.generators import random_state, set_random_state


def test_nested_values_come_back_as_they_were(tmp_path):
    content = {
        "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "empty": torch.zeros(0, 4)},
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "array": np.array([1, 4_000_000_000], dtype=np.uint32),
        "state": {0: {"step": torch.tensor(1.0)}, 1: {}},
        "mixed": [1, (2.5, "x", None), True, float("-inf"), np.float64(0.5)],
        "$odd": 1,
    }
    loaded = load_state(save_state(tmp_path / "c", content, kind="M"), kind="M")
    assert set(loaded) == set(content)
    assert torch.equal(loaded["weights"]["a"], content["weights"]["a"]) and loaded["weights"]["b"].shape == ()
    assert loaded["weights"]["empty"].shape == (0, 4) and loaded["half"].dtype == torch.bfloat16
    assert loaded["array"].dtype == np.uint32 and loaded["array"].tolist() == [1, 4_000_000_000]
    assert loaded["state"] == content["state"] and loaded["mixed"] == content["mixed"]


def test_tied_and_overlapping_tensors_are_stored(tmp_path):
    whole, square = torch.arange(8.0), torch.arange(9.0).view(3, 3)
    content = {"one": whole, "same": whole, "part": whole[:3], "folded": whole.view(2, 4), "t": whole.view(2, 4).t()}
    content |= {"square": square, "turned": square.t()}
    loaded = load_state(save_state(tmp_path, content, kind=""))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in content.items())
    assert loaded["one"] is loaded["same"]


@pytest.mark.parametrize("learner", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_continues_exactly(tmp_path, learner):
    def train(steps, state=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimiser = learner(model.parameters(), lr=0.1)
        if state:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimizer"])
        for step in steps:
            optimiser.zero_grad()
            model(torch.full((1, 3), float(step))).square().sum().backward()
            optimiser.step()
        return {"model": model.state_dict(), "optimizer": optimiser.state_dict()}

    straight = train(range(6))
    half = load_state(save_state(tmp_path, train(range(3)), kind=""))
    assert torch.equal(train(range(3, 6), half)["model"]["weight"], straight["model"]["weight"])


def test_random_generators_continue_exactly(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    save_state(tmp_path, {"random": random_state()}, kind="")
    first = draw()
    set_random_state(load_state(tmp_path)["random"])
    assert draw() == first


def test_an_older_checkpoint_is_replaced_and_leaves_nothing_behind(tmp_path):
    for step in range(3):
        save_state(tmp_path, {"x": torch.tensor(step)}, kind="")
    assert load_state(tmp_path)["x"] == 2 and len(list(tmp_path.iterdir())) == 2
    (tmp_path / "new").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "others may read it"


@pytest.mark.parametrize("fault", ["save_file", "write_atomically"])
def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, fault):
    save_state(tmp_path, {"x": torch.tensor(1)}, kind="")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, fault, full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, {"x": torch.tensor(2)}, kind="")
    assert load_state(tmp_path)["x"] == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def damage_tensors(folder):
    file = next(folder.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)


def damage_state(folder):
    os.truncate(folder / "state.json", 20)


def foreign_state(folder):
    (folder / "state.json").write_text(json.dumps({"epoch": 1}))


def newer_format(folder):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_tensors, "truncated or was changed"),
        (damage_state, "truncated"),
        (foreign_state, "not written by this package"),
        (newer_format, "format 99"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "incomplete"),
        (lambda folder: (folder / "state.json").unlink(), "no checkpoint of this package"),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, damage, message):
    save_state(tmp_path, {"x": torch.ones(100)}, kind="SASRec")
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_state(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_state(tmp_path, {}, kind="SASRec")
    with pytest.raises(UserError, match="another model: it holds SASRec, this run is GRU4Rec"):
        load_state(tmp_path, kind="GRU4Rec")


def test_a_pickle_is_never_read(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="pickles and are not read"):
        load_state(tmp_path / "model.pth")


def test_what_cannot_be_stored_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="set"):
        save_state(tmp_path, {"x": {1}}, kind="")
