"""Principal components of images, computed from batches of them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Rows = Callable[[], Iterable[Tensor]]  # each call passes once over the points, some (k, D) at once

MOST_EXACT = 3072  # numbers in a point up to which the covariance is taken apart as a whole
SPARE, ROUNDS = 16, 4  # directions more than asked for, and products with the covariance


class Principal(NamedTuple):
    """Mean and leading principal directions of points."""

    mean: Tensor  # (D,)
    directions: Tensor  # (d, D), orthonormal rows, largest variance first; largest entry positive

    def coordinates(self, points: Tensor) -> Tensor:  # (k, D) -> (k, d)
        return (points - self.mean) @ self.directions.T


def principal_directions(
    rows: Rows,
    count: int,  # N, how many points a pass has
    size: int,  # D, numbers in a point
    dim: int,  # d
    generator: torch.Generator,  # of the directions that the search begins with, where D is large
) -> Principal:
    """The first d directions of N points (float32, on the device of the points).

    From the whole covariance up to D = 3072, else by subspace iteration: N. Halko, P. G.
    Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53, 2011, algorithm
    4.4. Raises ValueError when d > min(N, D).
    """
    if dim > min(count, size):
        raise ValueError(
            f"principal_directions: dim must be at most {min(count, size)}, as there are {count} "
            f"images of {size} numbers; got {dim}"
        )
    total: Tensor | float = 0.0
    for points in rows():
        total = total + points.double().sum(0)
    mean = torch.as_tensor(total / count)
    if size <= MOST_EXACT:
        directions = _of_covariance(rows, mean, dim)
    else:
        directions = _of_products(rows, mean, dim, generator)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    return Principal(mean.float(), directions.float())


def _of_covariance(rows: Rows, mean: Tensor, dim: int) -> Tensor:  # (d, D)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for points in rows():
        centred = points - mean.float()
        covariance += (centred.T @ centred).double()
    return torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:dim]


def _of_products(rows: Rows, mean: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    width = min(dim + SPARE, len(mean))
    start = torch.randn(len(mean), width, generator=generator, dtype=torch.float64)
    product = start.to(mean.device)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(product).Q
        product = torch.zeros_like(basis)
        for points in rows():
            centred = points - mean.float()
            product += (centred.T @ (centred @ basis.float())).double()
    return torch.linalg.svd(product, full_matrices=False).U[:, :dim].T
