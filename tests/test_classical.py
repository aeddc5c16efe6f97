"""RecBole's models through our seams: the same numbers, resumable, no pickles."""

import logging

import pytest
import torch

pytest.importorskip("recbole")

from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_ilrec import run_recbole_ilrec
from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.model import build_model
from recbole_ilrec.collaborative.reward_model import item_vectors, load_reward_model, reward_key
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import run_key
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.report.results import read_records
from recbole_ilrec.runtime.checkpoint import load_state
from tests.toy import tiny, write_toy

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path)


def config_for(root, model="SASRec", **changes):
    return Config(model, "toy", config_dict=tiny(root, model, **changes))


def trained(config, *, trainer_class, data):
    train, valid, test = data
    init_seed(config["seed"], True)
    model = config.model_class(config, train._dataset)
    trainer = trainer_class(config, model)
    _, best = trainer.fit(train, valid, saved=False)
    return trainer.train_loss_dict, best, trainer.evaluate(test, load_best_model=False)


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BERT4Rec", "Caser"])
def test_losses_and_metrics_equal_stock_recbole(root, model):
    """Same seed, stock dataset, loaders and trainer on one side, ours on the other: not one digit differs."""
    config = config_for(root, model)
    stock = trained(config, trainer_class=Trainer, data=data_preparation(config, SequentialDataset(config)))
    data = build_data(config)
    ours = trained(config, trainer_class=ClassicalTrainer, data=(data.train, data.valid, data.test))
    assert stock == ours and len(stock[0]) == 2


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec"])
def test_a_record_has_the_key_by_which_a_plan_finds_it(root, model):
    """RecBole's transforms (BERT4Rec has one) write into the settings while the data are read."""
    run_recbole_ilrec(model, "toy", config_dict=tiny(root, model, epochs=1))
    (record,) = read_records(root / "saved/records.jsonl")
    assert record["evaluation"]["run"] == run_key(config_for(root, model, epochs=1))


def weights(folder):
    return load_state(folder)["model"]


def straight_and_resumed(root, epochs=4, stop_after=2, **changes):
    """Weights, losses, curves and results of a run, and of one that is killed in an epoch and then resumed."""
    outcomes = []
    for interrupted in (False, True):
        config = config_for(root, epochs=epochs, **changes)
        data = build_data(config)
        init_seed(config["seed"], True)
        trainer = ClassicalTrainer(config, build_model(config, data.train._dataset))
        if interrupted:

            def kill(epoch, _score):
                if epoch == stop_after:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                trainer.fit(data.train, data.valid, callback_fn=kill)
            folder = trainer.folder
            torch.rand(7)  # another process draws other numbers
            data = build_data(config)
            trainer = ClassicalTrainer(config, build_model(config, data.train._dataset))
            trainer.resume_checkpoint(folder)
            assert 0 < trainer.start_epoch <= stop_after
        result = trainer.fit(data.train, data.valid)
        test = trainer.evaluate(data.test)
        outcomes.append((weights(trainer.folder / "last"), trainer.train_loss_dict, trainer.history, result, test))
    return outcomes


@pytest.mark.parametrize("changes", [{}, {"loss_type": "BPR"}, {"eval_step": 2, "learner": "adamw"}])
def test_a_resumed_run_equals_a_straight_one(root, changes):
    (straight, *numbers), (resumed, *again) = straight_and_resumed(root, stop_after=3, **changes)
    assert numbers == again
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_finished_run_is_only_evaluated_when_resumed(root):
    settings = tiny(root)
    first = run_recbole_ilrec("SASRec", "toy", config_dict=settings)
    (folder,) = (root / "saved").glob("SASRec-toy-*")
    again = run_recbole_ilrec("SASRec", "toy", config_dict={**settings, "resume_from_checkpoint": str(folder)})
    assert again["test_result"] == first["test_result"] and again["best_valid_result"] == first["best_valid_result"]


def test_early_stopping_is_remembered(root):
    settings = tiny(root, epochs=50, stopping_step=0, learning_rate=0.5)
    run_recbole_ilrec("SASRec", "toy", config_dict=settings)
    (folder,) = (root / "saved").glob("SASRec-toy-*")
    state = load_state(folder / "last")
    assert state["finished"] and state["next_epoch"] < 50
    trainer = ClassicalTrainer(config_for(root, epochs=50, stopping_step=0), build_model_for(root))
    trainer.resume_checkpoint(folder)
    assert trainer.finished


