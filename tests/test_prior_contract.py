"""What all priors promise; Normal, VampPrior and the copula under the contract; aggregates."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from fastlatent.priors import (
    BernoulliCopula,
    GaussianMixture,
    Hierarchical,
    Ladder,
    Normal,
    Prior,
    TwoStage,
    VampPrior,
    aggregate_log_prob,
    cross_entropy,
    posterior_divergences,
    random_bits,
)

DIM = 3


class Encoder(nn.Module):
    """Images (n, 1, 2, 2) to a mean and a deviation, through a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.mean, self.raw = nn.Linear(8, DIM), nn.Linear(8, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.mean(hidden), nn.functional.softplus(self.raw(hidden)) + 0.05


def vamp(components: int = 6) -> VampPrior:
    torch.manual_seed(0)
    prior = VampPrior(DIM, (1, 2, 2), components, two_stage=TwoStage(steps=30, rate=0.05))
    return prior.bind(Encoder().eval())


SMALL = {"width": 8, "depth": 1, "two_stage": TwoStage(steps=20)}
PRIORS = {
    "normal": lambda: Normal(DIM),
    "normal-diagonal": lambda: Normal(DIM, "diagonal"),
    "normal-full": lambda: Normal(DIM, "full"),
    "mixture": lambda: GaussianMixture(DIM, 4),
    "mixture-diagonal": lambda: GaussianMixture(DIM, 4, "diagonal"),
    "vamp": vamp,
    "hierarchical": lambda: Hierarchical(DIM, 2, **SMALL),
    "ladder": lambda: Ladder(DIM, 2, 4, **SMALL),
}


@pytest.fixture(params=PRIORS)
def prior(request) -> Prior:
    torch.manual_seed(0)
    return PRIORS[request.param]()


def latents(n: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator) * torch.tensor([1.0, 0.3, 2.0]) + 0.5


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_prior_keeps_the_contract(prior):
    z = latents()
    assert prior.fit(z, seed=1) is prior
    prior.eval()
    assert prior.dim == DIM and prior.support == "real"
    assert prior.density in ("exact", "lower_bound")
    assert prior.report.latents == len(z) and math.isfinite(prior.report.log_prob)

    z.requires_grad_()
    value = prior.log_prob(z, 2, generator=stream())
    assert value.shape == (len(z),) and value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    z = z.detach()
    assert prior.log_prob(z.reshape(4, 50, DIM), generator=stream()).shape == (4, 50)
    assert prior.log_prob(z[:0], generator=stream()).shape == (0,)

    first, again, other = (prior.sample(50, generator=stream(seed)) for seed in (1, 1, 2))
    assert first.shape == (50, DIM) and not first.requires_grad
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert prior.sample(0).shape == (0, DIM)

    mean, std = z, torch.full_like(z, 0.1)
    expected = prior.expected_log_prob(mean, std, None, 4, generator=stream())
    assert expected.shape == (len(z),) and expected.isfinite().all()

    space = prior.path_space
    points = space.encode(z)
    assert points.shape == (len(z), space.dim) and space.log_prob(points).shape == (len(z),)
    assert space.lift(points).shape == z.shape
    first, again = (space.draw(50, stream(1)) for _ in range(2))
    assert first.shape == (50, space.dim) and torch.equal(first, again)

    names = {name for name, _ in prior.named_parameters()}
    fresh = copy.deepcopy(prior)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    fresh.load_state_dict(prior.state_dict())
    assert names == {name for name, _ in fresh.named_parameters()}
    values = [p.log_prob(z, generator=stream(3)) for p in (prior, fresh)]
    assert torch.equal(*values)


def test_every_prior_names_bad_input(prior):
    name = type(prior).__name__
    with pytest.raises(ValueError, match=rf"{name}.log_prob: z must be of shape \(..., 3\)"):
        prior.log_prob(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=rf"{name}.log_prob: z must be floating-point"):
        prior.log_prob(torch.zeros(2, 3, dtype=torch.int32))
    for z, words in (
        (latents().fill_(1.0), "all 200 latents are equal"),
        (latents().index_fill(0, torch.tensor([7]), math.nan), "1 of 200 latents are not"),
        (latents(1), "latents are needed; got 1"),
        (latents()[:, :2], r"of shape \(..., 3\); got \(200, 2\)"),
    ):
        with pytest.raises(ValueError, match=f"{name}.fit.*{words}"):
            prior.fit(z)
    constant = latents()
    constant[:, 1] = 4.0
    if not isinstance(prior, Normal):
        with pytest.raises(ValueError, match=f"{name}.fit: z must vary in every.*constant: 1"):
            prior.fit(constant)
    with pytest.raises(ValueError, match=f"{name}.sample: n must be at least 0"):
        prior.sample(-1)


# Normal


def test_normal_is_the_gaussian_of_the_latents():
    z = latents().double() @ torch.randn(DIM, DIM, generator=stream()).double()
    prior = Normal(DIM, "full").double().fit(z)
    covariance = z.T.cov()
    truth = multivariate_normal(z.mean(0), covariance).logpdf(z)
    np.testing.assert_allclose(prior.log_prob(z), truth, atol=1e-10)
    draws = prior.sample(200_000, generator=stream())
    assert ((draws.mean(0) - z.mean(0)).abs() < 4 * (covariance.diagonal() / 200_000).sqrt()).all()
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("covariance", ["identity", "diagonal", "full"])
def test_the_closed_form_of_the_expectation_is_what_draws_give(covariance):
    prior = Normal(DIM, covariance).double().fit(latents().double())
    mean, std = latents(5, 1).double(), latents(5, 2).double().abs()
    closed = prior.expected_log_prob(mean, std)
    draws = mean + std * torch.randn(200_000, 5, DIM, generator=stream()).double()
    values = prior.log_prob(draws)
    assert ((values.mean(0) - closed).abs() < 4 * values.std(0) / math.sqrt(200_000)).all()


def test_the_kl_to_the_standard_normal_is_the_published_one():
    mean, std = latents(20, 1).double(), latents(20, 2).double().abs() + 0.1
    log_q = -(DIM / 2) * (math.log(2 * math.pi) + 1) - std.log().sum(1)
    kl = log_q - Normal(DIM).expected_log_prob(mean, std)
    closed = 0.5 * (mean.square() + std.square() - 1).sum(1) - std.log().sum(1)
    torch.testing.assert_close(kl, closed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_normal_samples_its_subspace_and_has_no_density(dtype):
    z = (torch.randn(100, 2, generator=stream()) @ torch.randn(2, 5, generator=stream(1))).to(dtype)
    prior = Normal(5, "full").to(dtype).fit(z)
    assert prior.singular and prior.density == "none"
    assert math.isnan(prior.report.log_prob)
    draws = prior.sample(50, generator=stream(2))
    basis = torch.linalg.svd((z - z.mean(0)).double())[2][2:]
    assert ((draws - z.mean(0)).double() @ basis.mT).abs().max() < 1e-4
    with pytest.raises(ValueError, match="only a subspace"):
        prior.log_prob(z)
    with pytest.raises(ValueError, match=r"Normal.path_space.*exact density"):
        prior.path_space  # noqa: B018
    with pytest.raises(ValueError, match="cross_entropy: Normal has no density"):
        cross_entropy(prior, z)
    assert prior.fit(torch.randn(100, 5, generator=stream(3)).to(dtype)).density == "exact"


# VampPrior and the aggregate posterior


def test_a_vamp_prior_of_all_images_is_the_aggregate_posterior():
    encoder = Encoder().eval()
    images = torch.rand(40, 1, 2, 2, generator=stream())
    prior = VampPrior(DIM, (1, 2, 2), 40, free=True).bind(encoder).start_from(images)
    with torch.no_grad():
        means, stds = encoder(images)
        z = latents(30, 1)
        torch.testing.assert_close(prior.log_prob(z), aggregate_log_prob(z, means, stds))
        result = posterior_divergences(prior, means, stds, draws=5, generator=stream())
    assert abs(result.aggregate_kl) < 1e-5
    assert result.mean_kl == pytest.approx(result.mutual_information, abs=1e-5)
    assert 0 < result.mutual_information <= math.log(40)


def test_divergences_of_one_image_are_the_gaussian_ones_and_add_up():
    mean, std = torch.tensor([[0.5, -1.0, 0.2]]).double(), torch.tensor([[0.3, 0.8, 1.2]]).double()
    closed = float(0.5 * (mean.square() + std.square() - 1).sum() - std.log().sum())
    result = posterior_divergences(Normal(DIM), mean, std, draws=4000, generator=stream())
    assert result.mean_kl == pytest.approx(closed, abs=0.1)
    assert abs(result.mutual_information) < 1e-12
    result = posterior_divergences(
        GaussianMixture(DIM, 2), latents(50), latents(50, 1).abs() + 0.1, generator=stream()
    )
    total = result.mutual_information + result.aggregate_kl
    assert result.mean_kl == pytest.approx(total, abs=1e-9)


def test_the_encoder_is_no_part_of_a_vamp_prior():
    prior = vamp()
    assert set(prior.state_dict()) == {"raw"}
    assert [name for name, _ in prior.named_parameters()] == ["raw"]
    model = nn.Module()
    model.encoder = Encoder()
    model.prior = VampPrior(DIM, (1, 2, 2), 4).bind(model.encoder)
    assert len(model.state_dict()) == len(model.encoder.state_dict()) + 1
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.mean.bias += 5
        moved = twin.prior.mixture()[0] - model.prior.mixture()[0]
    torch.testing.assert_close(moved, torch.full_like(moved, 5.0))


def test_components_are_kept_until_pseudo_images_or_encoder_change():
    prior = vamp()
    encoder = prior._bound[0]
    z = latents(20)
    with torch.no_grad():
        first = prior.mixture()
        assert prior.mixture()[0] is first[0]
        before = prior.log_prob(z)
        for change in (encoder.mean.weight, prior.raw, encoder.body[2].running_mean):
            change.add_(0.5)
            after = prior.log_prob(z)
            assert not torch.equal(after, before)
            before = after
        # Broadcasts of other ranks do not raise the version; evaluation sets the mode first.
        encoder.mean.weight.data.add_(0.5)
        assert not torch.equal(prior.eval().log_prob(z), before)
    prior.log_prob(z).sum().backward()
    assert prior.raw.grad.abs().sum() > 0 and encoder.mean.weight.grad.abs().sum() > 0


def test_pseudo_images_do_not_touch_the_statistics_of_batches():
    prior = vamp()
    encoder = prior._bound[0].train()
    value = prior.log_prob(latents(5))
    assert encoder.training and encoder.body[2].training
    assert int(encoder.body[2].num_batches_tracked) == 0
    encoder.eval()
    torch.testing.assert_close(prior.log_prob(latents(5)), value)


def test_a_vamp_prior_fits_without_moving_the_encoder():
    prior = vamp()
    before = {k: v.clone() for k, v in prior._bound[0].state_dict().items()}
    z = prior._bound[0](torch.rand(100, 1, 2, 2, generator=stream()))[0].detach()
    start = cross_entropy(prior, z)
    prior.fit(z)
    assert cross_entropy(prior, z).value < start.value
    assert all(torch.equal(v, before[k]) for k, v in prior._bound[0].state_dict().items())
    assert all(p.requires_grad for p in prior._bound[0].parameters())
    assert prior.images.min() >= 0 and prior.images.max() <= 1


def test_bad_vamp_priors_are_named():
    prior = VampPrior(DIM, (1, 2, 2), 4)
    with pytest.raises(ValueError, match="bind\\(encoder\\) must be called first"):
        prior.log_prob(latents(3))
    with pytest.raises(ValueError, match=r"images must have shape \(4, 1, 2, 2\)"):
        prior.start_from(torch.zeros(3, 1, 2, 2))
    prior.bind(lambda x: (x.flatten(1), x.flatten(1)))
    with pytest.raises(ValueError, match=r"means of shape \(4, 3\); got \(4, 4\)"):
        prior.log_prob(latents(3))
    with pytest.raises(ValueError, match="components must be at least 1"):
        VampPrior(DIM, (1, 2, 2), 0)


# The copula


def test_the_copula_is_a_prior_of_bits_whose_state_is_complete():
    codes = random_bits(300, 5, generator=stream())
    codes[:, 3] = codes[:, 1]
    prior = BernoulliCopula("nearest_correlation")
    assert isinstance(prior, Prior) and prior.state_dict() == {} and prior.dim == 0
    prior.fit(codes)
    assert (prior.dim, prior.support, prior.density) == (5, "bits", "none")
    assert prior.refit(codes).latents == 300
    other = BernoulliCopula()
    other.load_state_dict(prior.state_dict())
    draws = [p.sample(40, generator=stream(1)) for p in (prior, other)]
    assert torch.equal(*draws) and other.dim == 5
    assert torch.equal(other.correlation, prior.correlation)
    assert other.float().correlation.dtype == torch.float64
    broken = prior.state_dict() | {"factor": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="do not fit each other"):
        BernoulliCopula().load_state_dict(broken)
    with pytest.raises(NotImplementedError, match="no closed form"):
        prior.log_prob(codes)
    with pytest.raises(ValueError, match="cross_entropy: BernoulliCopula has no density"):
        cross_entropy(prior, codes)
