"""From images to features: sources of images, networks, and the passes between them."""

from fastlatent.metrics.features.classifier import (
    Classifier,
    stored_classifier,
    train_classifier,
)
from fastlatent.metrics.features.dinov2 import DINOv2, dinov2
from fastlatent.metrics.features.extract import Features, extract
from fastlatent.metrics.features.images import jpeg_round_trip, resize, to_uint8, to_unit
from fastlatent.metrics.features.inception import Inception, inception
from fastlatent.metrics.features.sources import read_npz

__all__ = [
    "Classifier",
    "DINOv2",
    "Features",
    "Inception",
    "dinov2",
    "extract",
    "inception",
    "jpeg_round_trip",
    "read_npz",
    "resize",
    "stored_classifier",
    "to_uint8",
    "to_unit",
    "train_classifier",
]
