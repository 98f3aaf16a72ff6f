"""The training loop: one run from its settings to its pictures, on every rank."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastlatent.data import Dataset, Split, load
from fastlatent.inference.gallery import show_model
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import (
    HELD_OUT,
    conclude,
    evaluating,
    gather_codes,
    measure_bound,
    measure_loss,
    refit,
)
from fastlatent.inference.quality import compare_samplers
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
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import (
    Concluding,
    LearnsCodes,
    Refitting,
    Staged,
    Termed,
    turns_of,
)
from fastlatent.plots import loss_curve, save, term_curves, tiles
from fastlatent.presets import TrainConfig
from fastlatent.priors import BernoulliCopula, CodeStatistics
from fastlatent.runs import Log, Run, State, locked, read_metrics
from fastlatent.training.agreement import check_resumable, what_ranks_share
from fastlatent.training.learner import (
    AGREE_EVERY,
    Diverged,
    Learner,
    accelerated,
    check_bound,
    check_shapes,
)
from fastlatent.training.plan import Plan, film_index
from fastlatent.training.single import check_parts
from fastlatent.training.usage import constant_bits, latents_in_use, usage

if TYPE_CHECKING:
    from accelerate import Accelerator

ROUNDING = 1e-9  # below this a logged number is rounding alone
# Metrics are matrices of latents by latents; beyond this many, their geometry takes hours.
MOST_LATENTS = 128


def train(
    config: TrainConfig, out: Path, resume: State | None = None, timeout: float = PATIENCE
) -> None:
    """Train as configured in the run folder `out`, from the beginning or from a checkpoint.

    To be called on every rank where there are several; a process group that is there is used and
    left as it is. A rank that gives no sign of life for `timeout` seconds is given up.

    Raises UsageError or ValueError for settings and data that do not fit, Diverged when a loss is
    no longer finite, RunError when an image cannot be read, a checkpoint cannot be written, another
    rank has ended or another process trains there, Stopped after a signal.
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
            training = Training(config, data, accelerator, out, resume, signals)
            try:
                training.learn()
                with signals.at_once():
                    training.conclude()
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
    ):
        self.signals = signals
        device, self.main = accelerator.device, accelerator.is_main_process
        self.config, self.data, self.out, self.accelerator = config, data, out, accelerator
        self.train = data.train.to(device)
        # What progress is measured on: the test images only where none are set apart for it.
        self.test = (data.validation or data.test).to(device)
        number, count = accelerator.process_index, accelerator.num_processes
        self.learner = Learner(config, accelerator, self.train, out.parent)
        owned = isinstance(self.learner.model, LearnsCodes)
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
        self.run = Run(out, config)
        self.log: Log | None = None
        with together():
            if self.main:
                self._open(resume)
        self.command = f"{launcher()} fastlatent.train --resume {out}"
        where_it_breaks_off(self.breaks_off)

    def _open(self, resume: State | None) -> None:
        """The run folder, new or as it was at the checkpoint."""
        if resume is None:
            self.run.create()
            self.log = Log(self.out)
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
        self._introduce()
        if self.fresh:
            self._save()  # whether checkpoints can be written shows now, not after hours
        last = self.plan.last_step
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
                if signal and self.done < last:
                    raise self._stopped(signal)
                progress.advance()
                watch.go()

    def _follow(self, events: set[str], watch: Stopwatch, progress: Progress) -> None:
        """Do what follows a step; what a signal leaves undone, the resumed run begins with."""
        self.due = set(events)
        try:
            if "refit" in events:
                self._refit()
            self.due.discard("refit")
            if "log" in events:
                progress.note = self._log_loss(watch)
            self.due.discard("log")
            if "eval" in events:
                self._evaluate()
            self.due.discard("eval")
            if "bound" in events:
                self._bound()
            self.due.discard("bound")
            if "pictures" in events and self.done < self.plan.last_step:  # the end draws its own
                with self.signals.at_once():
                    self._draw()
            self.due.discard("pictures")
            if "film" in events:
                with self.signals.at_once():
                    self._film()
            self.due.discard("film")
        except Heard as heard:
            self._save()
            raise self._stopped(heard.signal_number) from None
        if "checkpoint" in events:
            self._save()

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
        self._record("train", {**means, "images_per_second": rate, "skipped_steps": skipped})
        return f"loss {means['loss']:.4g}  {rate:,.0f} images/s" if means else ""

    def _refit(self) -> None:
        """What the model fits between epochs, after the checkpoint: the fit may take long."""
        model, epochs = self.learner.model, self.done // self.plan.steps_per_epoch
        if not (isinstance(model, Refitting) and model.refit_images(epochs)):
            return
        if "checkpoint" in self.due:
            self._save()
        batch, seed = self.config.test_batch, self.config.seed
        limit = min(HELD_OUT, self.config.test_images or HELD_OUT)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            with self.signals.at_once():
                numbers = refit(model, self.train, batch, seed, epochs, self.test, limit)
        except Heard:
            model.load_state_dict(before)
            raise
        self.learner.copy_buffers()
        if numbers:
            self._record("refit", numbers)
            told = (f"{name.replace('_', ' ')} {_short(value)}" for name, value in numbers.items())
            say(f"{self._position()}: prior fitted anew: {', '.join(told)}")

    def _evaluate(self) -> None:
        """The loss on the test split, and the weights if it is the lowest so far."""
        model = self.learner.shown()
        with self.signals.at_once():
            losses = self._measured(model, self.test)
            in_use = latents_in_use(model, self.test, self.config.test_batch)
        self.test_loss = losses["loss"]
        best = self.learner.note_test_loss(self.done, self.test_loss)
        known = {} if in_use is None else {"latents_in_use": float(in_use)}
        self._record(self.test.name, losses | known)
        latents = self.learner.latents() if best else {}
        with main_alone() as mine:
            if best and mine:
                self.run.write_best(model.state_dict(), self.done, self.test_loss, latents)
        mark = ", the lowest so far" if best else ""
        collapsed = usage(model, losses, in_use)
        mark += f"; {collapsed}" if collapsed else ""
        name, unit = self.test.name, model.loss_unit
        say(f"{self._position()}: {name} loss {self.test_loss:.4f} {unit}{mark}")

    def _measured(self, model: LatentModel, split: Split) -> dict[str, float]:
        """The losses on the images of a split that are configured for it."""
        config = self.config
        return measure_loss(model, split, config.test_batch, config.seed, config.test_images)

    def _bound(self) -> None:
        """The importance-weighted bound on the test split."""
        model, config, samples = self.learner.shown(), self.config, self.config.bound_samples
        with self.signals.at_once():
            bound = measure_bound(
                model, self.test, samples, config.test_batch, config.seed, config.bound_images
            )
        numbers = {"log_likelihood": bound.value, "standard_error": bound.error}
        self._record("bound", {"samples": samples, **numbers})
        say(
            f"{self._position()}: log-likelihood at least {bound.value:.4f} nats per image "
            f"by {samples} samples, standard error {bound.error:.4f}"
        )
        if bound.warning is not None:
            say(f"{self._position()}: {bound.warning}")

    def _draw(self) -> None:
        """Pictures of the model as it is; samples by the codes of part of the training set."""
        model, copula = self.learner.shown(), None
        if model.latent_kind == "bits":
            limit = self.config.picture_codes
            codes = gather_codes(model, self.train, self.config.test_batch, limit=limit)
            copula = BernoulliCopula().fit(codes)
        with main_alone() as mine:
            if not mine:
                return
            pictures = show_model(
                model, self.test, self.config.seed, self.config.test_batch, copula
            )
            for name, picture in pictures.items():
                path = self.run.images / f"step-{self.done:08}-{name}.png"
                save(picture, path, self._subject())
                self.log.picture(name, self.done, picture)

    def _film(self) -> None:
        """A frame of the training film."""
        learner, film = self.learner, self.run.film
        index = film_index(len(self.train), self.config.film_images)
        model = learner.shown()
        latents = None if learner.codes is None else learner.codes.gather(index)
        with main_alone() as mine:
            if not mine:
                return
            images = unit_images(self.train, index, self.accelerator.device)
            with evaluating(model):
                shown = model.reconstruct(images) if latents is None else model.decode(latents)
            film.mkdir(exist_ok=True)
            save(tiles(images), film / "originals.png")
            save(tiles(shown), film / f"{self.done:08}.png")

    def _save(self) -> None:
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

    def conclude(self) -> None:
        """What a finished run shows: test loss, codes to sample from, pictures, where to go on."""
        if self.test_loss is None:
            self._evaluate()
        model = self.learner.shown()
        if self.data.validation is not None:
            test = self.data.test.to(self.accelerator.device)
            losses = self._measured(model, test)
            self._record("test", losses)
            say(f"{self._position()}: test loss {losses['loss']:.4f} {model.loss_unit}")
        if isinstance(model, Concluding) and model.concluding_images:
            self._conclude_model(model)
        codes = None
        if model.latent_kind == "bits":
            labels = len(self.data.label_names or ())
            codes = gather_codes(model, self.train, self.config.test_batch, labels)
        with main_alone() as mine:
            if mine:
                self._show(model, codes)
                self.run.finish(self.done)

    def _conclude_model(self, model: LatentModel) -> None:
        """What the model fits to its trained weights, into the run's weights, last and best.

        Checkpoints keep the weights that training goes on from.
        """
        conclude(model, self.train, self.config.test_batch, self.config.seed)
        losses = self._measured(model, self.test)
        fitted = {name: value for name, value in losses.items() if name.startswith("fitted_")}
        self._record("fitted", fitted)
        for name, value in fitted.items():
            unit = model.unit_of(name)
            say(f"{self._position()}: {name.replace('_', ' ')} {value:.4f} {unit}".rstrip())
        with main_alone() as mine:
            if not mine:
                return
            self.run.write_weights(model.state_dict())
            best = self.learner.best
            if best is not None:
                if best.step != self.done:
                    model = self.run.model("best", self.accelerator.device)
                    conclude(model, self.train, self.config.test_batch, self.config.seed)
                self.run.write_best(model.state_dict(), *best)

    def _show(self, model: LatentModel, codes: CodeStatistics | None) -> None:
        seed, batch = self.config.seed, self.config.test_batch
        say()
        name, unit = self.test.name, model.loss_unit
        say(f"{name} loss {self.test_loss:.4f} {unit} after {self._position()}")
        copula = None
        if codes is not None:
            self.run.write_codes("last", codes)
            copula = BernoulliCopula().fit(codes)
            constant = constant_bits(codes)
            if constant:
                say(f"{constant} of {model.latent_dim} bits are the same for all training images")
            if model.latent_dim > 1:  # one bit has no pair moments
                quality = compare_samplers(model, codes, copula, self.train, self.test, seed)
                self._record("samples", quality.values())
                say("\n".join(quality.lines()))
        pictures = show_model(model, self.test, seed, batch, copula, every_sampling=True)
        metrics = read_metrics(self.out)
        turns = {f"{turn.name}_loss": turn.unit for turn in turns_of(model)}
        pictures["loss"] = loss_curve(metrics, model.loss_unit, turns)
        if isinstance(model, Termed) and model.terms:
            pictures["terms"] = term_curves(metrics, model.terms)
        for name, picture in pictures.items():
            path = self.run.images / f"{name}.png"
            if self.done > self.first or not path.exists():  # sample may have drawn more since
                save(picture, path, self._subject())
                self.log.picture(name, self.done, picture)
        say(f"pictures in {self.run.images}: " + ", ".join(f"{name}.png" for name in pictures))
        say("next:")
        steps, epochs = self.config.steps, self.config.epochs
        more = f"--epochs {2 * epochs}" if steps is None else f"--steps {2 * steps}"
        geometry = (
            f"python -m fastlatent.geodesics {self.out} --pairs 20",
            f"python -m fastlatent.interpolate {self.out} --method geodesic",
        )
        studied = model.latent_kind == "real" and model.latent_dim <= MOST_LATENTS
        for line in (
            f"python -m fastlatent.sample {self.out} --n 100",
            f"python -m fastlatent.reconstruct {self.out}",
            f"python -m fastlatent.interpolate {self.out}",
            *([f"python -m fastlatent.film {self.out}"] if self.run.film.is_dir() else []),
            *(geometry if studied else ()),
            f"{self.command} {more}",
            f"tensorboard --logdir {self.out}",
        ):
            say(f"  {line}")

    def _introduce(self) -> None:
        config, weights = self.config, self.learner.model.parameters()
        train, test, name = len(self.train), len(self.test), self.test.name
        size = sum(parameter.numel() for parameter in weights)
        ranks = f" on {self.plan.world} processes" if self.plan.world > 1 else ""
        say(
            f"{config.name}: {train:,} train and {test:,} {name} images of {self.data.name}, "
            f"{size:,} weights, {config.precision} on {self.accelerator.device.type}{ranks}, "
            f"into {self.out}"
        )
        if self.done >= self.plan.last_step:
            option = "--epochs" if config.steps is None else "--steps"
            say(f"already trained to {self._position()}; {option} takes it further")
        elif self.done:
            say(f"going on after {self._position()}")
        model, epochs = self.learner.model, self.plan.epoch(self.plan.last_step)
        idle = model.idle_in(epochs) if isinstance(model, Staged) else None
        if idle is not None:
            say(idle)

    def _position(self) -> str:
        return f"step {self.done} (epoch {self.plan.epoch(self.done):.4g})"

    def _subject(self) -> str:
        return f"{self.run.path.name}: {self.config.name}, {self._position()}"

    def _record(self, kind: str, numbers: dict[str, float]) -> None:
        if self.log is not None:
            self.log.numbers(kind, self.done, self.plan.epoch(self.done), numbers)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _short(value: float) -> str:
    """To five digits; what is rounding alone is 0."""
    return f"{0 if abs(value) < ROUNDING else value:.5g}"
