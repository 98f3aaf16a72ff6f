"""The evaluation of a trained run: what its model loses, and its images next to real ones."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastlatent import plots
from fastlatent.data.config import BINARY_SIZES
from fastlatent.files.reading import read_json
from fastlatent.inference.latents import Repair
from fastlatent.inference.passes import measure_bound, measure_reconstructions
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import is_main_process
from fastlatent.metrics import Weighing
from fastlatent.metrics.statistics import Given, count_of
from fastlatent.models.capabilities import CountsPixels, LearnedPrior
from fastlatent.priors import Prior, PriorKind
from fastlatent.runs.evaluation.extractors import Chosen, Kind
from fastlatent.runs.evaluation.given import (
    Opened,
    Reading,
    compare,
    open_set,
    take_features,
)
from fastlatent.runs.evaluation.priors import (
    UnderPrior,
    bounds_under,
    stored_priors,
    table_of,
)
from fastlatent.runs.evaluation.report import (
    Comparisons,
    Losses,
    append_line,
    comparisons,
    draw_prd,
)
from fastlatent.runs.evaluation.sets import features_of, made_by_model, real_images
from fastlatent.runs.files import RESULTS, fingerprint, write_json
from fastlatent.runs.opened import OpenedRun


def evaluate_run(
    trained: OpenedRun,
    name: str,  # of the split
    chosen: Chosen,
    samples: int | None,  # of the importance-weighted bound; None: without
    limit: int | None,  # only so many images, evenly spread
    reference: Path | None,  # real images or features; None: the images of the split
    reading: Reading,  # of the reference, but for size and channels
    repair: Repair,
    results: Path | None,  # None: beside the run
) -> dict[str, Any]:
    """Print losses and comparisons of a trained model, and store them in its run folder.

    Returns them as evaluation.json holds them.
    """
    model, seed, batch = trained.model, trained.seed, trained.batch
    if samples is not None and not isinstance(model, Weighing):
        family = trained.config.model.family
        raise UsageError(
            f"{setting('samples')} needs a model with a likelihood, vae, lvae or ladder; this is "
            f"{family}"
        )
    split = trained.split(name)
    images = min(limit or len(split), len(split))
    kind = features_kind(chosen, trained, images)
    given = None
    if reference is not None and kind is not None:
        channels, height, width = model.image_shape
        reading = replace(reading, size=(height, width), channels=channels)
        given = open_set(reference.expanduser(), reading, network=True)
    measured = measure_reconstructions(model, split, batch, seed, limit)
    means = measured.means
    bound = None
    if samples is not None:
        bound = measure_bound(model, split, samples, batch, seed, limit)
    units = {name: model.unit_of(name) for name in means}
    bits = bits_per_nat(trained)
    losses = Losses(means, measured.pixel_error, bound, samples, units, bits)
    say(f"{name} split of {trained.data.name}, {images:,} images:")
    say("\n".join(losses.lines()))

    path = trained.path / "evaluation.json"
    weights = trained.weights
    found = {
        "weights": weights,
        "fingerprint": fingerprint(trained.folder.weights_file(weights)),
        "data": trained.data.name,
        "split": name,
        "images": images,
        "seed": seed,
        "batch": batch,
        "values": losses.values(),
    }
    before = compared_before(path, found)
    if is_main_process():
        write_json(path, found | before)
    priors = stored_priors(trained)
    if priors and isinstance(model, LearnedPrior):
        own = UnderPrior(means["loss"], means["kl"], bound)
        under = bounds_under(model, own, priors, split, batch, seed, samples, limit)
        say("\n".join(table_of(under)))
        found["priors"] = {prior: row.values() for prior, row in under.items()}
    compared = None
    if kind is not None:
        compared = compare_with_real(
            trained, name, chosen, kind, given, images, measured.latents, repair, priors
        )
        found |= {"jpeg": chosen.jpeg, "closed_balls": chosen.closed_balls}
        found |= compared.values()
        say("\n".join(compared.lines()))
    whole = found if compared is not None else found | before
    if not is_main_process():
        return whole
    write_json(path, whole)
    say(f"numbers: {path}")
    results = results or trained.path.parent / RESULTS
    append_line(results, {"run": str(trained.path)} | found)
    if compared is not None:
        draw_prd(compared, trained.place(None, "prd"), trained.subject)
    layers = [mean for name, mean in means.items() if name.startswith("kl_layer_")]
    if layers:
        title = f"KL of each layer, {name} split"
        values, errors = zip(*layers, strict=True)
        picture = plots.layer_bars(values, errors, title, model.unit_of("kl"))
        say(f"picture: {trained.draw(picture, trained.place(None, 'kl-layers'))}")
    return whole


def compared_before(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The comparisons that an earlier evaluation of the same weights and images left in `path`."""
    same = ("weights", "fingerprint", "data", "split", "images", "seed")
    try:
        earlier = read_json(path)
        if any(earlier[name] != found[name] for name in same):
            return {}
        kept = {name: earlier[name] for name in ("jpeg", "features", "sets")}
        return kept | {"closed_balls": earlier.get("closed_balls", False)}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def features_kind(chosen: Chosen, trained: OpenedRun, images: int) -> Kind | None:
    """Whose features sets are compared by; None, said, where there is nothing to go by."""
    labelled = trained.data.label_names is not None
    if chosen.kind == "none" or (chosen.kind == "auto" and not labelled):
        if chosen.kind == "auto":
            features = setting("features")
            say(f"{trained.data.name} has no labels to learn features from: name {features}")
        return None
    if images < 2:
        say("a single image is no set to compare with")
        return None
    return "classifier" if chosen.kind == "auto" else chosen.kind


def compare_with_real(
    trained: OpenedRun,
    name: str,  # of the split
    chosen: Chosen,
    kind: Kind,
    given: Opened | None,  # the reference; None: images of the split
    images: int,
    latents: Tensor,  # (k, d), of this rank's images of the split
    repair: Repair,
    priors: dict[PriorKind, Prior],
) -> Comparisons:
    """The model's sets of images next to the real ones."""
    model, device, data = trained.model, trained.device, trained.config.data
    extractor = chosen.open(kind, (data, trained.data), device)
    say(f"features: {extractor.about}")
    transform, batch = chosen.transform, min(trained.batch, images)
    if given is None:
        reference = f"{images:,} {name} images of {data.short}"
        shown = real_images(trained.split(name), images, batch, device)
        real: Given = features_of(shown, extractor.features, batch, transform)
    else:
        reference, size = str(given.path), model.image_shape[1:]
        real = take_features(given, extractor, transform, device, batch, size)
    compared = comparisons(extractor, reference, count_of(real))
    train, copula = trained.split("train"), trained.copula(repair)
    for made in made_by_model(model, train, latents, images, batch, trained.seed, copula, priors):
        fake = features_of(made, extractor.features, batch, transform)
        if is_main_process() and len(fake) > 1:
            paired = made.copies and given is None
            compared.sets[made.name] = compare(
                real, fake, trained.seed, paired=paired, closed_balls=chosen.closed_balls
            )
            compared.counts[made.name] = len(fake)
    return compared


def bits_per_nat(trained: OpenedRun) -> float | None:
    """Bits per pixel and channel that a nat per image is; None unless images have a probability.

    A Gaussian gives densities, and grey images have none under a Bernoulli distribution.
    """
    model, binary = trained.model, trained.config.data.kind in BINARY_SIZES
    if not (isinstance(model, CountsPixels) and model.counts_pixels(binary)):
        return None
    return 1 / (math.prod(model.image_shape) * math.log(2))
