"""The small model's prompts and beams on a CPU: the numbers of the stock code to rounding, in fewer passes over memory.

All beams of a user stand in one product with the keys of the prompt, which are stored once; beside it each beam keeps
the few keys and values of its own tokens, so that a step costs in proportion to the beams and not to their square. The
last block of a prompt computes queries and feed-forward at the last token alone. Weights are laid out anew for each
search: nothing is kept that training could outdate.

Positions are counted from the first column, padding included: scores depend on the distance of two tokens alone
(arXiv:2104.09864), so all users of a batch share them, and the rotation of a step is that of its weights.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recbole_ilrec.backbone.base import Backbone, DecodeState
from recbole_ilrec.backbone.fast_llama import applies, paired, rms_normed, turns

ROWS = 2048
"""Prompt tokens that go through the blocks together, whole users always."""


class _Block:
    """A decoder block, the weights of its attention laid out for decoding.

    Features that are rotated together stand side by side, and queries carry the scale of the scores.
    """

    def __init__(self, block: Any):
        attention, self.head_dim = block.self_attn, block.self_attn.head_dim
        query, key = (paired(projection.weight, self.head_dim) for projection in (attention.q_proj, attention.k_proj))
        self.query = (query * attention.scaling).t().contiguous()
        self.key = key.t().contiguous()
        self.value = attention.v_proj.weight.t()
        self._block = block

    def normed(self, states: Tensor) -> Tensor:
        """What attention reads of ``states [n, H]``."""
        return _normed(states, self._block.input_layernorm)

    def by_head(self, features: Tensor) -> Tensor:
        """``[..., H]`` as ``[..., heads, d]``."""
        return features.unflatten(-1, (-1, self.head_dim))

    def turned(self, features: Tensor, turn: Tensor) -> Tensor:
        """Queries or keys ``[..., H]``, or the weights they are made with, rotated by ``turn [..., 1, d / 2]``."""
        pairs = torch.view_as_complex(self.by_head(features).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-3)

    def finish(self, states: Tensor, attended: Tensor) -> None:
        """Add to ``states [B * R, H]`` what was ``attended [B, heads, R, d]``, then the feed-forward of the sum."""
        states.addmm_(attended.transpose(1, 2).reshape(states.shape), self._block.self_attn.o_proj.weight.t())
        mlp, normed = self._block.mlp, _normed(states, self._block.post_attention_layernorm)
        states.addmm_(mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)), mlp.down_proj.weight.t())


def _normed(states: Tensor, norm: Any) -> Tensor:
    return rms_normed(states, norm.weight, norm.variance_epsilon)[0]


@dataclass
class _Memory:
    """Keys and values of some users in one block.

    Attributes:
        keys: ``[B * heads, T, d]``, those of the prompts.
        values: likewise.
        own_keys: ``[depth, B * W, H]``, those of the tokens that each beam took; at first one beam that took none.
        own_values: likewise.
    """

    keys: Tensor
    values: Tensor
    own_keys: Tensor
    own_values: Tensor

    def grow(self, row: Tensor) -> None:
        """Let the beams ``row [n]`` go on, with room for a token more."""
        self.own_keys, self.own_values = _grown(self.own_keys, row), _grown(self.own_values, row)


def _grown(own: Tensor, row: Tensor) -> Tensor:
    grown = own.new_empty(len(own) + 1, len(row), own.shape[2])
    torch.index_select(own, 1, row, out=grown[:-1])
    return grown


@dataclass
class _Users:
    """What is kept of some users between steps.

    Attributes:
        length: T, columns of their prompts.
        padding: ``[B, 1, 1, T]``, added to scores; ``None`` where no prompt is padded.
        memory: of each block.
        depth: tokens that each beam has taken.
        width: beams of a user.
    """

    length: int
    padding: Tensor | None
    memory: list[_Memory] = field(default_factory=list)
    depth: int = 0
    width: int = 1


@dataclass
class _FastState:
    """The blocks of one search, and its users some at a time."""

    blocks: list[_Block]
    users: list[_Users]
    at_once: int


class FastBackbone(Backbone):
    """A Llama that :func:`~recbole_ilrec.backbone.fast_llama.hasten` has hastened, which decodes faster too.

    In training mode, on anything but float32 on a CPU, and while its weights are shared out between processes, it
    decodes as every :class:`~recbole_ilrec.backbone.base.Backbone` does.
    """

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
        """See :meth:`~recbole_ilrec.backbone.base.Backbone.prefill`."""
        weight = self.model.get_input_embeddings().weight
        if self.training or not applies(weight) or hasattr(weight, "full_tensor"):
            return super().prefill(input_ids, mask)
        state = _FastState([_Block(block) for block in self.blocks], [], max(1, ROWS // input_ids.shape[1]))
        parts = zip(input_ids.split(state.at_once), mask.split(state.at_once), strict=True)
        return torch.cat([self._read(state, *part) for part in parts]), state

    @torch.no_grad()
    def extend(self, state: Any, tokens: Tensor, parent: Tensor) -> Tensor:
        """See :meth:`~recbole_ilrec.backbone.base.Backbone.extend`."""
        if isinstance(state, DecodeState):
            return super().extend(state, tokens, parent)
        parts = zip(state.users, tokens.split(state.at_once), parent.split(state.at_once), strict=True)
        return torch.cat([self._step(state.blocks, *part) for part in parts])

    @torch.inference_mode()
    def _read(self, state: _FastState, ids: Tensor, real: Tensor) -> Tensor:
        """States ``[B, 1, H]`` after the prompts ``[B, T]`` of some users, whom ``state`` gains."""
        batch, length = ids.shape
        future, padding = _masks(real)
        hidden: Tensor | None = future
        users = _Users(length, padding)
        states = self.model.get_input_embeddings()(ids)
        turn = self._turn(states, torch.arange(length))
        for block in state.blocks:
            normed = block.normed(states)
            keys, values = block.turned(normed @ block.key, turn), normed @ block.value
            keys, values = (block.by_head(x).transpose(1, 2).flatten(0, 1) for x in (keys, values))
            nothing = states.new_empty(0, batch, states.shape[-1])
            users.memory.append(_Memory(keys, values, nothing, nothing))
            if block is state.blocks[-1]:  # nobody reads what the other tokens would become
                states, normed, turn, hidden = states[:, -1:].contiguous(), normed[:, -1:], turn[-1:], padding
            queries = block.by_head(block.turned(normed @ block.query, turn)).transpose(1, 2)
            scores = _product(queries, keys.transpose(1, 2))
            weights = (scores if hidden is None else scores.add_(hidden)).softmax(-1)
            block.finish(states.flatten(0, 1), _product(weights, values))
        state.users.append(users)
        return _normed(states, self.model.get_decoder().norm)

    @torch.inference_mode()
    def _step(self, blocks: list[_Block], users: _Users, tokens: Tensor, parent: Tensor) -> Tensor:
        """States ``[B, W, H]`` after the next token of each beam of some users."""
        batch, width = tokens.shape
        row = (parent + users.width * torch.arange(batch)[:, None]).flatten()
        states = self.model.get_input_embeddings()(tokens).flatten(0, 1)
        turn = self._turn(states, torch.tensor([users.length + users.depth]))
        users.depth, users.width = users.depth + 1, width
        for block, memory in zip(blocks, users.memory, strict=True):
            memory.grow(row)
            normed = block.normed(states)
            torch.mm(normed, block.turned(block.key, turn), out=memory.own_keys[-1])
            torch.mm(normed, block.value, out=memory.own_values[-1])
            queries = block.by_head((normed @ block.turned(block.query, turn)).view(batch, width, -1))
            block.finish(states, self._attended(block, users, memory, queries.transpose(1, 2).contiguous()))
        return _normed(states, self.model.get_decoder().norm).view(batch, width, -1)

    @staticmethod
    def _attended(block: _Block, users: _Users, memory: _Memory, queries: Tensor) -> Tensor:
        """What beams with ``queries [B, heads, W, d]`` read from the prompt and from their own tokens, like them."""
        prompt = _product(queries, memory.keys.transpose(1, 2))
        if users.padding is not None:
            prompt.add_(users.padding)
        beams = (len(queries), users.width)
        own_keys, own_values = (
            block.by_head(own.unflatten(1, beams)).transpose(2, 3) for own in (memory.own_keys, memory.own_values)
        )
        own = (queries * own_keys).sum(-1).permute(1, 2, 3, 0)
        weights = torch.cat([prompt, own], dim=-1).softmax(-1)
        attended = _product(weights[..., : users.length], memory.values)
        for weight, value in zip(weights[..., users.length :].split(1, dim=-1), own_values, strict=True):
            attended.addcmul_(weight, value)
        return attended

    def _turn(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotations ``[R, 1, d / 2]`` of positions ``[R]``."""
        return turns(self.model.get_decoder().rotary_emb(states, positions[None]))[0]


def _masks(real: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is added to scores of prompts, ``[B or 1, 1, T, T]``, and for padding alone ``[B, 1, 1, T]``, if any is."""
    length, lowest = real.shape[1], torch.finfo(torch.float32).min
    future = torch.full((1, 1, length, length), lowest).triu_(1)
    if bool(real.all()):
        return future, None
    padding = torch.zeros(len(real), 1, 1, length).masked_fill_(~real[:, None, None], lowest)
    return torch.minimum(future, padding), padding


def _product(rows: Tensor, others: Tensor) -> Tensor:
    """``[B, heads, R, n]`` times ``[B * heads, n, m]``."""
    return torch.bmm(rows.flatten(0, 1), others).unflatten(0, rows.shape[:2])
