"""Feature maps: logistic regression with its closed forms, VGG-19 with weights by either name."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from small_runs import TINY_VAE
from torch import Tensor

from fastlatent import geodesics, train
from fastlatent.commands.experiments.shorter import VGG_DRAWS, feature_name, metric_of
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import DataConfig, Split, load
from fastlatent.geometry import Embedding, as_metric
from fastlatent.models.features import (
    DEVIATION,
    MEAN,
    LogisticRegression,
    VGG19Features,
    fit_logistic_regression,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    data = load(DataConfig(name="digits"))
    return data.train, data.test


def test_logistic_regression_and_its_jacobian() -> None:
    torch.manual_seed(0)
    model = LogisticRegression(12, 4).double()
    assert model.weight.shape == (4, 12) and model.bias.shape == (4,)
    x = torch.rand(5, 1, 3, 4, dtype=torch.float64)
    y = model(x)
    torch.testing.assert_close(y.exp().sum(1), torch.ones(5, dtype=torch.float64))
    logits = x.flatten(1) @ model.weight.T + model.bias
    torch.testing.assert_close(y, logits - logits.exp().sum(1, keepdim=True).log())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(x.flatten(1))
    torch.testing.assert_close(model.jacobian(x), jacobian, rtol=0, atol=1e-14)


def test_training_finds_the_classes(digits: tuple[Split, Split]) -> None:
    train_split, test_split = digits
    model = fit_logistic_regression(train_split, 10, seed=3)
    accuracy = model.accuracy(test_split)
    assert accuracy > 0.9
    found = model(test_split.images(torch.arange(300)) / 127.5 - 1).argmax(1)
    assert accuracy == pytest.approx((found == test_split.labels).float().mean().item())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_training_repeats_by_its_seed(digits: tuple[Split, Split]) -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (
            fit_logistic_regression(digits[1], 10, epochs=2, seed=seed) for seed in (1, 1, 2)
        )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_the_weights_start_from_a_normal_distribution(digits: tuple[Split, Split]) -> None:
    start = fit_logistic_regression(digits[0], 10, epochs=0)
    assert abs(start.weight.mean().item()) < 4 / 25
    assert start.weight.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "got no labels"), (torch.zeros(4, 3, dtype=torch.uint8), "got 3 attributes")],
)
def test_classifiers_need_one_class_for_each_image(labels: Tensor | None, message: str) -> None:
    split = Split("train", torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels)
    with pytest.raises(ValueError, match=f"one class for each image; {message}"):
        fit_logistic_regression(split, 2)
    with pytest.raises(ValueError, match=f"one class for each image; {message}"):
        LogisticRegression(4, 2).accuracy(split)


@pytest.fixture(scope="module")
def vgg() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.vgg19(num_classes=2).eval()


def in_the_words_of_the_program(vgg: torch.nn.Module) -> dict[str, Tensor]:
    convolutions = [layer for layer in vgg.features if isinstance(layer, torch.nn.Conv2d)]
    names = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 4, 4, 4), 1) for i in range(1, n + 1)]
    state = {"mean": torch.rand(3, 1, 1), "std": torch.rand(3, 1, 1) + 0.5}
    for name, layer in zip(names, convolutions, strict=True):
        state |= {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
    return state


@torch.no_grad()
def test_vgg_is_torchvisions_up_to_relu5_2(vgg: torch.nn.Module) -> None:
    x = 2 * torch.rand(2, 3, 28, 28) - 1
    ours = VGG19Features((3, 28, 28)).load(vgg.state_dict())
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (MEAN, DEVIATION))
    expected = vgg.features[:32](((x + 1) / 2 - mean) / deviation).flatten(1)
    assert ours(x.flatten(1)).shape == (2, 512)
    torch.testing.assert_close(ours(x.flatten(1)), expected)
    assert expected.std() > 0
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


@torch.no_grad()
def test_vgg_by_the_names_of_the_program_and_of_grey_images(vgg: torch.nn.Module) -> None:
    state = in_the_words_of_the_program(vgg)
    assert {"conv5_3.weight", "conv5_4.bias"} <= state.keys()
    grey, colour = (VGG19Features((c, 28, 28)).load(state) for c in (1, 3))
    x = 2 * torch.rand(2, 1, 28, 28) - 1
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))
    expected = vgg.features[:32](((x + 1) / 2 - state["mean"]) / state["std"]).flatten(1)
    torch.testing.assert_close(grey(x), expected)


def test_vgg_says_what_does_not_fit(vgg: torch.nn.Module) -> None:
    state = in_the_words_of_the_program(vgg)
    net = VGG19Features((1, 28, 28))
    del state["conv3_2.bias"]
    with pytest.raises(ValueError, match=r"must hold conv3_2.bias of shape \(256,\); got none"):
        net.load(state)
    with pytest.raises(ValueError, match=r"conv1_1.weight of .*; got shape \(2,\)"):
        net.load(state | {"conv1_1.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"conv5_2.weight .* got none"):
        partly = {k: v for k, v in vgg.state_dict().items() if not k.startswith("features.30")}
        net.load(partly)
    for shape in ((2, 28, 28), (1, 12, 28)):
        with pytest.raises(ValueError, match="VGG19Features: image_shape must be 1 or 3 channels"):
            VGG19Features(shape)


def test_a_run_keeps_its_classifier_and_takes_vgg(tmp_path: Path, monkeypatch, capsys, vgg) -> None:
    out = tmp_path / "run"
    arguments = [*TINY_VAE, "--model.image-shape", "1", "16", "16", "--data.size", "16"]
    assert train.main([*arguments, "--steps", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    classifier = Trained(RunOptions(out)).logistic_regression
    assert "logistic regression finds the class of" in capsys.readouterr().out
    stored = load_file(out / "logistic.safetensors")
    assert torch.equal(stored["weight"], classifier.weight)
    assert classifier.weight.shape == (10, 256)

    monkeypatch.setattr("fastlatent.commands.trained.fit_logistic_regression", None)
    again = Trained(RunOptions(out)).logistic_regression
    x = torch.rand(3, 256)
    assert torch.equal(again(x), classifier(x))
    assert capsys.readouterr().out == ""

    for name, write in (("a.safetensors", save_file), ("b.pth", torch.save)):
        path = tmp_path / name
        write({k: v.contiguous() for k, v in in_the_words_of_the_program(vgg).items()}, path)
        assert Trained(RunOptions(out)).vgg_features(path)(x).shape == (3, 512)
    trained = Trained(RunOptions(out))
    metric = metric_of(trained, trained.vgg_features(tmp_path / "a.safetensors"))
    assert isinstance(metric, Embedding)
    assert metric.output(torch.zeros(1, 2)).shape == (1, VGG_DRAWS * 512)
    assert metric.draws == VGG_DRAWS
    assert feature_name("vgg", metric) == "the last map of a VGG-19, 4 draws of noise"
    assert feature_name("vgg", metric_of(trained)) == "the last map of a VGG-19"

    (tmp_path / "b.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        Trained(RunOptions(out)).vgg_features(tmp_path / "b.pth")


@pytest.mark.slow  # thousands of passes through VGG-19
@pytest.mark.parametrize("preset", ["vae-digits", "bigan-digits"])
def test_geodesics_between_features_of_vgg(preset: str, tmp_path: Path, vgg) -> None:
    out, weights = str(tmp_path / "run"), tmp_path / "vgg.safetensors"
    arguments = [preset, *TINY_VAE[1:], "--model.image-shape", "1", "16", "16", "--data.size", "16"]
    assert train.main([*arguments, "--steps", "1", "--out", out]) == 0
    save_file(vgg.state_dict(), weights)
    options = ("--pairs", "1", "--spans", "1", "--max-iterations", "2", "--folder", str(tmp_path))
    assert geodesics.main([out, "--feature", "vgg", "--vgg", str(weights), *options]) == 0
    stored = json.loads((tmp_path / "geodesics-vgg.json").read_text())
    assert stored["draws"] == (VGG_DRAWS if preset.startswith("vae") else None)
    (row,) = csv.DictReader((tmp_path / "geodesics-vgg.csv").open())
    assert 0 < float(row["length"]) <= float(row["straight_length"])


def test_draws_of_noise_give_the_mean_metric_of_random_images() -> None:
    """For linear maps the expectation is known: A^T P A + B^T diag(P) B with P = Phi^T Phi."""
    make = torch.Generator().manual_seed(2)
    a, b, phi = (
        torch.randn(*size, generator=make, dtype=torch.float64) for size in ((7, 3), (7, 3), (4, 7))
    )
    z = 3 + torch.rand(5, 3, generator=make, dtype=torch.float64)
    b = b.abs()  # deviations stay positive

    def decoder(z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ a.mT, (z @ b.mT).square()

    metric = as_metric(decoder, lambda x: x @ phi.mT, z, draws=2000, seed=5)
    assert isinstance(metric, Embedding)
    p = phi.mT @ phi
    expected = a.mT @ p @ a + b.mT @ p.diagonal().diag() @ b
    found = metric.matrix(z)
    torch.testing.assert_close(found, expected.expand(5, 3, 3), rtol=0.1, atol=0.05 * p.norm())
    noise = torch.randn(2000, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    j = phi @ (a + noise[:, :, None] * b)
    exact = (j.mT @ j).mean(0)
    torch.testing.assert_close(found, exact.expand(5, 3, 3), rtol=1e-9, atol=1e-9)
    other = as_metric(decoder, lambda x: x @ phi.mT, z, draws=2000, seed=6).matrix(z)
    assert not torch.equal(found, other)
    with pytest.raises(ValueError, match="as_metric: draws must be at least 1; got 0"):
        as_metric(decoder, lambda x: x, z, draws=0)
