"""Turn published weights into a run folder: `python -m fastlatent.convert lbae CHECKPOINT RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import Device, RunError, command, parse
from fastlatent.models.lbae import convert_original
from fastlatent.passes import measure_loss
from fastlatent.presets import PRESETS
from fastlatent.progress import say
from fastlatent.runs import Run

DESCRIPTION = """Turn a checkpoint of a model's original program into a run folder.
- lbae: weights-*.cp, last.cp or best.cp of github.com/ok1zjf/LBAE, bits or VAE

Where the data set is at hand, the test loss is measured and the training codes are counted.

Example:
  python -m fastlatent.convert lbae models/best.cp runs/lbae-celeba-published --root ~/data"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    family: tyro.conf.Positional[Literal["lbae"]]
    """Which program the checkpoint is from."""
    checkpoint: tyro.conf.Positional[Path]
    """Its file."""
    run: tyro.conf.Positional[Path]
    """Run folder to make."""
    root: Path | None = None
    """Folder that holds the data sets; default: the environment variable FASTLATENT_DATA."""
    device: Device = "auto"
    """auto: the GPU if there is one."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and convert."""
    options = parse(Options, argv, "convert", DESCRIPTION)
    model, weights = convert_original(read_checkpoint(options.checkpoint))
    baseline = "-vae" if model.latent == "gaussian" else ""
    preset = PRESETS[f"lbae-{model.architecture}{baseline}"].config
    root = None if options.root is None else options.root.expanduser().absolute()
    run = Run(options.run, replace(preset, model=model, data=replace(preset.data, root=root)))
    run.create()
    run.write_weights(weights)
    say(f"{model.architecture} model with {model.dim} {model.latent} latents: {options.run}")

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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What torch.save wrote, tensors and plain values only; RunError when it is something else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage can end in any of them
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"{path} cannot be read as a checkpoint: {reason[0]}") from None


if __name__ == "__main__":
    sys.exit(main())
