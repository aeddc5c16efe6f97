"""Equations 2-12 written down once more, slowly: one token at a time, float64, full softmaxes, no shortcut.

It shares no code with the package. Gradients come from autograd, so ``detach`` stands exactly where the paper's terms
are read as constants.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ensemble(layers: Sequence[Tensor], how: str = "mean") -> Tensor:
    """Eq. 3: ``[V]`` from K logits ``[V]``."""
    if how == "mean":
        return sum(layers) / len(layers)
    if how == "sum":
        return sum(layers)
    if how == "mean_prob":
        return torch.log(sum(softmax(z) for z in layers) / len(layers))
    return sum(torch.log(softmax(z)) for z in layers) / len(layers)


def softmax(z: Tensor) -> Tensor:
    e = torch.exp(z - z.max().detach())
    return e / e.sum()


def negatives(p_hat_logits, y, alpha, *, threshold_on="prob", final=None, allowed=None, max_negatives=None):
    """Eq. 4-5: the list V_N."""
    truth_from = p_hat_logits if final is None else final
    if threshold_on == "prob":
        value, tau = softmax(p_hat_logits), alpha * softmax(truth_from)[y] if alpha < math.inf else math.inf
    else:
        value, tau = p_hat_logits, alpha * truth_from[y] if alpha < math.inf else math.inf
    chosen = []
    for v in range(len(p_hat_logits)):
        if (
            v != y
            and (allowed is None or v in allowed)
            and float(value[v].detach()) >= float(torch.as_tensor(tau).detach())
        ):
            chosen.append(v)
    chosen.sort(key=lambda v: -float(p_hat_logits[v].detach()))
    return sorted(chosen[:max_negatives])


def weights(p_hat_logits, chosen, weight_from="logit") -> dict[int, Tensor]:
    """Eq. 6: w_v of each negative."""
    if weight_from == "uniform":
        return {v: torch.tensor(1.0 / len(chosen), dtype=torch.float64) for v in chosen}
    source = p_hat_logits if weight_from == "logit" else softmax(p_hat_logits)
    top = max((float(source[v].detach()) for v in chosen), default=0.0)
    total = sum(torch.exp(source[v] - top) for v in chosen)
    return {v: torch.exp(source[v] - top) / total for v in chosen}


def cpo(z, y, w, beta, penalty="multiplicative") -> Tensor:
    """Eq. 7."""
    terms = []
    for v in range(len(z)):
        wv = w.get(v, 0.0)
        if penalty == "multiplicative":
            terms.append(z[v] * (1 + beta * wv))
        elif penalty == "sign_safe":
            terms.append(z[v] + beta * wv * abs(z[v]))
        elif penalty == "additive":
            terms.append(z[v] + beta * wv)
        else:
            terms.append(z[v] + math.log(1.0) if v not in w else z[v] + torch.log(1 + beta * wv))
    top = max(float(t.detach()) for t in terms)
    return -(z[y] - (top + torch.log(sum(torch.exp(t - top) for t in terms))))


def kl(p, q) -> Tensor:
    return sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))


def cpd(students, teacher, *, direction="student_teacher", support=None, layer_reduction="sum") -> Tensor:
    """Eq. 8."""
    ids = list(range(len(teacher))) if support is None else sorted(support)
    total = torch.zeros((), dtype=torch.float64)
    if not ids:
        return total
    q = softmax(teacher[ids])
    for z in students:
        p = softmax(z[ids])
        if direction == "student_teacher":
            total = total + kl(p, q)
        elif direction == "teacher_student":
            total = total + kl(q, p)
        else:
            total = total + (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    return total / len(students) if layer_reduction == "mean" else total


def token_rewards(items: Sequence[Sequence[int]], probability: Sequence[float], prefix: Sequence[int]):
    """Eq. 10 by walking over all items: next token -> r_v."""
    below = [(item, p) for item, p in zip(items, probability, strict=True) if list(item[: len(prefix)]) == list(prefix)]
    mass = sum(p for _, p in below)
    sums: dict[int, float] = {}
    for item, p in below:
        if len(item) > len(prefix):
            sums[item[len(prefix)]] = sums.get(item[len(prefix)], 0.0) + p
    return {v: s / mass for v, s in sums.items()}


def crr(z, y, scope, rewards, *, label="softmax", temperature=1.0, truth_floor=0.0) -> Tensor:
    """Eq. 11; ``rewards`` is empty outside the trie (A17)."""
    members = sorted(set(scope) | {y})
    r = {v: rewards.get(v, 0.0) if rewards else float(v == y) for v in members}
    r[y] = max(r[y], truth_floor)
    if label == "softmax":
        total = sum(math.exp(r[v] / temperature) for v in members)
        q = {v: math.exp(r[v] / temperature) / total for v in members}
    else:
        total = sum(r.values())
        q = {v: r[v] / total if total else float(v == y) for v in members}
    log_p = torch.log_softmax(z, -1)
    return -sum(q[v] * log_p[v] for v in members)


def ilrec(settings, final, candidates, head, targets, legal, item_tokens, active=None) -> dict[str, Tensor]:
    """Eq. 2-9, 11, 12 over N tokens: sums of the three terms and their weighted total.

    Args:
        settings: the package's typed settings.
        final: ``[N, H]`` float64.
        candidates: K tensors ``[N, H]``.
        head: ``[V, H]``.
        targets: N ints.
        legal: N dicts next token -> reward.
        item_tokens: set of tokens.
        active: N bools, where the terms apply.
    """
    s = settings
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("cpo", "cpd", "crr")}
    for n, y in enumerate(targets):
        z = head @ final[n]
        if active is not None and not active[n]:
            sums["cpo"] = sums["cpo"] + cpo(z, y, {}, 0.0)
            continue
        layers = [head @ c[n] for c in candidates]
        p_hat = z if s.negatives_from == "final" or not layers else ensemble(layers, s.ensemble)
        p_hat = p_hat.detach() if s.detach_weights else p_hat
        allowed = {"vocab": None, "item_tokens": item_tokens, "legal": set(legal[n])}[s.neg_scope]
        chosen = negatives(
            p_hat,
            y,
            s.alpha,
            threshold_on=s.threshold_on,
            final=z if s.tau_from == "final" else None,
            allowed=allowed,
            max_negatives=s.max_negatives,
        )
        w = weights(p_hat, chosen, s.weight_from) if chosen else {}
        sums["cpo"] = sums["cpo"] + cpo(z, y, w if s.use_cpo else {}, s.beta, s.penalty)
        if s.use_cpd and layers:
            matrix = head.detach() if s.cpd_detach_head else head
            support = {"vocab": None, "item_tokens": item_tokens, "legal": set(legal[n])}[s.cpd_support]
            students = [matrix @ c[n] for c in candidates]
            teacher = z.detach() if s.detach_teacher else z
            sums["cpd"] = sums["cpd"] + cpd(
                students,
                teacher,
                direction=s.cpd_direction,
                support=support,
                layer_reduction=s.cpd_layer_reduction,
            )
        if s.use_crr:
            scope = chosen if s.crr_scope == "negatives" else list(legal[n])
            sums["crr"] = sums["crr"] + crr(
                z,
                y,
                scope,
                legal[n],
                label=s.crr_label,
                temperature=s.crr_temperature,
                truth_floor=s.r_truth_floor,
            )
    return {**sums, "total": sums["cpo"] + s.lambda_ * sums["cpd"] + s.mu * sums["crr"]}
