"""Entropic optimal transport between vectors and codes. Knows distances only."""

import math

import torch
from torch import Tensor


def transport_plan(distances: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Entropic optimal transport of ``n`` vectors to ``C`` codes with uniform marginals (Cuturi, NeurIPS 2013).

    The distances are centred and scaled to [-1, 1] first, so ``epsilon`` does not depend on their unit. The kernel
    stays in log space; runs of multiplicative updates, which are much cheaper, stand between exact log-space ones and
    are kept so short that their scaling factors cannot overflow (one update changes a factor by at most ``n * C * C``).

    Args:
        distances: ``[n, C]``.
        epsilon: strength of the entropy, > 0.
        iterations: row and column normalisations.

    Returns:
        ``[n, C]`` float64; columns sum to 1/C, rows to 1/n as far as the iterations have converged.
    """
    n, codes = distances.shape
    distances = distances.double()
    low, high = distances.aminmax()
    half_range = ((high - low) / 2).clamp_min(torch.finfo(torch.float64).tiny)
    log_plan = ((low + high) / 2 - distances) / (half_range * epsilon)
    run = max(1, int(280 / math.log10(n * codes * codes + 1)))
    done = 0
    while done < iterations:
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) - math.log(n)
        log_plan = log_plan - log_plan.logsumexp(0) - math.log(codes)
        kernel = log_plan.exp()
        row_factor, column_factor = kernel.new_ones(n), kernel.new_ones(codes)
        cheap = min(run, iterations - done - 1)
        for _ in range(cheap):
            row_factor = 1 / (n * (kernel @ column_factor))
            column_factor = 1 / (codes * (row_factor @ kernel))
        log_plan = log_plan + row_factor.log()[:, None] + column_factor.log()
        done += 1 + cheap
    return log_plan.exp()
