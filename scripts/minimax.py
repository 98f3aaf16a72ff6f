"""Derives the polynomials of csrc/simd.h and fastlatent/ops/elementary_triton.py and prints them.

python scripts/minimax.py

Each is the polynomial with the smallest largest relative error of what is computed with it, found
by linear programming on Chebyshev points (M. J. D. Powell, Approximation Theory and Methods, 1981,
chapter 8). Its coefficients are rounded to float32 one after the other, the lowest power first; the
higher powers are found again after each, as they can give back what rounding took.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Values = NDArray[np.float64]
POINTS = 400
UNIT = 2.0**-24  # errors are solved for in units of it, half of float32's last place at 1


@dataclass(frozen=True)
class Series:
    """A polynomial of `terms` coefficients near `target`, whose error counts times `weight`."""

    name: str
    target: Callable[[Values], Values]
    weight: Callable[[Values], Values]
    low: float
    high: float
    terms: int

    def worst(self, coefficients: Sequence[float]) -> float:
        """The largest error on a fine grid, with coefficients from the lowest power up."""
        x = self.points(8 * POINTS)
        near = np.polynomial.polynomial.polyval(x, coefficients)
        return float(np.max(np.abs(near - self.target(x)) * self.weight(x)))

    def points(self, count: int) -> Values:
        """Chebyshev points of the range; none of an even number is its middle."""
        turns = np.cos(np.pi * (np.arange(count) + 0.5) / count)
        return (self.low + self.high) / 2 + (self.high - self.low) / 2 * turns


def rest(x: Values, first: int) -> Values:
    """Sum of x^k / (k + first)! over k >= 0: what follows the first terms of e^x, divided."""
    return sum((x**k / math.factorial(k + first) for k in range(18)), np.zeros_like(x))


HALF = math.log(2) / 2
SERIES = (
    Series(
        "kPowerTerms: p in e^r - 1 = r + r^2 p(r)",
        lambda r: rest(r, 2),
        lambda r: np.abs(r / rest(r, 1)),
        -HALF,
        HALF,
        5,
    ),
    Series(
        "mean_decay: p in (1 - e^-x) / x = 1 + x p(x)",
        lambda x: -rest(-x, 2),
        lambda x: x / rest(-x, 1),
        0.0,
        1.0,
        6,
    ),
)


def best(series: Series, known: Sequence[float] = ()) -> list[float]:
    """The best coefficients from the lowest power up, the first of them as known."""
    x = series.points(POINTS)
    weight = series.weight(x) / UNIT
    powers = x[:, None] ** np.arange(len(known), series.terms) * weight[:, None]
    given = np.polynomial.polynomial.polyval(x, [*known, 0.0])
    right = (series.target(x) - given) * weight
    bound = np.ones((len(x), 1))
    solved = linprog(
        np.r_[np.zeros(powers.shape[1]), 1],
        np.block([[powers, -bound], [-powers, -bound]]),
        np.r_[right, -right],
        bounds=(None, None),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return [*known, *solved.x[:-1].tolist()]


def rounded(series: Series) -> list[float]:
    """The coefficients in float32, from the lowest power up."""
    known: list[float] = []
    for place in range(series.terms):
        known.append(float(np.float32(best(series, known)[place])))
    return known


def main() -> None:
    for series in SERIES:
        found = rounded(series)
        print(f"{series.name}, {series.low:.4g} to {series.high:.4g}, highest power first:")
        print("  in hexadecimal", ", ".join(hexadecimal(c) for c in reversed(found)))
        print("  in decimal    ", ", ".join(f"{c:.9g}" for c in reversed(found)))
        free = series.worst(best(series))
        error = series.worst(found)
        print(
            f"  largest relative error 2^{math.log2(error):.2f}; unrounded 2^{math.log2(free):.2f}"
        )


def hexadecimal(value: float) -> str:
    """A float32 as C++ writes it."""
    head, exponent = value.hex().split("p")
    return f"{head[:-7]}p{exponent}f"


if __name__ == "__main__":
    main()
