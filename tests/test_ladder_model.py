"""LaDDer: its networks, its pixels, its bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastlatent.models.ladder import LaDDerConfig, PriorSchedule
from fastlatent.models.ladder.likelihood import Laplace, laplace_bin_log_prob
from fastlatent.models.ladder.networks import Decoder, Encoder, SymmetricPad, halving
from fastlatent.nn import glorot_

# Parameters of encoder and decoder, from the published checkpoints and settings.
NETWORKS = [
    ("digit", 256, 8, 420_400, 666_293),
    ("digit", 256, 16, 421_440, 699_061),
    ("fashion", 256, 16, 398_560, 465_729),
    ("fashion", 512, 32, 1_591_744, 1_857_153),
    ("celeba", 512, 256, 5_629_056, 13_232_515),
]


def config_of(architecture, width, dim, **changes):
    shape = (3, 128, 128) if architecture == "celeba" else (1, 28, 28)
    output = "linear" if architecture == "celeba" else "relu"
    return LaDDerConfig(
        architecture=architecture,
        width=width,
        dim=dim,
        image_shape=shape,
        output=output,
        **changes,
    )


def size(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(("architecture", "width", "dim", "encoder", "decoder"), NETWORKS)
def test_networks_have_the_published_sizes(architecture, width, dim, encoder, decoder):
    with torch.device("meta"):
        config = config_of(architecture, width, dim)
        parts = Encoder(config), Decoder(config)
        mean, std = parts[0](torch.empty(2, *config.image_shape))
        images = parts[1](torch.empty(2, dim))
    assert tuple(map(size, parts)) == (encoder, decoder)
    assert mean.shape == std.shape == (2, dim)
    assert images.shape == (2, *config.image_shape)


@pytest.mark.parametrize("architecture", ["digit", "fashion", "celeba"])
def test_feature_maps_have_the_published_sizes(architecture):
    widths = {"digit": 64, "fashion": 8, "celeba": 8}
    config = config_of(architecture, widths[architecture], 4)
    seen = []

    def note(layer, _, y):
        seen.append(tuple(y.shape[1:]))

    for part in (Encoder(config), Decoder(config)):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.PixelShuffle):
                layer.register_forward_hook(note)
        example = torch.rand(2, *config.image_shape)
        part(example if isinstance(part, Encoder) else torch.randn(2, 4))
    w = widths[architecture]
    h, q, s = w // 2, w // 4, w // 16
    expected = {
        "digit": [
            *[(s, 16, 16), (q, 8, 8), (w, 4, 4)],
            *[(w, 4, 4), (w, 4, 4), (q, 8, 8), (q, 8, 8), (s, 16, 16), (s, 16, 16)],
            *[(w // 64, 32, 32), (1, 28, 28)],
        ],
        "fashion": [
            *[(q, 16, 16), (q, 8, 8), (h, 4, 4), (h, 2, 2)],
            *[(q, 2, 2), (w, 2, 2), (q, 4, 4), (w, 4, 4), (q, 8, 8), (w, 8, 8), (q, 16, 16)],
            *[(w, 16, 16), (q, 32, 32), (1, 28, 28)],
        ],
        "celeba": [
            *[(q, 64, 64), (q, 32, 32), (h, 16, 16), (h, 8, 8), (w, 4, 4), (w, 2, 2)],
            *[(w, 1, 1), (w, 2, 2), (w, 2, 2), (w, 8, 8), (h, 16, 16), (h, 32, 32)],
            *[(q, 64, 64), (q, 128, 128), (3, 128, 128)],
        ],
    }
    assert seen == expected[architecture]


def test_convolutions_of_stride_2_pad_at_the_bottom_and_the_right():
    layer = halving(1, 1)
    conv = layer[1]
    conv.bias.data.zero_()
    conv.weight.data.copy_(torch.arange(1.0, 10).reshape(1, 1, 3, 3))
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 0, 0] = 1
    y = layer(impulse)
    assert y.shape == (1, 1, 4, 4)
    assert y[0, 0, 0, 0] == conv.weight[0, 0, 0, 0]  # padding on all sides would give [1, 1]
    assert y.sum() == 1


def test_symmetric_padding_repeats_the_edge():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    padded = SymmetricPad(2)(x)
    rows = torch.tensor([1, 0, 0, 1, 2, 3, 3, 2])
    assert padded.equal(x[:, :, rows][:, :, :, rows])


def test_start_is_glorot_uniform_with_zero_biases():
    torch.manual_seed(0)
    encoder = Encoder(config_of("digit", 256, 16))
    dense = encoder.trunk[5]
    bound = math.sqrt(6 / (dense.in_features + dense.out_features))
    assert dense.weight.abs().max() <= bound
    assert dense.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not any(part.bias.any() for part in encoder.modules() if hasattr(part, "bias"))


def test_glorot_takes_layers_without_biases():
    layers = nn.Sequential(nn.Linear(300, 400, bias=False), nn.Conv2d(20, 30, 3, bias=False))
    glorot_(layers)
    for layer, fans in zip(layers, (700, 50 * 9), strict=True):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.02)


@pytest.mark.parametrize("kind", ["softplus", "relu"])
def test_deviations_are_at_least_a_thousandth(kind):
    encoder = Encoder(config_of("digit", 64, 4, posterior_std=kind))
    encoder.head.std.bias.data.fill_(-1e4)
    _, std = encoder(torch.rand(3, 1, 28, 28))
    assert std.detach().allclose(torch.tensor(1e-3), rtol=1e-6)
    encoder.head.std.bias.data.fill_(3.0)
    encoder.head.std.weight.data.zero_()
    expected = (3.0 if kind == "relu" else math.log1p(math.exp(3))) + 1e-3
    assert encoder(torch.rand(3, 1, 28, 28))[1].detach().allclose(torch.tensor(expected))


def batch(seed=0):
    noise = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 1, 4, 3, generator=noise, dtype=torch.float64)
    image = torch.rand(5, 1, 4, 3, generator=noise, dtype=torch.float64).requires_grad_()
    return x, image


def test_profile_is_the_maximum_over_scales():
    """max over b of R is at b = mean |x - f|, R = -D (1 + log 2b), with gradient (D / b) grad b."""
    x, image = batch()
    laplace = Laplace("profile", 0.5)
    error = laplace.observe(image, x, keep=False)
    value = laplace.log_prob(image, x, laplace.scale(error)).mean()
    b = (x - image).abs().mean()
    assert value.item() == pytest.approx(-12 * (1 + math.log(2 * b.item())), rel=1e-12)
    for other in (0.9, 1.1):
        assert laplace.log_prob(image, x, other * error).mean() < value
    (gradient,) = torch.autograd.grad(-value, image)
    (expected,) = torch.autograd.grad(12 * b.log(), image)
    assert gradient.allclose(expected, rtol=1e-12)
    truth = torch.distributions.Laplace(image, 0.3).log_prob(x).flatten(1).sum(1)
    assert laplace.log_prob(image, x, torch.tensor(0.3, dtype=torch.float64)).allclose(truth)


def test_max_floor_is_profile_up_to_the_error_and_trained_above():
    x, image = batch()
    laplace = Laplace("max_floor", 0.1)
    error = laplace.observe(image, x, keep=False)
    assert error > 0.1
    value = laplace.log_prob(image, x, laplace.scale(error)).mean()
    profile = Laplace("profile", 0.1)
    assert value == profile.log_prob(image, x, profile.scale(error)).mean()
    value.backward()
    assert laplace.raw.grad == 0
    laplace.raw.data.fill_(-0.7)  # its size counts
    raw = laplace.raw.detach().double().requires_grad_()
    value = laplace.log_prob(image, x, laplace.scale(error)).mean()
    laplace.raw.grad = None
    value.backward()
    truth = torch.distributions.Laplace(image.detach(), raw.abs()).log_prob(x)
    truth.flatten(1).sum(1).mean().backward()
    assert laplace.raw.grad.item() == pytest.approx(raw.grad.item(), rel=1e-5)


def test_running_error_is_the_scale_in_evaluation():
    laplace = Laplace("profile", 0.5)
    x, image = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    assert laplace.scale() == 0.5
    laplace.observe(image + 0.2, x, keep=True)
    assert laplace.scale().item() == pytest.approx(0.2)
    for _ in range(400):
        laplace.observe(image + 0.1, x, keep=True)
    assert laplace.scale().item() == pytest.approx(0.1)
    laplace.observe(image + 0.9, x, keep=False)
    assert laplace.scale().item() == pytest.approx(0.1)
    assert Laplace("fixed", 0.3).scale(torch.tensor(0.1)).item() == pytest.approx(0.3)


@given(st.floats(-0.5, 1.5), st.floats(1e-4, 5))
def test_bins_sum_to_one(mean, scale):
    bins = torch.arange(256, dtype=torch.float64)
    mean, scale = (torch.tensor(value, dtype=torch.float64) for value in (mean, scale))
    values = laplace_bin_log_prob(bins, mean, scale)
    assert values.isfinite().all()
    assert values.logsumexp(0).abs() < 1e-9


def test_bins_hold_the_mass_between_their_edges():
    bins = torch.arange(256, dtype=torch.float64)
    truth = torch.distributions.Laplace(torch.tensor(0.4, dtype=torch.float64), 0.1)
    edges = F.pad((bins[1:] - 0.5) / 255, (1, 1))
    below = truth.cdf(edges)
    below[0], below[-1] = 0, 1
    found = laplace_bin_log_prob(bins, truth.loc, truth.scale).exp()
    assert found.allclose(below.diff(), atol=1e-12)
    # Far out, where that difference is 0, the log-probability still falls by distance / scale.
    far = laplace_bin_log_prob(torch.tensor([250.0, 240.0]), torch.tensor(0.0), torch.tensor(1e-3))
    assert (far[1] - far[0]).item() == pytest.approx(10 / 255 / 1e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "alexnet"}, "architecture must be one of digit, fashion, celeba"),
        ({"image_shape": (1, 32, 32)}, r"image_shape must be \(channels, 28, 28\) for digit"),
        ({"width": 100}, "width must be a multiple of 64 for digit"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"start_scale": 0.0}, "start_scale must be positive"),
        ({"output": "tanh"}, "output must be one of relu, linear, sigmoid"),
        (
            {"schedule": PriorSchedule(refit_samples=49)},
            "schedule.refit_samples must be at least prior.components=50; got 49",
        ),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=f"LaDDerConfig: {words}"):
        LaDDerConfig(**settings)
