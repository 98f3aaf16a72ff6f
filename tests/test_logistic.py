"""Discretized logistics: exact numbers, probabilities that sum to one, and accuracy everywhere."""

import math
import os
from itertools import product
from typing import NamedTuple

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logistic_numbers import MIXTURES, SINGLE, exact_mixture, exact_single, slopes_of
from memory import allocated
from original_pixelcnn import channels_last_log_prob, pasted_log_prob, pasted_sample
from torch.autograd import gradcheck

from fastlatent import ops
from fastlatent.ops import (
    discretized_logistic_log_prob,
    discretized_logistic_mean,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_mode,
    discretized_logistic_mixture_sample,
    discretized_logistic_mode,
    discretized_logistic_sample,
    from_pixelcnn,
    from_vdvae,
)
from fastlatent.ops.logistic.grid import GRIDS, Grid

U = 2.0**-24  # rounding unit of float32
quick = settings(max_examples=30, deadline=None)


def bins_of(values, n=256):
    return torch.tensor(values, dtype=torch.uint8 if n <= 256 else torch.int32)


def column(values, dtype=torch.float32):
    """Parameters of one pixel."""
    return torch.tensor(values, dtype=dtype)[None, :, None, None]


def mixture_of(bins, params, **options):
    """log P of pixels (m, c) under parameters (m, p)."""
    return discretized_logistic_mixture_log_prob(
        bins[:, :, None, None], params[:, :, None, None], **options
    )


class Terms(NamedTuple):
    """What the stated error bounds of a mixture are made of, for m pixels."""

    condition: torch.Tensor  # (m,), of the coupled means: sensitivity to rounding
    scales: torch.Tensor  # (m, p), size of each gradient by its kind of parameter


def mixture_terms(bins, params, coupled, n=256):
    """Of pixels (m, c) on the centred grid under float64 parameters (m, p), floor -7."""
    m, c = bins.shape
    kinds = 3 if coupled else 2
    k = params.shape[1] // (1 + kinds * c)
    blocks = params[:, k:].reshape(m, c, kinds, k)
    x = (2 * bins.double() - (n - 1)) / (n - 1)
    mean, log_scale = blocks[:, :, 0].clone(), blocks[:, :, 1]
    if coupled:
        raw = blocks[:, :, 2]
        red, green = x[:, :1], x[:, 1:2]
        mean[:, 1] += raw[:, 0].tanh() * red
        mean[:, 2] += raw[:, 1].tanh() * red + raw[:, 2].tanh() * green
    inverse = (-log_scale.clamp_min(-7)).exp()
    leaf = mean.requires_grad_(True)
    each = discretized_logistic_log_prob(
        bins.to(torch.int32)[:, :, None].expand_as(mean), leaf, log_scale, n, "centred"
    )
    (slope,) = torch.autograd.grad(each.sum(), leaf)
    share = (params[:, :k].log_softmax(1) + each.detach().sum(1)).softmax(1)[:, None]
    slope, distance = slope.abs(), (x[:, :, None] - mean.detach()).abs()
    means = share * (inverse if coupled else slope)
    found = [means, share * (1 + distance * slope)]
    if coupled:
        seen = torch.stack([red, red, green], 1).abs()
        found.append(share * seen / raw.cosh().square() * inverse[:, [1, 2, 2]])
    # The bound speaks of the largest component, of each kind of parameter in each channel.
    scales = torch.stack(found, 2).amax(3, keepdim=True).expand(m, c, kinds, k)
    condition = torch.zeros(m, dtype=torch.float64)
    if coupled:
        sensitive = ((blocks[:, 1:, 0].abs() + 2) * inverse[:, 1:]).sum(1)
        condition = torch.where(share[:, 0] > 1e-6, sensitive, 0).amax(1)
    logits = torch.ones(m, k, dtype=torch.float64)
    return Terms(condition, torch.cat([logits, scales.reshape(m, -1)], 1))


def is_printed(exact, printed):
    """To all digits printed, of which there are at least ten."""
    return abs(exact - printed) <= mpmath.mpf("5e-11") * abs(exact)


@pytest.mark.parametrize(("at", "want"), SINGLE)
def test_the_numbers_of_one_logistic_are_those_of_the_definition(at, want):
    grid, n, k, *point, floor = at

    def exact(point):
        return exact_single(grid, n, k, *point, floor)

    assert is_printed(exact(point), want[0])
    assert all(map(is_printed, slopes_of(exact, point), want[1:]))


