"""Rows of a prompt with all its answers, and where rejected items come from."""

import numpy as np
import pytest
import torch

from recbole_ilrec.decoding.rejected import self_hard_items
from recbole_ilrec.objective.preference import answer_log_probs, token_log_probs
from recbole_ilrec.prompt.answers import AnswerExample, PreferenceRows, collate_answers, encode_answers
from recbole_ilrec.prompt.encode import Example
from recbole_ilrec.prompt.rejected import draw_rejected, similar_items
from tests.worlds import compact_encoder, pairs_of, random_identifiers, small_backbone, small_catalog


@pytest.fixture(scope="module")
def world():
    """A backbone in evaluation mode and an encoder; identifiers of one to four tokens and the end token."""
    chance = np.random.default_rng(0)
    backbone = small_backbone(6).eval()
    return backbone, compact_encoder(backbone, small_catalog(backbone, random_identifiers(chance, 20, 6, (1, 2, 4))))


EXAMPLES = [
    AnswerExample(np.array([3, 7, 1]), np.array([5, 2, 9, 11])),
    AnswerExample(np.array([4]), np.array([6, 8, 0, 0])),
    AnswerExample(np.array([1, 2, 3, 4, 5, 6]), np.array([20, 0, 19, 1])),
]


def log_probs(backbone, batch):
    states = backbone.answer_states(batch.input_ids, batch.position_ids, batch.segment, batch.select)
    return answer_log_probs(
        token_log_probs(backbone.head(states), batch.place, batch.targets), batch.answer, batch.present
    )


def alone(backbone, encoder, history, item):
    """The answer in a row of its own, through the ordinary causal pass."""
    batch = encoder.collate([encoder.row(Example(np.append(history, item), np.array([0])))])
    states = backbone.layer_states(batch.input_ids, batch.select)
    return states.head(states.final).log_softmax(1).gather(1, batch.targets[:, None]).sum()


def test_answers_of_one_row_score_as_in_rows_of_their_own(world):
    backbone, encoder = world
    with torch.no_grad():
        table = log_probs(backbone, collate_answers([encode_answers(encoder, e) for e in EXAMPLES], encoder.pad_id))
        for line, example in enumerate(EXAMPLES):
            for column, item in enumerate(example.answers):
                wanted = alone(backbone, encoder, example.history, item) if item else torch.tensor(-torch.inf)
                assert table[line, column].item() == pytest.approx(wanted.item(), abs=2e-5)


def test_gradients_of_one_row_are_those_of_rows_of_their_own(world):
    backbone, encoder = world
    weight = torch.tensor([1.0, -0.5, 2.0, -1.0])
    example = EXAMPLES[0]
    together = (
        log_probs(backbone, collate_answers([encode_answers(encoder, example)], encoder.pad_id))[0] * weight
    ).sum()
    apart = sum(w * alone(backbone, encoder, example.history, i) for w, i in zip(weight, example.answers, strict=True))
    wanted = torch.autograd.grad(apart, list(backbone.parameters()))
    for got, want in zip(torch.autograd.grad(together, list(backbone.parameters())), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-4)


def test_a_prompt_is_encoded_once_and_no_last_token_is(world):
    _, encoder = world
    row = encode_answers(encoder, EXAMPLES[0])
    answers = [encoder.answer(item) for item in EXAMPLES[0].answers]
    assert len(row.ids) == len(encoder.prompt(EXAMPLES[0].history)) + sum(len(answer) - 1 for answer in answers)
    assert row.target.tolist() == np.concatenate(answers).tolist()
    assert row.position[row.segment == 2].tolist() == [*range(row.first + 1, row.first + len(answers[1]))]


SEQUENCES = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]
ALONE = np.arange(21)


def test_random_items_are_distinct_wrong_and_new_to_the_user():
    pairs = pairs_of(SEQUENCES * 40, 4)
    group = ALONE.copy()
    group[[5, 17]] = 17  # item 17 carries the identifier of item 5
    drawn = draw_rejected(pairs, group, 5, seed=3, draw=0)
    assert drawn.min() >= 1 and drawn.max() <= 20
    for row, items in enumerate(drawn):
        assert len(set(items)) == 5
        assert not set(items) & set(pairs.seen()[row])
        assert group[pairs.target[row]] not in group[items]


def test_random_items_are_drawn_evenly():
    pairs = pairs_of([[1, 2]] * 5000, 4)
    drawn = draw_rejected(pairs, ALONE, 5, seed=0, draw=0)
    count = np.bincount(drawn.ravel(), minlength=21)
    assert not count[:3].any()
    assert count[3:] == pytest.approx(np.full(18, 25000 / 18), rel=0.15)
    assert not (drawn[:-4096] == drawn[4096:]).all(1).any(), "blocks of rows have draws of their own"


def test_popular_items_are_drawn_by_their_weight():
    pairs = pairs_of([[1, 2]] * 4000, 4)
    weights = np.zeros(21)
    weights[[3, 4, 5]] = 1, 3, 6
    count = np.bincount(draw_rejected(pairs, ALONE, 1, seed=0, draw=0, weights=weights).ravel(), minlength=21)
    assert count[[3, 4, 5]] / 4000 == pytest.approx(np.array([0.1, 0.3, 0.6]), abs=0.03)


