"""The training loop: one run from its settings to its pictures, on every rank."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlatent.data import Dataset, load
from fastlatent.inference.passes import (
    gather_codes,
)
from fastlatent.jobs.errors import Heard, RunError, Stopped, sentence_of
from fastlatent.jobs.progress import Progress, Stopwatch, say
from fastlatent.jobs.ranks import (
    PATIENCE,
    check_agreement,
    joined,
    launcher,
    main_alone,
    together,
    where_it_breaks_off,
    world,
)
from fastlatent.jobs.signals import Signals
from fastlatent.models.capabilities import (
    Finalising,
    LearnsLatents,
)
from fastlatent.presets import TrainConfig
from fastlatent.runs import Log, Run, State, flat, locked, to_json
from fastlatent.training import measuring, showing
from fastlatent.training.agreement import check_resumable, what_ranks_share
from fastlatent.training.callbacks import Moment
from fastlatent.training.learner import (
    AGREE_EVERY,
    Diverged,
    Given,
    Learner,
    accelerated,
    check_bound,
    check_shapes,
)
from fastlatent.training.plan import Plan
from fastlatent.training.single import check_parts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image


def train(
    config: TrainConfig,
    out: Path,
    resume: State | None = None,
    timeout: float = PATIENCE,
    callbacks: Sequence[Any] = (),  # with on_step or on_epoch, as Callback has them
    given: Given = Given(),  # noqa: B008
) -> None:
    """Train as configured in the run folder `out`, from the beginning or from a checkpoint.

    To be called on every rank where there are several; a process group that is there is used and
    left as it is. A rank that gives no sign of life for `timeout` seconds is given up.

    Raises UsageError or ValueError for settings and data that do not fit. Raises Diverged when a
    loss is no longer finite. Raises RunError when an image cannot be read, a checkpoint cannot be
    written, another rank has ended or another process trains there. Raises Stopped after a signal.
    """
    with joined(patience=timeout), ExitStack() as held:
        with together():
            held.enter_context(locked(out))
            data = load(config.data)
            for note in data.notes:
                say(note)
            agreed = what_ranks_share(config, data, resume) if world() > 1 else {}
        check_agreement(agreed)
        with accelerated(config) as accelerator, Signals() as signals:
            training = Training(config, data, accelerator, out, resume, signals, callbacks, given)
            try:
                training.learn()
                with signals.at_once():
                    training.finalise()
            except Heard as heard:
                raise Stopped(
                    f"stopped after step {training.done}, which is saved, before the end was "
                    f"shown; go on with: {training.command}",
                    heard.signal_number,
                ) from None
            except Diverged as error:
                kept = f"the last good checkpoint is that of step {training.run.latest()} in {out}"
                raise Diverged(f"{error}; {kept}") from None
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RunError(
                    "a process that reads images was killed, perhaps for want of memory; go on "
                    f"with: {training.command} --data.workers 0"
                ) from None
            except (OSError, ValueError) as error:
                raise RunError(f"{sentence_of(error)}{training.breaks_off()}") from error
            finally:
                training.close()


class Training:
    """One run on one rank; what is said of the ranks in Learner holds here."""

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        accelerator: "Accelerator",
        out: Path,
        resume: State | None,
        signals: Signals,
        callbacks: Sequence[Any],
        given: Given,
    ):
        self.signals, self.callbacks = signals, callbacks
        device, self.main = accelerator.device, accelerator.is_main_process
        self.config, self.data, self.out, self.accelerator = config, data, out, accelerator
        self.train = data.train.to(device)
        # What progress is measured on: the test images only where none are set apart for it.
        self.test = (data.validation or data.test).to(device)
        number, count = accelerator.process_index, accelerator.num_processes
        self.learner = Learner(config, accelerator, self.train, out.parent, given)
        owned = isinstance(self.learner.model, LearnsLatents)
        self.plan = Plan(config, len(self.train), device, number, count, owned)
        check_shapes(self.learner.model, data)
        check_bound(self.learner.model, config)
        check_parts(config, self.learner.model, self.train, count)
        self.done = 0  # optimizer steps
        self.test_loss: float | None = None  # of the weights as they are
        self.fresh = resume is None
        self.due: set[str] = set()  # of what follows the step, what is still to be done
        if resume is None:
            self.learner.initialise(self.train)
        else:
            check_resumable(resume, self.train, out)
            self.learner.restore(resume)
            self.done, self.test_loss = resume.step, resume.values["test_loss"]
            self.due = set(resume.values.get("due", ()))
        self.first = self.done
        # Nothing is written before all that can be wrong with the settings has been seen.
        self.run = Run(out, config, given.code)
        self.log: Log | None = None
        with together():
            if self.main:
                self._open(resume)
        # How commands name the code of a model of the user's own.
        self.naming = "" if given.code is None else given.code.option
        self.command = f"{launcher()} fastlatent.train --resume {out}{self.naming}"
        where_it_breaks_off(self.breaks_off)

    def _open(self, resume: State | None) -> None:
        """The run folder, new or as it was at the checkpoint."""
        if resume is None:
            self.run.create()
            self.log = Log(self.out)
            self.log.settings(flat(to_json(self.config)))
        else:
            self.run.rewind(resume.step)
            self.log = Log(self.out, self.done, resume.values["metrics_bytes"])

    def breaks_off(self) -> str:
        """Where the run ends without having reached its end, and what goes on with it."""
        try:
            kept = self.run.latest()
        except (OSError, ValueError):
            kept = None
        where = f"; training ends after step {self.done}"
        return where if kept is None else f"{where}, go on after step {kept} with: {self.command}"

    def learn(self) -> None:
        """Train to the last step."""
        showing.introduce(self)
        if self.fresh:
            self.save()  # whether checkpoints can be written shows now, not after hours
        last, stop = self.plan.last_step, False
        watch = Stopwatch()
        with Progress("training", last, min(self.done, last)) as progress:
            if self.due:
                self._follow(self.due | {"checkpoint"}, watch, progress)
            for step, parts in self.plan.steps_after(self.done, self.train):
                self.learner.learn(step, parts, self.plan)
                self.done, self.test_loss = step + 1, None
                watch.count += self.config.batch

                events = self.plan.events(self.done)
                signal = self._agree(self.signals.received, events)
                if events or signal:
                    self.learner.check_losses()
                    watch.pause()
                self._follow(events | {"checkpoint"} if signal else events, watch, progress)
                stop |= self._call_back()
                if signal and self.done < last:
                    raise self._stopped(signal)
                progress.title = f"training, epoch {self.plan.epoch(self.done):.2f}"
                progress.advance()
                if self._agree(int(stop) or None, events) and self.done < last:
                    if "checkpoint" not in events:
                        self.save()
                    say(f"a callback ends the training at step {self.done} of {last}")
                    return
                watch.go()

    def _follow(self, events: set[str], watch: Stopwatch, progress: Progress) -> None:
        """Do what follows a step; what a signal leaves undone, the resumed run begins with."""

        def log() -> None:
            progress.note = self._log_loss(watch)

        def shown_at_once(show: Callable[[Training], None]) -> None:
            with self.signals.at_once():
                show(self)

        doing: dict[str, Callable[[], None]] = {
            "refit": partial(measuring.fit_between_epochs, self),
            "log": log,
            "eval": partial(measuring.evaluate, self),
            "bound": partial(measuring.bound, self),
            "pictures": partial(shown_at_once, showing.draw),
            "film": partial(shown_at_once, showing.film),
        }
        self.due = set(events)
        try:
            for event, do in doing.items():
                if event in events:
                    do()
                self.due.discard(event)
        except Heard as heard:
            self.save()
            raise self._stopped(heard.signal_number) from None
        if "checkpoint" in events:
            self.save()

    def _call_back(self) -> bool:
        """Tell the caller's callbacks of a step, and of an epoch that it completes.

        Whether one of them ends the training.
        """
        if not (self.callbacks and self.main):
            return False
        plan, epoch = self.plan, self.plan.epoch(self.done)
        values, model = self.learner.values, self.learner.model
        moment = Moment(self.done, plan.last_step, epoch, model, self.test_loss, values)
        names = ("on_step", "on_epoch") if epoch.is_integer() else ("on_step",)
        said = [
            getattr(callback, name, lambda _: None)(moment)
            for name in names
            for callback in self.callbacks
        ]
        return any(answer is True for answer in said)

    def _stopped(self, signal: int) -> Stopped:
        return Stopped(
            f"stopped at step {self.done} of {self.plan.last_step} and saved; "
            f"go on with: {self.command}",
            signal,
        )

    def _agree(self, signal: int | None, events: set[str]) -> int | None:
        """The signal that ends the run; several ranks ask each other, but not at every step."""
        if self.plan.world == 1:
            return signal
        if events or self.done % AGREE_EVERY == 0:
            return self.learner.any_rank(signal)
        return None

    def _log_loss(self, watch: Stopwatch) -> str:
        means = self.learner.meter.read()
        rate = watch.read()
        skipped = self.learner.skipped
        self.record("train", {**means, "images_per_second": rate, "skipped_steps": skipped})
        return f"loss {means['loss']:.4g}  {rate:,.0f} images/s" if means else ""

    def save(self) -> None:
        self.learner.check_weights(self.done)
        values = {
            "epoch": self.plan.epoch(self.done),
            "images": self.plan.images,
            "mark": self.train.mark_text,
            "test_loss": self.test_loss,
            "metrics_bytes": self.log.flush_to_disk() if self.log is not None else 0,
            "due": sorted(self.due - {"checkpoint"}),
        }
        state = self.learner.capture(self.done, values)
        with main_alone() as mine:
            if mine:
                self.run.save(state)
                self.run.prune(self.config.keep)

    def finalise(self) -> None:
        """What a finished run shows: test loss, codes to sample from, pictures, where to go on."""
        if self.test_loss is None:
            measuring.evaluate(self)
        model = self.learner.shown()
        if self.data.validation is not None:
            test = self.data.test.to(self.accelerator.device)
            losses = measuring.losses_on(self, model, test)
            self.record("test", losses)
            say(f"{self.position()}: test loss {losses['loss']:.4f} {model.loss_unit}")
        if isinstance(model, Finalising) and model.finalising_images:
            measuring.fit_at_the_end(self, model)
        codes = None
        if model.latent_kind == "bits":
            labels = len(self.data.label_names or ())
            codes = gather_codes(model, self.train, self.config.test_batch, labels)
        with main_alone() as mine:
            if mine:
                showing.show(self, model, codes)
                self.run.finish(self.done)

    def position(self) -> str:
        return f"step {self.done} (epoch {self.plan.epoch(self.done):.4g})"

    def subject(self) -> str:
        return f"{self.run.title}, {self.position()}"

    def record(self, kind: str, numbers: dict[str, float]) -> None:
        if self.log is not None:
            self.log.numbers(kind, self.done, self.plan.epoch(self.done), numbers)

    def record_picture(self, name: str, picture: "Image") -> None:
        if self.log is not None:
            self.log.picture(name, self.done, picture)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
