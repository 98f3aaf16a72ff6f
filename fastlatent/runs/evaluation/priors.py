"""Priors that were fitted to a trained model, in the place of its own."""

from typing import Any, NamedTuple

from fastlatent.data import Split
from fastlatent.estimate import Estimate
from fastlatent.inference.latents import FITTED
from fastlatent.inference.passes import Bound, measure, measure_bound
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say
from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.capabilities import LearnedPrior
from fastlatent.priors import Prior, PriorKind
from fastlatent.runs.opened import OpenedRun
from fastlatent.runs.priors import prior_file


def stored_priors(trained: OpenedRun) -> dict[PriorKind, Prior]:
    """Those that fit_prior has fitted to these weights; it is said which no longer fit."""
    found = {}
    for kind in FITTED:
        if prior_file(trained.folder, trained.weights, kind).is_file():
            try:
                found[kind] = trained.prior(kind)
            except (RunError, ValueError) as error:
                say(f"left out: {error}")
    return found


class UnderPrior(NamedTuple):
    """What the bounds of a model are under a prior, in nats per image."""

    loss: Estimate  # -ELBO
    kl: Estimate
    bound: Bound | None  # importance-weighted

    def numbers(self) -> tuple[Estimate | None, ...]:
        """-ELBO, KL and bound, for a table."""
        bound = None if self.bound is None else Estimate(self.bound.value, self.bound.error)
        return self.loss, self.kl, bound

    def values(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        names = ("loss", "kl", "log_likelihood")
        return {
            name: {"mean": found.value, "standard_error": found.error, "unit": NATS}
            for name, found in zip(names, self.numbers(), strict=True)
            if found is not None
        }


def bounds_under(
    model: LatentModel,
    own: UnderPrior,
    priors: dict[PriorKind, Prior],
    split: Split,
    batch: int,
    seed: int,
    samples: int | None,  # of the importance-weighted bound; None: without
    limit: int | None,
) -> dict[str, UnderPrior]:
    """The bounds of one VAE under its `own` prior, and with each of the others in its place.

    Raises ValueError for a model in whose prior's place none can stand.
    """
    if not isinstance(model, LearnedPrior):
        raise ValueError(
            f"bounds_under: {type(model).__name__} takes no other prior in the place of its own"
        )
    found = {"prior": own}
    for kind, prior in priors.items():
        with model.under(prior):
            means = measure(model, split, batch, seed, limit)
            bound = None
            if samples is not None:
                bound = measure_bound(model, split, samples, batch, seed, limit)
        found[kind] = UnderPrior(means["loss"], means["kl"], bound)
    return found


def table_of(found: dict[str, UnderPrior]) -> list[str]:
    """A row for each prior."""
    lines = [f"  {'under':16}{'-ELBO':>20}{'KL':>20}{'log-likelihood':>20}"]
    for name, row in found.items():
        cells = ("" if number is None else str(number) for number in row.numbers())
        lines.append(f"  {name:16}" + "".join(f"{cell:>20}" for cell in cells))
    for name, row in found.items():
        if row.bound is not None and row.bound.warning is not None:
            lines.append(f"  {name}: {row.bound.warning}")
    return lines
