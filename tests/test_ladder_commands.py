"""The commands on runs of a Ladder VAE, and checkpoints of its authors' program."""

import argparse
import json
import math
import os
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from original_lvae import POSITIONS, Original, original_checkpoint
from PIL import Image
from safetensors.torch import load_file
from sentences import assert_one_sentence
from small_runs import TINY, train_ladder

from fastlatent import convert, evaluate, interpolate, layers, plots, reconstruct, sample, train
from fastlatent.data import load
from fastlatent.estimate import Estimate
from fastlatent.inference.latents import draw, unit_images
from fastlatent.inference.layers import draw_row
from fastlatent.inference.passes import Bound, measure_bound, measure_loss
from fastlatent.metrics import importance_log_likelihood
from fastlatent.models import LadderVAE, LVAEConfig, build
from fastlatent.models.published.lvae import (
    LIKELIHOOD_WORDS,
    convert_original,
    original_settings,
)
from fastlatent.noise import Noise, generator
from fastlatent.plots import to_bytes
from fastlatent.runs import Run
from fastlatent.runs.evaluation.report import Losses


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ladder(tmp_path_factory.mktemp("grey"), 1)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixture = ("--model.likelihood", "discretized_logistic_mixture")
    return train_ladder(tmp_path_factory.mktemp("colour"), 3, *mixture)


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bits") / "run"
    assert train.main([*TINY, "--steps", "1", "--out", str(out)]) == 0
    return out


def ladder_of(run: Path) -> LadderVAE:
    model = Run.open(run).model("last")
    assert isinstance(model, LadderVAE)
    return model


def held_out(run: Path) -> torch.Tensor:
    return unit_images(load(Run.open(run).config.data).test, torch.arange(6), "cpu")


