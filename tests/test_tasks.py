"""LC-Rec's alignment tasks: prompts, rows, a mixture that learns, resumes, and leaves ILRec's terms to seqrec."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_ilrec.backbone.tiny import build_tokenizer
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.models.methods import ILRec
from recbole_ilrec.models.model import to_pairs
from recbole_ilrec.objective.sft import cross_entropy
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import StepPlan, TrainRows
from recbole_ilrec.prompt.task_template import load_task_templates, parse_task_templates
from recbole_ilrec.prompt.tasks import AlignmentTexts, TaskRows, UserTexts
from recbole_ilrec.prompt.template import parse_template
from recbole_ilrec.quick_start import run_recbole_ilrec
from recbole_ilrec.runtime.checkpoint import load_state
from recbole_ilrec.runtime.resumption import checkpoints
from recbole_ilrec.settings import build_settings
from recbole_ilrec.training.loop import StepTrainer
from recbole_ilrec.training.task_batches import TaskBatches, task_batches
from tests.worlds import QUICK, pairs_of, ring_world, write_dataset

PROJECT = Path(__file__).parents[1]
EVERY = ("item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain")
WORDS = ("red", "green", "blue", "grey", "pink")
IDENTIFIERS = [(0, 1), (0, 2), (3, 1), (4, 5)]
TEXTS = AlignmentTexts(
    titles=("", "red cup", "green cup", "", "blue hat"),
    descriptions=("", "holds tea", "", "", "for the sun"),
    users={
        1: UserTexts(("likes tea", "likes hats"), 4, ("something for the head",), ("a hat",)),
        2: UserTexts(("likes cups",), 9, ("a cup",), ("a cup",)),
    },
)
SEQUENCES = [[1, 3, 4, 2], [2, 1, 3]]


def shipped(tasks=EVERY):
    return load_task_templates("lcrec", PROJECT / "properties" / "prompt" / "tasks", tasks)


def rows_of(templates, *, texts=TEXTS, sequences=SEQUENCES, seed=0, max_length=400, window=20, **options):
    """Task rows of a small world, and the tokenizer to read them with."""
    tokenizer = build_tokenizer([f"<t{i}>" for i in range(6)], [*templates.texts, *texts])
    ids = [tokenizer.convert_tokens_to_ids([f"<t{t}>" for t in identifier]) for identifier in IDENTIFIERS]
    catalog = Catalog(ids, tokenizer.eos_token_id)
    encoder = PromptEncoder(tokenizer, catalog, parse_template({"templates": ["{history}"]}, "test"), max_length)
    options = {"max_text_tokens": 50, "fusion_sample": None, **options}
    return TaskRows(templates, texts, pairs_of(sequences, window), encoder, tokenizer, seed=seed, **options), tokenizer


def one(task, ask, answer, **options):
    """Rows of one prompt, read back: (question, answer)."""
    templates = parse_task_templates({"tasks": {task: [{"ask": ask, "answer": answer}]}}, "test", (task,))
    rows, tokenizer = rows_of(templates, **options)
    encoded = [rows.row(0, row) for row in range(len(rows))]
    for row in encoded:
        assert row.ids[row.position + 1].tolist() == row.target.tolist()
    return [(tokenizer.decode(r.ids[: r.position[0] + 1]), tokenizer.decode(r.target)) for r in encoded], encoded


def test_an_item_is_asked_by_its_texts_and_answers_with_its_tokens():
    read, encoded = one("item2index", "Index of {title} ({description})?", "{item}")
    assert read == [
        ("<s>Index of red cup (holds tea)?", "<t0><t1></s>"),
        ("<s>Index of blue hat (for the sun)?", "<t4><t5></s>"),
    ]
    assert all((row.node == -1).all() and (row.number == -1).all() for row in encoded)


def test_an_item_is_described_by_its_texts():
    read, _ = one("index2item", "What is {item}?", "{title}: {description}")
    assert read[0] == ("<s>What is <t0><t1>?", "red cup: holds tea</s>")
    assert len(read) == 2


def test_a_history_of_titles_is_answered_with_an_item_that_has_rewards():
    read, encoded = one("fusionseqrec", "After {titles} comes", "{item}")
    assert read == [
        ("<s>After red cup comes", "<t3><t1></s>"),
        ("<s>After red cup comes", "<t4><t5></s>"),  # item 3 has no title
        ("<s>After red cup, blue hat comes", "<t0><t2></s>"),
        ("<s>After green cup comes", "<t0><t1></s>"),
        ("<s>After green cup, red cup comes", "<t3><t1></s>"),
    ]
    assert [row.number.tolist() for row in encoded] == [[number] * 3 for number in range(5)]
    assert all((row.node >= 0).all() for row in encoded)


def test_a_history_is_answered_with_the_text_of_the_next_item():
    read, encoded = one("fusionseqrec", "After {history} comes", "{title}")
    assert read == [
        ("<s>After <t0><t1>, <t3><t1> comes", "blue hat</s>"),
        ("<s>After <t0><t1>, <t3><t1>, <t4><t5> comes", "green cup</s>"),
        ("<s>After <t0><t2> comes", "red cup</s>"),
    ]
    assert all((row.node == -1).all() for row in encoded)


def test_a_search_is_the_training_row_of_the_files_item_and_a_preference_the_users_last():
    read, encoded = one("itemsearch", "{history}: {user_intention}", "{item}")
    assert read == [("<s><t0><t1>, <t3><t1>: something for the head", "<t4><t5></s>")]  # user 2's is no training item
    assert encoded[0].number.tolist() == [1] * 3
    _, without = one("itemsearch", "{item_intention}", "{item}")
    assert (without[0].node == -1).all()
    read, _ = one("preferenceobtain", "{history} tells", "{preference}")
    assert read[0][0] == "<s><t0><t1>, <t3><t1>, <t4><t5> tells"
    assert read[0][1] in ("likes tea</s>", "likes hats</s>")
    assert read[1] == ("<s><t0><t2>, <t0><t1> tells", "likes cups</s>")


def test_a_query_is_drawn_from_what_the_user_wants_and_what_the_item_is_like():
    spec = {"tasks": {"itemsearch": [{"ask": "{query}", "answer": "{item}"}]}}
    rows, tokenizer = rows_of(parse_task_templates(spec, "test", ("itemsearch",)))
    asked = {tokenizer.decode(rows.row(epoch, 0).ids, skip_special_tokens=True) for epoch in range(12)}
    assert asked == {f"{query}<t4><t5>" for query in ("something for the head", "a hat")}


def test_oldest_items_go_first_when_a_question_is_too_long_and_texts_are_cut():
    read, encoded = one("fusionseqrec", "{titles}?", "{item}", max_text_tokens=3, max_length=11)
    assert read[2][0] in ("<s>blue hat?", "<s>red cup, blue hat?")
    assert max(len(row.ids) for row in encoded) <= 11
    long = AlignmentTexts(("", "cup " * 9, "", "", ""), ("",) * 5)
    _, (cut,) = one("index2item", "{item}?", "{title}", texts=long, max_text_tokens=3)
    assert len(cut.target) == 4  # and the end token
    whole, encoded = one("fusionseqrec", "{history}?", "{item}")
    longest = max(len(row.ids) for row in encoded)
    assert one("fusionseqrec", "{history}?", "{item}", max_length=longest)[0] == whole, "exactly what there is room for"
    shorter = one("fusionseqrec", "{history}?", "{item}", max_length=longest - 1)[0]
    assert [a == b for a, b in zip(shorter, whole, strict=True)] == [True, True, False, True, True]
    with pytest.raises(UserError, match="prompt.max_length=11 is too small for item2index"):
        one("item2index", "Which {title}? {description}", "{item}", max_text_tokens=9, max_length=11)


def test_rows_depend_on_seed_and_epoch_alone():
    def ids(rows, epoch, order):
        return {row: rows.row(epoch, row).ids.tolist() for row in order}

    first, _ = rows_of(shipped())
    second, _ = rows_of(shipped())
    order = range(len(first))
    before = ids(first, 0, order)
    assert ids(first, 1, order) != before
    assert ids(first, 0, order) == before == ids(second, 0, reversed(order))
    other, _ = rows_of(shipped(), seed=1)
    assert ids(other, 0, order) != before
    assert first.num_tokens.tolist() == [len(before[row]) for row in order]


def test_a_sample_of_the_fusion_rows_is_drawn_once_by_the_seed():
    rows, _ = rows_of(shipped(("fusionseqrec",)), fusion_sample=2)
    again, _ = rows_of(shipped(("fusionseqrec",)), fusion_sample=2)
    assert len(rows) == 2
    assert rows.row(3, 0).ids.tolist() == again.row(3, 0).ids.tolist()
    spec = {"tasks": {"fusionseqrec": [{"ask": "{history}", "answer": "{item}"}]}}
    one_prompt = parse_task_templates(spec, "test", ("fusionseqrec",))
    seeds = [rows_of(one_prompt, fusion_sample=2, seed=seed)[0] for seed in range(5)]
    assert len({tuple(int(own.row(0, row).number[0]) for row in (0, 1)) for own in seeds}) > 1


def test_a_text_that_spells_a_special_token_is_plain_text():
    texts = AlignmentTexts(("", "end </s> here", "", "", ""), ("",) * 5)
    _, encoded = one("item2index", "{title}?", "{item}", texts=texts)
    assert encoded[0].ids.tolist().count(encoded[0].target[-1]) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "must be a mapping"),
        ({"tasks": {"item2idx": []}}, "unknown task 'item2idx'. Did you mean 'item2index'"),
        ({"tasks": {"item2index": []}}, "has no prompt for item2index"),
        ({"tasks": {"item2index": ["text"]}}, "must be {ask: TEXT, answer: TEXT}"),
        ({"tasks": {"item2index": [{"ask": "no slot", "answer": "{item}"}]}}, "must hold one or more of {title}"),
        ({"tasks": {"item2index": [{"ask": "{title}", "answer": "{title}"}]}}, "the answer '{title}' must hold"),
        ({"tasks": {"item2index": [{"ask": "{title}", "answer": "it is {item}"}]}}, "must be '{item}' alone"),
        ({"tasks": {"fusionseqrec": [{"ask": "{history} {titles}", "answer": "{item}"}]}}, "one history at most"),
    ],
)
def test_a_bad_task_template_is_one_line(spec, message):
    with pytest.raises(UserError) as caught:
        parse_task_templates(spec, "here", ("item2index",))
    assert message in str(caught.value) and "here" in str(caught.value)


def test_shipped_prompts_cover_every_task_and_fill_every_row():
    rows, tokenizer = rows_of(shipped())
    assert set(rows.tasks) == set(EVERY)
    text = [tokenizer.decode(rows.row(0, row).ids) for row in range(len(rows))]
    assert not [line for line in text if "{" in line]
    assert all(line.count("</s>") == 1 for line in text)


def test_every_step_of_a_mixture_has_rows_of_every_task():
    group = np.repeat([0, 1, 2], [300, 60, 120])
    size = np.concatenate([np.full(300, 20), np.arange(60) + 50, np.arange(120) + 100])
    plan = StepPlan(size, np.ones(480, dtype=int), batch=48, parts=2, seed=3, group=group)
    steps = [np.concatenate(step) for step in plan.epoch(5)]
    assert sorted(np.concatenate(steps)) == list(range(480))
    counts = np.array([np.bincount(group[rows], minlength=3) for rows in steps])
    assert len(steps) == 10
    assert abs(counts - [30, 6, 12]).max() <= 1


def test_only_rows_of_ilrec_tasks_are_marked():
    rows, tokenizer = rows_of(shipped(("item2index", "fusionseqrec")))
    seqrec = TrainRows(pairs_of(SEQUENCES, 20), rows="sequence", window=20)
    for ilrec_tasks in (["seqrec"], ["seqrec", "fusionseqrec"], []):
        batches = TaskBatches(seqrec, rows.encoder, rows, ilrec_tasks)
        names = ["seqrec"] * len(seqrec) + rows.tasks
        batch = batches.encode(0, np.arange(len(batches)))
        line = (batch.select // batch.input_ids.shape[1]).tolist()
        assert batch.ilrec_rows.tolist() == [names[row] in ilrec_tasks for row in line]


# ---- whole runs


TASKS = "seqrec,item2index,index2item"
MIXED = {
    "epochs": 2,
    "eval_step": 1,
    "train_batch_size": 120,
    "train.valid_users": 20,
    "save_steps": 3,
}


@pytest.fixture
def ring(tmp_path, monkeypatch):
    """The ring world with a title for each item, in a fresh working folder."""
    monkeypatch.chdir(tmp_path)
    sequences, identifiers = ring_world()
    folder = write_dataset(tmp_path / "dataset", "ring", sequences, identifiers)
    lines = ["item_id:token\ttitle:token_seq\tdescription:token_seq"]
    lines += [
        f"i{n}\t{WORDS[a]} thing {WORDS[b]}\t{'made of ' + WORDS[b] if n % 2 else ''}"
        for n, (a, b) in enumerate(identifiers, start=1)
    ]
    (folder / "ring.item").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(model="ILRec", **settings):
    return run_recbole_ilrec(model, "ring", config_dict={**QUICK, **settings})


def write_users(folder, **changes):
    sequences, _ = ring_world()
    content = {
        "user_explicit_preference": {f"u{u}": ["likes red", "likes blue"] for u in range(len(sequences))},
        "user_vague_intention": {
            "train": {
                f"u{u}": {"item": f"i{sequence[-3]}", "inters": [], "querys": ["wants red", "a red thing"]}
                for u, sequence in enumerate(sequences)
            }
        },
    }
    (folder / "dataset" / "ring" / "ring.user.json").write_text(json.dumps({**content, **changes}))


def test_a_mixture_with_item_texts_still_finds_the_next_item(ring):
    """With words in the vocabulary a model of 32 numbers a token needs far longer, so this one has 64."""
    (ring / "short.yaml").write_text(
        'tasks: {item2index: [{ask: "{title}", answer: "{item}"}], index2item: [{ask: "{item}", answer: "{title}"}]}'
    )
    wider = {"backbone.hidden_size": 64, "backbone.layers": 2, "backbone.tie_embeddings": False, "k": 1}
    learn = {"epochs": 24, "eval_step": 12, "train_batch_size": 64, "learning_rate": 5e-3, "train.ema": 0.0}
    exact = {"train.item_dropout": 0.0, "topk": [1, 5], "valid_metric": "NDCG@5", "num_beams": 10}
    result = run(tasks=TASKS, **{"alignment.template": "short.yaml"}, **wider, **learn, **exact)
    assert result["test_result"]["hit@1"] == 1.0


def test_texts_are_cut_and_histories_drawn_as_it_is_set(ring):
    lengths = []
    for most in (2, 50):
        own = {"alignment.max_text_tokens": most, "alignment.fusion_sample": 7, "tasks": ["seqrec", "fusionseqrec"]}
        config = Config("LCRec", "ring", None, {**QUICK, **own})
        dataset = build_data(config).train._dataset
        model = config.model_class(config, dataset)
        pairs = to_pairs(dataset.inter_feat, model)
        rows = TrainRows(pairs, rows="sequence", window=20)
        batches, _, _ = task_batches(config, model, model.alignment, rows, pairs)
        assert batches.tasks.tasks == ["fusionseqrec"] * 7
        lengths.append(batches.tasks.num_tokens.sum())
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("ilrec_tasks", [["seqrec"], ["fusionseqrec"]])
def test_a_mixtures_loss_is_ilrecs_on_its_rows_and_cross_entropy_on_the_others(ring, monkeypatch, ilrec_tasks):
    write_users(ring)
    compute, seen = ILRec.loss_terms, []

    def compared(self, batch, *args, **kwargs):
        terms = compute(self, batch, *args, **kwargs)
        inside = batch.ilrec_rows.nonzero()[:, 0]
        names = ("select", "targets", "node", "target")
        alone = replace(batch, ilrec_rows=None, **{name: getattr(batch, name)[inside] for name in names})
        states = self.backbone.layer_states(batch.input_ids, batch.select)
        ce = cross_entropy(states.head(states.final), batch.targets)[~batch.ilrec_rows]
        seen.append((len(inside), len(ce), terms.total.item(), (compute(self, alone).total + ce.sum()).item()))
        legal = self._legal(batch)
        assert set(legal.row.tolist()) == set(batch.node.ge(0).nonzero()[:, 0].tolist())
        return terms

    monkeypatch.setattr(ILRec, "loss_terms", compared)
    exact = {"backbone.dropout": 0.0, "ilrec.cpd_share": 1.0, "max_steps": 2, "eval_step": 9}
    run(**{**MIXED, **exact, "tasks": ["seqrec", *EVERY], "ilrec_tasks": ilrec_tasks})
    assert len(seen) == 2
    for inside, outside, total, wanted in seen:
        assert inside and outside
        assert total == pytest.approx(wanted, rel=1e-5)


def test_a_pretrained_model_learns_tasks_with_its_own_tokenizer(ring):
    import transformers

    tokenizer = build_tokenizer([], ["what is it? a red thing, a blue one"])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, eos_token_id=2, **sizes)
    transformers.Qwen2ForCausalLM(config).save_pretrained(ring / "qwen")
    tokenizer.save_pretrained(ring / "qwen")
    few = {"max_steps": 2, "eval_step": 9, "train_batch_size": 40, "num_beams": 10}
    assert run("LCRec", backbone="./qwen", tasks=TASKS, **few)["test_result"]


class Interrupted(Exception):
    """Stands for a power cut."""


def test_an_interrupted_mixture_ends_with_the_bits_of_a_straight_one(ring, monkeypatch):
    write_users(ring)
    settings = {**MIXED, "tasks": ["seqrec", *EVERY], "train.layer_losses": True, "alignment.fusion_sample": 30}
    straight = run(**settings)
    (ring / "saved").rename(ring / "straight")
    compute = StepTrainer.compute_loss

    def cut(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise Interrupted
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StepTrainer, "compute_loss", cut)
        run(**settings)
    folder = next(ring.glob("saved/ILRec-*"))
    resumed = run(resume_from_checkpoint=str(folder), **settings)
    for key in ("test_result", "best_valid_result", "layer_losses"):
        assert resumed[key] == straight[key]
    assert [round(entry["epoch"]) for entry in resumed["layer_losses"]] == [1, 2]
    wanted, got = (load_state(checkpoints(run)[-1])["model"] for run in (next(ring.glob("straight/ILRec-*")), folder))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    with pytest.raises(UserError, match="another training rows"):
        run(resume_from_checkpoint=str(folder), **{**settings, "tasks": ["seqrec"]})


def test_a_preference_model_has_the_mixture_in_its_supervised_stage(ring, monkeypatch):
    monkeypatch.setattr(StepTrainer, "_save_checkpoint", lambda *a, **k: None)
    short = {"epochs": 1, "max_steps": 2, "preference.epochs": 1, "preference.examples": 20}
    assert run("DPO", tasks=TASKS, **short)["test_result"]
    assert run("DPO", **short)["test_result"]
    assert len(list(ring.glob("saved/cache/supervised/*"))) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "seqrec,item2idx"}, "tasks.1='item2idx' is not allowed"),
        ({"tasks": ["item2index"]}, "name seqrec"),
        ({"tasks": ["seqrec", "item2index", "item2index"]}, "each other task once"),
        ({"tasks": TASKS, "paradigm": "bigrec"}, "use --paradigm=lcrec"),
        ({"tasks": "seqrec,itemsearch"}, "ring.user.json does not exist"),
        ({"tasks": TASKS, "alignment.template": "lcrek"}, "Available: lcrec"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(ring, settings, message):
    with pytest.raises(UserError) as caught:
        run(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_need_texts(ring):
    (ring / "dataset" / "ring" / "ring.item").unlink()
    with pytest.raises(UserError, match=r"no item texts, which tasks=\['item2index'\] need"):
        run(tasks="seqrec,item2index")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no object 'user_explicit_preference'"),
        ('{"user_explicit_preference": {"u1": []}}', "has no object 'user_vague_intention'"),
        ('{"user_explicit_preference": {}, "user_vague_intention": {}}', "has no object 'train'"),
        ('{"user_explicit_preference": {"x": ["a"]}, "user_vague_intention": {"train": {}}}', "names no user"),
        ('{"user_explicit_preference": {"u1": [3]}, "user_vague_intention": {"train": {}}}', "user 'u1'"),
        ('{"user_explicit_preference": {}, "user_vague_intention": {"train": {"u1": {"querys": ["a"]}}}}', "user 'u1'"),
        ('{"user_explicit_preference": {"u1": ["a"]}, "user_vague_intention": {"train": {}}}', "has no training row"),
    ],
)
def test_a_bad_user_file_is_one_line(ring, content, message):
    (ring / "dataset" / "ring" / "ring.user.json").write_text(content)
    with pytest.raises(UserError) as caught:
        run(tasks="seqrec,itemsearch", max_steps=1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_default_is_seqrec_alone():
    settings = build_settings({}).alignment
    assert settings.tasks == settings.ilrec_tasks == ("seqrec",)
