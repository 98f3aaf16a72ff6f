"""The analytic path through decoders of many kinds, against torch.func and plain autograd."""

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from fastlatent.geometry import as_metric, geodesic
from fastlatent.geometry.precision import full_precision

D = 6


def z_of(n: int = 5, d: int = D) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def randomised(module: nn.Module) -> nn.Module:
    """In evaluation mode, float64, with statistics and weights unlike the initial ones."""
    make = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for name, value in module.named_buffers():
            if "running_var" in name:
                value.copy_(0.5 + torch.rand(value.shape, generator=make))
            elif "running_mean" in name:
                value.copy_(torch.randn(value.shape, generator=make))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.affine:
                part.weight.copy_(1 + 0.3 * torch.randn(part.weight.shape, generator=make))
                part.bias.copy_(0.3 * torch.randn(part.bias.shape, generator=make))
    return module.eval()


def build(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(make())


def agree(decoder, z, analytic: bool | None = True) -> None:
    """Values, derivatives and their gradients are those of torch.func."""
    metric, plain = as_metric(decoder, example=z), as_metric(decoder, example=z, analytic=False)
    assert analytic is None or metric.analytic is analytic, metric.obstacle
    close = {"rtol": 1e-9, "atol": 1e-11}
    with torch.no_grad():
        for name in ("output", "jacobian", "matrix"):
            torch.testing.assert_close(getattr(metric, name)(z), getattr(plain, name)(z), **close)
    v = z_of(len(z), z.shape[1]).flip(0).requires_grad_()
    leaf = z.clone().requires_grad_()
    for name, inputs in (("output", (leaf,)), ("speed_squared", (leaf, v))):
        mine, other = (getattr(m, name)(*inputs) for m in (metric, plain))
        torch.testing.assert_close(mine, other, **close)
        weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1)).to(mine)
        gradients = [
            torch.autograd.grad((y * weight).sum(), inputs, materialize_grads=True)
            for y in (mine, other)
        ]
        torch.testing.assert_close(*gradients, **close)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        y = F.leaky_relu(self.norm(self.conv(x)), 0.1)
        y = self.mix(y)
        y += x
        return F.relu(y, inplace=True)


def dcgan(batch_norm: bool = True) -> nn.Module:
    """Transposed convolutions 4/2/1, with rows cut off on all sides."""
    norm = nn.BatchNorm2d if batch_norm else lambda c: nn.Identity()
    return nn.Sequential(
        nn.Unflatten(1, (D, 1, 1)),
        nn.ConvTranspose2d(D, 16, 4, 1, 0, bias=False),
        norm(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 20, 4, 2, 1, bias=False),
        norm(20),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(20, 2, 4, 2, 1),
        nn.Tanh(),
    )


def after_linear(*layers: nn.Module, channels: int = 4, size: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Linear(D, channels * size**2),
        nn.BatchNorm1d(channels * size**2),
        nn.ELU(),
        nn.Unflatten(1, (channels, size, size)),
        *layers,
    )


def upsampling(mode: str) -> nn.Module:
    return after_linear(
        nn.Upsample(scale_factor=2, mode=mode),
        nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect" if mode == "bilinear" else "zeros"),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        Residual(8),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 3, 3, padding="same"),
        nn.Sigmoid(),
    )


def transposed(kernel: int, stride: int, padding: int, extra: int, last: nn.Module) -> nn.Module:
    convolution = nn.ConvTranspose2d(4, 3, kernel, stride, padding, output_padding=extra)
    return after_linear(convolution, nn.BatchNorm2d(3), last, nn.Conv2d(3, 2, 1), nn.ELU())


