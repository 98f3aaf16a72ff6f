"""Checkpoints as the authors' LBAE program writes them, laid out by hand from its source."""

import math

import torch

IMAGE_SHAPE = {"mnist": (1, 32, 32), "cifar10": (3, 32, 32), "celeba": (3, 64, 64)}


def original_checkpoint(architecture: str, latent: str, d: int) -> dict:
    """A random checkpoint with the names and shapes of the published ones."""
    make = torch.Generator().manual_seed(d)
    colours, size, _ = IMAGE_SHAPE[architecture]
    deep = size == 64

    def norm(state: dict, name: str, c: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(c, generator=make)
        state[f"{name}.bias"] = 0.2 * torch.randn(c, generator=make)
        state[f"{name}.running_mean"] = 0.2 * torch.randn(c, generator=make)
        state[f"{name}.running_var"] = 0.5 + torch.rand(c, generator=make)
        state[f"{name}.num_batches_tracked"] = torch.tensor(117)

    def conv(state: dict, name: str, *shape: int) -> None:
        fan_in = math.prod(shape) / min(shape[:2])
        state[f"{name}.weight"] = torch.randn(shape, generator=make) * 1.5 / math.sqrt(fan_in)

    def linear(state: dict, name: str, out: int, inp: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, inp, generator=make) / math.sqrt(inp)
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=make)

    def residual(state: dict, k: int, c: int) -> None:
        for unit in (1, 2):
            conv(state, f"b{k}{unit}", c, c, 3, 3)
            norm(state, f"bn{k}{unit}", c)

    enc: dict = {}
    conv(enc, "ec0", 64, colours, 3, 3)
    norm(enc, "bn0", 64)
    previous = 64
    for k, c in enumerate((64, 128, 256) if deep else (64, 128), start=1):
        conv(enc, f"ec{k}", c, previous, 4, 4)
        norm(enc, f"bn{k}", c)
        residual(enc, k, c)
        previous = c
    conv(enc, "ec4", 256, previous, 4, 4)
    for name in ("l0l",) if latent == "bits" else ("l1", "l2"):
        linear(enc, name, d, 4096)

    gen: dict = {}
    previous = {"mnist": 1, "cifar10": 128, "celeba": 256}[architecture]
    linear(gen, "l1l", 16 * previous, d)
    first, channels = (1, (256, 128, 64)) if deep else (2, (128, 64))
    for k, c in enumerate(channels, start=first):
        conv(gen, f"dc{k}", previous, c, 4, 4)
        norm(gen, f"bn{k}", c)
        residual(gen, k, c)
        previous = c
    conv(gen, "dc4", 64, 64, 4, 4)
    norm(gen, "bn4", 64)
    conv(gen, "dc5", 64, colours, 3, 3)
    return {"epoch": 7, "iter": 419_328, "loss_eval": 80.5, "gen": gen, "enc": enc}
