"""The run folder: configuration, weights, checkpoints, metrics."""

from fastlatent.runs.config import flat, from_json, read_config, to_json
from fastlatent.runs.folder import EVALUATED, LATENTS, Run, State, Weights
from fastlatent.runs.lock import locked
from fastlatent.runs.log import Log, read_metrics
from fastlatent.runs.state import (
    check_values,
    pack_generators,
    pack_optimizer,
    unpack_generators,
    unpack_optimizer,
)

__all__ = [
    "EVALUATED",
    "LATENTS",
    "Log",
    "Run",
    "State",
    "Weights",
    "check_values",
    "flat",
    "from_json",
    "locked",
    "pack_generators",
    "pack_optimizer",
    "read_config",
    "read_metrics",
    "to_json",
    "unpack_generators",
    "unpack_optimizer",
]
