"""What a pretrained causal LM of any family must do here: the conformance suite of ``--backbone=FOLDER``."""

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.decoding.beam import beam_search
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.objective import build_objective
from recbole_ilrec.prompt.encode import Example
from recbole_ilrec.settings import BackboneSettings, ILRecSettings
from tests.test_adapter import save_model
from tests.test_backbone import tiny_of
from tests.worlds import compact_encoder

TOKENS = [f"<{level}_{code}>" for level in "ab" for code in range(3)]
IDENTIFIERS = [(0, 3), (0, 4), (1, 3), (1, 5), (2, 4), (2, 5)]
FAMILIES = [("Llama", True), ("Llama", False), ("Qwen2", True), ("Qwen3", False), ("Mistral", False)]
FAMILIES += [("Gemma", True), ("Gemma3", True), ("GPT2", True)]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda kind: f"{kind[0]}-{'tied' if kind[1] else 'untied'}")
def backbone(request, tmp_path_factory):
    family, tied = request.param
    path = save_model(tmp_path_factory.mktemp("models") / family, family, tied=tied)
    return build_backbone(BackboneSettings(path=path), TOKENS, [], 0).eval()


def catalog_of(backbone):
    ids = backbone.tokenizer.convert_tokens_to_ids(TOKENS)
    return Catalog([[ids[token] for token in each] for each in IDENTIFIERS], backbone.tokenizer.eos_token_id)


@torch.no_grad()
def test_states_are_the_models_own_hidden_states(backbone):
    ids, select = torch.arange(5, 17).view(2, 6), torch.tensor([1, 8, 11])
    output = backbone.model(input_ids=ids, output_hidden_states=True)
    states = backbone.layer_states(ids, select, 2, apply_final_norm=False)
    picked = [hidden.flatten(0, 1)[select] for hidden in output.hidden_states]
    for state, hidden in zip((*states.candidates, states.final), picked[-3:], strict=True):
        torch.testing.assert_close(state, hidden)
    torch.testing.assert_close(states.head(states.final), output.logits.flatten(0, 1)[select])


@pytest.mark.parametrize("common", [0, 10])
@torch.no_grad()
def test_beams_as_many_as_items_score_each_as_a_pass_of_its_own(backbone, common):
    catalog = catalog_of(backbone)
    prompts = [[*range(12, 12 + common), 5, 6, 7, 8], [*range(12, 12 + common), 9, 10]]
    padded = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    mask = torch.tensor([[1] * (common + 4), [0, 0] + [1] * (common + 2)]).bool()
    ranking = beam_search(backbone, catalog.trie, padded, mask, num_beams=len(IDENTIFIERS))
    for user, prompt in enumerate(prompts):
        for leaf, score in zip(ranking.leaf[user].tolist(), ranking.score[user].tolist(), strict=True):
            answer = catalog.tokens[catalog.item_order[catalog.leaf_start[leaf]]].tolist()
            logits = backbone.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            own = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
            assert score == pytest.approx(own, abs=1e-3)


def test_a_step_of_ilrec_reaches_every_block(backbone):
    encoder = compact_encoder(backbone, catalog_of(backbone))
    batch = encoder.collate([encoder.row(Example(np.array([1, 4, 2, 6]), np.array([0])))])
    items = encoder.catalog.item_token_mask(backbone.vocab_size)
    objective = build_objective("ilrec", ILRecSettings(k=2, mu=0.0), items, eos_id=backbone.tokenizer.eos_token_id)
    terms = objective(backbone.layer_states(batch.input_ids, batch.select, 2), batch, None, epoch=0.0, generator=None)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())
    backbone.zero_grad(set_to_none=True)


def test_a_prompt_past_the_attentions_window_is_refused(tmp_path):
    model = save_model(tmp_path, "Gemma3", tied=True)
    backbone = build_backbone(BackboneSettings(path=model), TOKENS, [], 0).eval()
    backbone.model.config.sliding_window = 6
    ids = torch.arange(5, 11)[None]
    _, state = backbone.prefill(ids, torch.ones_like(ids).bool())
    with pytest.raises(UserError, match="has 7 tokens, and this backbone's attention sees 6"):
        backbone.extend(state, torch.tensor([[5]]), torch.tensor([[0]]))
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])  # two answers, each of which is inside
    segment = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    backbone.answer_states(torch.arange(5, 12)[None], positions, segment, torch.tensor([4]))
    with pytest.raises(UserError, match="has 7 tokens, and this backbone's attention sees 6"):
        backbone.answer_states(torch.arange(5, 12)[None], positions + 2, segment, torch.tensor([4]))


def test_logits_with_a_cap_are_refused(tmp_path):
    """Gemma 2 squashes its logits after the head: they are not linear in the states, as Eq. 2-3 need."""
    model = tiny_of("Gemma2", 40, tied=True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100)  # a model that knows something has logits far from 0
    with pytest.raises(UserError, match="its logits are not those of its final norm and head"):
        Backbone(model, tokenizer=None).check_structure()
