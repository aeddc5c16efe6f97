"""RecBole's Caser as matrix products: the law that it is the same model, and where it is taken."""

import pytest
import torch

pytest.importorskip("recbole")

from recbole.model.sequential_recommender.caser import Caser as Stock
from recbole.utils import init_seed

from recbole_ilrec.collaborative.classical import ClassicalTrainer
from recbole_ilrec.collaborative.faster_caser import Caser
from recbole_ilrec.collaborative.model import build_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from tests.toy import tiny, write_toy

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class OwnCaser(Stock):
    """A user's child of RecBole's model."""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy(tmp_path)


def both(toy, **changes):
    """RecBole's model and ours with the same weights, in double precision, and the data."""
    config = Config("Caser", "toy", config_dict=tiny(toy, "Caser", **changes))
    data = build_data(config)
    stock, ours = Stock(config, data.train._dataset), Caser(config, data.train._dataset)
    ours.load_state_dict(stock.state_dict())
    return stock.double(), ours.double(), data


def loss_and_gradients(model, rows):
    init_seed(1, True)  # the same units are dropped
    loss = model.train().calculate_loss(rows)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MAX_ITEM_LIST_LENGTH": 1},
        {"nh": 1, "nv": 1, "embedding_size": 4},
        {"dropout_prob": 0.0, "reg_weight": 0.0},
        {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
    ],
)
def test_loss_gradients_and_scores_are_those_of_recbole(toy, changes):
    stock, ours, data = both(toy, **changes)
    rows = next(iter(data.train))
    (loss, gradients), (own_loss, own_gradients) = loss_and_gradients(stock, rows), loss_and_gradients(ours, rows)
    torch.testing.assert_close(own_loss, loss, rtol=1e-12, atol=1e-12)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    rows = next(iter(data.test))[0]
    with torch.no_grad():
        expected, found = stock.eval().full_sort_predict(rows), ours.eval().full_sort_predict(rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_it_is_trained_as_recbole_trains_its_own(toy):
    losses = []
    for wanted in (Stock, Caser):
        config = Config("Caser", "toy", config_dict=tiny(toy, "Caser"))
        data = build_data(config)
        init_seed(config["seed"], True)
        trainer = ClassicalTrainer(config, wanted(config, data.train._dataset))
        trainer.fit(data.train, data.valid, saved=False)
        losses.append(list(trainer.train_loss_dict.values()))
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_it_stands_for_recbole_s_model_on_a_cpu_and_not_for_a_child_of_it(toy):
    config = Config("Caser", "toy", config_dict=tiny(toy, "Caser"))
    assert type(build_model(config, build_data(config).train._dataset)) is Caser
    own = Config(OwnCaser, "toy", config_dict=tiny(toy, "Caser"))
    assert type(build_model(own, build_data(own).train._dataset)) is OwnCaser
