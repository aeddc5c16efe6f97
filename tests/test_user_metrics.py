"""A metric of each test user from the places that runs kept: means without rounding, and what tests are paired on."""

import numpy as np
import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.topk import MISSING, TargetPlaces
from recbole_ilrec.evaluation.user_ranks import ranks_file, write_ranks
from recbole_ilrec.verbs.user_metrics import by_user, unrounded


@pytest.fixture
def record(tmp_path):
    """A record whose run kept these places, given by user."""

    def made(user, before, group=1, policy="expected", **results):
        before = torch.tensor([MISSING if place is None else place for place in before])
        ones = torch.ones_like(before)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        places = TargetPlaces(before, ones * group, ones * 0, before)
        write_ranks(ranks_file(folder, "test"), torch.tensor(user), places, {})
        about = {"collisions": policy, "data": "d"}
        return {"folder": str(folder), "result": {"test_result": results}, "evaluation": about}

    return made


def test_a_mean_is_that_of_the_users_and_not_of_four_digits(record):
    """One of 7 users is hit, and one of 3 in the other seed: .1429 and .3333 in the results."""
    seven = record(range(7), [0] + [None] * 6, **{"hit@5": 0.1429, "ndcg@5": 0.1429, "mrr@5": 0.1429})
    assert unrounded("hit@5", seven) == unrounded("ndcg@5", seven) == pytest.approx(1 / 7, abs=1e-15)
    assert unrounded("mrr@5", seven) == 0.1429 and unrounded("hit@10", seven) is None
    assert unrounded("hit@5", {**seven, "folder": ""}) == 0.1429, "no places were kept"


def test_ranks_that_lie_in_the_working_folder_are_not_those_of_a_record_without_one(record, monkeypatch):
    monkeypatch.chdir(record([1, 2], [0, 0])["folder"])
    assert by_user([{**record([1, 2], [None, 0]), "folder": None}], "hit@5") is None


def test_a_result_that_is_not_the_mean_of_the_places_stays(record):
    """The two best items have one score: torch.topk put the true one first, by the places each order counts half."""
    tied = record([1], [0], group=2, policy="torch.topk", **{"hit@1": 1.0, "ndcg@1": 1.0})
    assert unrounded("hit@1", tied) == 1.0


def test_a_number_that_was_changed_by_hand_is_refused(record):
    """A hit in three: .3333, and .33 where the run was asked for two digits."""
    with pytest.raises(UserError, match=r"hit@5 is 0.4333 in its record and 0.3333 by the places"):
        unrounded("hit@5", record(range(3), [0, None, None], **{"hit@5": 0.4333, "ndcg@5": 0.3333}))
    assert unrounded("hit@5", record(range(3), [0, None, None], **{"hit@5": 0.33, "ndcg@5": 0.33})) == 0.33


def test_users_are_the_same_in_any_order_and_their_rows_are_averaged(record):
    """User 4 has two rows, one of them a hit; runs may have evaluated the rows in another order."""
    first = record([4, 9, 4, 2], [0, None, None, 1])
    second = record([2, 4, 4, 9], [1, None, 0, None])
    found = by_user([first, second], "hit@5")
    assert found.user.tolist() == [2, 4, 9]
    assert found.values.tolist() == [[1.0, 0.5, 0.0]] * 2
    assert np.array_equal(by_user([second, first], "hit@5").values, found.values)


def test_other_users_other_data_and_missing_places_are_no_pair(record):
    first, fewer = record([1, 2], [0, 0]), record([1], [0])
    assert by_user([first, fewer], "hit@5") is None and by_user([first, None], "hit@5") is None
    other = {**first, "evaluation": {**first["evaluation"], "data": "other"}}
    assert by_user([first, other], "hit@5") is None
    assert by_user([first, {**first, "folder": ""}], "hit@5") is None
