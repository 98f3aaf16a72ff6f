"""Likelihoods of discretized logistics: exact, one or a mixture for each pixel.

A value is a bin k of n. With X = 2k - n + 1 its centre is (X + b) / gamma and its edges are
(X - 1 + b) / gamma and (X + 1 + b) / gamma, where the grid gives (gamma, b):

- "centred": (n - 1, 0), centres from -1 to 1 (PixelCNN++, VDVAE);
- "symmetric": (n, 0), n equal bins of [-1, 1];
- "unit": (2n, n), n equal bins of [0, 1].

The first and the last bin are open, so the n probabilities sum to 1. Under a logistic of mean m and
scale s, with alpha and beta the distances from m to the bin's near and far edge in units of s and
delta = beta - alpha,

    P(k) = (1 - e^-delta) sigmoid(-alpha) sigmoid(beta),    sigmoid(-alpha) for the open bins:

no difference of two sigmoids is ever taken, so nothing cancels. The mixture follows Salimans et al.
2017 (PixelCNN++), section 2.1 and 2.2: all channels of a pixel share the component, and with three
coupled channels the means of green and blue move with the observed red and green.

Domain: means up to 2^80 in size, 2^900 in float64, where means times the grid stay finite. A mean
beyond, infinities among them, counts as NaN. Log-scales may be anything: below the floor they count
as the floor, and at infinity the limit is taken, where the first and the last bin have 1/2 each. A
logit of -infinity takes its component away; one of infinity, or all at -infinity, gives NaN. A
log-probability beyond the range of its dtype is -infinity, and its gradient is not finite.

Layout of the parameters along dimension 1, K components: K logits, then for each channel K means
and K log-scales, followed, where channels are coupled, by K coefficients before their tanh: red to
green, red to blue, green to blue. That is K (1 + 2 c) planes, or 10 K.
"""

from fastlatent.ops.logistic.draws import (
    discretized_logistic_mixture_sample,
    discretized_logistic_sample,
)
from fastlatent.ops.logistic.layouts import from_pixelcnn, from_vdvae
from fastlatent.ops.logistic.means import (
    discretized_logistic_mean,
    discretized_logistic_mixture_mean,
)
from fastlatent.ops.logistic.mixture import discretized_logistic_mixture_log_prob
from fastlatent.ops.logistic.modes import (
    discretized_logistic_mixture_mode,
    discretized_logistic_mode,
)
from fastlatent.ops.logistic.single import discretized_logistic_log_prob

__all__ = [
    "discretized_logistic_log_prob",
    "discretized_logistic_mean",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_mean",
    "discretized_logistic_mixture_mode",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_mode",
    "discretized_logistic_sample",
    "from_pixelcnn",
    "from_vdvae",
]
