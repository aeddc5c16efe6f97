"""Adapters on frozen backbones: what is trained, what is kept, what quantisation does to the gradients."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.backbone import head as heads
from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.weights import weights
from recbole_ilrec.settings import AdapterSettings, BackboneSettings
from tests.test_backbone import ITEM_TOKENS, WORDS, tiny_of
from tests.worlds import QUICK, SMALL, ring_world, small_backbone, write_dataset

LORA = AdapterSettings(lora=True, r=2, dropout=0.0)
IDS = torch.tensor([[5, 6, 7, 8]])


def save_model(path, family, *, tied, width=32):
    """A random model of a family with a text tokenizer, as a folder."""
    tokenizer = build_tokenizer([], WORDS)
    torch.manual_seed(0)
    tiny_of(family, len(tokenizer), tied=tied, width=width).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    kinds = [("Llama", False), ("Llama", True), ("GPT2", True)]
    return {kind: save_model(root / f"{kind[0]}{kind[1]}", kind[0], tied=kind[1]) for kind in kinds}


def with_item_tokens(backbone):
    ids = backbone.tokenizer.convert_tokens_to_ids(ITEM_TOKENS)
    return torch.tensor([[5, *ids, 6]])


def loss_of(backbone, ids):
    states = backbone.layer_states(ids, torch.arange(ids.numel() - 1), 2)
    logits = [states.head(state).float() for state in (states.final, *states.candidates)]
    return sum(nn.functional.cross_entropy(each, ids[0, 1:]) for each in logits)


def shake(backbone):
    """Give every trained weight another value, so that an adapter does something."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in weights(backbone).values():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("GPT2", True)])
def test_adapters_and_the_item_tokens_rows_are_trained_and_nothing_else(folders, family, tied):
    backbone = build_backbone(BackboneSettings(path=folders[family, tied]), ITEM_TOKENS, [], 0, LORA)
    before = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}
    loss_of(backbone, with_item_tokens(backbone)).backward()
    moved = [parameter for parameter in backbone.parameters() if parameter.grad is not None]
    torch.optim.SGD(moved, lr=0.1).step()
    changed = {name for name, parameter in backbone.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= set(weights(backbone)) and any("lora_B" in name for name in changed)
    rows = {name: p.shape for name, p in weights(backbone).items() if "lora_" not in name}
    assert len(rows) == (1 if tied else 2) and set(rows.values()) == {(3, 32)} and set(rows) <= changed


def test_all_rows_or_none_can_be_trained(folders):
    for (_, tied), path in folders.items():
        for rows, expected in (("all", 1 if tied else 2), ("none", 0)):
            adapter = LORA.model_copy(update={"rows": rows})
            backbone = build_backbone(BackboneSettings(path=path), ITEM_TOKENS, [], 0, adapter)
            trained = [p for name, p in weights(backbone).items() if "lora_" not in name]
            assert len(trained) == expected and all(len(p) == backbone.vocab_size for p in trained)
            assert (backbone.untrained() is None) == (rows == "all")
            inputs, outputs = backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()
            assert (inputs.weight is outputs.weight) == tied


def test_targets_can_be_chosen_and_the_seed_decides_the_adapters(folders):
    settings, adapter = BackboneSettings(path=folders["GPT2", True]), LORA.model_copy(update={"targets": ("c_attn",)})
    one = weights(build_backbone(settings, ITEM_TOKENS, [], 3, adapter))
    assert {name.split(".")[-4] for name in one if "lora_" in name} == {"c_attn"}
    torch.manual_seed(9)
    two = weights(build_backbone(settings, ITEM_TOKENS, [], 3, adapter))
    assert all(torch.equal(two[name], one[name]) for name in one)


@torch.no_grad()
def test_switched_off_adapters_leave_the_published_model(folders):
    path = folders["Llama", False]
    backbone = build_backbone(BackboneSettings(path=path), ITEM_TOKENS, [], 0, LORA).eval()
    plain = build_backbone(BackboneSettings(path=path), ITEM_TOKENS, [], 0).eval()
    ids = with_item_tokens(backbone)
    expected = plain.layer_states(ids, torch.arange(4), 1)
    shake(backbone)
    assert not torch.allclose(backbone.layer_states(ids, torch.arange(4), 1).final, expected.final, atol=1e-3)
    with backbone.untrained():
        got = backbone.layer_states(ids, torch.arange(4), 1)
        torch.testing.assert_close(got.final, expected.final)
        torch.testing.assert_close(got.head(got.final), expected.head(expected.final))


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_recomputed_activations_give_the_same_gradients(folders, family):
    gradients = []
    for again in (False, True):
        settings = BackboneSettings(path=folders[family, True], gradient_checkpointing=again)
        backbone = build_backbone(settings, ITEM_TOKENS, [], 0, LORA.model_copy(update={"rows": "all"}))
        backbone.train()
        shake(backbone)
        torch.manual_seed(1)
        loss_of(backbone, with_item_tokens(backbone)).backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)


