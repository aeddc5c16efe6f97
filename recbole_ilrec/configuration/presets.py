"""YAML as users write it, and the presets in ``properties/``.

Knows files, YAML and where ``properties/`` is; never what a key means.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recbole_ilrec.errors import UserError

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a float, as in RecBole, a date stays text and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As usual, but a key that stands twice in one mapping is an error instead of a lost value."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' stands twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        UserError: with ``file:line`` when the file is missing, broken, not UTF-8 or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a YAML file of settings.") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML text file in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}{line}: broken YAML: {problem}. Write one 'key: value' a line.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: a settings file holds 'key: value' lines, not a {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def parse_value(text: str) -> Any:
    """A value typed on the command line, read as YAML; what is no YAML (``[5,inf)``) stays text, ``None`` is null."""
    if text in ("None", "none"):
        return None
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):
        return text


def properties_folder() -> Path:
    """The folder of presets: inside the installed package, else beside it (a checkout, ``pip install -e``)."""
    spec = find_spec("recbole_ilrec.properties")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "properties"


def preset(kind: str, name: str) -> Path:
    """Path of ``properties/KIND/NAME.yaml``, which need not exist."""
    return properties_folder() / kind / f"{name}.yaml"


def preset_names(kind: str) -> Iterator[str]:
    """Names of the presets of one kind, e.g. ``"backbone"``, sorted."""
    yield from sorted(path.stem for path in (properties_folder() / kind).glob("*.yaml"))
