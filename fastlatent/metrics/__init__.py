"""Measures of how good a model or its samples are."""

from fastlatent.metrics.frechet import (
    Extrapolated,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    frechet_standard_error,
)
from fastlatent.metrics.likelihood import (
    ImportanceEstimate,
    Weighing,
    importance_log_likelihood,
)
from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance
from fastlatent.metrics.statistics import FeatureStatistics

__all__ = [
    "Extrapolated",
    "FeatureStatistics",
    "ImportanceEstimate",
    "MomentError",
    "Weighing",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "frechet_standard_error",
    "importance_log_likelihood",
    "moment_error",
    "nearest_distance",
]
