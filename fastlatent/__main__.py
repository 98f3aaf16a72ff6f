"""`fastlatent WORD ...` is `python -m fastlatent.WORD ...`."""

import importlib
import sys
from collections.abc import Sequence

from fastlatent import __version__
from fastlatent.jobs.loading import say_loading
from fastlatent.jobs.spelling import did_you_mean

COMMANDS = {
    "train": "train a model; without a preset: handwritten digits, offline, in two minutes",
    "sample": "draw new images from a trained model",
    "reconstruct": "show images next to their reconstructions, and measure the loss",
    "interpolate": "interpolate between images through the latent space",
    "walks": "compare all interpolation methods of runs, in a table",
    "geodesics": "shorten straight lines in latent space, and measure by how much",
    "film": "make a film of the reconstructions during training",
    "densities": "draw the density of two latents next to their prior",
    "layers": "show what each layer of a Ladder VAE holds",
    "fit_prior": "fit a prior to the latents of a trained model (also fit-prior)",
    "evaluate": "measure a trained model, or compare two sets of images",
    "compare": "compare runs, in a table and a page for the browser",
    "explore": "explore a trained model in the browser",
    "clean": "remove what a trained run needs only for more training",
    "convert": "convert published weights into a run folder",
    "doctor": "show which kernels serve this machine, and test them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; its exit code, 2 for an unknown word."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = arguments.pop(0) if arguments else "--help"
    word = given if given.startswith("-") else given.replace("-", "_")
    if word in ("-h", "--help"):
        print("usage: fastlatent COMMAND [-h] [OPTIONS]\n")
        for name, meaning in COMMANDS.items():
            print(f"  {name:12} {meaning}")
        print("\nfastlatent COMMAND --help explains a command and its options.")
        return 0
    if word == "--version":
        print(f"fastlatent {__version__}")
        return 0
    if word not in COMMANDS:
        known = ", ".join(COMMANDS)
        guess = did_you_mean(word, COMMANDS) or f"; choose from {known}"
        print(f"error: there is no command {given!r}{guess}", file=sys.stderr)
        return 2
    if argv is None:
        say_loading()
    try:
        run = importlib.import_module(f"fastlatent.{word}").main
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if argv is None:
        sys.argv = [f"{sys.argv[0]} {given}", *arguments]
        return run()
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
