"""The geometry of latent space: metrics that decoders pull back, and curves under them."""

from fastlatent.geometry.curves import Curves, bezier, fit, straight
from fastlatent.geometry.descent import Status
from fastlatent.geometry.length import Length, curve_length, curve_measure
from fastlatent.geometry.metric import (
    Embedding,
    Metric,
    MetricField,
    as_metric,
    condition_number,
    jacobian,
    log_volume,
    pullback_metric,
    speed,
)
from fastlatent.geometry.paths import distance_matrix, equal_steps, graph_curves, midpoint
from fastlatent.geometry.solver import Geodesics, geodesic

__all__ = [
    "Curves",
    "Embedding",
    "Geodesics",
    "Length",
    "Metric",
    "MetricField",
    "Status",
    "as_metric",
    "bezier",
    "condition_number",
    "curve_length",
    "curve_measure",
    "distance_matrix",
    "equal_steps",
    "fit",
    "geodesic",
    "graph_curves",
    "jacobian",
    "log_volume",
    "midpoint",
    "pullback_metric",
    "speed",
    "straight",
]
