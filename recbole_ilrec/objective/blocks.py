"""A loss over the logits of the head, a few rows at a time: values and gradients in one pass.

The tables of logits are what a step's memory and, for a small model, much of its time go into. Here the head is applied
to a chunk of rows, the loss of each block of them is computed in as few passes as it takes, its gradient takes the
logits' place, and the head's product with it gives the gradients of states and weights. Nothing as large as
``[N, V]`` ever exists, and nothing is computed twice. Knows states and logits; never targets or equations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from recbole_ilrec.schema import LayerStates

BLOCK = {"cpu": 2**19}
"""Numbers of a table that a loss works on at a time. A call on a few numbers costs some 10 microseconds between passes
over tables, which sweep the interpreter out of the cache, so blocks are as large as a step's memory allows."""
ACCELERATOR_BLOCK = 2**26
CHUNK_ROWS = 256
"""Rows of a head product at least: fewer would leave it waiting for the head's weights."""


@dataclass(frozen=True)
class Tables:
    """Logits of the rows ``low : high``, without gradient, in the head's precision.

    A loss may work in them: it leaves its derivatives in the tables' place.

    Attributes:
        low: number of the first row.
        high: one past the last.
        final: ``[n, V]`` of the last layer.
        ensemble: ``[n, V]`` of the candidate layers' ensemble, or ``None`` where none is asked for; its derivatives are
            read only where they are wanted.
        students: ``[m, K, V]`` of the candidate layers at the first m rows, the distilled ones; ``[m, K, S]`` where
            only some tokens are wanted of them.
    """

    low: int
    high: int
    final: Tensor
    ensemble: Tensor | None
    students: Tensor


BlockLoss = Callable[[Tables], dict[str, Tensor]]
"""Named values of the rows of a block, any number each; the derivatives of the loss then stand in the tables."""


