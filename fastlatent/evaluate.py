"""Measure a trained model on held-out images: `python -m fastlatent.evaluate RUN`."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import UsageError, command, parse
from fastlatent.data.config import BINARY_SIZES
from fastlatent.metrics import Weighing
from fastlatent.models import LVAEConfig
from fastlatent.passes import Bound, Mean, measure, measure_bound
from fastlatent.progress import say
from fastlatent.runs.files import fingerprint, write_json

DESCRIPTION = """Measure a trained model on all images of a split, with standard errors.
- every model: the loss and its parts
- Ladder VAE: ELBO, reconstruction and KL, in total and of each layer, from one draw of the latents
- Ladder VAE, --samples K: also the importance-weighted bound on the log-likelihood, of K draws

The numbers are printed and stored as evaluation.json in the run folder, the KL of the layers is
drawn as images/kl-layers.png.

Examples:
  python -m fastlatent.evaluate runs/lbae-digits
  python -m fastlatent.evaluate runs/lvae-digits --samples 100
  python -m fastlatent.evaluate runs/lvae-static-mnist-3 --samples 1000 --limit 500"""

LIKELIHOOD = "log_likelihood"
HIGHER_IS_BETTER = ("elbo", LIKELIHOOD)  # bits per dimension count their negative


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    split: Literal["test", "train"] = "test"
    """Which images to measure on."""
    samples: int | None = None
    """Draws of the latents for the importance-weighted bound; default: no such bound."""
    limit: int | None = None
    """Only the first so many images; default: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    options = parse(Options, argv, "evaluate", DESCRIPTION)
    trained = Trained(options)
    model, seed, batch = trained.model, trained.seed, trained.batch
    if options.samples is not None and not isinstance(model, Weighing):
        family = trained.run.config.model.family
        raise UsageError(
            f"--samples needs a model with a likelihood, such as lvae; this is {family}"
        )
    split = trained.split(options.split)
    images = min(options.limit or len(split), len(split))
    means = measure(model, split, batch, seed, options.limit)
    bound = None
    if options.samples is not None:
        bound = measure_bound(model, split, options.samples, batch, seed, options.limit)
    evaluation = Evaluation(means, bound, options.samples, bits_per_nat(trained))

    say(f"{options.split} split of {trained.data.name}, {images:,} images:")
    say("\n".join(evaluation.lines(model.loss_unit)))
    path = trained.run.path / "evaluation.json"
    circumstances = {
        "weights": options.weights,
        "fingerprint": fingerprint(trained.run.weights_file(options.weights)),
        "data": trained.data.name,
        "split": options.split,
        "images": images,
        "seed": seed,
        "batch": batch,
        "unit": model.loss_unit,
    }
    write_json(path, {**circumstances, "values": evaluation.values()})
    say(f"numbers: {path}")
    layers = [mean for name, mean in means.items() if name.startswith("kl_layer_")]
    if layers:
        title = f"KL of each layer, {options.split} split"
        values, errors = zip(*layers, strict=True)
        picture = plots.layer_bars(values, errors, title, model.loss_unit)
        say(f"picture: {plots.save(picture, trained.place(None, 'kl-layers'))}")


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    means: dict[str, Mean]
    bound: Bound | None
    samples: int | None  # of the bound
    bits_per_nat: float | None  # bits per dimension; None where likelihoods are no probabilities

    def lines(self, unit: str) -> list[str]:
        """The numbers as a table."""
        in_bits = self.bits_per_nat is not None
        heading = f"  {'':28}{unit:>24}{'standard error':>18}"
        lines = [heading + f"{'bits/dimension':>18}" * in_bits]
        for name, value in self.values().items():
            title = name.replace("_", " ")
            if name == LIKELIHOOD:
                title = f"log-likelihood, {self.samples:,} samples"
            error = math.nan if value["standard_error"] is None else value["standard_error"]
            line = f"  {title:28}{value['mean']:24.4f}{error:18.4f}"
            lines.append(line + (f"{value['bits_per_dimension']:18.4f}" if in_bits else ""))
        if self.bound is not None and math.isfinite(self.bound.sampling_error):
            lines.append(
                f"  Of that error {self.bound.sampling_error:.4f} comes from drawing no more than "
                f"{self.samples:,} samples; more bring the bound closer, from below."
            )
        return lines

    def values(self) -> dict[str, dict[str, Any]]:
        """The numbers as JSON values; null for an error that cannot be known."""
        measured: dict[str, Mean | Bound] = dict(self.means)
        if self.bound is not None:
            measured[LIKELIHOOD] = self.bound
        values: dict[str, dict[str, Any]] = {}
        for name, mean in measured.items():
            values[name] = {"mean": mean.value, "standard_error": _known(mean.error)}
            if self.bits_per_nat is not None:
                sign = -1 if name in HIGHER_IS_BETTER else 1
                values[name]["bits_per_dimension"] = sign * self.bits_per_nat * mean.value
        if self.bound is not None:
            values[LIKELIHOOD] |= {
                "samples": self.samples,
                "sampling_error": _known(self.bound.sampling_error),
            }
        return values


def bits_per_nat(trained: Trained) -> float | None:
    """Bits per pixel and channel that a nat per image is; None unless images have a probability.

    A Gaussian gives densities, and grey images have none under a Bernoulli distribution.
    """
    config = trained.run.config
    if not isinstance(config.model, LVAEConfig) or config.model.likelihood == "gaussian":
        return None
    if config.model.likelihood == "bernoulli" and config.data.kind not in BINARY_SIZES:
        return None
    return 1 / (math.prod(config.model.image_shape) * math.log(2))


def _known(error: float) -> float | None:
    return error if math.isfinite(error) else None


if __name__ == "__main__":
    sys.exit(main())
