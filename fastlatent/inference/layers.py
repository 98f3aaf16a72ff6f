"""Images that differ in one layer of latents."""

from typing import Literal

from torch import Tensor

from fastlatent.models.capabilities import Layered
from fastlatent.noise import Noise


def draw_row(
    model: Layered,
    layer: int,
    n: int,
    noise: Noise,
    pixels: Literal["mean", "sample"] = "mean",
) -> Tensor:  # (n, c, h, w)
    """Images in [0, 1] that differ in this layer and, by it, in those below.

    All share one draw of the layers above; each has its own draw of the layer itself; layers below
    are at the mean of their prior. Pixels are means of the likelihood, or drawn from it.
    """
    passed = model.sample_prior(
        n,
        noise,
        mode_layers=range(layer),
        constant_layers=range(layer + 1, len(model.layer_shapes)),
    )
    if pixels == "mean":
        return model.likelihood.mean(passed.features)
    return model.likelihood.sample(passed.features, noise)