@pytest.mark.parametrize("again", [False, True])
def test_activations_are_recomputed_in_evaluation_mode_too_where_that_is_asked_for(folders, again):
    """Preference models train without dropout, which is evaluation mode, where transformers keeps all activations."""
    settings = BackboneSettings(path=folders["Llama", True], gradient_checkpointing=again)
    backbone = build_backbone(settings, ITEM_TOKENS, [], 0, LORA.model_copy(update={"dropout": 0.5})).eval()
    backbone.keep_checkpointing()
    passes = []
    backbone.blocks[1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    ids = with_item_tokens(backbone)
    losses = [loss_of(backbone, ids) for _ in range(2)]
    assert losses[0] == losses[1], "nothing is dropped"
    losses[0].backward()
    assert len(passes) == (3 if again else 2)
    blocks = small_backbone(3, SMALL.model_copy(update={"gradient_checkpointing": again})).eval()
    blocks.keep_checkpointing()
    assert not any(block.training for block in blocks.blocks), "their dropout is their own"


def test_gradients_through_four_bits_are_those_of_the_rounded_weights(tmp_path):
    """To 2%, also after a pass in evaluation: the two kinds of layers multiply in another order."""
    pytest.importorskip("bitsandbytes")
    four_bits = BackboneSettings(path=save_model(tmp_path, "Llama", tied=False, width=64), quantization="nf4")
    found = []
    for settings in (four_bits, four_bits.model_copy(update={"dequantise": True})):
        backbone = build_backbone(settings, ITEM_TOKENS, [], 0, LORA)
        shake(backbone)
        with torch.no_grad():
            loss_of(backbone.eval(), with_item_tokens(backbone))
        loss = loss_of(backbone.train(), with_item_tokens(backbone))
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}))
        kinds = {type(module).__name__ for module in backbone.model.modules()}
        assert ("Linear4bit" in kinds) != settings.dequantise
    (loss, gradients), (reference, expected) = found
    assert loss == pytest.approx(reference, rel=0.02)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 0.02 * expected[name].norm(), name
    plain = build_backbone(four_bits.model_copy(update={"quantization": None}), ITEM_TOKENS, [], 0, LORA)
    shake(plain)
    assert loss_of(plain, with_item_tokens(plain)).item() != pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("GPT2", True)])
