"""Training steps of Ladder VAEs, and the importance-weighted bound against loops over draws."""

import pytest
import torch

from fastlatent import ops
from fastlatent.metrics.likelihood import importance_log_likelihood
from fastlatent.models import build
from fastlatent.models.lvae import likelihoods
from fastlatent.models.lvae.layers import LayerPass, Normal
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS

OP = "discretized_logistic_mixture_log_prob"


def images_like(shape, n):
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return images.round() if shape[0] == 1 else (images * 255).round() / 255


@pytest.mark.parametrize(
    "preset, name",
    [
        ("lvae-static-mnist-3", "fastlatent"),  # a Bernoulli likelihood: ELU is its only op
        ("lvae-static-mnist-3", "torch.compile"),
        ("lvae-static-mnist-3", "reference ops"),
        ("lvae-static-mnist-3", "reference ops, torch.compile"),
        ("lvae-cifar10-3", "fastlatent"),
        ("lvae-cifar10-3", "reference ops"),
        ("lvae-cifar10-3", "reference ops, torch.compile"),
    ],
)
def test_training_step(compare, device, monkeypatch, preset, name):
    config = PRESETS[preset].config
    model = build(config.model, seed=0).train()
    model.to(device, memory_format=model.memory_format(torch.device(device)))
    optimizer = torch.optim.Adamax(model.parameters(), lr=config.lr)
    images = images_like(config.model.image_shape, config.batch).to(device)
    run = torch.compile(model, dynamic=False) if "compile" in name else model
    if "reference" in name:
        # Not by ops.use: torch.compile sees into the reference itself, and fuses it.
        monkeypatch.setattr(likelihoods, OP, ops.discretized_logistic_mixture_log_prob.reference)
        monkeypatch.setattr(ops, "elu", ops.elu.reference)

    def step():
        optimizer.zero_grad()
        run(images, noise=Noise(0, 0))["loss"].mean().backward()
        optimizer.step()

    compare(OP, f"{preset} training step", f"batch {config.batch}", name, step, 4)


@pytest.mark.parametrize("name", ["fastlatent", "torch.compile"])
def test_gaussian_pieces(compare, device, name):
    """Draws and sampled KL of all layers, plain PyTorch: how much of a step an op could save."""
    config = PRESETS["lvae-static-mnist-3"].config
    make = torch.Generator().manual_seed(0)
    layers = [
        [
            torch.randn(config.batch, c * k, h, w, generator=make).to(device).requires_grad_(k == 2)
            for k in (2, 2, 1)
        ]
        for c, h, w in config.model.layer_shapes
    ]

    def pieces(parameters):
        total = 0
        for posterior, prior, noise in parameters:
            q, p = Normal.of(posterior), Normal.of(prior)
            z = q.mean + (q.log_variance / 2).exp() * noise
            total = total + LayerPass(z, noise, q, p).kl_sampled().sum() + z.sum()
        return total

    function = torch.compile(pieces) if name == "torch.compile" else pieces
    wanted = [tensor for layer in layers for tensor in layer[:2]]

    def run():
        torch.autograd.grad(function(layers), wanted)

    size = f"batch {config.batch}"
    compare(OP, "Gaussian pieces of lvae-static-mnist-3, all layers", size, name, run, 30)


IMAGES, SAMPLES = 4, 1000


@pytest.mark.parametrize(
    "name",
    ["fastlatent", "loop over samples, images together", "loop over images and samples"],
)
def test_importance(compare, device, name):
    model = build(PRESETS["lvae-digits"].config.model, seed=0).eval().to(device)
    images = images_like(model.image_shape, IMAGES).to(device)

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