MODULES = {
    "mlp": lambda: nn.Sequential(nn.Linear(D, 9), nn.Tanh(), nn.Dropout(), nn.Linear(9, 7)),
    "linear": lambda: nn.Sequential(nn.Linear(D, 9, bias=False), nn.Linear(9, 7), nn.Identity()),
    "linear, then norm": lambda: nn.Sequential(nn.Linear(D, 9), nn.BatchNorm1d(9, affine=False)),
    "norm of latents": lambda: nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 8), nn.ELU()),
    "dcgan": dcgan,
    "dcgan without norm": lambda: dcgan(False),
    "nearest": lambda: upsampling("nearest"),
    "bilinear": lambda: upsampling("bilinear"),
    "pixel shuffle": lambda: after_linear(
        nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1), nn.Softplus()
    ),
    "transposed 3/2": lambda: transposed(3, 2, 0, 0, nn.ELU()),
    "transposed 3/2/1/1": lambda: transposed(3, 2, 1, 1, nn.GELU()),
    "transposed 5/3": lambda: transposed(5, 3, 2, 2, nn.SELU()),
    "transposed 2/2": lambda: transposed(2, 2, 0, 0, nn.PReLU(3)),
    "transposed 1/2": lambda: transposed(1, 2, 0, 1, nn.Hardswish()),
    "transposed 4/2, wide": lambda: nn.Sequential(
        nn.Linear(D, 320),
        nn.Unflatten(1, (20, 4, 4)),
        nn.ConvTranspose2d(20, 18, 4, 2),
        nn.BatchNorm2d(18),
        nn.Mish(),
        nn.ConvTranspose2d(18, 17, 3, 2),
        nn.ELU(),
        nn.Conv2d(17, 2, 1),
        nn.Tanh(),
    ),
    "dilated, grouped": lambda: after_linear(
        nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
        nn.BatchNorm2d(4),
        nn.CELU(0.7),
        nn.ConvTranspose2d(4, 2, (2, 3), (1, 2), dilation=2),
        nn.ELU(2.0),
    ),
    "one-dimensional": lambda: nn.Sequential(
        nn.Linear(D, 24),
        nn.Unflatten(1, (4, 6)),
        nn.ConvTranspose1d(4, 3, 4, 2),
        nn.Sigmoid(),
        nn.Conv1d(3, 2, 3),
        nn.Softsign(),
    ),
    "three-dimensional": lambda: nn.Sequential(
        nn.Linear(D, 54), nn.Unflatten(1, (2, 3, 3, 3)), nn.ConvTranspose3d(2, 2, 2, 2), nn.Tanh()
    ),
    "group norm": lambda: after_linear(nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3), nn.Hardtanh()),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(D, 9), nn.LayerNorm(9), nn.Linear(9, 9), nn.Softmax(1)
    ),
    "max pool": lambda: after_linear(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(D, 9)), nn.LogSigmoid(), nn.Linear(9, 4)
    ),
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(D, 16)),
        nn.Unflatten(1, (4, 2, 2)),
        parametrizations.spectral_norm(nn.ConvTranspose2d(4, 3, 3, 2)),
        nn.BatchNorm2d(3),
        nn.ELU(),
    ),
    "spectral norm by hooks": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(D, 16)),
        nn.ReLU(),
        nn.Unflatten(1, (4, 2, 2)),
        nn.utils.spectral_norm(nn.ConvTranspose2d(4, 3, 3, 2)),
        nn.BatchNorm2d(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_modules(make):
    agree(build(make), z_of())


W = torch.randn(8, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def gated(z):
    y = F.linear(z, W)
    value, switch = y.chunk(2, 1)
    return value.tanh() * switch.sigmoid() + 0.5 * value - switch


def bumps(z):
    squared = (z[:, None] - W).square().sum(2)
    return 1 / (torch.exp(-0.3 * squared) + 1e-2)


FUNCTIONS = {
    "gated": gated,
    "bumps": bumps,
    "constants": lambda z: (2 - 3 * (z @ W.T) / 4).neg().exp().add(1).sqrt().rsqrt() - W[:, 0],
    "concatenation": lambda z: torch.cat([z.sin(), (z @ W.T).cos(), 2 * z], 1),
    "masks": lambda z: torch.where(z > 0, z.square(), z) * (z > -1).double(),
    "rows and columns": lambda z: (z @ W.T).view(-1, 2, 4).transpose(1, 2).flip(2).exp()[:, 1:, 0],
    "sums": lambda z: (z @ W.T).unflatten(1, (2, 4)).mean(1).cumsum(1).clamp(-1, 1),
    "outer product": lambda z: z[:, :, None] * z[:, None] + torch.einsum("ni,nj->nij", z, z),
    "attention": lambda z: (z[:, :, None] @ z[:, None]).softmax(2) @ z[:, :, None],
    "in place": lambda z: (z @ W.T).mul_(2).add_(z[:, :1]).tanh_(),
    "padding": lambda z: F.pad(z.view(-1, 1, 2, 3), (1, 2, 0, 1), value=2.0).tanh(),
    "steps of a loop": lambda z: functools.reduce(lambda x, _: x + (x @ W[:D]).tanh(), range(3), z),
    "one number": lambda z: torch.exp(-z.square().sum(1)),
    "one number of a layer": lambda z: torch.sin(F.linear(z.tanh(), W[:1]).squeeze(1)),
    "columns": lambda z: torch.stack([z[:, 0].cos() * z[:, 1].exp(), z[:, 2].tanh()], 1),
    "mean and variance of one number": lambda z: (z.sum(1).sin(), z.square().sum(1).exp()),
    "reversed subtraction": lambda z: torch.rsub(torch.rsub(z, 1.0, alpha=2.0).sin(), 3 * W[0]),
    "ones like": lambda z: torch.cat([z.sin(), torch.ones_like(z), z.new_ones(1) * z], 1),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_functions(function):
    agree(function, z_of())


def test_two_reverse_passes_where_forward_mode_has_no_derivative():
    def distances(z):
        return torch.cdist(z[:, None], W[None].expand(len(z), -1, -1))[:, 0]

    def same(z):
        return (z[:, None] - W).norm(dim=2)

    metric = as_metric(distances, example=z_of())
    if not has_higher_derivatives(distances):  # of cdist, in older versions of PyTorch
        with pytest.raises(ValueError, match="an operation has no forward-mode derivative"):
            metric.matrix(z_of())
        return
    agree_with(metric, as_metric(same, analytic=False))


def has_higher_derivatives(function) -> bool:
    """Those of J v as two reverse passes give it, and of its square."""
    z = z_of().requires_grad_()
    y = function(z)
    u = torch.zeros_like(y, requires_grad=True)
    try:
        (pulled,) = torch.autograd.grad(y, z, u, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, u, torch.ones_like(z), create_graph=True)
        torch.autograd.grad(pushed.square().sum(), z)
    except RuntimeError:
        return False
    return True


def agree_with(metric, other):
    z, v = z_of().requires_grad_(), z_of().flip(0).requires_grad_()
    torch.testing.assert_close(metric.output(z), other.output(z))
    torch.testing.assert_close(metric.jacobian(z.detach()), other.jacobian(z.detach()))
    mine, expected = metric.speed_squared(z, v), other.speed_squared(z, v)
    torch.testing.assert_close(mine, expected)
    gradients = [torch.autograd.grad(y.sum(), (z, v)) for y in (mine, expected)]
    torch.testing.assert_close(*gradients)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 5, dropout=0.0, batch_first=True)

    def forward(self, z):
        return self.layer(z.view(-1, 3, 2))


def test_attention():
    decoder = build(Attention)
    flags = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    z = z_of()
    j = torch.autograd.functional.jacobian(lambda x: decoder(x).flatten(1).sum(0), z)
    torch.testing.assert_close(as_metric(decoder).jacobian(z), j.movedim(0, 1))
    agree(decoder, z, None)
    after = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    assert flags == after


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0].cos()


def test_what_has_no_second_derivative_either_is_named():
    metric = as_metric(lambda z: Once.apply(z @ W.T))
    with pytest.raises(ValueError, match="decoder: an operation has no forward-mode derivative"):
        metric.matrix(z_of())
    assert metric.output(z_of()).shape == (5, 8)


def test_latents_without_a_finite_output_say_nothing():
    """Wherever they are among the others, the fast path is taken."""
    z = z_of().abs()
    z[[0, 1, 3], 0] *= -1
    agree(lambda z: (z @ W.T).tanh() * z[:, :1].sqrt(), z[2:3])
    metric = as_metric(lambda z: (z @ W.T).tanh() * z[:, :1].sqrt(), example=z)
    assert metric.analytic is True, metric.obstacle
    assert metric.matrix(z).isfinite().all(-1).all(-1).tolist() == [False, False, True, False, True]
    nowhere = as_metric(lambda z: (z @ W.T).tanh() * z[:, :1].sqrt(), example=-z[2:3])
    assert nowhere.analytic is False and "not finite" in nowhere.obstacle


def test_whatever_fails_in_a_replay_is_an_obstacle(monkeypatch):
    for error in (IndexError("out of range"), ValueError("a\nb"), TypeError()):

        def fail(self, z, error=error):
            raise error

        monkeypatch.setattr("fastlatent.geometry.program.Program.value", fail)
        metric = as_metric(gated, example=z_of())
        assert metric.analytic is False
        assert metric.obstacle.startswith("its operations could not be repeated: ")
        assert "\n" not in metric.obstacle
        assert metric.matrix(z_of()).shape == (5, D, D)


FORWARD = """
import warnings, torch
from fastlatent.geometry import pullback_metric
warnings.simplefilter("error", FutureWarning)
warnings.simplefilter("error", DeprecationWarning)
pullback_metric(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Mish()), torch.ones(3, 2))
"""


def test_the_first_derivative_of_a_process_warns_of_nothing():
    ran = subprocess.run([sys.executable, "-c", FORWARD], capture_output=True, text=True)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr


@pytest.mark.parametrize("analytic", [True, False])
def test_under_inference_mode(analytic):
    decoder, z = build(MODULES["group norm"]), z_of()
    expected = as_metric(decoder).matrix(z)
    with torch.inference_mode():
        own = z.clone()
        metric = as_metric(decoder, analytic=analytic)
        torch.testing.assert_close(metric.matrix(own), expected)
        assert metric.analytic is analytic
        torch.testing.assert_close(metric.output(own), decoder(z).flatten(1))
        features = as_metric(decoder, nn.Flatten(), own, analytic=analytic)
        torch.testing.assert_close(features.matrix(own), expected)
        torch.testing.assert_close(as_metric(build(MODULES["group norm"])).matrix(own), expected)
    torch.testing.assert_close(metric.matrix(own), expected)
    assert torch.autograd.grad(metric.output(z.requires_grad_()).sum(), z)[0].isfinite().all()


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build(MODULES["mlp"])

    def decode(self, z, shift=0.0):
        return self.net(z) + shift

    def forward(self, z):
        raise NotImplementedError


def test_methods_and_partials_are_frozen():
    holder = Holder()
    z = z_of().requires_grad_()
    for decoder in (
        holder.decode,
        functools.partial(holder.decode, shift=1.0),
        lambda z: holder.decode(z, 2.0),
    ):
        agree(decoder, z.detach())
        for analytic in (True, False):
            as_metric(decoder, analytic=analytic).output(z).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in holder.parameters())


class StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round() + x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * tangent


NET = build(MODULES["mlp"])
UNRECORDED = {
    "branches on values": (lambda z: NET(z) if z.sum() > -1e9 else z, "looks at values"),
    "detaches in part": (lambda z: NET(z) + NET(z).detach(), "detached"),
    "no gradient in part": (lambda z: NET(z) * no_gradient(z), "other values or derivatives"),
    "own gradient": (lambda z: StraightThrough.apply(NET(z)), "other values or derivatives"),
    "latents not first": (lambda z: (W @ z.T).T.tanh(), "for 5 latents"),
    "writes elsewhere": (lambda z: torch.empty(len(z), D).double().copy_(z).sin(), "from outside"),
    "overwritten view": (lambda z: overwritten(z), "in place"),
    "constants of the batch": (lambda z: torch.cat([z, z.new_ones(len(z), 2)], 1).sin(), ""),
    "sequence": (lambda z: F.linear(z.view(-1, 2, 3), W[:3, :3]).tanh(), ""),
}  # fmt: skip


def no_gradient(z):
    with torch.no_grad():
        return NET(z).square()


def overwritten(z):
    y = z @ W.T
    y[:, 0] = y[:, 1]
    return y.tanh()


@pytest.mark.parametrize(("function", "words"), UNRECORDED.values(), ids=UNRECORDED.keys())
def test_what_cannot_be_recorded_is_run_as_it_is(function, words):
    metric = as_metric(function, example=z_of())
    assert metric.analytic is False and words in metric.obstacle
    agree(function, z_of(), False)


