"""What a run in training shows: its beginning, pictures on the way, and its end."""

from typing import TYPE_CHECKING

from fastlatent.files.subset import spread_to_both_ends
from fastlatent.inference.gallery import show_model
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import (
    evaluating,
    gather_codes,
)
from fastlatent.inference.quality import compare_samplers
from fastlatent.jobs.naming import call_or_command, setting
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import (
    main_alone,
)
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import (
    Staged,
    Termed,
    alternating_steps_of,
)
from fastlatent.plots import loss_curve, save, term_curves, tiles
from fastlatent.priors import BernoulliCopula, CodeStatistics
from fastlatent.runs import read_metrics
from fastlatent.training.usage import constant_bits

if TYPE_CHECKING:
    from fastlatent.training.loop import Training

# Metrics are matrices of latents by latents; beyond this many, their geometry takes hours.
MOST_LATENTS = 128


def introduce(training: "Training") -> None:
    """Say what is trained on what, and where it goes on."""
    config, weights = training.config, training.learner.model.parameters()
    train, test, name = len(training.train), len(training.test), training.test.name
    size = sum(parameter.numel() for parameter in weights)
    ranks = f" on {training.plan.world} processes" if training.plan.world > 1 else ""
    say(
        f"{config.name}: {train:,} train and {test:,} {name} images of {training.data.name}, "
        f"{size:,} weights, {config.precision} on {training.accelerator.device.type}{ranks}, "
        f"into {training.out}"
    )
    if training.done >= training.plan.last_step:
        more = setting("epochs" if config.steps is None else "steps")
        say(f"already trained to {training.position()}; {more} takes it further")
    elif training.done:
        say(f"going on after {training.position()}")
    model, epochs = training.learner.model, training.plan.epoch(training.plan.last_step)
    idle = model.idle_in(epochs) if isinstance(model, Staged) else None
    if idle is not None:
        say(idle)


def draw(training: "Training") -> None:
    """Pictures of the model as it is; samples by the codes of part of the training set.

    None after the last step, as the end draws its own.
    """
    if training.done == training.plan.last_step:
        return
    model, copula = training.learner.shown(), None
    if model.latent_kind == "bits":
        limit = training.config.picture_codes
        codes = gather_codes(model, training.train, training.config.test_batch, limit=limit)
        copula = BernoulliCopula().fit(codes)
    with main_alone() as mine:
        if not mine:
            return
        pictures = show_model(
            model, training.test, training.config.seed, training.config.test_batch, copula
        )
        for name, picture in pictures.items():
            path = training.run.images / f"step-{training.done:08}-{name}.png"
            save(picture, path, training.subject())
            training.record_picture(name, picture)


def film(training: "Training") -> None:
    """A frame of the training film."""
    learner, film = training.learner, training.run.film
    index = spread_to_both_ends(len(training.train), training.config.film_images)
    model = learner.shown()
    latents = None if learner.learned is None else learner.learned.gather(index)
    with main_alone() as mine:
        if not mine:
            return
        images = unit_images(training.train, index, training.accelerator.device)
        with evaluating(model):
            shown = model.reconstruct(images) if latents is None else model.decode(latents)
        film.mkdir(exist_ok=True)
        save(tiles(images), film / "originals.png")
        save(tiles(shown), film / f"{training.done:08}.png")


def show(training: "Training", model: LatentModel, codes: CodeStatistics | None) -> None:
    """The end of a run: loss, samplers, pictures, and what to try next; on the first rank."""
    seed, batch = training.config.seed, training.config.test_batch
    say()
    name, unit = training.test.name, model.loss_unit
    say(f"{name} loss {training.test_loss:.4f} {unit} after {training.position()}")
    copula = None
    if codes is not None:
        training.run.write_codes("last", codes)
        copula = BernoulliCopula().fit(codes)
        constant = constant_bits(codes)
        if constant:
            say(f"{constant} of {model.latent_dim} bits are the same for all training images")
        if model.latent_dim > 1:  # one bit has no pair moments
            quality = compare_samplers(model, codes, copula, training.train, training.test, seed)
            training.record("samples", quality.values())
            say("\n".join(quality.lines()))
    pictures = show_model(model, training.test, seed, batch, copula, every_sampling=True)
    metrics = read_metrics(training.out)
    losses = {f"{step.name}_loss": step.unit for step in alternating_steps_of(model)}
    pictures["loss"] = loss_curve(metrics, model.loss_unit, losses)
    if isinstance(model, Termed) and model.terms:
        pictures["terms"] = term_curves(metrics, model.terms)
    for name, picture in pictures.items():
        path = training.run.images / f"{name}.png"
        if training.done > training.first or not path.exists():  # sample may have drawn more since
            save(picture, path, training.subject())
            training.record_picture(name, picture)
    say(f"pictures in {training.run.images}: " + ", ".join(f"{name}.png" for name in pictures))
    say("next:")
    for line in next_steps(training, model):
        say(f"  {line}")


def next_steps(training: "Training", model: LatentModel) -> list[str]:
    """Commands that go on from a finished run; calls of it where Python has them."""
    steps, epochs = training.config.steps, training.config.epochs
    run = f"{training.out}{training.naming}"
    geodesic = f"python -m fastlatent.interpolate {run} --method geodesic"
    geometry = (
        f"python -m fastlatent.geodesics {run} --pairs 20",
        call_or_command("run.interpolate(a, b, method='geodesic')", geodesic),
    )
    studied = model.latent_kind == "real" and model.latent_dim <= MOST_LATENTS
    return [
        call_or_command("run.sample(100)", f"python -m fastlatent.sample {run} --images 100"),
        call_or_command("run.reconstruct(images)", f"python -m fastlatent.reconstruct {run}"),
        call_or_command("run.interpolate(a, b)", f"python -m fastlatent.interpolate {run}"),
        *([f"python -m fastlatent.film {training.out}"] if training.run.film.is_dir() else []),
        *(geometry if studied else ()),
        f"{training.command} --epochs {2 * epochs}"
        if steps is None
        else f"{training.command} --steps {2 * steps}",
        f"tensorboard --logdir {training.out}",
    ]
