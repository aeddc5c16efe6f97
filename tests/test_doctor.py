"""The doctor: what is wrong is found, counted and told; what is right is left alone."""

import hashlib
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from recbole_ilrec import cli
from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.checks.finding import Finding, Level, render, some_or_note, summary
from recbole_ilrec.checks.interactions import count_finding, order_findings, time_order
from recbole_ilrec.checks.items import identifier_finding, lost_token_finding, prompt_finding, title_finding
from recbole_ilrec.checks.leaks import (
    SplitRows,
    Timeline,
    held_out_in_training,
    later_share,
    split_findings,
    wrong_histories,
)
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.identifiers.title import TitleIdentifiers
from recbole_ilrec.models.item_index import item_identifiers
from recbole_ilrec.preparation.known import KNOWN
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runs import data_diagnosis
from recbole_ilrec.runs.data_diagnosis import leak_findings
from recbole_ilrec.runs.diagnosis import diagnose
from tests.worlds import QUICK, compact_encoder, ring_world, small_backbone, small_catalog, write_dataset


def by_name(findings):
    return {(finding.group, finding.name): finding for finding in findings}


# ---- interactions


def order_of(*rows):
    columns = np.array(rows, dtype=float).T
    return time_order(columns[0].astype(int), columns[1].astype(int), columns[2])


def test_ties_are_counted_within_a_user_only():
    order = order_of((0, 1, 5), (1, 2, 5), (0, 3, 6), (1, 4, 7))
    assert order.tied_rows == 0 and order.held_out_by_rule == 0
    assert [f.level for f in order_findings(order, None)] == [Level.OK] * 3 + [Level.NOTE], "no dates, but a clock"


def test_a_tie_matters_where_it_decides_a_held_out_item():
    early = [(0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 3), (0, 5, 4)]
    assert (order_of(*early).tied_rows, order_of(*early).held_out_by_rule) == (1, 0)
    last = [(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 3)]
    before_last = [(0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 4, 3)]
    assert order_of(*last).held_out_by_rule == order_of(*before_last).held_out_by_rule == 1
    assert order_findings(order_of(*last), None)[0].level is Level.ATTENTION
    assert order_findings(order_of(*early), None)[0].level is Level.NOTE


def test_the_tie_of_another_user_does_not_count_for_a_single_row():
    order = order_of((0, 1, 1), (0, 2, 9), (0, 3, 9), (1, 1, 9))
    assert order.tied_users == 1 and order.held_out_by_rule == 1


def test_copies_and_repeats_are_told_apart():
    order = order_of((0, 1, 5), (0, 1, 5), (0, 1, 8), (0, 2, 9), (1, 1, 5))
    assert (order.same_rows, order.repeats) == (1, 1)
    findings = by_name(order_findings(order, None))
    copied = findings["data", "copied rows"]
    assert copied.level is Level.ATTENTION and "at other times (1)" in copied.text
    assert findings["data", "repeats"].level is Level.NOTE
    alone = by_name(order_findings(order_of((0, 1, 5), (0, 1, 5), (0, 2, 9)), None))["data", "copied rows"]
    assert alone.text.endswith("remove them from the file, or set --rm_dup_inter=first")


def test_places_in_a_sequence_are_no_times():
    order = order_of((0, 7, 1), (0, 5, 0), (1, 7, 0))
    assert order.positions
    assert "order of the raw file" in order_findings(order, "order of the raw file")[0].text
    assert not order_of((0, 7, 1), (0, 5, 3)).positions
    assert order_of((0, 7, 1), (0, 5, 2), (1, 7, 1)).positions, "counted from 1"


@pytest.mark.parametrize(("odd", "of_another_unit"), [(5e8, 0), (9e9, 0), (0, 0), (9e11, 1)])
def test_times_that_are_no_dates_or_of_another_unit_are_found(odd, of_another_unit):
    dates = [(0, 1, 880_000_000), (0, 2, 880_000_100), (1, 1, 890_000_000)]
    for unit in (1, 1e6):  # seconds, microseconds
        rows = [(user, item, time * unit) for user, item, time in [*dates, (1, 2, odd)]]
        sound = by_name(order_findings(order_of(*rows[:3]), None))["data", "dates"]
        finding = by_name(order_findings(order_of(*rows), None))["data", "dates"]
        assert sound.level is Level.OK and finding.level is Level.ATTENTION
        assert finding.numbers == {"outside": 1, "other_unit": of_another_unit}


