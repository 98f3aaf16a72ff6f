"""Explore a trained model in the browser: `python -m fastlatent.explore RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fastlatent.commands.console import command, parse
from fastlatent.commands.exploration.subject import Subject
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say

DESCRIPTION = """Explore a trained model in the browser.

The command serves a page to this machine alone and prints its address, which holds a secret. Each
tab of the browser explores for itself. Ctrl-C ends the command.

Views:
- Samples: draws by any method that the run offers, with a temperature and a seed
- Latents: sliders of principal directions or of single latents; switches for bits
- Map: encoded images in a plane of two directions, paths between two points to drag, densities
- Layers: what each layer of a Ladder VAE holds
- Reconstruct: an image file of your own, and what the model makes of it

It needs Bokeh: pip install 'fastlatent[explore]'

Examples:
  python -m fastlatent.explore lbae-digits
  python -m fastlatent.explore runs/vae-digits --port 5006"""

LEAST = 3  # images that span a plane


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    images: int = 600
    """Images to encode for the map and the directions, at most."""
    port: int = 0
    """Port to serve at; 0: any that is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < LEAST:
            raise ValueError(
                f"--images must be at least {LEAST}, which a plane takes; got {self.images}"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must lie in 0 to 65535; got {self.port}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and serve until Ctrl-C."""
    options = parse(Options, argv, "explore", DESCRIPTION)
    trained = Trained(options)
    try:
        from fastlatent.commands.exploration.server import Server
    except ModuleNotFoundError as error:
        if error.name != "bokeh":
            raise
        raise RunError("explore needs Bokeh: pip install 'fastlatent[explore]'") from None
    subject = Subject(trained, options.images, options.words)
    for note in subject.notes:
        say(note)
    server = Server(subject, options.port)
    say(f"{options.run}: {server.address}")
    say("Ctrl-C ends it")
    server.run()
    subject.close()
    say("ended")


if __name__ == "__main__":
    sys.exit(main())
