"""What is built on curves: equal steps along them, midpoints, graph paths, distance matrices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from torch import Tensor, nn

from fastlatent.geometry.curves import Curves, fit, straight
from fastlatent.geometry.length import POINTS, measure
from fastlatent.geometry.metric import Embedding, Metric, as_metric
from fastlatent.geometry.solver import check_ends, geodesic

Decoder = nn.Module | Callable[[Tensor], Tensor] | Metric

EDGE_SEGMENTS = 8  # chords by which the edge of a graph is measured
STARTS = 256  # shortest-path trees held at a time


@torch.no_grad()
def equal_steps(
    decoder: Decoder,
    curves: Curves,
    m: int,  # at least 2
    segments: int = 512,
) -> Tensor:  # (n, m), from 0 to 1
    """Where the curves have gone equally far: t of m points at equal distances along each.

    The length up to t is taken from `segments` chords of the decoded curve and interpolated
    linearly. Curves of no length are cut at equal t.
    """
    if m < 2:
        raise ValueError(f"equal_steps: m must be at least 2; got {m}")
    metric = as_metric(decoder)
    t = torch.linspace(0, 1, segments + 1, dtype=curves.control.dtype, device=curves.control.device)
    rows = max(1, POINTS // segments)
    steps = [_steps(metric, curves[i : i + rows], t) for i in range(0, len(curves), rows)]
    done = torch.nn.functional.pad(torch.cat(steps).cumsum(1), (1, 0))  # (n, segments + 1)
    still = done[:, -1:] == 0
    done = torch.where(still, t, done / torch.where(still, 1, done[:, -1:]))
    goal = torch.linspace(0, 1, m, dtype=t.dtype, device=t.device).expand(len(done), m).contiguous()
    right = torch.searchsorted(done, goal).clamp(1, segments)
    low, high = done.gather(1, right - 1), done.gather(1, right)
    share = ((goal - low) / (high - low).clamp_min(torch.finfo(t.dtype).tiny)).clamp(0, 1)
    return torch.lerp(t[right - 1], t[right], share)


def _steps(metric: Metric, curves: Curves, t: Tensor) -> Tensor:  # (n, len(t) - 1)
    """Distances between neighbouring points of the curves."""
    z = curves.points(t)
    if isinstance(metric, Embedding):
        outputs = metric.output(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return outputs.diff(dim=1).norm(dim=2)
    middle, dz = ((z[:, 1:] + z[:, :-1]) / 2).flatten(0, 1), z.diff(dim=1).flatten(0, 1)
    return metric.speed_squared(middle, dz).sqrt().unflatten(0, (len(curves), -1))


def midpoint(decoder: Decoder, curves: Curves) -> Tensor:  # (n, d)
    """The points at half the length of the curves."""
    return curves.points(equal_steps(decoder, curves, 3)[:, 1:2])[:, 0]


def graph_curves(
    decoder: Decoder,
    nodes: Tensor,  # (m, d), encoded data or samples
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    neighbours: int = 10,
    spans: int = 8,
) -> Curves:
    """Curves along shortest paths in the graph of nearest neighbours, to start `geodesic` from.

    The nodes and all ends are joined to their `neighbours` nearest in latent space, parts of the
    graph that hang apart by the shortest line between them; an edge weighs as much as its straight
    line is long under the metric. Each path is cut into equal steps and fitted by a spline; where
    the decoder is not finite along all paths it is the straight line.
    It helps where latents are dense, in two or three dimensions.
    """
    if neighbours < 1:
        raise ValueError(f"graph_curves: neighbours must be at least 1; got {neighbours}")
    check_ends("graph_curves", start, end)
    if not isinstance(nodes, Tensor) or nodes.dim() != 2 or nodes.shape[1:] != start.shape[1:]:
        got = tuple(nodes.shape) if isinstance(nodes, Tensor) else type(nodes).__name__
        raise ValueError(f"graph_curves: nodes must be (m, {start.shape[1]}); got {got}")
    if nodes.dtype != start.dtype or nodes.device != start.device or not nodes.isfinite().all():
        raise ValueError("graph_curves: nodes must be finite, of the dtype and device of start")
    metric = as_metric(decoder)
    everything = torch.cat([nodes, start, end]).detach()
    edges = _edges(everything, neighbours)
    weights = measure_edges(metric, everything, edges)
    m, n = len(nodes), len(start)
    size = (len(everything),) * 2
    graph = csr_matrix((weights, (edges[:, 0], edges[:, 1])), shape=size)
    steps = 4 * (spans + 3)
    goal = np.linspace(0, 1, steps)
    points, places = everything.double().cpu().numpy(), []
    for begin in range(0, n, STARTS):
        rows = np.arange(begin, min(n, begin + STARTS))
        distances, before = dijkstra(
            graph, directed=False, indices=m + rows, return_predecessors=True
        )
        for tree, row in enumerate(rows):
            path = [m + n + row]
            if not np.isfinite(distances[tree, path[0]]):
                before[tree, path[0]] = m + row
            while path[-1] != m + row:
                path.append(before[tree, path[-1]])
            path.reverse()
            gone = distances[tree, path]
            even = np.linspace(0, 1, len(path))
            gone = gone / gone[-1] if 0 < gone[-1] < np.inf else even
            corners = points[path].T
            places.append(np.stack([np.interp(goal, gone, x) for x in corners], 1))
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    along = torch.from_numpy(np.stack(places)).to(start)
    along[:, 0], along[:, -1] = start, end
    return fit(along, t, spans)


def _edges(points: Tensor, neighbours: int) -> np.ndarray:  # (e, 2)
    """Pairs of neighbours, each once, that join all points."""
    k = min(neighbours + 1, len(points))
    nearest = (
        torch.cat(
            [
                torch.cdist(part, points).topk(k, largest=False).indices
                for part in points.split(1024)
            ]
        )
        .cpu()
        .numpy()
    )
    pairs = np.stack([np.repeat(np.arange(len(points)), k), nearest.ravel()], 1)
    while True:
        pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
        graph = csr_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
        count, part = connected_components(graph, directed=False)
        if count == 1:
            return pairs
        pairs = np.concatenate([pairs, _bridges(points, torch.from_numpy(part), count)])


def _bridges(points: Tensor, part: Tensor, count: int) -> np.ndarray:  # (count, 2)
    """For each part of a graph, its shortest line to a point outside."""
    found = []
    for one in range(count):
        inside, outside = (part == one).nonzero()[:, 0], (part != one).nonzero()[:, 0]
        best = torch.inf, 0, 0
        for some in inside.split(1024):
            distances = torch.cdist(points[some], points[outside])
            flat = int(distances.argmin())
            row, column = divmod(flat, len(outside))
            best = min(best, (float(distances[row, column]), int(some[row]), int(outside[column])))
        found.append(best[1:])
    return np.array(found)


@torch.no_grad()
def measure_edges(metric: Metric, points: Tensor, edges: np.ndarray) -> np.ndarray:  # (e,)
    """Lengths of the straight lines between pairs of points; infinite where they are unknown."""
    ends = torch.from_numpy(edges).to(points.device)
    lengths = []
    for part in ends.split(POINTS // EDGE_SEGMENTS):
        lines = straight(points[part[:, 0]], points[part[:, 1]])
        found = measure(metric, lines, segments=EDGE_SEGMENTS, max_segments=EDGE_SEGMENTS)
        lengths.append(found.length)
    found = torch.cat(lengths).double()
    return torch.where(found.isnan(), torch.inf, found).cpu().numpy()


def distance_matrix(
    decoder: Decoder,
    points: Tensor,  # (m, d)
    **options: Any,
) -> Tensor:  # (m, m)
    """Lengths of the shortest curves found between all pairs; `options` are those of `geodesic`.

    Symmetric with a zero diagonal. An upper bound of the true distances: curves are local minima.
    """
    i, j = torch.triu_indices(len(points), len(points), 1, device=points.device)
    found = geodesic(decoder, points[i], points[j], **options)
    matrix = points.new_zeros(len(points), len(points))
    matrix[i, j] = matrix[j, i] = found.length
    return matrix