def test_gradients_under_inference_mode_are_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference mode records no"):
        geodesic(build(MODULES["mlp"]), z_of(2), z_of(2).flip(1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 5),
    st.sampled_from([1, 3, 16]),
)
def test_phases_are_transposed_convolutions(kernel, stride, padding, extra, size, outputs):
    extra = min(extra, stride - 1)
    if (size - 1) * stride - 2 * padding + kernel + extra < 1:
        return
    inputs = 16 if outputs == 16 else 2

    def make():
        return nn.Sequential(
            nn.Linear(D, inputs * size**2),
            nn.Tanh(),
            nn.Unflatten(1, (inputs, size, size)),
            nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, output_padding=extra),
            nn.ELU(),
            nn.Conv2d(outputs, 2, 1),
        )

    agree(build(make), z_of(3))


def test_latents_of_any_size():
    """Whatever the sizes of batches that the tape is recorded on."""
    for d in range(1, 9):
        matrix = z_of(d, 4)
        agree(lambda z, m=matrix: (z.square() @ m).tanh() + z[:, :1], z_of(4, d))


def test_values_along_the_fast_path_do_not_depend_on_gradients_being_wanted():
    for name in ("dcgan", "transposed 4/2, wide", "mlp", "pixel shuffle"):
        decoder = build(MODULES[name]).float()
        z = z_of(70).float()
        metric = as_metric(decoder)
        with_graph = metric.output(z.clone().requires_grad_()).detach()
        torch.testing.assert_close(metric.output(z), with_graph, rtol=1e-6, atol=1e-6)


