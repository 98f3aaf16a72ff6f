"""A variational autoencoder around an encoder and a decoder of the user's own."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastlatent.files.code import registered
from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.lvae.likelihoods import LIKELIHOODS
from fastlatent.nn import at_least_float32, gaussian_kl
from fastlatent.noise import Noise
from fastlatent.priors import Normal, Prior, VampPrior
from fastlatent.priors.gaussian import entropy

LikelihoodName = Literal[
    "bernoulli", "gaussian", "discretized_logistic", "discretized_logistic_mixture"
]


TRIED = 2  # rows that find out a module's sizes


class AutoEncoder(LatentModel):
    """Gaussian posteriors by `encoder`, pixels by `decoder`, the negative ELBO as loss.

    encoder: images (n, c, h, w) in [0, 1] to the mean and the log-variance of the latents. They are
    a pair of (n, d), or one tensor (n, 2 d) whose first half are the means.

    decoder: latents (n, d) to k numbers for each pixel, (n, k, h, w) or flattened, where k goes by
    `likelihood`:
    "bernoulli": c logits; "gaussian": c means, whose one variance is learned, or c means and c
    log-variances; "discretized_logistic": c means and c log-scales of 8-bit values;
    "discretized_logistic_mixture": as fastlatent.ops has them, in ten components.

    `prior` is "normal" for N(0, I), "vamp" for learned pseudo-images, or a fastlatent.priors.Prior.
    It may be the name of an entry point of the group fastlatent.priors, whose class takes the
    number of latents. Gradients train it with the rest. `image_shape` is (c, h, w);
    fastlatent.train takes that of the data. `latent_dim` is found by a pass where it is not given.

    `forward` returns "loss" = "reconstruction" + "kl" at one draw of the latents, in nats.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: LikelihoodName = "bernoulli",
        prior: str | Prior = "normal",
        *,
        image_shape: tuple[int, int, int] | None = None,
        latent_dim: int | None = None,
    ):
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"AutoEncoder: {name} must be a torch module; got {type(module).__name__}"
                )
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"AutoEncoder: likelihood must be one of {', '.join(get_args(LikelihoodName))}; "
                f"got {likelihood!r}"
            )
        known = isinstance(prior, Prior) or prior in ("normal", "vamp")
        if not (known or prior in registered(("fastlatent.priors",))):
            raise ValueError(
                "AutoEncoder: prior must be 'normal', 'vamp', the name of one that a package "
                "registers, or a fastlatent.priors.Prior, which learn with the model; others are "
                "fitted after training, by run.fit_prior; got "
                f"{prior!r}"
            )
        self.encoder, self.decoder = encoder, decoder
        self.likelihood, self.prior = likelihood, prior
        self.latent_kind, self.loss_unit = "real", NATS
        if image_shape is not None:
            c, h, w = image_shape
            self._shape((c, h, w), latent_dim)

    def shaped(self, image_shape: tuple[int, int, int]) -> "AutoEncoder":
        """The same modules around images (c, h, w)."""
        return AutoEncoder(
            self.encoder, self.decoder, self.likelihood, self.prior, image_shape=image_shape
        )

    def _shape(self, image_shape: tuple[int, int, int], latent_dim: int | None) -> None:
        self.image_shape = image_shape
        self.latent_dim = latent_dim or self._found_dim()
        self.pixels = LIKELIHOODS[self.likelihood](None, image_shape[0])
        self.numbers = self._found_numbers()
        if self.likelihood == "gaussian" and self.numbers == image_shape[0]:
            self.log_variance = nn.Parameter(torch.zeros(()))
        if self.prior == "normal":
            self.built_prior: Prior = Normal(self.latent_dim)
        elif self.prior == "vamp":
            self.built_prior = VampPrior(self.latent_dim, image_shape)
        elif isinstance(self.prior, str):
            self.built_prior = registered(("fastlatent.priors",))[self.prior].load()(
                self.latent_dim
            )
        if self.latent_prior.dim != self.latent_dim:
            raise ValueError(
                f"AutoEncoder: prior must be over {self.latent_dim} latents, as the encoder gives "
                f"them; it is over {self.latent_prior.dim}"
            )
        self.latent_prior.bind(self.gaussian_posterior)

    def _found_dim(self) -> int:
        mean, _ = self._halves(_tried(self.encoder, self.image_shape))
        return mean.shape[1]

    def _found_numbers(self) -> int:
        """Numbers that the decoder gives for each pixel; ValueError for a wrong number."""
        channels, height, width = self.image_shape
        found = _tried(self.decoder, (self.latent_dim,))
        count = self.pixels.parameter_count
        takes = {count, channels} if self.likelihood == "gaussian" else {count}
        fits = isinstance(found, Tensor) and found.dim() > 1 and len(found) == TRIED
        size = found.shape[1:].numel() if fits else 0
        if size not in {k * height * width for k in takes}:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            wanted = " or ".join(str((k, height, width)) for k in sorted(takes))
            raise ValueError(
                f"AutoEncoder: decoder must give {wanted} numbers for each image under "
                f"likelihood={self.likelihood!r}; got {got} for {TRIED} latents"
            )
        return size // (height * width)

    def _halves(self, found: object) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (n, d), in at least float32, of what the encoder gave."""
        if isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] % 2 == 0:
            found = found.chunk(2, 1)
        pair = found if isinstance(found, (tuple, list)) and len(found) == 2 else ()
        tensors = [part for part in pair if isinstance(part, Tensor) and part.dim() == 2]
        if len(tensors) != 2 or tensors[0].shape != tensors[1].shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                "AutoEncoder: encoder must give the mean and the log-variance of the latents, a "
                f"pair of (n, d) or one tensor (n, 2 d); got {got}"
            )
        mean, log_variance = map(at_least_float32, tensors)
        return mean, log_variance

    def _pixels(self, z: Tensor) -> Tensor:
        """What the likelihood takes (n, k, h, w), of latents (n, d)."""
        found = self.decoder(z).reshape(len(z), self.numbers, *self.image_shape[1:])
        if not hasattr(self, "log_variance"):
            return found
        return torch.cat([found, self.log_variance.expand_as(found)], 1)

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        features: Sequence[Tensor] | None = None,  # where they are known
    ) -> dict[str, Tensor]:
        """Per-image values; raises ValueError without `noise`, as latents are always drawn."""
        mean, log_variance = self.features(x) if features is None else features
        target = self._checked_target(x, target)
        if noise is None:
            raise ValueError("AutoEncoder: noise must be given, the latents are drawn at random")
        std = (log_variance / 2).exp()
        z = mean + std * self._latent_noise(noise, mean)
        reconstruction = -self.pixels.log_prob(self._pixels(z), target)
        if self.prior == "normal":
            kl = gaussian_kl(mean, log_variance)
        else:
            stream = self._prior_stream(noise, mean)
            log_prior = self.latent_prior.expected_log_prob(mean, std, z, generator=stream)
            kl = -entropy(std) - log_prior
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    @property
    def units(self) -> dict[str, str]:
        return dict.fromkeys(("loss", "reconstruction", "kl"), NATS)

    def counts_pixels(self, binary: bool) -> bool:
        """Whether pixels have probabilities: 8-bit values, and bits of a Bernoulli likelihood."""
        return self.likelihood != "gaussian" and (binary or self.likelihood != "bernoulli")

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior: (n, c, h, w) -> (n, d) each."""
        if not hasattr(self, "image_shape"):
            raise ValueError("AutoEncoder: image_shape must be given, (channels, height, width)")
        self._check_images("x", x)
        return self._halves(self.encoder(x))

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return features[0]

    @property
    def latent_prior(self) -> Prior:
        """The prior that was given, or the one built for its name."""
        return self.prior if isinstance(self.prior, Prior) else self.built_prior

    def encode(self, x: Tensor) -> Tensor:
        """Posterior means: (n, c, h, w) -> (n, d)."""
        return self.features(x)[0]

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, d)."""
        mean, log_variance = self.features(x)
        return mean, (log_variance / 2).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Means of the likelihood, in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return self.pixels.mean(self._pixels(z)).clamp(0, 1)

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) of one draw of z for each image: (n,) nats."""
        mean, log_variance = features
        std = (log_variance / 2).exp()
        drawn = self._latent_noise(noise, mean)
        z = mean + std * drawn
        log_posterior = Normal(self.latent_dim).to(z).log_prob(drawn) - std.log().sum(1)
        log_prior = self.latent_prior.log_prob(z, generator=self._prior_stream(noise, mean))
        return self.pixels.log_prob(self._pixels(z), x) + log_prior - log_posterior

    leaves_noise_out = True

    def draw_prior(self, n: int, generator: torch.Generator, noise: bool = True) -> Tensor:
        """Latents from the prior (n, d); see Prior.sample for `noise`."""
        return self.latent_prior.sample(n, noise=noise, generator=generator)


@torch.no_grad()
def _tried(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """What the module gives in evaluation for zeros (TRIED, *shape)."""
    like = next(module.parameters(), torch.zeros(()))
    modes = {part: part.training for part in module.modules()}
    try:
        return module.eval()(torch.zeros(TRIED, *shape, device=like.device, dtype=like.dtype))
    finally:
        for part, training in modes.items():
            part.training = training
