"""Rejected items of a run's training rows, and numbers by row that are computed once and kept.

Where the items come from: chance (:mod:`recbole_ilrec.prompt.rejected`) or the model's own beam
(:mod:`recbole_ilrec.decoding.rejected`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_ilrec.decoding.rejected import self_hard_items
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.title import joined_texts
from recbole_ilrec.models.item_index import index_vectors
from recbole_ilrec.models.model import GenerativeRecommender
from recbole_ilrec.prompt.candidates import draw_offered
from recbole_ilrec.prompt.rejected import draw_rejected, similar_items
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.report.costs import note, note_earlier, note_made, spent_on
from recbole_ilrec.report.record import Stopwatch
from recbole_ilrec.runtime import processes
from recbole_ilrec.runtime.checkpoint import STATE, load_state, plain_entry, save_state
from recbole_ilrec.runtime.shards import whole

Array = np.ndarray
PART = 4096
"""Rows that are computed and kept together."""
SPENT = "spent"
"""In what is kept: the seconds that it took."""


class KeptRows:
    """Numbers by training row in ``cache_dir/preference``, under a name that says all they depend on.

    They are kept part by part, so an interrupted pass goes on where it stopped and a finished one is only read; several
    processes share the parts out.

    Args:
        config: the run's settings.
        model: its identifiers and prompts are part of the name.
        dataset: the training part of RecBole's data set.
        show_progress: show a bar.
    """

    def __init__(self, config: Any, model: GenerativeRecommender, dataset: Any, show_progress: bool):
        self.folder = Path(config["cache_dir"]) / "preference"
        self.dataset = config["dataset"]
        self.show_progress = show_progress
        prompt = config.settings.prompt.model_dump(mode="json")
        template = model.encoder.template
        self._shared = [
            dataset.content_key(),
            [config[name] for name in ("MAX_ITEM_LIST_LENGTH", "seed")],
            [prompt, template.variants, template.separator, model.catalog.digest],
            [config.settings.task, config.settings.candidates.model_dump(mode="json")],
            *([["ends items"]] if template.ends_items else []),
        ]

    def get(self, kind: str, what: Mapping[str, Any], rows: int, compute: Callable[[Array], Array]) -> Array:
        """``compute`` of all row numbers, each once.

        Args:
            kind: what the numbers are.
            what: whatever they depend on beside the data, the prompts and the seed.
            rows: how many rows.
            compute: numbers of some rows, their first axis.
        """
        identity = json.dumps([self._shared, what], sort_keys=True, default=str)
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        folder, places = self.folder / f"{kind}-{self.dataset}-{key}", []
        label = set_color(f"{kind.replace('_', ' '):<11}", "pink")
        with tqdm(total=rows, desc=label, disable=not self.show_progress, ncols=100, unit="row") as bar:
            for number, low in enumerate(range(0, rows, PART)):
                place, some = folder / f"{low:010d}", np.arange(low, min(low + PART, rows))
                own = number % processes.world() == processes.rank()
                if own and (place / STATE).is_file():
                    note_earlier(plain_entry(place, SPENT) or {}, of=place)
                elif own:
                    watch, numbers = Stopwatch(), torch.from_numpy(compute(some))
                    save_state(place, {"rows": numbers, SPENT: watch.read()}, kind=kind)
                    note_made(place)
                places.append(place)
                bar.update(len(some))
        processes.wait()
        return np.concatenate([load_state(place, kind=kind)["rows"].numpy() for place in places])


def chosen_rows(config: Any, rows: int, iteration: int = 0) -> Array:
    """Numbers of the training rows that a round of preference training takes, ascending."""
    count = config.settings.preference.examples
    if count is None or count >= rows:
        return np.arange(rows)
    chance = np.random.Generator(np.random.Philox([config["seed"], iteration, 4]))
    return np.sort(chance.choice(rows, count, replace=False))


@spent_on("sampling")
def rejected_items(
    config: Any,
    model: GenerativeRecommender,
    dataset: Any,
    pairs: Pairs,
    kept: KeptRows,
    *,
    weights: str,
    iteration: int = 0,
) -> Array:
    """Rejected items of training rows.

    Choice: A.4 names one self-generated item for RosePO and five random ones for S-DPO, not how they are drawn: random
    ones come evenly from the catalogue, without the history and the target, anew in each epoch
    (``preference.fresh_negatives``); a self-generated one is the most probable that is neither, found by beams over the
    trie of identifiers (where peers write titles freely and may name no item), scored as in evaluation
    (``decode.renormalise``). In a choice among candidates both come from the row's own, as in S-DPO.

    Args:
        config: the run's settings.
        model: with the weights that propose items; in evaluation mode afterwards.
        dataset: the training part of RecBole's data set.
        pairs: rows of it.
        kept: where the model's own items are kept.
        weights: what tells the model's weights from others.
        iteration: number of the round, for chance.

    Returns:
        ``[D, rows, R]`` item ids of D draws, 0 where there is none.
    """
    own = config.settings.preference
    note(sampling_passes=1)
    if own.source == "self_hard":
        note(search_passes=1)
        model.eval()
        part = [own.examples, iteration] if own.examples else None
        scores = config.settings.decode.renormalise
        what = {"weights": weights, "count": own.negatives, "beams": own.num_beams, "part": part, "legal only": scores}
        search = partial(_self_hard, config, model, pairs, pairs.seen())
        with whole(model):
            return kept.get("self_hard", what, len(pairs), search)[None]
    group = model.catalog.leaf_of_item.numpy()
    if own.source == "similar":
        return similar_items(pairs, group, _vectors(config, dataset), own.negatives)[None]
    draws = own.epochs if own.fresh_negatives else 1
    numbers = range(iteration * draws, (iteration + 1) * draws)
    if own.source == "random" and pairs.candidates is not None:
        return np.stack([draw_offered(pairs, group, own.negatives, seed=config["seed"], draw=n) for n in numbers])
    popularity = np.bincount(pairs.target, minlength=model.n_items) if own.source == "popular" else None
    some = (
        draw_rejected(pairs, group, own.negatives, seed=config["seed"], draw=number, weights=popularity)
        for number in numbers
    )
    return np.stack(list(some))


def _vectors(config: Any, dataset: Any) -> Array:
    texts, index = joined_texts(dataset.item_texts[1:]), config.settings.index
    if index.embedding in ("tfidf", "encoder") and not any(texts):
        raise UserError(
            f"preference.source=similar compares item texts, and dataset '{config['dataset']}' has none: put them into "
            f"{config['dataset']}.item, or compare clicks with --index.embedding=cf."
        )
    return index_vectors(config, dataset, texts, index).numpy()


def _self_hard(config: Any, model: GenerativeRecommender, pairs: Pairs, seen: list[Array], rows: Array) -> Array:
    own = config.settings.preference
    return self_hard_items(
        model.backbone,
        model.encoder,
        pairs.histories(rows),
        [seen[row] for row in rows],
        pairs.target[rows],
        count=own.negatives,
        num_beams=own.num_beams,
        renormalise=config.settings.decode.renormalise,
        batch_size=config["eval_batch_size"],
        device=model.backbone.device,
        candidates=pairs.choices(rows),
    )