@pytest.mark.parametrize("name", MIXTURES)
def test_the_numbers_of_mixtures_are_those_of_the_definition(name):
    bins, want, kinds = MIXTURES[name]
    point = [v for values, _ in kinds for v in values]

    def exact(point):
        return exact_mixture(bins, point)

    assert is_printed(exact(point), want)
    printed = [slope for _, slopes in kinds for slope in slopes]
    assert all(map(is_printed, slopes_of(exact, point), printed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("at", "want"), SINGLE)
def test_the_numbers_of_one_logistic(at, want, dtype, isa):
    grid, n, k, mean, log_scale, floor = at
    m, s = (torch.tensor([float(v)], dtype=dtype, requires_grad=True) for v in (mean, log_scale))
    got = discretized_logistic_log_prob(bins_of([k], n), m, s, n, grid, floor)
    got.sum().backward()
    lam = log_scale if floor is None else max(log_scale, floor)
    of = Grid.of(n, grid, floor)
    x = 2 * k - n + 1 + of.shift
    near = (abs(x - of.gamma * mean) - 1) / of.gamma * math.exp(-lam)
    below, above = max(-near, 0.0), max(near, 0.0)
    u = U if dtype == torch.float32 else 1e-11 / 128  # the numbers are printed to 13 digits
    for value, expected, bound in [
        (got, want[0], 8 * u * (16 + below) * abs(want[0])),
        (m.grad, want[1], 8 * u * (16 + below) * abs(want[1])),
        (s.grad, want[2], 16 * u * (1 + above) + 1e-12 * abs(want[2])),
    ]:
        assert abs(value.item() - expected) <= max(bound, 1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_numbers_of_mixtures(name, dtype, isa):
    bins, want, kinds = MIXTURES[name]
    params = column([v for values, _ in kinds for v in values], dtype).requires_grad_(True)
    got = discretized_logistic_mixture_log_prob(bins_of(bins)[None, :, None, None], params)
    got.sum().backward()
    gradient = torch.tensor([g for _, slopes in kinds for g in slopes], dtype=torch.float64)
    if dtype == torch.float64:
        assert got.item() == pytest.approx(want, rel=2.5e-12)
        atol = 1e-11 * gradient.abs().max()
        torch.testing.assert_close(params.grad.flatten(), gradient, rtol=4e-11, atol=atol)
        return
    values = torch.tensor([v for values, _ in kinds for v in values], dtype=torch.float64)
    terms = mixture_terms(bins_of(bins)[None], values[None], len(bins) == 3)
    error = 8 * U * (4 + abs(want) + float(terms.condition))
    assert abs(got.item() - want) <= error + 1e-12 * abs(want)
    bound = 32 * U * (10 + abs(want) + float(terms.condition)) * terms.scales[0]
    assert ((params.grad.flatten().double() - gradient).abs() <= bound + 1e-12).all()


def single_distribution(n, grid, mean, log_scale, floor=-7.0):
    """P(k) of all bins for parameters (m,): (m, n)."""
    bins = torch.arange(n, dtype=torch.int32).expand(len(mean), n)
    each = [p[:, None].expand(len(mean), n) for p in (mean, log_scale)]
    return discretized_logistic_log_prob(bins, *each, n, grid, floor).double().exp()


@quick
@given(
    n=st.sampled_from([2, 3, 8, 32, 256]),
    grid=st.sampled_from(GRIDS),
    mean=st.floats(-1e4, 1e4, width=32) | st.floats(-1.5, 1.5, width=32),
    log_scale=st.floats(-30, 30, width=32),
    floor=st.sampled_from([-7.0, None]),
)
def test_probabilities_sum_to_one(n, grid, mean, log_scale, floor):
    total = single_distribution(n, grid, torch.tensor([mean]), torch.tensor([log_scale]), floor)
    assert abs(float(total.sum()) - 1) <= 1e-6


def extreme_parameters(k, channels, coupled, spread, seed):
    """(1, planes): means and coefficients within +-spread, log-scales within +-30."""
    make = torch.Generator().manual_seed(seed)

    def within(size):
        return (2 * torch.rand(1, k, generator=make) - 1) * size

    blocks = [torch.randn(1, k, generator=make) * 3]
    for _ in range(channels):
        blocks += [within(spread), within(30.0)] + [within(spread)] * coupled
    return torch.cat(blocks, 1)


@st.composite
def kinds_of_mixtures(draw):
    """Bins of a channel, channels, whether they are coupled, and a grid that goes with that."""
    channels, coupled = draw(st.sampled_from([(1, False), (2, False), (3, False), (3, True)]))
    n = draw(st.sampled_from({1: [2, 3, 8, 32, 256], 2: [2, 3, 8, 32], 3: [2, 3, 8]}[channels]))
    return n, channels, coupled, draw(st.sampled_from(GRIDS[:2] if coupled else GRIDS))


mixtures = {
    "k": st.integers(1, 10),
    "spread": st.sampled_from([1.0, 3.0, 1e4]),
    "seed": st.integers(0, 10_000),
    "floor": st.sampled_from([-7.0, None]),
}


@settings(max_examples=100, deadline=None)
@given(kind=kinds_of_mixtures(), **mixtures)
def test_probabilities_of_mixtures_sum_to_one(kind, k, spread, seed, floor):
    n, channels, coupled, grid = kind
    params = extreme_parameters(k, channels, coupled, spread, seed)
    bins = torch.cartesian_prod(*[torch.arange(n, dtype=torch.int32)] * channels)
    log_prob = mixture_of(
        bins.view(-1, channels),
        params.expand(n**channels, -1),
        coupled=coupled,
        n_bins=n,
        grid=grid,
        min_log_scale=floor,
    )
    assert abs(float(log_prob.double().exp().sum()) - 1) <= 1e-6


@quick
@given(grid=st.sampled_from(GRIDS[:2]), **mixtures | {"k": st.integers(1, 4)})
def test_coupled_channels_follow_the_chain_rule_for_any_parameters(grid, k, spread, seed, floor):
    """256 bins: greens and blues of a red sum to that red, blues of a green to what others sum to.

    The likeliest red and green are taken: elsewhere rounding leaves little of so small a number.
    """
    options = {"grid": grid, "min_log_scale": floor}
    params = extreme_parameters(k, 3, True, spread, seed)
    bins = torch.arange(256, dtype=torch.int32)
    reds = mixture_of(bins[:, None], params[:, : 3 * k].expand(256, -1), **options).double()
    assert abs(float(reds.exp().sum()) - 1) <= 1e-6

    red = int(reds.argmax())
    pairs = torch.cartesian_prod(bins, bins).T.reshape(1, 2, 256, 256)
    colours = torch.cat([torch.full_like(pairs[:, :1], red), pairs], 1)

    def of_greens(params):
        """log P(red, green), for all greens."""
        planes = params[:, :, None, None].expand(1, -1, 256, 256)
        each = discretized_logistic_mixture_log_prob(colours, planes, reduction="none", **options)
        return each[0].double().logsumexp(1)

    greens = of_greens(params)
    spare = math.log(2) * 16  # a colour's share of its red, in nats, as rounding sees it
    sum_of_greens = float(greens.logsumexp(0))
    size = 4 + abs(float(reds[red])) + spare
    assert abs(sum_of_greens - float(reds[red])) <= 2.5e-7 * size
    other_blue = params.clone()
    other_blue[:, 7 * k : 9 * k] = torch.tensor([0.3, -1.0]).repeat_interleave(k)
    green = int(greens.argmax())
    size = 4 + abs(float(greens[green])) + spare
    assert abs(float((of_greens(other_blue) - greens)[green])) <= 2.5e-7 * size


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("n", [1024, 4096, 65536])
def test_many_bins_sum_to_one(n, grid):
    """Within 1e-6, as 256 bins do: errors of single bins are larger, but of either sign."""
    make = torch.Generator().manual_seed(n)
    mean = torch.cat([torch.rand(30, generator=make) * 3 - 1.5, torch.tensor([-1e4, 1e4])])
    log_scale = torch.cat([torch.rand(30, generator=make) * 12 - 10, torch.tensor([5.0, -10.0])])
    total = single_distribution(n, grid, mean, log_scale, None).sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_many_bins_sum_to_one_in_double_precision():
    mean, log_scale = torch.tensor([0.3, 0.9, -5.0]).double(), torch.tensor([-9.0, -4, 2]).double()
    for grid in GRIDS:
        total = single_distribution(65536, grid, mean, log_scale, None).sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def colour_parameters(k, seed, count=1, dtype=torch.float32):
    make = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(3):
        blocks += [
            torch.randn(count, k, generator=make) * 0.7,
            torch.randn(count, k, generator=make) * 1.5 - 3,
            torch.randn(count, k, generator=make),
        ]
    return torch.cat([torch.randn(count, k, generator=make), *blocks], 1).to(dtype)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("grid", ["centred", "symmetric"])
@pytest.mark.parametrize("coupled", [True, False])
def test_all_colours_sum_to_one(n, grid, coupled):
    colours = torch.tensor(list(product(range(n), repeat=3)), dtype=torch.int32)
    for seed in range(3):
        params = colour_parameters(4, seed)
        params = params if coupled else params[:, : 4 * 7]
        log_prob = mixture_of(
            colours, params.expand(len(colours), -1), n_bins=n, grid=grid, coupled=coupled
        )
        assert abs(float(log_prob.double().exp().sum()) - 1) <= 1e-6


def test_colours_follow_the_chain_rule():
    """Summing over the last channel leaves the first two, and so on down to one."""
    k = 5
    make = torch.Generator().manual_seed(7)
    params = colour_parameters(k, 3)
    double = params.double()
    logits, rest = double[0, :k], double[0, k:].view(3, 3, k)
    bins = torch.arange(256, dtype=torch.int32)

    def marginal(red, green=None):
        """log P(red) or log P(red, green), by the definition of one logistic in float64."""
        x = [(2 * c - 255) / 255 for c in (red, green) if c is not None]
        total = logits.log_softmax(0)
        for channel, value in enumerate([red, green][: len(x)]):
            mean = rest[channel, 0]
            if channel == 1:
                mean = mean + rest[0, 2].tanh() * x[0]
            total = total + discretized_logistic_log_prob(
                torch.full((k,), value, dtype=torch.int32), mean, rest[channel, 1], 256, "centred"
            )
        return total.logsumexp(0)

    for _ in range(4):
        component = int(torch.multinomial(logits.softmax(0), 1, generator=make))
        red = int(((rest[0, 0, component] + 1) * 127.5).clamp(0, 255))
        green = int(((rest[1, 0, component]) * 127.5 + 127.5).clamp(0, 255))
        firsts = torch.stack([marginal(int(r)) for r in bins])
        assert float(firsts.exp().sum()) == pytest.approx(1, abs=1e-9)
        seconds = torch.stack([marginal(red, int(g)) for g in bins]).logsumexp(0)
        assert float(seconds) == pytest.approx(float(marginal(red)), abs=1e-9)
        pixels = torch.stack([torch.full_like(bins, red), torch.full_like(bins, green), bins], 1)
        thirds = mixture_of(pixels, params.expand(256, -1)).double().logsumexp(0)
        want = float(marginal(red, green))
        assert abs(math.expm1(float(thirds) - want)) <= 2.5e-7 * (4 + abs(want))


def test_greens_and_blues_of_a_red_are_all_counted():
    """The kernel's own probabilities of the 2^16 colours of one red add up to that of the red."""
    k = 2
    params = colour_parameters(k, 11)
    rest = params.double()[0, k:].view(3, 3, k)
    bins = torch.arange(256, dtype=torch.int32)
    pairs = torch.cartesian_prod(bins, bins).to(torch.uint8).T.reshape(1, 2, 256, 256)
    spread = params[:, :, None, None].expand(1, -1, 256, 256).contiguous()
    red = params.double()[0, :k].log_softmax(0) + discretized_logistic_log_prob(
        bins[:, None].expand(256, k), rest[0, 0].expand(256, k), rest[0, 1].expand(256, k), 256,
        "centred",
    )  # fmt: skip
    want = red.logsumexp(1).exp()
    for value in range(0, 256, 36):
        colours = torch.cat([torch.full_like(pairs[:, :1], value), pairs], 1)
        log_prob = discretized_logistic_mixture_log_prob(colours, spread, reduction="none")
        found, expected = float(log_prob.double().exp().sum()), float(want[value])
        # What rounding leaves of log P, which is log 2^16 or so below that of the red.
        size = 4 + abs(math.log(expected)) + 16 * math.log(2)
        assert abs(found / expected - 1) <= 2.5e-7 * size


def test_mirrored_colours_have_the_same_bits():
    """Bins and means turned around: the same log P and scale gradients, opposite mean gradients."""
    k, count = 5, 512
    make = torch.Generator().manual_seed(4)
    bins = torch.randint(0, 256, (count, 3), generator=make, dtype=torch.int32)
    params = colour_parameters(k, 5, count)
    turned = params.clone()
    means = torch.zeros(params.shape[1], dtype=torch.bool)
    for c in range(3):
        means[k + 3 * k * c : 2 * k + 3 * k * c] = True
    turned[:, means] = -turned[:, means]
    for grid in ("centred", "symmetric"):
        results = []
        for x, leaf in ((bins, params), (255 - bins, turned)):
            leaf = leaf.clone().requires_grad_(True)
            log_prob = mixture_of(x, leaf, grid=grid)
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
            results.append((log_prob.detach(), gradient))
        (first, a), (second, b) = results
        assert torch.equal(first, second)
        assert torch.equal(a[:, means], -b[:, means])
        assert torch.equal(a[:, ~means], b[:, ~means])


def test_mirrored_bins_have_the_same_bits():
    make = torch.Generator().manual_seed(0)
    for grid in ("centred", "symmetric"):
        bins = torch.randint(0, 256, (4096,), generator=make, dtype=torch.int32)
        mean = torch.randn(4096, generator=make).requires_grad_(True)
        scale = (torch.randn(4096, generator=make) * 3 - 3).requires_grad_(True)
        first = discretized_logistic_log_prob(bins, mean, scale, 256, grid)
        second = discretized_logistic_log_prob(255 - bins, -mean, scale, 256, grid)
        assert torch.equal(first, second)
        (m1, s1), (m2, s2) = (torch.autograd.grad(p.sum(), (mean, scale)) for p in (first, second))
        assert torch.equal(m1, m2) and torch.equal(s1, s2)


def test_monotone_in_the_mean_and_zero_slope_at_the_centre():
    centres = (2 * torch.arange(256) - 255) / 256
    mean = centres.repeat(3).requires_grad_(True)
    scale = torch.tensor([-6.0, -3, 1]).repeat_interleave(256)
    for k in (0, 40, 200, 255):
        bins = torch.full((768,), k, dtype=torch.int32)
        (slope,) = torch.autograd.grad(
            discretized_logistic_log_prob(bins, mean, scale, 256, "symmetric").sum(), mean
        )
        if k in (0, 255):
            assert (slope <= 0).all() if k == 0 else (slope >= 0).all()
        else:
            assert torch.equal(
                slope.view(3, 256).sign(), (centres[k] - centres).sign().expand(3, -1)
            )


def test_expected_score_is_zero():
    mean, scale = torch.tensor([0.1, 0.7, -1.2]), torch.tensor([-3.0, -2.0, -1.0])
    m, s = (p[:, None].repeat(1, 256).requires_grad_(True) for p in (mean, scale))
    bins = torch.arange(256, dtype=torch.int32).expand(3, 256)
    log_prob = discretized_logistic_log_prob(bins, m, s, 256, "centred")
    slopes = torch.autograd.grad(log_prob.sum(), (m, s))
    p = log_prob.detach().double().exp()
    for slope in slopes:
        assert ((p * slope).sum(1).abs() <= 1e-5 * (p * slope.abs()).sum(1)).all()


def test_expected_score_of_a_mixture_is_zero():
    k, n = 4, 8
    colours = torch.tensor(list(product(range(n), repeat=3)), dtype=torch.int32)
    for coupled in (True, False):
        params = colour_parameters(k, 2)
        params = params if coupled else params[:, : 7 * k]
        leaf = params.expand(len(colours), -1).clone().requires_grad_(True)
        log_prob = mixture_of(colours, leaf, n_bins=n, coupled=coupled)
        (slopes,) = torch.autograd.grad(log_prob.sum(), leaf)
        p = log_prob.detach().double().exp()[:, None]
        assert ((p * slopes).sum(0).abs() <= 1e-5 * (p * slopes.abs()).sum(0)).all()


@given(
    mean=st.floats(-1e4, 1e4, width=32),
    log_scale=st.floats(-30, 30, width=32),
    grid=st.sampled_from(GRIDS),
    floor=st.sampled_from([-7.0, None]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_one_logistic_is_finite_everywhere(mean, log_scale, grid, floor, dtype):
    bins = torch.arange(256, dtype=torch.uint8)
    m, s = (torch.full((256,), v).to(dtype).requires_grad_(True) for v in (mean, log_scale))
    log_prob = discretized_logistic_log_prob(bins, m, s, 256, grid, floor)
    slopes = torch.autograd.grad(log_prob.sum(), (m, s))
    assert log_prob.isfinite().all()
    # Slopes reach e^30, which float16 cannot hold.
    assert dtype == torch.float16 or all(x.isfinite().all() for x in slopes)


def test_components_can_be_moved_merged_and_shifted():
    k, count = 6, 200
    make = torch.Generator().manual_seed(1)
    params = colour_parameters(k, 2, count)
    params[:, :k] = (params[:, :k] * 1024).round() / 1024  # to which 100 is added exactly
    bins = torch.randint(0, 256, (count, 3), generator=make, dtype=torch.uint8)
    terms = mixture_terms(bins, params.double(), True)

    def differentiated(params):
        leaf = params.clone().requires_grad_(True)
        log_prob = mixture_of(bins, leaf)
        (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return log_prob.detach(), gradient

    log_prob, gradient = differentiated(params)
    size = log_prob.abs() + terms.condition
    error, slope_error = 8 * U * (4 + size), 32 * U * (10 + size)[:, None] * terms.scales

    shifted = torch.cat([params[:, :k] + 100, params[:, k:]], 1)
    order = torch.randperm(k, generator=make)
    turned = params.view(count, 10, k)[:, :, order].reshape(count, -1)
    back = order.argsort()
    for other, places in ((shifted, torch.arange(k)), (turned, back)):
        again, moved = differentiated(other)
        moved = moved.view(count, 10, k)[:, :, places].reshape(count, -1)
        assert ((again - log_prob).abs() <= error).all()
        assert ((moved - gradient).abs() <= slope_error + 1e-30).all()

    one = params.view(count, 10, k)[:, :, :1]
    same = one.expand(-1, -1, 4).reshape(count, -1)
    alone = mixture_of(bins, one.reshape(count, -1))
    size = alone.abs() + mixture_terms(bins, one.reshape(count, -1).double(), True).condition
    assert ((mixture_of(bins, same) - alone).abs() <= 8 * U * (4 + size)).all()
    certain = params.view(count, 10, k).clone()
    certain[:, 0] = torch.tensor([1e4, *[-1e4] * (k - 1)])
    torch.testing.assert_close(
        mixture_of(bins, certain.reshape(count, -1)),
        mixture_of(bins, one.reshape(count, -1)),
        rtol=0,
        atol=0,
    )


def test_two_bins_are_binary_cross_entropy():
    make = torch.Generator().manual_seed(2)
    mean = torch.randn(2000, generator=make)
    scale = torch.randn(2000, generator=make)
    bins = torch.randint(0, 2, (2000,), generator=make, dtype=torch.uint8)
    want = -torch.nn.functional.binary_cross_entropy_with_logits(
        mean.double() / scale.double().exp(), bins.double(), reduction="none"
    )
    got = discretized_logistic_log_prob(bins, mean, scale, 2, "centred", None).double()
    assert ((got - want).abs() <= 8 * U * (16 + mean.abs() * 50) * want.abs()).all()


def test_logits_gradients_add_to_zero():
    params = colour_parameters(10, 4, 500).requires_grad_(True)
    bins = torch.randint(0, 256, (500, 3), dtype=torch.uint8, generator=torch.Generator())
    (gradient,) = torch.autograd.grad(mixture_of(bins, params).sum(), params)
    assert gradient[:, :10].sum(1).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("channels", "coupled", "grid"),
    [
        (3, True, "centred"),
        (3, True, "symmetric"),
        (3, False, "unit"),
        (1, False, "unit"),
        (1, False, "centred"),
    ],
)
@quick
@given(
    mean=st.floats(-1e4, 1e4, width=32),
    log_scale=st.floats(-30, 30, width=32),
    raw=st.floats(-1e4, 1e4, width=32),
    logit=st.floats(-1e4, 1e4, width=32),
    floor=st.sampled_from([-7.0, None]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_finite_everywhere(channels, coupled, grid, mean, log_scale, raw, logit, floor, dtype):
    extreme, ordinary = [mean, log_scale, raw], [0.1, -2.0, 0.3]
    kinds = 3 if coupled else 2
    each = zip(extreme[:kinds] * channels, ordinary[:kinds] * channels, strict=True)
    params = torch.tensor([[logit, 0.0] + [v for pair in each for v in pair]])
    params = params.expand(256, -1).to(dtype).requires_grad_(True)
    k = torch.arange(256, dtype=torch.uint8)
    bins = torch.stack([k, k.flip(0), k][:channels], 1)
    log_prob = mixture_of(bins, params, coupled=coupled, grid=grid, min_log_scale=floor)
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert log_prob.isfinite().all() and gradient.isfinite().all()


def test_the_clamp_passes_its_gradient_at_equality_only():
    mean = torch.full((3,), 0.1)
    scale = torch.tensor([-7.5, -7.0, -6.9], requires_grad=True)
    bins = torch.full((3,), 150, dtype=torch.uint8)
    log_prob = discretized_logistic_log_prob(bins, mean, scale, 256, "centred")
    (gradient,) = torch.autograd.grad(log_prob.sum(), scale)
    assert log_prob[0] == log_prob[1] and gradient[0] == 0
    assert gradient[1] != 0 and gradient[2] != 0


@pytest.mark.parametrize("coupled", [True, False])
def test_the_clamp_of_mixtures_passes_its_gradient_at_equality_only(coupled):
    k = 2
    params = colour_parameters(k, 5, 3)
    params = params if coupled else params[:, : 7 * k]
    scales = torch.zeros(params.shape[1], dtype=torch.bool)
    for c in range(3):
        start = k + (3 if coupled else 2) * k * c + k
        scales[start : start + k] = True
    at = torch.tensor([-7.5, -7.0, -6.9])[:, None]  # near the means, where all components count
    params = torch.where(scales, at, torch.zeros(()))
    leaf = params.requires_grad_(True)
    bins = torch.tensor([[128, 127, 128]], dtype=torch.uint8).expand(3, -1)
    log_prob = mixture_of(bins, leaf, coupled=coupled)
    (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    assert log_prob[0] == log_prob[1] and log_prob[1] != log_prob[2]
    assert not gradient[0, scales].any()
    assert gradient[1:, scales].all()
    others = ~scales
    assert torch.equal(gradient[0, others], gradient[1, others])


def test_error_bounds_of_one_logistic(kernel_isa):
    """|error| within the bounds stated for the formulas, against float64 at the same inputs."""
    make = torch.Generator().manual_seed(5)
    count = 200_000
    for spread, offset, floor in [(1.5, -3, -7.0), (4, -2, -7.0), (8, 0, None), (2, -9, None)]:
        bins = torch.randint(0, 256, (count,), generator=make, dtype=torch.int32)
        centre = (2 * bins - 255) / 255
        scale = torch.randn(count, generator=make) * spread + offset
        scale = scale.clamp(-30, 30)
        wide = torch.randn(count, generator=make) * scale.clamp_max(3).exp() * 3
        mean = torch.where(torch.rand(count, generator=make) < 0.5, centre + wide, wide * 5)
        results = []
        for dtype in (torch.float32, torch.float64):
            m, s = (p.detach().to(dtype).requires_grad_(True) for p in (mean, scale))
            log_prob = discretized_logistic_log_prob(bins, m, s, 256, "centred", floor)
            slopes = torch.autograd.grad(log_prob.sum(), (m, s))
            results.append([v.detach().double() for v in (log_prob, *slopes)])
        lam = scale.double().clamp_min(-60 if floor is None else floor)
        distance = (centre.double() - mean.double()).abs() * 255
        inner = (bins > 0) & (bins < 255)
        signed = torch.where(bins == 0, mean.double() * 255 - centre.double() * 255, distance)
        signed = torch.where(bins == 255, centre.double() * 255 - mean.double() * 255, signed)
        near = (torch.where(inner, distance, signed) - 1) / 255 * (-lam).exp()
        below, above = (-near).clamp_min(0), near.clamp_min(0)
        bounds = (
            8 * U * (16 + below) * results[1][0].abs(),
            8 * U * (16 + below) * results[1][1].abs(),
            16 * U * (1 + above),
        )
        for got, want, bound in zip(*results, bounds, strict=True):
            assert ((got - want).abs() <= bound.clamp_min(1e-30)).all()


REGIMES = {  # factors and shifts of the means and of the log-scales
    "typical": ((1, 0), (1, 0)),
    "wide": ((3, 0), (2, 3)),
    "huge scales": ((1, 0), (4, 15)),
    "below the clamp": ((1, 0), (1, -6)),
    "open bins": ((1, 0), (1, 0)),
    "far means": ((1, 100), (1, 0)),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("k", [1, 10])
def test_error_bounds_of_mixtures(k, coupled, regime, kernel_isa):
    make = torch.Generator().manual_seed(6)
    count = 1_500
    params = colour_parameters(k, 8, count)
    blocks = params[:, k:].view(count, 3, 3, k)
    for kind, (factor, shift) in enumerate(REGIMES[regime]):
        blocks[:, :, kind] = factor * blocks[:, :, kind] + shift
    if not coupled:
        params = torch.cat([params[:, :k], blocks[:, :, :2].flatten(1)], 1)
    bins = torch.randint(0, 256, (count, 3), generator=make, dtype=torch.uint8)
    if regime == "open bins":
        bins = 255 * (bins > 127).byte()
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = params.to(dtype).requires_grad_(True)
        log_prob = mixture_of(bins, leaf, coupled=coupled)
        (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        results.append((log_prob.detach().double(), gradient.double()))
    (got, gradient), (want, true_gradient) = results
    terms = mixture_terms(bins, params.double(), coupled)
    assert ((got - want).abs() <= 8 * U * (4 + want.abs() + terms.condition)).all()
    bound = 32 * U * (10 + want.abs() + terms.condition)[:, None] * terms.scales
    assert ((gradient - true_gradient).abs() <= bound + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_parameters_are_computed_in_float32(dtype):
    params = colour_parameters(10, 9, 300).to(dtype)
    bins = torch.randint(0, 256, (300, 3), dtype=torch.uint8, generator=torch.Generator())
    half, single = (p.detach().requires_grad_(True) for p in (params, params.float()))
    outputs = [mixture_of(bins, p) for p in (half, single)]
    assert outputs[0].dtype == torch.float32 and torch.equal(*outputs)
    (narrow,), (wide,) = (
        torch.autograd.grad(out.sum(), p) for out, p in zip(outputs, (half, single), strict=True)
    )
    assert torch.equal(narrow, wide.to(dtype))


def test_layouts_and_reductions_agree():
    make = torch.Generator().manual_seed(3)
    params = colour_parameters(4, 5, 2 * 9 * 11).view(2, 9, 11, 40).permute(0, 3, 1, 2)
    bins = torch.randint(0, 256, (2, 3, 9, 11), generator=make, dtype=torch.uint8)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = params.contiguous(memory_format=layout).detach().requires_grad_(True)
        each = discretized_logistic_mixture_log_prob(
            bins.contiguous(memory_format=layout), leaf, reduction="none"
        )
        (gradient,) = torch.autograd.grad(each.sum(), leaf)
        assert gradient.is_contiguous(memory_format=layout)
        results.append((each, gradient, discretized_logistic_mixture_log_prob(bins, leaf)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    each, _, whole = results[0]
    torch.testing.assert_close(whole, each.double().sum((1, 2)).float(), rtol=1e-6, atol=0)


def test_a_nan_stays_in_its_pixel():
    params = colour_parameters(3, 1, 12).view(1, 3, 4, 30).permute(0, 3, 1, 2).contiguous()
    for plane in (0, 4, 8, 10, 29):
        poisoned = params.clone()
        poisoned[0, plane, 1, 2] = torch.nan
        bins = torch.full((1, 3, 3, 4), 77, dtype=torch.uint8)
        poisoned.requires_grad_(True)
        each = discretized_logistic_mixture_log_prob(bins, poisoned, reduction="none")
        assert each.isnan().nonzero().tolist() == [[0, 1, 2]]
        (gradient,) = torch.autograd.grad(each.sum(), poisoned)
        assert gradient.isnan().any(1).nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("coupled", [True, False])
def test_a_nan_reaches_what_is_drawn_from_it(coupled, implementation):
    params = torch.zeros(1, 20 if coupled else 14, 1, 40)
    uniforms = torch.full((1, 4, 1, 40), 0.3)  # which draw the first of two components

    def drawn(poisoned, at):
        values = [params.clone(), uniforms.clone()]
        values[poisoned][0, at, 0, 7] = torch.nan
        with ops.use(implementation):
            values_drawn = discretized_logistic_mixture_sample(*values, "continuous", coupled)
            bins = discretized_logistic_mixture_sample(*values, coupled=coupled)
        nan = values_drawn.isnan()
        assert not nan[..., :7].any() and not nan[..., 8:].any()
        assert (bins[nan] == 0).all() and (bins[~nan] != 0).all()
        return nan[0, :, 0, 7].nonzero().flatten().tolist()

    for plane in (0, 1):  # logits
        assert drawn(0, plane) == [0, 1, 2]
    assert drawn(0, 2) == [0, 1, 2] if coupled else [0]
    assert drawn(0, 3) == []  # a mean of the other component
    if coupled:  # coefficients
        assert drawn(0, 6) == [1, 2] and drawn(0, 12) == [2] and drawn(0, 18) == [2]
    assert drawn(1, 0) == [0, 1, 2]
    assert drawn(1, 1) == [0, 1, 2] if coupled else [0]
    assert drawn(1, 3) == [2]


def test_definition_in_many_digits():
    """float64 against the difference of two sigmoids in 80 digits."""
    make = torch.Generator().manual_seed(4)
    with mpmath.workdps(80):
        for grid in GRIDS:
            of = Grid.of(256, grid, None)
            for _ in range(60):
                k = int(torch.randint(0, 256, (1,), generator=make))
                m, ls = (torch.randn(2, generator=make).double() * 2).tolist()
                ls = 2 * ls - 3

                def sigmoid(x, m=m, ls=ls):
                    return 1 / (1 + mpmath.exp(-(x - mpmath.mpf(m)) / mpmath.exp(mpmath.mpf(ls))))

                x = 2 * k - 255 + of.shift
                upper = 1 if k == 255 else sigmoid(mpmath.mpf(x + 1) / of.gamma)
                lower = 0 if k == 0 else sigmoid(mpmath.mpf(x - 1) / of.gamma)
                if upper - lower < mpmath.mpf(10) ** -60:
                    continue
                want = float(mpmath.log(upper - lower))
                got = discretized_logistic_log_prob(
                    bins_of([k]),
                    torch.tensor([m], dtype=torch.float64),
                    torch.tensor([ls], dtype=torch.float64),
                    256,
                    grid,
                    None,
                )
                assert float(got) == pytest.approx(want, rel=1e-12, abs=1e-15)


def pixels(*shape, dtype=torch.uint8):
    return torch.zeros(*shape, dtype=dtype)


BAD = [
    (
        lambda: discretized_logistic_log_prob(torch.zeros(3), torch.zeros(3), torch.zeros(3)),
        TypeError,
        "bins must have dtype uint8, int32",
    ),
    (
        lambda: discretized_logistic_log_prob(pixels(3), torch.zeros(4), torch.zeros(4)),
        ValueError,
        "mean must have the shape of bins",
    ),
    (
        lambda: discretized_logistic_log_prob(pixels(3), torch.zeros(3), torch.zeros(3).double()),
        TypeError,
        "log_scale must have the dtype of mean",
    ),
    (
        lambda: discretized_logistic_log_prob(pixels(3), torch.zeros(3), torch.zeros(3), 1),
        ValueError,
        "n_bins must be a whole number in 2 ... 65536; got 1",
    ),
    (
        lambda: discretized_logistic_log_prob(pixels(3), torch.zeros(3), torch.zeros(3), 256.0),
        ValueError,
        "n_bins must be a whole number in 2 ... 65536; got 256.0",
    ),
    (
        lambda: discretized_logistic_log_prob(
            pixels(3), torch.zeros(3), torch.zeros(3), grid="byte"
        ),
        ValueError,
        "'centred', 'symmetric', 'unit'; got 'byte'",
    ),
    (
        lambda: discretized_logistic_log_prob(
            pixels(3), torch.zeros(3), torch.zeros(3), min_log_scale=-61
        ),
        ValueError,
        "min_log_scale must be at least -60",
    ),
    (
        lambda: discretized_logistic_log_prob(
            pixels(3), torch.zeros(3), torch.zeros(3), min_log_scale="low"
        ),
        ValueError,
        "min_log_scale must be at least -60; got 'low'",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(pixels(2, 3, 4, 4), torch.zeros(2, 25, 4, 4)),
        ValueError,
        "params must have a multiple of 10 planes for 3 coupled channels; got 25",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(pixels(2, 1, 4, 4), torch.zeros(2, 10, 4, 4)),
        ValueError,
        "multiple of 3 planes for 1 uncoupled channels; got 10",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(
            pixels(2, 2, 4, 4), torch.zeros(2, 10, 4, 4), True
        ),
        ValueError,
        "coupled channels must be three; got 2",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(
            pixels(2, 3, 4, 4), torch.zeros(2, 10, 4, 4), grid="unit"
        ),
        ValueError,
        "grid must be 'centred' or 'symmetric'",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(pixels(2, 3, 4, 4), torch.zeros(2, 10, 4, 5)),
        ValueError,
        "must agree in images and pixels",
    ),
    (
        lambda: discretized_logistic_mixture_log_prob(
            pixels(2, 3, 4, 4), torch.zeros(2, 10, 4, 4), reduction="sum"
        ),
        ValueError,
        "'image', 'none'; got 'sum'",
    ),
]


@pytest.mark.parametrize(("attempt", "error", "sentence"), BAD)
def test_bad_arguments_are_named(attempt, error, sentence):
    with pytest.raises(error, match=sentence):
        attempt()


@pytest.mark.parametrize("value", [-1, 256])
def test_bins_off_the_grid_are_refused(value):
    if ops.OPS["discretized_logistic_log_prob"].serving("cpu").implementation != "cpp":
        pytest.skip("values are checked inside the C++ kernel")
    bins = torch.zeros(1, 1, 20, 20, dtype=torch.int32)
    bins[0, 0, 19, 19] = value
    with pytest.raises(ValueError, match="mixture_log_prob: bins must be in 0 to 255"):
        discretized_logistic_mixture_log_prob(bins, torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match="discretized_logistic_log_prob: bins must be in 0 to 255"):
        discretized_logistic_log_prob(bins, torch.zeros(bins.shape), torch.zeros(bins.shape))


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -3.0), (-0.9, -5.0), (0.0, 0.5)])
def test_quantiles_hit_every_bin_as_often_as_it_is_likely(mean, log_scale):
    """N evenly spread uniforms can't miss a bin's share by more than one."""
    count = 65536
    u = (torch.arange(count) + 0.5) / count
    m, ls = torch.full((count,), mean), torch.full((count,), log_scale)
    drawn = discretized_logistic_sample(m, ls, u, grid="centred").long()
    assert (drawn.diff() >= 0).all()
    expected = count * single_distribution(256, "centred", m[:1], ls[:1])[0]
    counts = drawn.bincount(minlength=256)
    assert ((counts - expected).abs() <= 1 + count * 1e-6).all()


def test_components_are_drawn_as_often_as_they_weigh():
    count, k = 65536, 4
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0])
    means = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    params = torch.cat([logits, means, torch.full((k,), -7.0)])[None, :, None, None]
    uniforms = torch.full((1, 2, 1, count), 0.5)
    uniforms[0, 0, 0] = (torch.arange(count) + 0.5) / count
    values = discretized_logistic_mixture_sample(
        params.expand(1, -1, 1, count), uniforms, "continuous"
    ).flatten()
    for i in range(k):
        drawn = int((values - means[i]).abs().lt(1e-3).sum())
        assert abs(drawn - count * float(logits.softmax(0)[i])) <= 1


def test_samples_stay_on_the_grid_and_are_possible():
    params = colour_parameters(5, 11, 400)[:, :, None, None]
    uniforms = torch.rand((400, 4, 1, 1), generator=torch.Generator().manual_seed(0))
    bins = discretized_logistic_mixture_sample(params, uniforms)
    assert discretized_logistic_mixture_log_prob(bins, params).isfinite().all()
    for n, grid, low, high in [(256, "centred", -1, 1), (8, "symmetric", -7 / 8, 7 / 8)]:
        values = discretized_logistic_mixture_sample(
            params, uniforms, "continuous", n_bins=n, grid=grid
        )
        assert low <= values.min() and values.max() <= high


def test_continuous_samples_are_those_of_pixelcnn():
    """Where its Gumbel noise picks component i, the values are ours of that component alone."""
    k, count = 3, 500
    params = colour_parameters(k, 10, count)
    uniforms = torch.rand((count, 3 + k), generator=torch.Generator().manual_seed(3))
    uniforms = 1e-5 + (1 - 2e-5) * uniforms
    for i in range(k):
        theirs = uniforms.clone()
        theirs[:, :k] = 0.5
        theirs[:, i] = 1 - 1e-6  # 13.8 of Gumbel noise, against 0.37 for the others
        want = pasted_sample(params[:, :, None, None], theirs[:, :, None, None])
        alone = params.view(count, 10, k)[:, :, i, None, None]
        got = discretized_logistic_mixture_sample(
            alone, uniforms[:, k - 1 :, None, None], "continuous"
        )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_colour_samples_follow_their_distribution():
    """Counts of all 64 colours of 4 bins within 5 standard errors of their probabilities."""
    params, count = colour_parameters(3, 12), 40_000
    uniforms = torch.rand((count, 4, 1, 1), generator=torch.Generator().manual_seed(1))
    drawn = discretized_logistic_mixture_sample(
        params.expand(count, -1)[:, :, None, None], uniforms, n_bins=4
    ).long()[:, :, 0, 0]
    counts = (drawn * torch.tensor([16, 4, 1])).sum(1).bincount(minlength=64)
    colours = torch.tensor(list(product(range(4), repeat=3)), dtype=torch.int32)
    p = mixture_of(colours, params.expand(64, -1), n_bins=4).double().exp()
    assert ((counts - count * p).abs() <= 5 * (count * p * (1 - p)).sqrt() + 1).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_mean_is_that_of_the_clipped_logistic(grid):
    of = Grid.of(256, grid, -7.0)
    make = torch.Generator().manual_seed(3)
    mean = (torch.randn(200, generator=make) * 200 + of.shift) / of.gamma
    scale = torch.randn(200, generator=make) * 3 - 3
    u = ((torch.arange(20000) + 0.5) / 20000).double()
    drawn = discretized_logistic_sample(
        *(p[:, None].double().expand(200, 20000) for p in (mean, scale)),
        u.expand(200, 20000),
        "continuous",
        grid=grid,
    )
    got = discretized_logistic_mean(mean, scale, grid=grid)
    torch.testing.assert_close(got.double(), drawn.mean(1), rtol=0, atol=2e-4)
    k = torch.arange(256).double()
    exact = (single_distribution(256, grid, mean, scale) * (2 * k - 255 + of.shift)).sum(1)
    assert ((got * of.gamma - exact).abs() / 2 <= 0.5).all()


def test_mean_is_accurate_at_any_scale():
    scale = torch.linspace(-7, 20, 200)
    mean = torch.full((200,), 0.3)
    wide = discretized_logistic_mean(mean.double(), scale.double(), grid="centred")
    narrow = discretized_logistic_mean(mean, scale, grid="centred")
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-6)


def slopes_of_mean(m, ls, low, high):
    """The derivatives of E[clip(Y, low, high)], in many digits."""
    with mpmath.workdps(60):
        m, s = mpmath.mpf(m), mpmath.exp(mpmath.mpf(ls))

        def sigmoid(x):
            return 1 / (1 + mpmath.exp(-x)) if x > 0 else 1 - 1 / (1 + mpmath.exp(x))

        def softplus(x):
            return max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x)))

        u, v = (high - m) / s, (low - m) / s
        by_scale = u * sigmoid(u) - v * sigmoid(v) - softplus(u) + softplus(v)
        return float(sigmoid(u) - sigmoid(v)), float(s * by_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", GRIDS)
def test_mean_has_gradients_at_any_mean_and_scale(grid, dtype):
    of = Grid.of(256, grid, None)
    low, high = (mpmath.mpf(x + of.shift) / of.gamma for x in (-255, 255))
    places = [-1e4, -37.0, -1.0, -0.25, 0.0, 0.3125, 0.875, 1.0, 2.0, 1e4]
    scales = [-60.0, -44.0, -30.0, -7.0, -5.5, -3.0, -1.0, 0.0, 1.0, 2.5, 6.0, 30.0, 60.0]
    pairs = torch.tensor(list(product(places, scales)), dtype=dtype)
    mean, scale = (x.clone().requires_grad_(True) for x in pairs.unbind(1))
    value = discretized_logistic_mean(mean, scale, grid=grid, min_log_scale=None)
    got = torch.stack(torch.autograd.grad(value.sum(), (mean, scale)), 1)
    want = [slopes_of_mean(*pair, low, high) for pair in pairs.tolist()]
    rounding = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, torch.tensor(want, dtype=dtype), rtol=rounding, atol=rounding)


def test_mixture_mean_has_finite_gradients_at_extremes():
    params = colour_parameters(4, 13, 50)[:, :, None, None]
    for log_scale, mean, logit in product((-60.0, 60.0, 1e3), (-1e4, 1e4), (0.0, -1e10)):
        extreme = params.clone()
        extreme[:, 1] += logit
        extreme[:, 4:8], extreme[:, 8:12] = mean, log_scale
        leaf = extreme.requires_grad_(True)
        discretized_logistic_mixture_mean(leaf, min_log_scale=None).sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        lambda p: discretized_logistic_mean(p[:, 0], p[:, 1], grid="centred"),
        lambda p: discretized_logistic_mode(p[:, 0], p[:, 1], grid="centred"),
        lambda p: discretized_logistic_mixture_mean(p),
        lambda p: discretized_logistic_mixture_mode(p),
        lambda p: discretized_logistic_mixture_mode(p[:, :9], 1),
    ],
    ids=["mean", "mode", "mixture mean", "mixture mode", "mixture mode of grey"],
)
def test_means_and_modes_compile_into_one_graph(function):
    params = colour_parameters(3, 4, 12).view(1, 3, 4, 30).permute(0, 3, 1, 2).contiguous()
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params), function(params))


