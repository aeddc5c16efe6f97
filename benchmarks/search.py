"""The trie, Eq. 10 and constrained search at growing catalogues."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.measure import once, paired, peak_bytes
from benchmarks.steps import CASES
from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.decoding.beam import beam_search
from recbole_ilrec.identifiers.catalog import Catalog
from recbole_ilrec.identifiers.trie import Trie, build_trie
from recbole_ilrec.reward.token_reward import token_rewards
from recbole_ilrec.settings import BackboneSettings

LEVELS, CODES = 4, 256
SMOLLM2 = 49_152
"""Its vocabulary, by which its size is found among the steps'."""


def identifiers(items: int) -> np.ndarray:
    """``[items, 4]`` random codes, a level's own numbers each; a few items share all of them."""
    chance = np.random.default_rng(0)
    return chance.integers(CODES, size=(items, LEVELS), dtype=np.int32) + CODES * np.arange(LEVELS, dtype=np.int32)


def trie(items: int) -> dict[str, float]:
    """Time and peak memory of building trie and catalogue, and time of a step down for 50 beams of 256 users."""
    rows = identifiers(items)
    built = []
    seconds = once(lambda: built.append(build_trie(rows)[0]))
    peak, tree = peak_bytes(), built[0]
    nodes = torch.randint(1, CODES, (256, 50))
    down = paired({"children": lambda: tree.edges(nodes.flatten())})["children"]["seconds"]
    return {
        "build s": seconds,
        "peak GB": peak / 1e9,
        "nodes": tree.num_nodes,
        "children of 12,800 beams ms": 1e3 * down,
        "catalogue s": once(lambda: Catalog(rows)),
        "catalogue peak GB": peak_bytes() / 1e9,
    }


def rewards(items: int) -> dict[str, float]:
    """Eq. 10 at all nodes of the paths of 8 targets."""
    catalog = Catalog(np.unique(identifiers(items), axis=0))
    scores = torch.rand(8, catalog.num_items, dtype=torch.float64)
    scores /= scores.sum(1, keepdim=True)
    path = catalog.path[torch.randint(1, catalog.num_items, (8,))]
    example = torch.arange(8)[:, None].expand_as(path)
    spent = paired({"rewards": lambda: token_rewards(scores, catalog, example[path >= 0], path[path >= 0])}, 3)
    return {"ms a target": 1e3 * spent["rewards"]["seconds"] / 8}


def decode(sizes: Sequence[int], users: int = 64, width: int = 20, rounds: int = 7) -> dict[int, dict[str, float]]:
    """The whole search of ``tiny`` in catalogues of these sizes, alternating: prompts of 33 tokens, random weights."""
    names = [f"<{level}_{code}>" for level in range(LEVELS) for code in range(CODES)]
    backbone = build_backbone(BackboneSettings(dropout=0.0), names, [], 0).eval()
    first = backbone.tokenizer.convert_tokens_to_ids(names[0])
    tries = {size: build_trie(identifiers(size) + first)[0] for size in sizes}
    prompts = torch.from_numpy(np.random.default_rng(0).integers(first, first + len(names), (users, 33)))
    mask = torch.ones_like(prompts, dtype=torch.bool)

    def search(tree: Trie) -> object:
        return beam_search(backbone, tree, prompts, mask, num_beams=width)

    spent = paired({str(size): partial(search, tree) for size, tree in tries.items()}, rounds)
    return {
        size: {"ms a user": 1e3 * spent[str(size)]["seconds"] / users, "of the smallest's": spent[str(size)]["ratio"]}
        for size in sizes
    }


class World:
    """A random model, a catalogue of ``items`` and prompts of ``users``: ``length`` tokens, the first ``shared`` alike.

    ``model`` is ``tiny``, or ``135M`` for one of SmolLM2's size, whose blocks are the library's own.
    """

    def __init__(self, users: int, length: int, items: int, model: str = "tiny", shared: int = 0):
        names = [f"<{level}_{code}>" for level in range(LEVELS) for code in range(32)]
        if model == "tiny":
            self.backbone = build_backbone(BackboneSettings(dropout=0.0), names, [], 0).eval()
            first = self.backbone.tokenizer.convert_tokens_to_ids(names[0])
        else:
            self.backbone = CASES[SMOLLM2].backbone().eval()
            first = SMOLLM2 - len(names)
        chance = np.random.default_rng(0)
        codes = np.unique(chance.integers(32, size=(items, LEVELS)), axis=0) + 32 * np.arange(LEVELS) + first
        self.catalog = Catalog(codes)
        self.prompts = torch.from_numpy(chance.integers(first, first + len(names), (users, length)))
        self.prompts[:, :shared] = self.prompts[0, :shared]
        self.mask = torch.ones_like(self.prompts, dtype=torch.bool)
        self._next: dict[tuple[int, ...], list[int]] = {}
        for row in codes.tolist():
            for depth in range(LEVELS):
                following = self._next.setdefault(tuple(row[:depth]), [])
                if row[depth] not in following:
                    following.append(row[depth])

    def ours(self, width: int) -> torch.Tensor:
        """Identifiers ``[users, width, 4]`` that the package's search finds."""
        ranking = beam_search(self.backbone, self.catalog.trie, self.prompts, self.mask, num_beams=width)
        return self.catalog.tokens[self.catalog.item_order[self.catalog.leaf_start[ranking.leaf]]]

    def theirs(self, width: int) -> torch.Tensor:
        """The same by the library's ``generate``, told what may follow from a table of all prefixes."""
        out = self.backbone.model.generate(
            self.prompts,
            attention_mask=self.mask.long(),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=LEVELS,
            do_sample=False,
            eos_token_id=None,
            prefix_allowed_tokens_fn=self._allowed,
        )
        return out[:, self.prompts.shape[1] :].view(len(self.prompts), width, LEVELS)

    def _allowed(self, _batch: int, ids: torch.Tensor) -> list[int]:
        return self._next[tuple(ids[self.prompts.shape[1] :].tolist())]

    def search_ms(self, width: int, rounds: int) -> dict[str, float]:
        """Milliseconds of a user's search."""
        spent = paired({"search": lambda: self.ours(width)}, rounds)["search"]["seconds"]
        return {"search": 1e3 * spent / len(self.prompts)}


def beams(
    users: int, length: int, items: int, width: int, rounds: int, model: str = "tiny", shared: int = 0
) -> dict[str, float]:
    """Our search beside the library's, on the same weights; both must find the same identifiers.

    ``length`` tokens a prompt: Instrument has 33 in the mean. The first ``shared`` are the same for all users: a worded
    template for pretrained models (``properties/prompt/lcrec.yaml``) begins with about 35.
    """
    world = World(users, length, items, model, shared)
    spent = paired({"ours": lambda: world.ours(width), "theirs": lambda: world.theirs(width)}, rounds)
    # The library renormalises after its mask, so probabilities, not the order among near ties, may differ.
    pairs = zip(world.ours(width).tolist(), world.theirs(width).tolist(), strict=True)
    same = np.mean([len({*map(tuple, one)} & {*map(tuple, other)}) / width for one, other in pairs])
    return {
        "users/s": users / spent["ours"]["seconds"],
        "generate users/s": users / spent["theirs"]["seconds"],
        "times faster": spent["theirs"]["ratio"],
        "same beams": float(same),
    }
