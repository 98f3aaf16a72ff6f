"""Length, energy and measure of curves under a metric, with an estimate of the error.

"chord" sums the chords of the decoded curve: forward passes alone, defined for every continuous
decoder, on each grid never above the true length. "trapezoid", "midpoint" and "gauss" integrate the
speed |J c'|. All four double the number of segments until two results agree. "original" and
"original_difference" are the sums of Michelis and Becker, "On Linear Interpolation in the Latent
Space of Deep Generative Models", ICLR 2021 GTRL workshop, as their program takes them: on a fixed
grid, 1 / (points - 1) for each of the `points` speeds, hence too long by about 1 / (points - 1).
"""

from collections.abc import Callable
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastlatent.geometry.arguments import check_whole
from fastlatent.geometry.curves import Curves, check_curves
from fastlatent.geometry.frozen import Decoder
from fastlatent.geometry.metric import Embedding, Metric, as_metric
from fastlatent.ops import polyline_length, uniform_knots

Rule = Literal["chord", "trapezoid", "midpoint", "gauss", "original", "original_difference"]

JITTER = 1e-6  # that the original adds to metrics and under roots
LOCAL_PARTS = 64  # into which curves are cut that no grid of equal parts suits
POINTS = 1 << 12  # points measured at a time on the coarsest grid
HELD = 1 << 26  # numbers of decoded curves held at a time on finer ones
# Nodes and weights of Gauss and Legendre's rule of four points on [0, 1].
GAUSS = (
    (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262),
    (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692),
)


class Length(NamedTuple):
    """Lengths (n,) and an estimate of their error (n,); NaN for the rules of the original."""

    length: Tensor
    error: Tensor


class Measured(NamedTuple):
    """A length with what it took: each (n,)."""

    length: Tensor
    error: Tensor
    grid: Tensor  # the length on the first, coarsest grid
    evaluations: Tensor  # int64, of the decoder; a JVP counts as 3


def curve_length(
    decoder: Decoder | Metric,
    control: Tensor,  # (n, k, d)
    knots: Tensor | None = None,  # (k + degree + 1,); default: cubic, clamped and uniform
    rule: Rule = "chord",
    *,
    rtol: float = 1e-3,
    segments: int = 32,
    max_segments: int = 4096,
    points: int = 16,
) -> Length:
    """Lengths of B-spline curves under the metric that the decoder pulls back.

    The number of segments T starts at `segments` and doubles, for each curve by itself. It ends
    where the estimated error is below `rtol` times the length, or at `max_segments`. The value is
    L_2T + (L_2T - L_T) / 3 (Richardson extrapolation), the error |L_2T - L_T| / 3. The error of
    chords includes a bound on the rounding of differences between decoded points. Doubling may not
    converge, as near the edge of a metric that grows without bound. Then parts are halved one by
    one, `max_segments` more at most, and the error is the sum of the changes. What hides between
    the points of the first two grids is not seen. `points` is the grid of the original's rules.
    Decoders whose metric is no pull-back are measured by "midpoint" where "chord" is asked for. No
    gradients.

    Raises ValueError for an unknown rule, for numbers out of range, and what `as_metric` and
    `fastlatent.ops.bspline` raise.
    """
    if rule not in get_args(Rule):
        raise ValueError(
            f"curve_length: rule must be one of {', '.join(get_args(Rule))}; got {rule!r}"
        )
    check_whole("curve_length", "segments", segments, 1)
    check_whole("curve_length", "points", points, 2)
    check_whole("curve_length", "max_segments", max_segments, 1)
    if not rule.startswith("original") and max_segments < 2 * segments:
        raise ValueError(
            "curve_length: max_segments must be at least twice segments, for the estimate of the "
            f"error; got {max_segments} and {segments}"
        )
    if not isinstance(rtol, Real) or not rtol > 0:
        raise ValueError(f"curve_length: rtol must be positive; got {rtol!r}")
    metric = as_metric(decoder)
    if knots is None:
        knots = uniform_knots(control.shape[1], 3, control.dtype, control.device)
    curves = Curves(control, knots)
    if rule.startswith("original"):
        with torch.no_grad():
            length = ORIGINAL[rule](metric, curves, points)
        return Length(length, torch.full_like(length, torch.nan))
    found = measure(metric, curves, rule, rtol, segments, max_segments)
    return Length(found.length, found.error)