def test_under_function_transforms():
    decoder = build(MODULES["dcgan"])
    metric, z = as_metric(decoder, example=z_of()), z_of()
    plain = decoder(z).flatten(1)
    v = z.flip(0)
    _, tangent = torch.func.jvp(metric.output, (z,), (v,))
    torch.testing.assert_close(tangent, metric.jvp(z, v))
    each = torch.func.vmap(lambda x: metric.output(x[None])[0])(z)
    torch.testing.assert_close(each, plain)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: metric.output(x[None])[0]))(z)
    torch.testing.assert_close(jacobians, metric.jacobian(z))


def test_full_precision_puts_back_what_it_finds():
    backends = torch.backends
    part = backends.mkldnn.matmul
    before = part.fp32_precision
    try:
        for value in ("bf16", "ieee", "none"):
            part.fp32_precision = value
            found = part.fp32_precision
            with full_precision("cpu"):
                assert part.fp32_precision in ("ieee", "none")
            assert part.fp32_precision == found
    finally:
        part.fp32_precision = before


def test_autocast_and_reduced_precision_do_not_reach_it():
    decoder = build(MODULES["transposed 4/2, wide"]).float()
    z = z_of().float()
    exact = as_metric(decoder).matrix(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(as_metric(decoder).matrix(z), exact, rtol=1e-5, atol=1e-6)
