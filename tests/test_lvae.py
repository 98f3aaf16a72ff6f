"""The Ladder VAE: wiring, objective, initialisation, and the bound on its likelihood."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from original_lvae import GOLDEN, images, latents, original_checkpoint
from torch import Tensor, nn

from fastlatent import ops
from fastlatent.metrics import importance_log_likelihood
from fastlatent.models import LadderVAE, LVAEConfig, build
from fastlatent.models.lvae import LayerPass, Normal
from fastlatent.models.lvae.likelihoods import LIKELIHOODS, bins
from fastlatent.models.published.lvae import convert_original
from fastlatent.nn import data_dependent_init_, upsample_twice
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS

SMALL = LVAEConfig(
    image_shape=(1, 8, 8), zdims=(2, 3), downsample=(1, 0), blocks=1, filters=6, free_bits=0.0
)


def binary(model: LadderVAE, n: int = 3) -> Tensor:
    make = torch.Generator().manual_seed(n)
    return torch.randint(2, (n, *model.image_shape), generator=make).to(parameter(model).dtype)


def grey(model: LadderVAE, n: int = 3) -> Tensor:
    """Images of 8 bits."""
    make = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, *model.image_shape), generator=make) / 255


def parameter(model: nn.Module) -> Tensor:
    return next(model.parameters())


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("preset", "blocks", "parameters", "tensors", "latent_dim"),
    [
        ("lvae-static-mnist-3", 4, 3_209_153, 369, 2_688),
        ("lvae-static-mnist-6", 4, 6_008_705, 699, 13_440),
        ("lvae-static-mnist-12", 4, 11_607_809, 1_359, 24_960),
        ("lvae-cifar10-3", 4, 3_269_476, 369, 2_688),
        ("lvae-cifar10-6", 4, 6_069_028, 699, 13_440),
        ("lvae-cifar10-15", 4, 14_467_684, 1_689, 29_568),
        ("lvae-svhn-15", 4, 14_467_684, 1_689, 29_568),
        ("lvae-celeba-20", 4, 19_207_460, 2_243, 184_960),
        ("lvae-multi-dsprites", 4, 11_686_019, 1_363, 65_280),
        ("lvae-static-mnist-3", 2, 2_055_105, 229, 2_688),
        ("lvae-cifar10-3", 2, 2_115_428, 229, 2_688),
    ],
)
def test_parameter_counts_are_the_published_models(preset, blocks, parameters, tensors, latent_dim):
    with torch.device("meta"):
        model = LadderVAE(replace(PRESETS[preset].config.model, blocks=blocks))
    counts = [one.numel() for one in model.parameters()]
    assert (sum(counts), len(counts), model.latent_dim) == (parameters, tensors, latent_dim)


@pytest.mark.parametrize(
    ("height", "width", "padded", "offset"), [(10, 7, (16, 8), (3, 0)), (8, 8, (8, 8), (0, 0))]
)
def test_images_are_padded_to_the_network_and_cropped_back(height, width, padded, offset):
    config = LVAEConfig(
        image_shape=(1, height, width), zdims=(3, 2, 4), downsample=(1, 0, 1), blocks=1, filters=4
    )
    model = build(config, 0).eval()
    assert (config.factor, config.padded_size) == (8, padded)
    sizes = [(padded[0] // shrink, padded[1] // shrink) for shrink in (4, 4, 8)]
    assert [shape[1:] for shape in model.layer_shapes] == sizes
    seen: list[Tensor] = []
    model.stem.register_forward_pre_hook(lambda _, arguments: seen.append(*arguments))
    x = binary(model) + 1
    assert [h.shape[2:] for h in model.features(x)] == sizes
    (inner,) = seen
    assert inner.shape[2:] == padded
    (top, left) = offset
    assert torch.equal(inner[:, :, top : top + height, left : left + width], x)
    assert inner.sum() == x.sum()
    uncropped = torch.arange(padded[0] * padded[1]).view(1, 1, *padded).float()
    model.final, model.config = nn.ModuleList(), replace(config, initial_downscaling=False)
    assert torch.equal(
        model._finish(uncropped, None), uncropped[:, :, top : top + height, left : left + width]
    )


# What the authors' program computes beyond what original_lvae.GOLDEN holds: sums of the features
# before cropping and of their squares, and log p(z) summed over layers, its mean over both images.
FINAL = {
    "A": (-38.542121748, 19.172995463, -52.078325058),
    "B": (-53.393521370, 17.465868164, -31.637724250),
    "C": (312.523257261, 72.020301687, -53.349564613),
    "D": (-2.769722289, 26.078961364, -158.933735389),
    "E": (25.938480511, 27.831789377, -56.774721028),
}


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_golden_values_of_the_authors_program(name: str, double: None) -> None:
    golden = GOLDEN[name]
    original = golden.original
    words = {"discr_log": "discretized_logistic", "discr_log_mix": "discretized_logistic_mixture"}
    like = LVAEConfig(
        image_shape=original.image,
        likelihood=words.get(original.likelihood, original.likelihood),
        nonlinearity=original.nonlin,
    )
    config, weights = convert_original(original_checkpoint(original), like)
    model = LadderVAE(config).eval()
    model.load_state_dict(weights)
    assert sum(one.numel() for one in model.parameters()) == golden.parameters

    def close(value: object, expected: object) -> None:
        value, expected = torch.as_tensor(value), torch.as_tensor(expected)
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)

    final: list[Tensor] = []
    model.final[-1].register_forward_hook(lambda *arguments: final.append(arguments[-1]))
    x = images(original)
    features = model.features(x)
    forced = torch.cat([z.flatten(1) for z in latents(model.layer_shapes)], 1)
    passed = model.top_down_pass(features, latents=forced)
    assert torch.equal(passed.latents, forced)
    close([h.sum() for h in features], golden.features)
    close(passed.kl_sampled.T, golden.kl_sampled)
    close(passed.log_q - passed.log_p, passed.kl_sampled)
    close(passed.kl_analytical.T, golden.kl_analytical)
    maps = torch.stack([values.sum((1, 2)) for values in passed.kl_map])
    close(maps, golden.kl_analytical)
    total, log_p = (final[0].sum(), final[0].square().sum()), passed.log_p.sum(1).mean()
    close([*total, log_p], FINAL[name])
    close(model.likelihood.head(passed.features).sum(), golden.likelihood)
    close(model.likelihood.log_prob(passed.features, x), golden.log_likelihood)


def layer(q: tuple[float, float], p: tuple[float, float], n: int = 1) -> LayerPass:
    """A layer of one latent, by means and log-variances, in float64."""
    noise = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    (mean, log_variance), prior = q, p
    ones = torch.ones_like(noise)
    z = mean + math.exp(log_variance / 2) * noise
    return LayerPass(
        z, noise, Normal(mean * ones, log_variance * ones), Normal(prior[0] * ones, prior[1] * ones)
    )


@pytest.mark.parametrize("p", [(0.0, 0.0), (1.7, -9.3), (-300.0, 4.1)])
def test_no_kl_between_equals(p):
    same = layer(p, p, n=1000)
    assert not same.kl_sampled().any() and not same.kl_analytical().any()


@pytest.mark.parametrize(
    ("q", "kl"), [((1.0, 0.0), 0.5), ((0.0, math.log(4)), 0.5 * (4 - 1 - math.log(4)))]
)
def test_kl_to_the_standard_normal(q, kl):
    drawn = layer(q, (0.0, 0.0), n=1_000_000)
    torch.testing.assert_close(drawn.kl_analytical()[0].item(), kl)
    sampled = drawn.kl_sampled()
    assert abs(sampled.mean() - kl) < 4 * sampled.std() / len(sampled) ** 0.5
    torch.testing.assert_close(sampled, drawn.log_q() - drawn.log_p())


def test_free_bits_act_on_each_image_and_layer():
    model = build(replace(SMALL, zdims=(1, 1, 1), downsample=(0, 0, 0), free_bits=1.5), 0)
    kls = torch.tensor(
        [[-2.791234462, 2.111661610, 0.025935316], [-3.091945832, 1.409105742, -0.003700807]],
        dtype=torch.float64,
        requires_grad=True,
    )
    loss = model._objective(torch.tensor([10.0, 20.0], dtype=torch.float64), kls)
    assert loss.mean().item() == pytest.approx(15 + 4.805830805)
    loss.sum().backward()
    assert torch.equal(kls.grad, (kls > 1.5).double())
    free = build(replace(model.config, free_bits=0.0), 0)
    assert torch.equal(free._objective(torch.zeros(2), kls), kls.sum(1))


def test_a_posterior_within_its_free_bits_gets_no_gradient():
    model = build(replace(SMALL, free_bits=1e6, dropout=0.0), 0)
    values = model(binary(model), noise=Noise(0, 0))
    assert (values["loss"] - values["reconstruction"]).tolist() == pytest.approx([2e6] * 3)
    values["loss"].mean().backward()
    # What is left reaches the posterior of a layer through its sample alone.
    prior = model.top_down[-1].top_prior
    assert not prior.grad.any()
    assert model.top_down[-1].posterior.weight.grad.any()


@pytest.mark.parametrize("free_bits", [0.0, 1.5])
def test_annealing_weighs_the_kl_of_the_objective_alone(free_bits):
    model = build(replace(SMALL, beta_anneal=100, free_bits=free_bits, dropout=0.0), 0)
    x = binary(model)
    for step, beta in ((0, 0.0), (50, 0.5), (100, 1.0), (250, 1.0)):
        model.train().begin_step(step)
        values = model(x, noise=Noise(0, 0))
        kls = torch.stack([values["kl_layer_0"], values["kl_layer_1"]])
        kl = (kls.clamp(min=free_bits) if free_bits else kls).sum(0)
        torch.testing.assert_close(values["loss"], values["reconstruction"] + beta * kl)
        torch.testing.assert_close(values["elbo"], -(values["reconstruction"] + values["kl"]))
        values = model.eval()(x, noise=Noise(0, 0))
        assert torch.equal(values["loss"], -values["elbo"])
    assert "beta" not in model.state_dict()


@pytest.mark.parametrize("analytical", [False, True])
def test_the_elbo_follows_from_the_latents(analytical):
    model = build(replace(SMALL, analytical_kl=analytical), 0).double().eval()
    x, noise = binary(model), Noise(0, 3)
    values = model(x, noise=noise)
    features = model.features(x)
    passed = model.posterior(features, noise)
    again = model.top_down_pass(features, latents=passed.latents)
    log_likelihood = model.likelihood.log_prob(again.features, x)
    elbo = log_likelihood + again.log_p.sum(1) - again.log_q.sum(1)
    torch.testing.assert_close(values["elbo"], elbo)
    torch.testing.assert_close(values["reconstruction"], -log_likelihood)
    torch.testing.assert_close(values["kl"], values["kl_layer_0"] + values["kl_layer_1"])
    torch.testing.assert_close(model.log_weights(features, x, noise), elbo)


def test_the_closed_form_kl_is_for_training_alone():
    model = build(replace(SMALL, analytical_kl=True, dropout=0.0, batch_norm=False), 0)
    x, noise = binary(model), Noise(0, 0)
    passed = model.posterior(model.features(x), noise)
    assert not torch.allclose(passed.kl_analytical, passed.kl_sampled)
    torch.testing.assert_close(model(x, noise=noise)["kl"], passed.kl_analytical.sum(1))
    torch.testing.assert_close(model.eval()(x, noise=noise)["kl"], passed.kl_sampled.sum(1))


@pytest.mark.parametrize("residual", ["cabdcabd", "bacdbac", "bacdbacd"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_layout_trains(residual, batch_norm, dropout):
    config = replace(
        SMALL,
        residual=residual,
        batch_norm=batch_norm,
        dropout=dropout,
        gated=batch_norm,
        merge="residual" if dropout else "linear",
        skip=bool(dropout),
        nonlinearity="selu" if dropout else "leakyrelu",
    )
    model = build(config, 0)
    x = binary(model)
    first, again, other = (model(x, noise=Noise(0, step))["loss"] for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    first.mean().backward()
    for name, one in model.named_parameters():
        assert one.grad is not None and one.grad.isfinite().all(), name
    assert all(one.grad.any() for name, one in model.named_parameters() if name.endswith("weight"))
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert bool(norms) == batch_norm


def test_dropout_blanks_whole_channels_and_keeps_the_mean():
    model = build(replace(SMALL, dropout=0.25), 0)
    x = binary(model, 500)
    masks = torch.stack(list(model._masks(x, Noise(0, 0))))
    assert masks.shape == (model._dropouts, 500, 6, 1, 1)
    assert masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert masks.mean().item() == pytest.approx(1, abs=0.01)
    used = iter(masks)
    features = model._bottom_up(x, used)
    noise = model._normal(500, Noise(0, 0))
    model.top_down_pass(features, noise=noise, masks=used)
    assert next(used, None) is None
    assert model.eval()._masks(x, Noise(0, 0)) is None


def test_upsampling_is_bilinear():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_twice(x), expected)
    assert torch.equal(upsample_twice(x[:, :, :1, :1]), x[:, :, :1, :1].expand(-1, -1, 2, 2))
    weight = torch.randn_like(expected)
    gradients = (
        torch.autograd.grad((y * weight).sum(), x)[0] for y in (upsample_twice(x), expected)
    )
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_data_dependent_initialisation(likelihood):
    model = build(replace(SMALL, likelihood=likelihood, dropout=0.0, filters=16), 0).double()
    x, noise = binary(model, 32), Noise(7, 0)
    variances: dict[str, Tensor] = {}

    def note(name: str):
        def hook(_: nn.Module, __: object, y: Tensor) -> None:
            variances[name] = y.var((0, 2, 3))

        return hook

    convs = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    }
    hooks = [part.register_forward_hook(note(name)) for name, part in convs.items()]
    model.initialise(x, noise)
    assert variances.keys() == convs.keys()
    for hook in hooks:
        hook.remove()
    counters = [value for name, value in model.state_dict().items() if "num_batches" in name]
    assert counters and all(value == 1 for value in counters)
    assert not model.top_down[-1].top_prior.any()

    checked = []

    def check(name: str):
        def hook(_: nn.Module, __: object, y: Tensor) -> None:
            expected = 0.1 * (variances[name] / (variances[name] + 1e-5)).sqrt()
            torch.testing.assert_close(y.std((0, 2, 3)), expected, atol=1e-6, rtol=1e-6)
            assert y.mean((0, 2, 3)).abs().max() < 1e-6
            checked.append(name)

        return hook

    for name, part in convs.items():
        part.register_forward_hook(check(name))
    model(x, noise=noise)
    assert len(checked) == len(convs)


def test_data_dependent_weights_start_from_he_initialisation():
    class Untouched(nn.ConvTranspose2d):
        """Its pass never comes, so the weights stay as they were drawn."""

    part = nn.ModuleDict({"up": Untouched(40, 30, 3), "conv": nn.Conv2d(40, 30, 3)})
    noise = Noise(0, 0)
    data_dependent_init_(part, lambda: None, lambda name, shape: noise.normal(name, shape))
    for conv, fan_in in ((part["up"], 30 * 9), (part["conv"], 40 * 9)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
        assert not conv.bias.any()


def test_data_dependent_weights_need_biases():
    part = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Conv2d(3, 3, 3, bias=False))
    before = part[0].weight.clone()
    with pytest.raises(ValueError, match="the convolution '1' must have a bias"):
        data_dependent_init_(part, lambda: None, lambda _, shape: torch.zeros(shape))
    assert torch.equal(part[0].weight, before)


def deviation(z: Tensor) -> float:
    return (z - z[:1]).abs().max().item()


def test_no_draws_of_the_prior():
    model = build(SMALL, 0).eval()
    drawn = model.draw_prior(0, torch.Generator().manual_seed(0))
    assert drawn.shape == (0, sum(model.latent_sizes))


def test_held_layers_of_the_prior():
    config = replace(SMALL, zdims=(2, 3, 2), downsample=(1, 0, 1))
    model = build(config, 0).eval()
    modes = model.sample_prior(5, Noise(0, 0), mode_layers=range(3))
    assert deviation(modes.features) == 0
    assert all(torch.equal(one.z, one.p.mean) for one in modes.layers)

    held = model.sample_prior(5, Noise(0, 0), mode_layers={0}, constant_layers={2})
    bottom, middle, top = held.layers
    assert deviation(top.z) == 0 and deviation(top.q.mean) == 0 and top.z.abs().max() > 0.1
    assert deviation(middle.z) > 0.1 and deviation(middle.p.mean) < 1e-6
    assert torch.equal(bottom.z, bottom.p.mean) and deviation(bottom.z) > 0
    assert not held.kl_sampled.any()

    features = model.features(binary(model))
    for name in ("mode_layers", "constant_layers"):
        with pytest.raises(ValueError, match=f"{name} must be empty where latents are inferred"):
            model.top_down_pass(features, **{name: [1]})
        with pytest.raises(ValueError, match=rf"{name} must be layers from 0 to 2; got \(3,\)"):
            model.sample_prior(2, Noise(0, 0), **{name: [3]})
    with pytest.raises(ValueError, match="needs bottom_up, latents or noise"):
        model.top_down_pass()
    with pytest.raises(ValueError, match=r"all of as many images; got \[2, 3\]"):
        model.top_down_pass(features, noise=torch.zeros(2, model.latent_dim))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(likelihood, channels):
    config = replace(SMALL, likelihood=likelihood, image_shape=(channels, 8, 8))
    model = build(config, 0)
    x = grey(model)
    values = model(x, noise=Noise(0, 0))
    assert set(values) == {"loss", "elbo", "reconstruction", "kl", "kl_layer_0", "kl_layer_1"}
    assert all(value.shape == (3,) and value.isfinite().all() for value in values.values())
    values["loss"].mean().backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())

    model.eval()
    z = model.encode(x)
    assert z.shape == (3, model.latent_dim) == (3, 2 * 2 * 2 + 3 * 2 * 2)
    means = model.posterior(model.features(x))
    assert torch.equal(z, means.latents) and not means.log_q.isnan().any()
    assert all(torch.equal(one.z, one.q.mean) for one in means.layers)
    image = model.decode(z)
    assert image.shape == x.shape and 0 <= image.min() <= image.max() <= 1
    torch.testing.assert_close(model.reconstruct(x), image)
    torch.testing.assert_close(
        image, model.likelihood.mean(means.features).clamp(0, 1), atol=1e-5, rtol=1e-5
    )
    passed = model.sample_prior(4, Noise(0, 1))
    for drawn in (
        model.likelihood.sample(passed.features, Noise(0, 1)),
        model.likelihood.mode(passed.features),
    ):
        assert drawn.shape == (4, channels, 8, 8)
        if likelihood != "gaussian":
            levels = 1 if likelihood == "bernoulli" else 255
            torch.testing.assert_close((drawn * levels).round() / levels, drawn)
            assert 0 <= drawn.min() <= drawn.max() <= 1
    torch.testing.assert_close(model(x[:1], noise=Noise(0, 0))["kl"].shape, torch.Size([1]))


def test_gaussian_and_logistic_heads_mean_what_they_say():
    torch.manual_seed(0)
    features = torch.randn(200, 6, 8, 8, dtype=torch.float64)
    gaussian = LIKELIHOODS["gaussian"](6, 1).double()
    mean, log_variance = gaussian.head(features).chunk(2, 1)
    drawn = gaussian.sample(features, Noise(0, 0))
    expected = torch.distributions.Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(
        gaussian.log_prob(features, drawn), expected.log_prob(drawn).sum((1, 2, 3))
    )
    score = (drawn - mean) / (log_variance / 2).exp()
    assert abs(score.mean()) < 0.05 and abs(score.std() - 1) < 0.05

    logistic = LIKELIHOODS["discretized_logistic"](6, 1).double()
    raw_mean, raw_scale = logistic.head(features).chunk(2, 1)
    edges = torch.arange(1, 256, dtype=torch.float64) / 256
    cut = ((edges - 0.5 - raw_mean[..., None]) / (raw_scale[..., None] - 1).exp()).sigmoid()
    ends = torch.zeros_like(cut[..., :1])
    table = torch.cat([ends, cut, ends + 1], -1).diff().log()
    x = torch.randint(256, raw_mean.shape)
    log_prob = table.gather(-1, x[..., None]).sum((1, 2, 3, 4))
    torch.testing.assert_close(logistic.log_prob(features, x / 255), log_prob)
    levels = torch.arange(256).double() / 255
    expected = (table.exp() * levels).sum(-1)
    torch.testing.assert_close(logistic.mean(features), expected, atol=0.5 / 255, rtol=0)
    assert torch.equal(logistic.mode(features), levels[table.argmax(-1)])
    drawn = logistic.sample(features.expand(3, -1, -1, -1, -1).flatten(0, 1), Noise(0, 0))
    error = drawn.unflatten(0, (3, -1)).mean(0) - expected
    assert abs(error.mean()) < 4 * error.std() / error.numel() ** 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixture_head_draws_and_shows_what_it_scores(channels):
    torch.manual_seed(0)
    mixture = LIKELIHOODS["discretized_logistic_mixture"](6, channels)
    with torch.no_grad():
        mixture.head.bias.normal_()
        features = torch.randn(1, 6, 4, 4).expand(20_000, -1, -1, -1)
        drawn, mean = mixture.sample(features, Noise(0, 0)), mixture.mean(features[:1])
        error = (drawn.mean(0) - mean[0])[0]  # means of later channels are a plug-in
        assert error.abs().max() < 0.01
        assert abs(error.mean()) < 0.002
        likeliest = mixture.log_prob(features[:1], mixture.mode(features[:1]))
        assert likeliest >= mixture.log_prob(features, drawn).max()
        kept = drawn[:, :, :2].sub(mean[:, :, :2]).flatten(1)
        other = drawn[:, :, 2:].sub(mean[:, :, 2:]).flatten(1)
        assert (kept.T @ other / 20_000).abs().max() < 0.01  # pixels are independent of each other


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_bounded_log_variances(likelihood):
    config = LVAEConfig(
        image_shape=(1, 8, 8), zdims=(2, 2), downsample=(1, 1), blocks=1, filters=4,
        likelihood=likelihood, log_variance_bound=3.0, learn_top_prior=True,
    )  # fmt: skip
    model = build(config, 0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("prior.bias", "posterior.bias", "top_prior", "likelihood.head.bias")):
                value.fill_(50.0)
    found = model.posterior(model.features(binary(model)), Noise(0, 0))
    for layer in found.layers:
        for normal in (layer.q, layer.p):
            torch.testing.assert_close(normal.log_variance, torch.full_like(normal.mean, 3.0))
    small = torch.full((1, 2, 1, 1), 0.1)
    torch.testing.assert_close(Normal.of(small, 3.0).log_variance, small[:, 1:], rtol=1e-3, atol=0)
    if likelihood == "gaussian":
        features = torch.zeros(1, 4, 8, 8)
        mean, log_variance = model.likelihood._moments(features)
        torch.testing.assert_close(mean, torch.full_like(mean, 50.0))
        torch.testing.assert_close(log_variance, torch.full_like(mean, 3.0))
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="log_variance_bound must be above 0, or None"):
            replace(config, log_variance_bound=bad)


def test_bernoulli_likelihood_in_closed_form():
    bernoulli = LIKELIHOODS["bernoulli"](1, 1)
    head, features = bernoulli.head, torch.zeros(2, 1, 28, 28, requires_grad=True)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0, 1, 1] = 1
        head.bias.zero_()
    x = torch.zeros(2, 1, 28, 28)
    nats = bernoulli.log_prob(features, x)
    assert nats.tolist() == pytest.approx([-784 * math.log(2)] * 2)
    for logit in (1e4, -1e4):
        sure = torch.full_like(x, logit, requires_grad=True)
        value = bernoulli.log_prob(sure, x)
        value.sum().backward()
        assert value.isfinite().all() and sure.grad.isfinite().all()
    ordered = torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1, 1)
    assert bernoulli.mode(ordered).flatten().tolist() == [0, 0, 1]
    torch.testing.assert_close(bernoulli.mean(ordered), ordered.sigmoid())
    many = bernoulli.sample(ordered.expand(-1, -1, 100, 100), Noise(0, 0)).mean((1, 2, 3))
    torch.testing.assert_close(many, ordered.sigmoid().flatten(), atol=0.02, rtol=0)


def test_images_off_the_grid_are_refused():
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(bins(x).flatten(), torch.arange(256, dtype=torch.int32))
    assert torch.equal(bins(x.double()), bins(x))
    for value in (-1 / 255, 256 / 255, 0.5, math.nan, math.inf):
        spoiled = x.clone()
        spoiled[0, 0, 3, 3] = value
        with pytest.raises(ValueError, match="x must be 8-bit images k / 255 in \\[0, 1\\]"):
            bins(spoiled)


@pytest.mark.parametrize("likelihood", ["discretized_logistic", "discretized_logistic_mixture"])
def test_images_off_the_grid_are_refused_by_a_compiled_likelihood(likelihood):
    op = f"{likelihood}_log_prob"
    if ops.OPS[op].serving("cpu").implementation != "cpp":
        pytest.skip("values are checked inside the C++ kernel")
    model = LIKELIHOODS[likelihood](6, 1)
    features = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.arange(128).view(2, 1, 8, 8) / 255
    torch._dynamo.reset()
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, x), model.log_prob(features, x))
    for value in (-1 / 255, 256 / 255, 1.5, 1e12, math.nan, -math.inf):
        spoiled = x.clone()
        spoiled[0, 0, 3, 3] = value
        with pytest.raises(ValueError, match=f"{op}: bins must be in 0 to 255"):
            compiled(features, spoiled)


def test_nan_weights_give_nan_and_not_an_error():
    model = build(SMALL, 0).eval()
    with torch.no_grad():
        model.likelihood.head.bias.fill_(math.nan)
    assert model(binary(model), noise=Noise(0, 0))["loss"].isnan().all()


class Conjugate(nn.Module):
    """z ~ N(0, 1), x given z ~ N(z, 1), and q(z | x) = N(shift + slope x, variance)."""

    def __init__(self, shift: float, slope: float, variance: float):
        super().__init__()
        self.shift, self.slope, self.variance = shift, slope, variance
        self.encoded = 0
        self.rows: list[int] = []  # of each call for weights

    def features(self, x: Tensor) -> list[Tensor]:
        self.encoded += len(x)
        return [self.shift + self.slope * x]

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        (mean,) = features
        self.rows.append(len(x))
        q = torch.distributions.Normal(mean, self.variance**0.5)
        z = mean + self.variance**0.5 * noise.normal("z", x.shape, dtype=x.dtype)
        standard = torch.distributions.Normal(torch.zeros_like(z), 1)
        likelihood = torch.distributions.Normal(z, 1).log_prob(x)
        return (standard.log_prob(z) + likelihood - q.log_prob(z)).sum(1)


def evidence(x: Tensor) -> Tensor:
    return torch.distributions.Normal(torch.zeros_like(x), 2**0.5).log_prob(x).sum(1)


@pytest.mark.parametrize(("samples", "batch"), [(1, 4), (5, 4), (7, 20), (64, 3)])
def test_equal_weights_give_the_likelihood_itself(samples, batch):
    toy = Conjugate(0, 0.5, 0.5)  # the exact posterior
    x = torch.linspace(-4, 3, 11, dtype=torch.float64)[:, None]
    got = importance_log_likelihood(toy, x, samples, batch=batch)
    torch.testing.assert_close(got.log_likelihood, evidence(x))
    if samples == 1:
        assert got.standard_error.isnan().all()
    else:
        assert got.standard_error.max() < 1e-6
    assert toy.encoded == len(x)


@pytest.mark.parametrize(
    ("images", "samples", "batch"), [(11, 1000, 64), (11, 3, 64), (200, 1, 64), (3, 130, 64)]
)
def test_memory_does_not_grow_with_images_or_samples(images, samples, batch):
    toy = Conjugate(0.4, 0.5, 0.9)
    importance_log_likelihood(toy, torch.zeros(images, 1).double(), samples, batch=batch)
    assert max(toy.rows) <= batch and sum(toy.rows) == images * samples
    assert max(toy.rows) > min(batch, images * samples) / 2  # no smaller than it has to be


def test_importance_weights_approach_the_likelihood_from_below():
    toy, x = Conjugate(0.4, 0.5, 0.9), torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]
    means = [
        importance_log_likelihood(toy, x, samples).log_likelihood.mean().item()
        for samples in (1, 4, 30, 1000)
    ]
    truth = evidence(x).mean().item()
    assert means == sorted(means) and means[0] < truth - 0.1
    assert means[-1] == pytest.approx(truth, abs=0.003)


def test_the_standard_error_is_that_of_repetitions():
    toy, x = Conjugate(0.4, 0.5, 0.9), torch.full((500, 1), 0.7, dtype=torch.float64)
    got = importance_log_likelihood(toy, x, 400, batch=77)
    assert got.standard_error.mean().item() == pytest.approx(
        got.log_likelihood.std().item(), rel=0.15
    )
    assert got.log_likelihood.unique().numel() == 500  # no two images share their draws
    again = importance_log_likelihood(toy, x, 400, batch=77)
    assert torch.equal(got.log_likelihood, again.log_likelihood)
    other = importance_log_likelihood(toy, x, 400, batch=77, noise=Noise(1, 0))
    assert not torch.equal(got.log_likelihood, other.log_likelihood)


class Given(nn.Module):
    """Log-weights that are told, in turn."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = weights.flatten()

    def features(self, x: Tensor) -> list[Tensor]:
        return []

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        given, self.weights = self.weights.split([len(x), len(self.weights) - len(x)])
        return given


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_weights_of_any_size_are_averaged(scale):
    w = scale * torch.randn(23, generator=torch.Generator().manual_seed(1)).double() - 1e4
    got = importance_log_likelihood(Given(w), torch.zeros(1, 1), 23, batch=4)
    torch.testing.assert_close(got.log_likelihood[0], w.logsumexp(0) - math.log(23))
    weights = (w - w.max()).exp()
    effective = weights.sum() ** 2 / weights.square().sum()
    torch.testing.assert_close(got.effective_samples[0], effective)
    assert bool(got.dominated) == (scale > 1)
    if scale == 1:
        first_order = weights.std() / weights.mean() / 23**0.5
        torch.testing.assert_close(got.standard_error[0], first_order, rtol=0.15, atol=0)


