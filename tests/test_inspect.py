"""One answer looked at: the numbers are those of the model and of the equations, and what is refused is one line."""

import json

import numpy as np
import pytest

from recbole_ilrec import cli
from recbole_ilrec.errors import UserError
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs.inspection import inspect_answer
from recbole_ilrec.runs.negatives import negatives_of
from recbole_ilrec.runs.recommendation import Recommender
from tests.worlds import LEARN, QUICK, newest, ring_world, write_dataset, write_titled_ring


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    write_dataset(root / "dataset", "ring", *ring_world())
    places = {"data_path": str(root / "dataset"), "checkpoint_dir": str(root / "saved")}
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **LEARN, **places, "k": 2, "epochs": 12})
    run_recbole_ilrec("Pop", "ring", config_dict={"device": "cpu", "state": "WARNING", "topk": [5], **places})
    return root


@pytest.fixture
def asked(world):
    return Recommender.load(newest(world, "ILRec"), device="cpu")


def test_an_answer_is_scored_as_the_model_scores_it(asked):
    whole = asked.names.history("u3")
    seen = inspect_answer(asked, whole[:-1], whole[-1], own=whole, most=6)
    data = asked.trained.data.test._dataset.inter_feat
    (row,) = np.flatnonzero(data["user_id"].numpy() == asked.names.users.index("u3") + 1)
    assert seen.log_prob == pytest.approx(asked.trained.model.predict(data[[row]]).item(), abs=1e-4)
    assert (seen.history, seen.item, seen.place) == (whole[:-1], whole[-1], 1)
    assert [len(place.prefix) for place in seen.places] == [0, 1] and seen.places[0].items == 24
    assert sum(place.losses["ce"] for place in seen.places) == pytest.approx(-seen.log_prob)


def test_tables_hold_the_truth_its_rivals_and_what_stands_behind_them(asked):
    whole = asked.names.history("u3")
    seen = inspect_answer(asked, whole[:-1], whole[-2], own=whole, most=9)
    alpha = asked.trained.config.settings.ilrec.alpha
    for place in seen.places:
        (truth,) = [token for token in place.tokens if token.truth]
        assert len(place.tokens) == 9 and not truth.negative and truth.items >= truth.own >= 1
        assert place.threshold == pytest.approx(alpha * truth.ensemble)
        assert [token.final for token in place.tokens] == sorted((token.final for token in place.tokens), reverse=True)
        for token in place.tokens:
            assert len(token.layers) == 2 and (token.weight > 0) == token.negative
            assert token.truth or token.negative == (token.ensemble >= place.threshold)
            assert token.items or token.reward == 0 == token.own
            assert len(token.examples) == min(token.items, 2)
    first = seen.places[0]
    every = inspect_answer(asked, whole[:-1], whole[-2], own=whole, most=200).places[0].tokens
    assert sum(token.items for token in every) == first.items == 24
    assert sum(token.reward for token in every) == pytest.approx(1, abs=1e-5)
    assert sum(token.own for token in every) == len({*whole})
    assert sum(token.final for token in every) == pytest.approx(1) == sum(token.weight for token in every)
    assert first.negatives == sum(token.negative for token in every)


def test_layers_are_read_through_the_final_norm_as_the_run_was_told(asked):
    whole = asked.names.history("u3")
    config, seen = asked.trained.config, []
    for norm in (True, False):
        ilrec = config.settings.ilrec.model_copy(update={"apply_final_norm": norm})
        config.settings = config.settings.model_copy(update={"ilrec": ilrec})
        seen.append(inspect_answer(asked, whole[:-1], whole[-1], own=whole, most=6).places[0].tokens[0])
    assert seen[0].final == seen[1].final and seen[0].layers != seen[1].layers


def test_rewards_are_those_of_training(asked):
    """The row of the test part gives the same rewards by the collaborative model's own verb."""
    model, data = asked.trained.model, asked.trained.data.test._dataset.inter_feat
    whole = asked.names.history("u3")
    (row,) = np.flatnonzero(data["user_id"].numpy() == asked.names.users.index("u3") + 1)
    probabilities = model.reward_model.probabilities(data[[row]])[0]
    every = inspect_answer(asked, whole[:-1], whole[-1], most=200).places[0].tokens
    tokens = model.backbone.tokenizer.convert_tokens_to_ids([token.token for token in every])
    first = model.catalog.tokens[1:, 0]
    sums = [float(probabilities[first == token].sum()) for token in tokens]
    assert [token.reward for token in every] == pytest.approx(sums, abs=1e-5)