def test_popular_items_are_drawn_by_their_weight_also_where_hardly_any_item_is_left():
    pairs = pairs_of([range(1, 19)], 20).take(np.full(1000, 16))
    weights = np.r_[0.0, np.full(18, 1e4), 1.0, 9.0]  # the two that are new to the user are nearly never met by chance
    count = np.bincount(draw_rejected(pairs, ALONE, 1, seed=0, draw=0, weights=weights).ravel(), minlength=21)
    assert count[19:] / 1000 == pytest.approx(np.array([0.1, 0.9]), abs=0.04)


def test_draws_repeat_with_their_number_and_seed_only():
    pairs = pairs_of(SEQUENCES, 4)
    first = draw_rejected(pairs, ALONE, 3, seed=1, draw=0)
    assert np.array_equal(first, draw_rejected(pairs, ALONE, 3, seed=1, draw=0))
    assert not np.array_equal(first, draw_rejected(pairs, ALONE, 3, seed=1, draw=1))
    assert not np.array_equal(first, draw_rejected(pairs, ALONE, 3, seed=2, draw=0))


def test_a_user_who_knows_nearly_everything_has_fewer_rejected_items():
    pairs = pairs_of([[*range(1, 19), 20]], 30)
    drawn = draw_rejected(pairs, ALONE, 5, seed=0, draw=0)
    assert sorted(drawn[-1]) == [0, 0, 0, 0, 19]
    assert drawn[-1, 0] == 19


def test_similar_items_are_the_nearest_that_are_new_to_the_user():
    """Items on an arc, ever closer to each other: the nearest to 8 are 9, 7, 10, 6 and 11."""
    angle = 0.4 * np.log(np.arange(1, 21))
    angle[19] = angle[7] + 0.01  # item 20 is next to item 8, and item 10 carries the identifier of item 8
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1) * np.arange(1, 21)[:, None]
    group = ALONE.copy()
    group[10] = 8
    pairs = pairs_of([[9, 3, 8], [1, 8]], 4)
    found = similar_items(pairs, group, vectors, 3)
    assert found[pairs.target == 8].tolist() == [[20, 7, 6], [20, 9, 7]]
    assert similar_items(pairs_of([[*range(1, 20)]], 30), ALONE, vectors, 2)[-1].tolist() == [20, 0]


def test_self_hard_items_are_the_most_probable_wrong_ones(world):
    backbone, encoder = world
    pairs = pairs_of(SEQUENCES, 4)
    rows = np.arange(len(pairs))
    found = self_hard_items(
        backbone,
        encoder,
        pairs.histories(rows),
        pairs.seen(),
        pairs.target,
        count=2,
        num_beams=20,
        renormalise=False,
        batch_size=4,
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        for row in rows:
            history = pairs.histories(rows)[row]
            scores = {
                item: alone(backbone, encoder, history, item).item()
                for item in range(1, 21)
                if item != pairs.target[row] and item not in pairs.seen()[row]
            }
            assert found[row].tolist() == sorted(scores, key=lambda item: -scores[item])[:2]


@pytest.mark.parametrize(
    ("identifiers", "beams", "wanted"),
    [
        ([(0,), (0,), (1,), (2,)], 4, [[4, 0, 0]]),  # items 1 and 2 share the target's
        ([(n,) for n in range(6)], 1, None),  # fewer beams than items are asked for
    ],
)
def test_self_hard_items_are_as_many_as_there_are_with_another_identifier(identifiers, beams, wanted):
    backbone, own = small_backbone(6).eval(), [np.array([3])]
    encoder, how = compact_encoder(backbone, small_catalog(backbone, identifiers)), {"count": 3, "num_beams": beams}
    how |= {"renormalise": False, "batch_size": 4, "device": torch.device("cpu")}
    found = self_hard_items(backbone, encoder, own, own, np.array([2]), **how).tolist()
    assert found == wanted if wanted else 0 not in found[0]


@pytest.mark.parametrize(("candidates", "wanted"), [(None, {3, 5}), ([np.array([1, 2, 4, 6])], {4, 6})])
def test_a_self_hard_item_is_new_to_the_user_and_a_candidate_where_another_of_its_identifier_is_not(candidates, wanted):
    """Items 2, 3 and 4 share an identifier, and so do 5 and 6."""
    backbone = small_backbone(6).eval()
    encoder = compact_encoder(backbone, small_catalog(backbone, [(0,), (1,), (1,), (1,), (2,), (2,)]))
    how = {"count": 2, "num_beams": 6, "renormalise": False, "batch_size": 4, "device": torch.device("cpu")}
    past = [np.array([2])]
    found = self_hard_items(backbone, encoder, past, past, np.array([1]), candidates=candidates, **how)
    assert {*found[0].tolist()} == wanted


def test_an_epoch_takes_its_own_draw_of_all_answers():
    pairs = pairs_of(SEQUENCES, 4)
    rejected = np.stack([draw_rejected(pairs, ALONE, 3, seed=1, draw=draw) for draw in range(2)])
    rows = PreferenceRows(pairs, rejected)
    for epoch in range(4):
        every = rows.all_answers(5).answers
        assert every[rows.columns(epoch)].tolist() == rows.example(epoch, 5).answers.tolist()
        assert rows.example(epoch, 5).answers[1:].tolist() == rejected[epoch % 2, 5].tolist()