def test_a_run_that_came_to_its_last_epoch_goes_on_when_more_are_asked_for(root):
    run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, epochs=1, stopping_step=0))
    (folder,) = (root / "saved").glob("SASRec-toy-*")
    trainer = ClassicalTrainer(config_for(root, epochs=2, stopping_step=0), build_model_for(root))
    trainer.resume_checkpoint(folder)
    assert not trainer.finished and trainer.start_epoch == 1


def build_model_for(root, model="SASRec", **changes):
    config = config_for(root, model, **changes)
    return build_model(config, build_data(config).train._dataset)


def test_a_checkpoint_of_another_shape_or_model_is_one_line(root):
    run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, epochs=1))
    (folder,) = (root / "saved").glob("SASRec-toy-*")
    for model, changes, message in (("SASRec", {"hidden_size": 32}, "does not fit"), ("GRU4Rec", {}, "another model")):
        config = config_for(root, model, **changes)
        trainer = ClassicalTrainer(config, build_model_for(root, model, **changes))
        with pytest.raises(UserError, match=message):
            trainer.resume_checkpoint(folder)


def test_a_run_returns_recboles_result_and_writes_no_pickle(root):
    result = run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root))
    assert list(result["test_result"]) == ["hit@5", "hit@10", "ndcg@5", "ndcg@10"] == list(result["best_valid_result"])
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"] and result["valid_score_bigger"] is True
    assert result["record"].endswith("records.jsonl")
    suffixes = {path.suffix for path in (root / "saved").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}
    assert list((root / "log/SASRec").glob("*.log")) and list((root / "log_tensorboard").iterdir())


def test_nothing_is_written_before_training_starts(root):
    config = config_for(root)
    ClassicalTrainer(config, build_model_for(root))
    assert sorted(path.name for path in root.iterdir()) == ["toy"]


def test_without_saving_no_checkpoint_is_written(root):
    run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, epochs=1), saved=False)
    assert not (root / "saved").exists()


def test_two_runs_log_into_two_files_and_foreign_handlers_stay(root):
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    try:
        before = len(logging.getLogger().handlers)
        for seed in (1, 2):
            run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, epochs=1, seed=seed, state="INFO"), saved=False)
        assert foreign in logging.getLogger().handlers and len(logging.getLogger().handlers) <= before + 2
    finally:
        logging.getLogger().removeHandler(foreign)
    logs = [path.read_text() for path in (root / "log/SASRec").glob("*.log")]
    assert len(logs) == 2 and all(text.count("test result") == 1 and "\x1b" not in text for text in logs)


def test_excluded_history_is_never_recommended(root):
    """A target that the user already had cannot be hit, and every user's list avoids the whole history."""
    config = config_for(root, exclude_history=True, metrics=["Hit", "ItemCoverage"], MAX_ITEM_LIST_LENGTH=2)
    data = build_data(config)
    trainer = ClassicalTrainer(config, build_model(config, data.train._dataset))
    trainer.eval_collector.data_collect(data.train)
    trainer._evaluated = data.test._dataset
    trainer.item_tensor, trainer.tot_item_num = None, data.dataset.item_num
    sequences = data.dataset.sequences
    for batch in data.test:
        interaction, scores, *_ = trainer._full_sort_batch_eval(batch)
        for row, user in enumerate(interaction["user_id"].tolist()):
            history = set(sequences.items[sequences.start[user] : sequences.start[user + 1] - 1].tolist())
            assert set(torch.isneginf(scores[row]).nonzero()[:, 0].tolist()) == history | {0}
    assert trainer.evaluate(data.test, load_best_model=False)["hit@10"] >= 0


def test_sampled_candidates_can_be_evaluated(root):
    result = run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, eval_args={"mode": "uni10"}), saved=False)
    assert 0 <= result["test_result"]["hit@5"] <= result["test_result"]["hit@10"] <= 1


@pytest.mark.parametrize(("metric", "mode"), [("AUC", "uni10"), ("GAUC", "full")])
def test_metrics_without_a_cut_off_work(root, metric, mode):
    settings = tiny(root, metrics=metric, eval_args={"mode": mode})
    result = run_recbole_ilrec("SASRec", "toy", config_dict=settings, saved=False)
    assert 0 < result["test_result"][metric.lower()] < 1 and result["best_valid_score"] > 0


