"""RecBole's models by their settings: built, and put back as a checkpoint holds them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.data.dataset import SequentialDataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.model.sequential_recommender.caser import Caser as RecBoleCaser
from torch import Tensor

from recbole_ilrec.collaborative.faster_caser import Caser
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.errors import UserError


def build_model(config: Config, dataset: SequentialDataset) -> AbstractRecommender:
    """The model that ``config`` names, on its device; RecBole's complaints about sizes become a :class:`UserError`."""
    faster = config.model_class is RecBoleCaser and config["device"].type == "cpu"
    try:
        model = (Caser if faster else config.model_class)(config, dataset)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{config.model} cannot be built with these settings: {error}") from None
    return model.to(config["device"])


def load_model(model: AbstractRecommender, state: Mapping[str, Any], source: Path) -> None:
    """Put weights and counts of a checkpoint back; a mismatch becomes a :class:`UserError` that names ``source``."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{source} does not fit this model and dataset: {detail} Use the settings and data it was trained with."
        ) from None
    counts = state.get("other_parameter") or {}
    here = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in counts.items()}
    model.load_other_parameter(here)


def items_key(dataset: SequentialDataset) -> str:
    """SHA-256 of the item tokens in the order of their internal ids: equal where weights of items can be shared."""
    tokens = dataset.field2id_token[dataset.iid_field].tolist()
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
