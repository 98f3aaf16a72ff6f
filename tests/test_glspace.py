"""Checkpoints of the geometry paper's program: names, outputs, the command."""

import shutil
from pathlib import Path

import pytest
import torch
from jacobians import by_autograd
from original_glspace import original_networks
from safetensors.torch import load_file, save_file
from sentences import assert_one_sentence
from torch import Tensor
from trained_decoders import LATENTS, OUTPUTS, bigan, vae

from fastlatent import convert, sample
from fastlatent.data import DataConfig, load
from fastlatent.geometry import as_metric
from fastlatent.models import VAE, BiGAN, build
from fastlatent.models.published.glspace import convert_original
from fastlatent.runs import Run


def state(kind: str, d: int = 5) -> dict[str, dict[str, Tensor]]:
    return {letter: network.state_dict() for letter, network in original_networks(kind, d).items()}


def write(folder: Path, kind: str, name: str, suffix: str = ".pth", d: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    for letter, tensors in state(kind, d).items():
        path = folder / f"{name}_{letter}{suffix}"
        if suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        else:
            torch.save(tensors, path)
    return folder / name


def converted(parts: dict[str, dict[str, Tensor]]) -> VAE | BiGAN:
    config, weights = convert_original(parts)
    model = build(config, 0)
    model.load_state_dict(weights)
    return model.eval()


def in_double(kind: str) -> tuple[dict[str, torch.nn.Module], VAE | BiGAN]:
    """The original's networks and ours with their weights."""
    networks, model = original_networks(kind, 5), converted(state(kind))
    return {letter: network.double() for letter, network in networks.items()}, model.double()


@pytest.fixture
def x() -> Tensor:
    make = torch.Generator().manual_seed(0)
    return torch.rand(6, 1, 28, 28, generator=make, dtype=torch.float64)


@pytest.fixture
def z() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def test_vae_computes_what_the_original_does(x: Tensor, z: Tensor) -> None:
    networks, model = in_double("vae")
    assert (model.config.dim, model.config.image_shape) == (5, (1, 28, 28))
    for ours, theirs in zip(model.encoder(2 * x - 1), networks["E"](2 * x - 1), strict=True):
        torch.testing.assert_close(ours, theirs)
    mean, variance = networks["D"](z)
    torch.testing.assert_close(2 * model.decode(z) - 1, mean)
    decoded = model.geometric_decoder()(z)
    torch.testing.assert_close(decoded[0], mean.flatten(1))
    torch.testing.assert_close(decoded[1], variance)
    assert mean.std() > 0.01 and variance.std() > 0.01


@torch.no_grad()
def test_bigan_computes_what_the_original_does(x: Tensor, z: Tensor) -> None:
    networks, model = in_double("bigan")
    torch.testing.assert_close(model.encode(x), networks["E"](2 * x - 1))
    image = networks["G"](z)
    torch.testing.assert_close(2 * model.decode(z) - 1, image)
    torch.testing.assert_close(model.geometric_decoder()(z), image.flatten(1))
    score = model.discriminator(2 * x - 1, z).sigmoid()
    torch.testing.assert_close(score, networks["D"](2 * x - 1, z)[:, 0])
    assert image.std() > 0.01 and score.std() > 0.01


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("vae", lambda p: p.pop("D"), "parts must be E and D, or G, E and D; got E"),
        ("bigan", lambda p: p.pop("E"), "parts must be .*; got D, G"),
        ("vae", lambda p: p["E"].pop("zmean.weight"), "must hold E.zmean.weight with 2 axes"),
        ("vae", lambda p: p["D"].pop("lin.bias"), "lacks D.lin.bias"),
        ("vae", lambda p: p["D"].update(extra=torch.ones(1)), "D.extra has no place in a vae of 5"),
        ("vae", lambda p: p["D"].update({"rbfNN.centers": torch.ones(7, 5)}), "multiple of 5"),
        ("bigan", lambda p: p["D"].update(lr=3), "D.lr must be a tensor; got int"),
        ("bigan", lambda p: p.update(G=[1]), "G must be a state dictionary"),
        (
            "bigan",
            lambda p: p["G"].update({"lin.weight": torch.ones(1152, 6)}),
            r"G.lin.weight must have shape \(1152, 5\) in a bigan of 5 latents for .* of 28x28",
        ),
        (
            "bigan",
            lambda p: p["D"].pop("zlin.1.Linear.weight_u"),
            "lacks D.zlin.1.Linear.weight_u",
        ),
    ],
)
def test_spoiled_checkpoints_are_refused_by_name(kind: str, spoil, message: str) -> None:
    parts = state(kind)
    spoil(parts)
    with pytest.raises(ValueError, match=message):
        convert_original(parts)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", ["vae", "bigan"])