def exponential(shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).exponential_()


def normal(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


LAWS = {f"{scale} N(0, 1)": (scale, normal) for scale in (0.1, 1.0, 3.0, 30.0, 100.0)} | {
    "exponential, of infinite variance": (0.7, exponential),
    "exponential, of infinite mean": (5.0, exponential),
    "minus chi-square of 100": (
        -0.5,
        torch.distributions.Chi2(100 * torch.ones(()).double()).sample,
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("samples", [5, 100])
def test_the_standard_error_covers_where_one_draw_dominates(law, samples):
    """Of one image, and of the mean over 64, by 50 repetitions."""
    torch.manual_seed(1)
    scale, draw = LAWS[law]
    images = 64 * 50
    weights = scale * draw((images, samples))
    x = torch.zeros(images, 1)
    got = importance_log_likelihood(Given(weights), x, samples, batch=len(x) * samples)
    value, error = got
    means, errors = value.view(50, 64).mean(1), error.view(50, 64).norm(dim=1) / 64
    assert 0.9 < errors.square().mean().sqrt() / (value.std() / 8) < 2
    assert ((means - value.mean()).abs() <= 2 * errors).double().mean() >= 0.86
    if samples == 5:
        return
    assert ((value - value.mean()).abs() <= 2 * error).double().mean() >= 0.7
    if law in ("0.1 N(0, 1)", "1.0 N(0, 1)"):  # as sharp as the first order
        weights = (weights - weights.amax(1, keepdim=True)).exp()
        first_order = weights.std(1) / weights.mean(1) / samples**0.5
        assert (error / first_order - 1).mean().abs() < 0.05
        assert got.dominated.double().mean() < 0.01
    elif abs(scale) >= 5:
        assert got.dominated.double().mean() > 0.99


def test_impossible_and_broken_weights():
    impossible = torch.tensor([-math.inf, -math.inf, 0.0, -math.inf])
    got = importance_log_likelihood(Given(impossible), torch.zeros(1, 1), 4, batch=1)
    assert got.log_likelihood.item() == pytest.approx(-math.log(4))
    assert got.standard_error.item() == math.inf  # without that draw nothing would be left
    two = torch.tensor([-math.inf, 0.0, 0.0, -math.inf])
    got = importance_log_likelihood(Given(two), torch.zeros(1, 1), 4, batch=3)
    assert got.standard_error.item() == pytest.approx(1.5 * math.log(2) / 3**0.5)
    never = torch.full((4,), -math.inf)
    got = importance_log_likelihood(Given(never), torch.zeros(1, 1), 4, batch=2)
    assert got.log_likelihood.item() == -math.inf
    broken = torch.tensor([0.0, math.nan, 0.0, 0.0])
    got = importance_log_likelihood(Given(broken), torch.zeros(1, 1), 4, batch=1)
    assert got.log_likelihood.isnan().all()
    for name in ("samples", "batch"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            importance_log_likelihood(Given(never), torch.zeros(1, 1), **{name: 0})


def test_the_bound_of_one_draw_is_the_elbo_and_of_no_information_the_likelihood():
    model = build(replace(SMALL, analytical_kl=True), 0).double()
    x = binary(model, 40)
    one = importance_log_likelihood(model, x, 1).log_likelihood.mean()
    more = importance_log_likelihood(model, x, 50).log_likelihood.mean()
    assert model.training
    model.eval()
    elbo = torch.stack([model(x, noise=Noise(0, step))["elbo"].mean() for step in range(40)])
    assert abs(one - elbo.mean()) < 4 * elbo.std()
    assert more > one

    with torch.no_grad():  # x does not depend on z, and the posterior is the prior
        for part in model.top_down:
            part.expand.weight.zero_()
            for conv in (part.posterior, part.prior if not part.top else part.posterior):
                conv.weight.zero_()
                conv.bias.zero_()
    passed = model.sample_prior(1, Noise(0, 0))
    log_likelihood = model.likelihood.log_prob(passed.features.expand(40, -1, -1, -1), x)
    for samples in (1, 3, 20):
        got = importance_log_likelihood(model, x, samples, batch=32)
        torch.testing.assert_close(got.log_likelihood, log_likelihood)


def test_closed_form_kls_are_no_importance_weights():
    """With them in place of the draws' own the mean would not be a bound on log p(x)."""
    models = [build(replace(SMALL, analytical_kl=word), 0) for word in (False, True)]
    x = binary(models[0])
    drawn, closed = (importance_log_likelihood(model, x, 5).log_likelihood for model in models)
    assert torch.equal(drawn, closed)


def test_weights_of_half_the_draws():
    """p(x | z) = 1 where z lies in A of prior probability e, q puts half its mass there."""
    e = 0.01
    inside = torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.5
    weights = torch.where(inside, math.log(e / 0.5), -math.inf)
    got = importance_log_likelihood(Given(weights), torch.zeros(1, 1), 4000, batch=500)
    assert got.log_likelihood.item() == pytest.approx(math.log(e), abs=0.06)


def test_seeded_weights_repeat():
    first, again, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    assert torch.equal(first.stem.weight, again.stem.weight)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    x = binary(first)
    for model in (first, again):
        model.initialise(x, Noise(3, 0))
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items()
    )


def test_bfloat16_autocast_gives_float32_values():
    for likelihood in LIKELIHOODS:
        model = build(replace(SMALL, likelihood=likelihood, image_shape=(3, 8, 8)), 0)
        x = grey(model)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x, noise=Noise(0, 0))
            (mask, *_) = model._masks(x, Noise(0, 0))
        assert mask.dtype == torch.bfloat16
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in half.values())
        full = model(x, noise=Noise(0, 0))
        torch.testing.assert_close(half["loss"], full["loss"], rtol=0.05, atol=1)
        half["loss"].mean().backward()


def test_compiled_training_does_not_recompile_at_every_step():
    model = build(replace(SMALL, beta_anneal=10), 0)
    x = binary(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x, noise=Noise(0, 0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (1, 2):
            model.begin_step(step)
            got = compiled(x, noise=Noise(0, step))["loss"]
            torch.testing.assert_close(got, model(x, noise=Noise(0, step))["loss"])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "poisson"}, "likelihood must be one of bernoulli, gaussian, discretized"),
        ({"residual": "abc"}, "residual must be one of cabdcabd, bacdbac, bacdbacd; got 'abc'"),
        ({"merge": "sum"}, "merge must be one of linear, residual"),
        ({"nonlinearity": "tanh"}, "nonlinearity must be one of relu, leakyrelu, elu, selu"),
        ({"image_shape": (1, 28)}, "image_shape must be three whole numbers from 1 up"),
        ({"zdims": ()}, "zdims must be at least one whole number, each at least 1"),
        ({"zdims": (32, 0)}, "zdims must be at least one whole number, each at least 1"),
        (
            {"downsample": (1, 1)},
            "downsample must be 3 whole numbers, one for each of zdims, from 0",
        ),
        ({"downsample": (5, 0, 0)}, r"from 0 to blocks=4; got \(5, 0, 0\)"),
        ({"image_shape": (1, 28.0, 28)}, "image_shape must be three whole numbers from 1 up"),
        ({"zdims": (8.0,)}, "zdims must be at least one whole number"),
        ({"downsample": (1, 1, 0.5)}, "downsample must be 3 whole numbers"),
        ({"blocks": 2.5}, "blocks must be a whole number, at least 1; got 2.5"),
        ({"beta_anneal": 0.5}, "beta_anneal must be a whole number"),
        ({"blocks": 0}, "blocks must be a whole number, at least 1"),
        ({"filters": 0}, "filters must be a whole number, at least 1"),
        ({"free_bits": -1.0}, "free_bits must be at least 0"),
        ({"beta_anneal": -1}, "beta_anneal must be a whole number, at least 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1"),
    ],
)
def test_configuration_errors(change, message):
    with pytest.raises(ValueError, match=message):
        LVAEConfig(**change)


def test_wrong_inputs_are_named():
    model = build(SMALL, 0)
    x = binary(model)
    with pytest.raises(ValueError, match="noise must be given, the latents are drawn at random"):
        model(x)
    with pytest.raises(ValueError, match=r"x .* of shape \(n, 1, 8, 8\); got \(3, 3, 8, 8\)"):
        model(x.expand(-1, 3, -1, -1), noise=Noise(0, 0))
    with pytest.raises(TypeError, match=r"x must be floating-point images .* got torch\.uint8"):
        model.features(x.byte())
    with pytest.raises(ValueError, match="target must hold 3 images"):
        model(x, target=x[:1], noise=Noise(0, 0))
    with pytest.raises(ValueError, match=rf"z .* of shape \(n, {model.latent_dim}\); got \(2, 3\)"):
        model.decode(torch.ones(2, 3))
