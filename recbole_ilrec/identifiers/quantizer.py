"""RQ-VAE: item vectors to short sequences of codes.

An autoencoder whose bottleneck is quantised residually (Lee et al., "Autoregressive Image Generation using Residual
Quantization", CVPR 2022; as item index in TIGER, NeurIPS 2023, and LC-Rec, ICDE 2024): level 1 takes the code nearest
to the latent vector, level 2 the code nearest to what is left of it, and so on. Knows vectors and codes; nothing of
texts, tokens or interactions.

Extra letters of the shape legend: ``n`` vectors of a batch, ``D`` length of an item vector, ``L`` levels, ``C`` codes
of a level, ``d`` length of a code.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.sinkhorn import transport_plan
from recbole_ilrec.settings import IndexSettings

logger = logging.getLogger(__name__)

ENCODE_ROWS = 16384
"""Vectors encoded at once outside training; bounds the memory of the ``[n, C]`` distances."""
ITEMS_PER_CODE = 4
"""A level gets at most one code for this many items (see :func:`codes_per_level`)."""
EVALUATIONS = 10
"""How often the second half of the training counts collisions to keep the best state."""
WARMUP_SHARE = 0.05
"""Share of the steps with a rising learning rate."""


@dataclass(frozen=True)
class Quantised:
    """What the residual quantiser makes of a batch.

    Attributes:
        codes: ``[n, L]`` int64.
        latent: ``[n, d]``, sum of the chosen codes; its gradient goes straight through to the encoder's output.
        loss: scalar, mean over the levels of codebook loss + commitment * commitment loss.
    """

    codes: Tensor
    latent: Tensor
    loss: Tensor


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Squared L2 distance of each vector ``[n, d]`` to each code ``[C, d]``: ``[n, C]``, never negative."""
    norms = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return torch.addmm(norms, vectors, codebook.T, alpha=-2).clamp_min_(0)


def level_epsilons(settings: IndexSettings) -> tuple[float, ...]:
    """Sinkhorn's epsilon of each level: the last entry belongs to the last level, missing front entries are 0."""
    given = settings.sinkhorn_epsilon[-settings.levels :]
    return (0.0,) * (settings.levels - len(given)) + tuple(given)


