"""Turn published weights into a run folder: `python -m fastlatent.convert lbae CHECKPOINT RUN`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from torch import Tensor

from fastlatent.commands.console import command, parse
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.files.reading import load_weights, read_checkpoint, read_pickle
from fastlatent.inference.devices import Device
from fastlatent.inference.passes import measure_loss
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.models import LVAEConfig, build, glspace, lbae
from fastlatent.models.lvae import original as lvae
from fastlatent.presets import PRESETS, TrainConfig
from fastlatent.runs import Run, locked

DESCRIPTION = """Turn a checkpoint of a model's original program into a run folder.
- lbae: weights-*.cp, last.cp or best.cp of github.com/ok1zjf/LBAE, bits or VAE
- lvae: checkpoints/model_*.pt of github.com/addtt/ladder-vae-pytorch; what its tensors do not tell,
  such as the nonlinearity, is read from config.pkl beside it, otherwise taken from --preset
- glspace: a VAE or BiGAN of github.com/mmichelis/GenerativeLatentSpace, the files PREFIX_E and
  PREFIX_D, for a BiGAN also PREFIX_G, as .pth or .safetensors; CHECKPOINT is the PREFIX, one of the
  files, or a folder that holds one model

Where the data set is at hand, the test loss is measured and training codes that are bits are
counted.

Examples:
  python -m fastlatent.convert lbae models/best.cp runs/lbae-celeba-published --root ~/data
  python -m fastlatent.convert lvae model_600000.pt runs/svhn --preset lvae-svhn-15
  python -m fastlatent.convert glspace TrainedModels/trainedBiGAN runs/bigan-published"""

# The data sets of the Ladder VAE's program by their names there.
LVAE_DATA = {
    "static_mnist": "static-mnist",
    "cifar10": "cifar10",
    "svhn": "svhn",
    "celeba": "celeba",
    "multi_dsprites_binary_rgb": "multi-dsprites",
    "multi_mnist_binary": "multi-mnist",
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    family: tyro.conf.Positional[Literal["lbae", "lvae", "glspace"]]
    """Which program the checkpoint is from."""
    checkpoint: tyro.conf.Positional[Path]
    """Its file, or what tells its files (glspace)."""
    run: tyro.conf.Positional[Path]
    """Run folder to make."""
    preset: str | None = None
    """Preset whose data and settings hold where the checkpoint tells none (lvae, glspace); default:
    the one that fits it, of MNIST for glspace."""
    root: Path | None = None
    """Folder that holds the data sets; default: the environment variable FASTLATENT_DATA."""
    device: Device = "auto"
    """auto: the GPU if there is one."""


class Converted(NamedTuple):
    """What a checkpoint became."""

    config: TrainConfig
    weights: dict[str, Tensor]
    description: str


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and convert."""
    options = parse(Options, argv, "convert", DESCRIPTION)
    convert = {"lbae": convert_lbae, "lvae": convert_lvae, "glspace": convert_glspace}
    config, weights, description = convert[options.family](options)
    # Of half or double precision, too; a run's weights are in single.
    weights = {
        name: tensor.float() if tensor.is_floating_point() and tensor.itemsize > 1 else tensor
        for name, tensor in weights.items()
    }
    load_weights(build(config.model, 0), weights, options.checkpoint, "the model that it tells")
    root = None if options.root is None else options.root.expanduser().absolute()
    run = Run(options.run, replace(config, data=replace(config.data, root=root)))
    with locked(options.run):
        run.create()
        run.write_weights(weights)
    say(f"{description}: {options.run}")

    trained = Trained(RunOptions(options.run, device=options.device))
    try:
        test = trained.split("test")
    except (OSError, ValueError) as error:
        say(f"its data set cannot be read, so nothing was measured: {error}")
        return
    loss = measure_loss(trained.model, test, trained.batch, trained.seed)["loss"]
    say(f"test loss {loss:.4f} {trained.model.loss_unit}")
    if trained.model.latent_kind == "bits":
        say(f"codes counted: {trained.codes.count:,}")


