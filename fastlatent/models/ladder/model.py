"""LaDDer itself."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastlatent.jobs.naming import name_of
from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.capabilities import AlternatingStep, Group, draw_latents
from fastlatent.models.ladder.config import INNER, MIXTURES, LaDDerConfig
from fastlatent.models.ladder.likelihood import Laplace
from fastlatent.models.ladder.networks import Decoder, Encoder
from fastlatent.models.ladder.prior import build_prior, start_scale_
from fastlatent.noise import Noise
from fastlatent.priors import Hierarchical, Normal, Prior, PriorKind
from fastlatent.priors.gaussian import entropy
from fastlatent.untouched import slots

ACTIVE_VARIANCE = 0.01  # of a latent's posterior mean over images, above which it is in use


class LaDDer(LatentModel):
    """Gaussian posteriors, Laplace pixels, and a prior p(z) that learns with the rest.

    `forward` returns "loss", "elbo" = R - Q + P and its parts, "reconstruction" = -R = -log p(x|z),
    "log_posterior" = Q = E log q(z|x) and "log_prior" = P = E log p(z) or a lower bound on it, "kl"
    = Q - P, and for all images alike "image_scale", "latent_std" (the mean of q's deviations),
    "active_units" (latents whose mean varies over the images). Where an inner VAE is the prior in
    use: the parts of P, "inner_reconstruction", "inner_entropy" and "inner_log_prior", and
    "prior_scale", tau. In evaluation also "bits_per_dim": -elbo, its pixels in 8 bits, in bits per
    pixel and channel.

    In the first epochs p(z) is N(0, I). The last of them already trains the prior, whose loss is
    -P of its own then, with no gradient for the encoder.
    """

    rules: Tensor  # () bool, whether the learned prior is in use; weights are stored by this name

    def __init__(self, config: LaDDerConfig):
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "real"
        self.loss_unit = NATS
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.likelihood = Laplace(config.image_scale, config.start_scale)
        self.standard = Normal(config.dim)
        self.prior = build_prior(config)
        self.prior.bind(self._pseudo_posterior)
        self.register_buffer("rules", torch.zeros((), dtype=torch.bool))
        self._epoch: int | None = None  # of training; None: not in training
        self._encoder_apart = False

    @property
    def uses_learned_prior(self) -> bool:
        """Whether the learned prior is the prior in use, and no longer N(0, I)."""
        # In training not by the buffer, which would wait for the device.
        return bool(self.rules) if self._epoch is None else self._uses_learned_prior_in(self._epoch)

    @property
    def prior_kind(self) -> PriorKind:
        return self.config.prior.kind if self.uses_learned_prior else "normal"

    @contextmanager
    def under(self, prior: Prior) -> Iterator[None]:
        """The model with another prior, until the end of the block."""
        own, in_use = self.prior, self.rules.clone()
        self.prior = prior
        self.rules.fill_(True)
        try:
            yield
        finally:
            self.prior = own
            self.rules.copy_(in_use)

    def untrained_prior(self, kind: PriorKind, dim: int) -> Prior:
        """A prior of that kind for `dim` latents, with the settings of the model's own."""
        settings = replace(self.config.prior, kind=kind, dim=dim)
        return build_prior(replace(self.config, prior=settings))

    leaves_noise_out = True

    @property
    def latent_prior(self) -> Prior:
        """The prior in use."""
        return self.prior if self.uses_learned_prior else self.standard

    @property
    def _learning(self) -> bool:
        """Whether the prior is in training."""
        schedule = self.config.schedule
        return schedule.train_prior and (self._epoch or 0) >= schedule.learns_after

    def _uses_learned_prior_in(self, epoch: int) -> bool:
        return epoch >= self.config.schedule.warmup_epochs or self.config.prior.kind == "normal"

    # How it trains

    def begin_epoch(self, epoch: int) -> None:
        """Take up what changes with the epoch, counted from 0."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.rules.fill_(self._uses_learned_prior_in(epoch))

    def idle_in(self, epochs: float) -> str | None:
        """What a training of so many epochs leaves unused, in a sentence; None: nothing."""
        warmup, kind = self.config.schedule.warmup_epochs, self.config.prior.kind
        if kind == "normal" or epochs > warmup:
            return None
        return (
            f"the prior {kind} stays unused: {epochs:.4g} epochs do not exceed the "
            f"{warmup} under N(0, I) of {name_of(self.config.schedule, 'warmup_epochs')}"
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        schedule, (weights, scales) = self.config.schedule, self._prior_weights()
        return (
            Group((self.likelihood,), schedule.scale_rate),
            Group((weights,), schedule.prior_rate, schedule.prior_decay),
            Group((scales,), schedule.prior_scale_rate, schedule.prior_decay),
        )

    @property
    def alternating_steps(self) -> tuple[AlternatingStep, ...]:
        if not self.config.schedule.alternate:
            return ()
        weights, scales = self._prior_weights()
        parts = {
            "model": (self.encoder, self.decoder),
            "scale": (self.likelihood,),
            "prior": (weights,),
            "prior_scale": (scales,),
        }
        return tuple(
            AlternatingStep(name, modules)
            for name, modules in parts.items()
            if any(True for module in modules for _ in module.parameters())
        )

    def _prior_weights(self) -> tuple[nn.Module, nn.Module]:
        """The parameters of the prior: those that are no scales, and those that are."""
        scales = self.prior.scale_parameters()
        apart = {id(weight) for weight in scales}
        weights = [weight for weight in self.prior.parameters() if id(weight) not in apart]
        return nn.ParameterList(weights), nn.ParameterList(scales)

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        model = () if self.config.schedule.train_model else self._outer
        return (*model, *(() if self._learning else (self.prior,)))

    @property
    def _outer(self) -> tuple[nn.Module, ...]:
        return (self.encoder, self.decoder, self.likelihood)

    def train(self, mode: bool = True) -> "LaDDer":
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        schedule = self.config.schedule
        kept = () if schedule.train_model else self._outer
        for part in (*kept, *(() if schedule.train_prior else (self.prior,))):
            part.eval()
        return self

    def refit_images(self, epochs: int) -> int:
        """Training images that the next fit of the prior takes; 0: nothing is fitted."""
        schedule, kind = self.config.schedule, self.config.prior.kind
        after = epochs - schedule.warmup_epochs
        if not schedule.train_prior or after < 0:
            return 0
        due = kind in MIXTURES and after % schedule.refit_every == 0
        first = kind in INNER and after == 0  # where the inner scale takes its place
        masked = kind in INNER and epochs == schedule.mask_from
        return schedule.refit_samples if due or first or masked else 0

    def refit(self, batches: Iterable[Tensor], noise: Noise, epochs: int) -> dict[str, float]:
        """Fit the mixture, the start of the inner scale and the mask to latents of the images.

        There are `refit_samples` latents, several of each image where there are fewer images.
        """
        posteriors = [self.encoder(x) for x in batches]
        mean, std = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
        draws = max(1, round(self.config.schedule.refit_samples / len(mean)))
        shape = (draws, *mean.shape)
        z = (mean + std * noise.normal("latent", shape, mean.device, mean.dtype)).flatten(0, 1)
        if isinstance(self.prior, Hierarchical):
            if epochs == self.config.schedule.mask_from:
                self.prior.mask_unused(std.mean(0), self.config.schedule.mask_above)
            if epochs == self.config.schedule.warmup_epochs:
                start_scale_(self.prior, z)
        report = self.prior.refit(z, seed=noise.stream("fit").initial_seed() % (1 << 32))
        if report is None:
            return {}
        numbers = {
            "iterations": report.iterations,
            "converged": float(report.converged),
            "log_prob": report.log_prob,
            "active": report.active,
            "dropped": report.dropped,
        }
        return {name: float(value) for name, value in numbers.items() if value is not None}

    def held_out_log_prob(self, batches: Iterable[Tensor], noise: Noise) -> float:
        """That of the mixture: over z (gmm), or over the inner latents t (ladder)."""
        draws: list[Tensor] = []
        for x in batches:
            seen = sum(map(len, draws))
            index = torch.arange(seen, seen + len(x))
            draws.append(draw_latents(self, x, noise.of_images(index)))
        seed = noise.stream("inner").initial_seed() % (1 << 32)
        return float(self.prior.refitted_log_prob(torch.cat(draws), seed=seed).mean())

    # The bound

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        alternating_step: str | None = None,
        features: Sequence[Tensor] | None = None,  # where they are known
    ) -> dict[str, Tensor]:
        """Per-image values; those of an alternating step hold the loss that it minimises.

        Raises ValueError without `noise`, as latents are always drawn.
        """
        self._check_images("x", x)
        target = self._checked_target(x, target)
        if noise is None:
            raise ValueError("LaDDer: noise must be given, the latents are drawn at random")
        mean, std = self.encoder(x) if features is None else features
        z = mean + std * self._latent_noise(noise, mean)
        if alternating_step in ("prior", "prior_scale"):
            return {"loss": -self._apart_log_prior(mean, std, z, noise)}
        image = self.decoder(z)
        error = None
        if self.likelihood.training:
            keep = alternating_step in (None, "model")
            error = self.likelihood.observe(image, target, keep=keep)
        scale = self.likelihood.scale(error)
        reconstruction = -self.likelihood.log_prob(image, target, scale)
        log_posterior = -entropy(std)
        log_prior, parts = self._log_prior(self.latent_prior, mean, std, z, noise)
        kl = log_posterior - log_prior
        loss = reconstruction + kl
        values = {
            "loss": loss,
            "elbo": -loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "log_posterior": log_posterior,
            "log_prior": log_prior,
            **parts,
            **self._spread(mean, std, scale),
        }
        warming_up = self._learning and not self.uses_learned_prior
        if alternating_step is None and self.training and warming_up:
            values["loss"] = loss - self._apart_log_prior(mean, std, z, noise)
        if not self.training:
            pixels = self.likelihood.binned_log_prob(image, target, scale)
            values["bits_per_dim"] = (kl - pixels) / (math.log(2) * math.prod(self.image_shape))
        return values

    def _log_prior(
        self, prior: Prior, mean: Tensor, std: Tensor, z: Tensor, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:  # (n,), and what it is made of
        """E log p(z) over q, or a lower bound on it at the draw that is decoded."""
        settings = self.config.prior
        draws = settings.draws if self.training else settings.evaluation_draws
        stream = self._prior_stream(noise, mean)
        if not isinstance(prior, Hierarchical):
            return prior.expected_log_prob(mean, std, z, draws, generator=stream), {}
        bound = prior.bound(z, draws, generator=stream)
        parts = {
            "inner_reconstruction": -bound.reconstruction,
            "inner_entropy": bound.entropy,
            "inner_log_prior": bound.prior,
            "prior_scale": prior.scale.value.detach().mean().expand(len(z)),
        }
        return bound.total, parts

    def _apart_log_prior(self, mean: Tensor, std: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """The same of the learned prior, without a gradient for the encoder."""
        if not self._learning:  # nor is it to note anything
            parts = (0 * weight.sum() for weight in self.prior.parameters())
            return sum(parts, z.new_zeros(())).expand(len(z))
        self._encoder_apart = True
        try:
            mean, std, z = (part.detach() for part in (mean, std, z))
            return self._log_prior(self.prior, mean, std, z, noise)[0]
        finally:
            self._encoder_apart = False

    def _spread(self, mean: Tensor, std: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """What says how the latents are used, the same for each image."""
        with torch.no_grad():
            variance = mean.var(0, correction=0)
            values = {
                "image_scale": scale,
                "latent_std": std.mean(),
                "active_units": (variance > ACTIVE_VARIANCE).sum().to(mean.dtype),
            }
            return {name: value.detach().expand(len(mean)) for name, value in values.items()}

    def _pseudo_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of pseudo-images' posteriors: (k, c, h, w) -> (k, d) each."""
        if not self._encoder_apart:
            return self.encoder(images)
        weights = {name: weight.detach() for name, weight in slots(self.encoder)[0].items()}
        return functional_call(self.encoder, weights, (images,), tie_weights=False)

    # What others ask of it

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        terms = {
            "reconstruction (nats)": ("reconstruction",),
            "posterior and prior (nats)": ("log_posterior", "log_prior", "kl"),
            "scales": ("image_scale", "latent_std", "prior_scale"),
            "latents in use": ("active_units",),
        }
        inner = ("inner_reconstruction", "inner_entropy", "inner_log_prior")
        return terms | ({"inner VAE (nats)": inner} if self.config.prior.kind in INNER else {})

    @property
    def units(self) -> dict[str, str]:
        nats = ("loss", "elbo", "reconstruction", "kl", "log_posterior", "log_prior")
        inner = ("inner_reconstruction", "inner_entropy", "inner_log_prior")
        units = dict.fromkeys((*nats, *inner), NATS)
        units |= dict.fromkeys(("image_scale", "latent_std", "active_units", "prior_scale"), "")
        return units | {"bits_per_dim": "bits per dimension"}

    def encode(self, x: Tensor) -> Tensor:
        """Posterior means: (n, c, h, w) -> (n, d)."""
        self._check_images("x", x)
        return self.encoder(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Medians of the pixels, in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return self.decoder(z).clamp(0, 1)

    def draw_prior(self, n: int, generator: torch.Generator, noise: bool = True) -> Tensor:
        """Latents from the prior in use (n, d); see Prior.sample for `noise`."""
        return self.latent_prior.sample(n, noise=noise, generator=generator)

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, d)."""
        self._check_images("x", x)
        return self.encoder(x)

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """Mean and deviation of the posterior: (n, c, h, w) -> (n, d) each."""
        return self.gaussian_posterior(x)

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return features[0]

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) of one draw of z for each image: (n,) nats.

        An inner VAE puts its own weight log p(z|t) + log p(t) - log q(t|z) in place of log p(z).
        """
        mean, std = features
        drawn = self._latent_noise(noise, mean)
        z = mean + std * drawn
        log_q = -(0.5 * drawn.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(1)
        log_p = self.latent_prior.log_prob(z, 1, generator=self._prior_stream(noise, mean))
        image = self.decoder(z)
        return self.likelihood.log_prob(image, x, self.likelihood.scale()) + log_p - log_q
