"""Kernels to drop into other code: torch in, torch out, on CPU and CUDA.

Every function that stands for a kernel has a `.reference` in plain PyTorch and works under
autograd, torch.compile and torch.func. Means, modes and the sampler of one logistic are made of
these and of plain PyTorch; so are `uniform_knots`, `insert_knot` and `insertion_matrix`, once for
each level of a search and never in its loop. All name argument and expectation when they are called
wrongly.
`table()` tells which kernel serves which op.
"""

from fastlatent.ops._register import OPS, KernelMissing, Serving, table, use
from fastlatent.ops.activation import elu
from fastlatent.ops.bits import binarize, binary_moments, pack_bits, unpack_bits
from fastlatent.ops.codes import bernoulli_log_prob, code_indices
from fastlatent.ops.copula import bernoulli_copula_sample
from fastlatent.ops.entropy import binary_entropy
from fastlatent.ops.gaussian import discretized_gaussian_log_prob, from_diffusion
from fastlatent.ops.jacobian import activation_jvp, jacobian_gram
from fastlatent.ops.logistic import (
    discretized_logistic_log_prob,
    discretized_logistic_mean,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_mode,
    discretized_logistic_mixture_sample,
    discretized_logistic_mode,
    discretized_logistic_sample,
    from_pixelcnn,
    from_vdvae,
)
from fastlatent.ops.roots import project_psd, sqrtm_psd, trace_sqrtm
from fastlatent.ops.spline import (
    bspline,
    insert_knot,
    insertion_matrix,
    polyline_energy,
    polyline_length,
    uniform_knots,
)

__all__ = [
    "OPS",
    "KernelMissing",
    "Serving",
    "activation_jvp",
    "bernoulli_copula_sample",
    "bernoulli_log_prob",
    "binarize",
    "binary_entropy",
    "binary_moments",
    "bspline",
    "code_indices",
    "discretized_gaussian_log_prob",
    "discretized_logistic_log_prob",
    "discretized_logistic_mean",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_mean",
    "discretized_logistic_mixture_mode",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_mode",
    "discretized_logistic_sample",
    "elu",
    "from_diffusion",
    "from_pixelcnn",
    "from_vdvae",
    "insert_knot",
    "insertion_matrix",
    "jacobian_gram",
    "pack_bits",
    "polyline_energy",
    "polyline_length",
    "project_psd",
    "sqrtm_psd",
    "table",
    "trace_sqrtm",
    "uniform_knots",
    "unpack_bits",
    "use",
]
