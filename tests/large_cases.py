"""Cases of each op that take more rows, columns, pixels or tangents than a GPU block holds.

Together they give at least 4,096 elements, of sums that leave few, too.
"""

import os

import torch
from op_calls import main_dtype

from fastlatent import ops
from fastlatent.ops._register import Op


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def bins(*shape: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=make, dtype=torch.uint8)


def covariance(d: int, seed: int) -> torch.Tensor:
    x = torch.randn(2 * d, d, generator=torch.Generator().manual_seed(seed))
    return x.mT @ x / (2 * d)


def signs(*shape: int) -> torch.Tensor:
    return torch.where(normal(*shape) >= 0, 1.0, -1.0)


MIXTURE, UNCOUPLED = (True, 256, "centred", -7.0), (False, 256, "centred", -7.0)
LAYER = (3, 60, 11)
LARGE = {  # lists of arguments on the CPU, float32; an elementwise op needs none
    "binarize": lambda: [(normal(70, 2500), "tanh")],
    "binarize_backward": lambda: [(normal(70, 2500), normal(70, 2500), "tanh")],
    "pack_bits": lambda: [(signs(110, 2500),)],
    "unpack_bits": lambda: [(ops.pack_bits(signs(70, 2500)), 2500, torch.float32)],
    "binary_moments": lambda: [(ops.pack_bits(signs(9000, 70)), 70)],
    "bernoulli_copula_sample": lambda: [(normal(2001, 20), normal(4500, 20), True)],  # two products
    "binary_entropy": lambda: [(4 * normal(4200, 26), uniform(4200), 2)],
    "binary_entropy_backward": lambda: [(
        normal(700), normal(2), normal(2, 512), logits := normal(700, 18), None,
        ops.binary_entropy(logits, None, 2)[2], 2,
    )],
    "discretized_gaussian_log_prob": lambda: [
        (bins(70, 700), uniform(70, 700), normal(70, 700) - 3, 256, "centred", cdf)
        for cdf in ("exact", "tanh")
    ],
    "discretized_gaussian_backward": lambda: [
        (normal(70, 700), bins(70, 700), uniform(70, 700), normal(70, 700) - 3, 256, "unit", cdf)
        for cdf in ("exact", "tanh")
    ],
    "discretized_logistic_mixture_log_prob": lambda: [
        (bins(2, 3, 16, 16), normal(2, 100, 16, 16), *MIXTURE, "image"),
        (bins(2, 1, 64, 32), normal(2, 9, 64, 32), *UNCOUPLED, "none"),
    ],
    "discretized_logistic_mixture_backward": lambda: [(
        normal(2), bins(2, 3, 16, 16), normal(2, 100, 16, 16), *MIXTURE,
    )],
    "discretized_logistic_mixture_bins": lambda: [(
        normal(2, 100, 32, 24), uniform(2, 4, 32, 24), *MIXTURE,
    )],
    "discretized_logistic_mixture_values": lambda: [(
        normal(2, 100, 32, 24), uniform(2, 4, 32, 24), *MIXTURE,
    )],
    "discretized_logistic_mixture_mean": lambda: [(normal(2, 100, 32, 24), 3, *MIXTURE)],
    "discretized_logistic_mixture_mean_backward": lambda: [(
        normal(2, 3, 16, 16), normal(2, 100, 16, 16), *MIXTURE,
    )],
    "discretized_logistic_mixture_mode": lambda: [(normal(2, 20, 32, 24), 3, *MIXTURE)],
    "activation_jvp": lambda: [(
        normal(2, *LAYER), normal(2, 20, *LAYER), "elu", normal(3), normal(3), 0.01,
    )],
    "activation_jvp_backward": lambda: [(
        normal(2, *LAYER), normal(2, 20, *LAYER), normal(2, *LAYER) + 1,
        normal(2, 20, *LAYER) + 1, "elu", normal(3), normal(3), 0.01, True,
    )],
    "jacobian_gram": lambda: [(normal(3, 900, 70), uniform(3, 900))],
    "bspline": lambda: [(
        normal(2, 40, 33), torch.linspace(0, 1, 90), ops.uniform_knots(40), 3, 0,
    )],
    "bspline_backward": lambda: [(
        normal(2, 90, 60), torch.linspace(0, 1, 90), ops.uniform_knots(40), 3, 0,
    )],
    "polyline_length": lambda: [(normal(2, 40, 600),), (normal(4096, 3, 2),)],
    "polyline_length_backward": lambda: [(normal(2), normal(2, 40, 600))],
    "polyline_energy": lambda: [(normal(2, 40, 600),), (normal(4096, 3, 2),)],
    "polyline_energy_backward": lambda: [(normal(2), normal(2, 40, 600))],
    "sqrtm_psd": lambda: [(covariance(300, 0),)],
    "sylvester_psd": lambda: [(covariance(300, 0), covariance(300, 1))],
    "trace_sqrtm": lambda: [
        (covariance(300, 0), covariance(300, 1)),
        (covariance(2, 2) * (1 + uniform(4096, 1, 1)), covariance(2, 3).expand(4096, 2, 2)),
    ],
    "trace_sqrtm_backward": lambda: [(covariance(300, 0), covariance(300, 1))],
}  # fmt: skip


def large_cases(op: Op) -> list[tuple]:
    """Those of LARGE; of another elementwise op, elements of its largest case in random order."""
    if op.name in LARGE:
        return LARGE[op.name]()
    args = max(op.cases("cpu", main_dtype(op)), key=lambda args: args[0].numel())
    generator = torch.Generator().manual_seed(0)
    rows = 7 if os.environ.get("TRITON_INTERPRET") == "1" else 70
    order = torch.randint(args[0].numel(), (rows, 1000), generator=generator)
    return [tuple(a.flatten()[order] if isinstance(a, torch.Tensor) else a for a in args)]
