"""BIGRec's ways from a generated title to a ranking of the whole catalogue: grounding, and beams followed by it.

Joins generation, embedding and distances; the vectors of the items' titles are computed once and kept by content.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_ilrec.backbone.base import Backbone
from recbole_ilrec.backbone.text_states import text_states
from recbole_ilrec.collaborative.reward_model import RewardModel
from recbole_ilrec.data.sequences import as_rows
from recbole_ilrec.decoding.grounding import beams_first, best_of_group, closed_identifiers, nearest
from recbole_ilrec.decoding.passes import Keeper
from recbole_ilrec.decoding.users import banned_positions, generate_users, rank_users
from recbole_ilrec.errors import UserError
from recbole_ilrec.evaluation.choice import SURROUNDINGS
from recbole_ilrec.models.pretrained import local_backbone
from recbole_ilrec.preparation.files import made_once
from recbole_ilrec.prompt.encode import PromptEncoder
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, load_state, save_state
from recbole_ilrec.schema import Ranking

logger = logging.getLogger(__name__)

KIND = "title vectors"


def of_all_processes(answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """The answers of all users as token ids, where each process has generated those of some and has none for others."""
    longest = int(processes.maximum(torch.tensor(max(map(len, answers), default=0))))
    table = torch.full((len(answers), longest), -1)
    for row, answer in enumerate(answers):
        table[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
    return [row[row >= 0].tolist() for row in processes.maximum(table)]


class TitleRanker:
    """Ranks all identifiers for each history by distance between titles (``bigrec.ranker: grounding | hybrid``).

    Choice: the published code embeds with the language model before its fine-tuning, which is there at no cost when
    fine-tuning is a LoRA adapter: it is switched off. Without adapters ``bigrec.embedder=base`` loads that model for
    the embedding only and drops it again; ``model`` uses the fine-tuned one. A backbone trained from scratch has no
    base and always embeds as it is now.

    Args:
        config: the run.
        dataset: its training part.
        backbone: the language model.
        encoder: builds the prompts; its catalogue's identifiers are titles.
        titles: title of items 1 .. I.
        reward_model: gives the collaborative model for ``bigrec.weight_by=cf``; asked only then.

    Attributes:
        gamma: strength of the statistic in :meth:`rank`; the smallest of ``bigrec.gamma`` until one is chosen.

    Raises:
        UserError: answers have no end token.
    """

    def __init__(
        self,
        config: Any,
        dataset: Any,
        backbone: Backbone,
        encoder: PromptEncoder,
        titles: Sequence[str],
        reward_model: Callable[[], RewardModel],
    ):
        self.config = config
        self.settings = config.settings.bigrec
        self.gamma = min(self.settings.gamma)
        self.dataset = dataset
        self.backbone = backbone
        self.encoder = encoder
        catalog = encoder.catalog
        if catalog.eos_id is None:
            raise UserError(
                f"bigrec.ranker={self.settings.ranker} needs answers that end: set --prompt.append_eos=true."
            )
        first = catalog.item_order[catalog.leaf_start[:-1]]
        self.eos_id: int = catalog.eos_id
        self.titles = [titles[item - 1].strip(SURROUNDINGS) for item in first.tolist()]
        self._base = bool(config.settings.backbone.path) and self.settings.embedder == "base"
        self.reward_model = reward_model

    def rank(self, pairs: Pairs, count: int, **how: Any) -> Ranking:
        """The ``count`` best identifiers of each user, ``[B, count]`` in the order of ``pairs``."""
        return next(self.rankings(pairs, count, [self.gamma], **how))

    def rankings(
        self,
        pairs: Pairs,
        count: int,
        gammas: Sequence[float],
        *,
        batch_size: int,
        progress: str | None = None,
        keeper: Keeper | None = None,
    ) -> Iterator[Ranking]:
        """What :meth:`rank` gives under each of several ``gammas``; titles are generated and embedded once."""
        hybrid = self.settings.ranker == "hybrid"
        shared: dict[str, Any] = {"batch_size": batch_size, "device": self.backbone.device, "progress": progress}
        shared |= {"share": (processes.rank(), processes.world()), "keeper": keeper}
        histories = pairs.histories(torch.arange(len(pairs)).numpy())
        closed = self._closed(pairs)
        if hybrid:
            decode = self.config.settings.decode
            beams = rank_users(self.backbone, self.encoder, histories, decode, seen=pairs.seen(), **shared)
            beams = Ranking(leaf=processes.maximum(beams.leaf), score=processes.maximum(beams.score))
            items = self.embed(self.titles, cached=True)
            queries = items[beams.leaf[:, 0].clamp_min(0)]
        else:
            answers = generate_users(
                self.backbone, self.encoder, histories, self.settings, eos_id=self.eos_id, **shared
            )
            items = self.embed(self.titles, cached=True)
            queries = self._embed_answers(of_all_processes(answers))
        statistic = self._statistic(pairs) if any(gammas) else None
        wanted = count + (beams.leaf.shape[1] if hybrid else 0)
        for gamma in gammas:
            near = nearest(queries, items, wanted, statistic=statistic, gamma=gamma, closed=closed)
            yield beams_first(beams, near, count) if hybrid else near

    def _closed(self, pairs: Pairs) -> Tensor | None:
        if not self.config.settings.decode.exclude_history:
            return None
        return closed_identifiers(self.encoder.catalog, banned_positions(self.encoder.catalog, pairs.seen()))

    def _embed_answers(self, answers: Sequence[Sequence[int]]) -> Tensor:
        """``[B, H]``; an answer that several users get is embedded once."""
        texts = self.backbone.tokenizer.batch_decode(answers, skip_special_tokens=True)
        texts = [text.strip(SURROUNDINGS) for text in texts]
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        known = set(self.titles)
        logger.info(
            "Generated titles: %d of %d users got the title of an item", sum(t in known for t in texts), len(texts)
        )
        return self.embed(list(distinct), cached=False)[[distinct[text] for text in texts]]

    def embed(self, texts: Sequence[str], *, cached: bool) -> Tensor:
        """``[len(texts), H]`` float32: the last token's last hidden state of each text."""
        label = "Titles" if self.config["show_progress"] else None
        if not self._base:
            return text_states(self.backbone.decoder, self.backbone.tokenizer, texts, pooling="last", progress=label)
        folder = Path(self.config["cache_dir"]) / "titles" / self._key(texts)
        if not cached:
            return self._base_vectors(texts, label)
        with processes.first_alone(), made_once(folder):
            if not (folder / STATE).is_file():
                save_state(folder, {"vectors": self._base_vectors(texts, label)}, kind=KIND)
        return load_state(folder, kind=KIND)["vectors"]

    def _base_vectors(self, texts: Sequence[str], label: str | None) -> Tensor:
        """With the weights from before training: the adapters are switched off, or that model is loaded for this."""
        untrained = self.backbone.untrained()
        if untrained is not None:
            with untrained:
                return text_states(
                    self.backbone.decoder, self.backbone.tokenizer, texts, pooling="last", progress=label
                )
        from recbole_ilrec.backbone.causal_lm import base_states

        device = self.backbone.device
        return base_states(local_backbone(self.config), texts, pooling="last", device=device, progress=label)

    def _key(self, texts: Sequence[str]) -> str:
        """Of the titles and the base model, as it is loaded."""
        backbone = local_backbone(self.config)
        what = [list(texts), backbone.dtype, backbone.quantization, self._base_identity]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @cached_property
    def _base_identity(self) -> list[Any]:
        """What tells the base model from others: the contents of its files, or a hub id with its commit."""
        backbone = local_backbone(self.config)
        path = Path(str(backbone.path))
        if not path.exists():
            return [backbone.path, backbone.revision, getattr(self.backbone.model.config, "_commit_hash", None)]
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
        found = []
        for file in files:
            with file.open("rb") as stream:
                found.append([file.name, hashlib.file_digest(stream, "sha256").hexdigest()])
        return found

    def _statistic(self, pairs: Pairs) -> Tensor:
        """``[leaves]`` popularity, or ``[B, leaves]`` scores of the reward model."""
        dataset, catalog = self.dataset, self.encoder.catalog
        if self.settings.weight_by == "popularity":
            rows = dataset.inter_feat
            first = rows[dataset.history_field][rows[dataset.item_list_length_field] == 1][:, 0]
            items = torch.cat([rows[dataset.iid_field], first])
            return best_of_group(catalog, torch.bincount(items, minlength=catalog.num_items + 1)[1:].double())
        with torch.enable_grad():  # it may have to be trained first
            scores = self.reward_model().scores
        rows = as_rows(pairs, dataset)
        parts = [scores(rows[low : low + 256]) for low in range(0, len(rows), 256)]
        return best_of_group(catalog, torch.cat(parts))
