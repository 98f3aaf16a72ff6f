"""Fit a prior to the latents of a trained model: `python -m fastlatent.fit_prior RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.fits import report
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.jobs.progress import say
from fastlatent.priors import (
    PriorKind,
    PriorSettings,
)
from fastlatent.runs.fits import fit_and_store

DESCRIPTION = """Fit a prior to the latents of a trained model's images, and store it in the run.

It is fitted to draws of the posterior, several for each image where images are few. GLO gives its
learned latents, a Ladder VAE those of its top layer. `sample RUN --method gmm` then draws from the
fitted prior.

A table compares the prior with N(0, I), by mean log-density and by the Frechet distance of draws.
It is measured on latents of test images. For GLO it is measured on one in ten of the learned
latents, which are left out of the fit.

Examples:
  python -m fastlatent.fit_prior runs/vae-digits
  python -m fastlatent.fit_prior runs/vae-digits --prior ladder --code-dim 2 --steps 1000
  python -m fastlatent.sample runs/vae-digits --method ladder"""


@dataclass(frozen=True)
class Options(PriorSettings, RunOptions):
    """The command line."""

    prior: PriorKind | Literal["copula"] = "gmm"  # type: ignore[assignment]
    """normal: mean and covariance; gmm: a Gaussian mixture; vamp: posteriors of learned
    pseudo-images; hierarchical: a second VAE on the latents; ladder: a second VAE with a mixture
    over its own latents. copula is refused here: sample fits the copula of bits itself."""
    images: int | None = None
    """Training images to take latents of, at most; default: all, or 20,000 where the model stores
    latents."""
    means: bool = False
    """Fit to means of the posterior, in place of draws."""

    def __post_init__(self) -> None:
        if self.prior == "copula":
            raise ValueError(
                "--prior copula is not for fit_prior: sample and interpolate fit the copula of a "
                "run of bits themselves, from its stored codes"
            )
        RunOptions.__post_init__(self)
        PriorSettings.__post_init__(self)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fit and store."""
    options = parse(Options, argv, "fit_prior", DESCRIPTION, renamed={"--n": "--images"})
    trained = Trained(options)
    settings = settings_of(options)
    found = fit_and_store(trained, settings, options.images, options.means)
    report(trained, found.prior, settings, found.held_out, found.seconds)
    say(f"{found.path}{' (in place of the one before)' if found.replaced else ''}")
    say(f"  python -m fastlatent.sample {trained.path} --method {settings.prior}")


def settings_of(options: Options) -> PriorSettings:
    return PriorSettings(
        **{item.name: getattr(options, item.name) for item in fields(PriorSettings)}
    )


if __name__ == "__main__":
    sys.exit(main())
