"""Runs that take a moment to train, by the commands."""

from pathlib import Path

import numpy as np

from fastlatent import train

# Options of the preset lbae-digits
TINY = ("--model.width", "0.05", "--model.dim", "12", "--batch", "32", "--device", "cpu")

# A model and a data set that take a step in milliseconds.
TINY_VAE = (
    *("vae-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8", "--model.dim", "2"),
    *("--batch", "32", "--data.per-class", "16", "--device", "cpu", "--log-every", "1 step"),
    *("--eval-every", "3 steps", "--checkpoint-every", "2 steps", "--pictures-every", "never"),
)

LADDER = (
    *("lvae-digits", "--device", "cpu", "--batch", "8", "--steps", "3"),
    *("--model.zdims", "2", "3", "--model.downsample", "1", "1", "--model.filters", "4"),
)


def train_ladder(folder: Path, channels: int, *options: str) -> Path:
    """A run on images of 8x8 pixels of noise."""
    rng = np.random.default_rng(channels)
    shape = (8, 8, channels)
    arrays = {"train_x": (16, *shape), "test_x": (6, *shape)}
    path = folder / "noise.npz"
    np.savez(path, **{name: rng.integers(0, 256, n, np.uint8) for name, n in arrays.items()})
    data = ("--data.name", f"npz:{path}", "--data.size", "8")
    model = ("--model.image-shape", str(channels), "8", "8", *options)
    assert train.main([*LADDER, *data, *model, "--out", str(folder / "run")]) == 0
    return folder / "run"


def small_run(out: Path, *options: str) -> Path:
    """A LaDDer on few digits, whose prior is fitted after each epoch but the first."""
    common = ["ladder-digits", "--device", "cpu", "--out", str(out), "--data.per-class", "20"]
    small = ["--model.prior.width", "8", "--model.prior.layers", "1", "--batch", "100"]
    plan = ["--model.schedule.warmup-epochs", "1", "--model.prior.components", "3"]
    rest = ["--epochs", "2", "--pictures-every", "never"]
    assert train.main([*common, *small, *plan, *rest, *options]) == 0
    return out
