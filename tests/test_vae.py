"""The VAE, its spectrally normalised layers, and the variance that is fitted after training."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from memory import allocated
from safetensors.torch import load_file
from scipy.optimize import minimize
from small_runs import TINY_VAE
from torch import Tensor, nn

from fastlatent import evaluate, interpolate, reconstruct, sample, train
from fastlatent.data import DataConfig, load
from fastlatent.inference.passes import finalise, measure_loss
from fastlatent.metrics import importance_log_likelihood
from fastlatent.models import VAE, LBAEConfig, LVAEConfig, VAEConfig, build
from fastlatent.models.capabilities import geometric_decoder
from fastlatent.models.precision import (
    PrecisionNet,
    cluster,
    fit_weights,
    gaussian_nll,
    spreads,
)
from fastlatent.models.spectral import SpectralBlock
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS
from fastlatent.runs import Run, read_metrics
from fastlatent.training import Learner

SMALL = VAEConfig(image_shape=(2, 8, 12), dim=3)


def images(shape: tuple[int, ...], n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n), dtype=dtype)


def count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def settled(model: VAE, steps: int = 3) -> VAE:
    """The model with statistics and singular vectors of a few training passes, in evaluation."""
    model.train()
    with torch.no_grad():
        for step in range(steps):
            model(images(model.image_shape, 6).to(next(model.parameters())), noise=Noise(1, step))
    return model.eval()


def test_sizes_are_those_of_the_published_model() -> None:
    model = build(VAEConfig(), 0)
    assert count(model.encoder) == 47_314
    # Beside the published decoder's tensors, whether the variance is fitted.
    assert count(model.decoder) + count(model.precision) == 97_668 + 1
    features = model.encoder.trunk[:2](torch.zeros(2, 1, 28, 28))
    assert features.shape == (2, 32, 6, 6)
    assert model.encoder.trunk[0](torch.zeros(2, 1, 28, 28)).shape == (2, 32, 13, 13)
    assert model.decoder.stages[0](features).shape == (2, 32, 13, 13)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 8, 12)])
def test_contract(shape: tuple[int, int, int]) -> None:
    model = build(VAEConfig(image_shape=shape, dim=3), 0)
    x = images(shape)
    assert (model.image_shape, model.latent_dim, model.latent_kind) == (shape, 3, "real")
    values = model(x, noise=Noise(0, 0))
    assert set(values) == {"loss", "reconstruction", "kl"}
    assert all(v.shape == (5,) and v.isfinite().all() for v in values.values())
    torch.testing.assert_close(values["loss"], values["reconstruction"] + values["kl"])
    values["loss"].mean().backward()
    before_batch_norm = {
        name
        for name, part in model.named_parameters()
        if name.endswith("layer.bias")  # the mean that follows takes them away again
    }
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert name in before_batch_norm or p.grad.abs().sum() > 0, name
    model.eval()
    z = model.encode(x)
    assert z.shape == (5, 3)
    reconstruction = model.reconstruct(x)
    assert reconstruction.shape == x.shape
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1


def test_loss_is_the_negative_elbo_of_a_gaussian() -> None:
    model = settled(build(SMALL, 0).double())
    x = images(SMALL.image_shape, dtype=torch.float64)
    noise = Noise(3, 1)
    values = model(x, noise=noise)

    mean, log_variance = model.encoder(2 * x - 1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1)
    draws = noise.normal("latent", (4, *mean.shape), dtype=torch.float64)
    likelihoods = []
    for draw in draws:
        pixels = torch.distributions.Normal(
            2 * model.decode(mean + posterior.stddev * draw) - 1, math.sqrt(1.6487)
        )
        likelihoods.append(pixels.log_prob(2 * x - 1).flatten(1).sum(1))
    torch.testing.assert_close(values["kl"], kl)
    torch.testing.assert_close(values["reconstruction"], -torch.stack(likelihoods).mean(0))
    other = model(x, noise=Noise(3, 2))["reconstruction"]
    assert not torch.equal(other, values["reconstruction"])


def test_the_default_variance_is_the_one_that_the_published_program_trains_with() -> None:
    published = 0.5 * 784 * 0.5 + 784 / 2 * math.log(6.283)  # of perfect reconstructions
    ours = 784 / 2 * math.log(2 * math.pi * VAEConfig().fixed_variance)
    assert ours == pytest.approx(published, abs=0.02)


def test_a_target_other_than_the_input() -> None:
    model = settled(build(SMALL, 0))
    x, target = images((2, 8, 12)), images((2, 8, 12)).flip(0)
    got = model(x, target=target, noise=Noise(0, 0))
    assert torch.equal(got["kl"], model(x, noise=Noise(0, 0))["kl"])
    assert not torch.equal(got["reconstruction"], model(x, noise=Noise(0, 0))["reconstruction"])
    with pytest.raises(ValueError, match="VAE: noise must be given"):
        model(x)


LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 5, 4, 2), (7, 3, 10, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 3, 2), (7, 3, 4, 5)),
    "linear": (lambda: nn.Linear(6, 4), (7, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_normalisation_is_that_of_pytorch(kind: str) -> None:
    """In training: a step of the power iteration, and the gradient through the estimate."""
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    block, plain = SpectralBlock(make()).double(), make().double()
    theirs = nn.utils.spectral_norm(plain)
    norm, original = block.spectral, block.layer.weight
    for name in ("u", "v"):
        norm.get_buffer(name).normal_()
        norm.get_buffer(name).div_(norm.get_buffer(name).norm())
        theirs.get_buffer(f"weight_{name}").copy_(norm.get_buffer(name))
    with torch.no_grad():
        theirs.weight_orig.copy_(original)
        theirs.bias.copy_(block.layer.bias)
    x = torch.randn(shape, dtype=torch.float64)
    for training in (True, True, False):
        block.train(training)
        theirs.train(training)
        y, expected = block.linear(x), theirs(x)
        torch.testing.assert_close(y, expected)
        block.zero_grad()
        theirs.zero_grad()
        (y.square().sum() + block.linear(x).sum()).backward()
        (expected.square().sum() + theirs(x).sum()).backward()
        torch.testing.assert_close(original.grad, theirs.weight_orig.grad)
        torch.testing.assert_close(norm.u, theirs.weight_u)
        torch.testing.assert_close(norm.v, theirs.weight_v)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_has_norm_one_from_the_start(kind: str) -> None:
    torch.manual_seed(0)
    block = SpectralBlock(LAYERS[kind][0]()).eval()
    matrix = block.spectral.matrix(block.spectral(block.layer.weight))
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("kind", LAYERS)
def test_folded_blocks_are_plain_and_compute_the_same(kind: str) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    block = SpectralBlock(make()).double()
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(3):
        block(x)
    nn.init.uniform_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    block.eval()
    layer, activation = block.folded()
    assert type(layer) is type(make())
    torch.testing.assert_close(activation(layer(x)), block(x), rtol=1e-12, atol=1e-12)


def test_autocast_keeps_the_norm_in_full_precision() -> None:
    model = build(SMALL, 0)
    with torch.autocast("cpu", torch.bfloat16):
        values = model(images((2, 8, 12)), noise=Noise(0, 0))
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values.values())
    values["loss"].mean().backward()
    block = model.encoder.trunk[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = block.eval().spectral(block.layer.weight)
    assert torch.equal(half, block.spectral(block.layer.weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": (1, 30, 28)}, r"multiples of 4 from 8 up; got \(1, 30, 28\)"),
        ({"image_shape": (1, 4, 4)}, "multiples of 4 from 8 up"),
        ({"image_shape": (28, 28)}, "channels, height and width"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"fixed_variance": 0.0}, "fixed_variance must be positive"),
        ({"variance_floor": math.inf}, "variance_floor must be positive"),
        ({"variance_images": 0}, "variance_images must be at least 1"),
    ],
)
def test_configuration_errors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig(**change)


def test_every_size_that_is_taken_is_given_back() -> None:
    for height in range(4, 45):
        try:
            config = VAEConfig(image_shape=(1, height, 8), dim=1)
        except ValueError:
            assert height % 4 or height < 8
        else:
            model = build(config, 0).eval()
            assert model.reconstruct(images((1, height, 8), 1)).shape == (1, 1, height, 8)


def fitted(model: VAE, n: int = 40) -> VAE:
    with torch.no_grad():
        x = images(model.image_shape, n).to(next(model.parameters()))
        model.eval().finalise(x.split(16), Noise(0, 0))
    return model


@pytest.mark.parametrize("with_variance", [False, True])
def test_geometric_decoder_is_a_frozen_copy(with_variance: bool) -> None:
    model = settled(build(SMALL, 0).double())
    if with_variance:
        fitted(model)
    z = torch.randn(4, 3, dtype=torch.float64)
    decoder = model.geometric_decoder()
    traced = torch.fx.symbolic_trace(decoder)
    results = decoder(z) if with_variance else (decoder(z),)
    torch.testing.assert_close(
        results[0], (2 * model.decode(z) - 1).flatten(1), rtol=1e-12, atol=1e-12
    )
    if with_variance:
        torch.testing.assert_close(results[1], 1 / model.precision(z), rtol=1e-12, atol=0)
        assert all(map(torch.equal, traced(z), results))
    else:
        assert torch.equal(traced(z), results[0])
        assert all(type(layer).__module__.startswith("torch.nn") for layer in decoder)
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    assert all(p.requires_grad for p in model.parameters())
    kept = [result.clone() for result in results]
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(1)
    again = decoder(z) if with_variance else (decoder(z),)
    assert all(map(torch.equal, again, kept))


def test_geometric_decoders_of_other_families() -> None:
    gaussian = build(LBAEConfig(latent="gaussian", width=0.1, dim=4), 0)
    decoder, z = geometric_decoder(gaussian), torch.randn(3, 4)
    assert not decoder.training and gaussian.training
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), 2 * gaussian.eval().decode(z) - 1)
    ladder = LVAEConfig(image_shape=(1, 8, 8), zdims=(2,), downsample=(1,), filters=4, blocks=1)
    model = build(ladder, 0)
    assert geometric_decoder(model)(torch.randn(2, model.latent_dim)).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="needs real ones; these are bits"):
        geometric_decoder(build(LBAEConfig(width=0.1, dim=4), 0))


def test_precisions_follow_the_formula() -> None:
    net = PrecisionNet(2, 3, 4).double()
    torch.manual_seed(0)
    for buffer in (net.basis.centers, net.basis.bandwidths, net.weight):
        buffer.uniform_(0, 2)
    z = torch.randn(5, 2, dtype=torch.float64)
    expected = torch.full((5, 4), 1e-2, dtype=torch.float64)
    for i in range(5):
        for k in range(3):
            square = (z[i] - net.basis.centers[k]).square().sum()
            expected[i] += net.weight[:, k] * math.exp(-net.basis.bandwidths[k] * square)
    torch.testing.assert_close(net(z), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(net.variance()(z), 1 / net(z))
    far = net(torch.full((1, 2), 1e3, dtype=torch.float64))
    torch.testing.assert_close(far, net.floor.expand(1, 4))


def test_the_fit_of_the_weights_reaches_the_optimum() -> None:
    rng = np.random.default_rng(0)
    basis, floor, least = rng.random((200, 3)), 0.01, 1e-3
    spread = 1 / (basis @ [5.0, 0.5, 20.0] + floor)
    errors = rng.chisquare(1, (200, 2)) * spread[:, None] * [1.0, 4.0]

    def objective(weight: np.ndarray, column: int) -> float:
        precision = basis @ weight + floor
        return float(((errors[:, column] + least) * precision - np.log(precision)).sum())

    arguments = (torch.tensor(basis), torch.tensor(errors), torch.tensor([floor]), least)
    paths = [fit_weights(*arguments, steps).numpy() for steps in (0, 1, 2, 5, 20, 2000)]
    for column in range(2):
        values = [objective(weight[column], column) for weight in paths]
        assert values == sorted(values, reverse=True)
        best = minimize(objective, np.ones(3), args=(column,), bounds=[(0, None)] * 3, tol=1e-12)
        assert values[-1] == pytest.approx(best.fun, abs=1e-3)
        assert all((weight[column] >= 0).all() for weight in paths)


def test_weights_do_not_depend_on_how_many_pixels_are_fitted_at_a_time(monkeypatch) -> None:
    torch.manual_seed(0)
    basis, errors = torch.rand(50, 4).double(), torch.rand(50, 7).double()
    arguments = (basis, errors, torch.tensor([0.01]).double(), 1e-4, 10)
    whole = fit_weights(*arguments)
    monkeypatch.setattr("fastlatent.models.precision.PART_BYTES", 50 * 8 * 2)
    torch.testing.assert_close(fit_weights(*arguments), whole)


def test_errors_in_parts_are_fitted_as_a_whole(monkeypatch) -> None:
    """Also where v(z) of all codes are too many to be kept."""
    torch.manual_seed(0)
    codes, errors = torch.randn(90, 3).double(), torch.rand(90, 7).double()
    found = []
    for given, part, kept in (
        (errors, 1 << 26, 1 << 29),
        (iter(errors.split(40)), 1 << 26, 1 << 29),
        (errors.split(40), 100, 0),
    ):
        monkeypatch.setattr("fastlatent.models.precision.PART_BYTES", part)
        monkeypatch.setattr("fastlatent.models.precision.KEPT_BYTES", kept)
        net = PrecisionNet(3, 12, 7).double()
        net.fit(codes, given, Noise(0, 0), 1e-4, 20)
        found.append((net.weight, net.basis.bandwidths, net(codes)))
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_the_last_fit_needs_memory_for_a_part_only(monkeypatch) -> None:
    """Differences of all codes from all centres are 1 GB."""
    torch.manual_seed(0)
    given = lambda codes, count, noise: (codes[:count], torch.arange(len(codes)) % count)  # noqa: E731
    monkeypatch.setattr("fastlatent.models.precision.cluster", given)  # scikit-learn's takes long
    codes, net = torch.randn(2000, 512), PrecisionNet(512, 256, 64)
    errors = (torch.rand(250, 64) for _ in range(8))
    taken = allocated(lambda: (net.fit(codes, errors, Noise(0, 0), 1e-4, 2), net(codes)))
    assert taken < 300 << 20
    assert net.fitted


def test_the_spread_around_centres_follows_the_units_of_latents() -> None:
    torch.manual_seed(0)
    codes = torch.randn(60, 2)
    centers, labels = cluster(codes, 8, Noise(0, 0))
    for scale in (1e-8, 1e8):
        moved = spreads(scale * codes, scale * centers, labels)
        torch.testing.assert_close(moved / scale, spreads(codes, centers, labels))


def test_no_cluster_is_empty() -> None:
    torch.manual_seed(0)
    codes = torch.cat([torch.randn(50, 2) * 0.01 + 5 * torch.randn(1, 2) for _ in range(4)])
    centers, labels = cluster(codes, 16, Noise(0, 0))
    assert centers.shape == (16, 2)
    assert labels.bincount(minlength=16).min() > 0
    for k in range(16):
        torch.testing.assert_close(codes[labels == k].mean(0), centers[k], atol=1e-5, rtol=1e-5)
    again, _ = cluster(codes, 16, Noise(0, 0))
    assert torch.equal(centers, again)
    assert not torch.equal(centers, cluster(codes, 16, Noise(1, 0))[0])
    distance = (codes - centers[labels]).norm(dim=1)
    radii = spreads(codes, centers, labels)
    for k in range(16):
        if (labels == k).sum() > 1:
            assert radii[k].item() == pytest.approx(distance[labels == k].mean().item(), abs=2e-6)


def test_fewer_distinct_codes_than_centres() -> None:
    codes = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    centers, labels = cluster(codes, 8, Noise(0, 0))
    assert len(centers.unique(dim=0)) == 3
    assert spreads(codes, centers, labels).isfinite().all()
    net = PrecisionNet(2, 8, 3)
    net.fit(codes, torch.rand(4, 3), Noise(0, 0), 1e-4, 5)
    assert net(torch.randn(6, 2)).isfinite().all()
    assert net.fitted


def test_weights_average_to_the_likelihood_by_quadrature() -> None:
    model = settled(build(VAEConfig(image_shape=(1, 8, 8), dim=2), 0).double())
    x = images((1, 8, 8), 3, torch.float64)
    side = torch.linspace(-6, 6, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        means = 2 * model.decode(grid) - 1
        pixels = torch.distributions.Normal(means, math.sqrt(1.6487))
        given_z = torch.stack([pixels.log_prob(2 * image - 1).flatten(1).sum(1) for image in x])
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(1)
    log_likelihood = (given_z + prior).logsumexp(1) + 2 * math.log(side[1] - side[0])
    found = importance_log_likelihood(model, x, 5000, batch=5000)
    assert (found.standard_error < 0.05).all()
    off = (found.log_likelihood - log_likelihood) / found.standard_error
    assert (off.abs() < 4).all(), off


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, trained for a moment."""
    out = tmp_path_factory.mktemp("vae") / "run"
    options = ("--data.per-class", "100", "--steps", "120", "--eval-every", "50 steps")
    # With the default variance so small images would tell next to nothing about the latents.
    options += ("--model.fixed-variance", "0.05")
    assert train.main([*TINY_VAE, *options, "--out", str(out)]) == 0
    return out


