"""What only a GPU can show: the numbers of a CPU to rounding, half precision, 4 bits, resuming, tensors in one place.

Skipped where there is none; ``python -m pytest -m gpu`` runs nothing else.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.training.loop import StepTrainer
from tests.children import several
from tests.test_adapter import save_model
from tests.worlds import LEARN, QUICK, newest, ring_world, write_dataset, write_titled_ring

DEVICE = os.environ.get("RECBOLE_ILREC_TEST_DEVICE", "cuda")
"""``cpu`` tries these tests themselves where there is no GPU."""
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]
HERE = {**QUICK, **LEARN, "device": DEVICE}
SHORT = {**HERE, "epochs": 2, "eval_step": 1}


@pytest.fixture
def ring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world())
    return tmp_path


def run(model="ILRec", **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**HERE, **settings})


def built(device, **settings):
    """A fresh model with the same weights on any device, in evaluation mode, and its data."""
    config = Config("ILRec", "ring", config_dict={**HERE, "device": device, "seed": 5, **settings})
    data = build_data(config)
    torch.manual_seed(5)
    return config.model_class(config, data.train._dataset).to(config["device"]).eval(), data


def weights_of(folder):
    return load_state(folder / "best")["model"]


@pytest.mark.parametrize("model", ["ILRec", "LCRec", "SDPO"])
def test_the_next_item_that_is_a_function_of_the_last_is_found(ring, model):
    assert run(model, **{"preference.learning_rate": 1e-4, "preference.epochs": 1})["test_result"]["hit@1"] == 1.0
    record = json.loads((ring / "saved/records.jsonl").read_text().splitlines()[-1])
    if DEVICE == "cuda":
        assert record["gpu"] == torch.cuda.get_device_name() and record["peak_gpu_memory_mb"] > 0


def test_loss_and_gradients_are_those_of_a_cpu(ring):
    found = []
    for device in ("cpu", DEVICE):
        model, data = built(device, mu=0, **{"ilrec.cpd_share": 1.0})
        loss = model.calculate_loss(data.train._dataset.inter_feat[:64])
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("exclude_history", [True, False])
def test_lists_are_those_of_a_cpu(ring, exclude_history):
    found = []
    for device in ("cpu", DEVICE):
        model, data = built(device, num_beams=24, exclude_history=exclude_history)
        found.append(model.rank(to_pairs(data.test._dataset.inter_feat, model), batch_size=16))
    torch.testing.assert_close(found[1].score, found[0].score, atol=1e-4, rtol=1e-4)
    close = (found[0].score[:, 1:] - found[0].score[:, :-1]).abs() < 1e-3
    apart = ~(torch.nn.functional.pad(close, (1, 0)) | torch.nn.functional.pad(close, (0, 1)))
    assert apart.float().mean() > 0.5 and torch.equal(found[1].leaf[apart], found[0].leaf[apart])


def test_half_precision_learns_the_ring_too(ring):
    assert run(**{"train.bf16": True})["test_result"]["hit@1"] > 0.9


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapters_on_a_pretrained_model_are_trained_and_tested(ring, quantization):
    if quantization:
        pytest.importorskip("bitsandbytes")
    folder = save_model(ring / "model", "Llama", tied=True, width=64)
    more = {
        "backbone": folder,
        "lora": True,
        "quantization": quantization,
        "max_steps": 6,
        "backbone.attention": "sdpa",
    }
    result = run(**more, k=1, mu=0, learning_rate=1e-3, num_beams=5)
    learned = weights_of(newest(ring, "ILRec"))
    assert result["evaluation"]["lists"]["valid"] == 1.0
    assert learned and all(weight.isfinite().all() for weight in learned.values())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(ring, monkeypatch):
    settings = {**SHORT, "backbone.dropout": 0.2, "save_steps": 1, "train_batch_size": 40}
    run(**settings)
    straight, compute, done = weights_of(newest(ring, "ILRec")), StepTrainer.compute_loss, []

    def cut(self, *args, **kwargs):
        done.append(1)
        if len(done) > 7:
            self.stop.received = 15
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "compute_loss", cut)
        with pytest.raises(Interrupted):
            run(**settings)
    run(**settings, resume_from_checkpoint=str(newest(ring, "ILRec")))
    ended = weights_of(newest(ring, "ILRec"))
    for name in straight | ended:
        torch.testing.assert_close(ended[name], straight[name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("model", ["Pop", "Transitions", "SASRec"])
def test_models_of_recbole_rank_all_items_and_sampled_ones(ring, model):
    own = {"device": DEVICE, "epochs": 1, "topk": [5], "valid_metric": "NDCG@5", "show_progress": False}
    for mode in ("full", "uni10"):
        result = run_recbole_ilrec(model, "ring", config_dict={**own, "eval_args": {"mode": mode}})
        assert 0 <= result["test_result"]["hit@5"] <= 1


@pytest.mark.parametrize("task", ["full", "candidates"])
def test_titles_are_written_embedded_and_chosen(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    write_titled_ring(tmp_path)
    few = {"epochs": 1, "eval_step": 1, "MAX_ITEM_LIST_LENGTH": 3, "bigrec.max_new_tokens": 8, "task": task}
    if task == "candidates":
        few |= {"candidates.count": 4, "topk": [1, 3], "valid_metric": "NDCG@3"}
    result = run("BIGRec", **few)
    assert all(0 <= value <= 1 for value in result["test_result"].values())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_gpus_give_the_numbers_of_one(ring, parallel):
    if DEVICE == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    settings = {**SHORT, "train.parallel": parallel, "data_path": str(Path("dataset").resolve())}
    one, two = (several(ring, world, "LCRec", "ring", settings)[0] for world in (1, 2))
    assert two["test_result"] == pytest.approx(one["test_result"], abs=0.05)
