"""Pull-back metrics of any decoder, and what is read off them."""

import torch
from torch import Tensor

from fastlatent.geometry.decoder import DecoderEmbedding
from fastlatent.geometry.embedding import Embedding, Metric, MetricField
from fastlatent.geometry.features import DrawnFeatures, FeatureMetric
from fastlatent.geometry.frozen import Composition, Decoder, FrozenDecoder
from fastlatent.geometry.precision import full_precision
from fastlatent.geometry.trial import Trial

__all__ = [
    "Embedding",
    "Metric",
    "MetricField",
    "as_metric",
    "condition_number",
    "jacobian",
    "log_volume",
    "pullback_metric",
    "speed",
]


def as_metric(
    decoder: Decoder | Metric,  # (n, d) -> (n, ...), or a pair (mean, variance) of such
    feature_map: Decoder | None = None,  # (n, ...) -> (n, ...), of the output or of its mean
    example: Tensor | None = None,  # (n, d) latents on which to try the decoder at once
    *,
    draws: int | None = None,  # of noise, for feature maps of stochastic decoders
    seed: int = 0,  # of that noise
    analytic: bool = True,  # False: torch.func runs the decoder as it is
) -> Metric:
    """The metric that the decoder gives its latents; a Metric is returned as it is.

    With J_f = df/dz, the metric of a deterministic decoder f is J_f^T J_f. That of a stochastic
    one, with mean m and standard deviation s, is J_m^T J_m + J_s^T J_s (G. Arvanitidis, L. K.
    Hansen, S. Hauberg, "Latent Space Oddity", ICLR 2018). A variance that does not depend on z adds
    nothing. A feature map phi of a stochastic decoder gives J_m^T M_phi J_m + J_s^T diag(M_phi) J_s
    at the mean image. With `draws` it gives the mean metric of phi(m + s eps) over that many fixed
    draws of noise. That is another definition, much faster for maps with many features. All but the
    former are Embeddings. Feature maps need an example to tell whether there is a variance.

    Parameters are frozen. Modules are left as they are found: what a decoder writes to parameters,
    buffers and attributes is undone. Decoders are evaluated in the mode they are in: batch norm and
    dropout in training mode are errors. Autocast and checkpoints within decoders have no effect.
    Make a new metric after changing a decoder.

    Raises TypeError or ValueError for a decoder whose output depends on the batch, is not
    differentiable in z or has a negative variance. So it does where the output is neither a float32
    or float64 tensor nor a pair of such. Most of this needs latents to try the decoder on.
    """
    if draws is not None and draws < 1:
        raise ValueError(f"as_metric: draws must be at least 1; got {draws}")
    if isinstance(decoder, Metric):
        if feature_map is not None:
            raise ValueError("as_metric: feature_map needs a decoder; a Metric has no images")
        return decoder
    f = FrozenDecoder(decoder)
    if feature_map is None:
        embedding = DecoderEmbedding(f, analytic)
        if example is not None:
            embedding.try_on(example)
        return embedding
    if example is None or len(example) == 0:
        raise ValueError(
            "as_metric: example latents (n, d) are needed with a feature map, to see whether the "
            "decoder has a variance"
        )
    phi = FrozenDecoder(feature_map, "feature_map")
    features = DecoderEmbedding(Composition(f, phi), analytic)
    features.check("as_metric", example)
    with full_precision(example.device.type):
        stochastic = Trial(f, example).stochastic
    if stochastic and draws is not None:
        features = DecoderEmbedding(DrawnFeatures(f, phi, draws, seed), analytic)
        features.draws = draws
    features.try_on(example)
    if not stochastic or draws is not None:
        return features
    return FeatureMetric(f, phi, features, example, analytic)


def jacobian(
    decoder: Decoder | Metric,
    z: Tensor,  # (n, d)
) -> Tensor:  # (n, D, d)
    """df/dz, of mean and standard deviation, 2 D rows, for a stochastic decoder.

    In chunks of bounded memory. Raises what as_metric raises; ValueError for latents that are not
    finite and for metrics that are not pulled back from a Euclidean space.
    """
    metric = _of(decoder, z, "jacobian")
    if not isinstance(metric, Embedding):
        raise ValueError("jacobian: this metric is not pulled back from a Euclidean space")
    return metric.jacobian(z)


def pullback_metric(
    decoder: Decoder | Metric,
    z: Tensor,  # (n, d)
    feature_map: Decoder | None = None,
) -> Tensor:  # (n, d, d)
    """M(z), as described for as_metric; in chunks of bounded memory.

    Raises what as_metric raises, and ValueError for latents that are not finite.
    """
    return _of(decoder, z, "pullback_metric", feature_map).matrix(z)


def speed(
    decoder: Decoder | Metric,
    z: Tensor,  # (n, d)
    dz: Tensor,  # (n, d)
) -> Tensor:  # (n,)
    """sqrt(dz^T M(z) dz), differentiable in both; the gradient where it is 0 is 0.

    Raises what as_metric raises, and ValueError for latents that are not finite.
    """
    squared = _of(decoder, z, "speed").speed_squared(z, dz)
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def log_volume(
    metric: Tensor,  # (..., d, d) symmetric positive semidefinite
) -> Tensor:  # (...)
    """log sqrt(det M), from a Cholesky factor in float64; -inf where M is singular.

    Raises ValueError or TypeError unless the matrices are square and floating.
    """
    _check_square("log_volume", metric)
    factor, info = torch.linalg.cholesky_ex(metric.double())
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    unknown = torch.where(metric.isnan().any(-1).any(-1), torch.nan, -torch.inf)
    return torch.where(info == 0, log_det, unknown).to(metric.dtype)


def condition_number(
    metric: Tensor,  # (..., d, d) symmetric positive semidefinite
) -> Tensor:  # (...) float64
    """Largest over smallest eigenvalue, computed in float64; inf where M is singular, NaN where
    it is not finite.

    Raises ValueError or TypeError unless the matrices are square and floating.
    """
    _check_square("condition_number", metric)
    finite = metric.isfinite().all(-1).all(-1)
    known = torch.where(finite[..., None, None], metric.double(), 0)
    eigenvalues = torch.linalg.eigvalsh(known)
    smallest = eigenvalues[..., 0].clamp_min(0)
    ratio = torch.where(smallest > 0, eigenvalues[..., -1] / smallest, torch.inf)
    return torch.where(finite, ratio, torch.nan)


def _of(
    decoder: Decoder | Metric, z: Tensor, name: str, feature_map: Decoder | None = None
) -> Metric:
    """The metric, and the latents checked down to their values."""
    if isinstance(z, Tensor) and z.is_floating_point() and not z.isfinite().all():
        raise ValueError(f"{name}: z must be finite")
    return as_metric(decoder, feature_map, None if isinstance(decoder, Metric) else z)


def _check_square(name: str, metric: Tensor) -> None:
    if not isinstance(metric, Tensor) or not metric.is_floating_point():
        got = str(metric.dtype) if isinstance(metric, Tensor) else type(metric).__name__
        raise TypeError(f"{name}: metric must be a floating tensor; got {got}")
    if metric.dim() < 2 or metric.shape[-1] != metric.shape[-2]:
        raise ValueError(f"{name}: metric must be (..., d, d); got {tuple(metric.shape)}")
