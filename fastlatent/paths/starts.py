"""Where the search for a likelihood path begins: lines, bent lines, ways through data, noise.

What a pair of ends is given depends on the pair, the seed and the data, never on other pairs.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastlatent.geometry.graphs import evenly_along, nearest_rows, neighbour_edges, shortest_paths
from fastlatent.noise import generator
from fastlatent.paths.objective import LogProb

Start = Literal["line", "bent", "graph", "random"]

AMPLITUDE = 0.2  # of bent and random starts, in units of the distance of the ends
NEIGHBOURS = 10
FLAT = 1e-6  # of a slope beside the line, relative to all of it: as good as none


def straight_points(start: Tensor, end: Tensor, n: int) -> Tensor:
    """n points at even steps between ends (k, d), without the ends: (k, n, d)."""
    return torch.lerp(start[:, None], end[:, None], _shares(n, start)[:, None])


def first_points(
    starts: Sequence[Start],
    log_prob: LogProb,
    start: Tensor,  # (k, d)
    end: Tensor,  # (k, d)
    n: int,
    data: Tensor | None,
    seed: int,
) -> tuple[list[str], Tensor]:  # names, (k, s, n, d)
    """The points of each start, of which "bent" is three: two arcs and a wave."""
    line = straight_points(start, end, n)
    distance = (end - start).norm(dim=1)[:, None, None]
    found: dict[str, Tensor] = {}
    for name in starts:
        if name == "line":
            found[name] = line
        elif name == "bent":
            t = _shares(n, start)[:, None]
            aside = AMPLITUDE * distance * _aside(log_prob, line, end - start, seed)[:, None]
            arc, wave = (math.pi * t).sin() * aside, (2 * math.pi * t).sin() * aside
            found |= {"arc": line + arc, "counter-arc": line - arc, "wave": line + wave}
        elif name == "graph":
            assert data is not None
            found[name] = torch.from_numpy(through_data(data, start, end, n)).to(start)
        else:
            noise = torch.randn(line.shape[1:], generator=generator(seed, 0, "random start"))
            found[name] = line + AMPLITUDE * distance * noise.to(line)
    return [*found], torch.stack([*found.values()], 1)


def _shares(n: int, like: Tensor) -> Tensor:  # (n,)
    return torch.arange(1, n + 1, dtype=like.dtype, device=like.device) / (n + 1)


def _aside(log_prob: LogProb, line: Tensor, way: Tensor, seed: int) -> Tensor:  # (k, d)
    """Unit directions at right angles to the lines, up the slope of log p where there is one.

    Where there is none it is the same direction for all pairs, drawn by the seed; in one
    dimension, and between equal ends, it is 0.
    """
    inner = line.flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        (score,) = torch.autograd.grad(log_prob(inner).sum(), inner)
    slope = score.unflatten(0, line.shape[:2]).mean(1)
    drawn = torch.randn(line.shape[2], generator=generator(seed, 0, "bent start")).to(line)
    unit = torch.nn.functional.normalize(way, dim=1)

    def beside(v: Tensor) -> Tensor:
        return v - (v * unit).sum(1, keepdim=True) * unit

    steep = beside(slope)
    flat = ~(steep.norm(dim=1) > FLAT * slope.norm(dim=1))  # also where the slope is not finite
    aside = torch.where(flat[:, None], beside(drawn.expand_as(way)), steep)
    return torch.nn.functional.normalize(aside, dim=1) if line.shape[2] > 1 else aside * 0


def through_data(data: Tensor, start: Tensor, end: Tensor, n: int) -> np.ndarray:  # (k, n, d)
    """Points at even steps along the ways through the graph of nearest neighbours of data (m, d).

    A step weighs the square of its length, so that a way keeps to where data is dense.
    """
    m, k = len(data), len(start)
    points = torch.cat([data, start, end]).detach()
    inner = neighbour_edges(data, NEIGHBOURS)
    # The ends are no way through: one only leaves a start, and only arrives at an end.
    near = min(NEIGHBOURS, m)
    leave = np.stack(
        [np.repeat(m + np.arange(k), near), nearest_rows(start, data, near).ravel()], 1
    )
    arrive = np.stack(
        [nearest_rows(end, data, near).ravel(), np.repeat(m + k + np.arange(k), near)], 1
    )
    edges = np.concatenate([inner, inner[:, ::-1], leave, arrive])
    corners = points.double().cpu().numpy()
    squares = np.square(corners[edges[:, 0]] - corners[edges[:, 1]]).sum(1)
    weights = np.maximum(squares, np.finfo(np.float64).tiny)  # a weight of 0 would be no edge
    rows = np.arange(k)
    goal = np.linspace(0, 1, n + 2)
    found = []
    for path, _ in shortest_paths(edges, weights, m + rows, m + k + rows, len(corners), True):
        steps = np.linalg.norm(np.diff(corners[path], axis=0), axis=1)
        found.append(evenly_along(corners[path], np.append(0, steps.cumsum()), goal)[1:-1])
    return np.stack(found) if found else np.empty((0, n, data.shape[1]))
