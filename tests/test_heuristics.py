"""Baselines that only count: what they count, by hand, and a world in which counting is enough."""

import json
import math
from collections import Counter

import pytest
import torch

pytest.importorskip("recbole")

from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_ilrec import run_recbole_ilrec
from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.model import build_model
from recbole_ilrec.collaborative.reward_model import load_reward_model, reward_key
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.runs.recommendation import Recommender
from tests.toy import TINY, write_toy
from tests.worlds import ring_world, write_dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
COUNTS = {key: value for key, value in TINY.items() if key != "epochs"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path)


def settings(root, **changes):
    return {**COUNTS, "data_path": str(root), "checkpoint_dir": str(root / "saved"), **changes}


def sequences_of(root):
    """User -> its items in order of time, from the file itself."""
    found = {}
    for line in (root / "toy/toy.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        found.setdefault(user, []).append(item)
    return found


def trained(root, model, **changes):
    config = Config(model, "toy", None, settings(root, **changes))
    data = build_data(config)
    trainer = ClassicalTrainer(config, build_model(config, data.train._dataset))
    trainer.fit(data.train, data.valid, saved=False)
    return trainer.model, data


def test_the_most_popular_are_counted_over_the_targets_of_training_rows_alone(root):
    model, data = trained(root, "Pop")
    targets = Counter(item for sequence in sequences_of(root).values() for item in sequence[1:-2])
    tokens = data.dataset.field2id_token["item_id"]
    assert {tokens[i]: int(n) for i, n in enumerate(model.item_cnt[:, 0]) if n} == targets


@pytest.mark.parametrize("model", ["Pop", "Transitions"])
def test_the_last_items_of_users_change_nothing_but_the_test_metrics(root, model):
    before = run_recbole_ilrec(model, "toy", config_dict=settings(root))
    path = root / "toy/toy.inter"
    lines = path.read_text().splitlines()
    last = {line.split("\t")[0]: at for at, line in enumerate(lines)}  # of each user: its line for the test
    for user, at in list(last.items())[20:]:  # every item stands in the lines before, so internal ids stay
        lines[at] = f"{user}\t{lines[1].split()[1]}\t{lines[at].split()[2]}"
    path.write_text("\n".join(lines) + "\n")
    after = run_recbole_ilrec(model, "toy", config_dict=settings(root))
    assert after["best_valid_result"] == before["best_valid_result"] and after["test_result"] != before["test_result"]
    records = [json.loads(line)["evaluation"] for line in (root / "saved/records.jsonl").read_text().splitlines()]
    assert records[0]["weights"] == records[1]["weights"] and records[0]["data"] != records[1]["data"]


def test_what_follows_by_a_rule_is_found_by_counting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path, "ring", *ring_world())
    found = run_recbole_ilrec("Transitions", "ring", config_dict=settings(tmp_path, topk=[1, 5]))
    assert found["test_result"]["hit@1"] == found["best_valid_result"]["hit@1"] == 1.0
    popular = run_recbole_ilrec("Pop", "ring", config_dict=settings(tmp_path, topk=[1, 5]))
    assert popular["test_result"]["hit@1"] < 0.5
    assert json.loads((tmp_path / "saved/records.jsonl").read_text().splitlines()[0])["parameters"] == 0


def test_scores_are_those_of_the_formula(root):
    shrinkage, weight, decay = 2.5, 0.3, 0.5
    names = {"transitions.shrinkage": shrinkage, "transitions.text_weight": weight, "transitions.decay": decay}
    model, data = trained(root, "Transitions", **names)
    tokens = data.dataset.field2id_token["item_id"].tolist()
    counts, targets = Counter(), Counter()
    for sequence in sequences_of(root).values():
        targets.update(sequence[1:-2])
        counts.update(zip(sequence[:-3], sequence[1:-2], strict=True))
    texts = [f'"No. {token[1:]} NA' if token != "[PAD]" else "" for token in tokens]
    words = TfidfVectorizer(sublinear_tf=True, strip_accents="unicode").fit_transform(texts).toarray()
    cosine = words @ words.T
    rows = data.test._dataset.inter_feat[:5]
    scores = model.full_sort_predict(rows).view(5, -1)
    total = sum(targets.values())
    for row, history in enumerate(rows["item_id_list"].tolist()):
        past = [item for item in history if item][::-1]
        share = [decay**age / sum(decay**a for a in range(len(past))) for age in range(len(past))]
        for item in range(1, len(tokens)):
            value = 0.0
            for v, last in zip(share, past, strict=True):
                seen = sum(n for (i, _), n in counts.items() if i == tokens[last])
                popularity = (targets[tokens[item]] + 1) / (total + len(tokens))
                followed = counts[tokens[last], tokens[item]]
                value += v * ((followed + shrinkage * popularity) / (seen + shrinkage) + weight * cosine[last, item])
            assert scores[row, item].item() == pytest.approx(math.log(value), rel=1e-6)
    own = scores.gather(1, rows["item_id"][:, None])[:, 0]
    assert torch.equal(model.predict(rows), own)


