"""Every argument of every public op that is no tensor, given what it can't be."""

import math
from inspect import isfunction, signature

import numpy as np
import pytest
import torch

from fastlatent import ops

WORDS = ops.pack_bits(torch.ones(3, 5))
BINS, PARAMS = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 20, 4, 4)
ONE = torch.zeros(4)
CONTROL, KNOTS = torch.zeros(2, 6, 3), ops.uniform_knots(6)
GRID = {"n_bins": 256, "grid": "centred", "min_log_scale": -7.0}
MIXTURE = GRID | {"coupled": True}
# What each function needs beside, then its scalars with values that fit.
CALLS = {
    "binarize": ([torch.zeros(3, 5)], {"surrogate": "tanh"}),
    "unpack_bits": ([WORDS], {"d": 5, "dtype": torch.float32}),
    "binary_moments": ([WORDS], {"d": 5}),
    "bernoulli_copula_sample": ([torch.ones(4, 3), torch.ones(6, 3)], {"packed": False}),
    "code_indices": ([torch.zeros(3, 6)], {"order": "lsb"}),
    "binary_entropy": ([torch.zeros(3, 6)], {"groups": 2}),
    "discretized_gaussian_log_prob": (
        [BINS[0, 0, 0], ONE, ONE],
        {"n_bins": 256, "grid": "centred", "cdf": "tanh"},
    ),
    "discretized_logistic_log_prob": ([BINS[0, 0, 0], ONE, ONE], GRID),
    "discretized_logistic_mean": ([ONE, ONE], GRID),
    "discretized_logistic_mode": ([ONE, ONE], GRID),
    "discretized_logistic_sample": ([ONE, ONE, ONE + 0.5], GRID | {"kind": "quantized"}),
    "discretized_logistic_mixture_log_prob": ([BINS, PARAMS], MIXTURE | {"reduction": "none"}),
    "discretized_logistic_mixture_mean": ([PARAMS], MIXTURE | {"channels": 3}),
    "discretized_logistic_mixture_mode": ([PARAMS], MIXTURE | {"channels": 3}),
    "discretized_logistic_mixture_sample": (
        [PARAMS, torch.full((2, 4, 4, 4), 0.5)],
        MIXTURE | {"kind": "continuous"},
    ),
    "from_diffusion": ([ONE + 1, ONE, ONE], {"n_bins": 256}),
    "from_pixelcnn": ([torch.ones(2, 3, 4, 4), PARAMS], {"n_bins": 256}),
    "from_vdvae": ([torch.ones(2, 4, 4, 3), PARAMS.permute(0, 2, 3, 1)], {"low_bit": False}),
    "bspline": ([CONTROL, torch.linspace(0, 1, 5)], {"degree": 3, "order": 1}),
    "uniform_knots": ([], {"k": 6, "degree": 3, "dtype": torch.float64}),
    "insert_knot": ([CONTROL, KNOTS], {"u": 0.4}),
    "insertion_matrix": ([KNOTS], {"u": 0.4, "degree": 3}),
    "activation_jvp": ([torch.zeros(2, 3), torch.zeros(2, 5, 3)], {"kind": "elu", "slope": 0.5}),
    "trace_sqrtm": ([torch.eye(3), torch.eye(3)], {"diagnostics": False}),
}
NEVER = {
    "a word": "x",
    "bytes": b"1",
    "complex": 1j,
    "a dict": {},
    "an object": object(),
    "several numbers": np.array([[[1, 2]]]),
    "a tensor": torch.zeros(1, 2, 3),
    "a complex tensor": torch.zeros(2, 2, dtype=torch.complex64),
    "an integer dtype": torch.int64,
}
NUMBERS = {
    "huge": 10**400,
    "very negative": -(10**5000),
    "NaN": math.nan,
    "minus infinity": -math.inf,
    "2^31": 2**31,
    "true": True,
    "a fraction": 2.5,
    "negative": -1,
}
SCALARS = [(name, argument) for name, (_, given) in CALLS.items() for argument in given]
# Numbers that are in order there: a tensor op refuses none of these by its meaning.
ALLOWED = {
    "min_log_scale": ("2^31", "a fraction", "negative"),
    "slope": ("2^31", "a fraction", "negative", "NaN", "minus infinity"),
    "coupled": ("true",),
    "packed": ("true",),
    "low_bit": ("true",),
    "diagnostics": ("true",),
}


def test_all_arguments_of_all_public_functions_are_tried():
    for name in ops.__all__:
        function = getattr(ops, name)
        if isfunction(function):
            _, tried = CALLS.get(name, ([], {}))
            others = {
                argument
                for argument, parameter in signature(function).parameters.items()
                if "Tensor" not in str(parameter.annotation)
            }
            assert others - {"device"} <= set(tried), name  # a device may be a word


@pytest.mark.parametrize(("name", "argument"), SCALARS)
def test_what_an_argument_cannot_be_is_one_sentence(name, argument):
    tensors, given = CALLS[name]
    function = getattr(ops, name)
    function(*tensors, **given)
    wrong = NEVER | {k: v for k, v in NUMBERS.items() if k not in ALLOWED.get(argument, ())}
    for word, value in wrong.items():
        with pytest.raises((TypeError, ValueError)) as raised:
            function(*tensors, **given | {argument: value})
        sentence = str(raised.value)
        assert sentence.startswith(f"{name}: "), f"{word}: {sentence}"
        assert argument in sentence.removeprefix(name), f"{word}: {sentence}"
        assert "got" in sentence or "strictly between" in sentence, f"{word}: {sentence}"
        assert "\n" not in sentence and len(sentence) < 300


@pytest.mark.parametrize(("name", "argument"), SCALARS)
def test_numbers_of_numpy_and_tensors_count_as_numbers(name, argument):
    tensors, given = CALLS[name]
    function, value = getattr(ops, name), given[argument]
    if not isinstance(value, int | float):
        return
    kind = torch.float64 if isinstance(value, float) else torch.int64
    others = [np.array(value)[()]]
    if not isinstance(value, bool):
        others += [np.array(value), torch.tensor(value, dtype=kind)]
    want = function(*tensors, **given)
    for other in others:
        got = function(*tensors, **given | {argument: other})
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_knots_of_other_dtypes_and_numbers():
    with pytest.raises(
        TypeError, match=r"uniform_knots: dtype must be a floating dtype; got torch.i"
    ):
        ops.uniform_knots(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"at most 2\^24 = 16,777,216; got 2147483648"):
        ops.uniform_knots(2**31)
    with pytest.raises(TypeError, match="uniform_knots: device must be a device; got 'nowhere'"):
        ops.uniform_knots(5, device="nowhere")
    control, knots = ops.insert_knot(CONTROL, KNOTS, [0.2, 0.4])
    assert control.shape == (2, 8, 3) and knots.shape == (12,)