@pytest.mark.parametrize("rows", ["new", "all"])
def test_what_learns_on_bfloat16_weights_is_float32(folders, family, tied, rows):
    """An AdamW step of a usual size is below the precision of bfloat16: 43% of the entries would never move."""
    adapter, gradients = LORA.model_copy(update={"rows": rows}), []
    for dtype in ("float32", "bfloat16"):
        backbone = build_backbone(
            BackboneSettings(path=folders[family, tied], dtype=dtype), ITEM_TOKENS, [], 0, adapter
        )
        assert {p.dtype for p in weights(backbone).values()} == {torch.float32}
        assert {p.dtype for p in backbone.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
        ids = with_item_tokens(backbone)
        with torch.no_grad():  # decoding: a mask of the model's own precision
            _, state = backbone.prefill(ids[:, :2], torch.ones(1, 2, dtype=torch.bool))
            assert backbone.extend(state, ids[:, 2:3], torch.zeros(1, 1, dtype=torch.long)).isfinite().all()
        shake(backbone)
        loss_of(backbone, ids).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.requires_grad})
        with torch.autocast("cpu", torch.bfloat16):
            assert loss_of(backbone, ids).isfinite()
    exact, rounded = (torch.cat([p.flatten() for p in each.values()]) for each in gradients)
    assert gradients[0].keys() == gradients[1].keys() and any("lora_" not in name for name in gradients[0])
    assert (rounded - exact).norm() < 0.25 * exact.norm()  # weights and states are rounded, in a model of large ones


@pytest.mark.parametrize(
    ("settings", "adapter", "message"),
    [
        ({"quantization": "nf4"}, {}, "train adapters on them with --lora=true"),
        ({"dtype": "bfloat16"}, {}, "backbone.dtype=bfloat16 rounds most steps.*--lora=true, or .*--train.bf16=true"),
        ({}, {"lora": True, "targets": ("q_proj", "qkv")}, "adapter.targets names 'qkv'.* choose from .*q_proj"),
        ({"path": None}, {"lora": True}, "backbone=tiny is trained from scratch"),
        ({"path": None, "quantization": "nf4"}, {}, "backbone=tiny is trained from scratch"),
        ({"path": None, "dtype": "bfloat16"}, {}, "backbone.dtype=bfloat16 is for pretrained weights.*--train.bf16"),
    ],
)
def test_what_does_not_fit_together_is_refused(folders, settings, adapter, message):
    settings = BackboneSettings(**{"path": folders["Llama", False], **settings})
    with pytest.raises(UserError, match=message):
        build_backbone(settings, ITEM_TOKENS, [], 0, AdapterSettings(**adapter))


def run_lora(tmp_path, folder, model="ILRec", **changes):
    settings = {key: value for key, value in QUICK.items() if not key.startswith("backbone.")}
    own = {"backbone": folder, "lora": True, "adapter.r": 2, "learning_rate": 1e-2, "epochs": 1, "num_beams": 10}
    if not (tmp_path / "dataset").is_dir():
        write_dataset(tmp_path / "dataset", "ring", *ring_world(users=12))
    return run_recbole_ilrec(model, "ring", config_dict={**settings, **own, **changes})


def test_a_checkpoint_holds_adapters_and_new_rows_and_resumes_exactly(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"max_steps": 4, "save_steps": 2, "train_batch_size": 16, "train.ema": 0.5, "mu": 0}
    run_lora(tmp_path, folders["Llama", True], checkpoint_dir="straight", **changes)
    run = next((tmp_path / "straight").glob("ILRec-ring-*"))
    best = load_state(run / "best")["model"]
    assert best and all("lora_" in name or "trainable_tokens_delta" in name for name in best)
    state = load_state(run / "checkpoint-2")
    assert set(state["model"]) == set(best)
    assert len(state["average"]) == len(best) and len(state["optimizer"]["state"]) == len(best)
    (tmp_path / "again").mkdir()
    (run / "checkpoint-2").rename(tmp_path / "again" / "checkpoint-2")
    run_lora(tmp_path, folders["Llama", True], resume_from_checkpoint="again", **changes)
    resumed = load_state(tmp_path / "again" / "best")["model"]
    assert all(torch.equal(resumed[name], best[name]) for name in best)


