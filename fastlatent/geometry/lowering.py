"""From a tape of operator calls to steps with derivatives.

Constants of the steps stay in the precision they were found in or, where they were computed here,
in float64.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastlatent.geometry import steps
from fastlatent.geometry.steps import Shape, Step
from fastlatent.geometry.tape import Call, Tape, Untraceable, is_register

_SELU = (1.6732632423543772, 1.0507009873554805, 1.0)


class Site(NamedTuple):
    """A call and where its step goes. Shapes are those of one point."""

    call: Call
    place: int  # which of the outputs of the call
    inputs: tuple[int, ...]
    output: int
    shape: Shape
    before: tuple[Shape, ...]  # of the inputs

    def make(self, kind: Callable[..., Step], *fields: Any) -> Step:
        return kind(self.inputs, self.output, self.shape, *fields)

    def alike(self) -> bool:
        """Whether nothing is broadcast."""
        return all(shape == self.shape for shape in self.before)

    def applied(self) -> Callable[..., Any]:
        """The call as a function of its registers, in the order of `inputs`."""
        call, place = self.call, self.place

        def run(*tensors: Tensor) -> Any:
            remaining = iter(tensors)

            def fill(leaf: Any) -> Any:
                return next(remaining) if is_register(leaf) else leaf

            args, kwargs = tree_map(fill, (call.args, call.kwargs), is_leaf=is_register)
            result = call.function(*args, **kwargs)
            return result[place] if isinstance(result, tuple | list) else result

        return run


def lower(tape: Tape, n: int) -> list[Step]:
    """The steps of a tape recorded on n latents. Raises Untraceable where latents get mixed up."""
    lowered: list[Step] = []
    for call in tape.calls:
        inputs = tuple(call.registers())
        for place, output in enumerate(call.outputs):
            if output is None or (place and "batch_norm" in call.name):
                continue  # the statistics of a batch norm are of no use in evaluation mode
            shape = tape.shapes[output]
            if not shape or shape[0] != n:
                raise Untraceable(f"{call.name} has an output {shape} for {n} latents")
            before = tuple(tape.shapes[register][1:] for register in inputs)
            site = Site(call, place, inputs, output, shape[1:], before)
            lowered.append(_step(site, tape.smooth[output]))
    return lowered


def _step(site: Site, smooth: bool) -> Step:
    rule = RULES.get(site.call.name.removeprefix("aten."))
    step = rule(site) if rule is not None and smooth else None
    if step is not None:
        return step
    pointwise = torch.Tag.pointwise in site.call.function.tags and len(site.inputs) == 1
    if not (pointwise and smooth and site.alike()):
        return site.make(steps.Opaque, site.applied(), smooth)
    constants = tree_leaves((site.call.args, site.call.kwargs))
    uniform = not any(isinstance(leaf, Tensor) and leaf.numel() > 1 for leaf in constants)
    return site.make(steps.Elementwise, site.applied(), uniform)


def _constant(value: Any) -> Tensor | None:
    """What does not depend on the latents, in float64."""
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float64)
    return value.double() if isinstance(value, Tensor) else None


def _addmm(site: Site) -> Step | None:
    bias, x, weight = (site.call.argument(name) for name in ("self", "mat1", "mat2"))
    if len(site.inputs) > 1 or not is_register(x):
        return None
    if site.call.argument("alpha") != 1 or site.call.argument("beta") != 1:
        return None
    return site.make(steps.Dense, weight.mT, bias.expand(weight.shape[1]))


def _mm(site: Site) -> Step | None:
    x, weight = site.call.args
    if len(site.inputs) > 1 or not is_register(x):
        return None
    return site.make(steps.Dense, weight.mT, None)


def _convolution(site: Site) -> Step | None:
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = site.call.args
    if len(site.inputs) > 1:
        return None
    single = weight.shape[2:].numel() == 1 and groups == 1
    if single and all(s == 1 for s in stride) and not any((*padding, *output_padding)):
        matrix = weight.flatten(1)
        return site.make(steps.ChannelMix, matrix.mT if transposed else matrix, bias)
    fields = (stride, padding, dilation, transposed, output_padding, groups)
    return site.make(steps.Convolution, weight, bias, *fields)


def _batch_norm(site: Site) -> Step | None:
    call = site.call
    names = [argument.name for argument in call.function._schema.arguments]
    if len(site.inputs) > 1 or ("training" in names and call.argument("training")):
        return None
    mean, variance = call.argument("running_mean"), call.argument("running_var")
    weight, bias = call.argument("weight"), call.argument("bias")
    scale = (variance.double() + call.argument("eps" if "eps" in names else "epsilon")).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale
    shift = shift if bias is None else shift + bias.double()
    spread = [-1] + [1] * (len(site.shape) - 1)
    return site.make(steps.Scale, scale.view(spread), shift.view(spread))


def _group_norm(site: Site) -> Step | None:
    """The call counts the latents it was recorded with."""
    call, place = site.call, site.place
    weight, bias, groups, eps = (call.argument(n) for n in ("weight", "bias", "group", "eps"))
    sizes = call.argument("C"), call.argument("HxW")

    def run(x: Tensor) -> Tensor:
        return call.function(x, weight, bias, len(x), *sizes, groups, eps)[place]

    return site.make(steps.Opaque, run, True) if len(site.inputs) == 1 else None


def _sum(factors_of: Callable[[float], tuple[float, float]]) -> "Rule":
    """factors[0] a + factors[1] b, with factors that depend on the argument "alpha"."""

    def rule(site: Site) -> Step | None:
        a, b = site.call.args[:2]
        factors = factors_of(site.call.argument("alpha"))
        if len(site.inputs) == 2:
            if factors[0] != 1 or not site.alike():
                return None
            return site.make(steps.Sum, factors[1])
        mine, other = factors if is_register(a) else factors[::-1]
        constant = _constant(b if is_register(a) else a)
        if constant is None:
            return None
        scale = None if mine == 1 else _constant(mine)
        return site.make(steps.Scale, scale, other * constant)

    return rule


def _mul(site: Site) -> Step | None:
    a, b = site.call.args[:2]
    if len(site.inputs) == 2:
        return site.make(steps.Product) if site.alike() else None
    constant = _constant(b if is_register(a) else a)
    return None if constant is None else site.make(steps.Scale, constant, None)


def _div(site: Site) -> Step | None:
    if len(site.inputs) == 2 or not is_register(site.call.args[0]) or site.call.kwargs:
        return None
    constant = _constant(site.call.args[1])
    return None if constant is None else site.make(steps.Scale, 1 / constant, None)


def _neg(site: Site) -> Step:
    return site.make(steps.Scale, _constant(-1.0), None)


def _activation(kind: str, **expected: Any) -> "Rule":
    """An activation whose other arguments are as expected."""

    def rule(site: Site) -> Step | None:
        if any(site.call.argument(name) != value for name, value in expected.items()):
            return None
        return site.make(steps.Activation, kind, site.applied())

    return rule


def _elu(site: Site) -> Step | None:
    numbers = tuple(site.call.argument(name) for name in ("alpha", "scale", "input_scale"))
    kind = {(1, 1, 1): "elu", _SELU: "selu"}.get(numbers)
    return None if kind is None else site.make(steps.Activation, kind, site.applied())


def _leaky_relu(site: Site) -> Step:
    slope = float(site.call.argument("negative_slope"))
    return site.make(steps.Activation, "leaky_relu", site.applied(), slope)


def _reshape(site: Site) -> Step:
    return site.make(steps.Reshape)


def _expand(site: Site) -> Step | None:
    return site.make(steps.Scale, None, None) if len(site.before[0]) == len(site.shape) else None


def _dims(site: Site) -> set[int]:
    """The dimensions that a call names, counted from the front."""
    names = [argument.name for argument in site.call.function._schema.arguments]
    found: list[Any] = [site.call.argument(n) for n in names if n in _DIMENSIONS]
    flat = [dim for value in found for dim in (value if isinstance(value, Iterable) else (value,))]
    return {dim % (len(site.before[0]) + 1) for dim in flat if dim is not None}


_DIMENSIONS = ("dim", "dims", "dim0", "dim1")


def _map(site: Site) -> Step:
    if 0 in _dims(site):
        raise Untraceable(f"{site.call.name} mixes latents")
    return site.make(steps.LinearMap, site.applied())


def _reciprocal(site: Site) -> Step:
    return site.make(steps.Reciprocal, site.applied())


def _rearrangement(site: Site) -> Step:
    if 0 in _dims(site):
        raise Untraceable(f"{site.call.name} mixes latents")
    return site.make(steps.Rearrangement, site.applied())


def _permute(site: Site) -> Step:
    if site.call.argument("dims")[0] != 0:
        raise Untraceable("the latents are not the first dimension throughout")
    return site.make(steps.Rearrangement, site.applied())


def _pad(site: Site) -> Step | None:
    return _map(site) if site.call.argument("value") == 0 else None


Rule = Callable[[Site], Step | None]  # None: this call is none of its business
_MAPS = (
    "sum mean upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
    "slice select split split_with_sizes unbind cumsum"
)
_RESHAPES = "view _unsafe_view reshape _reshape_alias unsqueeze squeeze alias clone contiguous"
RULES: dict[str, Rule] = {
    "addmm": _addmm,
    "mm": _mm,
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_group_norm": _group_norm,
    "add": _sum(lambda alpha: (1, alpha)),
    "sub": _sum(lambda alpha: (1, -alpha)),
    "rsub": _sum(lambda alpha: (-alpha, 1)),
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "reciprocal": _reciprocal,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "gelu": _activation("gelu", approximate="none"),
    "softplus": _activation("softplus", beta=1, threshold=20),
    "expand": _expand,
    "permute": _permute,
    "constant_pad_nd": _pad,
    **dict.fromkeys(_RESHAPES.split(), _reshape),
    **dict.fromkeys(_MAPS.split(), _map),
    **dict.fromkeys(("transpose", "pixel_shuffle", "pixel_unshuffle", "flip"), _rearrangement),
    **{k: _activation(k) for k in ("relu", "silu", "tanh", "sigmoid", "exp", "sqrt", "rsqrt")},
}
