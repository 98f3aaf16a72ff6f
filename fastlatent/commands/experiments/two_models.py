"""Two models on the same pairs of test images: whose straight lines are the longer way round."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastlatent import plots
from fastlatent.commands.experiments import pictures
from fastlatent.commands.experiments.findings import Files, joined_images, pair_rows, summary_values
from fastlatent.commands.experiments.shorter import (
    length_notes,
    metric_of,
    pair_images,
    sequences,
    shorten,
)
from fastlatent.commands.trained import Trained
from fastlatent.geometry.experiment import Experiment
from fastlatent.geometry.metric import Metric
from fastlatent.inference.latents import unit_images
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.runs.files import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_ENDS = 20  # pairs in the picture of the ends, at most
STEPS = 16  # images of a sequence


@dataclass(frozen=True, eq=False)
class Comparison:
    """Shorter curves between the same images, in the latents of two models."""

    runs: tuple[Trained, Trained]
    metrics: tuple[Metric, Metric]
    index: Tensor  # (2, n) int64, the test images that the curves join
    results: tuple[Experiment, Experiment]

    @property
    def names(self) -> list[str]:
        """The runs by their folders, told apart."""
        names = [run.path.name for run in self.runs]
        return names if names[0] != names[1] else [str(run.path) for run in self.runs]

    @property
    def counted(self) -> Tensor:
        """(n,) bool: pairs that count in both models."""
        return self.results[0].counted & self.results[1].counted

    @property
    def difference(self) -> Tensor:
        """How far apart the improvements are, (n,)."""
        return (self.results[0].improvement - self.results[1].improvement).abs()

    def most_alike(self, count: int, threshold: float | None) -> list[int]:
        """Pairs by how little the improvements differ: at most `count`, and `threshold` percent."""
        rows = self.counted.nonzero()[:, 0]
        rows = rows[self.difference[rows].argsort(stable=True)]
        if threshold is not None:
            rows = rows[100 * self.difference[rows] <= threshold]
        return rows[:count].tolist()

    def write(self, files: Files, circumstances: dict[str, Any]) -> None:
        """comparison.csv, comparison-1.npz and -2, comparison.json."""
        columns: dict[str, Any] = {"pair": range(1, self.index.shape[1] + 1)}
        columns |= joined_images(self.runs[0].data.test, self.index)
        models = []
        for number, (run, result) in enumerate(zip(self.runs, self.results, strict=True), 1):
            rows = pair_rows(result, {}, {})
            columns |= {f"{name}_{number}": x for name, x in rows.items() if name != "pair"}
            files.write_curves(f"comparison-{number}", result)
            models.append(
                {
                    "run": run.path.name,
                    "fingerprint": fingerprint(run.folder.weights_file(run.weights)),
                    "latents": run.model.latent_dim,
                    **summary_values(result),
                }
            )
        files.write_rows("comparison", columns)
        shared = {k: v for k, v in circumstances.items() if k not in models[0]}
        files.write_values("comparison", {**shared, "models": models})

    def draw(self, files: Files, show: int, threshold: float | None) -> None:
        """Bars, the ends, and sequences of the pairs on which the models differ least."""
        n, counted = self.index.shape[1], self.counted
        bars = pictures.improvements_of_two(
            self.results[0].improvement[counted],
            self.results[1].improvement[counted],
            1 + counted.nonzero()[:, 0],
            self.names,
            f"the same {n} pairs of test images, measured lengths",
        )
        files.draw("comparison-improvements", bars)
        files.draw("comparison-ends", self._ends_picture())
        chosen = self.most_alike(show, threshold)
        if show and not counted.any():
            say("no pair to show: no lines are of finite, positive length in both models")
        elif show and not chosen:
            say("no pair to show: none differs by so little as --threshold asks for")
        for row in chosen:
            files.draw(f"comparison-pair-{row + 1}", self._sequences_picture(row))

    def _ends_picture(self) -> "Image":
        shown = self.index[:, :SHOWN_ENDS]
        run = self.runs[0]
        images = unit_images(run.split("test"), shown.flatten(), run.device)
        columns = shown.shape[1]
        caption = "the test images that are joined"
        headings = [str(k + 1) for k in range(columns)]
        return plots.grid(images, columns, caption, headings, notes=("start", "end"))

    def _sequences_picture(self, row: int) -> "Image":
        """Straight lines in both models, the images joined, shorter curves in both models."""
        run = self.runs[0]
        index = torch.tensor([row])
        paths, notes = [], []
        for one, metric, result, name in zip(
            self.runs, self.metrics, self.results, self.names, strict=True
        ):
            images = sequences(one, metric, result, index.to(one.device), STEPS)[0]
            paths.append(fitted(images.flatten(0, 1), run.model.image_shape).unflatten(0, (2, -1)))
            notes.append([f"{name}\n{note}" for note in length_notes(result, [row])])
        ends = unit_images(run.split("test"), self.index[:, row], run.device)
        between = torch.ones(STEPS, *ends.shape[1:], device=ends.device)
        between[0], between[-1] = ends
        rows = [paths[0][0], paths[1][0], between, paths[0][1], paths[1][1]]
        beside = [notes[0][0], notes[1][0], "the test images", notes[0][1], notes[1][1]]
        caption = f"pair {row + 1}: straight lines, the images joined, shorter curves; equal steps"
        return plots.grid(torch.cat(rows), STEPS, caption, notes=beside)


def fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images (n, c, h, w) in the size and channels of the shape, grey ones in all channels."""
    if images.shape[-2:] != torch.Size(shape[1:]):
        images = interpolate(images, shape[1:], mode="nearest-exact")
    if images.shape[1] != shape[0]:
        images = images.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    return images


def compare(
    runs: tuple[Trained, Trained], n: int, per_class: int | None, search: dict[str, Any]
) -> Comparison:
    """Shorten the lines between n pairs of test images, each model by its own encoder.

    Raises UsageError where the runs have not the same test images.
    """
    first, second = runs
    metrics = metric_of(first), metric_of(second)
    check_same_images(first, second)
    index = pair_images(first, n, per_class)
    results = []
    for number, (run, metric) in enumerate(zip(runs, metrics, strict=True), 1):
        start, end = run.latents_of(run.split("test"), index.flatten()).chunk(2)
        results.append(shorten(metric, start, end, f"model {number}", **search))
    return Comparison(runs, metrics, index, (results[0], results[1]))


def check_same_images(first: Trained, second: Trained) -> None:
    """UsageError unless an index means the same test image to both runs, whatever its size."""
    for what, a, b in (
        ("data sets", first.config.data.name, second.config.data.name),
        ("classes", first.config.data.classes, second.config.data.classes),
        ("numbers of test images", len(first.data.test), len(second.data.test)),
    ):
        if a != b:
            raise UsageError(
                f"two runs are compared on the same test images, and their {what} differ: "
                f"{a or 'all'} and {b or 'all'}"
            )
