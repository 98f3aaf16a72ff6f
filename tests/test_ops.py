"""The contract that every op in the table keeps, by what it declares."""

import gc
import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_cases import LARGE, large_cases
from op_calls import call, main_dtype, outputs
from torch.autograd import forward_ad, gradcheck

from fastlatent import ops
from fastlatent.ops import OPS, _load, _register
from fastlatent.ops._register import public_function

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = 400  # elements: what gradcheck and hessians can afford
# Error allowed against PyTorch's; Triton's interpreter has no fused multiply-add.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SLACK = 4.0 if INTERPRETED else 2.0
# No model calls them there: see fastlatent/nn/blocks.py.
ON_A_GPU_OF_PYTORCH = ("elu", "elu_backward")


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(params=OPS.values(), ids=OPS)
def op(request, device):
    wish = os.environ.get("FASTLATENT_IMPL", "auto")
    if wish not in ("auto", "torch", request.param.serving(device).implementation):
        pytest.skip(f"{request.param.name} has no {wish} kernel on {device}")
    return request.param


def double(args):
    return tuple(
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    )


def small_cases(op, device, dtype=torch.float64):
    dtype = dtype if dtype in op.dtypes else op.dtypes[0]
    for args in op.cases(device, dtype):
        sizes = [a.numel() for a in args if isinstance(a, torch.Tensor)]
        if min(sizes) > 0 and max(sizes) <= SMALL:
            yield args


def floating(op, args):
    """Indices of the tensors that gradients may reach."""
    return [
        i
        for i, a in enumerate(args)
        if isinstance(a, torch.Tensor) and a.is_floating_point() and i not in op.constants
    ]


def with_gradients(op, args):
    return tuple(
        a.detach().clone().requires_grad_(True) if i in floating(op, args) else a
        for i, a in enumerate(args)
    )


def assert_equal_where_decided(op, args, index, got, want):
    if op.decided is None:
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        return
    mask = op.decided(*args)
    assert mask.any() or mask.numel() == 0
    if got.is_floating_point():
        torch.testing.assert_close(got[mask], want[mask], rtol=0, atol=0)
    else:
        assert not ((got ^ want) & mask).any()


def assert_as_good_as_torch(got, ours, truth, slack=SLACK):
    """The error against float64 is at most twice the PyTorch reference's, as in FlashAttention.

    In float64 the reference is its own truth, so there both only have to agree.
    """
    if not truth.numel():
        return
    assert torch.equal(got.isnan(), truth.isnan())
    assert torch.equal(got.isinf(), truth.to(got.dtype).isinf())
    scale = truth.nan_to_num(0, 0, 0).abs().max()
    floor = torch.finfo(got.dtype).eps * scale * (64 if got.dtype == torch.float64 else 1)
    error = (got.double() - truth).nan_to_num(0, 0, 0).abs().max()
    allowed = (ours.double() - truth).nan_to_num(0, 0, 0).abs().max()
    assert error <= slack * allowed + floor, f"error {error:.3g}, PyTorch's {allowed:.3g}"


def test_values(op, device, isa):
    for dtype in op.dtypes:
        assert sum(assert_values(op, args) for args in op.cases(device, dtype)) > 0


def assert_values(op, args) -> int:
    """Compares all outputs with the reference; returns how many elements they have."""
    got, want = call(op, *args), outputs(op.reference(*args))
    truth = outputs(op.reference(*double(args)))
    for i, (g, w, t) in enumerate(zip(got, want, truth, strict=True)):
        assert (g.dtype, g.shape, g.device) == (w.dtype, w.shape, w.device)
        if op.is_discrete(i, w):
            assert_equal_where_decided(op, args, i, g, w)
        else:
            assert_as_good_as_torch(g, w, t.double())
    return sum(g.numel() for g in got)


def test_values_where_kernels_need_several_blocks(op, device):
    cases = large_cases(op)
    compared = 0
    for args in cases[:1] if INTERPRETED else cases:  # the first fills several blocks
        args = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in args)
        compared += assert_values(op, args)
    assert compared >= 4096 or INTERPRETED


