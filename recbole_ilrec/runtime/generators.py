"""States of the generators of random numbers, for checkpoints."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy, torch and, where this process uses a GPU, of all GPUs."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back as :func:`random_state` found them; GPUs' only where as many are here as were then."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def generator_state() -> Tensor:
    """State of the generators that pretrained models draw dropout from, the CPU's and the GPU's: ``[n]`` uint8."""
    states = [torch.get_rng_state()]
    return torch.cat([*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states)


def set_generator_state(state: Tensor) -> None:
    """Put the generators back as :func:`generator_state` found them; a GPU's is left out where there is none."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if torch.cuda.is_available() and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone())
