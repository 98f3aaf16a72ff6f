"""Options and steps that the commands on a trained run share."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import tyro

from fastlatent import plots
from fastlatent.data import Dataset, Split, load
from fastlatent.data.config import moved_to
from fastlatent.files.reading import load_weights, read_checkpoint, reading
from fastlatent.inference.devices import Device, choose_device
from fastlatent.inference.latents import Repair
from fastlatent.inference.passes import evaluating, gather_codes
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import gaussian_posterior
from fastlatent.models.features import (
    LogisticRegression,
    VGG19Features,
    fit_logistic_regression,
)
from fastlatent.priors import BernoulliCopula, CodeStatistics, Prior, PriorKind
from fastlatent.runs import Run, Weights
from fastlatent.runs.files import read_tensors, write_tensors
from fastlatent.runs.priors import read_prior

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RunOptions:
    """What every command on a run folder takes."""

    run: tyro.conf.Positional[Path]
    """Run folder, as training or convert left it."""
    weights: Weights = "last"
    """Weights of the newest checkpoint, or those with the lowest test loss."""
    seed: int | None = None
    """Seed of everything random here; default: the run's."""
    batch: int | None = None
    """Images to compute at a time; default: the run's --test-batch."""
    device: Device = "auto"
    """auto: the GPU if there is one."""
    root: Path | None = None
    """Folder that holds the data sets, where it is not the one trained with."""

    def __post_init__(self) -> None:
        for name in ("batch", "n", "steps"):
            least = 2 if name == "steps" else 1
            value = getattr(self, name, None)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}; got {value}")
        out = getattr(self, "out", None)
        if out is not None and out.suffix.lower() != ".png":
            raise ValueError(f"--out must end in .png, the format of pictures; got {out}")


class Trained:
    """A run folder at work: its model, and its data and codes once they are needed."""

    def __init__(self, options: RunOptions):
        self.options = options
        self.device = choose_device(options.device)
        self.run = Run.open(options.run)
        self.model: LatentModel = self.run.model(options.weights, self.device)
        self.seed = self.run.config.seed if options.seed is None else options.seed
        self.batch = options.batch or self.run.config.test_batch

    @cached_property
    def data(self) -> Dataset:
        """The data set of the run; raises what fastlatent.data.load raises.

        ValueError where its images have another shape than those of the model, RunError where
        they are others than those trained on, in a place that --root names.
        """
        config, root = self.run.config.data, self.options.root
        data = load(config if root is None else moved_to(config, root))
        for note in data.notes:
            say(note)
        if tuple(data.train.shape) != tuple(self.model.image_shape):
            raise ValueError(
                f"the model in {self.run.path} takes images {tuple(self.model.image_shape)} "
                f"(channels, height, width); {data.name} now gives {tuple(data.train.shape)}"
            )
        mark = None if root is None else self.run.images_mark()
        if mark not in (None, data.train.mark_text):
            raise RunError(
                f"the images below {root} are others than those that {self.run.path} was trained "
                "on, or in another order"
            )
        return data

    def split(self, name: str) -> Split:
        split = self.data.train if name == "train" else self.data.test
        return split.to(self.device)

    @cached_property
    def codes(self) -> CodeStatistics:
        """The counts over the training codes: as stored, otherwise gathered and stored.

        Raises UsageError where latents are not bits.
        """
        if self.model.latent_kind != "bits":
            raise UsageError(f"{self.run.path} holds a model without bits, so it has no codes")
        which = self.options.weights
        codes = self.run.codes(which)
        if codes is None:
            say(f"{self.run.path} holds no counts over the codes of these weights; gathering them")
            labels = len(self.data.label_names or ())
            codes = gather_codes(self.model, self.split("train"), self.batch, labels)
            self.run.write_codes(which, codes)
        return codes

    def copula(self, repair: Repair) -> BernoulliCopula | None:
        """The copula fitted to the training codes; None where latents are not bits."""
        if self.model.latent_kind != "bits":
            return None
        return BernoulliCopula(repair).fit(self.codes)

    def prior(self, kind: PriorKind) -> Prior:
        """The prior of that kind that fit_prior has fitted to these weights.

        Raises RunError with the command to run where there is none, UsageError where there can be
        none.
        """
        self.check_prior(kind)
        return read_prior(self.run, self.options.weights, kind, self.model)

    @property
    def probe(self) -> torch.Tensor:  # (1, c, h, w)
        """An image of the model's shape, to see what the model gives."""
        return torch.zeros(1, *self.model.image_shape, device=self.device)

    @property
    def gives_gaussians(self) -> bool:
        """Whether the model's encoder gives a Gaussian posterior."""
        with evaluating(self.model):
            return gaussian_posterior(self.model, self.probe) is not None

    def check_prior(self, kind: PriorKind) -> None:
        """UsageError for a prior that cannot be fitted to the model's latents."""
        if kind == "vamp" and not self.gives_gaussians:
            raise UsageError(
                "the prior vamp needs a model whose encoder gives a Gaussian posterior; that in "
                f"{self.run.path} does not, but takes normal, gmm, hierarchical or ladder"
            )

    @cached_property
    def logistic_regression(self) -> LogisticRegression:
        """A classifier of the run's training images: as stored, otherwise trained and stored.

        Raises ValueError where there are no classes, OSError where the images are not at hand.
        """
        path = self.run.path / "logistic.safetensors"
        if path.is_file():
            with reading(path, "is damaged or no classifier"):
                tensors, _ = read_tensors(path)
                classifier = LogisticRegression(*reversed(tensors["weight"].shape))
                load_weights(classifier, tensors, path, "a classifier")
            return classifier.to(self.device).eval().requires_grad_(False)
        say(f"{self.run.path} holds no classifier of its images; training one")
        train, names = self.split("train"), self.data.label_names or ()
        classifier = fit_logistic_regression(train, len(names), self.device, seed=self.seed)
        accuracy = classifier.accuracy(self.split("test"))
        write_tensors(path, classifier.state_dict(), {"test_accuracy": repr(accuracy)})
        say(f"logistic regression finds the class of {accuracy:.1%} of the test images: {path}")
        return classifier

    def vgg_features(self, weights: Path) -> VGG19Features:
        """VGG-19 with the weights in a file.

        Raises OSError, RunError or ValueError where they cannot be read or do not fit.
        """
        features = VGG19Features(self.model.image_shape)
        return features.load(read_checkpoint(weights)).to(self.device)

    @property
    def subject(self) -> str:
        """What its pictures are of: the run and its weights."""
        return f"{self.run.path.name}: {self.run.config.name}, {self.options.weights} weights"

    def draw(self, picture: "Image", path: Path) -> Path:
        """Write a picture of the run, which says so below."""
        return plots.save(picture, path, self.subject)

    def place(self, out: Path | None, name: str) -> Path:
        """Where a picture goes: to `out`, by default among the pictures of the run."""
        path = self.run.images / f"{name}.png" if out is None else out.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
