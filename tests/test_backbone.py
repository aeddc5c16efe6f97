"""Backbones: states where they are asked for, the head of the model itself, folders of Hugging Face models."""

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.causal_lm import pooled_states
from recbole_ilrec.backbone.shared_prefix import shared_tokens
from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import build_objective
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.schema import TokenBatch
from recbole_ilrec.settings import BackboneSettings, ILRecSettings
from tests.worlds import QUICK, SMALL, ring_world, small_backbone, write_dataset

ITEM_TOKENS = ["<a_1>", "<a_2>", "<b_1>"]
WORDS = ["the user bought these items, what comes next? a guitar, strings and a capo"]


CONFIGS = {"Gemma3": "Gemma3TextConfig"}
"""Families whose configuration has another name."""


def tiny_of(family: str, vocabulary: int, *, tied: bool, width: int = 32):
    """A random model of a family, small enough for a test."""
    import transformers

    shared = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "pad_token_id": 0, "eos_token_id": 2}
    if family == "GPT2":
        config = transformers.GPT2Config(n_embd=width, n_layer=4, n_head=2, n_positions=256, **shared)
        return transformers.GPT2LMHeadModel(config)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16} if "Gemma" in family else {"num_key_value_heads": 1}
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**sizes, **heads, **shared)
    return getattr(transformers, f"{family}ForCausalLM")(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2-style model with a text tokenizer, saved as a folder."""
    path = tmp_path_factory.mktemp("models") / "qwen"
    tokenizer = build_tokenizer([], WORDS)
    torch.manual_seed(0)
    tiny_of("Qwen2", len(tokenizer), tied=True).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


FAMILIES = ["Llama", "Qwen2", "Mistral", "Gemma", "GPT2"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_states_are_the_models_own_at_the_asked_positions(family, tied):
    torch.manual_seed(1)
    model = tiny_of(family, 40, tied=tied).eval()
    backbone = Backbone(model, tokenizer=None)
    ids = torch.randint(3, 40, (2, 6))
    select = torch.tensor([2, 5, 9])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        states = backbone.layer_states(ids, select, candidates=3)
    logits = output.logits.flatten(0, 1)[select]
    torch.testing.assert_close(states.head(states.final), logits)
    assert len(states.candidates) == 3
    for layer, candidate in zip((1, 2, 3), states.candidates, strict=True):
        hidden = output.hidden_states[layer].flatten(0, 1)[select]
        torch.testing.assert_close(candidate, backbone.norm(hidden))
        raw = backbone.layer_states(ids, select, 3, apply_final_norm=False).candidates[layer - 1]
        torch.testing.assert_close(raw, hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_of_the_last_blocks_output_gives_the_models_logits(family):
    """A1: phi applied to the last layer before its norm is the model's own prediction."""
    torch.manual_seed(2)
    model = tiny_of(family, 40, tied=True).eval()
    backbone = Backbone(model, tokenizer=None)
    kept = []
    backbone._parts[1][-1].register_forward_hook(
        lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    ids = torch.randint(3, 40, (1, 5))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(backbone.head(backbone.norm(kept[0])), logits)


def test_distillation_alone_leaves_the_last_block_as_it_is():
    """A10: the last layer only teaches; the blocks below, the final norm and the shared head learn from Eq. 8."""
    backbone = small_backbone(6)
    ids, select = torch.tensor([[5, 6, 7, 5, 6]]), torch.tensor([1, 2, 3])
    chosen = ILRecSettings(k=2, lambda_=1.0, mu=0.0)
    with_it, without = (
        _gradients(backbone, ids, select, chosen.model_copy(update={"use_cpd": use})) for use in (True, False)
    )
    moved = {name for name, gradient in with_it.items() if (gradient - without[name]).abs().max() > 1e-7}
    last = f"layers.{backbone.num_layers - 1}."
    assert moved and not {name for name in moved if last in name}
    assert {name for name in with_it if "layers.0." in name} <= moved


def _gradients(backbone, ids, select, settings):
    batch = TokenBatch(ids, select, ids[0, select + 1], select, select)
    objective = build_objective("ilrec", settings)
    states = backbone.eval().layer_states(ids, select, 2)
    named = {name: weight for name, weight in backbone.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(objective(states, batch, None).total, list(named.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(named, found, strict=True)}


@pytest.mark.parametrize("common", [0, 10])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_tree_steps_equal_passes_without_a_cache(family, common):
    """Two beams of two users, two tokens deep, prompts of different length, whose beginning may be common."""
    torch.manual_seed(3)
    model = tiny_of(family, 40, tied=False).eval()
    backbone = Backbone(model, tokenizer=None)
    beginning = list(range(20, 20 + common))
    prompts = [beginning + [5, 6, 7, 8], beginning + [9, 10]]
    ids = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    mask = torch.tensor([[True] * (common + 4), [False, False] + [True] * (common + 2)])
    taken = torch.tensor([[[11, 13], [18, 15]], [[12, 14], [16, 17]]])
    parent = torch.tensor([[1, 0], [1, 1]])
    with torch.no_grad():
        last, state = backbone.prefill(ids, mask)
        first = backbone.extend(state, taken[0], torch.zeros_like(parent))
        second = backbone.extend(state, taken[1], parent)
        for user in range(2):
            for beam, before in enumerate(parent[user].tolist()):
                answer = [int(taken[0, user, before]), int(taken[1, user, beam])]
                whole = model(input_ids=torch.tensor([prompts[user] + answer])).logits[0, -3:]
                got = torch.stack([last[user, 0], first[user, before], second[user, beam]])
                torch.testing.assert_close(backbone.head(got), whole, atol=1e-4, rtol=1e-4)


def test_what_all_prompts_begin_with_is_encoded_once():
    backbone = Backbone(tiny_of("Llama", 40, tied=False).eval(), tokenizer=None)
    seen = []
    backbone.decoder.register_forward_pre_hook(
        lambda module, inputs, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    ids = torch.arange(5, 17).repeat(3, 1)  # equal prompts: the last token is left to each
    mask = torch.ones_like(ids).bool()
    alike, _ = backbone.prefill(ids, mask)
    alone, _ = backbone.prefill(ids[:1], mask[:1])
    assert seen == [(1, 11), (3, 1), (1, 12)]
    torch.testing.assert_close(alike, alone.expand(3, -1, -1))


@pytest.mark.parametrize(
    "prompts, count",
    [
        ([[7, 8, 9], [7, 8, 9]], 2),
        ([[7, 8, 9, 1], [7, 8, 2]], 2),
        ([[7, 8, 9, 1], [7, 3, 9, 1]], 1),
        ([[0, 8, 9], [8, 9]], 0),  # a token of its own may be the padding's
        ([[7], [7, 8, 9]], 0),
    ],
)
def test_tokens_in_common_are_counted_from_each_prompts_first(prompts, count):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    assert shared_tokens(ids, mask) == count


def test_too_many_candidate_layers_are_refused():
    backbone = small_backbone(4)
    with pytest.raises(UserError, match="k=3 candidate layers are not available: this backbone has 3 layers"):
        backbone.layer_states(torch.tensor([[1, 4]]), torch.tensor([0]), 3)


def test_the_seed_alone_decides_fresh_weights():
    torch.manual_seed(5)
    one = small_backbone(4, seed=7).model.lm_head.weight
    torch.manual_seed(6)
    two = small_backbone(4, seed=7).model.lm_head.weight
    assert torch.equal(one, two)
    assert not torch.equal(one, small_backbone(4, seed=8).model.lm_head.weight)


def test_tiny_dropout_keeps_the_mean_and_is_off_in_evaluation():
    backbone = small_backbone(4, SMALL.model_copy(update={"dropout": 0.3}))
    ids = torch.full((64, 8), 5)
    select = torch.arange(64 * 8)
    backbone.eval()
    quiet = backbone.layer_states(ids, select).final
    assert torch.equal(quiet, backbone.layer_states(ids, select).final)
    seen = []
    backbone.blocks[0].register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].detach()))
    backbone.train()
    noisy = backbone.layer_states(ids, select).final
    assert not torch.equal(noisy, backbone.layer_states(ids, select).final)
    zero = (seen[0] == 0).float().mean().item()
    assert zero == pytest.approx(0.3, abs=0.02)
    plain = backbone.model.get_decoder().embed_tokens.weight[5]
    np.testing.assert_allclose(seen[0].mean((0, 1)), plain.detach(), atol=4e-3)


def test_item_tokens_become_single_new_rows_of_a_pretrained_model(folder):
    backbone = build_backbone(BackboneSettings(path=str(folder)), ITEM_TOKENS, [], seed=0)
    ids = backbone.tokenizer.convert_tokens_to_ids(ITEM_TOKENS)
    assert len(set(ids)) == 3 and backbone.vocab_size > max(ids)
    assert backbone.tokenizer.encode("<a_2><b_1>", add_special_tokens=False) == ids[1:]
    again = build_backbone(BackboneSettings(path=str(folder)), ITEM_TOKENS, [], seed=0)
    assert torch.equal(again.model.lm_head.weight, backbone.model.lm_head.weight)


@pytest.mark.parametrize("spare", [0, 2, 9])
def test_item_tokens_start_near_the_mean_of_the_words_whatever_rows_were_spare(tmp_path, spare):
    """Qwen's embeddings have rows beyond its tokens, which were never trained."""
    tokenizer = build_tokenizer([], WORDS)
    torch.manual_seed(0)
    model = tiny_of("Qwen2", len(tokenizer) + spare, tied=False)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight[len(tokenizer) :] = 7.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = build_backbone(BackboneSettings(path=str(tmp_path)), ITEM_TOKENS, [], seed=0)
    ids = backbone.tokenizer.convert_tokens_to_ids(ITEM_TOKENS)
    for embedding in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
        words, items = embedding.weight[: len(tokenizer)], embedding.weight[ids]
        torch.testing.assert_close(items, words.mean(0).expand_as(items), atol=1e-4, rtol=0)
    untouched = build_backbone(BackboneSettings(path=str(tmp_path)), [], [], seed=0)
    assert untouched.vocab_size == len(tokenizer) + spare


def test_pooled_states_ignore_padding_and_leave_empty_texts_zero(folder):
    settings = BackboneSettings(path=str(folder))
    together = pooled_states(settings, ["a guitar", "", "strings and a capo, what comes next?"], batch_size=3)
    alone = pooled_states(settings, ["a guitar"])
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-4)
    assert together[1].abs().sum() == 0


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        build_backbone(BackboneSettings(path=str(tmp_path)), ITEM_TOKENS, [], seed=0)


def test_ilrec_trains_a_pretrained_folder_with_a_worded_prompt(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world(users=12))
    settings = {key: value for key, value in QUICK.items() if not key.startswith("backbone.")}
    result = run_recbole_ilrec(
        "ILRec",
        "ring",
        config_dict={**settings, "backbone": str(folder), "prompt.template": "lcrec", "max_steps": 3, "epochs": 1},
    )
    assert set(result["test_result"]) == {"hit@5", "hit@10", "ndcg@5", "ndcg@10"}
