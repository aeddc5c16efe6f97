"""Where settings come from, and what is refused."""

import os

import pytest
import torch

pytest.importorskip("recbole")

from recbole.model.abstract_recommender import SequentialRecommender

from recbole_ilrec.configuration import config as config_module
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import MODELS, recbole_models
from recbole_ilrec.configuration.outcome import request_of, settings_key
from recbole_ilrec.configuration.presets import parse_value, properties_folder, read_yaml
from recbole_ilrec.configuration.unread import unread
from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime.device import choose_device
from tests.toy import write_toy


class Stub(SequentialRecommender):
    """A language model as far as the settings are concerned."""

    input_type = config_module.InputType.POINTWISE


@pytest.fixture
def llm(monkeypatch):
    monkeypatch.setitem(MODELS._entries, "ILRec", Stub)


def make(model="SASRec", dataset="ml-100k", files=None, **settings):
    return Config(model, dataset, files, {"device": "cpu", **settings})


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        make(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_the_papers_protocol():
    config = make()
    assert config["MAX_ITEM_LIST_LENGTH"] == 20 and config["valid_metric"] == "NDCG@10"
    assert config["metrics"] == ["Hit", "NDCG"] and config["topk"] == [5, 10]
    assert config["eval_args"] == {
        "split": {"LS": "valid_and_test"},
        "group_by": "user",
        "order": "TO",
        "mode": {"valid": "full", "test": "full"},
    }
    assert config["repeatable"] is True and config["loss_type"] == "CE" and config["seed"] == 2020
    assert config["train_neg_sample_args"]["distribution"] == "none"
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}


def test_every_model_of_recbole_is_found_whatever_its_case():
    assert {"SASRec", "GRU4Rec", "BERT4Rec", "Caser", "FPMC", "NARM"} <= set(recbole_models())
    assert make("sasrec").model == "SASRec" and make("BERT4REC").model == "BERT4Rec"


