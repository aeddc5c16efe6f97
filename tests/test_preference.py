"""Preference models from end to end: a world with a known answer, shared stages, exact resume."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_ilrec.chance import keys_of_rows
from recbole_ilrec.checks.finding import Level
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.objective import preference as preference_objective
from recbole_ilrec.prompt.answers import PreferenceRows
from recbole_ilrec.prompt.rejected import draw_rejected
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs import stages
from recbole_ilrec.runs.diagnosis import diagnose
from recbole_ilrec.runs.stages import preference_config
from recbole_ilrec.runtime.checkpoint import fingerprint, load_state
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.training import preference_trainer, rejected
from recbole_ilrec.training.loop import StepTrainer
from recbole_ilrec.training.preference_trainer import PreferenceBatches, PreferenceTrainer
from tests.worlds import (
    LEARN,
    QUICK,
    compact_encoder,
    pairs_of,
    random_identifiers,
    small_backbone,
    small_catalog,
)

PREFER = {**LEARN, "preference.learning_rate": 1e-3, "preference.epochs": 2}


def run(model, **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**QUICK, **PREFER, **settings})


def test_preference_training_keeps_the_next_item_that_is_a_function_of_the_last(ring, monkeypatch):
    results = {"SDPO": run("SDPO")}
    supervised = list((ring / "saved" / "cache" / "supervised").iterdir())
    compute = StepTrainer.compute_loss

    def only_preferences(self, model, inputs, *args, **kwargs):
        assert hasattr(inputs["batch"], "reference"), "the supervised stage is shared"
        return compute(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "compute_loss", only_preferences)
        results |= {model: run(model) for model in ("RosePO", "DPO")}
    assert list((ring / "saved" / "cache" / "supervised").iterdir()) == supervised
    # Three rounds of steps as large as those of the others may unlearn an item or two, by chance.
    results["SPRec"] = run("SPRec", **{"preference.epochs": 1, "preference.learning_rate": 1e-4})
    kept = (ring / "saved" / "cache").glob("*/*-ring-*/stage.json")
    assert sorted(path.parent.name.partition("-")[0] for path in kept) == [*["LCRec"] * 4, *["SPRec"] * 2]
    assert {model: result["test_result"]["hit@1"] for model, result in results.items()} == dict.fromkeys(results, 1.0)
    manifest = json.loads((supervised[0] / "stage.json").read_text())
    assert manifest["stage"] == "LCRec"
    assert manifest["wall_seconds"] > 0
    assert not checkpoints(supervised[0])


SHORT = {
    "epochs": 2,
    "eval_step": 1,
    "train_batch_size": 40,
    "train.ema": 0.9,
    "train.valid_users": 20,
    "save_steps": 2,
    "train.keep_checkpoints": 50,
    "preference.train_batch_size": 60,
    "train.log_steps": 1,
}


class Interrupted(Exception):
    """Stands for a power cut."""


def only_run(root, model="SDPO"):
    (found,) = (path for path in (root / "saved").iterdir() if path.name.startswith(f"{model}-"))
    return found


def final_weights(folder):
    last = load_state(checkpoints(folder)[-1])
    return {**last["model"], **{f"average.{k}": v for k, v in last["average"].items()}}


def cut_short(patch, owner, name, calls):
    """Let a method work for so many calls and then fail."""
    whole, done = getattr(owner, name), []

    def cut(*args, **kwargs):
        done.append(1)
        if len(done) > calls:
            raise Interrupted
        return whole(*args, **kwargs)

    patch.setattr(owner, name, cut)


def test_a_run_killed_in_any_stage_and_started_again_equals_the_straight_one_bit_for_bit(ring, monkeypatch):
    monkeypatch.setattr(rejected, "PART", 200)
    short = {**SHORT, "preference.source": "self_hard", "preference.negatives": 2}
    straight = run("SDPO", **short)
    wanted = final_weights(only_run(ring))
    (ring / "saved").rename(ring / "straight")
    cuts = [(StepTrainer, "compute_loss", 9), (rejected, "self_hard_items", 1)]
    cuts += [(preference_trainer, "encode_answers", 250), (preference_trainer, "encode_answers", 900)]
    for owner, name, calls in cuts:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            cut_short(patch, owner, name, calls)
            run("SDPO", **short)
        torch.manual_seed(999)  # what happened in between does not matter
    folder = only_run(ring)
    assert checkpoints(folder), "the last cut was in the preference stage"
    resumed = run("SDPO", resume_from_checkpoint=str(folder), **short)
    for key in ("test_result", "best_valid_result", "best_valid_score"):
        assert resumed[key] == straight[key]
    got = final_weights(folder)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def losses(folder):
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_round_of_sprec_proposes_then_fine_tunes_then_prefers_from_there(ring, monkeypatch):
    """Rejected items are those of the model before the round's fine-tuning; the reference is the model after it."""
    seen = []

    def noted(name, what):
        whole = getattr(stages, name)

        def noting(*args, **kwargs):
            seen.append((name, what(args, kwargs)))
            found = whole(*args, **kwargs)
            if name in ("supervised_stage", "_more_supervision"):
                seen.append(("made", fingerprint(found)))
            return found

        monkeypatch.setattr(stages, name, noting)

    noted("supervised_stage", lambda args, kwargs: None)
    noted("rejected_items", lambda args, kwargs: kwargs["weights"])
    noted("_more_supervision", lambda args, kwargs: args[3])
    noted("PreferenceTrainer", lambda args, kwargs: args[3])
    run("SPRec", **SHORT | {"epochs": 1, "preference.iterations": 2, "preference.epochs": 1})
    names = ["rejected_items", "_more_supervision", "made", "PreferenceTrainer"]
    assert [name for name, _ in seen] == ["supervised_stage", "made", *names, *names]
    supervised, (first, before, tuned, start), second = seen[1][1], [v for _, v in seen[2:6]], [v for _, v in seen[6:]]
    assert first == before == supervised != tuned == start
    assert second[0] == second[1] not in (supervised, tuned) and second[2] == second[3] != second[0]


