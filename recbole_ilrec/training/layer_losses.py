"""Cross-entropy of every layer's own prediction while training goes on (Fig. 2 of the paper)."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.utils import dict2str, set_color

from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.objective.sft import cross_entropy
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.runtime.history import USERS_OF_LAYERS
from recbole_ilrec.schema import TokenBatch
from recbole_ilrec.training.loop import StepTrainer

logger = logging.getLogger(__name__)

_BATCH = 32


@torch.no_grad()
def layer_losses(model: GenerativeRecommender, pairs: Pairs) -> list[float]:
    """Mean cross-entropy of the answers' tokens under each layer's state, final norm and shared head (Eq. 1, 2).

    Choice: Fig. 2 does not say on which data. It is the validation item of at most 256 users, the same in every run and
    epoch, with the weights that are validated.

    Args:
        model: in evaluation mode.
        pairs: histories and the items after them; a fixed part is taken.

    Returns:
        L values in nats a token, the lowest layer first; the last one is the model's own loss.
    """
    backbone = model.backbone
    sums, tokens = torch.zeros(backbone.num_layers, dtype=torch.float64), 0
    for batch in _batches(model, pairs.some(USERS_OF_LAYERS)):
        states = backbone.layer_states(batch.input_ids, batch.select, backbone.num_layers - 1)
        for layer, state in enumerate((*states.candidates, states.final)):
            sums[layer] += cross_entropy(states.head(state), batch.targets).sum().item()
        tokens += batch.count
    return (sums / tokens).tolist()


def note_layer_losses(loop: StepTrainer, model: GenerativeRecommender, pairs: Pairs) -> dict[str, Any]:
    """Say in the log and in TensorBoard what the layers lose now.

    Returns:
        ``epoch`` (epochs done), ``step`` and ``losses`` of :func:`layer_losses`.
    """
    losses = layer_losses(model, pairs)
    named = {str(layer): loss for layer, loss in enumerate(losses, start=1)}
    logger.info("%s: %s", set_color("loss of each layer", "blue"), dict2str(named))
    loop.log({f"eval_layer_loss/{layer}": loss for layer, loss in named.items()})
    return {"epoch": float(loop.state.epoch or 0.0), "step": loop.state.global_step, "losses": losses}


def _batches(model: GenerativeRecommender, pairs: Pairs) -> Iterator[TokenBatch]:
    for low in range(0, len(pairs), _BATCH):
        some = pairs.take(np.arange(low, min(low + _BATCH, len(pairs))))
        yield model.encoder.collate(model.encoded(some)).to(model.backbone.device)