def test_every_op_has_a_large_case():
    assert {name for name, op in OPS.items() if not op.elementwise} <= set(LARGE) <= set(OPS)


@pytest.mark.gpu
def test_a_gpu_has_a_kernel_of_its_own(op, device):
    if device != "cuda" or op.name in ON_A_GPU_OF_PYTORCH:
        pytest.skip("concerns CUDA, and kernels of our own")
    with ops.use("auto"):
        served = op.serving(device)
    assert served.implementation != "torch", served.reason


def test_gradients(op, device):
    torch.manual_seed(0)  # of the directions in which gradients are differentiated again
    for args in small_cases(op, device):
        args = with_gradients(op, args)
        if op.gradient == "true":
            assert gradcheck(op, args)
            assert gradcheck(gradients_of(op, args), args, fast_mode=True)
            continue
        results = call(op, *args)
        if op.gradient == "none":
            assert not any(r.requires_grad for r in results)
            continue
        for i in op.non_differentiable:
            assert not results[i].requires_grad
        out = results[0]
        direction = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, args[0], direction)
        torch.testing.assert_close(got, op.surrogate(direction, *args))


def gradients_of(op, args):
    """Of a random sum of all outputs, as a function that can be differentiated again."""
    weights = [torch.randn_like(r) for r in call(op, *args)]

    def run(*args):
        total = sum((w * r).sum() for w, r in zip(weights, call(op, *args), strict=True))
        wanted = [args[i] for i in floating(op, args)]
        return tuple(g for g in torch.autograd.grad(total, wanted, create_graph=True) if g.grad_fn)

    return run


def test_surrogate_gradients_in_every_dtype(op, device, isa):
    if op.gradient != "surrogate":
        pytest.skip("its gradient is not a surrogate")
    for dtype in op.dtypes:
        for args in op.cases(device, dtype):
            args = with_gradients(op, args)
            out = call(op, *args)[0]
            direction = torch.randn_like(out)
            (got,) = torch.autograd.grad(out, args[0], direction)
            ours = op.surrogate(direction, *args).detach()
            truth = op.surrogate(direction.double(), *double(args)).detach()
            assert got.dtype == dtype
            assert_as_good_as_torch(got, ours, truth)


def of_other_kinds(cases):
    """Without those that differ in their sizes alone, from which tracing learns nothing."""
    seen = set()
    for args in cases:
        kind = tuple(
            (a.dtype, a.dim(), 0 in a.shape, a.is_contiguous())
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        )
        if kind not in seen:
            seen.add(kind)
            yield args


def test_opcheck(op, device):
    quick = ("test_schema", "test_faketensor", "test_autograd_registration")
    for args in small_cases(op, device):
        torch.library.opcheck(op.overload, with_gradients(op, args), test_utils=quick)
    # Tracing, which takes longest, sees all with gradients that it could see without.
    args = with_gradients(op, next(iter(small_cases(op, device))))
    torch.library.opcheck(op.overload, args, test_utils="test_aot_dispatch_dynamic")


def run_both_ways(op, function, args):
    """Outputs, and gradients of the differentiable ones, of `function(*args)`."""
    args = with_gradients(op, args) if op.gradient != "none" else args
    results = outputs(function(*args))
    if op.gradient == "none":
        return results
    total = sum(r.double().sum() for r in results if r.requires_grad)
    wanted = [args[i] for i in floating(op, args)]
    return (*results, *torch.autograd.grad(total, wanted))


def values_only(op, function, args):
    return outputs(function(*args))


def test_compile_with_aot_eager(op, device):
    function = public_function(op.name)
    for number, args in enumerate(of_other_kinds(op.cases(device, main_dtype(op)))):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        run = values_only if number else run_both_ways  # gradients are ops with cases of their own
        for got, want in zip(run(op, compiled, args), run(op, function, args), strict=True):
            torch.testing.assert_close(got, want)


