"""Walks along curves that are short under the decoder's metric, next to straight lines."""

from pathlib import Path

import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.experiments import pictures
from fastlatent.commands.experiments.ends import Joined
from fastlatent.commands.experiments.findings import (
    circumstances,
    pair_rows,
    stated,
    summary_values,
    write_curves,
    write_rows,
    write_values,
)
from fastlatent.commands.experiments.shorter import (
    Feature,
    feature_map_of,
    feature_name,
    file_name,
    length_notes,
    measures,
    metric_of,
    sequences,
    shorten,
)
from fastlatent.commands.trained import Trained
from fastlatent.geometry import Metric
from fastlatent.geometry.experiment import Experiment, cosines
from fastlatent.geometry.solver import Method
from fastlatent.jobs.progress import say

SPANS = 2, 8, 16
POINTS = 20
PUBLISHED_EPOCHS = 50
CORRELATED = 40  # points of a curve between which cosines are taken
DRAWN = 3  # walks whose cosines are drawn, at most


def walk_shorter(
    trained: Trained,
    joined: Joined,
    steps: int,
    *,
    solver: Method | None,
    spans: tuple[int, ...] | None,
    points: int | None,
    tolerance: float | None,
    max_iterations: int | None,
    chunk: int | None,
    feature: Feature | None,
    vgg: Path | None,
    out: Path | None,
) -> Tensor:  # (k, 2, steps, c, h, w)
    """Straight lines and shorter curves between the ends: lengths, cosines, pictures.

    Returns the images along both.
    """
    feature_map = feature_map_of(trained, feature, vgg)
    metric = metric_of(trained, feature_map)
    points = POINTS if points is None else points
    if max_iterations is None and solver == "original":
        max_iterations = PUBLISHED_EPOCHS
    found = shorten(
        metric,
        joined.start,
        joined.end,
        "shortening",
        method=solver or "lbfgs",
        spans=SPANS if spans is None else spans,
        points=points,
        tolerance=tolerance,
        max_iterations=max_iterations,
        chunk=chunk,
        seed=trained.seed,
    )
    rows = torch.arange(len(joined.start), device=joined.start.device)
    along = 2 * sequences(trained, metric, found, rows, CORRELATED) - 1
    outputs = {"images": along.flatten(0, 1)}
    if feature_map is not None:
        with torch.no_grad():
            features = [feature_map(part) for part in along.flatten(0, 2).split(trained.batch)]
        outputs["features"] = torch.cat(features).unflatten(0, (-1, CORRELATED))
    cosine = {what: cosines(y).unflatten(0, (-1, 2)) for what, y in outputs.items()}
    place = trained.place(out, file_name("interpolation-geodesic", feature))
    report(metric, found, joined, points, cosine, place.with_suffix(".csv"))
    write_curves(place.with_suffix(".npz"), found)
    around = circumstances(trained, trained.options) | {"draws": metric.draws}
    write_values(place.with_suffix(".json"), around | summary_values(found))

    images = sequences(trained, metric, found, rows, steps)
    twice = (None if x is None else x.repeat_interleave(2, 0) for x in (joined.first, joined.last))
    first, last = twice
    caption = "straight lines and shorter curves, in equal steps"
    if feature is not None:
        caption += f" between {feature_name(feature, metric)}"
    notes = length_notes(found, rows.tolist())
    picture = plots.walks(first, images.flatten(0, 1), last, caption, notes, together=2)
    say(f"picture: {trained.draw(picture, place)}")
    picture = pictures.length_history(found, "walks while they are shortened")
    say(f"picture: {trained.draw(picture, place.with_name(f'{place.stem}-history.png'))}")
    for what, values in cosine.items():
        shown = most_changed(values)
        before, after = values[shown].unbind(1)
        picture = pictures.correlations(before, after, what, shown.tolist())
        saved = trained.draw(picture, place.with_name(f"{place.stem}-correlations-{what}.png"))
        say(f"picture: {saved}")
    return images


def most_changed(cosine: Tensor) -> Tensor:  # (k, 2, m, m) -> (at most DRAWN,), in their order
    """The walks along which the variance of the cosines changes most."""
    straight, shorter = cosine.flatten(2).var(2, correction=0).unbind(1)
    change = (straight - shorter).abs().nan_to_num()
    return change.topk(min(DRAWN, len(change))).indices.sort().values


def report(
    metric: Metric,
    found: Experiment,
    joined: Joined,
    points: int,
    cosine: dict[str, Tensor],  # (k, 2, m, m) of straight and shorter, by what it is between
    path: Path,
) -> None:
    """The table on the screen and as CSV."""
    measure = measures(metric, found, points)
    extra = {"curve_measure_straight": measure[0], "curve_measure": measure[1]}
    for what, values in cosine.items():
        variances = values.flatten(2).var(2, correction=0)
        extra[f"variance_of_{what}_straight"] = variances[:, 0]
        extra[f"variance_of_{what}"] = variances[:, 1]
    columns = pair_rows(found, extra, joined.columns)
    what = "features" if "features" in cosine else "images"
    heading = f"{'straight':>11}{'shorter':>11}"
    say(
        f"  {'':4}{'measured lengths':>33}{'by the original':>33}"
        f"{'curve measure':>22}{f'var, {what}':>22}"
    )
    say(f"  {'row':4}" + 2 * f"{heading}{'less':>11}" + 2 * heading)
    shown = (
        "straight_length",
        "length",
        "improvement",
        "original_straight_length",
        "original_length",
        "original_improvement",
        "curve_measure_straight",
        "curve_measure",
        f"variance_of_{what}_straight",
        f"variance_of_{what}",
    )
    for k, name in enumerate(joined.names):
        cells = [
            stated(".2f", " %", 100 * columns[key][k])
            if "improvement" in key
            else stated(".4f", "", columns[key][k])
            for key in shown
        ]
        row = "".join(f"{cell:>11}" for cell in cells)
        say(f"  {k + 1:<4}{row}  {name}; {columns['status'][k].replace('_', ' ')}")
    say(f"  {found.seconds:.2f} s for all")
    write_rows(path, columns)
