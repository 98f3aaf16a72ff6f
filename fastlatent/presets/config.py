"""What can be set about training."""

import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar, Literal

from fastlatent.data import DataConfig
from fastlatent.jobs.naming import name_of, require
from fastlatent.models import ModelConfig

SEEDS = 1 << 32


@dataclass(frozen=True)
class Interval:
    """How often something happens, counted in optimizer steps or in epochs; 0 means never."""

    count: int
    unit: Literal["step", "epoch"]

    @staticmethod
    def parse(text: str) -> "Interval":
        """From "50 steps", "2 epochs", "50" (steps) or "never"."""
        match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)?\s*", text)
        if text.strip() == "never":
            return Interval(0, "step")
        if match is None:
            raise ValueError(
                f'an interval must read like "50 steps", "2 epochs" or "never"; got {text!r}'
            )
        epochs = (match[2] or "").startswith("epoch")
        return Interval(int(match[1]), "epoch" if epochs else "step")

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it happens once `step` optimizer steps are done."""
        every = self.count * (steps_per_epoch if self.unit == "epoch" else 1)
        return every > 0 and step % every == 0


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The options of the model and of the data are listed below."""

    OPTIONS: ClassVar = ""

    name: str
    """Name of the run. Without --out, the run folder is runs/NAME."""
    model: ModelConfig
    data: DataConfig
    seed: int = 12345
    """Seed of weights, order and noise. The same seed gives the same run."""
    epochs: int = 10
    """Passes over the training images."""
    steps: int | None = None
    """Stop after this many optimizer steps, in place of --epochs."""
    batch: int = 512
    """Images in one optimizer step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Compute each step in this many parts, to save memory."""
    test_batch: int = 1024
    """Images per process at a time where no gradient is needed."""
    optimizer: Literal["adam", "adamax", "sgd"] = "adam"
    """adam; adamax, which scales by the largest recent gradient; sgd, plain gradient descent."""
    lr: float = 1e-3
    """Learning rate at the start."""
    lr_decay: float = 1.0
    """Factor of the learning rate after each --lr-decay-every; 1: a constant rate."""
    lr_decay_every: str = "1 epoch"
    """Interval of --lr-decay: "10000 steps" or "2 epochs"."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of adam's and adamax's running means: of the gradient, and of its square."""
    weight_decay: float = 0.0
    """Factor of the L2 penalty that the optimizer adds to the gradient."""
    clip: float | None = None
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    clip_value: float | None = None
    """Largest size of each entry of the gradient, before --clip."""
    skip: int = 0
    """Leave out steps whose loss or gradient is infinite or NaN, at most this many in a row. They
    are counted. 0: stop at the first. The loss scaler of fp16 leaves out up to 40 in any case."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999. The average is then
    evaluated, saved and sampled."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass. Weights and evaluation stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on the GPU if there is one."""
    compile: bool = False
    """Compile the training step with torch.compile: slow to start, then faster."""
    deterministic: bool = True
    """Let cuDNN use only deterministic algorithms, as an exact resume on a GPU needs."""
    log_every: str = "10 steps"
    """Interval of the logged training loss: "50 steps", "1 epoch" or "never"."""
    eval_every: str = "1 epoch"
    """Interval of the test loss. It is measured at the end in any case."""
    test_images: int | None = None
    """Test images for that loss, evenly spread; default: all."""
    bound_every: str = "never"
    """Interval of the importance-weighted bound on the test log-likelihood, for models with a
    likelihood."""
    bound_samples: int = 100
    """Draws of the latents for each image in that bound."""
    bound_images: int | None = None
    """Test images for that bound, evenly spread; default: all."""
    pictures_every: str = "10 epochs"
    """Interval of reconstructions, samples and interpolations. They are drawn at the end in any
    case."""
    film_every: str = "never"
    """Interval of frames of the training film. Each frame reconstructs the same images."""
    film_images: int = 64
    """Training images in the film, evenly spread."""
    code_table: Literal["device", "file"] = "device"
    """Where the learned latents of GLO are kept: on the device, or in a memory-mapped file beside
    the run folder, for those that do not fit."""
    checkpoint_every: str = "1 epoch"
    """Interval of checkpoints to resume from. One is written at the end in any case."""
    keep: int = 3
    """Checkpoints to keep, the newest ones."""
    picture_codes: int = 10_000
    """Training images whose latents the samplers of training's pictures are fitted to."""

    def __post_init__(self) -> None:
        # Dots alone name this folder, or the one above it.
        named = re.fullmatch(r"[\w.-]+", self.name) is not None and self.name.strip(".") != ""
        require(named, self, "name", "letters, digits, . _ -, and not dots alone")
        require(
            0 <= self.seed < SEEDS, self, "seed", f"from 0 to {SEEDS - 1}, as NumPy's seeds are"
        )
        counts = (
            "epochs",
            "batch",
            "accumulate",
            "test_batch",
            "keep",
            "picture_codes",
            "film_images",
        )
        for name in (*counts, "bound_samples"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("steps", "bound_images", "test_images"):
            count = getattr(self, name)
            require(count is None or count >= 1, self, name, "at least 1")
        parts = f"a multiple of {name_of(self, 'accumulate', self.accumulate)}"
        require(self.batch % self.accumulate == 0, self, "batch", parts)
        require(0 < self.lr < float("inf"), self, "lr", "positive")
        require(0 < self.lr_decay <= 1, self, "lr_decay", "above 0 and at most 1")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        require(
            self.optimizer in ("adam", "adamax", "sgd"), self, "optimizer", "adam, adamax or sgd"
        )
        require(self.code_table in ("device", "file"), self, "code_table", "device or file")
        require(self.skip >= 0, self, "skip", "at least 0")
        for name in ("clip", "clip_value"):
            bound = getattr(self, name)
            require(bound is None or bound > 0, self, name, "positive")
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good, self, "betas", "two numbers, each at least 0 and less than 1")
        require(self.ema is None or 0 < self.ema < 1, self, "ema", "between 0 and 1")
        _ = self.intervals  # parsed once, here, and wrong ones refused

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Those of the options NAME_every, by NAME."""
        found = {}
        for option in fields(self):
            if option.name.endswith("_every"):
                try:
                    interval = Interval.parse(getattr(self, option.name))
                except ValueError as error:
                    raise ValueError(f"{name_of(self, option.name)}: {error}") from None
                found[option.name.removesuffix("_every")] = interval
        return found


@dataclass(frozen=True)
class Preset:
    """A named starting point; every field of its configuration can be overridden."""

    description: str
    config: TrainConfig
    styles: dict[str, TrainConfig] = field(default_factory=dict)  # other settings by name
    result: str = ""  # what was measured of it; empty: nothing yet
