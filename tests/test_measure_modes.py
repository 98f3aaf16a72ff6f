"""Measures under inference mode, without gradients, and of features that ask for them."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import fastlatent.metrics as metrics
from fastlatent.metrics import FeatureStatistics, Neighbourhoods

# Measured elsewhere: networks and files that features come from, bounds on likelihoods.
OTHERS = {
    "dinov2",
    "distance_name",
    "extract",
    "importance_log_likelihood",
    "inception",
    "read_npz",
    "stored_classifier",
    "train_classifier",
}
DIFFERENTIABLE = {"frechet_distance", "frechet_from_features", "prd_of_histograms"}


def moments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x.mean(0), x.T.cov(), y.mean(0), y.T.cov()


def neighbourhoods(x: Tensor, y: Tensor) -> list:
    near = Neighbourhoods(x, y, realism=True)
    return [*near.precision_recall(3), *near.density_coverage(5), near.realism(3)]


def statistics(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    one, two = FeatureStatistics(x.shape[1]), FeatureStatistics(x.shape[1])
    one.update(x)
    two.update(y)
    one.merge(two)
    return one.mu, one.sigma


MEASURES = {
    "FeatureStatistics": statistics,
    "Neighbourhoods": neighbourhoods,
    "density_coverage": metrics.density_coverage,
    "frechet_distance": lambda x, y: metrics.frechet_distance(*moments(x, y)),
    "frechet_from_features": metrics.frechet_from_features,
    "frechet_infinity": lambda x, y: metrics.frechet_infinity(x, y, 4)[:2],
    "frechet_standard_error": metrics.frechet_standard_error,
    "kernel_distance": metrics.kernel_distance,
    "moment_error": lambda x, y: metrics.moment_error(x.T.cov(), y.T.cov()),
    "nearest_distance": lambda x, y: metrics.nearest_distance(x[:, None, None], [y[:, None, None]]),
    "prd_curve": lambda x, y: metrics.prd_curve(x, y, 5, angles=11, runs=1),
    "prd_f_beta": lambda x, y: metrics.prd_f_beta(
        metrics.PRDCurve(*(part.sigmoid() for part in (x[:, 0], y[:, 0], x.T, y.T)))
    ),
    "prd_of_histograms": lambda x, y: metrics.prd_of_histograms(x.exp(), y.exp(), 11),
    "fid": lambda x, y: metrics.fid(x, y)[:2],
    "kid": lambda x, y: metrics.kid(x, y)[:2],
    "precision_recall": metrics.precision_recall,
    "realism": metrics.realism,
    "score": lambda x, y: list(metrics.score(x, y).metrics.values()),
}


def flat(value) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [part for item in value for part in flat(item)]
    return [torch.as_tensor(value, dtype=torch.float64)]


def sets() -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 30, 4, generator=make, dtype=torch.float64))


def test_every_measure_is_tried():
    functions = {name for name in metrics.__all__ if name.islower()}
    assert functions - OTHERS <= set(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("few", [False, True])  # rows, fewer than features
def test_measures_are_the_same_in_every_mode(name, few):
    x, y = sets()
    if few:
        x, y = x.T.repeat(1, 3)[:, :90], y.T.repeat(1, 3)[:, :90]
        x, y = torch.cat([x, x + 1, x - 1]), torch.cat([y, y + 2, y - 2])
    measure = MEASURES[name]
    want = flat(measure(x, y))
    with torch.inference_mode():
        inside = [x.clone(), y.clone()]
        torch.testing.assert_close(flat(measure(x, y)), want, equal_nan=True)
        torch.testing.assert_close(flat(measure(*inside)), want, equal_nan=True)
    torch.testing.assert_close(flat(measure(*inside)), want, equal_nan=True)
    for mode in (torch.no_grad(), torch.inference_mode(), nullcontext()):
        x, y = (part.detach().requires_grad_() for part in (x, y))
        with mode, warnings.catch_warnings():
            warnings.simplefilter("error")
            found = flat(measure(x, y))
        if name not in DIFFERENTIABLE:
            assert not any(part.requires_grad for part in found)
        found = [part.detach() for part in found]
        torch.testing.assert_close(found, want, equal_nan=True)


def test_statistics_count_on_from_one_mode_to_another():
    x, y = sets()
    want = statistics(x, y)
    for first, second in (
        (torch.inference_mode(), nullcontext()),
        (nullcontext(), torch.inference_mode()),
    ):
        with first:
            found = FeatureStatistics(4)
            found.update(x)
            assert found.count == len(x)
        with second:
            found.update(y)
            mu, sigma = found.mu, found.sigma
        torch.testing.assert_close((mu, sigma), want)


def test_neighbourhoods_can_be_asked_outside_of_the_mode_they_were_made_in():
    with torch.inference_mode():
        near = Neighbourhoods(*sets())
    assert near.precision_recall(3) == Neighbourhoods(*sets()).precision_recall(3)
