"""Likelihood and sampler that programs after PixelCNN++ paste, for tests and benchmarks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pasted_log_prob(
    x: Tensor,  # (n, 1 or 3, h, w), centres of bins from -1 to 1
    params: Tensor,  # (n, 3 K or 10 K, h, w)
    n_bins: int = 256,
) -> tuple[Tensor, Tensor]:  # (n, h, w) nats; (n, c, K, h, w)
    """log P of each pixel, and the differences of sigmoids below which it takes the density."""
    c, half = x.shape[1], 1 / (n_bins - 1)
    x = x[:, :, None]  # (n, c, 1, h, w)
    blocks = 3 if c == 3 else 2
    k = params.shape[1] // (1 + blocks * c)
    logits, rest = params[:, :k], params[:, k:].unflatten(1, (c, blocks, k))
    means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7.0)
    if c == 3:
        tau = rest[:, :, 2].tanh()
        green = means[:, 1] + tau[:, 0] * x[:, 0]
        blue = means[:, 2] + tau[:, 1] * x[:, 0] + tau[:, 2] * x[:, 1]
        means = torch.stack([means[:, 0], green, blue], 1)
    centred = x - means
    inverse = torch.exp(-log_scales)
    plus, minus = inverse * (centred + half), inverse * (centred - half)
    delta = plus.sigmoid() - minus.sigmoid()
    middle = inverse * centred
    density = middle - log_scales - 2 * F.softplus(middle) + math.log(2 * half)
    inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    last, first = -F.softplus(minus), plus - F.softplus(plus)
    log_p = torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))
    return torch.logsumexp(log_p.sum(1) + F.log_softmax(logits, 1), 1), delta


def channels_last_log_prob(
    x: Tensor,  # (n, h, w, 3), centres of bins from -1 to 1
    params: Tensor,  # (n, h, w, 10 K): K logits, then for each channel K of each kind
    n_bins: int = 256,
) -> tuple[Tensor, Tensor]:  # (n, h, w) nats; (n, h, w, 3, K)
    """As VDVAE lays it out: log P of each pixel, and the differences of sigmoids."""
    k, half = params.shape[-1] // 10, 1 / (n_bins - 1)
    logits, rest = params[..., :k], params[..., k:].reshape(*x.shape, 3 * k)
    means, log_scales = rest[..., :k], rest[..., k : 2 * k].clamp(min=-7.0)
    coefficients = rest[..., 2 * k :].tanh()
    red, green = x[..., 0, None], x[..., 1, None]
    of_green = means[..., 1, :] + coefficients[..., 0, :] * red
    of_blue = means[..., 2, :] + coefficients[..., 1, :] * red + coefficients[..., 2, :] * green
    means = torch.stack([means[..., 0, :], of_green, of_blue], 3)
    centred, inverse = x[..., None] - means, torch.exp(-log_scales)
    plus, middle, minus = (inverse * (centred + shift) for shift in (half, 0.0, -half))
    delta = plus.sigmoid() - minus.sigmoid()
    density = middle - log_scales - 2 * F.softplus(middle) + math.log(2 * half)
    log_p = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    log_p = torch.where(x[..., None] > 0.999, -F.softplus(minus), log_p)
    log_p = torch.where(x[..., None] < -0.999, plus - F.softplus(plus), log_p)
    return (log_p.sum(3) + logits.log_softmax(-1)).logsumexp(-1), delta


def pasted_sample(
    params: Tensor,  # (n, 10 K, h, w)
    uniforms: Tensor,  # (n, K + 3, h, w) in (0, 1), for components and channels
) -> Tensor:  # (n, 3, h, w) in [-1, 1]
    """Colours of the component whose logit is the largest with Gumbel noise added."""
    k = params.shape[1] // 10
    logits, rest = params[:, :k], params[:, k:].unflatten(1, (3, 3, k))
    component = (logits - (-uniforms[:, :k].log()).log()).argmax(1)
    index = component[:, None, None, None].expand(-1, 3, 3, 1, -1, -1)
    means, log_scales, raw = rest.gather(3, index).squeeze(3).unbind(2)
    u = uniforms[:, k:]
    x = means + log_scales.clamp(min=-7.0).exp() * (u.log() - (1 - u).log())
    tau = raw.tanh()
    red = x[:, 0].clamp(-1, 1)
    green = (x[:, 1] + tau[:, 0] * red).clamp(-1, 1)
    blue = (x[:, 2] + tau[:, 1] * red + tau[:, 2] * green).clamp(-1, 1)
    return torch.stack([red, green, blue], 1)