def convert_lbae(options: Options) -> Converted:
    """A checkpoint tells all there is to know about the model; the preset follows from that."""
    if options.preset is not None:
        raise UsageError("--preset does not go with lbae, whose checkpoints tell everything")
    model, weights = lbae.convert_original(read_checkpoint(options.checkpoint))
    baseline = "-vae" if model.latent == "gaussian" else ""
    preset = PRESETS[f"lbae-{model.architecture}{baseline}"].config
    description = f"{model.architecture} model with {model.dim} {model.latent} latents"
    return Converted(replace(preset, model=model), weights, description)


def convert_lvae(options: Options) -> Converted:
    """What a checkpoint does not tell is as the program's options, then as a preset has it."""
    checkpoint = read_checkpoint(options.checkpoint)
    file = options.checkpoint.parent / "config.pkl"
    stored = read_options(file) if file.is_file() else {}
    channels = lvae.image_channels(checkpoint)
    known = stored.get("dataset_name")
    presets = {
        name: preset.config
        for name, preset in PRESETS.items()
        if may_fit(preset.config, channels, known)
    }
    if not presets:
        data = "" if known is None else f" of the data set {known}"
        raise RunError(
            f"no preset has images of {channels} channels{data}, as {options.checkpoint} has"
        )
    if options.preset is not None:
        if options.preset not in presets:
            listed = ", ".join(presets)
            raise UsageError(f"--preset must be one of {listed}; got {options.preset!r}")
        return with_preset(checkpoint, stored, presets[options.preset])

    fitting, faults = [], []
    for preset in presets.values():
        try:
            fitting.append(with_preset(checkpoint, stored, preset))
        except ValueError as error:
            faults.append(error)
    if not fitting:
        raise faults[0]
    data = sorted({converted.config.data.name for converted in fitting})
    if len(data) > 1:
        listed = ", ".join(converted.config.name for converted in fitting)
        raise UsageError(
            f"{options.checkpoint} could be of {' or '.join(data)}; say which with --preset, one "
            f"of {listed}"
        )
    layers = len(fitting[0].config.model.zdims)
    return min(
        fitting,
        key=lambda found: abs(len(PRESETS[found.config.name].config.model.zdims) - layers),
    )


def may_fit(preset: TrainConfig, channels: int, known: str | None) -> bool:
    """Whether such images may be of the preset's data set, `known` if the program tells it."""
    if not isinstance(preset.model, LVAEConfig) or preset.model.image_shape[0] != channels:
        return False
    names = LVAE_DATA.values() if known is None else (LVAE_DATA.get(known),)
    return preset.data.kind in names


def with_preset(
    checkpoint: dict[str, Any], stored: dict[str, Any], preset: TrainConfig
) -> Converted:
    """A Ladder VAE; ValueError where the checkpoint is of other images or another likelihood."""
    like = lvae.original_settings(stored, preset.model)
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
    return Converted(replace(preset, model=model), weights, description)


def convert_glspace(options: Options) -> Converted:
    """A checkpoint tells all but the data set and how to train on it."""
    files = glspace_files(options.checkpoint)
    parts = {letter: read_checkpoint(file) for letter, file in files.items()}
    model, weights = glspace.convert_original(parts)
    presets = [name for name in PRESETS if name.startswith(f"{model.family}-")]
    chosen = options.preset or f"{model.family}-mnist"
    if chosen not in presets:
        raise UsageError(f"--preset must be one of {', '.join(presets)}; got {chosen!r}")
    preset = PRESETS[chosen].config
    if model.image_shape != preset.model.image_shape:
        raise RunError(
            f"{options.checkpoint} is of images of the shape {model.image_shape}; those of "
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


if __name__ == "__main__":
    sys.exit(main())
