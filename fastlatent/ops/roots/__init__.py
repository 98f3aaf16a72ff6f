"""Square roots of positive semi-definite matrices and of their products."""

from fastlatent.ops.roots.factors import Factor
from fastlatent.ops.roots.matrices import lower_gram
from fastlatent.ops.roots.nuclear import nuclear_norm_of_product
from fastlatent.ops.roots.square_root import project_psd, sqrtm_psd
from fastlatent.ops.roots.trace import Diagnostics, trace_sqrtm, trace_sqrtm_gradients

__all__ = [
    "Diagnostics",
    "Factor",
    "lower_gram",
    "nuclear_norm_of_product",
    "project_psd",
    "sqrtm_psd",
    "trace_sqrtm",
    "trace_sqrtm_gradients",
]
