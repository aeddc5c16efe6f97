"""The rows that every model is trained and evaluated on."""

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("recbole")

from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.outcome import data_key
from recbole_ilrec.data.dataset import SequenceDataset, build_data
from recbole_ilrec.data.interaction_file import read_interactions, time_ranks
from recbole_ilrec.data.item_texts import texts_by_id
from recbole_ilrec.data.sequences import Rows
from recbole_ilrec.errors import UserError
from tests.toy import tiny, write_toy

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def root(tmp_path):
    return write_toy(tmp_path)


def config_for(root, **changes):
    return Config("SASRec", "toy", config_dict=tiny(root, **changes))


def write_rows(root, rows, header="user_id:token\titem_id:token\ttimestamp:float"):
    folder = root / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.inter").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


def columns(dataset):
    return {field: dataset.inter_feat[field] for field in dataset.inter_feat}


@pytest.mark.parametrize("length", [1, 3, 50])
def test_augmentation_equals_recboles_loops(root, length):
    """Times of the toy are positions, so float32 keeps them and both must give the same rows in the same order."""
    config = config_for(root, MAX_ITEM_LIST_LENGTH=length)
    for stock, ours in zip(SequentialDataset(config).build(), SequenceDataset(config).build(), strict=True):
        stock, ours = columns(stock), columns(ours)
        assert list(stock) == list(ours)
        for field in set(stock) - {"timestamp", "timestamp_list"}:
            assert stock[field].dtype == ours[field].dtype and torch.equal(stock[field], ours[field])


def test_augmentation_equals_recboles_loops_on_ml_100k():
    """The first 20,000 rows in exact time order; both read the same table of ranks, so every column must agree."""
    changes = {"val_interval": {"user_id": [str(user) for user in range(200)]}}
    config = Config("SASRec", "ml-100k", config_dict={"device": "cpu", **changes})
    ours = SequenceDataset(config)
    stock = SequenceDataset(config)
    stock.data_augmentation = lambda: SequentialDataset.data_augmentation(stock)
    for one, other in zip(stock.build(), ours.build(), strict=True):
        one, other = columns(one), columns(other)
        assert all(torch.equal(one[field], other[field]) for field in one) and set(one) == set(other)


def test_seconds_that_float32_cannot_tell_apart_keep_their_order(tmp_path):
    start = 1_600_000_000
    rows = [f"u\ti{n}\t{start + (n * 37) % 101}" for n in range(101)]
    data = build_data(config_for(write_rows(tmp_path, rows), MAX_ITEM_LIST_LENGTH=100))
    order = sorted(range(101), key=lambda n: (n * 37) % 101)
    tokens = data.dataset.field2id_token["item_id"]
    assert [tokens[i] for i in data.dataset.sequences.items.tolist()] == [f"i{n}" for n in order]
    assert tokens[data.test._dataset.inter_feat["item_id"][0]] == f"i{order[-1]}"


def test_ranks_go_by_time_then_user_then_line():
    users, times, lines = [1, 0, 1, 0], [5.0, 5.0, 4.0, 5.0], [0, 3, 2, 1]
    assert time_ranks(np.array(users), np.array(times), np.array(lines)).tolist() == [3, 2, 0, 1]


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    rows = [f"u{n % 3}\ti{n}\t5" for n in range(30)]
    data = build_data(config_for(write_rows(tmp_path, rows)))
    tokens = data.dataset.field2id_token["item_id"]
    start, items = data.dataset.sequences.start, data.dataset.sequences.items
    for user in range(3):
        found = [tokens[i] for i in items[start[user + 1] : start[user + 2]].tolist()]
        assert found == [f"i{n}" for n in range(user, 30, 3)]


def test_removing_duplicates_keeps_the_first_in_exact_order(tmp_path):
    rows = [f"u\ti{n % 12}\t{1_600_000_000 + n}" for n in range(20)]
    data = build_data(config_for(write_rows(tmp_path, rows), rm_dup_inter="first"))
    tokens = data.dataset.field2id_token["item_id"]
    assert [tokens[i] for i in data.dataset.sequences.items.tolist()] == [f"i{n}" for n in range(12)]


def test_the_last_item_is_test_and_the_one_before_is_validation(root):
    data = build_data(config_for(root))
    sequences = data.dataset.sequences
    ends = sequences.start[2:] - 1
    assert torch.equal(data.test._dataset.inter_feat["item_id"].sort()[0], sequences.items[ends].sort()[0])
    for loader, back in ((data.test, 0), (data.valid, 1)):
        rows = loader._dataset.inter_feat
        assert torch.equal(rows["item_id"], sequences.items[sequences.start[rows["user_id"] + 1] - 1 - back])


def test_history_is_everything_before_the_target(root):
    data = build_data(config_for(root, MAX_ITEM_LIST_LENGTH=2))
    rows, sequences = data.valid._dataset.inter_feat, data.dataset.sequences
    row, item = sequences.before(rows["user_id"], rows["timestamp"])
    for number, user in enumerate(rows["user_id"].tolist()):
        assert (
            item[row == number].tolist()
            == sequences.items[sequences.start[user] : sequences.start[user + 1] - 2].tolist()
        )