def test_fitted_variances_beat_the_best_constant_one_on_held_out_images(run: Path) -> None:
    trained = Run.open(run)
    model, data = trained.model("last"), load(trained.config.data)
    assert isinstance(model, VAE)

    def codes_and_errors(split) -> tuple[Tensor, Tensor]:
        x = split.images(torch.arange(len(split))) / 255
        return model.encode(x), (2 * (model.reconstruct(x) - x)).square().flatten(1)

    with torch.no_grad():
        (codes, errors), (held_out, left) = map(codes_and_errors, (data.train, data.test))
        nll = gaussian_nll(left, model.precision(held_out)).mean()
        constant = gaussian_nll(left, torch.full_like(left, 1 / float(left.mean()))).mean()
        assert nll < constant - 10
        logged = [line for line in read_metrics(run) if line["kind"] == "fitted"]
        assert logged[-1]["fitted_reconstruction"] == pytest.approx(float(nll), rel=1e-4)
        # Images paired with the codes of others, the published program's mistake, do worse.
        shuffled = torch.randperm(len(errors), generator=torch.Generator().manual_seed(0))
        model.precision.fit(codes, errors[shuffled], Noise(0, 0), 1e-4, 50)
        assert gaussian_nll(left, model.precision(held_out)).mean() > nll + 3


