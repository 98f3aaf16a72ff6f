"""The metric of a feature map on the images of a stochastic decoder."""

import torch
from torch import Tensor

from fastlatent.geometry.decoder import DecoderEmbedding
from fastlatent.geometry.embedding import TiledMetric
from fastlatent.geometry.frozen import (
    Deviation,
    FrozenDecoder,
    LatentFunction,
    standard_deviation,
)
from fastlatent.geometry.precision import full_precision
from fastlatent.geometry.tape import Untraceable, is_register, record
from fastlatent.ops.jacobian import jacobian_gram


class FeatureMetric(TiledMetric):
    """J_m^T M_phi J_m + J_s^T diag(M_phi) J_s, with M_phi = J_phi^T J_phi at the mean image m(z).

    The expected metric of phi, linearised at the mean, of the random image m(z) + s(z) eps with
    eps ~ N(0, I) (M. Michelis, Q. Becker, "On Linear Interpolation in the Latent Space of Deep
    Generative Models", 2021). It is not pulled back from a Euclidean space. diag(M_phi) has a
    closed form for logistic regression and costs one vector-Jacobian product for each feature
    otherwise. Gradients flow through all of it.
    """

    def __init__(
        self,
        decoder: FrozenDecoder,
        feature_map: FrozenDecoder,
        features: DecoderEmbedding,  # feature_map of the mean of the decoder
        example: Tensor,  # (n, d)
        analytic: bool = True,
    ):
        self._decoder, self._phi, self._features = decoder, feature_map, features
        self._deviation = DecoderEmbedding(Deviation(decoder), analytic)
        self._deviation.try_on(example)
        self.latent_dim = example.shape[1]
        with torch.no_grad():
            self._weight = logistic_weight(feature_map, decoder(example[:1])[0])

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            part, along = z[points], v[points]
            spread = self._deviation.jvp(part, along).square()
            features, push = self._features.push_forward(part, along[:, None])
            weight = self.diagonal(part, features)
            return push[:, 0].square().sum(1) + (weight * spread).sum(1)

        return self._tiled("speed_squared", compute, z, v)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)

        def compute(points: slice, _: int) -> Tensor:
            part = z[points]
            weight = self.diagonal(part, self._features.output(part))
            spread = jacobian_gram(self._deviation.jacobian(part), weight)
            return self._features.matrix(part) + spread

        return self._tiled("matrix", compute, z, tangents=z.shape[1])

    def floats_at(self, z: Tensor) -> int:
        return self._features.floats_at(z) + self._deviation.floats_at(z)

    def stored_at(self, z: Tensor) -> int:
        products = 1 if self._weight is not None else self._features.output(z[:1]).shape[1]
        return (1 + products) * self._features.stored_at(z) + self._deviation.stored_at(z)

    def diagonal(
        self,
        z: Tensor,  # (n, d)
        features: Tensor,  # (n, K), those of the mean images
    ) -> Tensor:  # (n, D)
        """diag(M_phi), the squared length of each column of J_phi, at the mean images."""
        with full_precision(z.device.type):
            if self._weight is not None:
                w = self._weight  # J_phi = W - 1 p^T W
                average = features.exp() @ w
                # Expanded sum_k (w_kj - average_j)^2, without the K x D differences of each point.
                centre = w.mean(0)
                spread = (w - centre).square().sum(0)
                return spread + len(w) * (average - centre).square()
            return self._by_products(self._decoder(z)[0])

    def _by_products(self, image: Tensor) -> Tensor:
        features, pull = torch.func.vjp(lambda x: self._phi(x)[0].flatten(1), image)[:2]
        total = torch.zeros_like(image)
        for k in range(features.shape[1]):
            unit = torch.zeros_like(features)
            unit[:, k] = 1
            total = total + pull(unit)[0].square()
        return total.flatten(1)


class DrawnFeatures:
    """The features of `draws` random images m(z) + s(z) eps, each divided by sqrt(draws).

    The noise is drawn once, which makes this a function of z. The metric that it pulls back is the
    mean of those of phi(m + s eps): noise before phi, which is not linearised.
    """

    def __init__(self, decoder: LatentFunction, feature_map: LatentFunction, draws: int, seed: int):
        self.role = f"{feature_map.role} of the {decoder.role}"
        self._decoder, self._phi = decoder, feature_map
        self._draws, self._seed = draws, seed
        self._noise: Tensor | None = None

    def __call__(self, z: Tensor) -> tuple[Tensor, None]:
        mean, variance = self._decoder(z)
        assert variance is not None
        if self._noise is None:
            make = torch.Generator().manual_seed(self._seed)
            noise = torch.randn((self._draws, *mean.shape[1:]), generator=make, dtype=mean.dtype)
            self._noise = noise.to(mean.device)
        deviation = standard_deviation(variance).view(mean.shape)
        features = [self._phi(mean + deviation * eps)[0].flatten(1) for eps in self._noise]
        return torch.cat(features, 1) / self._draws**0.5, None


def logistic_weight(
    feature_map: FrozenDecoder,
    image: Tensor,  # (1, ...)
) -> Tensor | None:  # (K, D)
    """W of a map that is x -> log softmax(W x + b) on flattened images; None if it is not."""
    try:
        tape = record(feature_map, torch.cat([image, image]))
    except Untraceable:
        return None
    calls = [call for call in tape.calls if call.name.rpartition(".")[2] not in _VIEWS]
    if [call.name for call in calls] != ["aten.addmm", "aten._log_softmax"]:
        return None
    product, softmax = calls
    weight = product.argument("mat2")
    plain = product.argument("alpha") == product.argument("beta") == 1
    mine = is_register(product.argument("mat1")) and isinstance(weight, Tensor)
    if not (plain and mine and softmax.argument("dim") in (1, -1)):
        return None
    return weight.mT.detach()


_VIEWS = {"view", "_unsafe_view", "reshape", "alias", "clone"}
