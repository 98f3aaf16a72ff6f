"""One training step of lbae-mnist at batch 512, and the share of it spent in our ops."""

import pytest
import torch

from fastlatent import ops
from fastlatent.models import LBAEConfig, build
from fastlatent.noise import Noise

BATCH = 512


@pytest.mark.parametrize("name", ["fastlatent", "reference ops", "binarize alone"])
def test_training_step(compare, device, name):
    config = LBAEConfig(architecture="mnist", dim=200)
    model = build(config, seed=0).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.rand(BATCH, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    logits = torch.randn(BATCH, 200, device=device, requires_grad=True)
    upstream = torch.randn(BATCH, 200, device=device)

    def step():
        with ops.use("torch" if name == "reference ops" else "auto"):
            optimizer.zero_grad()
            model(images, noise=Noise(0, 0))["loss"].mean().backward()
            optimizer.step()

    def binarize():
        torch.autograd.grad(ops.binarize(logits)[0], logits, upstream)

    run, rounds = (binarize, 50) if name == "binarize alone" else (step, 5)
    compare("binarize", "lbae-mnist training step", f"batch {BATCH}", name, run, rounds)
