"""Item texts to vectors for the quantiser: tf-idf or a sentence encoder.

Rows are in the order of the texts and have L2 length 1; an item without text gets a row of zeros. Vectors of a backbone
or of a collaborative-filtering model come from their own packages; the quantiser centres and scales whatever it is
given, so no common unit is needed.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from recbole_ilrec.errors import UserError

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Longest text given to a sentence encoder, in tokens, unless the encoder allows fewer."""


def tfidf_weights(texts: Sequence[str]) -> csr_matrix:
    """Tf-idf of the words: ``[I, words]`` float32, rows of L2 length 1, zeros where a text holds no word.

    Raises:
        ValueError: no text holds a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, strip_accents="unicode", dtype=np.float32)
    return vectorizer.fit_transform(texts)


def tfidf_vectors(texts: Sequence[str], dimension: int, seed: int) -> Tensor:
    """Tf-idf of the words, reduced by truncated SVD (latent semantic analysis).

    A vocabulary of at most ``dimension`` words is kept as it is: an SVD would only rotate it.

    Args:
        texts: one text per item.
        dimension: most columns wanted.
        seed: of the randomised SVD.

    Returns:
        ``[I, D]`` float32 with D = min(dimension, words, items).

    Raises:
        UserError: when no text holds a word.
    """
    try:
        weights = tfidf_weights(texts)
    except ValueError as error:
        raise UserError(
            f"No word in the texts of {len(texts)} items, so tf-idf vectors cannot be made. Give the items titles, or"
            " set index.embedding=cf (needs no texts) or index.file."
        ) from error
    _report_empty(np.flatnonzero(np.diff(weights.indptr) == 0))
    if weights.shape[1] <= dimension:
        vectors = weights.toarray()
    else:
        from sklearn.decomposition import TruncatedSVD

        components = min(dimension, len(texts))
        vectors = TruncatedSVD(components, random_state=seed).fit_transform(weights)
    return functional.normalize(torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)))


def encoder_vectors(
    texts: Sequence[str],
    folder: str,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Mean of a sentence encoder's last hidden states over the tokens of each text, padding left out.

    Args:
        texts: one text per item.
        folder: folder of a Hugging Face model with its tokenizer, or a hub id. Weights must be safetensors.
        device: where it computes.
        batch_size: texts of a forward pass; the result does not depend on it (up to rounding).
        progress: show a bar on stderr.

    Returns:
        ``[I, H]`` float32.

    Raises:
        UserError: when the folder is missing or holds no such model.
    """
    tokenizer, model = _load_encoder(folder)
    model = model.to(device).eval()
    longest = min(MAX_TOKENS, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    _report_empty(empty)
    by_length = sorted(set(range(len(texts))) - set(empty), key=lambda row: (len(texts[row]), row))
    starts = range(0, len(by_length), batch_size)
    for start in tqdm(starts, desc="item vectors", unit="batch", disable=not progress):
        rows = by_length[start : start + batch_size]
        encoded = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            states = model(**encoded).last_hidden_state.float()
        kept = encoded["attention_mask"].unsqueeze(-1).to(states.dtype)
        vectors[rows] = ((states * kept).sum(1) / kept.sum(1).clamp_min(1)).cpu()
    return functional.normalize(vectors)


def _report_empty(rows: Sequence[int] | np.ndarray) -> None:
    if len(rows):
        logger.warning("%d items have no text to embed: their vectors are zero", len(rows))


def _load_encoder(folder: str) -> tuple[Any, Any]:
    path = Path(folder).expanduser()
    looks_local = folder.startswith((".", "~", "/")) or folder.count("/") > 1
    if looks_local and not path.is_dir():
        raise UserError(
            f"index.encoder={folder!r}: no such folder. Give the folder of a Hugging Face sentence encoder"
            " (config.json, tokenizer, model.safetensors), a hub id, or set index.embedding=tfidf."
        )
    from transformers import AutoModel, AutoTokenizer

    name = str(path) if path.is_dir() else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"index.encoder={folder!r} cannot be loaded ({reason}). Give the folder of a Hugging Face model with its"
            " tokenizer and safetensors weights, a hub id that can be reached, or set index.embedding=tfidf."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model
