"""Every tensor of every op, laid out in memory as views of other tensors are."""

import os
import warnings

import pytest
import torch
from op_calls import call, main_dtype, outputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlatent import ops
from fastlatent.ops import OPS

SMALL = 300  # elements of the largest tensor of a case


def transposed(a: Tensor) -> Tensor:
    """The last two dimensions in the order of the first's memory."""
    return a.mT.contiguous().mT if a.dim() > 1 else a


def reversed_order(a: Tensor) -> Tensor:
    """The first dimension runs fastest."""
    order = tuple(reversed(range(a.dim())))
    return a.permute(order).contiguous().permute(order)


def sliced(a: Tensor) -> Tensor:
    """Every second element of a row that is twice as long; of an empty one, too."""
    wide = a.new_zeros(*a.shape[:-1], 2 * a.shape[-1])
    wide[..., ::2] = a
    return wide[..., ::2]


def gapped(a: Tensor) -> Tensor:
    """Every second row and a part of the columns, from the middle of a tensor."""
    wide = a.new_zeros(2 * a.shape[0] + 1, *a.shape[1:-1], a.shape[-1] + 3) if a.dim() > 1 else None
    if wide is None:
        return sliced(a)
    view = wide[1::2, ..., 2:-1]
    view.copy_(a)
    return view


def sliced_channels_last(a: Tensor) -> Tensor:
    """Every second column of images whose channels run fastest."""
    if a.dim() != 4:
        return a
    wide = a.new_zeros(*a.shape[:-1], 2 * a.shape[-1]).to(memory_format=torch.channels_last)
    wide[..., ::2] = a
    return wide[..., ::2]


def flipped(a: Tensor) -> Tensor:
    """Written backwards; PyTorch has no negative strides."""
    return a.flip(tuple(range(a.dim()))).contiguous().flip(tuple(range(a.dim())))


def expanded(a: Tensor) -> Tensor:
    """One row for all."""
    return a[:1].expand_as(a)


def expanded_columns(a: Tensor) -> Tensor:
    """One column for all."""
    return a[..., :1].expand_as(a)


def odd_strides(a: Tensor) -> Tensor:
    """Strides that don't count, of dimensions of length 1 or of an empty tensor."""
    if a.numel() > 1 and 1 not in a.shape:
        return a
    strides = [
        7 * (k + 2) if size == 1 or not a.numel() else stride
        for k, (size, stride) in enumerate(zip(a.shape, a.stride(), strict=True))
    ]
    return torch.as_strided(a, a.shape, strides)


LAYOUTS = (
    transposed,
    reversed_order,
    sliced,
    gapped,
    sliced_channels_last,
    flipped,
    expanded,
    expanded_columns,
    odd_strides,
)


# Tensors whose last dimensions must keep their values: matrices without negative eigenvalues,
# knots that increase. Only the dimensions before these are expanded.
KEPT = {"sqrtm_psd": (2,), "trace_sqrtm": (2, 2), "trace_sqrtm_backward": (2, 2)}
KEPT |= {"bspline": (0, 0, 1), "bspline_backward": (0, 0, 1)}


def chosen_cases(op):
    """A small case, one with a length of 1 and one that is empty."""
    found = {}
    for args in op.cases("cpu", main_dtype(op)):
        tensors = [a for a in args if isinstance(a, Tensor)]
        if max(a.numel() for a in tensors) <= SMALL:
            empty = not all(a.numel() for a in tensors)
            kind = "empty" if empty else "narrow" if any(1 in a.shape for a in tensors) else "full"
            found.setdefault(
                kind, tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
            )
    return list(found.values())


def variants(op):
    for args in chosen_cases(op):
        for place, a in enumerate(args):
            if not isinstance(a, Tensor) or not a.dim():
                continue
            kept = dict(enumerate(KEPT.get(op.name, ()))).get(place, 0)
            seen = set()
            for layout in LAYOUTS:
                if kept and (
                    layout is expanded_columns or (layout is expanded and a.dim() <= kept)
                ):
                    continue
                view = layout(a)
                memory = view.stride(), view.storage_offset()
                if memory not in seen:  # some layouts are the same of a short or empty tensor
                    seen.add(memory)
                    yield layout.__name__, place, (*args[:place], view, *args[place + 1 :])


def plain(args):
    """The same values, contiguous."""
    return tuple(
        torch.empty(a.shape, dtype=a.dtype).copy_(a) if isinstance(a, Tensor) else a for a in args
    )


def strides_that_count(a):
    return [s for s, size in zip(a.stride(), a.shape, strict=True) if size > 1 and a.numel()]


def assert_same(got, want, where):
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), where
        torch.testing.assert_close(g, w, equal_nan=True, msg=lambda text: f"{where}: {text}")


@pytest.fixture(params=OPS.values(), ids=OPS)
def op(request):
    wish = os.environ.get("FASTLATENT_IMPL", "auto")
    if wish not in ("auto", "torch", request.param.serving("cpu").implementation):
        pytest.skip(f"{request.param.name} has no {wish} kernel on cpu")
    return request.param


def test_layouts_of_the_kernel_and_the_reference(op):
    for name, place, args in variants(op):
        where = f"argument {place}, {name}, {tuple(args[place].shape)}"
        want = outputs(op.reference(*plain(args)))
        assert_same(call(op, *args), want, where)
        with ops.use("torch"):
            assert_same(call(op, *args), want, where)


def test_layouts_of_fake_and_meta_tensors(op):
    """Shapes, dtypes and, where there are elements, strides as the kernel's."""
    mode = FakeTensorMode()
    for name, place, args in variants(op):
        where = f"argument {place}, {name}, {tuple(args[place].shape)}"
        real = outputs(op(*args))
        with mode:
            fake = outputs(op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)))
        meta = outputs(op(*(a.to("meta") if isinstance(a, Tensor) else a for a in args)))
        for r, f, m in zip(real, fake, meta, strict=True):
            assert (f.shape, f.dtype) == (m.shape, m.dtype) == (r.shape, r.dtype), where
            assert strides_that_count(f) == strides_that_count(r), where


def test_layouts_under_vmap(op):
    for name, place, args in variants(op):
        where = f"argument {place}, {name}, {tuple(args[place].shape)}"

        def run(x, args=args, place=place):
            return op(*args[:place], x, *args[place + 1 :])

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*vmap.*")
            got = outputs(torch.vmap(run)(args[place][None]))
        want = outputs(op.reference(*plain(args)))
        assert_same(tuple(g[0] for g in got), want, where)


def test_the_layouts_of_reports():
    """Column-major words, and an empty line of which every second coordinate is taken."""
    words = torch.randint(0, 9, (2, 8), generator=torch.Generator().manual_seed(0)).t()
    for function in (ops.unpack_bits, ops.binary_moments):
        want = outputs(function(words.contiguous(), 70))
        for implementation in ("auto", "torch"):
            with ops.use(implementation):
                assert_same(outputs(function(words, 70)), want, implementation)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(outputs(compiled(words, 70)), want, "compiled")
    for function in (ops.polyline_length, ops.polyline_energy):
        points = torch.zeros(0, 4, 10, requires_grad=True)
        length = function(points[..., ::2])
        assert length.shape == (0,)
        (grad,) = torch.autograd.grad(length.sum(), points)
        assert grad.shape == points.shape
