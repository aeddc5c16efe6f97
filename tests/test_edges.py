"""Edges of the language models' path: long histories, one item, few rows, odd folders, resumed averages."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_ilrec.collaborative.reward_model import RewardModel
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.data.sequences import Sequences
from recbole_ilrec.decoding.users import rank_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import locate, unroll
from recbole_ilrec.models.item_index import item_identifiers
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.prompt.rows import Pairs, StepPlan, TrainRows
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import save_state
from recbole_ilrec.runtime.interrupts import StopSignals
from recbole_ilrec.runtime.resumption import bring_back_best, checkpoints, clear_up, remove
from recbole_ilrec.runtime.weights import WeightAverage
from recbole_ilrec.settings import DecodeSettings, Settings
from recbole_ilrec.training.loop import StepTrainer
from tests.worlds import (
    QUICK,
    compact_encoder,
    pairs_of,
    small_backbone,
    small_catalog,
    write_dataset,
    write_titled_ring,
)

CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- histories


def test_the_past_of_a_row_is_what_stands_before_it_in_its_users_sequence():
    sequences = Sequences(
        start=torch.tensor([0, 0, 4, 5, 9]),
        items=torch.arange(9),
        times=torch.tensor([0.0, 2, 5, 7, 1, 3, 4, 6, 8]),
    )
    users, times = torch.tensor([1, 1, 1, 2, 3, 3, 0]), torch.tensor([0.0, 5, 99, 1, 4, 0, 3])
    bounds = sequences.interval(users, times)
    assert bounds.tolist() == [[0, 0], [0, 2], [0, 4], [4, 4], [5, 6], [5, 5], [0, 0]]
    row, item = sequences.before(users, times)
    assert row.tolist() == [1, 1, 2, 2, 2, 2, 4] and item.tolist() == [0, 1, 0, 1, 2, 3, 5]


def long_histories(place, window=3):
    """Each user goes once through 12 items in an order of their own; a row's window holds the last three."""
    chance = np.random.default_rng(0)
    sequences = [(chance.permutation(12) + 1).tolist() for _ in range(20)]
    write_dataset(place / "dataset", "long", sequences, [(n // 4, n % 4) for n in range(12)])
    return {**QUICK, "MAX_ITEM_LIST_LENGTH": window, "topk": [1, 5], "num_beams": 12, "epochs": 1, "eval_step": 1}


def test_an_item_older_than_the_window_is_left_out_too(place):
    settings = long_histories(place)
    data = build_data(Config("LCRec", "long", None, settings))
    names = {"USER_ID": "user_id", "ITEM_SEQ": "item_id_list", "ITEM_SEQ_LEN": "item_length", "POS_ITEM_ID": "item_id"}
    sequences = data.test._dataset.sequences
    model = SimpleNamespace(**names, sequences=sequences, time_field="timestamp", settings=Settings())
    pairs = to_pairs(data.test._dataset.inter_feat, model)
    assert max(map(len, pairs.histories(np.arange(len(pairs))))) == 3
    for seen, target in zip(pairs.seen(), pairs.target, strict=True):
        assert len(seen) == 11 and target not in seen
    some = pairs.take(np.array([3, 1]))
    assert [list(seen) for seen in some.seen()] == [list(pairs.seen()[row]) for row in (3, 1)]


def test_with_the_history_left_out_the_only_item_left_is_always_found(place):
    """Eleven of twelve items were seen before the test item, so it is the only one that may be recommended."""
    result = run_recbole_ilrec("LCRec", "long", None, {**long_histories(place), "exclude_history": True})
    assert result["test_result"]["hit@1"] == 1.0
    assert result["best_valid_result"]["hit@5"] == 1.0


def test_a_history_of_shared_identifiers_leaves_their_other_items_in(place):
    settings = {**long_histories(place), "exclude_history": True}
    shared = {f"i{n}": [f"<a_{n % 3}>", "<b_0>"] for n in range(1, 13)}
    (place / "shared.json").write_text(json.dumps(shared))
    result = run_recbole_ilrec("LCRec", "long", None, {**settings, "index_file": "shared.json"})
    for policy in result["policies"].values():
        assert policy["hit@1"] == 1.0


def test_a_user_who_has_seen_everything_is_recommended_nothing():
    backbone = small_backbone(4).eval()
    catalog = small_catalog(backbone, [(0, 1), (0, 2), (3,)])
    encoder = compact_encoder(backbone, catalog)
    settings = DecodeSettings(num_beams=3, exclude_history=True)
    seen = [np.array([1, 2, 3]), np.array([3])]
    ranking = rank_users(
        backbone, encoder, [np.array([3]), np.array([3])], settings, batch_size=2, device=CPU, seen=seen
    )
    assert (ranking.leaf[0] == -1).all() and (ranking.score[0] == -torch.inf).all()
    assert sorted(ranking.leaf[1].tolist())[0] == -1 and len(set(ranking.leaf[1].tolist())) == 3
    banned = torch.tensor([[0, 1, 2]])
    ranking = type(ranking)(ranking.leaf[:1], ranking.score[:1])
    places = locate(ranking, catalog, torch.tensor([2]), banned)
    assert all((places.ranks(policy)[0] > 10**9).all() for policy in ("expected", "strict", "optimistic"))
    assert unroll(ranking, catalog, 2, banned).tolist() == [[0, 0]]


def test_rewards_stay_probabilities_when_the_history_holds_every_item():
    class Uniform(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def full_sort_predict(self, rows):
            return torch.zeros(len(rows), 4)

    class Rows(dict):
        def __len__(self):
            return 2

        def to(self, _device):
            return self

    rows = Rows(user=torch.tensor([1, 2]), time=torch.tensor([9.0, 9.0]), item=torch.tensor([1, 3]))
    seen = Sequences(torch.tensor([0, 0, 3, 4]), torch.tensor([1, 2, 3, 2]), torch.arange(4.0))
    dataset = SimpleNamespace(uid_field="user", time_field="time", iid_field="item", sequences=seen)
    probabilities = RewardModel(Uniform(), dataset, mask_history=True).probabilities(rows)
    torch.testing.assert_close(probabilities, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]]).double())


# ---- few items, few rows


def test_one_item_is_recommended_to_everybody(place):
    write_dataset(place / "dataset", "one", [[1] * 5] * 4, [(0, 0)])
    settings = {**QUICK, "topk": [1], "num_beams": 3, "epochs": 1, "eval_step": 1}
    result = run_recbole_ilrec("ILRec", "one", None, settings)
    assert result["test_result"]["hit@1"] == 1.0


def test_a_step_with_fewer_rows_than_micro_batches_is_one_line():
    with pytest.raises(UserError, match="lower --gradient_accumulation_steps"):
        StepPlan(np.array([2, 2]), np.array([1, 1]), batch=2, parts=3, seed=0)


@pytest.mark.parametrize("rows", range(3, 12))
def test_every_row_is_in_exactly_one_step_and_every_part_has_a_row(rows):
    chance = np.random.default_rng(rows)
    plan = StepPlan(chance.integers(1, 9, rows), chance.integers(1, 9, rows), batch=4, parts=3, seed=1)
    steps = list(plan.epoch(0))
    assert len(steps) == plan.steps
    assert all(len(part) for step in steps for part in step)
    assert sorted(np.concatenate([part for step in steps for part in step])) == list(range(rows))


@pytest.mark.parametrize("cut", ["prefix", "sequence"])
def test_whatever_is_dropped_a_row_keeps_a_past_and_its_own_targets(cut):
    pairs = pairs_of([[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12]], window=4)
    rows = TrainRows(pairs, rows=cut, window=4, item_dropout=0.8, seed=3)
    for epoch in range(30):
        for row in range(len(rows)):
            example = rows.example(epoch, row)
            targets = example.items[len(example.items) - len(example.targets) :]
            assert 0 < len(targets) < len(example.items)
            assert targets.tolist() == pairs.target[example.targets].tolist()


@pytest.mark.parametrize("excluded", [False, True])
def test_the_two_verbs_of_scoring_agree(place, excluded):
    settings = {**long_histories(place), "exclude_history": excluded}
    config = Config("LCRec", "long", None, settings)
    data = build_data(config)
    model = config.model_class(config, data.train._dataset).eval()
    rows = data.test._dataset.inter_feat[torch.arange(4)]
    rows["item_id"][0] = rows["item_id_list"][0, 0]  # one that the user has had
    every = model.full_sort_predict(rows)
    assert every.shape == (4, 13) and (every[:, 0] == -torch.inf).all()
    own = every[torch.arange(4), rows["item_id"]]
    torch.testing.assert_close(own, model.predict(rows), atol=1e-4, rtol=0)
    assert bool(own.isinf().any()) == excluded


@pytest.mark.parametrize("exact", [False, True])
def test_an_exact_run_proves_as_many_places_as_its_metrics_look_at(place, exact):
    few = {"num_beams": 2, "topk": [1, 2], "valid_metric": "Hit@1", "decode.exact": exact}
    config = Config("LCRec", "long", None, {**long_histories(place), **few})
    data = build_data(config)
    model = config.model_class(config, data.train._dataset).eval()
    ranking = model.rank(to_pairs(data.test._dataset.inter_feat, model), batch_size=8)
    assert bool(ranking.certified(2).all()) == exact


def test_the_layers_states_pass_through_the_final_norm_unless_it_is_set_otherwise(place):
    losses, plain = [], {"mu": 0, "ilrec.cpd_share": 1.0}
    settings = {**long_histories(place), **plain}
    for norm in (True, True, False):
        config = Config("ILRec", "long", None, {**settings, "ilrec.apply_final_norm": norm})
        data = build_data(config)
        model = config.model_class(config, data.train._dataset).eval()
        losses.append(model.calculate_loss(data.test._dataset.inter_feat).item())
    assert losses[0] == losses[1] != losses[2]


def test_learned_identifiers_are_kept_under_all_that_they_are_learned_from(place):
    write_titled_ring(place)
    few = {**QUICK, "index.epochs": 1, "index.levels": 2, "index.codebook_size": 4}

    def kept(**own):
        config = Config("LCRec", "ring", None, {**few, **own})
        item_identifiers(config, build_data(config).train._dataset)
        return len(list((place / "saved/cache").glob("ring-*.index.json")))

    assert [kept(), kept(), kept(seed=1), kept(**{"index.commitment": 1.0})] == [1, 1, 2, 3]
    texts = place / "dataset/ring/ring.item"
    texts.write_text(texts.read_text().replace("red box", "red bag"))
    assert kept() == 4


def test_titles_are_cut_where_it_is_set(place):
    write_titled_ring(place)
    depths = []
    for most in (4, 128):
        config = Config("BIGRec", "ring", None, {**QUICK, "bigrec.max_title_tokens": most})
        depths.append(config.model_class(config, build_data(config).train._dataset).catalog.depth)
    assert depths[0] == 5 < depths[1]  # with the end token


# ---- checkpoints


def test_only_complete_checkpoints_are_found_and_other_names_do_not_matter(tmp_path):
    for step in (10, 9, 2):
        save_state(tmp_path / f"checkpoint-{step}", {}, kind="M")
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    for name in ("checkpoint-old", "checkpoint-9.bak", ".checkpoint-12.tmp"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]


def test_what_a_killed_run_left_unfinished_goes_and_nothing_else(tmp_path, monkeypatch):
    whole = save_state(tmp_path / "checkpoint-2", {}, kind="M")
    (tmp_path / "checkpoint-3").mkdir()
    torn = [tmp_path / ".result.json.tmp-7", whole / ".tensors.tmp-7"]
    for ours in ("evaluating-0-of-1", "evaluating-1-of-2"):
        (tmp_path / ours).mkdir()
    for path in (*torn, tmp_path / "notes"):
        path.touch()
    before = {path.name for path in whole.iterdir()}
    clear_up(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "notes", "evaluating-0-of-1"}
    assert {path.name for path in whole.iterdir()} == before - {torn[1].name}
    (whole / "trainer_state.json").write_text("{}")
    monkeypatch.setattr("recbole_ilrec.runtime.resumption.shutil.rmtree", lambda *_, **__: None)  # killed in it
    remove(whole)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("validated", [False, True])
def test_weights_that_were_best_later_go_unless_the_checkpoint_is_of_a_version_that_kept_none(tmp_path, validated):
    checkpoint, best = (tmp_path / name for name in ("checkpoint-2", "best"))
    for folder in (checkpoint, best):
        save_state(folder, {}, kind="M")
    bring_back_best(checkpoint, validated=validated)
    assert best.is_dir() == validated


def test_an_exchange_of_weights_that_was_interrupted_is_known(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    average = WeightAverage(model, 0.9)
    with average.in_place():
        assert not average.swapping
    monkeypatch.setitem(average.mean, "1.weight", None)  # ends the exchange in its midst, as a signal may
    with pytest.raises(TypeError), average.in_place():
        pass
    assert average.swapping


def test_an_average_that_a_resumed_run_did_not_have_starts_from_its_weights():
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)  # what load_weights does
    average.restore(None)
    assert (average.mean["weight"] == 5).all() and average.mean["weight"] is not model.weight
    stored = {name: torch.full_like(value, 3.0) for name, value in average.mean.items()}
    average.restore(stored)
    average.update(1)
    assert (stored["weight"] == 3).all() and not (average.mean["weight"] == 3).all()


def test_an_average_forgets_by_its_decay_which_grows_to_the_one_that_is_set():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average, wanted = WeightAverage(model, 0.5), 0.0
    model.weight.data.fill_(1.0)
    for step, decay in ((1, 0.1), (2, 2 / 11), (91, 0.5)):
        average.update(step)
        wanted = decay * wanted + (1 - decay)
        assert average.mean["weight"].item() == pytest.approx(wanted)
    with average.in_place():
        assert model.weight.item() == pytest.approx(wanted) and average.mean["weight"].item() == 1
    assert model.weight.item() == 1 and average.mean["weight"].item() == pytest.approx(wanted)


CHANGES = {
    "seed": {"seed": 1},
    "learning_rate": {"learning_rate": 0.5},
    "steps of an epoch": {"train_batch_size": 11},
    "training rows": {"train_rows": "prefix"},
    "item identifiers": {"index_file": "other.json"},
}


def test_a_run_is_resumed_with_its_own_data_and_settings_only(place):
    settings = long_histories(place)
    other = {f"i{n}": [f"<a_{n % 3}>", f"<b_{n // 4}>"] for n in range(1, 13)}
    (place / "other.json").write_text(json.dumps(other))
    run_recbole_ilrec("LCRec", "long", None, settings)
    (folder,) = (place / "saved").glob("LCRec-*")
    for name, change in CHANGES.items():
        with pytest.raises(UserError, match=name):
            run_recbole_ilrec("LCRec", "long", None, {**settings, "resume_from_checkpoint": str(folder), **change})


def test_a_process_that_sees_several_gpus_uses_one(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 2
    plan = StepPlan(np.ones(4), np.ones(4, dtype=int), 2, 1, 0)
    kept = {"evaluate": lambda _loop: {}, "extra_state": dict, "kind": "M", "keep": 1, "save": False}
    loop = StepTrainer(torch.nn.Linear(1, 1), arguments, [], plan, stop=StopSignals(), **kept)
    assert loop.args.n_gpu == 1


def test_no_epoch_at_all_evaluates_the_model_as_it_is(place):
    settings = {**long_histories(place), "epochs": 0}
    result = run_recbole_ilrec("LCRec", "long", None, settings)
    assert 0 <= result["test_result"]["hit@5"] <= 1 and result["best_valid_result"] is None


def test_pairs_without_a_timeline_know_their_windows_only():
    pairs = Pairs(np.array([1]), np.array([[4, 5, 0]]), np.array([2]), np.array([6]))
    assert [list(seen) for seen in pairs.seen()] == [[4, 5]] and len(pairs.take(np.array([0]))) == 1
