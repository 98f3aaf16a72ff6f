"""Remove what a trained run needs only for more training: `python -m fastlatent.clean RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlatent.commands.console import command, parse
from fastlatent.commands.trained import RunFolder
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say
from fastlatent.runs import Run
from fastlatent.runs.lock import locked

DESCRIPTION = """Remove what a trained run needs only for more training.

Checkpoints and the frames of the film go. Weights, learned latents, codes, fitted priors, numbers,
pictures and given images stay, so every command but train --resume and film works as before. Files
and links that others have put into the folder stay, too.

Examples:
  python -m fastlatent.clean runs/lbae-digits
  python -m fastlatent.clean runs/lbae-digits --dry-run"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: RunFolder
    """Run folder, as training left it."""
    unfinished: bool = False
    """Also where training has not come to its end, and could go on."""
    dry_run: bool = False
    """Only say what would go."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and clean the run."""
    options = parse(Options, argv, "clean", DESCRIPTION)
    run = Run.open(options.run)
    run.weights_file("last")
    with locked(run.path):
        latest, steps, frames = run.latest(), run.steps(), run.frames()
        if not steps and not frames:
            say(f"{run.path} holds no checkpoints and no frames of a film")
            return
        if latest is not None and not run.is_finished(latest) and not options.unfinished:
            raise RunError(
                f"{run.path} has not been trained to its end, so it needs the checkpoint of step "
                f"{latest:,} to go on; --unfinished removes that all the same"
            )
        what = f"{len(steps):,} checkpoints and {len(frames):,} frames of the film"
        before = taken(run.path)
        if options.dry_run:
            say(f"{run.path} takes {size(before)}; without --dry-run these go: {what}")
            return
        run.drop_training()
        say(f"removed {what}: {run.path} takes {size(taken(run.path))}, {size(before)} before")


def taken(folder: Path) -> int:  # bytes
    """What the files of a folder take on the disk; one that has several names counts once."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            state = path.stat()
            found[state.st_dev, state.st_ino] = state.st_size
    return sum(found.values())


def size(count: int) -> str:
    """A number of bytes in MB."""
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
