"""A run's model as a folder that transformers and peft load without this package: the verb ``export``."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import Data
from recbole_ilrec.decoding.users import rank_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.semantic_id import write_index
from recbole_ilrec.identifiers.title import TITLE_FIELDS
from recbole_ilrec.models.item_index import item_identifiers
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.preparation.files import install, share, staging_folder
from recbole_ilrec.report.card import model_card, program
from recbole_ilrec.report.runs import certified
from recbole_ilrec.runs.result_file import RESULT
from recbole_ilrec.runs.trained import best_state, load_trained
from recbole_ilrec.schema import Ranking

logger = logging.getLogger(__name__)

GOLDEN_USERS = 8
INDEX = "index.json"
FILES = (
    ("items.json", "the catalogue: `id`, `title`, `tokens` in a history, `answer` as it is generated"),
    ("trie.safetensors", "the prefix trie of all answers in flat arrays (see below)"),
    ("prompt.json", "token ids before, between and after the items of a history, and their texts"),
    ("generation_config.json", "the beam search"),
    (INDEX, "semantic IDs alone: LC-Rec's index file (not for titles)"),
    ("golden.json", "histories with the lists and scores that this model gives, to check another engine against"),
)
TRIE_NOTE = """
## The trie

Node 0 is the root. The edges of node n are `indptr[n] : indptr[n + 1]`; edge e carries `token[e]` and leads to node
e + 1. `leaf[n]` is the number of the answer that ends at node n, else -1; answer j belongs to the rows
`item_order[leaf_start[j] : leaf_start[j + 1]]` of `items.json`, which are counted from 1.
"""


def export_run(run: Path, out: Path, *, merge: bool = False) -> Path:
    """Write the best model of a run.

    Args:
        run: the run's folder, or its ``best/``.
        out: the folder to make.
        merge: fold an adapter into the weights. Weights of four bits are turned back into ordinary ones first, with the
            values that the adapter was trained on.

    Returns:
        ``out``.

    Raises:
        UserError: no such run, one that was written by an older version, or ``out`` is there already.
    """
    best, state = best_state(run)
    if "settings" not in state:
        raise UserError(f"{run} is no run of a language model: only those can be exported.")
    if state["settings"]["task"] == "candidates":
        raise UserError(f"{run} chooses among candidates; only runs that rank all items (task=full) can be exported.")
    if out.exists():
        raise UserError(f"--out={out} is there already: give the name of a new folder.")
    trained = load_trained(best, state, dequantise=merge)
    config, data, model = trained.config, trained.data, trained.model
    if merge:
        model.backbone.merge_adapter()
    logger.info("Exporting %s to %s", best, out)
    with staging_folder(out) as staging:
        folder = staging / "model"
        folder.mkdir()
        model.backbone.save_pretrained(folder)
        _generation(model).save_pretrained(folder)
        _write(folder / "prompt.json", _prompt(config, model))
        _write(folder / "items.json", _items(data, model))
        catalog = model.catalog
        arrays = {**vars(catalog.trie), "item_order": catalog.item_order, "leaf_start": catalog.leaf_start}
        save_file({name: array.contiguous() for name, array in arrays.items()}, folder / "trie.safetensors")
        _write(folder / "golden.json", _golden(data, model))
        if config.settings.paradigm == "lcrec":
            dataset = data.train._dataset
            names = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
            write_index(folder / INDEX, names, item_identifiers(config, dataset))
        (folder / "README.md").write_text(_card(config, model, state, best) + TRIE_NOTE, encoding="utf-8")
        for path in filter(Path.is_file, folder.iterdir()):
            share(path)
        install(folder, out)
    return out


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _generation(model: GenerativeRecommender) -> Any:
    """Beams that compete by the sum of their log-probabilities, as this package's do."""
    from transformers import GenerationConfig

    decode, tokenizer = model.settings.decode, model.backbone.tokenizer
    beams = min(decode.num_beams, model.catalog.num_leaves)
    return GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=model.catalog.depth,
        length_penalty=0.0,
        do_sample=False,
        renormalize_logits=decode.renormalise,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _prompt(config: Config, model: GenerativeRecommender) -> dict[str, Any]:
    template = model.encoder.template
    before, after = template.variants[0]
    return {
        **model.encoder.pieces(),
        "max_items": config["MAX_ITEM_LIST_LENGTH"],
        "max_length": model.encoder.max_length,
        "text": {"before": before, "separator": template.separator, "after": after},
    }


