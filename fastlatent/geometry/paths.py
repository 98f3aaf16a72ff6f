"""What is built on curves: equal steps along them, midpoints, graph paths, distance matrices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlatent.geometry.arguments import check_ends, check_finite, check_tensor, check_whole
from fastlatent.geometry.curves import Curves, check_curves, fit, straight
from fastlatent.geometry.frozen import Decoder
from fastlatent.geometry.graphs import evenly_along, neighbour_edges, shortest_paths
from fastlatent.geometry.length import POINTS, curves_at_once, measure
from fastlatent.geometry.metric import Embedding, Metric, as_metric
from fastlatent.geometry.solver import geodesic

EDGE_SEGMENTS = 8  # chords by which the edge of a graph is measured
_ROUNDINGS = 4  # by which a point may be off
MATRIX_PAIRS = 1 << 14  # whose curves are held at a time for a distance matrix


@torch.no_grad()
def equal_steps(
    decoder: Decoder | Metric,
    curves: Curves,
    m: int,  # at least 2
    segments: int = 512,
) -> Tensor:  # (n, m), from 0 to 1
    """Where the curves have gone equally far: t of m points at equal distances along each.

    The length up to t is taken from `segments` chords of the decoded curve and interpolated
    linearly. Curves of no length, but for what rounding makes of it, are cut at equal t.

    Raises TypeError for anything but Curves, ValueError for m below 2 or segments below 1, and what
    `as_metric` raises.
    """
    check_curves("equal_steps", curves)
    check_whole("equal_steps", "m", m, 2)
    check_whole("equal_steps", "segments", segments, 1)
    metric = as_metric(decoder)
    t = torch.linspace(0, 1, segments + 1, dtype=curves.control.dtype, device=curves.control.device)
    rows = curves_at_once(metric, curves, segments)
    begins = range(0, max(1, len(curves)), rows)
    steps = torch.cat([_steps(metric, curves[i : i + rows], t) for i in begins])
    done = torch.nn.functional.pad(steps.cumsum(1), (1, 0))  # (n, segments + 1)
    still = done[:, -1:] == 0
    done = torch.where(still, t, done / torch.where(still, 1, done[:, -1:]))
    goal = torch.linspace(0, 1, m, dtype=t.dtype, device=t.device).expand(len(done), m).contiguous()
    right = torch.searchsorted(done, goal).clamp(1, segments)
    low, high = done.gather(1, right - 1), done.gather(1, right)
    share = ((goal - low) / (high - low).clamp_min(torch.finfo(t.dtype).tiny)).clamp(0, 1)
    return torch.lerp(t[right - 1], t[right], share)


def _steps(metric: Metric, curves: Curves, t: Tensor) -> Tensor:  # (n, len(t) - 1)
    """Distances between neighbouring points; 0 for curves that only rounding moves."""
    z = curves.points(t)
    if isinstance(metric, Embedding):
        outputs = metric.output(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        steps = outputs.diff(dim=1).norm(dim=2)
        return steps.masked_fill(_rests(z) | _rests(outputs), 0)
    middle, dz = ((z[:, 1:] + z[:, :-1]) / 2).flatten(0, 1), z.diff(dim=1).flatten(0, 1)
    steps = metric.speed_squared(middle, dz).sqrt().unflatten(0, (len(curves), len(t) - 1))
    return steps.masked_fill(_rests(z), 0)


def _rests(points: Tensor) -> Tensor:  # (n, m, d) -> (n, 1)
    """Whether polylines are no longer than by rounding each of their points."""
    size = points.norm(dim=2).amax(1)
    rounding = _ROUNDINGS * torch.finfo(points.dtype).eps * points.shape[1] * size
    return (points.diff(dim=1).norm(dim=2).sum(1) <= rounding)[:, None]


def midpoint(decoder: Decoder | Metric, curves: Curves) -> Tensor:  # (n, d)
    """The points at half the length of the curves. Raises what `equal_steps` raises."""
    check_curves("midpoint", curves)
    return curves.points(equal_steps(decoder, curves, 3)[:, 1:2])[:, 0]


def graph_curves(
    decoder: Decoder | Metric,
    nodes: Tensor,  # (m, d), encoded data or samples
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    neighbours: int = 10,
    spans: int = 8,
) -> Curves:
    """Curves along shortest paths in the graph of nearest neighbours, to start `geodesic` from.

    The nodes and all ends are joined to their `neighbours` nearest in latent space. Separate parts
    of the graph are joined by the shortest line between them. The weight of an edge is the length
    of its straight line under the metric. Each path is cut into equal steps and fitted by a spline;
    where the decoder is not finite along all paths it is the straight line. It helps where latents
    are dense, in two or three dimensions.

    Raises TypeError for nodes or ends that are not float32 or float64 tensors. Raises ValueError
    for shapes, dtypes or devices that do not fit, values that are not finite, neighbours or spans
    below 1, and what `as_metric` raises.
    """
    check_whole("graph_curves", "neighbours", neighbours, 1)
    check_whole("graph_curves", "spans", spans, 1)
    check_ends("graph_curves", start, end)
    check_tensor("graph_curves", "nodes", nodes, "(m, d)")
    if nodes.shape[1] != start.shape[1]:
        raise ValueError(
            f"graph_curves: nodes must be (m, {start.shape[1]}); got {tuple(nodes.shape)}"
        )
    if nodes.dtype != start.dtype or nodes.device != start.device:
        raise ValueError("graph_curves: nodes must have the dtype and device of start")
    check_finite("graph_curves", "nodes", nodes)
    metric = as_metric(decoder)
    if len(start) == 0:
        return straight(start, end, spans)
    everything = torch.cat([nodes, start, end]).detach()
    edges = neighbour_edges(everything, neighbours)
    weights = measure_edges(metric, everything, edges)
    m, n = len(nodes), len(start)
    steps = 4 * (spans + 3)
    goal = np.linspace(0, 1, steps)
    points = everything.double().cpu().numpy()
    rows = np.arange(n)
    ways = shortest_paths(edges, weights, m + rows, m + n + rows, len(points))
    places = [evenly_along(points[path], gone, goal) for path, gone in ways]
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    along = torch.from_numpy(np.stack(places)).to(start)
    along[:, 0], along[:, -1] = start, end
    return fit(along, t, spans)


@torch.no_grad()
def measure_edges(metric: Metric, points: Tensor, edges: np.ndarray) -> np.ndarray:  # (e,)
    """Lengths of the straight lines between pairs of points; infinite where they are unknown."""
    ends = torch.from_numpy(edges).to(points.device)
    lengths = []
    for part in ends.split(POINTS // EDGE_SEGMENTS):
        lines = straight(points[part[:, 0]], points[part[:, 1]])
        found = measure(metric, lines, segments=EDGE_SEGMENTS, max_segments=EDGE_SEGMENTS)
        lengths.append(found.length)
    joined = torch.cat(lengths).double()
    return torch.where(joined.isnan(), torch.inf, joined).cpu().numpy()


def distance_matrix(
    decoder: Decoder | Metric,
    points: Tensor,  # (m, d)
    *,
    feature_map: Decoder | None = None,
    first: Curves | None = None,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
    **options: Any,
) -> Tensor:  # (m, m)
    """Lengths of the shortest curves found between all pairs; `options` are those of `geodesic`.

    Symmetric with a zero diagonal. An upper bound of the true distances: curves are local minima.
    Pairs i < j come row by row, those of `first` too; their curves are held for 16,384 at a time.

    Raises TypeError for points that are not a float32 or float64 tensor. Raises ValueError for
    another shape and for points that are not finite, and what `geodesic` raises.
    """
    check_tensor("distance_matrix", "points", points, "(m, d)")
    check_finite("distance_matrix", "points", points)
    metric = as_metric(decoder, feature_map, points)
    ends = torch.triu_indices(len(points), len(points), 1, device=points.device)
    matrix = points.new_zeros(len(points), len(points))
    for begin in range(0, max(1, ends.shape[1]), MATRIX_PAIRS):
        rows = slice(begin, begin + MATRIX_PAIRS)
        i, j = ends[:, rows]
        options |= {
            "first": None if first is None else first[rows],
            "seed": seed + begin,
            "report": None if report is None else lambda done, begin=begin: report(begin + done),
        }
        found = geodesic(metric, points[i], points[j], **options)
        matrix[i, j] = matrix[j, i] = found.length
    return matrix
