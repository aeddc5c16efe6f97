"""Candidate lists that give their answer away are found; fair ones are not."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_ilrec.checks.candidates import candidate_findings
from recbole_ilrec.checks.finding import Level, needing_attention

ROWS, ITEMS, SIZE = 1500, 400, 10
COUNT = np.r_[0, np.random.default_rng(1).integers(1, 50, ITEMS)]


def fair(seed=0):
    """Targets and candidates drawn in the same way, each list shuffled."""
    chance = np.random.default_rng(seed)
    lists = [chance.choice(np.arange(1, ITEMS + 1), SIZE, replace=False) for _ in range(ROWS)]
    targets = np.array([row[chance.integers(SIZE)] for row in lists])
    return [np.array([1])] * ROWS, targets, lists


def found(histories, targets, lists, count=COUNT, trained=None):
    trained = count > 0 if trained is None else trained
    return {finding.name: finding for finding in candidate_findings(histories, targets, lists, count, trained)}


def test_an_item_that_is_only_ever_in_histories_is_no_unseen_one():
    histories, targets, lists = fair()
    never_a_target = np.where(np.isin(np.arange(ITEMS + 1), targets[:200]), 0, COUNT)
    assert found(histories, targets, lists, never_a_target)["only unseen"].numbers["rows"] > 0
    assert found(histories, targets, lists, never_a_target, COUNT > 0)["only unseen"].numbers["rows"] == 0


def test_fair_lists_give_nothing_away():
    histories, targets, lists = fair()
    findings = found(histories, targets, lists)
    assert len(findings) == 11 and not needing_attention(list(findings.values()))
    assert findings["popularity"].numbers["rate"] == pytest.approx(1 / SIZE, abs=0.03)
    shown = {"rows": int((targets == 1).sum()), "seen": sum(1 in row for row in lists), "only_new": 0}
    assert findings["history"].numbers == shown, "every history is the item 1"
    pairs = [np.r_[row[row != target][:1], target] for row, target in zip(lists, targets, strict=True)]
    mixed = [row[:: 1 - 2 * (number % 2)] for number, row in enumerate(pairs)]
    assert found(histories, targets, mixed)["order"].level is Level.OK, "one other candidate is always in order"


def test_equally_popular_items_are_guessed_alike():
    few = [part[:100] for part in fair()]
    finding = found(*few, count=np.ones_like(COUNT))["popularity"]
    assert finding.level is Level.OK and finding.numbers["rate"] == pytest.approx(1 / SIZE)


def test_the_true_item_always_first_is_found_by_its_place():
    histories, targets, lists = fair()
    first = [np.r_[target, row[row != target]] for row, target in zip(lists, targets, strict=True)]
    finding = found(histories, targets, first)["position"]
    assert finding.level is Level.ATTENTION
    assert finding.numbers["statistic"] == pytest.approx(ROWS * (SIZE - 1))  # (N - N/C)^2/(N/C) + (C - 1) N/C


def test_places_are_compared_within_lists_of_different_lengths():
    histories, targets, lists = fair()
    chance = np.random.default_rng(3)
    cut = []
    for number, (row, target) in enumerate(zip(lists, targets, strict=True)):
        others = row[row != target][: 4 if number % 2 else SIZE - 1]
        cut.append(chance.permutation(np.r_[target, others]))
    assert found(histories, targets, cut)["position"].level is Level.OK


def test_targets_that_are_more_popular_than_the_others_are_found():
    histories, _, lists = fair()
    targets = np.array([row[COUNT[row].argmax()] if n % 4 == 0 else row[0] for n, row in enumerate(lists)])
    assert found(histories, targets, lists)["popularity"].level is Level.NOTE
    always = np.array([row[COUNT[row].argmin()] for row in lists])
    findings = found(histories, always, lists)
    assert findings["unpopularity"].level is Level.ATTENTION and findings["popularity"].level is Level.OK


def test_a_fixed_pool_of_other_candidates_is_found():
    targets, pool = np.arange(1, 41), np.arange(100, 100 + SIZE - 1)
    given = found([pool] * 40, targets, [np.r_[target, pool] for target in targets])
    assert given["seldom shown"].level is Level.ATTENTION
    assert given["position"].level is Level.NOTE and "too few" in given["position"].text


def test_a_lone_unseen_or_seen_target_is_found():
    targets = np.arange(1, ITEMS // 2)
    others = np.arange(ITEMS // 2, ITEMS // 2 + SIZE - 1)
    lists = [np.r_[target, others] for target in targets]
    unseen = np.where(np.isin(np.arange(ITEMS + 1), targets), 0, 9)
    histories = [np.array([ITEMS])] * len(targets)
    assert found(histories, targets, lists, unseen)["only unseen"].level is Level.ATTENTION
    assert found(histories, targets, lists, 9 - unseen)["only seen"].level is Level.ATTENTION


def test_a_history_that_only_the_target_can_be_in_is_found():
    _, targets, lists = fair()
    finding = found([np.array([target]) for target in targets], targets, lists)["history"]
    assert finding.level is Level.ATTENTION and finding.numbers == {"rows": ROWS, "seen": ROWS, "only_new": 0}


def test_others_that_are_all_from_the_history_are_found():
    _, targets, lists = fair()
    histories = [row[row != target] for row, target in zip(lists, targets, strict=True)]
    finding = found(histories, targets, lists)["history"]
    assert finding.level is Level.ATTENTION and finding.numbers["only_new"] == ROWS


def test_places_that_go_round_and_others_that_are_sorted_are_found():
    histories, targets, lists = fair()
    rest = [row[row != target] for row, target in zip(lists, targets, strict=True)]
    for shift in (0, 3):
        turn = [
            np.insert(row, (n + shift) % SIZE, target)
            for n, (row, target) in enumerate(zip(rest, targets, strict=True))
        ]
        position = found(histories, targets, turn)["position"]
        assert position.level is Level.ATTENTION
        assert "more even than chance" in position.text and "goes on by one" in position.text
    chance = np.random.default_rng(0)
    placed = [np.insert(np.sort(row), chance.integers(SIZE), target) for row, target in zip(rest, targets, strict=True)]
    assert found(histories, targets, placed)["order"].level is Level.ATTENTION
    assert found(histories, targets, [np.sort(row) for row in lists])["order"].level is Level.OK, "sorted as a whole"


def test_lists_that_are_seeded_by_their_true_item_are_found():
    histories, targets, lists = fair()
    place, others = [], []
    for number, (row, target) in enumerate(zip(lists, targets.tolist(), strict=True)):
        rest = row[row != target]
        place.append(np.insert(rest, target % SIZE, target))  # the same place, other candidates
        pool = np.setdiff1d(np.arange(1, ITEMS + 1), target)
        seeded = np.random.default_rng(target).choice(pool, SIZE - 1, replace=False)
        mixed = rest if number % 2 else seeded  # the same candidates, another place
        others.append(np.random.default_rng(number).permutation(np.r_[target, mixed]))
    by_place, by_others = found(histories, targets, place)["seeding"], found(histories, targets, others)["seeding"]
    assert by_place.level is by_others.level is Level.ATTENTION
    assert by_place.numbers["same_place"] == by_place.numbers["lists"] == ROWS - len(set(targets.tolist()))
    assert by_others.numbers["common"] > 0.2 > 0.05 > by_others.numbers["usual"]
    assert found(histories, targets, lists)["seeding"].level is Level.OK


@pytest.mark.parametrize("fault", ["missing", "twice"])
def test_malformed_lists_are_told_and_nothing_else(fault):
    histories, targets, lists = fair()
    lists[3] = lists[3][lists[3] != targets[3]] if fault == "missing" else np.r_[lists[3], lists[3][0]]
    (finding,) = candidate_findings(histories, targets, lists, COUNT, COUNT > 0)
    assert finding.level is Level.ATTENTION and finding.numbers[fault] == 1


def test_published_candidate_lists_can_be_checked():
    path = Path(__file__).parents[1].parent / "shared/data/lastfm/lastfm-test.json"
    if not path.is_file():
        pytest.skip("the LastFM lists of S-DPO are not here")
    lines = json.loads(path.read_text(encoding="utf-8"))
    numbers: dict[str, int] = {}

    def ids(names):
        return np.array([numbers.setdefault(name, len(numbers) + 1) for name in names])

    targets = ids(line["trueSelection"] for line in lines)
    lists = [ids(line["itemList"]) for line in lines]
    histories = [ids(line["historyList"].split("::")) for line in lines]
    findings = found(histories, targets, lists, np.ones(len(numbers) + 1, int))
    assert findings["lists"].level is Level.OK and len(lines) == 2495
    assert findings["seeding"].numbers["same_place"] == findings["seeding"].numbers["lists"] == 2495 - 1402
