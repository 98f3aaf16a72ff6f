"""Activations with tangents, and Gram matrices, at the sizes of a BiGAN decoder's metric."""

import pytest
import torch
from torch.nn import functional as F

from fastlatent import ops

LAYERS = {  # points, tangents, channels, height and width, activation, whether batch norm precedes
    "64 x 16 tangents of 16x13x13, elu": (64, 16, (16, 13, 13), "elu", True),
    "64 x 16 tangents of 3x28x28, elu": (64, 16, (3, 28, 28), "elu", True),
    "64 x 16 tangents of 1x28x28, tanh": (64, 16, (1, 28, 28), "tanh", False),
    "1,024 x 1 tangent of 16x13x13, elu": (1024, 1, (16, 13, 13), "elu", True),
}


def by_jvp(x, tangents, kind, scale, shift):
    """What torch.func makes of the modules: each tangent passes batch norm and activation."""
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])

    def layer(x):
        u = x if scale is None else F.batch_norm(x, mean, var, scale, shift, eps=0.0)
        return getattr(F, kind)(u) if kind == "elu" else torch.tanh(u)

    def push(tangents):
        return torch.func.jvp(layer, (x,), (tangents,))

    return torch.vmap(push, in_dims=1, out_dims=(None, 1))(tangents)


ACTIVATIONS = ("fastlatent", "eager", "torch.compile", "torch.func")


def activation(name):
    torch._dynamo.reset()
    eager = ops.activation_jvp.reference
    return {
        "fastlatent": ops.activation_jvp,
        "eager": eager,
        "torch.compile": torch.compile(eager),
        "torch.func": by_jvp,
    }[name]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("size", LAYERS)
def test_activation_jvp(compare, name, direction, size):
    """Backward by x and tangents: the decoder is frozen."""
    n, t, shape, kind, normed = LAYERS[size]
    backward = direction != "forward"
    x = torch.randn(n, *shape, requires_grad=backward)
    tangents = torch.randn(n, t, *shape, requires_grad=backward)
    scale, shift = (torch.rand(shape[0]), torch.randn(shape[0])) if normed else (None, None)
    upstream = torch.randn_like(x), torch.randn_like(tangents)
    function = activation(name)

    def run():
        out = function(x, tangents, kind, scale, shift)
        if backward:
            torch.autograd.grad(out, (x, tangents), upstream)

    compare("activation_jvp", f"activation_jvp {direction}", size, name, run, 30)


def product(jacobian, weight):
    """Half the work of the op: rounding leaves a weighted product unsymmetric."""
    return jacobian.mT @ (jacobian if weight is None else weight[..., None] * jacobian)


def by_einsum(jacobian, weight):
    if weight is None:
        return torch.einsum("nri,nrj->nij", jacobian, jacobian)
    return torch.einsum("nri,nr,nrj->nij", jacobian, weight, jacobian)


GRAMS = ("fastlatent", "torch.bmm", "torch.einsum", "eager", "torch.compile")


def gram(name):
    torch._dynamo.reset()
    eager = ops.jacobian_gram.reference
    return {
        "fastlatent": ops.jacobian_gram,
        "torch.bmm": product,
        "torch.einsum": by_einsum,
        "eager": eager,
        "torch.compile": torch.compile(eager),
    }[name]


@pytest.mark.parametrize("name", GRAMS)
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("turned", [True, False], ids=["tangents", "contiguous"])
@pytest.mark.parametrize(("rows", "d"), [(784, 16), (1568, 16), (784, 2)])
def test_jacobian_gram(compare, name, direction, weighted, turned, rows, d):
    """Of tangents (64, d, D) as they leave a decoder, or of contiguous Jacobians (64, D, d)."""
    backward = direction != "forward"
    if backward and (not turned or d == 2):
        pytest.skip("one layout and the larger sizes show it")
    jacobian = torch.randn(64, d, rows).mT if turned else torch.randn(64, rows, d)
    weight = torch.rand(64, rows) if weighted else None
    upstream = torch.randn(64, d, d)
    function = gram(name)
    leaves = [jacobian] if weight is None else [jacobian, weight]
    for leaf in leaves:
        leaf.requires_grad_(backward)

    def run():
        out = function(jacobian, weight)
        if backward:
            torch.autograd.grad(out, leaves, upstream)

    layout = "tangents" if turned else "contiguous"
    kind = "weighted jacobian_gram" if weighted else "jacobian_gram"
    size = f"64 x {rows} x {d}, {layout}"
    compare("jacobian_gram", f"{kind} {direction}", size, name, run, 30)
