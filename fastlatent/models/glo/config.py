"""What it takes to build a GLO model."""

import math
from dataclasses import dataclass
from typing import Literal

Projection = Literal["ball", "sphere", "none"]
Initial = Literal["pca", "pca_scaled", "uniform", "gaussian"]
Loss = Literal["laplacian", "moments", "mse", "l1"]
Kernel = Literal["binomial", "laploss"]
Bands = Literal["low_pass", "burt_adelson"]
Sampling = Literal["gaussian", "diagonal", "unit"]
Weights = Literal["pytorch", "normal"]


@dataclass(frozen=True)
class GLOConfig:
    """What it takes to build the model, and how its codes move."""

    family: Literal["glo"] = "glo"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 32, 32)
    """Channels, height and width of the images."""
    architecture: Literal["paper", "seed"] = "paper"
    """paper: DCGAN, transposed convolutions, sides of 8, 16, 32, 64, ... pixels. seed: bilinear
    upsampling and convolutions to 32x32, resized to other sizes; 1 or 3 channels."""
    width: float = 1.0
    """Factor of the number of inner channels; 1 as published."""
    initial_weights: Weights = "pytorch"
    """paper: convolutions begin as PyTorch has it, or normal with DCGAN's standard deviation of
    0.02. PyTorch's are larger where images have fewer channels: grey ones begin black or white."""
    legacy_upsampling: bool = False
    """seed: place pixels as TensorFlow 1 did, not in the middle of their squares."""
    dim: int = 128
    """Numbers in a code."""
    projection: Projection = "ball"
    """Where codes stay: in the unit ball, on its surface, or anywhere."""
    initial: Initial = "pca"
    """Codes at the start: principal components of the images, moved into the region; the same all
    divided by one number, which keeps their lengths apart; uniform in (-1, 1); or normal."""
    order: Literal["simultaneous", "alternating"] = "simultaneous"
    """Move weights and codes down the gradient of one pass, or the weights first and then the codes
    down the gradient of a second pass."""
    alpha: float = 10.0
    """Step of the codes down the gradient of the mean loss of a batch: an image of a batch of B
    moves by alpha / B times the gradient of its own loss."""
    per_sample_alpha: float | None = None
    """alpha / B itself, so that the step does not depend on the size of a batch; in place of
    alpha."""
    loss: Loss = "laplacian"
    """Loss of images in [-1, 1]: L1 between Laplacian pyramids, local means and variances, squared
    or absolute error; means over pixels."""
    levels: int = 3
    """laplacian: bands of the pyramid, beside what is left."""
    kernel: Kernel = "binomial"
    """laplacian: its low-pass; laploss is that of a known program, to compare numbers with."""
    bands: Bands = "low_pass"
    """laplacian: a band is an image less its low-pass; or (burt_adelson) less the next level
    expanded again, with the binomial kernel only."""
    squared_weight: float = 0.0
    """Add so many times the mean squared error to the loss."""
    sampling: Sampling = "gaussian"
    """New codes: normal with mean and covariance of the learned codes, with their variances alone,
    or with neither; all brought into the region, those of unit onto the sphere."""
    fit_steps: int = 200
    """Steps by which the code of an image that was not trained on is fitted."""
    fit_starts: int = 3
    """Starts of that search: the principal components, where codes began there, then the learned
    codes whose images are nearest."""
    fit_rate: float = 0.2
    """Its rate at the start; it falls to 0 along half a cosine."""

    def __post_init__(self) -> None:
        def require(good: bool, name: str, expectation: str) -> None:
            if not good:
                raise ValueError(
                    f"GLOConfig: {name} must be {expectation}; got {getattr(self, name)!r}"
                )

        channels, height, width = self.image_shape
        short = min(height, width)
        require(min(self.image_shape) >= 1, "image_shape", "three positive numbers")
        if self.architecture == "paper":
            square = height == width >= 8 and math.log2(height).is_integer()
            require(square, "image_shape", "square with a side of 8, 16, 32, 64, ... pixels")
        else:
            require(channels in (1, 3), "image_shape", "of 1 or 3 channels with architecture seed")
        require(0 < self.width < math.inf, "width", "positive")
        for name in ("dim", "fit_steps", "fit_starts"):
            require(getattr(self, name) >= 1, name, "at least 1")
        require(0 < self.alpha < math.inf, "alpha", "positive")
        own = self.per_sample_alpha
        require(own is None or 0 < own < math.inf, "per_sample_alpha", "positive")
        require(0 < self.fit_rate < math.inf, "fit_rate", "positive")
        require(0 <= self.squared_weight < math.inf, "squared_weight", "at least 0")
        if self.loss == "laplacian":
            most = int(math.log2(short))
            require(1 <= self.levels <= most, "levels", f"1 to {most} for images of this size")
            require(
                self.bands == "low_pass" or self.kernel == "binomial",
                "kernel",
                "binomial with bands burt_adelson",
            )
        if self.loss == "moments":
            require(short >= 4, "image_shape", "at least 4x4 for loss moments")