def test_a_test_part_that_repeats_the_last_item_is_found():
    cases = [(user, [(1, 0), (2 + user % 2, 1)], (2, 2)) for user in range(1, 6)]
    parts = dict.fromkeys(("train", "valid"), rows((1, [(1, 0)], (9, 1)))) | {"test": rows(*cases)}
    line = timeline_of(*([(1, 0), (2 + user % 2, 1), (2, 2)] for user in range(1, 6)))
    for some, level in ((parts["test"], Level.OK), (rows(*cases[1:], cases[3]), Level.ATTENTION)):
        found = by_name(split_findings(line, {**parts, "test": some}, positions=True, exclude_history=False))
        assert found["split", "last item again"].level is level


def test_counts_are_compared_with_table_3():
    assert count_finding("Game", (2, 3, 4), (2, 3, 4)).level is Level.OK
    other = count_finding("Game", (2, 3, 4), (2, 3, 5))
    assert other.level is Level.ATTENTION and "2/3/5" in other.text


# ---- the split


def timeline_of(*sequences):
    """Users 1, 2, ... with (item, time) pairs; user 0 is padding."""
    start = np.cumsum([0, 0, *(len(s) for s in sequences)])
    flat = [pair for sequence in sequences for pair in sequence]
    return Timeline(start, np.array([i for i, _ in flat]), np.array([t for _, t in flat], dtype=np.float32))


def rows(*cases, width=3):
    """Rows from (user, [(item, time), ...], (item, time))."""
    history, times = np.zeros((2, len(cases), width))
    for line, (_, past, _) in enumerate(cases):
        for at, (item, time) in enumerate(past):
            history[line, at], times[line, at] = item, time
    return SplitRows(
        user=np.array([user for user, _, _ in cases]),
        history=history.astype(int),
        history_time=times.astype(np.float32),
        length=np.array([len(past) for _, past, _ in cases]),
        target=np.array([item for _, _, (item, _) in cases]),
        time=np.array([time for _, _, (_, time) in cases], dtype=np.float32),
    )


ONE = [(4, 0.1), (5, 0.3), (6, 0.6), (4, 0.9)]
TWO = [(5, 0.2), (7, 0.4), (8, 0.8)]
LINE = timeline_of(ONE, TWO)


def test_a_history_is_what_its_user_did_just_before():
    good = rows((1, ONE[:1], ONE[1]), (1, ONE[:3], ONE[3]), (2, TWO[1:2], TWO[2]))
    assert wrong_histories(LINE, good).tolist() == [False] * 3


@pytest.mark.parametrize(
    "bad",
    [
        (1, ONE[:2], ONE[1]),  # the target itself
        (1, ONE[1:3], ONE[1]),  # the future
        (1, ONE[:1], ONE[2]),  # one item is missing
        (1, TWO[:1], ONE[1]),  # another user's
        (1, [(4, 0.3)], ONE[1]),  # an item of the same time as the target
        (2, [(6, 0.1), *TWO[:1]], TWO[1]),  # older than the user's first
        (2, [(4, 0.1), *TWO[:1]], TWO[1]),  # so, and the last item of the user before
        (1, ONE[:1], (9, 0.3)),  # a target that the user never had
        (1, ONE[1:], (5, 1.0)),  # the first item of the next user
        (2, TWO, (9, 0.9)),  # later than everything
    ],
)
def test_any_other_history_is_found(bad):
    assert wrong_histories(LINE, rows(bad)).tolist() == [True]


def test_training_rows_must_end_before_the_held_out_items():
    test = rows((1, ONE[:3], ONE[3]), (2, TWO[:2], TWO[2]))
    train = rows((1, ONE[:1], ONE[1]), (1, ONE[:3], ONE[3]), (2, TWO[:1], TWO[1]), (2, TWO[:3], (5, 0.7)))
    assert held_out_in_training(train, test).tolist() == [False, True, False, True]


