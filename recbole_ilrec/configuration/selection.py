"""RecBole's settings that select, order and split interactions; what it would pass over or fail at is refused here."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_ilrec.errors import UserError, unknown_name
from recbole_ilrec.settings import Settings

_NUMBER = r"[-+]?(?:inf|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)"
_INTERVAL = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]", re.IGNORECASE)
_EVAL_ARGS = ("split", "group_by", "order", "mode")
_MODE = re.compile(r"full|labeled|none|(?:uni|pop)[1-9]\d*")


def check_selection(final: dict[str, Any]) -> None:
    """Raise :class:`UserError` for the first setting that cannot select; intervals given as lists become text."""
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        final[key] = _interval(key, final.get(key))
    if final.get("val_interval") is not None:
        final["val_interval"] = _by_value(final["val_interval"], final.get("load_col"))
    if final.get("rm_dup_inter") not in (None, "first", "last"):
        raise UserError(f"rm_dup_inter={final['rm_dup_inter']!r} is not allowed: keep the 'first' or the 'last' copy.")
    parts = final.get("benchmark_filename")
    if parts is not None and not (isinstance(parts, list) and len(parts) == 3):
        raise UserError(
            f"benchmark_filename={parts!r} is not allowed: name training, validation and test part, e.g. "
            "[train,valid,test] for NAME.train.inter, NAME.valid.inter and NAME.test.inter."
        )
    if isinstance(final["eval_args"], dict):
        _check_eval_args(final["eval_args"])


def check_files(final: Mapping[str, Any], *, titles: bool) -> None:
    """Raise :class:`UserError` where a file of the dataset that the settings ask for is not there.

    Args:
        final: all settings; ``benchmark_filename`` names parts of the split.
        titles: whether items are called by their titles.
    """
    texts = Path(final["data_path"]) / f"{final['dataset']}.item"
    if titles and not texts.is_file():
        raise UserError(
            f"dataset '{final['dataset']}' has no item titles, which paradigm=bigrec needs: there is no file {texts}. "
            "Add it, with a column title:token_seq, or use --paradigm=lcrec."
        )
    for part in final.get("benchmark_filename") or ():
        path = Path(final["data_path"]) / f"{final['dataset']}.{part}.inter"
        if not path.is_file():
            raise UserError(f"benchmark_filename={final['benchmark_filename']}: there is no file {path}.")
        _check_columns(path, final)


def check_evaluation(final: Mapping[str, Any], settings: Settings) -> None:
    """Raise :class:`UserError` where the rows to be evaluated cannot give what this package's settings ask of them.

    Args:
        final: RecBole's settings, modes of evaluation filled in.
        settings: this package's.
    """
    if settings.decode.exclude_history and set(final["eval_args"]["mode"].values()) != {"full"}:
        raise UserError(
            "exclude_history=true (given, or set for this data set) needs eval_args.mode=full: sampled candidates "
            "are not filtered. Set --exclude_history=false."
        )
    asked = {
        "exclude_history=true": settings.decode.exclude_history,
        "reward.mask_history=true": settings.reward.mask_history,
        "task=candidates": settings.task == "candidates",
    }
    for setting in (setting for setting, given in asked.items() if given and final.get("benchmark_filename")):
        raise UserError(
            f"{setting} needs the whole history of each user, which parts that come ready made (benchmark_filename) do "
            "not hold: leave one of the two out."
        )


def set_columns(final: dict[str, Any], *, needed_only: bool) -> list[str]:
    """Set which columns are read and how their items are numbered; returns the settings that were changed.

    Args:
        final: all settings.
        needed_only: read no more of the interactions than every model needs.
    """
    changed = []
    if needed_only:
        final["load_col"] = {"inter": _needed(final)}
        changed.append("load_col")
    given = final.get("alias_of_item_id") or []
    if final.get("benchmark_filename") and _histories(final) not in given:
        # RecBole would number the items of ready-made histories anew, apart from the targets.
        final["alias_of_item_id"] = [*([given] if isinstance(given, str) else given), _histories(final)]
        changed.append("alias_of_item_id")
    return changed


def _needed(final: Mapping[str, Any]) -> list[str]:
    """Columns of interactions: parts that come ready made hold histories instead of times."""
    user, item = final["USER_ID_FIELD"], final["ITEM_ID_FIELD"]
    return [user, item, _histories(final) if final.get("benchmark_filename") else final["TIME_FIELD"]]


def _histories(final: Mapping[str, Any]) -> str:
    return f"{final['ITEM_ID_FIELD']}{final['LIST_SUFFIX']}"


def _check_columns(path: Path, final: Mapping[str, Any]) -> None:
    """What each ready-made part has to hold, and what is read of it."""
    kinds = dict(zip(_needed(final), ("token", "token", "token_seq"), strict=True))
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline().rstrip("\r\n").split(final["field_separator"])
    wanted = [f"{name}:{kind}" for name, kind in kinds.items()]
    missing = [column for column in wanted if column not in header]
    load = final.get("load_col")
    if missing:
        raise UserError(f"{path}: no column {missing[0]}: a part of benchmark_filename has the header {wanted}.")
    for name in kinds:
        if isinstance(load, Mapping) and name not in (load.get("inter") or ()):
            raise UserError(f"load_col={load} leaves out '{name}', which benchmark_filename needs: add it to 'inter'.")


def _by_value(given: object, load_col: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"val_interval={given!r} is not allowed: give columns, e.g. {{rating: '[3,inf)'}}.")
    if isinstance(load_col, Mapping):
        loaded = [str(field) for fields in load_col.values() for field in fields or ()]
        for field in given:
            if field not in loaded:
                raise UserError(
                    f"val_interval names the column '{field}', which is not loaded: add it to load_col, now {load_col}."
                )
    # A list of values selects from a column of names.
    return {
        field: _interval(f"val_interval.{field}", wanted) if isinstance(wanted, str) else wanted
        for field, wanted in given.items()
    }


def _interval(key: str, given: object) -> str | None:
    """RecBole's text of one interval or several; it passes over what it cannot read, and filters nothing then."""
    if given is None:
        return None
    text = f"[{given[0]},{given[1]}]" if isinstance(given, list) and len(given) == 2 else str(given)
    for part in text.split(";"):
        found = _INTERVAL.fullmatch(part.strip())
        if found is None or float(found[1]) > float(found[2]):
            raise UserError(f"{key}={given!r} is not allowed: give an interval such as '[5,inf)', or several with ';'.")
    return text


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    for key in eval_args:
        if key not in _EVAL_ARGS:
            raise unknown_name("part of eval_args:", key, _EVAL_ARGS)
    mode = eval_args.get("mode", "full")
    for each in mode.values() if isinstance(mode, Mapping) else (mode,):
        if not _MODE.fullmatch(str(each)):
            raise UserError(
                f"eval_args.mode={each!r} is not allowed: 'full' ranks all items, 'uni100' or 'pop100' the true one "
                "among 100 that are drawn."
            )
