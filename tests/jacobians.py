"""Jacobians of decoders by PyTorch alone."""

import torch


def by_autograd(decoder, z):
    """J of mean and standard deviation by reverse mode, one latent after another: (n, D, d)."""

    def f(x):
        output = decoder(x[None])
        mean, variance = output if isinstance(output, tuple) else (output, None)
        parts = [mean] if variance is None else [mean, variance.sqrt()]
        return torch.cat([part.flatten() for part in parts])

    return torch.stack([torch.autograd.functional.jacobian(f, x, vectorize=True) for x in z])
