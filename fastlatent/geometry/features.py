"""The metric of a feature map on the images of a stochastic decoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastlatent.geometry.embedding import Metric, push, standard_deviation
from fastlatent.geometry.frozen import FrozenDecoder, LatentFunction, Trial
from fastlatent.geometry.tiles import Tile, budget, over_points


class FeatureMetric(Metric):
    """J_m^T M_phi J_m + J_s^T diag(M_phi) J_s, with M_phi = J_phi^T J_phi at the mean image m(z).

    The expected metric of phi, linearised at the mean, of the random image m(z) + s(z) eps with
    eps ~ N(0, I) (M. Michelis, Q. Becker, "On Linear Interpolation in the Latent Space of Deep
    Generative Models", 2021). It is not pulled back from a Euclidean space. diag(M_phi) has a
    closed form for logistic regression and costs one vector-Jacobian product for each feature
    otherwise. Gradients flow through all of it.
    """

    max_bytes: int | None = None  # as of an Embedding

    def __init__(self, decoder: LatentFunction, feature_map: FrozenDecoder, trial: Trial):
        self._decoder, self._phi = decoder, feature_map
        self._floats = 4 * trial.largest
        self._logistic = logistic_regression(feature_map.function)

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            features, deviations, weight = self._push(z[points], v[None, points])
            return features[0].square().sum(1) + (weight * deviations[0].square()).sum(1)

        return self._tiled("speed_squared", compute, z, v)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)
        d = z.shape[1]

        def compute(points: slice, _: int) -> Tensor:
            part = z[points]
            basis = torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(-1, len(part), -1)
            features, deviations, weight = self._push(part, basis)
            f, s = features.transpose(0, 1), deviations.transpose(0, 1)
            return f @ f.mT + (s * weight[:, None]) @ s.mT

        return self._tiled("matrix", compute, z, tangents=d)

    def _push(self, z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J_phi J_m v (k, n, K), J_s v (k, n, D) for the tangents v; diag(M_phi) (n, D)."""
        (mean, _), (mean_v, deviation_v) = push(self._parts, z, tangents)
        _, feature_v = push(self._features, mean, mean_v)
        return feature_v, deviation_v, self._weight(mean)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self._decoder(z)
        assert variance is not None
        return mean, standard_deviation(variance.flatten(1))

    def _features(self, image: Tensor) -> Tensor:
        return self._phi(image)[0].flatten(1)

    def _weight(self, image: Tensor) -> Tensor:
        """diag(M_phi), sum_k (J_phi)_kj^2: (n, D)."""
        if self._logistic is not None:
            w = self._logistic.weight.detach()
            p = self._features(image).exp()
            # J_phi = W - 1 p^T W.
            mean = p @ w
            return w.square().sum(0) - 2 * w.sum(0) * mean + len(w) * mean.square()
        features, pull = torch.func.vjp(self._features, image)
        total = torch.zeros_like(image)
        for k in range(features.shape[1]):
            one_hot = torch.zeros_like(features)
            one_hot[:, k] = 1
            total = total + pull(one_hot)[0].square()
        return total.flatten(1)

    def _tiled(
        self, name: str, compute: Callable[[slice, int], Tensor], *inputs: Tensor, tangents: int = 1
    ) -> Tensor:
        z = inputs[0]
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return compute(slice(None), tangents)
        with torch.no_grad():
            limit = self.max_bytes or budget(z.device)
            rows = Tile.within(limit, tangents, self._floats * z.element_size()).points
            return over_points(name, Tile(max(1, rows), 1), compute, len(z))


def logistic_regression(feature_map: object) -> nn.Linear | None:
    """The layer W x + b if the map is log softmax(W x + b), flattening x first or not."""
    if not isinstance(feature_map, nn.Sequential):
        return None
    layers = [layer for layer in feature_map if not isinstance(layer, nn.Flatten)]
    if len(layers) != 2 or not isinstance(layers[1], nn.LogSoftmax):
        return None
    return layers[0] if isinstance(layers[0], nn.Linear) and layers[1].dim in (1, -1) else None
