"""BIGRec: titles as identifiers, prompts of titles, and every way from a generated title to a ranking."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.backbone.text_states import text_states
from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.decoding.free import generate
from recbole_ilrec.decoding.grounding import beams_first, best_of_group, closed_identifiers, nearest
from recbole_ilrec.decoding.users import banned_positions, generate_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.title import TitleIdentifiers, item_titles, joined_texts
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.models.title_ranker import TitleRanker
from recbole_ilrec.prompt.encode import Example, PromptEncoder
from recbole_ilrec.prompt.template import load_template
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.schema import Ranking
from recbole_ilrec.settings import BIGRecSettings
from recbole_ilrec.training.trainer import GenerativeTrainer
from tests.worlds import (
    LEARN_TITLES,
    QUICK,
    SMALL,
    TITLES,
    ring_world,
    write_titled_ring,
    write_titles,
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A working folder with the ring world under titles (some begin others, one is missing), and a finished run."""
    root = tmp_path_factory.mktemp("ring")
    write_titled_ring(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = run_recbole_ilrec("BIGRec", "ring", config_dict={**LEARN_TITLES, "decode.renormalise": False})
    return root, result


@pytest.fixture
def ring(learned, monkeypatch):
    """The working folder of ``learned``."""
    monkeypatch.chdir(learned[0])
    return learned[0]


def test_next_title_that_follows_from_the_last_is_always_found(learned):
    result = learned[1]
    assert result["test_result"]["hit@1"] == 1.0
    assert {tuple(values.items()) for values in result["policies"].values()} == {tuple(result["test_result"].items())}


def test_ilrec_learns_the_ring_of_titles_too(ring):
    result = run_recbole_ilrec("ILRec", "ring", config_dict={**LEARN_TITLES, "paradigm": "bigrec", "saved": False})
    assert result["test_result"]["hit@1"] == 1.0


WAYS = {
    "renormalised": {},
    "grounding": {"bigrec.ranker": "grounding", "bigrec.max_new_tokens": 16},
    "hybrid": {"bigrec.ranker": "hybrid", "num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_from_a_title_to_a_list_finds_what_was_learned(ring, way):
    config = Config("BIGRec", "ring", None, {**LEARN_TITLES, **WAYS[way]})
    data = build_data(config)
    model = config.model_class(config, data.train._dataset)
    (folder,) = (ring / "saved").glob("BIGRec-*/best")
    assert GenerativeTrainer(config, model, folder).evaluate(data.test, model_file=folder)["hit@1"] == 1.0


# ---- identifiers


@pytest.fixture(scope="module")
def titles():
    identifiers = TitleIdentifiers((*TITLES, "Star"), max_tokens=32)
    template = load_template("bigrec", properties_folder() / "prompt")
    tokenizer = build_tokenizer([], [*template.texts, *identifiers.texts])
    return identifiers, tokenizer


def test_a_title_is_its_quoted_text_in_the_catalogue(titles):
    identifiers, tokenizer = titles
    rows = identifiers.token_ids(tokenizer)
    assert [tokenizer.decode(row) for row in rows] == identifiers.texts
    assert all(tokenizer.eos_token_id not in row for row in rows)


def test_titles_that_begin_others_need_the_end_token_and_equal_ones_share_an_identifier(titles):
    identifiers, tokenizer = titles
    rows = identifiers.token_ids(tokenizer)
    catalog = Catalog(rows, tokenizer.eos_token_id)
    assert catalog.num_items == 9 and catalog.num_leaves == 8
    assert catalog.leaf_of_item[1] == catalog.leaf_of_item[9]
    assert (catalog.tokens.gather(1, (catalog.length - 1).clamp_min(0)[:, None])[1:, 0] == tokenizer.eos_token_id).all()


def test_a_long_title_is_cut_and_still_closed(titles):
    _, tokenizer = titles
    rows = TitleIdentifiers(("Star Trek II Star Trek II Star Trek II", "Star"), max_tokens=6).token_ids(tokenizer)
    assert len(rows[0]) == 6 and tokenizer.decode(rows[0]).endswith('"')
    assert tokenizer.decode(rows[1]) == '"Star"'


def test_an_item_without_a_title_is_called_by_its_id():
    items = [{"title": "  A \u00a0 b "}, {"title": " "}, {}, {"movie_title": "M", "name": "N"}]
    assert item_titles(items, ["1", "2", "3", "4"]) == (["A b", "2", "3", "M"], 2)


def test_all_that_is_written_about_an_item_is_one_text_in_a_fixed_order():
    items = [{"description": "d", "brand": "b", "title": "t", "url": "u"}, {"class": "c", "name": ""}, {}]
    assert joined_texts(items) == ["t b d", "c", ""]


# ---- prompts


def encoder_of(titles, name):
    identifiers, tokenizer = titles
    template = load_template(name, properties_folder() / "prompt")
    return PromptEncoder(tokenizer, Catalog(identifiers.token_ids(tokenizer), tokenizer.eos_token_id), template, 400)


def test_the_worded_prompt_reads_as_written_and_only_the_title_is_supervised(titles):
    _, tokenizer = titles
    encoder = encoder_of(titles, "bigrec")
    row = encoder.row(Example(np.array([2, 4, 3]), np.array([0])))
    text = tokenizer.decode(row.ids)
    assert 'oldest first: "Star Trek", "12" ruler"\n\n### Response:\n"Star Trek II"</s>' in text
    assert tokenizer.decode(row.target) == '"Star Trek II"</s>'


def test_titles_in_one_pass_are_predicted_exactly_where_a_prefix_row_would(titles):
    _, tokenizer = titles
    encoder = encoder_of(titles, "titles")
    items = np.array([2, 4, 1, 3])
    row = encoder.row(Example(items, np.array([5, 6, 7])))
    assert tokenizer.decode(row.ids) == '<s>"Star Trek"</s>"12" ruler"</s>"Star"</s>"Star Trek II"</s>'
    for place in (1, 2, 3):
        prefix = encoder.row(Example(items[: place + 1], np.array([0])))
        mine = row.number == 4 + place
        assert row.ids[: row.position[mine][-1] + 2].tolist() == prefix.ids.tolist()
        for field in ("position", "target", "node"):
            assert getattr(row, field)[mine].tolist() == getattr(prefix, field).tolist()


# ---- from a generated title to a ranking


@pytest.fixture(scope="module")
def written():
    """A small model that writes titles: 12 items, five histories of different length."""
    identifiers = TitleIdentifiers(tuple(f"{a} {b}" for a in ("red", "blue", "pale") for b in "abcd"), 32)
    template = load_template("titles", properties_folder() / "prompt")
    backbone = build_backbone(SMALL, [], [*template.texts, *identifiers.texts], seed=0).eval()
    tokenizer = backbone.tokenizer
    catalog = Catalog(identifiers.token_ids(tokenizer), tokenizer.eos_token_id)
    encoder = PromptEncoder(tokenizer, catalog, template, 200)
    histories = [np.arange(1, size + 1) for size in (3, 1, 2, 5, 1)]
    return backbone, encoder, histories


def test_free_generation_with_one_beam_is_greedy_search_without_a_cache(written):
    backbone, encoder, histories = copy.deepcopy(written)
    for name, weight in backbone.model.named_parameters():
        weight.data *= 20 if "proj" in name else 1  # else a fresh model only says the last token again
    settings, device = BIGRecSettings(beams=1, max_new_tokens=5), torch.device("cpu")
    prompts = [encoder.prompts([history])[0][0].tolist() for history in histories]

    def greedy(ids, end=None):
        answer = []
        while len(answer) < 5:
            token = int(backbone.model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token == end:
                break
            answer.append(token)
        return answer

    end = greedy(prompts[1])[2]
    got = generate_users(backbone, encoder, histories, settings, eos_id=end, batch_size=3, device=device)
    assert got == [greedy(ids, end) for ids in prompts] and {2, 5} <= set(map(len, got))
    more = BIGRecSettings(beams=4, max_new_tokens=5)
    assert generate_users(backbone, encoder, histories, more, eos_id=end, batch_size=3, device=device) != got


class Chain:
    """A model whose next token depends on the last one: ``logits[last, next]``."""

    def __init__(self, logits):
        self.logits = logits

    def prefill(self, ids, mask):
        return ids[:, -1:, None].float(), None

    def extend(self, state, tokens, parent):
        return tokens[..., None].float()

    def head(self, states):
        return self.logits[states[:, 0].long()]


@pytest.mark.parametrize("beams", [1, 2])
def test_free_answers_of_one_batch_end_where_each_does_or_are_cut_at_the_limit(beams):
    logits = torch.full((9, 9), -9.0)
    for last, following in {5: 1, 1: 0, 6: 1, 7: 6, 8: 8}.items():  # 0 ends
        logits[last, following] = 9.0
    prompts = torch.tensor([[5], [7], [8]])
    found = generate(Chain(logits), prompts, prompts > 0, eos_id=0, num_beams=beams, max_new_tokens=4)
    assert found == [[1], [6, 1], [8, 8, 8, 8]]


def test_free_beams_find_the_most_probable_answer():
    """The greedy answer is worse than one behind a weaker start."""
    probability = torch.full((5, 5), 1e-6)
    probability[4, 1], probability[4, 2] = 0.6, 0.4  # after the prompt
    probability[1, [0, 1, 2]] = torch.tensor([0.3, 0.35, 0.35])
    probability[2, 0] = 1.0  # 0 ends
    chain, prompt = Chain(probability.log()), torch.tensor([[4], [4]])
    found = [generate(chain, prompt, prompt > 0, eos_id=0, num_beams=w, max_new_tokens=6)[0] for w in (1, 2)]
    assert found[0] != [2] and found[1] == [2]


def test_the_item_whose_title_was_written_comes_first_and_the_rest_by_distance():
    items = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0], [9.0, 9.0]])
    queries = torch.tensor([[0.0, 1.0], [3.0, 0.1]])
    ranking = nearest(queries, items, 4)
    assert ranking.leaf.tolist() == [[2, 3, 0, 1], [1, 0, 2, 3]]
    assert ranking.score[0].tolist() == pytest.approx([0.0, 0.0, -1.0, -(10**0.5)])
    closed = torch.tensor([[False, False, True, False, True], [False] * 5])
    assert nearest(queries, items, 5, closed=closed).leaf.tolist() == [[3, 0, 1, -1, -1], [1, 0, 2, 3, 4]]


def test_a_title_that_is_an_items_is_at_no_distance_from_it_however_far_off_all_are():
    items = 30 + torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    ranking = nearest(items[:5], items, 2)
    assert ranking.leaf[:, 0].tolist() == [0, 1, 2, 3, 4] and ranking.score[:, 0].abs().max() < 1e-4


def test_a_statistic_pulls_items_up_by_the_formula():
    items = torch.tensor([[0.0], [1.0], [4.0]])
    popularity = torch.tensor([2.0, 10.0, 6.0])
    ranking = nearest(torch.tensor([[0.8]]), items, 3, statistic=popularity, gamma=2.0)
    distance = [(0.8 - 0.2) / 3.0 * 1.0, 0.0, 1.0 * 1.5**-2]
    assert ranking.leaf.tolist() == [[1, 0, 2]]
    assert ranking.score[0].tolist() == pytest.approx([-distance[1], -distance[0], -distance[2]])
    assert torch.equal(nearest(torch.tensor([[0.8]]), items, 3, statistic=popularity).leaf, torch.tensor([[1, 0, 2]]))
    alike = nearest(torch.tensor([[0.8]]), items, 3, statistic=torch.full((3,), 5.0), gamma=2.0)
    assert alike.leaf.tolist() == [[1, 0, 2]] and alike.score.isfinite().all()


def test_first_items_of_users_are_no_targets_and_count_as_popular_too():
    rows = {
        "list": torch.tensor([[1, 0], [1, 2], [3, 0]]),
        "n": torch.tensor([1, 2, 1]),
        "item": torch.tensor([2, 4, 4]),
    }
    fields = {"history_field": "list", "item_list_length_field": "n", "iid_field": "item"}
    ranker = SimpleNamespace(
        dataset=SimpleNamespace(inter_feat=rows, **fields),
        encoder=SimpleNamespace(catalog=Catalog([[1], [2], [3], [4]])),
        settings=SimpleNamespace(weight_by="popularity"),
    )
    assert TitleRanker._statistic(ranker, None).tolist() == [1, 1, 1, 2]


def test_beams_stand_before_the_nearest_titles_and_nothing_stands_twice():
    beams = Ranking(torch.tensor([[4, 1], [2, -1]]), torch.tensor([[-1.0, -2.0], [-3.0, -torch.inf]]))
    others = Ranking(torch.tensor([[1, 0, 4, 3], [0, 2, 1, 3]]), torch.tensor([[-0.1, -0.2, -0.3, -0.4]] * 2))
    ranking = beams_first(beams, others, 4)
    assert ranking.leaf.tolist() == [[4, 1, 0, 3], [2, 0, 1, 3]]
    assert (ranking.score.diff() < 0).all()


def test_an_identifier_is_closed_when_all_its_items_are_banned():
    catalog = Catalog([[1], [2], [1], [3]])
    banned = banned_positions(catalog, [np.array([1]), np.array([1, 3, 4])])
    assert closed_identifiers(catalog, banned).tolist() == [[False, False, False], [True, False, True]]
    assert best_of_group(catalog, torch.tensor([5.0, 1.0, 7.0, 2.0])).tolist() == [7, 1, 2]


def test_the_state_of_the_last_token_does_not_depend_on_padding(written):
    backbone, _, _ = written
    texts = ["red a", "", "blue b red c pale d"]
    for side in ("left", "right"):
        backbone.tokenizer.padding_side = side
        together = text_states(backbone.decoder, backbone.tokenizer, texts, pooling="last")
        for row in (0, 2):
            ids = torch.tensor([backbone.tokenizer(texts[row])["input_ids"]])
            alone = backbone.decoder(input_ids=ids).last_hidden_state[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)
        assert together[1].abs().sum() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decode.renormalise": False},
        {"prompt.template": "bigrec", "train_rows": "prefix"},
        {"bigrec.ranker": "grounding", "bigrec.max_new_tokens": 8},
    ],
)
def test_the_two_verbs_of_scoring_agree(ring, settings):
    config = Config("BIGRec", "ring", None, {**QUICK, **settings})
    data = build_data(config)
    model = config.model_class(config, data.train._dataset).eval()
    rows = data.test._dataset.inter_feat[torch.arange(4)]
    every = model.full_sort_predict(rows)
    assert every.shape == (4, 13) and (every[:, 0] == -torch.inf).all()
    torch.testing.assert_close(every[torch.arange(4), rows["item_id"]], model.predict(rows), atol=1e-4, rtol=0)


