"""fit_prior and sampling by what it fitted, on runs of several families."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentences import assert_one_sentence
from small_runs import TINY, train_ladder

from fastlatent import fit_prior, sample, train
from fastlatent.commands.experiments import fits
from fastlatent.data import load
from fastlatent.inference.latents import draw, sampling_methods, unit_images
from fastlatent.models.capabilities import draw_latents
from fastlatent.models.glo import project
from fastlatent.noise import Noise, generator
from fastlatent.priors import GaussianMixture, MixtureFit, Normal, cross_entropy
from fastlatent.runs import Run
from fastlatent.runs import fits as runs_fits
from fastlatent.runs.files import read_tensors, write_tensors
from fastlatent.runs.priors import read_prior

SMALL = ("--components", "5", "--width", "16", "--depth", "1", "--steps", "20", "--device", "cpu")


def one_sentence(capsys: pytest.CaptureFixture) -> str:
    """The complaint on stderr."""
    complaint = capsys.readouterr().err
    assert_one_sentence(complaint, "")
    return complaint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "run"
    options = ("vae-digits", "--device", "cpu", "--model.dim", "4", "--model.samples", "1")
    assert train.main([*options, "--epochs", "2", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("kind", ["normal", "gmm", "vamp", "hierarchical", "ladder"])
def test_each_prior_is_fitted_stored_and_sampled(run, kind, capsys):
    assert fit_prior.main([str(run), "--prior", kind, "--images", "200", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "N(0, I)" in out and f"--method {kind}" in out
    assert ("lower bound" in out) == (kind in ("hierarchical", "ladder"))
    model = Run.open(run).model("last")
    prior = read_prior(Run.open(run), "last", kind, model)
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    z = draw(model, kind, 10, generator(0, 0, "test"), prior=prior)
    assert z.shape == (10, 4)
    picture = run / "images" / f"samples-{kind}.png"
    assert sample.main([str(run), "--method", kind, "--images", "9", "--device", "cpu"]) == 0
    first = picture.read_bytes()
    assert sample.main([str(run), "--method", kind, "--images", "9", "--device", "cpu"]) == 0
    assert picture.read_bytes() == first


def test_a_second_fit_takes_the_place_of_the_first(run, capsys):
    words = [str(run), "--prior", "gmm", "--images", "100", *SMALL]
    assert fit_prior.main(words) == 0
    before = read_tensors(run / "prior-gmm.safetensors")
    assert fit_prior.main(words) == 0
    after = read_tensors(run / "prior-gmm.safetensors")
    assert "in place of the one before" in capsys.readouterr().out
    assert after[1] == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in after[0].items())
    assert fit_prior.main([*words, "--seed", "7"]) == 0
    other = read_tensors(run / "prior-gmm.safetensors")[0]
    assert not all(torch.equal(value, before[0][name]) for name, value in other.items())
    assert not list(run.glob(".*.tmp"))


def test_a_fit_is_stored_before_it_is_measured(run, monkeypatch, capsys):
    path, words = run / "prior-gmm.safetensors", [str(run), "--images", "100", *SMALL]
    path.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(fits, "measured", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit_prior.main(words)
    assert path.is_file()
    encoded = runs_fits.latents
    monkeypatch.setattr(
        runs_fits,
        "latents",
        lambda *a: tuple(x[:k] for x, k in zip(encoded(*a), (100, 1), strict=True)),
    )
    capsys.readouterr()
    assert fit_prior.main(words) == 0
    assert "not measured: it takes 2 held-out latents, and there is 1" in capsys.readouterr().out


def test_a_prior_that_is_worse_than_the_standard_normal_or_has_not_converged_says_so(run, capsys):
    trained = fit_prior.Trained(fit_prior.Options(run, device="cpu"))
    test = torch.randn(400, 4, generator=generator(0, 0, "test"))
    for shift, scale in ((0.0, 0.3), (3.0, 1.0)):
        prior = Normal(4, "full").fit(test * scale + shift)
        prior.report = replace(prior.report, converged=shift == 0, iterations=4000)
        fits.report(trained, prior, fit_prior.PriorSettings("normal"), test * scale, 1.0)
        said = capsys.readouterr().out
        assert ("normal is worse than N(0, I) on these latents, by" in said) == (shift > 0)
        assert ("not converged after 4,000 iterations" in said) == (shift > 0)


def test_draws_are_measured_in_the_region_of_the_latents(run, monkeypatch):
    trained = fit_prior.Trained(fit_prior.Options(run, device="cpu"))
    test = torch.nn.functional.normalize(torch.randn(400, 4, generator=generator(0, 0, "test")))
    assert fits.measured(trained, "normal", Normal(4), test).frechet > 0.5
    monkeypatch.setattr(fits, "project", lambda _, z: project(z, "sphere"))
    assert fits.measured(trained, "normal", Normal(4), test).frechet < 0.05


def test_a_prior_that_is_missing_says_what_to_run(run, capsys):
    for path in run.glob("prior-*"):
        path.unlink()
    assert sample.main([str(run), "--method", "ladder", "--device", "cpu"]) == 1
    error = one_sentence(capsys)
    assert f"python -m fastlatent.fit_prior {run} --prior ladder" in error


def test_priors_that_do_not_fit_are_named(run, capsys):
    path = run / "prior-gmm.safetensors"
    words = [str(run), "--method", "gmm", "--images", "4", "--device", "cpu"]
    assert fit_prior.main([str(run), "--images", "100", *SMALL]) == 0
    tensors, marks = read_tensors(path)
    capsys.readouterr()

    write_tensors(path, tensors, marks | {"dim": "7"})
    assert sample.main(words) == 1
    assert "a prior of 7 latents and the model has 4" in one_sentence(capsys)
    write_tensors(path, tensors, marks | {"weights": "0" * 32})
    assert sample.main(words) == 1
    assert "fitted to other weights" in one_sentence(capsys)
    write_tensors(path, tensors, {"weights": marks["weights"]})
    assert sample.main(words) == 1
    assert "lacks its settings" in one_sentence(capsys)
    write_tensors(path, {"other": torch.zeros(2)}, marks)
    assert sample.main(words) == 1
    assert "does not fit" in one_sentence(capsys)
    path.write_bytes(path.read_bytes()[:30])
    assert sample.main(words) == 1
    assert "damaged" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--components", "5000", "--images", "20", "--means"), "at least 5000 latents are needed"),
        (("--components", "0"), "--components must be at least 1"),
        (("--prior", "copula"), "sample and interpolate fit the copula of a run of bits"),
        (("--prior", "beta"), "must be one of"),
    ],
)
def test_bad_options_are_one_sentence(run, words, message, capsys):
    assert fit_prior.main([str(run), "--device", "cpu", *words]) in (1, 2)
    assert message in one_sentence(capsys)


def test_bits_are_told_what_works(tmp_path, capsys):
    out = tmp_path / "bits"
    assert train.main([*TINY, "--steps", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    assert fit_prior.main([str(out), "--device", "cpu"]) == 2
    assert "--method copula or random" in one_sentence(capsys)
    assert sample.main([str(out), "--method", "gmm", "--device", "cpu"]) == 1
    assert "use copula or random" in one_sentence(capsys)


def test_a_ladder_vae_gets_a_prior_of_its_top_layer(tmp_path, capsys):
    run = train_ladder(tmp_path, 1)
    model = Run.open(run).model("last")
    assert model.prior_dim == model.latent_sizes[-1] < model.latent_dim
    assert fit_prior.main([str(run), "--prior", "vamp", "--device", "cpu"]) == 2
    assert "takes normal, gmm, hierarchical or ladder" in one_sentence(capsys)
    assert fit_prior.main([str(run), "--prior", "gmm", "--images", "100", *SMALL]) == 0
    prior = read_prior(Run.open(run), "last", "gmm", model)
    assert prior.dim == model.prior_dim
    top = prior.sample(6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.complete_latents(top, torch.Generator().manual_seed(1))
    torch.testing.assert_close(z[:, -model.prior_dim :], top, rtol=0, atol=1e-5)
    assert sample.main([str(run), "--method", "gmm", "--images", "4", "--device", "cpu"]) == 0


def test_draws_and_means_of_a_posterior_are_told_apart(run):
    model = Run.open(run).model("last")
    test = load(Run.open(run).config.data).test
    images = unit_images(test, torch.arange(20), "cpu")
    with torch.no_grad():
        mean, std = model.gaussian_posterior(images)
        assert torch.equal(draw_latents(model, images), mean)
        draws = torch.stack([draw_latents(model, images, Noise(0, step)) for step in range(400)])
    assert ((draws.mean(0) - mean).abs() < 5 * std / 20).all()
    assert "gmm" in sampling_methods(model)


def test_a_mixture_beats_the_standard_normal_on_latents_of_unseen_images(run):
    """The gate: by more than three standard errors, the encoder frozen."""
    model, data = Run.open(run).model("last"), load(Run.open(run).config.data)
    with torch.no_grad():
        train_posterior, test_posterior = (
            model.gaussian_posterior(unit_images(split, torch.arange(len(split)), "cpu"))
            for split in (data.train, data.test)
        )
    stream = torch.Generator().manual_seed(0)
    z, held_out = (
        (mean + std * torch.randn((draws, *mean.shape), generator=stream)).flatten(0, 1)
        for (mean, std), draws in ((train_posterior, 3), (test_posterior, 1))
    )
    mixture = GaussianMixture(4, 20, options=MixtureFit(max_iter=60)).fit(z)
    # Of the same latents, so the error is that of the difference.
    gain = mixture.log_prob(held_out) - Normal(4).log_prob(held_out)
    error = gain.std().item() / len(gain) ** 0.5
    assert gain.mean().item() > 3 * error
    assert cross_entropy(mixture, held_out).value < cross_entropy(Normal(4), held_out).value


def test_latents_that_a_model_stores_are_its_own_test_set(run, monkeypatch):
    codes = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(runs_fits, "stored_latents", lambda *_: codes)
    options = fit_prior.Options(run, device="cpu")
    train_codes, held_out = runs_fits.latents(fit_prior.Trained(options), None, False)
    assert (len(train_codes), len(held_out)) == (90, 10)
    together = torch.cat([train_codes, held_out])
    assert torch.equal(together.sort(0).values, codes.sort(0).values)
    monkeypatch.setattr(runs_fits, "ENOUGH", 8)  # a large table is not copied
    for n, count in ((None, 8), (30, 30)):
        parts = runs_fits.latents(fit_prior.Trained(options), n, False)
        assert (len(parts[0]), len(parts[1])) == (count, 8)