def test_training_ends_before_the_first_held_out_item_in_whatever_order_they_stand():
    train, held_out = rows((1, ONE[:1], ONE[1]), (1, ONE[:2], ONE[2])), [(1, ONE[:2], ONE[2]), (1, ONE[:3], ONE[3])]
    for cases in (held_out, held_out[::-1]):
        assert held_out_in_training(train, rows(*cases)).tolist() == [False, True]


def test_repeats_are_looked_for_in_the_whole_past():
    assert LINE.seen_before(rows((1, ONE[2:3], ONE[3]), (1, ONE[:1], ONE[1]), (2, TWO[:1], TWO[1]))).tolist() == [
        True,
        False,
        False,
    ]


def test_the_future_of_others_is_the_share_of_later_training_targets():
    train = rows((1, ONE[:1], ONE[1]), (1, ONE[:2], ONE[2]), (2, TWO[:1], TWO[1]))
    test = rows((1, ONE[:3], ONE[3]), (2, TWO[:1], (7, 0.4)))
    assert later_share(train, test) == pytest.approx((0 + 1 / 3) / 2)


def test_a_target_in_the_history_is_lost_when_the_history_is_left_out():
    parts = {
        "train": rows((1, ONE[:1], ONE[1])),
        "valid": rows((1, ONE[:2], ONE[2])),
        "test": rows((1, ONE[:3], ONE[3])),
    }
    for exclude, level in ((False, Level.NOTE), (True, Level.ATTENTION)):
        findings = by_name(split_findings(LINE, parts, positions=False, exclude_history=exclude))
        assert findings["split", "repeated targets"].level is level
    assert findings["split", "histories"].level is findings["split", "held-out rows"].level is Level.OK
    assert findings["split", "unseen targets"].numbers == {"rows": 0, "share": 0.0}
    leaking = {**parts, "train": rows((1, ONE[1:2], ONE[2]))}
    findings = by_name(split_findings(LINE, leaking, positions=True, exclude_history=False))
    assert findings["split", "held-out rows"].level is Level.ATTENTION
    assert "cannot be seen" in findings["split", "others' future"].text


def test_cut_histories_are_counted_and_times_of_two_users_at_once_hide_the_future_of_others():
    parts = {"train": rows((1, ONE[:1], ONE[1])), "valid": rows((1, ONE[:2], ONE[2]))}
    test = rows((1, ONE[:3], ONE[3]), (2, TWO[1:2], TWO[2]))
    found = by_name(split_findings(LINE, {**parts, "test": test}, positions=False, exclude_history=False))
    cut = found["split", "long histories"]
    assert (
        cut.numbers["rows"] == 1 and "by 1.0 items" in cut.text and "share" in found["split", "others' future"].numbers
    )
    tied = timeline_of(ONE, [(5, 0.1), *TWO[1:]])
    found = by_name(split_findings(tied, {**parts, "test": parts["valid"]}, positions=False, exclude_history=False))
    assert "cannot be seen" in found["split", "others' future"].text


# ---- items and prompts


def test_items_without_or_with_the_same_title_are_counted():
    finding = title_finding(["a", "b", "a", ""], needed=True)
    assert finding.numbers == {"missing": 1, "shared": 2, "distinct": 2} and finding.level is Level.ATTENTION
    assert title_finding(["a", "b", "a", ""], needed=False).level is Level.NOTE
    assert title_finding(["a", "b"], needed=True).level is Level.OK
    assert title_finding(["", ""], needed=False).level is Level.OK


def test_shared_identifiers_are_counted_with_the_rows_they_concern():
    finding = identifier_finding(np.array([-1, 0, 1, 1, 2]), np.array([2, 4, 3, 3]), "x.index.json")
    best = {"hit@1 at most": 0.625, "hit@10 at most": 1.0}
    assert finding.numbers == {"items": 4, "distinct": 3, "shared": 2, "rows": 3, **best}
    assert "so no model can be above Hit@1 0.6250, Hit@10 1.0000 (collisions=expected): report" in finding.text
    crowd = identifier_finding(np.array([-1, *[0] * 40]), np.array([7]), "x").numbers
    assert (crowd["hit@1 at most"], crowd["hit@10 at most"]) == (0.025, 0.25)
    assert finding.level is Level.ATTENTION
    assert identifier_finding(np.arange(-1, 4), np.array([1]), "x").level is Level.OK


