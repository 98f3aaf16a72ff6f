"""Shorter curves under the metric of trained decoders, against the published procedure.

With FASTLATENT_DATA the decoders are the trained ones of Michelis and Becker, otherwise the same
layers with random weights. Their program is repeated here step for step, on one pair, with the VAE
on one of the points of its grid, and the time of all pairs is extrapolated from that.
"""

import sys
from pathlib import Path

import pytest
import torch

from fastlatent import geometry
from fastlatent.geometry import as_metric, curve_length, straight
from fastlatent.geometry.experiment import eigenvector_pairs, experiment
from fastlatent.geometry.original import EPOCHS, VALIDATE_EVERY

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from trained_decoders import DATA, bigan, vae

WEIGHTS = "trained" if DATA else "random"
DECODERS = {"BiGAN": bigan, "VAE with variance": vae}
PAIRS = {"cpu": 100, "cuda": 1_000}
GRID = 16  # points of the program's grid


@pytest.fixture(scope="module", params=DECODERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def decoder(name, device):
    return DECODERS[name](DATA, torch.float32).to(device)


def starts(n, device):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(0)).to(device)


class Program:
    """The published program's step on one pair: the metric from copies of each point."""

    def __init__(self, decoder, start, end, visited=GRID):
        self.decoder, self.visited = decoder, visited  # points of the grid that are computed
        self.control = straight(start, end).control.clone().requires_grad_(True)
        self.knots = straight(start, end).knots
        self.optimiser = torch.optim.Adam([self.control], lr=1.0, weight_decay=1e-4)

    def rows(self, z, graph):
        """J, one row for each pixel, by as many copies of z and one backward pass."""
        parts = self.decoder(z)
        parts = parts if isinstance(parts, tuple) else (parts,)
        found = []
        for index, part in enumerate(parts):
            pixels = part[0].numel()
            copies = z.expand(pixels, -1).clone()
            copies = copies.requires_grad_(True) if not graph else copies
            out = self.decoder(copies)
            out = (out if isinstance(out, tuple) else (out,))[index].flatten(1)
            out = out.clamp_min(0).sqrt() if index else out
            unit = torch.eye(pixels, device=z.device)
            (jacobian,) = torch.autograd.grad(out, copies, unit, create_graph=graph)
            found.append(jacobian)
        return torch.cat(found)

    def epoch(self, train):
        """All points of the grid, one at a time; a step where it trains, else the length."""
        device = self.control.device
        t = torch.linspace(0, 1, GRID, device=device)
        total = 0.0
        for i in range(self.visited):
            control = self.control if train else self.control.detach()
            curve = geometry.Curves(control, self.knots)
            z, dz = curve.points(t[i : i + 1])[0], curve.derivative(t[i : i + 1])[0]
            z = z if train else z.requires_grad_(True)
            jacobian = self.rows(z, train)
            matrix = jacobian.mT @ jacobian + 1e-6 * torch.eye(16, device=device)
            energy = (dz @ matrix * dz).sum() / (GRID - 1) ** 2
            if train:
                energy.backward()
            total += float(energy)
        if train:
            self.optimiser.step()
            self.optimiser.zero_grad()
        return total


@pytest.mark.parametrize("method", ["fastlatent", "published procedure, batched here"])
def test_monte_carlo(compare, device, name, decoder, method):
    word = "lbfgs" if method == "fastlatent" else "original"

    def run():
        begin = starts(PAIRS[device], device)
        metric = as_metric(decoder, example=begin)
        pairs = eigenvector_pairs(metric, begin)
        experiment(metric, pairs.start, pairs.end, method=word)

    size = f"{PAIRS[device]} pairs, {WEIGHTS} {name} decoder, d = 16"
    rounds = 3 if word == "lbfgs" else 1
    compare("polyline_energy", "Monte-Carlo improvement", size, method, run, rounds)


def test_published_program(compare, device, name, decoder):
    """20 epochs as by default, every fifth a validation; the straight line is one more.

    Its points are computed one after the other, so that each takes as long as the others.
    """
    pairs = eigenvector_pairs(decoder, starts(1, device))
    visited = 1 if "variance" in name else GRID  # all 16, with 784 rows more, are ten minutes
    program = Program(decoder, pairs.start, pairs.end, visited)

    def run():
        program.epoch(train=False)
        for epoch in range(1, EPOCHS + 1):
            program.epoch(train=epoch % VALIDATE_EVERY > 0)

    size = f"{PAIRS[device]} pairs, {WEIGHTS} {name} decoder, d = 16"
    part = "" if visited == GRID else f"{visited} of {GRID} points of "
    rival, share = f"published program, {part}one of the pairs", visited / GRID / PAIRS[device]
    compare("polyline_energy", "Monte-Carlo improvement", size, rival, run, 1, share)


RULES = {
    "fastlatent": "chord",
    "Gauss quadrature": "gauss",
    "sum of the published program": "original",
}


@pytest.mark.parametrize("method", RULES)
def test_lengths(compare, device, name, decoder, method):
    pairs = eigenvector_pairs(decoder, starts(PAIRS[device], device))
    control = straight(pairs.start, pairs.end).control
    size = f"{PAIRS[device]} lines, {WEIGHTS} {name} decoder"
    run = lambda: curve_length(decoder, control, rule=RULES[method])  # noqa: E731
    compare("polyline_length", "curve length", size, method, run, 5)