@pytest.mark.parametrize("grid", GRIDS)
def test_means_are_differentiated_rightly(grid):
    """Also the coupling, and one scale below the floor."""
    params = colour_parameters(2, 6, 3, torch.float64)[:, :, None, None]
    params[:, 8:10] = params[:, 8:10].clamp(-3, 0)
    params[0, 4] = -9.0

    def of_mixture(p):
        return discretized_logistic_mixture_mean(p, coupled=grid != "unit", grid=grid)

    def of_one(p):
        return discretized_logistic_mean(p[:, 2], p[:, 4], grid=grid)

    planes = params if grid != "unit" else params[:, :14]
    assert gradcheck(of_mixture, planes.clone().requires_grad_(True))
    assert gradcheck(of_one, params.clone().requires_grad_(True))


def test_mixture_mean_equals_that_of_samples():
    params = colour_parameters(4, 13)[:, :28]  # uncoupled
    count = 100_000
    uniforms = torch.rand((1, 4, 1, count), generator=torch.Generator().manual_seed(2))
    drawn = discretized_logistic_mixture_sample(
        params[:, :, None, None].expand(1, -1, 1, count), uniforms, "continuous", False
    )
    mean = discretized_logistic_mixture_mean(params[:, :, None, None], coupled=False)
    error = drawn.std(3) / count**0.5
    assert ((drawn.mean(3) - mean[..., 0]).abs() <= 5 * error).all()


