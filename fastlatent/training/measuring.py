"""What a run in training measures and fits between its steps and at its end."""

from typing import TYPE_CHECKING

from fastlatent.data import Split
from fastlatent.inference.passes import (
    HELD_OUT,
    finalise,
    measure_bound,
    measure_loss,
    refit,
)
from fastlatent.jobs.errors import Heard
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import (
    main_alone,
)
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import (
    Refitting,
)
from fastlatent.training.usage import latents_in_use, usage

if TYPE_CHECKING:
    from fastlatent.training.loop import Training

ROUNDING = 1e-9  # below this a logged number is rounding alone


def evaluate(training: "Training") -> None:
    """The loss on the test split, and the weights if it is the lowest so far."""
    model = training.learner.shown()
    with training.signals.at_once():
        losses = losses_on(training, model, training.test)
        in_use = latents_in_use(model, training.test, training.config.test_batch)
    training.test_loss = losses["loss"]
    best = training.learner.note_test_loss(training.done, training.test_loss)
    known = {} if in_use is None else {"latents_in_use": float(in_use)}
    training.record(training.test.name, losses | known)
    latents = training.learner.latents() if best else {}
    with main_alone() as mine:
        if best and mine:
            training.run.write_best(model.state_dict(), training.done, training.test_loss, latents)
    mark = ", the lowest so far" if best else ""
    collapsed = usage(model, losses, in_use)
    mark += f"; {collapsed}" if collapsed else ""
    name, unit = training.test.name, model.loss_unit
    say(f"{training.position()}: {name} loss {training.test_loss:.4f} {unit}{mark}")


def losses_on(training: "Training", model: LatentModel, split: Split) -> dict[str, float]:
    """The losses on the images of a split that are configured for it."""
    config = training.config
    return measure_loss(model, split, config.test_batch, config.seed, config.test_images)


def bound(training: "Training") -> None:
    """The importance-weighted bound on the test split."""
    model, config = training.learner.shown(), training.config
    samples = config.bound_samples
    with training.signals.at_once():
        bound = measure_bound(
            model, training.test, samples, config.test_batch, config.seed, config.bound_images
        )
    numbers = {"log_likelihood": bound.value, "standard_error": bound.error}
    training.record("bound", {"samples": samples, **numbers})
    say(
        f"{training.position()}: log-likelihood at least {bound.value:.4f} nats per image "
        f"by {samples} samples, standard error {bound.error:.4f}"
    )
    if bound.warning is not None:
        say(f"{training.position()}: {bound.warning}")


def fit_between_epochs(training: "Training") -> None:
    """What the model fits between epochs, after the checkpoint: the fit may take long."""
    model: LatentModel = training.learner.model
    epochs = training.done // training.plan.steps_per_epoch
    if not (isinstance(model, Refitting) and model.refit_images(epochs)):
        return
    if "checkpoint" in training.due:
        training.save()
    batch, seed = training.config.test_batch, training.config.seed
    limit = min(HELD_OUT, training.config.test_images or HELD_OUT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with training.signals.at_once():
            numbers = refit(model, training.train, batch, seed, epochs, training.test, limit)
    except Heard:
        model.load_state_dict(before)
        raise
    training.learner.copy_buffers()
    if numbers:
        training.record("refit", numbers)
        told = (f"{name.replace('_', ' ')} {_short(value)}" for name, value in numbers.items())
        say(f"{training.position()}: prior fitted anew: {', '.join(told)}")


def fit_at_the_end(training: "Training", model: LatentModel) -> None:
    """Run the model's last fit, and store it in the run's weights, last and best.

    Checkpoints keep the weights that training goes on from.
    """
    finalise(model, training.train, training.config.test_batch, training.config.seed)
    losses = losses_on(training, model, training.test)
    fitted = {name: value for name, value in losses.items() if name.startswith("fitted_")}
    training.record("fitted", fitted)
    for name, value in fitted.items():
        unit = model.unit_of(name)
        say(f"{training.position()}: {name.replace('_', ' ')} {value:.4f} {unit}".rstrip())
    with main_alone() as mine:
        if not mine:
            return
        training.run.write_weights(model.state_dict())
        best = training.learner.best
        if best is not None:
            if best.step != training.done:
                model = training.run.model("best", training.accelerator.device)
                finalise(model, training.train, training.config.test_batch, training.config.seed)
            training.run.write_best(model.state_dict(), *best)


def _short(value: float) -> str:
    """To five digits; what is rounding alone is 0."""
    return f"{0 if abs(value) < ROUNDING else value:.5g}"
