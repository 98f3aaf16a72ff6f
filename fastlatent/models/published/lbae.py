"""Checkpoints of the authors' program (github.com/ok1zjf/LBAE)."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent.models.lbae import ARCHITECTURES, LBAE, LBAEConfig
from fastlatent.models.published.renaming import check_tensors, rename


def convert_original(checkpoint: dict[str, Any]) -> tuple[LBAEConfig, dict[str, Tensor]]:
    """Configuration and weights of a checkpoint of the authors' program (bits or VAE).

    `checkpoint` is {"gen": ..., "enc": ..., ...}: state dictionaries of decoder and encoder. The
    architecture, the kind of latent and d follow from the tensors. Every tensor must be there
    with its shape and none may be left over, otherwise ValueError.
    """
    if not isinstance(checkpoint, dict) or not {"gen", "enc"} <= checkpoint.keys():
        raise ValueError(
            "convert_original: checkpoint must be a dictionary with the entries 'gen' and 'enc'"
        )
    original: dict[str, Tensor] = {}
    for part in ("gen", "enc"):
        check_tensors(checkpoint[part], repr(part), prefix=f"{part}.")
        original |= {f"{part}.{name}": tensor for name, tensor in checkpoint[part].items()}
    config = _original_config(checkpoint["gen"], checkpoint["enc"])
    with torch.device("meta"):
        expected = LBAE(config).state_dict()
    modules = _original_modules(config)
    names = {}
    for name in expected:
        module, leaf = name.rsplit(".", 1)
        names[name] = f"{modules[module]}.{leaf}"
    model = f"a {config.architecture} model of {config.dim} {config.latent} latents"
    return config, rename(original, names, expected, model)


def _original_config(gen: dict[str, Tensor], enc: dict[str, Tensor]) -> LBAEConfig:
    """What the names and the shapes of the tensors say about the model."""
    heads: dict[str, Literal["bits", "gaussian"]] = {"l0l.weight": "bits", "l1.weight": "gaussian"}
    found = [name for name in heads if name in enc]
    if len(found) != 1 or enc[found[0]].dim() != 2:
        raise ValueError(
            "convert_original: enc must hold the matrix l0l.weight (bits) or l1.weight (VAE)"
        )
    stem = enc.get("ec0.weight")
    if stem is None or stem.dim() != 4 or stem.shape[1] not in (1, 3):
        raise ValueError(
            "convert_original: enc must hold ec0.weight of shape (64, 1 or 3, 3, 3); "
            f"got {None if stem is None else tuple(stem.shape)}"
        )
    name: Literal["mnist", "cifar10", "celeba"] = "mnist" if stem.shape[1] == 1 else "cifar10"
    if "dc1.weight" in gen:
        name = "celeba"
    latent = heads[found[0]]
    return LBAEConfig(
        architecture=name,
        latent=latent,
        dim=enc[found[0]].shape[0],
        kl_weight=ARCHITECTURES[name].kl_weight if latent == "gaussian" else 0.0,
    )


def _original_modules(config: LBAEConfig) -> dict[str, str]:
    """Our module names to the original's."""
    architecture = ARCHITECTURES[config.architecture]
    names = {
        "encoder.stem": "enc.ec0",
        "encoder.stem_norm": "enc.bn0",
        "encoder.inner": "enc.ec4",
        "encoder.heads.logits": "enc.l0l",
        "encoder.heads.mean": "enc.l1",
        "encoder.heads.log_variance": "enc.l2",
        "decoder.project": "gen.l1l",
        "decoder.expand": "gen.dc4",
        "decoder.expand_norm": "gen.bn4",
        "decoder.image": "gen.dc5",
    }

    def add_stages(ours: str, part: str, conv: str, count: int, first: int) -> None:
        for index in range(count):
            stage, k = f"{ours}.stages.{index}", first + index
            names[f"{stage}.conv"] = f"{part}.{conv}{k}"
            names[f"{stage}.norm"] = f"{part}.bn{k}"
            for unit in (1, 2):
                names[f"{stage}.residual.conv{unit}"] = f"{part}.b{k}{unit}"
                names[f"{stage}.residual.norm{unit}"] = f"{part}.bn{k}{unit}"

    add_stages("encoder", "enc", "ec", len(architecture.encoder), first=1)
    # The decoder's stages are numbered so that the last doubling is always dc4.
    add_stages("decoder", "gen", "dc", len(architecture.decoder), 4 - len(architecture.decoder))
    return names
