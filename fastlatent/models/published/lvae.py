"""Checkpoints of the authors' program (github.com/addtt/ladder-vae-pytorch, MIT)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, TypeGuard, get_args

import torch
from torch import Tensor

from fastlatent.models.lvae.config import LikelihoodName, LVAEConfig
from fastlatent.models.lvae.likelihoods import LIKELIHOODS
from fastlatent.models.lvae.model import LadderVAE
from fastlatent.models.published.renaming import check_tensors, rename
from fastlatent.nn import ResidualLayout

DROPOUT = 0.2  # the program's default, where a checkpoint tells no more than that there was some
LIKELIHOOD_WORDS: dict[str, LikelihoodName] = {
    "bernoulli": "bernoulli",
    "gaussian": "gaussian",
    "discr_log": "discretized_logistic",
    "discr_log_mix": "discretized_logistic_mixture",
}
OPTIONS = {
    "nonlin": "nonlinearity",
    "residual_type": "residual",
    "learn_top_prior": "learn_top_prior",
    "free_bits": "free_bits",
    "beta_anneal": "beta_anneal",
    "analytical_kl": "analytical_kl",
    "simple_data_dependent_init": "data_dependent_init",
}

# Modules, ours and the program's.
_DOWN = r"top_down_layers.\1"
MODULES = {
    r"stem": r"first_bottom_up.0",
    r"stem_residual": r"first_bottom_up.2.res.block",
    r"bottom_up\.(\d+)\.(\d+)\.resample": r"bottom_up_layers.\1.net.\2.pre_conv",
    r"bottom_up\.(\d+)\.(\d+)\.residual": r"bottom_up_layers.\1.net.\2.res.block",
    r"top_down\.(\d+)\.top_prior": rf"{_DOWN}.top_prior_params",
    r"top_down\.(\d+)\.prior": rf"{_DOWN}.stochastic.conv_in_p",
    r"top_down\.(\d+)\.posterior": rf"{_DOWN}.stochastic.conv_in_q",
    r"top_down\.(\d+)\.expand": rf"{_DOWN}.stochastic.conv_out",
    r"top_down\.(\d+)\.merge\.conv": rf"{_DOWN}.merge.layer.0",
    r"top_down\.(\d+)\.merge\.residual": rf"{_DOWN}.merge.layer.1.block",
    r"top_down\.(\d+)\.skip\.conv": rf"{_DOWN}.skip_connection_merger.layer.0",
    r"top_down\.(\d+)\.skip\.residual": rf"{_DOWN}.skip_connection_merger.layer.1.block",
    r"top_down\.(\d+)\.blocks\.(\d+)\.resample": rf"{_DOWN}.deterministic_block.\2.pre_conv",
    r"top_down\.(\d+)\.blocks\.(\d+)\.residual": rf"{_DOWN}.deterministic_block.\2.res.block",
    r"likelihood\.head": r"likelihood.parameter_net",
}


def image_channels(checkpoint: Mapping[str, Tensor]) -> int:
    """Channels of the images that the checkpoint's model takes; ValueError if it does not tell."""
    check_tensors(checkpoint, "checkpoint")
    return _shape(checkpoint, "first_bottom_up.0.weight")[1]


def takes(config: object, channels: int) -> TypeGuard[LVAEConfig]:
    """Whether a configuration is that of a Ladder VAE for images of so many channels."""
    return isinstance(config, LVAEConfig) and config.image_shape[0] == channels


def original_settings(options: Mapping[str, Any], like: LVAEConfig) -> LVAEConfig:
    """`like` with what the program's stored options say that its checkpoints do not.

    Raises ValueError for a value that LVAEConfig does not have.
    """
    changes = {ours: options[theirs] for theirs, ours in OPTIONS.items() if theirs in options}
    if "dropout" in options:
        changes["dropout"] = options["dropout"] or 0.0  # the program turns 0 into None
    if "likelihood" in options:
        # A word of another program goes on to LVAEConfig, which knows how to complain.
        word = options["likelihood"]
        changes["likelihood"] = LIKELIHOOD_WORDS.get(word, word)
    return replace(like, **changes)


def convert_original(
    checkpoint: Mapping[str, Tensor],  # a bare state dictionary
    like: LVAEConfig,
) -> tuple[LVAEConfig, dict[str, Tensor]]:
    """Configuration and weights of a checkpoint.

    The layers follow from the tensors. The tensors do not hold the size of the images before
    padding, the nonlinearity, the rate of dropout and how the model was trained. Nor do they
    distinguish a Gaussian from a discretized logistic: that is as in `like`. Every tensor must be
    there with its shape and none may be left over, otherwise ValueError.
    """
    check_tensors(checkpoint, "checkpoint")
    config = _config(checkpoint, like)
    with torch.device("meta"):
        expected = LadderVAE(config).state_dict()
    channels, height, width = config.image_shape
    model = f"a Ladder VAE of {len(config.zdims)} layers for {channels}x{height}x{width} images"
    return config, rename(checkpoint, _original_names(expected, config), expected, model)


