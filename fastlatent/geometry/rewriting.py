"""Making the steps of a decoder fewer and faster without changing what they compute.

Constants are float64 here; they are rounded to the precision of the latents once, at the end.
"""

from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fastlatent.geometry import steps
from fastlatent.geometry.steps import Affine, Shape, Step

_Weighted = steps.Dense | steps.Convolution | steps.ChannelMix

# One product with the collapsed weights of several layers is worth this many times their
# multiply-adds: it is one call, and large matrix products run closer to the machine's peak.
_COLLAPSE = 2.0


@dataclass
class Graph:
    """Steps in order; register 0 holds the latents."""

    steps: list[Step]
    outputs: list[int]
    latent_dim: int

    def readers(self) -> Counter[int]:
        """How many steps and outputs read each register."""
        reads = Counter(self.outputs)
        for step in self.steps:
            reads.update(step.inputs)
        return reads

    def shape(self, register: int) -> Shape:
        if register == 0:
            return (self.latent_dim,)
        return next(step.shape for step in self.steps if step.output == register)


def optimised(graph: Graph, dtype: torch.dtype, device: torch.device) -> Graph:
    """The same function of the latents."""
    graph.steps = [_cast(step, torch.float64) for step in graph.steps]
    _fuse(graph)
    _collapse(graph, device)
    if device.type == "cpu":
        _by_phases(graph)
        _delay_interleaving(graph)
    graph.steps = [_cast(step, dtype) for step in graph.steps]
    if device.type == "cpu":
        _channels_last(graph)
    return graph


def _cast(step: Step, dtype: torch.dtype) -> Step:
    """With its constants in that precision, contiguous."""
    changes: dict[str, Any] = {}
    for field in fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.detach().to(dtype).contiguous()
    return replace(step, **changes)


def _fuse(graph: Graph) -> None:
    """Folds scales and shifts into the layer before, drops what does nothing."""
    reads = graph.readers()
    kept: dict[int, Step] = {}  # by output, in order
    renamed: dict[int, int] = {}
    shapes: dict[int, Shape] = {0: (graph.latent_dim,)}
    for step in graph.steps:
        step = replace(step, inputs=tuple(renamed.get(i, i) for i in step.inputs))
        first = step.inputs[0]
        if _does_nothing(step, shapes[first]):
            renamed[step.output] = first
            reads[first] += reads[step.output] - 1
            continue
        before = kept.get(first)
        if before is not None and reads[first] == 1:
            both = _joined(before, step)
            if both is not None:
                del kept[first]
                step = both
        kept[step.output] = step
        shapes[step.output] = step.shape
    graph.steps = list(kept.values())
    graph.outputs = [renamed.get(i, i) for i in graph.outputs]


def _does_nothing(step: Step, before: Shape) -> bool:
    if step.shape != before:
        return False
    if isinstance(step, steps.Scale):
        one = step.scale is None or bool((step.scale == 1).all())
        return one and (step.shift is None or not step.shift.any())
    return isinstance(step, steps.Reshape)


def _joined(a: Step, b: Step) -> Step | None:
    """One step for b after a, where there is one."""
    if isinstance(b, steps.Reshape) and isinstance(a, steps.Dense | steps.Reshape):
        return replace(a, output=b.output, shape=b.shape)
    if isinstance(b, steps.Scale) and isinstance(a, _Weighted) and a.shape == b.shape:
        return _scaled(a, b)
    if isinstance(a, steps.Reciprocal) and isinstance(b, steps.Deviation):
        return steps.Activation(a.inputs, b.output, b.shape, "rsqrt", torch.rsqrt)
    return None


def _scaled(layer: _Weighted, scale: steps.Scale) -> Step | None:
    factor = _of_outputs(layer, scale.scale, 1.0)
    shift = _of_outputs(layer, scale.shift, 0.0)
    if factor is None or shift is None:
        return None
    dim = 1 if isinstance(layer, steps.Convolution) and layer.transposed else 0
    if dim == 1 and layer.groups > 1:  # type: ignore[union-attr]
        return None
    spread = [-1 if i == dim else 1 for i in range(layer.weight.dim())]
    weight = layer.weight * factor.view(spread)
    bias = shift if layer.bias is None else layer.bias * factor + shift
    return replace(layer, output=scale.output, weight=weight, bias=bias)


