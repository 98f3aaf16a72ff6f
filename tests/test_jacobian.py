"""Activations with their derivatives and Gram matrices, against PyTorch's own modules."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fastlatent import ops
from fastlatent.ops import OPS
from fastlatent.ops.jacobian import KINDS

MODULES = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "softplus": nn.Softplus(threshold=50),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
}
POSITIVE = ("sqrt", "rsqrt")


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def point_and_tangents(kind, n=4, t=3, c=5, spatial=(3, 2), dtype=torch.float64):
    x, tangents = normal(n, c, *spatial, dtype=dtype), normal(n, t, c, *spatial, dtype=dtype)
    return (x.abs() + 0.1 if kind in POSITIVE else x), tangents


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_and_activation_under_jvp(kind):
    norm = nn.BatchNorm2d(5, dtype=torch.float64).eval()
    with torch.no_grad():
        norm.weight.copy_(normal(5, seed=1).abs() + 0.5)
        norm.running_var.copy_(normal(5, seed=2).abs() + 0.5)
        if kind not in POSITIVE:
            norm.bias.copy_(normal(5, seed=3))
            norm.running_mean.copy_(normal(5, seed=4))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - scale * norm.running_mean
    x, tangents = point_and_tangents(kind)

    def layer(x):
        return MODULES[kind](norm(x))

    y, dy = ops.activation_jvp(x, tangents, kind, scale, shift, slope=0.1)
    torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
    for k in range(tangents.shape[1]):
        _, want = torch.func.jvp(layer, (x,), (tangents[:, k],))
        torch.testing.assert_close(dy[:, k], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_kind(kind):
    x, tangents = point_and_tangents(kind, n=2, t=2, c=2, spatial=(2,))
    scale, shift = normal(2, seed=1).abs() + 0.5, normal(2, seed=2).abs()
    args = [a.requires_grad_() for a in (x, tangents, scale, shift)]

    def function(x, tangents, scale, shift):
        return ops.activation_jvp(x, tangents, kind, scale, shift, 0.1)

    assert gradcheck(function, args)
    assert gradgradcheck(function, args)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "elu", "selu"])
def test_the_derivative_at_a_kink_is_that_of_pytorch(kind):
    x = torch.zeros(1, 1, requires_grad=True)
    MODULES[kind](x).backward()
    _, dy = ops.activation_jvp(x.detach(), torch.ones(1, 1, 1), kind, slope=0.1)
    assert dy.item() == x.grad.item()


EXACT = {
    "elu": lambda u: u if u > 0 else mpmath.expm1(u),
    "softplus": lambda u: mpmath.log1p(mpmath.exp(u)),
    "tanh": mpmath.tanh,
    "sigmoid": lambda u: 1 / (1 + mpmath.exp(-u)),
    "exp": mpmath.exp,
    "gelu": lambda u: u * mpmath.ncdf(u),
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_derivatives_keep_their_relative_accuracy(kind, dtype, kernel_isa):
    """Where f or f' is tiny too; in units of epsilon."""
    small = [1e-8, 1e-5, 1e-3, 0.03]
    u = torch.tensor([-a for a in small] + small + [k / 7 for k in range(-70, 71)], dtype=dtype)
    y, dy = ops.activation_jvp(u[:, None], torch.ones(len(u), 1, 1, dtype=dtype), kind)
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(40):
        for point, value, slope in zip(
            u.tolist(), y.flatten().tolist(), dy.flatten().tolist(), strict=True
        ):
            f = EXACT[kind]
            want = f(mpmath.mpf(point))
            # Rounding u^2 changes e^(-u^2/2) by u^2/2 units.
            units = 4 + (point**2 / 2 if kind == "gelu" else 0)
            assert abs(value - want) <= units * eps * abs(want), point
            if kind == "gelu" and point < 0:
                continue  # f' passes through 0 there
            want = mpmath.diff(f, point)
            assert abs(slope - want) <= units * eps * abs(want), point


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinities_and_zeros_give_what_the_reference_gives(kind, dtype, isa):
    x = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e5, -1e5, 1e-30], dtype=dtype)
    args = x[:, None], torch.ones(len(x), 1, 1, dtype=dtype), kind
    for got, want in zip(
        ops.activation_jvp(*args), ops.activation_jvp.reference(*args), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0, equal_nan=True)


