"""The weights of a language model's best validation, kept in ``best`` in its run's folder."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_ilrec.configuration.outcome import data_key, from_anywhere, own_texts, request_of
from recbole_ilrec.errors import UserError
from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, load_state, plain_entry, save_state
from recbole_ilrec.runtime.resumption import BEST
from recbole_ilrec.runtime.shards import whole_on_first
from recbole_ilrec.runtime.weights import load_weights, weights
from recbole_ilrec.settings.model import SFT
from recbole_ilrec.training.loop import BASE, IDENTIFIERS

logger = logging.getLogger(__name__)

WINDOW = "window"
"""In what is kept: items of a history that the model reads."""
DATA = "data"
"""In what is kept: names the data that the model was trained on."""


def save_best(
    config: Any, model: GenerativeRecommender, run_folder: Path, score: float, result: Mapping[str, float] | None
) -> None:
    """Keep a model's weights as the best of its run; all processes call it.

    Args:
        config: the run's settings.
        model: its weights are taken as they are now.
        run_folder: where ``best`` is written.
        score: validation score of these weights.
        result: their validation metrics, ``None`` without a validation.
    """
    best = whole_on_first(weights(model))
    if not processes.is_first():
        return
    content = {
        "model": best,
        BASE: model.frozen_key,
        IDENTIFIERS: model.catalog.digest,
        WINDOW: config["MAX_ITEM_LIST_LENGTH"],
        DATA: data_key(config),
        "settings": from_anywhere(config.settings).model_dump(mode="json"),
        "request": request_of(config),
        "own_texts": own_texts(config),
        "valid_score": score,
        "valid_result": result,
    }
    save_state(run_folder / BEST, content, kind=config["model"])
    logger.info("%s: %s", set_color("Saving current", "blue"), run_folder / BEST)


def given_weights(config: Any) -> Path | None:
    """The weights that training begins with, where a setting names a run or the folder of its best weights.

    Returns:
        their folder; ``None`` where none is named, ``train.init_from=sft`` included.
    """
    settings = config.settings
    given = settings.preference.checkpoint if settings.objective in PREFERENCES else settings.train.init_from
    if not given or given == SFT:
        return None
    folder = Path(given)
    return folder / BEST if (folder / BEST / STATE).is_file() else folder


def on_same_data(config: Any, folder: Path) -> bool | None:
    """Whether the weights kept in ``folder`` were trained on this run's data; ``None``: older versions did not say.

    Raises:
        UserError: no checkpoint.
    """
    data = plain_entry(folder, DATA)
    return None if data is None else data == data_key(config)


def begin_with(config: Any, model: GenerativeRecommender, folder: Path, kind: str | None) -> None:
    """Put the weights of :func:`given_weights` into a model that has not been trained yet.

    Args:
        config: the run's settings.
        model: takes the weights; its loss has none meanwhile.
        folder: where they are.
        kind: refuse those of any other model than this.

    Raises:
        UserError: no weights of a language model, or of another base model, other identifiers or shapes; or trained on
            other data.
    """
    if on_same_data(config, folder) is False:
        raise UserError(
            f"{folder} was trained on other data: another file of interactions or texts, or other settings that select "
            "from them, so what is to be tested may have been in it. Give a run on the same data, or none to train one."
        )
    state = load_state(folder, kind=kind)
    if "settings" not in state:
        raise UserError(f"{folder} holds no language model: give the folder of a run of one.")
    of_loss = "objective."  # weights of a loss of one's own are no part of the language model
    kept = {name: weight for name, weight in state["model"].items() if not name.startswith(of_loss)}
    put_back(model, {**state, "model": kept}, folder)
    logger.info("Beginning with the weights in %s", folder)


def load_best(config: Any, model: GenerativeRecommender, folder: Path) -> None:
    """Put the weights kept in ``folder`` back into a model.

    Raises:
        UserError: they are of another kind or shape, of other item identifiers, or adapters of another base model.
    """
    put_back(model, load_state(folder, kind=config["model"]), folder)
    logger.info("Loading model structure and parameters from %s", folder)


def put_back(
    model: GenerativeRecommender, state: Mapping[str, Any], folder: Path, *, dequantised: bool = False
) -> None:
    """Load what :func:`save_best` kept into a model whose item tokens mean the same; older versions did not say.

    Args:
        model: built as the run built it.
        state: what was kept.
        folder: where it was kept, for messages.
        dequantised: the weights under the adapters are other numbers than in training, on purpose.

    Raises:
        UserError: the tokens mean other items, which the shapes of the weights need not show; the base model under
            adapters is another one; or the shapes differ.
    """
    if not dequantised and state.get(BASE, model.frozen_key) != model.frozen_key:
        raise UserError(f"{folder} was trained on another {BASE}: give --backbone and its settings as they were.")
    if state.get(IDENTIFIERS, model.catalog.digest) != model.catalog.digest:
        raise UserError(
            f"{folder} was trained with other {IDENTIFIERS}, so its weights are of other items: give the data, and the "
            "--index_file or the seed and the index.* settings, that they came from."
        )
    load_weights(model, state["model"], folder)
