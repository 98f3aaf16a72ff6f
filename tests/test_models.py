"""The model contract and the Latent Bernoulli Autoencoder."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from original_lbae import IMAGE_SHAPE, original_checkpoint
from torch import Tensor

from fastlatent import film
from fastlatent.models import MODELS, LBAEConfig, build
from fastlatent.models.lbae import Decoder, gaussian_kl
from fastlatent.models.published.lbae import convert_original
from fastlatent.nn import ResampleStage, bernoulli_nll, seeded, squared_error
from fastlatent.noise import Noise
from fastlatent.plots import tiles
from fastlatent.presets import PRESETS
from fastlatent.runs import Run

SMALL = {"width": 0.125, "dim": 12}
ARCHITECTURES = ("mnist", "cifar10", "celeba")


def images(shape: tuple[int, ...], n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    make = torch.Generator().manual_seed(n)
    return torch.rand(n, *shape, generator=make, dtype=dtype)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("architecture", "latent", "d", "encoder", "decoder", "entries"),
    [
        ("mnist", "bits", 200, 1_910_792, 572_368, (45, 45)),
        ("cifar10", "bits", 600, 3_550_744, 2_061_248, (45, 45)),
        ("celeba", "bits", 1500, 9_467_804, 9_470_400, (63, 63)),
        ("mnist", "gaussian", 20, 1_255_272, 569_488, (47, 45)),
        ("mnist", "gaussian", 16, 1_222_496, 569_424, (47, 45)),
        ("cifar10", "gaussian", 128, 2_141_376, 1_094_592, (47, 45)),
        ("celeba", "gaussian", 64, 3_846_720, 3_588_544, (65, 63)),
    ],
)
def test_parameter_counts_are_the_published_models(
    architecture, latent, d, encoder, decoder, entries
):
    model = build(LBAEConfig(architecture=architecture, latent=latent, dim=d), seed=0)
    assert (count(model.encoder), count(model.decoder)) == (encoder, decoder)
    assert (len(model.encoder.state_dict()), len(model.decoder.state_dict())) == entries


def test_initial_weights_follow_the_published_recipe():
    model = build(LBAEConfig(), seed=3)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert module.bias is None
            error = 4 * 0.02 / math.sqrt(2 * module.weight.numel())
            assert abs(module.weight.std().item() - 0.02) < error
        elif isinstance(module, torch.nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            assert 0.95 * bound < module.weight.abs().max() <= bound
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def test_seeded_weights_repeat_and_start_with_the_decoder():
    config = LBAEConfig(**SMALL)
    before = torch.get_rng_state()
    first, again, other = build(config, 1), build(config, 1), build(config, 2)
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
    assert not torch.equal(first.encoder.stem.weight, other.encoder.stem.weight)
    with seeded(1):
        decoder = Decoder(config)
    assert all(
        torch.equal(a, b)
        for a, b in zip(decoder.parameters(), first.decoder.parameters(), strict=True)
    )


def test_width_scales_channels_and_the_flattened_map_but_not_the_mnist_bottleneck():
    model = build(LBAEConfig(width=0.25, dim=64), seed=0)
    assert model.encoder.stem.weight.shape == (16, 1, 3, 3)
    assert model.encoder.inner.weight.shape == (64, 32, 4, 4)
    assert model.encoder.heads["logits"].weight.shape == (64, 64 * 16)
    assert model.decoder.project.weight.shape == (16, 64)
    assert model.decoder.stages[0].conv.weight.shape == (1, 32, 4, 4)


def test_stages_halve_and_double():
    x = images((4, 6, 6))
    assert ResampleStage(4, 7, 0.02)(x).shape == (3, 7, 3, 3)
    assert ResampleStage(4, 7, 0.02, transposed=True)(x).shape == (3, 7, 12, 12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("latent", ["bits", "gaussian"])
def test_contract(architecture, latent):
    config = LBAEConfig(architecture=architecture, latent=latent, kl_weight=3.0, **SMALL)
    model = build(config, seed=0)
    shape = IMAGE_SHAPE[architecture]
    x = images(shape)
    assert model.image_shape == shape
    assert model.latent_dim == 12
    assert model.latent_kind == ("bits" if latent == "bits" else "real")
    unit = "nats per image" if architecture == "mnist" else "squared error per image"
    assert model.loss_unit == unit

    values = model(x, noise=Noise(0, 0))
    bits = latent == "bits"
    assert (
        set(values) == {"loss", "quantization_error"} if bits else {"loss", "reconstruction", "kl"}
    )
    assert all(v.shape == (3,) and v.isfinite().all() for v in values.values())
    values["loss"].mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name

    model.eval()
    z = model.encode(x)
    assert z.shape == (3, 12)
    assert (z.abs() == 1).all() == (latent == "bits")
    reconstruction = model.reconstruct(x)
    assert reconstruction.shape == x.shape
    assert torch.equal(reconstruction, model.decode(z))
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1
    expected = (
        F.binary_cross_entropy(reconstruction, x, reduction="none")
        if architecture == "mnist"
        else (reconstruction - x).square()
    )
    likelihood = model(x)["loss" if bits else "reconstruction"]
    torch.testing.assert_close(likelihood, expected.flatten(1).sum(1))
    one = model(x[1:2])
    torch.testing.assert_close(one["loss"], model(x)["loss"][1:2])


def test_every_family_is_built_from_its_default_configuration():
    for family, (config, model) in MODELS.items():
        assert config().family == family
        built = build(config(), seed=0)
        assert isinstance(built, model)
        assert config().image_shape == built.image_shape


@pytest.mark.parametrize("preset", ["lbae-mnist", "lbae-celeba", "glo-mnist"])
def test_the_images_of_a_film_are_read_as_they_were_written(preset, tmp_path):
    config = replace(PRESETS[preset].config, film_images=5)
    images = torch.randint(256, (5, *config.model.image_shape)).float() / 255
    tiles(images).save(tmp_path / "sheet.png")
    found = film.images_of(Run(tmp_path, config), tmp_path / "sheet.png")
    torch.testing.assert_close(found, images, rtol=0, atol=0)


def test_reconstruction_losses_at_one_half():
    half = torch.full((2, 1, 32, 32), 0.5)
    torch.testing.assert_close(
        bernoulli_nll(torch.zeros_like(half), half), torch.full((2,), 1024 * math.log(2))
    )
    assert torch.equal(squared_error(half, half), torch.zeros(2))
    assert bernoulli_nll(half.bfloat16(), half.bfloat16()).dtype == torch.float32


def test_bits_gradient_passes_straight_through_the_sign_and_through_tanh():
    model = build(LBAEConfig(**SMALL), seed=0).double()
    x = images((1, 32, 32), dtype=torch.float64)
    values = model(x)
    values["loss"].mean().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    t = model.encoder(x)[0].tanh()
    bits = torch.where(t >= 0, 1.0, -1.0).double()
    logits = model.decoder(bits + t - t.detach())
    loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
    loss.backward()
    torch.testing.assert_close(values["loss"].mean(), loss)
    torch.testing.assert_close(values["quantization_error"], (1 - t.abs()).mean(1))
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, msg=name)


def test_bfloat16_autocast_gives_float32_losses():
    for latent in ("bits", "gaussian"):
        model = build(LBAEConfig(latent=latent, **SMALL), seed=0)
        with torch.autocast("cpu", torch.bfloat16):
            values = model(images((1, 32, 32)), noise=Noise(0, 0))
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in values.values())
        values["loss"].mean().backward()


def test_gaussian_kl_closed_form_and_clamp():
    mean = torch.tensor([[0.5, -20.0]], dtype=torch.float64)
    log_variance = torch.tensor([[0.3, -30.0]], dtype=torch.float64)
    first = -(1 + 0.3 - 0.25 - math.exp(0.3)) / 2
    free = first - (1 - 30 - 400 - math.exp(-30)) / 2
    clamped = first - (1 - 10 - 100 - math.exp(-10)) / 2
    assert gaussian_kl(mean, log_variance).item() == pytest.approx(free)
    assert gaussian_kl(mean, log_variance, clamp=10).item() == pytest.approx(clamped)


def test_gaussian_loss_is_reconstruction_plus_weighted_kl():
    model = build(LBAEConfig(latent="gaussian", kl_weight=6.0, **SMALL), seed=0)
    x = images((1, 32, 32))
    with torch.no_grad():
        model.encoder.heads["log_variance"].bias += 50.0
        values = model(x, noise=Noise(0, 4))
    torch.testing.assert_close(values["loss"], values["reconstruction"] + 6.0 / 12 * values["kl"])
    assert values["kl"].max() < 12 * (100 + math.exp(10))
    with torch.no_grad():
        assert model.eval()(x)["kl"].max() > 1e15


def test_gaussian_samples_in_training_and_decodes_the_mean_in_evaluation():
    config = LBAEConfig(latent="gaussian", **SMALL)
    model = build(config, seed=0)
    x = images((1, 32, 32))
    a, b, c = (model(x, noise=Noise(0, step))["loss"] for step in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    model.eval()
    mean = bernoulli_nll(model.decoder(model.encode(x)), x)
    torch.testing.assert_close(model(x, noise=Noise(0, 1))["loss"], mean)
    sampling = build(LBAEConfig(latent="gaussian", evaluate_with="sample", **SMALL), 0).eval()
    assert not torch.equal(sampling(x, noise=Noise(0, 1))["loss"], mean)
    with pytest.raises(ValueError, match="noise must be given"):
        sampling(x)
    with pytest.raises(ValueError, match="noise must be given"):
        model.train()(x)


@pytest.mark.parametrize("latent", ["bits", "gaussian"])
def test_compiled_training_does_not_recompile_at_every_step(latent):
    model = build(
        LBAEConfig(latent=latent, corruption="noise", corruption_strength=0.1, **SMALL), 0
    )
    x = images((1, 32, 32))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x, noise=Noise(0, 0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (1, 2):
            got = compiled(x, noise=Noise(0, step))["loss"]
            torch.testing.assert_close(got, model(x, noise=Noise(0, step))["loss"])
    torch._dynamo.reset()


def test_noise_corruption_is_clipped_gaussian():
    config = LBAEConfig(corruption="noise", corruption_strength=0.2, **SMALL)
    model = build(config, 0)
    x = torch.full((20, 1, 32, 32), 0.5)
    seen = model.corrupt(x, Noise(1, 1))
    assert (seen - x).std().item() == pytest.approx(0.2, rel=0.05)
    assert seen.min() >= 0 and seen.max() <= 1
    assert model.corrupt(torch.ones_like(x), Noise(1, 1)).max() == 1
    assert torch.equal(model.eval().corrupt(x, None), x)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_blank_corruption_sets_one_rectangle_of_the_given_area_to_zero(strength):
    config = LBAEConfig(
        architecture="celeba", test_corruption="blank", test_corruption_strength=strength, **SMALL
    )
    model = build(config, 0)
    x = torch.ones(30, 3, 64, 64)
    assert torch.equal(model.corrupt(x, None), x)
    blank = model.eval().corrupt(x, Noise(1, 1)) == 0
    assert blank.float().mean((1, 2, 3)).sub(strength).abs().max() < 0.02
    rows, columns = blank.any(3, keepdim=True), blank.any(2, keepdim=True)
    assert torch.equal(blank, rows & columns)
    edges = (rows[:, :, 1:] != rows[:, :, :-1]).sum(2)
    assert edges.max() <= 2
    if strength == 0.25:
        assert rows[:, 0].flatten(1).int().argmax(1).unique().numel() > 10


def test_corrupted_input_is_encoded_and_the_clean_image_is_the_target():
    config = LBAEConfig(corruption="blank", corruption_strength=1.0, **SMALL)
    model, plain = build(config, 0), build(LBAEConfig(**SMALL), 0)
    x = images((1, 32, 32))
    expected = plain(torch.zeros_like(x), target=x)["loss"]
    torch.testing.assert_close(model(x, noise=Noise(0, 0))["loss"], expected)
    with pytest.raises(ValueError, match="noise must be given"):
        model(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "lenet"},
            "architecture must be one of mnist, cifar10, celeba; got 'lenet'",
        ),
        ({"latent": "binary"}, "latent must be one of bits, gaussian"),
        ({"surrogate": "relu"}, "surrogate must be one of tanh, clip, identity"),
        ({"evaluate_with": "mode"}, "evaluate_with must be one of mean, sample"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"width": 0.0}, "width must be positive"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0"),
        ({"corruption": "blur"}, "corruption must be one of none, noise, blank"),
        ({"test_corruption_strength": -0.1}, "test_corruption_strength must be at least 0"),
        ({"corruption": "blank", "corruption_strength": 1.5}, "must be a fraction, at most 1"),
    ],
)
def test_configuration_errors(change, message):
    with pytest.raises(ValueError, match=message):
        LBAEConfig(**change)


def test_wrong_inputs_are_named():
    model = build(LBAEConfig(**SMALL), 0)
    x = images((1, 32, 32))
    with pytest.raises(ValueError, match=r"x .* of shape \(n, 1, 32, 32\); got \(3, 1, 28, 28\)"):
        model(images((1, 28, 28)))
    with pytest.raises(TypeError, match=r"x must be floating-point images .* got torch\.uint8"):
        model.encode((255 * x).byte())
    with pytest.raises(TypeError, match="got ndarray"):
        model.encode(x.numpy())
    with pytest.raises(ValueError, match=r"target .* got \(3, 3, 32, 32\)"):
        model(x, target=images((3, 32, 32)))
    with pytest.raises(ValueError, match="target must hold 3 images"):
        model(x, target=x[:1])
    with pytest.raises(ValueError, match=r"z .* of shape \(n, 12\); got \(2, 13\)"):
        model.decode(torch.ones(2, 13))
    with pytest.raises(TypeError, match=r"z must be floating-point latents; got torch\.int64"):
        model.decode(torch.ones(2, 12, dtype=torch.long))


def original_reconstruction(checkpoint: dict, x: Tensor) -> Tensor:
    """The published forward pass in evaluation mode, written with plain functions."""

    def act(y: Tensor) -> Tensor:
        return F.leaky_relu(y, 0.02)

    def norm(state: dict, name: str, y: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.batch_norm(y, mean, variance, weight, bias, training=False, eps=1e-5)

    def residual(state: dict, k: int, y: Tensor, convolve) -> Tensor:
        inner = convolve(act(y), state[f"b{k}1.weight"], padding=1)
        inner = convolve(act(norm(state, f"bn{k}1", inner)), state[f"b{k}2.weight"], padding=1)
        return act(norm(state, f"bn{k}2", inner) + y)

    enc, gen = checkpoint["enc"], checkpoint["gen"]
    y = act(norm(enc, "bn0", F.conv2d(x, enc["ec0.weight"], padding=1)))
    for k in (1, 2, 3):
        if f"ec{k}.weight" in enc:
            y = F.conv2d(y, enc[f"ec{k}.weight"], stride=2, padding=1)
            y = residual(enc, k, norm(enc, f"bn{k}", y), F.conv2d)
    y = F.conv2d(y, enc["ec4.weight"], stride=2, padding=1).reshape(len(x), -1)
    if "l0l.weight" in enc:
        t = torch.tanh(y @ enc["l0l.weight"].T + enc["l0l.bias"])
        z = torch.where(t >= 0, 1.0, -1.0)
    else:
        z = y @ enc["l1.weight"].T + enc["l1.bias"]

    y = (z @ gen["l1l.weight"].T + gen["l1l.bias"]).reshape(len(x), -1, 4, 4)
    for k in (1, 2, 3):
        if f"dc{k}.weight" in gen:
            y = F.conv_transpose2d(y, gen[f"dc{k}.weight"], stride=2, padding=1)
            y = residual(gen, k, norm(gen, f"bn{k}", y), F.conv_transpose2d)
    y = F.conv_transpose2d(y, gen["dc4.weight"], stride=2, padding=1)
    y = F.conv_transpose2d(act(norm(gen, "bn4", y)), gen["dc5.weight"], padding=1)
    return y.sigmoid()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("latent", ["bits", "gaussian"])
def test_converted_checkpoints_reconstruct_as_the_original(architecture, latent):
    checkpoint = original_checkpoint(architecture, latent, d=24)
    config, weights = convert_original(checkpoint)
    assert (config.architecture, config.latent, config.dim) == (architecture, latent, 24)
    weight = {"mnist": 10, "cifar10": 128, "celeba": 64}[architecture]
    assert config.kl_weight == (0 if latent == "bits" else weight)
    model = build(config, seed=0).eval()
    model.load_state_dict(weights, strict=True)
    x = images(IMAGE_SHAPE[architecture], n=2)
    with torch.no_grad():
        got, expected = model.reconstruct(x), original_reconstruction(checkpoint, x)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    assert expected.std() > 0.05


def test_converted_weights_are_copies_in_float32():
    checkpoint = original_checkpoint("mnist", "bits", d=8)
    checkpoint["gen"]["dc5.weight"] = checkpoint["gen"]["dc5.weight"].double()
    _, weights = convert_original(checkpoint)
    assert weights["decoder.image.weight"].dtype == torch.float32
    assert weights["encoder.stem_norm.num_batches_tracked"].dtype == torch.int64
    checkpoint["enc"]["ec0.weight"].zero_()
    assert weights["encoder.stem.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("gen"), "entries 'gen' and 'enc'"),
        (lambda c: c.update(enc=[1]), "'enc' must be a state dictionary"),
        (lambda c: c["enc"].update({"ec0.weight": 1}), "enc.ec0.weight must be a tensor; got int"),
        (lambda c: c["enc"].pop("l0l.weight"), r"l0l.weight \(bits\) or l1.weight \(VAE\)"),
        (lambda c: c["enc"].pop("ec0.weight"), "enc must hold ec0.weight"),
        (lambda c: c["enc"].pop("bn12.running_var"), "lacks enc.bn12.running_var"),
        (lambda c: c["gen"].pop("l1l.bias"), "lacks gen.l1l.bias"),
        (lambda c: c["gen"].update(extra=torch.ones(1)), r"gen.extra has no place .* \(1 such"),
        (
            lambda c: c["gen"].update({"dc3.weight": torch.ones(64, 128, 4, 4)}),
            r"gen.dc3.weight must have shape \(128, 64, 4, 4\) in a mnist model .* got \(64, 128",
        ),
        (
            lambda c: c["enc"].update({"l0l.bias": torch.ones(9)}),
            r"enc.l0l.bias must have shape \(8,\)",
        ),
    ],
)
def test_spoiled_checkpoints_are_refused_by_name(spoil, message):
    checkpoint = original_checkpoint("mnist", "bits", d=8)
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message):
        convert_original(checkpoint)
