"""The settings with which a training starts: of a preset, a file or the run that is resumed."""

import argparse
from dataclasses import replace
from pathlib import Path

from fastlatent.data.config import OWN
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.spelling import did_you_mean
from fastlatent.models.capabilities import ChoosesPrior
from fastlatent.presets import DEFAULT_PRESET, PRESETS, TrainConfig
from fastlatent.presets.own import registered_settings
from fastlatent.priors import PriorKind
from fastlatent.runs import Run, flat, read_config, to_json

# What a resumed run must leave as it is; of the data, only where and how they are read may change.
FIXED = {"model", "seed", "batch", "optimizer", "ema", "film_images"}
FREE_DATA = {"data.root", "data.resident", "data.workers", "data.download"}


def starting_point(arguments: list[str]) -> tuple[TrainConfig, list[str]]:
    """The settings that options change, by preset, --config or --resume; the other arguments."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--resume", type=Path)
    finder.add_argument("--style")
    try:
        found, _ = finder.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    given = [name for name in (preset, found.config, found.resume) if name is not None]
    if len(given) > 1:
        raise UsageError("give one of PRESET, --config and --resume, not several")
    if found.style is not None and (found.resume or found.config):
        raise UsageError("--style goes with a PRESET")
    if found.resume is not None:
        return Run.open(found.resume).config, arguments
    if found.config is not None:
        path = found.config / "config.json" if found.config.is_dir() else found.config
        return read_config(path), arguments
    if preset is not None and preset not in PRESETS:
        own = registered_settings(preset)
        if own is not None:
            return own, arguments
        guess = did_you_mean(preset, PRESETS) or f"; choose from {', '.join(PRESETS)}"
        raise UsageError(f"there is no preset {preset!r}{guess}")
    return styled(preset or DEFAULT_PRESET, found.style), arguments


def styled(preset: str, style: str | None) -> TrainConfig:
    """The settings of a preset in one of its styles; UsageError for one that it does not have."""
    chosen = PRESETS[preset]
    if style is None:
        return chosen.config
    if style not in chosen.styles:
        has = f"has {' and '.join(chosen.styles)}" if chosen.styles else "has no styles"
        raise UsageError(f"there is no --style {style} of {preset}, which {has}")
    return chosen.styles[style]


def with_prior(config: TrainConfig, kind: PriorKind, rename: bool) -> TrainConfig:
    """The settings under another prior; UsageError for models that have no choice of it."""
    if not isinstance(config.model, ChoosesPrior):
        family = config.model.family
        raise UsageError(f"--prior goes with the family ladder; {config.name} is of {family}")
    model = config.model.with_prior(kind)
    return replace(config, model=model, name=f"{config.name}-{kind}" if rename else config.name)


def check_changes(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What differs, in words; UsageError where a resumed run could not take that up."""
    if old.model.family != new.model.family:
        raise UsageError(
            f"the model cannot change in a resumed run: its family is {old.model.family}; "
            f"got {new.model.family}"
        )
    before, after = flat(to_json(old)), flat(to_json(new))
    changes = [name for name in after if before.get(name) != after[name]]
    own = old.data.kind in OWN and new.data.kind in OWN
    free = FREE_DATA | ({"data.name"} if own else set())  # the same images in another place
    fixed = [
        name
        for name in changes
        if name.partition(".")[0] in FIXED or (name.startswith("data.") and name not in free)
    ]
    if fixed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        had, got = (", ".join(str(x.get(name)) for name in fixed) for x in (before, after))
        raise UsageError(f"{options} cannot change in a resumed run: had {had}; got {got}")
    return [f"{name} from {before[name]} to {after[name]}" for name in changes]