def compiled_and_not(op, device, run):
    """On a transposed case where there is one: inductor checks strides."""
    torch._dynamo.reset()
    function = public_function(op.name)
    cases = list(small_cases(op, device, main_dtype(op)))
    turned = [args for args in cases if not args[0].is_contiguous()]
    args = (turned or cases)[-1]
    compiled = torch.compile(function, fullgraph=True)
    return zip(run(op, compiled, args), run(op, function, args), strict=True)


def test_compile_with_inductor(op, device):
    second = op.name.endswith("_backward")  # whose own gradients take longer than all the rest
    run = values_only if second else run_both_ways
    for got, want in compiled_and_not(op, device, run):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_compile_second_derivatives_with_inductor(op, device):
    if not op.name.endswith("_backward"):
        pytest.skip("has its first derivatives compiled by the test above")
    for got, want in compiled_and_not(op, device, run_both_ways):
        torch.testing.assert_close(got, want)


def with_chosen(args, places, chosen):
    full = list(args)
    for i, x in zip(places, chosen, strict=True):
        full[i] = x
    return tuple(full)


def test_vmap_gives_what_single_calls_give(op, device):
    args = next(iter(small_cases(op, device)))
    where = floating(op, args) or [0]

    def another(x):  # in the domain: half a covariance is one, minus a sign is one
        if not x.is_floating_point():
            return ~x
        return -x if op.gradient == "none" else x / 2

    singles = [args, with_chosen(args, where, [another(args[i]) for i in where])]
    stacked = [torch.stack([single[i] for single in singles]) for i in where]
    batched = outputs(
        torch.vmap(lambda *chosen: public_function(op.name)(*with_chosen(args, where, chosen)))(
            *stacked
        )
    )
    for k, single in enumerate(singles):
        for i, (got, want) in enumerate(zip(batched, call(op, *single), strict=True)):
            if op.is_discrete(i, want):
                assert_equal_where_decided(op, single, i, got[k], want)
            else:
                torch.testing.assert_close(got[k], want, equal_nan=True)


def test_function_transforms_equal_differences(op, device):
    """Forward mode and second order, which the kernels' references serve.

    They are compared with differences of what the kernels give: of values and of gradients.
    """
    if op.gradient == "none":
        pytest.skip("has no gradient")
    torch.manual_seed(0)
    args = next(iter(small_cases(op, device)))
    where = floating(op, args)
    inputs = [args[i] for i in where]
    tangents = [torch.randn_like(x) for x in inputs]
    weights = [
        torch.randn_like(out) if i not in op.non_differentiable and out.requires_grad else None
        for i, out in enumerate(call(op, *with_gradients(op, args)))
    ]

    def total(*chosen):
        results = call(op, *with_chosen(args, where, chosen))
        return sum((w * y).sum() for w, y in zip(weights, results, strict=True) if w is not None)

    def gradient(x):
        """Of the first input, by the kernel of the gradient."""
        if op.gradient == "surrogate":
            return op.surrogate(weights[0], *with_chosen(args, where, [x, *inputs[1:]]))
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(total(x, *inputs[1:]), x)[0]

    def difference(function, points, steps):
        h = 1e-6
        ahead = function(*(x + h * t for x, t in zip(points, steps, strict=True)))
        behind = function(*(x - h * t for x, t in zip(points, steps, strict=True)))
        return (ahead - behind) / (2 * h)

    near = {"rtol": 1e-5, "atol": 1e-6}
    if op.gradient == "surrogate":  # the differences of signs are zero
        want = (gradient(inputs[0]) * tangents[0]).sum()
    else:
        want = difference(total, inputs, tangents)
    assert want != 0
    torch.testing.assert_close(
        torch.func.jvp(total, tuple(inputs), tuple(tangents))[1], want, **near
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(total(*duals)).tangent, want, **near)
    first = torch.func.grad(total)(*inputs)
    torch.testing.assert_close(first, gradient(inputs[0]), **near)
    hessian = torch.func.hessian(lambda x: total(x, *inputs[1:]))(inputs[0])
    along = (hessian * tangents[0]).flatten(-inputs[0].dim()).sum(-1)
    torch.testing.assert_close(along, difference(gradient, inputs[:1], tangents[:1]), **near)


