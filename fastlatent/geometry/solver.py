"""Shorter curves between many pairs of points at once.

The energy of a curve, T times the sum of the squared chords of its decoded points, is minimised
over the control points of a B-spline; among curves of one length the energy is least at constant
speed, so what comes out is a geodesic at constant speed. L-BFGS starts from the exact inverse
Hessian of a constant metric: K^-1 of the spline's stiffness K times the inverse of the mean metric
along the curve, taken anew where that has become much shorter. That makes the number of iterations
independent of the number of knots and of the scale of the decoder. The curve is then refined by
knot insertion and minimised again.

Lengths are measured on grids of their own, with an error estimate, never on the one that the
minimiser saw: it hides detours between the points of its grid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import get_args

import torch
from torch import Tensor

from fastlatent.geometry import original
from fastlatent.geometry.arguments import (
    check_ends,
    check_finite,
    check_share,
    check_spans,
    check_whole,
)
from fastlatent.geometry.best import MEASURED_SEGMENTS, Best, Geodesics
from fastlatent.geometry.curves import Curves, straight, straight_on
from fastlatent.geometry.descent import Status
from fastlatent.geometry.energy import mean_metric_factor
from fastlatent.geometry.frozen import Decoder
from fastlatent.geometry.length import measure, midpoints, speeds_squared
from fastlatent.geometry.metric import Metric, as_metric
from fastlatent.geometry.minimiser import Method, Minimiser
from fastlatent.geometry.tiles import is_out_of_memory

SEGMENTS_A_SPAN = 4
GRID_DOUBLINGS = 3
MOVED = 0.7  # share of its length below which a curve has left the metric of where it was
CPU_PAIRS, DEVICE_PAIRS = 32, 1024  # solved at a time where memory allows
CPU_ROOM, DEVICE_ROOM = 2 << 30, 8 << 30  # bytes for their backward pass


def geodesic(
    decoder: Decoder | Metric,
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    method: Method = "lbfgs",
    *,
    feature_map: Decoder | None = None,
    spans: Sequence[int] = (2, 8),
    segments: int = 16,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    length_rtol: float = 1e-3,
    first: Curves | None = None,
    chunk: int | None = None,
    points: int = 16,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> Geodesics:
    """Shorter curves from each start to its end under the metric that the decoder pulls back.

    `decoder` is anything that `as_metric` takes. `spans` are the numbers of polynomial pieces of
    the levels; each level starts from the curves of the one before, and leaves out pairs that two
    levels in a row have shortened by less than `length_rtol`. The energy is that of `segments`
    chords, at least four for each piece, and of twice as many where they miss part of the length. A
    pair has converged when its next step promises less than `tolerance` times its energy (default:
    1e-3 in float32, 1e-8 in float64); a level ends after `max_iterations` (default: 20; of Adam,
    200) on each of its grids in any case. `first` holds cubic curves to start from beside the
    straight lines, whose knots are then those of `first`; the shortest finite curve is kept,
    whichever start it came from. What converges on a saddle of the first level goes on beside it,
    for `max_iterations` more; `seed` says to which side. Pairs are solved `chunk` at a time
    (default: on a CPU 32, or as many as have room in 2 GiB, elsewhere 1,024 in 8 GiB), fewer where
    memory is short; each pair's result is that which it has alone, but for rounding. `report` is
    called with the number of pairs done after each chunk.

    `method="original"` is the procedure of Michelis and Becker 2021, see
    `fastlatent.geometry.original`: `points` on its grid, `max_iterations` epochs (default: 20),
    noise by `seed` and the pair's place, and no `first`. Its history holds lengths by its own rule;
    the others are measured as always.

    A pair whose ends are equal, or without a curve whose decoded points are finite, says so by its
    status and leaves the others alone. So does one whose curve the search could not see: by more
    than 1 % longer than on its own grid, three times doubled. The error of such a length reaches
    down to the distance between the decoded ends, or to 0 under a metric without images.

    Raises ValueError for shapes, dtypes and numbers that do not fit, and what `as_metric` raises;
    MemoryError when not even one pair fits.
    """
    check_ends("geodesic", start, end)
    if first is not None:
        _check_first(first, start, end)
    metric = as_metric(decoder, feature_map, start)
    if method not in get_args(Method):
        words = ", ".join(get_args(Method))
        raise ValueError(f"geodesic: method must be one of {words}; got {method!r}")
    check_spans("geodesic", spans)
    check_share("geodesic", "length_rtol", length_rtol)
    if tolerance is not None:
        check_share("geodesic", "tolerance", tolerance)
    check_whole("geodesic", "points", points, 2)
    counts = {"segments": segments, "max_iterations": max_iterations, "chunk": chunk}
    for word, count in counts.items():
        if count is not None:
            check_whole("geodesic", word, count, 1)
    if tolerance is None:
        tolerance = 1e-8 if start.dtype == torch.float64 else 1e-3
    if chunk is None:
        chunk = _pairs_at_once(metric, start, max(segments, SEGMENTS_A_SPAN * spans[-1]))
    noise = start.new_empty(0)
    if method == "original":
        make = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(start), max_iterations or original.EPOCHS, points, generator=make)

    def solve(rows: slice) -> Geodesics:
        ends = start[rows].detach(), end[rows].detach()
        if method == "original":
            found = original.shorten(metric, *ends, noise[rows])
            return _from_original(metric, found, length_rtol)
        minimiser = Minimiser(metric, method, segments, tolerance, max_iterations, seed)
        guess = None if first is None else first[rows]
        return _solve(metric, *ends, minimiser, tuple(spans), length_rtol, guess)

    return _joined(in_chunks(solve, len(start), chunk, report), len(start))


def _pairs_at_once(metric: Metric, start: Tensor, segments: int) -> int:
    if len(start) == 0:
        return 1
    cpu = start.device.type == "cpu"
    room, most = (CPU_ROOM, CPU_PAIRS) if cpu else (DEVICE_ROOM, DEVICE_PAIRS)
    each = segments * metric.stored_at(start) * start.element_size()
    return max(1, min(most, room // max(1, each)))


def _joined(parts: Iterator[Geodesics], n: int) -> Geodesics:
    """The results of all n pairs, in tensors that are made once.

    Small tensors that stay would split the memory that large ones leave, which then has no room for
    the next large one: the process would grow with every part.
    """
    curves: Curves | None = None
    columns: dict[str, Tensor] = {}
    done = 0
    for part in parts:
        names = [field.name for field in fields(part) if field.name not in ("control", "knots")]
        values = {name: getattr(part, name) for name in names} | {"history": part.history.mT}
        if curves is None:
            curves = Curves(part.control.new_zeros(n, *part.control.shape[1:]), part.knots)
            columns = {name: value.new_empty(n, *value.shape[1:]) for name, value in values.items()}
        # The original inserts knots as it goes, in some chunks more than in others.
        most = max(curves.spans, part.curves.spans)
        curves = curves.refine(most)
        rows = slice(done, done + len(part))
        curves.control[rows] = part.curves.refine(most).control
        for name, value in values.items():
            columns[name][rows] = value
        done += len(part)
    assert curves is not None
    columns["history"] = columns["history"].mT.contiguous()
    return Geodesics(control=curves.control, knots=curves.knots, **columns)


def in_chunks(
    solve: Callable[[slice], Geodesics],
    n: int,
    chunk: int,
    report: Callable[[int], None] | None,
) -> Iterator[Geodesics]:
    """solve(rows) for all of n rows, fewer at a time when memory runs out."""
    done = 0
    while done < max(n, 1):
        try:
            part = solve(slice(done, done + chunk))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if chunk == 1:
                raise MemoryError("geodesic: not even one pair fits into memory") from error
            chunk = -(-chunk // 2)
            continue
        yield part
        done += chunk
        if report is not None:
            report(min(done, n))


def _solve(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    minimise: Minimiser,
    spans: tuple[int, ...],
    length_rtol: float,
    first: Curves | None,
) -> Geodesics:
    line = straight(start, end, spans[0]) if first is None else straight_on(first.knots, start, end)
    candidates = [line] if first is None else [line, first]
    finest = max(spans[-1], candidates[-1].spans)
    best = Best(metric, candidates, finest, length_rtol)
    rows = best.open()
    if len(rows):
        for candidate, curves in enumerate(candidates):
            _descend(best, candidate, minimise, curves[rows], rows, spans)
    return best.result(len(candidates) * len(spans) + 1)


def _descend(
    best: Best,
    candidate: int,
    minimise: Minimiser,
    curves: Curves,  # of the pairs `rows`
    rows: Tensor,
    spans: tuple[int, ...],
) -> None:
    """Lowers the energy level by level; offers what comes out."""
    mean_metric, of_length = mean_metric_factor(minimise.metric, curves), best.length[rows]
    slow, curvature = torch.zeros_like(rows), torch.ones_like(of_length)
    for count in spans:
        curves = curves.refine(max(count, curves.spans))
        control, before = curves.control.clone(), best.length[rows]
        segments = max(minimise.segments, SEGMENTS_A_SPAN * curves.spans)
        going = (slow < 2).nonzero()[:, 0]
        for _ in range(GRID_DOUBLINGS + 1):
            if not len(going):
                break
            part = Curves(control[going], curves.knots)
            found, least = minimise(
                part, mean_metric[going], segments, leave_saddles=count == spans[0]
            )
            curvature[going] = torch.where(least.isnan(), curvature[going], least)
            part = Curves(
                torch.cat([part.control[:, :1], found.x, part.control[:, -1:]], 1), curves.knots
            )
            length, unseen = best.offer(
                candidate, rows[going], part, found, curvature[going], segments
            )
            finite = length.isfinite()
            # What ran into a hole between the points of the grid goes back, to a finer one.
            control[going[finite]] = part.control[finite]
            moved = length < MOVED * of_length[going]
            if moved.any():
                far, of_length[going[moved]] = going[moved], length[moved]
                here = Curves(control[far], curves.knots)
                mean_metric[far] = mean_metric_factor(minimise.metric, here)
            going = going[unseen & (found.status != int(Status.NON_FINITE))]
            segments *= 2
        curves = Curves(control, curves.knots)
        gained = best.length[rows] < (1 - best.rtol) * before
        slow = torch.where(gained, 0, slow + 1)
        best.note()


def _from_original(metric: Metric, found: original.Shortened, rtol: float) -> Geodesics:
    """The curves of the original's procedure, measured like all others."""
    curves = found.curves
    line = straight(curves.start, curves.end)
    best = Best(metric, [line], curves.spans, rtol).result(0)
    measured = measure(metric, curves, rtol=rtol, segments=MEASURED_SEGMENTS)
    t = midpoints(curves, MEASURED_SEGMENTS)
    with torch.no_grad():
        energy = speeds_squared(metric, curves, t).mean(1)
    return Geodesics(
        curves.control,
        curves.knots,
        measured.length,
        measured.error,
        best.straight_length,
        best.straight_error,
        energy,
        found.iterations,
        found.evaluations,
        torch.where(best.status == int(Status.MAX_ITERATIONS), found.status, best.status),
        found.history,
    )


def _check_first(first: Curves, start: Tensor, end: Tensor) -> None:
    if not isinstance(first, Curves):
        raise TypeError(f"geodesic: first must be Curves; got {type(first).__name__}")
    control = first.control
    if control.dim() != 3 or control[:, 0].shape != start.shape or first.degree != 3:
        raise ValueError(
            f"geodesic: first must be {len(start)} cubic curves in {start.shape[1]} dimensions; "
            f"got control points {tuple(control.shape)} of degree {first.degree}"
        )
    if control.dtype != start.dtype or control.device != start.device:
        raise ValueError("geodesic: first must have the dtype and device of start")
    check_finite("geodesic", "first", control)
    if not (torch.equal(first.start, start) and torch.equal(first.end, end)):
        raise ValueError("geodesic: first must run from start to end")
