"""The metric of a feature map on the images of a stochastic decoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastlatent.geometry.decoder import DecoderEmbedding
from fastlatent.geometry.embedding import Metric
from fastlatent.geometry.frozen import Deviation, FrozenDecoder
from fastlatent.geometry.precision import full_precision
from fastlatent.geometry.tape import Untraceable, is_register, record
from fastlatent.geometry.tiles import Tile, budget, over_points
from fastlatent.ops.jacobian import jacobian_gram


class FeatureMetric(Metric):
    """J_m^T M_phi J_m + J_s^T diag(M_phi) J_s, with M_phi = J_phi^T J_phi at the mean image m(z).

    The expected metric of phi, linearised at the mean, of the random image m(z) + s(z) eps with
    eps ~ N(0, I) (M. Michelis, Q. Becker, "On Linear Interpolation in the Latent Space of Deep
    Generative Models", 2021). It is not pulled back from a Euclidean space. diag(M_phi) has a
    closed form for logistic regression and costs one vector-Jacobian product for each feature
    otherwise. Gradients flow through all of it.
    """

    max_bytes: int | None = None  # as of an Embedding

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
            image = decoder(example[:1])[0]
            self._weight = logistic_weight(feature_map, image)
            self._features_count = feature_map(image)[0].numel()

    def speed_squared(self, z: Tensor, v: Tensor) -> Tensor:
        self.check("speed_squared", z, v=v)

        def compute(points: slice, _: int) -> Tensor:
            part, along = z[points], v[points]
            spread = self._deviation.jvp(part, along).square()
            weight = self.diagonal(part)
            return self._features.speed_squared(part, along) + (weight * spread).sum(1)

        return self._tiled("speed_squared", compute, z, v)

    def matrix(self, z: Tensor) -> Tensor:
        self.check("matrix", z)

        def compute(points: slice, _: int) -> Tensor:
            part = z[points]
            spread = jacobian_gram(self._deviation.jacobian(part), self.diagonal(part))
            return self._features.matrix(part) + spread

        return self._tiled("matrix", compute, z, tangents=z.shape[1])

    def diagonal(
        self,
        z: Tensor,  # (n, d)
    ) -> Tensor:  # (n, D)
        """diag(M_phi), the squared length of each column of J_phi, at the mean images."""
        with full_precision(z.device.type):
            if self._weight is not None:
                w = self._weight  # J_phi = W - 1 p^T W
                average = self._features.output(z).exp() @ w
                # Expanded sum_k (w_kj - average_j)^2, without the K x D differences of each point.
                centre = w.mean(0)
                spread = (w - centre).square().sum(0)
                return spread + len(w) * (average - centre).square()
            return self._by_products(self._decoder(z)[0])

    def _by_products(self, image: Tensor) -> Tensor:
        features, pull = torch.func.vjp(lambda x: self._phi(x)[0].flatten(1), image)
        total = torch.zeros_like(image)
        for k in range(features.shape[1]):
            unit = torch.zeros_like(features)
            unit[:, k] = 1
            total = total + pull(unit)[0].square()
        return total.flatten(1)

    def _tiled(
        self, name: str, compute: Callable[[slice, int], Tensor], *inputs: Tensor, tangents: int = 1
    ) -> Tensor:
        z = inputs[0]
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return compute(slice(None), tangents)
        with torch.no_grad():
            each = self._features.floats_at(z) + self._deviation.floats_at(z)
            limit = self.max_bytes or budget(z.device)
            rows = Tile.within(limit, tangents, each * z.element_size()).points
            return over_points(name, Tile(max(1, rows), 1), compute, len(z))


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
