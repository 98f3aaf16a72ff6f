"""Options and steps that the commands on a trained run share."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro

from fastlatent.files.code import Code
from fastlatent.files.reading import load_weights, read_checkpoint, reading
from fastlatent.inference.devices import Device, choose_device
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.models.features import (
    LogisticRegression,
    VGG19Features,
    fit_logistic_regression,
)
from fastlatent.runs import Run, Weights
from fastlatent.runs.files import read_tensors, write_tensors
from fastlatent.runs.named import is_named
from fastlatent.runs.trained import TrainedRun

RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
OptionalRun = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]")]


@dataclass(frozen=True)
class RunOptions:
    """What every command on a run folder takes."""

    run: RunFolder
    """Run folder, as training or convert left it, or the name of trained weights: lbae-digits."""
    weights: Weights = "last"
    """Weights of the newest checkpoint (last), or those with the lowest test loss (best)."""
    seed: int | None = None
    """Seed of all random numbers of this command; default: the run's."""
    batch: int | None = None
    """Images to compute at a time; default: the run's --test-batch."""
    device: Device = "auto"
    """Where to compute; auto: on the GPU if there is one."""
    root: Path | None = None
    """Folder that holds the data sets; default: the one the run was trained with."""
    model_from: str | None = None
    """Python file or installed module of the class, for a run of a model of your own."""

    def __post_init__(self) -> None:
        for name in ("batch", "images", "pairs"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}")
        out = getattr(self, "out", None)
        if out is not None and out.suffix.lower() != ".png":
            raise ValueError(f"--out must end in .png, the format of pictures; got {out}")

    @property
    def words(self) -> list[str]:
        """The words of a command line that open the same run, with the same weights and data."""
        found = [str(self.run)]
        for field in fields(RunOptions):
            value = getattr(self, field.name)
            if field.name not in ("run", "seed") and value != field.default:
                found += [f"--{field.name.replace('_', '-')}", str(value)]
        return found


def named_code(model_from: str | None) -> Code | None:
    """The code that --model-from names; UsageError where it cannot be loaded."""
    if model_from is None:
        return None
    try:
        return Code.read(model_from)
    except ValueError as error:
        raise UsageError(f"--model-from: {error}") from error


class Trained(TrainedRun):
    """The run that the options of a command name, and what only commands do with it."""

    def __init__(self, options: RunOptions):
        super().__init__(
            Run.open(options.run, named_code(options.model_from)),
            options.weights,
            choose_device(options.device),
            seed=options.seed,
            batch=options.batch,
            root=options.root,
        )
        self.options = options

    def place(self, out: Path | None, name: str) -> Path:
        """Where a picture goes: to `out`, by default among the pictures of the run.

        Those of weights that were found by name go to the working directory.
        """
        if out is None and is_named(self.path):
            out = Path(f"{self.path.name}-{name}.png")
        return super().place(out, name)

    @cached_property
    def logistic_regression(self) -> LogisticRegression:
        """A classifier of the run's training images: as stored, otherwise trained and stored.

        Raises ValueError where there are no classes, OSError where the images are not at hand.
        """
        path = self.path / "logistic.safetensors"
        if path.is_file():
            with reading(path, "is damaged or no classifier"):
                tensors, _ = read_tensors(path)
                classifier = LogisticRegression(*reversed(tensors["weight"].shape))
                load_weights(classifier, tensors, path, "a classifier")
            return classifier.to(self.device).eval().requires_grad_(False)
        say(f"{self.path} holds no classifier of its images; training one")
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