def test_the_run_holds_the_fit_and_its_checkpoints_do_not(run: Path) -> None:
    for name in ("weights", "best"):
        assert load_file(run / f"{name}.safetensors")["precision.fitted"]
    assert not load_file(run / "state/120/weights.safetensors")["precision.fitted"]
    trained = Run.open(run)
    values = measure_loss(trained.model("last"), load(trained.config.data).test, 100)
    assert set(values) == {"loss", "reconstruction", "kl", "fitted_reconstruction"}
    mean, variance = trained.model("last").geometric_decoder()(torch.zeros(1, 2))
    assert mean.shape == variance.shape == (1, 64)


def test_commands(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert sample.main([str(run), "--images", "4"]) == 0
    assert reconstruct.main([str(run), "--images", "4", "--weights", "best"]) == 0
    assert evaluate.main([str(run), "--images", "20", "--features", "none", "--samples", "50"]) == 0
    said = capsys.readouterr().out
    assert "fitted reconstruction" in said and "log-likelihood, 50 samples" in said
    measured = json.loads((run / "evaluation.json").read_text())["values"]
    assert measured["log_likelihood"]["mean"] > -measured["loss"]["mean"]
    for method in ("linear", "spherical"):
        assert interpolate.main([str(run), "--method", method, "--pairs", "2"]) == 0
    assert (run / "images/interpolation-linear.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--accumulate", "2", "--ema", "0.9"),
        ("--skip", "2", "--data.resident", "stream", "--model.variance-images", "100"),
    ],
    ids=["accumulated, moving average", "streaming, part of the images"],
)
def test_stopped_and_resumed_is_never_interrupted(options: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*TINY_VAE, *options, "--lr-decay", "0.5"]
    assert train.main([*arguments, "--steps", "12", "--out", str(whole)]) == 0
    assert train.main([*arguments, "--steps", "6", "--out", str(broken)]) == 0
    early = load_file(broken / "weights.safetensors")
    assert train.main(["--resume", str(broken), "--steps", "12"]) == 0
    names = [path.relative_to(whole) for path in (whole / "state/12").glob("*.safetensors")]
    for name in [Path("weights.safetensors"), Path("best.safetensors"), *names]:
        ours, theirs = load_file(whole / name), load_file(broken / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    late = load_file(broken / "weights.safetensors")
    assert late["precision.fitted"] and early["precision.fitted"]
    assert not torch.equal(late["precision.weight"], early["precision.weight"])

    assert train.main(["--resume", str(broken)]) == 0
    again = load_file(broken / "weights.safetensors")
    assert all(torch.equal(late[key], again[key]) for key in late)


def test_the_learning_rate_falls_after_each_epoch(tmp_path: Path, monkeypatch) -> None:
    rates = []
    learn = Learner.learn

    def noted(self: Learner, step: int, parts: list, plan) -> None:
        learn(self, step, parts, plan)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Learner, "learn", noted)
    options = ("--steps", "12", "--lr", "0.004", "--lr-decay", "0.5")
    assert train.main([*TINY_VAE, *options, "--out", str(tmp_path / "run")]) == 0
    assert rates == [0.004] * 5 + [0.002] * 5 + [0.001] * 2
    assert train.main([*TINY_VAE, "--lr-decay", "1.5"]) == 2


