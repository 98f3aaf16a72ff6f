"""Units of latents change nothing: priors, and paths under them, follow scales and offsets."""

import math

import pytest
import torch
from torch import Tensor, nn

from fastlatent.inference.walking import space_of
from fastlatent.paths import Objective, likelihood_path
from fastlatent.priors import (
    GaussianMixture,
    Hierarchical,
    Ladder,
    MixtureFit,
    Normal,
    Prior,
    TwoStage,
    VampPrior,
)

DIM = 3
UNITS = {
    "small": (torch.full((DIM,), 1e-4), torch.zeros(DIM)),
    "large": (torch.full((DIM,), 1e4), torch.zeros(DIM)),
    "mixed": (torch.tensor([1e4, 1.0, 1e-4]), torch.zeros(DIM)),
    "shifted": (torch.tensor([1.0, 1e-3, 30.0]), torch.tensor([1e3, -2.0, 5e4])),
}


class Encoder(nn.Module):
    """Images (n, 1, 2, 2) to mean and deviation of latents in given units."""

    def __init__(self, scale: Tensor, offset: Tensor):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2 * DIM))
        self.register_buffer("units", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(x).chunk(2, 1)
        return self.offset + self.units * mean, self.units * (nn.functional.softplus(raw) + 0.05)


def vamp(scale: Tensor, offset: Tensor) -> Prior:
    prior = VampPrior(DIM, (1, 2, 2), 5, two_stage=TwoStage(steps=30, rate=0.05))
    return prior.bind(Encoder(scale, offset).double())


SMALL = {"width": 16, "depth": 1, "two_stage": TwoStage(steps=40)}
PRIORS = {
    "normal-diagonal": lambda *_: Normal(DIM, "diagonal"),
    "normal-full": lambda *_: Normal(DIM, "full"),
    "mixture": lambda *_: GaussianMixture(DIM, 4),
    "mixture-diagonal": lambda *_: GaussianMixture(DIM, 4, "diagonal"),
    "mixture-em": lambda *_: GaussianMixture(DIM, 4, options=MixtureFit("em")),
    "mixture-em-diagonal": lambda *_: GaussianMixture(DIM, 4, "diagonal", MixtureFit("em")),
    "mixture-trainable": lambda *_: GaussianMixture(DIM, 4, trainable=True),
    "vamp": vamp,
    "hierarchical": lambda *_: Hierarchical(DIM, 2, **SMALL),
    "hierarchical-learned": lambda *_: Hierarchical(DIM, 2, scale="learned", **SMALL),
    "hierarchical-predicted": lambda *_: Hierarchical(DIM, 2, predicted_std=True, **SMALL),
    "ladder": lambda *_: Ladder(DIM, 2, 3, **SMALL),
}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(n: int = 300) -> Tensor:
    """Two bent clusters whose dimensions depend on each other."""
    side = 2.0 * torch.randint(2, (n, 1), generator=stream(1)).double() - 1
    z = 0.4 * torch.randn(n, DIM, generator=stream(2)).double()
    return torch.cat([side + z[:, :1], z[:, 1:2] + side * z[:, :1], z[:, 2:] + z[:, 1:2]], 1)


def fitted(kind: str, scale: Tensor, offset: Tensor) -> Prior:
    torch.manual_seed(0)
    prior = PRIORS[kind](scale, offset).double()
    return prior.fit(offset + scale * latents(), seed=1).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=PRIORS)
def plain(request) -> tuple[str, Prior]:
    return request.param, fitted(request.param, torch.ones(DIM).double(), torch.zeros(DIM).double())


