"""Metrics, speeds and outputs of the published decoders, against torch.func and the original.

With FASTLATENT_DATA the trained decoders, otherwise the same architecture with random weights.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastlatent.geometry import as_metric

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from trained_decoders import DATA, LATENT, bigan, vae

OP = "activation_jvp"
DECODERS = {"BiGAN": bigan, "VAE": vae}
POINTS = {"cpu": (64,), "cuda": (64, 4_096)}  # the first is the size that all rivals get
FEW = 2  # of them, for a rival that takes seconds a point


@pytest.fixture(params=DECODERS)
def named(request, device):
    """A decoder's name, and the decoder with frozen parameters, as all rivals get it."""
    decoder = DECODERS[request.param](DATA, torch.float32).to(device)
    return request.param, decoder.requires_grad_(False)


def latents(n: int, device: str) -> Tensor:
    return torch.randn(n, LATENT, generator=torch.Generator().manual_seed(0)).to(device)


def flat(decoder: nn.Module, z: Tensor) -> Tensor:
    """Mean and standard deviation, as one vector for each latent."""
    output = decoder(z)
    if isinstance(output, tuple):
        mean, variance = output
        return torch.cat([mean.flatten(1), variance.sqrt()], 1)
    return output.flatten(1)


def transformed(jac, decoder):
    """One latent at a time under vmap: the metric in a line of torch.func."""
    jacobians = torch.func.vmap(jac(lambda x: flat(decoder, x[None])[0]))

    def run(z):
        j = jacobians(z)
        return j.mT @ j

    return run


def original(decoder):
    """Michelis and Becker's program: each latent repeated D times, one backward pass of it all."""

    def run(z):
        metrics = []
        for point in z:
            rows = flat(decoder, point[None]).shape[1]
            repeated = point.expand(rows, -1).clone().requires_grad_()
            flat(decoder, repeated).backward(torch.eye(rows, device=z.device))
            metrics.append(repeated.grad.T @ repeated.grad)
        return torch.stack(metrics)

    return run


RIVALS = {
    "fastlatent": 10,
    "fastlatent, torch.func": 3,
    "vmap(jacfwd)": 3,
    "vmap(jacrev)": 2,
    f"original procedure, {FEW} of the points": 1,
}
STATED = ("fastlatent", "fastlatent, torch.func", "vmap(jacfwd)")  # rows with their memory


@pytest.mark.parametrize("points", POINTS["cuda"])
@pytest.mark.parametrize("name", RIVALS)
def test_metric(compare, device, named, name, points):
    which, decoder = named
    if points not in POINTS[device] or (points != POINTS[device][0] and name != "fastlatent"):
        pytest.skip("too many points")
    if (which, name) == ("VAE", "vmap(jacrev)"):
        pytest.skip("more than 20 GiB for 64 points")
    z = latents(points, device)
    share = 1.0
    if name.startswith("fastlatent"):
        metric = as_metric(decoder, example=z, analytic=name == "fastlatent")
        run = metric.matrix
    elif name.startswith("vmap"):
        run = transformed(getattr(torch.func, name[5:-1]), decoder)
    else:
        run, z, share = original(decoder), z[:FEW], FEW / points
    expected = as_metric(decoder).matrix(z[:1])
    torch.testing.assert_close(
        run(z[:1]), expected, rtol=0, atol=float(1e-3 * expected.abs().max())
    )
    size = f"{points} points, d = {LATENT}, D = {flat(decoder, z[:1]).shape[1]}"
    what, rounds, memory = f"metric, {which} decoder", RIVALS[name], name in STATED
    compare(OP, what, size, name, lambda: run(z), rounds, share, memory=memory)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent, torch.func"])
def test_speed(compare, device, named, name):
    which, decoder = named
    z = latents(512, device)
    metric = as_metric(decoder, example=z, analytic=name == "fastlatent")
    run = lambda: metric.speed_squared(z, z)  # noqa: E731
    compare(OP, f"speed, {which} decoder", "512 points", name, run, 5)


@pytest.mark.parametrize("name", ["fastlatent", "the decoder itself"])
@pytest.mark.parametrize("what", ["forward", "forward + backward to the latents"])
def test_output(compare, device, named, what, name):
    which, decoder = named
    z = latents(2048, device)
    metric = as_metric(decoder, example=z)
    output = metric.output if name == "fastlatent" else lambda z: flat(decoder, z)

    def run():
        if what == "forward":
            with torch.no_grad():
                output(z)
        else:
            leaf = z.clone().requires_grad_()
            y = output(leaf)
            torch.autograd.grad(y, leaf, y.detach())

    compare(OP, f"{which} decoder, {what}", "2,048 points", name, run, 5)
