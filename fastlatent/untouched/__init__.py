"""Running functions that refer to modules without leaving traces in these."""

from fastlatent.untouched.running import Untouched, slots

__all__ = ["Untouched", "slots"]
