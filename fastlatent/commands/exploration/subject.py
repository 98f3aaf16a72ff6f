"""The run that is explored, with latents of known images; all tabs share it."""

import copy
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.exploration.mosaic import data_uri
from fastlatent.geometry import Metric
from fastlatent.inference.latents import FITTED, Sampling, decode, unit_images
from fastlatent.inference.passes import evaluating
from fastlatent.inference.walking import space_of
from fastlatent.jobs.errors import RunError, UsageError, sentence_of
from fastlatent.models.capabilities import GaussianPosterior, project, stored_latents
from fastlatent.noise import generator
from fastlatent.priors import PathSpace
from fastlatent.runs.likely import Density, Likely, LikelyOptions, prior_of
from fastlatent.runs.trained import TrainedRun

METRIC_DIM = 64  # latents up to which a geodesic takes seconds, not minutes
DENSITIES: tuple[Density, ...] = ("own", *FITTED)
DRAWS = 512  # by which the mean of a way of drawing is found


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of latents, by how far known latents spread along them."""

    names: tuple[str, ...]
    vectors: Tensor  # (k, d), orthonormal
    deviations: Tensor  # (k,), standard deviation of the known latents along each

    def __len__(self) -> int:
        return len(self.names)


class Subject:
    """A trained run, and latents of up to `limit` images of its data.

    They are test images, or training images where the model learned latents for those. Without the
    data set they are samples, and `notes` says so. Latents are float32 on the CPU. `words` open
    the run on a command line; the first of them is its name on the page.
    """

    def __init__(self, run: TrainedRun, limit: int = 600, words: Sequence[str] = ()):
        self.run = run
        self.words = [*words] or [str(run.path)]
        self.closed = False
        self.notes: list[str] = []
        self.classes: tuple[str, ...] | None = None  # of each known image
        try:
            learned = stored_latents(run.model, run.data.train) is not None
            split = run.split("train" if learned else "test")
        except (OSError, ValueError, RunError) as error:
            self.notes.append(
                f"samples stand in for images, because the data set cannot be read: "
                f"{sentence_of(error)}"
            )
            latents = torch.cat(list(run.draw_latents(limit)))
            images = decode(run.model, latents, run.batch)
            self.what = "samples"
        else:
            index = split.spread(limit)
            latents = run.latents_of(split, index)
            images = unit_images(split, index, "cpu")
            labels, names = split.labels, run.data.label_names
            if names and labels is not None and labels.ndim == 1:
                self.classes = tuple(names[k] for k in labels[index.to(labels.device)].tolist())
            self.what = f"{split.name} images"
        self.latents = latents.detach().cpu().float()  # (n, d)
        self.posterior = self._posterior(images)
        self.images = plots.to_bytes(images)  # (n, h, w, c) uint8

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor] | None:  # (n, d) each
        """Mean and deviation of the posteriors of images, where they are diagonal Gaussians."""
        run = self.run
        if not isinstance(run.model, GaussianPosterior) or self.what == "samples":
            return None
        with evaluating(run.model) as device:
            parts = [run.model.gaussian_posterior(x.to(device)) for x in images.split(run.batch)]
        if any(part is None for part in parts):
            return None
        mean, std = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
        return mean, std

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The thread of all long tasks."""
        return ThreadPoolExecutor(1, "explore")

    def close(self) -> None:
        """Let the thread end with the next result of its task."""
        self.closed = True
        self.pool.shutdown(cancel_futures=True)

    @cached_property
    def apart(self) -> TrainedRun:
        """The run for that thread, with a model of its own."""
        twin = copy.copy(self.run)
        twin.model = copy.deepcopy(self.run.model)
        return twin

    @property
    def has_metric(self) -> bool:
        """Whether the metric of the decoder is there, and cheap enough to look at."""
        return not self.bits and self.latents.shape[1] <= METRIC_DIM

    @cached_property
    def metric(self) -> Metric:
        """The metric that the decoder gives latents."""
        return self.apart.metric()

    @cached_property
    def _density(self) -> Density | None:
        """Whose density makes points likely: the model's own prior, or the first fitted one."""
        for kind in DENSITIES:
            try:
                space_of(prior_of(self.run, kind))
            except (RunError, UsageError, ValueError, OSError):
                continue
            return kind
        return None

    @property
    def offers_likely(self) -> bool:
        """Whether there is a density of all latents."""
        return self._density is not None

    @cached_property
    def likely(self) -> Likely:
        """The search for likely paths."""
        assert self._density is not None
        return Likely(self.apart, LikelyOptions(prior=self._density))

    @cached_property
    def _space(self) -> PathSpace:
        assert self._density is not None
        return space_of(prior_of(self.run, self._density))

    @torch.no_grad()
    def least_log_prob(self, z: Tensor) -> float | None:
        """The log density of the least likely of latents (n, d), where there is one."""
        if not self.offers_likely:
            return None
        space = self._space
        return float(space.log_prob(space.encode(z.to(self.run.device))).min())

    @cached_property
    def densities(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Log densities of latents (n, d), by the name of the prior."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for kind in DENSITIES:
            try:
                space = space_of(prior_of(self.run, kind), "z", self.run.seed)
            except (RunError, UsageError, ValueError, OSError):
                continue
            found[kind] = self._log_prob(space)
        return found

    def _log_prob(self, space: PathSpace) -> Callable[[Tensor], Tensor]:
        @torch.no_grad()
        def log_prob(z: Tensor) -> Tensor:
            return space.log_prob(z.to(self.run.device)).cpu()

        return log_prob

    @property
    def name(self) -> str:
        """What the user calls the run."""
        return self.words[0]

    def command(self, word: str, *options: str) -> str:
        """The command line of a word and its options on this run, for a shell."""
        return shlex.join(["python", "-m", f"fastlatent.{word}", *self.words, *options])

    @property
    def bits(self) -> bool:
        """Whether latents are bits."""
        return self.run.model.latent_kind == "bits"

    @cached_property
    def methods(self) -> tuple[Sampling, ...]:
        """Ways to draw latents that this run offers now, the default first."""
        return tuple(method for method in self.run.sampling_methods if self._offers(method))

    def _offers(self, method: Sampling) -> bool:
        if method not in FITTED:
            return True
        try:
            self.run.prior(method)
        except (RunError, ValueError, OSError):
            return False
        return True

    def draw(self, n: int, method: Sampling, seed: int, temperature: float = 1.0) -> Tensor:
        """Latents (n, d); a temperature is the factor of their distance from the mean of draws.

        At 1 they are those of the command `sample`. Raises UsageError for bits at another one.
        """
        drawn = torch.cat(list(self.run.draw_latents(n, method, seed))).cpu().float()
        if temperature == 1:
            return drawn
        if self.bits:
            raise UsageError("bits are drawn at temperature 1 only")
        mean = self._mean_of_draws(method)
        return project(self.run.model, mean + temperature * (drawn - mean))

    def _mean_of_draws(self, method: Sampling) -> Tensor:  # (d,)
        return torch.cat(list(self.run.draw_latents(DRAWS, method, 0))).cpu().float().mean(0)

    def decodable(self, z: Tensor) -> Tensor:
        """The nearest latents that the model decodes: signs, or in its region: (n, d) -> (n, d)."""
        return torch.where(z < 0, -1.0, 1.0) if self.bits else project(self.run.model, z)

    def decoded(self, z: Tensor, apart: bool = False) -> Tensor:  # (n, c, h, w) in [0, 1]
        """Images of latents (n, d), those nearest to them that can be decoded.

        With `apart`, by the model of the thread of long tasks. Raises RunError where the decoder
        gives NaN.
        """
        run = self.apart if apart else self.run
        images = decode(run.model, self.decodable(z), run.batch).cpu()
        if not images.isfinite().all():
            raise RunError("the decoder gives numbers that are not finite for these latents")
        return images

    def pictures(self, z: Tensor) -> np.ndarray:  # (n, h, w, c) uint8
        """The same as bytes."""
        return plots.to_bytes(self.decoded(z))

    @cached_property
    def thumbnails(self) -> list[str]:
        """The known images as addresses that an <img> shows."""
        return [data_uri(picture) for picture in self.images]

    @cached_property
    def mean(self) -> Tensor:  # (d,)
        """Mean of the known latents."""
        return self.latents.mean(0)

    @cached_property
    def principal(self) -> Directions:
        """Principal directions of the known latents, at most 12."""
        centred = (self.latents - self.mean).double()
        _, spread, vectors = torch.linalg.svd(centred, full_matrices=False)
        variances = spread.square() / max(1, len(centred) - 1)
        shares = variances / variances.sum().clamp_min(1e-30)
        k = min(12, self.latents.shape[1], len(vectors))
        vectors = vectors[:k]
        # Of the two signs the one whose largest entry is positive, so that no machine turns them.
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        vectors = torch.where(largest < 0, -vectors, vectors)
        names = tuple(f"PC {i + 1} ({100 * shares[i]:.0f} %)" for i in range(k))
        return Directions(names, vectors.float(), variances[:k].sqrt().float())

    @cached_property
    def single(self) -> Directions:
        """The single latents that spread most, at most 12, in their order."""
        deviations = self.latents.std(0) if len(self.latents) > 1 else torch.ones_like(self.mean)
        chosen = deviations.topk(min(12, len(deviations))).indices.sort().values
        vectors = torch.eye(len(deviations))[chosen]
        names = tuple(f"latent {i}" for i in chosen.tolist())
        return Directions(names, vectors, deviations[chosen])

    def directions(self, kind: str) -> Directions:
        """Those of a kind, "principal" or "single"."""
        return self.principal if kind == "principal" else self.single

    def shared_bits(self, name: str, least: float = 0.9) -> Tensor:  # (d,) of -1, 0 and 1
        """Bits that this part of a class's known codes has at least; 0 where they differ more."""
        if self.classes is None or name not in self.classes:
            raise UsageError(f"no known image is of the class {name!r}")
        chosen = torch.tensor([label == name for label in self.classes])
        mean = self.latents[chosen].mean(0)
        return torch.where(mean.abs() >= 2 * least - 1, mean.sign(), 0.0)

    def fair_bits(self, seed: int) -> Tensor:  # (d,)
        """A code of fair random bits."""
        stream = generator(seed, 0, "explore/bits")
        return 2.0 * torch.randint(2, (self.latents.shape[1],), generator=stream) - 1