def test_training_starts_at_the_reference_whatever_the_dropout_and_however_a_step_is_cut(ring):
    run("SDPO", **SHORT)
    one = losses(only_run(ring))
    only_run(ring).rename(ring / "one")
    (supervised,) = (ring / "saved" / "cache" / "supervised").iterdir()
    run("SDPO", **{**SHORT, "preference.checkpoint": str(supervised), "gradient_accumulation_steps": 3})
    assert one[0] == pytest.approx(math.log(6), abs=2e-4)
    assert one[-1] < one[0]
    assert one == pytest.approx(losses(only_run(ring)), rel=1e-3)


def test_a_round_trained_by_one_loss_is_no_stage_of_a_run_by_another(ring):
    rounds = {"preference.iterations": 2, "preference.supervised_epochs": 0, "preference.negatives": 2, "max_steps": 1}
    for loss in ("dpo", "sdpo"):
        run("SPRec", **rounds, objective=loss, **{"preference.source": "random", "train.valid_users": 5})
    assert len([*(ring / "saved" / "cache" / "preference").glob("SPRec-ring-*/stage.json")]) == 2


def test_a_run_of_the_supervised_model_is_the_stage_that_would_have_been_trained(ring):
    """To the last bit, whichever of the two comes first; and the run's own weights stay where they are."""
    alone = run("SDPO", **SHORT, cache_dir="elsewhere")
    supervised = run("LCRec", **SHORT)
    (stage,) = (ring / "saved" / "cache" / "supervised").iterdir()
    best = {path.name: path.read_bytes() for path in (stage / "best").iterdir()}
    assert best and all((only_run(ring, "LCRec") / "best" / name).read_bytes() == best[name] for name in best)
    manifest = json.loads((stage / "stage.json").read_text())
    assert manifest["best_valid_score"] == supervised["best_valid_score"] and manifest["wall_seconds"] > 0
    after = run("SDPO", **SHORT)
    assert after["test_result"] == alone["test_result"] and after["best_valid_result"] == alone["best_valid_result"]
    assert [path.name for path in (ring / "elsewhere" / "supervised").iterdir()] == [stage.name]
    run("ILRec", **SHORT, objective="sft", cache_dir="third")
    assert not (ring / "third" / "supervised").exists(), "a checkpoint of another model would be refused"


