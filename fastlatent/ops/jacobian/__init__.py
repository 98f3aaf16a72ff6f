"""Pushing tangents through a decoder: activations with their derivatives, and Gram matrices.

A decoder alternates linear layers, which map tangents as they map values, with activations. For
the latter the chain rule needs f and f' at the same point, which share their costly part. The
columns of the Jacobian J that come out give the pulled-back metric J^T J (Arvanitidis, Hansen and
Hauberg 2018, arXiv:1710.11379, section 3).
"""

from fastlatent.ops.jacobian.activation import activation_jvp
from fastlatent.ops.jacobian.gram import jacobian_gram
from fastlatent.ops.jacobian.kinds import KINDS

__all__ = ["KINDS", "activation_jvp", "jacobian_gram"]
