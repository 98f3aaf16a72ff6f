"""The front door: runs opened, sampled, encoded and kept from Python, in a line each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY_MODELS, untrained_run

import fastlatent
from fastlatent import evaluate, plots, sample
from fastlatent.files.reading import read_json
from fastlatent.jobs.errors import RunError
from fastlatent.models.capabilities import draw_prior
from fastlatent.runs import Run
from fastlatent.runs.trained import TrainedRun


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {preset: untrained_run(root / preset, preset) for preset in TINY_MODELS}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, TrainedRun]:
    return {name: fastlatent.load(path, device="cpu") for name, path in folders.items()}


@pytest.fixture(params=TINY_MODELS)
def run(request: pytest.FixtureRequest, opened: dict[str, TrainedRun]) -> TrainedRun:
    return opened[request.param]


@pytest.fixture
def bits(opened: dict[str, TrainedRun]) -> TrainedRun:
    return opened["lbae-digits"]


@pytest.fixture
def vae(opened: dict[str, TrainedRun]) -> TrainedRun:
    return opened["vae-digits"]


def images_of(run: TrainedRun, n: int = 3) -> torch.Tensor:
    """uint8 (n, c, h, w), test images of the run."""
    return run.data.test.images(torch.arange(n))


def test_a_run_opens_by_text_and_by_path(folders):
    path = folders["vae-digits"]
    by_text, by_path = fastlatent.load(str(path)), fastlatent.load(path)
    assert by_text.path == by_path.path == path
    assert by_text.config == Run.open(path).config and by_text.metrics == []
    assert not by_text.model.training and "vae" in repr(by_text) and "last" in repr(by_text)


@pytest.mark.parametrize(
    ("path", "options", "error", "words"),
    [
        ("nowhere", {}, ValueError, "path must be a run folder"),
        (3, {}, TypeError, "path must name a run folder"),
        (None, {"weights": "first"}, ValueError, "weights must be 'last' or 'best'; got 'first'"),
        (None, {"weights": "best"}, ValueError, "which are 'last'; got 'best'"),
        (None, {"device": "tpu9"}, ValueError, "device must be one"),
        (None, {"device": 0}, TypeError, "device must be such as 'cpu'"),
        (None, {"batch": 0}, ValueError, "batch must be a whole number"),
    ],
)
def test_a_run_that_cannot_be_opened_is_told_in_a_sentence(folders, path, options, error, words):
    with pytest.raises(error, match=f"load: .*{words}"):
        fastlatent.load(folders["vae-digits"] if path is None else path, **options)


def test_samples_are_those_of_the_command(run, tmp_path):
    assert (
        sample.main([str(run.path), "--images", "5", "--folder", str(tmp_path), "--no-quality"])
        == 0
    )
    files = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    drawn = run.sample(5)
    assert drawn.shape == (5, *run.model.image_shape) and drawn.dtype == torch.float32
    assert np.array_equal(np.stack(files), plots.to_bytes(drawn).squeeze(-1))
    assert torch.equal(run.sample(5, run.sampling_methods[0], run.seed), drawn)
    assert not torch.equal(run.sample(5, seed=run.seed + 1), drawn)


def test_methods_and_seeds_are_those_of_the_command(bits, tmp_path):
    words = ["--method", "random", "--seed", "7", "--images", "3", "--no-quality"]
    assert sample.main([str(bits.path), *words, "--folder", str(tmp_path)]) == 0
    files = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    drawn = bits.sample(3, method="random", seed=7)
    assert np.array_equal(np.stack(files), plots.to_bytes(drawn).squeeze(-1))


def test_bits_are_drawn_as_bits(bits):
    assert bits.sampling_methods == ("copula", "random")
    (codes,) = bits.draw_latents(40)
    assert codes.abs().eq(1).all() and codes.shape == (40, 12)
    with pytest.raises(ValueError, match=r"model must have real latents.*copula"):
        draw_prior(bits.model, 4, torch.Generator())
    with pytest.raises(ValueError, match="'prior' does not fit a model with bits latents"):
        bits.sample(4, method="prior")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0,), "n must be"), ((2.5,), "n must be"), ((2, "copula"), "'copula' does not fit"),
     ((2, None, -1), "seed must be"), ((True,), "n must be")],
)  # fmt: skip
def test_wrong_arguments_of_sample(vae, arguments, words):
    with pytest.raises(ValueError, match=words):
        vae.sample(*arguments)


def test_images_in_every_form_have_the_same_latents(run):
    x = images_of(run)
    z = run.encode(x)
    assert z.shape == (3, run.model.latent_dim) and z.device == run.device
    with torch.no_grad():
        torch.testing.assert_close(z, run.model.encode(x.float() / 255))
    same = [x.numpy(), x.float() / 255, (x / 255).double().numpy(), x.permute(0, 2, 3, 1).numpy()]
    same += [x[:, 0], np.flip(np.flip(x.numpy(), 2), 2)]
    for form in same:
        assert torch.equal(run.encode(form), z)
    for one in (x[0], x[0, 0].numpy(), x[:1], x[0].permute(1, 2, 0)):
        torch.testing.assert_close(run.encode(one), z[:1], rtol=0, atol=1e-5)
    assert run.encode(x[:0]).shape == (0, run.model.latent_dim)


def test_reconstructions_are_decoded_latents(run):
    x = images_of(run)
    assert torch.equal(run.reconstruct(x), run.decode(run.encode(x)))
    z = run.encode(x).numpy()
    torch.testing.assert_close(run.decode(z[0]), run.decode(z)[:1], rtol=0, atol=1e-5)


def test_results_may_take_part_in_derivatives(vae):
    z = vae.encode(images_of(vae)).requires_grad_()
    vae.model.decode(z).sum().backward()
    assert z.grad.abs().sum() > 0


def test_batches_are_computed_in_parts(folders):
    run = fastlatent.load(folders["vae-digits"], device="cpu", batch=2)
    seen, decode = [], run.model.decode

    def noting(z):
        seen.append((len(z), torch.is_inference_mode_enabled()))
        return decode(z)

    run.model.decode = noting
    run.sample(5)
    assert seen == [(2, True), (2, True), (1, True)]


def test_uint8_of_0_and_1_alone_is_black_and_white_as_in_files(vae, capsys):
    x = images_of(vae) > 127
    assert torch.equal(vae.encode(x.byte()), vae.encode(x))
    assert "0 and 1 alone is taken as black and white" in capsys.readouterr().out
    assert torch.equal(vae.encode(x), vae.encode(x.float()))


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((3, 9, 9), np.uint8), ValueError, r"x must be images \(1, 28, 28\) or .*got"),
        (np.full((1, 28, 28), 255.0), ValueError, r"floats in \[0, 1\], or uint8 .* to 255"),
        (np.full((1, 28, 28), np.nan), ValueError, "nan"),
        (np.zeros((1, 28, 28), int), TypeError, "got torch.int64"),
        (np.zeros((1, 28, 28), object), TypeError, "array of object"),
        ("digits", TypeError, "as a tensor or a NumPy array; got str"),
    ],
)
def test_wrong_images_are_told_in_a_sentence(vae, x, error, words):
    for call in (vae.encode, vae.reconstruct):
        with pytest.raises(error, match=f"{call.__name__}: x must .*{words}|{words}") as caught:
            call(x)
        assert "\n" not in str(caught.value) and call.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        (torch.zeros(4, 3), ValueError, r"real latents \(2,\) or \(n, 2\); got \(4, 3\)"),
        (torch.tensor([0, torch.inf]), ValueError, "infinite"),
        (torch.ones(2) > 0, TypeError, "got torch.bool"),
        ([0.0, 1.0], TypeError, "got list"),
    ],
)
def test_wrong_latents_are_told_in_a_sentence(vae, z, error, words):
    with pytest.raises(error, match=f"decode: z must be .*{words}"):
        vae.decode(z)


def test_bits_to_decode_are_bits(bits):
    assert torch.equal(bits.decode(np.ones(12, int)), bits.decode(torch.ones(1, 12)))
    with pytest.raises(ValueError, match=r"bits, \+1 and -1, .* got 0.5 among them"):
        bits.decode(torch.full((12,), 0.5))


def test_walks_begin_and_end_at_the_reconstructions(run):
    x = images_of(run)
    walk = run.interpolate(x[0], x[1:], steps=4)
    assert walk.shape == (2, 4, *run.model.image_shape)
    if run.model.latent_kind == "real":  # a copula of few codes may miss bits of the ends
        ends = run.reconstruct(x[[0, 0, 1, 2]])
        torch.testing.assert_close(torch.cat([walk[:, 0], walk[:, -1]]), ends, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "likelihood", "geodesic"])
def test_every_way_to_walk(vae, method):
    x = images_of(vae)
    walk = vae.interpolate(x[0], x[1], method, steps=3)
    assert walk.shape == (1, 3, 1, 28, 28) and walk.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": 2, "b": 3}, "as many images each, or one of them a single image; got 2 and 3"),
        ({"steps": 1}, "steps must be a whole number from 2 up; got 1"),
        ({"steps": 2, "method": "likelihood"}, "steps must be a whole number from 3 up; got 2"),
        ({"method": "copula"}, "'copula' does not fit a model with real latents"),
    ],
)
def test_wrong_walks_are_told_in_a_sentence(vae, changes, words):
    given = {"a": 1, "b": 1} | changes
    ends = [torch.rand(given.pop(name), 1, 28, 28) for name in "ab"]
    with pytest.raises(ValueError, match=words):
        vae.interpolate(*ends, **given)


def test_a_saved_run_is_a_run(run, tmp_path):
    folder = run.save(str(tmp_path / "new" / "run"))
    again = fastlatent.load(folder, device="cpu")
    assert torch.equal(again.sample(3), run.sample(3))
    assert (folder / "codes.safetensors").is_file() == (run.model.latent_kind == "bits")
    assert again.config == run.config
    with pytest.raises(ValueError, match="save: folder must be new or empty"):
        run.save(folder)


def test_other_weights_are_saved_without_what_was_fitted_to_those_before(folders, tmp_path):
    run = fastlatent.load(folders["lbae-digits"], device="cpu")
    run.sample(1)  # counts the codes
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    again = fastlatent.load(run.save(tmp_path / "run"), device="cpu")
    assert torch.equal(next(again.model.parameters()), next(run.model.parameters()))
    assert not (tmp_path / "run" / "codes.safetensors").exists()


def test_a_prior_is_fitted_stored_and_drawn_from(folders):
    run = fastlatent.load(folders["vae-digits"], device="cpu")
    with pytest.raises(RunError, match="no prior 'normal' is fitted"):
        run.sample(2, "normal")
    prior = run.fit_prior("normal", covariance="diagonal", n=30)
    assert prior.dim == 2 and (run.path / "prior-normal.safetensors").is_file()
    assert run.sample(2, "normal").shape == (2, 1, 28, 28)
    drawn = torch.cat(list(run.draw_latents(400, "normal")))
    assert drawn.var(0) == pytest.approx(prior.sample(4000).var(0).tolist(), rel=0.3)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("vae-digits", {"prior": "copula"}, "prior must be one of 'normal', 'gmm'"),
        ("vae-digits", {"widht": 3}, "fit_prior has the unknown key 'widht'"),
        ("vae-digits", {"components": 0}, "components must be at least 1"),
        ("vae-digits", {"n": 0}, "fit_prior: n must be a whole number from 1 up"),
        ("lbae-digits", {}, "holds a model of bits"),
        ("bigan-digits", {"prior": "vamp"}, "encoder gives a Gaussian posterior"),
    ],
)
def test_priors_that_cannot_be_fitted(opened, name, given, words):
    with pytest.raises(ValueError, match=words):
        opened[name].fit_prior(**given)


def test_an_evaluation_is_that_of_the_command(folders, capsys):
    path = folders["vae-digits"]
    found = fastlatent.load(path, device="cpu").evaluate(features="none", samples=3, limit=20)
    assert found["values"].keys() >= {"loss", "kl", "log_likelihood", "pixel_error"}
    assert found["images"] == 20 and found == read_json(path / "evaluation.json")
    words = [str(path), "--features", "none", "--samples", "3", "--images", "20"]
    assert evaluate.main([*words, "--device", "cpu"]) == 0
    assert found == read_json(path / "evaluation.json")


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("vae-digits", {"split": "all"}, "split must be one of test, train; got 'all'"),
        ("vae-digits", {"features": "vgg"}, "features must be one of auto, none, classifier"),
        ("vae-digits", {"limit": 0}, "limit must be a whole number from 1 up"),
        ("vae-digits", {"feature_weights": "x"}, "feature_weights go with features 'inception'"),
        ("lbae-digits", {"samples": 3}, "samples needs a model with a likelihood"),
    ],
)
def test_evaluations_that_cannot_be_made(opened, name, given, words):
    with pytest.raises(ValueError, match=words):
        opened[name].evaluate(**given)
