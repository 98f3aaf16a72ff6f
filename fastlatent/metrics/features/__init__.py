"""From images to features: sources of images, networks, and the passes between them."""

from fastlatent.metrics.features.classifier import (
    Classifier,
    stored_classifier,
    train_classifier,
)
from fastlatent.metrics.features.extraction import Features, distance_name, extract
from fastlatent.metrics.features.images import jpeg_round_trip, resize, to_uint8, to_unit
from fastlatent.metrics.features.inception_v3 import Inception, inception
from fastlatent.metrics.features.sources import read_npz
from fastlatent.metrics.features.vision_transformer import DINOv2, dinov2

__all__ = [
    "Classifier",
    "DINOv2",
    "Features",
    "Inception",
    "dinov2",
    "distance_name",
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
