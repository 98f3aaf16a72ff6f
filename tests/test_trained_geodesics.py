"""Curves under the metric of trained decoders, against published numbers of the same weights."""

import pytest
import torch
from safetensors.torch import load_file
from trained_decoders import DATA, FOLDER, bigan, vae

from fastlatent.geometry import as_metric, curve_length, curve_measure, geodesic, straight
from fastlatent.geometry.length import original_energy

pytestmark = pytest.mark.skipif(DATA is None, reason="FASTLATENT_DATA is not set")
ENDS = -torch.ones(1, 16, dtype=torch.float64), torch.ones(1, 16, dtype=torch.float64)
DECODERS = {"bigan": bigan, "vae": vae}


@pytest.fixture(scope="module", params=DECODERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def decoder(name):
    return DECODERS[name](DATA)


@pytest.fixture(scope="module")
def pairs():
    return load_file(DATA / FOLDER / "check_pairs.safetensors")


TRUE = {"bigan": 86.1419, "vae": 41.37355}
SUMS = {
    "bigan": {16: 88.61743, 20: 87.58248, 32: 87.40274, 128: 86.67096},
    "vae": {16: 44.78525, 20: 44.04975, 32: 43.01420, 128: 41.77246},
}
DIFFERENCES = {
    "bigan": {16: 87.55951, 20: 88.12119},
    "vae": {16: 41.35069, 20: 41.37996},
}
ENERGIES = {
    "bigan": {16: 559.32698, 20: 429.64826},
    "vae": {16: 129.31608, 20: 100.09236},
}
CHORDS = {  # two numbers of segments, and what Richardson makes of them
    "bigan": {16: (79.146, 85.205), 64: (85.464, 86.115), 256: (86.0938, 86.1418)},
    "vae": {16: (41.0744, 41.3705), 64: (41.3541, 41.3735), 256: (41.3723, 41.37355)},
}
MEASURES = {"bigan": {16: 0.120331, 20: 0.122262}, "vae": {16: 0.063779, 20: 0.065200}}


def test_line_across_latent_space(name, decoder):
    control = straight(*ENDS).control
    length, error = curve_length(decoder, control, rtol=1e-5)
    assert float(length) == pytest.approx(TRUE[name], rel=2e-5)
    assert float(error) < 1e-5 * TRUE[name]
    for points, want in SUMS[name].items():
        got = curve_length(decoder, control, rule="original", points=points).length
        assert float(got) == pytest.approx(want, rel=1e-6)
    for points, want in DIFFERENCES[name].items():
        got = curve_length(decoder, control, rule="original_difference", points=points).length
        assert float(got) == pytest.approx(want, rel=1e-6)
    metric = as_metric(decoder)
    for points, want in ENERGIES[name].items():
        t = torch.linspace(0, 1, points, dtype=torch.float64)
        assert float(original_energy(metric, straight(*ENDS), t)) == pytest.approx(want, rel=1e-7)
    for points, want in MEASURES[name].items():
        got = float(curve_measure(metric, straight(*ENDS), points))
        assert got == pytest.approx(want, abs=1e-5)


def test_chords_approach_the_length_from_below(name, decoder):
    control = straight(*ENDS).control
    before = 0.0
    for segments, (chords, extrapolated) in CHORDS[name].items():
        length, error = curve_length(decoder, control, segments=segments, rtol=1)
        assert float(length) == pytest.approx(extrapolated, rel=1e-5)
        fine = float(length - error)  # the chords of twice as many segments
        coarse = fine - 3 * float(error)
        assert coarse == pytest.approx(chords, rel=1e-5)
        assert before < coarse < fine <= TRUE[name] * (1 + 1e-6)
        if segments >= 64:
            assert 0.5 < float(error) / (TRUE[name] - fine) < 2
        before = coarse


def test_quadrature_agrees_with_chords(name, decoder):
    control = straight(*ENDS).control
    for rule in ("trapezoid", "midpoint", "gauss"):
        length, _ = curve_length(decoder, control, rule=rule, rtol=1e-4)
        assert float(length) == pytest.approx(TRUE[name], rel=1e-4)


STRAIGHT = {
    "bigan": [15.82371, 22.40762, 19.83200, 21.28155, 25.21401, 18.38834],
    "vae": [13.57342, 10.33963, 12.73993],
}
SHORTER = {  # pieces 1, 4 and 8 in turn, 64 chords, tight tolerance
    "bigan": [15.122, 21.252, 18.695, 20.074, 20.252, 17.479],
    "vae": [13.228, 9.896, 12.327],
}


def test_check_pairs(name, pairs):
    """In float32, as used; no more than 0.5 % over what a tight tolerance finds."""
    decoder = DECODERS[name](DATA, torch.float32)
    start, end = pairs[f"{name}_start"].float(), pairs[f"{name}_end"].float()
    found = geodesic(decoder, start, end)
    torch.testing.assert_close(
        found.straight_length, torch.tensor(STRAIGHT[name]), rtol=2e-4, atol=0
    )
    want = torch.tensor(SHORTER[name])
    assert (found.length <= want * 1.005).all()
    assert (found.length >= want * 0.998).all()
    dense = curve_length(decoder, found.control, found.knots, rtol=1e-5).length
    torch.testing.assert_close(found.length, dense, rtol=5e-4, atol=0)


def test_one_piece_takes_few_iterations(name, pairs):
    decoder = DECODERS[name](DATA, torch.float32)
    start, end = pairs[f"{name}_start"].float(), pairs[f"{name}_end"].float()
    found = geodesic(decoder.float(), start, end, spans=(1,))
    assert (found.iterations <= 15).all()
    assert (found.evaluations <= 2500).all()
    assert found.converged.all()


def test_shorter_than_what_the_original_finds(name, pairs):
    """By chords of its own kind, on every pair."""
    decoder = DECODERS[name](DATA, torch.float32)
    start, end = pairs[f"{name}_start"].float(), pairs[f"{name}_end"].float()
    ours, theirs = geodesic(decoder, start, end), geodesic(decoder, start, end, "original")
    dense = [curve_length(decoder, found.control, found.knots, rtol=1e-5).length
             for found in (ours, theirs)]  # fmt: skip
    assert (dense[0] < dense[1]).all()


def test_both_directions(name, pairs):
    """Curves are local minima of coarse splines: what each way finds differs by little."""
    decoder = DECODERS[name](DATA, torch.float32)
    start, end = pairs[f"{name}_start"][:3].float(), pairs[f"{name}_end"][:3].float()
    there, back = geodesic(decoder, start, end), geodesic(decoder, end, start)
    torch.testing.assert_close(back.length, there.length, rtol=2e-3, atol=0)
    torch.testing.assert_close(back.straight_length, there.straight_length, rtol=1e-5, atol=0)


def test_shorter_than_what_the_original_ended_with(pairs):
    """Its control points on three pairs, the lengths of which it thought to be 6 % shorter."""
    decoder = bigan(DATA, torch.float32)
    start, end = pairs["bigan_start"][:3].float(), pairs["bigan_end"][:3].float()
    theirs = curve_length(decoder, pairs["bigan_original_bezier"].float()).length
    torch.testing.assert_close(theirs, torch.tensor([15.742, 22.139, 19.400]), rtol=2e-4, atol=0)
    ours = geodesic(decoder, start, end)
    assert (ours.length < 0.97 * theirs).all()
    again = geodesic(decoder, start, end, "original")
    line = torch.tensor([17.392, 24.077, 21.372])  # the straight lines by its own sum
    torch.testing.assert_close(again.history[0], line, rtol=1e-4, atol=0)
    assert (again.history[-1] < again.history[0]).all()
