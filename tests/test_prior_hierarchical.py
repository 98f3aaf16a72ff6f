"""Hierarchical priors against linear ones in closed form; their scale, mask, fits, checkpoints."""

import math

import pytest
import torch
from torch import Tensor, nn

from fastlatent.priors import (
    GaussianMixture,
    Hierarchical,
    Ladder,
    Normal,
    TwoStage,
    cross_entropy,
    kernel_log_prob,
    quadrature_log_prob,
    two_stage,
)
from fastlatent.priors.inner import Scale

TAU = 0.5


class Constant(nn.Module):
    """A head whose softplus is the given deviation, whatever it sees."""

    def __init__(self, std: Tensor):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        raw = std - 1e-3
        self.raw = raw + (-(-raw).expm1()).log()

    def __getitem__(self, _: int) -> nn.Linear:
        return self.linear

    def forward(self, hidden: Tensor) -> Tensor:
        return self.raw.expand(*hidden.shape[:-1], -1)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> nn.Sequential:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(layer)


def linear_ladder(
    code: Normal | GaussianMixture, widen: float = 1.0
) -> tuple[Hierarchical, Tensor, Tensor]:
    """g(t) = W t + c with orthogonal columns, and the posterior that is exact under N(0, I).

    Its deviations are then multiplied by `widen`.
    """
    w = torch.tensor([[1.0, 2.0], [2.0, -1.0], [0.5, 1.0], [1.0, -0.5]]).double()
    assert abs(float(w[:, 0] @ w[:, 1])) < 1e-12
    c = torch.tensor([0.3, -0.2, 0.1, 0.4]).double()
    prior = Hierarchical(4, code, width=1, depth=1, scale="fixed", start_scale=TAU).double()
    s = torch.linalg.inv(torch.eye(2).double() + w.mT @ w / TAU**2)
    prior.encoder = nn.Identity()
    prior.mean_head = linear(w, s @ w.mT / TAU**2, -s @ w.mT @ c / TAU**2)
    prior.deviation_head = Constant(widen * s.diagonal().sqrt())
    prior.decoder = linear(w, w, c)
    return prior.eval().requires_grad_(False), w, c


def mixture() -> GaussianMixture:
    prior = GaussianMixture(2, 3).double()
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    means = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]]).double()
    factors = torch.tensor([[[1.5, 0.2], [0, 1.2]], [[2.0, 0], [0, 1.0]], [[1.0, -0.5], [0, 2.0]]])
    return prior.set(weights, means, factors.double())


