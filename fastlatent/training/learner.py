"""What learning changes: weights, optimizer, moving average, loss scale, running means."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastlatent.data import Batch, Dataset, Split
from fastlatent.files.code import Code
from fastlatent.files.reading import load_weights
from fastlatent.inference.devices import choose_device
from fastlatent.inference.latents import unit_images
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import processes, world
from fastlatent.metrics import Weighing
from fastlatent.models import LatentModel, build
from fastlatent.models.capabilities import Annealed, DataDependent, LaidOut, LearnsLatents, Staged
from fastlatent.models.learned import LearnedLatents, Room
from fastlatent.noise import Noise
from fastlatent.presets import TrainConfig
from fastlatent.runs import (
    EVALUATED,
    LATENTS,
    State,
    pack_generators,
    pack_optimizer,
    unpack_generators,
    unpack_optimizer,
)
from fastlatent.training.meter import Meter
from fastlatent.training.objective import StepObjective, step_objectives, total
from fastlatent.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

AGREE_EVERY = 10  # steps between two times that several ranks ask each other whether to stop
OPTIMIZERS = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "sgd": torch.optim.SGD}
OVERFLOW_LIMIT = 40  # skipped fp16 steps in a row; each halves the loss scale, which starts at 2^16


def optimizer_of(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer as configured, for groups of weights with learning rates."""
    options: dict[str, Any] = {} if config.optimizer == "sgd" else {"betas": config.betas}
    if config.optimizer == "adam" and config.precision != "fp16":
        # A loss scaler leaves it to a fused step to skip itself, and nobody hears of it.
        options["fused"] = True
    return OPTIMIZERS[config.optimizer](
        groups, lr=config.lr, weight_decay=config.weight_decay, **options
    )


def mixed_precision(config: TrainConfig) -> str:
    """What accelerate calls the precision."""
    return "no" if config.precision == "fp32" else config.precision


