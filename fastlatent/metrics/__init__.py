"""Measures of how good a model or its samples are."""

from fastlatent.estimate import Estimate
from fastlatent.metrics.compared import Distance, fid, kid, precision_recall
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
from fastlatent.metrics.kernel import KernelDistance, kernel_distance
from fastlatent.metrics.likelihood import (
    ImportanceEstimate,
    Weighing,
    importance_log_likelihood,
)
from fastlatent.metrics.prd import PRDCurve, PRDScore, prd_curve, prd_f_beta, prd_of_histograms
from fastlatent.metrics.precision_recall import (
    DensityCoverage,
    Neighbourhoods,
    PrecisionRecall,
    density_coverage,
    realism,
)
from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance
from fastlatent.metrics.scores import Scores, score
from fastlatent.metrics.statistics import FeatureStatistics

__all__ = [
    "Classifier",
    "DensityCoverage",
    "Distance",
    "Estimate",
    "Extrapolated",
    "FeatureStatistics",
    "ImportanceEstimate",
    "KernelDistance",
    "MomentError",
    "Neighbourhoods",
    "PRDCurve",
    "PRDScore",
    "PrecisionRecall",
    "Scores",
    "Weighing",
    "density_coverage",
    "dinov2",
    "distance_name",
    "extract",
    "fid",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "frechet_standard_error",
    "importance_log_likelihood",
    "inception",
    "kernel_distance",
    "kid",
    "moment_error",
    "nearest_distance",
    "prd_curve",
    "prd_f_beta",
    "prd_of_histograms",
    "precision_recall",
    "read_npz",
    "realism",
    "score",
    "stored_classifier",
    "train_classifier",
]
