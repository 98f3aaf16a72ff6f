"""Likely paths through the latents of a run: whose density counts, and the search."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent.inference.passes import evaluating
from fastlatent.inference.walking import Space, Walk, space_of, walk, walkings
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import call_or_command, setting
from fastlatent.models.capabilities import latent_prior, prior_dim
from fastlatent.noise import generator
from fastlatent.paths import Objective, typical_level
from fastlatent.paths.likelihood import Method
from fastlatent.paths.objective import Reduction
from fastlatent.priors import PathSpace, Prior, PriorKind
from fastlatent.runs.opened import OpenedRun

Density = Literal["own"] | PriorKind

NODES = 2_000  # of the graph of encoded images, at most
LEVEL_DRAWS = 10_000
TYPICAL_FROM = 9  # dimensions, where the mode is no place for data any more


@dataclass(frozen=True)
class LikelyOptions:
    """How likely paths are searched for."""

    prior: Density = "own"
    """Whose density makes a point likely: the model's own prior, or one that fit_prior fitted."""
    space: Space = "t"
    """Where paths run: in the prior's own space, which for a hierarchical one are the latents
    below, or (z) in the model's latents."""
    length_weight: float = 10.0
    """What a unit of length costs, in nats; among the model's latents a unit is their deviation."""
    spread_weight: float = 100.0
    """What a unit of the steps' standard deviation costs."""
    reduction: Reduction = "sum"
    """Add -log p of all points, or take 8 times their mean."""
    typical: bool | None = None
    """Points cost nothing that are likelier than the least likely 5 % of draws; default: in more
    than 8 dimensions."""
    iterations: int | None = None
    """Iterations of the search; default: 300, of the original 500."""
    search: Method = "adam"
    """original: the published search."""


class Likely:
    """A run's space of a density, and the search in it."""

    def __init__(self, trained: OpenedRun, options: LikelyOptions):
        self.trained, self.options = trained, options
        self.prior = prior_of(trained, options.prior)
        self.space: PathSpace = space_of(self.prior, options.space, trained.seed)
        typical = options.typical
        if typical is None:
            typical = self.space.dim >= TYPICAL_FROM and options.search != "original"
        self.level = self._level() if typical else None

    @property
    def about(self) -> str:
        """The density, and up to what -log p points cost nothing, in a few words."""
        where = "" if self.space.dim == self.prior.dim else f", {self.space.dim} latents below"
        free = "" if self.level is None else f", typical from {self.level:.2f} nats"
        return f"{type(self.prior).__name__}{where}{free}"

    @property
    def objective(self) -> Objective:
        """What paths are judged by, those of other methods too."""
        o = self.options
        return Objective(
            self.space.log_prob,
            o.length_weight,
            o.spread_weight,
            o.reduction,
            self.level,
            self.space.units,
        )

    @property
    def search(self) -> dict[str, Any]:
        """Options of the search, as `walk` takes them."""
        o = self.options
        search: dict[str, Any] = {
            "method": o.search,
            "length_weight": o.length_weight,
            "spread_weight": o.spread_weight,
            "reduction": o.reduction,
            "typical": self.level,
            "iterations": o.iterations,
            "seed": self.trained.seed,
        }
        return search | {"data": self.nodes} if o.search == "adam" else search

    def walks(self, start: Tensor, end: Tensor, steps: int) -> dict[str, Walk]:
        """Straight lines and likely paths between latents (k, d) and (k, d)."""
        model, space = self.trained.model, self.space
        likely = walk(model, "likelihood", start, end, steps, space=space, search=self.search)
        return {"linear": walk(model, "linear", start, end, steps, space=space), "likely": likely}

    @cached_property
    @torch.no_grad()
    def nodes(self) -> Tensor:  # (m, space.dim)
        """Encoded training images in the space, as the graph of neighbours has them."""
        with evaluating(self.trained.model):
            return self.space.encode(training_latents(self.trained, NODES)).double()

    @torch.no_grad()
    def _level(self) -> float:
        stream = generator(self.trained.seed, 0, "typical", self.trained.device)
        drawn = self.space.draw(LEVEL_DRAWS, stream)
        return typical_level(self.space.log_prob, drawn.double())


def prior_of(trained: OpenedRun, kind: Density) -> Prior:
    """The model's own prior, or one that fit_prior has fitted.

    Raises UsageError or RunError where there is none, or it is not over all latents.
    """
    model = trained.model
    if model.latent_kind != "real":
        raise UsageError(
            "interpolation by 'likelihood' needs real latents with a density, and the latents of "
            f"{trained.path} are bits; use copula"
        )
    if prior_dim(model) != model.latent_dim and (kind != "own" or latent_prior(model) is None):
        others = " or ".join(name for name in walkings(model) if name != "likelihood")
        raise UsageError(
            f"likely paths need a density of all latents, and a prior of {trained.path} is "
            f"over {prior_dim(model)} of {model.latent_dim}, given which the others are drawn; use "
            f"{others}"
        )
    if kind == "own":
        prior = latent_prior(model)
        if prior is None:
            command = f"python -m fastlatent.fit_prior {trained.path}"
            fitting = call_or_command("fit_prior", command)
            raise UsageError(
                f"{trained.path} holds a model whose own prior has no density; fit one by "
                f"{fitting} and name it by {setting('prior')}"
            )
        return prior.to(trained.device).eval()
    return trained.prior(kind)


def training_latents(trained: OpenedRun, most: int) -> Tensor:  # (n, d)
    """Encoded training images, chosen by the seed where there are more than `most`."""
    split = trained.split("train")
    order = torch.randperm(len(split), generator=generator(trained.seed, 0, "training latents"))
    return trained.latents_of(split, order[:most].sort().values)
