"""Exported models: what plain transformers and peft make of the folder is what this package made of the model."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from recbole_ilrec.cli import main
from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs.export import export_run
from tests.test_adapter import save_model
from tests.worlds import QUICK, ring_world, write_dataset

CHECK = """
import json, os, sys
found = []
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    scope = {}
    exec(code, scope)
    rows = json.loads(open("golden.json").read())
    found.append([scope["recommend"](row["history"]) for row in rows])
assert not [name for name in sys.modules if name.startswith("recbole")]
print(json.dumps(found))
"""


def trained(root, **changes):
    """The folder of a run of a few steps in ``root``."""
    if not (root / "dataset").is_dir():
        folder = write_dataset(root / "dataset", "ring", *ring_world(users=12))
        titles = [f"i{item}\tguitar {item}" for item in range(1, 25)]
        (folder / "ring.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n")
    own = {"learning_rate": 0.3, "max_steps": 12, "epochs": 9, "train_batch_size": 16, "train.ema": 0.0}
    own |= {"num_beams": 10, "mu": 0}
    before = set((root / "saved").glob("ILRec-*"))
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **own, **changes})
    return next(run for run in (root / "saved").glob("ILRec-*") if run not in before)


def recommended(*folders):
    """What the programs of the model cards give in one process of their own, away from this package."""
    cards = [(folder / "README.md").read_text() for folder in folders]
    codes = [re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1) for card in cards]
    given = json.dumps([[str(folder), code] for folder, code in zip(folders, codes, strict=True)])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], input=given, cwd=folders[0], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def golden(folder):
    rows = json.loads((folder / "golden.json").read_text())
    return [[(entry["items"], entry["score"]) for entry in row["top"]] for row in rows]


def assert_same_lists(got, expected, tolerance=1e-3):
    assert len(got) == len(expected) > 0
    for mine, theirs in zip(got, expected, strict=True):
        assert theirs[0][1] - theirs[-1][1] > 100 * tolerance, "else any items would pass"
        assert len(mine) == len(theirs) == 10
        assert [score for _, score in mine] == pytest.approx([score for _, score in theirs], abs=tolerance)
        last = theirs[-1][1] + tolerance
        for items, score in mine:  # only where scores are as good as equal may places be exchanged
            near = [other for other, value in theirs if abs(score - value) < tolerance]
            assert items in near or score < last, (items, score, theirs)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_plain_libraries_give_the_same_lists_from_adapters_and_merged_weights(tmp_path, monkeypatch, tied):
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "model", "Llama", tied=tied)
    run = trained(tmp_path, backbone=model, lora=True, **{"adapter.r": 2})
    adapter = export_run(run, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert tensors and all("lora_" in name or "trainable_tokens_delta" in name for name in tensors)
    merged = export_run(run / "best", tmp_path / "merged", merge=True)
    assert not (merged / "adapter_config.json").exists()
    assert ("lm_head.weight" in load_file(merged / "model.safetensors")) != tied
    assert_same_lists(golden(merged), golden(adapter))
    folders = adapter, merged
    for folder, found in zip(folders, recommended(*folders), strict=True):
        assert_same_lists(found, golden(folder))


def test_four_bits_are_merged_as_they_were_trained(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "model", "Llama", tied=True, width=64)
    run = trained(tmp_path, backbone=model, lora=True, quantization="nf4")
    adapter, merged = export_run(run, tmp_path / "adapter"), export_run(run, tmp_path / "merged", merge=True)
    assert_same_lists(golden(merged), golden(adapter))
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert "load_in_4bit=True" in (adapter / "README.md").read_text()
    assert "BitsAndBytes" not in (merged / "README.md").read_text()


def test_a_model_trained_from_scratch_is_exported_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path)
    assert main(["export", str(run), f"--out={tmp_path / 'out'}"]) == 0
    out = tmp_path / "out"
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in out.iterdir()} == {(tmp_path / "new").stat().st_mode}  # for a server too
    card = (out / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"ndcg@10 {result['test']['ndcg@10']:.4f}" in card and "base_model" not in card
    assert "12 of 12 test rows, items of the history kept, ranked among all items" in card
    assert "12 of 12 rows, otherwise likewise" in card
    assert "lists of 10, all valid and distinct" in card and "left out" not in card
    given = json.loads((tmp_path / "dataset/ring/ring.index.json").read_text())
    assert json.loads((out / "index.json").read_text()) == given, "LC-Rec's file, which index_file takes"
    items = json.loads((out / "items.json").read_text())
    assert [item["id"] for item in items] and items[0]["title"].startswith("guitar")
    prompt, rows = json.loads((out / "prompt.json").read_text()), json.loads((out / "golden.json").read_text())
    by_id = {item["id"]: item for item in items}
    for row in rows:
        middle = [token for item in row["history"] for token in by_id[item]["tokens"] + prompt["separator"]]
        assert row["prompt"] == prompt["before"] + middle + prompt["after"]
    trie = load_file(out / "trie.safetensors")
    for item in items:
        node = 0
        for token in item["answer"]:
            low, high = trie["indptr"][node : node + 2].tolist()
            node = 1 + low + trie["token"][low:high].tolist().index(token)
        group = slice(*trie["leaf_start"][trie["leaf"][node] : trie["leaf"][node] + 2].tolist())
        assert [items[place - 1]["id"] for place in trie["item_order"][group].tolist()] == [item["id"]]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        logits = again(input_ids=torch.tensor([rows[0]["prompt"]])).logits[0, -1]
    assert torch.isfinite(logits).all()
    with pytest.raises(UserError, match="is there already"):
        export_run(run, out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "export takes a run and a new folder"),
        (["RUN", "--out=x", "--merge=maybe"], "export takes a run and a new folder"),
        (["RUN", "--out=x", "--format=onnx"], "Unknown option of export 'format'"),
        (["nowhere", "--out=x"], "There is no folder nowhere: check the path."),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "x").exists()


def test_the_card_and_its_program_leave_out_what_the_runs_numbers_leave_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, exclude_history=True)
    out = export_run(run, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "items of the history left out" in card and "recommend(history, exclude_history=False)" in card
    (found,) = recommended(out)
    rows = json.loads((out / "golden.json").read_text())
    for row, listed, every in zip(rows, found, golden(out), strict=True):
        kept = [items for items, _ in every if not set(items) <= set(row["history"])]
        assert len(kept) < len(every), "else nothing is left out"
        assert sorted(map(tuple, kept)) == sorted(tuple(items) for items, _ in listed)