def exact(code: GaussianMixture, w: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """log sum_k w_k N(z; W m_k + c, W S_k W^T + tau^2 I)."""
    covariances = w @ code.covariances() @ w.mT + TAU**2 * torch.eye(4).double()
    parts = torch.distributions.MultivariateNormal(code.means @ w.mT + c, covariances)
    return (code.log_weights + parts.log_prob(z[:, None])).logsumexp(1)


@pytest.fixture
def points() -> Tensor:
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()


def test_with_the_exact_posterior_every_draw_gives_the_exact_density(points):
    prior, w, c = linear_ladder(Normal(2))
    truth = torch.distributions.MultivariateNormal(c, w @ w.mT + TAU**2 * torch.eye(4)).log_prob(
        points
    )
    for n, seed in ((1, 0), (1, 1), (7, 2)):
        stream = torch.Generator().manual_seed(seed)
        values = prior.log_prob(points, n, generator=stream)
        torch.testing.assert_close(values, truth, rtol=0, atol=1e-9)


def test_bounds_stay_below_and_rise_with_draws_and_quadrature_is_exact(points):
    code = mixture()
    prior, w, c = linear_ladder(code, widen=2.0)
    truth = exact(code, w, c, points)
    means = []
    for n in (1, 8, 64):
        stream = torch.Generator().manual_seed(n)
        values = prior.log_prob(points.expand(200, 20, 4), n, generator=stream)
        error = values.std(0) / math.sqrt(len(values))
        assert (values.mean(0) <= truth + 4 * error).all()
        means.append(float(values.mean()))
    assert means[0] < means[1] < means[2] <= float(truth.mean()) + 1e-3
    many = prior.log_prob(points, 20_000, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(many, truth, rtol=0, atol=0.05)
    torch.testing.assert_close(quadrature_log_prob(prior, points), truth, rtol=0, atol=1e-6)
    stream = torch.Generator().manual_seed(6)
    near = kernel_log_prob(prior, points[:5], 400_000, generator=stream)
    torch.testing.assert_close(near, truth[:5], rtol=0, atol=0.1)


def test_the_bound_is_the_mean_weight_in_parts(points):
    code = mixture()
    prior, _, _ = linear_ladder(code)
    many = points.expand(4000, 20, 4)
    bound = prior.bound(many, 1, generator=torch.Generator().manual_seed(0)).total
    weights = prior.log_prob(many, 1, generator=torch.Generator().manual_seed(1))
    both = (bound, weights)
    errors = sum(x.var(0) / len(x) for x in both).sqrt()
    assert ((both[0].mean(0) - both[1].mean(0)).abs() < 4.5 * errors).all()


def test_samples_have_the_covariance_of_the_ladder_with_noise_and_without():
    code = mixture()
    prior, w, _ = linear_ladder(code)
    n, weights = 200_000, code.log_weights.exp()
    mean = weights @ code.means
    t_covariance = (weights[:, None, None] * code.covariances()).sum(0)
    t_covariance = t_covariance + (weights[:, None] * code.means).mT @ code.means - mean.outer(mean)
    for noise in (True, False):
        z = prior.sample(n, noise=noise, generator=torch.Generator().manual_seed(0))
        centred = z - z.mean(0)
        products = centred[:, :, None] * centred[:, None]
        expected = w @ t_covariance @ w.mT + noise * TAU**2 * torch.eye(4)
        allowed = 4 * products.std(0) / math.sqrt(n)
        assert ((products.mean(0) - expected).abs() < allowed).all()


def test_a_mask_gives_a_valid_density_with_standard_normal_factors():
    torch.manual_seed(0)
    prior = Hierarchical(3, 1, width=4, depth=1, scale="fixed", start_scale=0.7).double().eval()
    assert prior.mask_unused(torch.tensor([0.1, 0.95, 0.2])) == 1
    side = torch.arange(-6, 6, 0.25).double()
    grid = torch.cartesian_prod(side, side, side)
    total = float(quadrature_log_prob(prior, grid).exp().sum()) * 0.25**3
    assert total == pytest.approx(1, abs=1e-3)
    z = prior.sample(5000, generator=torch.Generator().manual_seed(0))[:, 1]
    assert abs(float(z.std()) - 1) < 0.05
    moved = torch.zeros(2, 3).double()
    moved[1, 1] = 2.0
    low, high = quadrature_log_prob(prior, moved).flip(0)
    assert float(high - low) == pytest.approx(2.0, abs=1e-9)


def test_a_predicted_std_is_used_everywhere():
    torch.manual_seed(0)
    prior = Hierarchical(2, 1, width=8, depth=1, predicted_std=True).double().eval()
    _, std = prior.conditional(torch.linspace(-2, 2, 5)[:, None].double())
    assert (std >= 0.05).all() and std.std() > 0
    side = torch.arange(-8, 8, 0.05).double()
    grid = torch.cartesian_prod(side, side)
    assert float(quadrature_log_prob(prior, grid).exp().sum()) * 0.05**2 == pytest.approx(
        1, abs=1e-3
    )
    prior.log_prob(grid[:50], generator=torch.Generator().manual_seed(0)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in prior.deviation_decoder.parameters())


def test_a_learned_scale_comes_back_from_either_bound():
    """Errors first push it out of its range, then ask for what lies inside; Adam as the original's.

    A clamp cuts the gradient off: from outside it never comes back.
    """
    scale, used = Scale("learned", 0.1, (0.05, 0.1)), torch.ones(1, dtype=torch.bool)
    optimizer = torch.optim.Adam(scale.parameters(), 0.05, betas=(0.9, 0.95))

    def follow(error: float, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            tau = scale.observe(torch.full((1,), error), used)
            (tau.log() + error**2 / (2 * tau**2)).backward()
            optimizer.step()
        return scale.value.item()

    assert follow(5.0, 1000) == pytest.approx(0.1, rel=0.01)
    assert follow(0.07, 600) == pytest.approx(0.07, rel=0.01)
    assert follow(0.001, 1000) == pytest.approx(0.05, rel=0.01)
    assert follow(0.07, 600) == pytest.approx(0.07, rel=0.01)


def test_a_profiled_scale_is_the_likeliest_and_its_gradient_is_of_the_log_error():
    """R = -d log b - ..., so its gradient is (d / b) grad b, by the closed form for b."""
    torch.manual_seed(0)
    prior = Hierarchical(3, 1, width=8, depth=1, scale_bounds=(1e-3, math.inf)).double()
    z = torch.randn(50, 3).double()
    stream = torch.Generator().manual_seed(0)
    value = prior.bound(z, generator=stream).reconstruction.mean()
    (gradient,) = torch.autograd.grad(value, prior.decoder[-1].bias)
    mean, std = prior.posterior(z)
    t = mean + std * torch.randn(
        50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    b = (z - prior.conditional(t)[0]).square().mean().sqrt()
    profile = -3 * b.log() - 1.5 * (math.log(2 * math.pi) + 1)
    (expected,) = torch.autograd.grad(profile, prior.decoder[-1].bias)
    assert float(value.detach()) == pytest.approx(float(profile.detach()), abs=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
    assert float(prior.scale.value) == pytest.approx(float(b.detach()), rel=1e-6)
    prior.eval()
    before = float(prior.scale.value)
    prior.bound(10 * z)
    assert float(prior.scale.value) == before


def bent(n: int, seed: int) -> Tensor:
    """Latents about a circle in the plane of the first two of three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    circle = torch.stack([2 * angle.cos(), 2 * angle.sin(), torch.zeros(n)], 1)
    return circle + 0.1 * torch.randn(n, 3, generator=generator)


@pytest.mark.parametrize("kind", ["hierarchical", "ladder"])
def test_a_fit_beats_the_gaussian_on_what_is_no_gaussian(kind):
    torch.manual_seed(0)
    options = {"width": 64, "depth": 2, "two_stage": TwoStage(steps=800, rate=3e-3)}
    prior = Ladder(3, 2, 10, **options) if kind == "ladder" else Hierarchical(3, 2, **options)
    z, held_out = bent(2000, 0), bent(1000, 1)
    assert prior.fit(z, seed=1) is prior and not prior.training
    stream = torch.Generator().manual_seed(0)
    mine = cross_entropy(prior, held_out, 64, generator=stream)
    gaussian = cross_entropy(Normal(3, "full").fit(z), held_out)
    assert mine.value + 3 * (mine.error + gaussian.error) < gaussian.value
    assert prior.report.latents == 2000 and prior.report.iterations == 800
    assert prior.report.converged
    assert (prior.report.active is not None) == (kind == "ladder")
    space = prior.path_space
    assert space.dim == 2 and space.lift(space.encode(held_out)).shape == held_out.shape
    assert space.log_prob(space.encode(held_out)).isfinite().all()

    again = Ladder(3, 2, 10, **options) if kind == "ladder" else Hierarchical(3, 2, **options)
    again.load_state_dict(prior.state_dict())
    values = [
        p.eval().log_prob(held_out, 3, generator=torch.Generator().manual_seed(2))
        for p in (prior, again)
    ]
    assert torch.equal(*values)


@pytest.mark.parametrize("steps", [1, 30])
def test_a_fit_that_is_cut_short_has_not_converged(steps):
    torch.manual_seed(0)
    options = TwoStage(steps=steps, rate=1e-2)
    prior = Hierarchical(3, 2, width=16, depth=1, two_stage=options).fit(10 * bent(500, 0))
    assert math.isfinite(prior.report.log_prob) and not prior.report.converged


@pytest.mark.parametrize(("gain", "converged"), [(-1, True), (0.04, True), (0.06, False)])
def test_a_fit_has_converged_where_its_last_fifth_brings_little(monkeypatch, gain, converged):
    """The density at 8 of 10 steps against that at the end; all before does not count."""
    at, steps = [], []
    prior = Hierarchical(3, 2, width=4, depth=1, two_stage=TwoStage(steps=10))
    prior.on_step = lambda: steps.append(0)
    monkeypatch.setattr(
        two_stage, "report_log_prob", lambda *_: at.append(len(steps)) or gain * (len(steps) == 10)
    )
    assert prior.fit(bent(100, 0)).report.converged == converged
    assert at == [8, 10, 10]


def test_a_ladder_of_ladders_and_refits():
    torch.manual_seed(0)
    inner = Ladder(3, 1, 4, width=8, depth=1)
    prior = Hierarchical(5, inner, width=8, depth=1)
    z = torch.randn(60, 5)
    assert prior.log_prob(z, 4).shape == (60,) and prior.path_space.dim == 1
    assert prior.path_space.lift(torch.zeros(7, 1)).shape == (7, 5)
    weights = {name: p.clone() for name, p in prior.named_parameters()}
    report = prior.refit(z, seed=1)
    assert report.components == 4 and inner.code.active == report.active
    assert all(torch.equal(p, weights[name]) for name, p in prior.named_parameters())
    assert Hierarchical(5, 2, width=8, depth=1).refit(z) is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="width and depth must be at least 1"):
        Hierarchical(3, 2, depth=0)
    with pytest.raises(ValueError, match="kind must be profile, learned or fixed"):
        Hierarchical(3, 2, scale="free")
    with pytest.raises(ValueError, match="bounds in order"):
        Hierarchical(3, 2, scale_bounds=(0.2, 0.1))
    with pytest.raises(ValueError, match=r"std must have shape \(3,\)"):
        Hierarchical(3, 2).mask_unused(torch.ones(4))
    with pytest.raises(ValueError, match=r"Hierarchical.fit.*shape \(..., 3\); got \(9, 4\)"):
        Hierarchical(3, 2).fit(torch.randn(9, 4))
    with pytest.raises(ValueError, match=r"Ladder.fit: at least 10 latents are needed; got 9"):
        Ladder(3, 2, 10, width=4, depth=1).fit(torch.randn(9, 3))
    with pytest.raises(ValueError, match=r"Ladder.fit: all 9 latents are equal"):
        Ladder(3, 2, 4).fit(torch.ones(9, 3))
    singular = Normal(2, "full").fit(torch.randn(9, 1) @ torch.ones(1, 2))
    with pytest.raises(ValueError, match="code must be a prior of real latents with a density"):
        Hierarchical(3, singular)
    with pytest.raises(ValueError, match="at most 2 dimensions"):
        quadrature_log_prob(Hierarchical(4, 3), torch.randn(2, 4))
