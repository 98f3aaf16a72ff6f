"""Surfaces whose geodesics are known, as decoders z (n, 2) -> (n, 3)."""

import math

import torch
from scipy.integrate import quad
from scipy.optimize import brentq


def sphere(z):
    """The unit sphere by stereographic projection; its metric is 4 / (1 + |z|^2)^2 I."""
    q = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, q - 1], -1) / (1 + q)


def swiss_roll(z):
    """A rolled plane: flat."""
    u, v = z.unbind(-1)
    return torch.stack([u * u.cos(), u * u.sin(), v], -1)


def swiss_distance(a, b):
    """Its geodesics are straight in the arc length of the spiral."""

    def arc(u):
        return (u * (1 + u * u).sqrt() + u.asinh()) / 2

    along, up = arc(b[:, 0]) - arc(a[:, 0]), b[:, 1] - a[:, 1]
    return (along.square() + up.square()).sqrt()


def torus(z):
    """Radii 2 and 1; z is the angle around the axis and that around the tube."""
    u, v = z.unbind(-1)
    ring = 2 + v.cos()
    return torch.stack([ring * u.cos(), ring * u.sin(), v.sin()], -1)


def flat_torus(z):
    """Two circles, isometric to the plane: geodesics are straight."""
    u, v = z.unbind(-1)
    return torch.stack([u.cos(), u.sin(), v.cos(), v.sin()], -1)


def paraboloid(z):
    """Height |z|^2 / 2 over the plane."""
    return torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)


def paraboloid_distance(a, b):
    """The length of a geodesic of it that passes its point next to the axis on the way.

    Clairaut: r^2 du = c ds stays constant, u the angle around the axis and c the least radius. With
    r^2 = c^2 + s^2 the arc from there is the integral of sqrt(1 + c^2 + s^2).
    """
    radii = [float(end.norm()) for end in (a, b)]
    cosine = float(torch.dot(a, b)) / math.prod(radii)

    def along(c, f):
        ends = [math.sqrt(r * r - c * c) for r in radii]
        return sum(quad(f, 0, s, args=(c,), epsabs=1e-12, epsrel=1e-12)[0] for s in ends)

    def arc(s, c):
        return math.sqrt(1 + c * c + s * s)

    def turned(c):
        return along(c, lambda s, c: c * arc(s, c) / (c * c + s * s)) - math.acos(cosine)

    return along(brentq(turned, 1e-3, min(radii), xtol=1e-13), arc)


def half_plane(z):
    """The metric of Poincare's half-plane, I / y^2: (n, 2) -> (n, 2, 2)."""
    return torch.eye(2, dtype=z.dtype) / z[:, 1, None, None].square()


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def half_plane_distance(a, b):
    gap = (a - b).square().sum(1)
    return torch.acosh(1 + gap / (2 * a[:, 1] * b[:, 1]))


def sphere_distance(a, b):
    return 2 * ((sphere(a) - sphere(b)).norm(dim=1) / 2).clamp(max=1).asin()


def cone(slope):
    """Height slope |z| over the plane; its gradient at the tip is not a number."""

    def decode(z):
        return torch.cat([z, slope * z.square().sum(1, keepdim=True).sqrt()], 1)

    return decode


def cone_distance(slope, a, b):
    """Straight once the cone is cut open and laid flat."""
    stretch = math.hypot(1, slope)
    ra, rb = a.norm(dim=1) * stretch, b.norm(dim=1) * stretch
    cosine = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1)
    angle = cosine.acos() / stretch
    return (ra.square() + rb.square() - 2 * ra * rb * angle.cos()).sqrt()


def hill(height, width=0.5):
    """A bell over the plane (or over more dimensions), `height` high."""

    def decode(z):
        bell = height * (-z.square().sum(1, keepdim=True) / width).exp()
        return torch.cat([z, bell], 1)

    return decode
