"""Mixtures: densities and gradients against SciPy, fits against scikit-learn, moments of draws."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from fastlatent.priors import GaussianMixture, MixtureFit, Normal, cross_entropy
from fastlatent.priors.mixture_density import log_diagonal_mixture, log_full_mixture


def mixture_of(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (k,), means (k, d), covariances (k, d, d) and factors of the precisions, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = normal(k).softmax(0)
    factor = 0.3 * normal(k, d, d).tril(-1) + torch.eye(d) * (0.3 + normal(k, d, 1).abs())
    eye = torch.eye(d).double().expand(k, d, d)
    precisions_cholesky = torch.linalg.solve_triangular(factor, eye, upper=False).mT
    return weights, 2 * normal(k, d), factor @ factor.mT, precisions_cholesky


def by_scipy(z: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> np.ndarray:
    parts = [
        multivariate_normal(m, s).logpdf(z.numpy())
        for m, s in zip(means.numpy(), covariances.numpy(), strict=True)
    ]
    return logsumexp(np.stack(parts, 1) + np.log(weights.numpy()), 1)


@pytest.mark.parametrize(("k", "d"), [(1, 1), (5, 2), (50, 8), (7, 9), (3, 32)])
def test_the_density_is_that_of_scipy(k, d):
    weights, means, covariances, factors = mixture_of(k, d)
    z = 3 * torch.randn(700, d, generator=torch.Generator().manual_seed(1)).double()
    truth = by_scipy(z, weights, means, covariances)
    mine = log_full_mixture(z, weights.log(), means, factors)
    np.testing.assert_allclose(mine, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("k", "d"), [(5, 2), (9000, 3)])
def test_the_diagonal_density_is_that_of_scipy(k, d):
    weights, means, _, _ = mixture_of(k, d)
    stds = 0.1 + torch.rand(k, d, generator=torch.Generator().manual_seed(1)).double()
    z = 2 * torch.randn(40, d, generator=torch.Generator().manual_seed(2)).double()
    truth = (weights.log() - stds.log().sum(1)) - 0.5 * (
        ((z[:, None] - means) / stds).square().sum(2) + d * math.log(2 * math.pi)
    )
    mine = log_diagonal_mixture(z, weights.log(), means, stds)
    torch.testing.assert_close(mine, truth.logsumexp(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [2, 9])
@pytest.mark.parametrize("parameters", [False, True])
def test_gradients_of_full_mixtures(d, parameters):
    weights, means, _, factors = mixture_of(4, d)
    z = torch.randn(6, d, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    rest = [x.requires_grad_(parameters) for x in (weights.log(), means, factors)]
    assert torch.autograd.gradcheck(
        lambda z, w, m, p: log_full_mixture(z, w, m, p.triu()), [z, *rest]
    )


@pytest.mark.parametrize("parameters", [False, True])
def test_gradients_of_diagonal_mixtures(parameters, monkeypatch):
    monkeypatch.setattr("fastlatent.priors.mixture_density._COLUMNS", 2)  # streams over components
    weights, means, _, _ = mixture_of(5, 3)
    stds = 0.2 + torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).double()
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    rest = [x.requires_grad_(parameters) for x in (weights.log(), means, stds)]
    assert torch.autograd.gradcheck(log_diagonal_mixture, [z, *rest])


def error_of(compute: Callable[..., Tensor], z: Tensor, rest: tuple[Tensor, ...]) -> list[Tensor]:
    """Value and gradient to z, in float64."""
    z = z.clone().requires_grad_()
    value = compute(z, *rest)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return [value.detach().double(), gradient.double()]


@pytest.mark.parametrize("d", [2, 8, 32])
def test_float32_errs_at_most_twice_as_much_as_torch_distributions(d):
    weights, means, covariances, factors = mixture_of(50, d)
    z = 2 * torch.randn(4096, d, generator=torch.Generator().manual_seed(1)).double()
    tril = torch.linalg.cholesky(covariances)

    def rival(z, weights, means, tril):
        components = torch.distributions.MultivariateNormal(means, scale_tril=tril)
        mixture = torch.distributions.Categorical(weights)
        return torch.distributions.MixtureSameFamily(mixture, components).log_prob(z)

    single = [x.float() for x in (weights, means, tril, factors)]
    rounded = [x.double() for x in single]
    truths = error_of(rival, z.float().double(), tuple(rounded[:3]))
    rivals = error_of(rival, z.float(), tuple(single[:3]))
    # The factor of the precision, not of the covariance, is what was rounded on our side.
    own_truths = error_of(
        lambda z, w, m, p: log_full_mixture(z, w.log(), m, p),
        z.float().double(),
        (rounded[0], rounded[1], rounded[3]),
    )
    own = error_of(
        lambda z, w, m, p: log_full_mixture(z, w.log(), m, p),
        z.float(),
        (single[0], single[1], single[3]),
    )
    for mine, own_truth, theirs, truth in zip(own, own_truths, rivals, truths, strict=True):
        floor = torch.finfo(torch.float32).eps * truth.abs().max()
        assert (mine - own_truth).abs().max() <= 2 * (theirs - truth).abs().max() + floor


def test_thin_components_far_from_the_origin_lose_no_digits():
    means = torch.tensor([[300.0, -200.0], [300.01, -200.0]])
    stds = torch.full((2, 2), 1e-3)
    z = torch.tensor([[300.001, -200.0]])
    wide = [x.double() for x in (z, torch.tensor([0.5, 0.5]).log(), means, stds)]
    square = ((wide[0][:, None] - wide[2]) / wide[3]).square().sum(2)
    truth = (wide[1] - wide[3].log().sum(1) - 0.5 * square - math.log(2 * math.pi)).logsumexp(1)
    mine = log_diagonal_mixture(z, wide[1].float(), means, stds)
    assert abs(float(mine) - float(truth)) < 1e-4  # float32 of the result alone: 1e-6 of 11 nats


@given(
    arrays.arrays(np.float64, (5, 2), elements=st.floats(-50, 50)),
    st.integers(0, 5),
    st.floats(-100, 100),
)
@settings(max_examples=40, deadline=None)
def test_shifting_all_shifts_nothing(points, seed, by):
    weights, means, _, factors = mixture_of(3, 2, seed)
    z = torch.from_numpy(points)
    before = log_full_mixture(z, weights.log(), means, factors)
    after = log_full_mixture(z + by, weights.log(), means + by, factors)
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


def test_shapes_empty_batches_and_what_is_not_finite():
    weights, means, _, factors = mixture_of(3, 2)
    z = torch.randn(4, 5, 2).double()
    values = log_full_mixture(z, weights.log(), means, factors)
    assert values.shape == (4, 5)
    torch.testing.assert_close(
        values[2], log_full_mixture(z[2], weights.log(), means, factors), rtol=0, atol=0
    )
    assert log_full_mixture(z[:0], weights.log(), means, factors).shape == (0, 5)
    z[0, 0, 0] = math.nan
    spoilt = log_full_mixture(z, weights.log(), means, factors)
    assert spoilt[0, 0].isnan() and spoilt.isnan().sum() == 1


def filled(k: int, d: int, covariance: str = "full") -> GaussianMixture:
    weights, means, _, factors = mixture_of(k, d)
    prior = GaussianMixture(d, k, covariance).double()
    return prior.set(weights, means, factors if covariance == "full" else factors[:, 0].abs() + 1)


def test_the_density_integrates_to_one():
    prior = filled(4, 2)
    side = torch.arange(-15, 15, 0.05).double()
    grid = torch.cartesian_prod(side, side)
    assert float(prior.log_prob(grid).exp().sum()) * 0.05**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_samples_have_the_moments_of_the_mixture(covariance):
    prior, n = filled(3, 2, covariance), 200_000
    z = prior.sample(n, generator=torch.Generator().manual_seed(0))
    weights, means = prior.log_weights.exp(), prior.means
    mean = weights @ means
    between = (weights[:, None] * means).mT @ means - mean.outer(mean)
    covariance = (weights[:, None, None] * prior.covariances()).sum(0) + between
    errors = (covariance.diagonal() / n).sqrt()
    assert ((z.mean(0) - mean).abs() < 4 * errors).all()
    # The fourth moments of the draws themselves say how far their covariance may be off.
    products = (z - mean)[:, :, None] * (z - mean)[:, None]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / math.sqrt(n)).all()


def test_the_plug_in_is_what_is_stored_and_not_what_scikit_learn_scores():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.4, (120, 2)) for c in (-2, 0, 2)])
    theirs = BayesianGaussianMixture(n_components=8, random_state=0, max_iter=500).fit(points)
    prior = GaussianMixture(2, 8).double()
    prior.set(*map(torch.from_numpy, (theirs.weights_, theirs.means_, theirs.precisions_cholesky_)))
    z = torch.from_numpy(points)
    plug_in = by_scipy(
        z, *map(torch.from_numpy, (theirs.weights_, theirs.means_, theirs.covariances_))
    )
    np.testing.assert_allclose(prior.log_prob(z), plug_in, atol=1e-10)
    assert np.abs(theirs.score_samples(points) - plug_in).max() > 1e-2


def three_clusters(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-8.0, 0.0], [8.0, 0.0], [0.0, 10.0]])
    which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, True, generator=generator)
    return centres[which] + 0.5 * torch.randn(n, 2, generator=generator)


def test_three_far_clusters_give_three_components_with_their_weights():
    prior = GaussianMixture(2, 10).fit(three_clusters(3000))
    heavy = prior.log_weights.exp()
    near = (prior.means[:, None] - torch.tensor([[-8.0, 0], [8.0, 0], [0, 10.0]])).norm(dim=2)
    mass = torch.stack([heavy[near.argmin(1) == cluster].sum() for cluster in range(3)])
    assert ((mass - torch.tensor([0.5, 0.3, 0.2])).abs() < 0.02).all()
    assert prior.report.active == prior.active == len(heavy)
    assert prior.report.converged
    assert float(heavy.sum()) == pytest.approx(1, abs=1e-6)


def test_same_seed_same_bits_and_a_checkpoint_keeps_every_bit():
    z = three_clusters(600)
    first, second = (GaussianMixture(2, 6).fit(z, seed=3) for _ in range(2))
    other = GaussianMixture(2, 6)
    other.load_state_dict(first.state_dict())
    for prior in (second, other):
        assert torch.equal(prior.log_prob(z), first.log_prob(z))
        draws = [p.sample(9, generator=torch.Generator().manual_seed(1)) for p in (prior, first)]
        assert torch.equal(*draws)


def test_the_fit_does_not_depend_on_units():
    z = three_clusters(900)
    plain, shrunk = GaussianMixture(2, 6).fit(z), GaussianMixture(2, 6).fit(z / 4096)
    moved = plain.log_prob(z) + 2 * math.log(4096)
    torch.testing.assert_close(shrunk.log_prob(z / 4096), moved, rtol=0, atol=1e-3)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_one_component_keeps_the_variance(covariance):
    z = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).double()
    fits = [MixtureFit(), MixtureFit("em")]
    mine, em = (GaussianMixture(64, 1, covariance, fit).double().fit(z) for fit in fits)
    torch.testing.assert_close(mine.covariances(), em.covariances(), rtol=0, atol=0.01)
    assert float(em.covariances()[0].diagonal().mean()) == pytest.approx(0.99, abs=0.02)


@pytest.mark.parametrize(
    ("covariance", "d", "weight"), [("full", 1, 1), ("full", 8, 8), ("diagonal", 8, 3)]
)
def test_the_prior_of_covariances_is_a_part_of_that_of_the_latents(covariance, d, weight):
    """A mean, weighted by numbers of latents, of the prior's covariance and the component's own."""
    n, part = 30, 0.2
    scales = torch.linspace(1, 40, d).double()
    z = scales * torch.randn(n, d, generator=torch.Generator().manual_seed(0)).double()
    options = MixtureFit(covariance_prior=part)
    found = GaussianMixture(d, 1, covariance, options).double().fit(z).covariances()[0]
    spread = z.T.cov().reshape(d, d)
    expected = (weight * part + n - 1) / (weight + n) * spread
    expected = expected if covariance == "full" else expected.diagonal().diag()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def held_out_nats(z: Tensor, held_out: Tensor, *arguments: object) -> float:
    return -cross_entropy(GaussianMixture(z.shape[1], *arguments).fit(z), held_out).value


def test_the_default_fit_beats_em_on_held_out_latents():
    """50 components in 16 dimensions have 7,600 numbers, 500 latents 8,000."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=generator)

    def clusters(n: int) -> Tensor:
        which = torch.randint(10, (n,), generator=generator)
        return centres[which] + 0.3 * torch.randn(n, 16, generator=generator)

    for z, held_out, least in (
        (*torch.randn(2, 500, 16, generator=generator), -1.0),  # nats more than N(0, I)
        (clusters(500), clusters(500), 12.0),
    ):
        mine = held_out_nats(z, held_out, 50)
        plain = -cross_entropy(Normal(16), held_out).value
        assert mine > held_out_nats(z, held_out, 50, "full", MixtureFit("em")) + 3
        assert mine > plain + least