def test_lost_tokens_and_items_are_counted():
    assert lost_token_finding(np.array([0, 3, 0])).numbers == {"items": 1, "tokens": 3}
    cut = prompt_finding({"train": np.array([0, 0, 2]), "test": np.zeros(3, int)}, 64)
    assert cut.numbers == {"train_rows": 1, "test_rows": 0} and cut.level is Level.ATTENTION


def test_titles_lose_the_tokens_above_the_limit():
    tokenizer = build_tokenizer([], ["a title of some words"])
    identifiers = TitleIdentifiers(("a", "a title of some words, and far more of them"), max_tokens=12)
    whole = [len(row) for row in replace(identifiers, max_tokens=999).token_ids(tokenizer)]
    assert identifiers.lost_tokens(tokenizer) == [0, whole[1] - 12] and whole[1] > 12 > whole[0]


def test_left_out_items_are_those_missing_in_the_prompt():
    backbone = small_backbone(4)
    catalog = small_catalog(backbone, [(0,), (1, 2), (1, 3), (2, 0, 1)])
    encoder = compact_encoder(backbone, catalog, max_length=10)
    chance = np.random.default_rng(0)
    length = chance.integers(1, 6, size=50)
    history = np.where(np.arange(5) < length[:, None], chance.integers(1, 5, size=(50, 5)), 0)
    expected = []
    for past, size in zip(history, length, strict=True):
        prompt = encoder.prompt(past[:size])
        expected.append(max(n for n in range(size + 1) if np.array_equal(encoder.prompt(past[n:size]), prompt)))
    assert encoder.left_out(history, length).tolist() == expected and max(expected) > 0


# ---- text


def test_the_report_is_aligned_and_counts():
    findings = [
        Finding("data", "ties", Level.OK, "none"),
        Finding("data", "longer name", Level.ATTENTION, "word " * 40),
        Finding("items", "titles", Level.NOTE, "some"),
    ]
    lines = render(findings).splitlines()
    column = lines[1].index("none")
    assert lines[2].index("word") == lines[3].index("word") == lines[-3].index("some") == column
    assert max(map(len, lines)) <= 120 and lines[-1] == summary(findings) == "1 ok, 1 note, 1 needs attention"


def test_from_one_in_a_hundred_on_a_finding_needs_attention():
    assert [some_or_note(part, 200) for part in (0, 1, 2)] == [Level.OK, Level.NOTE, Level.ATTENTION]


# ---- whole


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sequences, identifiers = ring_world(users=30, items=12, length=7)
    write_dataset(tmp_path / "dataset", "ring", sequences, identifiers)
    return tmp_path


QUIET = [f"--{key}={json.dumps(value)}" for key, value in QUICK.items()]


def doctor(*argv):
    return cli.main(["doctor", "--dataset=ring", *QUIET, *argv])


def test_a_sound_dataset_gets_status_0_and_a_full_report(world, capsys):
    assert doctor("--json=found.json") == 0
    text = capsys.readouterr().out
    assert text.startswith("ring for ILRec\n") and text.rstrip().endswith("0 need attention")
    found = {
        (entry["group"], entry["check"]): entry for entry in json.loads((world / "found.json").read_text())["findings"]
    }
    assert found["data", "counts"]["interactions"] == sum(7 + user % 3 for user in range(30))
    assert {group for group, _ in found} == {"data", "split", "items", "prompts"}
    assert found["split", "reward model"]["level"] == "ok"


def test_a_fault_gets_status_1(world, capsys):
    path = world / "dataset" / "ring" / "ring.inter"
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1] + "\n")
    assert doctor("--model=SASRec") == 1
    out = capsys.readouterr().out
    assert "attention  copied rows" in out and "prompts" not in out


