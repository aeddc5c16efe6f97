"""Constrained beam search against exhaustive scoring."""

import numpy as np
import pytest
import torch

from recbole_ilrec.decoding.beam import beam_search
from recbole_ilrec.decoding.users import banned_positions, rank_users
from recbole_ilrec.settings import DecodeSettings
from tests.worlds import compact_encoder, random_identifiers, small_backbone, small_catalog

TOKENS, ITEMS = 9, 40


@pytest.fixture(scope="module", params=[(3,), (1, 2, 3, 4)], ids=["fixed depth", "variable depth"])
def world(request):
    chance = np.random.default_rng(1)
    backbone = small_backbone(TOKENS).eval()
    catalog = small_catalog(backbone, random_identifiers(chance, ITEMS, TOKENS, request.param))
    histories = [chance.integers(1, ITEMS + 1, size=size) for size in (5, 2, 2, 7, 1)]
    return backbone, catalog, compact_encoder(backbone, catalog), histories


def exhaustive(backbone, encoder, history, renormalise=False):
    """Score of every item by teacher forcing without any cache, ``[I + 1]``."""
    catalog = encoder.catalog
    prompt = encoder.prompts([history])[0][0].tolist()
    scores = torch.full((catalog.num_items + 1,), -torch.inf)
    for item in range(1, catalog.num_items + 1):
        answer = catalog.tokens[item, : catalog.length[item]]
        logits = backbone.model(input_ids=torch.tensor([prompt + answer.tolist()])).logits[0].float()
        total = 0.0
        for at, token in enumerate(answer):
            row = logits[len(prompt) - 1 + at]
            if renormalise:
                first, count = catalog.trie.fan_out(catalog.path[item, at : at + 1])
                row = torch.full_like(row, -torch.inf).index_copy(
                    0, legal := catalog.trie.token[first : first + count].long(), row[legal]
                )
            total += row.log_softmax(-1)[token].item()
        scores[item] = total
    return scores


def rank(world, histories, exact_places=0, **settings):
    backbone, _, encoder, _ = world
    return rank_users(
        backbone,
        encoder,
        histories,
        DecodeSettings(**settings),
        batch_size=3,
        device=torch.device("cpu"),
        exact_places=exact_places,
    )


@pytest.mark.parametrize("renormalise", [False, True])
def test_beam_as_wide_as_the_catalogue_equals_exhaustive_scoring(world, renormalise):
    backbone, catalog, encoder, histories = world
    ranking = rank(world, histories, num_beams=ITEMS, renormalise=renormalise)
    for row, history in enumerate(histories):
        scores = exhaustive(backbone, encoder, history, renormalise)
        by_leaf = {int(catalog.leaf_of_item[i]): scores[i].item() for i in range(1, ITEMS + 1)}
        assert sorted(ranking.leaf[row].tolist()) == sorted(by_leaf)
        expected = [by_leaf[leaf] for leaf in ranking.leaf[row].tolist()]
        np.testing.assert_allclose(ranking.score[row].numpy(), expected, atol=2e-5)
        assert (ranking.score[row].diff() <= 0).all()


def test_every_beam_is_a_distinct_item_with_its_own_teacher_forced_score(world):
    backbone, catalog, encoder, histories = world
    ranking = rank(world, histories, num_beams=4)
    for row, history in enumerate(histories):
        leaves = ranking.leaf[row].tolist()
        assert len(set(leaves)) == 4 and min(leaves) >= 0
        scores = exhaustive(backbone, encoder, history)
        for leaf, score in zip(leaves, ranking.score[row].tolist(), strict=True):
            assert score == pytest.approx(scores[catalog.item_order[catalog.leaf_start[leaf]]].item(), abs=2e-5)


def test_padding_and_company_in_a_batch_do_not_change_a_ranking(world):
    histories = world[3]
    together = rank(world, histories, num_beams=5)
    for row, history in enumerate(histories):
        alone = rank(world, [history], num_beams=5)
        assert alone.leaf[0].tolist() == together.leaf[row].tolist()
        np.testing.assert_allclose(alone.score[0], together.score[row], atol=2e-5)


