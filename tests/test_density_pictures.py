"""Pictures of densities over two latents: where they are bright, and which runs have one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY, small_run

from fastlatent import densities, fit_prior, plots, train
from fastlatent.commands.experiments import density_panels
from fastlatent.commands.experiments.densities import (
    HIGHEST,
    LOWEST,
    OUTLINE,
    Panel,
    aggregate_posterior,
    circles,
    components,
    prior_panel,
    window_of,
)
from fastlatent.commands.experiments.densities import densities as density_picture
from fastlatent.commands.trained import Trained
from fastlatent.inference.latents import unit_images
from fastlatent.models.capabilities import latent_prior
from fastlatent.priors import GaussianMixture, Hierarchical, Ladder, Normal

WINDOW = (-6.0, 6.0, -6.0, 6.0)


def two_components():
    """Weight 0.9 at (3, 0) and 0.1 at (-3, 2), both of deviation 0.5."""
    mixture = GaussianMixture(2, 2)
    means = torch.tensor([[3.0, 0.0], [-3.0, 2.0]])
    return mixture.set(torch.tensor([0.9, 0.1]), means, torch.eye(2).repeat(2, 1, 1) * 2)


def shown_values(panels, monkeypatch, rows=1):
    """What the panels show: (y, x) each, y upwards."""
    seen = []

    def noted(figure):
        seen.extend(axes.images[0] for axes in figure.axes if axes.images)
        return drawn(figure)

    drawn = plots.drawn
    monkeypatch.setattr(plots, "drawn", noted)
    picture = density_picture(panels, WINDOW, rows)
    return picture, [image for image in seen if image.get_array().ndim == 2]


def test_x_is_to_the_right_and_weights_are_true(monkeypatch):
    panel = prior_panel("GMM", two_components(), torch.zeros(1, 2), torch.Generator())
    _, (image,) = shown_values([panel], monkeypatch)
    values = np.asarray(image.get_array())
    assert image.origin == "lower" and tuple(image.get_extent()) == WINDOW
    y, x = np.unravel_index(values.argmax(), values.shape)
    pixel = 12 / values.shape[0]
    assert (x + 0.5) * pixel - 6 == pytest.approx(3, abs=pixel)
    assert (y + 0.5) * pixel - 6 == pytest.approx(0, abs=pixel)
    left = values[:, : values.shape[1] // 2]
    y, x = np.unravel_index(left.argmax(), left.shape)
    assert (x + 0.5) * pixel - 6 == pytest.approx(-3, abs=pixel)
    assert (y + 0.5) * pixel - 6 == pytest.approx(2, abs=pixel)
    assert values.max() - left.max() == pytest.approx(math.log(9), abs=1e-3)
    assert np.exp(values).sum() * pixel**2 == pytest.approx(1, abs=1e-3)
    assert image.get_clim() == (LOWEST, HIGHEST)


def test_the_picture_itself_is_bright_at_the_heavy_component():
    panel = prior_panel("GMM", two_components(), torch.zeros(1, 2), torch.Generator())
    pixels = np.asarray(density_picture([panel], WINDOW).convert("L"), dtype=float)
    height, width = pixels.shape
    inner = pixels[height // 4 : -height // 4, width // 5 : width * 7 // 10]
    middle = inner.shape[1] // 2
    assert inner[:, middle:].max() > inner[:, :middle].max()


def test_aggregate_posterior_is_the_mean_of_posteriors():
    mean = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    std = torch.tensor([[0.5, 0.2], [0.1, 1.0]])
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    each = torch.distributions.Normal(mean, std).log_prob(points[:, None]).sum(2)
    expected = each.logsumexp(1) - math.log(2)
    found = aggregate_posterior("q", mean, std, mean).log_density(points)
    assert found.allclose(expected, rtol=1e-4)


def test_density_of_a_linear_ladder_is_its_closed_form():
    """z = W t + c + tau eps with t ~ N(0, I) is N(c, W W^T + tau^2 I)."""
    prior = Hierarchical(2, 2, width=4, depth=1, scale="fixed", start_scale=0.5)
    layer = torch.nn.Linear(2, 2)
    prior.decoder = torch.nn.Sequential(layer)
    layer.weight.data.copy_(torch.tensor([[1.0, 0.3], [0.0, 0.8]]))
    layer.bias.data.copy_(torch.tensor([0.5, -0.5]))
    panel = prior_panel("p", prior.eval(), torch.zeros(1, 2), torch.Generator().manual_seed(0))
    w = layer.weight.detach()
    truth = torch.distributions.MultivariateNormal(
        layer.bias.detach(), w @ w.T + 0.25 * torch.eye(2)
    )
    points = truth.sample((200,))
    assert (panel.log_density(points) - truth.log_prob(points)).abs().mean() < 0.05
    # Its outline is the image of the circle of two deviations.
    steps = torch.linspace(0, 2 * math.pi, OUTLINE)
    circle = 2 * torch.stack([steps.cos(), steps.sin()], 1)
    assert panel.outlines[0].allclose(circle @ w.T + layer.bias, atol=1e-5)


def test_outlines_lie_at_two_deviations():
    mixture = two_components()
    covariance = torch.tensor([[2.0, 0.8], [0.8, 0.5]])
    factors = torch.linalg.inv(torch.linalg.cholesky(covariance)).mT
    mixture.set(torch.ones(1), torch.tensor([[1.0, -1.0]]), factors[None])
    weights, outlines = components(mixture)
    away = outlines[0] - torch.tensor([1.0, -1.0])
    distance = (away * torch.linalg.solve(covariance, away.T).T).sum(1).sqrt()
    assert distance.allclose(torch.tensor(2.0), rtol=1e-4)
    assert weights.tolist() == [1.0]
    with pytest.raises(ValueError, match="must be of 2 latents; this one is of 3"):
        components(Normal(3))
    with pytest.raises(ValueError, match="this one is of 3"):
        components(Ladder(2, 3, 4, width=4, depth=1))


def test_lines_are_as_wide_as_components_are_heavy(monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "drawn", seen.append)
    panel = prior_panel("GMM", two_components(), torch.randn(50, 2), torch.Generator())
    circles([panel], WINDOW)
    heavy, light = (line.get_linewidth() for line in seen[0].axes[0].lines)
    assert heavy == 3
    assert 0 < light < heavy
    assert len(seen[0].axes[0].collections[0].get_offsets()) == 50


def test_panels_stand_side_by_side():
    panel = prior_panel("Normal", Normal(2), torch.randn(9, 2), torch.Generator())
    one, six = (density_picture([panel] * n, WINDOW) for n in (1, 6))
    assert six.width > 3 * one.width and six.height == one.height
    both = density_picture([panel] * 6, WINDOW, rows=2)
    assert both.width < six.width and both.height > six.height


def test_window_holds_nearly_all_latents():
    dots = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3, 1.0])
    left, right, bottom, top = window_of([dots])
    assert right - left == pytest.approx(top - bottom)
    inside = (dots[:, 0] > left) & (dots[:, 0] < right) & (dots[:, 1] > bottom)
    assert inside.float().mean() > 0.99


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "gmm"
    return small_run(out, "--model.dim", "2", "--model.prior.kind", "gmm")


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of few points, of densities by few draws."""
    monkeypatch.setattr("fastlatent.commands.experiments.densities.SIDE", 40)
    monkeypatch.setattr("fastlatent.commands.experiments.densities.DRAWS", 200)


