"""B-spline curves, their knots, and the lengths and energies of polylines.

A curve of degree p over knots tau_0 <= ... <= tau_{k+p} is c(t) = sum_i N_{i,p}(t) P_i with the
basis of Cox and de Boor (de Boor, A Practical Guide to Splines, 2001, chapter IX):

    N_{i,0}(t) = 1 on [tau_i, tau_{i+1}), 0 elsewhere
    N_{i,s}(t) = (t - tau_i) M_i + (tau_{i+s+1} - t) M_{i+1},    N'_{i,s}(t) = s (M_i - M_{i+1})
    with M_i = N_{i,s-1}(t) / (tau_{i+s} - tau_i)

Spans are half-open but for the last one, which holds the last knot too. Only the p + 1 functions
that live on the span of t are ever computed, and between them no denominator is zero. Knots are
clamped: the ends stand p + 1 times, so the curve runs from its first control point to its last. The
knots between are distinct, so it has p - 1 continuous derivatives.
"""

from fastlatent.ops.spline.curve import bspline, uniform_knots
from fastlatent.ops.spline.insertion import insert_knot, insertion_matrix
from fastlatent.ops.spline.polyline import polyline_energy, polyline_length

__all__ = [
    "bspline",
    "insert_knot",
    "insertion_matrix",
    "polyline_energy",
    "polyline_length",
    "uniform_knots",
]
