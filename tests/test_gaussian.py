"""Discretized Gaussians against 50 digits, and against the formula of diffusion models."""

import math

import mpmath
import pytest
import torch

from fastlatent.ops import discretized_gaussian_log_prob, from_diffusion

DTYPES = [torch.float32, torch.float64]
GAMMA = {"centred": lambda n: n - 1, "symmetric": lambda n: n, "unit": lambda n: 2 * n}


def truth(k, mean, log_scale, n, grid):
    """log P and its derivatives by mean and log-scale at these doubles, to 50 digits."""
    with mpmath.workdps(80):
        gamma, shift = GAMMA[grid](n), n if grid == "unit" else 0
        scale = mpmath.exp(mpmath.mpf(log_scale))
        low, high = (
            (mpmath.mpf(2 * k - n + 1 + side + shift) / gamma - mpmath.mpf(mean)) / scale
            for side in (-1, 1)
        )
        low, high = (-mpmath.inf if k == 0 else low), (mpmath.inf if k == n - 1 else high)
        sign = 1
        if low + high > 0:  # by symmetry, so that the difference is of small numbers
            low, high, sign = -high, -low, -1
        root = mpmath.sqrt(2)
        p = (mpmath.erfc(-high / root) - mpmath.erfc(-low / root)) / 2
        below, above = mpmath.npdf(low), mpmath.npdf(high)
        low = mpmath.mpf(0) if mpmath.isinf(low) else low
        by_mean = sign * (below - above) / (scale * p)
        return float(mpmath.log(p)), float(by_mean), float((low * below - high * above) / p)


def points(count, n, dtype):
    """Means within and beyond the grid, log-scales from much less than a bin to much more."""
    make = torch.Generator().manual_seed(n)
    bins = torch.randint(0, n, (count,), generator=make, dtype=torch.int32)
    bins[: count // 10], bins[count // 10 : count // 5] = 0, n - 1
    mean = 5 * torch.rand(count, generator=make, dtype=torch.float64) ** 2 - 1.5
    log_scale = 14 * torch.rand(count, generator=make, dtype=torch.float64) - 10
    return bins, mean.to(dtype), log_scale.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "grid"), [(256, "centred"), (2, "unit"), (32, "symmetric")])
def test_values_and_gradients_are_those_of_fifty_digits(n, grid, dtype):
    bins, mean, log_scale = points(60, n, dtype)
    mean.requires_grad_(), log_scale.requires_grad_()
    got = discretized_gaussian_log_prob(bins, mean, log_scale, n, grid)
    grads = torch.autograd.grad(got.sum(), (mean, log_scale))
    assert got.isfinite().all() and all(g.isfinite().all() for g in grads)
    args = [
        (k, m, s, n, grid)
        for k, m, s in zip(*(x.tolist() for x in (bins, mean, log_scale)), strict=True)
    ]
    want, by_mean, by_log_scale = torch.tensor([truth(*a) for a in args], dtype=torch.float64).T
    # Distances in units of the scale carry a few roundings, and enter squared.
    close = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got.double(), want, **close)
    unit = 1 + want.abs()
    scale = log_scale.detach().double().exp()
    torch.testing.assert_close(grads[0] * scale / unit, by_mean * scale / unit, **close)
    torch.testing.assert_close(grads[1] / unit, by_log_scale / unit, **close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_tails_are_finite_and_pull_towards_the_bin(dtype):
    bins = torch.tensor([0, 128, 255, 255, 128, 0], dtype=torch.uint8)
    mean = torch.tensor([1, 1, 1, -1, -1, 1], dtype=dtype).requires_grad_()
    log_scale = torch.full((6,), -9.0, dtype=dtype).requires_grad_()
    got = discretized_gaussian_log_prob(bins, mean, log_scale)
    by_mean, by_scale = torch.autograd.grad(got.sum(), (mean, log_scale))
    far = torch.tensor([True, True, False, True, True, True])
    assert (got[far] < -1e6).all() and got.isfinite().all()
    assert torch.equal(by_mean[far].sign(), torch.tensor([-1, -1, 1, 1, -1], dtype=dtype))
    assert (by_scale[far] > 1e6).all() and by_mean[2] < 1e-20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 3.0, 40.0])
def test_probabilities_sum_to_one(log_scale, dtype):
    bins = torch.arange(256, dtype=torch.uint8)
    mean = torch.full((256,), 0.3, dtype=dtype)
    for cdf in ("exact", "tanh"):
        got = discretized_gaussian_log_prob(bins, mean, mean * 0 + log_scale, cdf=cdf)
        assert got.double().exp().sum().item() == pytest.approx(
            1, abs=256 * max(1e-12 * (cdf == "tanh"), 8 * torch.finfo(dtype).eps)
        )


