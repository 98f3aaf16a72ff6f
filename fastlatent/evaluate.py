"""Measure a trained model, or compare two sets of images: `python -m fastlatent.evaluate RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastlatent.commands.console import OUTSIDE_TRAINING, command, parse
from fastlatent.commands.trained import OptionalRun, RunOptions, Trained
from fastlatent.files.image_files import BACKGROUND, check_background
from fastlatent.inference.devices import choose_device
from fastlatent.inference.latents import Repair
from fastlatent.jobs.environment import check_launch
from fastlatent.jobs.ranks import is_main_process, joined
from fastlatent.runs.evaluation.extractors import Chosen, Kind
from fastlatent.runs.evaluation.given import Reading
from fastlatent.runs.evaluation.trained_run import evaluate_run
from fastlatent.runs.evaluation.two_sets import evaluate_sets

DESCRIPTION = """Measure a trained model on all images of a split, with standard errors.
- every model: the loss and its parts, and the squared pixel error of reconstructions
- every model: samples of each method, reconstructions and interpolations next to the real images,
  by Frechet distance, kernel distance, precision, recall, density, coverage and the F of PRD
- VAE, Ladder VAE, LaDDer: ELBO, reconstruction and KL; with --samples K also the
  importance-weighted bound on the log-likelihood, from K draws of the latents
- priors that fit_prior has fitted to the run: their samples, and for LaDDer their bounds
- two sets in place of a run, --real and --fake: folders of images, or .npz of images or features

Sets of images are compared by features. They come from a small classifier that learns the training
images, from the Inception network, or from DINOv2. Only the distance with the Inception network is
called FID; the others are FD(classifier) and FD(dinov2).

The numbers are printed and stored as evaluation.json in the run folder; for two sets, in --folder.
A line is added to results.jsonl beside that folder. prd.png shows PRD curves, kl-layers.png the KL
of each layer.

Standard errors take images as independent, and reconstructions as pairs with their originals. Under
torchrun each process takes a share of a run's images. Two sets are compared by one process.

