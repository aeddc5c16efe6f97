"""A finished run's best model with the data it was trained on, ready to be asked: for the verbs that use one."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.model.abstract_recommender import AbstractRecommender

from recbole_ilrec.collaborative.model import build_model, items_key, load_model
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.configuration.lookup import find_model, read_of
from recbole_ilrec.configuration.outcome import OUTCOME_FREE, own_texts
from recbole_ilrec.data.dataset import Data, build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.runs.result_file import GAMMA, RESULT
from recbole_ilrec.runtime.checkpoint import STATE, load_state
from recbole_ilrec.runtime.imports import quick_imports
from recbole_ilrec.runtime.resumption import BEST
from recbole_ilrec.settings import Settings

logger = logging.getLogger(__name__)

REQUEST = "request"


@dataclass(frozen=True)
class Trained:
    """A model with its best weights, in evaluation mode.

    Attributes:
        folder: its ``best/``.
        state: what is kept there.
        config: the settings it was trained with.
        data: its data, read again.
        model: a :class:`~recbole_ilrec.models.model.GenerativeRecommender` or one of RecBole's models.
    """

    folder: Path
    state: Mapping[str, Any]
    config: Config
    data: Data
    model: AbstractRecommender


def best_state(run: Path) -> tuple[Path, dict[str, Any]]:
    """Where the best weights of a run are, and what is kept with them.

    Args:
        run: the run's folder, or its ``best/``.

    Raises:
        UserError: no run, or one of a version that did not keep what it was asked for.
    """
    folder = run / BEST if (run / BEST / STATE).is_file() else run
    state = load_state(folder)
    if REQUEST not in state:
        raise UserError(
            f"{run} does not say how its model was made: give the folder of a finished run "
            "(saved/<Model>-<dataset>-<time>); one of an older version has to be trained again."
        )
    return folder, state


def load_trained(
    folder: Path,
    state: Mapping[str, Any],
    where: Mapping[str, Any] | None = None,
    *,
    decode: Mapping[str, Any] | None = None,
    dequantise: bool = False,
) -> Trained:
    """Build a run's model again and put its best weights into it.

    Args:
        folder: as of :func:`best_state`.
        state: likewise.
        where: of :data:`~recbole_ilrec.configuration.arguments.PLACES`, where things are today if they have moved.
        decode: settings of the section ``decode`` in the place of the run's.
        dequantise: turn weights of four bits back into ordinary ones.

    Raises:
        UserError: the data are gone or have other items, or the weights do not fit.
    """
    moved, request = dict(where or {}), state[REQUEST]
    kept = _kept(state)
    here = {"device": "auto", "show_progress": False, "resume_from_checkpoint": None, **moved}
    config = Config(request["model"], request["dataset"], None, {**kept, **request["config_dict"], **here})
    settings = config.settings
    if config.is_llm:  # as they were, whatever the presets say today
        settings = _moved(Settings.model_validate(state["settings"]), moved)
        backbone = settings.backbone.model_copy(update={"dequantise": dequantise or settings.backbone.dequantise})
        settings = settings.model_copy(update={"backbone": backbone})
    changed = type(settings.decode).model_validate({**settings.decode.model_dump(), **(decode or {})})
    config.settings = settings.model_copy(update={"decode": changed})
    _say_what_is_another_text(config, state.get("own_texts", {}), folder)
    data = build_data(config)
    model = _model(config, data, state, folder, dequantise)
    return Trained(folder, state, config, data, model.eval())


def _say_what_is_another_text(config: Config, before: Mapping[str, str], folder: Path) -> None:
    """Own code and prompts are read anew, not kept with the weights; older versions did not note them."""
    now = own_texts(config)
    for name in sorted(name for name, text in before.items() if now.get(name, text) != text):
        logger.warning(
            "%s is not what it was when %s was trained: the model is asked through today's.",
            name,
            folder.parent,
        )


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the model was built with, in case the presets have changed since."""
    if "settings" in state:
        quantised = state["settings"]["backbone"]["quantization"] is not None
        with quick_imports(compiler=quantised):
            from recbole_ilrec.training.best_weights import WINDOW
        return {"MAX_ITEM_LIST_LENGTH": state[WINDOW]} if WINDOW in state else {}
    _, model, _ = find_model(state[REQUEST]["model"])
    stored, always = state["config"], ("MAX_ITEM_LIST_LENGTH", "exclude_history")
    kept = read_of(model, stored) | {key: stored[key] for key in always if key in stored}
    return {key: value for key, value in kept.items() if key not in OUTCOME_FREE}


def _moved(settings: Settings, moved: Mapping[str, Any]) -> Settings:
    """Settings of a language model with the paths that are others today."""
    changes: dict[str, Any] = {}
    for key, section, name in (("index_file", "index", "file"), ("backbone", "backbone", "path")):
        if key in moved:
            changes[section] = getattr(settings, section).model_copy(update={name: str(Path(moved[key]).resolve())})
    return settings.model_copy(update=changes)


def _model(
    config: Config, data: Data, state: Mapping[str, Any], folder: Path, dequantised: bool
) -> AbstractRecommender:
    dataset = data.train._dataset
    if config.is_llm:
        from recbole_ilrec.training.best_weights import put_back

        model = config.model_class(config, dataset).to(config["device"])
        put_back(model, state, folder, dequantised=dequantised)
        if model.title_ranker is not None and len(config.settings.bigrec.gamma) > 1:
            model.title_ranker.gamma = _chosen_gamma(folder.parent / RESULT)
        return model
    if state["items"] != items_key(dataset):
        raise UserError(
            f"{folder} knows other items than '{config.dataset}' in {config['data_path']} has today, or the same in "
            "another order, which new clicks can change: give the --data_path of the data it was trained on (clicks "
            "since then by --file), or train it anew."
        )
    model = build_model(config, dataset)
    load_model(model, state, folder)
    return model


def _chosen_gamma(result: Path) -> float:
    """The strength of the statistic that the run chose on validation."""
    try:
        return float(json.loads(result.read_text(encoding="utf-8"))[GAMMA])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{result} does not say which bigrec.gamma was chosen: the run did not end, or it is of an older version. "
            "Train it again, or with one value of bigrec.gamma."
        ) from None
