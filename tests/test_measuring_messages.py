"""What decoders and densities do that was once told in others' words, or not at all."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastlatent.geometry import (
    MetricField,
    as_metric,
    curve_length,
    equal_steps,
    geodesic,
    midpoint,
    pullback_metric,
    speed,
    straight,
)
from fastlatent.models.glo import fit_latents
from fastlatent.paths import likelihood_path

D = 4


def points(n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def layers() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(D, 12), nn.Linear(12, 9)


FIRST, LAST = layers()


def plain(z):
    return LAST(FIRST(z).tanh())


def reduced(z):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return LAST(FIRST(z).tanh())


def reduced_variance(z):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = LAST(FIRST(z).tanh())
    return y.float(), y.exp()


@pytest.mark.parametrize("analytic", [True, False])
def test_autocast_inside_a_decoder_does_not_reach_it(analytic):
    z = points()
    for decoder, same in (
        (reduced, plain),
        (reduced_variance, lambda z: (plain(z), plain(z).exp())),
    ):
        found, expected = (as_metric(f, analytic=analytic) for f in (decoder, same))
        torch.testing.assert_close(found.matrix(z), expected.matrix(z))
        lengths = [curve_length(m, straight(z, -z).control).length for m in (found, expected)]
        torch.testing.assert_close(*lengths)
    assert geodesic(reduced, z, -z, max_iterations=2).length.isfinite().all()


def test_outputs_of_few_digits_and_log_variances_are_named():
    with pytest.raises(
        TypeError, match=r"decoder: the output must be float32 or float64.*bfloat16"
    ):
        pullback_metric(lambda z: plain(z).bfloat16(), points())
    with pytest.raises(
        ValueError, match=r"decoder: the variance must not be negative.*log-variance"
    ):
        pullback_metric(lambda z: (plain(z), plain(z)), points())
    # The first two latents have positive ones.
    z = points(20)[plain(points(20)).amin(1).argsort(descending=True)]
    with pytest.raises(ValueError, match="log-variance"):
        geodesic(lambda z: (plain(z), plain(z)[:, :1].repeat(1, 9)), z, -z)


class Doubled(torch.autograd.Function):
    """Without a derivative in forward mode, and with a constant one in reverse mode."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize(("own", "same"), [(Doubled, lambda x: 2 * x), (Sine, torch.sin)])
def test_functions_with_a_reverse_mode_alone(own, same, analytic):
    z, v = points().requires_grad_(), points().flip(0)
    found = as_metric(lambda z: LAST(own.apply(FIRST(z))), analytic=analytic)
    expected = as_metric(lambda z: LAST(same(FIRST(z))), analytic=analytic)
    torch.testing.assert_close(found.matrix(z.detach()), expected.matrix(z.detach()))
    gradients = [torch.autograd.grad(m.speed_squared(z, v).sum(), z) for m in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant, analytic):
    z, v = points().requires_grad_(), points().flip(0)
    found = as_metric(
        lambda z: LAST(checkpoint(lambda x: FIRST(x).tanh(), z, use_reentrant=reentrant)),
        analytic=analytic,
    )
    expected = as_metric(plain, analytic=analytic)
    torch.testing.assert_close(found.matrix(z.detach()), expected.matrix(z.detach()))
    gradients = [torch.autograd.grad(speed(m, z, v).sum(), z) for m in (found, expected)]
    torch.testing.assert_close(*gradients)
    kept = checkpoint(FIRST, z, use_reentrant=reentrant)  # elsewhere they work as before
    kept.sum().backward()
    assert FIRST.weight.grad is not None and z.grad is not None
    FIRST.zero_grad()


def test_metrics_in_another_precision_than_the_latents():
    unit = torch.eye(D)
    field = MetricField(lambda z: unit.expand(len(z), D, D))
    z = points(dtype=torch.float64)
    assert field.matrix(z).dtype == torch.float64
    torch.testing.assert_close(field.speed_squared(z, z), z.square().sum(1))
    torch.testing.assert_close(geodesic(field, z, -z).length, 2 * z.norm(dim=1))
    for function in (lambda z: (z @ unit)[:, :, None] * unit, lambda z: z[:, :, None] * (z @ z)):
        with pytest.raises(ValueError, match="MetricField: the function can't be evaluated on"):
            geodesic(MetricField(function), z, -z)


def test_exported_programs():
    def exported(rows):
        return torch.export.export(
            nn.Sequential(FIRST, nn.Tanh(), LAST), (points(),), dynamic_shapes=({0: rows},)
        ).module()

    z = points()
    dynamic = exported(torch.export.Dim.DYNAMIC)
    torch.testing.assert_close(pullback_metric(dynamic, z), pullback_metric(plain, z))
    with pytest.raises(ValueError, match=r"Guard failed.*needs a dynamic number of latents"):
        pullback_metric(exported(None), z)
    metric = as_metric(exported(torch.export.Dim("rows", min=1, max=4)), analytic=False)
    assert metric.matrix(z).shape == (3, D, D)
    with pytest.raises(ValueError, match="decoder: it can't be evaluated on latents of shape"):
        metric.output(points(9))


def test_errors_of_any_kind_are_told_in_a_sentence():
    for decoder in (
        lambda z, more: z,
        lambda z: [][0],
        lambda z: {}["weight"],
        lambda z: z.unknown,
    ):
        with pytest.raises(ValueError, match=r"decoder: it can't be evaluated.*Error: ") as caught:
            pullback_metric(decoder, points())
        assert "\n" not in str(caught.value)


def test_searches_by_gradients_in_inference_mode():
    def log_prob(x):
        return -FIRST(x).square().sum(1)

    start, end = points(), -points()
    expected = likelihood_path(log_prob, start, end, iterations=5, data=points(20))
    with torch.inference_mode():
        own = likelihood_path(
            log_prob, start.clone(), end.clone(), iterations=5, data=points(20).clone()
        )
        weight = torch.ones(D, D)
        with pytest.raises(ValueError, match="log_prob can't be evaluated on points"):
            likelihood_path(lambda x: -(x @ weight).square().sum(1), start, end)
    torch.testing.assert_close(own.points, expected.points)

    def fitted():
        images, starts = plain(points()).tanh()[:, None, None], points()[:, None].clone()
        loss = lambda x, y: (x - y).square().flatten(1).sum(1)  # noqa: E731
        return fit_latents(lambda z: plain(z)[:, None, None], loss, images, starts, lambda z: z, 5)

    with torch.no_grad():
        latents = fitted().latents
    with torch.inference_mode():
        torch.testing.assert_close(fitted().latents, latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_steps_of_curves_that_stay(dtype):
    """Of a point, and of a curve that the decoder maps to one."""
    z = points(5, dtype)
    net = nn.Sequential(*layers()).to(dtype)
    even = torch.linspace(0, 1, 9, dtype=dtype).expand(5, 9)
    field = MetricField(lambda z: torch.eye(D, dtype=dtype).expand(len(z), D, D))
    for metric in (net, field):
        torch.testing.assert_close(equal_steps(metric, straight(z, z), 9), even)
    aside = torch.tensor([1, 0, 0, 0], dtype=dtype)
    flat = straight(z, z + aside)
    torch.testing.assert_close(equal_steps(lambda z: net(z * (1 - aside)), flat, 9), even)
    torch.testing.assert_close(midpoint(net, straight(z, z)), z)
    near = straight(z, z + 1e-3 * aside)  # short, but a curve
    late = equal_steps(lambda z: (z[:, :1] - points(5, dtype)[:1, :1]).exp(), near, 9)
    torch.testing.assert_close(late, even, atol=2e-2, rtol=0)
