"""A model whose weights, gradients and optimizer state are shared out between the processes (FSDP2 of torch).

Every process holds a share of each tensor, cut along its first axis. In a training step the weights of one decoder
block at a time, and those outside of the blocks, are gathered where they are used, and the gradients are averaged into
the shares, as data parallel training averages them. Knows modules and parameters; never what they compute.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from recbole_ilrec.errors import UserError
from recbole_ilrec.runtime import processes


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Keep a share of ``model`` in each process, on its ``device``; in one process it is only moved there.

    The first process's weights are everybody's, as in data parallel training. On a GPU only one group of weights at a
    time is whole while they are moved from the CPU.

    Args:
        model: with all of its weights; called as ``model(...)`` in training.
        blocks: modules in it whose weights are gathered separately.
        device: of this process.

    Raises:
        UserError: quantised weights, or a torch without FSDP2.
    """
    if processes.world() == 1:
        model.to(device)
        return
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise UserError("train.parallel=fsdp cannot share out 4-bit weights: leave it or quantization out.")
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UserError(f"train.parallel=fsdp needs torch 2.6 or newer, and this is {torch.__version__}.") from None
    with torch.no_grad():
        for parameter in model.parameters():
            distributed.broadcast(parameter.data, src=0)
    mesh = init_device_mesh(device.type, (processes.world(),))
    parts: list[Any] = [*blocks, model]
    for block in parts[:-1]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    # What is gathered ahead in the backward pass. Torch's default follows the forward passes since the last one, those
    # of an evaluation too: where one process had no users to evaluate, all would wait for each other for ever.
    for module, ahead in zip(parts, [model, *parts[:-1]], strict=True):
        module.set_modules_to_backward_prefetch([ahead])
    _root_state(model)._lazy_init()  # else the first block that runs, be it in an evaluation, is taken for the root


def is_shared_out(model: nn.Module) -> bool:
    """Whether :func:`shard` has cut it."""
    return bool(_parts(model))


def _root_state(model: Any) -> Any:
    return model._get_fsdp_state()


def _parts(model: nn.Module) -> list[Any]:
    """The modules that are gathered separately, the model itself first; none where it is not shared out."""
    if not hasattr(model, "unshard"):
        return []
    return [module for module in model.modules() if hasattr(module, "unshard")]


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Every process has all weights meanwhile, and uses the model without waiting for the others.

    All processes have to come here together. What is written to the weights inside is lost.

    Choice: evaluation decodes a different number of steps in each process, and every step would gather all blocks
    anew. So the weights, without gradients and optimizer state, are gathered once for it and have to fit on one GPU.
    """
    parts = _parts(model)
    if not parts or not hasattr(next(model.parameters()), "full_tensor"):
        yield
        return
    for part in parts[1:]:
        part.set_reshard_after_forward(False, recurse=False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        for part in parts[1:]:
            part.set_reshard_after_forward(True, recurse=False)


def whole_on_first(tree: Any) -> Any:
    """Nested values with every shared-out tensor whole, on the CPU of the first process; the others get an empty one.

    All processes have to come here together. Values that are not shared out stay as they are.
    """
    if hasattr(tree, "full_tensor"):
        full = tree.detach().full_tensor()
        return full.cpu() if processes.is_first() else full.new_empty(0)
    if isinstance(tree, Mapping):
        return {key: whole_on_first(entry) for key, entry in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole_on_first(entry) for entry in tree)
    return tree


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> Tensor:
    """Copy whole ``values`` into ``target``, or this process's share of them where it is shared out."""
    own: Any = target
    if hasattr(own, "to_local"):
        share = values.chunk(processes.world())[processes.rank() :][:1]
        own, values = own.detach().to_local(), share[0] if share else values[:0]
    return own.copy_(values)


def cut_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, as :func:`whole_on_first` makes it, with the shares that its parameters have."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            number: {
                name: _like(value, parameters[number]) if name != "step" else value for name, value in entries.items()
            }
            for number, entries in state["state"].items()
        },
    }


def _like(values: Any, parameter: Tensor) -> Any:
    if not hasattr(parameter, "to_local") or not isinstance(values, Tensor) or values.shape != parameter.shape:
        return values
    shares = torch.zeros_like(parameter, dtype=values.dtype)
    fill(shares, values)
    return shares


class Called(nn.Module):
    """What a training loop calls in place of a shared-out model, which it must not wrap for data parallel training.

    Args:
        model: shared out by :func:`shard`.
        autocast: the precision that it computes in.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[None]]):
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, *inputs: Any) -> Any:
        with self.autocast():
            return self.model(*inputs)
