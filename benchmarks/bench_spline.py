"""Spline curves and polylines against dense products and elementwise PyTorch."""

import pytest
import torch

from fastlatent import ops

CONTROLS, PLACES = 20, 64
CURVES = {"cpu": (1_024,), "cuda": (1_024, 65_536)}  # so many numbers fill no GPU
POINTS, PIXELS = 33, 784  # as a geodesic solver measures images along curves
LINES = {"cpu": 100, "cuda": 1_000}

# With the basis matrix at hand, (m, k): three ways to write one product for all curves.
DENSE = {
    "matmul": lambda basis, control: basis @ control,
    "einsum": lambda basis, control: torch.einsum("mk,nkd->nmd", basis, control),
    "transposed": lambda basis, control: (control.mT @ basis.mT).mT,
}


def forward_backward(function, x, upstream):
    def run():
        torch.autograd.grad(function(x), x, upstream)

    return run


def reference_of(function):
    def run(x):
        with ops.use("torch"):
            return function(x)

    return run


def curve_functions(device="cpu"):
    t = torch.linspace(0, 1, PLACES, device=device)
    knots = ops.uniform_knots(CONTROLS, device=device)
    basis = ops.bspline(torch.eye(CONTROLS, device=device)[None], t, knots)[0]

    def ours(control):
        return ops.bspline(control, t, knots)

    def dense(product):
        return lambda control: product(basis, control)

    eager = {f"dense {name}": dense(product) for name, product in DENSE.items()}
    compiled = {
        f"torch.compile of dense {name}": torch.compile(dense(DENSE[name]), dynamic=False)
        for name in DENSE
    }
    return {"fastlatent": ours} | eager | compiled | {"fastlatent reference": reference_of(ours)}


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("curves", CURVES["cuda"])
@pytest.mark.parametrize("name", curve_functions())
def test_bspline(compare, device, name, curves, d):
    if curves not in CURVES[device]:
        pytest.skip("a size for GPUs")
    control = torch.randn(curves, CONTROLS, d, device=device, requires_grad=True)
    upstream = torch.randn(curves, PLACES, d, device=device)
    run = forward_backward(curve_functions(device)[name], control, upstream)
    size = f"{curves} curves x {CONTROLS} control points x {PLACES} places x {d}, float32"
    compare("bspline", "bspline forward + backward", size, name, run, 50)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
def test_bspline_with_own_places(compare, device, name):
    """Each curve has its t: a dense product would need a basis matrix for each."""
    curves = max(CURVES[device])
    control = torch.randn(curves, CONTROLS, 16, device=device, requires_grad=True)
    t = torch.rand(curves, PLACES, device=device).sort(-1).values

    def ours(control):
        return ops.bspline(control, t)

    function = ours if name == "fastlatent" else reference_of(ours)
    run = forward_backward(function, control, torch.randn(curves, PLACES, 16, device=device))
    size = f"{curves} x {CONTROLS} x {PLACES} x 16, float32"
    compare("bspline", "bspline with own t, forward + backward", size, name, run, 15)


def chord_length(points):
    return points.diff(dim=1).norm(dim=-1).sum(-1)


def chord_energy(points):
    return (points.shape[1] - 1) * points.diff(dim=1).square().sum((1, 2))


@pytest.mark.parametrize(
    ("op", "name", "function"),
    [
        row
        for ours, eager in [
            (ops.polyline_length, chord_length),
            (ops.polyline_energy, chord_energy),
        ]
        for row in [
            (ours.__name__, "fastlatent", ours),
            (ours.__name__, "eager", eager),
            (ours.__name__, "torch.compile", torch.compile(eager, dynamic=False)),
            (ours.__name__, "fastlatent reference", reference_of(ours)),
        ]
    ],
)
def test_polyline(compare, device, op, name, function):
    lines = LINES[device]
    points = torch.randn(lines, POINTS, PIXELS, device=device, requires_grad=True)
    run = forward_backward(function, points, torch.randn(lines, device=device))
    size = f"{lines} lines x {POINTS} points x {PIXELS}, float32"
    compare(op, f"{op} forward + backward", size, name, run, 50)
