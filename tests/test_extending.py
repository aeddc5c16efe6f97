"""Losses and models of the user's own: what docs/extending.md shows is run as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from recbole_ilrec.cli import main
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import request_of, run_key
from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.registry import is_place, own_class
from recbole_ilrec.runs.recommendation import Recommender
from tests.worlds import QUICK, newest

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SHORT = {**QUICK, "epochs": 1, "eval_step": 1, "train_batch_size": 40, "state": "WARNING"}


@pytest.fixture
def mine(ring, monkeypatch):
    """The files of the page in the working folder, forgotten afterwards."""
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL):
        (ring / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield ring
    for name in ("my_losses", "my_models", "my_cases", "my_sums"):
        sys.modules.pop(name, None)


def options(settings):
    return [f"--{key}={value}" for key, value in settings.items()]


def test_the_commands_of_the_page_run(mine, capsys):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        words = shlex.split(line)
        verb, given = words[1], [word for word in words[2:] if not word.startswith("--dataset")]
        assert main([verb, *given, "--dataset=ring", *options(SHORT)]) == 0, (line, capsys.readouterr().err)
    assert sorted(path.name for path in (mine / "log").iterdir()) == ["ILRec", "LCRec", "NoisyILRec", "UnitSASRec"]


def test_an_own_loss_that_reduces_to_plain_fine_tuning_gives_its_numbers(mine):
    plain = run_recbole_ilrec("LCRec", "ring", config_dict=SHORT)
    own = {"objective": "my_losses:Focal", "objective_options": {"gamma": 0}}
    focal = run_recbole_ilrec("LCRec", "ring", config_dict={**SHORT, **own})
    assert focal["test_result"] == plain["test_result"]
    assert focal["best_valid_score"] == plain["best_valid_score"]


def test_own_models_take_the_presets_of_their_parents_and_are_found_again(mine):
    child = Config("my_models:NoisyILRec", "ring", config_dict={**SHORT, "noise": 0.5})
    parent = Config("ILRec", "ring", config_dict=SHORT)
    assert (child.model, child.is_llm, child["noise"]) == ("NoisyILRec", True, 0.5)
    assert child.settings == parent.settings
    assert Config("my_models:UnitSASRec", "ring")["n_layers"] == Config("SASRec", "ring")["n_layers"]
    request = request_of(child)
    assert request["model"] == "my_models:NoisyILRec"
    assert Config(**request).settings == child.settings
    assert Config(sys.modules["my_models"].NoisyILRec, "ring", config_dict=SHORT).is_llm


def test_a_run_of_code_that_changed_is_another_run(mine):
    def keys():
        own = {"model": "my_models:NoisyILRec"}, {"model": "LCRec", "objective": "my_losses:Focal"}
        return [run_key(Config(None, "ring", config_dict={**SHORT, **settings})) for settings in own]

    before, published = keys(), run_key(Config("ILRec", "ring", config_dict=SHORT))
    assert keys() == before and published not in before
    for name in ("my_models", "my_losses"):
        (mine / f"{name}.py").write_text((mine / f"{name}.py").read_text() + "\n# edited, and of another length\n")
        with pytest.raises(UserError, match=rf"{name}.py has changed since it was imported.*start Python"):
            keys()
        sys.modules.pop(name)
    assert not set(keys()) & set(before)
    assert run_key(Config("ILRec", "ring", config_dict=SHORT)) == published


def test_a_class_without_a_file_shares_its_key_with_no_other(mine, caplog):
    def typed():
        return type("Typed", (sys.modules["my_models"].NoisyILRec,), {"__module__": "__main__.cell"})

    Config("my_models:NoisyILRec", "ring", config_dict=SHORT)
    one, other = typed(), typed()
    keys = [run_key(Config(model, "ring", config_dict=SHORT)) for model in (one, one, other)]
    assert keys[0] == keys[1] != keys[2]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Typed is in no file"] * 2


def test_a_model_asked_through_code_or_a_prompt_that_has_changed_says_so(mine, caplog):
    prompt = mine / "my_prompt.yaml"
    prompt.write_text((Path(__file__).parents[1] / "properties" / "prompt" / "compact.yaml").read_text())
    run_recbole_ilrec("my_models:UnitSASRec", "ring", config_dict={**SHORT, "device": "cpu"})
    run_recbole_ilrec("LCRec", "ring", config_dict={**SHORT, "prompt.template": "my_prompt.yaml"})
    runs = [newest(mine, name) for name in ("UnitSASRec", "LCRec")]
    for run in runs:
        Recommender.load(run)
    assert "is not what it was" not in caplog.text
    prompt.write_text(prompt.read_text() + "\n# edited\n")
    (mine / "my_models.py").write_text((mine / "my_models.py").read_text() + "\n# edited\n")
    sys.modules.pop("my_models")
    for run in runs:
        Recommender.load(run)
    told = [record.getMessage().partition(" is not what it was")[0] for record in caplog.records[-2:]]
    assert told == ["my_models:UnitSASRec", "prompt.template: my_prompt.yaml"]


def test_a_search_goes_over_the_options_of_a_loss_under_an_own_model(mine, capsys):
    (mine / "gammas.yaml").write_text("space: {objective_options.gamma: [0, 2], noise: [0, 0.1]}\n")
    given = {**SHORT, "objective": "my_losses:Focal", "model": "my_models:NoisyILRec", "dataset": "ring"}
    assert main(["search", "--space=gammas.yaml", "--dry_run", *options(given)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert shown.count("--model=my_models:NoisyILRec ") == 4
    assert all(shown.count(f" --objective_options.gamma={gamma} ") == 2 for gamma in (0, 2))


def test_options_of_a_loss_may_be_given_one_by_one(mine):
    (mine / "options.yaml").write_text("objective_options: {gamma: 1, tau: 3}\n")
    given = {**SHORT, "objective_options.gamma": 2}
    config = Config("LCRec", "ring", config_file_list=["options.yaml"], config_dict=given)
    assert config["objective_options"] == {"gamma": 2, "tau": 3}
    assert request_of(config)["config_dict"]["objective_options"] == {"gamma": 2, "tau": 3}


def test_a_run_whose_code_imports_what_changed_is_another_run(mine):
    def key():
        for name in ("my_models", "my_helpers", "my_parts", "my_parts.deeper"):
            sys.modules.pop(name, None)
        return run_key(Config("my_models:NoisyILRec", "ring", config_dict=SHORT))

    (mine / "my_parts").mkdir()
    (mine / "my_parts" / "__init__.py").write_text("")
    (mine / "my_parts" / "deeper.py").write_text("SCALE = 1\n")
    (mine / "my_helpers.py").write_text("from my_parts.deeper import SCALE\nimport my_parts.deeper\n")
    (mine / "stranger.py").write_text("SCALE = 1\n")
    (mine / "my_models.py").write_text("import my_helpers\n" + (mine / "my_models.py").read_text())
    before = key()
    (mine / "stranger.py").write_text("SCALE = 2\n")
    assert key() == before
    (mine / "my_parts" / "deeper.py").write_text("SCALE = 22\n")
    assert key() != before


def test_what_is_kept_of_code_that_changed_is_made_anew(mine):
    own = {**SHORT, "preference.epochs": 1, "preference.examples": 20, "reward_model": "my_models:UnitSASRec"}
    (mine / "my_models.py").write_text(
        (mine / "my_models.py").read_text()
        + "\n\nfrom recbole_ilrec.models.methods import SDPO\n\n\nclass MySDPO(SDPO):\n    pass\n"
    )
    given = {**own, "reward.config": {"epochs": 1, "hidden_size": 16, "inner_size": 16}}

    def kept():
        return {path.name for part in ("supervised", "reward") for path in (mine / "saved/cache" / part).iterdir()}

    run_recbole_ilrec("SDPO", "ring", config_dict=SHORT | {"preference.epochs": 1, "preference.examples": 20})
    stock = {path.name for path in (mine / "saved/cache/supervised").iterdir()}
    run_recbole_ilrec("my_models:MySDPO", "ring", config_dict=own)
    run_recbole_ilrec("ILRec", "ring", config_dict=given)
    first = kept()
    assert len(first) == 3 and stock < first, "a supervised stage of its own, and its reward model"
    sys.modules.pop("my_models")
    (mine / "my_models.py").write_text((mine / "my_models.py").read_text() + "\n# edited, and of another length\n")
    run_recbole_ilrec("my_models:MySDPO", "ring", config_dict=own)
    run_recbole_ilrec("ILRec", "ring", config_dict=given)
    assert len(kept()) == 5 and first < kept()


def test_a_table_holds_lines_of_own_models(mine, capsys):
    plan = mine / "mine.yaml"
    published = "      ILRec: {model: ILRec}\n"
    text = plan.read_text().replace("ml-100k", "ring").replace("[2020, 2021, 2022]", "[2020]")
    plan.write_text(text.replace(published, ""))
    assert main(["table", str(plan), *options(SHORT)]) == 0, capsys.readouterr().err
    (page,) = (mine / "tables").rglob("*.md")
    assert "| with noise |" in page.read_text()


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("nowhere:Mine", {}, "there is no module 'nowhere' in .* PYTHONPATH"),
        ("my_models.deeper:Mine", {}, "there is no module 'my_models.deeper'"),
        ("my_models:NoisyILrec", {}, "no class 'NoisyILrec'. Did you mean 'NoisyILRec'"),
        ("my_losses:Focal", {}, "no sequential model: let it inherit from ILRec"),
        ("my_models:NoisyILRec", {"nose": 1}, "Unknown setting 'nose'.*Did you mean 'noise'"),
        ("LCRec", {"objective": "my_losses:Vocal"}, "no class 'Vocal'. Did you mean 'Focal'"),
        ("LCRec", {"objective": "my_losses:Focal", "objective_options": {"gama": 1}}, "unexpected keyword .*gama"),
        ("LCRec", {"objective_options": {"gamma": 1}}, "objective 'sft' cannot be made with .*gamma"),
        (
            "DPO",
            {"objective": "my_losses:Focal"},
            "objective=my_losses:Focal contradicts model=DPO.*one of dpo, rosepo",
        ),
        ("LCRec", {"objective_options": 3}, "objective_options=3 is not allowed: give a mapping"),
        ("LCRec", {"objective": "my_models:NoisyILRec"}, "objective 'my_models:NoisyILRec' cannot be made"),
    ],
)
def test_what_is_wrong_with_own_code_is_one_line(mine, model, settings, words):
    with pytest.raises(UserError, match=words) as error:
        run_recbole_ilrec(model, "ring", config_dict={**SHORT, **settings})
    assert "\n" not in str(error.value)


LOSS = """
from my_losses import Focal
from recbole_ilrec.objective import Needs
from recbole_ilrec.schema import LossTerms


