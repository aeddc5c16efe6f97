"""Cross-entropy of each layer at validations: as computed by hand, in the result, in TensorBoard."""

import json

import pytest
import torch

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.models.methods import LCRec
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.history import USERS_OF_LAYERS
from recbole_ilrec.training.layer_losses import layer_losses
from tests.worlds import QUICK


def test_losses_are_those_of_the_models_own_hidden_states(ring):
    config = Config("LCRec", "ring", config_dict=QUICK)
    data = build_data(config)
    model = LCRec(config, data.train._dataset).eval()
    pairs = to_pairs(data.valid._dataset.inter_feat, model)
    assert len(pairs) < USERS_OF_LAYERS
    own = model.backbone.model
    sums, tokens = torch.zeros(own.config.num_hidden_layers, dtype=torch.float64), 0
    for history, target in zip(pairs.histories(range(len(pairs))), pairs.target, strict=True):
        prompt, answer = model.encoder.prompt(history), model.encoder.answer(target)
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            states = own(input_ids=ids, output_hidden_states=True).hidden_states
        for layer, state in enumerate(states[1:]):
            last = layer == len(states) - 2  # transformers hands the last one over normed
            normed = state[0] if last else own.model.norm(state[0])
            logits = own.lm_head(normed).log_softmax(-1)
            for place, token in enumerate(answer, start=len(prompt) - 1):
                sums[layer] -= logits[place, token]
        tokens += len(answer)
    assert layer_losses(model, pairs) == pytest.approx((sums / tokens).tolist(), rel=1e-5)


def test_each_validation_adds_a_line_to_the_result_the_record_and_tensorboard(ring):
    settings = {**QUICK, "epochs": 3, "eval_step": 1, "train_batch_size": 80, "train.valid_users": 20}
    plain = run_recbole_ilrec("LCRec", "ring", config_dict=settings)
    result = run_recbole_ilrec("LCRec", "ring", config_dict={**settings, "train.layer_losses": True})
    assert "layer_losses" not in plain
    assert plain["test_result"] == result["test_result"]
    found = result["layer_losses"]
    assert [round(entry["epoch"]) for entry in found] == [1, 2, 3]
    assert [len(entry["losses"]) for entry in found] == [4, 4, 4]
    assert found[2]["losses"][-1] < found[0]["losses"][-1]
    record = [json.loads(line) for line in (ring / "saved" / "records.jsonl").read_text().splitlines()][-1]
    assert record["result"]["layer_losses"] == found
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = max((ring / "log_tensorboard").glob("LCRec-*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(folder)).Reload()
    for layer in range(4):
        values = [event.value for event in events.Scalars(f"eval/layer_loss/{layer + 1}")]
        assert values == pytest.approx([entry["losses"][layer] for entry in found], rel=1e-5)
        assert [event.step for event in events.Scalars(f"eval/layer_loss/{layer + 1}")] == [e["step"] for e in found]
