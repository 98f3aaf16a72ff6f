"""Walks through the latents of a model from one to another, by every method; one record of all.

What a method needs beside the two ends: linear and spherical nothing, copula the copula fitted to
the codes, likelihood a space with a density (`Prior.path_space`), geodesic the metric of the
decoder. In a given space straight lines run there too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.geometry import Metric
from fastlatent.geometry.experiment import Experiment, experiment, walk_along
from fastlatent.inference.latents import check_method, decode
from fastlatent.inference.passes import evaluating
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import Bounded, project
from fastlatent.ops import polyline_length
from fastlatent.paths import LikelihoodPaths, Objective, Terms, likelihood_path
from fastlatent.priors import BernoulliCopula, PathSpace, Prior, slerp

Walking = Literal["copula", "linear", "spherical", "likelihood", "geodesic"]
Direction = Literal["margin", "split"]
Space = Literal["t", "z"]

# What each kind of latent allows, its default first; see `walkings`.
WALKINGS: dict[str, tuple[Walking, ...]] = {
    "bits": ("copula",),
    "real": ("spherical", "linear", "likelihood", "geodesic"),
}
NEEDS: dict[Walking, str] = {
    "copula": "a copula fitted to the codes",
    "likelihood": "a prior with a density",
    "geodesic": "the metric of the decoder",
}
DRAWS = 64  # of the latents below, where the density of z is only bounded by them
PIECES = 8  # chords between two steps of a walk, by which its images' length is measured


@dataclass(frozen=True, eq=False)
class Walk:
    """Latents along k paths, both ends among them."""

    method: Walking
    latents: Tensor  # (k, steps, d)
    points: Tensor | None = None  # (k, steps, r): the same in the space of the density, if any
    wrong_bits: Tensor | None = None  # (k, 2): bits in which both ends differ from those asked for
    hamming: Tensor | None = None  # (k, steps, 2): bits in which a step differs from either end
    found: LikelihoodPaths | Experiment | None = None  # what a search came to


def walkings(model: LatentModel) -> tuple[Walking, ...]:
    """What the model's latents allow, the default first."""
    methods = WALKINGS[model.latent_kind]
    if isinstance(model, Bounded) and model.walks_straight and "linear" in methods:
        return ("linear", *(method for method in methods if method != "linear"))
    return methods


def walk(
    model: LatentModel,
    method: Walking,
    start: Tensor,  # (k, d)
    end: Tensor,  # (k, d)
    steps: int,  # at least 2, both ends among them
    copula: BernoulliCopula | None = None,
    direction: Direction = "margin",
    *,
    space: PathSpace | None = None,
    metric: Metric | None = None,
    search: Mapping[str, Any] | None = None,
) -> Walk:
    """Latents from each start to its end.

    "copula" follows the arcs of the fitted copula. "linear" is straight; "spherical" turns the
    direction along the arc between the two and changes the length evenly. "likelihood" moves the
    inner points to where they are likely, and "geodesic" goes in equal steps along a curve that is
    short under the metric; `search` holds options of `likelihood_path` and of `geodesic`. With a
    `space` linear, spherical and likely walks run there and are lifted to latents. Latents are
    brought into the region where the model has any, such as the sphere of GLO. Raises ValueError
    for a method that the model's kind of latent does not allow, or without what it needs.
    """
    choices = walkings(model)
    check_method("interpolation", method, choices, model)
    given = {"copula": copula, "likelihood": space, "geodesic": metric}
    if method in NEEDS and given[method] is None:
        others = [name for name in choices if name not in NEEDS]
        advice = f"; {' and '.join(others)} walks need nothing" if others else ""
        raise ValueError(f"walk: the method {method} needs {NEEDS[method]}{advice}")
    if method == "copula":
        assert copula is not None
        codes, hamming, wrong = copula.interpolate(start, end, steps, direction)
        return Walk(method, codes, None, wrong, hamming)
    with evaluating(model):
        if method == "geodesic":
            assert metric is not None
            found = experiment(metric, start, end, **(search or {}))
            latents = project(model, walk_along(metric, found.geodesics.curves, steps))
            return Walk(method, latents, points_of(space, latents), found=found)
        first, last = (start, end) if space is None else (space.encode(start), space.encode(end))
        likely = None
        if method == "likelihood":
            assert space is not None
            if steps < 3:
                raise ValueError(f"walk: a likely path needs an inner step; got {steps} steps")
            likely = likelihood_path(
                space.log_prob,
                first.double(),
                last.double(),
                steps - 2,
                units=space.units,
                **(search or {}),
            )
            points = likely.points.to(first)
        else:
            points = _lines(method, first, last, steps)
        lifted = points if space is None else space.lift(points)
        latents = project(model, lifted)
        if space is not None and not torch.equal(latents, lifted):
            points = space.encode(latents)
    return Walk(method, latents, None if space is None else points, found=likely)