def _of_outputs(layer: _Weighted, constant: Tensor | None, missing: float) -> Tensor | None:
    """One number for each output of a dense layer or channel of another; None if there is more."""
    shape = layer.shape
    like = layer.weight
    if constant is None:
        constant = like.new_full((), missing)
    if constant.dim() > len(shape):  # there may be a dimension of 1 for the latents
        constant = constant.flatten(0, constant.dim() - len(shape))
    constant = constant.to(like.device)
    if isinstance(layer, steps.Dense):
        return constant.expand(shape).flatten()
    own = constant.view(*[1] * (len(shape) - constant.dim()), *constant.shape)
    return own.flatten().expand(shape[0]) if own.shape[1:].numel() == 1 else None


def _collapse(graph: Graph, device: torch.device) -> None:
    """Replaces affine steps that follow each other from the latents on by one dense layer."""
    reads = graph.readers()
    follower = {step.inputs[0]: step for step in graph.steps if isinstance(step, Affine)}
    for first in [s for s in graph.steps if s.inputs == (0,) and isinstance(s, Affine)]:
        chain: list[Affine] = [first]
        while reads[chain[-1].output] == 1 and chain[-1].output in follower:
            chain.append(follower[chain[-1].output])
        while len(chain) > 1:
            size = torch.Size(chain[-1].shape).numel()
            if graph.latent_dim * size <= _COLLAPSE * sum(step.work for step in chain):
                break
            chain.pop()
        if len(chain) > 1:
            place = graph.steps.index(chain[-1])
            graph.steps[place] = _as_dense(chain, graph.latent_dim, device)
            graph.steps = [step for step in graph.steps if step not in chain]


def _as_dense(chain: list[Affine], d: int, device: torch.device) -> steps.Dense:
    constant = torch.zeros(1, d, dtype=torch.float64, device=device)
    columns = torch.eye(d, dtype=torch.float64, device=device)
    for step in chain:
        constant, columns = step.value(constant), step.linear(columns)
    last = chain[-1]
    weight, bias = steps.flattened(columns).mT, constant.flatten()
    return steps.Dense(chain[0].inputs, last.output, last.shape, weight, bias)


def _by_phases(graph: Graph) -> None:
    """Turns transposed convolutions of a stride s into plain ones, s^2 times as many channels.

    F[s i + r] = sum_t x[i - t] w[s t + r] is an ordinary convolution for each phase r, and all
    phases read the same window of x.
    """
    register = 1 + max((step.output for step in graph.steps), default=0)
    found: list[Step] = []
    for step in graph.steps:
        if not isinstance(step, steps.Convolution) or not _has_phases(step):
            found.append(step)
            continue
        height, width = graph.shape(step.inputs[0])[1:]
        found += _phases(step, height, width, register)
        register += 2
    graph.steps = found


def _has_phases(step: steps.Convolution) -> bool:
    return (
        step.transposed
        and step.groups == 1
        and len(step.shape) == 3
        and step.stride[0] == step.stride[1] > 1
        and all(dilation == 1 for dilation in step.dilation)
    )


