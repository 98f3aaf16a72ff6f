"""Curves in latent space: clamped B-splines, Bezier curves among them, many at once.

The maths is that of C. de Boor, "A Practical Guide to Splines", 1978, and, for knot insertion, of
W. Boehm, "Inserting new knots into B-spline curves", Computer-Aided Design 12(4), 1980.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastlatent.geometry.arguments import check_pair, check_tensor, check_whole
from fastlatent.ops import bspline, insert_knot, uniform_knots
from fastlatent.ops.spline.arguments import MAX_DEGREE
from fastlatent.ops.spline.insertion import inserted


@dataclass(frozen=True, eq=False)
class Curves:
    """n curves c: [0, 1] -> R^d that share their knots; immutable.

    The degree follows from the shapes: knots (k + degree + 1,) from 0 to 1, both ends degree + 1
    times. Between them the curves are degree - 1 times continuously differentiable.
    """

    control: Tensor  # (n, k, d)
    knots: Tensor  # (k + degree + 1,)

    @property
    def degree(self) -> int:
        return len(self.knots) - self.control.shape[1] - 1

    @property
    def spans(self) -> int:
        """Polynomial pieces of each curve."""
        return self.control.shape[1] - self.degree

    @property
    def start(self) -> Tensor:  # (n, d)
        return self.control[:, 0]

    @property
    def end(self) -> Tensor:  # (n, d)
        return self.control[:, -1]

    @cached_property
    def breaks(self) -> Tensor:
        """Where the pieces meet, 0 and 1 among them: (spans + 1,)."""
        return self.knots[self.degree : len(self.knots) - self.degree]

    def __len__(self) -> int:
        return len(self.control)

    def __getitem__(self, index: Tensor | slice) -> "Curves":
        """Some of the curves."""
        return Curves(self.control[index], self.knots)

    def points(self, t: Tensor) -> Tensor:
        """c(t): t (m,) or (n, m) in [0, 1] -> (n, m, d)."""
        return bspline(self.control, t, self.knots, self.degree)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """The derivative of that order: t (m,) or (n, m) -> (n, m, d)."""
        return bspline(self.control, t, self.knots, self.degree, order)

    def insert(self, u: float) -> "Curves":
        """The same curves with one more knot, which must be new."""
        control, knots = insert_knot(self.control, self.knots, u)
        return Curves(control, knots)

    def refine(self, spans: int) -> "Curves":
        """The same curves in `spans` pieces: the widest of them are halved, the first of equals.

        Raises ValueError where there are more pieces already.
        """
        if spans < self.spans:
            raise ValueError(f"refine: spans must be at least {self.spans}; got {spans}")
        curves = self
        while curves.spans < spans:
            widest = int(curves.breaks.diff().argmax())
            curves = curves.insert(float(curves.breaks[widest : widest + 2].mean()))
        return curves

    def split(self, t: float) -> tuple["Curves", "Curves"]:
        """The curves up to t and from t on, each over [0, 1].

        Raises ValueError unless t is strictly between 0 and 1.
        """
        if not 0 < t < 1:
            raise ValueError(f"split: t must be strictly between 0 and 1; got {t}")
        control, knots, at = self.control, self.knots, self.knots.new_tensor(t)
        for _ in range(self.degree - int((knots == at).sum())):
            control, knots = inserted(control, knots, at)
        k = int((knots < at).sum())  # c(t) is control point k - 1
        end = at.expand(self.degree + 1)
        left = Curves(control[:, :k], torch.cat([knots[:k], end]) / at)
        right = torch.cat([end, knots[k + self.degree :]])
        return left, Curves(control[:, k - 1 :], (right - at) / (1 - at))

    def reverse(self) -> "Curves":
        """The curves walked backwards: c(1 - t)."""
        return Curves(self.control.flip(1), 1 - self.knots.flip(0))


def check_curves(name: str, curves: object) -> None:
    """Raises TypeError, in the name of a function, for anything but Curves."""
    if not isinstance(curves, Curves):
        raise TypeError(f"{name}: curves must be Curves; got {type(curves).__name__}")


def straight(
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    spans: int = 1,
    degree: int = 3,
) -> Curves:
    """Straight lines at constant speed; the control points lie at the Greville abscissae.

    Raises TypeError for ends that are not float32 or float64 tensors. Raises ValueError for ends
    whose shapes, dtypes or devices differ, for spans below 1 and for a degree outside 1 ... 31.
    """
    check_pair("straight", start, end)
    check_whole("straight", "spans", spans, 1)
    return straight_on(uniform_knots(spans + degree, degree, start.dtype, start.device), start, end)


def straight_on(
    knots: Tensor,  # (k + degree + 1,) from 0 to 1, clamped
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
) -> Curves:
    """Straight lines at constant speed on given knots."""
    degree = int((knots == knots[0]).sum()) - 1
    places = knots[1:-1].unfold(0, degree, 1).mean(1)[:, None]  # (k, 1)
    control = torch.lerp(start[:, None], end[:, None], places)
    control[:, 0], control[:, -1] = start, end
    return Curves(control, knots)


def bezier(control: Tensor) -> Curves:
    """Bezier curves of degree k - 1 through their first and last control points (n, k, d).

    Raises TypeError for control points that are not a float32 or float64 tensor. Raises ValueError
    for another shape and for k outside 2 ... 32.
    """
    check_tensor("bezier", "control", control, "(n, k, d)")
    k = control.shape[1]
    if not 2 <= k <= MAX_DEGREE + 1:
        raise ValueError(f"bezier: control must hold 2 to {MAX_DEGREE + 1} points a curve; got {k}")
    return Curves(control, uniform_knots(k, k - 1, control.dtype, control.device))


def fit(points: Tensor, t: Tensor, spans: int, degree: int = 3) -> Curves:
    """Curves from the first to the last points (n, m, d) that come closest to those between.

    t (m,), from 0 to 1, says where each point is to be passed. Closest means least squares; where
    few points leave a choice, the curve nearest to the straight line is taken. Shapes are not
    checked.
    """
    line = straight(points[:, 0], points[:, -1], spans, degree)
    unit = torch.eye(line.control.shape[1], dtype=points.dtype, device=points.device)[None]
    basis = bspline(unit, t, line.knots, degree)[0]  # (m, k)
    inner = torch.linalg.pinv(basis[:, 1:-1]) @ (points - line.points(t))
    control = line.control + torch.nn.functional.pad(inner, (0, 0, 1, 1))
    return Curves(control, line.knots)