def _lines(method: Walking, start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None]
    a, b = start[:, None], end[:, None]  # (k, 1, d)
    if method == "linear":
        return torch.lerp(a, b, t)
    lengths = torch.lerp(a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True), t)
    unit = torch.nn.functional.normalize
    return lengths * slerp(unit(a, dim=-1), unit(b, dim=-1), t[:, 0])


def points_of(space: PathSpace | None, latents: Tensor) -> Tensor | None:
    """Where latents (..., d) lie in the space; None without one."""
    return None if space is None else space.encode(latents)


def space_of(prior: Prior, where: Space = "t", seed: int = 0) -> PathSpace:
    """The space in which a prior's density is followed.

    "t": that of its own choice, the latents below it of a hierarchical prior. "z": the latents
    themselves, under the log-mean of 64 importance weights where p(z) has no closed form; their
    noise is the same at each call and for each latent. Raises ValueError where the prior has no
    density or is of bits.
    """
    if prior.support != "real" or prior.density == "none":
        raise ValueError(
            f"interpolation by 'likelihood' needs real latents with a density; "
            f"{type(prior).__name__} has {prior.support} latents and density {prior.density!r}"
        )
    if where == "t" or prior.density == "exact":
        return prior.path_space

    def bound(z: Tensor) -> Tensor:
        return prior.steady_log_prob(z, DRAWS, seed=seed)

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        return prior.sample(n, generator=generator)

    return PathSpace(prior.dim, lambda z: z, bound, lambda z: z, draw, prior.spread())


class WalkMeasures(NamedTuple):
    """Numbers of k walks."""

    image_length: Tensor  # (k,), Euclidean, of the decoded images in [0, 1]
    terms: Terms | None  # in the space of the density; None without one


def measured(
    model: LatentModel,
    path: Walk,
    batch: int,
    space: PathSpace | None = None,
    objective: Objective | None = None,  # default: that of the space, with the weights of paths
) -> WalkMeasures:
    """How long the walks are, decoded with 8 chords between two steps, and how likely.

    The chords join points between the steps' latents. There is nothing between bits: their
    length is that of the steps.
    """
    z = path.latents
    if model.latent_kind == "real":
        z = project(model, between(z, PIECES))
    images = decode(model, z.flatten(0, 1), batch).flatten(1).unflatten(0, z.shape[:2])
    terms = None
    points = path.points if path.points is not None else points_of(space, path.latents)
    if points is not None and space is not None:
        objective = objective or Objective(space.log_prob, units=space.units)
        terms = objective.terms(points.double())
    return WalkMeasures(polyline_length(images), terms)


def between(z: Tensor, pieces: int) -> Tensor:
    """Polylines (k, m, d) with each step cut into that many: (k, (m - 1) pieces + 1, d)."""
    share = torch.linspace(0, 1, pieces + 1, device=z.device, dtype=z.dtype)[:-1, None]
    inner = torch.lerp(z[:, :-1, None], z[:, 1:, None], share).flatten(1, 2)
    return torch.cat([inner, z[:, -1:]], 1)