def codes_per_level(items: int, settings: IndexSettings) -> int:
    """``codebook_size``, capped for a small catalogue so that codes are shared and prefixes mean something.

    Choice: LC-Rec has 256 codes for catalogues of ten thousand and more. We allow one code for every
    :data:`ITEMS_PER_CODE` items, but never fewer codes than it takes to give twice the number of items a place. Set
    ``index.codebook_size`` for less.
    """
    room = math.ceil((2 * items) ** (1 / settings.levels))
    return min(settings.codebook_size, max(2, items // ITEMS_PER_CODE, room))


class SeededDropout(nn.Module):
    """Dropout that draws from the given generator, so that training does not touch the global random state."""

    def __init__(self, probability: float, generator: torch.Generator):
        super().__init__()
        self.probability = probability
        self.generator = generator

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        kept = torch.empty_like(inputs).bernoulli_(1 - self.probability, generator=self.generator)
        return inputs * kept / (1 - self.probability)


def perceptron(widths: Sequence[int], settings: IndexSettings, generator: torch.Generator) -> nn.Sequential:
    """MLP with ReLU (and batch normalisation, when set) after every layer but the last; Xavier-normal weights."""
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.xavier_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        if settings.dropout:
            layers.append(SeededDropout(settings.dropout, generator))
        layers.append(linear)
        if position < len(widths) - 1:
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if settings.batch_norm else [nn.ReLU()]
    return nn.Sequential(*layers)


class ResidualQuantizer(nn.Module):
    """RQ-VAE: encoder, ``L`` codebooks, decoder.

    Choice: LC-Rec feeds LLaMA's states as they are. Vectors here come in any scale (tf-idf rows have length 1), and
    the balance of reconstruction and quantisation loss depends on it; so the mean is taken off and one common factor
    brings the mean square of an element to 1. Directions and ratios of distances stay.

    Choice: the formula's residual is the latent vector minus the codes so far, so the commitment of every level
    reaches the encoder. In LC-Rec's code the straight-through step cancels the gradient of all residuals but the
    first. ``index.commitment`` sets the strength.

    Args:
        dimension: D.
        settings: widths, levels, losses, Sinkhorn.
        codes: C, codes of each level.
        generator: source of the initial weights and of dropout.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, dimension: int, settings: IndexSettings, *, codes: int, generator: torch.Generator):
        super().__init__()
        self.settings = settings
        self.epsilons = level_epsilons(settings)
        widths = (dimension, *settings.hidden, settings.code_dim)
        self.encoder = perceptron(widths, settings, generator)
        self.decoder = perceptron(widths[::-1], settings, generator)
        shape = (settings.levels, codes, settings.code_dim)
        self.codebooks = nn.Parameter(torch.empty(shape).uniform_(-1 / codes, 1 / codes, generator=generator))
        self.register_buffer("center", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss (mean square over elements) and quantisation loss of raw ``vectors [n, D]``."""
        inputs = self._standardised(vectors)
        quantised = self.quantise(self.encoder(inputs))
        return functional.mse_loss(self.decoder(quantised.latent), inputs), quantised.loss

    def quantise(self, latent: Tensor) -> Quantised:
        """Residual quantisation of ``latent [n, d]``; levels with epsilon > 0 use Sinkhorn while training."""
        residual, codes, losses = latent, [], []
        for codebook, epsilon in zip(self.codebooks, self.epsilons, strict=True):
            level_codes = self._assign(residual.detach(), codebook.detach(), epsilon)
            chosen = functional.embedding(level_codes, codebook)
            codebook_loss = functional.mse_loss(chosen, residual.detach())
            commitment_loss = functional.mse_loss(residual, chosen.detach())
            losses.append(codebook_loss + self.settings.commitment * commitment_loss)
            codes.append(level_codes)
            residual = residual - chosen.detach()
        straight_through = latent - residual.detach()
        return Quantised(torch.stack(codes, 1), straight_through, torch.stack(losses).mean())

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """Nearest codes ``[n, L]`` int64 of raw vectors ``[n, D]`` (no Sinkhorn, no dropout)."""
        return torch.cat([self._evaluated(rows)[0] for rows in vectors.split(ENCODE_ROWS)])

    @torch.no_grad()
    def last_level_distances(self, vectors: Tensor) -> Tensor:
        """Squared distance ``[n, C]`` of what the first L-1 levels leave of each raw vector to the last codes."""
        return torch.cat([self._evaluated(rows)[1] for rows in vectors.split(ENCODE_ROWS)])

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Set the codebooks to k-means centres of the residuals of ``vectors [n, D]``, level by level."""
        training = self.training
        residual = self.eval().encoder(self._standardised(vectors))
        for codebook in self.codebooks:
            codebook.copy_(_centres(residual, len(codebook), generator))
            residual = residual - codebook[squared_distances(residual, codebook).argmin(1)]
        self.train(training)

    @torch.no_grad()
    def fit_scale(self, vectors: Tensor) -> None:
        """Take centre and scale of the standardisation from ``vectors [I, D]``; all-equal vectors keep scale 1."""
        self.center.copy_(vectors.mean(0))
        scale = (vectors - self.center).square().mean().sqrt()
        self.scale.copy_(torch.where(scale > torch.finfo(scale.dtype).eps, scale, 1))

    def _standardised(self, vectors: Tensor) -> Tensor:
        return (vectors - self.center) / self.scale

    def _assign(self, residual: Tensor, codebook: Tensor, epsilon: float) -> Tensor:
        distances = squared_distances(residual, codebook)
        if epsilon and self.training:
            return transport_plan(distances, epsilon, self.settings.sinkhorn_iterations).argmax(1)
        return distances.argmin(1)

    def _evaluated(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        training = self.training
        latent = self.eval().encoder(self._standardised(vectors))
        codes = self.quantise(latent).codes
        self.train(training)
        chosen = [codebook[column] for codebook, column in zip(self.codebooks[:-1], codes.T, strict=False)]
        return codes, squared_distances(latent - sum(chosen), self.codebooks[-1])


def _centres(residual: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """k-means centres ``[C, d]``; with fewer distinct vectors than codes, these vectors, repeated with small noise."""
    distinct = residual.unique(dim=0)
    if len(distinct) <= codes:
        order = torch.arange(codes) % len(distinct)
        spread = residual.std(correction=0).clamp_min(1e-3)
        noise = torch.randn(codes, residual.shape[1], generator=generator) * (0.01 * spread)
        noise[: len(distinct)] = 0
        return distinct[order] + noise
    from sklearn.cluster import KMeans

    state = int(torch.randint(2**31 - 1, (1,), generator=generator))
    with threadpool_limits(1):  # sums of several threads come in any order, and the result must follow from the seed
        means = KMeans(codes, n_init=1, max_iter=100, random_state=state).fit(residual.numpy())
    return torch.from_numpy(means.cluster_centers_).to(residual.dtype)


def fit_quantizer(vectors: Tensor, settings: IndexSettings, seed: int, progress: bool = False) -> ResidualQuantizer:
    """Train an RQ-VAE on all item vectors and return the state with the fewest collisions.

    AdamW, linear decay after a warm-up, gradient norm clipped to 1, as LC-Rec. The same seed gives the same model on
    the same machine; the global random state is neither read nor changed.

    Choice: LC-Rec's script has an encoder of seven widths, steps of 1e-3 and batches of 1,024 for 10,000 epochs. The
    defaults here (``index.hidden``, ``index.learning_rate``, ``index.batch_size``, ``index.epochs``) are one hidden
    layer of 512, 1e-2, 256 and 100, which take a minute on a CPU.

    Choice: LC-Rec warms up for 50 of 10,000 epochs and counts collisions every 50; at our far fewer epochs the
    warm-up is :data:`WARMUP_SHARE` of the steps and the second half is looked at :data:`EVALUATIONS` times. Equal
    counts are told apart by the training loss.

    Args:
        vectors: ``[I, D]`` float, I >= 1, finite.
        settings: the ``index`` section.
        seed: of every random choice.
        progress: show a bar on stderr.

    Raises:
        UserError: when a vector is not finite or there is none.
    """
    vectors = _checked(vectors)
    generator = torch.Generator().manual_seed(seed)
    items, codes = len(vectors), codes_per_level(len(vectors), settings)
    if codes < settings.codebook_size:
        logger.info("codebook of %d codes instead of %d: only %d items", codes, settings.codebook_size, items)
    model = ResidualQuantizer(vectors.shape[1], settings, codes=codes, generator=generator)
    model.fit_scale(vectors)
    first = torch.randperm(items, generator=generator)[: max(settings.batch_size, ITEMS_PER_CODE * codes)]
    model.start(vectors[first], generator)
    if items > 1:
        _train(model, vectors, generator, progress)
    return model.eval()


def _checked(vectors: Tensor) -> Tensor:
    vectors = vectors.detach().cpu().float()
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"Item vectors have shape {tuple(vectors.shape)}; [items, dimensions] with at least one of each"
            " is needed. Check the dataset's items and index.embedding."
        )
    bad = (~vectors.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"{len(bad)} item vectors hold NaN or infinity (first: row {int(bad[0])}); all must be finite."
            " Choose another index.embedding or mend the model that made them."
        )
    return vectors


def _train(model: ResidualQuantizer, vectors: Tensor, generator: torch.Generator, progress: bool) -> None:
    settings = model.settings
    # Batches of equal size, none of a single row: batch normalisation could not take that.
    batches = max(1, min(math.ceil(len(vectors) / settings.batch_size), len(vectors) // 2))
    steps = settings.epochs * batches
    warmup = max(1, round(WARMUP_SHARE * steps))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    looks = {round(settings.epochs * (1 + look / EVALUATIONS) / 2) for look in range(1, EVALUATIONS + 1)}
    best, best_state = (math.inf, math.inf), None
    model.train()
    for epoch in tqdm(range(1, settings.epochs + 1), desc="RQ-VAE", unit="epoch", disable=not progress):
        total = 0.0
        for rows in torch.randperm(len(vectors), generator=generator).tensor_split(batches):
            reconstruction, quantisation = model(vectors[rows])
            loss = reconstruction + settings.quantisation_weight * quantisation
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        _check_loss(total, epoch, settings)
        if epoch in looks:
            score = (len(vectors) - len(model.encode(vectors).unique(dim=0)), total / len(vectors))
            if score < best:
                best, best_state = score, {name: value.clone() for name, value in model.state_dict().items()}
    if best_state is not None:
        model.load_state_dict(best_state)
        logger.info(
            "RQ-VAE: loss %.4f, %d of %d items collide before they are told apart", best[1], best[0], len(vectors)
        )


def _check_loss(total: float, epoch: int, settings: IndexSettings) -> None:
    if not math.isfinite(total):
        raise UserError(
            f"The RQ-VAE's loss is {total} in epoch {epoch}: training diverged. Lower index.learning_rate"
            f" (now {settings.learning_rate})."
        )