def test_adapters_of_another_base_model_are_named_and_not_taken(tmp_path, monkeypatch, caplog):
    """The same path, settings and shapes, but other weights below: only their content tells."""
    monkeypatch.chdir(tmp_path)
    folder = save_model(tmp_path / "base", "Llama", tied=True)
    changes = {"max_steps": 2, "save_steps": 1, "train_batch_size": 16, "mu": 0, "eval_users": 4}
    run_lora(tmp_path, folder, **changes)
    (run,) = (tmp_path / "saved").glob("ILRec-ring-*")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_decoder().layers[1].mlp.up_proj.weight.data.add_(0.01)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="checkpoint-2 is of a run with another base model under the adapters: "):
        run_lora(tmp_path, folder, resume_from_checkpoint=str(run), **changes)
    assert "An older checkpoint is tried." in caplog.text
    run_lora(tmp_path, folder, resume_from_checkpoint="auto", **changes)  # another run, so it is not gone on with
    assert len(list((tmp_path / "saved").glob("ILRec-ring-*"))) == 2
    with pytest.raises(UserError, match="best was trained on another base model"):
        run_lora(tmp_path, folder, "DPO", **changes, **{"preference.checkpoint": str(supervised(tmp_path, folder))})


def supervised(tmp_path, folder):
    """A run of LCRec whose base model is another by now."""
    run_lora(tmp_path, folder, "LCRec", max_steps=1, train_batch_size=16, eval_users=4, checkpoint_dir="supervised")
    save_model(tmp_path / "base", "Llama", tied=True)
    return next((tmp_path / "supervised").glob("LCRec-ring-*"))


@pytest.mark.parametrize("model", ["SDPO", "BIGRec"])
def test_preference_models_and_titles_train_adapters_in_bfloat16(folders, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    folder = write_dataset(tmp_path / "dataset", "ring", *ring_world(users=12))
    titles = [f"i{item}\tguitar number {item}" for item in range(1, 25)]
    (folder / "ring.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n")
    changes = {"max_steps": 2, "eval_users": 4, "preference.epochs": 1, "preference.examples": 8, "train.bf16": True}
    titles = {"bigrec.beams": 1, "bigrec.max_new_tokens": 8}
    result = run_lora(tmp_path, folders["Llama", False], model, **changes, **titles)
    assert set(result["test_result"]) == {"hit@5", "hit@10", "ndcg@5", "ndcg@10"}


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("GPT2", True)])
def test_the_head_with_trained_rows_is_peft_own_without_its_copy_of_the_matrix(folders, family, tied):
    """Logits, and the gradients of states and rows; of a head narrowed to some tokens too."""
    backbone = build_backbone(BackboneSettings(path=folders[family, tied]), ITEM_TOKENS, [], 0, LORA)
    shake(backbone)
    module, size = backbone.model.get_output_embeddings(), backbone.vocab_size
    (rows,) = {id(p): p for name, p in module.named_parameters() if "trainable_tokens_delta" in name}.values()
    states, by_logits = torch.randn(4, 32, requires_grad=True), torch.randn(4, size)
    tokens = torch.tensor([size - 1, 2, *backbone.tokenizer.convert_tokens_to_ids(ITEM_TOKENS[:2])])
    peft_own, own = module(states), backbone.head(states)
    narrowed = nn.functional.linear(states, *backbone.head_rows(tokens))
    torch.testing.assert_close(own, peft_own)
    torch.testing.assert_close(narrowed, peft_own[:, tokens])
    for mine, theirs, weight in ((own, peft_own, by_logits), (narrowed, peft_own[:, tokens], by_logits[:, :4])):
        got, expected = (torch.autograd.grad(x, [states, rows], weight, retain_graph=True) for x in (mine, theirs))
        torch.testing.assert_close(got, expected)
    assert heads.is_matrix(module)
    with backbone.untrained():
        assert not heads.is_matrix(module)
        torch.testing.assert_close(backbone.head(states), module(states))
