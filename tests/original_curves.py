"""Michelis and Becker's procedure for shorter curves, one pair at a time, for tests.

From the description of their program, with nothing of fastlatent in it: the recursion of Cox and de
Boor and Boehm's formula in plain loops, Jacobians by torch.func, Adam by torch.optim.
"""

from itertools import pairwise

import torch
from torch import Tensor

NODES = 10  # inner control points at most
RESTARTS = 5


def basis(t: Tensor, knots: list[float], degree: int = 3) -> Tensor:  # (m,) -> (m, k)
    """Values of the basis functions; the last span holds its right end."""
    last = max(i for i in range(len(knots) - 1) if knots[i] < knots[i + 1])
    spans = [
        (t >= left) & ((t < right) | ((t == right) & (i == last)))
        for i, (left, right) in enumerate(pairwise(knots))
    ]
    values = [span.to(t) for span in spans]
    for p in range(1, degree + 1):
        raised = []
        for i in range(len(values) - 1):
            rise, fall = knots[i + p] - knots[i], knots[i + p + 1] - knots[i + 1]
            value = torch.zeros_like(t)
            if rise > 0:
                value = value + (t - knots[i]) / rise * values[i]
            if fall > 0:
                value = value + (knots[i + p + 1] - t) / fall * values[i + 1]
            raised.append(value)
        values = raised
    return torch.stack(values, 1)


def point_and_slope(nodes: Tensor, knots: list[float], t: Tensor) -> tuple[Tensor, Tensor]:
    """c and c' (m, d) at t (m,) of the cubic with control points `nodes` (k, d)."""
    width = torch.tensor(
        [right - left for left, right in zip(knots[1:], knots[4:-1], strict=False)]
    )
    chords = 3 * nodes.diff(dim=0) / width.to(nodes)[:, None]
    return basis(t, knots) @ nodes, basis(t, knots[1:-1], 2) @ chords


def insert(nodes: Tensor, knots: list[float]) -> tuple[Tensor, list[float]]:
    """Boehm's insertion in the middle of the widest span, the first of equals."""
    widths = [right - left for left, right in pairwise(knots)]
    k = widths.index(max(widths))
    u = (knots[k] + knots[k + 1]) / 2
    rows = []
    for i in range(len(nodes) + 1):
        if i <= k - 3:
            rows.append(nodes[i])
        elif i <= k:
            w = (u - knots[i]) / (knots[i + 3] - knots[i])
            rows.append((1 - w) * nodes[i - 1] + w * nodes[i])
        else:
            rows.append(nodes[i - 1])
    return torch.stack(rows), [*knots[: k + 1], u, *knots[k + 1 :]]


class Curve:
    """A cubic whose inner nodes Adam moves."""

    def __init__(self, nodes: Tensor, knots: list[float], rate: float):
        self.ends, self.knots = (nodes[:1], nodes[-1:]), knots
        self.inner = nodes[1:-1].clone().requires_grad_()
        self.adam = torch.optim.Adam([self.inner], lr=rate, weight_decay=1e-4)
        self.decay = torch.optim.lr_scheduler.ExponentialLR(self.adam, 0.9)

    @property
    def nodes(self) -> Tensor:
        return torch.cat([self.ends[0], self.inner, self.ends[1]])

    def squares(self, decoder, t: Tensor) -> Tensor:
        """c'^T (J^T J + 1e-6 I) c' at t (m,), differentiable in the inner nodes."""
        z, dz = point_and_slope(self.nodes, self.knots, t)
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda x: decoder(x[None]).flatten()))(z)
        unit = torch.eye(z.shape[1], dtype=z.dtype)
        matrix = jacobian.mT @ jacobian + 1e-6 * unit
        return (dz[:, None] @ matrix @ dz[:, :, None])[:, 0, 0]

    def length(self, decoder, points: int) -> float:
        squares = self.squares(decoder, torch.linspace(0, 1, points, dtype=self.inner.dtype))
        return (squares + 1e-6).sqrt().sum().item() / (points - 1)

    def step(self, decoder, t: Tensor) -> None:
        self.adam.zero_grad()
        (self.squares(decoder, t).sum() / (len(t) - 1) ** 2).backward()
        self.adam.step()
        self.decay.step()


def shorten(
    decoder,
    start: Tensor,  # (d,)
    end: Tensor,  # (d,)
    noise: Tensor,  # (epochs, points), standard normal
    validate_every: int = 5,
) -> tuple[Tensor, list[float], list[float]]:
    """Control points and knots of the best curve; all lengths, that of the straight line first."""
    epochs, points = noise.shape
    grid, dt = torch.linspace(0, 1, points, dtype=start.dtype), 1 / (points - 1)
    line = torch.stack([start + share / 3 * (end - start) for share in range(4)])
    curve = Curve(line, [0.0] * 4 + [1.0] * 4, 1.0)
    best, knots, lengths = line, curve.knots, [curve.length(decoder, points)]
    shortest, needed, failures = lengths[0], lengths[0] / 200, 0
    for epoch in range(1, epochs + 1):
        if epoch % validate_every:
            curve.step(decoder, (grid + 0.1 * dt * noise[epoch - 1]).clamp(0, 1))
            continue
        lengths.append(curve.length(decoder, points))
        gained = shortest - lengths[-1]
        if gained > 0:
            best, knots, shortest = curve.nodes.detach(), curve.knots, lengths[-1]
        if gained >= needed:
            continue
        if failures < RESTARTS:
            failures += 1
            curve = Curve(best, knots, 0.3**failures)
        elif len(best) == NODES + 2:
            break
        else:
            best, knots = insert(best, knots)
            failures, curve = 0, Curve(best, knots, 1.0)
    return best, knots, lengths