def test_evaluate(colour: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    shown, layer_bars = [], plots.layer_bars

    def noted(*arguments: object) -> Image.Image:
        shown.extend(arguments)
        return layer_bars(*arguments)

    monkeypatch.setattr(plots, "layer_bars", noted)
    assert (
        evaluate.main([str(colour), "--samples", "50", "--batch", "4", "--features", "none"]) == 0
    )
    said = capsys.readouterr().out
    stored = json.loads((colour / "evaluation.json").read_text())
    assert (stored["images"], stored["split"], stored["weights"]) == (6, "test", "last")
    values = stored["values"]
    mean = {name: value["mean"] for name, value in values.items()}
    split, model = load(Run.open(colour).config.data).test, ladder_of(colour)
    assert {**measure_loss(model, split, 4, stored["seed"])} == {
        name: value for name, value in mean.items() if name not in ("log_likelihood", "pixel_error")
    }
    assert mean["elbo"] == pytest.approx(-mean["reconstruction"] - mean["kl"])
    assert mean["kl"] == pytest.approx(mean["kl_layer_0"] + mean["kl_layer_1"])
    assert mean["log_likelihood"] > mean["elbo"]
    for name, sign in (("elbo", -1), ("log_likelihood", -1), ("kl", 1)):
        bits = values[name]["bits_per_dimension"]
        assert bits == pytest.approx(sign * mean[name] / (3 * 8 * 8 * math.log(2)))
        assert f"{mean[name]:.4f}" in said
        assert f"{bits:.4f}" in said
    assert "log-likelihood, 50 samples" in said
    assert np.asarray(Image.open(colour / "images/kl-layers.png")).std() > 10
    of_layers = [values[f"kl_layer_{layer}"] for layer in (0, 1)]
    expected = [[one[name] for one in of_layers] for name in ("mean", "standard_error")]
    assert [list(numbers) for numbers in shown[:2]] == expected
    assert shown[2:] == ["KL of each layer, test split", "nats per image"]


def test_evaluate_gives_standard_errors(grey: Path, capsys: pytest.CaptureFixture) -> None:
    options = ("--split", "train", "--images", "5", "--batch", "5", "--samples", "5", "--seed", "3")
    options += ("--features", "none")
    assert evaluate.main([str(grey), *options]) == 0
    said = capsys.readouterr().out
    # Under a Bernoulli likelihood, grey images have no probability to count in bits.
    assert "bits" not in said
    stored = json.loads((grey / "evaluation.json").read_text())
    assert (stored["images"], stored["seed"]) == (5, 3)
    split, model = load(Run.open(grey).config.data).train, ladder_of(grey)
    x = unit_images(split, split.spread(5), "cpu")
    with torch.no_grad():
        noise = Noise(3, 0).of_images(split.spread(5))
        kl = model(x, noise=noise)["kl"].double()
    value = stored["values"]["kl"]
    assert value["mean"] == pytest.approx(float(kl.mean()))
    assert value["standard_error"] == pytest.approx(float(kl.std() / 5**0.5))

    bound = stored["values"]["log_likelihood"]
    noise = Noise(3, 0).derived("bound")
    found = [  # an image at a time, as the batch of 5 draws has it
        importance_log_likelihood(model, image, 5, batch=5, noise=noise, index=index)
        for image, index in zip(x.split(1), split.spread(5).split(1), strict=True)
    ]
    likelihoods, errors = map(torch.cat, zip(*found, strict=True))
    assert bound["mean"] == pytest.approx(float(likelihoods.mean()))
    assert bound["standard_error"] == pytest.approx(float(likelihoods.std() / 5**0.5))
    assert bound["sampling_error"] == pytest.approx(float(errors.norm() / 5))
    assert bound["dominated_images"] == sum(int(image.dominated.sum()) for image in found)


def test_evaluate_says_in_how_many_images_few_draws_dominate() -> None:
    none = Losses({}, Estimate(0.1, 0.0), Bound(-90.0, 3.0, 0.1, 64, 0), 100, {}, None)
    some = Losses({}, Estimate(0.1, 0.0), Bound(-90.0, 3.0, 2.5, 64, 37), 100, {}, None)
    assert "outweigh" not in "".join(none.lines())
    said = some.lines()
    assert "samples alone gives an error of 2.5000" in said[-2]
    assert "In 37 of 64 images a few samples outweigh all others" in said[-1]
    assert some.values()["log_likelihood"]["dominated_images"] == 37


def test_errors_that_cannot_be_known_are_null(grey: Path, capsys) -> None:
    assert evaluate.main([str(grey), "--images", "1", "--samples", "1", "--features", "none"]) == 0
    said = capsys.readouterr().out
    stored = json.loads((grey / "evaluation.json").read_text())["values"]["log_likelihood"]
    assert stored["standard_error"] is stored["sampling_error"] is None
    assert math.isfinite(stored["mean"])
    assert "Of that error" not in said


def test_evaluate_other_families(bits: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([str(bits), "--images", "20", "--features", "none"]) == 0
    said = capsys.readouterr().out
    assert "quantization error" in said
    assert "bits/dimension" not in said
    assert not (bits / "images/kl-layers.png").exists()
    assert evaluate.main([str(bits), "--samples", "2"]) == 2
    assert_one_sentence(capsys.readouterr().err, "--samples needs a model with a likelihood")
    model, split = Run.open(bits).model("last"), load(Run.open(bits).config.data).test
    with pytest.raises(ValueError, match="LBAE has no importance weights"):
        measure_bound(model, split, 2, 2)


def test_layers_differ_in_one_layer_alone(colour: Path) -> None:
    model = ladder_of(colour)
    for layer in (0, 1):
        row = draw_row(model, layer, 4, Noise(1, 0))
        assert row.shape == (4, 3, 8, 8)
        assert (row[1:] - row[:-1]).abs().amax((1, 2, 3)).min() > 1e-6
        # Once nothing follows from the layer, nothing is left to differ.
        expand = ladder_of(colour)
        for parameter in expand.top_down[layer].expand.parameters():
            torch.nn.init.zeros_(parameter)
        row = draw_row(expand, layer, 4, Noise(1, 0))
        torch.testing.assert_close(row, row[:1].expand_as(row))
    drawn = draw_row(model, 0, 4, Noise(1, 0), "sample")
    torch.testing.assert_close(drawn * 255, (drawn * 255).round())
    assert (drawn - draw_row(model, 0, 4, Noise(1, 0))).abs().max() > 0.1


def test_layers(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "new/pictures"
    assert layers.main([str(grey), "--images", "3", "--folder", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["layer-0.png", "layer-1.png"]
    first = np.asarray(Image.open(folder / "layer-0.png"))
    assert not np.array_equal(first, np.asarray(Image.open(folder / "layer-1.png")))
    assert layers.main([str(grey), "--images", "3", "--layers", "0"]) == 0
    assert np.array_equal(first, np.asarray(Image.open(grey / "images/layer-0.png")))
    assert not (grey / "images/layer-1.png").exists()
    assert layers.main([str(grey), "--images", "3", "--layers", "0", "--pixels", "sample"]) == 0
    assert not np.array_equal(first, np.asarray(Image.open(grey / "images/layer-0.png")))


@pytest.mark.parametrize(
    ("command", "arguments", "code", "complaint"),
    [
        (layers, ["{grey}", "--layers", "2"], 2, "--layers must lie in 0 to 1; got 2"),
        (layers, ["{grey}", "--images", "1000"], 1, "a picture holds at most 40,000 images"),
        (layers, ["{bits}"], 2, "layers needs a Ladder VAE"),
        (evaluate, ["{grey}", "--samples", "0"], 2, "--samples must be at least 1; got 0"),
        (evaluate, ["{grey}", "--images", "0"], 2, "--images must be at least 1; got 0"),
        (sample, ["{grey}", "--method", "copula"], 1, "with real latents; use prior"),
    ],
)
def test_what_is_wrong_is_said(
    command, arguments: list[str], code: int, complaint: str, grey: Path, bits: Path, capsys
) -> None:
    assert command.main([word.format(grey=grey, bits=bits) for word in arguments]) == code
    assert_one_sentence(capsys.readouterr().err, complaint)


def test_samples_come_from_the_learned_prior(grey: Path, tmp_path: Path) -> None:
    model = ladder_of(grey)
    with torch.no_grad():
        mean, log_variance = model.top_down[1].top_prior.chunk(2, 1)
        mean.fill_(3.0)
        log_variance.fill_(-40.0)
        model.top_down[0].prior.weight.zero_()
        model.top_down[0].prior.bias.copy_(torch.tensor([-2.0, -2.0, -40.0, -40.0]))
    z = draw(model, "prior", 5, generator(0, 0, "samples/prior"))
    bottom, top = z.split(model.latent_sizes, 1)
    torch.testing.assert_close(top, torch.full_like(top, 3))
    torch.testing.assert_close(bottom, torch.full_like(bottom, -2))

    pictures = []
    for batch in ("2", "8"):
        path = tmp_path / f"{batch}.png"
        assert sample.main([str(grey), "--images", "9", "--batch", batch, "--out", str(path)]) == 0
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 1


def test_samples_are_drawn_a_part_at_a_time(grey: Path, monkeypatch) -> None:
    model = ladder_of(grey)
    sizes = []
    drawn = LadderVAE.sample_prior

    def note(self: LadderVAE, n: int, noise: Noise):
        sizes.append(n)
        return drawn(self, n, noise)

    monkeypatch.setattr(LadderVAE, "sample_prior", note)
    monkeypatch.setattr("fastlatent.models.lvae.model.PRIOR_PART", 4)
    z = model.draw_prior(10, generator(0, 0, "x"))
    assert sizes == [4, 4, 2]
    assert len(z.unique(dim=0)) == 10
    assert torch.equal(z, model.draw_prior(10, generator(0, 0, "x")))


def test_reconstruct_shows_the_mean_of_the_likelihood(colour: Path, capsys) -> None:
    assert reconstruct.main([str(colour), "--images", "2"]) == 0
    said = capsys.readouterr().out
    assert all(f"kl layer {layer} " in said for layer in (0, 1))
    model, x = ladder_of(colour), held_out(colour)[:2]
    with torch.no_grad():
        passed = model.posterior(model.features(x))
        expected = model.likelihood.mean(passed.features)
        torch.testing.assert_close(model.decode(model.encode(x)), expected)
    picture = np.asarray(Image.open(colour / "images/reconstructions.png")).astype(int)
    top = 8 + 22 * 2
    for k, left in enumerate((8, 8 + 2 * 64 + 6 + 18)):
        tile = picture[top : top + 64 : 8, left + 70 : left + 134 : 8]
        assert abs(tile - to_bytes(expected)[k].astype(int)).max() <= 1


def test_interpolate_between_posterior_means(grey: Path) -> None:
    for method in ("linear", "spherical"):
        options = ("--split", "test", "--from", "0", "--to", "3", "--steps", "3")
        assert interpolate.main([str(grey), "--method", method, *options]) == 0
    picture = np.asarray(Image.open(grey / "images/interpolation-linear.png")).astype(int)
    with torch.no_grad():
        ends = to_bytes(ladder_of(grey).reconstruct(held_out(grey)[[0, 3]])).astype(int)
    top = 8 + 22 * 2
    for end, column in zip(ends, (1, 3), strict=True):
        left = 8 + column * 70
        tile = picture[top : top + 64 : 8, left : left + 64 : 8, :1]
        assert abs(tile - end).max() <= 1


SMALL = Original((1, 9, 7), "bernoulli", (3, 2), (1, 0), filters=4)


def like(original: Original) -> LVAEConfig:
    return LVAEConfig(
        image_shape=original.image,
        likelihood=LIKELIHOOD_WORDS[original.likelihood],
        nonlinearity=original.nonlin,
    )


@pytest.mark.parametrize(("form", "gated", "merge"), [*product(POSITIONS, (0, 1), ("linear", ""))])
def test_every_form_of_checkpoint_is_taken_over(form, gated, merge) -> None:
    residual, batch_norm, dropout = form
    original = replace(
        SMALL,
        residual=residual,
        batch_norm=batch_norm,
        dropout=dropout,
        gated=bool(gated),
        merge=merge or "residual",
        skip=bool(gated),
    )
    checkpoint = original_checkpoint(original)
    config, weights = convert_original(checkpoint, like(original))
    assert (config.zdims, config.downsample, config.blocks) == ((3, 2), (1, 0), 2)
    assert (config.filters, config.gated, config.skip) == (4, bool(gated), bool(gated))
    assert (config.merge, config.batch_norm) == (original.merge, batch_norm)
    assert bool(config.dropout) == dropout
    # Without dropout bacdbac is bacdbacd; without a gate the last dropout leaves no trace.
    if residual == "cabdcabd" or (dropout and (gated or merge != "linear")):
        assert config.residual == residual
    model = build(config, 0).double().eval()
    model.load_state_dict(weights)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for block, name in (
        (model.stem_residual, "first_bottom_up.2.res.block."),
        (model.bottom_up[1][1].residual, "bottom_up_layers.1.net.1.res.block."),
    ):
        with torch.no_grad():
            torch.testing.assert_close(
                block(x), original_block(checkpoint, name, form, x), atol=1e-6, rtol=1e-6
            )


def original_block(
    checkpoint: dict[str, torch.Tensor], prefix: str, form: tuple[str, bool, bool], x: torch.Tensor
) -> torch.Tensor:
    """A residual block as the program makes it: modules one after the other, by their numbers."""
    residual, batch_norm, dropout = form
    kinds = {
        "a": torch.nn.ELU,
        "b": lambda: torch.nn.BatchNorm2d(4),
        "c": lambda: torch.nn.Conv2d(4, 4, 3, padding=1),
        "d": lambda: torch.nn.Dropout2d(0.2),
    }
    absent = "b" * (not batch_norm) + "d" * (not dropout)
    block = torch.nn.Sequential(*(kinds[step]() for step in residual if step not in absent))
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.items()
        if name.startswith(prefix)
    }
    gate = {leaf: state.pop(f"{len(block)}.conv.{leaf}", None) for leaf in ("weight", "bias")}
    block.load_state_dict(state)
    y = block.double().eval()(x)
    if gate["weight"] is not None:
        value, switch = torch.nn.functional.conv2d(y, **gate).chunk(2, 1)
        y = torch.nn.functional.elu(value) * switch.sigmoid()
    return x + y


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("first_bottom_up.0.weight"), "must hold first_bottom_up.0.weight"),
        (lambda c: c.pop("likelihood.parameter_net.bias"), "lacks likelihood.parameter_net.bias"),
        (
            lambda c: c.pop("top_down_layers.0.stochastic.conv_in_p.bias"),
            "lacks top_down_layers.0.stochastic.conv_in_p.bias",
        ),
        (lambda c: c.pop("top_down_layers.1.top_prior_params"), "hold top_down_layers.1.top_prior"),
        (
            lambda c: c.update(step=torch.tensor(5)),
            r"step has no place in a Ladder VAE of 2 layers",
        ),
        (lambda c: c.update(step=5), "step must be a tensor; got int"),
        (
            lambda c: c.pop("first_bottom_up.2.res.block.4.running_mean"),
            "convolutions at 2, 4, 6, batch norms at 0 and blocks their gates at 8, as no layout",
        ),
        (
            lambda c: c.update({"top_down_layers.1.top_prior_params": torch.ones(1, 4, 4, 2)}),
            r"top_prior_params must have shape \(1, 4, 3, 2\) in a .* for 1x9x7 images; got",
        ),
        (
            lambda c: c.update({"likelihood.parameter_net.weight": torch.ones(7, 4, 3, 3)}),
            "parameter_net has 7 outputs, as no likelihood of 1 channels has",
        ),
        (
            lambda c: c.update({"likelihood.parameter_net.weight": torch.ones(2, 4, 3, 3)}),
            "the likelihood could be gaussian or discretized_logistic",
        ),
        (lambda c: c.clear(), "no tensor top_down_layers.0"),
    ],
)
def test_spoiled_checkpoints_are_refused_by_name(spoil, message: str) -> None:
    checkpoint = original_checkpoint(SMALL)
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message):
        convert_original(checkpoint, like(SMALL))
    with pytest.raises(ValueError, match="checkpoint must be a state dictionary"):
        convert_original([checkpoint], like(SMALL))


