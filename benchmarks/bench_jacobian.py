"""Activations with tangents, and Gram matrices, at the sizes of a BiGAN decoder's metric."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from fastlatent import ops

LAYERS = [  # points, tangents, channels, height and width, activation, whether batch norm precedes
    (64, 16, (16, 13, 13), "elu", True),
    (64, 16, (3, 28, 28), "elu", True),
    (64, 16, (1, 28, 28), "tanh", False),
    (1024, 1, (16, 13, 13), "elu", True),
]
TIMES = {"cpu": 1, "cuda": 64}  # as many points: memory, not the launch, is what a GPU waits for
COPY = "copy of as many bytes"


def by_jvp(x, tangents, kind, scale, shift):
    """What torch.func makes of the modules: each tangent passes batch norm and activation."""
    mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

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


@pytest.mark.parametrize("name", [*ACTIVATIONS, COPY])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_activation_jvp(compare, copy_of, device, name, direction, layer):
    """Backward by x and tangents: the decoder is frozen."""
    n, t, shape, kind, normed = layer
    n *= TIMES[device]
    backward = direction != "forward"
    x = torch.randn(n, *shape, device=device, requires_grad=backward)
    tangents = torch.randn(n, t, *shape, device=device, requires_grad=backward)
    scale, shift = torch.rand(2, shape[0], device=device) if normed else (None, None)
    upstream = torch.randn_like(x), torch.randn_like(tangents)

    def run(function):
        out = function(x, tangents, kind, scale, shift)
        if backward:
            torch.autograd.grad(out, (x, tangents), upstream)

    if name == COPY:
        work = copy_of((5 if backward else 2) * (x.nbytes + tangents.nbytes))
    else:
        work = partial(run, activation(name))
    size = f"{n:,} x {t} tangent{'s' * (t > 1)} of {'x'.join(map(str, shape))}, {kind}"
    compare("activation_jvp", f"activation_jvp {direction}", size, name, work, 30)


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
def test_jacobian_gram(compare, device, name, direction, weighted, turned, rows, d):
    """Of tangents (n, d, D) as they leave a decoder, or of contiguous Jacobians (n, D, d)."""
    backward = direction != "forward"
    if backward and (not turned or d == 2):
        pytest.skip("one layout and the larger sizes show it")
    n = 64 * TIMES[device]
    shape = (n, d, rows) if turned else (n, rows, d)
    jacobian = torch.randn(shape, device=device)
    jacobian = jacobian.mT if turned else jacobian
    weight = torch.rand(n, rows, device=device) if weighted else None
    upstream = torch.randn(n, d, d, device=device)
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
    size = f"{n:,} x {rows} x {d}, {layout}"
    compare("jacobian_gram", f"{kind} {direction}", size, name, run, 30)
