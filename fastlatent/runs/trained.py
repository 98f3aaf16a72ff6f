"""The front door: a trained run that samples, encodes, decodes, walks and is measured."""

import functools
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from fastlatent.files.code import Code
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
)
from fastlatent.inference.passes import evaluating
from fastlatent.inference.walking import Walking, walk, walkings
from fastlatent.jobs.errors import UsageError
from fastlatent.models.own import code_of
from fastlatent.priors import Prior, PriorKind, PriorSettings
from fastlatent.runs.config import from_json
from fastlatent.runs.evaluation.extractors import Chosen, Kind
from fastlatent.runs.evaluation.given import Reading
from fastlatent.runs.evaluation.trained_run import evaluate_run
from fastlatent.runs.fits import fit_and_store
from fastlatent.runs.folder import WEIGHT_FILES, Run, Weights
from fastlatent.runs.likely import Density, Likely, LikelyOptions
from fastlatent.runs.named import named_folder, names
from fastlatent.runs.opened import OpenedRun
from fastlatent.runs.saving import save

P = ParamSpec("P")


def load(
    path: str | os.PathLike[str],
    weights: Weights = "last",
    device: torch.device | str | None = None,
    *,
    batch: int | None = None,
    root: str | os.PathLike[str] | None = None,
    model_from: str | os.PathLike[str] | None = None,
    model: Any = None,
) -> "TrainedRun":
    """A trained run, ready to sample, encode and decode.

    `path` is a run folder, as training or convert left it, or the name of trained weights: those
    of the package, of weights/ in a checkout, or of a folder that FASTLATENT_WEIGHTS names.
    `weights` are those of the newest checkpoint ("last") or those with the lowest test loss
    ("best"). `device` is by default the GPU if there is one. `batch` images are computed at a time,
    by default the run's test_batch. `root` is the folder that holds the data sets, where it is not
    the one trained with.

    A run of a model of one's own takes its class: from the Python file or installed module
    `model_from`, which is run, or as `model`, which is the class, several classes or a module made
    of them.

    Raises ValueError for a folder that holds no run or not these weights, and for damaged files;
    TypeError for a path that is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"load: path must name a run folder, as text or as a path; got {type(path).__name__}"
        )
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        named = named_folder(path)
        if named is None:
            raise UsageError(
                "load: path must be a run folder, as training leaves it with a config.json, or one "
                f"of {', '.join(names())}; got {path}"
            )
        folder = named
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
    code = Code() if model_from is None else Code.read(model_from)
    code = code if model is None else code | code_of(model)
    device = device_of("load", device)
    return TrainedRun(Run.open(folder, code), weights, device, batch=batch, root=at)


Self = TypeVar("Self", bound="TrainedRun")


def inferring(method: Callable[Concatenate[Self, P], Tensor]) -> Callable[..., Tensor]:
    """The method in inference mode; what it returns may take part in derivatives all the same."""

    @functools.wraps(method)
    def run(self: Self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.inference_mode():
            found = method(self, *args, **kwargs)
        return found.clone()

    return run


class TrainedRun(OpenedRun):
    """A trained run at work, as `fastlatent.load` and `fastlatent.train` give it.

    Images are tensors or NumPy arrays, one image (c, h, w) or a batch (n, c, h, w). They are uint8
    in 0 to 255 or floats in [0, 1]. Results are batches on the run's device, of one row for one
    image: images (n, c, h, w) in [0, 1], latents (n, d). Wrong arguments are a ValueError or
    TypeError that names the argument.
    """

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
        Without `noise`, priors in two steps give means of the second. `repair` says how to repair
        moments of the codes that no copula has.

        Raises ValueError for a method that does not fit the latents. Raises RunError for a prior
        that fit_prior has not fitted yet. Raises OSError where the data set is needed and is not
        there.
        """
        check_whole("sample: n", n, 1)
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
            check_whole("sample: seed", seed, 0)
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

        The first and the last image are the reconstructions of the two. `method` is one of
        `interpolation_methods`: "copula" for bits; "spherical", "linear", "geodesic" or
        "likelihood" for real latents. "geodesic" takes equal steps along a curve that is short
        under the metric of the decoder. "likelihood" takes points that are likely under `prior`:
        "own", the model's, or one that fit_prior has fitted. A single image on one side goes with
        all of the other.

        Raises ValueError for a method that does not fit the latents or the prior. Raises RunError
        for a prior that is not fitted yet.
        """
        first = images_for(self.model, "interpolate: a", a)
        last = images_for(self.model, "interpolate: b", b)
        if len(first) != len(last) and 1 not in (len(first), len(last)):
            raise UsageError(
                f"interpolate: a and b must be as many images each, or one of them a single "
                f"image; got {len(first)} and {len(last)}"
            )
        check_whole("interpolate: steps", steps, 3 if method == "likelihood" else 2)
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

    def evaluate(
        self,
        split: Literal["test", "train"] = "test",
        features: Kind | Literal["auto", "none"] = "auto",
        *,
        feature_weights: str | os.PathLike[str] | None = None,
        samples: int | None = None,
        limit: int | None = None,
        reference: str | os.PathLike[str] | None = None,
        jpeg: bool = False,
        closed_balls: bool = False,
        repair: Repair = "clip",
    ) -> dict[str, Any]:
        """What the command `evaluate` measures, prints and stores in the run, as JSON values.

        "values" are losses and their parts on the images of the split, each with its standard
        error. "sets" compare samples, reconstructions and interpolations with real images by
        `features`. These are of a classifier of the data set, or of "inception" or "dinov2" with
        the file `feature_weights`; "none" leaves the comparison out. `samples` is the number of
        draws for the importance-weighted bound on the log-likelihood. `limit` is the number of
        images, evenly spaced in the split. `reference` is a folder or .npz file to compare with in
        place of the split. `jpeg` stores images as JPEG before features are taken. With
        `closed_balls`, precision, recall, density and coverage count a sample on the surface of a
        ball as inside.

        Raises ValueError for options that do not fit the model or each other. Raises OSError where
        the data set is not there.
        """
        for name, value, choices in (
            ("split", split, ("test", "train")),
            ("features", features, ("auto", "none", *get_args(Kind))),
        ):
            if value not in choices:
                raise UsageError(
                    f"evaluate: {name} must be one of {', '.join(choices)}; got {value!r}"
                )
        for name, count in (("samples", samples), ("limit", limit)):
            if count is not None:
                check_whole(f"evaluate: {name}", count, 1)
        if feature_weights is not None and features not in ("inception", "dinov2"):
            raise UsageError(
                "evaluate: feature_weights go with features 'inception' or 'dinov2'; got "
                f"{features!r}"
            )
        weights, place = (None if p is None else Path(p) for p in (feature_weights, reference))
        chosen = Chosen(features, weights, jpeg=jpeg, closed_balls=closed_balls)
        return evaluate_run(
            self, split, chosen, samples, limit, place, Reading(), repair, results=None
        )

    def fit_prior(
        self,
        prior: PriorKind = "gmm",
        *,
        n: int | None = None,
        means: bool = False,
        **settings: Any,
    ) -> Prior:
        """A prior fitted to the latents of the training images, and stored in the run.

        `prior` is "normal", "gmm", "vamp", "hierarchical" or "ladder", by which name `sample` then
        takes it; `settings` are fields of fastlatent.priors.PriorSettings, such as components=20.
        It is fitted to draws of the posterior, or to its `means`, of `n` images, by default of all.

        Raises ValueError for settings that do not fit, and where the latents are bits.
        """
        if n is not None:
            check_whole("fit_prior: n", n, 1)
        chosen = from_json(PriorSettings, {"prior": prior, **settings}, "fit_prior")
        return fit_and_store(self, chosen, n, means).prior

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


def check_whole(what: str, value: Any, least: int) -> None:
    """UsageError unless the value is a whole number, of NumPy too, from `least` up."""
    try:
        whole = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        whole = False
    if not whole:
        raise UsageError(f"{what} must be a whole number from {least} up; got {value!r}")