def test_a_prior_at_zero_was_not_learned() -> None:
    checkpoint = original_checkpoint(SMALL)
    fixed = replace(like(SMALL), learn_top_prior=False)
    assert convert_original(checkpoint, fixed)[0].learn_top_prior
    checkpoint["top_down_layers.1.top_prior_params"].zero_()
    assert not convert_original(checkpoint, fixed)[0].learn_top_prior
    assert convert_original(checkpoint, like(SMALL))[0].learn_top_prior


def test_settings_by_the_words_of_the_program() -> None:
    options = {
        "nonlin": "selu",
        "likelihood": "discr_log",
        "dropout": None,
        "free_bits": 2.0,
        "residual_type": "bacdbac",
        "simple_data_dependent_init": False,
        "batch_size": 7,
    }
    config = original_settings(options, LVAEConfig(merge="linear"))
    assert config == LVAEConfig(
        merge="linear",
        nonlinearity="selu",
        likelihood="discretized_logistic",
        dropout=0.0,
        free_bits=2.0,
        residual="bacdbac",
        data_dependent_init=False,
    )
    with pytest.raises(ValueError, match=r"likelihood must be one of bernoulli, .*; got 'poisson'"):
        original_settings({"likelihood": "poisson"}, LVAEConfig())


MNIST = Original((1, 28, 28), "bernoulli", (2, 3), (1, 2), filters=4)
COLOUR = Original((3, 32, 32), "discr_log_mix", (2, 3), (1, 2), filters=4)


