"""Measures of how good a model or its samples are."""

from fastlatent.metrics.frechet import (
    Extrapolated,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    frechet_standard_error,
)
from fastlatent.metrics.kernel import KernelDistance, kernel_distance
from fastlatent.metrics.likelihood import (
    ImportanceEstimate,
    Weighing,
    importance_log_likelihood,
)
from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance
from fastlatent.metrics.sets import Estimate
from fastlatent.metrics.statistics import FeatureStatistics

__all__ = [
    "Estimate",
    "Extrapolated",
    "FeatureStatistics",
    "ImportanceEstimate",
    "KernelDistance",
    "MomentError",
    "Weighing",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "frechet_standard_error",
    "importance_log_likelihood",
    "kernel_distance",
    "moment_error",
    "nearest_distance",
]
