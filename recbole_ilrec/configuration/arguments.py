"""A command line as words and options: ``--key=value``, ``--key value`` and switches, for every verb alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_ilrec.errors import UserError, unknown_name

# fmt: off
_AS_TYPED = frozenset((
    "model", "dataset", "config_files", "result_file", "resume_from_checkpoint", "data_path",
    "checkpoint_dir", "cache_dir", "backbone", "index_file", "reward_checkpoint", "source", "path",
    "out", "models", "columns", "seeds", "json", "space", "against", "users", "history", "file", "user", "item",
))
# fmt: on
PLACES = ("data_path", "cache_dir", "index_file", "backbone", "device")
"""Settings that say where a finished run's things are today, and nothing else."""
_SHORT = {"-m": "--model", "-d": "--dataset", "-h": "--help"}
_SWITCHES = frozenset(("help", "debug", "print_config", "quick", "dry_run", "paper"))


@dataclass
class Arguments:
    """A parsed command line: what stands alone, and ``key -> value``."""

    words: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of an option, which is then no longer among :attr:`options`."""
        return self.options.pop(key, default)

    def config_files(self) -> list[str]:
        """The settings files of a run that is described by options alone.

        Raises:
            UserError: a word stands among them.
        """
        if self.words:
            raise UserError(f"'{self.words[0]}' is no option: write --key=value, e.g. --model=ILRec.")
        return str(self.take("config_files", "")).replace(",", " ").split()

    def of_one_run(self, verb: str, known: Sequence[str]) -> str:
        """The run that a verb is asked about.

        Args:
            verb: for messages.
            known: the options that it reads.

        Raises:
            UserError: another option, or not one run.
        """
        for key in self.options:
            if key not in known:
                raise unknown_name(f"option of {verb}", key, known)
        if len(self.words) != 1:
            raise UserError(f"{verb} takes one run: recbole-ilrec {verb} saved/<Model>-<dataset>-<time>.")
        return self.words[0]


def parse(argv: Sequence[str]) -> Arguments:
    """``--key=value``, ``--key value`` and switches, in any order.

    Raises:
        UserError: an option without a value, or one given twice with different values.
    """
    arguments = Arguments()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        token = _SHORT.get(token.partition("=")[0], token.partition("=")[0]) + "".join(token.partition("=")[1:])
        if not token.startswith("--"):
            arguments.words.append(token)
            continue
        key, equals, text = token[2:].partition("=")
        if not key:
            raise UserError(f"'{token}' is no option: write --key=value.")
        if not equals and key not in _SWITCHES:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} has no value: write --{key}=VALUE.")
            text = rest.pop(0)
        value = _value(key, text if equals or key not in _SWITCHES else "true")
        if key in arguments.options and arguments.options[key] != value:
            raise UserError(f"--{key} is given twice, as {arguments.options[key]!r} and {value!r}: keep one of them.")
        arguments.options[key] = value
    return arguments


def listed(value: Any) -> list[Any]:
    """``a,b``, ``[a, b]`` or one value as a list; nothing as an empty one. What holds a comma is quoted in brackets."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return [value]
    return _quoted(value) or [
        part for text in value.removeprefix("[").removesuffix("]").split(",") if (part := text.strip())
    ]


def _quoted(text: str) -> list[str]:
    """The texts of a YAML list in which some are quoted; none where it is no such list."""
    if not text.startswith("[") or not {"'", '"'} & {*text}:
        return []
    import yaml

    try:
        found = yaml.load(text, Loader=yaml.BaseLoader)  # texts only, whatever they look like
    except yaml.YAMLError:
        return []
    return found if isinstance(found, list) and all(isinstance(part, str) for part in found) else []


def _value(key: str, text: str) -> Any:
    from recbole_ilrec.configuration.presets import parse_value

    return text if key in _AS_TYPED else parse_value(text)