@pytest.mark.parametrize("model", ["FPMC", "GRU4Rec", "NARM", "RepeatNet", "HGN", "SASRecF"])
def test_models_with_other_losses_get_the_sampling_they_need(model):
    sampling = make(model)["train_neg_sample_args"]["distribution"]
    assert sampling == ("uniform" if model in ("FPMC",) else "none")
    if model in ("GRU4Rec", "NARM"):
        assert make(model, loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"


def test_later_layers_win_and_are_named(tmp_path):
    first = write(tmp_path / "a.yaml", "epochs: 3\nlearning_rate: 1e-3\n")
    second = write(tmp_path / "b.yaml", "epochs: 4\nhidden_size: 32\n")
    config = make(files=[first, second], hidden_size=16)
    assert (config["epochs"], config["learning_rate"], config["hidden_size"]) == (4, 0.001, 16)
    assert config.origin["epochs"] == second and config.origin["learning_rate"] == first
    assert config.origin["hidden_size"] == "config_dict or command line"
    assert config.origin["seed"] == "properties/overall.yaml"
    assert config.origin["inner_size"] == "RecBole's properties/model/SASRec.yaml"
    assert "epochs = 4  # " + second in config.describe()


def test_a_later_layer_wins_however_it_spells_a_setting(tmp_path, llm):
    file = write(tmp_path / "a.yaml", "num_beams: 30\ndecode: {renormalise: true, collisions: strict}\nk: 2\n")
    settings = make("ILRec", files=[file], **{"decode.num_beams": 40, "ilrec": {"k": 1}}).settings
    assert (settings.decode.num_beams, settings.decode.renormalise, settings.ilrec.k) == (40, True, 1)
    assert settings.decode.collisions == "strict"


def test_a_section_in_a_later_layer_leaves_the_backbone_that_was_named(tmp_path, llm):
    first = write(tmp_path / "a.yaml", "backbone: smollm2-135m\n")
    second = write(tmp_path / "b.yaml", "backbone: {gradient_checkpointing: true}\n")
    whole = make("ILRec", files=[first, second])
    assert whole.settings == make("ILRec", files=[first], backbone={"gradient_checkpointing": True}).settings
    plain = make("ILRec", backbone="smollm2-135m")
    assert whole.settings.backbone.path == plain.settings.backbone.path
    assert whole.settings.backbone.package == plain.settings.backbone.package and whole["epochs"] == plain["epochs"]
    assert whole.settings.backbone.gradient_checkpointing


def test_what_a_run_leaves_to_be_made_again_has_all_its_layers(tmp_path):
    text = "transitions: {shrinkage: 50}\neval_args: {split: {RS: [0.8, 0.1, 0.1]}}\nalpha: 0.1\n"
    first = write(tmp_path / "a.yaml", text)
    second = write(tmp_path / "b.yaml", "transitions: {decay: 0.1}\neval_args: {mode: full}\nilrec: {alpha: 0.2}\n")
    config = make("Transitions", files=[first, second], alpha=0.3)
    again = Config(**request_of(config))
    assert again.settings == config.settings and again["eval_args"] == config["eval_args"]
    assert (again.settings.transitions.shrinkage, again.settings.transitions.decay) == (50, 0.1)
    assert again.settings.ilrec.alpha == 0.3 and again["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}


def test_part_of_eval_args_leaves_the_rest():
    config = make(eval_args={"mode": "uni100"})
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["eval_args"]["order"] == "TO"
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}


def test_the_validation_metric_follows_the_metrics_unless_given():
    assert make(topk=[20])["valid_metric"] == "NDCG@20" and make(metrics="MRR")["valid_metric"] == "MRR@10"
    assert "one of topk=[5]" in refused(topk=[5], valid_metric="NDCG@10")
    assert "e.g. MRR@5." in refused(topk=[5], metrics=["MRR"], valid_metric="NDCG@5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rte": 1}, "Did you mean 'learning_rate'?"),
        ({"hidden_sise": 1}, "Did you mean 'hidden_size'?"),
        ({"decode.num_beems": 1}, "Did you mean 'decode.num_beams'?"),
        ({"alpha": -1}, "alpha=-1 is not allowed"),
        ({"metrics": ["Hitt"]}, "Did you mean 'Hit'?"),
        ({"topk": [0]}, "topk=[0]"),
        ({"topk": "all"}, "topk='all'"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"train_batch_size": 0}, "train_batch_size=0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"loss_type": "MSE"}, "loss_type='MSE'"),
        ({"repeatable": False}, "repeatable"),
        ({"train_neg_sample_args": {"sample_num": 1}}, "train_neg_sample_args"),
        ({"eval_args": {"order": "RO"}}, "eval_args.order must be TO"),
        ({"save_dataset": True}, "pickles"),
        ({"exclude_history": True, "eval_args": {"mode": "uni10"}}, "eval_args.mode=full"),
        ({"nproc": 2}, "torchrun --nproc_per_node=2"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "cuda:99"}, "GPU 99"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    assert message in refused(**settings)


def test_unknown_names_are_one_line_with_a_suggestion(tmp_path):
    assert "Did you mean 'SASRec'?" in refused("SASRek") and "lightgbm" not in refused("LightGMB")
    assert "pre-training" in refused("S3Rec") and "knowledge graph" in refused("KSR")
    write_toy(tmp_path)
    assert "Did you mean 'toy'?" in refused(dataset="toyy", data_path=str(tmp_path))
    assert "recbole-ilrec prepare Instrument" in refused(dataset="Instrument", data_path=str(tmp_path))
    assert "No dataset given" in refused(dataset=None) and "No model given" in refused(model=None)
    assert "must be a name" in refused(dataset="../toy")