@dataclass
class HeadLoss:
    """A block loss over all rows.

    Attributes:
        states: states at the N supervised tokens, the distilled ones first.
        distilled: M, the rows at which the loss wants the candidates' own logits.
        ensemble: the ensemble logits ``[n, V]`` of candidate states, if the loss wants them.
        ensemble_of_logits: the same of the candidates' logits ``[n, K, V]``, which saves a product.
        ensemble_learns: take the gradient by the ensemble's logits further.
        spare_head: take the gradient by the students' logits to the states only.
        narrow: the head's weights ``[S, H]``, and bias if any, for the only tokens whose logits are wanted of the
            students (:attr:`LayerStates.head_rows`): a product of S columns in place of V.
    """

    states: LayerStates
    distilled: int
    ensemble: Callable[[Sequence[Tensor]], Tensor] | None = None
    ensemble_of_logits: Callable[[Tensor], Tensor] | None = None
    ensemble_learns: bool = False
    spare_head: bool = False
    narrow: tuple[Tensor, ...] = ()
    _inputs: list[Tensor] = field(init=False)
    _gradients: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        states = self.states
        with torch.enable_grad():
            probe = states.head(states.final[:1].detach())
        self._vocab_size = probe.shape[1]
        self._joins = self.ensemble_of_logits is not None and not self.ensemble_learns and not self.narrow
        self._inputs = [states.final, *states.candidates, *self.narrow, *leaves_of(probe)]
        self._learns = torch.is_grad_enabled() and any(x.requires_grad for x in self._inputs)
        rowwise = self._inputs[: 1 + len(states.candidates)]
        self._gradients = [torch.zeros_like(x) if self._learns and x.requires_grad else None for x in rowwise]
        self._gradients += [None] * (len(self._inputs) - len(rowwise))  # the first product becomes the sum
        self._narrow = [self._leaf(x, x) for x in self.narrow]

    @torch.no_grad()
    def values(self, loss: BlockLoss) -> dict[str, Tensor]:
        """The named values of all rows, in order; the gradients are kept for :meth:`with_gradient`."""
        rows = len(self.states.final)
        most = max(1, BLOCK.get(self.states.final.device.type, ACCELERATOR_BLOCK) // self._vocab_size)
        size = -(-rows // max(1, -(-rows // most))) or 1  # as many blocks as that takes, of like size
        blocks = list(range(0, max(rows, 1), size))
        together = -(-CHUNK_ROWS // size)
        found: list[dict[str, Tensor]] = []
        for first in range(0, len(blocks), together):
            bounds = [*blocks[first : first + together + 1], rows][: together + 1]
            found += self._chunk(loss, bounds)
        return {name: torch.cat([values[name] for values in found]) for name in found[0]}

    def _chunk(self, loss: BlockLoss, bounds: list[int]) -> Iterator[dict[str, Tensor]]:
        """The loss of the blocks between ``bounds``."""
        low, high = bounds[0], bounds[-1]
        count = min(max(self.distilled - low, 0), high - low)
        leaf, *candidates = (self._leaf(x[low:high], x) for x in self._inputs[: 1 + len(self.states.candidates)])
        picked = self._picked(low, count)
        with torch.set_grad_enabled(self._learns):
            outputs = self._logits(leaf, picked)
        tables = [x.detach() for x in outputs]
        final, students = self._parts(tables, high - low, picked)
        ensemble, of_ensemble = self._ensemble(candidates, count)
        missing = 0 if of_ensemble is None else high - low - len(of_ensemble)  # rows at the start
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            own = slice(start - low, end - low)
            rest = slice(max(own.start - missing, 0), max(own.stop - missing, 0))
            given = None if of_ensemble is None else self._joined(students[own], of_ensemble[rest])
            yield loss(Tables(low=start, high=end, final=final[own], ensemble=given, students=students[own]))
        if self._learns:
            leaves = [leaf, *candidates, picked]
            narrow = dict(enumerate(self._narrow, start=len(leaves) - 1))
            whole = {at: x for at, x in enumerate(self._inputs) if at >= len(leaves) - 1 + len(narrow)}
            self._collect([(outputs[0], tables[0]), (ensemble, of_ensemble)], leaves, low, whole)
            self._collect([*zip(outputs, tables, strict=True)][1:], leaves, low, {} if self.spare_head else narrow)

    def _ensemble(self, candidates: list[Tensor], known: int) -> tuple[Tensor | None, Tensor | None]:
        """The ensemble's logits, with gradient and as a table to work in, of the rows that need a product of their own.

        Of the ``known`` first rows the candidates' logits are there.
        """
        if self.ensemble is None:
            return None, None
        if self._learns and self.ensemble_learns:
            with torch.enable_grad():
                ensemble = self.ensemble(candidates)
            # What it was computed from may have kept it for its own derivative.
            return ensemble, ensemble.detach().clone() if ensemble.requires_grad else ensemble
        return None, self.ensemble([x[known if self._joins else 0 :] for x in candidates])

    def _joined(self, students: Tensor, product: Tensor) -> Tensor:
        """The ensemble's logits of a block: of the first rows from the students' logits, of the others as computed."""
        if self.ensemble_of_logits is None or not self._joins or not len(students):
            return product
        known = self.ensemble_of_logits(students)
        return torch.cat([known, product]) if len(product) else known

    def _leaf(self, x: Tensor, source: Tensor) -> Tensor:
        return x.detach().requires_grad_(self._learns and source.requires_grad)

    def _picked(self, low: int, count: int) -> Tensor:
        """``[m, K, H]``, the candidates' states at ``count`` rows."""
        candidates = self.states.candidates
        if not candidates:
            final = self.states.final
            return final.new_zeros(0, 1, final.shape[1])
        picked = torch.stack([x.detach()[low : low + count] for x in candidates], 1)
        return picked.requires_grad_(self._learns and any(x.requires_grad for x in candidates))

    def _logits(self, final: Tensor, picked: Tensor) -> list[Tensor]:
        """One head product for all rows; two where the students' must not train the head or have fewer columns."""
        if self.narrow:
            flat = picked.flatten(0, 1)
            return [self.states.head(final), linear(flat, *(x.to(flat.dtype) for x in self._narrow))]
        if self.spare_head:
            return [self.states.head(final), self.states.head(picked.flatten(0, 1))]
        return [self.states.head(torch.cat([final, picked.flatten(0, 1)]) if len(picked) else final)]

    def _parts(self, tables: list[Tensor], rows: int, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the logits: the last layer's and the students' ``[m, K, V]``."""
        students = tables[1] if len(tables) > 1 else tables[0][rows:]
        return tables[0][:rows], students.view(*picked.shape[:2], students.shape[1])

    def _collect(self, products: list[Any], leaves: list[Tensor], low: int, weights: dict[int, Tensor]) -> None:
        """Carry gradients by logits on to the states of this chunk, and to ``weights`` by their place."""
        products = [(output, table) for output, table in products if output is not None and output.requires_grad]
        states = len(leaves) - 1  # the last ones, the picked states, have no place of their own
        places = [*enumerate(leaves[:-1]), (None, leaves[-1]), *weights.items()]
        wanted = [(at, x) for at, x in places if x.requires_grad]
        if not products or not wanted:
            return
        found = torch.autograd.grad(
            [output for output, _ in products],
            [x for _, x in wanted],
            [table for _, table in products],
            allow_unused=True,
        )
        for (at, _), gradient in zip(wanted, found, strict=True):
            if gradient is None:
                continue
            if at is None:
                for kept, own in zip(self._gradients[1:states], gradient.unbind(1), strict=True):
                    if kept is not None:
                        kept[low : low + len(own)].add_(own)
                continue
            kept = self._gradients[at]
            if kept is None:
                self._gradients[at] = gradient
            elif at < states:
                kept[low : low + len(gradient)].add_(gradient)
            else:
                kept.add_(gradient)

    def with_gradient(self, value: Tensor) -> Tensor:
        """``value`` with the gradients of the last :meth:`values`."""
        if not self._learns:
            return value
        return _Known.apply(value, self._gradients, *self._inputs)


class _Known(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else (known * grad).to(known.dtype) for known in ctx.saved_tensors)


def leaves_of(output: Tensor) -> list[Tensor]:
    """The trained tensors that ``output`` was computed from, whatever modules wrap them."""
    found, waiting, seen = [], [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [parent for parent, _ in node.next_functions]
    return found
