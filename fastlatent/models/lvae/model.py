"""The Ladder VAE itself."""

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.lvae.config import LVAEConfig
from fastlatent.models.lvae.layers import LadderPass, LayerPass, Normal, TopDownLayer
from fastlatent.models.lvae.likelihoods import LIKELIHOODS
from fastlatent.nn import (
    ACTIVATIONS,
    GatedResidual,
    Resampled,
    at_least_float32,
    data_dependent_init_,
    upsample_twice,
)
from fastlatent.noise import Noise, uncompiled

NO_FREE_BITS = 1e-6  # nats; below this a free-bits bound is none at all
PRIOR_PART = 128  # images whose latents are drawn from the prior at a time


class LadderVAE(LatentModel):
    """A hierarchy of Gaussian latents; layer 0 is the bottom one, nearest the image.

    `forward` returns "elbo", "reconstruction" (-log p(x | z)), "kl" and "kl_layer_<i>", from one
    draw of the latents, and "loss": in training the objective with free bits and annealing, in
    evaluation the negative ELBO. The flat latents z (n, d) hold the bottom layer first.
    """

    beta: Tensor  # () weight of the KL

    def __init__(self, config: LVAEConfig):
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.layer_shapes = config.layer_shapes
        self.latent_sizes = [c * h * w for c, h, w in self.layer_shapes]
        self.latent_dim = sum(self.latent_sizes)
        self.latent_kind = "real"
        self.loss_unit = NATS

        style, act = config.style, ACTIVATIONS[config.nonlinearity]
        stride = 2 if config.initial_downscaling else 1
        channels = config.image_shape[0]
        self.act = act
        self.stem = nn.Conv2d(channels, config.filters, 5, stride=stride, padding=2)
        self.stem_residual = GatedResidual(style, gated=False)
        self.bottom_up = nn.ModuleList(
            nn.ModuleList(
                Resampled(style, config.gated, "down" if number < halvings else None)
                for number in range(config.blocks)
            )
            for halvings in config.downsample
        )
        self.top_down = nn.ModuleList(
            TopDownLayer(config, index) for index in range(len(config.zdims))
        )
        self.final = nn.ModuleList(GatedResidual(style, config.gated) for _ in range(config.blocks))
        self.likelihood = LIKELIHOODS[config.likelihood](
            config.filters, channels, config.log_variance_bound
        )

        blocks = (part for part in self.modules() if isinstance(part, GatedResidual))
        self._dropouts = sum(block.steps.count("d") for block in blocks)
        self._before = [
            (padded - size) // 2
            for padded, size in zip(config.padded_size, config.image_shape[1:], strict=True)
        ]
        self.register_buffer("beta", torch.ones(()), persistent=False)

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """On CPUs, PyTorch's batch norms of few channels take twice as long in channels_last."""
        return torch.contiguous_format if device.type == "cpu" else torch.channels_last

    @property
    def data_dependent(self) -> bool:
        return self.config.data_dependent_init

    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Weights under which every convolution's output has mean 0 and deviation 0.1 on x."""
        self.train()
        data_dependent_init_(
            self,
            lambda: self(x, noise=noise),
            lambda name, shape: noise.normal(f"weights/{name}", shape),
        )

    def begin_step(self, step: int) -> None:
        """Take up what changes with the optimizer step, counted from 0."""
        if self.config.beta_anneal:
            self.beta.fill_(min(1.0, step / self.config.beta_anneal))

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        features: Sequence[Tensor] | None = None,  # where they are known; without dropout
    ) -> dict[str, Tensor]:
        """Per-image values; raises ValueError without `noise`, as latents are always drawn."""
        self._check_images("x", x)
        target = self._checked_target(x, target)
        if noise is None:
            raise ValueError("LadderVAE: noise must be given, the latents are drawn at random")
        # Drawing splits a compiled pass; what follows is one piece.
        normal, masks = self._normal(len(x), noise), self._masks(x, noise)
        if features is None:
            features = self._bottom_up(x, masks)
        passed = self.top_down_pass(features, noise=normal, masks=masks)
        reconstruction = -self.likelihood.log_prob(passed.features, target)
        analytical = self.training and self.config.analytical_kl
        kls = passed.kl_analytical if analytical else passed.kl_sampled
        kl = kls.sum(1)
        elbo = -(reconstruction + kl)
        return {
            "loss": self._objective(reconstruction, kls) if self.training else -elbo,
            "elbo": elbo,
            "reconstruction": reconstruction,
            "kl": kl,
            **{f"kl_layer_{index}": layer for index, layer in enumerate(kls.unbind(1))},
        }

    def _objective(
        self,
        reconstruction: Tensor,  # (n,)
        kls: Tensor,  # (n, L)
    ) -> Tensor:  # (n,)
        """What training minimises; free bits act on each image and layer by itself."""
        if self.config.free_bits >= NO_FREE_BITS:
            kls = kls.clamp(min=self.config.free_bits)
        kl = kls.sum(1)
        return reconstruction + (self.beta * kl if self.config.beta_anneal else kl)

    def counts_pixels(self, binary: bool) -> bool:
        """Gaussians give densities, and a Bernoulli distribution no probability of grey images."""
        likelihood = self.config.likelihood
        return likelihood != "gaussian" and (binary or likelihood != "bernoulli")

    @property
    def units(self) -> dict[str, str]:
        layers = (f"kl_layer_{index}" for index in range(len(self.top_down)))
        return dict.fromkeys(("loss", "elbo", "reconstruction", "kl", *layers), NATS)

    def encode(self, x: Tensor) -> Tensor:
        """Posterior means, each layer's given those above: (n, c, h, w) -> (n, d)."""
        return self.latents_from(self.features(x))

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return self.posterior(features).latents

    def decode(self, z: Tensor) -> Tensor:
        """Means of the likelihood, in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return self.likelihood.mean(self.top_down_pass(latents=z).features).clamp(0, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """What each layer's posterior sees of the images: (n, c, h, w) -> (n, f, h_i, w_i) each."""
        self._check_images("x", x)
        return self._bottom_up(x)

    def posterior(self, features: Sequence[Tensor], noise: Noise | None = None) -> LadderPass:
        """A pass with latents drawn from the posterior, or at its means without noise."""
        normal = None if noise is None else self._normal(len(features[0]), noise)
        return self.top_down_pass(features, noise=normal)

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        """log p(x, z) - log q(z | x) of one draw of z for each image: (n,) nats."""
        passed = self.posterior(features, noise)
        return self.likelihood.log_prob(passed.features, x) - passed.kl_sampled.sum(1)

    def sample_prior(
        self,
        n: int,
        noise: Noise,
        mode_layers: Collection[int] = (),
        constant_layers: Collection[int] = (),
    ) -> LadderPass:
        """A pass with latents drawn from the prior.

        Layers in `mode_layers` take its mean, those in `constant_layers` one draw for all n.
        """
        return self.top_down_pass(
            noise=self._normal(n, noise), mode_layers=mode_layers, constant_layers=constant_layers
        )

    leaves_noise_out = False
    latent_prior = None

    def draw_prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents from the prior (n, d), each layer's given those above."""
        parts = []
        for start in range(0, max(1, n), PRIOR_PART):
            seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
            passed = self.sample_prior(min(PRIOR_PART, n - start), Noise(seed, 0))
            parts.append(passed.latents)
        return torch.cat(parts)

    @property
    def prior_dim(self) -> int:
        """The latents of the top layer; the others have learned conditionals."""
        return self.latent_sizes[-1]

    def draw_latents(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """The top layer's part of a draw of the posterior, of its means without noise."""
        return self.posterior(self.features(x), noise).latents[:, -self.prior_dim :]

    def complete_latents(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of the top layer and, given them, of all layers below: (n, prior_dim) -> (n, d)."""
        top = Normal.of(self._top_prior, self.config.log_variance_bound)
        standard = (z - top.mean.flatten(1)) * (-top.log_variance.flatten(1) / 2).exp()
        parts = []
        for part in standard.split(PRIOR_PART):
            seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
            noise = self._normal(len(part), Noise(seed, 0))
            noise[:, -self.prior_dim :] = part
            parts.append(self.top_down_pass(noise=noise).latents)
        return torch.cat(parts)

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)) in one pass: (n, c, h, w) -> (n, c, h, w)."""
        passed = self.posterior(self.features(x))
        return self.likelihood.mean(passed.features).clamp(0, 1)

    def top_down_pass(
        self,
        bottom_up: Sequence[Tensor] | None = None,  # what `features` gave; None: generation
        latents: Tensor | None = None,  # (n, d) to take instead of drawing them
        noise: Tensor | None = None,  # (n, d) standard normal; None: latents are means
        mode_layers: Collection[int] = (),  # layers at the mean of their prior
        constant_layers: Collection[int] = (),  # layers with the latents of the first element
        masks: Iterator[Tensor] | None = None,  # of the channel dropout
    ) -> LadderPass:
        """One pass from the top layer to the features of the likelihood.

        Raises ValueError where layers are to be held while latents come from a posterior, for
        layers that there are none of, and where nothing tells the number of images.
        """
        self._check_layers(bottom_up, mode_layers, constant_layers)
        rows = [len(part) for part in (latents, noise) if part is not None]
        if bottom_up is not None:
            rows.append(len(bottom_up[0]))
        if len(set(rows)) != 1:
            raise ValueError(
                "LadderVAE: top_down_pass needs bottom_up, latents or noise, all of as many "
                f"images; got {rows}"
            )
        n = rows[0]
        forced, drawn = self._split(latents), self._split(noise)
        layers: list[LayerPass] = []
        above: Tensor | None = None
        for index in reversed(range(len(self.top_down))):
            layer, above = self.top_down[index](
                n,
                above,
                None if bottom_up is None else bottom_up[index],
                None if index in mode_layers else drawn[index],
                forced[index],
                index in constant_layers,
                masks,
            )
            layers.insert(0, layer)
        assert above is not None
        return LadderPass(layers, self._finish(above, masks))

    def _bottom_up(self, x: Tensor, masks: Iterator[Tensor] | None = None) -> list[Tensor]:
        (top, left), (_, height, width) = self._before, self.image_shape
        bottom = self.config.padded_size[0] - height - top
        right = self.config.padded_size[1] - width - left
        y = self.stem_residual(self.act(self.stem(F.pad(x, (left, right, top, bottom)))), masks)
        features = []
        for blocks in self.bottom_up:
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                y = block(y, masks)
            features.append(y)
        return features

    def _finish(self, y: Tensor, masks: Iterator[Tensor] | None) -> Tensor:
        """From the bottom layer's features to those of the likelihood, at the image's size."""
        if self.config.initial_downscaling:
            y = upsample_twice(y)
        for block in self.final:
            y = block(y, masks)
        (top, left), (_, height, width) = self._before, self.image_shape
        return y[:, :, top : top + height, left : left + width]

    def _split(self, flat: Tensor | None) -> list[Tensor | None]:
        """(n, d) -> (n, c, h, w) for each layer."""
        if flat is None:
            return [None] * len(self.layer_shapes)
        parts = flat.split(self.latent_sizes, 1)
        return [
            part.unflatten(1, shape) for part, shape in zip(parts, self.layer_shapes, strict=True)
        ]

    @property
    def _top_prior(self) -> Tensor:
        """Parameters of the prior of the top layer: (1, 2 c, h, w)."""
        top = self.top_down[-1]
        assert isinstance(top, TopDownLayer)
        return top.top_prior

    @uncompiled
    def _normal(self, n: int, noise: Noise) -> Tensor:
        """Standard normal noise of all latents at once (n, d)."""
        like = at_least_float32(self._top_prior)
        return noise.normal("latent", (n, self.latent_dim), like.device, like.dtype)

    @uncompiled
    def _masks(self, x: Tensor, noise: Noise) -> Iterator[Tensor] | None:
        """What the channel dropouts multiply with, in their order: (n, f, 1, 1) each."""
        if not self.training or not self._dropouts:
            return None
        rate, device = self.config.dropout, x.device
        uniforms = noise.uniform("dropout", (self._dropouts, len(x), self.config.filters), device)
        masks = (uniforms >= rate) / (1 - rate)
        half = torch.is_autocast_enabled(device.type)
        masks = masks.to(torch.get_autocast_dtype(device.type) if half else x.dtype)
        return iter(masks[..., None, None].unbind())

    def _check_layers(
        self,
        bottom_up: Sequence[Tensor] | None,
        mode_layers: Collection[int],
        constant_layers: Collection[int],
    ) -> None:
        for name, chosen in (("mode_layers", mode_layers), ("constant_layers", constant_layers)):
            if chosen and bottom_up is not None:
                raise ValueError(f"LadderVAE: {name} must be empty where latents are inferred")
            if not set(chosen) <= set(range(len(self.top_down))):
                raise ValueError(
                    f"LadderVAE: {name} must be layers from 0 to {len(self.top_down) - 1}; "
                    f"got {tuple(chosen)}"
                )
