"""Feature maps of images, under which the geometry of a latent space may be measured.

Each takes images in [-1, 1], flattened or not, as decoders put them out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.data import Split, epoch_order
from fastlatent.nn import seeded

# Convolutions of VGG-19 up to relu5_2, by blocks with a pooling between them.
VGG_BLOCKS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512, 512))
# Mean and deviation of the colours of ImageNet.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LogisticRegression(nn.Module):
    """log softmax(W x + b): images (n, ...) of D numbers to log-probabilities of classes (n, K)."""

    def __init__(self, pixels: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, pixels))
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias).log_softmax(1)

    def jacobian(self, x: Tensor) -> Tensor:
        """Derivative by the image, W - 1 p^T W with the probabilities p: (n, ...) -> (n, K, D)."""
        return self.weight - (self(x).exp() @ self.weight).unsqueeze(1)

    @torch.no_grad()
    def accuracy(self, split: Split, batch: int = 1000) -> float:
        """The fraction of the split's images whose class is found.

        Raises ValueError where images have no labels, or attributes in place of one class.
        """
        check_classes("LogisticRegression.accuracy", split)
        right = 0
        for part in split.batches(batch, self.weight.device):
            right += int((self(2 * part.images - 1).argmax(1) == part.labels).sum())
        return right / len(split)


def fit_logistic_regression(
    split: Split,
    classes: int,
    device: torch.device | str = "cpu",
    *,
    epochs: int = 50,
    batch: int = 64,
    lr: float = 0.1,
    lr_decay: float = 0.9,  # after each epoch
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> LogisticRegression:
    """A classifier of the split's images, trained by Adam; frozen. Defaults are the published ones.

    Raises ValueError where images have no labels, or attributes in place of one class.
    """
    check_classes("fit_logistic_regression", split)
    with seeded(seed):
        model = LogisticRegression(math.prod(split.shape), classes)
    model = model.to(device)
    adam = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    with torch.enable_grad():
        for epoch in range(epochs):
            for part in split.batches(batch, device, order=epoch_order(len(split), seed, epoch)):
                assert part.labels is not None
                loss = F.nll_loss(model(2 * part.images - 1), part.labels)
                adam.zero_grad()
                loss.backward()
                adam.step()
            for group in adam.param_groups:
                group["lr"] *= lr_decay
    return model.eval().requires_grad_(False)


def check_classes(caller: str, split: Split) -> None:
    """ValueError unless each image of the split has one class."""
    labels = split.labels
    if labels is None or labels.dim() != 1:
        raise ValueError(
            f"{caller}: split must have one class for each image; got "
            + ("no labels" if labels is None else f"{labels.shape[1]} attributes")
        )


class VGG19Features(nn.Module):
    """The last map of VGG-19 up to relu5_2: images (n, ...) to features (n, 512 h' w').

    K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    ICLR 2015. Images keep their size; those of one channel are taken as grey. Weights are random
    until `load` is called.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        channels, *sides = image_shape
        if channels not in (1, 3) or min(sides) < 16:
            raise ValueError(
                "VGG19Features: image_shape must be 1 or 3 channels of 16 pixels or more; got "
                f"{tuple(image_shape)}"
            )
        self.image_shape = tuple(image_shape)
        before = 3
        for block, widths in enumerate(VGG_BLOCKS, 1):
            for number, width in enumerate(widths, 1):
                convolution = nn.Conv2d(before, width, 3, padding=1)
                self.add_module(f"conv{block}_{number}", convolution)
                before = width
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(DEVIATION)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self.image_shape)
        x = ((x + 1) / 2 - self.mean) / self.std
        for block, widths in enumerate(VGG_BLOCKS, 1):
            if block > 1:
                x = F.max_pool2d(x, 2)
            for number in range(1, len(widths) + 1):
                x = self.get_submodule(f"conv{block}_{number}")(x).relu()
        return x.flatten(1)

    def load(self, weights: Mapping[str, Any]) -> "VGG19Features":
        """Take weights over by the names of the geometry paper's program or of torchvision; frozen.

        Layers beyond relu5_2 are left out. Raises ValueError where one is missing or of another
        shape.
        """
        expected = self.state_dict()
        if "features.0.weight" in weights:
            ours = [name for name in expected if name.startswith("conv")]
            renamed = zip(ours, _torchvision_names(), strict=True)
            weights = {name: weights.get(theirs) for name, theirs in renamed}
            weights |= {name: expected[name] for name in ("mean", "std")}
        for name, tensor in expected.items():
            given = weights.get(name)
            if not isinstance(given, Tensor) or given.shape != tensor.shape:
                got = "none" if not isinstance(given, Tensor) else f"shape {tuple(given.shape)}"
                raise ValueError(
                    f"VGG19Features: weights must hold {name} of shape {tuple(tensor.shape)}; "
                    f"got {got}"
                )
        self.load_state_dict({name: weights[name] for name in expected})
        return self.eval().requires_grad_(False)


def _torchvision_names() -> Iterator[str]:
    """What torchvision's VGG-19 calls the weights and biases, in their order."""
    index = 0
    for widths in VGG_BLOCKS:
        for _ in widths:
            yield from (f"features.{index}.weight", f"features.{index}.bias")
            index += 2  # after an activation
        index += 1  # after a pooling