def test_item_texts_are_read_as_they_stand(root):
    dataset = SequenceDataset(config_for(root))
    assert dataset.item_texts[0] == {} and len(dataset.item_texts) == dataset.item_num
    for token, text in zip(dataset.field2id_token["item_id"][1:], dataset.item_texts[1:], strict=True):
        assert text == {"title": f'"No. {token[1:]} NA'}


def test_where_there_is_no_file_of_texts_no_item_is_said_to_lack_one_in_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert texts_by_id(tmp_path / "mine.item", "item_id", ["a", "b"]) == [{}, {}, {}]
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", f"There is no {tmp_path / 'mine.item'}: no item has a text.")
    ]


def test_item_texts_are_read_once_for_all_parts(root):
    data = build_data(config_for(root))
    assert data.train.dataset.item_texts is data.dataset.item_texts is data.test.dataset.item_texts


def test_counts_include_the_padding_as_in_table_3(root):
    dataset = SequenceDataset(config_for(root))
    assert dataset.user_num == 41 and "41 users" in dataset.statistics()


def test_tokens_that_read_as_missing_values_stay_tokens(tmp_path):
    rows = [f"u\t{item}\t{n}" for n, item in enumerate(["NA", "null", '"q', "None", "a b"])]
    dataset = SequenceDataset(config_for(write_rows(tmp_path, rows), topk=[1]))
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "NA", "null", '"q', "None", "a b"]


def test_line_ends_of_either_kind_and_blank_lines_are_no_part_of_a_field(tmp_path):
    path = tmp_path / "x.inter"
    path.write_bytes(b"\xef\xbb\xbfuser_id:token::item_id:token::time:float\r\n\r\nu:::i\x0b::2\r\n\nv::j::1")
    required = {"user_id": "token", "item_id": "token"}
    frame, types = read_interactions(path, required=required, wanted=lambda field: field == "time", separator="::")
    assert types == {**required, "time": "float"}
    assert frame.values.tolist() == [["u", ":i\x0b", 2.0], ["v", "j", 1.0]]


