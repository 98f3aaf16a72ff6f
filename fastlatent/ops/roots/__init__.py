"""Square roots of positive semi-definite matrices and of their products."""

from fastlatent.ops.roots.square_root import project_psd, sqrtm_psd
from fastlatent.ops.roots.trace import Diagnostics, trace_sqrtm

__all__ = ["Diagnostics", "project_psd", "sqrtm_psd", "trace_sqrtm"]