@pytest.mark.parametrize("units", UNITS)
def test_every_prior_follows_the_units_of_its_latents(plain, units):
    """log p moves by the volume of a unit; samples and spreads are scaled and shifted."""
    kind, prior = plain
    scale, offset = (x.double() for x in UNITS[units])
    moved = fitted(kind, scale, offset)
    z = latents(50)
    volume = float(scale.log().sum())
    log_prob = prior.log_prob(z, 3, generator=stream())
    ours = moved.log_prob(offset + scale * z, 3, generator=stream()) + volume
    torch.testing.assert_close(ours, log_prob, rtol=1e-5, atol=1e-5)
    std = torch.full_like(z, 0.1)
    expected = prior.expected_log_prob(z, std, None, 2, generator=stream())
    ours = moved.expected_log_prob(offset + scale * z, scale * std, None, 2, generator=stream())
    torch.testing.assert_close(ours + volume, expected, rtol=1e-5, atol=1e-5)
    assert moved.report.log_prob + volume == pytest.approx(prior.report.log_prob, abs=1e-5)
    assert (moved.report.converged, moved.density) == (prior.report.converged, prior.density)

    draws, ours = (p.sample(500, generator=stream(3)) for p in (prior, moved))
    torch.testing.assert_close((ours - offset) / scale, draws, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved.spread() / scale, prior.spread(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("where", ["t", "z"])
def test_likely_paths_follow_the_units_of_the_latents(plain, where):
    kind, prior = plain
    if where == "z" and prior.density == "exact":
        pytest.skip("the space is the same")
    scale, offset = (x.double() for x in UNITS["mixed"])
    moved = fitted(kind, scale, offset)
    z = latents(6)
    found = []
    for p, ends in ((prior, z), (moved, offset + scale * z)):
        space = space_of(p, where)
        start, end = space.encode(ends).chunk(2)
        options = {"n": 3, "iterations": 40, "units": space.units}
        path = likelihood_path(space.log_prob, start, end, **options)
        found.append((space.lift(path.points), path.terms.length))
        assert torch.equal(path.points[:, 0], start) and torch.equal(path.points[:, -1], end)
        judged = Objective(space.log_prob, units=space.units).terms(path.points)
        torch.testing.assert_close(judged.objective, path.terms.objective, rtol=1e-6, atol=1e-6)
    (points, length), (ours, our_length) = found
    torch.testing.assert_close((ours - offset) / scale, points, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(our_length, length, rtol=1e-3, atol=0)


def test_steady_bounds_do_not_depend_on_the_company_of_a_latent(plain):
    _, prior = plain
    z = latents(12)
    together = prior.steady_log_prob(z.reshape(3, 4, DIM), 5, seed=1)
    alone = torch.stack([prior.steady_log_prob(row[None], 5, seed=1)[0] for row in z])
    torch.testing.assert_close(together.flatten(), alone, rtol=1e-9, atol=1e-9)
    if prior.density == "lower_bound":
        assert not torch.equal(prior.steady_log_prob(z, 5, seed=2), alone)
        many = torch.stack([prior.log_prob(z, 5, generator=stream(k)) for k in range(200)])
        steady = torch.stack([prior.steady_log_prob(z, 5, seed=k) for k in range(200)])
        error = ((many.var(0) + steady.var(0)) / 200).sqrt()
        assert ((many.mean(0) - steady.mean(0)).abs() < 4 * error).all()


def test_spreads_are_those_of_draws(plain):
    _, prior = plain
    if isinstance(prior, Hierarchical):
        assert torch.equal(prior.spread(), latents().std(0))
        assert torch.equal(Hierarchical(DIM, 2, **SMALL).spread(), torch.ones(DIM).double())
        return
    drawn = prior.sample(40_000, generator=stream(7)).double().std(0)
    torch.testing.assert_close(prior.spread(), drawn, rtol=0.04, atol=0)


def test_lengths_are_measured_in_units():
    def normal(z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(1)

    start, end = torch.tensor([[-3.0, 0.0]]).double(), torch.tensor([[0.0, 4.0]]).double()
    units = torch.tensor([3.0, 1.0]).double()
    found = likelihood_path(normal, start, end, 2, units=units, iterations=1)
    assert float(found.line.length) == pytest.approx(math.hypot(1, 4))
    for bad, words in (
        (units[:1], r"units must be \(2,\); got \(1,\)"),
        (-units, "positive and finite"),
        (2.0, r"units must be \(2,\); got float"),
    ):
        with pytest.raises(ValueError, match=words):
            likelihood_path(normal, start, end, units=bad)


@pytest.mark.parametrize("kind", ["hierarchical", "ladder"])
def test_two_clusters_are_worth_the_same_at_any_size(kind):
    """Four dimensions, so that nats move by 4 log s."""
    make = stream(4)
    centres = torch.tensor([[1.0, 1, 1, 1], [-1.0, -1, 1, 1]])
    z = centres[torch.randint(2, (600,), generator=make)]
    z = z + 0.1 * torch.randn(600, 4, generator=make)
    values = []
    for s in (1.0, 100.0, 0.01):
        torch.manual_seed(0)
        options = {"width": 32, "depth": 2, "two_stage": TwoStage(steps=60, rate=5e-3)}
        prior = Ladder(4, 2, 4, **options) if kind == "ladder" else Hierarchical(4, 2, **options)
        values.append(prior.fit(s * z).report.log_prob + 4 * math.log(s))
    assert max(values) - min(values) < 0.05
    assert values[0] > -2.0  # N(m, S) of all is worth -1.9


def test_a_wide_dimension_hides_no_narrow_one():
    z = torch.randn(2000, 2, generator=stream()) * torch.tensor([1e4, 1e-4])
    for prior in (Normal(2, "full"), Normal(2, "diagonal"), GaussianMixture(2, 5)):
        prior.fit(z)
        assert prior.density == "exact"
        drawn = prior.sample(20_000, generator=stream(1)).std(0)
        torch.testing.assert_close(drawn, z.std(0), rtol=0.05, atol=0)


def test_priors_stored_without_units_mean_what_they_meant():
    z = latents().float()
    normal = Normal(DIM, "full")
    w, basis = torch.linalg.eigh(z.T.cov())
    normal.load_state_dict({"mean": z.mean(0), "deviations": w.sqrt(), "basis": basis})
    truth = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov()).log_prob(z)
    torch.testing.assert_close(normal.log_prob(z), truth, rtol=1e-4, atol=1e-4)

    ladder = Ladder(DIM, 2, 3, **SMALL).eval()
    before = ladder.log_prob(z, generator=stream())
    old = {k: v for k, v in ladder.state_dict().items() if k not in ("centre", "units")}
    other = Ladder(DIM, 2, 3, **SMALL).fit(z)
    other.load_state_dict(old)
    assert torch.equal(other.log_prob(z, generator=stream()), before)
    nested = nn.ModuleDict({"prior": Ladder(DIM, 2, 3, **SMALL)})
    nested.load_state_dict({f"prior.{k}": v for k, v in old.items()})
    assert torch.equal(nested["prior"].eval().log_prob(z, generator=stream()), before)


def test_masked_dimensions_stay_standard_normal_in_any_fit():
    prior = Hierarchical(DIM, 2, **SMALL)
    prior.mask_unused(torch.tensor([0.1, 0.95, 0.2]))
    prior.fit(latents().float() * 50 + 3)
    mean, std = prior.conditional(torch.randn(5, 2))
    assert (mean[:, 1] == 0).all() and (std[:, 1] == 1).all()
    assert prior.centre[1] == 0 and prior.units[1] == 1 and (prior.units[[0, 2]] > 10).all()


def test_each_dimension_gets_a_deviation_of_its_own_given_t():
    """Two dimensions that t explains, one of noise alone; fitted scales are stored and loaded."""
    z = latents(600).float()
    z[:, 2] = torch.randn(600, generator=stream(5))
    z[:, 1] = z[:, 0] + 0.01 * z[:, 1]
    torch.manual_seed(0)
    options = SMALL | {"two_stage": TwoStage(steps=200, rate=1e-2)}
    prior = Hierarchical(DIM, 1, **options).fit(z)
    tau = prior.scale.value
    assert tau.shape == (DIM,) and tau[2] > 2 * tau[:2].max()
    other = Hierarchical(DIM, 1, **options)
    other.load_state_dict(prior.state_dict())
    values = [p.eval().log_prob(z, generator=stream()) for p in (prior, other)]
    assert torch.equal(*values)