class Mine(Focal):
    needs = Needs(layers={layers})

    def __call__(self, states, batch, legal, {more}*, epoch=0.0, generator=None):
        x = super().__call__(states, batch, legal).parts["focal"]
        return {returned}
"""


@pytest.mark.parametrize(
    ("returned", "more", "words"),
    [
        ("x", "", "LCRec with objective 'my_cases:Mine' returned a Tensor, not LossTerms"),
        ("LossTerms({}, {})", "", "returned LossTerms without parts"),
        ("LossTerms({'x': x[None]}, {'x': 1.0})", "", "returned part 'x' that is of shape .1.: give a tensor without"),
        ("LossTerms({'x': 1.0}, {'x': 1.0})", "", "returned part 'x' that is a float"),
        ("LossTerms({'x': x}, {'x': 1.0}, {'m': 3.0})", "", "returned monitor 'm' that is a float"),
        ("LossTerms({'x': x, 'y': x}, {'x': 1.0})", "", "returned part 'y' without a weight"),
        ("LossTerms({'x': x}, {'x': 1.0, 'Y': 1.0})", "", "returned a weight for 'Y', which is no part"),
        ("LossTerms({'x': x.detach()}, {'x': 1.0})", "", "returned a loss without a gradient"),
        ("LossTerms({'x': x * float('nan')}, {'x': 1.0})", "", "of objective 'my_cases:Mine', not finite: x.; lower"),
        ("x", "stop, ", "objective 'my_cases:Mine' cannot be called: missing a required argument: 'stop'"),
    ],
)
def test_a_loss_that_cannot_be_trained_by_is_one_line(mine, returned, more, words):
    (mine / "my_cases.py").write_text(LOSS.format(returned=returned, more=more, layers=0))
    with pytest.raises(UserError, match=words) as error:
        run_recbole_ilrec("LCRec", "ring", config_dict={**SHORT, "objective": "my_cases:Mine"})
    assert "\n" not in str(error.value) and "penalty" not in str(error.value)


BLANK = """
from recbole.model.sequential_recommender import SASRec