def test_coupled_mean_of_narrow_scales_is_that_of_clipped_means():
    """Green's mean moves by the clipped red, blue's by both; components are weighted at the end."""
    k, count = 2, 50
    params = colour_parameters(k, 3, count, torch.float64)
    rest = params[:, k:].view(count, 3, 3, k)
    rest[:, :, 1] = -30.0
    tau = rest[:, :, 2].tanh()
    red = rest[:, 0, 0].clamp(-1, 1)
    green = (rest[:, 1, 0] + tau[:, 0] * red).clamp(-1, 1)
    blue = (rest[:, 2, 0] + tau[:, 1] * red + tau[:, 2] * green).clamp(-1, 1)
    want = (torch.stack([red, green, blue], 1) * params[:, None, :k].softmax(2)).sum(2)
    got = discretized_logistic_mixture_mean(params[:, :, None, None], min_log_scale=None)
    torch.testing.assert_close(got[:, :, 0, 0], want, rtol=1e-9, atol=1e-9)


HALF = [torch.float16, torch.bfloat16]
MEANS = {
    "mean": lambda p: discretized_logistic_mean(p[:, 2], p[:, 4], grid="centred"),
    "mode": lambda p: discretized_logistic_mode(p[:, 2], p[:, 4], grid="centred"),
    "mixture mean": discretized_logistic_mixture_mean,
    "mixture mode": discretized_logistic_mixture_mode,
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MEANS)
def test_means_and_modes_of_half_parameters_are_computed_in_float32(name, dtype):
    params = colour_parameters(2, 16, 300)[:, :, None, None].to(dtype)
    got = MEANS[name](params)
    assert got.dtype == (torch.uint8 if "mode" in name else torch.float32)
    assert torch.equal(got, MEANS[name](params.float()))


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("name", MEANS)
def test_a_nan_is_seen_in_means_and_is_bin_0_in_modes(name, implementation):
    params = colour_parameters(2, 17, 12).view(1, 3, 4, 20).permute(0, 3, 1, 2).contiguous()
    params[:, 2:4] = 0.5  # whose bin is not 0
    read = range(20) if "mixture" in name else (2, 4)  # logits, red, green, blue
    with ops.use(implementation):
        clean = MEANS[name](params)
        assert "mode" not in name or clean[..., 1, 2].all()
        for plane in read:
            poisoned = params.clone()
            poisoned[0, plane, 1, 2] = torch.nan
            got = MEANS[name](poisoned)
            here = torch.zeros_like(got, dtype=torch.bool)
            here[..., 1, 2] = True
            assert torch.equal(got[~here], clean[~here])
            if "mode" in name:
                assert not got[here].any()
            else:
                assert got[here].isnan().any()
                assert plane not in (0, 1) or got[here].isnan().all()


