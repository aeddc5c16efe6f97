"""The model card of an exported model, with a program that recommends from it by transformers and peft alone.

Knows plain values only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LOAD_MODEL = """\
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
"""

LOAD_ADAPTER = """\
from peft import PeftModel

base = AutoModelForCausalLM.from_pretrained({base!r}, dtype={dtype!r}{quantised})
if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
    base.resize_token_embeddings(len(tokenizer))  # the item tokens; their rows are in the adapter
model = PeftModel.from_pretrained(base, folder).eval()
"""

QUANTISED = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={dtype!r}
)"""

PROGRAM = """\
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

folder = Path(".")  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
{load}
beams = GenerationConfig.from_pretrained(folder)
beams.return_dict_in_generate = beams.output_scores = True
prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
items = {{item["id"]: item for item in json.loads((folder / "items.json").read_text(encoding="utf-8"))}}

named, children = {{}}, {{}}  # complete answers, and what may follow a prefix
for item in items.values():
    answer = tuple(item["answer"])
    named.setdefault(answer, []).append(item["id"])
    for length in range(len(answer)):
        children.setdefault(answer[:length], set()).add(answer[length])


def recommend(history, exclude_history={exclude}):
    \"\"\"Groups of items that share an identifier, best first, each with its log-probability.\"\"\"
    seen = set(history) if exclude_history else set()
    ids = list(prompt["before"])
    for place, item in enumerate(history := history[-prompt["max_items"] :]):
        last = place == len(history) - 1 and prompt["after"]
        ids += items[item]["tokens"] + ([] if last else prompt["separator"])
    ids += prompt["after"]

    def allowed(_, sequence):
        return sorted(children.get(tuple(sequence[len(ids) :].tolist()), {{tokenizer.eos_token_id}}))

    start = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            generation_config=beams,
            prefix_allowed_tokens_fn=allowed,
        )
    best = []
    for sequence, score in zip(found.sequences[:, len(ids) :].tolist(), found.sequences_scores.tolist()):
        answers = [tuple(sequence[:length]) for length in range(1, len(sequence) + 1)]
        best += [(named[answer], score) for answer in answers if answer in named]
    return [(left, score) for group, score in best if (left := [item for item in group if item not in seen])]
"""


def program(adapter: bool, base: str, dtype: str, quantised: bool, excludes: bool) -> str:
    """A Python program that loads the folder it stands in and defines ``recommend(history)``.

    Args:
        adapter: whether the folder holds an adapter, and not whole weights.
        base: where the adapter's base model is.
        dtype: precision of the base's weights.
        quantised: whether the base is to be loaded in four bits.
        excludes: whether it leaves items of the history out where it is not told.
    """
    four_bits = QUANTISED.format(dtype=dtype) if quantised else ""
    load = LOAD_ADAPTER.format(base=base, dtype=dtype, quantised=four_bits) if adapter else LOAD_MODEL
    text = PROGRAM.format(load=load, exclude=excludes)
    return text if quantised and adapter else text.replace("AutoTokenizer, BitsAndBytesConfig,", "AutoTokenizer,")


def model_card(
    title: str,
    *,
    base: str | None,
    adapter: bool,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float] | None],
    notes: Sequence[str] = (),
    files: Sequence[tuple[str, str]],
    code: str,
) -> str:
    """A ``README.md`` as the model hub shows it.

    Args:
        title: of the card.
        base: the model it was trained from; ``None`` for one trained from scratch.
        adapter: whether the folder holds an adapter.
        facts: what was trained on what, e.g. the command, as rows of a table.
        metrics: split -> metric -> value.
        notes: sentences about the metrics.
        files: name and content of each file.
        code: see :func:`program`.
    """
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    head += [f"base_model: {base}"] if base else []
    lines = [*head, "tags: [recommendation, generative-retrieval, ilrec]", "---", "", f"# {title}", ""]
    licence = f"the licence of {base} and " if base else ""
    lines += [
        f"A language model that recommends the next item. Its weights fall under {licence}the terms of its data.",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items()), ""]
    for split, values in metrics.items():
        if values:
            lines += [f"**{split}**: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), ""]
    lines += [*notes, ""] if notes else []
    lines += ["## Files", "", *(f"* `{name}`: {content}" for name, content in files), ""]
    lines += ["## Use", "", "```python", code.rstrip("\n"), "```", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
