"""The trained weights of a model as a whole: named, put back, averaged. Knows parameters; never what they compute."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime.shards import fill


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained by name, a tied one once: all, or adapters and what is trained beside them."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def frozen_key(model: nn.Module) -> str:
    """What tells the weights under adapters from others; empty where all weights are trained.

    Of every frozen tensor 64 numbers at even distances count: another model, or the same one in another precision,
    differs in nearly all of them, and reading billions before each run would be felt. They are of the tensor's first
    half, since rows that were added at the end of an embedding are drawn and may differ between machines in their last
    bits, as 4-bit codes may, which are left out.
    """
    frozen = [(name, p.detach()) for name, p in model.named_parameters() if not p.requires_grad]
    digest = hashlib.sha256()
    for name, values in frozen:
        digest.update(f"{name} {values.dtype}".encode())
        if values.is_floating_point():
            half = values.flatten()[: -(-values.numel() // 2)]
            some = half[:: max(1, len(half) // 64)][:64].contiguous()
            digest.update(some.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16] if frozen else ""


@torch.no_grad()
def load_weights(model: nn.Module, saved: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy saved parameters into a model of the same shape; parameters that are not trained stay as they are.

    Raises:
        UserError: names or shapes differ, i.e. other items, identifiers or backbone settings.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted(set(own) ^ set(saved)) or [name for name, p in own.items() if p.shape != saved[name].shape]
    if wrong:
        raise UserError(
            f"checkpoint {where} does not fit this run: {len(wrong)} weights differ in name or shape, first "
            f"'{wrong[0]}'. Use the settings, data and item index that it was trained with."
        )
    for name, parameter in own.items():
        fill(parameter, saved[name])


class WeightAverage:
    """Exponential moving average of the trained weights (Polyak averaging), with a warm-up of its decay."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().clone() for name, p in self.trained.items()}
        self.swapping = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number ``step`` (from 1)."""
        decay = min(self.decay, step / (step + 9))
        values = list(self.mean.values())
        torch._foreach_lerp_(values, [p.detach() for p in self.trained.values()], 1 - decay)

    @torch.no_grad()
    def restore(self, mean: Mapping[str, Tensor] | None) -> None:
        """Go on from a stored average; without one (the run had none before) from the weights as they are now."""
        for name, parameter in self.trained.items():
            if mean is None:
                self.mean[name].copy_(parameter)
            else:
                fill(self.mean[name], mean[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average, in place: shares are gathered from where they are.

        ``swapping`` stays true where it is interrupted: neither of both is whole then.
        """
        self.swapping = True
        for name, parameter in self.trained.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(kept)
        self.swapping = False
