"""The polynomials in the sources are those that scripts/minimax.py derives."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"-?0x1\.[0-9a-f]+p[+-]?\d+"


@pytest.fixture(scope="module")
def minimax():
    spec = importlib.util.spec_from_file_location("minimax", ROOT / "scripts" / "minimax.py")
    module = sys.modules["minimax"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["minimax"]


def written(path, start, end, number):
    """The numbers between two marks of a file, from the lowest power up."""
    text = (ROOT / path).read_text()
    part = text[text.index(start) + len(start) :]
    return re.findall(number, part[: part.index(end)])[::-1]


def test_power(minimax):
    found = written("csrc/simd.h", "float kPowerTerms[] = {", "}", NUMBER)
    assert [float.fromhex(c) for c in found] == minimax.rounded(minimax.SERIES[0])


def test_mean_decay(minimax):
    derived = minimax.rounded(minimax.SERIES[1])
    found = written("csrc/simd.h", "inline f32v mean_decay(f32v x) {", "return", NUMBER)
    assert [float.fromhex(c) for c in found] == derived
    triton = written(
        "fastlatent/ops/elementary_triton.py",
        "def mean_decay",
        "p = p * x + 1\n",
        r"[+-]? ?\d\.\d{8}e-\d",
    )
    assert [float(np.float32(c.replace(" ", ""))) for c in triton] == derived


def test_rounding_costs_little(minimax):
    for series, exponent in zip(minimax.SERIES, (26, 28), strict=True):
        rounded, free = minimax.rounded(series), minimax.best(series)
        assert series.worst(free) <= series.worst(rounded) <= 1.1 * series.worst(free)
        assert series.worst(rounded) < 2.0**-exponent


def test_a_known_best_polynomial(minimax):
    """x^2 on [-1, 1] by a line: 1/2, with error 1/2 (Chebyshev)."""
    square = minimax.Series("square", lambda x: x**2, np.ones_like, -1.0, 1.0, 2)
    assert np.allclose(minimax.best(square), [0.5, 0], atol=1e-4)
    assert np.isclose(square.worst(minimax.best(square)), 0.5, atol=1e-4)
