"""The geometry of latent space: metrics that decoders pull back from image space."""

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

__all__ = [
    "Embedding",
    "Metric",
    "MetricField",
    "as_metric",
    "condition_number",
    "jacobian",
    "log_volume",
    "pullback_metric",
    "speed",
]