def test_excluded_history_is_never_recommended_and_nothing_else_is_lost(world):
    backbone, catalog, encoder, histories = world
    ranking = rank(world, histories, num_beams=ITEMS, exclude_history=True)
    for row, history in enumerate(histories):
        found = {int(catalog.item_order[catalog.leaf_start[leaf]]) for leaf in ranking.leaf[row].tolist() if leaf >= 0}
        assert found == set(range(1, ITEMS + 1)) - set(history.tolist())
    alone = rank(world, histories, num_beams=ITEMS, exclude_history=True, renormalise=True)
    torch.testing.assert_close(alone.score.exp().sum(1), torch.ones(len(histories)))  # over what is left alone


def test_banned_positions_are_sorted_and_padded_past_the_end(world):
    catalog = world[1]
    banned = banned_positions(catalog, [np.array([3, 1, 3]), np.array([2])])
    assert (banned.diff(dim=1) >= 0).all()
    assert sorted(catalog.item_order[banned[0, :2]].tolist()) == [1, 3]
    assert banned[0, 2] == ITEMS and banned[1, 1:].tolist() == [ITEMS, ITEMS]


def test_a_closed_trie_gives_no_beam_at_all():
    backbone = small_backbone(TOKENS).eval()
    catalog = small_catalog(backbone, [(1,), (2, 3)])
    encoder = compact_encoder(backbone, catalog)
    ids, mask = encoder.prompts([np.array([1, 2])])
    banned = banned_positions(catalog, [np.array([1, 2])])
    ranking = beam_search(backbone, catalog.trie, ids, mask, num_beams=2, banned=banned)
    assert (ranking.leaf == -1).all()


@pytest.mark.parametrize("settings", [{}, {"renormalise": True}, {"exclude_history": True}], ids=str)
def test_what_a_search_left_out_scores_no_better_than_its_bound(world, settings):
    histories = world[3]
    whole = rank(world, histories, num_beams=ITEMS, **settings)
    assert (whole.bound == -torch.inf).all() and whole.certified(ITEMS).all()
    for beams in (1, 3, 8):
        ranking = rank(world, histories, num_beams=beams, **settings)
        for row in range(len(histories)):
            kept = set(ranking.leaf[row].tolist())
            others = [s for n, s in zip(whole.leaf[row].tolist(), whole.score[row].tolist(), strict=True)
                      if n not in kept and n >= 0]  # fmt: skip
            assert max(others) <= ranking.bound[row] + 2e-5
            for places in (1, 2, 3):
                if places <= beams and ranking.certified(places)[row]:
                    assert ranking.leaf[row, :places].tolist() == whole.leaf[row, :places].tolist()


def test_a_proof_is_found_often_and_not_always(world):
    share = [rank(world, world[3], num_beams=beams).certified(2).double().mean().item() for beams in (2, 12, ITEMS)]
    assert share[0] < 1 and share[-1] == 1 and share == sorted(share)


@pytest.mark.parametrize("settings", [{}, {"exclude_history": True}], ids=str)
def test_exact_search_finds_the_first_places_of_exhaustive_scoring(world, settings):
    histories = world[3]
    whole = rank(world, histories, num_beams=ITEMS, **settings)
    narrow = rank(world, histories, num_beams=3, **settings)
    exact = rank(world, histories, exact_places=3, num_beams=3, **settings)
    assert not narrow.certified(3).all() and exact.certified(3).all()
    assert exact.leaf.tolist() == whole.leaf[:, :3].tolist()
    np.testing.assert_allclose(exact.score, whole.score[:, :3], atol=2e-5)


def test_only_beams_that_are_still_open_cost_a_step(monkeypatch):
    backbone = small_backbone(TOKENS).eval()
    identifiers = [*((token,) for token in range(6)), (6, 0, 1, 2)]
    encoder = compact_encoder(backbone, small_catalog(backbone, identifiers))
    widths, extend = [], backbone.extend

    def noted(state, tokens, parent):
        widths.append((tokens.shape[1], parent.shape[1]))
        return extend(state, tokens, parent)

    monkeypatch.setattr(backbone, "extend", noted)
    settings = DecodeSettings(num_beams=7)
    histories = [np.array([1, 2]), np.array([7, 1])]
    rank_users(backbone, encoder, histories, settings, batch_size=2, device=torch.device("cpu"))
    assert widths == [(7, 7), (1, 1), (1, 1), (1, 1)]
