"""One op: a schema, a reference in plain PyTorch, and at most one kernel for each device.

The reference is registered three times: as the kernel of last resort on every device, as the fake
kernel that torch.compile and meta tensors run, and as the rule under function transforms (vmap,
grad, jvp, hessian). The last one matters most: without it `torch.func.jvp` returns zeros in
silence.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlatent.ops import _check, _load

Kernel = Callable[..., Any]
IMPLEMENTATIONS = ("auto", "cpp", "cuda", "triton", "linalg", "torch")

_library = torch.library.Library("fastlatent", "DEF")
_demanded = os.environ.get("FASTLATENT_IMPL", "auto")


class KernelMissing(RuntimeError):
    """The kernel that was insisted on, or any kernel under FASTLATENT_STRICT=1, can't run here."""


State = Literal["kernel", "asked for", "none", "left out", "missing"]


class Serving(NamedTuple):
    """Which implementation serves an op on a device, and why.

    `state`: "kernel" where one serves; else the reference does. It was asked for, or there is no
    kernel for this device, or the build left it out on purpose, or it is "missing": it should be
    here and does not load.
    """

    op: str
    device: str
    implementation: str
    reason: str
    state: State


def strict() -> bool:
    """FASTLATENT_STRICT=1: a missing kernel is an error, and values are checked on CUDA too."""
    return os.environ.get("FASTLATENT_STRICT", "0") == "1"


class use:
    """Choose the implementation of every op, for the process or for a `with` block.

    "auto" takes the device's kernel and falls back, with one warning for each op, to the PyTorch
    reference; "cpp", "cuda", "triton" insist on that kernel, "linalg" on the routine made of
    torch.linalg; "torch" runs the reference. The environment variable FASTLATENT_IMPL sets the
    choice at import. Raises ValueError for another word.
    """

    def __init__(self, implementation: str) -> None:
        global _demanded
        _check.choice("ops.use", "implementation", implementation, IMPLEMENTATIONS)
        self._before = _demanded
        _demanded = implementation

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *exc_info: object) -> None:
        global _demanded
        _demanded = self._before


@dataclass(frozen=True, eq=False)
class Op:
    """What an op is and what it promises; the contract test follows the declaration.

    `gradient`: "true", "none", or "surrogate" where `surrogate(gradient, *args)` is given: a closed
    form in plain PyTorch that is not the derivative of the forward pass. `discrete`: indices of
    floating outputs that hold signs; integers are known by their dtype. `decided(*args)` masks the
    elements (or, for packed words, the bits) of such outputs that rounding can't flip, all of them
    where it is None. `non_differentiable`: indices of floating outputs without gradient;
    `constants`: of floating inputs without. `elementwise`: results depend on the elements at their
    own place alone. `capturable`: runs in a CUDA graph. `backward(arguments, gradients)` returns
    one gradient for each argument; the last ones may be left out where they are None. With
    `from_outputs` it is given the outputs in place of the arguments, and those alone are kept;
    `keeps` are indices of outputs that it is given after the arguments. `refuses_nan`: on a CPU the
    kernel raises ValueError for NaN where other ops give it back.
    """

    name: str
    overload: Kernel
    reference: Kernel
    cases: Callable[[str, torch.dtype], Iterator[tuple]]
    gradient: Literal["true", "surrogate", "none"] = "true"
    dtypes: tuple[torch.dtype, ...] = _check.FLOATING
    discrete: tuple[int, ...] = ()
    decided: Kernel | None = None
    non_differentiable: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    elementwise: bool = False
    capturable: bool = True
    cpp: Kernel | None = None
    cuda: Kernel | None = None
    triton: str | None = None  # module beside this one that has a function of the op's name
    linalg: Kernel | None = None  # made of torch.linalg on any device; its bits are the libraries'
    backward: Callable[[tuple, tuple], tuple] | None = None
    from_outputs: bool = False
    keeps: tuple[int, ...] = ()
    refuses_nan: bool = False
    surrogate: Kernel | None = None
    _served: dict[tuple[str, str], Kernel] = field(default_factory=dict)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if forward_ad._current_level >= 0:  # the dispatcher would drop the tangents of dual numbers
            return self.reference(*args, **named)
        return self.overload(*args, **named)

    def public(self, function: Kernel) -> Kernel:
        """Mark the checked, documented function by which users call this op."""
        function.reference = self.reference  # type: ignore[attr-defined]
        _public[self.name] = function
        return function

    def is_discrete(self, index: int, output: Tensor) -> bool:
        """Whether that output holds integers or signs, to be compared exactly."""
        return index in self.discrete or not output.is_floating_point()

    def serve(self, device: str, *args: Any) -> Any:
        """Run the implementation in force on that device type."""
        kernel = self._served.get((device, _demanded))
        if kernel is None:
            kernel = self._served[device, _demanded] = self._choose(device)
        return kernel(*args)

    def serving(self, device: str) -> Serving:
        """Which implementation a call on that device type gets now, and why."""
        _check.choice("FASTLATENT_IMPL", "the value", _demanded, IMPLEMENTATIONS)
        if _demanded == "torch":
            return Serving(self.name, device, "torch", "asked for", "asked for")
        reason = "no kernel for this device"
        state: State = "none"
        for name in _KERNELS_OF.get(device, ()):
            if _demanded not in ("auto", name) or (name == "triton" and not _triton_runs(device)):
                continue
            if getattr(self, name) is None:
                continue
            missing = self._missing(name)
            if missing is None:
                return Serving(self.name, device, name, "kernel of this device", "kernel")
            reason = str(missing)
            state = "left out" if isinstance(missing, _load.LeftOut) else "missing"
        return Serving(self.name, device, "torch", reason, state)

    def _missing(self, name: str) -> ImportError | None:
        """Why the kernel of that name can't run here; None when it can."""
        try:
            if name == "triton":
                import_module("triton")
            elif name != "linalg":
                core = _load.core()
                if name == "cuda" and not core.cuda:
                    return _load.LeftOut("the compiled core was built without CUDA")
        except ImportError as error:
            return error
        return None

    def _choose(self, device: str) -> Kernel:
        serving = self.serving(device)
        if serving.implementation == "torch":
            if _demanded not in ("auto", "torch"):
                raise KernelMissing(
                    f"fastlatent.{self.name}: no {_demanded!r} kernel on {device}: {serving.reason}"
                )
            if _demanded == "auto" and any(getattr(self, k) for k in _KERNELS_OF.get(device, ())):
                message = (
                    f"fastlatent.{self.name}: running the PyTorch reference on {device}, "
                    f"because {serving.reason}"
                )
                if strict():
                    raise KernelMissing(message)
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            return self.reference
        if serving.implementation == "triton":
            return getattr(import_module(f"fastlatent.ops.{self.triton}"), self.name)
        kernel = getattr(self, serving.implementation)
        if serving.implementation == "linalg":
            return kernel
        core = _load.core()
        return lambda *args: kernel(core, *args)


