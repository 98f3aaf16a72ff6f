"""A run folder at work: its model, and its data, codes and priors once they are needed."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlatent import plots
from fastlatent.data import Dataset, Split
from fastlatent.data import load as load_data
from fastlatent.data.config import moved_to
from fastlatent.geometry.metric import Metric, as_metric
from fastlatent.inference.latents import Repair, unit_images
from fastlatent.inference.passes import evaluating, gather_codes
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.models import LatentModel, model_title
from fastlatent.models.capabilities import gaussian_posterior, geometric_decoder, latents_of
from fastlatent.presets import TrainConfig
from fastlatent.priors import BernoulliCopula, CodeStatistics, Prior, PriorKind
from fastlatent.runs.folder import Run, Weights
from fastlatent.runs.log import read_metrics
from fastlatent.runs.priors import read_prior

if TYPE_CHECKING:
    from PIL.Image import Image


class OpenedRun:
    """A run folder with its model on a device, and what belongs to both."""

    def __init__(
        self,
        folder: Run,
        weights: Weights,
        device: torch.device,
        *,
        seed: int | None = None,  # of everything random; None: the run's
        batch: int | None = None,  # images at a time; None: the run's test_batch
        root: Path | None = None,  # where the data sets are, if not where they were
    ):
        self.folder, self.weights, self.device, self.root = folder, weights, device, root
        self.model: LatentModel = folder.model(weights, device)
        self.seed = folder.config.seed if seed is None else seed
        self.batch = batch or folder.config.test_batch
        self._copulas: dict[Repair, BernoulliCopula] = {}

    def __repr__(self) -> str:
        family, weights = model_title(self.config.model), self.weights
        return f"<run {self.path}: {family}, {weights} weights, on {self.device}>"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def config(self) -> TrainConfig:
        """The settings of the training."""
        return self.folder.config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What training measured, in order: kind, step, epoch and numbers of each record."""
        return read_metrics(self.path) if (self.path / "metrics.jsonl").is_file() else []

    def latents_of(self, split: Split, index: Tensor) -> Tensor:  # (k, d)
        """Latents of a split's images at `index` (k,): learned with the model, or encoded."""
        with evaluating(self.model):
            parts = [
                latents_of(self.model, unit_images(split, part, self.device), split, part)
                for part in index.split(self.batch)
            ]
        return torch.cat(parts)

    @cached_property
    def data(self) -> Dataset:
        """The data set of the run; raises what fastlatent.data.load raises.

        ValueError where its images have another shape than those of the model. RunError where the
        images below `root` are not those that the run was trained on.
        """
        config, root = self.config.data, self.root
        data = load_data(config if root is None else moved_to(config, root))
        for note in data.notes:
            say(note)
        if tuple(data.train.shape) != tuple(self.model.image_shape):
            raise ValueError(
                f"the model in {self.path} takes images {tuple(self.model.image_shape)} "
                f"(channels, height, width); {data.name} now gives {tuple(data.train.shape)}"
            )
        mark = None if root is None else self.folder.images_mark()
        if mark not in (None, data.train.mark_text):
            raise RunError(
                f"the images below {root} are others than those that {self.path} was trained "
                "on, or in another order"
            )
        return data

    def split(self, name: str) -> Split:
        """The training or test images, on the device."""
        split = self.data.train if name == "train" else self.data.test
        return split.to(self.device)

    @cached_property
    def codes(self) -> CodeStatistics:
        """The counts over the training codes: as stored, otherwise gathered and stored.

        Raises UsageError where latents are not bits.
        """
        if self.model.latent_kind != "bits":
            raise UsageError(f"{self.path} holds a model without bits, so it has no codes")
        codes = self.folder.codes(self.weights)
        if codes is None:
            say(f"{self.path} holds no counts over the codes of these weights; gathering them")
            labels = len(self.data.label_names or ())
            codes = gather_codes(self.model, self.split("train"), self.batch, labels)
            self.folder.write_codes(self.weights, codes)
        return codes

    def copula(self, repair: Repair = "clip") -> BernoulliCopula | None:
        """The copula fitted to the training codes; None where latents are not bits."""
        if self.model.latent_kind != "bits":
            return None
        if repair not in self._copulas:
            self._copulas[repair] = BernoulliCopula(repair).fit(self.codes)
        return self._copulas[repair]

    def prior(self, kind: PriorKind) -> Prior:
        """The prior of that kind that fit_prior has fitted to these weights.

        Raises RunError with the command to run where there is none, UsageError where there can be
        none.
        """
        self.check_prior(kind)
        return read_prior(self.folder, self.weights, kind, self.model)

    @property
    def probe(self) -> Tensor:  # (1, c, h, w)
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
                f"{self.path} does not, but takes normal, gmm, hierarchical or ladder"
            )

    @property
    def subject(self) -> str:
        """What its pictures are of: the run and its weights."""
        return f"{self.folder.title}, {self.weights} weights"

    def draw(self, picture: "Image", path: Path) -> Path:
        """Write a picture of the run, which says so below."""
        return plots.save(picture, path, self.subject)

    def place(self, out: Path | None, name: str) -> Path:
        """Where a picture goes: to `out`, by default among the pictures of the run."""
        path = self.folder.images / f"{name}.png" if out is None else out.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def metric(self, feature_map: nn.Module | None = None, draws: int | None = None) -> Metric:
        """The metric of the model's latents, of its images or of features of them.

        Raises UsageError where latents are bits.
        """
        if self.model.latent_kind != "real":
            raise UsageError(
                f"{self.path} holds a model whose latents are bits; curves need real ones"
            )
        example = torch.zeros(2, self.model.latent_dim, device=self.device)
        decoder = geometric_decoder(self.model)
        return as_metric(decoder, feature_map, example, draws=draws, seed=self.seed)