def test_names_may_stand_in_a_file(tmp_path):
    file = write(tmp_path / "run.yaml", "model: GRU4Rec\ndataset: ml-100k\ndevice: cpu\n")
    assert Config(config_file_list=[file]).model == "GRU4Rec"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nseed: [1\n", "a.yaml:3: broken YAML"),
        ("- 1\n", "a.yaml:1: a settings file holds 'key: value' lines, not a list"),
        ("epochs: 1\nepochs: 2\n", "'epochs' stands twice"),
        ("x: !!python/object/apply:os.system ['true']\n", "a.yaml:1: broken YAML"),
        (None, "does not exist"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    if text is not None:
        write(path, text)
    assert message in refused(files=[str(path)])


def test_yaml_numbers_are_recboles():
    typed = {"1e-3": 0.001, "5": 5, "[5,10]": [5, 10], "[5,inf)": "[5,inf)", "None": None, "true": True}
    assert {text: parse_value(text) for text in typed} == typed
    assert parse_value("2020-01-01") == "2020-01-01" and parse_value("__import__('os')") == "__import__('os')"


def test_every_preset_is_accepted():
    for path in properties_folder().rglob("*.yaml"):
        assert isinstance(read_yaml(path), dict)
    for path in (properties_folder() / "model").glob("*.yaml"):
        if path.stem not in MODELS:
            make(path.stem)


def test_a_backbone_is_a_preset_a_folder_or_a_hub_id(llm, tmp_path):
    assert make("ILRec").settings.backbone_name == "tiny" and make("ILRec").is_llm
    assert make("ILRec", backbone=str(tmp_path)).settings.backbone.path == str(tmp_path)
    assert make("ILRec", backbone="owner/name").settings.backbone.path == "owner/name"
    assert "Unknown backbone 'tinny'" in refused("ILRec", backbone="tinny")
    assert make("ILRec", backbone={"layers": 3}).settings.backbone.layers == 3


def test_too_few_beams_are_refused(llm):
    assert "--num_beams=10" in refused("ILRec", num_beams=5)


def test_making_settings_touches_neither_the_environment_nor_the_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--epochs=77"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert make()["epochs"] != 77 and os.environ["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(
    ("device", "gpu_id", "rank", "expected"),
    [
        ("auto", None, None, "cuda:0"),
        ("auto", "1,0", None, "cuda:1"),
        ("auto", None, "1", "cuda:1"),
        ("auto", "", None, "cpu"),
        ("cuda:1", "0", "0", "cuda:1"),
        ("cpu", "1", None, "cpu"),
    ],
)
def test_the_device_is_chosen_by_name_rank_and_gpu_id(monkeypatch, device, gpu_id, rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(choose_device(device, gpu_id=gpu_id)) == expected
    assert str(choose_device("auto", use_gpu=False)) == "cpu"


@pytest.mark.parametrize(
    ("model", "given", "names"),
    [
        ("SASRec", {"k": 2, "num_beams": 10, "hidden_size": 8, "exclude_history": True}, ["k", "num_beams"]),
        ("Transitions", {"transitions.decay": 0.5, "train.bf16": True}, ["train.bf16"]),
        ("LCRec", {"alpha": 0.5, "preference.beta": 0.2, "reward_model": "GRU4Rec"}, ["alpha", "preference.beta"]),
        ("SDPO", {"preference.beta": 0.2, "mu": 0.1}, ["mu"]),
        ("ILRec", {"alpha": 0.5, "transitions.decay": 0.5}, ["transitions.decay"]),
        ("ILRec", {"learner": "sgd", "clip_grad_norm": {"max_norm": 1.0}}, ["learner", "clip_grad_norm"]),
        ("LCRec", {"worker": 2, "enable_amp": True, "shuffle": False}, ["worker", "enable_amp", "shuffle"]),
        ("LCRec", {"worker": 0, "enable_amp": False, "log_wandb": False, "train_neg_sample_args": None}, []),
        ("SASRec", {"learner": "sgd", "clip_grad_norm": {"max_norm": 1.0}, "worker": 2}, []),
    ],
)
def test_what_a_model_does_not_read_is_told(model, given, names):
    assert unread(make(model, **given)) == names


def test_an_interval_may_be_a_list():
    assert make("SASRec", user_inter_num_interval=[5, "inf"])["user_inter_num_interval"] == "[5,inf]"


def test_the_case_of_an_objective_changes_nothing(llm):
    typed, listed = (make("ILRec", objective=name, alpha=0.5) for name in ("SFT", "sft"))
    assert unread(typed) == unread(listed) == ["alpha"] and settings_key(typed) == settings_key(listed)
    assert refused("ILRec", objective="ILRec", k=9) == refused("ILRec", objective="ilrec", k=9)
