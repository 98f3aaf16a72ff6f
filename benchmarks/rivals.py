"""The Frechet distance that FID packages find, and in what time: `python benchmarks/rivals.py`.

Prints one table: the same statistics go to all, those of features like a network's behind a ReLU.
The truth is taken from the features themselves, by the singular values of one's times the other's.
"""

import contextlib
import importlib.metadata
import io
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from fastlatent.metrics import frechet_distance
from fastlatent.patches import TARGETS

Moments = tuple[np.ndarray, np.ndarray]
D = 2048
F64 = torch.float64


def features(n: int, shift: float, seed: int) -> torch.Tensor:
    """(n, 2048) float64: correlated, partly zero, of a spectrum that falls."""
    mixing = torch.randn(D, D, dtype=F64, generator=torch.Generator().manual_seed(0))
    mixing *= torch.arange(1, D + 1).to(F64)[:, None] ** -0.5
    made = torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return (made @ mixing).add_(shift).relu_()


def inputs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    many = features(10_000, 0.0, 1)
    few, others = features(1_000, 0.0, 2), features(1_000, 0.1, 3)
    dead = [x * (torch.arange(D) % 2) for x in (few, others)]
    four = 1e4 * features(4, 0.0, 5)
    again = four + 1e-3 * torch.randn(4, D, dtype=F64, generator=torch.Generator().manual_seed(6))
    return {
        "10,000 and 10,000 features": (many, features(10_000, 0.1, 4)),
        "1,000 and 1,000 features": (few, others),
        "the same, every other feature 0": (dead[0], dead[1]),
        "10,000 features with themselves": (many, many),
        "4 features, large, and 4 nearly the same": (four, again),
    }


def truth(real: torch.Tensor, fake: torch.Tensor) -> float:
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (real, fake))
    apart = (real.mean(0) - fake.mean(0)).square().sum()
    traces = x.square().sum() + y.square().sum()
    r = [torch.linalg.qr(z, mode="r").R for z in (x, y)]
    return float(apart + traces - 2 * torch.linalg.svdvals(r[0] @ r[1].mT).sum())


def ours(one: Moments, two: Moments) -> float:
    return float(frechet_distance(*(torch.from_numpy(part) for part in (*one, *two))))


def of_package(name: str) -> Callable[[Moments, Moments], float]:
    function = TARGETS[name].find()

    def run(one: Moments, two: Moments) -> float:
        if name == "torch_fidelity":
            sides = [{"mu": mu, "sigma": sigma} for mu, sigma in (one, two)]
            return float(next(iter(function(*sides, verbose=False).values())))
        if name == "torchmetrics":
            return float(function(*(torch.from_numpy(part) for part in (*one, *two))))
        return float(function(*one, *two))

    return run


def cell(run: Callable[[Moments, Moments], float], one: Moments, two: Moments, rounds: int) -> str:
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = run(one, two)
        except (TypeError, ValueError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        took.append(time.perf_counter() - start)
    return f"{found:.9g} in {statistics.median(took):.3g} s"


def main() -> None:
    versions = {name: importlib.metadata.version(one.distribution) for name, one in TARGETS.items()}
    scipy = importlib.metadata.version("scipy")
    print(f"torch {torch.__version__}, SciPy {scipy}")
    rivals = {f"{name} {version}": of_package(name) for name, version in versions.items()}
    print("\n| statistics | truth | fastlatent | " + " | ".join(rivals) + " |")
    print("| --- " * (3 + len(rivals)) + "|")
    for what, (real, fake) in inputs().items():
        one, two = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (real, fake))
        cells = [cell(ours, one, two, 3), *(cell(run, one, two, 1) for run in rivals.values())]
        found = 0.0 if real is fake else truth(real, fake)
        print(f"| {what} | {found:.9g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