def diffusion(x, means, log_scales, n=256):
    """The formula of diffusion models (Ho et al. 2020, equation 13), with their approximation."""

    def below(value):
        z = (value - means) / log_scales.exp()
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    half = 1 / (n - 1)
    upper = torch.where(x > 1 - half, torch.ones_like(x), below(x + half))
    lower = torch.where(x < half - 1, torch.zeros_like(x), below(x - half))
    return (upper - lower).clamp_min(1e-12).log()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [256, 32])
def test_tanh_is_the_formula_of_diffusion_models(n, dtype):
    bins, means, log_scales = points(4000, n, dtype)
    x = (2 * bins.double() / (n - 1) - 1).to(dtype)
    means, log_scales = means.requires_grad_(), (log_scales / 2).requires_grad_()
    want = diffusion(x, means, log_scales, n)
    got = discretized_gaussian_log_prob(
        *from_diffusion(x, means, log_scales, n), n_bins=n, cdf="tanh"
    )
    # Theirs is a difference of numbers up to 1 at rounded distances.
    eps = torch.finfo(dtype).eps
    error = 8 * eps * (1 + (-log_scales).exp())
    assert ((got.exp() - want.exp()).abs() <= error).all()
    least = math.log(1e-12)
    held = torch.isclose(want, torch.tensor(least, dtype=dtype)) & (got < least + 1e-3)
    assert held.sum() > 100 and got.min() >= least * (1 + eps)
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), (means, log_scales)),
        torch.autograd.grad(want.sum(), (means, log_scales)),
        strict=True,
    ):
        assert (ours[got <= least * (1 - eps)] == 0).all()
        sure = want.exp() > error * 1e4
        assert sure.sum() > 200
        torch.testing.assert_close(ours[sure], theirs[sure], rtol=1e-2, atol=1e-2)


def test_tanh_holds_what_exact_tells_apart():
    x, means, log_scales = torch.ones(2), torch.tensor([0.5, -0.5]), torch.full((2,), -5.0)
    args = from_diffusion(x, means, log_scales)
    held = discretized_gaussian_log_prob(*args, cdf="tanh")
    torch.testing.assert_close(held, torch.full((2,), math.log(1e-12)))
    exact = discretized_gaussian_log_prob(*args)
    assert exact[1] < exact[0] < -2000


def test_limits():
    bins = torch.tensor([0, 7, 255], dtype=torch.int32)
    mean = torch.zeros(3)
    for cdf in ("exact", "tanh"):
        wide = discretized_gaussian_log_prob(bins, mean, mean + torch.inf, cdf=cdf)
        least = -torch.inf if cdf == "exact" else math.log(1e-12)
        torch.testing.assert_close(wide, torch.tensor([-math.log(2), least, -math.log(2)]))
        nan = discretized_gaussian_log_prob(bins, torch.tensor([torch.nan, 0, 0]), mean)
        assert nan.isnan().tolist() == [True, False, False]
        log_scale = torch.full((3,), -70.0, requires_grad=True)
        at_mean = discretized_gaussian_log_prob(bins, bins / 127.5 - 1, log_scale, cdf=cdf)
        assert torch.equal(at_mean, torch.zeros(3))
        assert not torch.autograd.grad(at_mean.sum(), log_scale)[0].any()
    assert discretized_gaussian_log_prob(bins, mean.half(), mean.half()).dtype == torch.float32


def test_what_does_not_fit_is_one_sentence():
    x, mean = torch.zeros(3) + 1, torch.zeros(3)
    with pytest.raises(ValueError, match=r"bins must be in 0 to 15"):
        discretized_gaussian_log_prob(torch.tensor([16], dtype=torch.uint8), mean[:1], mean[:1], 16)
    with pytest.raises(ValueError, match=r"log_scale must have the shape of bins, \(3,\)"):
        discretized_gaussian_log_prob(x.int(), mean, mean[:2])
    with pytest.raises(TypeError, match="bins must have dtype uint8, int32; got float32"):
        discretized_gaussian_log_prob(x, mean, mean)
    with pytest.raises(ValueError, match=r"from_diffusion: means must have the shape of x, \(3,\)"):
        from_diffusion(x, mean[:1], mean)
    with pytest.raises(ValueError, match=r"from_diffusion: x must be 2 k / 255 - 1.* got 0.5"):
        from_diffusion(x / 2, mean, mean)