def test_reward_models_that_know_users_and_read_padding_are_asked_as_in_training(world, tmp_path):
    """Caser convolves over the whole window and has a vector for each user; new ones are refused. Its cache is gone."""
    places = {"data_path": str(world / "dataset"), "checkpoint_dir": str(tmp_path / "saved")}
    own = {"max_steps": 2, "reward_model": "Caser", "reward.config": {"epochs": 1}, "num_beams": 10}
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **places, **own})
    asked = Recommender.load(newest(tmp_path, "ILRec"), cache_dir=str(tmp_path / "new"))
    whole = asked.names.history("u3")
    every = inspect_answer(asked, whole[:-1], whole[-1], user="u3", most=200).places[0].tokens
    data = asked.trained.data.test._dataset.inter_feat
    (row,) = np.flatnonzero(data["user_id"].numpy() == asked.names.users.index("u3") + 1)
    model = asked.trained.model
    probabilities = model.reward_model.probabilities(data[[row]])[0]
    tokens = model.backbone.tokenizer.convert_tokens_to_ids([token.token for token in every])
    sums = [float(probabilities[model.catalog.tokens[1:, 0] == token].sum()) for token in tokens]
    assert [token.reward for token in every] == pytest.approx(sums, abs=1e-5)
    with pytest.raises(UserError, match="Caser learns a vector for each user"):
        inspect_answer(asked, whole[:-1], whole[-1])


def test_end_tokens_that_are_left_out_of_training_have_no_negatives(world, tmp_path):
    places = {"data_path": str(world / "dataset"), "checkpoint_dir": str(tmp_path / "saved"), "mu": 0}
    own = {"prompt.append_eos": True, "train_rows": "prefix", "ilrec.apply_to_eos": False, "max_steps": 2}
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **places, **own, "num_beams": 10})
    asked = Recommender.load(newest(tmp_path, "ILRec"))
    seen = inspect_answer(asked, ["i1"], "i6", most=4)
    assert len(seen.places) == 3 and seen.places[0].negatives > 0
    end = seen.places[-1]
    assert end.negatives == 0 == end.losses["cpd"] and end.losses["cpo"] == pytest.approx(end.losses["ce"])


def test_means_over_users_are_those_of_their_answers_looked_at_one_by_one(world, tmp_path):
    places = {"data_path": str(world / "dataset"), "checkpoint_dir": str(tmp_path / "saved"), "num_beams": 10}
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **places, "k": 2, "max_steps": 3})
    asked = Recommender.load(newest(tmp_path, "ILRec"))
    users = ["u3", "u4", "u11", "u40"]
    found = negatives_of(asked, users)
    wholes = [asked.names.history(user) for user in users]
    each = [
        inspect_answer(asked, w[:-1], w[-1], user=u, own=w[:-1], most=200) for u, w in zip(users, wholes, strict=True)
    ]
    assert len(found) == 2 and [place.tokens for place in found] == [4, 4]
    for at, place in enumerate(found):
        ones = [answer.places[at] for answer in each]
        assert place.negatives == pytest.approx(np.mean([one.negatives for one in ones]))
        for name in ("ce", "cpo", "cpd", "crr"):
            assert place.losses[name] == pytest.approx(np.mean([one.losses[name] for one in ones]), abs=1e-6)
        (truths,) = [[next(token for token in one.tokens if token.truth) for one in ones]]
        assert place.losses["L-1"] == pytest.approx(np.mean([-np.log(truth.layers[-1]) for truth in truths]), abs=1e-6)
        best = [max(token.final for token in one.tokens if token.items) for one in ones]
        assert place.right == np.mean([truth.final >= most for truth, most in zip(truths, best, strict=True)])
        hit = [(one, truth) for one, truth in zip(ones, truths, strict=True) if one.negatives]
        assert place.penalised == len(hit) / 4 > 0
        for name, inside in (("legal", lambda token: token.items > 0), ("own", lambda token: token.own > 0)):
            shares = [sum(token.weight for token in one.tokens if inside(token)) for one, _ in hit]
            assert getattr(place, name) == pytest.approx(np.mean(shares), abs=1e-6)
        under = [sum(token.weight * token.reward for token in one.tokens) for one, _ in hit]
        assert place.reward == pytest.approx(np.mean(under), abs=1e-6)
        assert place.truth == pytest.approx(np.mean([truth.reward for _, truth in hit]), abs=1e-6)


