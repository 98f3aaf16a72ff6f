"""The evaluation of two sets of images or features, made by programs of any kind."""

from dataclasses import replace
from pathlib import Path

import torch

from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import say
from fastlatent.metrics.sets import SEED
from fastlatent.metrics.statistics import count_of
from fastlatent.runs.evaluation.extractors import Chosen, classifier_of
from fastlatent.runs.evaluation.given import (
    Reading,
    at_size_of,
    compare,
    open_set,
    own_folder,
    take_features,
    what_is_learnt,
)
from fastlatent.runs.evaluation.report import append_line, comparisons, draw_prd
from fastlatent.runs.files import RESULTS, write_json


def evaluate_sets(
    paths: tuple[Path, Path],  # of the real set and the other
    readings: tuple[Reading, Reading],
    chosen: Chosen,
    device: torch.device,
    data: str | None,  # whose training images a classifier learns
    root: Path | None,  # of that data set
    batch: int | None,  # images at a time
    seed: int | None,
    folder: Path | None,
    results: Path | None,  # None: beside the folder
) -> None:
    """Print the comparison of two sets, and store it in `folder` or one of their own."""
    kind = "classifier" if chosen.kind == "auto" and data is not None else chosen.kind
    size, channels = readings[0].size, readings[0].channels
    extractor = learnt = None
    if kind == "classifier" and data is not None:
        # It is trained last, when all that it is to see has been looked at.
        learnt = what_is_learnt(data, root, size, channels)
    elif kind != "auto" and kind != "none":
        extractor = chosen.open(kind, None, device)
    if learnt is not None:
        channels = learnt[1].train.shape[0]
    network = extractor is not None or learnt is not None
    sets = [
        open_set(path.expanduser(), replace(reading, channels=channels), network)
        for path, reading in zip(paths, readings, strict=True)
    ]
    if learnt is not None:
        learnt = at_size_of(sets, *learnt)
        extractor = classifier_of(*learnt, device)
    if extractor is not None:
        say(f"features: {extractor.about}")
    real, fake = (
        take_features(opened, extractor, chosen.transform, device, batch, size) for opened in sets
    )
    if chosen.jpeg and extractor is None:
        raise UsageError(f"{setting('jpeg')} goes with images; {paths[0]} holds features already")
    compared = comparisons(extractor, str(paths[0]), count_of(real))
    name = paths[1].name or str(paths[1])
    seed = SEED if seed is None else seed
    compared.sets[name] = compare(real, fake, seed, closed_balls=chosen.closed_balls)
    compared.counts[name] = count_of(fake)
    say(f"{paths[1]} next to {paths[0]}:")
    say("\n".join(compared.lines()))
    folder = (folder or own_folder(*paths)).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "real": str(paths[0]),
        "fake": str(paths[1]),
        "seed": seed,
        "jpeg": chosen.jpeg,
        "closed_balls": chosen.closed_balls,
        **compared.values(),
    }
    write_json(folder / "evaluation.json", found)
    say(f"numbers: {folder / 'evaluation.json'}")
    append_line(results or folder.parent / RESULTS, found)
    draw_prd(compared, folder / "prd.png", str(paths[1]))
