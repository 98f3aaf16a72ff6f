"""Discretized logistics at the edges of their domain, where all kernels give the same."""

import math

import pytest
import torch
from torch import Tensor

from fastlatent.ops import OPS, discretized_logistic_log_prob

EXTREME = {
    "logit": [0.0, -1e3, -math.inf, math.inf],
    "mean": [-0.9, 1.0, -200.0, 6e4, 1e10, -1e20, 1.2e24, 1.3e24, 2e36, 3e38, math.inf, -math.inf],
    "log_scale": [-math.inf, -1e4, -70.0, -7.0, 5.0, 60.0, 88.0, 89.0, 104.0, 710.0, 6e4, math.inf],
    "coefficient": [0.0, -2.0, 50.0, -6e4, math.inf, -math.inf],
}


def extreme_params(k: int, channels: int, coupled: bool, dtype: torch.dtype) -> Tensor:
    """(1, p, 1, 500), of which one in six lies at the edge of the domain or beyond."""
    make = torch.Generator().manual_seed(channels + k)
    each = ["mean", "log_scale", *["coefficient"] * coupled] * channels
    planes = []
    for kind in ["logit", *each]:
        calm = torch.randn(1, k, 1, 500, generator=make, dtype=torch.float64)
        edges = torch.tensor(EXTREME[kind], dtype=torch.float64)
        edge = edges[torch.randint(len(edges), calm.shape, generator=make)]
        rare = torch.rand(calm.shape, generator=make) < 1 / 6
        planes.append(torch.where(rare, edge, calm))
    return torch.cat(planes, 1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("channels", "k", "n", "grid", "floor"),
    [(3, 2, 256, "centred", -7.0), (3, 1, 256, "symmetric", None), (2, 2, 65536, "unit", None)],
)
def test_edges_of_the_domain(dtype, channels, k, n, grid, floor, isa):
    """Finite, infinite and NaN in the same places for each kernel, and equal where finite."""
    coupled = channels == 3
    params = extreme_params(k, channels, coupled, dtype)
    make = torch.Generator().manual_seed(0)
    bins = torch.randint(n, (1, channels, 1, 500), generator=make, dtype=torch.int32)
    bins[..., :100], bins[..., 100:200] = 0, n - 1
    wide = torch.promote_types(dtype, torch.float32)
    upstream = torch.ones(1, 1, 500, dtype=wide)
    uniforms = torch.rand((1, 1 + channels, 1, 500), generator=make, dtype=torch.float64).to(wide)
    rest = (coupled, n, grid, floor)
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if dtype != torch.float64 else {}
    if dtype in (torch.float16, torch.bfloat16):
        tolerance = {"rtol": 0.03, "atol": 0.03}
    for name, args in {
        "mixture_log_prob": (bins, params, *rest, "none"),
        "mixture_backward": (upstream, bins, params, *rest),
        "mixture_mean": (params, channels, *rest),
        "mixture_mean_backward": (upstream[:, None].expand(-1, channels, -1, -1), params, *rest),
        "mixture_values": (params, uniforms, *rest),
    }.items():
        op = OPS[f"discretized_logistic_{name}"]
        torch.testing.assert_close(op(*args), op.reference(*args), equal_nan=True, **tolerance)
    for name, args in {
        "bins": (params, uniforms, *rest),
        "mode": (params, channels, *rest),
    }.items():
        op = OPS[f"discretized_logistic_mixture_{name}"]
        got, want = op(*args), op.reference(*args)
        assert (got != want).double().mean() < 0.002  # rounding, at the edge of a bin
        without = ~(params.double().abs() < math.inf).all(1)
        assert not (got != want).any(1)[without].double().mean() > 0.05
    single = OPS["discretized_logistic_log_prob"]
    args = (bins[:, 0], params[:, k], params[:, 2 * k], n, grid, floor)
    got = single(*args)
    torch.testing.assert_close(got, single.reference(*args), equal_nan=True, **tolerance)
    assert torch.equal(
        got.isnan(), params[:, k].double().abs() > (2.0**900 if wide == torch.float64 else 2.0**80)
    )


def test_limits_of_the_domain():
    """Values by hand: wide scales in float32, the limit of infinite ones, NaN beyond."""
    log_prob_of = discretized_logistic_log_prob

    def log_prob(k: int, mean: float, log_scale: float, dtype: torch.dtype) -> float:
        args = (
            torch.tensor([k], dtype=torch.uint8),
            *torch.tensor([[mean], [log_scale]], dtype=dtype),
        )
        both = [f(*args, grid="centred").item() for f in (log_prob_of, log_prob_of.reference)]
        assert both[0] == pytest.approx(both[1], rel=1e-5, nan_ok=True)
        return both[0]

    for dtype in (torch.float16, torch.float32, torch.float64):
        for log_scale in (100.0, 6e4):  # of a bin of width 2 / 255, by the density 1 / (4 s)
            want = math.log(2 / 255 / 4) - torch.tensor(log_scale, dtype=dtype).item()
            assert log_prob(7, 0.3, log_scale, dtype) == pytest.approx(want, rel=1e-5)
        assert log_prob(7, 0.3, math.inf, dtype) == -math.inf
        assert log_prob(0, 0.3, math.inf, dtype) == pytest.approx(-math.log(2))
        assert log_prob(255, 0.3, math.inf, dtype) == pytest.approx(-math.log(2))
        assert log_prob(255, 0.3, -math.inf, dtype) == log_prob(255, 0.3, -7.0, dtype)
        for mean in (math.inf, -math.inf):
            assert math.isnan(log_prob(255, mean, 0.0, dtype))
    assert math.isnan(log_prob(0, 2e36, 0.0, torch.float32))
    assert log_prob(0, 2e36, 0.0, torch.float64) == pytest.approx(-2e36)
    assert log_prob(0, 1e20, 0.0, torch.float32) == pytest.approx(-1e20)