def test_without_texts_the_text_weight_adds_nothing(root):
    (root / "toy/toy.item").unlink()
    plain, data = trained(root, "Transitions")
    weighted, _ = trained(root, "Transitions", **{"transitions.text_weight": 1.0})
    rows = data.valid._dataset.inter_feat
    assert torch.equal(plain.full_sort_predict(rows), weighted.full_sort_predict(rows))


def test_its_settings_are_part_of_the_runs_key_and_its_counts_of_the_checkpoint(root):
    first = run_recbole_ilrec("Transitions", "toy", config_dict=settings(root))
    (folder,) = (root / "saved").glob("Transitions-toy-*")
    again = run_recbole_ilrec("Transitions", "toy", config_dict=settings(root, resume_from_checkpoint=str(folder)))
    assert again["test_result"] == first["test_result"]
    state = folder / "best/state.json"
    state.write_text(state.read_text().replace('"transitions.decay": 0.6', '"transitions.decay": 0.2'))
    asked = Recommender.load(folder, device="cpu").trained.config
    assert asked.settings.transitions.decay == 0.2, "what it was trained with, whatever the preset says today"
    run_recbole_ilrec("Transitions", "toy", config_dict=settings(root, **{"transitions.decay": 0.5}))
    keys = [json.loads(line)["evaluation"]["run"] for line in (root / "saved/records.jsonl").read_text().splitlines()]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("model", ["Pop", "Transitions"])
def test_the_history_can_be_left_out_and_candidates_be_drawn(root, model):
    kept = run_recbole_ilrec(model, "toy", config_dict=settings(root), saved=False)
    masked = run_recbole_ilrec(model, "toy", config_dict=settings(root, exclude_history=True), saved=False)
    assert kept["test_result"] != masked["test_result"]
    drawn = run_recbole_ilrec(model, "toy", config_dict=settings(root, eval_args={"mode": "uni10"}), saved=False)
    assert drawn["test_result"]["hit@10"] >= kept["test_result"]["hit@10"]


def test_transitions_can_be_the_reward_of_a_language_model(root):
    own = {"transitions.decay": 0, "transitions.shrinkage": 1}
    config = Config("GRU4Rec", "toy", None, settings(root, reward_model="Transitions", **{"reward.config": own}))
    data = build_data(config)
    rows = data.train._dataset.inter_feat[:7]
    probabilities = load_reward_model(config, data.train._dataset).probabilities(rows)
    assert torch.allclose(probabilities.sum(1), torch.ones(7, dtype=torch.float64)) and (probabilities > 0).all()
    assert (probabilities.max(1).values > 0.2).all()
    (kept,) = (root / "saved/cache/reward").glob("Transitions-toy-*")
    given = Config("GRU4Rec", "toy", None, settings(root, reward_model="Transitions", reward_checkpoint=str(kept)))
    again = load_reward_model(given, data.train._dataset).probabilities(rows)
    assert torch.equal(again, probabilities), "its counts are part of a checkpoint too"
    key = reward_key(given, data.train._dataset)
    state = json.loads((kept / "best/state.json").read_text())
    assert state["content"]["config"]["transitions.decay"] == 0
    state["content"]["config"]["transitions.decay"] = 0.5
    (kept / "best/state.json").write_text(json.dumps(state))
    assert reward_key(given, data.train._dataset) != key, "equal counts, other scores"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2}, "set epochs=1"),
        ({"transitions.shrinkage": 0}, "transitions.shrinkage=0 is not allowed"),
        ({"transitions.decya": 0}, "Did you mean 'transitions.decay'"),
    ],
)
def test_settings_that_cannot_work_are_one_line(root, changes, message):
    with pytest.raises(UserError, match=message):
        run_recbole_ilrec("Transitions", "toy", config_dict=settings(root, **changes))
    with pytest.raises(UserError, match="Did you mean 'Transitions'"):
        run_recbole_ilrec("Transition", "toy", config_dict=settings(root))


@pytest.mark.parametrize("model", ["Pop", "Transitions"])
def test_a_data_set_that_says_how_long_to_learn_does_not_mean_those_that_count(model):
    assert Config(model, "ml-100k")["epochs"] == 1
    assert Config("SASRec", "ml-100k")["epochs"] > 1
