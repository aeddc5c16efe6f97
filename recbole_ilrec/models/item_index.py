"""Where the item identifiers of a run come from.

Semantic IDs from an index file, or from an RQ-VAE trained once and cached by content; titles from the item texts.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from recbole_ilrec.collaborative.reward_model import item_vectors, note_cost, reward_key
from recbole_ilrec.configuration.outcome import contents, from_anywhere
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.base import ItemIdentifiers
from recbole_ilrec.identifiers.item_vectors import encoder_vectors, tfidf_vectors
from recbole_ilrec.identifiers.semantic_id import SemanticIdentifiers, collision_report, read_index, write_index
from recbole_ilrec.identifiers.title import TITLE_FIELDS, TitleIdentifiers, item_titles, joined_texts
from recbole_ilrec.identifiers.uniqueness import learn_identifiers
from recbole_ilrec.models.pretrained import local_backbone
from recbole_ilrec.preparation.files import made_once, write_atomically
from recbole_ilrec.report.costs import note_earlier, note_made, spent_on
from recbole_ilrec.report.record import Stopwatch, machine
from recbole_ilrec.settings import IndexSettings

logger = logging.getLogger(__name__)


@spent_on("identifiers")
def identifiers_of(config: Any, dataset: Any) -> ItemIdentifiers:
    """Identifiers of the run's paradigm.

    Raises:
        UserError: a bad index file, or no texts where they are needed.
    """
    if config.settings.paradigm == "bigrec":
        return title_identifiers(config, dataset)
    return SemanticIdentifiers(item_identifiers(config, dataset))


def title_identifiers(config: Any, dataset: Any) -> TitleIdentifiers:
    """Titles of the dataset's items.

    Raises:
        UserError: no item has a title.
    """
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    titles, missing = item_titles(dataset.item_texts[1:], tokens)
    if missing == len(titles):
        raise UserError(
            f"dataset '{config['dataset']}' has no item titles, which paradigm=bigrec needs: none of the fields "
            f"{', '.join(TITLE_FIELDS)} of {config['dataset']}.item holds text. Put that file beside the data with a "
            "column title:token_seq, or use --paradigm=lcrec."
        )
    if missing:
        logger.warning("%d of %d items have no title: their ids are used instead", missing, len(titles))
    return TitleIdentifiers(tuple(titles), config.settings.bigrec.max_title_tokens)


def item_identifiers(config: Any, dataset: Any) -> list[tuple[str, ...]]:
    """Identifier of each real item, in the order of internal item ids 1 .. I.

    An index file given by ``index_file``, else ``<dataset>.index.json`` beside the data, else an RQ-VAE over the items'
    vectors, cached in ``cache_dir`` under a hash of what it was learned from.

    Raises:
        UserError: a bad index file, or neither an index nor texts to learn one from.
    """
    settings: IndexSettings = config.settings.index
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    path = index_file(config)
    if path is not None:
        identifiers = read_index(path, tokens)
    else:
        path, identifiers = _learned(config, dataset, tokens, settings)
    logger.info("Item identifiers from %s: %s", path, collision_report(identifiers).summary)
    return identifiers


def index_file(config: Any) -> Path | None:
    """The index file that is given or stands beside the data, ``None`` where semantic IDs are learned."""
    beside = Path(config["data_path"]) / f"{config['dataset']}.index.json"
    given = config.settings.index.file
    return Path(given) if given else beside if beside.is_file() else None


def _learned(
    config: Any, dataset: Any, tokens: list[str], settings: IndexSettings
) -> tuple[Path, list[tuple[str, ...]]]:
    texts, wherever = joined_texts(dataset.item_texts[1:]), from_anywhere(config.settings)
    what = {
        "settings": wherever.index.model_dump(mode="json"),
        "seed": config["seed"],
        "items": tokens,
        "texts": texts if settings.embedding in ("tfidf", "encoder") else dataset.content_key(),
        **({"reward": reward_key(config, dataset)} if settings.embedding == "cf" else {}),
        "backbone": wherever.backbone.model_dump(mode="json") if settings.embedding == "backbone" else None,
        **({"read from": read} if (read := _read_from(config)) else {}),
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(config["cache_dir"]) / f"{config['dataset']}-{key}.index.json"
    with made_once(path):
        costs = path.with_suffix(".costs.json")
        if path.is_file():
            _note_costs(config, dataset, path, costs)
            return path, read_index(path, tokens)
        watch = Stopwatch()
        vectors = index_vectors(config, dataset, texts, settings)
        if settings.embedding == "cf":
            watch = Stopwatch()  # the reward model keeps its own account
        logger.info("Learning semantic IDs of %d items from %s vectors (once; cached)", len(tokens), settings.embedding)
        identifiers = learn_identifiers(vectors, settings, config["seed"], progress=config["show_progress"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, tokens, identifiers)
        with write_atomically(costs) as stream:
            of_texts = hashlib.sha256(json.dumps(what["texts"]).encode()).hexdigest()
            about = {**what, "items": len(tokens), "texts": of_texts}
            json.dump({**watch.read(), "learned_from": about, **machine()}, stream, indent=1)
        note_made(path)
        return path, identifiers


def _note_costs(config: Any, dataset: Any, path: Path, costs: Path) -> None:
    """Count for this run what learning its identifiers took another one; older versions did not keep it."""
    if costs.is_file():
        try:
            note_earlier(json.loads(costs.read_text(encoding="utf-8")), of=path)
        except (ValueError, TypeError, AttributeError):
            logger.warning("%s is garbled: what learning the identifiers cost is not counted", costs)
    if config.settings.index.embedding == "cf":
        note_cost(config, dataset)


def _read_from(config: Any) -> dict[str, str]:
    """What holds the model behind the items' vectors: another one under the same name makes other vectors."""
    section = {"backbone": "backbone", "encoder": "index"}.get(config.settings.index.embedding)
    return contents(config.settings, section, but="index.file") if section else {}


def index_vectors(config: Any, dataset: Any, texts: list[str], settings: IndexSettings) -> torch.Tensor:
    """Vectors of the real items, ``[I, d]``, of the kind that ``index.embedding`` names.

    Raises:
        UserError: they come from texts and there are none, or something they need is not given.
    """
    if settings.embedding == "cf":
        return item_vectors(config, dataset)
    if not any(texts):
        name = config["dataset"]
        raise UserError(
            f"dataset '{name}' has no item texts and no index file: put {name}.item with titles or {name}.index.json "
            "(LC-Rec format) beside the data, give --index_file=PATH, or learn from clicks with --index.embedding=cf."
        )
    if settings.embedding == "tfidf":
        return tfidf_vectors(texts, settings.dimension, config["seed"])
    how: dict[str, Any] = {"device": config["device"], "progress": config["show_progress"]}
    if settings.embedding == "backbone":
        from recbole_ilrec.backbone.causal_lm import pooled_states

        return pooled_states(local_backbone(config), texts, **how)
    if not settings.encoder:
        raise UserError("index.embedding=encoder needs --index.encoder=FOLDER, a sentence encoder of Hugging Face.")
    return encoder_vectors(texts, settings.encoder, **how)
