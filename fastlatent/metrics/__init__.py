"""Measures of how good a model or its samples are."""

from fastlatent.metrics.samples import MomentError, moment_error, nearest_distance

__all__ = ["MomentError", "moment_error", "nearest_distance"]
