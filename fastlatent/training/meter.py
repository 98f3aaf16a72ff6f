"""The running means of what training logs."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Means over the steps since the last reading, and the first step whose loss was not finite.

    Kept on the device, so that adding does not wait for it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._parts = 0
        self._bad_step = torch.full((), math.inf, dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor], step: int) -> None:
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._parts += 1
        failed = torch.where(values["loss"].detach().isfinite(), math.inf, float(step))
        self._bad_step = torch.minimum(self._bad_step, failed.double())

    def bad_step(self) -> int | None:
        """The first step with a loss that is not finite, on any rank."""
        step = self._bad_step.clone()
        if dist.is_initialized():
            dist.all_reduce(step, dist.ReduceOp.MIN)
        return None if math.isinf(step) else int(step)

    def read(self) -> dict[str, float]:
        """The means over all ranks; begins anew."""
        if not self._parts:
            return {}
        means = torch.stack([*self._sums.values()]) / self._parts
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        result = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._parts = {}, 0
        return result

    def state(self) -> dict[str, Any]:
        """This rank's sums, for a resumed run to add on to."""
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"parts": self._parts, "sums": sums}

    def restore(self, state: dict[str, Any]) -> None:
        self._parts = state["parts"]
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=self._device)
            for name, total in state["sums"].items()
        }
