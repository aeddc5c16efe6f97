"""Choosing among candidates from end to end: a world with a known answer, published lists, what may not leak."""

import json

import numpy as np
import pytest
import torch

from recbole_ilrec.checks.finding import Level
from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.reward_model import RewardModel, load_reward_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.candidates import CANDIDATES
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.preparation.candidate_lists import CandidateRow, write_candidates
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs.data_diagnosis import list_findings
from recbole_ilrec.runs.diagnosis import diagnose
from recbole_ilrec.runs.model_diagnosis import item_findings
from recbole_ilrec.training.layer_losses import layer_losses
from recbole_ilrec.training.reward_rows import reward_table
from recbole_ilrec.training.task_batches import supervised_batches
from recbole_ilrec.training.trainer import GenerativeTrainer
from tests.worlds import (
    QUICK,
    RING_TITLES,
    ring_world,
    write_dataset,
    write_titled_ring,
    write_titles,
)

CHOOSE = {
    **QUICK,
    "task": "candidates",
    "candidates.count": 4,
    "epochs": 24,
    "eval_step": 24,
    "train_batch_size": 32,
    "MAX_ITEM_LIST_LENGTH": 3,
    "backbone.dropout": 0.0,
    "learning_rate": 5e-3,
    "train.item_dropout": 0.0,
    "train.ema": 0.0,
    "topk": [1, 3],
    "valid_metric": "NDCG@3",
}
RIGHT = {"hitratio@1": 1.0, "validratio": 1.0}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A working folder with the ring world under titles, some of which begin others, and a finished run."""
    root = tmp_path_factory.mktemp("ring")
    write_titled_ring(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = run_recbole_ilrec("BIGRec", "ring", config_dict=CHOOSE)
    return root, result


@pytest.fixture
def ring(learned, monkeypatch):
    """The working folder of ``learned``."""
    monkeypatch.chdir(learned[0])
    return learned[0]


def built(model="BIGRec", dataset="ring", **settings):
    """Data and model of a run that is not trained."""
    config = Config(model, dataset, None, {**CHOOSE, **settings})
    data = build_data(config)
    return config, data, config.model_class(config, data.train._dataset).eval()


def test_the_next_title_that_follows_from_the_last_is_always_chosen(learned):
    result = learned[1]
    assert result["test_result"]["hit@1"] == 1.0 and result["test_result"].items() >= RIGHT.items()
    assert result["answers"]["exact"] == RIGHT
    assert json.loads(json.dumps(result["answers"])) == result["answers"]


def test_ilrec_trains_with_rewards_that_lead_to_candidates_only(ring):
    _, data, model = built("ILRec")
    pairs = to_pairs(data.train._dataset.inter_feat, model)
    rewards = reward_table(model, data.train._dataset, pairs, show_progress=False)
    catalog, target = model.catalog, torch.arange(20)
    legal = rewards.legal(target, torch.zeros(20, dtype=torch.long))  # the first token of each answer
    first = [{int(catalog.tokens[item, 0]) for item in own} for own in pairs.choices(np.arange(20))]
    for row, token, reward in zip(legal.row.tolist(), legal.token.tolist(), legal.reward.tolist(), strict=True):
        assert (reward > 0) == (token in first[row])
    result = run_recbole_ilrec("ILRec", "ring", config_dict={**CHOOSE, "epochs": 1, "eval_step": 1, "saved": False})
    assert result["test_result"]["validratio"] == 1.0


def test_a_free_answer_of_a_trained_model_is_valid_and_right_and_one_of_an_untrained_model_is_not(ring):
    config, data, model = built(**{"candidates.answers": "free", "bigrec.max_new_tokens": 12})
    (folder,) = (ring / "saved").glob("BIGRec-*/best")
    trainer = GenerativeTrainer(config, model, folder)
    before = trainer.evaluate(data.test, load_best_model=False)
    assert before["validratio"] < 0.5 and before["hit@3"] > 0.5  # the list is of the candidates either way
    assert trainer.evaluate(data.test, model_file=folder).items() >= RIGHT.items()


def test_the_verbs_of_scoring_agree_and_know_the_candidates_only(ring):
    config, data, model = built()
    rows = data.test._dataset.inter_feat[torch.arange(6)]
    every = model.full_sort_predict(rows)
    for row, own in zip(every, rows[CANDIDATES].tolist(), strict=True):
        assert (row > -torch.inf).nonzero().squeeze(1).tolist() == sorted(own)
    torch.testing.assert_close(model.predict(rows), every[torch.arange(6), rows["item_id"]])
    pairs = to_pairs(rows, model)
    ranking = model.rank(pairs, batch_size=3)
    for row, own in enumerate(pairs.choices(np.arange(6))):
        best = own[every[row, own].argsort(descending=True)]
        assert model.catalog.leaf_of_item[best].tolist() == ranking.leaf[row].tolist()
    assert torch.isfinite(model.calculate_loss(rows))


def test_predict_is_the_log_probability_of_the_whole_answer_after_the_prompt_with_candidates(ring):
    _, data, model = built()
    rows = data.test._dataset.inter_feat[torch.arange(3)]
    pairs, encoder = to_pairs(rows, model), model.encoder
    for row, score in enumerate(model.predict(rows).tolist()):
        (history,), (own,) = pairs.histories(np.array([row])), pairs.choices(np.array([row]))
        prompt, answer = encoder.prompt(history, 0, own), encoder.answer(int(pairs.target[row]))
        ids = torch.from_numpy(np.concatenate([prompt, answer]))
        with torch.no_grad():
            logits = model.backbone.model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        by_hand = logits.log_softmax(-1).gather(1, torch.from_numpy(answer)[:, None]).sum()
        assert score == pytest.approx(by_hand.item(), abs=1e-4)


def test_items_left_out_of_a_prompt_are_counted_beside_its_candidates(ring):
    config, data, model = built(MAX_ITEM_LIST_LENGTH=6)
    rows, encoder = data.train._dataset.inter_feat, model.encoder
    pairs = to_pairs(rows, model)
    whole = [len(encoder.prompt(*_shown(pairs, row))) for row in range(len(pairs))]
    encoder.max_length = encoder.catalog.depth + int(np.median(whole))
    left_out = encoder.left_out(pairs.history, pairs.length, pairs.candidates)
    for row, count in enumerate(left_out):
        past, variant, own = _shown(pairs, row)
        shorter = [len(encoder.prompt(past[n:], variant, own)) for n in range(len(past) + 1)]
        assert count == max(n for n, size in enumerate(shorter) if size == shorter[0])
    assert 0 < (left_out > 0).sum() < len(pairs)
    (told,) = [finding for finding in item_findings(config, data, model) if finding.group == "prompts"]
    assert told.level != Level.OK


def _shown(pairs, row):
    (history,), (own,) = pairs.histories(np.array([row])), pairs.choices(np.array([row]))
    return history, 0, own


def test_losses_of_the_layers_are_those_of_the_answers_after_the_prompt_with_candidates(ring):
    _, data, model = built()
    rows = data.valid._dataset.inter_feat
    pairs = to_pairs(rows, model)
    tokens = sum(len(model.encoder.answer(item)) for item in pairs.target)
    assert layer_losses(model, pairs)[-1] == pytest.approx(-model.predict(rows).sum().item() / tokens, rel=1e-4)


def test_drawn_lists_are_those_of_the_seed_and_other_parts_have_others(ring):
    lists = [
        [s._dataset.inter_feat[CANDIDATES] for s in (d.train, d.valid, d.test)] for _, d, _ in map(_seed, (1, 1, 2))
    ]
    for first, same, other in zip(*lists, strict=True):
        assert torch.equal(first, same) and not torch.equal(first, other)


def _seed(seed):
    return built(seed=seed)


def test_lists_are_drawn_as_it_is_set_and_those_of_validation_and_test_are_not_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world())

    def lists(**own):
        task = {"task": "candidates", "candidates.count": 6, "topk": [1], "valid_metric": "Hit@1", "device": "cpu"}
        data = build_data(Config("Pop", "ring", None, {**task, **own}))
        return [part._dataset.inter_feat[CANDIDATES] for part in (data.valid, data.test)]

    valid, test = lists()
    assert (valid == test).double().mean() < 0.3
    by_target = [lists(**{"candidates.seeding": "target"}, seed=seed)[1] for seed in (1, 2)]
    assert torch.equal(*by_target), "the published way knows no seed"


def test_sampled_evaluation_ranks_the_true_item_among_what_recbole_draws(ring):
    modes = {
        "eval_args": {"mode": "uni5"},
        "task": "full",
        "paradigm": "bigrec",
        "topk": [1, 5],
        "valid_metric": "Hit@1",
    }
    for model, ranker in (("BIGRec", "constrained"), ("BIGRec", "grounding")):
        config, data, own = built(model, **{**modes, "bigrec.ranker": ranker, "num_beams": 5})
        trainer = GenerativeTrainer(config, own, ring / "none")
        trainer.evaluate(data.test)
        assert int(trainer.places.before.max()) <= 5  # the true item is in every list of six


def test_a_classical_model_chooses_among_the_same_candidates(ring):
    small = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 1, "topk": [1, 4], "valid_metric": "Hit@4"}
    settings = {"task": "candidates", "candidates.count": 4, "show_progress": False, "saved": False, "device": "cpu"}
    result = run_recbole_ilrec("SASRec", "ring", config_dict={**settings, **small})
    assert result["test_result"]["hit@4"] == 1.0 > result["test_result"]["hit@1"]


# ---- preference models


def test_rejected_items_of_sdpo_come_from_the_candidates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "dataset", "ring", *ring_world(users=36, items=12))
    settings = {
        **CHOOSE,
        "paradigm": "lcrec",
        "preference.epochs": 1,
        "preference.negatives": 2,
        "epochs": 2,
        "eval_step": 2,
    }
    result = run_recbole_ilrec("SDPO", "ring", config_dict={**settings, "preference.learning_rate": 1e-4})
    assert result["test_result"]["validratio"] == 1.0
    run_recbole_ilrec("RosePO", "ring", config_dict={**settings, "preference.examples": 20})


# ---- published lists


def published(root, *, change=None):
    """Users of a train, a valid and a test phase, each with choices from place 2 on; item 13 is only ever offered."""
    sequences, _ = ring_world(users=12, items=12, length=6)
    folder = write_titles(root, "told", sequences, [*RING_TITLES, "thirteen"])
    phases = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    rows = [
        CandidateRow(phase, f"u{user}", place, (f"i{sequence[place] % 12 + 1}", "i13", f"i{sequence[place]}"))
        for user, (phase, sequence) in enumerate(zip(phases, sequences, strict=True))
        for place in range(2, len(sequence))
    ]
    write_candidates(folder / "told.candidates.jsonl", change(rows) if change else rows)
    return rows


TOLD = {"topk": [1, 3]}


def test_rows_split_and_lists_are_the_published_ones_for_every_model_and_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = published(tmp_path)
    for model, task in (("BIGRec", "candidates"), ("BIGRec", "full"), ("SASRec", "full")):
        data = build_data(Config(model, "told", None, {**CHOOSE, **TOLD, "task": task, "num_beams": 5}))
        dataset = data.train._dataset
        users, items = (dataset.field2id_token[field] for field in ("user_id", "item_id"))
        assert dataset.item_num == 14 and items[13] == "i13"
        for phase, part in (("train", data.train), ("valid", data.valid), ("test", data.test)):
            found = part._dataset.inter_feat
            shown = [tuple(items[own]) for own in found[CANDIDATES]]
            assert sorted(zip(users[found["user_id"]], shown, strict=True)) == sorted(
                (row.user, row.candidates) for row in rows if row.phase == phase
            )
            assert all(items[target] == own[-1] for target, own in zip(found["item_id"], shown, strict=True))


def test_the_collaborative_model_is_not_trained_on_users_who_are_tested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path)
    seen, fit = [], ClassicalTrainer.fit
    monkeypatch.setattr(
        ClassicalTrainer, "fit", lambda self, train, *a, **k: seen.append(train) or fit(self, train, *a, **k)
    )
    config, data, _ = built(dataset="told", **TOLD)
    load_reward_model(config, data.train._dataset)
    users = data.train._dataset.field2id_token["user_id"]
    assert {users[user] for user in seen[0]._dataset.inter_feat["user_id"]} == {f"u{n}" for n in range(8)}


def test_drawn_lists_keep_the_published_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path)
    _, data, _ = built(dataset="told", **TOLD)
    _, drawn, _ = built(dataset="told", **{**TOLD, "candidates.lists": "drawn", "candidates.count": 5})
    for part in ("train", "valid", "test"):
        ours, theirs = (getattr(some, part)._dataset.inter_feat for some in (drawn, data))
        assert torch.equal(ours["item_id"], theirs["item_id"])
        assert ours[CANDIDATES].shape[1] == 5 and theirs[CANDIDATES].shape[1] == 3


def test_rewards_are_probabilities_among_the_candidates(ring):
    class Scores(torch.nn.Linear):
        def full_sort_predict(self, rows):
            return torch.arange(6.0).log().expand(len(rows), -1)  # item i has weight i

    _, data, _ = built()
    rows = data.test._dataset.inter_feat[torch.arange(2)]
    found = RewardModel(Scores(1, 1), data.test._dataset).probabilities(rows, np.array([[1, 3, 0], [5, 2, 3]]))
    expected = torch.tensor([[1, 0, 3, 0, 0], [0, 2, 3, 0, 5]]).double()
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), atol=1e-6, rtol=0)


# ---- what can go wrong


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BIGRec", {"task": "candidate"}, "task='candidate' is not allowed"),
        ("BIGRec", {"candidates.count": 1}, "candidates.count=1 is not allowed"),
        ("BIGRec", {"topk": [1, 3, 5]}, r"topk=\[1, 3, 5\] asks for more than the 4 candidates"),
        ("BIGRec", {"eval_args": {"mode": "uni5"}}, "samples items and task=candidates has its own lists"),
        ("LCRec", {}, "paradigm=bigrec contradicts model=LCRec"),
        ("BIGRec", {"train_rows": "sequence"}, "train_rows=sequence needs a prompt that ends with its history"),
        (
            "BIGRec",
            {"task": "full", "prompt.template": "choice", "train_rows": "prefix"},
            "names candidates: use --task",
        ),
        ("BIGRec", {"metrics": ["AUC"], "valid_metric": "AUC"}, "AUC needs the score of every item"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(ring, model, settings, message):
    with pytest.raises(UserError, match=message) as error:
        built(model, **settings)
    assert "\n" not in str(error.value)


def test_the_doctor_looks_at_the_lists_of_the_test_rows(ring):
    config, data, model = built()
    found = {finding.name: finding for finding in diagnose(config, data, model) if finding.group == "candidates"}
    assert found["lists"].level is Level.OK and "position" in found
    data.test._dataset.inter_feat[CANDIDATES][:, 0] = data.test._dataset.inter_feat[CANDIDATES][:, 1]
    spoilt = [finding for finding in list_findings(config, data) if finding.level is Level.ATTENTION]
    assert [finding.name for finding in spoilt] == ["lists"]


def test_rows_without_candidates_are_refused(ring):
    _, data, model = built()
    rows = data.test._dataset.inter_feat[torch.arange(2)]
    del rows.interaction[CANDIDATES]
    with pytest.raises(UserError, match="task=candidates needs rows with a column 'candidates'"):
        model.predict(rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [*rows, CandidateRow("test", "nobody", 2, ("i1", "i2"))],
        lambda rows: [*rows, CandidateRow("test", "u0", 99, ("i1", "i2"))],
        lambda rows: [rows[0].__class__(**{**vars(rows[0]), "candidates": ("i13", "i12")}), *rows[1:]],
    ],
    ids=["no such user", "no such place", "without the true item"],
)
def test_lists_that_do_not_fit_the_interactions_are_refused(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    published(tmp_path, change=change)
    with pytest.raises(
        UserError, match=r"told: the published choice of user '\w+' after \d+ items is not in told.inter"
    ):
        built(dataset="told", **TOLD)


@pytest.mark.parametrize("shuffle", [True, False])
def test_candidates_are_shown_in_another_order_in_each_epoch_unless_they_are_to_stay(learned, monkeypatch, shuffle):
    monkeypatch.chdir(learned[0])
    config = Config("BIGRec", "ring", config_dict={**CHOOSE, "candidates.shuffle": shuffle})
    dataset = build_data(config).train._dataset
    model = config.model_class(config, dataset)
    batches, *_ = supervised_batches(config, model, to_pairs(dataset.inter_feat, model))
    first, later = (batches.encode(epoch, np.arange(9)).input_ids for epoch in (0, 1))
    assert torch.equal(first, later) != shuffle
