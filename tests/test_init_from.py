"""Training that begins with the weights of another: ``train.init_from``."""

import json
import weakref

import pytest
import torch

from recbole_ilrec.checks.finding import Level
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import keys_of, settings_key, supervised_key
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import Needs
from recbole_ilrec.objective.ilrec import ILRec
from recbole_ilrec.objective.sft import SFT, cross_entropy
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs.diagnosis import diagnose
from recbole_ilrec.runs.kept_stages import supervision_alone
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.interrupts import Interrupted
from recbole_ilrec.schema import LossTerms
from recbole_ilrec.training.loop import StepTrainer
from tests.worlds import LEARN, QUICK, newest

SHORT = {**QUICK, **LEARN, "epochs": 4, "eval_step": 1, "train_batch_size": 40}
ALONE = {"use_cpo": False, "use_cpd": False, "use_crr": False}


def run(model="ILRec", **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**SHORT, **settings})


def config_of(model="ILRec", **settings):
    return Config(model, "ring", config_dict={**SHORT, **settings})


def weights_of(folder):
    return load_state(folder / "best")["model"]


def test_without_an_epoch_of_its_own_a_run_is_the_one_that_it_begins_with(ring):
    before = run("LCRec")
    folder = newest(ring, "LCRec")
    assert run("LCRec", **{"train.init_from": str(folder)}, epochs=0)["test_result"] == before["test_result"]
    assert run(**{"train.init_from": str(folder / "best")}, epochs=0)["test_result"] == before["test_result"]
    assert run("LCRec", epochs=0)["test_result"] != before["test_result"]


@pytest.mark.parametrize("model", ["ILRec", "LCRec"])
def test_plain_fine_tuning_first_is_the_supervised_stage_and_then_the_same_as_its_run_given(ring, model):
    run(model, **{"train.init_from": "sft"})
    first = weights_of(newest(ring, model))
    (stage,) = (ring / "saved/cache/supervised").iterdir()
    run("LCRec")
    plain = weights_of(newest(ring, "LCRec"))
    kept = weights_of(stage)
    assert all(torch.equal(kept[name], plain[name]) for name in plain | kept)
    run(model, **{"train.init_from": str(newest(ring, "LCRec"))})
    given = weights_of(newest(ring, model))
    assert all(torch.equal(first[name], given[name]) for name in first | given)
    run(model)
    joint = weights_of(newest(ring, model))
    assert any(not torch.equal(first[name], joint[name]) for name in first)
    assert json.loads((stage / "stage.json").read_text())["stage"] == "LCRec"
    assert load_state(stage / "best")["settings"]["objective"] == "sft"


def test_the_stage_that_a_plain_run_left_is_not_trained_again(ring, monkeypatch):
    run("LCRec")
    taken = []
    compute = StepTrainer.compute_loss

    def noted(self, model, *args, **kwargs):
        taken.append(type(self.model.objective))
        return compute(self, model, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "compute_loss", noted)
    run(**{"train.init_from": "sft"})
    assert set(taken) == {ILRec}
    taken.clear()
    run(**{"train.init_from": "sft"}, seed=7)
    assert set(taken) == {ILRec, SFT} and taken[0] is SFT and taken[-1] is ILRec


def test_a_run_that_began_with_others_weights_is_no_stage_for_others(ring):
    run("LCRec")
    stages = sorted((ring / "saved/cache/supervised").iterdir())
    run("LCRec", **{"train.init_from": str(newest(ring, "LCRec"))}, epochs=3)
    assert sorted((ring / "saved/cache/supervised").iterdir()) == stages


@pytest.mark.parametrize("cut_at", [5, 33])
def test_interrupted_in_either_stage_it_ends_as_the_straight_run(ring, monkeypatch, cut_at):
    two = {"train.init_from": "sft", "save_steps": 2}
    run(**two, cache_dir="elsewhere")
    straight = weights_of(newest(ring, "ILRec"))
    compute, done = StepTrainer.compute_loss, []

    def cut(self, *args, **kwargs):
        done.append(1)
        if len(done) > cut_at:
            self.stop.received = 15
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "compute_loss", cut)
        with pytest.raises(Interrupted) as stopped:
            run(**two)
    own = "--resume_from_checkpoint" in str(stopped.value.args)
    run(**two, **({"resume_from_checkpoint": str(newest(ring, "ILRec"))} if own else {}))
    ended = weights_of(newest(ring, "ILRec"))
    assert all(torch.equal(straight[name], ended[name]) for name in straight | ended)


