"""Parts of the VAE inside a hierarchical prior."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent.nn import glorot_

Activation = Literal["leaky_relu", "relu", "tanh"]
ScaleKind = Literal["profile", "learned", "fixed"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
_FAR = 6.0  # logit of a learned scale: so near to a bound, and back in a moderate number of steps
_MOMENTUM = 0.99  # of the running scale, a step


def perceptron(
    inputs: int, width: int, depth: int, activation: Activation, outputs: int | None = None
) -> nn.Sequential:
    """`depth` dense layers, each activated, and a linear one to `outputs` where that is given.

    Weights start Glorot-uniform, biases at 0.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"perceptron: activation must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}"
        )
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), _ACTIVATIONS[activation]()]
        inputs = width
    if outputs is not None:
        layers.append(nn.Linear(inputs, outputs))
    network = nn.Sequential(*layers)
    glorot_(network)
    return network


class Scale(nn.Module):
    """A positive scale inside bounds: profiled out, learned or fixed.

    It is one number for all dimensions, or one for each after `widen`, which leaves a fixed one.

    "learned" moves the logit of the place between the bounds (of log scales), so that the gradient
    is never cut off; an infinite upper bound is taken as 100 times the start.
    """

    running: Tensor  # () or (d,), of "profile" and "fixed", as is the next
    seen: Tensor  # () bool, whether training has moved it

    def __init__(self, kind: ScaleKind, start: float, bounds: tuple[float, float]):
        super().__init__()
        if kind not in ("profile", "learned", "fixed"):
            raise ValueError(f"Scale: kind must be profile, learned or fixed; got {kind!r}")
        low, high = bounds
        if not (0 < low < high and 0 < start < math.inf):
            raise ValueError(
                f"Scale: the start must be positive and the bounds in order; got {start}, {bounds}"
            )
        self.kind = kind
        self.held = False  # at the start, though it is profiled
        self.start = start
        self.bounds = (low, high if high < math.inf else 100 * max(start, low))
        if kind == "learned":
            low, high = map(math.log, self.bounds)
            # At a bound itself the logit is infinite.
            place = min(max((math.log(start) - low) / (high - low), 0.01), 0.99)
            self.logit = nn.Parameter(torch.tensor(math.log(place / (1 - place))))
        else:
            self.register_buffer("running", torch.tensor(float(start)))
            self.register_buffer("seen", torch.tensor(False))

    @property
    def value(self) -> Tensor:
        """The scale, () or (d,), for evaluation."""
        if self.kind != "learned":
            return self.running
        low, high = map(math.log, self.bounds)
        return (low + (high - low) * self.logit.sigmoid()).exp()

    def widen(self, dim: int) -> None:
        """A scale for each dimension from now on, all as the one there is."""
        if self.kind == "learned" and not self.logit.dim():
            self.logit = nn.Parameter(self.logit.detach().repeat(dim))
        elif self.kind == "profile" and not self.running.dim():
            self.running = self.running.repeat(dim)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        name = "logit" if self.kind == "learned" else "running"
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.dim() == 1:
            self.widen(len(stored))
        elif stored is not None and getattr(self, name).dim():
            state_dict[prefix + name] = stored.expand(getattr(self, name).shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def observe(self, error: Tensor, used: Tensor) -> Tensor:
        """The scale for a training batch with these errors (..., d), of dimensions `used` (d,).

        "profile": the root of the mean square inside the bounds, of all or of each dimension. It is
        given without gradient: at the best scale the likelihood does not change with it to first
        order.
        """
        if self.kind == "learned":
            with torch.no_grad():
                self.logit.clamp_(-_FAR, _FAR)
        if self.kind != "profile":
            return self.value
        if self.held:
            return torch.full_like(self.running, self.start).clamp(*self.bounds)
        with torch.no_grad():
            squares = error.square().flatten(0, -2).mean(0)
            if not self.running.dim():
                squares = (squares * used).sum() / used.sum().clamp_min(1)
            best = squares.sqrt().clamp(*self.bounds)
            start = torch.where(self.seen, self.running, best.to(self.running))
            self.running.copy_(torch.lerp(best.to(start), start, _MOMENTUM))
            self.seen.fill_(True)
        return best
