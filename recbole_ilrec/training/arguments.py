"""RecBole's training settings as the arguments of ``transformers.Trainer``."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def last_step(steps: int, epochs: int, most: int | None) -> int:
    """Number of a stage's last step: ``most`` ends it earlier, never later.

    Args:
        steps: of an epoch.
        epochs: of the stage.
        most: ``max_steps``.
    """
    return steps * epochs if most is None else min(most, steps * epochs)


def training_arguments(config: Any, folder: Path) -> TrainingArguments:
    """What ``transformers.Trainer`` is told of a run that writes to ``folder``."""
    train = config.settings.train
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config["epochs"],
        learning_rate=config["learning_rate"],
        weight_decay=config["weight_decay"],
        optim="adamw_torch_fused",  # the library's own default today
        adam_beta2=train.adam_beta2,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=train.warmup_ratio,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        gradient_accumulation_steps=train.gradient_accumulation,
        seed=config["seed"],
        use_cpu=config["device"].type == "cpu",
        logging_steps=train.log_steps,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
    )
    # The library knows no other GPU than the first, and makes it the current one.
    arguments.__dict__["_setup_devices"] = device = config["device"]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return arguments


def trackers(config: Any) -> list[Any]:
    """What ``train.report_to`` names, as the library's callbacks."""
    return get_reporting_integration_callbacks(list(config.settings.train.report_to))
