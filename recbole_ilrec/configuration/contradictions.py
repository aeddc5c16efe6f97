"""Settings that contradict the model, refused before anything is built."""

from collections.abc import Mapping
from importlib.util import find_spec

from recbole_ilrec.configuration.lookup import PARADIGM_OF
from recbole_ilrec.configuration.presets import preset, read_yaml
from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import PREFERENCES
from recbole_ilrec.settings import Settings


def check_paradigm(model: str, settings: Settings) -> None:
    """Refuse a paradigm other than that of a model that is plain fine-tuning under one of them."""
    wanted = PARADIGM_OF.get(model, settings.paradigm)
    if settings.paradigm != wanted:
        other = next(name for name, paradigm in PARADIGM_OF.items() if paradigm != wanted)
        raise UserError(
            f"paradigm={settings.paradigm} contradicts model={model}, which is {wanted}: use --model={other} for plain "
            "fine-tuning with it, or leave --paradigm out."
        )


def check_language_model(model: str, settings: Settings, given: Mapping[str, object]) -> None:
    """Refuse settings of a language model that cannot be meant together.

    Args:
        model: the model's name, or that of the parent whose presets it has.
        settings: its settings.
        given: what the user set, by flat or dotted name.
    """
    _check_objective(model, settings)
    _check_beta(settings, given)
    _check_layers(settings)
    _check_beginning(settings)


def _check_objective(model: str, settings: Settings) -> None:
    """Refuse a loss over tokens where the model is a preference stage: it would have none."""
    file = preset("model", model)
    preferring = file.is_file() and str(read_yaml(file).get("objective")) in PREFERENCES
    if preferring and settings.objective not in PREFERENCES:
        raise UserError(
            f"objective={settings.objective} contradicts model={model}, which is trained against rejected answers: "
            f"choose one of {', '.join(PREFERENCES)}, leave --objective out, or use another model, e.g. LCRec."
        )


def _check_beta(settings: Settings, given: Mapping[str, object]) -> None:
    """Refuse ILRec's ``beta`` where a preference objective has one of its own."""
    if settings.objective in PREFERENCES and {"beta", "ilrec.beta"} & given.keys():
        raise UserError(
            f"beta is ILRec's (Eq. 7) and objective '{settings.objective}' does not read it: use --preference.beta."
        )


def _check_beginning(settings: Settings) -> None:
    """Refuse weights to begin with where the model has a beginning of its own."""
    given = settings.train.init_from
    if given is not None and settings.objective in PREFERENCES:
        raise UserError(
            f"train.init_from={given}: objective '{settings.objective}' begins with supervised fine-tuning anyway; "
            "name the run that it begins with as --preference.checkpoint, or leave train.init_from out."
        )


def check_trackers(settings: Settings) -> None:
    """Refuse a tracker whose package is not there, before hours of training have nowhere to be shown."""
    for name in settings.train.report_to:
        if find_spec(name) is None:
            raise UserError(
                f"train.report_to={name} needs the package {name}: run 'pip install {name}' or leave it out."
            )


def _check_layers(settings: Settings) -> None:
    """Refuse more candidate layers than ``tiny`` has; those of a pretrained model are counted when it is loaded."""
    if settings.objective != "ilrec" or settings.backbone.path is not None:
        return
    layers = settings.backbone.layers
    if settings.ilrec.layers >= layers:
        raise too_many_layers(settings, layers, settings.ilrec.layers)


def too_many_layers(settings: Settings, layers: int, asked: int) -> UserError:
    """The complaint that ``k``, or what another loss asks for, is not below the number of decoder blocks."""
    if settings.objective != "ilrec":
        return UserError(
            f"objective '{settings.objective}' needs {asked} candidate layers: backbone '{settings.backbone_name}' has "
            f"{layers} layers, so Needs(layers=...) may be 0 to {layers - 1}."
        )
    return UserError(
        f"k={settings.ilrec.k} is too large: backbone '{settings.backbone_name}' has {layers} layers, so k may be 0 to "
        f"{layers - 1}; lower --k."
    )
