"""What it takes to build a GLO model."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastlatent.jobs.naming import name_of, require

Projection = Literal["ball", "sphere", "none"]
Initial = Literal["pca", "pca_scaled", "uniform", "gaussian"]
Loss = Literal["laplacian", "moments", "mse", "l1"]
Kernel = Literal["binomial", "laploss"]
Bands = Literal["low_pass", "burt_adelson"]
Sampling = Literal["gaussian", "diagonal", "unit"]
Weights = Literal["pytorch", "normal"]


@dataclass(frozen=True)
class GLOConfig:
    """What it takes to build the model, and how its latents move."""

    OPTIONS: ClassVar = "model."

    family: Literal["glo"] = "glo"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 32, 32)
    """Channels, height and width of the images."""
    architecture: Literal["paper", "seed"] = "paper"
    """paper: DCGAN, transposed convolutions, for square images with a side of 8, 16, 32, 64 ...
    pixels. seed: bilinear upsampling and convolutions to 32x32, resized to other sizes, for 1 or 3
    channels."""
    width: float = 1.0
    """Factor of the number of inner channels; 1: as published."""
    initial_weights: Weights = "pytorch"
    """Initial weights of the architecture paper: PyTorch's own, or normal with DCGAN's standard
    deviation, 0.02. PyTorch's grow as channels get fewer, so grey images begin black or white."""
    legacy_upsampling: bool = False
    """Architecture seed: place pixels as TensorFlow 1 did, not at the centres of their squares."""
    dim: int = 128
    """Number of latents."""
    projection: Projection = "ball"
    """Region of the latents: the unit ball, its surface (sphere), or none."""
    initial: Initial = "pca"
    """Initial latents. pca: principal components of the images, projected into the region;
    pca_scaled: the same, all divided by one number, which keeps relative lengths; uniform in (-1,
    1); gaussian."""
    order: Literal["simultaneous", "alternating"] = "simultaneous"
    """simultaneous: one pass gives the gradients of weights and latents; alternating: a second
    pass, with the new weights, gives that of the latents."""
    alpha: float = 10.0
    """Learning rate of the latents on the mean loss of a batch. In a batch of B images, a latent
    moves by alpha / B times the gradient of its image's loss."""
    per_sample_alpha: float | None = None
    """alpha / B itself, in place of alpha, so that the step does not depend on the batch size."""
    loss: Loss = "laplacian"
    """Loss of images in [-1, 1], a mean over pixels: laplacian, L1 between Laplacian pyramids;
    moments, local means and variances; mse; l1."""
    levels: int = 3
    """Bands of the Laplacian pyramid, without its residual."""
    kernel: Kernel = "binomial"
    """Low-pass filter of the Laplacian pyramid; laploss: that of a known program, to compare
    numbers."""
    bands: Bands = "low_pass"
    """Bands of the Laplacian pyramid: low_pass, an image minus its low-pass; burt_adelson, minus
    the next level expanded, for the binomial kernel only."""
    squared_weight: float = 0.0
    """Weight of the mean squared error, which is added to the loss."""
    sampling: Sampling = "gaussian"
    """Distribution of new latents: gaussian, with mean and covariance of the learned ones;
    diagonal, with their variances only; unit, standard normal. All are projected into the region,
    those of unit onto the sphere."""
    fit_steps: int = 200
    """Steps of the search for the latents of an image that was not trained on."""
    fit_starts: int = 3
    """Starts of that search: the principal components, if latents began there, then the learned
    latents with the nearest images."""
    fit_rate: float = 0.2
    """Learning rate at the start of that search. It falls to 0 along half a cosine."""

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        short = min(height, width)
        require(min(self.image_shape) >= 1, self, "image_shape", "three positive numbers")
        seed = name_of(self, "architecture", "seed")
        if self.architecture == "paper":
            square = height == width >= 8 and math.log2(height).is_integer()
            require(square, self, "image_shape", "square with a side of 8, 16, 32, 64, ... pixels")
        else:
            require(channels in (1, 3), self, "image_shape", f"of 1 or 3 channels with {seed}")
        require(0 < self.width < math.inf, self, "width", "positive")
        for name in ("dim", "fit_steps", "fit_starts"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(0 < self.alpha < math.inf, self, "alpha", "positive")
        own = self.per_sample_alpha
        require(own is None or 0 < own < math.inf, self, "per_sample_alpha", "positive")
        require(0 < self.fit_rate < math.inf, self, "fit_rate", "positive")
        require(0 <= self.squared_weight < math.inf, self, "squared_weight", "at least 0")
        if self.loss == "laplacian":
            most = int(math.log2(short))
            require(
                1 <= self.levels <= most, self, "levels", f"1 to {most} for images of this size"
            )
            require(
                self.bands == "low_pass" or self.kernel == "binomial",
                self,
                "kernel",
                f"binomial with {name_of(self, 'bands', 'burt_adelson')}",
            )
        if self.loss == "moments":
            moments = name_of(self, "loss", "moments")
            require(short >= 4, self, "image_shape", f"at least 4x4 for {moments}")