@pytest.mark.parametrize("ranker", ["grounding", "hybrid"])
@pytest.mark.parametrize("weight", ["popularity", "cf"])
def test_distances_rank_the_whole_catalogue_and_the_list_is_its_head(ring, ranker, weight):
    ways = {"bigrec.ranker": ranker, "bigrec.gamma": 0.5, "bigrec.weight_by": weight, "bigrec.max_new_tokens": 8}
    config = Config("BIGRec", "ring", None, {**QUICK, **ways, "num_beams": 3, "topk": [6], "exclude_history": True})
    data = build_data(config)
    model = config.model_class(config, data.train._dataset).eval()
    rows = data.test._dataset.inter_feat[torch.arange(4)]
    every = model.full_sort_predict(rows)
    pairs = to_pairs(rows, model)
    head = model.rank(pairs, batch_size=2)
    assert head.leaf.shape == (4, 6)
    for row, seen in enumerate(pairs.seen()):
        assert (every[row] == -torch.inf).nonzero().squeeze(1).tolist() == sorted({0, *seen.tolist()})
        items = every[row].argsort(descending=True)[:6]
        assert model.catalog.leaf_of_item[items].tolist() == head.leaf[row].tolist()


# ---- what can go wrong


def test_no_titles_at_all_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sequences, _ = ring_world(users=12)
    folder = write_titles(tmp_path, "ring", sequences, [""] * 24)
    for _ in range(2):
        with pytest.raises(UserError, match=r"dataset 'ring' has no item titles, .* use --paradigm=lcrec"):
            run_recbole_ilrec("BIGRec", "ring", config_dict={**QUICK, "epochs": 1})
        (folder / "ring.item").unlink(missing_ok=True)


def test_a_model_named_after_a_paradigm_keeps_it(ring):
    with pytest.raises(UserError, match="paradigm=bigrec contradicts model=LCRec, which is lcrec: use --model=BIGRec"):
        Config("LCRec", "ring", None, {"paradigm": "bigrec"})
