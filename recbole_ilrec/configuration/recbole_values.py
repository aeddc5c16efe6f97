"""Values of RecBole's settings that a user can get wrong, refused in one line before anything is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from recbole.evaluator.register import metric_information, metrics_dict

from recbole_ilrec.errors import UserError, unknown_name

_WHOLE_NUMBERS = {
    "epochs": 0,
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "eval_step": 0,
    "stopping_step": 0,
    "MAX_ITEM_LIST_LENGTH": 1,
    "seed": 0,
    "worker": 0,
    "metric_decimal_place": 1,
}
_LOSSES = ("CE", "BPR")
_OF_ALL_SCORES = frozenset(("rec.meanrank", "rec.score", "data.label"))
_WITHOUT_CUT = frozenset(("auc", "gauc", "mae", "rmse", "logloss"))


def check_values(final: dict[str, Any], model_class: type) -> None:
    """Raise :class:`UserError` for the first of RecBole's settings that cannot work.

    Args:
        final: all settings, defaults filled in.
        model_class: the model they are for.
    """
    for key, least in _WHOLE_NUMBERS.items():
        value = final.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{key}={value!r} is not allowed: give a whole number of at least {least}.")
    if final["seed"] >= 1 << 32:
        raise UserError(f"seed={final['seed']} is not allowed: give a whole number below 2^32, NumPy takes no other.")
    threads = final.get("num_threads")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UserError(f"num_threads={threads!r} is not allowed: give a positive whole number or leave it out.")
    rate = final.get("learning_rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < float("inf"):
        raise UserError(f"learning_rate={rate!r} is not allowed: give a positive number, e.g. 0.001.")
    if "loss_type" in final and not hasattr(model_class, "input_type") and final["loss_type"] not in _LOSSES:
        raise UserError(f"loss_type={final['loss_type']!r} is not allowed: choose one of {', '.join(_LOSSES)}.")
    if isinstance(final["eval_args"], dict) and final["eval_args"].get("order") != "TO":
        raise UserError("eval_args.order must be TO: sequential models are split in time order.")
    _check_run(final)


def _check_run(final: dict[str, Any]) -> None:
    """What a run may be asked to do beside training."""
    if not isinstance(final["eval_test"], bool):
        raise UserError(
            f"eval_test={final['eval_test']!r} is not allowed: use true, or false to leave the test part out."
        )
    if isinstance(final.get("nproc"), int) and final["nproc"] > 1:
        raise UserError(
            f"nproc={final['nproc']}: start several processes with 'torchrun --nproc_per_node={final['nproc']} "
            "run_recbole_ilrec.py ...' instead."
        )
    for key in ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"):
        if final.get(key):
            raise UserError(f"{key} is not supported: those files are pickles. Leave it out; data is read again.")
    if final.get("log_wandb") and find_spec("wandb") is None:
        raise UserError("log_wandb=true needs the package wandb: run 'pip install wandb' or leave it out.")


def check_metrics(final: dict[str, Any], *, adapt: bool, num_beams: int | None = None) -> bool:
    """Check ``metrics``, ``topk`` and ``valid_metric``.

    Args:
        final: all settings; ``valid_metric`` may be changed.
        adapt: make ``valid_metric`` one of the metrics that are computed, instead of refusing it.
        num_beams: length of the lists of a generative model.

    Returns:
        Whether ``valid_metric`` was changed.

    Raises:
        UserError: an unknown metric, a bad cut-off, or one that cannot be computed.
    """
    changed = False
    names = {name: metric.__name__ for name, metric in metrics_dict.items()}
    if not isinstance(final["metrics"], list) or not final["metrics"]:
        raise UserError(f"metrics={final['metrics']!r} is not allowed: give a list such as [Hit, NDCG].")
    for metric in final["metrics"]:
        if str(metric).lower() not in names:
            raise unknown_name("metric", metric, names.values())
        if num_beams is not None and _OF_ALL_SCORES.intersection(metric_information[str(metric).lower()]):
            raise UserError(
                f"metrics={final['metrics']}: {metric} needs the score of every item, and a language model generates "
                "a list: choose e.g. Hit, NDCG, MRR, Recall, Precision or MAP."
            )
    topk = final["topk"]
    if not isinstance(topk, list) or not topk or any(type(k) is not int or k < 1 for k in topk):
        raise UserError(f"topk={topk!r} is not allowed: give positive whole numbers, e.g. [5, 10].")
    used = [str(metric).lower() for metric in final["metrics"]]
    if adapt:
        ranked = "ndcg" if "ndcg" in used else used[0]
        cut = "" if ranked in _WITHOUT_CUT else f"@{10 if 10 in topk else max(topk)}"
        adapted = names[ranked] + cut
        changed = adapted != final["valid_metric"]
        final["valid_metric"] = adapted
    if num_beams is not None and num_beams < max(topk):
        raise UserError(f"num_beams={num_beams} cannot fill topk={topk}: use at least --num_beams={max(topk)}.")
    metric, at, k = str(final["valid_metric"]).lower().partition("@")
    if metric not in used or bool(at) == (metric in _WITHOUT_CUT) or (at and k not in map(str, topk)):
        fits = metric if metric in used else used[0]
        raise UserError(
            f"valid_metric={final['valid_metric']!r} is not computed: choose one of metrics={final['metrics']} at "
            f"one of topk={topk}, e.g. {names[fits]}{'' if fits in _WITHOUT_CUT else f'@{max(topk)}'}."
        )
    return changed


def metric_names(final: Mapping[str, Any]) -> set[str]:
    """Metrics that RecBole computes under these settings, each with its cut-off, e.g. ``ndcg@10``."""
    names = [str(metric).lower() for metric in final["metrics"]]
    return {name if name in _WITHOUT_CUT else f"{name}@{k}" for name in names for k in final["topk"]}