def test_ready_made_rows_of_training_that_are_tested_too_are_found(world):
    head, rows = "user_id:token\titem_id:token\titem_id_list:token_seq", ["u1\ti3\ti1 i2", "u1\ti4\ti1 i2 i3"]
    for part, own in (("train", rows), ("valid", rows[1:]), ("test", ["u1\ti5\ti2 i3"])):
        (world / "dataset" / "ring" / f"ring.{part}.inter").write_text("\n".join([head, *own]) + "\n")
    parts = {"benchmark_filename": ["train", "valid", "test"], "topk": [3], "valid_metric": "NDCG@3"}
    config = Config("SASRec", "ring", None, {**parts, "device": "cpu"})
    found = by_name(diagnose(config, build_data(config)))
    leak = found["split", "held-out rows"]
    assert leak.level is Level.ATTENTION and leak.numbers == {"valid": 1, "test": 0}
    assert found["split", "histories"].level is Level.NOTE and ("data", "equal times") not in found


def test_bad_options_get_status_2(world, capsys):
    assert doctor("word") == 2 and "no option" in capsys.readouterr().err
    assert doctor("--json=dataset") == 2 and "json=dataset is a folder" in capsys.readouterr().err
    assert doctor("--alhpa=1") == 2 and "Did you mean 'alpha'" in capsys.readouterr().err
    assert cli.main(["doctor", "--help"]) == 0 and "Exit status" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["LCRec", "Pop"])
def test_a_run_logs_the_short_form(world, caplog, model):
    settings = {"epochs": 1, "saved": False, "exclude_history": True, "topk": [5], "valid_metric": "NDCG@5"}
    settings |= QUICK if model == "LCRec" else {"device": "cpu", "show_progress": False}
    sequence, _ = ring_world(users=30, items=5, length=9)  # every user comes back to an item
    write_dataset(world / "dataset", "again", sequence, [(n,) for n in range(12)])
    with caplog.at_level(logging.INFO, "recbole_ilrec.runs.diagnosis"):
        run_recbole_ilrec(model, "again", config_dict={**settings, "state": "INFO"})
    told = [record for record in caplog.records if record.name == "recbole_ilrec.runs.diagnosis"]
    assert "1 needs attention" in told[0].getMessage()
    assert told[1].levelname == "WARNING" and "exclude_history=true" in told[1].getMessage()


def test_the_file_of_a_known_data_set_is_the_published_one_or_a_note(world, monkeypatch):
    config = Config("Pop", "ring", config_dict={"device": "cpu", "topk": [5]})
    data, file = build_data(config), world / "dataset/ring/ring.inter"
    told = []
    for published in (hashlib.sha256(file.read_bytes()).hexdigest(), "other", None):
        known = replace(KNOWN["Instrument"], name="ring", published=published)
        monkeypatch.setattr(data_diagnosis, "known_dataset", lambda name, known=known: known)
        told.append([found.level for found in data_diagnosis.data_findings(config, data) if "file" in found.name])
    assert told == [[Level.OK], [Level.NOTE], []]


def test_a_reward_model_that_learns_from_test_rows_is_found(world):
    path = world / "dataset" / "ring" / "ring.inter"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{row}00" for row in rows)]) + "\n")  # times, and not places in a sequence
    for split, rows_found in (({"LS": "valid_and_test"}, 0), ({"RS": [0.98, 0.01, 0.01]}, 1)):
        changes = {"reward.config": {"MAX_ITEM_LIST_LENGTH": 50, "eval_args": {"split": split, "group_by": "none"}}}
        config = Config("ILRec", "ring", None, {**QUICK, **changes})
        data = build_data(config)
        finding = by_name(diagnose(config, data, config.model_class(config, data.train._dataset)))[
            "split", "reward model"
        ]
        assert (finding.numbers["rows"] > 0) == bool(rows_found)
        assert finding.level is (Level.ATTENTION if rows_found else Level.NOTE)