def test_data_of_the_published_protocol(data_root: Path) -> None:
    data = load(replace(PRESETS["vae-mnist-2d"].config.data, root=data_root))
    assert data.train.labels.bincount().tolist() == [0, 0, 3000, 0, 3000, 3000, 0, 3000]
    assert set(data.test.labels.tolist()) == {2, 4, 5, 7}
    whole = load(DataConfig(name="mnist", root=data_root)).train
    fives = (whole.labels == 5).nonzero()[:3000, 0]
    chosen = (data.train.labels == 5).nonzero()[:, 0]
    assert torch.equal(data.train.images(chosen), whole.images(fives))
    fashion = load(replace(PRESETS["bigan-fashion"].config.data, root=data_root))
    assert fashion.train.labels.bincount().tolist() == [3000] * 10


def test_part_of_the_images_is_drawn_at_random(run: Path) -> None:
    model = Run.open(run).model("last")
    split = load(Run.open(run).config.data).train
    seen: list[Tensor] = []

    class Noting(VAE):
        @property
        def finalising_images(self) -> int:
            return 70

        def finalise(self, batches, noise) -> None:
            seen.extend(batches)

    noting = Noting(model.config).train()
    finalise(noting, split, 32, seed=1)
    assert [len(part) for part in seen] == [32, 32, 6]
    assert noting.training
    first = split.images(torch.arange(70)) / 255
    assert not torch.equal(torch.cat(seen), first)
    once = list(seen)
    seen.clear()
    finalise(noting, split, 70, seed=1)
    assert torch.equal(torch.cat(once), torch.cat(seen))


def test_compiled_training_does_not_recompile_at_every_step() -> None:
    model = build(SMALL, 0)
    x = images(SMALL.image_shape)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x, noise=Noise(0, 0))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (1, 2):
            model.load_state_dict(state)
            got = compiled(x, noise=Noise(0, step))["loss"]
            model.load_state_dict(state)
            torch.testing.assert_close(got, model(x, noise=Noise(0, step))["loss"])
    torch._dynamo.reset()