def test_every_output_element_is_written(op, device, isa):
    """Fresh memory is filled with NaN or the largest integer; a hole would show."""
    cases = list(op.cases(device, main_dtype(op)))
    plain = [call(op, *args) for args in cases]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3, device=device).isnan().all()
        for args, before in zip(cases, plain, strict=True):
            for got, want in zip(call(op, *args), before, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_for_any_number_of_threads(op, device):
    of_libraries = op.serving(device).implementation == "linalg"  # which choose their own threads
    cases = list(op.cases(device, main_dtype(op)))
    if not of_libraries:
        cases.append(large_case(op, device))
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append([call(op, *args) for args in cases])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            for g, w in zip(got, want, strict=True):
                if of_libraries:
                    torch.testing.assert_close(g, w)
                else:
                    torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


def large_case(op, device):
    """The widest case with its rows repeated until they are worth several threads."""
    args = max(op.cases(device, main_dtype(op)), key=lambda args: args[0].shape[-1])
    rows = max(len(a) for a in args if isinstance(a, torch.Tensor))
    times = -(-8192 // rows)
    return tuple(
        a.repeat(times, *[1] * (a.dim() - 1))
        if isinstance(a, torch.Tensor) and len(a) == rows
        else a
        for a in args
    )


def test_nan_in_gives_nan_out(op, device, isa):
    """Where the reference gives it; and each argument has a case in which that gives it."""
    for dtype in op.dtypes:
        poisons, reached = set(), set()
        for args in small_cases(op, device, dtype):
            for i in floating(op, args):
                poisoned = list(args)
                poisoned[i] = args[i].clone()
                poisoned[i][(-1,) * args[i].dim()] = torch.nan
                want = outputs(op.reference(*poisoned))
                if not any(w.is_floating_point() for w in want):
                    continue
                poisons.add(i)
                if any(w.isnan().any() for w in want):
                    reached.add(i)
                if op.refuses_nan and op.serving(device).implementation != "torch":
                    if device == "cpu":
                        with pytest.raises(ValueError, match="must be numbers; got NaN"):
                            call(op, *poisoned)
                    continue
                for got, w in zip(call(op, *poisoned), want, strict=True):
                    if w.is_floating_point():
                        assert torch.equal(got.isnan(), w.isnan())
        assert reached == poisons


def test_without_a_kernel_the_reference_runs_and_says_so(op, monkeypatch):
    if op.cpp is None:
        pytest.skip("has no C++ kernel")

    def missing():
        raise _load.CoreMissing("no core here")

    monkeypatch.setattr(_load, "core", missing)
    monkeypatch.setattr(_register, "_demanded", "auto")
    monkeypatch.delenv("FASTLATENT_STRICT", raising=False)
    op._served.clear()
    try:
        args = next(iter(op.cases("cpu", main_dtype(op))))
        with pytest.warns(RuntimeWarning, match=f"fastlatent.{op.name}: .* because no core here"):
            first = call(op, *args)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(op, *args)
        for got, want in zip(first, outputs(op.reference(*args)), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
        op._served.clear()
        monkeypatch.setenv("FASTLATENT_STRICT", "1")
        with pytest.raises(RuntimeError, match="no core here"):
            call(op, *args)
        with ops.use("cpp"), pytest.raises(RuntimeError, match="no 'cpp' kernel on cpu"):
            call(op, *args)
    finally:
        op._served.clear()


@pytest.mark.gpu
def test_runs_on_a_side_stream(op, device):
    if device != "cuda":
        pytest.skip("streams are CUDA's")
    args = next(iter(op.cases("cuda", main_dtype(op))))
    want = call(op, *args)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(
            20_000_000
        )  # a kernel on another stream would run before its input exists
        late = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
        got = call(op, *late)
    side.synchronize()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(op, device):
    if device != "cuda" or not op.capturable:
        pytest.skip("concerns capturable ops on CUDA")
    first, second = (
        tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
        for args in (next(iter(op.cases("cuda", main_dtype(op)))),) * 2
    )
    second = tuple(
        (-a if a.is_floating_point() else ~a) if isinstance(a, torch.Tensor) else a for a in second
    )
    call(op, *first)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(op, *first)
    for a, b in zip(first, second, strict=True):
        if isinstance(a, torch.Tensor):
            a.copy_(b)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(results, call(op, *second), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.large
def test_more_than_two_billion_elements(device):
    """Offsets beyond 32 bits: the last rows of a big input equal the same rows alone."""
    n, d = 2**21 + 7, 1029
    x = torch.randn(64, d, dtype=torch.float16, device=device).repeat(-(-n // 64), 1)[:n]
    codes, error = ops.binarize(x)
    tail_codes, tail_error = ops.binarize(x[-64:].clone())
    assert torch.equal(codes[-64:], tail_codes) and torch.equal(error[-64:], tail_error)
    words = ops.pack_bits(codes)
    assert torch.equal(words[-64:], ops.pack_bits(tail_codes))
    assert torch.equal(ops.unpack_bits(words, d, torch.float16)[-64:], tail_codes)
    del x, codes
    gc.collect()
    ones, agree = ops.binary_moments(words, d)
    assert torch.equal(agree.diagonal(), torch.full_like(ones, n))
    assert torch.equal(ones[:1], (words[:, 0] & 1).sum()[None])
    differ = ((words[:, 0] >> 1) ^ (words[:, 16] >> 4)) & 1  # coordinates 1 and 1028
    assert agree[1, 1028] == agree[1028, 1] == n - differ.sum()
    del words, differ
    make = torch.Generator(device).manual_seed(0)
    factor = torch.randn(d + 1, 3, generator=make, device=device)
    noise = torch.randn(n, 6, generator=make, device=device)[:, ::2]
    drawn = ops.bernoulli_copula_sample(factor, noise)
    assert torch.equal(drawn[-64:], ops.bernoulli_copula_sample(factor, noise[-64:]))


@given(
    rows=st.integers(0, 40),
    d=st.integers(1, 150),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    step=st.integers(1, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_shapes_strides_and_special_values(rows, d, dtype, step, flip, seed):
    make = torch.Generator().manual_seed(seed)
    wide = torch.randn((rows * step, d * step), generator=make).to(dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-30, 65504.0]).to(dtype)
    spots = torch.rand(wide.shape, generator=make) < 0.1
    wide[spots] = special[torch.randint(len(special), (int(spots.sum()),), generator=make)]
    x = wide[::step, ::step]
    x = x.t().contiguous().t() if flip else x
    codes, error = ops.binarize(x)
    want_codes, want_error = ops.binarize.reference(x, "tanh")
    assert torch.equal(codes, want_codes)
    torch.testing.assert_close(error, want_error)
    words = ops.pack_bits(codes)
    assert torch.equal(words, ops.pack_bits.reference(codes))
    assert torch.equal(ops.unpack_bits(words, d, dtype), codes)
    ones, agree = ops.binary_moments(words, d)
    assert torch.equal(ones, (codes > 0).sum(0))
    assert torch.equal(agree, (codes[:, :, None] == codes[:, None, :]).sum(0))


def test_moments_ignore_padding_bits():
    words = ops.pack_bits(torch.ones(100, 70))
    words[:, 1] |= -64  # bits 6 to 63 belong to no coordinate
    ones, agree = ops.binary_moments(words, 70)
    assert (ones == 100).all() and (agree == 100).all()


def test_the_values_of_the_definition():
    logits = torch.tensor([[0.0, 1.2, -0.3]], requires_grad=True)
    codes, error = ops.binarize(logits)
    assert codes.tolist() == [[1, 1, -1]]
    torch.testing.assert_close(error, torch.tensor([0.62501]), rtol=0, atol=1e-5)
    codes.sum().backward()
    torch.testing.assert_close(
        logits.grad, torch.tensor([[1, 0.30502, 0.91514]]), rtol=0, atol=1e-5
    )
    assert ops.pack_bits(torch.tensor([[1.0, -1, 1, 1]])).tolist() == [[0b1101]]


@pytest.mark.parametrize(
    ("surrogate", "slopes"),
    [
        ("identity", [1, 1, 1, 1]),
        ("clip", [1, 1, 0, torch.nan]),
        ("tanh", [0.786447733, 0.419974342, 0.180706639, torch.nan]),  # 1 / cosh(x)^2
    ],
)
def test_slopes_of_the_surrogates(surrogate, slopes):
    x = torch.tensor([0.5, 1.0, 1.5, torch.nan], dtype=torch.float64, requires_grad=True)
    for function in (ops.binarize, ops.binarize.reference):
        (got,) = torch.autograd.grad(function(x, surrogate)[0].sum(), x)
        want = torch.tensor(slopes, dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9, equal_nan=True)


def test_arguments_can_be_named():
    x = torch.randn(3, 5)
    for function in (OPS["binarize"], ops.binarize):
        codes, _ = function(x=x, surrogate="clip")
        assert torch.equal(codes, torch.where(x >= 0, 1.0, -1.0))


UNIT = (256, "unit", -7.0)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda raw: raw.unpack_bits(torch.zeros(1, 1, dtype=torch.int64), 4096, torch.float32),
        lambda raw: raw.pack_bits(torch.ones(2, 64, dtype=torch.uint8)),
        lambda raw: raw.binarize_backward(torch.ones(4, 8), torch.ones(4, 8).double(), "tanh"),
        lambda raw: raw.elu_backward(torch.ones(3), torch.ones(4)),
        lambda raw: raw.elu_backward(torch.ones(4), torch.ones(4).double()),
        lambda raw: raw.binary_moments(torch.zeros(5, 1, dtype=torch.int32), 64),
        lambda raw: raw.bernoulli_copula_sample(
            torch.ones(3, 2).half(), torch.ones(4, 2).half(), 0
        ),
        lambda raw: raw.discretized_logistic_mean(torch.ones(4), torch.ones(3), *UNIT),
        lambda raw: raw.discretized_logistic_mode(torch.ones(4), torch.ones(4).double(), *UNIT),
        lambda raw: raw.discretized_logistic_mixture_mean(torch.ones(2, 19, 4, 4), 3, True, *UNIT),
        lambda raw: raw.discretized_logistic_mixture_mode(torch.ones(2, 20, 4, 4), 2, True, *UNIT),
        lambda raw: raw.discretized_logistic_mixture_mean_backward(
            torch.ones(2, 3, 4, 5), torch.ones(2, 20, 4, 4), True, *UNIT
        ),
    ],
)
def test_the_core_protects_its_memory(attempt):
    """Calls past the public functions end in an error, not beyond the end of an array."""
    if OPS["pack_bits"].serving("cpu").implementation != "cpp":
        pytest.skip("concerns the C++ kernels")
    with pytest.raises(ValueError, match="core: "):
        attempt(torch.ops.fastlatent)


def test_an_unknown_implementation_in_the_environment_is_one_sentence(monkeypatch):
    monkeypatch.setattr(_register, "_demanded", "gpu")
    with pytest.raises(ValueError, match="FASTLATENT_IMPL: the value must be one of 'auto'"):
        ops.binarize(torch.ones(2, 2))


BAD = [
    (lambda: ops.binarize([1.0]), TypeError, "binarize: x must be a tensor, got list"),
    (lambda: ops.binarize(torch.ones(3, dtype=torch.int64)), TypeError, "x must have dtype float"),
    (lambda: ops.binarize(torch.tensor(1.0)), ValueError, "at least one dimension"),
    (lambda: ops.binarize(torch.ones(3), "sign"), ValueError, "'identity', 'clip', 'tanh'"),
    (lambda: ops.pack_bits(torch.ones(3)), ValueError, "codes must have 2 dimensions"),
    (lambda: ops.unpack_bits(torch.ones(3, 1), 5), TypeError, "words must have dtype int64"),
    (lambda: ops.unpack_bits(torch.zeros(3, 1, dtype=torch.int64), 65), ValueError, "need 2 words"),
    (
        lambda: ops.unpack_bits(torch.zeros(3, 1, dtype=torch.int64), 5, torch.int8),
        TypeError,
        "dtype must be a floating dtype",
    ),
    (
        lambda: ops.binary_moments(torch.zeros(3, 2, dtype=torch.int64), 5),
        ValueError,
        "binary_moments: d = 5 coordinates need 1 words",
    ),
    (
        lambda: ops.bernoulli_copula_sample(torch.ones(3, 2), torch.ones(4, 3)),
        ValueError,
        "noise must have as many columns as factor, 2; got 3",
    ),
    (
        lambda: ops.bernoulli_copula_sample(torch.ones(3, 2), torch.ones(4, 2).double()),
        TypeError,
        "noise must have the dtype of factor, float32; got float64",
    ),
    (
        lambda: ops.bernoulli_copula_sample(torch.ones(3, 2), torch.ones(4, 2, device="meta")),
        ValueError,
        "noise must be on the device of factor, cpu; got meta",
    ),
    (
        lambda: ops.bernoulli_copula_sample(torch.ones(0, 2), torch.ones(4, 2)),
        ValueError,
        "at least the reference row",
    ),
    (lambda: ops.use("gpu"), ValueError, "'triton', 'linalg', 'torch'; got 'gpu'"),
]


@pytest.mark.parametrize(("attempt", "error", "sentence"), BAD)
def test_bad_arguments_are_named(attempt, error, sentence):
    with pytest.raises(error, match=sentence):
        attempt()


@pytest.mark.parametrize("value", [0.0, 0.5, torch.nan, torch.inf])
def test_what_is_no_code_is_not_packed(value):
    if OPS["pack_bits"].serving("cpu").implementation != "cpp":
        pytest.skip("values are checked inside the C++ kernel")
    codes = torch.ones(1000, 70)
    codes[700:, 69] = value
    with pytest.raises(ValueError, match=r"codes must be \+1 or -1; row 700 holds something else"):
        ops.pack_bits(codes)


def test_use_is_undone_and_the_table_follows():
    before = ops.table()
    with ops.use("torch"):
        assert {row.implementation for row in ops.table()} == {"torch"}
    assert ops.table() == before
    assert [row.op for row in before] == [
        name for name in OPS for _ in range(len(before) // len(OPS))
    ]


def test_the_copula_keeps_float32_products_exact():
    """Neither a process that allows bfloat16 products nor autocast changes the samples."""
    if OPS["bernoulli_copula_sample"].serving("cpu").implementation != "cpp":
        pytest.skip("concerns the C++ kernel")
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    make = torch.Generator().manual_seed(0)
    factor = torch.randn(301, 301, generator=make)
    noise = torch.randn(500, 301, generator=make)
    want = ops.bernoulli_copula_sample(factor, noise)
    whole = torch.backends.mkldnn
    try:
        for setting in (backend, whole):
            setting.fp32_precision = "bf16"
            got = ops.bernoulli_copula_sample(factor, noise)
            assert backend.fp32_precision == "bf16"
            setting.fp32_precision = "none"
            assert backend.fp32_precision == "none"
    finally:
        backend.fp32_precision = before
    assert torch.equal(got, want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.bernoulli_copula_sample(factor, noise), want)
