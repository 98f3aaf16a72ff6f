"""A trained run at work: its model, and its data, codes and priors once they are needed."""

import functools
import operator
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn

from fastlatent.data import Dataset, Split
from fastlatent.data import load as load_data
from fastlatent.data.config import moved_to
from fastlatent.geometry.metric import Metric, as_metric
from fastlatent.inference.devices import device_of
from fastlatent.inference.inputs import images_for, latents_for
from fastlatent.inference.latents import (
    FITTED,
    Repair,
    Sampling,
    check_method,
    decode,
    draw_in_parts,
    sampling_methods,
    unit_images,
)
from fastlatent.inference.passes import evaluating, gather_codes
from fastlatent.inference.walking import Walking, walk, walkings
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import gaussian_posterior, geometric_decoder, latents_of
from fastlatent.presets import TrainConfig
from fastlatent.priors import BernoulliCopula, CodeStatistics, Prior, PriorKind
from fastlatent.runs.folder import WEIGHT_FILES, Run, Weights
from fastlatent.runs.likely import Density, Likely, LikelyOptions
from fastlatent.runs.log import read_metrics
from fastlatent.runs.priors import read_prior
from fastlatent.runs.saving import save

P = ParamSpec("P")


def load(
    path: str | os.PathLike[str],
    weights: Weights = "last",
    device: torch.device | str | None = None,
    *,
    batch: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> "TrainedRun":
    """The run in a folder, as training or convert left it, ready to sample, encode and decode.

    `weights` are those of the newest checkpoint ("last") or those with the lowest test loss
    ("best"). `device` is by default the GPU if there is one. `batch` images are computed at a time,
    by default the run's test_batch. `root` is the folder that holds the data sets, where it is not
    the one trained with.

    Raises ValueError for a folder that holds no run or not these weights, and for damaged files;
    TypeError for a path that is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"load: path must name a run folder, as text or as a path; got {type(path).__name__}"
        )
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"load: path must be a run folder, as training leaves it with a config.json; got {path}"
        )
    if weights not in get_args(Weights):
        raise UsageError(f"load: weights must be 'last' or 'best'; got {weights!r}")
    if not (folder / WEIGHT_FILES[weights]).is_file():
        others = [name for name, file in WEIGHT_FILES.items() if (folder / file).is_file()]
        there = " and ".join(map(repr, others)) or "none yet"
        raise UsageError(
            f"load: weights must be some that {path} holds, which are {there}; got {weights!r}"
        )
    if batch is not None and (type(batch) is not int or batch < 1):
        raise UsageError(f"load: batch must be a whole number from 1 up; got {batch!r}")
    at = None if root is None else Path(root)
    return TrainedRun(Run.open(folder), weights, device_of("load", device), batch=batch, root=at)


Self = TypeVar("Self", bound="TrainedRun")


def inferring(method: Callable[Concatenate[Self, P], Tensor]) -> Callable[..., Tensor]:
    """The method in inference mode; what it returns may take part in derivatives all the same."""

    @functools.wraps(method)
    def run(self: Self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.inference_mode():
            found = method(self, *args, **kwargs)
        return found.clone()

    return run


class TrainedRun:
    """A trained run at work, as `fastlatent.load` and `fastlatent.train` give it.

    Images are taken as tensors or NumPy arrays, one image (c, h, w) or a batch (n, c, h, w), uint8
    in 0 to 255 or floats in [0, 1]. Results are batches on the run's device, of one row for one
    image: images (n, c, h, w) in [0, 1], latents (n, d). Wrong arguments are a ValueError or
    TypeError that names the argument.
    """

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
        family, weights = self.config.model.family, self.weights
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

    # Images and latents

    @inferring
    def encode(self, x: Any) -> Tensor:  # (n, d)
        """Latents of images: codes of +1 and -1, or means of the posterior.

        GLO, which has no encoder, searches for them.
        """
        return self._encoded(images_for(self.model, "encode: x", x))

    @inferring
    def decode(self, z: Any) -> Tensor:  # (n, c, h, w)
        """Images in [0, 1] of latents (d,) or (n, d)."""
        return decode(self.model, latents_for(self.model, "decode: z", z), self.batch)

    @inferring
    def reconstruct(self, x: Any) -> Tensor:  # (n, c, h, w)
        """Images in [0, 1], encoded and decoded again."""
        images = images_for(self.model, "reconstruct: x", x)
        with evaluating(self.model):
            return torch.cat([self.model.reconstruct(part) for part in images.split(self.batch)])

    def sample(
        self,
        n: int = 16,
        method: Sampling | None = None,
        seed: int | None = None,
        *,
        noise: bool = True,
        repair: Repair = "clip",
    ) -> Tensor:  # (n, c, h, w)
        """New images in [0, 1], always the same for the same seed, by default the run's.

        `method` is one of `sampling_methods`; by default that of the command `sample`: the copula
        fitted to the training codes for bits, the model's own prior for real latents. The codes are
        counted once, which takes the data set if training has not left them in the run folder.
        Without `noise`, priors in two steps give means of the second. `repair` says what gives way
        where the moments of the codes fit no copula.

        Raises ValueError for a method that does not fit the latents, RunError for a prior that
        fit_prior has not fitted yet, OSError where the data set is needed and is not there.
        """
        _check_whole("sample: n", n, 1)
        parts = self.draw_latents(n, method, seed, noise=noise, repair=repair)
        return self._decoded(torch.cat(list(parts)))

    def draw_latents(
        self,
        n: int,
        method: Sampling | None = None,
        seed: int | None = None,
        *,
        noise: bool = True,
        repair: Repair = "clip",
    ) -> Iterator[Tensor]:  # (k, d) each
        """Latents as `sample` decodes them, in parts, so that memory does not bound n."""
        if seed is not None:
            _check_whole("sample: seed", seed, 0)
        model, method = self.model, self.sampling(method)
        copula = self.copula(repair) if method == "copula" else None
        prior = self.prior(method) if method in FITTED else None
        seed = self.seed if seed is None else seed
        return draw_in_parts(model, method, n, seed, copula, noise, prior)

    @property
    def sampling_methods(self) -> tuple[Sampling, ...]:
        """How latents of the model can be drawn, the default first."""
        return sampling_methods(self.model)

    def sampling(self, method: Sampling | None) -> Sampling:
        """The method, by default the model's first; ValueError where it does not fit the model."""
        if method is None:
            return self.sampling_methods[0]
        check_method("sampling", method, self.sampling_methods, self.model)
        return method

    def interpolate(
        self,
        a: Any,
        b: Any,
        method: Walking | None = None,
        steps: int = 10,
        *,
        prior: Density = "own",
        repair: Repair = "clip",
    ) -> Tensor:  # (n, steps, c, h, w)
        """Images in [0, 1] on the way from each image of a to that of b.

        A way begins and ends with the reconstructions of the two.
        `method` is one of `interpolation_methods`: "copula" for bits; "spherical" or "linear",
        "geodesic" (equal steps along a curve that is short under the metric of the decoder) or
        "likelihood" (points that are likely under a prior: the model's own, or one that fit_prior
        has fitted) for real latents. Where one side is a single image it goes with all of the
        other.

        Raises ValueError for a method that does not fit the latents or the prior, RunError for a
        prior that is not fitted yet.
        """
        first = images_for(self.model, "interpolate: a", a)
        last = images_for(self.model, "interpolate: b", b)
        if len(first) != len(last) and 1 not in (len(first), len(last)):
            raise UsageError(
                f"interpolate: a and b must be as many images each, or one of them a single "
                f"image; got {len(first)} and {len(last)}"
            )
        _check_whole("interpolate: steps", steps, 3 if method == "likelihood" else 2)
        choices = self.interpolation_methods
        method = choices[0] if method is None else method
        check_method("interpolation", method, choices, self.model)
        given: dict[str, Any] = {}
        if method == "copula":
            given["copula"] = self.copula(repair)
        elif method == "geodesic":
            given["metric"] = self.metric()
        elif method == "likelihood":
            likely = Likely(self, LikelyOptions(prior=prior))
            given = {"space": likely.space, "search": likely.search}
        k = max(len(first), len(last))
        start, end = (self._encoded(x).expand(k, -1) for x in (first, last))
        path = walk(self.model, method, start, end, steps, **given)
        return self._decoded(path.latents.flatten(0, 1)).unflatten(0, (k, steps))

    @property
    def interpolation_methods(self) -> tuple[Walking, ...]:
        """How the model's latents can be walked through, the default first."""
        return walkings(self.model)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model into a new run folder, which `load` and every command open.

        With the settings, the numbers of the training and, as long as the weights are those of the
        run, what belongs to them: counts of codes and fitted priors. They become the last weights
        there. Checkpoints to resume from stay where they are.

        Raises ValueError for a folder that holds something.
        """
        return save(self, Path(folder).expanduser())

    @inferring
    def _decoded(self, z: Tensor) -> Tensor:
        return decode(self.model, z, self.batch)

    @inferring
    def _encoded(self, x: Tensor) -> Tensor:
        with evaluating(self.model):
            return torch.cat([self.model.encode(part) for part in x.split(self.batch)])

    def latents_of(self, split: Split, index: Tensor) -> Tensor:  # (k, d)
        """Latents of a split's images at `index` (k,): learned with the model, or encoded."""
        with evaluating(self.model):
            parts = [
                latents_of(self.model, unit_images(split, part, self.device), split, part)
                for part in index.split(self.batch)
            ]
        return torch.cat(parts)

    # What belongs to the run

    @cached_property
    def data(self) -> Dataset:
        """The data set of the run; raises what fastlatent.data.load raises.

        ValueError where its images have another shape than those of the model, RunError where
        they are others than those trained on, in the place that `root` names.
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


def _check_whole(what: str, value: Any, least: int) -> None:
    """UsageError unless the value is a whole number, of NumPy too, from `least` up."""
    try:
        whole = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        whole = False
    if not whole:
        raise UsageError(f"{what} must be a whole number from {least} up; got {value!r}")
