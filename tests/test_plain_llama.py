"""From the files of a run alone: plain transformers, prompts and rankings made by hand, and the places are the same.

Nothing of this package is asked here but to make the run, so faults that its parts share come to light: fast decoding,
the averaged weights that are saved, prompts, and how items that share an identifier are ranked.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_ilrec.quick_start import run_recbole_ilrec
from tests.worlds import newest, ring_world, write_dataset

SIZES = {"hidden_size": 32, "intermediate_size": 48, "layers": 3, "heads": 2}
START, FIRST = 1, 4  # <s>; item tokens follow <pad>, <s>, </s> and <unk>, in order of their text
WINDOW = 5


def plain_model(best, vocabulary):
    """The best weights in a Llama that nobody has touched, in double precision."""
    state = json.loads((best / "state.json").read_text())["content"]["model"]
    tensors = load_file(next(best.glob("*.safetensors")))
    weights = {name.removeprefix("backbone.model."): tensors[value["$tensor"]] for name, value in state.items()}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=SIZES["hidden_size"],
        intermediate_size=SIZES["intermediate_size"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["heads"],
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    return model.double().eval()


@torch.no_grad()
def scored(model, prompt, answers):
    """Log-probability of each answer after the prompt, and the cross-entropy of each layer at each of its tokens."""
    width = len(answers[0])
    rows = torch.tensor([[*prompt, *answer[:-1]] for answer in answers])
    states = model(rows, output_hidden_states=True).hidden_states[1:]
    normed = [*map(model.model.norm, states[:-1]), states[-1]]
    chosen = torch.tensor(answers)[:, :, None]
    each = [model.lm_head(x[:, -width:]).log_softmax(-1).gather(2, chosen)[..., 0] for x in normed]
    return each[-1].sum(1).tolist(), -torch.stack(each, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    sequences, codes = ring_world(users=30)
    codes[20:24] = [codes[20]] * 3 + [codes[3]]  # three that share one, and one that shares that of another
    write_dataset(root / "dataset", "ring", sequences, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = run_recbole_ilrec(
            "ILRec",
            "ring",
            config_dict={
                **{f"backbone.{name}": size for name, size in SIZES.items()},
                **{"epochs": 3, "eval_step": 1, "train_batch_size": 40, "learning_rate": 1e-2, "num_beams": 21},
                **{"train.ema": 0.5, "train.layer_losses": True, "MAX_ITEM_LIST_LENGTH": WINDOW, "device": "cpu"},
                **{"reward.config": {"hidden_size": 16, "inner_size": 16, "epochs": 1}, "show_progress": False},
            },
        )
    return newest(root, "ILRec"), sequences, codes, result


def places_by_hand(run, sequences, codes, held_out):
    """User -> identifiers and items before the true item, items that share its identifier, those of them before it."""
    texts = sorted({f"<a_{a}>" for a, _ in codes} | {f"<b_{b}>" for _, b in codes})
    number = {text: FIRST + place for place, text in enumerate(texts)}
    tokens = [(number[f"<a_{a}>"], number[f"<b_{b}>"]) for a, b in codes]
    model = plain_model(run / "best", FIRST + len(texts))
    answers = sorted(set(tokens))
    ids = {item: place for place, item in enumerate(dict.fromkeys(i for row in sequences for i in row), start=1)}
    found, losses = {}, []
    for user, sequence in enumerate(sequences, start=1):
        history, truth = sequence[: len(sequence) - held_out][-WINDOW:], sequence[-held_out]
        prompt = [START, *(token for item in history for token in tokens[item - 1])]
        score, of_layers = scored(model, prompt, answers)
        own = tokens[truth - 1]
        before = [answer for answer, value in zip(answers, score, strict=True) if value > score[answers.index(own)]]
        sharing = sorted(ids[item + 1] for item, answer in enumerate(tokens) if answer == own and item + 1 in ids)
        items = sum(tokens[item - 1] in before for item in ids)
        found[user] = (len(before), items, len(sharing), sharing.index(ids[truth]))
        losses.append(of_layers[answers.index(own)])
    return found, torch.stack(losses).mean((0, 2))


@pytest.mark.parametrize(("split", "held_out"), [("valid", 2), ("test", 1)])
def test_places_metrics_and_losses_of_layers_are_those_of_a_plain_llama(world, split, held_out):
    run, sequences, codes, result = world
    found, losses = places_by_hand(run, sequences, codes, held_out)
    kept = load_file(run / f"ranks-{split}.safetensors")
    columns = [kept[name].tolist() for name in ("user", "beam", "before", "group", "within")]
    assert {user: tuple(places) for user, *places in zip(*columns, strict=True)} == found
    assert max(group for _, _, group, _ in found.values()) == 3, "some true items share their identifier"
    metrics = result["test_result"] if split == "test" else result["best_valid_result"]
    for k in (5, 10):
        hits, gains = [], []
        for _, before, group, _ in found.values():
            places = [before + place for place in range(group) if before + place < k]
            hits.append(len(places) / group)
            gains.append(sum(1 / np.log2(place + 2) for place in places) / group)
        assert metrics[f"hit@{k}"] == pytest.approx(np.mean(hits), abs=5e-5)
        assert metrics[f"ndcg@{k}"] == pytest.approx(np.mean(gains), abs=5e-5)
    if split == "valid":
        scores = [
            line["valid/ndcg@10"] for line in map(json.loads, (run / "history.jsonl").open()) if "valid/ndcg@10" in line
        ]
        assert result["layer_losses"][int(np.argmax(scores))]["losses"] == pytest.approx(losses.tolist(), abs=1e-6)
