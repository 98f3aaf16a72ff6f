"""One GLO step on codes of 10^4 to 10^6 images, 128 numbers each, against embeddings of PyTorch."""

import pytest
import torch
from torch import nn

from fastlatent.models.glo import LatentTable, project

BATCH, DIM = 128, 128
COUNTS = (10_000, 60_000, 100_000, 1_000_000)


def own(codes, index, gradient):
    table = LatentTable(codes, "ball", count=len(codes))

    def step():
        rows = table.rows(index).requires_grad_()
        (rows * gradient).sum().backward()
        table.move(index, rows.detach(), rows.grad, 1e-3)

    return step


def embedded(codes, index, gradient, sparse, optimizer):
    """A layer whose weights the optimizer moves; rows of the batch are brought into the ball."""
    layer = nn.Embedding.from_pretrained(codes, freeze=False, sparse=sparse)
    mover = optimizer(layer.parameters(), lr=1e-3)

    def step():
        mover.zero_grad()
        (layer(index) * gradient).sum().backward()
        mover.step()
        with torch.no_grad():
            layer.weight[index] = project(layer.weight[index], "ball")

    return step


RIVALS = {
    "fastlatent": None,
    "nn.Embedding, sparse SGD": (True, torch.optim.SGD),
    "nn.Embedding, SparseAdam": (True, torch.optim.SparseAdam),
    "nn.Embedding, dense Adam": (False, torch.optim.Adam),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", RIVALS)
def test_step_of_codes(compare, device, name, count):
    make = torch.Generator().manual_seed(0)
    codes = (torch.randn(count, DIM, generator=make) / DIM**0.5).to(device)
    index = torch.randperm(count, generator=make)[:BATCH].to(device)
    gradient = torch.randn(BATCH, DIM, generator=make).to(device)
    settings = RIVALS[name]
    step = (
        own(codes, index, gradient)
        if settings is None
        else embedded(codes, index, gradient, *settings)
    )
    dense = settings is not None and not settings[0]
    rounds, iterations = 5 if dense and count > 100_000 else 30, 1 if dense else 10
    what, size = f"glo step of {BATCH} codes", f"{count:,} codes"
    compare(None, what, size, name, step, rounds, warmup=2, iterations=iterations, memory=True)


@pytest.mark.parametrize("name", ["fastlatent", "moves nothing"])
def test_training_step(compare, device, name):
    """What moving codes is of a whole step of glo-mnist."""
    from fastlatent.models import GLOConfig, build

    model = build(GLOConfig(), seed=0).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    make = torch.Generator().manual_seed(0)
    table = LatentTable(torch.randn(60_000, DIM, generator=make).to(device), "ball", count=60_000)
    images = torch.rand(BATCH, 1, 32, 32, generator=make).to(device)
    index = torch.randperm(60_000, generator=make)[:BATCH].to(device)

    def step():
        optimizer.zero_grad()
        rows = table.rows(index).requires_grad_()
        model(images, latents=rows)["loss"].mean().backward()
        optimizer.step()
        if name == "fastlatent":
            table.move(index, rows.detach(), rows.grad, 10.0)

    compare(None, "glo-mnist training step", f"batch {BATCH}", name, step, 5, warmup=1)
