"""The run folder: everything that is known about one training run, and nothing that is not.

config.json                how to train again
data.npz                   images that were handed to fastlatent.train
weights.safetensors        weights to use: the newest checkpoint's, or their moving average
best.safetensors           weights at the lowest test loss
latents.safetensors        latents learned for the training images (latents-best: with best)
codes.safetensors          counts over the training codes, for sampling (codes-best: of best)
prior-<kind>.safetensors   a prior fitted to the latents, by fit_prior (prior-<kind>-best: of best)
state/<step>/, latest      checkpoints to resume from: tensors and JSON only
state/<step>/finished.json  the settings of a run that has nothing left to do
metrics.jsonl              one line of numbers for each log, test and sample measurement
evaluation.json            what evaluate measured last
logistic.safetensors       classifier of the training images, as a feature map
geodesics.csv, json, npz   shorter curves: each pair, statistics, control points
comparison.csv, json, npz  the same on images that another run was given too
interpolation-*.csv        lengths of the walks that interpolate drew last
film/*.png                 frames of the training film: originals, and reconstructions after steps
images/*.png, events.*     pictures; TensorBoard
.lock                      the process that is writing here
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent.files.code import Code
from fastlatent.files.reading import load_weights, read_json, reading
from fastlatent.files.writing import flush_to_disk
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.naming import setting
from fastlatent.models import LatentModel, OwnConfig, build
from fastlatent.models.capabilities import LearnsLatents
from fastlatent.presets import TrainConfig
from fastlatent.priors import CodeStatistics
from fastlatent.runs.config import read_config, to_json
from fastlatent.runs.files import fingerprint, link_or_copy, read_tensors, write_json, write_tensors
from fastlatent.runs.lock import LOCK, is_alive
from fastlatent.runs.named import named_folder, names

Weights = Literal["last", "best"]

WEIGHT_FILES: dict[Weights, str] = {"last": "weights.safetensors", "best": "best.safetensors"}
CODE_FILES: dict[Weights, str] = {"last": "codes.safetensors", "best": "codes-best.safetensors"}
LATENT_FILES: dict[Weights, str] = {
    "last": "latents.safetensors",
    "best": "latents-best.safetensors",
}
CHUNK = 1 << 16  # latents checked at a time
DATA = "data.npz"
BEST_FILES = (WEIGHT_FILES["best"], LATENT_FILES["best"])
# What a run leaves that never got as far as a trained step.
BEGINNING = (
    *("config.json", DATA, "images", "film", "state", "metrics.jsonl", "events.*", ".*.tmp", LOCK),
    *(WEIGHT_FILES["last"], LATENT_FILES["last"]),
)
EVALUATED = "weights"  # the tensors of a checkpoint that become weights.safetensors
FINISHED = "finished.json"  # of a checkpoint after which nothing is left to do
LATENTS = "latents"  # learned ones, which become latents.safetensors


@dataclass(frozen=True)
class State:
    """A checkpoint: named groups of tensors, each a safetensors file, and JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    config: TrainConfig
    code: Code | None = None  # that the user has named, for a model of their own

    @property
    def title(self) -> str:
        """The folder's name, followed by the run's own name where the two differ."""
        folder, name = self.path.absolute().name, self.config.name
        return name if folder == name else f"{folder}: {name}"

    @staticmethod
    def check_free(path: Path) -> None:
        """UsageError where a new run would not find a free place.

        A run that never got as far as a trained step is no hindrance.
        """
        if not path.exists():
            return
        if path.is_dir() and all(
            entry.name in (LOCK, DATA) or entry.match(".*.tmp") for entry in path.iterdir()
        ):
            return
        try:
            config = read_config(path / "config.json")
        except (OSError, ValueError):
            raise UsageError(
                f"{path} is there and is no run; choose another folder by {setting('out')}"
            ) from None
        if Run(path, config).has_learned():
            raise UsageError(
                f"{path} already holds a run; go on with it by python -m fastlatent.train --resume "
                f"{path}, or choose another folder by {setting('out')}"
            )
        for entry in sorted(path.iterdir()):
            if not any(entry.match(pattern) for pattern in BEGINNING):
                raise UsageError(
                    f"{path} holds {entry.name}, which is no part of a run that has just begun; "
                    f"choose another folder by {setting('out')}"
                )

    def create(self) -> None:
        """Begin the run in its new or empty folder; UsageError where that holds something."""
        Run.check_free(self.path)
        if self.path.is_dir():
            self._remove_beginning()
        self.path.mkdir(parents=True, exist_ok=True)
        # First of all: a disk that is full leaves nothing then.
        self.write_config()
        self.images.mkdir(exist_ok=True)
        self._states.mkdir(exist_ok=True)

    def has_learned(self) -> bool:
        """Whether training got as far as a step, or weights came from elsewhere."""
        steps, log = self.steps(), self.path / "metrics.jsonl"
        if not steps:
            return (self._states / "latest").exists() or (self.path / WEIGHT_FILES["last"]).exists()
        return any(steps) or (log.is_file() and log.stat().st_size > 0)

    def _remove_beginning(self) -> None:
        """Remove what would be taken for a part of the run that begins anew."""
        shutil.rmtree(self._states, ignore_errors=True)
        for name in (WEIGHT_FILES["last"], LATENT_FILES["last"]):
            (self.path / name).unlink(missing_ok=True)
        self._drop_frames(0)

    @staticmethod
    def open(path: Path, code: Code | None = None) -> "Run":
        """The run in a folder, or that of trained weights by name; RunError when there is none."""
        if not (path / "config.json").is_file():
            folder = named_folder(path)
            if folder is None:
                raise RunError(
                    f"{path} is not a run folder: it holds no config.json; "
                    f"trained weights are at hand by the names {', '.join(names())}"
                )
            path = folder
        return Run(path, read_config(path / "config.json"), code)

    @property
    def film(self) -> Path:
        """The folder of the training film's frames."""
        return self.path / "film"

    def frames(self) -> list[tuple[int, Path]]:
        """The frames of the film with their steps, in order; other files are left alone."""
        paths = self.film.glob("*.png")
        return sorted(
            (int(path.stem), path) for path in paths if is_number(path.stem) and path.is_file()
        )

    def write_config(self) -> None:
        write_json(self.path / "config.json", to_json(self.config))

    @property
    def images(self) -> Path:
        """The folder of the pictures."""
        return self.path / "images"

    def model(self, which: Weights, device: torch.device | str = "cpu") -> LatentModel:
        """The model with its weights, in evaluation mode.

        Raises RunError when the weights are missing, ValueError when they do not fit.
        """
        path = self.weights_file(which)
        model = self.fresh_model()
        load_weights(model, read_tensors(path)[0], path)
        if isinstance(model, LearnsLatents):
            model.latents = self.latents(which, model.latent_dim)
        return model.to(device).eval()

    def fresh_model(self) -> LatentModel:
        """The model with seeded weights, on the CPU; ValueError where it cannot be built."""
        if isinstance(self.config.model, OwnConfig):
            return build(self.config.model, self.config.seed, self.code)
        with reading(self.path / "config.json", "describes a model that cannot be built"):
            return build(self.config.model, self.config.seed)

    def latents(self, which: Weights, dim: int) -> Tensor:  # (N, d)
        """The latents learned for the training images, mapped from their file.

        Raises RunError when there are none, or they were learned with other weights than those
        beside them. Raises ValueError when they are of another size.
        """
        path = self.path / LATENT_FILES[which]
        if not path.is_file():
            raise RunError(f"{self.path} holds no {path.name}, the latents of its training images")
        tensors, marks = read_tensors(path)
        latents = tensors.get("codes")
        if latents is None or latents.dim() != 2 or latents.shape[1] != dim:
            found = None if latents is None else tuple(latents.shape)
            raise ValueError(f"{path} must hold latents of {dim} numbers each; got {found}")
        if latents.dtype != torch.float32:
            raise ValueError(f"{path} must hold latents in float32; got {latents.dtype}")
        if not all(bool(part.isfinite().all()) for part in latents.split(CHUNK)):
            raise ValueError(f"{path} is damaged: it holds latents that are NaN or infinite")
        images = self._trained_images()
        if images is not None and len(latents) != images:
            raise ValueError(f"{path} must hold latents of {images:,} images; got {len(latents):,}")
        weights, mark = self.weights_file(which), marks.get("weights")  # older runs have no mark
        if mark is not None and mark != fingerprint(weights):
            raise RunError(
                f"{path} holds latents learned with other weights than {weights.name}; "
                f"a checkpoint has both: python -m fastlatent.train --resume {self.path}"
            )
        return latents

    def _trained_images(self) -> int | None:
        """How many images the run was trained on, as far as its checkpoint tells."""
        step = self.latest()
        path = self._states / str(step) / "state.json"
        values = read_json(path) if step is not None and path.is_file() else None
        images = values.get("images") if isinstance(values, dict) else None
        return images if type(images) is int else None

    def weights_file(self, which: Weights) -> Path:
        path = self.path / WEIGHT_FILES[which]
        if not path.is_file():
            raise RunError(f"{self.path} holds no {path.name}, so no {which} weights yet")
        return path

    def codes(self, which: Weights) -> CodeStatistics | None:
        """The stored counts over the training codes; None when missing or of other weights."""
        path = self.path / CODE_FILES[which]
        if not path.is_file():
            return None
        tensors, metadata = read_tensors(path)
        if metadata.get("weights") != fingerprint(self.weights_file(which)):
            return None
        with reading(path, "is damaged"):
            return CodeStatistics.from_state(tensors)

    def write_codes(self, which: Weights, codes: CodeStatistics) -> None:
        """Store the counts with a mark of the weights that they belong to."""
        mark = {"weights": fingerprint(self.weights_file(which))}
        write_tensors(self.path / CODE_FILES[which], codes.state(), mark)

    def write_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put in weights that came from elsewhere."""
        write_tensors(self.path / WEIGHT_FILES["last"], tensors)

    def write_best(
        self,
        tensors: dict[str, Tensor],
        step: int,
        loss: float,
        latents: dict[str, Tensor] | None = None,  # learned ones, for a model that learns them
    ) -> None:
        metadata = {"step": str(step), "test_loss": repr(loss)}
        write_tensors(self.path / WEIGHT_FILES["best"], tensors, metadata)
        if latents:
            write_latents(self.path / LATENT_FILES["best"], latents, self.weights_file("best"))

    # Checkpoints. A folder state/<step> is written under a temporary name, flushed, renamed; only
    # then the pointer moves. So the pointer never names anything but a whole checkpoint.

    @property
    def _states(self) -> Path:
        return self.path / "state"

    def steps(self) -> list[int]:
        """The steps of the kept checkpoints, in order."""
        if not self._states.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in self._states.iterdir()
            if is_number(entry.name) and entry.is_dir()
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint; ValueError when the pointer is damaged."""
        pointer = self._states / "latest"
        if not pointer.is_file():
            return None
        step = read_json(pointer)
        if type(step) is not int:
            raise ValueError(f"{pointer} is damaged: it must hold a step; got {step!r}")
        return step

    def images_mark(self) -> str | None:
        """The mark of the training images in the newest checkpoint; None where there is none."""
        step = self.latest()
        path = self._states / str(step) / "state.json"
        return read_json(path).get("mark") if path.is_file() else None

    def save(self, state: State) -> None:
        """Write a checkpoint, move the pointer to it, drop those not to be kept.

        Whatever fails, the checkpoints there were stay whole.
        """
        building = self._states / f".{state.step}.tmp"
        final = self._states / str(state.step)
        aside = self._states / f".{state.step}.old.tmp"
        try:
            self._states.mkdir(exist_ok=True)
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            for name, tensors in state.tensors.items():
                if name != LATENTS:
                    write_tensors(building / f"{name}.safetensors", tensors)
            if LATENTS in state.tensors:
                weights = building / f"{EVALUATED}.safetensors"
                path = building / f"{LATENTS}.safetensors"
                write_latents(path, state.tensors[LATENTS], weights)
            for best in (self.path / name for name in BEST_FILES):
                if best.is_file():
                    link_or_copy(best, building / best.name)
            marks = {path.name: fingerprint(path) for path in sorted(building.iterdir())}
            write_json(building / "state.json", {"files": marks, **state.values})
            if final.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(final, aside)
            os.replace(building, final)
            flush_to_disk(self._states)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            if aside.exists() and not final.exists():
                os.replace(aside, final)
            raise self._unsaved(error, state.step) from None
        self._point_to(state.step)

    def _unsaved(self, error: OSError, step: int) -> RunError:
        kept = self.latest()
        rest = "none was written before" if kept is None else f"the one of step {kept} is whole"
        reason = error.strerror or str(error)
        return RunError(
            f"cannot write the checkpoint of step {step} to {self.path}: {reason}; {rest}"
        )

    def rewind(self, step: int) -> None:
        """Go back to the checkpoint of `step`, with the settings as they are now."""
        self.images.mkdir(exist_ok=True)
        self._drop_frames(step)
        self.write_config()
        self._point_to(step)
        self.prune(len(self.steps()))

    def _drop_frames(self, step: int) -> None:
        """Remove the frames of the film that were made after `step`."""
        for number, frame in self.frames():
            if number > step:
                frame.unlink()

    def _point_to(self, step: int) -> None:
        """Make the checkpoint of `step` the newest: its weights are the run's weights."""
        write_json(self._states / "latest", step)
        folder = self._states / str(step)
        link_or_copy(folder / f"{EVALUATED}.safetensors", self.path / WEIGHT_FILES["last"])
        for name in (LATENT_FILES["last"], *BEST_FILES):
            if (folder / name).is_file():
                link_or_copy(folder / name, self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)

    def finish(self, step: int) -> None:
        """Note beside the checkpoint of `step` that nothing is left to do after it."""
        write_json(self._states / str(step) / FINISHED, {"settings": to_json(self.config)})

    def is_finished(self, step: int) -> bool:
        """Whether that is noted, under the settings that the run has."""
        path = self._states / str(step) / FINISHED
        return path.is_file() and read_json(path) == {"settings": to_json(self.config)}

    def prune(self, keep: int) -> None:
        """Drop all but the newest `keep` checkpoints up to the latest, and unfinished ones."""
        latest = self.latest()
        steps = [step for step in self.steps() if latest is not None and step <= latest]
        self._drop(set(self.steps()) - set(steps[-keep:]))

    def drop_training(self) -> None:
        """Remove what only training and its film read; files and links of others stay."""
        (self._states / "latest").unlink(missing_ok=True)
        self._drop(self.steps())
        self._drop_frames(-1)
        (self.film / "originals.png").unlink(missing_ok=True)
        for folder in (self._states, self.film):
            with suppress(OSError):  # not there, or it holds what others have put there
                folder.rmdir()

    def _drop(self, steps: Iterable[int]) -> None:
        """Remove the checkpoints of those steps, and unfinished files."""
        for step in steps:
            if not (self._states / str(step)).is_symlink():  # somebody has put it there
                shutil.rmtree(self._states / str(step))
        for unfinished in [*self._states.glob(".*.tmp"), *self.path.glob(".*.tmp")]:
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            elif not _is_being_written(unfinished):
                unfinished.unlink(missing_ok=True)

    def load(self, step: int | None = None) -> State:
        """The checkpoint of `step`, by default the newest; RunError names what is wrong with it."""
        step = self.latest() if step is None else step
        steps = self.steps()
        if step is None:
            raise RunError(f"{self.path} holds no checkpoint to resume from")
        if step not in steps:
            kept = ", ".join(map(str, steps)) or "none"
            raise RunError(f"{self.path} keeps no checkpoint of step {step}; kept: {kept}")
        folder = self._states / str(step)
        others = [other for other in steps if other != step]
        other = setting("from_step", others[-1], argument="step") if others else ""
        advice = f"; try {other}" if others else ""
        try:
            values = read_json(folder / "state.json")
            for name, mark in values.pop("files").items():
                if not (folder / name).is_file():
                    raise ValueError(f"{name} is missing")
                if fingerprint(folder / name) != mark:
                    raise ValueError(f"{name} is damaged")
            tensors = {
                path.stem: read_tensors(path)[0]
                for path in folder.glob("*.safetensors")
                if path.name not in BEST_FILES
            }
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise RunError(f"the checkpoint {folder} cannot be used: {error}{advice}") from None
        return State(step, tensors, values)


def is_number(name: str) -> bool:
    """Whether a file is named by a step, as those are that a run writes."""
    return name.isascii() and name.isdecimal() and len(name) <= 18


def _is_being_written(temporary: Path) -> bool:
    """Whether another process of this host, such as evaluate's, may still write the file."""
    writer = temporary.name.split(".")[-2]
    return writer.isdecimal() and int(writer) != os.getpid() and is_alive(int(writer))


def write_latents(path: Path, latents: dict[str, Tensor], weights: Path) -> None:
    """Write learned latents with a mark of the file of the weights that they belong to."""
    write_tensors(path, latents, {"weights": fingerprint(weights)})