def _phases(step: steps.Convolution, height: int, width: int, register: int) -> list[Step]:
    s = step.stride[0]
    taps = []
    for size, out, k, cut in zip(
        (height, width), step.shape[1:], step.weight.shape[2:], step.padding, strict=True
    ):
        # Enough taps for the kernel, and for s (size + taps - 1) rows to hold the output.
        taps.append(max(-(-k // s), -(-(cut + out) // s) - size + 1))
    weight = step.weight
    ky, kx = weight.shape[2:]
    weight = torch.nn.functional.pad(weight, (0, s * taps[1] - kx, 0, s * taps[0] - ky))
    i, o = weight.shape[:2]
    split = weight.view(i, o, taps[0], s, taps[1], s).flip(2, 4)
    last = _prefers_channels_last(i, o * s * s)
    # Channels of the convolution: a phase's channels side by side, or a channel's phases.
    order = (3, 5, 1, 0, 2, 4) if last else (1, 3, 5, 0, 2, 4)
    kernel = split.permute(order).reshape(o * s * s, i, *taps)
    bias = step.bias
    if bias is not None:
        bias = bias.repeat(s * s) if last else bias.repeat_interleave(s * s)
    rows, columns = height + taps[0] - 1, width + taps[1] - 1
    convolution = steps.Convolution(
        step.inputs,
        register,
        (o * s * s, rows, columns),
        kernel,
        bias,
        [1, 1],
        [taps[0] - 1, taps[1] - 1],
        [1, 1],
        False,
        [0, 0],
        1,
    )
    view = steps.Phases((register,), register + 1, (o, s * s, rows, columns), last)
    start = (int(step.padding[0]), int(step.padding[1]))
    image = steps.Interleave((register + 1,), step.output, step.shape, s, start)
    return [convolution, view, image]


def _delay_interleaving(graph: Graph) -> None:
    """Moves what works on each pixel by itself ahead of the interleaving of phases."""
    reads = graph.readers()
    moved = True
    while moved:
        moved = False
        images = {s.output: i for i, s in enumerate(graph.steps) if isinstance(s, steps.Interleave)}
        for place, step in enumerate(graph.steps):
            source = images.get(step.inputs[0])
            if source is None or len(step.inputs) > 1 or reads[step.inputs[0]] > 1:
                continue
            image = graph.steps[source]
            phases = graph.shape(image.inputs[0])
            ahead = _on_phases(step, (*step.shape[:1], *phases[1:]))
            if ahead is None:
                continue
            graph.steps[source] = replace(ahead, inputs=image.inputs, output=image.output)
            graph.steps[place] = replace(
                image, inputs=(image.output,), output=step.output, shape=step.shape
            )
            moved = True
            break


def _on_phases(step: Step, shape: Shape) -> Step | None:
    """The step for phases (c, s^2, h, w) in place of images; None where pixels get mixed."""
    if isinstance(step, steps.Activation | steps.ChannelMix):
        return replace(step, shape=shape)
    if isinstance(step, steps.Elementwise) and step.uniform:
        return replace(step, shape=shape)
    if isinstance(step, steps.Scale):
        constants = [c for c in (step.scale, step.shift) if c is not None]
        return replace(step, shape=shape) if all(c.numel() == 1 for c in constants) else None
    return None


def _prefers_channels_last(inputs: int, outputs: int) -> bool:
    """Which layout PyTorch's convolutions on a CPU are faster in, by the number of channels."""
    return min(inputs, outputs) >= 16


def _channels_last(graph: Graph) -> None:
    """Lays out the convolutions that are faster so, and what leads to them."""
    wanted: set[int] = set()  # registers that such a convolution reads, directly or not
    for place in reversed(range(len(graph.steps))):
        step = graph.steps[place]
        if isinstance(step, steps.Convolution):
            o, i = step.weight.shape[:2]
            if step.weight.dim() == 4 and _prefers_channels_last(i, o):
                weight = step.weight.contiguous(memory_format=torch.channels_last)
                graph.steps[place] = replace(step, weight=weight)
                wanted.add(step.inputs[0])
        elif step.output in wanted:
            if isinstance(step, steps.Dense) and len(step.shape) == 3:
                graph.steps[place] = _spatial_first(step)
            wanted.update(step.inputs)


def _spatial_first(step: steps.Dense) -> steps.Dense:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, step.shape).movedim(0, 2).flatten(0, 2).contiguous()

    bias = None if step.bias is None else moved(step.bias)
    return replace(step, weight=moved(step.weight), bias=bias, channels_last=True)
