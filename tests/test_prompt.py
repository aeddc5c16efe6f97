"""Prompts, labels by length, and the plan of an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_ilrec.errors import UserError
from recbole_ilrec.prompt.encode import Example, PromptEncoder
from recbole_ilrec.prompt.rows import StepPlan, TrainRows
from recbole_ilrec.prompt.template import load_template, parse_template
from tests.worlds import compact_encoder, pairs_of, small_backbone, small_catalog

IDENTIFIERS = [(0, 1), (0, 2), (3,), (4, 5, 6)]


@pytest.fixture(scope="module")
def backbone():
    return small_backbone(7)


def wordy(backbone, end=True, **spec):
    """A prompt with words, in a tokenizer that knows them."""
    from recbole_ilrec.backbone.tiny import build_tokenizer

    template = parse_template({"separator": ", ", "templates": ["likes {history}. next?"], **spec}, "test")
    tokenizer = build_tokenizer([f"<t{i}>" for i in range(7)], template.texts)
    ids = [tokenizer.convert_tokens_to_ids([f"<t{t}>" for t in i]) for i in IDENTIFIERS]
    catalog = type(small_catalog(backbone, IDENTIFIERS))(ids, tokenizer.eos_token_id if end else None)
    return PromptEncoder(tokenizer, catalog, template, 200), tokenizer


def test_a_row_reads_as_written_and_only_the_answer_is_supervised(backbone):
    encoder, tokenizer = wordy(backbone)
    row = encoder.row(Example(np.array([1, 3, 4]), np.array([17])))
    assert tokenizer.decode(row.ids) == "<s>likes <t0><t1>, <t3>. next?<t4><t5><t6></s>"
    assert tokenizer.decode(row.target) == "<t4><t5><t6></s>"
    assert row.ids[row.position + 1].tolist() == row.target.tolist()
    assert row.number.tolist() == [17] * 4
    assert row.node.tolist() == encoder.catalog.path[4].tolist()


def test_prompt_for_decoding_is_the_training_row_without_the_answer(backbone):
    encoder, _ = wordy(backbone)
    row = encoder.row(Example(np.array([2, 1, 4]), np.array([0])))
    ids, mask = encoder.prompts([np.array([3]), np.array([2, 1])])
    assert ids[1][mask[1]].tolist() == row.ids[: row.position[0] + 1].tolist()
    assert not mask[0, 0] and mask[0, -1]


def test_continued_row_predicts_each_item_exactly_where_a_prefix_row_would(backbone):
    catalog = small_catalog(backbone, [(0, 1), (0, 2), (3, 3), (4, 5)], end=False)
    encoder = compact_encoder(backbone, catalog)
    items = np.array([2, 4, 1, 3])
    row = encoder.row(Example(items, np.array([5, 6, 7])))
    assert row.number.tolist() == [5, 5, 6, 6, 7, 7]
    for place in (1, 2, 3):
        prefix = encoder.row(Example(items[: place + 1], np.array([0])))
        mine = slice(2 * (place - 1), 2 * place)
        assert row.ids[: row.position[mine][-1] + 2].tolist() == prefix.ids.tolist()
        assert row.position[mine].tolist() == prefix.position.tolist()
        assert row.target[mine].tolist() == prefix.target.tolist()
        assert row.node[mine].tolist() == prefix.node.tolist()


def test_separator_follows_the_last_item_when_nothing_else_does(backbone):
    encoder, tokenizer = wordy(backbone, end=False, templates=["seen: {history}"])
    ids, _ = encoder.prompts([np.array([3, 1])])
    assert tokenizer.decode(ids[0]) == "<s>seen: <t3>, <t0><t1>, "


def test_a_padding_id_that_is_also_a_token_changes_no_label(backbone):
    encoder, _ = wordy(backbone)
    rows = [encoder.row(Example(np.array(items), np.array([0]))) for items in ([1, 3, 4], [2, 3])]
    before = encoder.collate(rows)
    encoder.pad_id = int(rows[0].target[0])
    after = encoder.collate(rows)
    assert torch.equal(before.select, after.select) and torch.equal(before.targets, after.targets)
    flat = after.input_ids.flatten()
    keep = after.targets != after.targets[-1]
    assert torch.equal(flat[after.select + 1][keep[: len(after.select)]], after.targets[keep])


def test_oldest_items_go_first_when_a_prompt_is_too_long_and_the_answer_never_does(backbone):
    encoder = compact_encoder(backbone, small_catalog(backbone, IDENTIFIERS), max_length=9)
    row = encoder.row(Example(np.array([4, 1, 3, 2]), np.array([0])))
    whole = encoder.catalog.tokens
    assert row.ids[1:].tolist() == [*whole[1, :2].tolist(), *whole[3, :1].tolist(), *whole[2, :3].tolist()]
    encoder.max_length = 10
    for answer in (2, 4):  # whatever the length of its answer, a row starts with the prompt of decoding
        row = encoder.row(Example(np.array([4, 1, 3, answer]), np.array([0])))
        assert row.ids[: -len(row.target)].tolist() == encoder.prompt(np.array([4, 1, 3])).tolist()
    with pytest.raises(UserError, match="prompt.max_length=3 is too small"):
        compact_encoder(backbone, small_catalog(backbone, IDENTIFIERS), max_length=3)


@pytest.mark.parametrize(
    "spec", [{}, {"templates": ["no slot"]}, {"templates": ["{history}{history}"]}, {"template": ["{history}"]}, [1]]
)
def test_a_bad_template_is_one_line(spec):
    with pytest.raises(UserError, match="prompt template here"):
        parse_template(spec, "here")


def test_an_unknown_template_names_the_known_ones(tmp_path):
    (tmp_path / "compact.yaml").write_text("templates: ['{history}']")
    with pytest.raises(UserError, match="Available: compact"):
        load_template("compcat", tmp_path)


sequences_strategy = st.lists(st.lists(st.integers(1, 50), min_size=2, max_size=40), min_size=1, max_size=12)


def test_a_later_window_starts_half_a_window_earlier():
    rows = TrainRows(pairs_of([[1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11]], 4), rows="sequence", window=4)
    found = [rows.example(0, number) for number in range(len(rows))]
    assert [example.items.tolist() for example in found] == [[1, 2, 3, 4, 5], [4, 5, 6, 7, 8], [7, 8, 9], [10, 11]]
    assert [example.targets.tolist() for example in found] == [[0, 1, 2, 3], [4, 5, 6], [7], [8]]


@settings(max_examples=40, deadline=None)
@given(sequences_strategy, st.integers(2, 8))
def test_every_target_is_trained_once_in_either_kind_of_row_with_a_true_past(sequences, window):
    pairs = pairs_of(sequences, window)
    for kind in ("prefix", "sequence"):
        rows = TrainRows(pairs, rows=kind, window=window)
        seen = []
        for number in range(len(rows)):
            example = rows.example(3, number)
            split = len(example.items) - len(example.targets)
            assert split >= 1 and len(example.items) <= window + 1
            for place, target in enumerate(example.targets):
                past = example.items[: split + place]
                assert example.items[split + place] == pairs.target[target]
                history = pairs.history[target, : pairs.length[target]]
                assert past[-len(history) :].tolist() == history[-len(past) :].tolist()
                seen.append(target)
        assert sorted(seen) == list(range(len(pairs)))


@settings(max_examples=40, deadline=None)
@given(sequences_strategy, st.sampled_from(["prefix", "sequence"]), st.integers(0, 5))
def test_item_dropout_keeps_order_targets_and_a_past(sequences, kind, epoch):
    pairs = pairs_of(sequences, 6)
    rows = TrainRows(pairs, rows=kind, window=6, item_dropout=0.5, seed=3)
    whole = TrainRows(pairs, rows=kind, window=6)
    for number in range(len(rows)):
        example, full = rows.example(epoch, number), whole.example(epoch, number)
        split = len(example.items) - len(example.targets)
        assert split >= 1 and len(example.targets) >= 1
        assert [pairs.target[t] for t in example.targets] == example.items[split:].tolist()
        remaining = iter(full.items.tolist())
        assert all(item in remaining for item in example.items.tolist())
        again = rows.example(epoch, number)
        assert again.items.tolist() == example.items.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=80), st.integers(1, 60), st.integers(1, 4))
def test_a_plan_uses_every_row_once_in_a_fixed_number_of_steps_with_work_for_every_part(targets, batch, parts):
    targets = np.array(targets * parts)  # fewer rows than parts are refused: tests/test_edges.py
    plan = StepPlan(size=targets + 1, targets=targets, batch=batch, parts=parts, seed=0)
    for epoch in (0, 1):
        steps = list(plan.epoch(epoch))
        assert len(steps) == plan.steps
        assert sorted(np.concatenate([row for step in steps for row in step]).tolist()) == list(range(len(targets)))
        assert all(len(part) for step in steps for part in step)


def test_the_number_of_steps_is_rounded_and_never_none():
    plans = [StepPlan(np.ones(rows), np.ones(rows, dtype=int), batch=4, parts=1, seed=0) for rows in (1, 5, 7, 9)]
    assert [plan.steps for plan in plans] == [1, 1, 2, 2]


def test_parts_do_not_change_which_rows_a_step_has():
    size = np.random.default_rng(0).integers(1, 30, 200)
    one = StepPlan(size, size, 300, 1, 7)
    two = StepPlan(size, size, 300, 2, 7)
    for a, b in zip(one.epoch(4), two.epoch(4), strict=True):
        assert sorted(a[0].tolist()) == sorted(np.concatenate(b).tolist())


def test_steps_are_shuffled_in_each_epoch_anew_and_so_are_templates_and_dropped_items():
    size = np.arange(1, 201)
    plan = StepPlan(size, np.ones(200, dtype=int), 10, 1, 7)
    lengths = [[size[step[0]].mean() for step in plan.epoch(epoch)] for epoch in (0, 1, 0)]
    assert lengths[0] == lengths[2] != lengths[1] and sorted(lengths[0]) not in lengths
    rows = TrainRows(pairs_of([range(1, 12)], 8), rows="prefix", window=8, variants=9, item_dropout=0.5)
    drawn = [[rows.example(epoch, row) for row in range(len(rows))] for epoch in (0, 1)]
    for what in (lambda example: example.variant, lambda example: len(example.items)):
        assert [what(example) for example in drawn[0]] != [what(example) for example in drawn[1]]


@pytest.mark.parametrize("kind", ["prefix", "sequence"])
def test_rows_of_a_step_are_of_like_length_after_item_dropout(kind):
    chance = np.random.default_rng(0)
    pairs = pairs_of([chance.integers(1, 50, size).tolist() for size in chance.integers(3, 12, 150)], 12)
    rows = TrainRows(pairs, rows=kind, window=12, item_dropout=0.4, seed=1)
    plan = StepPlan(rows.num_items, rows.num_targets, 40, 1, 0, rows.sizes)
    for epoch in (0, 3):
        examples = [rows.example(epoch, row) for row in range(len(rows))]
        length = np.array([len(example.items) for example in examples])
        sizes = rows.sizes(epoch)
        assert sizes[0].tolist() == length.tolist()
        assert sizes[1].tolist() == [len(example.targets) for example in examples]
        steps = [step[0] for step in plan.epoch(epoch)]
        assert len(steps) == plan.steps
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(rows)))
        padded = sum(len(step) * length[step].max() for step in steps)
        assert length.sum() / padded > 0.93
