"""The published procedure, all pairs together, against a loop over one pair at a time."""

from pathlib import Path

import original_curves
import pytest
import torch
import trained_decoders
from safetensors.torch import load_file

from fastlatent.geometry import as_metric
from fastlatent.geometry.original import Shortened, shorten

MAKE = torch.Generator().manual_seed(0)
FIRST = torch.randn(3, 32, generator=MAKE, dtype=torch.float64)
SECOND = torch.randn(32, 20, generator=MAKE, dtype=torch.float64) / 6


def decoder(z):
    """A smooth random network."""
    return torch.tanh(z @ FIRST) @ SECOND


def assert_same_curves(decoder, start, end, noise, found: Shortened, validate_every):
    """Control points on the knots of all pairs, and the shortest length at each validation."""
    nodes, history, counts = [], found.history, []
    for pair in range(len(start)):
        best, knots, lengths = original_curves.shorten(
            decoder, start[pair], end[pair], noise[pair], validate_every
        )
        counts.append(len(best))
        while len(best) < found.curves.control.shape[1]:
            best, knots = original_curves.insert(best, knots)
        nodes.append(best)
        shortest = torch.tensor(lengths, dtype=torch.float64).cummin(0).values
        stopped = len(history) - len(lengths)  # validations that a finished pair waits for others
        want = torch.cat([shortest, shortest[-1:].expand(stopped)])
        torch.testing.assert_close(history[:, pair], want, rtol=1e-9, atol=0)
        assert found.curves.knots.tolist() == knots
    torch.testing.assert_close(found.curves.control, torch.stack(nodes), rtol=0, atol=1e-7)
    return counts


@pytest.mark.parametrize(
    ("epochs", "points", "validate_every", "most"),
    [(20, 16, 5, 4), (30, 9, 3, 5), (130, 5, 2, 12)],  # as published; with one knot; with all
)
def test_curves_of_the_published_procedure(epochs, points, validate_every, most):
    make = torch.Generator().manual_seed(1)
    start, end = torch.randn(2, 3, 3, generator=make, dtype=torch.float64)
    noise = torch.randn(3, epochs, points, generator=make, dtype=torch.float64)
    found = shorten(as_metric(decoder), start, end, noise, validate_every)
    counts = assert_same_curves(decoder, start, end, noise, found, validate_every)
    assert max(counts) == most


@pytest.mark.parametrize("name", ["bigan", "vae"])
def test_curves_of_trained_decoders(name, data_root: Path):
    trained = getattr(trained_decoders, name)(data_root).requires_grad_(False)
    pairs = load_file(data_root / trained_decoders.FOLDER / "check_pairs.safetensors")
    start, end = pairs[f"{name}_start"][:1].double(), pairs[f"{name}_end"][:1].double()
    make = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 9, 4, generator=make, dtype=torch.float64)
    found = shorten(as_metric(trained), start, end, noise, validate_every=3)

    def moments(z):
        """Mean and standard deviation, whose Jacobians together give the stochastic metric."""
        output = trained(z)
        if name == "bigan":
            return output.flatten(1)
        return torch.cat([output[0].flatten(1), output[1].flatten(1).sqrt()], 1)

    assert_same_curves(moments, start, end, noise, found, validate_every=3)
    assert (found.history[-1] < found.history[0]).all()
