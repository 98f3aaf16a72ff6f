"""Runs that take a moment to train, by the commands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastlatent import train
from fastlatent.data import load
from fastlatent.models import build
from fastlatent.models.capabilities import LearnsLatents
from fastlatent.presets import PRESETS
from fastlatent.runs import Run
from fastlatent.runs.folder import write_latents

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


# A model of each family whose every pass takes milliseconds.
TINY_MODELS: dict[str, dict[str, Any]] = {
    "lbae-digits": {"width": 0.05, "dim": 12},
    "vae-digits": {"dim": 2},
    "lvae-digits": {"zdims": (2, 3), "downsample": (1, 1), "filters": 4},
    "glo-digits": {"width": 0.03, "dim": 6, "fit_steps": 2},
    "bigan-digits": {"dim": 3},
    "ladder-digits": {},
}


def untrained_run(folder: Path, preset: str) -> Path:
    """A run folder as convert leaves one: with first weights, for few digits."""
    chosen = PRESETS[preset].config
    model = replace(chosen.model, **TINY_MODELS[preset])
    data = replace(chosen.data, per_class=6)
    config = replace(chosen, model=model, data=data, test_batch=16)
    run = Run(folder, config)
    run.create()
    weights = build(model, 1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for weight in weights.parameters():  # the first ones make all images the same grey
            weight += 0.2 * torch.randn_like(weight)
    codes = None
    if isinstance(weights, LearnsLatents):
        train = load(data).train
        codes = torch.randn(len(train), weights.latent_dim)
        weights.describe_latents(codes.mean(0), codes.T.cov(), codes)
        weights.images_mark.copy_(train.mark)
    run.write_weights(weights.state_dict())
    if codes is not None:
        latents = folder / "latents.safetensors"
        write_latents(latents, {"codes": codes}, run.weights_file("last"))
    return folder
