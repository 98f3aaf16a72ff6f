"""Settings of other packages' binary quantizers, as those of `BinaryQuantizer`."""

from functools import partial
from typing import Any

import torch
from torch import nn

INDEX_BITS = 63  # that an int64 holds


def lfq_settings(module: Any) -> dict[str, Any]:
    """Settings of `LFQ` of vector-quantize-pytorch, without its temperature and projections."""
    bits, groups = _found(module, "from_lfq", "LFQ", "codebook_dim", "num_codebooks")
    for name in ("orthogonal_rotation", "experimental_softplus_entropy_loss"):
        if getattr(module, name, False):
            raise ValueError(f"from_lfq: module must be without {name}, which has no equal here")
    # Its entropies are means over codebooks, and its commitment is one over bits.
    weight = module.entropy_loss_weight / groups
    activation = module.activation
    return {
        "bits": bits * groups,
        "groups": groups,
        "scale": module.codebook_scale,
        "spherical": "groups" if getattr(module, "spherical", False) else False,
        "surrogate": "identity" if isinstance(activation, nn.Identity) else activation,
        "token_weight": weight,
        "codebook_weight": weight * module.diversity_gamma,
        "commitment_weight": module.commitment_loss_weight / (bits * groups),
        "soft_clamp": getattr(module, "soft_clamp_input_value", None),
        "channel_first": getattr(module, "channel_first", None),
        "index": "groups" if module.keep_num_codebooks_dim else "code",
        "order": "msb",
    }


def bsq_settings(module: Any) -> dict[str, Any]:
    """Settings of `BinarySphericalQuantizer` of bsq-vit."""
    form = "BinarySphericalQuantizer"
    bits, groups = _found(module, "from_bsq", form, "embed_dim", "num_groups")
    if not module.soft_entropy:
        raise ValueError("from_bsq: module must have soft_entropy; hard entropies have no equal")
    weight = module.zeta / module.inv_temperature
    on_sphere = bool(module.l2_norm)
    return {
        "bits": bits,
        "groups": groups,
        "spherical": on_sphere,
        # Its codes are scaled after the straight-through step, and so are their gradients.
        "surrogate": partial(torch.mul, other=bits**-0.5) if on_sphere else "identity",
        "inverse_temperature": module.inv_temperature,
        "token_weight": weight * module.gamma0,
        "codebook_weight": weight * module.gamma,
        "commitment_weight": module.beta,
        "channel_first": module.input_format == "bchw",
        "index": "code" if bits <= INDEX_BITS else "groups",
        "order": "msb",
    }


def _found(module: Any, source: str, form: str, *names: str) -> list[Any]:
    if not all(hasattr(module, name) for name in names):
        raise TypeError(f"{source}: module must be a {form}; got {type(module).__name__}")
    return [getattr(module, name) for name in names]
