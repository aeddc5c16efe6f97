"""RecBole's ``Config`` made strict: one place where settings meet, each with its origin.

Differences from the base class: unknown settings are refused with a suggestion, nothing is evaluated as Python,
``sys.argv`` and the environment's CUDA devices are left alone, our YAML files come after RecBole's, ``eval_args`` may
be given in part, and everything this package adds is in :attr:`Config.settings`, typed.

This is the only module that reads RecBole's option bag to build the typed settings.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole
from recbole.config import Config as RecBoleConfig
from recbole.utils import InputType

from recbole_ilrec.configuration.contradictions import check_language_model, check_paradigm
from recbole_ilrec.configuration.lookup import find_model, keys_read_by, known_keys, preset_name, refuse_unknown
from recbole_ilrec.configuration.presets import Loader, preset, preset_names, properties_folder, read_yaml
from recbole_ilrec.configuration.recbole_values import check_metrics, check_values
from recbole_ilrec.configuration.run_keys import RunKeys
from recbole_ilrec.configuration.selection import check_evaluation, check_files, check_selection, set_columns
from recbole_ilrec.errors import UserError, did_you_mean
from recbole_ilrec.runtime.device import choose_device
from recbole_ilrec.runtime.terminal import shows_bars
from recbole_ilrec.settings import (
    FLAT_KEYS,
    SECTIONS,
    Settings,
    build_settings,
    flat_sections,
    in_parts,
    laid_over,
    nested,
)

GIVEN = "config_dict or command line"
DERIVED = "derived from other settings"
RECBOLE_FILES, OVERALL = "RecBole's ", "properties/overall.yaml"
PRETRAINED = "pretrained.yaml"
RECBOLE = Path(recbole.__file__).parent


class MissingDataset(UserError):
    """A dataset of the paper is not there yet: ``name``, to be made in the folder ``root``."""

    def __init__(self, message: str, name: str, root: Path):
        super().__init__(f"{message}{self.place(root)}")
        self.name = name
        self.root = root

    @staticmethod
    def place(root: Path) -> str:
        """What to add to the command that makes the dataset, where ``root`` is not its default."""
        return "" if root == Path("dataset") else f" Add --out={root} to that command."


class Config(RecBoleConfig):
    """All settings of a run. ``config[key]`` as in RecBole; ``config.settings`` for what this package adds.

    Args:
        model: name of a language model of this package or of a sequential model of RecBole; or a model class.
        dataset: name of a folder in ``data_path``, or ``ml-100k``, which RecBole's package carries.
        config_file_list: YAML files, later ones win.
        config_dict: settings that win over all files (the command line is given here).

    Attributes:
        origin: setting -> the file it came from, or ``"config_dict or command line"``.
        settings: the typed settings.
        is_llm: whether the model is a language model of this package.
        keys: what the run is made of, set when its data are read.

    Raises:
        UserError: an unknown name, a bad value, a missing file.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
    ):
        self._init_parameters_category()
        self.yaml_loader = Loader
        self.origin: dict[str, str] = {}
        given = [(str(path), nested(read_yaml(Path(path)))) for path in config_file_list or ()]
        given.append((GIVEN, nested(config_dict or {})))
        self.external_config_dict = laid_over([layer for _, layer in given])
        self.model, self.model_class, self.dataset = self._get_model_and_dataset(model, dataset)
        self._load_internal_config_dict(preset_name(self.model_class), self.model_class, self.dataset)
        own = self._own_layers()
        self._check_names(given, own)
        self.final_config_dict = self._merge([*own, *given])
        self.settings: Settings = self._typed([*own, *given])
        self._fill_defaults()
        check_values(self.final_config_dict, self.model_class)
        check_selection(self.final_config_dict)
        check_paradigm(self.model, self.settings)
        if self.is_llm:
            check_language_model(preset_name(self.model_class), self.settings, self.external_config_dict)
        beams = None
        if self.is_llm:
            beams = self.settings.decode.num_beams if self.settings.generates_lists else sys.maxsize
        if check_metrics(self.final_config_dict, adapt=self._is_default("valid_metric"), num_beams=beams):
            self.origin["valid_metric"] = DERIVED
        data_root = Path(str(self.final_config_dict["data_path"]))
        self._derive()
        self._init_device()
        self._set_data_path(data_root)
        check_files(self.final_config_dict, titles=self.is_llm and self.settings.paradigm == "bigrec")
        if self.final_config_dict["cache_dir"] is None:
            self.final_config_dict["cache_dir"] = str(Path(str(self.final_config_dict["checkpoint_dir"])) / "cache")

    parameters: dict[str, list[str]]
    keys: RunKeys | None = None

    # ---- layers

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()  # hands out module-wide lists, to which a dataset's YAML is appended
        self.parameters = {category: list(names) for category, names in self.parameters.items()}

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if not model or not dataset:
            missing = "dataset" if model else "model"
            example = "ml-100k" if model else "ILRec"
            raise UserError(f"No {missing} given: name one, e.g. --{missing}={example}.")
        if os.sep in str(dataset) or str(dataset).startswith("."):
            raise UserError(f"dataset='{dataset}' must be a name: give the folder around it as --data_path=FOLDER.")
        name, model_class, self.is_llm = find_model(model)
        return name, model_class, str(dataset)

    def _update_internal_config_dict(self, file: str) -> dict[str, Any]:
        layer = read_yaml(Path(file))
        self.internal_config_dict.update(layer)
        self.origin.update(dict.fromkeys(layer, f"{RECBOLE_FILES}{Path(file).resolve().relative_to(RECBOLE)}"))
        return layer

    def _own_layers(self) -> list[tuple[str, dict[str, Any]]]:
        root, name = properties_folder(), preset_name(self.model_class)
        files = [root / "overall.yaml", preset("model", name), preset("dataset", self.dataset)]
        if not self.is_llm:
            files.append(preset("tuned", f"{name}-{self.dataset}"))
        layers = [(f"properties/{path.relative_to(root)}", read_yaml(path)) for path in files if path.is_file()]
        if self.is_llm:
            named = [layer["backbone"] for _, layer in layers if isinstance(layer.get("backbone"), str)]
            origin, layer = self._backbone_layer(self.external_config_dict.get("backbone"), named)
            if "backbone.path" in layer:
                layers.append((f"properties/{PRETRAINED}", read_yaml(root / PRETRAINED)))
            layers.append((origin, layer))
            more = self._combined_files([own for _, own in layers], layer.get("backbone"))
            layers += [(f"properties/{p.relative_to(root)}", flat_sections(read_yaml(p))) for p in more if p.is_file()]
        return layers

    def _combined_files(self, layers: list[dict[str, Any]], backbone: object) -> list[Path]:
        """Presets of paradigm and task, of each with the backbone, and of all with the dataset; they need not exist."""
        task = str(self.external_config_dict.get("task", Settings().task))
        of_task = [read_yaml(file) for file in (preset("task", task),) if file.is_file()]
        ordered = [self.external_config_dict, *of_task, *reversed(layers)]
        paradigm = str(next((layer["paradigm"] for layer in ordered if "paradigm" in layer), Settings().paradigm))
        kind = paradigm if task == Settings().task else task
        tuned = f"{backbone}-{self.dataset}" if kind == "lcrec" else f"{kind}-{backbone}-{self.dataset}"
        names = ("paradigm", paradigm), ("paradigm", f"{paradigm}-{backbone}"), ("task", task)
        return [preset(*name) for name in (*names, ("task", f"{task}-{backbone}"), ("tuned", tuned))]

    @staticmethod
    def _backbone_layer(given: object, named: list[str]) -> tuple[str, dict[str, Any]]:
        name = given if isinstance(given, str) else (named or [Settings().backbone_name])[-1]
        path = preset("backbone", name)
        if path.is_file() and "/" not in name:
            return f"properties/backbone/{name}.yaml", {"backbone": name, **flat_sections(read_yaml(path))}
        if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
            raise UserError(f"backbone={name}: there is no such folder or file.")
        if "/" in name or Path(name).exists():
            return f"backbone={name}", {"backbone.path": name}
        if name == Settings().backbone_name:
            return "defaults", {"backbone": name}
        known = list(preset_names("backbone"))
        raise UserError(
            f"Unknown backbone '{name}'. {did_you_mean(name, known)}Presets: {', '.join(known)}; or give a folder "
            "(./NAME) or a hub id (OWNER/NAME)."
        )

    def _check_names(self, given: list[tuple[str, dict[str, Any]]], own: list[tuple[str, dict[str, Any]]]) -> None:
        from_yaml = [*self.internal_config_dict, *(key for _, layer in own for key in layer)]
        known = known_keys(self.model_class, from_yaml)
        for origin, layer in given:
            refuse_unknown(layer, known, dict.fromkeys(layer, origin))

    def _merge(self, layers: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        final = dict(self.internal_config_dict)
        for origin, layer in layers:
            for key, value in layer.items():
                final[key] = in_parts(key, final.get(key), value)
                self.origin[key] = origin
            self.origin.update(dict.fromkeys(flat_sections(layer), origin))
        return final

    def _typed(self, layers: list[tuple[str, dict[str, Any]]]) -> Settings:
        """Typed settings from our files and the user's; a later layer wins however it spells a setting."""
        bag: dict[str, Any] = {}
        read_by_model = set() if self.is_llm else keys_read_by(self.model_class)
        for _, layer in layers:
            for key, value in flat_sections(layer).items():
                if key not in read_by_model:
                    target = FLAT_KEYS.get(key, key)
                    bag[target if "." in target else key] = value
        return build_settings(bag)

    # ---- values

    def _by_user(self, key: str) -> bool:
        return key in self.external_config_dict

    def _is_default(self, key: str) -> bool:
        """Whether no preset for a model or dataset and no user has set ``key``."""
        return self.origin.get(key, RECBOLE_FILES).startswith((RECBOLE_FILES, OVERALL))

    def _fill_defaults(self) -> None:
        """Defaults that depend on other settings."""
        final, read = self.final_config_dict, keys_read_by(self.model_class)
        final["eval_args"] = dict(final["eval_args"]) if isinstance(final["eval_args"], dict) else final["eval_args"]
        chosen = set_columns(final, needed_only=self._is_default("load_col") and "selected_features" not in read)
        self.origin |= dict.fromkeys(chosen, DERIVED)
        input_type = getattr(self.model_class, "input_type", None)
        if input_type is None:
            final.setdefault("loss_type", "CE")
        pairs = input_type == InputType.PAIRWISE or (input_type is None and final["loss_type"] == "BPR")
        labels = input_type == InputType.POINTWISE and "LABEL_FIELD" in read and not self.is_llm
        if self._is_default("train_neg_sample_args") and not (pairs or labels):
            final["train_neg_sample_args"] = None
            self.origin["train_neg_sample_args"] = DERIVED
        if self._is_default("show_progress"):
            final["show_progress"] = final["show_progress"] and shows_bars()
        final["metrics"] = [final["metrics"]] if isinstance(final["metrics"], str) else final["metrics"]
        final["topk"] = [final["topk"]] if isinstance(final["topk"], int) else final["topk"]

    def _derive(self) -> None:
        """What RecBole derives from the settings; its own complaints become one line."""
        try:
            self._set_default_parameters()
            self._set_train_neg_sample_args()
            self._set_eval_neg_sample_args("valid")
            self._set_eval_neg_sample_args("test")
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AttributeError) as error:
            raise UserError(f"These settings do not fit together: {error}") from None
        check_evaluation(self.final_config_dict, self.settings)

    def compatibility_settings(self) -> None:
        """Nothing to do: :mod:`recbole_ilrec.runtime.compat` has set the names that RecBole needs."""

    def _init_device(self) -> None:
        final = self.final_config_dict
        final["device"] = choose_device(
            str(final.get("device", "auto")),
            use_gpu=bool(final.get("use_gpu", True)),
            gpu_id=final["gpu_id"] if self._by_user("gpu_id") else None,
        )
        final["gpu_id"] = str(final["gpu_id"])
        final["use_gpu"] = final["device"].type == "cuda"
        final["single_spec"] = True  # RecBole's own DistributedDataParallel stays off
        final["local_rank"] = int(os.environ.get("LOCAL_RANK", "0"))

    def _set_data_path(self, root: Path) -> None:
        """``<data_path>/<dataset>``, or the copy of ml-100k in RecBole's package where that folder is not there."""
        folder = root / self.dataset
        bundled = RECBOLE / "dataset_example" / self.dataset
        if not folder.is_dir() and bundled.is_dir():
            folder, self.origin["data_path"] = bundled, "RecBole's package"
        if not folder.is_dir():
            raise _missing_dataset(self.dataset, root)
        self.final_config_dict["data_path"] = str(folder)

    # ---- views

    def describe(self) -> str:
        """One line a setting, ``key = value  # origin``, sorted: what ``--print_config`` shows."""
        shown = {key: value for key, value in self.final_config_dict.items() if key not in SECTIONS}
        if self.is_llm:
            shown["backbone"] = self.settings.backbone_name
        lines = [f"{key} = {value!r}  # {self.origin.get(key, DERIVED)}" for key, value in sorted(shown.items())]
        for section in SECTIONS:
            for name, value in getattr(self.settings, section).model_dump(by_alias=True).items():
                dotted = f"{section}.{name}"
                flat = next((short for short, target in FLAT_KEYS.items() if target == dotted), dotted)
                origin = self.origin.get(flat) or self.origin.get(dotted) or "default"
                lines.append(f"{dotted} = {value!r}  # {origin}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """RecBole's settings as plain values that JSON can hold; objects are given as text."""
        plain = (str, int, float, bool, list, dict, type(None))
        return {k: v if isinstance(v, plain) else str(v) for k, v in self.final_config_dict.items()}


def _missing_dataset(name: str, root: Path) -> UserError:
    from recbole_ilrec.preparation.known import KNOWN, how_to_get

    known = next((dataset for dataset in KNOWN if dataset.lower() == name.lower()), None)
    if known is not None:
        message = f"There is no folder '{root / name}'. {how_to_get(known)}"
        return MissingDataset(message, name, root) if known == name else UserError(message)
    present = sorted(path.name for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    return UserError(
        f"Unknown dataset '{name}': there is no folder '{root / name}'. {did_you_mean(name, [*present, *KNOWN])}"
        f"{root} holds: {', '.join(present) or 'no dataset'}. Put {name}.inter there, choose another --data_path, use "
        f"ml-100k, or build one with 'recbole-ilrec prepare' ({', '.join(KNOWN)})."
    )
