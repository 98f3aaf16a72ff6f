"""Training steps of Ladder VAEs, and the importance-weighted bound against loops over draws."""

import pytest
import torch

from fastlatent import ops
from fastlatent.metrics.likelihood import importance_log_likelihood
from fastlatent.models import build
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS

OP = "discretized_logistic_mixture_log_prob"


def images_like(shape, n):
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return images.round() if shape[0] == 1 else (images * 255).round() / 255


@pytest.mark.parametrize("preset", ["lvae-static-mnist-3", "lvae-cifar10-3"])
@pytest.mark.parametrize(
    "name",
    ["fastlatent", "fastlatent, torch.compile", "reference ops", "reference ops, torch.compile"],
)
def test_training_step(compare, preset, name):
    config = PRESETS[preset].config
    model = build(config.model, seed=0).train()
    optimizer = torch.optim.Adamax(model.parameters(), lr=config.lr, foreach=True)
    images = images_like(config.model.image_shape, config.batch)
    run = torch.compile(model) if "compile" in name else model

    def step():
        with ops.use("torch" if "reference" in name else "auto"):
            optimizer.zero_grad()
            run(images, noise=Noise(0, 0))["loss"].mean().backward()
            optimizer.step()

    compare(OP, f"{preset} training step", f"batch {config.batch}", name, step, 4)


IMAGES, SAMPLES = 4, 1000


@pytest.mark.parametrize(
    "name",
    ["fastlatent", "loop over samples, images together", "loop over images and samples"],
)
def test_importance(compare, name):
    model = build(PRESETS["lvae-digits"].config.model, seed=0).eval()
    images = images_like(model.image_shape, IMAGES)

    def loop(x):
        with torch.no_grad():
            features = model.features(x)
            draws = [model.log_weights(features, x, Noise(0, i)) for i in range(SAMPLES)]
            return torch.stack(draws).logsumexp(0)

    run, rounds = {
        "fastlatent": (lambda: importance_log_likelihood(model, images, SAMPLES), 5),
        "loop over samples, images together": (lambda: loop(images), 3),
        "loop over images and samples": (lambda: [loop(x[None]) for x in images], 2),
    }[name]
    size = f"{IMAGES} images, {SAMPLES:,} samples"
    compare(OP, "importance_log_likelihood of lvae-digits", size, name, run, rounds)
