"""Pull-back metrics: closed forms, published decoders, and how decoders are treated."""

import pytest
import torch
from trained_decoders import LATENTS, Mean, bigan, vae

from fastlatent.geometry import as_metric, jacobian, log_volume, pullback_metric

# z: tr M, smallest and largest eigenvalue, M_00, log det
BIGAN = {
    "0": (1699.987061, 0.027967, 845.006821, 26.106592, 37.549904),
    "z_lin": (1862.745574, 0.050697, 597.711899, 84.706412, 43.520770),
    "ones": (1779.959141, 0.025752, 829.492747, 63.169200, 24.685676),
    "-ones": (2005.096178, 0.107293, 885.995991, 30.409291, 45.704055),
}
VAE = {
    "0": (433.857206, 0.900603, 109.288057, 2.222093, 39.941852),
    "z_lin": (568.698968, 0.405274, 231.342353, 2.550238, 37.973973),
    "ones": (682.250706, 1.055189, 183.477503, 3.432948, 46.320816),
    "-ones": (391.260448, 0.201561, 151.621968, 2.566932, 26.847968),
}
VAE_MEAN_TRACE = {"0": 430.780494, "z_lin": 556.161323, "ones": 662.863021, "-ones": 361.654042}


def by_autograd(decoder, z):
    """J of mean and standard deviation, one reverse pass for each latent: (n, D, d)."""

    def f(x):
        output = decoder(x[None])
        mean, variance = output if isinstance(output, tuple) else (output, None)
        parts = [mean] if variance is None else [mean, variance.sqrt()]
        return torch.cat([part.flatten() for part in parts])

    return torch.stack([torch.autograd.functional.jacobian(f, x, vectorize=True) for x in z])


@pytest.mark.parametrize(("build", "table"), [(bigan, BIGAN), (vae, VAE)], ids=["bigan", "vae"])
def test_trained_decoders(data_root, build, table):
    decoder = build(data_root)
    z = torch.stack([LATENTS[name] for name in table])
    m = pullback_metric(decoder, z)
    j = by_autograd(decoder, z)
    torch.testing.assert_close(m, j.mT @ j, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(jacobian(decoder, z), j, rtol=1e-10, atol=1e-10)
    eigenvalues = torch.linalg.eigvalsh(m)
    expected = torch.tensor(list(table.values()), dtype=torch.float64).T
    trace, smallest, largest, corner, log_det = expected
    close = {"rtol": 1e-5, "atol": 0.0}
    torch.testing.assert_close(m.diagonal(dim1=1, dim2=2).sum(1), trace, **close)
    torch.testing.assert_close(eigenvalues[:, -1], largest, **close)
    torch.testing.assert_close(m[:, 0, 0], corner, **close)
    torch.testing.assert_close(eigenvalues[:, 0], smallest, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(2 * log_volume(m), log_det, rtol=1e-4, atol=0.0)


def test_trained_mean_alone(data_root):
    z = torch.stack([LATENTS[name] for name in VAE_MEAN_TRACE])
    m = as_metric(Mean(vae(data_root))).matrix(z)
    expected = torch.tensor(list(VAE_MEAN_TRACE.values()), dtype=torch.float64)
    torch.testing.assert_close(m.diagonal(dim1=1, dim2=2).sum(1), expected, rtol=1e-5, atol=0.0)