@pytest.mark.parametrize("implementation", ["auto", "triton"])
def test_a_component_that_is_left_out_changes_nothing(implementation):
    """Its logit is -infinity, or as low; of a log-scale as low the floor is taken."""
    if implementation == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1")
    without = colour_parameters(2, 19, 40)[:, :, None, None]
    blocks = without[:, 2:].unflatten(1, (3, 3, 2))
    last = blocks[:, :, :, :1].clone()
    last[:, :, 1] = -torch.inf
    last[:, :, 0] += 0.25
    with ops.use(implementation):
        for low in (-torch.inf, -1e10):
            logit = torch.full_like(without[:, :1], low)
            wide = torch.cat([last, blocks], 3).flatten(1, 3)
            params = torch.cat([logit, without[:, :2], wide], 1)
            got, want = (discretized_logistic_mixture_mean(p) for p in (params, without))
            torch.testing.assert_close(got, want)
            mode, only = (discretized_logistic_mixture_mode(p) for p in (params, without))
            likelier = [discretized_logistic_mixture_log_prob(k, without) for k in (mode, only)]
            assert (likelier[0] >= likelier[1] - 1e-5).all()
            assert (mode == only).float().mean() > 0.8


def test_mode_against_all_bins():
    make = torch.Generator().manual_seed(4)
    mean, scale = torch.randn(300, generator=make), torch.randn(300, generator=make) * 2 - 3
    best = single_distribution(256, "centred", mean, scale).argmax(1)
    assert torch.equal(discretized_logistic_mode(mean, scale, grid="centred").long(), best)

    count, k = 2000, 10
    params = torch.cat(
        [
            torch.randn(count, k, generator=make),
            torch.randn(count, k, generator=make) * 0.7,
            torch.rand(count, k, generator=make) * 3 - 5,
        ],
        1,
    )
    mode = discretized_logistic_mixture_mode(params[:, :, None, None], channels=1).flatten()
    every = torch.stack(
        [mixture_of(torch.full((count, 1), b, dtype=torch.uint8), params) for b in range(256)], 1
    )
    found = every.gather(1, mode.long()[:, None])[:, 0]
    assert (every.amax(1) == found).float().mean() > 0.9
    assert (every.amax(1) - found).max() < 0.15