def write_original(folder: Path, original: Original, **options: object) -> Path:
    path = folder / "model_300.pt"
    torch.save(original_checkpoint(original), path)
    if options:
        (folder / "config.pkl").write_bytes(pickle.dumps(argparse.Namespace(**options)))
    return path


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)


@pytest.mark.usefixtures("no_data")
def test_convert_by_what_the_checkpoint_tells(tmp_path: Path, capsys) -> None:
    path, out = write_original(tmp_path, MNIST), tmp_path / "run"
    assert convert.main(["lvae", str(path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "Ladder VAE of 2 layers with a bernoulli likelihood" in said
    assert "elu activations and images of static-mnist by the preset lvae-static-mnist-3" in said
    assert "nothing was measured" in said
    run = Run.open(out)
    assert (run.config.model.zdims, run.config.model.downsample) == ((2, 3), (1, 2))
    stored = load_file(out / "weights.safetensors")
    saved = torch.load(path, weights_only=True)
    assert torch.equal(stored["stem.weight"], saved["first_bottom_up.0.weight"].float())
    assert layers.main([str(out), "--images", "2"]) == 0
    assert convert.main(["lvae", str(path), str(out)]) == 2
    assert_one_sentence(capsys.readouterr().err, "already holds a run")


@pytest.mark.usefixtures("no_data")
def test_convert_with_the_options_of_the_program(tmp_path: Path, capsys) -> None:
    stored = {"nonlin": "relu", "dataset_name": "svhn", "likelihood": "discr_log_mix"}
    path = write_original(tmp_path, COLOUR, **stored, dropout=0.3)
    assert convert.main(["lvae", str(path), str(tmp_path / "run")]) == 0
    assert "relu activations and images of svhn by config.pkl" in capsys.readouterr().out
    model = Run.open(tmp_path / "run").config.model
    assert (model.nonlinearity, model.dropout) == ("relu", 0.3)


@pytest.mark.usefixtures("no_data")
def test_convert_asks_where_several_presets_fit(tmp_path: Path, capsys) -> None:
    path, out = write_original(tmp_path, COLOUR), tmp_path / "run"
    assert convert.main(["lvae", str(path), str(out)]) == 2
    assert_one_sentence(capsys.readouterr().err, "could be of cifar10 or svhn; say which with")
    assert not out.exists()
    assert convert.main(["lvae", str(path), str(out), "--preset", "lvae-svhn-15"]) == 0
    assert Run.open(out).config.data.name == "svhn"


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("original", "options", "preset", "code", "complaint"),
    [
        (MNIST, {}, "lvae-digits", 2, "--preset must be one of lvae-static-mnist-3, "),
        (COLOUR, {"dataset_name": "cifar10"}, "lvae-svhn-15", 2, "--preset must be one of lvae-ci"),
        (COLOUR, {}, "lvae-static-mnist-3", 2, "--preset must be one of lvae-svhn-15, "),
        (MNIST, {"dataset_name": "omniglot"}, None, 1, "1 channels of the data set omniglot"),
        (replace(MNIST, image=(2, 28, 28)), {}, None, 1, "no preset has images of 2 channels, as "),
        (MNIST, {"nonlin": "tanh"}, None, 1, "nonlinearity must be one of relu, leakyrelu"),
        (replace(MNIST, likelihood="gaussian"), {}, None, 1, "gaussian or discretized_logistic"),
        (
            replace(COLOUR, likelihood="bernoulli"),
            {},
            "lvae-cifar10-3",
            1,
            "has a bernoulli likelihood and lvae-cifar10-3 has not",
        ),
        (replace(MNIST, image=(1, 40, 40)), {}, None, 1, "in a Ladder VAE of 2 layers for 1x28x28"),
    ],
)
def test_convert_says_what_does_not_fit(
    original: Original, options, preset, code: int, complaint: str, tmp_path: Path, capsys
) -> None:
    path = write_original(tmp_path, original, **options)
    arguments = [] if preset is None else ["--preset", preset]
    assert convert.main(["lvae", str(path), str(tmp_path / "run"), *arguments]) == code
    assert_one_sentence(capsys.readouterr().err, complaint)
    assert not (tmp_path / "run").exists()


def test_convert_runs_no_code_of_stored_options(tmp_path: Path, capsys) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = write_original(tmp_path, MNIST, nonlin=Evil())
    for content, complaint in (
        (None, "config.pkl cannot be read as options: it asks for posix.mkdir"),
        (b"", "config.pkl cannot be read as options"),
        (pickle.dumps([1]), "config.pkl holds list, not options"),
    ):
        if content is not None:
            (tmp_path / "config.pkl").write_bytes(content)
        assert convert.main(["lvae", str(path), str(tmp_path / "run")]) == 1
        assert_one_sentence(capsys.readouterr().err, complaint)
    assert not (tmp_path / "harm").exists()


def test_presets_are_for_ladders(tmp_path: Path, capsys) -> None:
    path = write_original(tmp_path, MNIST)
    assert convert.main(["lbae", str(path), str(tmp_path / "x"), "--preset", "lbae-mnist"]) == 2
    assert_one_sentence(capsys.readouterr().err, "--preset does not go with lbae")
