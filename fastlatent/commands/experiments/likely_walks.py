"""Walks along likely paths, next to straight lines in the same space."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.experiments.ends import Joined
from fastlatent.commands.experiments.findings import write_rows
from fastlatent.commands.experiments.path_pictures import density_picture, history_picture
from fastlatent.commands.experiments.shorter import encode
from fastlatent.commands.trained import Trained
from fastlatent.inference.latents import decode
from fastlatent.inference.passes import evaluating
from fastlatent.inference.walking import (
    Space,
    Walk,
    WalkMeasures,
    measured,
    space_of,
    walk,
    walkings,
)
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.models.capabilities import latent_prior, prior_dim
from fastlatent.noise import generator
from fastlatent.paths import LikelihoodPaths, Objective, typical_level
from fastlatent.paths.likelihood import Method
from fastlatent.paths.objective import Reduction
from fastlatent.priors import PathSpace, Prior, PriorKind

Density = Literal["own"] | PriorKind

NODES = 2_000  # of the graph of encoded images, at most
LEVEL_DRAWS = 10_000
TYPICAL_FROM = 9  # dimensions, where the mode is no place for data any more
ROUNDING = 1e-6  # relative, of lengths
CHECKED = 8  # walks in the picture of histories, at most


@dataclass(frozen=True)
class LikelyOptions:
    """How likely paths are searched for, on the command line."""

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

    def __init__(self, trained: Trained, options: LikelyOptions):
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

    def walks(self, joined: Joined, steps: int) -> dict[str, Walk]:
        """Straight lines and likely paths between the ends."""
        o, model = self.options, self.trained.model
        ends = joined.start, joined.end
        search: dict[str, Any] = {
            "method": o.search,
            "length_weight": o.length_weight,
            "spread_weight": o.spread_weight,
            "reduction": o.reduction,
            "typical": self.level,
            "iterations": o.iterations,
            "seed": self.trained.seed,
        }
        if o.search == "adam":
            search["data"] = self.nodes()
        likely = walk(model, "likelihood", *ends, steps, space=self.space, search=search)
        return {"linear": walk(model, "linear", *ends, steps, space=self.space), "likely": likely}

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


def prior_of(trained: Trained, kind: Density) -> Prior:
    """The model's own prior, or one that fit_prior has fitted.

    Raises UsageError or RunError where there is none, or it is not over all latents.
    """
    model = trained.model
    if model.latent_kind != "real":
        raise UsageError(
            "interpolation by 'likelihood' needs real latents with a density, and the latents of "
            f"{trained.run.path} are bits; use copula"
        )
    if prior_dim(model) != model.latent_dim and (kind != "own" or latent_prior(model) is None):
        others = " or ".join(name for name in walkings(model) if name != "likelihood")
        raise UsageError(
            f"likely paths need a density of all latents, and a prior of {trained.run.path} is "
            f"over {prior_dim(model)} of {model.latent_dim}, given which the others are drawn; use "
            f"{others}"
        )
    if kind == "own":
        prior = latent_prior(model)
        if prior is None:
            raise UsageError(
                f"{trained.run.path} holds a model whose own prior has no density; fit "
                f"one by python -m fastlatent.fit_prior {trained.run.path} and name it by --prior"
            )
        return prior.to(trained.device).eval()
    return trained.prior(kind)


def training_latents(trained: Trained, most: int) -> Tensor:  # (n, d)
    """Encoded training images, chosen by the seed where there are more than `most`."""
    split = trained.split("train")
    order = torch.randperm(len(split), generator=generator(trained.seed, 0, "training latents"))
    return encode(trained, split, order[:most].sort().values)


def walk_likely(
    trained: Trained,
    joined: Joined,
    steps: int,
    options: LikelyOptions,
    out: Path | None,
) -> Tensor:  # (k, 2, steps, c, h, w)
    """Straight lines and likely paths between the ends: pictures, curves, a table.

    Returns the images along both.
    """
    if steps < 3:
        raise UsageError(f"--method likelihood needs --steps 3 or more; got {steps}")
    likely = Likely(trained, options)
    walks = likely.walks(joined, steps)
    numbers = {
        name: measured(trained.model, path, trained.batch, likely.space, likely.objective)
        for name, path in walks.items()
    }
    found = walks["likely"].found
    assert isinstance(found, LikelihoodPaths)
    place = trained.place(out, f"interpolation-likelihood-{options.prior}")
    _report(likely, found, numbers, joined, place.with_suffix(".csv"))

    latents = torch.stack([path.latents for path in walks.values()], 1)
    images = decode(trained.model, latents.flatten(0, 2), trained.batch)
    images = images.unflatten(0, latents.shape[:3])
    twice = (None if x is None else x.repeat_interleave(2, 0) for x in (joined.first, joined.last))
    first, last = twice
    caption = f"straight lines and likely paths ({likely.about})"
    notes = [
        f"{name}\nlength {float(part.terms.length[k]):.3f}, NLL {float(part.terms.nll[k]):.2f}"
        for k in range(len(images))
        for name, part in numbers.items()
        if part.terms is not None
    ]
    picture = plots.walks(first, images.flatten(0, 1), last, caption, notes, together=2)
    say(f"picture: {trained.draw(picture, place)}")
    history = history_picture(found, joined.names[:CHECKED])
    saved = trained.draw(history, place.with_name(f"{place.stem}-history.png"))
    say(f"picture: {saved}")
    if likely.space.dim == 2:
        encoded = likely.nodes()
        drawn = density_picture(likely.space.log_prob, found, encoded, likely.about)
        saved = trained.draw(drawn, place.with_name(f"{place.stem}-density.png"))
        say(f"picture: {saved}")
    return images


def _report(
    likely: Likely,
    found: LikelihoodPaths,
    numbers: dict[str, WalkMeasures],
    joined: Joined,
    path: Path,
) -> None:
    """The table on the screen and as CSV."""
    columns: dict[str, Sequence[Any]] = {
        "pair": range(1, len(joined.names) + 1),
        **joined.columns,
        "start": [found.starts[k] for k in found.chosen.tolist()],
        "iterations": found.iterations.tolist(),
        "converged": found.converged.tolist(),
        "typical_from": [likely.level] * len(joined.names),
    }
    for name, part in numbers.items():
        assert part.terms is not None
        columns |= {f"{name}_{term}": x.tolist() for term, x in part.terms._asdict().items()}
        columns[f"{name}_image_length"] = part.image_length.tolist()
    headings = ("length", "spread", "nll", "objective", "image_length")
    titles = ("length", "spread", "NLL", "J", "of images")
    say(f"  {likely.about}")
    say(f"  {'':4}" + "".join(f"{name:>{11 * len(titles)}}" for name in numbers))
    say(f"  {'row':4}" + 2 * "".join(f"{title:>11}" for title in titles))
    straight = int((found.terms.length <= (1 + ROUNDING) * found.line.length).sum())
    if straight:
        why = "nothing likelier is worth the way"
        if likely.level is not None:
            why = "their points are typical, which costs nothing; --typical False searches on"
        say(f"  {straight} of {len(joined.names)} likely paths are the straight lines: {why}")
    for k, name in enumerate(joined.names):
        cells = [columns[f"{one}_{term}"][k] for one in numbers for term in headings]
        row = "".join(f"{cell:11.4f}" for cell in cells)
        say(f"  {k + 1:<4}{row}  {name}; from the {columns['start'][k]}")
    write_rows(path, columns)