def test_coupled_mode_of_one_component_goes_channel_by_channel():
    """Each channel's likeliest of 256 bins, given the bins of the channels before."""
    count = 200
    params = colour_parameters(1, 18, count)
    blocks = params[:, 1:].view(count, 3, 3).double()
    tau, seen, found = blocks[:, :, 2].tanh(), [], []
    for c in range(3):
        mean = blocks[:, c, 0].clone()
        for i, value in zip(([], [0], [1, 2])[c], seen, strict=True):
            mean += tau[:, i] * value
        best = single_distribution(256, "centred", mean, blocks[:, c, 1]).argmax(1)
        found.append(best)
        seen.append((2 * best - 255) / 255)
    mode = discretized_logistic_mixture_mode(params[:, :, None, None])[:, :, 0, 0]
    assert torch.equal(mode.long(), torch.stack(found, 1))


def test_coupled_mode_against_all_colours_of_four_bins():
    k, count = 3, 300
    params = colour_parameters(k, 14, count)
    mode = discretized_logistic_mixture_mode(params[:, :, None, None], n_bins=4)[:, :, 0, 0]
    colours = torch.tensor(list(product(range(4), repeat=3)), dtype=torch.int32)
    every = mixture_of(colours.repeat(count, 1), params.repeat_interleave(64, 0), n_bins=4)
    every = every.view(count, 64)
    found = every.gather(1, (mode.long() * torch.tensor([16, 4, 1])).sum(1, keepdim=True))[:, 0]
    assert (every.amax(1) == found).float().mean() > 0.95
    assert (every.amax(1) - found).max() < 0.5


