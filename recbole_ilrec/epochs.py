"""RecBole's rhythm in the training loop: a bar and a line for each epoch, evaluation, checkpoints at its end."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from recbole.utils import set_color
from tqdm import tqdm
from transformers import TrainerCallback

from recbole_ilrec.loop import StepTrainer

logger = logging.getLogger(__name__)

NEGATIVE_LOGITS = 0.01


def epoch_of(passed: float | None) -> int:
    """Number of the epoch (from 0, as RecBole counts) that ends or runs at ``passed`` epochs."""
    return max(int(np.ceil((passed or 0.0) - 1e-9)) - 1, 0)


class Epochs(TrainerCallback):
    """RecBole's rhythm: a bar and a line for each epoch, evaluation every ``eval_step``, a checkpoint at its end."""

    def __init__(self, loop: StepTrainer, config: Any, *, validate: bool, save: bool, show: bool):
        self.loop = loop
        self.config = config
        self.validate = validate
        self.save = save
        self.show = show
        self.bar: Any = None
        self.start = 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        steps = self.loop.plan.steps
        done = state.global_step % steps
        if not done:
            self.loop.reset_means()
        self.start = time.time()
        label = set_color(f"Train {state.global_step // steps:>5}", "pink")
        self.bar = tqdm(total=steps, initial=done, desc=label, ncols=100, disable=not self.show)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)
        if self.loop.average:
            self.loop.average.update(state.global_step)
        every = self.config.settings.train.save_steps
        control.should_save = bool(self.save and every and state.global_step % every == 0)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.bar.close()
        epoch = epoch_of(state.epoch)
        means = self.loop.means()
        parts = ", ".join(
            f"{set_color(name.partition('/')[2] or 'train loss', 'blue')}: {value:.4f}" for name, value in means.items()
        )
        head = set_color("epoch %d training", "green") % epoch
        logger.info("%s [%s: %.2fs, %s]", head, set_color("time", "blue"), time.time() - self.start, parts)
        self._warn_of_negative_logits(means)
        last = state.global_step >= state.max_steps
        every = min(self.config["eval_step"], self.config["epochs"])
        due = last or (every > 0 and (epoch + 1) % every == 0)
        control.should_evaluate = due and self.validate
        control.should_save = self.save

    def _warn_of_negative_logits(self, means: Mapping[str, float]) -> None:
        """Eq. 7 rewards a negative whose logit is below 0 (methods: A8); say so when that is not rare."""
        share = means.get("monitor/frac_negative_logit", 0.0) / max(means.get("monitor/penalised", 0.0), 1e-9)
        if share > NEGATIVE_LOGITS and self.config.settings.ilrec.penalty == "multiplicative":
            logger.warning(
                "%.1f%% of the penalty weight of Eq. 7 stands on negative logits, where it rewards instead of "
                "penalises; consider --ilrec.penalty=sign_safe",
                100 * share,
            )