@pytest.mark.usefixtures("coarse")
def test_command_draws_the_run_and_priors_fitted_to_it(run, tmp_path, capsys):
    assert densities.main([str(run)]) == 0
    sizes = [Image.open(run / "images" / name).size for name in ("densities.png",)]
    assert (run / "images/densities-circles.png").is_file()
    out = tmp_path / "six.png"
    kinds = ["normal", "hierarchical", "gmm", "vamp", "ladder"]
    words = [str(run), "--priors", *kinds, "--steps", "3", "--out", str(out)]
    assert densities.main(words) == 0
    assert Image.open(out).width > 2 * sizes[0][0] - 150
    assert (tmp_path / "six-circles.png").is_file()
    said = capsys.readouterr().out
    assert all(f"fitting {density_panels.NAMES[kind]}" in said for kind in kinds)
    first = out.read_bytes()
    torch.manual_seed(9)
    assert densities.main(words) == 0
    assert out.read_bytes() == first
    assert densities.main([*words, "--seed", "5"]) == 0
    assert out.read_bytes() != first
    assert densities.main([str(run), str(run), "--out", str(out)]) == 0
    assert Image.open(out).height > sizes[0][1]


def test_runs_of_more_latents_are_shown_by_their_inner_ones(tmp_path, capsys):
    run = small_run(tmp_path / "run", "--model.dim", "5")
    assert densities.main([str(run), "--images", "100"]) == 0
    trained = Trained(densities.Options(run, images=100, device="cpu"))
    aggregate, own = density_panels.panels_of(trained, 100)
    assert (aggregate.title, own.title) == (density_panels.AGGREGATE, "LaDDer, inner latents")
    prior = latent_prior(trained.model)
    with torch.no_grad():
        means, _ = prior.posterior(density_panels.posteriors(trained, 100)[0])
        torch.testing.assert_close(own.log_density(means), prior.code.log_prob(means))
        near, far = aggregate.log_density(means), aggregate.log_density(means + 20)
    assert aggregate.dots.shape == (100, 2) and (near > far + 10).all()
    assert densities.main([str(run), "--priors", "gmm"]) == 2
    assert "--priors needs a run of two latents; this has 5" in capsys.readouterr().err
    other = small_run(tmp_path / "other", "--model.dim", "5", "--model.prior.kind", "gmm")
    assert densities.main([str(other)]) == 2
    assert "needs two latents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "1"), "--images must be at least 2"),
        (("--window", "1", "0", "0", "1"), "--window must be left < right"),
        (("--priors", "beta"), "must be one of normal, gmm"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("nowhere", "--stored"), "--stored goes with a single run"),
    ],
)
def test_bad_options_are_one_sentence(run, capsys, options, words):
    assert densities.main([str(run), *options]) == 2
    assert words in capsys.readouterr().err