def test_colour_mode_beats_samples():
    params = colour_parameters(3, 14, 200)[:, :, None, None]
    mode = discretized_logistic_mixture_mode(params)
    uniforms = torch.rand((200, 4, 1, 1), generator=torch.Generator().manual_seed(5))
    drawn = discretized_logistic_mixture_sample(params, uniforms)
    better = discretized_logistic_mixture_log_prob(mode, params) >= (
        discretized_logistic_mixture_log_prob(drawn, params)
    )
    assert better.float().mean() > 0.98


@pytest.mark.parametrize("low_bit", [False, True])
def test_layouts_of_other_programs(low_bit):
    """Values and gradients of pixels whose bins are all likelier than 1e-5, where theirs hold."""
    n, k = (32 if low_bit else 256), 5
    make = torch.Generator().manual_seed(6)
    params = colour_parameters(k, 15, 2 * 6 * 7, torch.float64).view(2, 6, 7, 10 * k)
    bins = torch.randint(0, n, (2, 6, 7, 3), generator=make)
    bins[0, :, 0] = torch.tensor([0, n - 1, 0])
    x = bins.double() / ((n - 1) / 2) - 1
    means, log_scales, raw = params[..., k:].unflatten(3, (3, 3, k)).unbind(4)
    log_scales.div_(5).sub_(2.4)  # about -3
    means.mul_(0.15).add_(x[..., None])
    means[..., 1, :] -= raw[..., 0, :].tanh() * x[..., :1]
    means[..., 2, :] -= raw[..., 1, :].tanh() * x[..., :1] + raw[..., 2, :].tanh() * x[..., 1:2]
    params.requires_grad_(True)

    want, delta = channels_last_log_prob(x, params, n)
    sure = (delta > 1e-5).flatten(3).all(3)
    assert sure.float().mean() > 0.5 and sure[0, :, 0].any()
    (want_gradient,) = torch.autograd.grad(want[sure].sum(), params)

    planes, seen = params.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    for arguments in (from_vdvae(x, params, low_bit), from_pixelcnn(seen, planes, n)):
        ours = discretized_logistic_mixture_log_prob(*arguments, n_bins=n, reduction="none")
        (gradient,) = torch.autograd.grad(ours[sure].sum(), params)
        torch.testing.assert_close(ours[sure], want[sure], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, want_gradient, rtol=1e-7, atol=1e-8)


