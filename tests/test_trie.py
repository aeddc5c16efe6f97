"""The trie and the catalogue against dictionaries of prefixes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_ilrec.identifiers import trie as trie_module
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.trie import build_trie

EOS = 99

identifier_lists = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=30)


def children_by_prefix(sequences):
    table: dict[tuple, set] = {}
    for sequence in sequences:
        for at in range(len(sequence)):
            table.setdefault(tuple(sequence[:at]), set()).add(sequence[at])
    return table


@settings(max_examples=60, deadline=None)
@given(identifier_lists)
def test_children_and_intervals_equal_a_dictionary_of_prefixes(identifiers):
    catalog = Catalog(identifiers, EOS)
    sequences = [(*identifier, EOS) for identifier in identifiers]
    table = children_by_prefix(sequences)
    assert catalog.num_leaves == len(set(sequences))
    for item, sequence in enumerate(sequences, start=1):
        assert catalog.tokens[item, : catalog.length[item]].tolist() == list(sequence)
        for at in range(len(sequence)):
            node = int(catalog.path[item, at])
            first, count = catalog.trie.fan_out(torch.tensor([node]))
            tokens = catalog.trie.token[first : first + count].tolist()
            assert tokens == sorted(table[sequence[:at]])
            below = catalog.item_order[catalog.trie.low[node] : catalog.trie.high[node]].tolist()
            assert sorted(below) == [i for i, s in enumerate(sequences, 1) if s[:at] == sequence[:at]]


@settings(max_examples=40, deadline=None)
@given(identifier_lists)
def test_identifiers_as_an_array_make_the_same_catalogue(identifiers):
    array = np.full((len(identifiers), max(map(len, identifiers))), -1)
    for row, identifier in zip(array, identifiers, strict=True):
        row[: len(identifier)] = identifier
    given_rows, given_array = Catalog(identifiers, EOS), Catalog(array, EOS)
    assert given_rows.digest == given_array.digest
    for name in ("tokens", "length", "path", "item_order", "leaf_of_item", "leaf_start"):
        assert getattr(given_rows, name).equal(getattr(given_array, name)), name


@settings(max_examples=40, deadline=None)
@given(identifier_lists)
def test_items_that_share_an_identifier_share_a_leaf_and_are_numbered_in_item_order(identifiers):
    catalog = Catalog(identifiers, EOS)
    rank = catalog.group_rank()
    for item, identifier in enumerate(identifiers, start=1):
        same = [i for i, other in enumerate(identifiers, 1) if other == identifier]
        leaf = catalog.leaf_of_item[item]
        members = catalog.item_order[catalog.leaf_start[leaf] : catalog.leaf_start[leaf + 1]].tolist()
        assert members == same
        assert rank[item] == same.index(item)
        assert catalog.group_size[leaf] == len(same)


def test_step_follows_edges_and_leaves_the_trie_on_any_other_token():
    trie, _ = build_trie(np.array([[1, 4], [1, 7], [3, 2]]))
    node = trie.step(torch.tensor([0, 0, 0, -1]), torch.tensor([1, 3, 2, 1]))
    assert node.tolist()[2:] == [-1, -1]
    assert trie.leaf[trie.step(node[:2], torch.tensor([7, 2]))].tolist() == [1, 2]
    assert trie.step(node[:2], torch.tensor([5, 9])).tolist() == [-1, -1]


def test_an_identifier_that_begins_another_needs_the_end_token():
    with pytest.raises(ValueError, match="begins another"):
        Catalog([(1, 2), (1,)])
    assert Catalog([(1, 2), (1,)], EOS).num_leaves == 2


def test_edges_of_several_nodes_are_one_ragged_list_and_outside_has_none():
    trie, _ = build_trie(np.array([[1, 4], [1, 7], [3, 2]]))
    row, edge = trie.edges(torch.tensor([0, -1, 1]))
    assert row.tolist() == [0, 0, 2, 2]
    assert trie.token[edge].tolist() == [1, 3, 4, 7]


def test_rows_are_sorted_by_whole_tokens_and_equal_ones_keep_their_order():
    tokens = [2**31 - 1, 2**16, 2**16 - 1, 2**15, 2**15 - 1, 0]
    rows = [(a, b) for a in tokens[2:] for b in tokens] + [(2**16, -1), (2**31 - 1, 0), (5, 5), (0, 7), (5, 5)]
    trie, order = build_trie(np.array(rows))
    assert order.tolist() == sorted(range(len(rows)), key=lambda at: rows[at])
    assert trie.token[:7].tolist() == [0, 5, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1]
    assert {array.dtype for array in vars(trie).values()} == {torch.int32}


def test_what_int32_cannot_number_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="token ids up to 2,147,483,647, not 2,147,483,648"):
        build_trie(np.array([[2**31]]))
    rows = np.array([[1, 4], [1, 2], [3, 2]])
    monkeypatch.setattr(trie_module, "LARGEST", 6)
    assert build_trie(rows)[0].num_nodes == 6
    monkeypatch.setattr(trie_module, "LARGEST", 5)
    with pytest.raises(ValueError, match="nodes up to 5, not 6"):
        build_trie(rows)
    monkeypatch.setattr(trie_module, "LARGEST", 2)
    with pytest.raises(ValueError, match="items up to 2, not 3"):
        build_trie(rows[:, :1])