def test_pseudo_images_begin_at_training_images(run):
    trained = Trained(densities.Options(run, device="cpu"))
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    prior = density_panels.fit(trained, "vamp", z, 1)
    images = unit_images(trained.split("train"), torch.arange(len(trained.split("train"))), "cpu")
    apart = torch.cdist(prior.images.flatten(1), images.flatten(1)).amin(1)
    assert (apart < 1).all()  # noise is 8 apart


@pytest.mark.usefixtures("coarse")
def test_a_vae_of_two_latents_and_its_stored_priors(tmp_path, capsys):
    run = tmp_path / "vae"
    small = ["vae-digits", "--device", "cpu", "--data.per-class", "8", "--steps", "1"]
    small += ["--pictures-every", "never", "--model.dim", "2", "--out", str(run)]
    assert train.main(small) == 0
    assert densities.main([str(run), "--stored"]) == 2
    assert "--stored finds no prior" in capsys.readouterr().err
    assert densities.main([str(run)]) == 0
    alone = Image.open(run / "images/densities.png").width
    for kind in ("normal", "gmm"):
        words = [str(run), "--prior", kind, "--components", "3", "--device", "cpu"]
        assert fit_prior.main(words) == 0
    assert densities.main([str(run), "--stored"]) == 0
    assert Image.open(run / "images/densities.png").width > 1.5 * alone
    assert densities.main([str(run), "--priors", "hierarchical", "--steps", "2"]) == 0


def test_outlines_of_a_normal_are_those_of_its_covariance():
    factor = torch.tensor([[2.0, 0.0], [0.8, 0.5]])
    noise = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    z = noise @ factor.T + torch.tensor([1.0, -1.0])
    for covariance, expected in (("full", z.T.cov()), ("diagonal", z.var(0).diag())):
        _, outlines = components(Normal(2, covariance).fit(z))
        away = outlines[0] - z.mean(0)
        distance = (away * torch.linalg.solve(expected, away.T).T).sum(1).sqrt()
        torch.testing.assert_close(distance, torch.full_like(distance, 2.0), rtol=1e-4, atol=0)


def test_runs_without_gaussian_posteriors_have_no_such_picture(tmp_path, capsys):
    run = tmp_path / "bits"
    assert train.main([*TINY, "--steps", "1", "--out", str(run)]) == 0
    assert densities.main([str(run)]) == 2
    assert "needs Gaussian posteriors of real latents" in capsys.readouterr().err


def test_panel_without_components_draws_dots_alone():
    dots = torch.zeros(1, 2)
    panel = Panel("q", lambda points: points.sum(1), dots, torch.zeros(0), torch.zeros(0, 9, 2))
    assert circles([panel], WINDOW).size[0] > 100
