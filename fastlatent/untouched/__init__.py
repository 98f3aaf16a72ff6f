"""Running functions that refer to modules without leaving traces in these."""

from fastlatent.untouched.inference import outside_inference_mode
from fastlatent.untouched.running import Untouched, slots

__all__ = ["Untouched", "outside_inference_mode", "slots"]