def test_few_latents_of_many_dimensions_are_not_fitted_too_closely():
    z, held_out = torch.randn(2, 20, 256, generator=torch.Generator().manual_seed(0))
    prior = GaussianMixture(256, 10, "diagonal").fit(z)
    one = -cross_entropy(Normal(256, "diagonal").fit(z), held_out).value
    assert abs(prior.report.log_prob - one) < 150
    assert -cross_entropy(prior, held_out).value > one - 100


def test_more_latents_fit_no_worse():
    held_out = three_clusters(4000, seed=9)
    few = GaussianMixture(2, 20).fit(three_clusters(2048))
    many = GaussianMixture(2, 20).fit(three_clusters(20_000))
    low, high = cross_entropy(many, held_out), cross_entropy(few, held_out)
    assert low.value <= high.value + 3 * low.error


def test_mode_original_keeps_all_components_and_goes_on_from_the_last_refit():
    options = MixtureFit(mode="original")
    prior = GaussianMixture(2, 6, options=options)
    first = prior.refit(three_clusters(400))
    again = GaussianMixture(2, 6, options=options)
    again.load_state_dict(prior.state_dict())
    reports = [p.refit(three_clusters(400)) for p in (prior, again)]
    assert reports[0] == reports[1]
    assert reports[0].iterations < first.iterations
    assert first.active == 6 and first.dropped == 0
    cold = GaussianMixture(2, 6, options=options).fit(three_clusters(400)).report
    assert cold.active == 6