def test_the_models_own_loss_is_back_after_the_stage_even_if_it_failed(ring):
    config = config_of()
    model = config.model_class(config, build_data(config).train._dataset)
    with pytest.raises(RuntimeError), supervision_alone(model):
        assert isinstance(model.objective, SFT)
        raise RuntimeError
    assert isinstance(model.objective, ILRec)


def test_keys_name_the_beginning_and_stay_without_one(ring):
    run("LCRec")
    folder = newest(ring, "LCRec")
    plain = config_of()
    begun = {name: config_of(**{"train.init_from": where}) for name, where in (("sft", "sft"), ("run", str(folder)))}
    keys = {settings_key(config) for config in (plain, *begun.values())}
    assert len(keys) == 3
    assert supervised_key(begun["sft"]) == supervised_key(config_of("LCRec")) and supervised_key(plain) is None
    before = keys_of(begun["run"]).run
    assert keys_of(config_of(**{"train.init_from": str(folder / "best")})).run == before
    state = json.loads((folder / "best/state.json").read_text())
    (folder / "best/state.json").write_text(json.dumps({**state, "changed": 1}))
    assert keys_of(config_of(**{"train.init_from": str(folder)})).run != before
    (ring / "sft").mkdir()
    assert settings_key(config_of(**{"train.init_from": "sft"})) == settings_key(begun["sft"])


@pytest.mark.parametrize(
    ("model", "given", "complaint"),
    [
        ("SDPO", "sft", "begins with supervised fine-tuning anyway"),
        ("SPRec", "somewhere", "--preference.checkpoint"),
        ("ILRec", "nowhere", "nowhere"),
    ],
)
def test_a_beginning_that_cannot_be_is_one_line(ring, model, given, complaint):
    with pytest.raises(UserError, match=complaint):
        run(model, **{"train.init_from": given})
    assert not list((ring / "saved").glob("*-ring-*/best"))


def test_weights_of_a_classical_model_are_refused(ring):
    run_recbole_ilrec("SASRec", "ring", config_dict={"epochs": 1, "device": "cpu", "show_progress": False})
    with pytest.raises(UserError, match="holds no language model"):
        run(**{"train.init_from": str(newest(ring, "SASRec"))})


def test_weights_of_other_data_are_refused_and_seen_by_the_doctor(ring):
    run("LCRec")
    given = {"train.init_from": str(newest(ring, "LCRec"))}
    path = ring / "dataset/ring/ring.inter"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="was trained on other data"):
        run(**given)
    config = config_of(**given)
    data = build_data(config)
    findings = diagnose(config, data, config.model_class(config, data.train._dataset))
    assert [found.level for found in findings if found.name == "weights to begin with"] == [Level.ATTENTION]


class Scaled(torch.nn.Module):
    """A loss of one's own that is a module and learns a number."""

    needs = Needs()

    def __init__(self, settings, item_tokens=None, *, eos_id=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, states, batch, legal=None, *, epoch=0.0, generator=None):
        loss = cross_entropy(states.head(states.final), batch.targets).sum() * self.scale
        return LossTerms(parts={"scaled": loss}, weights={"scaled": 1.0})


def test_a_loss_that_is_a_module_begins_with_the_same_stage_as_all_others(ring):
    run("LCRec")
    stages = sorted((ring / "saved/cache/supervised").iterdir())
    own = {"objective": f"{__name__}:Scaled"}
    run(**own, **{"train.init_from": "sft"})
    learned = weights_of(newest(ring, "ILRec"))
    assert learned["objective.scale"] != 1.0
    assert sorted((ring / "saved/cache/supervised").iterdir()) == stages
    run(**own, **{"train.init_from": str(newest(ring, "ILRec"))}, epochs=1)
    assert abs(weights_of(newest(ring, "ILRec"))["objective.scale"] - 1.0) < abs(learned["objective.scale"] - 1.0)


def test_the_optimizer_of_a_stage_is_gone_when_the_next_begins(ring, monkeypatch):
    optimizers, alive = [], []
    create = StepTrainer.create_optimizer

    def noted(self, *args, **kwargs):
        alive.append(sum(reference() is not None for reference in optimizers))
        made = create(self, *args, **kwargs)
        optimizers.append(weakref.ref(made))
        return made

    monkeypatch.setattr(StepTrainer, "create_optimizer", noted)
    run("DPO", **{"preference.epochs": 1, "preference.examples": 50})
    assert alive == [0, 0] and not any(reference() is not None for reference in optimizers)
