"""Choosing among candidates with a language model: what a row is ranked among, answers, HitRatio@1 and ValidRatio."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recbole_ilrec.decoding.users import generate_users
from recbole_ilrec.evaluation.choice import MATCHINGS, choice_ratios
from recbole_ilrec.models.model import GenerativeRecommender, to_pairs
from recbole_ilrec.models.title_ranker import of_all_processes
from recbole_ilrec.prompt.rows import Pairs
from recbole_ilrec.runtime import processes
from recbole_ilrec.schema import Ranking


def evaluation_pairs(loader: Any, model: GenerativeRecommender) -> Pairs:
    """Rows of a validation or test loader, with the items among which each is ranked, where they are not all items.

    With a sampled mode of RecBole (``eval_args: {mode: uni20}``) these are the true item and what the loader's own
    sampler draws.

    Choice: RecBole draws anew in each evaluation; here the lists of validation stay the same for the whole run.
    """
    rows = loader._dataset.inter_feat
    pairs = to_pairs(rows, model)
    count = getattr(loader, "neg_sample_args", {}).get("sample_num", "none")
    if count == "none":
        return pairs
    others = loader._sampler.sample_by_user_ids(pairs.user, pairs.target, count).view(count, len(pairs)).T
    lists = torch.cat([rows[model.POS_ITEM_ID][:, None], others], dim=1).numpy()
    return replace(pairs, candidates=lists)


def answer_ratios(
    model: GenerativeRecommender,
    pairs: Pairs,
    ranking: Ranking,
    results: Mapping[str, dict[str, float]],
    *,
    free: bool,
    **how: Any,
) -> dict[str, dict[str, float]]:
    """HitRatio@1 and ValidRatio of each row's answer, by each rule of :mod:`recbole_ilrec.evaluation.choice`.

    Args:
        model: in evaluation mode.
        pairs: rows with candidates.
        ranking: the candidates' identifiers, best first.
        results: metrics by collision policy; those by ``candidates.matching`` are added to each.
        free: the answer may be what the model writes (``candidates.answers``); else it is the best candidate's name.
        how: ``batch_size``, ``progress`` and ``keeper`` of :func:`~recbole_ilrec.decoding.users.generate_users`.

    Returns:
        by rule; empty where the task is no choice.
    """
    own = model.settings.candidates
    if model.settings.task != "candidates":
        return {}
    names = _names(model)
    if free and own.answers == "free":
        answers = _written(model, pairs, **how)
    else:
        catalog, best = model.catalog, ranking.leaf[:, 0]
        items = catalog.item_order[catalog.leaf_start[best.clamp_min(0)]].where(best >= 0, 0)
        answers = [names[item] for item in items.tolist()]
    choices = pairs.choices(np.arange(len(pairs))) or []
    offered = [[names[item] for item in row] for row in choices]
    targets = [names[item] for item in pairs.target]
    ratios = {rule: choice_ratios(answers, offered, targets, rule) for rule in MATCHINGS}
    for result in results.values():
        result.update(ratios[own.matching])
    return ratios


def _names(model: GenerativeRecommender) -> list[str]:
    """What each item is called in prompts and answers, by item id; entry 0 is empty."""
    catalog = model.catalog
    rows = [row[row >= 0] for row in catalog.tokens]
    return model.backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)


def _written(model: GenerativeRecommender, pairs: Pairs, **how: Any) -> list[str]:
    every, eos_id = np.arange(len(pairs)), model.catalog.eos_id
    assert eos_id is not None
    answers = generate_users(
        model.backbone,
        model.encoder,
        pairs.histories(every),
        model.settings.bigrec,
        eos_id=eos_id,
        device=model.backbone.device,
        candidates=pairs.choices(every),
        share=(processes.rank(), processes.world()),
        **how,
    )
    return model.backbone.tokenizer.batch_decode(of_all_processes(answers), skip_special_tokens=True)