def test_far_in_the_tail_other_programs_are_too_low():
    params = colour_parameters(5, 15, 2 * 6 * 7).view(2, 6, 7, 50)
    params[..., 5:].unflatten(3, (3, 3, 5))[..., 1, :] = -7.0
    bins = torch.randint(0, 256, (2, 6, 7, 3), generator=torch.Generator().manual_seed(6))
    x = bins / 127.5 - 1
    theirs, _ = channels_last_log_prob(x.double(), params.double())
    exact = discretized_logistic_mixture_log_prob(*from_vdvae(x, params), reduction="none")
    assert 2 < (exact - theirs).max() < 3 * 2.15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grid", ["8 k / 127.5 - 1", "2 k / 31 - 1"])
def test_low_bit_images_of_vdvae(grid, dtype):
    """As its programs make them of bytes: floor(byte / 8) * 8, less 127.5, over 127.5."""
    byte = torch.arange(256).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    k = byte // 8
    wide = k.double() * 2 / 31 - 1 if grid[0] == "2" else (8 * k.double() - 127.5) / 127.5
    x, params = wide.to(dtype), torch.zeros(2, 16, 16, 20, dtype=dtype)
    bins, planes = from_vdvae(x, params, low_bit=True)
    assert torch.equal(bins, k.permute(0, 3, 1, 2))
    assert torch.equal(planes, params.permute(0, 3, 1, 2))
    for rows in (slice(0, 1), slice(2, 3), slice(15, 16), slice(0, 0)):  # few of the 32 bins
        bins, _ = from_vdvae(x[:, rows], params[:, rows], low_bit=True)
        assert torch.equal(bins, k[:, rows].permute(0, 3, 1, 2))
    compiled = torch.compile(from_vdvae, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, params, True)[0], k.permute(0, 3, 1, 2))


def test_low_bit_images_of_two_grids_are_refused():
    k = torch.arange(32).double().view(1, 2, 16, 1).expand(1, 2, 16, 3)
    x = torch.cat([8 * k / 127.5 - 1, 2 * k / 31 - 1], 1)
    params = torch.zeros(1, 4, 16, 10).double()
    for wrong in (x, x[:, :2] + 0.01, torch.full_like(x, 1.2), torch.full_like(x, math.nan)):
        with pytest.raises(ValueError, match=r"x must be 8 k / 127\.5 - 1 or 2 k / 31 - 1"):
            from_vdvae(wrong, params[:, : wrong.shape[1]], low_bit=True)
    with pytest.raises(TypeError, match="from_vdvae: low_bit must be True or False; got 'yes'"):
        from_vdvae(x, params, "yes")


def test_grey_images_of_pixelcnn():
    make = torch.Generator().manual_seed(8)
    k = 5
    params = torch.randn(2, 3 * k, 6, 7, generator=make)
    params[:, 2 * k :] = 0.0
    bins = torch.randint(0, 256, (2, 1, 6, 7), generator=make)
    x = bins / 127.5 - 1
    x.view(-1)[:2] = torch.tensor([-1.0, 1.0])
    want, delta = pasted_log_prob(x.double(), params.double())
    assert (delta > 1e-5).all()
    got = discretized_logistic_mixture_log_prob(*from_pixelcnn(x, params), reduction="none")
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n_bins", [2, 32, 256])
def test_all_bins_are_found_in_images_of_any_precision(n_bins, dtype):
    bins = torch.arange(n_bins, dtype=torch.int32).view(1, 1, 1, n_bins)
    x = (bins.double() * 2 / (n_bins - 1) - 1).to(dtype)
    found, _ = from_pixelcnn(x, torch.zeros(1, 3, 1, n_bins, dtype=dtype), n_bins)
    assert torch.equal(found, bins)


@pytest.mark.parametrize("value", [0.003, 1.5, -1.01, math.nan, math.inf])
def test_values_off_the_images_grid_are_refused(value):
    x, params = torch.full((1, 3, 4, 4), -1.0), torch.zeros(1, 10, 4, 4)
    x[0, 1, 2, 3] = value
    message = rf"x must be 2 k / 255 - 1, from -1 to 1; got {value}"
    with pytest.raises(ValueError, match=f"from_pixelcnn: {message}"):
        from_pixelcnn(x, params)
    with pytest.raises(ValueError, match=f"from_vdvae: {message}"):
        from_vdvae(x.permute(0, 2, 3, 1), params.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="from_pixelcnn: n_bins must be a whole number"):
        from_pixelcnn(x, params, 256.0)


def test_pixelcnn_images_do_not_break_the_graph():
    x, params = torch.full((1, 3, 4, 4), -1.0), colour_parameters(2, 5, 16).view(1, 4, 4, 20)
    planes = params.permute(0, 3, 1, 2)

    def loss(x, params):
        return discretized_logistic_mixture_log_prob(*from_pixelcnn(x, params))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, planes), loss(x, planes))


@pytest.mark.parametrize(
    "n, c, size, dtype",
    [
        (2, 3, (33, 33), torch.float32),
        (1, 3, (20, 31), torch.bfloat16),
        (2, 1, (33, 17), torch.float64),
        (11, 3, (32, 32), torch.float32),  # a gradient that is too large for the caches
    ],
)
def test_images_of_many_blocks(n, c, size, dtype):
    """Kernels work on 256 pixels at a time, and on parts of those that fit into the cache."""
    make = torch.Generator().manual_seed(1)
    bins = torch.randint(0, 256, (n, c, *size), generator=make, dtype=torch.uint8)
    params = torch.randn((n, 100 if c == 3 else 30, *size), generator=make).to(dtype)
    values = {}
    for kind in ("none", "image"):
        for impl in ("auto", "torch"):
            leaf = params.clone().requires_grad_(True)
            with ops.use(impl):
                value = discretized_logistic_mixture_log_prob(bins, leaf, reduction=kind)
                weights = torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).view_as(value)
                value.backward(weights / value.numel())
            values[impl] = value.detach(), leaf.grad.double()
        rounding = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(values["auto"][0], values["torch"][0], rtol=2e-6, atol=2e-5)
        torch.testing.assert_close(values["auto"][1], values["torch"][1], rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("log_scale", [100.0, 1000.0])
def test_huge_scales_draw_the_ends(log_scale):
    flat = torch.tensor([0.0, log_scale]).view(1, 2, 1, 1)
    params = torch.cat([torch.zeros(1, 1, 1, 1), flat], 1).expand(-1, -1, 1, 2).contiguous()
    uniforms = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).view(1, 2, 1, 2)
    bins = discretized_logistic_mixture_sample(params, uniforms)
    assert bins.flatten().tolist() == [0, 255]


@pytest.mark.parametrize("op", [discretized_logistic_mean, discretized_logistic_mode])
def test_values_of_one_logistic_are_checked(op):
    with pytest.raises(ValueError, match="mean and log_scale must have shapes that broadcast"):
        op(torch.zeros(3), torch.zeros(4))
    with pytest.raises(TypeError, match="mean must be a tensor, got list"):
        op([0.0], torch.zeros(1))
    with pytest.raises(TypeError, match="mean must have dtype"):
        op(torch.zeros(1, dtype=torch.int32), torch.zeros(1))


def test_peak_memory_is_that_of_parameters_and_gradient():
    if "cpp" not in {row.implementation for row in ops.table() if "logistic" in row.op}:
        pytest.skip("the reference needs more")

    params = torch.randn(16, 100, 32, 32, requires_grad=True)
    bins = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)

    def differentiate():
        log_prob = discretized_logistic_mixture_log_prob(bins, params).sum()
        return torch.autograd.grad(log_prob, params)

    differentiate()
    assert allocated(differentiate) < 1.2 * params.nbytes  # which the gradient takes
