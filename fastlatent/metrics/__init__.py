"""Measures of how good a model or its samples are."""

from fastlatent.metrics.likelihood import (
    ImportanceEstimate,
    Weighing,
    importance_log_likelihood,
)
from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance

__all__ = [
    "ImportanceEstimate",
    "MomentError",
    "Weighing",
    "importance_log_likelihood",
    "moment_error",
    "nearest_distance",
]