class Blank(SASRec):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) * float("nan")
"""


def test_scores_that_are_no_numbers_are_refused(mine):
    (mine / "my_cases.py").write_text(BLANK)
    with pytest.raises(UserError, match="Blank gave scores that are not a number .NaN. in evaluation"):
        run_recbole_ilrec("my_cases:Blank", "ring", config_dict={**SHORT, "hidden_size": 16, "inner_size": 16})


def test_too_many_layers_are_those_that_the_loss_asks_for(mine):
    (mine / "my_cases.py").write_text(LOSS.format(returned="x", more="", layers=9))
    with pytest.raises(
        UserError, match="objective 'my_cases:Mine' needs 9 candidate layers.*Needs.layers=.+ may be 0 to 3"
    ):
        run_recbole_ilrec("LCRec", "ring", config_dict={**SHORT, "objective": "my_cases:Mine"})


def test_a_fault_in_own_code_keeps_its_traceback(mine):
    (mine / "broken_model.py").write_text("import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        own_class("model", "broken_model:Mine")


def test_only_module_and_class_are_a_place():
    assert is_place("a:B") and is_place("a.b_c:D1")
    assert not any(map(is_place, ("ILRec", "a:", ":B", "a:b:c", "../a:B", "a.:B", "C:/model", "1a:B", None)))