@torch.no_grad()
def measure(
    metric: Metric,
    curves: Curves,
    rule: Rule = "chord",
    rtol: float = 1e-3,
    segments: int = 32,
    max_segments: int = 4096,
) -> Measured:
    """`curve_length` by one of the rules that refine their grid, with everything checked."""
    embedding = metric if rule == "chord" and isinstance(metric, Embedding) else None
    if embedding is None:
        rows = max(1, POINTS // segments)
    else:
        rows = curves_at_once(embedding, curves, segments)
    whole: Measured | None = None
    for i in range(0, max(1, len(curves)), rows):
        some = curves[i : i + rows]
        if embedding is not None:
            part = _chords(embedding, some, rtol, segments, max_segments)
        else:
            part = _quadrature(metric, some, rule, rtol, segments, max_segments)
        if whole is None:  # made once, see `over_points`
            whole = Measured(*(value.new_empty(len(curves)) for value in part))
        for column, value in zip(whole, part, strict=True):
            column[i : i + rows] = value
    assert whole is not None
    return whole


def curves_at_once(metric: Metric, curves: Curves, segments: int) -> int:
    """How many curves to decode at a time, on a grid of so many segments and its halves."""
    points = POINTS
    if isinstance(metric, Embedding):
        points = min(POINTS, HELD // (2 * max(1, metric.floats_at(curves.start))))
    return max(1, points // segments)


def speeds_squared(metric: Metric, curves: Curves, t: Tensor) -> Tensor:
    """|J c'|^2 at t (m,): (n, m), differentiable in the control points."""
    z, dz = curves.points(t), curves.derivative(t)
    return metric.speed_squared(z.flatten(0, 1), dz.flatten(0, 1)).unflatten(0, z.shape[:2])


def original_length(metric: Metric, curves: Curves, points: int) -> Tensor:  # (n,)
    """The original's sum of `points` speeds, each times 1 / (points - 1)."""
    t = torch.linspace(0, 1, points, dtype=curves.control.dtype, device=curves.control.device)
    return (original_speeds_squared(metric, curves, t) + JITTER).sqrt().sum(1) / (points - 1)


def original_speeds_squared(metric: Metric, curves: Curves, t: Tensor) -> Tensor:  # (n, m)
    """c'^T (M + 1e-6 I) c' at t, (m,) or (n, m)."""
    z, dz = curves.points(t), curves.derivative(t)
    squares = metric.speed_squared(z.flatten(0, 1), dz.flatten(0, 1)).unflatten(0, z.shape[:2])
    return squares + JITTER * dz.square().sum(2)


def original_energy(metric: Metric, curves: Curves, t: Tensor) -> Tensor:  # (n,)
    """What the original minimises: the sum over t of c'^T M c', each times 1 / (points - 1)^2."""
    return original_speeds_squared(metric, curves, t).sum(1) / (t.shape[-1] - 1) ** 2


def _original_difference(metric: Metric, curves: Curves, points: int) -> Tensor:  # (n,)
    t = torch.linspace(0, 1, points, dtype=curves.control.dtype, device=curves.control.device)
    z = curves.points(t)
    middle, dz = ((z[:, 1:] + z[:, :-1]) / 2).flatten(0, 1), z.diff(dim=1).flatten(0, 1)
    squares = metric.speed_squared(middle, dz) + JITTER * dz.square().sum(1)
    return (squares + JITTER).sqrt().unflatten(0, (len(curves), points - 1)).sum(1)


ORIGINAL = {"original": original_length, "original_difference": _original_difference}


def curve_measure(
    decoder: Decoder | Metric,
    curves: Curves,
    points: int = 16,
) -> Tensor:  # (n,)
    """How far curves run along the cheapest directions: 1 entirely, 0 across them.

    The mean over `points` points of |cos| of the angle between c' and the eigenvector of the
    smallest eigenvalue. Its weights are the condition numbers (Michelis and Becker 2021).

    Raises TypeError for anything but Curves, ValueError for fewer than two points, and what
    `as_metric` raises.
    """
    check_curves("curve_measure", curves)
    check_whole("curve_measure", "points", points, 2)
    metric = as_metric(decoder)
    t = torch.linspace(0, 1, points, dtype=curves.control.dtype, device=curves.control.device)
    z, dz = curves.points(t).flatten(0, 1), curves.derivative(t).flatten(0, 1)
    matrix = metric.matrix(z).double()
    unit = JITTER * torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
    values, vectors = torch.linalg.eigh(matrix + unit)
    dz = dz.double()
    cosine = (dz * vectors[..., 0]).sum(1).abs() / (dz.norm(dim=1) + JITTER)
    weight = values[:, -1] / values[:, 0]
    weight, cosine = (x.unflatten(0, (len(curves), points)) for x in (weight, cosine))
    return ((weight * cosine).sum(1) / weight.sum(1)).to(curves.control.dtype)


def _chords(
    embedding: Embedding, curves: Curves, rtol: float, segments: int, max_segments: int
) -> Measured:
    """Chord lengths, halving the segments where the error asks for it.

    The part refined last goes on first, so that few decoded curves wait for others.
    """
    t = torch.linspace(0, 1, segments + 1, dtype=curves.control.dtype, device=curves.control.device)
    first = _decoded(embedding, curves, t)
    grid = polyline_length(first)
    length, error = grid.clone(), torch.empty_like(grid)
    evaluations = torch.empty(len(grid), dtype=torch.int64, device=grid.device)
    change = torch.full_like(grid, torch.inf)
    rough = torch.zeros_like(grid, dtype=torch.bool)
    waiting = [(torch.arange(len(grid), device=grid.device), t, first)]
    del first
    while waiting:
        rows, t, outputs = waiting.pop()
        finer = t.new_empty(2 * len(t) - 1)
        finer[::2], finer[1::2] = t, (t[1:] + t[:-1]) / 2
        between = _decoded(embedding, curves[rows], finer[1::2])
        joined = outputs.new_empty(len(rows), len(finer), outputs.shape[2])
        joined[:, ::2], joined[:, 1::2] = outputs, between
        del outputs, between
        fine, coarse = polyline_length(joined), length[rows]
        estimate = (fine - coarse).abs() / 3
        rounding = torch.finfo(t.dtype).eps * len(finer) * joined[:, [0, -1]].norm(dim=2).amax(1)
        final = fine + (fine - coarse) / 3
        # A NaN is not refined: it stays one.
        open_ = estimate > rtol * final
        wide = open_ & (2 * (len(finer) - 1) <= max_segments)
        rough[rows] = open_ & ~wide & (estimate > rounding) & _slow(fine - coarse, change[rows])
        length[rows], change[rows] = torch.where(wide, fine, final), (fine - coarse).abs()
        error[rows], evaluations[rows] = estimate + rounding, len(finer)
        if wide.any():
            held = max(1, HELD // (2 * joined[0].numel()))
            for part in wide.nonzero()[:, 0].split(held):
                waiting.append((rows[part], finer, joined[part]))
        del joined
    found = Measured(length, error, grid, evaluations)
    if rough.any():

        def chords(some: Curves, left: Tensor, right: Tensor) -> Tensor:
            ends = _decoded(embedding, some, torch.stack([left, right], 1))
            return (ends[:, 1] - ends[:, 0]).norm(dim=1)

        sizes = _decoded(embedding, curves, t[[0, -1]]).norm(dim=2).amax(1)
        _locally(found, rough, chords, 2, sizes, embedding, curves, rtol, max_segments)
    return found


def _decoded(embedding: Embedding, curves: Curves, t: Tensor) -> Tensor:  # (n, m, D)
    z = curves.points(t)
    return embedding.output(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def _quadrature(
    metric: Metric, curves: Curves, rule: Rule, rtol: float, segments: int, max_segments: int
) -> Measured:
    integral = {"trapezoid": _trapezoid, "gauss": _gauss}.get(rule, _midpoint)
    grid = integral(metric, curves, segments)
    length, error = grid.clone(), torch.full_like(grid, torch.inf)
    evaluations = torch.full((len(curves),), 3 * segments, device=grid.device)
    rows = torch.arange(len(curves), device=grid.device)
    before, rough = torch.full_like(grid, torch.inf), torch.zeros_like(grid, dtype=torch.bool)
    while len(rows):
        segments *= 2
        fine = integral(metric, curves[rows], segments)
        evaluations[rows] += 3 * segments
        change = (fine - length[rows]) / 3
        error[rows] = change.abs()
        open_ = change.abs() > rtol * fine
        more = open_ & (2 * segments <= max_segments)
        rough[rows] = open_ & ~more & _slow(change, before[rows])
        length[rows], before[rows] = torch.where(more, fine, fine + change), change.abs()
        rows = rows[more]
    found = Measured(length, error, grid, evaluations)
    if rough.any():

        def middles(some: Curves, left: Tensor, right: Tensor) -> Tensor:
            middle = ((left + right) / 2)[:, None]
            return speeds_squared(metric, some, middle)[:, 0].sqrt() * (right - left)

        sizes = torch.zeros_like(grid)
        _locally(found, rough, middles, 3, sizes, metric, curves, rtol, max_segments)
    return found


def _slow(change: Tensor, before: Tensor) -> Tensor:
    """Whether differences between grids fall more slowly than a rule of second order's: by 4."""
    return change.abs() > before / 2


def _locally(
    found: Measured,
    rough: Tensor,  # (n,) bool: which of the curves
    measured: Callable[[Curves, Tensor, Tensor], Tensor],
    cost: int,  # in evaluations, of one part
    sizes: Tensor,  # (n,) of the numbers that a part is a difference of, for their rounding
    metric: Metric,
    curves: Curves,
    rtol: float,
    most: int,
) -> None:
    """Measures anew the curves that no equal parts suit, as where a metric grows without bound.

    Halves the parts that carry the error, until at most `most` more are there. `measured` takes a
    curve for each part, and its ends. The error is the sum of what halving changes, three times
    that of a rule of second order: the parts may be so large that this is not what they follow.
    """
    rows = rough.nonzero()[:, 0]
    n, like = len(rows), curves.control
    grid = torch.linspace(0, 1, LOCAL_PARTS + 1, dtype=like.dtype, device=like.device)
    owner = torch.arange(n, device=like.device).repeat_interleave(LOCAL_PARTS)
    left, right = grid[:-1].repeat(n), grid[1:].repeat(n)
    at_once = curves_at_once(metric, curves, 2)

    def lengths(owner: Tensor, left: Tensor, right: Tensor) -> Tensor:
        found.evaluations.index_add_(0, rows[owner], torch.full_like(owner, cost))
        parts = zip(*(x.split(at_once) for x in (owner, left, right)), strict=True)
        return torch.cat([measured(curves[rows[some]], *ends) for some, *ends in parts])

    whole = lengths(owner, left, right)
    count = torch.full((n,), LOCAL_PARTS, device=like.device)
    total, error = like.new_zeros(n), like.new_zeros(n)
    while len(owner):
        middle = (left + right) / 2
        halves = lengths(owner, left, middle), lengths(owner, middle, right)
        change = halves[0] + halves[1] - whole
        value = whole + change * (4 / 3)
        sums = total.index_add(0, owner, value), error.index_add(0, owner, change.abs())
        share = rtol * sums[0] / (2 * count)
        more = (change.abs() > share[owner]) & (sums[1] > rtol * sums[0])[owner]
        added = torch.zeros_like(count).index_add(0, owner, more.long())
        more &= (count + added <= LOCAL_PARTS + most)[owner] & (left < middle) & (middle < right)
        total = total.index_add(0, owner[~more], value[~more])
        error = error.index_add(0, owner[~more], change[~more].abs())
        count += torch.zeros_like(count).index_add(0, owner[more], torch.ones_like(owner[more]))
        whole = torch.cat([half[more] for half in halves])
        left, right = torch.cat([left[more], middle[more]]), torch.cat([middle[more], right[more]])
        owner = owner[more].repeat(2)
    eps = torch.finfo(like.dtype).eps
    found.length[rows], found.error[rows] = total, error + eps * (total + count * sizes[rows])


def _trapezoid(metric: Metric, curves: Curves, segments: int) -> Tensor:
    t = torch.linspace(0, 1, segments + 1, dtype=curves.control.dtype, device=curves.control.device)
    return torch.trapezoid(speeds_squared(metric, curves, t).sqrt(), dx=1 / segments)


def _midpoint(metric: Metric, curves: Curves, segments: int) -> Tensor:
    return speeds_squared(metric, curves, midpoints(curves, segments)).sqrt().mean(1)


def midpoints(curves: Curves, segments: int) -> Tensor:
    """The middles of that many equal parts of [0, 1]."""
    like = curves.control
    return (torch.arange(segments, dtype=like.dtype, device=like.device) + 0.5) / segments


def _gauss(metric: Metric, curves: Curves, segments: int) -> Tensor:
    t, weight = gauss_nodes(curves, -(-segments // (4 * curves.spans)))
    return speeds_squared(metric, curves, t).sqrt() @ weight


def gauss_nodes(curves: Curves, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Nodes and weights: four on each of `parts` equal parts of the curves' polynomial pieces."""
    breaks = curves.breaks
    inner = torch.arange(parts, dtype=breaks.dtype, device=breaks.device) / parts
    left = (breaks[:-1, None] + breaks.diff()[:, None] * inner).flatten()
    width = (breaks.diff() / parts).repeat_interleave(parts)
    nodes, weights = breaks.new_tensor(GAUSS)
    return (left[:, None] + width[:, None] * nodes).flatten(), (width[:, None] * weights).flatten()
