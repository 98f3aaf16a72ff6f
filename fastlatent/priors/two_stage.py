"""Training of a prior by gradients on latents that no longer change."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastlatent.priors.base import FitReport, Prior, report_log_prob

SETTLED = 0.05  # nats that the last fifth of the steps of a converged fit may still bring


@dataclass(frozen=True)
class TwoStage:
    """How a prior with gradient-trained weights is fitted to given latents."""

    steps: int = 2000
    batch: int = 256
    rate: float = 1e-3
    """Learning rate of Adam; it falls to 0 along a cosine."""
    warmup: float = 0.3
    """Part of the steps before a mixture inside is first fitted; until then it is N(0, I), and a
    profiled scale stays at its start."""
    refits: int = 5
    """How often it is fitted from then on, before the last time."""
    clip: float = 10.0
    """Bound on the norm of the gradient of the mean."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"TwoStage: {name} must be at least 1; got {getattr(self, name)}")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TwoStage: {name} must be positive; got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1 or self.refits < 0:
            raise ValueError(
                "TwoStage: warmup must lie in [0, 1] and refits be at least 0; "
                f"got {self.warmup} and {self.refits}"
            )


def train(
    prior: Prior,
    z: Tensor,  # (n, dim)
    options: TwoStage,
    seed: int,
    refit: Callable[[Tensor, int], FitReport | None],
    finish: Callable[[Tensor, int], FitReport | None],
) -> FitReport:
    """Adam on the mean of -log p(z); `refit` and `finish` fit what gradients do not train.

    The last fifth of the steps has a tenth of the rate and below. The fit has converged if these
    steps raised the mean log p by no more than SETTLED, for the same latents and random numbers.
    """
    generator = torch.Generator(z.device).manual_seed(seed)
    scales = prior.scale_parameters()
    others = [p for p in prior.parameters() if all(p is not scale for scale in scales)]
    optimizer = torch.optim.Adam([{"params": others}, {"params": scales}], lr=options.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    first = int(options.warmup * options.steps)
    every = max(1, math.ceil((options.steps - first) / max(1, options.refits)))
    before = -math.inf
    prior.train()
    prior.warm(True)
    for step in range(options.steps):
        if step == first:
            prior.warm(False)
        if step == options.steps * 4 // 5:
            before = _level(prior, z, seed)
        if options.refits and step >= first and (step - first) % every == 0:
            refit(z, seed + step)
        rows = torch.randint(len(z), (options.batch,), generator=generator, device=z.device)
        batch = z[rows]
        with torch.enable_grad():
            loss = -prior.expected_log_prob(
                batch, torch.zeros_like(batch), batch, generator=generator
            ).mean()
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        if prior.on_step is not None:
            prior.on_step()
    prior.warm(False)
    prior.settle(z, seed)
    gained = _level(prior, z, seed) - before
    prior.eval()
    inner = finish(z, seed)
    log_prob = report_log_prob(prior, z, generator)
    converged = math.isfinite(log_prob) and gained <= SETTLED
    report = FitReport(len(z), options.steps, converged, log_prob)
    if inner is None or inner.components is None:
        return report
    return replace(report, components=inner.components, active=inner.active, dropped=inner.dropped)


def _level(prior: Prior, z: Tensor, seed: int) -> float:
    """The mean log-density of latents, by the same draws at each call; training goes on after."""
    prior.eval()
    value = report_log_prob(prior, z, torch.Generator(z.device).manual_seed(seed))
    prior.train()
    return value
