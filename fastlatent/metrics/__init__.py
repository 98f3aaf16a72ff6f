"""Measures of how good a model or its samples are."""

from fastlatent.metrics.features import (
    Classifier,
    dinov2,
    distance_name,
    extract,
    inception,
    read_npz,
    stored_classifier,
    train_classifier,
)
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
    "Classifier",
    "Extrapolated",
    "FeatureStatistics",
    "ImportanceEstimate",
    "MomentError",
    "Weighing",
    "dinov2",
    "distance_name",
    "extract",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "frechet_standard_error",
    "importance_log_likelihood",
    "inception",
    "moment_error",
    "nearest_distance",
    "read_npz",
    "stored_classifier",
    "train_classifier",
]