Examples:
  python -m fastlatent.evaluate runs/lbae-digits
  python -m fastlatent.evaluate runs/lvae-digits --samples 100 --features none
  python -m fastlatent.evaluate runs/lbae-celeba --features inception --jpeg
  python -m fastlatent.evaluate --real folder --fake samples.npz --features inception
  torchrun --nproc-per-node 2 -m fastlatent.evaluate runs/lbae-mnist"""


# Settings of a data set that options of this command name otherwise.
OPTIONS = {**OUTSIDE_TRAINING, "data.name": "--data", "data.size": "--size"}


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    run: OptionalRun = None  # type: ignore[assignment]
    """Run folder, as training or convert left it. Leave it out with --real and --fake."""
    seed: int | None = None
    """Seed of all random numbers of this command; default: the run's, or 12345 with --real and
    --fake."""
    split: Literal["test", "train"] = "test"
    """Split to measure on and to compare with."""
    samples: int | None = None
    """Draws of the latents for each image in the importance-weighted bound; default: no such bound.
    """
    images: int | None = None
    """Images to measure on, evenly spread, and images in each set; default: all."""
    features: Kind | Literal["auto", "none"] = "auto"
    """Network whose features sets are compared by; auto: a classifier where the data has labels, or
    the features that .npz files hold."""
    feature_weights: Path | None = None
    """File of weights for --features dinov2 or inception; default for inception: downloaded once.
    """
    feature_name: str | None = None
    """Name of the DINOv2 network, where the weights lie in a clone of its repository. The code of
    that clone is then run."""
    trust_feature_code: bool = False
    """Allow --features dinov2 to load a file of TorchScript or torch.export, which can run any
    code."""
    reference: Path | None = None
    """Real images or their features to compare with, a folder or an .npz file; default: the images
    of the split."""
    data: str | None = None
    """With --real and --fake: data set whose training images a classifier learns."""
    real: Path | None = None
    """Real images or their features: a folder, or an .npz file."""
    fake: Path | None = None
    """Generated images or their features, to compare with --real."""
    size: tuple[int, ...] = ()
    """With --real and --fake: side, or height and width, to resize images to; default: their own,
    which must be one size in a folder."""
    channels: Literal[1, 3] | None = None
    """With --real and --fake: channels of images; default: those of --data, else those of the first
    image of a set. Colour images become grey only where all their pixels are grey."""
    key: tuple[str, ...] = ()
    """Name of the array in .npz files; or two names, for --real and for --fake."""
    recursive: bool = True
    """Also read the folders below a folder of images."""
    background: str = BACKGROUND
    """Colour behind transparent pixels of image files: white, black or #rrggbb."""
    jpeg: bool = False
    """Store all images as JPEG before taking features, as the published protocol of the LBAE does;
    default: as 8-bit pixels."""
    closed_balls: bool = False
    """Count a sample on the surface of a ball as inside, as torch-fidelity does, in precision,
    recall, density and coverage; default: as outside, as prdc does."""
    repair: Repair = "clip"
    """How to repair moments of the codes that no copula has (bits)."""
    folder: Path | None = None
    """With --real and --fake: folder for the numbers and the picture; default: evaluation-FAKE,
    with a number added where that folder holds other sets' numbers."""
    results: Path | None = None
    """File to add a line of all numbers to; default: results.jsonl beside the run folder or
    --folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}; got {value}")
        if (self.real is None) != (self.fake is None):
            raise ValueError("--real and --fake go together")
        if (self.run is None) == (self.real is None):
            raise ValueError("name a run folder, or two sets by --real and --fake")
        if self.data is not None and self.run is not None:
            raise ValueError("--data goes with --real and --fake; a run knows its data set")
        if self.folder is not None and self.run is not None:
            raise ValueError("--folder goes with --real and --fake; a run has its own")
        for name, given in (("size", bool(self.size)), ("channels", self.channels is not None)):
            if given and self.run is not None:
                raise ValueError(f"--{name} goes with --real and --fake; a run knows its own")
        for name, given in (
            ("key", bool(self.key)),
            ("no-recursive", not self.recursive),
            ("background", self.background != BACKGROUND),
        ):
            if given and self.real is None and self.reference is None:
                raise ValueError(f"--{name} goes with two sets of images, or with a reference")
        if len(self.size) > 2 or any(side < 1 for side in self.size):
            raise ValueError(f"--size must be a side, or height and width; got {self.size}")
        if len(self.key) > (1 if self.real is None else 2):
            raise ValueError("--key names one array, or one for --real and one for --fake")
        check_background("--background", self.background)
        of_runs = {
            "reference": self.reference is not None,
            "samples": self.samples is not None,
            "split": self.split != "test",
            "weights": self.weights != "last",
        }
        for name, given in of_runs.items():
            if given and self.run is None:
                raise ValueError(f"--{name} goes with a run, and not with --real and --fake")
        if self.feature_weights is not None and self.features not in ("inception", "dinov2"):
            raise ValueError("--feature-weights goes with --features inception or dinov2")
        if self.feature_name is not None and self.features != "dinov2":
            raise ValueError("--feature-name goes with --features dinov2")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; None: as they are."""
        return (self.size[0], self.size[-1]) if self.size else None

    def reading(self, place: int) -> Reading:
        """How the real set or the reference (place 0), or the other, is read."""
        key = (self.key * 2)[place] if self.key else None
        limit = None if self.real is None else self.images
        return Reading(self.sides, self.channels, key, self.recursive, self.background, limit)

    @property
    def chosen(self) -> Chosen:
        """Whose features sets are compared by."""
        weights, name = self.feature_weights, self.feature_name
        return Chosen(
            self.features, weights, name, self.trust_feature_code, self.jpeg, self.closed_balls
        )


@command(shared=True, options=OPTIONS)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    options = parse(Options, argv, "evaluate", DESCRIPTION, renamed={"--limit": "--images"})
    check_launch()
    if options.run is not None:
        with joined(choose_device(options.device)):
            evaluate_run(
                Trained(options),
                options.split,
                options.chosen,
                options.samples,
                options.images,
                options.reference,
                options.reading(0),
                options.repair,
                options.results,
            )
    elif options.real is not None and options.fake is not None and is_main_process():
        evaluate_sets(
            (options.real, options.fake),
            (options.reading(0), options.reading(1)),
            options.chosen,
            choose_device(options.device),
            options.data,
            options.root,
            options.batch,
            options.seed,
            options.folder,
            options.results,
        )


if __name__ == "__main__":
    sys.exit(main())
