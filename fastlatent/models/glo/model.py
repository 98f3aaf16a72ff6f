"""Generative Latent Optimization: a generator and the learned latents of its images.

P. Bojanowski, A. Joulin, D. Lopez-Paz, A. Szlam, "Optimizing the Latent Space of Generative
Networks", ICML 2018, arXiv 1707.05776.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastlatent.data import Split
from fastlatent.models.base import LatentModel
from fastlatent.models.glo.config import GLOConfig
from fastlatent.models.glo.fitting import Fitted, fit_latents
from fastlatent.models.glo.generators import build_generator
from fastlatent.models.glo.learning import ANCHORS, MovingLatents
from fastlatent.models.glo.losses import (
    ImageLoss,
    absolute_error,
    image_loss,
    in_full_precision,
    laplacian_loss,
    squared_error,
)
from fastlatent.models.glo.principal import Principal
from fastlatent.models.glo.table import project
from fastlatent.models.learned import Room
from fastlatent.noise import Noise

UNITS = {
    "laplacian": "Laplacian L1",
    "moments": "difference of local moments",
    "mse": "mean squared error",
    "l1": "mean absolute error",
}


class GLO(LatentModel):
    """A generator of images in [-1, 1] from latents; it has no encoder.

    Latents of training images are learned with the weights, and kept beside them in `latents`.
    Latents of other images are found by a search, `fit`. New latents come from a normal
    distribution with the moments of the learned ones. Moments, and what else a search needs, are
    buffers.
    """

    code_mean: Tensor  # (d,)
    code_covariance: Tensor  # (d, d)
    anchors: Tensor  # (k, d)
    images_mark: Tensor  # of the images that the latents belong to
    image_mean: Tensor
    directions: Tensor
    component_scale: Tensor
    latents: Tensor | None  # (N, d) of the training images, where they are at hand; never moved

    def __init__(self, config: GLOConfig, loss: ImageLoss | None = None):
        """`loss` replaces that of the configuration: images (n, c, h, w) in [-1, 1] to (n,)."""
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "real"
        self.loss_unit = UNITS[config.loss] if loss is None else "loss"
        self.image_loss = image_loss(config) if loss is None else loss
        self.generator = build_generator(config)
        self.latents = None
        d = config.dim
        self.register_buffer("code_mean", torch.zeros(d))
        self.register_buffer("code_covariance", torch.eye(d))
        self.register_buffer("anchors", torch.zeros(ANCHORS, d))
        # Which images the latents belong to: Split.mark of them.
        self.register_buffer("images_mark", torch.zeros(16, dtype=torch.uint8))
        if self.starts_at_components:
            size = config.image_shape[0] * config.image_shape[1] * config.image_shape[2]
            self.register_buffer("image_mean", torch.zeros(size))
            self.register_buffer("directions", torch.zeros(d, size))
            self.register_buffer("component_scale", torch.ones(()))

    def latents_to_learn(self, split: Split, room: Room) -> MovingLatents:
        """Room for the latents of the images of a split, without values yet."""
        return MovingLatents(self, split, room)

    @property
    def starts_at_components(self) -> bool:
        """Whether latents begin as principal components of their images."""
        return self.config.initial in ("pca", "pca_scaled")

    def project(self, z: Tensor) -> Tensor:
        """The nearest latents in their region: (..., d) -> (..., d)."""
        return project(z, self.config.projection)

    @property
    def search(self) -> str:
        def count(n: int, word: str) -> str:
            return f"{n:,} {word}{'s' * (n > 1)}"

        steps, starts = self.config.fit_steps, self.config.fit_starts
        return f"latents fitted by {count(steps, 'step')} from {count(starts, 'start')}"

    @property
    def walks_straight(self) -> bool:
        """Lines between latents stay in the ball."""
        return self.config.projection != "sphere"

    def components(self, x: Tensor) -> Tensor:
        """The latents that images (n, c, h, w) in [0, 1] begin with, by principal components."""
        principal = Principal(self.image_mean, self.directions)
        return self.project(principal.coordinates((2 * x - 1).flatten(1)) / self.component_scale)

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        latents: Tensor | None = None,  # (n, d), the latents of the images; fitted by default
        features: Fitted | None = None,  # what `fit` found, where that is known
    ) -> dict[str, Tensor]:
        """Per-image values, of images in [-1, 1].

        In evaluation mode also the errors that others measure: "laplacian" is with 3 levels and the
        binomial kernel whatever the loss, "psnr" in dB, "loss_of_start" of latents that were
        fitted.
        """
        self._check_images("x", x)
        target = 2 * self._checked_target(x, target) - 1
        if self.training and latents is None:
            raise ValueError("GLO: latents must be given in training, where they are learned")
        values = {}
        if latents is None:
            fitted = self.fit(x) if features is None else features
            latents, values["loss_of_start"] = fitted.latents, fitted.start_loss
        self._check_latents("latents", latents)
        if len(latents) != len(x):
            raise ValueError(
                f"GLO: latents must hold {len(x)} rows, one for each of x; got {len(latents)}"
            )
        image = self.generator(latents)
        values = {"loss": in_full_precision(self.image_loss, image, target)} | values
        if self.training:
            return values
        mse = in_full_precision(squared_error, image, target)
        values["squared_error"] = mse
        values["absolute_error"] = in_full_precision(absolute_error, image, target)
        if min(self.image_shape[1:]) >= 8:
            values["laplacian"] = in_full_precision(laplacian_loss, image, target)
        values["psnr"] = 10 * (4 / mse.clamp_min(1e-12)).log10()
        return values

    @property
    def units(self) -> dict[str, str]:
        return {
            "loss": self.loss_unit,
            "loss_of_start": self.loss_unit,
            "squared_error": UNITS["mse"],
            "absolute_error": UNITS["l1"],
            "laplacian": UNITS["laplacian"],
            "psnr": "dB",
        }

    def fit(self, x: Tensor, starts: int | None = None, steps: int | None = None) -> Fitted:
        """Search for the latents of images (n, c, h, w) in [0, 1], by default as configured.

        Starts are the principal components, where latents began there, then those of up to 256
        learned latents whose images are nearest in squared error. Batch norm takes its running
        statistics.
        """
        self._check_images("x", x)
        config, training = self.config, self.generator.training
        starts = config.fit_starts if starts is None else starts
        steps = config.fit_steps if steps is None else steps
        for name, count, least in (("starts", starts, 1), ("steps", steps, 0)):
            if count < least:
                raise ValueError(f"GLO.fit: {name} must be at least {least}; got {count}")
        self.generator.eval()
        try:
            begin = self._starts(x, starts)
            return fit_latents(
                self.generator,
                self.image_loss,
                2 * x - 1,
                begin,
                self.project,
                steps,
                config.fit_rate,
            )
        finally:
            self.generator.train(training)

    @torch.no_grad()
    def _starts(self, x: Tensor, count: int) -> Tensor:  # (n, count, d)
        found = []
        if self.starts_at_components:
            found.append(self.components(x)[:, None])
            count -= 1
        if count:
            pixels = (2 * x - 1).flatten(1)
            images = self.generator(self.anchors).flatten(1)
            nearest = torch.cdist(pixels, images).topk(min(count, ANCHORS), largest=False).indices
            found.append(self.anchors[nearest])
        return torch.cat(found, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Latents fitted to the images: (n, c, h, w) -> (n, d)."""
        return self.fit(x).latents

    def features(self, x: Tensor) -> Fitted:
        """What a search finds, the latents first: (n, c, h, w) -> (n, d), (n,), (n,)."""
        return self.fit(x)

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return features[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return (self.generator(z) + 1) / 2

    def stored_latents(self, split: Split) -> Tensor | None:
        """The learned latents of training images; None for other splits, or where there are none.

        Raises ValueError when the split's images are not those that the latents belong to.
        """
        if self.latents is None or split.name != "train":
            return None
        if not torch.equal(split.mark, self.images_mark.cpu()) or len(split) != len(self.latents):
            raise ValueError(
                f"GLO: the {len(self.latents):,} latents are of other images than the "
                f"{len(split):,} of this train split"
            )
        return self.latents

    def learned_latents(self, split: Split, index: Tensor) -> Tensor | None:
        """Latents (k, d) learned for the split's images at `index` (k,); None without any."""
        latents = self.stored_latents(split)
        return (
            None if latents is None else latents[index.to(latents.device)].to(self.code_mean.device)
        )

    @torch.no_grad()
    def describe_latents(self, mean: Tensor, covariance: Tensor, anchors: Tensor) -> None:
        """Set moments (d,), (d, d) of the learned latents, and some of them (k, d) as starts."""
        self.code_mean.copy_(mean)
        self.code_covariance.copy_(covariance)
        self.anchors.copy_(anchors[torch.arange(ANCHORS, device=anchors.device) % len(anchors)])

    leaves_noise_out = False
    latent_prior = None

    def draw_prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents drawn as configured, in the region: (n, d)."""
        noise = torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
        if self.config.sampling == "unit":
            return project(noise, "sphere")
        covariance = self.code_covariance.to(noise.device)
        if self.config.sampling == "diagonal":
            drawn = noise * covariance.diagonal().sqrt()
        else:
            # The covariance of few or equal latents is singular: a root, without dividing by it.
            values, vectors = torch.linalg.eigh(covariance.double())
            factor = vectors * values.clamp_min(0).sqrt()
            drawn = noise @ factor.T.float()
        return self.project(self.code_mean.to(noise.device) + drawn)

    def geometric_decoder(self) -> nn.Module:
        """Latents to images in [-1, 1], flattened."""
        decoder = nn.Sequential(copy.deepcopy(self.generator), nn.Flatten())
        return decoder.eval().requires_grad_(False)
