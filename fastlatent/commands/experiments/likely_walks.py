"""Walks along likely paths, next to straight lines in the same space."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.experiments.ends import Joined
from fastlatent.commands.experiments.findings import write_rows
from fastlatent.commands.experiments.path_pictures import density_picture, history_picture
from fastlatent.commands.trained import Trained
from fastlatent.inference.latents import decode
from fastlatent.inference.walking import WalkMeasures, measured
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.paths import LikelihoodPaths
from fastlatent.runs.likely import Likely, LikelyOptions

ROUNDING = 1e-6  # relative, of lengths
CHECKED = 8  # walks in the picture of histories, at most


def walk_likely(
    trained: Trained,
    joined: Joined,
    steps: int,
    options: LikelyOptions,
    out: Path | None,
) -> Tensor:  # (k, 2, steps, c, h, w)
    """Straight lines and likely paths between the ends: pictures, curves, a table.

    Returns the images along both.
    """
    if steps < 3:
        raise UsageError(f"--method likelihood needs --steps 3 or more; got {steps}")
    likely = Likely(trained, options)
    walks = likely.walks(joined.start, joined.end, steps)
    numbers = {
        name: measured(trained.model, path, trained.batch, likely.space, likely.objective)
        for name, path in walks.items()
    }
    found = walks["likely"].found
    assert isinstance(found, LikelihoodPaths)
    place = trained.place(out, f"interpolation-likelihood-{options.prior}")
    _report(likely, found, numbers, joined, place.with_suffix(".csv"))

    latents = torch.stack([path.latents for path in walks.values()], 1)
    images = decode(trained.model, latents.flatten(0, 2), trained.batch)
    images = images.unflatten(0, latents.shape[:3])
    twice = (None if x is None else x.repeat_interleave(2, 0) for x in (joined.first, joined.last))
    first, last = twice
    caption = f"straight lines and likely paths ({likely.about})"
    notes = [
        f"{name}\nlength {float(part.terms.length[k]):.3f}, NLL {float(part.terms.nll[k]):.2f}"
        for k in range(len(images))
        for name, part in numbers.items()
        if part.terms is not None
    ]
    picture = plots.walks(first, images.flatten(0, 1), last, caption, notes, together=2)
    say(f"picture: {trained.draw(picture, place)}")
    history = history_picture(found, joined.names[:CHECKED])
    saved = trained.draw(history, place.with_name(f"{place.stem}-history.png"))
    say(f"picture: {saved}")
    if likely.space.dim == 2:
        encoded = likely.nodes
        drawn = density_picture(likely.space.log_prob, found, encoded, likely.about)
        saved = trained.draw(drawn, place.with_name(f"{place.stem}-density.png"))
        say(f"picture: {saved}")
    return images


def _report(
    likely: Likely,
    found: LikelihoodPaths,
    numbers: dict[str, WalkMeasures],
    joined: Joined,
    path: Path,
) -> None:
    """The table on the screen and as CSV."""
    columns: dict[str, Sequence[Any]] = {
        "pair": range(1, len(joined.names) + 1),
        **joined.columns,
        "start": [found.starts[k] for k in found.chosen.tolist()],
        "iterations": found.iterations.tolist(),
        "converged": found.converged.tolist(),
        "typical_from": [likely.level] * len(joined.names),
    }
    for name, part in numbers.items():
        assert part.terms is not None
        columns |= {f"{name}_{term}": x.tolist() for term, x in part.terms._asdict().items()}
        columns[f"{name}_image_length"] = part.image_length.tolist()
    headings = ("length", "spread", "nll", "objective", "image_length")
    titles = ("length", "spread", "NLL", "J", "of images")
    say(f"  {likely.about}")
    say(f"  {'':4}" + "".join(f"{name:>{11 * len(titles)}}" for name in numbers))
    say(f"  {'row':4}" + 2 * "".join(f"{title:>11}" for title in titles))
    straight = int((found.terms.length <= (1 + ROUNDING) * found.line.length).sum())
    if straight:
        why = "nothing likelier is worth the way"
        if likely.level is not None:
            why = "their points are typical, which costs nothing; --typical False searches on"
        say(f"  {straight} of {len(joined.names)} likely paths are the straight lines: {why}")
    for k, name in enumerate(joined.names):
        cells = [columns[f"{one}_{term}"][k] for one in numbers for term in headings]
        row = "".join(f"{cell:11.4f}" for cell in cells)
        say(f"  {k + 1:<4}{row}  {name}; from the {columns['start'][k]}")
    write_rows(path, columns)