def test_a_ridge_adds_to_the_variances():
    z = three_clusters(500)
    for covariance in ("full", "diagonal"):
        for mode in ("default", "original"):
            plain, wide = (
                GaussianMixture(2, 4, covariance, MixtureFit("em", ridge=ridge, mode=mode)).fit(z)
                for ridge in (0.0, 0.01)
            )
            added = wide.covariances() - plain.covariances()
            expected = (0.01 * torch.eye(2)).expand_as(added)
            torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-5)


def test_it_starts_as_the_standard_normal():
    z = torch.randn(20, 3)
    torch.testing.assert_close(GaussianMixture(3).log_prob(z), Normal(3).log_prob(z))
    assert GaussianMixture(3).active == 1


def test_a_trainable_mixture_learns_by_gradients():
    torch.manual_seed(0)
    for covariance in ("full", "diagonal"):
        prior, z = GaussianMixture(2, 5, covariance, trainable=True), three_clusters(300)
        optimizer = torch.optim.Adam(prior.parameters(), 0.05)
        before = -cross_entropy(prior, z).value
        for _ in range(100):
            optimizer.zero_grad()
            (-prior.log_prob(z).mean()).backward()
            optimizer.step()
        assert -cross_entropy(prior, z).value > before + 5
        assert prior.refit(z) is None
        log_prob = -cross_entropy(prior.fit(z), z).value
        assert log_prob == pytest.approx(prior.report.log_prob)


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (torch.randn(7, 2), "at least 8 latents are needed; got 7"),
        (torch.randn(20, 3), r"shape \(..., 2\); got \(20, 3\)"),
        (torch.randn(4, 5, 2), r"shape \(n, 2\)"),
        (torch.full((20, 2), 3.0), "all 20 latents are equal"),
        (torch.cat([torch.randn(20, 1), torch.ones(20, 1)], 1), "constant: 1"),
        (torch.randn(20, 2).index_fill(0, torch.tensor([3]), math.nan), "1 of 20 latents are not"),
        (torch.randn(20, 2).index_fill(0, torch.tensor([3, 4]), math.inf), "2 of 20 latents"),
    ],
)
def test_bad_latents_are_named(z, words):
    with pytest.raises(ValueError, match=f"GaussianMixture.fit.*{words}"):
        GaussianMixture(2, 8).fit(z)


