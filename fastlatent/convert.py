"""Turn published weights into a run folder: `python -m fastlatent.convert lbae CHECKPOINT RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastlatent.commands.console import command, parse
from fastlatent.commands.published import convert_glspace, convert_lbae, convert_lvae
from fastlatent.commands.trained import RunFolder, RunOptions, Trained
from fastlatent.files.reading import load_weights
from fastlatent.inference.devices import Device
from fastlatent.inference.passes import measure_loss
from fastlatent.jobs.progress import say
from fastlatent.models import build
from fastlatent.runs import Run, locked

DESCRIPTION = """Convert a checkpoint of a model's original program into a run folder.
- lbae: weights-*.cp, last.cp or best.cp of github.com/ok1zjf/LBAE, bits or VAE
- lvae: checkpoints/model_*.pt of github.com/addtt/ladder-vae-pytorch. What its tensors do not say,
  such as the nonlinearity, comes from config.pkl beside it, else from --preset.
- glspace: a VAE or BiGAN of github.com/mmichelis/GenerativeLatentSpace, as .pth or .safetensors.
  Its files are PREFIX_E and PREFIX_D, for a BiGAN also PREFIX_G. Name the prefix, one of the files,
  or a folder that holds one model.

Where the data set can be read, the test loss is measured, and training codes that are bits are
counted.

Examples:
  python -m fastlatent.convert lbae models/best.cp runs/lbae-celeba-published --root ~/data
  python -m fastlatent.convert lvae model_600000.pt runs/svhn --preset lvae-svhn-15
  python -m fastlatent.convert glspace TrainedModels/trainedBiGAN runs/bigan-published"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    family: Annotated[
        tyro.conf.Positional[Literal["lbae", "lvae", "glspace"]], tyro.conf.arg(metavar="PROGRAM")
    ]
    """Program that wrote the checkpoint: lbae, lvae or glspace."""
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """File of the checkpoint; for glspace its prefix, one of its files, or its folder."""
    run: RunFolder
    """Run folder to make."""
    preset: str | None = None
    """Preset for the data and settings that the checkpoint does not hold (lvae, glspace); default:
    the one that fits it, for glspace one of MNIST."""
    root: Path | None = None
    """Folder that holds the data sets; default: the environment variable FASTLATENT_DATA."""
    device: Device = "auto"
    """Where to compute; auto: on the GPU if there is one."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and convert."""
    options = parse(Options, argv, "convert", DESCRIPTION)
    convert = {"lbae": convert_lbae, "lvae": convert_lvae, "glspace": convert_glspace}
    found = convert[options.family](options.checkpoint, options.preset)
    config, weights, description = found
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


if __name__ == "__main__":
    sys.exit(main())
