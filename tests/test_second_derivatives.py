"""Gradients of speeds against differences, through PyTorch's layers and expanded tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.geometry import Status, as_metric, geodesic, pullback_metric, speed

D = 4
F64 = torch.float64


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def after(*layers: nn.Module, shape: tuple[int, ...] = (16,)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(D, 16), nn.Unflatten(1, shape), *layers)
    return net.to(F64).eval()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


W, CENTRES, IMAGE = normal(D, 12), normal(1, 5, D), normal(1, 1, 5, 5)
READ, KERNEL = normal(5, 3), normal(2, 12, 3)


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exported(net: nn.Module) -> nn.Module:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(net, (normal(3, D),), dynamic_shapes=dynamic).module()


def check(decoder, expected: bool | None = True, asked: bool = True) -> None:
    """The gradient of v^T M v by z and v, against differences of values."""
    z, v, step = normal(3, D), normal(3, D, seed=6), 1e-5
    metric = as_metric(decoder, example=z, analytic=asked)
    leaves = z.clone().requires_grad_(), v.clone().requires_grad_()
    found = torch.autograd.grad(metric.speed_squared(*leaves).sum(), leaves)
    ways = step * torch.eye(D, dtype=F64)
    with torch.no_grad():
        by_z = [metric.speed_squared(z + e, v) - metric.speed_squared(z - e, v) for e in ways]
        along = decoder_difference(metric, z, v).square().sum(1)
        torch.testing.assert_close(metric.speed_squared(z, v), along, rtol=1e-6, atol=1e-9)
        by_v = 2 * metric.matrix(z) @ v[:, :, None]
    by_differences = torch.stack(by_z, 1) / (2 * step), by_v[:, :, 0]
    torch.testing.assert_close(found, by_differences, rtol=1e-4, atol=1e-6)
    assert expected is None or metric.analytic is expected, metric.obstacle


def decoder_difference(metric, z, v, step: float = 1e-5):
    return (metric.output(z + step * v) - metric.output(z - step * v)) / (2 * step)


ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax "
    "Mish PReLU ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanhshrink"
)
LAYERS = {
    **{
        name: lambda name=name: after(
            getattr(nn, name)(*[1] * (name in ("Softmax", "Softmin", "LogSoftmax")))
        )
        for name in ACTIVATIONS.split()
    },
    "LayerNorm": lambda: after(nn.LayerNorm(16), nn.Tanh()),
    "LayerNorm, last": lambda: after(nn.LayerNorm(16, elementwise_affine=False)),
    "LayerNorm of images": lambda: after(nn.LayerNorm((2, 2)), nn.Tanh(), shape=(4, 2, 2)),
    "RMSNorm": lambda: after(nn.RMSNorm(16), nn.Tanh()),
    "GroupNorm": lambda: after(nn.GroupNorm(2, 4), nn.Tanh(), shape=(4, 2, 2)),
    "InstanceNorm1d": lambda: after(nn.InstanceNorm1d(4), nn.Tanh(), shape=(4, 4)),
    "InstanceNorm2d": lambda: after(nn.InstanceNorm2d(4, affine=True), nn.Tanh(), shape=(4, 2, 2)),
    "InstanceNorm3d": lambda: after(nn.InstanceNorm3d(2), nn.Tanh(), shape=(2, 2, 2, 2)),
    "BatchNorm2d": lambda: after(nn.BatchNorm2d(4), nn.Tanh(), shape=(4, 2, 2)),
    "LocalResponseNorm": lambda: after(nn.LocalResponseNorm(2), nn.Tanh(), shape=(4, 2, 2)),
    "LPPool2d": lambda: after(nn.Tanh(), nn.LPPool2d(2, 2), nn.Tanh(), shape=(4, 2, 2)),
    "MaxPool2d": lambda: after(nn.Tanh(), nn.MaxPool2d(2), nn.Tanh(), shape=(4, 2, 2)),
    "AdaptiveMaxPool1d": lambda: after(nn.Tanh(), nn.AdaptiveMaxPool1d(2), nn.Tanh(), shape=(4, 4)),
    "AdaptiveAvgPool2d": lambda: after(
        nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Tanh(), shape=(4, 2, 2)
    ),
    "bicubic": lambda: after(
        nn.Tanh(), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Tanh(), shape=(4, 2, 2)
    ),
    "trilinear": lambda: after(
        nn.Tanh(), nn.Upsample(scale_factor=2, mode="trilinear"), nn.Tanh(), shape=(2, 2, 2, 2)
    ),
    "nearest-exact": lambda: after(
        nn.Tanh(), nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Tanh(), shape=(4, 2, 2)
    ),
    "Fold": lambda: after(nn.Tanh(), nn.Fold((3, 3), (2, 2)), nn.Tanh(), shape=(4, 4)),
    "embedding": lambda: after(nn.Softmax(1), Own(lambda x: x[:, :5] @ READ), nn.Tanh()),
    "no layer at all": lambda: nn.Linear(D, 9).to(F64),
}  # fmt: skip


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_layers(make):
    check(make())


ELSEWHERE = {
    "attention": lambda: after(Attention(), shape=(4, 4)),
    "transformer": lambda: after(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), shape=(4, 4)
    ),
    "recurrent": lambda: (
        lambda net: lambda z: net(z[:, None].expand(-1, 3, -1))[0]
    )(nn.LSTM(D, 3, batch_first=True).to(F64)),
    "CircularPad2d": lambda: after(nn.Tanh(), nn.CircularPad2d(1), nn.Tanh(), shape=(4, 2, 2)),
    "determinant": lambda: after(
        Own(lambda x: torch.linalg.det(x + 5 * torch.eye(2))), shape=(4, 2, 2)
    ),
    "solution": lambda: after(
        Own(lambda x: torch.linalg.solve(x + 3 * torch.eye(4), x)), shape=(4, 4)
    ),
    "distances": lambda: (
        lambda z: torch.cdist(z[:, None], CENTRES.expand(len(z), -1, -1))[:, 0]
    ),
    "sampled image": lambda: after(
        Own(lambda x: F.grid_sample(IMAGE.expand(len(x), -1, -1, -1), x.tanh(),
                                    align_corners=True)), shape=(2, 4, 2)
    ),
    "exported LayerNorm": lambda: exported(after(nn.LayerNorm(16), nn.Tanh())),
    "native_layer_norm": lambda: after(
        Own(lambda x: torch.native_layer_norm(x, (16,), None, None, 1e-5)[0])
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_differentiated_in_another_way(make):
    check(make(), None)


@pytest.mark.parametrize("name", ["LayerNorm", "InstanceNorm2d", "GLU", "Hardsigmoid"])
def test_decoders_that_are_run_as_they_are(name):
    check(LAYERS[name](), False, asked=False)


def test_variances_and_feature_maps():
    mean, spread = LAYERS["LayerNorm"](), LAYERS["GLU"]()
    check(lambda z: (mean(z)[:, :8], 1 + spread(z).square()))
    features = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.GLU()).to(F64)
    z, v, step = normal(3, D), normal(3, D, seed=6), 1e-5
    for decoder in (mean, lambda z: (mean(z), 1 + mean(z).square())):
        metric = as_metric(decoder, features, z)
        leaf = z.clone().requires_grad_()
        (found,) = torch.autograd.grad(metric.speed_squared(leaf, v).sum(), leaf)
        with torch.no_grad():
            ways = step * torch.eye(D, dtype=F64)
            by_z = [metric.speed_squared(z + e, v) - metric.speed_squared(z - e, v) for e in ways]
        torch.testing.assert_close(found, torch.stack(by_z, 1) / (2 * step), rtol=1e-4, atol=1e-6)


def test_the_published_procedure_shortens_curves_through_layer_norm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(D, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 9)).to(F64)
    found = geodesic(
        net, 2 * normal(8, D), -2 * normal(8, D, seed=7), "original", max_iterations=40
    )
    assert (found.improvement > 0).all() and found.improvement.mean() > 0.03


def test_speed_of_a_flat_metric_has_gradient_zero():
    z = normal(3, D).requires_grad_()
    (gradient,) = torch.autograd.grad(speed(nn.Linear(D, 9).to(F64), z, normal(3, D)).sum(), z)
    assert not gradient.any()


def wide(z: Tensor) -> Tensor:
    return (z @ W)[:, :, None].expand(-1, -1, 5)


def scaled(z: Tensor) -> tuple[Tensor, Tensor]:
    y = z @ W
    return y, y.norm(dim=1, keepdim=True).expand_as(y)


EXPANDED = {
    "normalize": lambda z: F.normalize(z @ W, dim=1),
    "cat": lambda z: torch.cat([wide(z), wide(z).sin()], 1),
    "cat of one": lambda z: torch.cat(scaled(z), 1),
    "stack": lambda z: torch.stack(scaled(z), 1),
    "where": lambda z: torch.where(z[:, :1] > 0, *scaled(z)),
    "maximum": lambda z: torch.maximum(*scaled(z)),
    "pow": lambda z: scaled(z)[1] ** scaled(z)[0].tanh(),
    "bmm": lambda z: torch.bmm(wide(z), wide(z).mT),
    "layer_norm": lambda z: F.layer_norm(wide(z).mT * torch.arange(1, 13), (12,)),
    "logsumexp": lambda z: wide(z).logsumexp(1),
    "softmax": lambda z: wide(z).softmax(1) @ READ,
    "cumprod": lambda z: wide(z).tanh().cumprod(2),
    "conv": lambda z: F.conv1d(wide(z), KERNEL).tanh(),
    "pool": lambda z: F.max_pool1d(wide(z), 2),
    "group_norm": lambda z: F.group_norm(wide(z) * torch.arange(5), 3),
    "atan2": lambda z: torch.atan2(*scaled(z)),
    "elu": lambda z: F.elu(wide(z)),
    "erf": lambda z: wide(z).erf(),
    "mixture": lambda z: (-(z[:, None].expand(-1, 12, -1) - W.mT).square().sum(2)).logsumexp(1),
    "windows": lambda z: (z @ W).unfold(1, 4, 2).softmax(2),
}  # fmt: skip


@pytest.mark.parametrize("decoder", EXPANDED.values(), ids=EXPANDED)
def test_expanded_tensors(decoder):
    """Whatever the number of latents and tangents, and latents that are expanded themselves."""
    for n in (1, 2, D, 7):
        for z in (normal(n, D), normal(1, D).expand(n, -1)):
            found = pullback_metric(decoder, z)
            expected = as_metric(decoder, analytic=False).matrix(z)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
            leaf = z.clone().requires_grad_()
            speed(decoder, leaf, normal(1, D).expand(n, -1)).sum().backward()
            assert leaf.grad.isfinite().all()
    check(decoder, None)
    found = geodesic(decoder, normal(2, D), -normal(2, D), spans=(1,), max_iterations=1)
    assert (found.status != int(Status.NON_FINITE)).all()