def test_an_empty_number_that_need_not_be_there_is_a_missing_value(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\trating:float\nu\ti\t\nu\tj\t4\n")
    frame, _ = read_interactions(path, required={"user_id": "token", "item_id": "token"}, wanted=lambda _: True)
    np.testing.assert_array_equal(frame["rating"], [np.nan, 4.0])


def test_rows_are_indexed_as_recbole_indexes_them():
    columns_ = {"item": torch.arange(5), "list": torch.arange(10).view(5, 2)}
    mask = torch.tensor([True, False, True, False, False])
    for index in ([4, 1], [], mask.tolist(), mask, np.array([0, 3]), torch.tensor([2]), slice(1, 3), 2):
        mine, recboles = Rows(columns_)[index], Interaction(columns_)[index]
        for field in columns_:
            assert torch.equal(mine[field], recboles[field])
    assert Rows(columns_)["item"] is columns_["item"]


def test_the_first_users_are_evaluated(root):
    data = build_data(config_for(root, eval_users=5))
    assert len(data.valid._dataset) == len(data.test._dataset) == 5 and len(data.train._dataset) > 50
    assert data.rows["valid"] == data.rows["test"] == 40, "so many there are"


def test_content_key_follows_the_data_and_the_filters(root):
    key = SequenceDataset(config_for(root)).content_key()
    assert SequenceDataset(config_for(root, epochs=9, learning_rate=0.5)).content_key() == key
    assert SequenceDataset(config_for(root, user_inter_num_interval="[6,inf)")).content_key() != key
    (root / "toy/toy.item").write_text("item_id:token\n")
    assert SequenceDataset(config_for(root)).content_key() != key


def test_content_key_follows_parts_that_are_files_of_their_own(root):
    keys = []
    head = "user_id:token\titem_id:token\titem_id_list:token_seq\n"
    for part in ("valid", "test"):
        (root / f"toy/toy.{part}.inter").write_text(head)
    for row in ("a\tb\tc", "a\tc\tb"):
        (root / "toy/toy.train.inter").write_text(f"{head}{row}\n")
        keys.append(data_key(config_for(root, benchmark_filename=["train", "valid", "test"])))
    assert keys[0] != keys[1] and data_key(config_for(root)) not in keys


def test_parts_that_come_ready_made_are_read_with_their_histories(root):
    parts, head = ["train", "valid", "test"], "user_id:token\titem_id:token\titem_id_list:token_seq\n"
    for part, row in zip(parts, ("a\tz\tx y", "a\tw\tx y z", "a\tx\tx y z w"), strict=True):
        (root / f"toy/toy.{part}.inter").write_text(f"{head}{row}\n")
    asked = {"benchmark_filename": parts, "MAX_ITEM_LIST_LENGTH": 3, "topk": [2], "valid_metric": "NDCG@2"}
    data = build_data(config_for(root, **asked))
    rows, number = data.test._dataset.inter_feat, data.dataset.field2token_id["item_id"]
    assert rows["item_id_list"].tolist() == [[number[item] for item in "yzw"]], "numbered as targets, the last three"
    assert rows["item_id"].tolist() == [number["x"]] and rows["item_length"].tolist() == [3]
    for more, told in (
        ({"exclude_history": True}, "whole history"),
        ({"load_col": {"inter": ["user_id"]}}, "leaves out"),
    ):
        with pytest.raises(UserError, match=told):
            config_for(root, **asked, **more)
    with pytest.raises(UserError, match="name training, validation and test"):
        config_for(root, **{**asked, "benchmark_filename": ["train", "test"]})
    (root / "toy/toy.valid.inter").write_text("user_id:token\titem_id:token\n")
    with pytest.raises(UserError, match="no column item_id_list:token_seq"):
        config_for(root, **asked)
    (root / "toy/toy.valid.inter").write_text(f"{head}a\tw\t\n")
    with pytest.raises(UserError, match="an empty item_id_list"):
        build_data(config_for(root, **asked))


AT_ONE_MOMENT = [{"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none"}, {"split": {"TS": [0.8, 0.1, 0.1]}}]


@pytest.mark.parametrize("split", AT_ONE_MOMENT)
def test_places_in_a_sequence_are_no_times_to_cut_all_users_at(tmp_path, monkeypatch, split):
    times = {"a": range(6), "b": range(5)}
    write_rows(tmp_path, [f"{user}\ti{t}\t{t}" for user, own in times.items() for t in own])
    config = config_for(tmp_path, eval_args={"order": "TO", "mode": "full", **split})
    with pytest.raises(UserError, match="cuts all users at one moment, and the times are places"):
        build_data(config)
    write_rows(tmp_path, [f"{user}\ti{t}\t{100 + 2 * t}" for user, own in times.items() for t in own])
    SequenceDataset(config)
    monkeypatch.setattr("recbole_ilrec.data.interaction_file._EXACT_IN_FLOAT32", 10)
    with pytest.raises(UserError, match="11 interactions are ordered for each user alone"):
        SequenceDataset(config)


GOOD = [f"u\ti{n}\t{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([*GOOD, "u\ti9"], None, "toy.inter:8: 2 columns, the header has 3"),
        ([*GOOD, "u\ti9\t1\t1"], None, "toy.inter:8: 4 columns"),
        ([*GOOD, "", "u\ti9\tsoon"], None, "toy.inter:9: timestamp='soon' is not a number"),
        ([*GOOD, "u\ti9\t"], None, "toy.inter:8: timestamp=''"),
        ([*GOOD, "u\ti9\tinf"], None, "toy.inter:8: timestamp='inf'"),
        ([*GOOD, "\ti9\t1"], None, "toy.inter:8: the user_id is empty"),
        ([*GOOD, "u\t[PAD]\t1"], None, "toy.inter:8: the item_id is [PAD], RecBole's name for none"),
        (GOOD, "user_id\titem_id\ttimestamp", "toy.inter:1: column 'user_id' is not"),
        (GOOD, "user_id:token\tuser_id:token\ttimestamp:float", "toy.inter:1: column 'user_id:token' is not a"),
        (GOOD, "user_id:token\titem_id:token\ttime:float", "toy.inter:1: the column 'timestamp:float' is missing"),
        (GOOD, "user_id:token\titem_id:float\ttimestamp:float", "the column 'item_id:token' is missing"),
        ([], None, "no interactions"),
        (["a\ti\t1", "a\tj\t2", "b\tk\t1"], None, "no user has 3 interactions"),
        (["a\ti\t1", "a\tj\t2", "a\tk\t1"], None, "the validation part is empty"),
    ],
)
def test_malformed_data_is_one_line_with_its_place(tmp_path, rows, header, message):
    root = write_rows(tmp_path, rows, *([header] if header else []))
    with pytest.raises(UserError) as error:
        build_data(config_for(root, topk=[1]))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_interactions_is_one_line(tmp_path):
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match="toy.inter does not exist"):
        build_data(config_for(tmp_path))


def test_nothing_left_after_filtering_is_one_line(root):
    with pytest.raises(UserError, match="no interaction is left"):
        build_data(config_for(root, user_inter_num_interval="[100,inf)"))


def test_more_recommendations_than_items_are_refused(root):
    with pytest.raises(UserError, match="smaller --topk"):
        build_data(config_for(root, topk=[100]))


def test_ranks_of_very_many_interactions_stay_exact_in_float32(root, monkeypatch):
    monkeypatch.setattr("recbole_ilrec.data.interaction_file._EXACT_IN_FLOAT32", 10)
    config = config_for(root)
    stock, ours = SequentialDataset(config).build(), SequenceDataset(config).build()
    for one, other in zip(stock, ours, strict=True):
        one, other = (np.lexsort((d.inter_feat["item_length"], d.inter_feat["user_id"])) for d in (one, other))
        assert len(one) == len(other)
    assert torch.equal(stock[2].inter_feat["item_id"].sort()[0], ours[2].inter_feat["item_id"].sort()[0])