def test_other_bad_input_is_named():
    with pytest.raises(TypeError, match=r"floating-point latents; got torch\.int64"):
        GaussianMixture(2).log_prob(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="components must be at least 1"):
        GaussianMixture(2, 0)
    with pytest.raises(ValueError, match="covariance must be 'full' or 'diagonal'"):
        GaussianMixture(2, 3, "tied")
    with pytest.raises(ValueError, match="prune must lie in"):
        MixtureFit(prune=1.0)
    with pytest.raises(ValueError, match=r"GaussianMixture.set: expected at most 2 weights"):
        GaussianMixture(2, 2).set(torch.ones(3), torch.ones(3, 2), torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=r"options.max_latents must be at least .* 50; got 20"):
        GaussianMixture(2, 50, options=MixtureFit(max_latents=20))
    with pytest.raises(ValueError, match="n must be at least 0"):
        GaussianMixture(2).sample(-1)


def test_components_that_empty_are_dropped_and_reported():
    """Three distinct points and a whiff of noise cannot fill twenty components."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    z = points.repeat(50, 1) + 1e-4 * torch.randn(150, 2, generator=generator)
    full = GaussianMixture(2, 20, options=MixtureFit(prune=0.0)).fit(z)
    assert full.report.active == 20
    assert full.report.dropped == pytest.approx(0, abs=1e-12)
    weights = full.log_weights.exp()
    prune = 0.02
    assert 0 < int((weights < prune).sum()) < 20
    prior = GaussianMixture(2, 20, options=MixtureFit(prune=prune)).fit(z)
    report = prior.report
    assert (report.latents, report.components) == (150, 20)
    assert report.active == prior.active == int((weights >= prune).sum())
    assert report.dropped == pytest.approx(float(weights[weights < prune].sum()), abs=1e-6)
    assert report.log_prob == pytest.approx(float(prior.log_prob(z).mean()), rel=1e-5)
    assert prior.log_prob(z).isfinite().all() and prior.sample(100).isfinite().all()


def test_latents_that_repeat_are_fitted():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    for method in ("bayesian", "em"):
        prior = GaussianMixture(2, 20, options=MixtureFit(method)).fit(z)
        assert prior.log_prob(z).isfinite().all() and prior.active <= 20


def line_in_space(n: int = 200) -> Tensor:
    """Latents (n, 3) whose covariance has rank 1, though every dimension varies."""
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, -1])


@pytest.mark.parametrize("method", ["bayesian", "em"])
def test_latents_that_fill_only_a_subspace_are_fitted(method):
    few = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    for z, components in ((line_in_space(), 8), (few, 3)):
        prior = GaussianMixture(z.shape[1], components, options=MixtureFit(method)).fit(z)
        across = torch.linalg.svd(z - z.mean(0))[2][-1]  # no variance that way
        assert (prior.log_prob(z + across) < prior.log_prob(z) - 100).all()
        draws = prior.sample(500, generator=torch.Generator().manual_seed(0))
        assert ((draws - z.mean(0)) @ across).std() < 0.01 * z.var(0).mean().sqrt()


def test_a_subspace_that_the_published_fit_cannot_take_is_named():
    prior = GaussianMixture(3, 8, options=MixtureFit(mode="original"))
    with pytest.raises(ValueError, match="z must vary in every direction"):
        prior.fit(line_in_space())


@pytest.mark.parametrize("trainable", [False, True])
def test_components_of_weight_0_are_left_out(trainable):
    mixture = GaussianMixture(2, 2, trainable=trainable)
    mixture.set(torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0], [9, 9]]), unit_factors(2))
    assert mixture.log_prob(torch.tensor([[9.0, 9.0]])).item() == pytest.approx(
        -math.log(2 * math.pi), abs=1e-6
    )


@pytest.mark.parametrize("weights", [[2.0, 3.0], [-0.5, 1.5], [0.5, 0.49], [math.nan, 1.0]])
def test_weights_that_are_none_are_named(weights):
    mixture = GaussianMixture(2, 2)
    with pytest.raises(ValueError, match="set: weights must be at least 0 and sum to 1; got"):
        mixture.set(torch.tensor(weights), torch.zeros(2, 2), unit_factors(2))
    assert mixture.active == 1


def test_components_that_came_behind_autograd_count():
    """As from `dist.broadcast`, which fills a buffer without raising its version."""
    source = GaussianMixture(2, 3).set(
        torch.full((3,), 1 / 3), torch.tensor([[0.0, 0], [5, 5], [-5, 5]]), unit_factors(3)
    )
    mixture, z = GaussianMixture(2, 3), torch.tensor([[5.0, 5.0]])
    mixture.log_prob(z)
    for name, buffer in mixture.named_buffers():
        buffer.data.copy_(source.get_buffer(name))
    assert mixture.active == 3
    assert torch.equal(mixture.log_prob(z), source.log_prob(z))


def unit_factors(k):
    return torch.eye(2).expand(k, 2, 2)
