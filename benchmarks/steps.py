"""A training step (forward and backward) of ILRec beside one of plain fine-tuning, on a made-up batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import paired, peak_bytes
from recbole_ilrec.backbone.adapter import attach_adapter
from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.objective import build_objective
from recbole_ilrec.schema import LegalTokens, TokenBatch
from recbole_ilrec.settings import AdapterSettings, ILRecSettings

TOKENS = 4
CHILDREN = 64
ITEM_TOKENS = 1024
"""Tokens of the items, the last ones of a vocabulary; a quarter of a small one."""


@dataclass(frozen=True)
class Case:
    """A model and a batch: ``rows`` rows of ``length`` tokens, all or the last few of them supervised."""

    vocab: int
    hidden: int
    layers: int
    rows: int
    intermediate: int = 256
    length: int = 80

    @property
    def items(self) -> int:
        """Tokens of the items."""
        return min(ITEM_TOKENS, self.vocab // 4)

    def backbone(self) -> Backbone:
        """A Llama of this size with random weights."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
        return Backbone(LlamaForCausalLM(config), None)

    def batch(self, kind: str) -> TokenBatch:
        """``prefix``: the last item of each row is supervised; ``sequence``: every token that has a past."""
        source = torch.Generator().manual_seed(0)
        first = 0 if kind == "sequence" else self.length - TOKENS
        ids = torch.randint(self.vocab, (self.rows, self.length), generator=source)
        select = torch.arange(self.rows * self.length).view(self.rows, -1)[:, first:].flatten()
        targets = torch.randint(self.vocab, (len(select),), generator=source)
        return TokenBatch(ids, select, targets, torch.zeros_like(select), torch.zeros_like(select))

    def legal(self, batch: TokenBatch) -> LegalTokens:
        """The target and some other tokens may follow, with rewards."""
        source = torch.Generator().manual_seed(1)
        count = len(batch.targets)
        token = torch.randint(self.vocab, (count, CHILDREN), generator=source)
        token[:, 0] = batch.targets
        reward = torch.rand(count, CHILDREN, generator=source).softmax(1)
        return LegalTokens(torch.arange(count).repeat_interleave(CHILDREN), token.flatten(), reward.flatten())

    def floor(self, kind: str, share: float, k: int, support: str = "vocab") -> float:
        """What ILRec's step must cost beside the baseline's by its products alone (attention left out of both).

        A product forward and backward is three of like size. Beside the baseline's, ILRec has those of the k students
        at their share of the supervised tokens and at the others the ensemble's, forward only. Where the students have
        logits of the items' tokens alone, their products are that much smaller and the ensemble has one everywhere.
        """
        positions = self.rows * self.length
        blocks = positions * self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)
        head = self.hidden * self.vocab * (positions if kind == "sequence" else self.rows * TOKENS)
        narrow = support == "item_tokens"
        of_students = 3 * k * share * (self.items / self.vocab if narrow else 1)
        return 1 + ((1 if narrow else 1 - share) + of_students) * head / (3 * (blocks + head))


CASES = {
    1_000: Case(1_000, hidden=128, layers=4, rows=20),
    49_152: Case(49_152, hidden=576, layers=30, rows=4, intermediate=1536),
    128_256: Case(128_256, hidden=1024, layers=24, rows=2, intermediate=4096),
}
"""``tiny`` with semantic IDs; the size of SmolLM2-135M; Llama 3's vocabulary on blocks that are three quarters of all
weights, as in its 1B model."""


def step(
    backbone: Backbone,
    case: Case,
    kind: str,
    name: str,
    share: float,
    k: int = ILRecSettings().k,
    support: str = "vocab",
) -> Callable[[], None]:
    """A callable that does one step."""
    batch = case.batch(kind)
    items = torch.arange(case.vocab) >= case.vocab - case.items
    objective = build_objective(name, ILRecSettings(cpd_share=share, k=k, cpd_support=support), items)
    legal, source = case.legal(batch), torch.Generator().manual_seed(0)

    def run() -> None:
        states = backbone.layer_states(batch.input_ids, batch.select, objective.needs.layers)
        (objective(states, batch, legal, generator=source).total / batch.count).backward()

    return run


def ratios(vocab: int, kind: str, share: float, rounds: int, support: str = "vocab") -> dict[str, float]:
    """CPU time of ILRec's step over the baseline's, and supervised tokens a second."""
    case = CASES[vocab]
    backbone = case.backbone()
    work = {name: step(backbone, case, kind, name, share, support=support) for name in ("sft", "ilrec")}
    spent = paired(work, rounds)
    count = case.batch(kind).count
    return {
        "step ratio": spent["ilrec"]["ratio"],
        "floor": case.floor(kind, share, ILRecSettings().layers, support),
        "sft tokens/s": count / spent["sft"]["seconds"],
        "ilrec tokens/s": count / spent["ilrec"]["seconds"],
    }


class _WithTheirHead(Backbone):
    """A backbone that leaves the head with trained rows to peft."""

    def head(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(states)


def adapter(vocab: int, kind: str, rounds: int) -> dict[str, float]:
    """CPU time of a step of plain fine-tuning by adapters and the rows of the items' tokens, with peft's own head."""
    case = CASES[vocab]
    model = case.backbone().model
    attach_adapter(model, AdapterSettings(lora=True), range(vocab - case.items, vocab), 0)
    ours, theirs = Backbone(model, None), _WithTheirHead(model, None)
    spent = paired({"ours": step(ours, case, kind, "sft", 1.0), "peft's": step(theirs, case, kind, "sft", 1.0)}, rounds)
    return {"s a step": spent["ours"]["seconds"], "with peft's head, of ours": spent["peft's"]["ratio"]}


def memory(vocab: int, kind: str, name: str, share: float) -> int:
    """Peak memory of a process that does two steps, bytes."""
    case = CASES[vocab]
    work = step(case.backbone(), case, kind, name, share)
    work()
    work()
    return peak_bytes()