@given(
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    spatial=st.lists(st.integers(0, 40), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
    skip=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_shape_and_stride_gives_the_reference(kind, sizes, spatial, dtype, last, skip):
    n, t, c = sizes
    x, tangents = point_and_tangents(kind, 2 * n, t, c, spatial, dtype)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        tangents = tangents.movedim(2, -1).contiguous().movedim(-1, 2)
    if skip:
        x, tangents = x[::2], tangents[::2].flip(1)
    scale, shift = normal(c, dtype=dtype).abs(), normal(c, dtype=dtype, seed=1).abs()
    args = x, tangents, kind, scale, shift, 0.1
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got, want in zip(
        ops.activation_jvp(*args), ops.activation_jvp.reference(*args), strict=True
    ):
        strides = zip(got.shape, got.stride(), want.stride(), strict=True)
        assert all(ours == theirs for size, ours, theirs in strides if size > 1)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tangents_pass_linear_layers_as_extra_batch_without_copies(memory_format):
    x, tangents = point_and_tangents("elu", spatial=(4, 4), dtype=torch.float32)
    layer = nn.Conv2d(5, 7, 3).to(memory_format=memory_format)
    with torch.no_grad():
        x, pushed = layer(x.to(memory_format=memory_format)), layer(tangents.flatten(0, 1))
    y, dy = ops.activation_jvp(x, pushed.unflatten(0, (4, 3)), "elu")
    assert y.is_contiguous(memory_format=memory_format)
    batch = dy.flatten(0, 1)
    assert batch.data_ptr() == dy.data_ptr()
    assert batch.is_contiguous(memory_format=memory_format)


@given(
    n=st.integers(0, 3),
    rows=st.integers(0, 70),
    d=st.integers(1, 20),
    weighted=st.booleans(),
    turned=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=60)
def test_gram_is_symmetric_and_right(n, rows, d, weighted, turned, dtype):
    jacobian = normal(n, d, rows, dtype=dtype).mT if turned else normal(n, rows, d, dtype=dtype)
    weight = normal(n, rows, dtype=dtype, seed=1) if weighted else None
    gram = ops.jacobian_gram(jacobian, weight)
    assert torch.equal(gram, gram.mT)
    weights = torch.ones(n, rows).double() if weight is None else weight.double()
    want = torch.einsum("nri,nr,nrj->nij", jacobian.double(), weights, jacobian.double())
    size = torch.einsum(
        "nri,nr,nrj->nij", *(a.double().abs() for a in (jacobian, weights)), jacobian.double().abs()
    )
    # The bound of any order of summation, Higham 2002, section 3.1: two roundings in each product.
    assert ((gram - want).abs() <= (rows + 2) * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_the_gradient_of_gram_has_the_memory_order_of_the_jacobian(turned, weighted):
    memory = normal(3, 4, 50, dtype=torch.float32).requires_grad_()
    jacobian = memory.mT if turned else memory
    weight = normal(*jacobian.shape[:2], dtype=torch.float32) if weighted else None
    gram = ops.jacobian_gram(jacobian, weight)
    (grad,) = torch.autograd.grad(gram, memory, normal(*gram.shape, dtype=torch.float32, seed=1))
    assert grad.is_contiguous()


BAD = [
    (lambda: ops.activation_jvp(torch.ones(3), torch.ones(3, 2), "elu"), "x must be .n, c, "),
    (
        lambda: ops.activation_jvp(torch.ones(3, 2), torch.ones(3, 4, 5), "elu"),
        r"tangents must be .* for x of shape \(3, 2\); got \(3, 4, 5\)",
    ),
    (
        lambda: ops.activation_jvp(torch.ones(3, 2), torch.ones(3, 2), "elu"),
        "tangents must have 3 dimensions",
    ),
    (
        lambda: ops.activation_jvp(torch.ones(3, 2), torch.ones(3, 4, 2), "swish"),
        "kind must be one of 'identity', .*; got 'swish'",
    ),
    (
        lambda: ops.activation_jvp(torch.ones(3, 2), torch.ones(3, 4, 2), "elu", torch.ones(3)),
        "scale must have one element for each of the 2 channels; got 3",
    ),
    (
        lambda: ops.jacobian_gram(torch.ones(3, 5, 2), torch.ones(3, 2)),
        r"weight must be \(n, D\) = \(3, 5\); got \(3, 2\)",
    ),
    (lambda: ops.jacobian_gram(torch.ones(5, 2)), "jacobian must have 3 dimensions"),
]


@pytest.mark.parametrize(("attempt", "sentence"), BAD)
def test_bad_shapes_are_named(attempt, sentence):
    with pytest.raises(ValueError, match=sentence):
        attempt()


def test_bad_dtypes_are_named():
    x, tangents = torch.ones(3, 2), torch.ones(3, 4, 2)
    with pytest.raises(TypeError, match="x must have dtype float32, float64; got float16"):
        ops.activation_jvp(x.half(), tangents.half(), "elu")
    with pytest.raises(TypeError, match="tangents must have the dtype of x, float32; got float64"):
        ops.activation_jvp(x, tangents.double(), "elu")
    with pytest.raises(TypeError, match="shift must have the dtype of x"):
        ops.activation_jvp(x, tangents, "elu", None, torch.ones(2).double())
    with pytest.raises(TypeError, match="slope must be a number; got str"):
        ops.activation_jvp(x, tangents, "leaky_relu", slope="0.1")
    with pytest.raises(TypeError, match="weight must have the dtype of jacobian"):
        ops.jacobian_gram(tangents, torch.ones(3, 4).double())


@pytest.mark.parametrize(
    "attempt",
    [
        lambda raw: raw.activation_jvp(
            torch.ones(3, 4), torch.ones(3, 2, 5), "elu", None, None, 0.01
        ),
        lambda raw: raw.activation_jvp(
            torch.ones(3, 4), torch.ones(3, 2, 4), "elu", torch.ones(3), None, 0.01
        ),
        lambda raw: raw.activation_jvp_backward(
            torch.ones(3, 4),
            torch.ones(3, 1, 4),
            torch.ones(3, 4),
            torch.ones(3, 2, 4),
            "elu",
            None,
            None,
            0.01,
            True,
        ),
        lambda raw: raw.jacobian_gram(torch.ones(3, 4, 2), torch.ones(3, 5)),
    ],
)
def test_the_core_protects_its_memory(attempt):
    if OPS["activation_jvp"].serving("cpu").implementation != "cpp":
        pytest.skip("concerns the C++ kernels")
    with pytest.raises(ValueError, match="core: "):
        attempt(torch.ops.fastlatent)
