"""Directions in the Gaussian space of a Bernoulli copula: the cell of a code, arcs between cells.

A direction is m = A^T beta for a factor A of the correlations R = A A^T, so everything is written
in beta and R alone: activations A m = R beta, inner products <m, m'> = beta^T R beta'. The code of
m is the sign of its activations; the last coordinate is the reference bit, +1. After Fajtl et al.,
"Latent Bernoulli Autoencoder", ICML 2020.
"""

import torch
from torch import Tensor

_DUAL_BOUND = 1e4  # of the multipliers: keeps codes without an exact direction finite
_CHECK_EVERY = 20


def margin_directions(
    correlation: Tensor,  # (d + 1, d + 1) float64
    codes: Tensor,  # (k, d)
    rounds: int = 2000,
    tolerance: float = 0.05,
) -> Tensor:  # beta (k, d + 1), unit directions
    """The directions that keep the largest distance from every wall of their code's cell.

    With y = (code, +1): the smallest y_i (R beta)_i is maximised over unit m. This hard-margin
    support vector machine is solved in its dual: alpha^T (y y^T * R) alpha / 2 - sum alpha,
    minimised over 0 <= alpha <= 1e4 with beta = y * alpha. The solver is accelerated projected
    gradient with adaptive restart (O'Donoghue and Candes 2015), for all codes at once. Stops when
    every margin is within `tolerance`, relative, of its dual bound, or after `rounds`.
    """
    y = torch.cat([codes, codes.new_ones(len(codes), 1)], 1).to(correlation)
    step = 1 / torch.linalg.eigvalsh(correlation)[-1]
    alpha = torch.zeros_like(y)
    ahead, momentum = alpha, y.new_ones(len(y), 1)
    for k in range(rounds):
        slope = y * ((y * ahead) @ correlation) - 1
        new = (ahead - step * slope).clamp(0, _DUAL_BOUND)
        overshot = ((ahead - new) * (new - alpha)).sum(1, keepdim=True) > 0
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = new + torch.where(overshot, 0.0, (momentum - 1) / grown) * (new - alpha)
        alpha, momentum = new, torch.where(overshot, 1.0, grown)
        if k % _CHECK_EVERY == 0 and _margin_gap(correlation, y, alpha) < tolerance:
            break
    return _normalised(correlation, y * alpha)


def split_directions(
    correlation: Tensor,  # (d + 1, d + 1) float64
    codes: Tensor,  # (k, d)
) -> Tensor:  # beta (k, d + 1), unit directions
    """Mean row of the +1 bits minus mean row of the -1 bits, each improved by a pocket iteration.

    The LBAE authors' procedure, with R in place of their unnormalised matrix. The reference bit
    takes no part; a code of equal bits has one side only. Directions often miss bits of their code.
    """
    rows = correlation[:-1, :-1]
    plus = _pocket(rows, codes > 0, rounds=None)
    minus = _pocket(rows, codes < 0, rounds=10)
    beta = _normalised(rows, plus - minus)
    return torch.cat([beta, beta.new_zeros(len(beta), 1)], 1)


def slerp(
    start: Tensor,  # (..., d), unit vectors
    end: Tensor,  # (..., d), unit vectors
    t: Tensor | float,  # broadcasts with (...)
) -> Tensor:  # (..., d)
    """The point at fraction t of the arc from `start` to `end` (Shoemake 1985)."""
    first, second = slerp_weights((start * end).sum(-1), t)
    return first[..., None] * start + second[..., None] * end


def slerp_weights(cosine: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """Weights of both ends at fraction t of an arc of given cosine; linear where that is +/-1."""
    angle = cosine.clamp(-1, 1).arccos()
    t = torch.as_tensor(t, dtype=angle.dtype, device=angle.device)
    # Below this the sines of half an arc carry no digits; above, both ends come out exactly.
    flat = angle.sin() < 1e-7
    angle = torch.where(flat, 1.0, angle)
    first = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / angle.sin())
    second = torch.where(flat, t, (t * angle).sin() / angle.sin())
    return first, second


def _margin_gap(correlation: Tensor, y: Tensor, alpha: Tensor) -> float:
    """Relative shortfall of the worst margin from its dual bound 1 / sqrt(2 dual)."""
    activations = y * ((y * alpha) @ correlation)
    squared_length = (alpha * activations).sum(1)
    bound = (2 * (alpha.sum(1) - squared_length / 2)).rsqrt()
    margin = activations.amin(1) / squared_length.sqrt()
    return float((1 - margin / bound).max()) if len(y) else 0.0


def _pocket(
    rows: Tensor,  # (d, d) correlations
    side: Tensor,  # (k, d) bool, the bits of one side
    rounds: int | None,  # None: as long as the number of wrong rows falls; else it may stay equal
) -> Tensor:  # (k, d) unit directions, 0 where a side is empty
    copies = side.to(rows)
    best, fewest = torch.zeros_like(copies), copies.new_full((len(copies),), torch.inf)
    active = side.any(1)
    done = 0
    while active.any() and done != rounds:
        direction = _normalised(rows, copies)
        wrong = side & (direction @ rows < 0)
        count = (copies * wrong).sum(1)
        accepted = active & (count < fewest if rounds is None else count <= fewest)
        best = torch.where(accepted[:, None], direction, best)
        fewest = torch.where(accepted, count, fewest)
        active = accepted & (count > 0)
        copies = copies + copies * wrong
        done += 1
    return best


def _normalised(correlation: Tensor, beta: Tensor) -> Tensor:
    length = ((beta @ correlation) * beta).sum(1, keepdim=True).clamp_min(0).sqrt()
    return torch.where(length > 0, beta / length, 0.0)