def test_convert(kind: str, suffix: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    prefix, out = write(tmp_path / "models", kind, "trained", suffix), tmp_path / "run"
    assert convert.main(["glspace", str(prefix), str(out)]) == 0
    said = capsys.readouterr().out
    name = {"vae": "VAE", "bigan": "BiGAN"}[kind]
    assert f"{name} of 5 latents; images of mnist by {kind}-mnist" in said
    assert "nothing was measured" in said
    run = Run.open(out)
    assert (run.config.name, run.config.model.dim) == (f"{kind}-mnist", 5)
    weights = load_file(out / "weights.safetensors")
    decoder = state(kind)["D" if kind == "vae" else "G"]
    assert torch.equal(weights["decoder.project.weight"], decoder["lin.weight"])
    assert sample.main([str(out), "--images", "2"]) == 0
    # The folder, where it holds but one model, or any of the files.
    for number, path in enumerate((prefix.parent, f"{prefix}_E{suffix}")):
        again = tmp_path / f"again-{number}"
        assert convert.main(["glspace", str(path), str(again)]) == 0
        assert load_file(again / "weights.safetensors").keys() == weights.keys()


def test_convert_says_what_does_not_fit(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    folder, out = tmp_path / "models", str(tmp_path / "run")
    write(folder, "vae", "mine")
    write(folder, "bigan", "yours", ".safetensors")

    def refused(code: int, complaint: str, *arguments: str) -> None:
        capsys.readouterr()
        assert convert.main(["glspace", *arguments]) == code
        assert_one_sentence(capsys.readouterr().err, complaint)
        assert not (tmp_path / "run").exists()

    several = f"{folder} holds several models; give {folder}/mine or {folder}/yours"
    refused(2, several, str(folder), out)
    refused(1, "names no model: a VAE is the files PREFIX_E and", str(folder / "ours"), out)
    refused(1, "nowhere: No such file", str(tmp_path / "nowhere/mine"), out)
    preset = ("--preset", "vae-fashion")
    refused(2, "must be one of bigan-digits, bigan-mnist", str(folder / "yours"), out, *preset)
    (folder / "mine_D.pth").write_bytes(b"PK")
    refused(1, "mine_D.pth cannot be read as a checkpoint", str(folder / "mine"), out)
    (folder / "mine_D.pth").unlink()
    refused(1, "names no model", str(folder / "mine"), out)
    fashion = ("--preset", "bigan-fashion")
    assert convert.main(["glspace", str(folder), out, *fashion]) == 0
    assert Run.open(tmp_path / "run").config.data.name == "fashion"


@pytest.fixture(scope="module")
def published(data_root: Path) -> dict[str, VAE | BiGAN]:
    folder = data_root / "generative-latent-space"
    files = {
        "vae": {letter: load_file(folder / f"trainedVAE_{letter}.safetensors") for letter in "ED"},
        "bigan": {
            letter: load_file(folder / f"trainedBiGAN_{letter}.safetensors") for letter in "GED"
        },
    }
    return {kind: converted(parts) for kind, parts in files.items()}


@pytest.fixture(scope="module")
def digits(data_root: Path) -> Tensor:
    """The first 1,000 test images of MNIST."""
    split = load(DataConfig(name="mnist", root=data_root)).test
    return split.images(torch.arange(1000)) / 255


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "output", "name"),
    [("vae", 0, "vae mean"), ("vae", 1, "vae variance"), ("bigan", 0, "bigan")],
)
def test_published_decoders_give_the_known_outputs(
    kind: str, output: int, name: str, dtype: torch.dtype, published
) -> None:
    decoder = published[kind].geometric_decoder().to(dtype)
    for at, (total, squares, pixel) in OUTPUTS[name].items():
        y = decoder(LATENTS[at][None].to(dtype))
        y = (y[output] if isinstance(y, tuple) else y)[0].double()
        assert y.sum().item() == pytest.approx(total, rel=1e-6, abs=1e-3)
        assert y.square().sum().item() == pytest.approx(squares, rel=1e-6, abs=1e-3)
        assert y[406].item() == pytest.approx(pixel, abs=2e-6)


