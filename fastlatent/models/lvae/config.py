"""What can be set about a Ladder VAE; the defaults are the published 3-layer model of MNIST."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fastlatent.jobs.naming import name_of, require, require_word
from fastlatent.nn import BlockStyle, Nonlinearity, ResidualLayout

LikelihoodName = Literal[
    "bernoulli", "gaussian", "discretized_logistic", "discretized_logistic_mixture"
]
MergeKind = Literal["linear", "residual"]


@dataclass(frozen=True)
class LVAEConfig:
    """What it takes to build the model."""

    OPTIONS: ClassVar = "model."

    family: Literal["lvae"] = "lvae"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images."""
    likelihood: LikelihoodName = "bernoulli"
    """Distribution of the pixels given the latents. The discretized ones are for 8-bit images."""
    zdims: tuple[int, ...] = (32, 32, 32)
    """Channels of each stochastic layer, from the bottom one, nearest the image, to the top."""
    downsample: tuple[int, ...] = (1, 1, 1)
    """How many times each layer halves the size, from bottom to top."""
    blocks: int = 4
    """Residual blocks of each layer, on the way up and on the way down."""
    filters: int = 64
    """Channels of every deterministic feature map."""
    batch_norm: bool = True
    """Batch normalisation in the residual blocks."""
    skip: bool = True
    """Let deterministic features bypass each stochastic layer."""
    gated: bool = True
    """End each residual block with a gate. Merging blocks always have one."""
    learn_top_prior: bool = True
    """Learn mean and variance of the top prior, in place of N(0, I)."""
    residual: ResidualLayout = "bacdbacd"
    """Order inside residual blocks: batch norm (b), activation (a), convolution (c), dropout (d).
    """
    merge: MergeKind = "residual"
    """How a layer's posterior merges features from below and from above."""
    analytical_kl: bool = False
    """Train with the closed-form KL, in place of its one-sample estimate."""
    free_bits: float = 0.5
    """Nats of KL, for each layer and image, that the training loss does not count."""
    beta_anneal: int = 0
    """Steps over which the weight of the KL in the training loss grows from 0 to 1; 0: always 1."""
    data_dependent_init: bool = True
    """Before training, normalise every convolution's output on a batch of training images."""
    initial_downscaling: bool = True
    """Halve the size of the image in the first convolution, and double it before the last blocks.
    """
    nonlinearity: Nonlinearity = "elu"
    """Activation function of all blocks."""
    log_variance_bound: float | None = None
    """Bound b of log-variances v of latents and Gaussian pixels, which become b tanh(v / b);
    default: none."""
    dropout: float = 0.2
    """Probability with which training drops a channel, after a convolution of a residual block."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("likelihood", LikelihoodName),
            ("residual", ResidualLayout),
            ("merge", MergeKind),
            ("nonlinearity", Nonlinearity),
        ):
            require_word(self, name, get_args(choices))

        def whole(least: int, *values: object) -> bool:
            return all(isinstance(value, int) and value >= least for value in values)

        sizes = "three whole numbers from 1 up: channels, height, width"
        good = len(self.image_shape) == 3 and whole(1, *self.image_shape)
        require(good, self, "image_shape", sizes)
        good = len(self.zdims) >= 1 and whole(1, *self.zdims)
        require(good, self, "zdims", "at least one whole number, each at least 1")
        require(whole(1, self.blocks), self, "blocks", "a whole number, at least 1")
        zdims, blocks = name_of(self, "zdims"), name_of(self, "blocks", self.blocks)
        counts = f"{len(self.zdims)} whole numbers, one for each of {zdims}, from 0 to {blocks}"
        good = len(self.downsample) == len(self.zdims) and whole(0, *self.downsample)
        good = good and max(self.downsample) <= self.blocks
        require(good, self, "downsample", counts)
        require(whole(1, self.filters), self, "filters", "a whole number, at least 1")
        require(0 <= self.free_bits < float("inf"), self, "free_bits", "at least 0")
        require(whole(0, self.beta_anneal), self, "beta_anneal", "a whole number, at least 0")
        bound = self.log_variance_bound
        require(
            bound is None or 0 < bound < float("inf"),
            self,
            "log_variance_bound",
            "above 0, or None",
        )
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and less than 1")

    @property
    def style(self) -> BlockStyle:
        """What all residual blocks have in common."""
        return BlockStyle(
            self.filters, self.residual, self.nonlinearity, self.batch_norm, self.dropout
        )

    @property
    def factor(self) -> int:
        """How many times smaller the top layer is than the padded image."""
        return 2 ** (sum(self.downsample) + self.initial_downscaling)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the image once padded to a multiple of `factor`."""
        _, height, width = self.image_shape
        return -(-height // self.factor) * self.factor, -(-width // self.factor) * self.factor

    @property
    def layer_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of each stochastic layer, the bottom one first."""
        height, width = self.padded_size
        shapes = []
        shrink = 1 + self.initial_downscaling
        for channels, halvings in zip(self.zdims, self.downsample, strict=True):
            shrink *= 2**halvings
            shapes.append((channels, height // shrink, width // shrink))
        return tuple(shapes)