def test_a_given_supervised_run_is_started_from(ring):
    given = {**SHORT, "preference.epochs": 1}
    run("LCRec", **SHORT)
    shutil.rmtree(ring / "saved" / "cache")
    run("DPO", **{"preference.checkpoint": str(only_run(ring, "LCRec")), "preference.examples": 50, **given})
    assert not (ring / "saved" / "cache" / "supervised").exists()
    with pytest.raises(UserError, match="no checkpoint"):
        run("DPO", **{"preference.checkpoint": str(ring), **given})
    with pytest.raises(UserError, match="another model"):
        run("DPO", **{"preference.checkpoint": str(only_run(ring, "DPO")), **given})


def test_a_supervised_run_on_other_data_is_refused_and_seen_by_the_doctor(ring):
    run("LCRec", **SHORT)
    given = {"preference.checkpoint": str(only_run(ring, "LCRec"))}
    path = ring / "dataset/ring/ring.inter"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")  # its last row was trained on
    with pytest.raises(UserError, match="was trained on other data: another file"):
        run("DPO", **SHORT, **given)
    config = Config("DPO", "ring", config_dict={**QUICK, **SHORT, **given})
    data = build_data(config)
    findings = diagnose(config, data, config.model_class(config, data.train._dataset))
    assert [found.level for found in findings if found.name == "weights to begin with"] == [Level.ATTENTION]


def test_a_supervised_run_under_other_identifiers_is_refused_though_all_shapes_are_equal(ring):
    run("LCRec", **SHORT)
    index = json.loads((ring / "dataset" / "ring" / "ring.index.json").read_text())
    others = dict(zip(index, [*list(index.values())[1:], next(iter(index.values()))], strict=True))
    (ring / "others.json").write_text(json.dumps(others))
    given = {"preference.checkpoint": str(only_run(ring, "LCRec")), "index_file": "others.json"}
    with pytest.raises(UserError, match="was trained with other item identifiers, so its weights are of other items"):
        run("DPO", **SHORT, **given)


def test_the_reference_is_computed_in_the_precision_of_training(ring, monkeypatch):
    """Else the first ratios would be what rounding does to one side of them, here 0.001 on average."""
    ratios = []
    ratio = preference_objective.log_ratios

    def noted(policy, reference):
        ratios.append(ratio(policy, reference))
        return ratios[-1]

    monkeypatch.setattr(preference_objective, "log_ratios", noted)
    run("DPO", **SHORT, **{"train.bf16": True})
    assert ratios[0].abs().mean() < 2e-4


def test_rounds_have_seeds_of_their_own_even_at_the_largest_that_numpy_takes(ring):
    config = Config("SPRec", "ring", None, {**QUICK, "seed": (1 << 32) - 1})
    seeds = {preference_config(config, round_)["seed"] for round_ in range(4)}
    assert len(seeds) == 4 and max(seeds) == config["seed"] and min(seeds) >= 0


def config_of(**preference):
    return Config("RosePO", "ring", None, QUICK | {f"preference.{name}": value for name, value in preference.items()})


def test_each_round_takes_other_rows(ring):
    first, second = (rejected.chosen_rows(config_of(examples=20), 100, round_) for round_ in (0, 1))
    for rows in (first, second):
        assert len(set(rows.tolist())) == 20 and (np.diff(rows) > 0).all()
    again = rejected.chosen_rows(config_of(examples=20), 100)
    assert first.tolist() == again.tolist() != second.tolist()