@pytest.mark.parametrize(("kind", "original"), [("vae", vae), ("bigan", bigan)])
def test_metrics_of_converted_decoders_are_those_of_the_originals(
    kind: str, original, published, data_root: Path
) -> None:
    """J^T J of the original's own layers by plain autograd, in float64."""
    z = torch.stack([*LATENTS.values()])
    j = by_autograd(original(data_root), z)
    metric = as_metric(copy_of(published[kind]).double().geometric_decoder(), example=z)
    assert metric.analytic, metric.obstacle
    torch.testing.assert_close(metric.matrix(z), j.mT @ j, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_folded_decoders_differ_by_rounding_alone(published) -> None:
    z = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    for model in published.values():
        decoded = model.geometric_decoder()(z)
        mean = decoded[0] if isinstance(decoded, tuple) else decoded
        plain = (2 * model.decode(z) - 1).flatten(1)
        assert (mean - plain).abs().max() < 2e-5
        twice = copy_of(model).double()
        exact = twice.geometric_decoder()(z.double())
        exact = exact[0] if isinstance(exact, tuple) else exact
        torch.testing.assert_close(
            exact, (2 * twice.decode(z.double()) - 1).flatten(1), atol=1e-12, rtol=1e-10
        )


def copy_of(model: VAE | BiGAN) -> VAE | BiGAN:
    copied = build(model.config, 0)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


@torch.no_grad()
def test_published_encoders_and_discriminator(published, digits: Tensor) -> None:
    vae, bigan = published["vae"], published["bigan"]
    assert isinstance(vae, VAE) and isinstance(bigan, BiGAN)
    first = 2 * digits[:1] - 1
    mean, log_variance = vae.encoder(first)
    for got, expected in (
        (mean, (0.0712, -0.2884, 1.4819, 0.3031)),
        (log_variance, (-0.3103, -1.9936, -2.5524, -0.3236)),
        (bigan.encode(digits[:1]), (-0.5134, 1.4595, -0.4149, 0.9670)),
    ):
        torch.testing.assert_close(got[0, :4], torch.tensor(expected), atol=6e-5, rtol=0)
    score = bigan.discriminator(first, bigan.encode(digits[:1])).sigmoid()
    assert score.item() == pytest.approx(0.52759, abs=6e-6)

    errors = {
        kind: (4 * (model.reconstruct(digits) - digits).square()).mean().item()
        for kind, model in published.items()
    }
    assert errors["vae"] == pytest.approx(0.0450, abs=6e-5)
    assert errors["bigan"] == pytest.approx(0.3602, abs=6e-5)
    scores = bigan.discriminator(2 * digits - 1, bigan.encode(digits)).sigmoid()
    assert scores.mean().item() == pytest.approx(0.5400, abs=6e-5)


def test_convert_the_published_files(data_root: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "TrainedModels"
    shutil.copytree(data_root / "generative-latent-space", folder)
    for name, loss in (("trainedVAE", "nats per image"), ("trainedBiGAN", "mean squared error")):
        out = tmp_path / name
        arguments = ["glspace", str(folder / name), str(out), "--root", str(tmp_path / "nowhere")]
        assert convert.main(arguments) == 0
        assert Run.open(out).model("last").loss_unit == loss
    assert convert.main(["glspace", str(folder), str(tmp_path / "x")]) == 2
    assert "trainedBiGAN or" in capsys.readouterr().err
