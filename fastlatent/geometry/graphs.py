"""Graphs of nearest neighbours, and the shortest paths in them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

STARTS = 256  # shortest-path trees held at a time


def neighbour_edges(points: Tensor, neighbours: int) -> np.ndarray:  # (e, 2)
    """Pairs of nearest neighbours among points (m, d), each once, that join all points.

    Parts of the graph that hang apart are joined by the shortest line between them.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    k = min(neighbours + 1, len(points))
    nearest = nearest_rows(points, points, k)
    pairs = np.stack([np.repeat(np.arange(len(points)), k), nearest.ravel()], 1)
    while True:
        pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
        graph = csr_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
        count, part = connected_components(graph, directed=False)
        if count == 1:
            return pairs
        pairs = np.concatenate([pairs, _bridges(points, torch.from_numpy(part), count)])


def nearest_rows(queries: Tensor, points: Tensor, k: int) -> np.ndarray:  # (q, k)
    """Which points (m, d) lie nearest to each query (q, d)."""
    parts = [
        torch.cdist(part, points).topk(k, largest=False).indices for part in queries.split(1024)
    ]
    return torch.cat(parts).cpu().numpy()


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


def shortest_paths(
    edges: np.ndarray,  # (e, 2)
    weights: np.ndarray,  # (e,)
    starts: np.ndarray,  # (n,) nodes
    ends: np.ndarray,  # (n,)
    nodes: int,
    directed: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each start the nodes (k,) on the way to its end, and the distances (k,) covered there.

    Where no path of finite weight leads to the end it is the step from one to the other, the
    distance infinite.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    graph = csr_matrix((weights, (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    for begin in range(0, len(starts), STARTS):
        some = slice(begin, begin + STARTS)
        distances, before = dijkstra(
            graph, directed=directed, indices=starts[some], return_predecessors=True
        )
        for tree, (start, end) in enumerate(zip(starts[some], ends[some], strict=True)):
            path = [end]
            if not np.isfinite(distances[tree, end]):
                before[tree, end] = start
            while path[-1] != start:
                path.append(before[tree, path[-1]])
            path.reverse()
            yield np.array(path), distances[tree, path]


def evenly_along(
    corners: np.ndarray,  # (k, d), of a polyline
    gone: np.ndarray,  # (k,) the distance covered at each
    goal: np.ndarray,  # (m,) shares of the way, from 0 to 1
) -> np.ndarray:  # (m, d)
    """Points at shares of the way; of the corners' count where the way has no finite length."""
    even = np.linspace(0, 1, len(corners))
    gone = gone / gone[-1] if 0 < gone[-1] < np.inf else even
    return np.stack([np.interp(goal, gone, x) for x in corners.T], 1)
