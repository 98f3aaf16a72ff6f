"""Training: the loop, and the parts that it is put together from."""

from fastlatent.training.callbacks import Callback, Moment
from fastlatent.training.learner import Learner
from fastlatent.training.loop import train
from fastlatent.training.plan import Plan

__all__ = ["Callback", "Learner", "Moment", "Plan", "train"]
