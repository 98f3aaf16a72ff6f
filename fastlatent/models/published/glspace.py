"""Weights of the program github.com/mmichelis/GenerativeLatentSpace, as VAE or BiGAN.

A model there is a few state dictionaries of tensors: E and D, encoder and decoder of a VAE; G, E
and D, generator, encoder and discriminator of a BiGAN.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastlatent.models.bigan import BiGAN, BiGANConfig
from fastlatent.models.published.renaming import check_tensors, rename
from fastlatent.models.spectral import MAP_CHANNELS
from fastlatent.models.vae import VAE, VAEConfig

# Our modules, each with its name there, led by the letter of the state dictionary, and what the
# layers inside its spectrally normalised blocks are called.
VAE_MODULES = {
    "encoder.trunk": ("E.enc", "Convolution"),
    "encoder.mean": ("E.zmean", ""),
    "encoder.log_variance": ("E.zlogvar", ""),
    "decoder.project": ("D.lin", ""),
    "decoder.stages": ("D.conv", "ConvTranspose"),
    "decoder.image": ("D.Xmean.0", ""),
    "precision.basis.centers": ("D.rbfNN.centers", ""),
    "precision.basis.bandwidths": ("D.rbfNN.bandwidth", ""),
    "precision.weight": ("D.rbfNN.W.weight", ""),
    "precision.floor": ("D.rbfNN.zeta", ""),
}
BIGAN_MODULES = {
    "encoder.trunk": ("E.conv", "Convolution"),
    "encoder.code": ("E.lin", ""),
    "decoder.project": ("G.lin", ""),
    "decoder.stages": ("G.conv", "ConvTranspose"),
    "decoder.image": ("G.conv.2", ""),
    "discriminator.trunk": ("D.Xconv", "Convolution"),
    "discriminator.code": ("D.zlin", "Linear"),
    "discriminator.joint": ("D.post_cat.0", "Linear"),
    "discriminator.score": ("D.post_cat.1", ""),
}


def convert_original(
    parts: Mapping[str, Any],  # state dictionaries by their letters
) -> tuple[VAEConfig | BiGANConfig, dict[str, Tensor]]:
    """Configuration and weights of a model of the program, a BiGAN if there is a part G.

    Sizes follow from the tensors, of square images. Every tensor must be there with its shape and
    none may be left over, otherwise ValueError.
    """
    letters = ("G", "E", "D") if "G" in parts else ("E", "D")
    if set(parts) != set(letters):
        raise ValueError(
            "convert_original: parts must be E and D, or G, E and D; got "
            + (", ".join(sorted(parts)) or "none")
        )
    original: dict[str, Tensor] = {}
    for letter in letters:
        check_tensors(parts[letter], letter, prefix=f"{letter}.")
        original |= {f"{letter}.{name}": tensor for name, tensor in parts[letter].items()}
    config = _bigan_config(original) if "G" in parts else _vae_config(original)
    modules = BIGAN_MODULES if "G" in parts else VAE_MODULES
    with torch.device("meta"):
        empty = BiGAN(config) if isinstance(config, BiGANConfig) else VAE(config)
    expected = empty.state_dict()
    fitted = expected.pop("precision.fitted", None)  # the program does not store whether it is
    names = {ours: _original_name(ours, modules) for ours in expected}
    side = config.image_shape[1]
    model = f"a {config.family} of {config.dim} latents for images of {side}x{side} pixels"
    weights = rename(original, names, expected, model)
    if fitted is not None:
        weights["precision.fitted"] = torch.tensor(True)
    return config, weights


def _original_name(ours: str, modules: Mapping[str, tuple[str, str]]) -> str:
    prefix = next(prefix for prefix in modules if f"{ours}.".startswith(f"{prefix}."))
    theirs, layer = modules[prefix]
    rest = ours.removeprefix(prefix)
    if layer:
        rest = rest.replace("layer.weight", f"{layer}.weight_orig").replace("layer.", f"{layer}.")
        rest = rest.replace("spectral.", f"{layer}.weight_").replace("norm.", "BatchNorm.")
    return theirs + rest


def _vae_config(original: Mapping[str, Tensor]) -> VAEConfig:
    shape, dim = _sizes(original, "E.enc.0.Convolution.weight_orig", "E.zmean.weight")
    centers = _tensor(original, "D.rbfNN.centers", 2).shape[0]
    if centers % dim:
        raise ValueError(
            f"convert_original: D.rbfNN.centers must hold a multiple of {dim} centres, one of the "
            f"latents; got {centers}"
        )
    return VAEConfig(image_shape=shape, dim=dim, centers_per_latent=centers // dim)


def _bigan_config(original: Mapping[str, Tensor]) -> BiGANConfig:
    shape, dim = _sizes(original, "E.conv.0.Convolution.weight_orig", "E.lin.weight")
    return BiGANConfig(image_shape=shape, dim=dim)


def _sizes(
    original: Mapping[str, Tensor],
    first: str,  # the encoder's first convolution
    last: str,  # its last matrix
) -> tuple[tuple[int, int, int], int]:
    """Shape of the images, taken to be square, and number of latents."""
    channels = _tensor(original, first, 4).shape[1]
    dim, features = _tensor(original, last, 2).shape
    side = 4 * (math.isqrt(features // MAP_CHANNELS) + 1)
    return (channels, side, side), dim


def _tensor(original: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    tensor = original.get(name)
    if tensor is None or tensor.dim() != dims:
        found = "none" if tensor is None else f"shape {tuple(tensor.shape)}"
        raise ValueError(
            f"convert_original: the checkpoint must hold {name} with {dims} axes; got {found}"
        )
    return tensor
