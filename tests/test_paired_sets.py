"""Errors of comparisons whose samples belong together in pairs, by simulation."""

import pytest
import torch
from torch import Tensor

from fastlatent.metrics import (
    Estimate,
    Neighbourhoods,
    density_coverage,
    frechet_from_features,
    frechet_standard_error,
    kernel_distance,
    prd_curve,
    prd_f_beta,
    precision_recall,
    score,
)

REPETITIONS = 40  # whose own spread is known to 11 %
BAND = 1 - 3 / (2 * (REPETITIONS - 1)) ** 0.5, 1 + 3 / (2 * (REPETITIONS - 1)) ** 0.5


def images_and_reconstructions(seed: int, n: int = 160, d: int = 4) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=make)
    shrunk = 0.7 * x + 0.6
    return x, shrunk + 0.5 * torch.randn(n, d, generator=make)


def measured(real: Tensor, fake: Tensor, paired: bool = True) -> dict[str, Estimate]:
    distance = float(frechet_from_features(real, fake))
    error = float(frechet_standard_error(real, fake, paired=paired))
    kernel = kernel_distance(real, fake, None, paired=paired)
    near = Neighbourhoods(real, fake, (3, 5), paired=paired)
    f = prd_f_beta(prd_curve(real, fake, runs=2, paired=paired))
    return {
        "frechet_distance": Estimate(distance, error),
        "kernel_distance": Estimate(kernel.value, kernel.error),
        **near.precision_recall(3)._asdict(),
        **near.density_coverage(5)._asdict(),
        "prd_f8": f.recall,
        "prd_f1/8": f.precision,
    }


def test_errors_of_pairs_are_the_spread_of_repetitions():
    drawn = [images_and_reconstructions(seed) for seed in range(REPETITIONS)]
    found = [measured(*sets) for sets in drawn]
    independent = measured(*drawn[0], paired=False)
    least, most = BAND
    for name in found[0]:
        values, errors = torch.tensor([metrics[name] for metrics in found]).double().T
        ratio = float(errors.square().mean().sqrt() / values.std())
        # Drawn again, samples of PRD gain noise that F, at most 1, cannot follow.
        assert least < ratio < most * (1.5 if name.startswith("prd") else 1), (name, ratio)
    for name in ("frechet_distance", "kernel_distance"):
        assert independent[name].error > 1.8 * found[0][name].error, name


@pytest.mark.parametrize(("slope", "noise"), [(1.0, 0.01), (0.7, 0.5)])
@pytest.mark.parametrize(("n", "subsets", "size"), [(40, None, 2), (60, 100, 40)])
def test_kernel_distance_of_pairs_is_unbiased_and_its_error_covers(n, subsets, size, slope, noise):
    """Of N(0, I) and N(0, t I), whose squared discrepancy is 3 (1 - t)^2 / d in closed form."""
    repetitions, d = 200, 4
    truth = 3 * (1 - slope**2 - noise**2) ** 2 / d
    make = torch.Generator().manual_seed(1)
    found = []
    for seed in range(repetitions):
        x, z = torch.randn(2, n, d, generator=make)
        y = slope * x + noise * z
        found.append(kernel_distance(x, y, subsets, size, seed=seed, paired=True)[:2])
    values, errors = torch.tensor(found).double().T
    assert abs(values.mean() - truth) < 3 * values.std() / repetitions**0.5
    assert 0.85 < float(errors.square().mean().sqrt() / values.std()) < 1.15  # known to 5 %
    covered = ((values - truth).abs() < 2 * errors).double().mean()
    assert 0.85 < float(covered) <= 0.99


def test_kernel_distance_of_pairs_is_the_formula():
    real, fake = (part.double() for part in images_and_reconstructions(0, 12))
    n, d = real.shape

    def k(x, y):
        return (x @ y.mT / d + 1) ** 3

    h = k(real, real) + k(fake, fake) - k(real, fake) - k(fake, real)
    want = float(h.sum() - h.trace()) / (n * (n - 1))
    found = kernel_distance(real, fake, paired=True)
    assert found.value == pytest.approx(want, rel=1e-12)
    draws = torch.tensor([[0, 3, 5, 7], [2, 3, 11, 4]])
    within = [h[rows][:, rows] for rows in draws]
    want = sum(float(part.sum() - part.trace()) / 12 for part in within) / 2
    assert kernel_distance(real, fake, draws=(draws, draws), paired=True).value == pytest.approx(
        want, rel=1e-12
    )


def test_copies_are_at_kernel_distance_0_from_themselves():
    real, _ = images_and_reconstructions(0)
    assert kernel_distance(real, real.clone(), paired=True)[:2] == (0, 0)


def test_all_rows_and_subsets_of_pairs_have_one_error():
    sets = images_and_reconstructions(0)
    whole = kernel_distance(*sets, subsets=None, paired=True)
    within = kernel_distance(*sets, subset_size=160, paired=True)
    assert within.error == pytest.approx(whole.error, rel=1e-6)
    small = kernel_distance(*sets, subsets=4, subset_size=60, paired=True)
    assert small.error > whole.error


@pytest.mark.parametrize(
    "measure",
    [
        frechet_standard_error,
        kernel_distance,
        precision_recall,
        density_coverage,
        score,
    ],
)
def test_pairs_need_sets_of_one_size(measure):
    real, fake = images_and_reconstructions(0)
    with pytest.raises(ValueError, match="paired sets have as many rows as each other"):
        measure(real, fake[:-1], paired=True)
    with pytest.raises(ValueError, match="draws of paired sets must be two equal tensors"):
        draws = torch.arange(40).reshape(2, 20), torch.arange(1, 41).reshape(2, 20)
        kernel_distance(real, fake, draws=draws, paired=True)


def test_pairs_are_drawn_again_as_pairs():
    """Where each sample is its own copy, no resampling tells the two sets apart."""
    real, _ = images_and_reconstructions(0)
    curve = prd_curve(real, real.clone(), runs=2, paired=True)
    same = torch.ones(len(curve.resampled_precision), dtype=torch.float64)
    torch.testing.assert_close(curve.resampled_precision.amax(1), same)
    middle = slice(450, 550)  # where the curve bends
    apart = prd_curve(real, real.clone(), runs=2)
    assert (apart.resampled_precision[:, middle] < curve.resampled_precision[:, middle]).any()
