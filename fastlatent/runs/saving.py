"""A trained run on its own: the files that its model needs to work, in a new folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch

from fastlatent.jobs.errors import UsageError
from fastlatent.models.capabilities import LearnsLatents
from fastlatent.priors import PriorKind
from fastlatent.runs.files import read_tensors
from fastlatent.runs.folder import CODE_FILES, LATENT_FILES, WEIGHT_FILES, Run, write_latents
from fastlatent.runs.opened import OpenedRun
from fastlatent.runs.priors import prior_file


def save(trained: OpenedRun, folder: Path) -> Path:
    """Write the run as `TrainedRun.save` says; the settings last, by which a folder is a run."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"save: folder must be new or empty; got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    new = Run(folder, trained.config)
    if unchanged(trained):
        for source, name in files_of(trained):
            if source.is_file():
                shutil.copyfile(source, folder / name)
    else:
        model = trained.model
        new.write_weights(model.state_dict())
        if isinstance(model, LearnsLatents):
            latents = trained.folder.latents(trained.weights, model.latent_dim)
            path = folder / LATENT_FILES["last"]
            write_latents(path, {"codes": latents}, new.weights_file("last"))
    metrics = trained.path / "metrics.jsonl"
    if metrics.is_file():
        shutil.copyfile(metrics, folder / metrics.name)
    new.write_config()
    return folder


def unchanged(trained: OpenedRun) -> bool:
    """Whether the model has the weights that the run folder holds."""
    stored, _ = read_tensors(trained.folder.weights_file(trained.weights))
    weights = trained.model.state_dict()
    return stored.keys() == weights.keys() and all(
        torch.equal(tensor, weights[name].cpu()) for name, tensor in stored.items()
    )


def files_of(trained: OpenedRun) -> Iterator[tuple[Path, str]]:
    """Files that belong to the weights, with their names where these are the last ones."""
    for names in (WEIGHT_FILES, LATENT_FILES, CODE_FILES):
        yield trained.path / names[trained.weights], names["last"]
    for kind in get_args(PriorKind):
        source = prior_file(trained.folder, trained.weights, kind)
        yield source, prior_file(trained.folder, "last", kind).name
