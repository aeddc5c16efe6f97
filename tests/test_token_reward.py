"""Eq. 10: range sums over the trie equal a walk over all items, and the children of a node share out its mass."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.reward.table import RewardTable
from recbole_ilrec.reward.token_reward import item_probabilities, legal_tokens, token_rewards
from tests import reference

EOS = 1
INDEX = Path(__file__).parents[1].parent / "shared/data/Instruments/Instruments.index.json"

titles = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4), min_size=1, max_size=30)


def rows_of(legal, rows):
    """The entries as one dict per row."""
    tables = [{} for _ in range(rows)]
    reward = torch.zeros(len(legal.row)) if legal.reward is None else legal.reward
    for n, token, value in zip(legal.row.tolist(), legal.token.tolist(), reward.tolist(), strict=True):
        tables[n][token] = value
    return tables


def positions(catalog):
    """Every (item, level) with a token: item ids and the nodes before their tokens."""
    inside = catalog.path >= 0
    return inside.nonzero()[:, 0], catalog.path[inside], inside.nonzero()[:, 1]


@given(titles, st.integers(0, 1000))
@hypothesis_settings(max_examples=60, deadline=None)
def test_range_sums_equal_a_walk_over_all_items(identifiers, seed):
    """Variable depth (a title may begin another, so all end in EOS) and items that share an identifier."""
    catalog = Catalog(identifiers, eos_id=EOS)
    items = [[*tokens, EOS] for tokens in identifiers]
    scores = torch.randn(2, len(items) + 1, generator=torch.Generator().manual_seed(seed)) * 3
    probabilities = item_probabilities(scores)
    item, node, level = positions(catalog)
    example = torch.arange(len(node)) % 2
    got = rows_of(token_rewards(probabilities, catalog, example, node), len(node))
    plain = rows_of(legal_tokens(catalog.trie, node), len(node))
    for n in range(len(node)):
        prefix = items[item[n] - 1][: level[n]]
        wanted = reference.token_rewards(items, probabilities[example[n]].tolist(), prefix)
        assert got[n] == pytest.approx(wanted, abs=1e-6)
        assert plain[n].keys() == wanted.keys()
        assert sum(got[n].values()) == pytest.approx(1, abs=1e-5)


def test_fixed_depth_identifiers_need_no_end_token():
    """R = [.4, .2, .3, .05, .05] below the root: .6 behind token 2; below it 2/3 and 1/3."""
    catalog = Catalog([[2, 5], [2, 6], [3, 5], [4, 5], [4, 6]])
    probabilities = torch.tensor([[0.4, 0.2, 0.3, 0.05, 0.05]])
    node = torch.stack([catalog.path[1, 0], catalog.path[1, 1]])
    root, below = rows_of(token_rewards(probabilities, catalog, torch.zeros(2, dtype=torch.long), node), 2)
    assert root == pytest.approx({2: 0.6, 3: 0.3, 4: 0.1})
    assert below == pytest.approx({5: 2 / 3, 6: 1 / 3})


def test_golden_rewards():
    """Below a prefix .6, .3 and .05 behind three tokens, .05 elsewhere: r = .6 / .95, .3 / .95, .05 / .95."""
    catalog = Catalog([[9, 0, 1], [9, 0, 2], [9, 1, 1], [9, 2, 1], [8, 0, 1]])
    probabilities = torch.tensor([[0.4, 0.2, 0.3, 0.05, 0.05]], dtype=torch.float64)
    (found,) = rows_of(token_rewards(probabilities, catalog, torch.tensor([0]), catalog.path[1, 1:2]), 1)
    assert found == pytest.approx({0: 0.631579, 1: 0.315789, 2: 0.052632}, abs=1e-6)


def test_outside_the_trie_and_at_leaves_nothing_is_legal():
    catalog = Catalog([[2, 5], [3, 5]])
    leaf = catalog.trie.step(catalog.trie.step(torch.tensor([0]), torch.tensor([2])), torch.tensor([5]))
    node = torch.tensor([-1, 0, int(leaf), -1])
    legal = token_rewards(torch.full((1, 2), 0.5), catalog, torch.tensor([-1, 0, 0, -1]), node)
    assert legal.row.tolist() == [1, 1]
    assert legal.token.tolist() == [2, 3]
    nothing = token_rewards(torch.full((1, 2), 0.5), catalog, torch.tensor([-1]), torch.tensor([-1]))
    assert len(nothing.row) == len(nothing.reward) == 0
    assert legal_tokens(catalog.trie, torch.tensor([-1])).reward is None


def test_counts_take_over_where_the_probability_vanishes():
    """All of R lies below token 2; under token 3 there are two items behind 5 and one behind 6."""
    catalog = Catalog([[2, 5, 7], [3, 5, 7], [3, 5, 8], [3, 6, 7]])
    scores = torch.tensor([[0.0, 1000.0, 0.0, 0.0, 0.0]])
    got = token_rewards(item_probabilities(scores), catalog, torch.tensor([0]), catalog.path[2, 1:2])
    assert rows_of(got, 1)[0] == pytest.approx({5: 2 / 3, 6: 1 / 3})


def test_small_subtrees_keep_their_rewards():
    """A subtree with 1e-9 of the mass, behind 50,000 items: float32 prefix sums would lose it."""
    identifiers = [[2, 10 + n] for n in range(50_000)] + [[3, 5], [3, 6]]
    scores = torch.zeros(1, len(identifiers) + 1)
    scores[0, -2:] = torch.tensor([-10.0, -10.0 + float(torch.tensor(3.0).log())])
    got = token_rewards(
        item_probabilities(scores), Catalog(identifiers), torch.tensor([0]), Catalog(identifiers).path[-1, 1:2]
    )
    assert rows_of(got, 1)[0] == pytest.approx({5: 0.25, 6: 0.75}, abs=1e-5)


def test_item_probabilities_leave_padding_out_and_follow_the_temperature():
    scores = torch.tensor([[99.0, 0.0, 1.0, 2.0]])
    probabilities = item_probabilities(scores, temperature=0.5)
    assert probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities, torch.tensor([[0.0, 2.0, 4.0]], dtype=torch.float64).softmax(-1))


def test_history_can_be_masked_unless_it_holds_every_item():
    scores = torch.zeros(2, 4)
    seen = torch.tensor([[False, False, True, False], [True] * 4])
    got = item_probabilities(scores, seen=seen)
    torch.testing.assert_close(got, torch.tensor([[0.5, 0, 0.5], [1 / 3] * 3], dtype=torch.float64))


def test_a_target_that_the_user_returns_to_keeps_its_probability():
    """Else its reward would be 0, and Eq. 11 would teach against it."""
    scores, seen = torch.zeros(3, 4), torch.tensor([[False, True, True, False], [False] * 4, [True] * 4])
    got = item_probabilities(scores, seen=seen, target=torch.tensor([2, 1, 3]))
    expected = torch.tensor([[0, 0.5, 0.5], [1 / 3] * 3, [1 / 3] * 3], dtype=torch.float64)
    torch.testing.assert_close(got, expected)


def test_candidates_take_the_place_of_all_items_and_history_is_masked_among_them():
    scores, candidates = torch.zeros(2, 4), torch.tensor([[1, 3, 0], [1, 2, 0]])
    seen = torch.tensor([[False, True, False, False], [False, True, True, False]])
    got = item_probabilities(scores, candidates=candidates, seen=seen)
    torch.testing.assert_close(got, torch.tensor([[0, 0, 1], [0.5, 0.5, 0]], dtype=torch.float64))


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_a_table_holds_the_rewards_of_each_row_however_it_is_cut(chunk):
    catalog = Catalog([[2, 5], [2, 6, 7], [3], [2, 6, 8], [4, 5]], eos_id=EOS)
    targets = np.array([2, 5, 1, 4, 2, 3, 4])
    chances = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chances /= chances.sum(1, keepdim=True)
    table = RewardTable(catalog, targets, lambda some: chances[torch.from_numpy(some)], chunk=chunk)
    path = catalog.path[torch.from_numpy(targets)]
    row, node = (path >= 0).nonzero()[:, 0], path[path >= 0]
    got, wanted = table.legal(row, node), token_rewards(chances, catalog, row, node)
    assert torch.equal(got.row, wanted.row) and torch.equal(got.token, wanted.token)
    torch.testing.assert_close(got.reward, wanted.reward)


@pytest.mark.skipif(not INDEX.exists(), reason="the Instruments index is not beside this checkout")
def test_rewards_sum_to_one_at_every_prefix_of_a_real_catalogue():
    index = json.loads(INDEX.read_text())
    numbers = {token: n for n, token in enumerate(sorted({t for tokens in index.values() for t in tokens}), start=2)}
    catalog = Catalog([[numbers[t] for t in tokens] for tokens in index.values()], eos_id=EOS)
    scores = torch.randn(4, len(index) + 1, generator=torch.Generator().manual_seed(0)) * 4
    item, node, _ = positions(catalog)
    chosen = torch.randperm(len(node), generator=torch.Generator().manual_seed(1))[:2000]
    item, node = item[chosen], node[chosen]
    legal = token_rewards(item_probabilities(scores), catalog, item % 4, node)
    sums = torch.zeros(len(node)).index_add(0, legal.row, legal.reward)
    torch.testing.assert_close(sums, torch.ones(len(node)))
    assert (legal.reward >= 0).all()
