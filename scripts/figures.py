"""Draws the README's picture from a finished run of bits, and the loss of lbae-mnist.

python scripts/figures.py runs/lbae-digits
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fastlatent.runs import read_metrics

DOCS = Path(__file__).resolve().parent.parent / "docs"
# Test loss of the authors' program, run on the same data: (optimizer steps, nats per image).
ORIGINAL = [(25, 500.0), (117, 174.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    run = parser.parse_args().run
    DOCS.mkdir(exist_ok=True)
    _pictures(run / "images").save(DOCS / f"{run.name}.png", optimize=True)
    if run.name == "lbae-mnist":
        _loss(run).savefig(DOCS / "lbae-mnist-loss.png")


def _pictures(images: Path) -> Image.Image:
    """Reconstructions above, samples and interpolations side by side below."""
    names = ("reconstructions", "samples-copula", "interpolation-copula")
    above, left, right = (Image.open(images / f"{name}.png") for name in names)
    width = max(above.width, left.width + right.width)
    canvas = Image.new("RGB", (width, above.height + max(left.height, right.height)), "white")
    canvas.paste(above, (0, 0))
    canvas.paste(left, (0, above.height))
    canvas.paste(right, (left.width, above.height))
    return canvas


def _loss(run: Path) -> Figure:
    metrics = read_metrics(run)
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for kind, style in (("train", {"alpha": 0.6, "lw": 1}), ("test", {"marker": ".", "lw": 1.5})):
        points = [(line["step"], line["loss"]) for line in metrics if line["kind"] == kind]
        axes.loglog(*zip(*points, strict=True), label=f"fastlatent, {kind}", **style)
    axes.loglog(*zip(*ORIGINAL, strict=True), "k*", label="original program, test")
    axes.set_xlabel("optimizer steps (batches of 512)")
    axes.set_ylabel("cross-entropy (nats per image)")
    axes.set_yticks([80, 100, 150, 200, 300, 500], ["80", "100", "150", "200", "300", "500"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
