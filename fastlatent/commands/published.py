"""What a checkpoint of an author's program becomes: settings of a run, and its weights."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastlatent.data import DataConfig
from fastlatent.files.reading import read_checkpoint, read_pickle
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.models import LVAEConfig
from fastlatent.models.published import glspace, lbae, lvae
from fastlatent.presets import PRESETS, TrainConfig

# The data sets of the Ladder VAE's program by their names there.
LVAE_DATA = {
    "static_mnist": "static-mnist",
    "cifar10": "cifar10",
    "svhn": "svhn",
    "celeba": "celeba",
    "multi_dsprites_binary_rgb": "multi-dsprites",
    "multi_mnist_binary": "multi-mnist",
}


class Converted(NamedTuple):
    """What a checkpoint became."""

    config: TrainConfig
    weights: dict[str, Tensor]
    description: str


def convert_lbae(path: Path, chosen: str | None) -> Converted:
    """A checkpoint tells all there is to know about the model; the preset follows from that."""
    if chosen is not None:
        raise UsageError("--preset does not go with lbae, whose checkpoints tell everything")
    model, weights = lbae.convert_original(read_checkpoint(path))
    baseline = "-vae" if model.latent == "gaussian" else ""
    preset = PRESETS[f"lbae-{model.architecture}{baseline}"].config
    description = f"{model.architecture} model with {model.dim} {model.latent} latents"
    return Converted(replace(preset, model=model), weights, description)


def convert_lvae(path: Path, chosen: str | None) -> Converted:
    """What a checkpoint does not tell is as the program's options, then as a preset has it."""
    checkpoint = read_checkpoint(path)
    file = path.parent / "config.pkl"
    stored = read_options(file) if file.is_file() else {}
    channels = lvae.image_channels(checkpoint)
    known = stored.get("dataset_name")
    presets = {
        name: (preset.config, preset.config.model)
        for name, preset in PRESETS.items()
        if lvae.takes(preset.config.model, channels) and may_be_of(preset.config.data, known)
    }
    if not presets:
        data = "" if known is None else f" of the data set {known}"
        raise RunError(f"no preset has images of {channels} channels{data}, as {path} has")
    if chosen is not None:
        if chosen not in presets:
            listed = ", ".join(presets)
            raise UsageError(f"--preset must be one of {listed}; got {chosen!r}")
        return with_preset(checkpoint, stored, *presets[chosen])[0]

    fitting, faults = [], []
    for preset, like in presets.values():
        try:
            fitting.append(with_preset(checkpoint, stored, preset, like))
        except ValueError as error:
            faults.append(error)
    if not fitting:
        raise faults[0]
    names = sorted({converted.config.data.name for converted, _ in fitting})
    if len(names) > 1:
        listed = ", ".join(converted.config.name for converted, _ in fitting)
        raise UsageError(
            f"{path} could be of {' or '.join(names)}; say which with --preset, one of {listed}"
        )
    return min(fitting, key=lambda found: found[1])[0]


def may_be_of(data: DataConfig, known: str | None) -> bool:
    """Whether a preset's data set may be the program's, `known` if the program tells it."""
    names = LVAE_DATA.values() if known is None else (LVAE_DATA.get(known),)
    return data.kind in names


def with_preset(
    checkpoint: dict[str, Any], stored: dict[str, Any], preset: TrainConfig, like: LVAEConfig
) -> tuple[Converted, int]:
    """A Ladder VAE, and by how many layers it differs from the preset's model `like`.

    Raises ValueError where the checkpoint is of other images or another likelihood.
    """
    layers = len(like.zdims)
    like = lvae.original_settings(stored, like)
    model, weights = lvae.convert_original(checkpoint, like)
    if model.likelihood != like.likelihood:
        raise ValueError(
            f"the checkpoint has a {model.likelihood} likelihood and {preset.name} has not; the "
            "program's config.pkl must lie beside it"
        )
    source = "config.pkl and the preset" if stored else "the preset"
    description = (
        f"Ladder VAE of {len(model.zdims)} layers with a {model.likelihood} likelihood; "
        f"{model.nonlinearity} activations and images of {preset.data.name} by {source} "
        f"{preset.name}"
    )
    converted = Converted(replace(preset, model=model), weights, description)
    return converted, abs(len(model.zdims) - layers)


def convert_glspace(path: Path, chosen: str | None) -> Converted:
    """A checkpoint tells all but the data set and how to train on it."""
    files = glspace_files(path)
    parts = {letter: read_checkpoint(file) for letter, file in files.items()}
    model, weights = glspace.convert_original(parts)
    presets = [name for name in PRESETS if name.startswith(f"{model.family}-")]
    chosen = chosen or f"{model.family}-mnist"
    if chosen not in presets:
        raise UsageError(f"--preset must be one of {', '.join(presets)}; got {chosen!r}")
    preset = PRESETS[chosen].config
    if model.image_shape != preset.model.image_shape:
        raise RunError(
            f"{path} is of images of the shape {model.image_shape}; those of "
            f"{chosen} have {preset.model.image_shape}"
        )
    kind = {"vae": "VAE", "bigan": "BiGAN"}[model.family]
    description = f"{kind} of {model.dim} latents; images of {preset.data.name} by {chosen}"
    return Converted(replace(preset, model=model), weights, description)


def glspace_files(path: Path) -> dict[str, Path]:
    """The files of the one model that `path` names, by their letters."""
    folder = path if path.is_dir() else path.parent
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        prefix, _, letter = file.stem.rpartition("_")
        if prefix and letter in ("G", "E", "D") and file.suffix in ("", ".pth", ".safetensors"):
            found.setdefault(prefix, {})[letter] = file
    models = {prefix: files for prefix, files in found.items() if set(files) in ({*"ED"}, {*"GED"})}
    if not path.is_dir():
        models = {
            prefix: files
            for prefix, files in models.items()
            if path.name == prefix or path in files.values()
        }
    if not models:
        raise RunError(
            f"{path} names no model: a VAE is the files PREFIX_E and PREFIX_D, a BiGAN PREFIX_G, "
            "PREFIX_E and PREFIX_D"
        )
    if len(models) > 1:
        listed = " or ".join(str(folder / prefix) for prefix in models)
        raise UsageError(f"{path} holds several models; give {listed}")
    return next(iter(models.values()))


def read_options(path: Path) -> dict[str, Any]:
    """The options that the Ladder VAE's program stored; ValueError for anything else."""
    options = read_pickle(
        path, "cannot be read as options", {("argparse", "Namespace"): argparse.Namespace}
    )
    if not isinstance(options, argparse.Namespace):
        raise ValueError(f"{path} holds {type(options).__name__}, not options")
    return vars(options)