OPS: dict[str, Op] = {}
_public: dict[str, Kernel] = {}
_KERNELS_OF = {"cpu": ("cpp", "triton", "linalg"), "cuda": ("cuda", "triton", "linalg")}


def _triton_runs(device: str) -> bool:
    """On a CPU only Triton's interpreter runs, and only when insisted on: it is for tests."""
    return device == "cuda" or (_demanded == "triton" and os.environ.get("TRITON_INTERPRET") == "1")


def public_function(name: str) -> Kernel:
    """What users call: the checked function of an op, or the bare op where it is internal."""
    return _public.get(name, OPS[name])


def table() -> list[Serving]:
    """Which implementation serves each op on each device type of this machine."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [op.serving(device) for op in OPS.values() for device in devices]


def register(schema: str, reference: Kernel, **declaration: Any) -> Op:
    """Define the op in torch.library; `declaration` holds the other fields of `Op`."""
    name = schema.split("(")[0]
    _library.define(schema)
    if "surrogate" in declaration:
        declaration["gradient"] = "surrogate"
    op = Op(name, getattr(torch.ops.fastlatent, name).default, reference, **declaration)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    _library.impl(name, reference, "FuncTorchDynamicLayerFrontMode")
    for device, kernels in _KERNELS_OF.items():
        if any(getattr(op, kernel) is not None for kernel in kernels):
            _library.impl(name, _serve_on(op, device), device.upper())
    torch.library.register_autograd(
        f"fastlatent::{name}", _backward_of(op), setup_context=_setup_of(op), lib=_library
    )
    OPS[name] = op
    return op


def _serve_on(op: Op, device: str) -> Kernel:
    def kernel(*args: Any) -> Any:
        return op.serve(device, *args)

    return kernel


def _setup_of(op: Op) -> Kernel:
    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        none = op.gradient == "none"
        fixed = [out for i, out in enumerate(outputs) if none or i in op.non_differentiable]
        ctx.mark_non_differentiable(*fixed)
        kept = outputs if op.from_outputs else (*inputs, *(outputs[i] for i in op.keeps))
        is_tensor = [isinstance(x, Tensor) for x in kept]
        ctx.save_for_backward(*(x for x, t in zip(kept, is_tensor, strict=True) if t))
        ctx.constants = [None if t else x for x, t in zip(kept, is_tensor, strict=True)]
        ctx.is_tensor = is_tensor

    return setup


def _backward_of(op: Op) -> Kernel:
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        args = tuple(
            next(saved) if t else x for x, t in zip(ctx.constants, ctx.is_tensor, strict=True)
        )
        if op.gradient == "none":
            return (None,) * len(args)
        if op.backward is not None:
            found = op.backward(args, grads)
            return (*found, *[None] * (len(ctx.needs_input_grad) - len(found)))
        return _vjp_of_reference(op, args, grads, ctx.needs_input_grad)

    return backward


def _vjp_of_reference(
    op: Op, args: tuple, grads: tuple, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by differentiating the reference; None for inputs that need none."""
    wanted = [i for i, need in enumerate(needed) if need]

    def floating_outputs(*chosen: Tensor) -> list[Tensor]:
        full = list(args)
        for i, x in zip(wanted, chosen, strict=True):
            full[i] = x
        out = op.reference(*full)
        outs = out if isinstance(out, tuple) else (out,)
        return [o for i, o in enumerate(outs) if _differentiable(op, i, o)]

    vjp = torch.func.vjp(floating_outputs, *(args[i] for i in wanted))[1]
    found = iter(vjp([g for i, g in enumerate(grads) if _differentiable(op, i, g)]))
    return tuple(next(found) if i in wanted else None for i in range(len(args)))


def _differentiable(op: Op, index: int, out: Tensor | None) -> bool:
    return out is not None and out.is_floating_point() and index not in op.non_differentiable


def contiguous_rows(x: Tensor) -> Tensor:
    """x with stride 1 in the last dimension, which `contiguous` leaves where x is empty."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the dtype and the memory order of `like`, which has its shape."""
    if torch._C._are_functorch_transforms_active():  # where `value` may have dimensions of its own
        return value.to(like.dtype)
    return torch.empty_like(like).copy_(value)


def threads() -> int:
    """How many threads a CPU kernel may use."""
    return torch.get_num_threads()


def stream(device: torch.device) -> int:
    """Handle of the CUDA stream that kernels on this device must be queued on."""
    return torch.cuda.current_stream(device).cuda_stream
