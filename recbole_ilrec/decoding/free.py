"""Beam search over the whole vocabulary: a title as the model would write it, which need not be any item's.

Beams of a user share one key-value cache, as in :mod:`recbole_ilrec.decoding.beam`. Knows token ids and a stepper.
"""

import torch

from recbole_ilrec.decoding.beam import Stepper


@torch.no_grad()
def generate(
    stepper: Stepper,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    eos_id: int,
    num_beams: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The best answer found for each prompt, without its end token.

    Choice: BIGRec leaves transformers' length penalty at 1, so beams compete by their mean log-probability. Here they
    compete by its sum, as everywhere else in this package; with one beam (``bigrec.beams=1``) both are greedy search.

    Args:
        stepper: the language model.
        input_ids: ``[B, T]`` prompts, padded on the left.
        mask: ``[B, T]`` bool, True at real tokens.
        eos_id: ends an answer.
        num_beams: W.
        max_new_tokens: an answer that is not ended by then is cut.

    Returns:
        token ids of each prompt's answer.
    """
    batch, device = len(input_ids), input_ids.device
    states, cache = stepper.prefill(input_ids, mask)
    score = torch.zeros(batch, 1, device=device)
    done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    tokens = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)
    for depth in range(max_new_tokens):
        logits = stepper.head(states.flatten(0, 1)).float()
        vocabulary, width = logits.shape[-1], score.shape[1]
        grown = score[..., None] + logits.log_softmax(-1).view(batch, width, -1)
        grown = grown.masked_fill(done[..., None], -torch.inf).flatten(1)
        candidates = torch.cat([grown, score.masked_fill(~done, -torch.inf)], dim=1)
        score, index = candidates.topk(min(num_beams, candidates.shape[1]), dim=1)
        is_grown = index < width * vocabulary
        parent = torch.where(is_grown, index // vocabulary, index - width * vocabulary)
        token = torch.where(is_grown, index % vocabulary, eos_id)
        tokens = torch.cat([tokens.gather(1, parent[..., None].expand(-1, -1, depth)), token[..., None]], dim=-1)
        done = token == eos_id
        # A longer answer never gains: once the best beam is complete, no other can overtake it.
        if bool(done[:, 0].all()) or depth + 1 == max_new_tokens:
            break
        states = stepper.extend(cache, token, parent)
    best = tokens[:, 0].tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in best]
