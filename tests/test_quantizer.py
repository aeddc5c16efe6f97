"""RQ-VAE, its Sinkhorn plan, and the item vectors it is fed with."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.item_vectors import encoder_vectors, tfidf_vectors
from recbole_ilrec.identifiers.quantizer import (
    ResidualQuantizer,
    codes_per_level,
    fit_quantizer,
    level_epsilons,
    squared_distances,
)
from recbole_ilrec.identifiers.sinkhorn import transport_plan
from recbole_ilrec.models.item_index import index_vectors
from recbole_ilrec.settings import IndexSettings

SMALL = IndexSettings(
    levels=3, codebook_size=4, hidden=(32,), code_dim=8, epochs=40, batch_size=64, sinkhorn_epsilon=(0,)
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def hierarchy():
    """4 x 4 x 4 Gaussian clusters whose spread falls from level to level; labels [I, 3]."""
    labels = torch.cartesian_prod(*[torch.arange(4)] * 3).repeat(4, 1)
    top, middle, low = 6 * random(4, 16), 2 * random(4, 4, 16, seed=1), 0.7 * random(4, 4, 4, 16, seed=2)
    a, b, c = labels.T
    return top[a] + middle[a, b] + low[a, b, c] + 0.05 * random(len(labels), 16, seed=3), labels


def model_of(settings, dimension=16, codes=4):
    return ResidualQuantizer(dimension, settings, codes=codes, generator=torch.Generator().manual_seed(0))


def learn_codes(vectors, settings, seed):
    return fit_quantizer(vectors, settings, seed).encode(vectors)


# --- codes


def test_items_of_a_cluster_share_their_prefix(hierarchy):
    vectors, labels = hierarchy
    codes = learn_codes(vectors, SMALL, seed=0)
    assert codes.shape == (256, 3) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 4
    same_cluster = labels[:, None, 0] == labels[None, :, 0]
    same_code = codes[:, None, 0] == codes[None, :, 0]
    assert same_code[same_cluster].float().mean() > 0.95
    assert same_code[~same_cluster].float().mean() < 0.05
    twins = (labels[:, None] == labels[None]).all(-1)
    assert (codes[:, None] == codes[None]).all(-1)[twins].float().mean() > 0.8


def test_training_lowers_the_reconstruction_error(hierarchy):
    vectors, _ = hierarchy
    untrained = fit_quantizer(vectors, SMALL.model_copy(update={"epochs": 0}), seed=0)
    trained = fit_quantizer(vectors, SMALL, seed=0)
    with torch.no_grad():
        assert trained(vectors)[0] < 0.5 * untrained(vectors)[0]


def test_same_seed_gives_the_same_codes_and_leaves_the_global_state_alone(hierarchy):
    vectors, _ = hierarchy
    settings = SMALL.model_copy(update={"epochs": 3, "dropout": 0.1, "batch_norm": True})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = learn_codes(vectors, settings, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(learn_codes(vectors, settings, seed=5), first)
    assert not torch.equal(learn_codes(vectors, settings, seed=6), first)


def test_codes_do_not_depend_on_the_unit_of_the_vectors(hierarchy):
    vectors, _ = hierarchy
    few = SMALL.model_copy(update={"epochs": 2})
    assert torch.equal(learn_codes(vectors, few, seed=0), learn_codes(vectors * 1024, few, seed=0))


def test_each_level_takes_the_code_nearest_to_the_rest():
    model = model_of(SMALL).eval()
    latent = random(20, 8)
    codes = model.quantise(latent).codes
    residual = latent
    for level, codebook in enumerate(model.codebooks.detach()):
        brute = torch.stack([(residual - code).square().sum(1) for code in codebook], 1)
        torch.testing.assert_close(squared_distances(residual, codebook), brute, atol=1e-4, rtol=1e-4)
        assert torch.equal(codes[:, level], brute.argmin(1))
        residual = residual - codebook[codes[:, level]]


def test_last_level_distances_are_least_at_the_last_code(hierarchy):
    vectors, _ = hierarchy
    model = fit_quantizer(vectors, SMALL.model_copy(update={"epochs": 1}), seed=0)
    assert torch.equal(model.last_level_distances(vectors).argmin(1), model.encode(vectors)[:, -1])


def test_gradient_goes_straight_through_the_codes():
    model = model_of(SMALL)
    latent = random(6, 8).requires_grad_()
    quantised = model.quantise(latent)
    weight = random(6, 8, seed=1)
    (gradient,) = torch.autograd.grad((quantised.latent * weight).sum(), latent)
    torch.testing.assert_close(gradient, weight)
    chosen = sum(book[column] for book, column in zip(model.codebooks, quantised.codes.T, strict=True))
    torch.testing.assert_close(quantised.latent, chosen)


def test_commitment_moves_the_encoder_and_the_rest_only_the_codebooks():
    latent = random(6, 8).requires_grad_()
    free = model_of(SMALL.model_copy(update={"commitment": 0.0}))
    free.quantise(latent).loss.backward()
    assert latent.grad is None or not latent.grad.any()
    assert free.codebooks.grad.any()
    tied, latent.grad = model_of(SMALL), None
    quantised = tied.quantise(latent)
    quantised.loss.backward()
    torch.testing.assert_close(tied.codebooks.grad, free.codebooks.grad)
    chosen = torch.stack([book[column] for book, column in zip(tied.codebooks, quantised.codes.T, strict=True)])
    rest = (latent - chosen.cumsum(0)).sum(0).detach()  # what each level leaves: that of every level is to shrink
    torch.testing.assert_close(latent.grad, SMALL.commitment * 2 * rest / latent.numel() / SMALL.levels)


def test_quantisation_loss_is_the_mean_over_levels_of_codebook_and_commitment():
    """One level, code (0, ..., 0), latent all 2: codebook MSE 4 + 0.25 * commitment MSE 4 = 5."""
    model = model_of(SMALL.model_copy(update={"levels": 1}), codes=2)
    with torch.no_grad():
        model.codebooks.zero_()
    assert model.quantise(torch.full((3, 8), 2.0)).loss.item() == pytest.approx(5.0)


def test_batch_norm_and_dropout_are_real_switches():
    plain = model_of(SMALL)
    assert {type(layer).__name__ for layer in plain.encoder} == {"Linear", "ReLU"}
    full = model_of(SMALL.model_copy(update={"batch_norm": True, "dropout": 0.5}))
    assert {type(layer).__name__ for layer in full.encoder} == {"SeededDropout", "Linear", "BatchNorm1d", "ReLU"}
    inputs = random(4, 16)
    assert torch.equal(full.eval().encoder(inputs), full.encoder(inputs))


def test_looking_at_codes_does_not_end_the_training():
    model, vectors = model_of(SMALL).train(), random(9, 16)
    for look in (model.encode, model.last_level_distances, lambda v: model.start(v, torch.Generator())):
        look(vectors)
        assert model.training and model.encoder.training


def test_the_state_with_the_fewest_collisions_is_kept(monkeypatch):
    vectors, counts, encode = random(60, 6), [], ResidualQuantizer.encode

    def counted(model, rows):
        codes = encode(model, rows)
        counts.append(len(rows) - len(codes.unique(dim=0)))
        return codes

    monkeypatch.setattr(ResidualQuantizer, "encode", counted)
    model = fit_quantizer(vectors, SMALL.model_copy(update={"learning_rate": 0.3}), seed=0)
    kept = len(vectors) - len(encode(model, vectors).unique(dim=0))
    assert kept == min(counts) < counts[-1]


@pytest.mark.parametrize(
    "change",
    [{"commitment": 2.0}, {"quantisation_weight": 0.1}, {"weight_decay": 0.9}, {"sinkhorn_iterations": 1}],
    ids=str,
)
def test_what_is_set_for_the_training_changes_what_is_learned(change):
    few = SMALL.model_copy(update={"epochs": 2, "sinkhorn_epsilon": (0.003,)})
    books = [fit_quantizer(random(40, 6), few.model_copy(update=own), seed=0).codebooks for own in ({}, change)]
    assert not torch.equal(*books)


def test_steps_grow_at_first_and_then_shrink_to_nothing(monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def noted(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    fit_quantizer(random(64, 6), SMALL, seed=0)  # 40 steps, two of warm-up
    assert rates[:2] == pytest.approx([SMALL.learning_rate / 2, SMALL.learning_rate])
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < SMALL.learning_rate / 20


# --- edges


@pytest.mark.parametrize("items", [1, 2, 3, 5])
def test_tiny_catalogues_are_quantised(items):
    settings = SMALL.model_copy(update={"epochs": 2, "batch_norm": True, "codebook_size": 256, "batch_size": 2})
    assert learn_codes(random(items, 6), settings, seed=0).shape == (items, 3)


@pytest.mark.parametrize(("items", "expected"), [(1, 2), (20, 5), (400, 100), (1682, 256), (10**6, 256)])
def test_codebook_is_capped_for_small_catalogues(items, expected):
    assert codes_per_level(items, IndexSettings()) == expected


def test_one_level_has_room_for_every_item():
    assert codes_per_level(50, IndexSettings(levels=1)) == 100


def test_capped_codebook_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        fit_quantizer(random(20, 6), SMALL.model_copy(update={"codebook_size": 99, "epochs": 1}), seed=0)
    assert "codebook of 5 codes instead of 99" in caplog.text


@pytest.mark.parametrize("vectors", [torch.tensor([[1.0], [float("nan")]]), torch.zeros(0, 3), torch.zeros(3)])
def test_unusable_vectors_are_refused(vectors):
    with pytest.raises(UserError):
        learn_codes(vectors, SMALL, seed=0)


def test_diverged_training_is_reported():
    with pytest.raises(UserError, match="diverged. Lower index.learning_rate"):
        learn_codes(random(50, 6), SMALL.model_copy(update={"learning_rate": 1e30}), seed=0)


# --- Sinkhorn


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.003])
@pytest.mark.parametrize("shape", [(40, 8), (5, 16), (1, 4)])
def test_transport_plan_has_uniform_marginals(shape, epsilon):
    distances = random(*shape).square() * 1e4
    plan = transport_plan(distances, epsilon, 3000)
    assert plan.dtype == torch.float64 and plan.isfinite().all()
    torch.testing.assert_close(plan.sum(0), torch.full((shape[1],), 1 / shape[1], dtype=torch.float64))
    torch.testing.assert_close(
        plan.sum(1), torch.full((shape[0],), 1 / shape[0], dtype=torch.float64), atol=5e-3, rtol=0
    )


@pytest.mark.parametrize("epsilon", [0.5, 0.003, 1e-5])
def test_transport_plan_equals_log_space_iterations(epsilon):
    distances = random(30, 12).square().double()
    low, high = distances.min(), distances.max()
    log_plan = -(distances - (low + high) / 2) / ((high - low) / 2) / epsilon
    for _ in range(70):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(0)
    torch.testing.assert_close(transport_plan(distances, epsilon, 70), log_plan.exp() / 12, atol=1e-9, rtol=1e-6)


def test_transport_plan_of_equal_distances_is_uniform():
    torch.testing.assert_close(transport_plan(torch.ones(3, 5), 0.003, 50), torch.full((3, 5), 1 / 15).double())


def test_sinkhorn_spreads_a_batch_over_the_codes_only_while_training():
    settings = SMALL.model_copy(update={"levels": 1, "sinkhorn_epsilon": (0.003,)})
    model = model_of(settings)
    latent = 0.01 * random(40, 8) + 5
    with torch.no_grad():
        model.codebooks[0, 0] = 5.0
    spread = model.train().quantise(latent).codes[:, 0].bincount(minlength=4)
    assert len(spread) == 4 and spread.min() >= 5
    assert model.eval().quantise(latent).codes.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("given", "levels", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.003), 4, (0, 0, 0, 0.003)),
        ((0.003,), 3, (0, 0, 0.003)),
        ((0.1, 0.2, 0.3), 2, (0.2, 0.3)),
        ((), 2, (0, 0)),
    ],
)
def test_epsilons_are_aligned_to_the_last_level(given, levels, expected):
    assert level_epsilons(IndexSettings(sinkhorn_epsilon=given, levels=levels)) == expected


# --- item vectors

TITLES = ["red guitar strings", "blue guitar strings", "steel drum kit", "wooden drum sticks", "", "ピアノ 椅子"]


@pytest.mark.parametrize("dimension", [3, 100])
def test_tfidf_rows_have_unit_length_and_follow_the_words(dimension, caplog):
    vectors = tfidf_vectors(TITLES, dimension, seed=0)
    assert vectors.dtype == torch.float32 and vectors.shape[0] == 6 and vectors.shape[1] <= dimension
    lengths = vectors.norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1, 1, 1, 0, 1]))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] - 1e-6
    assert "1 items have no text" in caplog.text
    assert torch.equal(vectors, tfidf_vectors(TITLES, dimension, seed=0))


def test_vectors_of_texts_have_the_length_that_is_set():
    assert index_vectors({"seed": 0}, None, TITLES, IndexSettings(dimension=3)).shape == (6, 3)


def test_tfidf_of_texts_without_words_is_refused():
    with pytest.raises(UserError, match="No word in the texts of 2 items"):
        tfidf_vectors(["", "  "], 8, seed=0)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """A two-layer BERT with random weights and a word-level tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", *sorted({word for title in TITLES for word in title.split()})]
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_encoder_vectors_do_not_depend_on_padding_and_empty_texts_are_zero(tiny_encoder):
    titles = [*TITLES, "guitar " * 40]
    together = encoder_vectors(titles, str(tiny_encoder), batch_size=8)
    alone = encoder_vectors(titles, str(tiny_encoder), batch_size=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(together.norm(dim=1).numpy(), [1, 1, 1, 1, 0, 1, 1], rtol=1e-5)


def test_an_encoder_without_a_padding_token_pads_with_its_end(tiny_encoder, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    raw = transformers.PreTrainedTokenizerFast.from_pretrained(tiny_encoder).backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[UNK]").save_pretrained(folder)
    torch.testing.assert_close(encoder_vectors(TITLES, str(folder)), encoder_vectors(TITLES, str(tiny_encoder)))


def test_missing_or_foreign_encoder_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        encoder_vectors(["a"], str(tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        encoder_vectors(["a"], str(tmp_path))
    assert "\n" not in str(caught.value)
