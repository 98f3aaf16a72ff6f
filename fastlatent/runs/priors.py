"""Priors fitted to the latents of a run: tensors with the settings that build them again."""

import json
from pathlib import Path

from fastlatent.files.reading import load_weights, reading
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.naming import call_or_command
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import encoder_of, prior_dim
from fastlatent.priors import Prior, PriorKind, PriorSettings
from fastlatent.runs.config import from_json, to_json
from fastlatent.runs.files import digest, fingerprint, read_tensors, write_tensors
from fastlatent.runs.folder import Run, Weights


def prior_file(run: Run, which: Weights, kind: PriorKind) -> Path:
    """Where the prior of that kind, fitted to latents of those weights, lies."""
    return run.path / f"prior-{kind}{'-best' if which == 'best' else ''}.safetensors"


def write_prior(run: Run, which: Weights, settings: PriorSettings, prior: Prior) -> Path:
    """Store a fitted prior, in place of what was fitted before, with a mark of the weights."""
    path = prior_file(run, which, settings.prior)
    marks = {
        "settings": json.dumps(to_json(settings)),
        "dim": str(prior.dim),
        "weights": fingerprint(run.weights_file(which)),
        "numbers": digest(prior.state_dict()),
    }
    write_tensors(path, prior.state_dict(), marks)
    return path


def read_prior(run: Run, which: Weights, kind: PriorKind, model: LatentModel) -> Prior:
    """The stored prior, on the model's device and in evaluation mode.

    Raises RunError, with the command that fits it, where there is none or the model has changed
    since; ValueError where the file is damaged or of another dimension.
    """
    path = prior_file(run, which, kind)
    command = f"python -m fastlatent.fit_prior {run.path} --prior {kind} --weights {which}"
    fitting = call_or_command(f"call fit_prior({kind!r}) of the run", f"run {command}")
    if not path.is_file():
        raise RunError(f"no prior {kind!r} is fitted to {run.path} yet; {fitting}")
    tensors, marks = read_tensors(path)
    with reading(path, "is damaged or holds no prior"):
        if not {"settings", "dim"} <= marks.keys():
            raise ValueError("it lacks its settings")
        settings = from_json(PriorSettings, json.loads(marks["settings"]), str(path))
        dim = int(marks["dim"])
    if dim != prior_dim(model):
        raise ValueError(
            f"{path} is a prior of {dim} latents and the model has {prior_dim(model)}; {fitting}"
        )
    if marks.get("weights") != fingerprint(run.weights_file(which)):
        raise RunError(f"{path} was fitted to other weights than those in {run.path}; {fitting}")
    with reading(path, "is damaged or holds no prior"):
        prior = settings.build(dim, model.image_shape)
        load_weights(prior, tensors, path, f"a prior {kind!r}")
        if "numbers" in marks and marks["numbers"] != digest(tensors):  # older ones have no mark
            raise ValueError("its numbers are not those that were fitted")
    device = next(model.parameters()).device
    return prior.bind(encoder_of(model)).to(device).eval().requires_grad_(False)
