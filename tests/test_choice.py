"""The parts of a choice among candidates: what counts as an answer, how lists are drawn, prompts, decoding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.decoding.candidates import rank_candidates
from recbole_ilrec.decoding.users import rank_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.choice import choice_ratios, named
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.title import TitleIdentifiers
from recbole_ilrec.objective.preference import answer_log_probs, token_log_probs
from recbole_ilrec.prompt.answers import AnswerExample, encode_answers
from recbole_ilrec.prompt.candidates import draw_candidates, draw_offered
from recbole_ilrec.prompt.encode import Example, PromptEncoder
from recbole_ilrec.prompt.rows import Pairs, TrainRows
from recbole_ilrec.prompt.template import load_template, parse_template
from recbole_ilrec.schema import Ranking
from recbole_ilrec.settings import CandidateSettings, DecodeSettings
from recbole_ilrec.training.choice import answer_ratios
from tests.test_beam import exhaustive
from tests.worlds import compact_encoder, pairs_of, random_identifiers, small_backbone, small_catalog

CPU = torch.device("cpu")
NAMES = ["Hope", "Hope Sandoval", "ABC", "Royce da 5'9\""]


# ---- what counts as an answer


@pytest.mark.parametrize(
    ("answer", "exact", "substring"),
    [
        ("Hope", "Hope", "Hope"),
        (' "Hope"\n', "Hope", "Hope"),
        ("Hope Sandoval", "Hope Sandoval", None),  # contains "Hope" as well
        ("ABC", "ABC", "ABC"),
        ("The answer is ABC.", None, "ABC"),
        ("ABC or Hope", None, None),
        ("abc", None, None),
        ("Hope San", None, "Hope"),  # cut short, it seems to name another candidate
        ("Royce da 5'9\"", "Royce da 5'9", "Royce da 5'9"),  # quotes at the end are taken off both
        ("", None, None),
    ],
)
def test_an_answer_names_a_candidate_by_each_rule(answer, exact, substring):
    assert named(answer, NAMES, "exact") == exact
    assert named(answer, NAMES, "substring") == substring


def test_ratios_are_shares_of_all_answers_by_hand():
    """Exact: three valid answers, two of them right, of five: 2/5 and 3/5. Substring: the first is right, the second (a
    name within a name) is invalid, the third wrong, the fourth right, the last names two: 2/5 and 3/5.
    """
    answers = ["Hope", "Hope Sandoval", "ABC", "It is ABC", "Hope ABC"]
    targets = ["Hope", "Hope Sandoval", "Hope", "ABC", "Hope"]
    assert choice_ratios(answers, [NAMES] * 5, targets, "exact") == {"hitratio@1": 0.4, "validratio": 0.6}
    assert choice_ratios(answers, [NAMES] * 5, targets, "substring") == {"hitratio@1": 0.4, "validratio": 0.6}
    right = {"hitratio@1": 1.0, "validratio": 1.0}
    assert choice_ratios(["ABC"], [["ABC", "ABC"]], ["ABC"], "substring") == right
    for matching in ("exact", "substring"):
        assert choice_ratios([NAMES[3]], [NAMES], [NAMES[3]], matching) == right, "a quote at the end is no part of it"


@pytest.mark.parametrize(("matching", "ratio"), [("exact", 1.0), ("substring", 0.0)])
def test_the_ratios_of_a_run_are_by_the_rule_that_is_set(titles, matching, ratio):
    tokenizer, encoder = titles
    settings = SimpleNamespace(task="candidates", candidates=CandidateSettings(matching=matching))
    model = SimpleNamespace(settings=settings, catalog=encoder.catalog, backbone=SimpleNamespace(tokenizer=tokenizer))
    one = np.ones((1, 1), int)  # somebody who chose "Star Trek", where there is "Star" too
    own = Pairs(one[0], one, one[0], np.array([2]), candidates=np.array([[1, 2]]))
    results = {"expected": {"hit@1": 1.0}}
    best = Ranking(leaf=encoder.catalog.leaf_of_item[torch.tensor([[2, 1]])], score=torch.zeros(1, 2))
    found = answer_ratios(model, own, best, results, free=False, batch_size=1, progress=None)
    assert results["expected"] == {"hit@1": 1.0, **found[matching]} and found[matching]["hitratio@1"] == ratio


# ---- lists


@pytest.fixture(scope="module")
def pairs():
    chance = np.random.default_rng(0)
    return pairs_of([chance.permutation(40)[:12] + 1 for _ in range(30)], window=5)


GROUP = np.r_[0, np.arange(1, 39), 38, 38]  # the last three items have one name


@pytest.mark.parametrize("by", ["row", "target"])
def test_a_list_holds_the_target_and_others_that_are_neither_seen_nor_called_like_it(pairs, by):
    lists = draw_candidates(pairs, GROUP, 6, seed=1, part=0, by=by)
    assert lists.shape == (len(pairs), 6)
    for row, (own, seen, target) in enumerate(zip(lists, pairs.seen(), pairs.target, strict=True)):
        assert len(set(own)) == 6 and min(own) > 0 and (own == target).sum() == 1, row
        assert not set(own) & set(seen) and (GROUP[own] == GROUP[target]).sum() == 1
    np.testing.assert_array_equal(lists, draw_candidates(pairs, GROUP, 6, seed=1, part=0, by=by))


def test_lists_by_row_do_not_tell_the_target(pairs):
    lists = draw_candidates(pairs, GROUP, 6, seed=1, part=0)
    place = (lists == pairs.target[:, None]).argmax(1)
    assert len({tuple(sorted(own)) for own in lists}) == len(lists)
    assert all(len(set(place[pairs.target == t])) > 1 for t in range(1, 41) if (pairs.target == t).sum() > 8)
    counts = np.bincount(place, minlength=6)
    assert counts.min() > len(lists) / 6 - 4 * np.sqrt(len(lists) / 6)  # every place is about as frequent
    for other in (dict(seed=2, part=0), dict(seed=1, part=1)):
        assert (draw_candidates(pairs, GROUP, 6, **other) != lists).any(1).all()


def test_seeding_by_target_repeats_place_and_company_as_the_published_lists_do(pairs):
    lists = draw_candidates(pairs, GROUP, 6, seed=1, part=0, by="target")
    np.testing.assert_array_equal(lists, draw_candidates(pairs, GROUP, 6, seed=9, part=2, by="target"))
    for target in np.unique(pairs.target):
        own = lists[pairs.target == target]
        assert len({int((row == target).argmax()) for row in own}) == 1
        assert len(set(own.flatten().tolist())) < 6 + 5  # but for the histories, the same five others


@pytest.mark.parametrize("by", ["row", "target"])
def test_a_list_is_short_where_too_few_items_are_left(by):
    small = pairs_of([[1, 2, 3, 4]], window=3)
    lists = draw_candidates(small, np.arange(6), 4, seed=0, part=0, by=by)
    assert [sorted(row[row > 0]) for row in lists][1:] == [[3, 4, 5], [4, 5]]


def test_rejected_items_come_from_the_list_and_are_not_called_like_the_target():
    lists = np.array([[3, 1, 5, 0], [2, 4, 5, 1]])
    own = Pairs(*(np.zeros(2, int), np.zeros((2, 1), int), np.ones(2, int)), np.array([1, 4]), candidates=lists)
    draws = [draw_offered(own, np.array([0, 1, 2, 3, 4, 4]), 3, seed=0, draw=n) for n in range(8)]
    for found in draws:
        assert sorted(found[0]) == [0, 3, 5] and sorted(found[1]) == [0, 1, 2]
    assert len({tuple(found[:, 0]) for found in draws}) > 1


# ---- prompts


@pytest.fixture(scope="module")
def titles():
    identifiers = TitleIdentifiers(("Star", "Star Trek", "red box", "Naïve café"), max_tokens=32)
    template = load_template("candidates", properties_folder() / "prompt")
    tokenizer = build_tokenizer([], [*template.texts, *identifiers.texts])
    catalog = Catalog(identifiers.token_ids(tokenizer), tokenizer.eos_token_id)
    return tokenizer, PromptEncoder(tokenizer, catalog, template, 512)


def test_a_prompt_shows_history_and_candidates_in_their_order(titles):
    tokenizer, encoder = titles
    for variant, (before, after) in enumerate(encoder.template.variants):
        text = tokenizer.decode(encoder.prompt(np.array([1, 4]), variant, np.array([3, 2])), skip_special_tokens=True)
        assert text == before + '"Star", "Naïve café"' + after.replace("{candidates}", '"red box", "Star Trek"')
    example = Example(np.array([1, 4, 2]), np.array([0]), 1, np.array([3, 2]))
    row = encoder.row(example)
    prompt = encoder.prompt(np.array([1, 4]), 1, np.array([3, 2]))
    np.testing.assert_array_equal(row.ids[: len(prompt)], prompt)
    answered = encode_answers(encoder, AnswerExample(np.array([1, 4]), np.array([2, 3]), 1, np.array([3, 2])))
    np.testing.assert_array_equal(answered.ids[: len(prompt)], prompt)


def test_older_items_give_way_to_candidates_and_candidates_to_nothing(titles):
    tokenizer, encoder = titles
    candidates = np.array([1, 2, 3, 4])
    whole = len(encoder.prompt(np.array([3]), 0, candidates)) + encoder.catalog.depth
    tight = PromptEncoder(tokenizer, encoder.catalog, encoder.template, whole + 3)  # and a separator
    text = tokenizer.decode(tight.prompt(np.array([4, 1, 2, 3]), 0, candidates))
    assert 'first: "red box". The' in text and '"Star", "Star Trek", "red box", "Naïve café".' in text
    smaller = PromptEncoder(tokenizer, encoder.catalog, encoder.template, whole - 12)
    with pytest.raises(UserError, match=r"prompt\.max_length=\d+ is too small: a prompt with 4 candidates"):
        smaller.prompt(np.array([3]), 0, candidates)
    with pytest.raises(UserError, match="names candidates: use it with --task=candidates"):
        encoder.prompt(np.array([3]))


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (["{candidates} {history}"], "may hold {candidates} once, after {history}"),
        (["{history} {candidates} {candidates}"], "may hold {candidates} once, after {history}"),
        (["{history} {candidates}", "{history}"], "must be in all templates or in none"),
    ],
)
def test_a_template_offers_once_after_the_history_or_not_at_all(templates, message):
    with pytest.raises(UserError, match=message):
        parse_template({"templates": templates}, "mine")


def test_training_rows_show_their_candidates_in_another_order_in_each_epoch(pairs):
    lists = draw_candidates(pairs, GROUP, 6, seed=1, part=0)
    own = Pairs(pairs.user, pairs.history, pairs.length, pairs.target, candidates=lists)
    rows = TrainRows(own, rows="prefix", window=5, seed=3, shuffle=True)
    shown = [[rows.example(epoch, row).candidates.tolist() for row in range(len(own))] for epoch in (0, 1, 0)]
    assert shown[0] == shown[2] != shown[1]
    assert [sorted(row) for row in shown[0]] == [sorted(row) for row in shown[1]] == np.sort(lists, axis=1).tolist()
    plain = TrainRows(own, rows="prefix", window=5, seed=3)
    assert [plain.example(7, row).candidates.tolist() for row in range(len(own))] == lists.tolist()


def test_sequence_rows_are_refused_where_targets_are_left_out(pairs):
    TrainRows(pairs, rows="sequence", window=5)
    with pytest.raises(UserError, match="needs every item of a user as a target"):
        TrainRows(pairs.take(np.r_[0:4, 6 : len(pairs)]), rows="sequence", window=5)


# ---- decoding


def log_probs_of(backbone):
    def log_probs(batch):
        states = backbone.answer_states(batch.input_ids, batch.position_ids, batch.segment, batch.select)
        tokens = token_log_probs(backbone.head(states), batch.place, batch.targets)
        return answer_log_probs(tokens, batch.answer, batch.present)

    return log_probs


def test_scoring_candidates_in_one_pass_equals_the_search():
    chance = np.random.default_rng(6)
    backbone = small_backbone(9).eval()
    identifiers = [*random_identifiers(chance, 40, 9, (1, 2, 3, 4)), (1, 2)]
    identifiers[3] = (1, 2)  # two items share an identifier
    catalog = small_catalog(backbone, identifiers)
    encoder = compact_encoder(backbone, catalog)
    histories = [chance.integers(1, 41, size=size) for size in (5, 2, 3)]
    candidates = [np.array([4, 9, 41, 2]), np.array([7, 3]), np.array([11, 12, 13])]
    how = dict(batch_size=2, device=CPU, candidates=candidates)
    for seen in (None, [np.array([9]), np.array([7, 3]), np.array([13, 12])]):
        settings = DecodeSettings(exclude_history=seen is not None)
        search = rank_users(backbone, encoder, histories, settings, seen=seen, **how)
        once = rank_candidates(log_probs_of(backbone), encoder, histories, vocabulary=20, seen=seen, **how)
        assert torch.equal(once.leaf, search.leaf)
        torch.testing.assert_close(once.score, search.score, atol=2e-5, rtol=0)


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_search_over_candidates_is_exhaustive_and_finds_nothing_else(renormalise):
    chance = np.random.default_rng(5)
    backbone = small_backbone(9).eval()
    catalog = small_catalog(backbone, random_identifiers(chance, 40, 9, (1, 2, 3, 4)))
    encoder = compact_encoder(backbone, catalog)
    histories = [chance.integers(1, 41, size=size) for size in (5, 2, 3)]
    candidates = [chance.permutation(40)[:size] + 1 for size in (8, 3, 1)]
    settings = DecodeSettings(num_beams=2, renormalise=renormalise)
    ranking = rank_users(backbone, encoder, histories, settings, batch_size=2, device=CPU, candidates=candidates)
    for row, (history, own) in enumerate(zip(histories, candidates, strict=True)):
        leaves = ranking.leaf[row][ranking.leaf[row] >= 0].tolist()
        assert sorted(leaves) == sorted(catalog.leaf_of_item[own].tolist())
        assert (ranking.score[row].nan_to_num(neginf=-1e9).diff() <= 0).all()
        if not renormalise:
            scores = exhaustive(backbone, encoder, history)[own]
            np.testing.assert_allclose(
                ranking.score[row, : len(own)].numpy(), scores.sort(descending=True).values, atol=2e-5
            )
        else:  # a distribution over the candidates alone
            assert ranking.score[row].exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_candidate_that_is_left_out_is_shown_all_the_same(titles):
    tokenizer, encoder = titles
    histories, candidates, read = [np.array([2, 4])], [np.array([3, 2, 1])], []

    def log_probs(batch):
        read.append(batch.input_ids[0].tolist())
        return torch.zeros(1, 3)

    how = {"vocabulary": 9, "batch_size": 1, "device": CPU}
    rank_candidates(log_probs, encoder, histories, candidates, seen=[np.array([2])], **how)
    prompt = encoder.prompt(histories[0], 0, candidates[0]).tolist()
    assert read[0][: len(prompt)] == prompt and '"red box", "Star Trek", "Star"' in tokenizer.decode(prompt)


def test_seen_candidates_are_left_out_where_the_history_is():
    backbone = small_backbone(9).eval()
    catalog = small_catalog(backbone, random_identifiers(np.random.default_rng(5), 12, 9, (2,)))
    encoder = compact_encoder(backbone, catalog)
    own, history = np.array([3, 5, 7]), np.array([5, 1])
    for exclude, left in ((True, [3, 7]), (False, [3, 5, 7])):
        settings = DecodeSettings(exclude_history=exclude)
        ranking = rank_users(backbone, encoder, [history], settings, batch_size=2, device=CPU, candidates=[own])
        assert sorted(ranking.leaf[0][ranking.leaf[0] >= 0].tolist()) == sorted(catalog.leaf_of_item[left].tolist())
