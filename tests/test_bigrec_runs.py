"""Runs under titles: preference models, the choice of gamma, and the embedding of a pretrained base."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from recbole_ilrec.backbone import build_backbone, causal_lm
from recbole_ilrec.backbone.text_states import text_states
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.models import title_ranker
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.training.gamma_choice import choose_gamma
from recbole_ilrec.training.loop import StepTrainer
from tests.worlds import (
    LEARN_TITLES,
    QUICK,
    RING_TITLES,
    SMALL,
    write_titled_ring,
)

PREFER = {
    **LEARN_TITLES,
    "paradigm": "bigrec",
    "epochs": 26,
    "eval_step": 26,
    "preference.learning_rate": 3e-4,
    "preference.epochs": 1,
    "preference.num_beams": 4,
    "preference.examples": 80,
    "train.valid_users": 12,
}


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A working folder with the ring world under titles; a preference run leaves its supervised stage in the cache."""
    root = tmp_path_factory.mktemp("titles")
    write_titled_ring(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def test_preference_models_share_bigrecs_stage_and_keep_the_title_that_follows(ring, monkeypatch):
    results = {"SDPO": run_recbole_ilrec("SDPO", "ring", config_dict=PREFER)}
    stages = list((ring / "saved" / "cache" / "supervised").iterdir())
    assert [stage.name.partition("-")[0] for stage in stages] == ["BIGRec"]
    manifest = json.loads((stages[0] / "stage.json").read_text())
    assert manifest["stage"] == "BIGRec"
    compute = StepTrainer.compute_loss

    def only_preferences(self, model, inputs, *args, **kwargs):
        assert hasattr(inputs["batch"], "reference"), "the supervised stage is shared"
        return compute(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "compute_loss", only_preferences)
        results["RosePO"] = run_recbole_ilrec("RosePO", "ring", config_dict=PREFER)
    results["SPRec"] = run_recbole_ilrec("SPRec", "ring", config_dict={**PREFER, "preference.iterations": 2})
    assert {model: result["test_result"]["hit@1"] for model, result in results.items()} == dict.fromkeys(results, 1.0)


def test_a_bigrec_run_is_started_from_and_an_lcrec_stage_is_not(ring):
    given = {**PREFER, "epochs": 1, "eval_step": 1, "preference.examples": 20}
    run_recbole_ilrec("BIGRec", "ring", config_dict={**given, "checkpoint_dir": "own"})
    (run,) = (path for path in (ring / "own").iterdir() if path.name.startswith("BIGRec-"))
    result = run_recbole_ilrec("DPO", "ring", config_dict={**given, "preference.checkpoint": str(run)})
    assert 0 <= result["test_result"]["hit@1"] <= 1
    with pytest.raises(UserError, match="another model"):
        run_recbole_ilrec(
            "DPO",
            "ring",
            config_dict={**given, "paradigm": "lcrec", "index.epochs": 1, "preference.checkpoint": str(run)},
        )


# ---- gamma


GROUNDED = {
    **QUICK,
    "prompt.template": "titles",
    "train_rows": "sequence",
    "MAX_ITEM_LIST_LENGTH": 4,
    "prompt.append_eos": True,
    "bigrec.ranker": "grounding",
    "bigrec.max_new_tokens": 8,
    "topk": [1, 5],
    "valid_metric": "NDCG@5",
}


def test_gamma_is_the_best_on_validation_and_never_sees_a_test_user(ring, monkeypatch):
    settings = {**GROUNDED, "epochs": 2, "eval_step": 2, "bigrec.gamma": [100, 0, 3.0, 0]}
    ranked = []
    whole = title_ranker.TitleRanker.rankings

    def noted(self, pairs, count, gammas, **kwargs):
        ranked.append((list(gammas), pairs.target.tolist()))
        yield from whole(self, pairs, count, gammas, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(title_ranker.TitleRanker, "rankings", noted)
        result = run_recbole_ilrec("BIGRec", "ring", config_dict=settings)
    chosen = result["gamma"]
    valid, choice, test = ranked
    assert valid[0] == [0.0] and choice[0] == [0.0, 3.0, 100.0] and test[0] == [chosen["value"]]
    assert choice[1] == valid[1] != test[1]
    assert list(chosen["tried"]) == ["0", "3", "100"]
    assert chosen["valid_score"] == max(chosen["tried"].values()) == result["best_valid_score"]
    assert chosen["value"] == min(float(g) for g, score in chosen["tried"].items() if score == chosen["valid_score"])
    assert result["best_valid_result"] == chosen["valid_result"]
    line = json.loads((ring / result["record"]).read_text().splitlines()[-1])
    assert line["result"]["gamma"] == chosen
    assert line["evaluation"]["valid"]["policies"]["expected"] == pytest.approx(result["best_valid_result"])
    fixed = run_recbole_ilrec("BIGRec", "ring", config_dict={**settings, "bigrec.gamma": chosen["value"]})
    assert "gamma" not in fixed


def test_gamma_has_the_least_score_where_less_is_better(ring):
    settings = {**GROUNDED, "metrics": ["Hit", "GiniIndex"], "valid_metric": "GiniIndex@5"}
    trainer = SimpleNamespace(config=Config("BIGRec", "ring", None, settings), valid_pairs=(), saved=False)
    trainer.show_progress, trainer.metrics = False, lambda score, _: (None, {"expected": {"giniindex@5": score}})
    ranker = SimpleNamespace(settings=SimpleNamespace(gamma=[0.0, 1.0, 2.0]), rankings=lambda *_, **__: [0.5, 0.2, 0.2])
    trainer.model = SimpleNamespace(title_ranker=ranker, list_length=5, eval=lambda: None)
    assert choose_gamma(trainer).value == ranker.gamma == 1.0


def test_gammas_at_once_are_the_rankings_of_each(ring):
    config = Config("BIGRec", "ring", None, {**GROUNDED, "bigrec.gamma": "auto"})
    data = build_data(config)
    model = config.model_class(config, data.train._dataset).eval()
    pairs = to_pairs(data.test._dataset.inter_feat[torch.arange(5)], model)
    assert model.title_ranker.gamma == 0.0
    together = list(model.title_ranker.rankings(pairs, 5, [0.0, 2.0], batch_size=3))
    for gamma, ranking in zip([0.0, 2.0], together, strict=True):
        model.title_ranker.gamma = gamma
        assert torch.equal(model.rank(pairs, batch_size=3).leaf, ranking.leaf)
    assert not torch.equal(together[0].leaf, together[1].leaf)


@pytest.mark.parametrize("bad", ["atuo", -1, [], [0, "x"], True])
def test_a_wrong_gamma_is_one_line(ring, bad):
    with pytest.raises(UserError, match=r"bigrec\.gamma.* is not allowed"):
        Config("BIGRec", "ring", None, {**GROUNDED, "bigrec.gamma": bad})


@pytest.mark.parametrize("model", ["BIGRec", "LCRec"])
def test_gamma_without_distances_is_one_line(ring, model):
    settings = {**QUICK, "bigrec.gamma": "auto", "index.epochs": 1}
    with pytest.raises(UserError, match=r"bigrec\.gamma weighs distances .* --bigrec\.ranker=grounding or hybrid"):
        run_recbole_ilrec(model, "ring", config_dict=settings)


# ---- a pretrained base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as Hugging Face publishes a model: random weights, a tokenizer of bytes."""
    backbone = build_backbone(SMALL, [], ["User: likes", *(title for title in RING_TITLES if title)], seed=5)
    folder = tmp_path_factory.mktemp("base") / "llama"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def titles_model(folder, **settings):
    config = Config("BIGRec", "ring", None, {**GROUNDED, "backbone": str(folder), **settings})
    data = build_data(config)
    return config, data, config.model_class(config, data.train._dataset).eval()


def vectors_in_cache(ring):
    return sorted(path.name for path in (ring / "saved" / "cache" / "titles").iterdir())


def test_titles_are_embedded_by_the_base_as_it_was_before_training(ring, base, monkeypatch):
    shutil.rmtree(ring / "saved" / "cache" / "titles", ignore_errors=True)
    settings = {"epochs": 1, "eval_step": 1, "learning_rate": 1e-2, "train_batch_size": 32}
    result = run_recbole_ilrec("BIGRec", "ring", config_dict={**GROUNDED, "backbone": str(base), **settings})
    assert 0 <= result["test_result"]["hit@5"] <= 1
    (kept,) = vectors_in_cache(ring)
    _, _, model = titles_model(base)
    ranker = model.title_ranker
    untrained = text_states(model.backbone.decoder, model.backbone.tokenizer, ranker.titles, pooling="last")
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight.mul_(1.5)
    with monkeypatch.context() as patch:
        patch.setattr(causal_lm, "base_states", None)  # the vectors are read, not computed
        vectors = ranker.embed(ranker.titles, cached=True)
    torch.testing.assert_close(vectors, untrained, atol=1e-5, rtol=1e-4)
    tuned = text_states(model.backbone.decoder, model.backbone.tokenizer, ranker.titles, pooling="last")
    assert not torch.allclose(vectors, tuned, atol=1e-2)
    assert vectors_in_cache(ring) == [kept]


def test_titles_are_embedded_by_the_trained_model_where_that_is_asked_for(ring, base, monkeypatch):
    monkeypatch.setattr(causal_lm, "base_states", None)
    _, _, model = titles_model(base, **{"bigrec.embedder": "model"})
    ranker, backbone = model.title_ranker, model.backbone
    before = ranker.embed(ranker.titles[:3], cached=True)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.mul_(1.5)
    after = ranker.embed(ranker.titles[:3], cached=True)
    torch.testing.assert_close(
        after, text_states(backbone.decoder, backbone.tokenizer, ranker.titles[:3], pooling="last")
    )
    assert not torch.allclose(before, after, atol=1e-2)


def test_vectors_are_kept_by_what_the_base_holds_not_by_where_it_is(ring, base, tmp_path):
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for folder in (moved, changed):
        shutil.copytree(base, folder)
    weights = changed / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # as long and as old as before
    stat = weights.stat()
    weights.write_bytes(bytes(content))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys = [titles_model(folder)[2].title_ranker._key(["a"]) for folder in (base, moved, changed)]
    assert keys[0] == keys[1] != keys[2]
    assert titles_model(base)[2].title_ranker._key(["b"]) != keys[0]