@contextmanager
def accelerated(config: TrainConfig) -> Iterator["Accelerator"]:
    """Device, ranks and precision as configured; UsageError where they do not go together.

    What an Accelerator of the caller's has settled is there again afterwards.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        fp16 = setting("precision", "fp16")
        raise UsageError(f"{fp16} needs a GPU; use bf16 or fp32 on the CPU")
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = config.deterministic, not config.deterministic
    # Its settings are global: it takes those that are there for its own.
    globals_ = [form._shared_state for form in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(shared) for shared in globals_]
    for shared in globals_:
        shared.clear()
    try:
        with _without_settings_of_the_launcher(config):
            accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=mixed_precision(config),
                gradient_accumulation_steps=config.accumulate,
                dynamo_backend="inductor" if config.compile else "no",
            )
        yield accelerator
    finally:
        for shared, before in zip(globals_, kept, strict=True):
            shared.clear()
            shared.update(before)
        cudnn.deterministic, cudnn.benchmark = flags


@contextmanager
def _without_settings_of_the_launcher(config: TrainConfig) -> Iterator[None]:
    """Leave out what `accelerate launch` sets by the environment, and say which ours overrule."""
    chosen = {
        "MIXED_PRECISION": mixed_precision(config),
        "GRADIENT_ACCUMULATION_STEPS": str(config.accumulate),
        "DYNAMO_BACKEND": "inductor" if config.compile else "no",
        **dict.fromkeys(("USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM"), "false"),
    }
    given = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith("ACCELERATE_") and name != "ACCELERATE_USE_CPU")
        or (name == "LOCAL_RANK" and world() == 1)  # it would wait for others
    }
    for name, value in chosen.items():
        other = given.get(f"ACCELERATE_{name}", value)
        if other.lower() != value:
            say(
                f"note: {name.lower().replace('_', ' ')} {other} of accelerate's launcher is not "
                f"taken, but {value}: the options of train decide, and weights are not sharded"
            )
    for name in given:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= given


def learned_latents_for(
    model: LatentModel, config: TrainConfig, accelerator: "Accelerator", split: Split, folder: Path
) -> LearnedLatents | None:
    """Room for the latents of the training images, where the model learns any."""
    if not isinstance(model, LearnsLatents):
        return None
    if config.precision == "fp16":
        fp16 = setting("precision", "fp16")
        raise UsageError(f"{fp16} does not go with learned latents; use bf16 or fp32")
    room = Room(
        accelerator.device,
        config.seed,
        config.batch,
        config.test_batch,
        folder,
        accelerator.process_index,
        accelerator.num_processes,
        in_file=config.code_table == "file",
    )
    return model.latents_to_learn(split, room)


class Diverged(RunError):
    """Training has left the finite numbers."""


class Best(NamedTuple):
    """The lowest test loss so far."""

    step: int
    loss: float


class Given(NamedTuple):
    """What the caller knows of a model of their own."""

    code: Code | None = None  # that it is built with
    weights: Mapping[str, Tensor] | None = None  # to begin with, in place of seeded ones


class Learner:
    """One model being trained, the same on every rank.

    Batch normalisation takes its statistics from each rank's own images, as is usual; those of
    rank 0 are the ones evaluated and saved.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: "Accelerator",
        split: Split,
        place: Path,
        given: Given = Given(),  # noqa: B008
    ):
        """A model with seeded weights, and room for the latents of the split if it learns any.

        The folder `place` is for files that need not last. All ranks take the given weights of rank
        0.
        """
        from accelerate.utils import set_seed

        self.config = config
        self.accelerator = accelerator
        set_seed(config.seed, device_specific=True)
        model = build(config.model, config.seed, given.code)
        device = accelerator.device
        self._given = given.weights is not None
        if given.weights is not None:
            model.load_state_dict(given.weights)
        layout = torch.channels_last
        if isinstance(model, LaidOut):
            layout = model.memory_format(device)
        self.model = model.to(device).to(memory_format=layout)
        # Asked once: isinstance of a protocol looks at each of its properties, which may compute.
        self._staged = self.model if isinstance(self.model, Staged) else None
        self._annealed = self.model if isinstance(self.model, Annealed) else None
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
            if config.ema
            else None
        )
        self._steps = step_objectives(self.model, accelerator)
        self._groups = [group for part in self._steps for group in part.groups]
        groups = [{"params": part.weights, "lr": config.lr * part.rate} for part in self._groups]
        self.optimizer = accelerator.prepare(optimizer_of(config, groups))
        self.learned = learned_latents_for(self.model, config, accelerator, split, place)
        self.meter = Meter(accelerator.device)
        self.values: list[dict[str, Tensor]] = []  # of the last step: those of each of its parts
        self.best: Best | None = None
        self.skipped = 0  # steps left out because something was not finite
        self._skipped_in_a_row = 0
        # Batch normalisation's running statistics, which a step that is left out must not spoil.
        self._statistics = [part for part in self.model.buffers() if part.is_floating_point()]
        leaves_out = config.skip or config.precision == "fp16"
        self._kept_statistics = [part.clone() for part in self._statistics] if leaves_out else []

    @property
    def chosen(self) -> LatentModel:
        """The weights to evaluate, sample and save: the moving average where one is kept."""
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, LatentModel)
        return averaged

    def shown(self) -> LatentModel:
        """The model to evaluate and sample, the same on all ranks; to be called on all of them."""
        if self.learned is not None:
            self.learned.describe(self.chosen)
        if dist.is_initialized():
            for buffer in self.chosen.buffers():
                dist.broadcast(buffer, 0)
        return self.chosen

    def copy_buffers(self) -> None:
        """Give the moving average of the weights what has been fitted."""
        if self.average is not None:
            buffers = zip(self.average.module.buffers(), self.model.buffers(), strict=True)
            for kept, fitted in buffers:
                kept.copy_(fitted)

    def initialise(self, split: Split) -> None:
        """Initialise learned latents, and weights from a batch spread over the split, where there
        are any."""
        if self.learned is not None:
            self.learned.initialise()
        model, alike = self.model, not self._given  # whether the weights of all ranks are
        if isinstance(model, DataDependent) and model.data_dependent:
            chosen = split.spread(self.config.batch)
            images = unit_images(split, chosen, self.accelerator.device)
            model.initialise(images, Noise(self.config.seed, 0).derived("initialise"))
            alike = False
        if not alike and dist.is_initialized():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)
        if self.average is not None:
            self.average.module.load_state_dict(model.state_dict())

    def learn(self, step: int, parts: list[Batch], plan: Plan) -> None:
        """One optimizer step for each alternating step, the gradient summed over the parts."""
        for alternating in self._steps:
            alternating.objective.train()
        epoch = step // plan.steps_per_epoch
        if self._staged is not None:
            self._staged.begin_epoch(epoch)
        if self._annealed is not None:
            self._annealed.begin_step(step)
        self._decay_rates(step, plan)
        self.values = []
        if self._kept_statistics:
            torch._foreach_copy_(self._kept_statistics, self._statistics)
        noises = [plan.noise(step, part) for part in range(len(parts))]
        seen: list[list[dict[str, Tensor]]] = []  # alternating steps by parts
        for alternating in self._steps:
            values, norm, finite = self._take(alternating, parts, noises)
            if not finite:
                if self.learned is not None:
                    self.learned.leave()
                self._leave_out(step + 1, values)
                return
            if self.accelerator.optimizer_step_was_skipped:
                self._count_overflow(step + 1)
                return
            seen.append([alternating.labelled(each, norm) for each in values])
        if self.learned is not None:
            objective = self.accelerator.unwrap_model(self._steps[0].objective)
            seen.append(self.learned.move(objective, parts, noises))
        self._skipped_in_a_row = 0
        self.values = [total(steps) for steps in zip(*seen, strict=True)]
        for part in self.values:
            self.meter.add(part, step + 1)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _take(
        self, alternating: StepObjective, parts: list[Batch], noises: list[Noise]
    ) -> tuple[list[dict[str, Tensor]], Tensor, bool]:
        """The values of each part, the gradient's norm, and whether the step was taken."""
        seen = []
        finite = True
        with alternating.alone():
            for batch, noise in zip(parts, noises, strict=True):
                with self.accelerator.accumulate(alternating.objective):
                    given = {} if self.learned is None else self.learned.take(batch)
                    values = alternating.objective(batch.images, noise, **given)
                    self.accelerator.backward(values["loss"])
                    seen.append(values)
                    if self.accelerator.sync_gradients:
                        self._drop_frozen_gradients()
                        norm = self._bound_gradient()
                        finite = not self.config.skip or self._all_finite(seen, norm)
                    if finite:
                        self.optimizer.step()
                    self.optimizer.zero_grad()
        return seen, norm, finite

    def _decay_rates(self, step: int, plan: Plan) -> None:
        """The learning rates at a step."""
        every = self.config.intervals["lr_decay"]
        period = every.count * (plan.steps_per_epoch if every.unit == "epoch" else 1)
        decayed = self.config.lr_decay ** (step // period) if period else 1.0
        epochs = step // plan.steps_per_epoch
        for group, part in zip(self.optimizer.param_groups, self._groups, strict=True):
            factor = decayed if part.decay is None else part.decay**epochs
            group["lr"] = self.config.lr * factor * part.rate

    def _drop_frozen_gradients(self) -> None:
        """Drop the gradients of frozen modules, so that this step leaves their weights alone."""
        for module in () if self._staged is None else self._staged.frozen:
            for weight in module.parameters():
                weight.grad = None

    def _bound_gradient(self) -> Tensor:
        """The gradient's norm; the gradient is bounded where configured."""
        self.accelerator.unscale_gradients()
        parameters = [one for one in self.model.parameters() if one.grad is not None]
        gradients = [one.grad for one in parameters if one.grad is not None]
        if not gradients:  # all that this step optimises is frozen
            return torch.zeros((), device=self.accelerator.device)
        norm = left = nn.utils.get_total_norm(gradients)
        if self.config.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.config.clip_value)
            left = nn.utils.get_total_norm(gradients)
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip, left)
        return norm

    def _all_finite(self, seen: list[dict[str, Tensor]], norm: Tensor) -> bool:
        """Whether losses and gradient are finite on all ranks; waits for the device.

        The loss scaler of fp16 looks for itself, and has to see what it looks for.
        """
        if self.accelerator.scaler is not None:
            return True
        finite = torch.stack([*(values["loss"].detach() for values in seen), norm]).isfinite()
        bad = 1 - finite.all().float()
        if dist.is_initialized():
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        return not bad

    def _leave_out(self, step: int, seen: list[dict[str, Tensor]]) -> None:
        """Undo what the forward pass of a step did that is to be left out, and count the step."""
        self._restore_statistics()
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self.config.skip:
            names = {
                name for values in seen for name, value in values.items() if not value.isfinite()
            }
            raise Diverged(
                f"the loss or its gradient was infinite or NaN in each of the "
                f"{self._skipped_in_a_row} steps up to step {step}; in the last one "
                + (", ".join(sorted(names)) or "the gradient alone")
            )

    def _count_overflow(self, step: int) -> None:
        """The loss scaler skips a few steps while it looks for a scale; many are the end."""
        self._restore_statistics()
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == OVERFLOW_LIMIT:
            raise Diverged(
                f"fp16 overflowed in each of the {OVERFLOW_LIMIT} steps up to step {step}; "
                f"use {setting('precision', 'bf16')} or a lower {setting('lr')}"
            )

    def _restore_statistics(self) -> None:
        if self._kept_statistics:
            torch._foreach_copy_(self._statistics, self._kept_statistics)

    def check_losses(self) -> None:
        """Diverged when the loss of a step was not finite; asks all ranks."""
        bad = self.meter.bad_step()
        if bad is not None:
            raise Diverged(f"the loss became infinite or NaN at step {bad}")

    def check_weights(self, step: int) -> None:
        """Diverged when a weight is not finite after `step` steps."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise Diverged(f"a weight became infinite or NaN at step {step}")
        if self.learned is not None and not self.learned.all_finite():
            raise Diverged(f"a learned latent became infinite or NaN at step {step}")

    def any_rank(self, signal: int | None) -> int | None:
        """The signal that this or another rank received; to be called on all of them."""
        received = torch.tensor(signal or 0, device=self.accelerator.device)
        dist.all_reduce(received, dist.ReduceOp.MAX)
        return int(received) or None

    def note_test_loss(self, step: int, loss: float) -> bool:
        """Whether this is the lowest test loss so far; Diverged when it is not finite."""
        if not math.isfinite(loss):
            raise Diverged(f"the test loss is infinite or NaN at step {step}")
        if self.best is not None and loss >= self.best.loss:
            return False
        self.best = Best(step, loss)
        return True

    def capture(self, step: int, values: dict[str, Any]) -> State:
        """Everything a resumed run needs to go on as this one would; asks all ranks."""
        from accelerate.utils import gather_object

        tensors: dict[str, dict[str, Tensor]] = {}
        if self.learned is not None:
            self.learned.describe(self.chosen)
            tensors[LATENTS] = self.latents()
        tensors[EVALUATED] = self.chosen.state_dict()
        if self.average is not None:
            tensors["model"] = self.model.state_dict()
        tensors["optimizer"], optimizer = pack_optimizer(self.optimizer)
        ranks = gather_object([(*pack_generators(), self.meter.state())])
        tensors["generators"] = {
            f"{rank}/{name}": tensor
            for rank, (states, _, _) in enumerate(ranks)
            for name, tensor in states.items()
        }
        scaler = self.accelerator.scaler
        return State(
            step,
            tensors,
            {
                "step": step,
                **values,
                "best": self.best,
                "optimizer": optimizer,
                "scaler": None if scaler is None else scaler.state_dict(),
                "skipped": self.skipped,
                "skipped_in_a_row": self._skipped_in_a_row,
                "averaged": None if self.average is None else int(self.average.n_averaged),
                "ranks": [{"generators": numbers, "meter": meter} for _, numbers, meter in ranks],
            },
        )

    def latents(self) -> dict[str, Tensor]:
        """The learned latents, to be written, on the first rank; asks all of them."""
        whole = None if self.learned is None else self.learned.whole()
        return {} if whole is None else {"codes": whole}

    def restore(self, state: State) -> None:
        """Take up what `capture` gave; RunError when the checkpoint is of another model."""
        try:
            self._restore(state)
        except Exception as error:  # a damaged one can end in any of them
            lines = str(error).splitlines() or [type(error).__name__]
            reason = lines[-1].strip()
            raise RunError(
                f"the checkpoint of step {state.step} does not fit this run: {reason}"
            ) from None

    def _restore(self, state: State) -> None:
        values = state.values
        folder = Path("state", str(state.step))
        load_weights(self.chosen, state.tensors[EVALUATED], folder / f"{EVALUATED}.safetensors")
        if self.average is not None:
            load_weights(self.model, state.tensors["model"], folder / "model.safetensors")
            self.average.n_averaged.fill_(values["averaged"])
        if self.learned is not None:
            self.learned.restore(state.tensors[LATENTS]["codes"])
        unpack_optimizer(self.optimizer, state.tensors["optimizer"], values["optimizer"])
        if self.accelerator.scaler is not None and values["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.skipped = values.get("skipped", 0)  # not counted in older checkpoints
        self._skipped_in_a_row = values["skipped_in_a_row"]
        self.best = None if values["best"] is None else Best(*values["best"])

        rank, ranks = self.accelerator.process_index, values["ranks"]
        if len(ranks) != self.accelerator.num_processes:
            say(
                f"note: the checkpoint is of {processes(len(ranks))}, and these are "
                f"{processes(self.accelerator.num_processes)}: the run goes on, but not to the bit"
            )
            return
        prefix = f"{rank}/"
        generators = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors["generators"].items()
            if name.startswith(prefix)
        }
        unpack_generators(generators, ranks[rank]["generators"])
        self.meter.restore(ranks[rank]["meter"])


def check_shapes(model: LatentModel, data: Dataset) -> None:
    """UsageError when the model takes other images than the data set gives."""
    if tuple(data.train.shape) != tuple(model.image_shape):

        def describe(shape: tuple[int, ...]) -> str:
            channels, height, width = shape
            return f"{height}x{width} pixels and {channels} channel{'s' * (channels > 1)}"

        raise UsageError(
            f"the model takes images of {describe(model.image_shape)}, but {data.name} gives "
            f"{describe(data.train.shape)}; see {setting('data.size')} and the settings of the "
            "model"
        )


def check_bound(model: LatentModel, config: TrainConfig) -> None:
    """UsageError when a bound is asked for that the model does not have."""
    if config.intervals["bound"].count and not isinstance(model, Weighing):
        raise UsageError(
            f"{setting('bound_every')} needs a model with a likelihood, such as lvae; this is "
            f"{config.model.family}"
        )
