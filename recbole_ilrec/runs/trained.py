"""A finished run's best model with the data it was trained on, ready to be asked: for the verbs that use one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.model.abstract_recommender import AbstractRecommender

from recbole_ilrec.collaborative.classical import build_model, items_key, load_weights
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.data.dataset import Data, build_data
from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime.checkpoint import STATE, load_state
from recbole_ilrec.runtime.imports import quick_imports
from recbole_ilrec.runtime.resumption import BEST
from recbole_ilrec.settings import Settings

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
    given: Mapping[str, Any] | None = None,
    *,
    decode: Mapping[str, Any] | None = None,
    dequantise: bool = False,
) -> Trained:
    """Build a run's model again and put its best weights into it.

    Args:
        folder: as of :func:`best_state`.
        state: likewise.
        given: settings that say where the model works, such as ``device`` or ``data_path``.
        decode: settings of the section ``decode`` in the place of the run's.
        dequantise: turn weights of four bits back into ordinary ones.

    Raises:
        UserError: the data are gone or have other items, or the weights do not fit.
    """
    if "settings" in state:
        quantised = state["settings"]["backbone"]["quantization"] is not None
        with quick_imports(compiler=quantised):
            from recbole_ilrec.training import best_weights as best_weights
    request = state[REQUEST]
    here = {"device": "auto", "show_progress": False, "resume_from_checkpoint": None, **(given or {})}
    config = Config(request["model"], request["dataset"], None, {**request["config_dict"], **here})
    settings = config.settings
    if config.is_llm:  # as they were, whatever the presets say today
        settings = Settings.model_validate(state["settings"])
        backbone = settings.backbone.model_copy(update={"dequantise": dequantise or settings.backbone.dequantise})
        settings = settings.model_copy(update={"backbone": backbone})
    config.settings = settings.model_copy(update={"decode": settings.decode.model_copy(update=dict(decode or {}))})
    data = build_data(config)
    model = _model(config, data, state, folder)
    return Trained(folder, state, config, data, model.eval())


def _model(config: Config, data: Data, state: Mapping[str, Any], folder: Path) -> AbstractRecommender:
    dataset = data.train._dataset
    if config.is_llm:
        from recbole_ilrec.training.best_weights import put_back

        model = config.model_class(config, dataset).to(config["device"])
        put_back(model, state, folder)
        return model
    if state["items"] != items_key(dataset):
        raise UserError(
            f"{folder} knows other items than '{config.dataset}' in {config['data_path']} has today: give the "
            "--data_path of the data it was trained on, or train it anew."
        )
    model = build_model(config, dataset)
    load_weights(model, state["model"], folder)
    model.load_other_parameter(state["other_parameter"])
    return model
