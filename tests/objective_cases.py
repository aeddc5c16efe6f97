"""Random steps for tests of objectives: states, targets and legal tokens of a small made-up model."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recbole_ilrec.objective import build_objective
from recbole_ilrec.schema import LayerStates, LegalTokens, LossTerms, TokenBatch
from recbole_ilrec.settings import ILRecSettings

EOS = 0


@dataclass
class Step:
    """Leaves that can take gradients, and the step built from them. ``table[n]``: next token -> reward."""

    final: Tensor
    candidates: list[Tensor]
    head: Tensor
    targets: Tensor
    legal: LegalTokens
    table: list[dict[int, float]]
    item_tokens: Tensor
    ilrec_rows: Tensor | None = None

    @property
    def leaves(self) -> list[Tensor]:
        return [self.final, *self.candidates, self.head]

    def states(self) -> LayerStates:
        return LayerStates(self.final, tuple(self.candidates), lambda x: x @ self.head.T)

    def batch(self) -> TokenBatch:
        rows = torch.arange(len(self.targets))
        return TokenBatch(rows[None], rows, self.targets, rows, rows, self.ilrec_rows)

    def rows(self, low: int, high: int) -> "Step":
        """The supervised tokens ``low : high`` alone, on the same leaves."""
        kept = (self.legal.row >= low) & (self.legal.row < high)
        legal = LegalTokens(self.legal.row[kept] - low, self.legal.token[kept], self.legal.reward[kept])
        return replace(
            self,
            final=self.final[low:high],
            candidates=[c[low:high] for c in self.candidates],
            targets=self.targets[low:high],
            legal=legal,
            table=self.table[low:high],
            ilrec_rows=None if self.ilrec_rows is None else self.ilrec_rows[low:high],
        )

    def run(self, name: str = "ilrec", epoch: float = 0.0, generator=None, **settings) -> LossTerms:
        """The loss under changed settings; ``lambda`` is written ``lambda_``."""
        objective = build_objective(name, ILRecSettings(**settings), self.item_tokens, eos_id=EOS)
        layers = self.candidates[len(self.candidates) - objective.needs.layers :]
        states = LayerStates(self.final, tuple(layers), self.states().head)
        return objective(states, self.batch(), self.legal, epoch=epoch, generator=generator)

    def part_gradients(self, part: str, **settings) -> list[Tensor]:
        """Of one part of ILRec's loss: what the weighted total's gradient loses without it."""
        weight = {"cpd": "lambda_", "crr": "mu"}
        chosen = settings | dict.fromkeys((w for name, w in weight.items() if name != part), 0.0)
        whole = self.gradients(self.run(**chosen).total)
        if part == "cpo":
            return whole
        rest = self.gradients(self.run(**chosen | {weight[part]: 0.0}).total)
        return [(a - b) / settings[weight[part]] for a, b in zip(whole, rest, strict=True)]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """By every leaf; zeros where the loss does not depend on it."""
        found = torch.autograd.grad(loss, self.leaves, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.leaves, found, strict=True)]


def random_step(rows: int, vocab: int, seed: int = 0, layers: int = 3, dtype=torch.float64, hidden: int = 6) -> Step:
    """Targets are item tokens or the end token; about a fifth of the rows have no legal tokens."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype).requires_grad_()

    item_tokens = torch.rand(vocab, generator=source) > 0.3
    item_tokens[1] = True
    choices = torch.cat([item_tokens.nonzero().squeeze(1), torch.tensor([EOS])])
    targets = choices[torch.randint(len(choices), (rows,), generator=source)]
    final, head = normal(rows, hidden), normal(vocab, hidden)
    candidates = [normal(rows, hidden) for _ in range(layers)]
    legal, table = random_legal(targets, choices, source)
    return Step(final, candidates, head, targets, legal, table, item_tokens)


def random_legal(targets: Tensor, choices: Tensor, source: torch.Generator) -> tuple[LegalTokens, list[dict]]:
    """A few of ``choices`` at each row, the target among them, with skewed rewards that sum to 1."""
    row, token, reward, table = [], [], [], []
    for n, target in enumerate(targets.tolist()):
        table.append({})
        if torch.rand((), generator=source) < 0.2:
            continue
        others = choices[torch.randperm(len(choices), generator=source)[: max(1, len(choices) // 3)]].tolist()
        children = sorted({target, *others})
        values = torch.rand(len(children), generator=source, dtype=torch.float64) ** 3
        table[n] = dict(zip(children, (values / values.sum()).tolist(), strict=True))
        row += [n] * len(children)
        token += children
        reward += table[n].values()
    return LegalTokens(torch.tensor(row).long(), torch.tensor(token).long(), torch.tensor(reward).double()), table
