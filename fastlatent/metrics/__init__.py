"""Measures of how good a model or its samples are."""

from fastlatent.metrics.kernel import KernelDistance, kernel_distance
from fastlatent.metrics.likelihood import (
    ImportanceEstimate,
    Weighing,
    importance_log_likelihood,
)
from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance
from fastlatent.metrics.sets import Estimate

__all__ = [
    "Estimate",
    "ImportanceEstimate",
    "KernelDistance",
    "MomentError",
    "Weighing",
    "importance_log_likelihood",
    "kernel_distance",
    "moment_error",
    "nearest_distance",
]