def _config(checkpoint: Mapping[str, Tensor], like: LVAEConfig) -> LVAEConfig:
    """What the names and the shapes of the tensors say about the model, the rest from `like`."""

    def count(pattern: str) -> int:
        """How many numbers stand at the pattern's group."""
        return len({match[1] for match in map(re.compile(pattern).match, checkpoint) if match})

    def any_name(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in checkpoint)

    layers = range(count(r"top_down_layers\.(\d+)\."))
    if not layers:
        raise ValueError("convert_original: the checkpoint has no tensor top_down_layers.0")
    filters, channels, *_ = _shape(checkpoint, "first_bottom_up.0.weight")
    top_prior = f"top_down_layers.{layers[-1]}.top_prior_params"
    _shape(checkpoint, top_prior)
    changes: dict[str, Any] = _residual_blocks(checkpoint, like)
    if len(layers) > 1:
        changes["skip"] = any_name(r"\.skip_connection_merger\.")
        changes["merge"] = "linear" if any_name(r"\.merge\.layer\.weight$") else "residual"
    return replace(
        like,
        image_shape=(channels, *like.image_shape[1:]),
        likelihood=_likelihood(
            _shape(checkpoint, "likelihood.parameter_net.weight")[0], channels, like
        ),
        zdims=tuple(
            _shape(checkpoint, f"top_down_layers.{i}.stochastic.conv_out.weight")[1] for i in layers
        ),
        downsample=tuple(count(rf"bottom_up_layers\.{i}\.net\.(\d+)\.pre_conv\.") for i in layers),
        blocks=count(r"bottom_up_layers\.0\.net\.(\d+)\."),
        filters=filters,
        gated=any_name(r"^bottom_up_layers\..*\.conv\.weight$"),
        # Stored whether it was learned or not, and zero until it was.
        learn_top_prior=like.learn_top_prior or bool(checkpoint[top_prior].any()),
        initial_downscaling=not any_name(r"^final_top_down\.0\."),
        **changes,
    )


def _shape(checkpoint: Mapping[str, Tensor], name: str) -> torch.Size:
    tensor = checkpoint.get(name)
    if tensor is None or tensor.dim() != 4:
        got = None if tensor is None else tuple(tensor.shape)
        raise ValueError(
            f"convert_original: the checkpoint must hold {name} of four dimensions; got {got}"
        )
    return tensor.shape


def _residual_blocks(checkpoint: Mapping[str, Tensor], like: LVAEConfig) -> dict[str, Any]:
    """Layout, batch norm and dropout, told by where in a block its batch norms and gate are."""
    block = "first_bottom_up.2.res.block"
    places = [re.fullmatch(rf"{re.escape(block)}\.(\d+)\.(\w+)", name) for name in checkpoint]
    norms = {int(match[1]) for match in places if match and match[2] == "running_mean"}
    convs = {int(match[1]) for match in places if match and match[2] == "weight"} - norms
    gates = {
        int(match[1])
        for match in (re.search(r"block\.(\d+)\.conv\.weight$", name) for name in checkpoint)
        if match
    }

    fitting = []
    for layout, norm, dropout in product(get_args(ResidualLayout), (True, False), (True, False)):
        rate = (like.dropout or DROPOUT) if dropout else 0.0
        changes = {"residual": layout, "batch_norm": norm, "dropout": rate}
        steps = replace(like, **changes).style.steps
        if (
            norms == set(_places(steps, "b"))
            and convs == set(_places(steps, "c"))
            and gates <= {len(steps)}
        ):
            # Where no block has a gate, the last dropout leaves no trace.
            rank = (layout == like.residual, dropout == bool(like.dropout))
            fitting.append((rank, changes))
    if not fitting:
        raise ValueError(
            f"convert_original: {block} has its convolutions at {_listed(convs)}, batch norms at "
            f"{_listed(norms)} and blocks their gates at {_listed(gates)}, as no layout has"
        )
    return max(fitting, key=lambda entry: entry[0])[1]


def _likelihood(outputs: int, channels: int, like: LVAEConfig) -> LikelihoodName:
    fitting = [
        name for name, kind in LIKELIHOODS.items() if kind(1, channels).head.out_channels == outputs
    ]
    if not fitting:
        raise ValueError(
            f"convert_original: likelihood.parameter_net has {outputs} outputs, as no likelihood "
            f"of {channels} channels has"
        )
    if like.likelihood in fitting:
        return like.likelihood
    if len(fitting) > 1:
        raise ValueError(
            f"convert_original: the likelihood could be {' or '.join(fitting)}, which the "
            f"checkpoint does not tell; got {like.likelihood!r}"
        )
    return fitting[0]


def _original_names(ours: Iterable[str], config: LVAEConfig) -> dict[str, str]:
    """The program's name of each tensor."""
    steps = config.style.steps
    places = {"convs": _places(steps, "c"), "norms": _places(steps, "b")}
    first = int(config.initial_downscaling)  # the upsampling comes before the final blocks
    modules = {
        **MODULES,
        **{rf"final\.{b}": f"final_top_down.{b + first}.res.block" for b in range(config.blocks)},
    }
    if config.merge == "linear":
        modules[r"top_down\.(\d+)\.merge\.conv"] = rf"{_DOWN}.merge.layer"

    def original(name: str) -> str:
        name = re.sub(r"(convs|norms)\.(\d)", lambda m: str(places[m[1]][int(m[2])]), name)
        name = name.replace("gate.", f"{len(steps)}.")
        for module, theirs in modules.items():
            name, found = re.subn(rf"^{module}(?=\.|$)", theirs, name)
            if found:
                break
        return name

    return {name: original(name) for name in ours}


def _places(steps: str, letter: str) -> list[int]:
    return [place for place, step in enumerate(steps) if step == letter]


def _listed(places: set[int]) -> str:
    return ", ".join(map(str, sorted(places))) or "none"