def test_without_validation_the_last_epoch_is_tested(root):
    result = run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, eval_step=0))
    assert result["best_valid_result"] is None and result["test_result"]["hit@10"] >= 0


def test_a_loss_that_is_no_number_is_one_line(root):
    with pytest.raises(UserError, match="lower learning_rate"):
        run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, learning_rate=1e30, epochs=9), saved=False)


def test_sizes_that_do_not_fit_are_one_line(root):
    with pytest.raises(UserError, match="cannot be built"):
        run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, hidden_size=15))
    with pytest.raises(UserError, match="Did you mean 'adamw'"):
        run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, learner="adamww"))


def test_frozen_parameters_stay_out_of_the_optimiser(root):
    config, model = config_for(root), build_model_for(root)
    model.item_embedding.weight.requires_grad_(False)
    groups = ClassicalTrainer(config, model).optimizer.param_groups
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


REWARD = {"reward.config": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 1, "train_batch_size": 64}}


def test_the_reward_model_is_trained_once_and_leaves_the_generators_alone(root):
    config = config_for(root, "GRU4Rec", **REWARD)
    data = build_data(config)
    rows = data.train._dataset.inter_feat[:9]
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        reward = load_reward_model(config, data.train._dataset)
        drawn.append((torch.rand(1).item(), reward.probabilities(rows)))
    assert drawn[0][0] == drawn[1][0] and torch.equal(drawn[0][1], drawn[1][1])
    sharp = config_for(root, "GRU4Rec", **REWARD, **{"reward.temperature": 0.5})
    squared = load_reward_model(sharp, data.train._dataset).probabilities(rows)
    torch.testing.assert_close(squared, drawn[0][1].square() / drawn[0][1].square().sum(1, keepdim=True))
    elsewhere = config_for(root, "GRU4Rec", **REWARD, cache_dir=str(root / "other"))
    again = load_reward_model(elsewhere, data.train._dataset).probabilities(rows)
    assert torch.equal(again, drawn[0][1]), "whatever was drawn before, its seed decides"
    assert len(list((root / "saved/cache/reward").iterdir())) == 1
    probabilities = drawn[0][1]
    assert probabilities.shape == (9, data.dataset.item_num - 1) and probabilities.dtype == torch.float64
    assert torch.allclose(probabilities.sum(1), torch.ones(9, dtype=torch.float64))
    vectors = item_vectors(config, data.train._dataset)
    assert vectors.shape == (data.dataset.item_num - 1, 16)
    assert torch.equal(vectors[4], reward.model.item_embedding(torch.tensor(5)))
    key = reward_key(config, data.train._dataset)
    with (root / "toy/toy.inter").open("a") as stream:
        stream.write("u0\ti1\t99\n")
    more = config_for(root, "GRU4Rec", **REWARD)
    assert reward_key(more, build_data(more).train._dataset) != key


def test_the_reward_model_can_mask_the_history(root):
    config = config_for(root, "GRU4Rec", **REWARD, **{"reward.mask_history": True})
    data = build_data(config)
    rows = data.test._dataset.inter_feat[:9]
    row, item = data.dataset.sequences.before(rows["user_id"], rows["timestamp"])
    probabilities = load_reward_model(config, data.train._dataset).probabilities(rows)
    again = item == rows["item_id"][row]  # the truth keeps its own where a user returns to it
    assert (probabilities[row, item - 1] == 0).equal(~again) and (probabilities > 0).any(1).all()
    reward = load_reward_model(config, data.train._dataset)
    told = [item[row == number].numpy() for number in range(9)]
    assert torch.equal(reward.probabilities(rows, past=told), probabilities)
    assert (reward.probabilities(rows, past=[own[:0] for own in told]) > 0).all(), "of users of whom nothing is known"


def test_a_run_can_be_the_reward_model_with_its_own_sizes(root):
    run_recbole_ilrec("SASRec", "toy", config_dict=tiny(root, epochs=1, hidden_size=8))
    (folder,) = (root / "saved").glob("SASRec-toy-*")
    config = config_for(root, "GRU4Rec", reward_checkpoint=str(folder))
    assert item_vectors(config, build_data(config).train._dataset).shape[1] == 8
    other = config_for(root, "GRU4Rec", reward_checkpoint=str(folder), item_inter_num_interval="[8,inf)", topk=[1])
    with pytest.raises(UserError, match="knows other items"):
        load_reward_model(other, build_data(other).train._dataset)
