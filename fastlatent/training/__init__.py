"""The parts that the training loop is put together from."""

from fastlatent.training.learner import (
    AGREE_EVERY,
    Diverged,
    Learner,
    accelerated,
    check_bound,
    check_shapes,
)
from fastlatent.training.plan import Plan, film_index

__all__ = [
    "AGREE_EVERY",
    "Diverged",
    "Learner",
    "Plan",
    "accelerated",
    "check_bound",
    "check_shapes",
    "film_index",
]
