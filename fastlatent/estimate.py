"""A number from samples, with its standard error."""

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number from samples, with its standard error."""

    value: float
    error: float  # what it holds says the function that gave it; NaN where it cannot be known

    def __str__(self) -> str:
        """The value to the second digit of its error, and the error."""
        value, error = self
        if not (math.isfinite(value) and math.isfinite(error) and error > 0):
            return f"{value:,.5g}"
        places = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:,.{places}f} ± {error:.{places}f}"

    @staticmethod
    def of_sums(total: float, squares: float, n: int) -> "Estimate":
        """The mean of n values with their sum and that of their squares; its error NaN of one."""
        mean = total / n
        variance = max(squares / n - mean * mean, 0) / (n - 1) if n > 1 else math.nan
        return Estimate(mean, math.sqrt(variance))
