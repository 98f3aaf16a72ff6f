"""How good samples of binary codes are, in two numbers, for the fitted copula and for fair bits."""

from typing import NamedTuple

import torch

from fastlatent.data import Split
from fastlatent.inference.latents import SAMPLINGS, Sampling, decode, draw
from fastlatent.metrics import MomentError, moment_error, nearest_distance
from fastlatent.models import LatentModel
from fastlatent.noise import generator
from fastlatent.ops import binary_moments, pack_bits
from fastlatent.priors import BernoulliCopula, CodeStatistics

CODES = 10_000  # drawn for the moments


class Sampler(NamedTuple):
    """One way to draw codes, measured."""

    moments: MomentError  # of the drawn codes, against the training codes
    distance: float  # of decoded codes to the nearest test image, mean


class SamplerQuality(NamedTuple):
    """Samplers of codes side by side; fastlatent.metrics.samples says what the numbers miss."""

    samplers: dict[Sampling, Sampler]
    law: MomentError  # of codes drawn by the copula, against the fitted law in closed form
    train_distance: float  # of training images to the nearest test image, mean: a yardstick

    def values(self) -> dict[str, float]:
        """As numbers with names, for the log."""
        numbers = {}
        for name, sampler in self.samplers.items():
            numbers[f"{name}_moment_error_max"] = sampler.moments.max
            numbers[f"{name}_moment_error_rms"] = sampler.moments.rms
            numbers[f"{name}_nearest_distance"] = sampler.distance
        numbers["copula_law_error_max"] = self.law.max
        numbers["copula_law_error_rms"] = self.law.rms
        numbers["train_nearest_distance"] = self.train_distance
        return numbers

    def lines(self) -> list[str]:
        """As a table to print."""
        columns = list(self.samplers.values())
        names = "".join(f"{name:>10}" for name in self.samplers)

        def row(title: str, numbers: list[float], note: str) -> str:
            return f"  {title:24}" + "".join(f"{value:10.3f}" for value in numbers) + f"   {note}"

        return [
            f"  {'samples':24}{names}",
            row(
                "pair moments, rms error",
                [sampler.moments.rms for sampler in columns],
                f"to the training codes; {CODES**-0.5:.2f} is chance",
            ),
            row(
                "pair moments, max error",
                [sampler.moments.max for sampler in columns],
                f"to the law fitted: copula {self.law.max:.3f}",
            ),
            row(
                "nearest test image",
                [sampler.distance for sampler in columns],
                f"rms pixel distance; training images {self.train_distance:.3f}",
            ),
        ]


def compare_samplers(
    model: LatentModel,
    codes: CodeStatistics,  # of the training set
    copula: BernoulliCopula,  # fitted to them
    train: Split,
    test: Split,
    seed: int,
    decoded: int = 500,  # images to compare with the test images
    batch: int = 500,
) -> SamplerQuality:
    """Errors of the pair moments over 10,000 codes; nearness of decoded codes to test images."""
    device = next(model.parameters()).device

    def distance(images: torch.Tensor) -> float:
        references = (part.images for part in test.batches(batch, device))
        return float(nearest_distance(images, references).mean())

    samplers = {}
    for method in SAMPLINGS["bits"]:
        drawn = draw(model, method, CODES, generator(seed, 0, f"quality/{method}"), copula)
        _, agree = binary_moments(pack_bits(drawn), model.latent_dim)
        agreement = agree.double() / CODES
        if method == "copula":
            law = moment_error(agreement, copula.agreement())
        samplers[method] = Sampler(
            moments=moment_error(agreement, codes.agreement()),
            distance=distance(decode(model, drawn[:decoded], batch)),
        )
    order = train.spread(decoded)
    images = torch.cat([part.images for part in train.batches(batch, device, order=order)])
    return SamplerQuality(samplers, law, distance(images))
