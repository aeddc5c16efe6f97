"""Preference training of a supervised model: reference log-probabilities, smoothing, then the loop.

The reference log-probabilities are computed once, before the first step, and kept: a second model is never in memory.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.objective.preference import personalised_smoothing
from recbole_ilrec.prompt.answers import PreferenceRows, collate_answers, encode_answers
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.report.costs import spent_on
from recbole_ilrec.runtime.shards import whole
from recbole_ilrec.schema import AnswerBatch
from recbole_ilrec.training.micro_batches import MicroBatches
from recbole_ilrec.training.rejected import KeptRows
from recbole_ilrec.training.trainer import GenerativeTrainer

logger = logging.getLogger(__name__)

Array = np.ndarray
_SCORED = 1024


class PreferenceBatches(MicroBatches):
    """Rows with their answers, what the reference says of them, and their smoothing.

    Args:
        rows: histories with chosen and rejected items.
        encoder: builds the token ids.
        reference: ``[rows, 1 + D * R]`` log-probabilities of all answers of each row.
        smoothing: ``[rows, D * R]``, or ``None``.
    """

    stream = 6

    def __init__(self, rows: PreferenceRows, encoder: PromptEncoder, reference: Array, smoothing: Array | None):
        self.answered = rows
        self.encoder = encoder
        self.seed = rows.seed
        self.reference = reference
        self.smoothing = smoothing

    def encode(self, epoch: int, rows: Array) -> AnswerBatch:
        """Some rows as they are in an epoch."""
        columns = self.answered.columns(epoch)
        encoded = [encode_answers(self.encoder, self.answered.example(epoch, row)) for row in rows]
        smoothing = None if self.smoothing is None else self.smoothing[np.ix_(rows, columns[1:] - 1)]
        return collate_answers(encoded, self.encoder.pad_id, self.reference[np.ix_(rows, columns)], smoothing)

    def __len__(self) -> int:
        return len(self.answered)


class PreferenceTrainer(GenerativeTrainer):
    """Trains a model that has its supervised weights.

    Args:
        config: the settings as the preference stage reads them.
        model: the model with its supervised weights.
        run_folder: where checkpoints go.
        start: what tells these weights from others.
        chosen: ``[rows]`` numbers of the training rows to take.
        rejected: ``[D, rows, R]`` their rejected items.
    """

    def __init__(
        self,
        config: Any,
        model: GenerativeRecommender,
        run_folder: Path,
        start: str,
        chosen: Array,
        rejected: Array,
    ):
        super().__init__(config, model, run_folder)
        self.start = start
        self.chosen = chosen
        self.rejected = rejected

    def training_batches(self, dataset: Any, pairs: Pairs) -> tuple[MicroBatches, Array, Array]:
        """See :meth:`GenerativeTrainer.training_batches`; a row is one target."""
        self.model.eval()
        kept = KeptRows(self.config, self.model, dataset, self.show_progress)
        rows = PreferenceRows(
            pairs.take(self.chosen), self.rejected, variants=self.model.variants, seed=self.config["seed"]
        )
        digest = hashlib.sha256(self.chosen.tobytes() + self.rejected.tobytes()).hexdigest()
        what = {"weights": self.start, "rows and rejected items": digest}
        if self.config.settings.train.bf16:
            what["computed in"] = "bfloat16"
        with spent_on("reference"), whole(self.model):
            reference = kept.get("reference", what, len(rows), lambda some: self._log_probs(rows, some))
        against = reference[:, 1:]
        logger.info(
            "%d rejected items (%s) for %d rows; mean log-probability of chosen items %.3f, of rejected ones %.3f",
            np.count_nonzero(self.rejected),
            self.config.settings.preference.source,
            len(rows),
            reference[:, 0].mean(),
            against[np.isfinite(against)].mean() if np.isfinite(against).any() else np.nan,
        )
        batches = PreferenceBatches(rows, self.model.encoder, reference, self._smoothing(dataset, rows))
        return batches, rows.num_items, np.ones(len(rows), dtype=np.int64)

    @torch.no_grad()
    def _log_probs(self, rows: PreferenceRows, some: Array) -> Array:
        """Log-probabilities of all answers of some rows, ``[rows, 1 + D * R]``; rows of like length together.

        They are computed in the precision of training: else the first ratios would be what rounding does.
        """
        encoder, size = self.model.encoder, self.config["eval_batch_size"]
        device, rounded = self.model.backbone.device, self.config.settings.train.bf16
        order = np.argsort(rows.num_items[some], kind="stable")
        table = np.empty((len(some), 1 + len(rows.rejected) * rows.rejected.shape[2]), dtype=np.float32)
        for low in range(0, len(some), size):
            own = order[low : low + size]
            encoded = [encode_answers(encoder, rows.all_answers(row)) for row in some[own]]
            batch = collate_answers(encoded, encoder.pad_id).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=rounded):
                table[own] = self.model.answer_log_probs(batch).float().cpu().numpy()
        return table

    def _smoothing(self, dataset: Any, rows: PreferenceRows) -> Array | None:
        """``[rows, D * R]`` chance that each pair is the wrong way round."""
        own = self.config.settings.preference
        if not getattr(self.model.preference, "smooths", False) or own.smoothing == "none":
            return None
        rejected = rows.rejected.transpose(1, 0, 2).reshape(len(rows), -1)
        if own.smoothing == "constant":
            return np.full(rejected.shape, own.smoothing_rate, dtype=np.float32)
        oracle = self.model.reward_model
        table = np.empty(rejected.shape, dtype=np.float32)
        for low in range(0, len(rows), _SCORED):
            some = np.arange(low, min(low + _SCORED, len(rows)))
            scores = oracle.scores(dataset.inter_feat[self.chosen[some]])
            chosen = scores.gather(1, torch.from_numpy(rows.pairs.target[some])[:, None] - 1)
            against = scores.gather(1, torch.from_numpy(rejected[some]).long().sub(1).clamp_min(0))
            limits = {"temperature": own.smoothing_temperature, "limit": own.max_smoothing}
            table[some] = personalised_smoothing(chosen, against, **limits).numpy()
        return table