def _items(data: Data, model: GenerativeRecommender) -> list[dict[str, Any]]:
    dataset = data.train._dataset
    tokens, texts = dataset.field2id_token[dataset.iid_field], dataset.item_texts
    return [
        {
            "id": str(tokens[item]),
            "title": next((text for field in TITLE_FIELDS if (text := texts[item].get(field))), None),
            "tokens": model.encoder.item(item).tolist(),
            "answer": model.encoder.answer(item).tolist(),
        }
        for item in range(1, len(tokens))
    ]


def _golden(data: Data, model: GenerativeRecommender) -> list[dict[str, Any]]:
    """What beam search over the trie gives for the first test users, their histories not left out."""
    dataset, encoder = data.test._dataset, model.encoder
    pairs = to_pairs(dataset.inter_feat, model)
    histories = pairs.histories(np.arange(min(GOLDEN_USERS, len(pairs))))
    decode = model.settings.decode.model_copy(update={"exclude_history": False})
    device = model.backbone.device
    ranking = rank_users(model.backbone, encoder, histories, decode, batch_size=len(histories), device=device)
    names = dataset.field2id_token[dataset.iid_field]
    return [
        {
            "history": [str(names[item]) for item in history],
            "prompt": encoder.prompt(history).tolist(),
            "top": _listed(ranking, row, model, names),
        }
        for row, history in enumerate(histories)
    ]


def _listed(ranking: Ranking, row: int, model: GenerativeRecommender, names: Any) -> list[dict[str, Any]]:
    catalog, listed = model.catalog, []
    for leaf, score in zip(ranking.leaf[row].tolist(), ranking.score[row].tolist(), strict=True):
        if leaf >= 0:
            items = catalog.items_of(leaf).tolist()
            listed.append({"items": [str(names[item]) for item in items], "score": score})
    return listed


def _card(config: Config, model: GenerativeRecommender, state: Mapping[str, Any], best: Path) -> str:
    settings, backbone = config.settings, model.backbone
    result = best.parent / RESULT
    outcome: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    certificate = outcome.get("evaluation")
    adapter = backbone.adapter is not None
    own = settings.backbone
    base = str(backbone.model.name_or_path or own.path) if own.path else None
    facts = {
        "model": f"{config.model} ({settings.paradigm}, objective {settings.objective})",
        "dataset": f"{config.dataset}, {model.catalog.num_items} items",
        "backbone": settings.backbone_name + (f", {own.quantization}" if own.quantization else ""),
        "adapter": f"LoRA, rank {settings.adapter.r}" + ("" if adapter else ", merged")
        if settings.adapter.lora
        else "-",
        "seed": config["seed"],
        "numbers of the test part": certified(certificate) if certificate else "not known",
        "numbers of the validation part": _validated(certificate or {}),
        "command": outcome.get("command", "-"),
        "versions": ", ".join(f"{name} {number}" for name, number in outcome.get("versions", {}).items()) or "-",
    }
    quantised = bool(own.quantization) and not own.dequantise
    return model_card(
        f"{config.model} on {config.dataset}",
        base=own.path,
        adapter=adapter,
        facts=facts,
        metrics={"Validation": state.get("valid_result"), "Test": outcome.get("test")},
        notes=_how_it_differs(model),
        files=FILES,
        code=program(adapter, str(base), own.dtype, quantised, settings.decode.exclude_history),
    )


def _validated(certificate: Mapping[str, Any]) -> str:
    part = certificate.get("valid")
    if not part:
        return "not known"
    why = f" ({part['limited_by']})" if part["limited_by"] else ""
    return f"{part['rows_evaluated']:,} of {part['rows_in_split']:,} rows{why}, otherwise likewise"


def _how_it_differs(model: GenerativeRecommender) -> list[str]:
    """Where the lists of the card's program are not those of the metrics."""
    notes = []
    if model.title_ranker is not None:
        notes.append(
            f"These numbers are of bigrec.ranker={model.settings.bigrec.ranker}, which compares vectors of titles; the "
            "program below has the beam search alone, so its lists are others."
        )
    if model.settings.decode.exclude_history:
        notes.append(
            "Items of the history are left out. The program below does it after its search, so its lists are shorter; "
            "the lists of golden.json keep them: recommend(history, exclude_history=False)."
        )
    return notes