def test_a_given_reward_model_is_judged_by_the_data_settings_it_was_trained_with(world):
    small = {"hidden_size": 16, "inner_size": 32, "epochs": 1, "device": "cpu", "show_progress": False}
    run_recbole_ilrec("SASRec", "ring", config_dict=small)
    (folder,) = (world / "saved").glob("SASRec-*")
    for changes, level in (({}, Level.OK), ({"MAX_ITEM_LIST_LENGTH": 4}, Level.NOTE)):
        config = Config("ILRec", "ring", None, {**QUICK, "reward_checkpoint": str(folder), **changes})
        data = build_data(config)
        findings = by_name(diagnose(config, data, config.model_class(config, data.train._dataset)))
        assert findings["split", "reward model"].level is level
    path = world / "dataset/ring/ring.inter"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")  # the hold-out is another one now
    for changes in ({}, {"MAX_ITEM_LIST_LENGTH": 4}):
        config = Config("ILRec", "ring", None, {**QUICK, "reward_checkpoint": str(folder), **changes})
        data = build_data(config)
        findings = by_name(diagnose(config, data, config.model_class(config, data.train._dataset)))
        assert findings["split", "reward model"].level is Level.ATTENTION
        assert "another file of interactions" in findings["split", "reward model"].text


def test_a_filter_that_a_given_reward_model_did_not_have_keeps_no_row_from_it(world):
    small = {"hidden_size": 16, "inner_size": 32, "epochs": 1, "device": "cpu", "show_progress": False}
    run_recbole_ilrec("SASRec", "ring", config_dict=small)
    (folder,) = (world / "saved").glob("SASRec-*")
    times = [float(line.split("\t")[2]) for line in (world / "dataset/ring/ring.inter").read_text().splitlines()[1:]]
    shorter = {"val_interval": {"timestamp": f"[0,{max(times) - 2}]"}}
    config = Config("ILRec", "ring", None, {**QUICK, "reward_checkpoint": str(folder), **shorter})
    data = build_data(config)
    finding = by_name(diagnose(config, data, config.model_class(config, data.train._dataset)))["split", "reward model"]
    assert finding.level is Level.ATTENTION and finding.numbers["rows"] > 0


@pytest.mark.parametrize(
    ("model", "settings", "asked"),
    [
        ("LCRec", {}, False),
        ("RosePO", {"preference.smoothing": "personalised"}, True),
        ("RosePO", {"preference.smoothing": "constant"}, False),
        ("LCRec", {"preference.smoothing": "personalised"}, False),
    ],
)
def test_a_reward_model_is_looked_at_wherever_it_is_asked(world, model, settings, asked):
    config = Config(model, "ring", None, {**QUICK, **settings})
    data = build_data(config)
    findings = by_name(diagnose(config, data, config.model_class(config, data.train._dataset)))
    assert (("split", "reward model") in findings) == asked


def test_identifiers_learned_from_clicks_are_those_of_their_reward_model(world, caplog):
    (world / "dataset/ring/ring.index.json").unlink()
    learned = {**QUICK, "index.embedding": "cf", "index.codebook_size": 4, "index.epochs": 1, "index.levels": 2}
    for model in ("SASRec", "GRU4Rec", "SASRec"):
        config = Config("LCRec", "ring", None, {**learned, "reward_model": model, "reward.config": {"epochs": 1}})
        item_identifiers(config, build_data(config).train._dataset)
    assert len(list((world / "saved/cache").glob("ring-*.index.json"))) == 2
    for text in ("", '{"wall_seconds": 1'):
        for costs in (world / "saved/cache").glob("ring-*.index.costs.json"):
            costs.write_text(text)
        caplog.clear()
        item_identifiers(config, build_data(config).train._dataset)
        assert "costs.json is garbled" in caplog.text, "and no more than that: the identifiers are whole"


def test_rows_and_sequences_that_were_tampered_with_are_found(world):
    config = Config("SASRec", "ring", None, {**QUICK, "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}}})
    data = build_data(config)
    names = ("split", "histories"), ("split", "held-out rows")

    def levels():
        findings = by_name(leak_findings(config, data))
        return [findings[name].level for name in names]

    assert levels() == [Level.OK, Level.OK]
    data.dataset.sequences.items[5] += 1  # now a history is not what its user did
    assert levels() == [Level.ATTENTION, Level.OK]
    data.train._dataset.inter_feat["timestamp"][0] = 1e9  # now a training row is later than the test row
    assert levels() == [Level.ATTENTION, Level.ATTENTION]
    del data.dataset.sequences
    assert levels() == [Level.NOTE, Level.OK], "as of rows that come ready made"
