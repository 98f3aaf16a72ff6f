"""Shortest likelihood paths between points, many pairs at once.

After the program of Lin and Clark, "LaDDer: Latent Data Distribution Modelling with a Generative
Prior", BMVC 2020, arXiv 2009.00088, which moves the points of one path by Adam from the straight
line, at a constant rate, and keeps the last; `method="original"` does so too. What is better here:
several starts, a rate that falls to 0, a finite gradient at equal steps, and the best points met.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fastlatent.jobs.naming import setting
from fastlatent.paths.objective import LogProb, Objective, Reduction, Terms
from fastlatent.paths.starts import Start, first_points, straight_points
from fastlatent.untouched import Untouched, outside_inference_mode

Method = Literal["adam", "original"]

EPSILON = 1e-8  # of Adam
WINDOW = 50  # iterations after which a search is judged
TOLERANCE = 1e-4  # of J in a window: a path that changes less is settled
CHUNK_NUMBERS = 1 << 17  # coordinates of points that move together


@dataclass(frozen=True)
class _Search:
    """How points move."""

    iterations: int
    rate: float
    falling: bool  # the rate: along half a cosine to 0
    betas: tuple[float, float]
    clip: float | None  # of the entries of the gradient
    smoothing: float  # of the deviation, in units of the straight line's steps
    best: bool  # what is kept: the best points met, or the last


SEARCHES = {
    "adam": _Search(300, 3e-2, True, (0.9, 0.999), None, 1e-3, True),
    "original": _Search(500, 1e-2, False, (0.9, 0.95), 1.0, 0.0, False),
}


@dataclass(frozen=True, eq=False)
class LikelihoodPaths:
    """k paths with n inner points each."""

    points: Tensor  # (k, n + 2, d), the ends as given
    terms: Terms  # of the paths, each (k,)
    line: Terms  # of the straight lines
    iterations: Tensor  # (k,) int64 until the path settled, or all
    starts: tuple[str, ...]  # from which was searched
    chosen: Tensor  # (k,) int64: of these, that which led to the path
    converged: Tensor  # (k,) bool: J gained less than 1e-4 in the last 50 iterations
    history: Terms  # each (iterations + 1, k): of the points as they moved from the chosen start


@outside_inference_mode
def likelihood_path(
    log_prob: LogProb,  # (m, d) -> (m,) nats, differentiable
    start: Tensor,  # (k, d)
    end: Tensor,  # (k, d)
    n: int = 8,  # inner points
    *,
    method: Method = "adam",
    length_weight: float = 10.0,
    spread_weight: float = 100.0,
    reduction: Reduction = "sum",
    typical: float | None = None,
    starts: Sequence[Start] | None = None,
    data: Tensor | None = None,  # (m, d)
    units: Tensor | None = None,  # (d,), positive
    iterations: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    chunk: int | None = None,  # pairs
    report: Callable[[int], None] | None = None,
) -> LikelihoodPaths:
    """Paths from each start to its end that are short, evenly stepped, and probable.

    Minimises J = length_weight * length + spread_weight * spread - sum log p over n inner points,
    see `fastlatent.paths.objective`. `reduction="mean"` takes 8 times the mean of log p, which is
    the same for 8 points and keeps the balance for other n. `typical=c` lets a point cost nothing
    whose -log p is below c, see `typical_level`: in many dimensions the most probable points, at
    the mode, are where no data lies.

    Searches from `starts`, by default the line, three bent lines and, where `data` is given, the
    way through its nearest neighbours; the best path of each pair is kept, and it is never worse
    than the line. "adam": 300 iterations, of rate 3e-2 falling to 0. "original": the published
    settings, 500 of rate 1e-2 from the line, gradients cut off at 1, the last points kept,
    whatever they cost. A path whose J moves by less than 1e-4 in 50 iterations settles and stays.

    A unit of length costs `length_weight` nats, so J depends on the units of the points. `units`
    are what lengths are measured in, for each dimension: with the deviations of the density
    (`Prior.spread`) paths are the same whatever the points are scaled by.

    Pairs move `chunk` at a time, by default so many that memory is bounded, and each as it would
    alone; what rounding makes different the search amplifies, from 1e-16 to less than 1e-6. Use
    float64 for paths that are to be the same in any company. `report` is called with the number of
    pairs done. Raises TypeError or ValueError for what does not fit.
    """
    log_prob = Untouched(log_prob)
    _check(log_prob, start, end, n)
    _check_units(units, start)
    _check_settings(
        method, reduction, length_weight, spread_weight, typical, iterations, rate, chunk
    )
    search = SEARCHES[method]
    search = replace(search, iterations=iterations or search.iterations, rate=rate or search.rate)
    chosen_starts = _checked_starts(starts, method, data, start)
    first, last = start, end
    if units is not None:
        scale = units.to(start)
        log_prob, start, end = _rescaled(log_prob, scale), start / scale, end / scale
        data = None if data is None else data / scale
    objective = Objective(log_prob, length_weight, spread_weight, reduction, typical)
    if chunk is None:
        width = len(chosen_starts) + 2 * ("bent" in chosen_starts)
        chunk = max(1, CHUNK_NUMBERS // (width * n * start.shape[1]))
    parts = []
    for begin in range(0, max(len(start), 1), chunk):
        ends = start[begin : begin + chunk].detach(), end[begin : begin + chunk].detach()
        names, points = first_points(chosen_starts, log_prob, *ends, n, data, seed)
        parts.append(_best_of(_descend(objective, search, *ends, points), names))
        if report is not None:
            report(min(begin + chunk, len(start)))
    found = _joined(parts)
    if units is None:
        return found
    inner = found.points[:, 1:-1] * scale
    return replace(found, points=torch.cat([first[:, None], inner, last[:, None]], 1).detach())


def _rescaled(log_prob: LogProb, scale: Tensor) -> LogProb:
    return lambda points: log_prob(points * scale)


@dataclass(frozen=True)
class _Found:
    """Where each of k pairs came to from each of s starts."""

    path: Tensor  # (k, s, n + 2, d)
    terms: Tensor  # (4, k, s)
    line: Tensor  # (4, k)
    iterations: Tensor  # (k, s)
    gain: Tensor  # (k, s) of J in the last window
    history: Tensor  # (iterations + 1, 4, k, s)


@torch.no_grad()
def _descend(
    objective: Objective, search: _Search, start: Tensor, end: Tensor, points: Tensor
) -> _Found:
    """Adam on the points (k, s, n, d) of all paths; each entry by itself."""
    k, s, n, d = points.shape
    path = torch.cat(
        [x[:, None, None].expand(k, s, 1, d) if x.dim() == 2 else x for x in (start, points, end)],
        2,
    ).flatten(0, 1)
    line = torch.cat([start[:, None], straight_points(start, end, n), end[:, None]], 1)
    step_of_line = ((end - start).norm(dim=1) / (n + 1)).repeat_interleave(s)
    mean, square = (torch.zeros_like(path[:, 1:-1]) for _ in range(2))
    moving = torch.ones(k * s, dtype=torch.bool, device=path.device)
    taken = torch.zeros(k * s, dtype=torch.int64, device=path.device)
    history = path.new_empty(search.iterations + 1, 4, k * s)
    kept, kept_terms = path.clone(), path.new_full((4, k * s), math.inf)
    marks: list[Tensor] = []  # J of what is kept, at each window's end
    for step in range(search.iterations + 1):
        terms, gradient = objective.terms_and_gradient(path, search.smoothing * step_of_line)
        now = torch.stack(terms, out=history[step])
        known = now[3].isfinite()
        better = known & (now[3] < kept_terms[3]) if search.best else known
        kept_terms = torch.where(better, now, kept_terms)
        kept = torch.where(better[:, None, None], path, kept)
        moving &= known
        if step % WINDOW == 0 or step == search.iterations:
            marks.append(kept_terms[3])
        if step >= WINDOW and step % WINDOW == 0:
            low, high = history[step - WINDOW : step + 1, 3].aminmax(dim=0)
            moving &= high - low >= TOLERANCE
            if not bool(moving.any()):
                history[step + 1 :] = now
                break
        if step == search.iterations:
            break
        if search.clip is not None:
            gradient = gradient.clamp(-search.clip, search.clip)
        first, second = search.betas
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        fall = (1 + math.cos(math.pi * step / search.iterations)) / 2 if search.falling else 1.0
        size = search.rate * fall / (1 - first ** (step + 1))
        root = square.sqrt().div_(math.sqrt(1 - second ** (step + 1))).add_(EPSILON)
        path[:, 1:-1] -= torch.where(moving[:, None, None], size * mean / root, 0)
        taken += moving
    gain = marks[max(len(marks) - 2, 0)] - marks[-1]
    shape = (k, s)
    return _Found(
        kept.unflatten(0, shape),
        kept_terms.unflatten(1, shape),
        torch.stack(objective.terms(line)),
        taken.unflatten(0, shape),
        gain.unflatten(0, shape),
        history.unflatten(2, shape),
    )


def _best_of(found: _Found, names: Sequence[str]) -> LikelihoodPaths:
    """The best of the starts of each pair."""
    value = found.terms[3].nan_to_num(math.inf, posinf=math.inf)
    chosen = value.argmin(1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return LikelihoodPaths(
        found.path[rows, chosen],
        Terms(*found.terms[:, rows, chosen]),
        Terms(*found.line),
        found.iterations[rows, chosen],
        tuple(names),
        chosen,
        found.gain[rows, chosen] < TOLERANCE,
        Terms(*found.history[:, :, rows, chosen].unbind(1)),
    )


def _joined(parts: list[LikelihoodPaths]) -> LikelihoodPaths:
    def terms(name: str, dim: int = 0) -> Terms:
        values = zip(*(getattr(part, name) for part in parts), strict=True)
        return Terms(*(torch.cat(value, dim) for value in values))

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return LikelihoodPaths(
        cat("points"),
        terms("terms"),
        terms("line"),
        cat("iterations"),
        parts[0].starts,
        cat("chosen"),
        cat("converged"),
        terms("history", 1),
    )


def _check(log_prob: LogProb, start: Tensor, end: Tensor, n: int) -> None:
    who = "likelihood_path"
    for word, value in (("start", start), ("end", end)):
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{who}: {word} must be a float32 or float64 tensor; got {got}")
    if start.dim() != 2 or start.shape != end.shape or start.shape[1] == 0:
        raise ValueError(
            f"{who}: start and end must both be (k, d); got {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    if start.dtype != end.dtype or start.device != end.device:
        raise ValueError(f"{who}: start and end must have one dtype and be on one device")
    for word, value in (("start", start), ("end", end)):
        if not value.isfinite().all():
            raise ValueError(f"{who}: {word} must be finite")
    if n < 1:
        raise ValueError(f"{who}: n must be at least 1; got {n}")
    try:
        with torch.enable_grad():
            probe = log_prob(start.detach().clone().requires_grad_())
    except RuntimeError as error:
        raise ValueError(
            f"{who}: log_prob can't be evaluated on points {tuple(start.shape)}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    if not isinstance(probe, Tensor) or probe.shape != start.shape[:1]:
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
        raise ValueError(f"{who}: log_prob must map points (m, d) to (m,) nats; got {shape}")
    if not probe.requires_grad:
        raise ValueError(f"{who}: log_prob must be differentiable in the points")


def _check_units(units: Tensor | None, start: Tensor) -> None:
    if units is None:
        return
    if not isinstance(units, Tensor) or tuple(units.shape) != (start.shape[1],):
        got = tuple(units.shape) if isinstance(units, Tensor) else type(units).__name__
        raise ValueError(f"likelihood_path: units must be ({start.shape[1]},); got {got}")
    if not ((units > 0) & units.isfinite()).all():
        raise ValueError("likelihood_path: units must be positive and finite")


def _check_settings(
    method: str,
    reduction: str,
    length_weight: float,
    spread_weight: float,
    typical: float | None,
    iterations: int | None,
    rate: float | None,
    chunk: int | None,
) -> None:
    def require(good: bool, name: str, expectation: str, got: object) -> None:
        if not good:
            named = setting(name, argument=f"likelihood_path: {name}")
            raise ValueError(f"{named} must be {expectation}; got {got!r}")

    for name, value, choices in (
        ("method", method, get_args(Method)),
        ("reduction", reduction, get_args(Reduction)),
    ):
        require(value in choices, name, "one of " + ", ".join(choices), value)
    for name, weight in (("length_weight", length_weight), ("spread_weight", spread_weight)):
        require(0 <= weight < math.inf, name, "finite and not below 0", weight)
    require(typical is None or math.isfinite(typical), "typical", "a finite number", typical)
    require(rate is None or 0 < rate < math.inf, "rate", "positive", rate)
    for name, count in (("iterations", iterations), ("chunk", chunk)):
        require(count is None or count >= 1, name, "at least 1", count)


def _checked_starts(
    starts: Sequence[Start] | None, method: Method, data: Tensor | None, like: Tensor
) -> tuple[Start, ...]:
    """From where to search: the line first, each once."""
    who = "likelihood_path"
    if starts is None:
        starts = ()
        if method != "original":
            starts = ("bent",) if data is None else ("bent", "graph")
    unknown = [name for name in starts if name not in get_args(Start)]
    if unknown:
        choices = ", ".join(get_args(Start))
        raise ValueError(f"{who}: starts must be some of {choices}; got {unknown[0]!r}")
    if "graph" in starts:
        if data is None:
            raise ValueError(f"{who}: the start 'graph' needs data")
        if data.dim() != 2 or data.shape[1] != like.shape[1] or len(data) == 0:
            raise ValueError(f"{who}: data must be (m, {like.shape[1]}); got {tuple(data.shape)}")
        if data.dtype != like.dtype or data.device != like.device or not data.isfinite().all():
            raise ValueError(f"{who}: data must be finite, of the dtype and device of start")
    return tuple(dict.fromkeys(("line", *starts)))
