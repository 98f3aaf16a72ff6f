"""All comparisons of one set of features with another, from one pass over the images of each."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.estimate import Estimate
from fastlatent.metrics.frechet import frechet_from_features, frechet_standard_error
from fastlatent.metrics.kernel import KernelDistance, kernel_distance
from fastlatent.metrics.prd import PRDCurve, prd_curve, prd_f_beta
from fastlatent.metrics.precision_recall import Neighbourhoods
from fastlatent.metrics.sets import SEED, plain_arithmetic

NEIGHBOURS = 3, 5  # of precision and recall, of density and coverage
CLUSTERS = 20


class Scores(NamedTuple):
    """What `score` measured; each number with its standard error."""

    metrics: dict[str, Estimate]
    prd: PRDCurve | None  # None where it could not be: `notes` says why
    notes: list[str]  # what was left out
    kernel: KernelDistance | None = None  # with the subsets it was taken over


@plain_arithmetic
def score(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    seed: int = SEED,
    *,
    paired: bool = False,  # each row of fake is made from the same row of real
    closed_balls: bool = False,  # samples on the surface of a ball lie inside
) -> Scores:
    """Frechet and kernel distance, precision, recall, density, coverage, and the two F of PRD.

    The settings are those of their papers: 3 nearest neighbours for precision and recall, 5 for
    density and coverage, 20 clusters. The kernel distance has 100 subsets of 1,000. PRD takes as
    many rows of the larger set as the smaller has, drawn by the seed. Metrics that need more
    samples are left out, which `notes` says. Errors take samples as independent, or pairs of them
    where they are paired. Errors of precision and recall are NaN below 16 samples of either set,
    those of density and coverage below 24.

    Raises ValueError for sets that do not fit each other, are not finite or have fewer than 2 rows.
    """
    distance = float(frechet_from_features(real, fake))
    error = float(frechet_standard_error(real, fake, paired=paired))
    metrics = {"frechet_distance": Estimate(distance, error)}
    notes = []
    kernel = kernel_distance(real, fake, seed=seed, paired=paired)
    metrics["kernel_distance"] = Estimate(kernel.value, kernel.error)
    if kernel.subsets == 1:
        notes.append(f"kernel distance of one subset, of {kernel.subset_size:,} images")
    few = min(len(real), len(fake))
    if few > max(NEIGHBOURS):
        around = Neighbourhoods(real, fake, NEIGHBOURS, paired=paired, closed=closed_balls)
        pairs = around.precision_recall(NEIGHBOURS[0]), around.density_coverage(NEIGHBOURS[1])
        metrics |= {name: value for pair in pairs for name, value in pair._asdict().items()}
    else:
        notes.append(f"precision to coverage need {max(NEIGHBOURS) + 1} samples of each set")
    curve = None
    if 2 * few >= CLUSTERS:
        drawn = (_drawn(real, few, seed), _drawn(fake, few, seed))
        curve = prd_curve(*drawn, CLUSTERS, seed=seed, paired=paired)
        f = prd_f_beta(curve)
        metrics |= {"prd_f8": f.recall, "prd_f1/8": f.precision}
        if len(real) != len(fake):
            notes.append(f"PRD of {few:,} of each set, drawn at random from the larger")
    else:
        notes.append(f"PRD needs {CLUSTERS // 2} samples of each set")
    return Scores(metrics, curve, notes, kernel)


def _drawn(x: Tensor, n: int, seed: int) -> Tensor:
    """n of the rows, in their order; rows may be sorted, or come in rounds."""
    if len(x) == n:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:n].sort().values.to(x.device)]
