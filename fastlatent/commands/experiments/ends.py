"""What walks join: images by their indices, draws from the prior, constant latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from fastlatent.commands.experiments.findings import joined_images
from fastlatent.commands.experiments.shorter import seeded_draws
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.inference.gallery import pick_pairs
from fastlatent.inference.latents import unit_images
from fastlatent.jobs.errors import UsageError

CONSTANTS = (-1.0,), (1.0,)  # latents that the original walks between

Ends = Literal["images", "prior", "constant"]


@dataclass(frozen=True)
class EndOptions(RunOptions):
    """What to walk between, on the command line."""

    pairs: int = 8
    """Pairs to interpolate between, where --from and --to are not given."""
    steps: int = 10
    """Images in an interpolation, both ends included."""
    split: Literal["train", "test"] = "train"
    """Split whose images are interpolated."""
    ends: Ends | None = None
    """Ends of an interpolation (real latents): images; draws from the prior; or constant, latents
    with all coordinates equal. Default: constant where --from or --to is no index, else images."""
    start: Annotated[tuple[float, ...], tyro.conf.arg(name="from")] = ()
    """First ends: indices of images in the split, or the values of constant ones; default: drawn by
    the seed, or -1."""
    end: Annotated[tuple[float, ...], tyro.conf.arg(name="to")] = ()
    """Last ends, as many as first ones: indices, or the values of constant ones; default: drawn by
    the seed, or 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"--steps must be at least 2; got {self.steps}")


class Joined(NamedTuple):
    """What k walks join."""

    start: Tensor  # (k, d) latents
    end: Tensor  # (k, d)
    first: Tensor | None  # (k, c, h, w), the images encoded, where there are such
    last: Tensor | None
    names: list[str]
    columns: dict[str, list[Any]]  # the ends as a table has them


def join(trained: Trained, options: EndOptions) -> Joined:
    """The ends that the options name.

    Raises UsageError where the model or other options do not allow them.
    """
    kind = _kind_of_ends(options, trained.model.latent_kind == "real")
    if kind == "images":
        return _join_images(trained, options)
    return _join_latents(trained, options, kind)


def first_images_of(trained: Trained, options: EndOptions) -> Joined:
    """Images to begin at, walks to which nothing but a change of the latents leads."""
    split = trained.split(options.split)
    starts = _chosen_starts(options, len(split), trained.seed)
    first, start = unit_images(split, starts, trained.device), trained.latents_of(split, starts)
    names = [f"{options.split} image {k}" for k in starts.tolist()]
    return Joined(start, start, first, None, names, {})


def _kind_of_ends(options: EndOptions, real: bool) -> Ends:
    numbers = (*options.start, *options.end)
    if options.ends is None:
        indices = all(x >= 0 and x.is_integer() for x in numbers)
        return "images" if indices or not real else "constant"
    if options.ends != "images" and not real:
        raise UsageError(f"--ends {options.ends} needs a model with real latents")
    if options.ends == "prior" and numbers:
        raise UsageError("--from and --to do not go with --ends prior; --pairs says how many walks")
    return options.ends


def _join_images(trained: Trained, options: EndOptions) -> Joined:
    split = trained.split(options.split)
    if bool(options.start) != bool(options.end) or len(options.start) != len(options.end):
        _checked_indices("from", options.start, options, len(split))
        raise UsageError("--from and --to go together and need as many indices each")
    starts = _chosen_starts(options, len(split), trained.seed)
    _checked_indices("to", options.end, options, len(split))
    drawn = pick_pairs(len(split), options.pairs, trained.seed)[1]
    ends = torch.tensor(options.end).long() if options.end else drawn
    first, last = (unit_images(split, index, trained.device) for index in (starts, ends))
    joined = zip(starts.tolist(), ends.tolist(), strict=True)
    names = [f"{options.split} image {a} to {b}" for a, b in joined]
    columns: dict[str, list[Any]] = {"split": [options.split] * len(starts)}
    columns |= joined_images(split, torch.stack([starts, ends]))
    z, to = (trained.latents_of(split, index) for index in (starts, ends))
    return Joined(z, to, first, last, names, columns)


def _join_latents(trained: Trained, options: EndOptions, kind: Ends) -> Joined:
    if kind == "prior":
        start, end = seeded_draws(trained, 2 * options.pairs, "interpolation").chunk(2)
        return Joined(start, end, None, None, ["two draws from the prior"] * options.pairs, {})
    values = options.start or CONSTANTS[0], options.end or CONSTANTS[1]
    if len(values[0]) != len(values[1]):
        raise UsageError("--from and --to need as many constants each")
    start, end = (
        torch.tensor(numbers, device=trained.device)[:, None].repeat(1, trained.model.latent_dim)
        for numbers in values
    )
    if not (start.isfinite().all() and end.isfinite().all()):
        raise UsageError("--from and --to must be finite numbers")
    names = [f"all latents {a:g} to all {b:g}" for a, b in zip(*values, strict=True)]
    columns = {"first_value": [*values[0]], "last_value": [*values[1]]}
    return Joined(start, end, None, None, names, columns)


def _chosen_starts(options: EndOptions, count: int, seed: int) -> Tensor:  # (k,)
    """Indices of the first images, out of `count`."""
    _checked_indices("from", options.start, options, count)
    if options.start:
        return torch.tensor(options.start).long()
    drawn = pick_pairs(count, options.pairs, seed)[0]
    if not len(drawn):
        raise UsageError(f"the {options.split} split has one image; two to walk between are needed")
    return drawn


def _checked_indices(name: str, chosen: Sequence[float], options: EndOptions, count: int) -> None:
    whole = all(x.is_integer() for x in chosen)
    if chosen and not (whole and 0 <= min(chosen) <= max(chosen) < count):
        raise UsageError(
            f"--{name} must lie in 0 to {count - 1}, the {options.split} images; got "
            + " ".join(f"{x:g}" for x in chosen)
        )