def test_a_sample_is_shown_and_written(world, tmp_path, capsys):
    run, file = str(newest(world, "ILRec")), tmp_path / "many.json"
    assert cli.main(["inspect", run, "--sample=7", f"--json={file}"]) == 0
    shown = capsys.readouterr().out
    assert "the test items of 7 users, token by token" in shown and "r of neg" in shown
    content = json.loads(file.read_text())
    assert content["users"] == 7 and [place["tokens"] for place in content["places"]] == [7, 7]


def test_the_last_layer_alone_and_titles_are_inspected_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_titled_ring(tmp_path)
    settings = {**QUICK, "max_steps": 2, "topk": [5], "valid_metric": "NDCG@5", "paradigm": "bigrec", "k": 0, "mu": 0}
    run_recbole_ilrec("ILRec", "ring", config_dict=settings)
    asked = Recommender.load(newest(tmp_path, "ILRec"))
    seen = inspect_answer(asked, ["Star", "i2"], "pale box", most=3)
    assert seen.title == "pale box" and seen.history == ["i1", "i2"]
    assert all(token.layers == () and token.reward is None for place in seen.places for token in place.tokens)


def test_the_verb_shows_and_writes_it(world, tmp_path, capsys):
    run, file = str(newest(world, "ILRec")), tmp_path / "seen.json"
    assert cli.main(["inspect", run, "--user=u3", "--tokens=4", f"--json={file}"]) == 0
    shown = capsys.readouterr().out
    assert "answer i" in shown and "place 1 of the model's list" in shown and "token 2, after <a_" in shown
    assert "L-2      L-1 ensemble  neg       w       r   items  own  for example" in shown
    content = json.loads(file.read_text())
    assert content["place"] == 1 and len(content["places"][0]["tokens"]) == 4
    assert {"ce", "cpo", "cpd", "crr"} == content["places"][0]["losses"].keys()
    assert cli.main(["inspect", run, "--history=i1,i6", "--item=i24"]) == 0
    assert "after 2 items, the last: i1 | i6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ILRec", [], "inspect looks at one answer or at many: give --user=ID"),
        ("ILRec", ["--sample=0"], "sample=0 is not allowed: give a whole number from 1 on"),
        ("ILRec", ["--sample=3", "--item=i1"], "--item is of one answer and --sample looks at many"),
        ("Pop", ["--sample=3"], "Pop has no layers to inspect"),
        ("ILRec", ["--user=u1", "--history=i1"], "inspect looks at one answer or at many"),
        ("ILRec", ["--history=i1"], "--history needs --item=ITEM"),
        ("ILRec", ["--user=u1", "--item=i77"], "There is no item 'i77' in 'ring'. Did you mean 'i7'?"),
        ("ILRec", ["--user=u1", "--tokens=0"], "tokens=0 is not allowed"),
        ("ILRec", ["--usr=u1"], "Unknown option of inspect 'usr'. Did you mean 'user'?"),
        ("Pop", ["--user=u1"], "Pop has no layers to inspect: give a run of a language model"),
    ],
)
def test_what_is_refused_is_one_line(world, capsys, name, options, message):
    assert cli.main(["inspect", str(newest(world, name)), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_it_takes_one_run(capsys):
    assert cli.main(["inspect"]) == 2 and "inspect takes one run" in capsys.readouterr().err


def test_who_is_not_tested_is_no_sample_and_is_named(world, tmp_path, capsys):
    """With two items the second trains."""
    sequences, identifiers = ring_world()
    write_dataset(tmp_path / "dataset", "ring", [*sequences, [1, 2]], identifiers)
    places = {"data_path": str(tmp_path / "dataset"), "checkpoint_dir": str(tmp_path / "saved")}
    run_recbole_ilrec("ILRec", "ring", config_dict={**QUICK, **places, "epochs": 1, "num_beams": 10, "mu": 0})
    lines = (tmp_path / "dataset/ring/ring.inter").read_text().splitlines()
    run, first, last = str(newest(tmp_path, "ILRec")), lines[1].split("\t")[0], lines[-1].split("\t")[0]
    assert cli.main(["inspect", run, "--sample=1000", "--device=cpu"]) == 0
    assert f"the test items of {len(sequences)} users" in capsys.readouterr().out
    note = "the user's last item is none of the test part"
    for user, known in ((last, True), (first, False)):
        assert cli.main(["inspect", run, f"--user={user}", "--device=cpu"]) == 0
        assert (note in capsys.readouterr().out) == known