@pytest.mark.parametrize(("fresh", "draws"), [(True, 3), (False, 1)])
def test_each_round_draws_anew_and_so_does_each_epoch_where_negatives_are_fresh(ring, fresh, draws):
    config = config_of(source="random", negatives=2, epochs=3, fresh_negatives=fresh)
    pairs, catalog = pairs_of([[1, 2, 3, 4, 5], [6, 7, 8]], 4), Catalog([[n] for n in range(20)])
    model, group = SimpleNamespace(catalog=catalog, n_items=21), catalog.leaf_of_item.numpy()
    for round_ in (0, 1):
        got = rejected.rejected_items(config, model, None, pairs, None, weights="", iteration=round_)
        numbers = range(round_ * draws, round_ * draws + draws)
        wanted = [draw_rejected(pairs, group, 2, seed=config["seed"], draw=number) for number in numbers]
        assert np.array_equal(got, np.stack(wanted))


def test_the_oracle_smooths_a_pair_by_the_scores_of_its_own_row_and_items(ring):
    """Row r of the scores belongs to training row chosen[r], item i to column i - 1."""
    config = config_of(smoothing="personalised", smoothing_temperature=0.5, max_smoothing=0.45)
    scores, chosen = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), np.array([1, 4, 5])
    drawn = np.array([[[1, 2], [5, 0], [3, 4]], [[2, 5], [4, 1], [1, 5]]])  # [D, rows, R]
    rows = PreferenceRows(pairs_of([[1, 3], [1, 2], [4, 2]], 2), drawn)
    oracle = SimpleNamespace(scores=lambda numbers: scores[torch.from_numpy(numbers)])
    model = SimpleNamespace(preference=SimpleNamespace(smooths=True), reward_model=oracle)
    trainer = SimpleNamespace(config=config, model=model, chosen=chosen)
    got = PreferenceTrainer._smoothing(trainer, SimpleNamespace(inter_feat=np.arange(6)), rows)
    for row, target in enumerate(rows.pairs.target):
        own = scores[chosen[row]]
        for place, item in enumerate(drawn[:, row].flatten()):
            doubt = torch.sigmoid((own[item - 1] - own[target - 1]) / 0.5).item()
            assert not item or got[row, place] == pytest.approx(min(0.45, doubt), rel=1e-5)


def test_the_beta_of_another_method_is_one_line(ring):
    with pytest.raises(UserError, match="use --preference.beta"):
        run("SDPO", beta=0.5)


@pytest.mark.parametrize(
    "bad", [{"preference.loss": "ipo"}, {"preference.smoothing_rate": 0.5}, {"preference.betta": 1}]
)
def test_a_wrong_preference_setting_is_one_line(ring, bad):
    with pytest.raises(UserError, match="preference"):
        run("RosePO", **bad)


def test_similar_items_without_texts_are_one_line(ring):
    with pytest.raises(UserError, match="preference.source=similar compares item texts"):
        run("DPO", **{**SHORT, "epochs": 1, "preference.source": "similar"})


def test_every_epoch_finds_its_own_answers_in_the_reference_and_the_smoothing():
    chance = np.random.default_rng(0)
    backbone = small_backbone(6)
    encoder = compact_encoder(backbone, small_catalog(backbone, random_identifiers(chance, 20, 6, (1, 2, 3))))
    pairs = pairs_of([[1, 2, 3, 4], [5, 6, 7]], 4)
    drawn = np.stack([draw_rejected(pairs, np.arange(21), 3, seed=0, draw=draw) for draw in range(2)])
    rows = PreferenceRows(pairs, drawn)
    by_row = np.stack([rows.all_answers(row).answers for row in range(len(rows))]).astype(np.float32)
    batches = PreferenceBatches(
        rows, encoder, by_row, -by_row[:, 1:]
    )  # the numbers of the items stand for their scores
    for epoch in range(3):
        some = np.array([4, 0, 2])
        batch = batches.encode(epoch, some)
        wanted = np.stack([rows.example(epoch, row).answers for row in some])
        assert batch.reference.tolist() == wanted.tolist()
        assert batch.smoothing.tolist() == (-wanted[:, 1:]).tolist()
        assert batch.count == 3
        assert batches[epoch, some]["batch"].row_keys.tolist() == keys_of_rows(0, epoch, batches.stream, some).tolist()
