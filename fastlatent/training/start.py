"""Training from Python, in one call: `fastlatent.train`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastlatent.data import DataConfig
from fastlatent.data import load as load_data
from fastlatent.data.config import with_absolute_paths
from fastlatent.data.given import arrays_of, keep_images, shape_of
from fastlatent.inference.devices import choose_device
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.ranks import is_main_process, joined, main_first
from fastlatent.jobs.spelling import did_you_mean
from fastlatent.models.capabilities import ShapedLater
from fastlatent.models.own import (
    check_attributes,
    recorded,
    run_name,
    twin_of,
)
from fastlatent.presets import DEFAULT_PRESET, PRESETS, TrainConfig
from fastlatent.presets.own import own_settings, registered_settings
from fastlatent.runs import Run, from_json, to_json
from fastlatent.runs.folder import DATA
from fastlatent.runs.trained import TrainedRun, load
from fastlatent.training import loop
from fastlatent.training.callbacks import NAMES
from fastlatent.training.learner import Given


def train(
    config: str | TrainConfig | nn.Module = DEFAULT_PRESET,
    data: Any = None,
    out: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> TrainedRun:
    """Train a model and return its run, which lies in the folder `out`, by default runs/NAME.

    `config` is the name of a preset, a whole configuration or a model of your own, and `settings`
    are what is to be different in it: fields of TrainConfig, such as `epochs=20`, `batch=64` or
    `device="cpu"`, those of a preset's model as `model={"dim": 16}`.

    A model of your own is a fastlatent.models.AutoEncoder around two modules, a LatentModel, or a
    module of your own contract. Such a module has `image_shape` (c, h, w), `latent_dim`, `encode`,
    `decode` and a `forward(x)` that returns the losses of the images, (n,). Training begins with
    its weights and leaves it as it is; the returned run has the trained one. The run folder records
    its class, as module:Class, and the arguments that it was built with, each of which the model
    keeps as an attribute.

    `data` takes the place of the preset's: the name of a data set such as "mnist" or
    "folder:photos", a DataConfig, or settings such as {"per_class": 20}; images as a tensor or an
    array, (n, c, h, w), (n, h, w, c) or (n, h, w), uint8 or floats in [0, 1]; a torch Dataset of
    images, or of tuples of an image and its class; or a pair of such, for training and testing.
    Every tenth image of a single set is for testing. Images are kept in the run folder as data.npz,
    and the model takes their channels and, where the preset has no size, their size.

    `callbacks` are objects with any of on_step, on_epoch and on_end, as
    fastlatent.training.Callback has them.

    Raises ValueError or TypeError for settings and data that do not fit, naming them. Raises
    Diverged when a loss is no longer finite, and RunError where training cannot go on. Raises
    Stopped after a signal.
    """
    for callback in callbacks:
        if not any(hasattr(callback, name) for name in NAMES):
            raise TypeError(
                f"train: callbacks must have {', '.join(NAMES[:-1])} or {NAMES[-1]}; got "
                f"{type(callback).__name__}"
            )
    held = not (data is None or isinstance(data, (str, DataConfig, Mapping)))
    arrays = arrays_of(data) if held else {}
    given = Given()
    if isinstance(config, nn.Module):
        if "model" in settings:
            raise TypeError("train: model is given already, as the first argument")
        named = DataConfig() if held or data is None else _named(DataConfig(), data)
        chosen, given = _own(config, named, shape_of(arrays) if held else None)
    else:
        chosen = _configured(config)
        if held:
            chosen = _fitted(chosen, shape_of(arrays))
        elif data is not None:
            chosen = replace(chosen, data=_named(chosen.data, data))
    chosen = _changed(chosen, settings)
    folder = Path("runs") / chosen.name if out is None else Path(out).expanduser()
    with joined():
        with main_first():
            if is_main_process():
                Run.check_free(folder)
            if held:
                path = folder.absolute() / DATA
                chosen = replace(chosen, data=_kept(chosen.data, path))
                if is_main_process():
                    folder.mkdir(parents=True, exist_ok=True)
                    keep_images(arrays, path)
        absolute = replace(chosen, data=with_absolute_paths(chosen.data))
        loop.train(absolute, folder, callbacks=tuple(callbacks), given=given)
    run = load(folder, device=choose_device(chosen.device), model=given.code)
    for callback in callbacks if is_main_process() else ():
        if hasattr(callback, "on_end"):
            callback.on_end(run)
    return run


def _configured(config: str | TrainConfig) -> TrainConfig:
    """The configuration, by the name of a preset or as it is."""
    if isinstance(config, TrainConfig):
        return config
    if not isinstance(config, str):
        raise TypeError(
            "train: config must be the name of a preset, a TrainConfig or a model of your own; "
            f"got {type(config).__name__}"
        )
    if config not in PRESETS:
        own = registered_settings(config)
        if own is not None:
            return own
        raise UsageError(
            f"train: config must be one of {', '.join(PRESETS)}; got {config!r}"
            + did_you_mean(config, PRESETS)
        )
    return PRESETS[config].config


def _own(
    model: nn.Module,
    data: DataConfig,
    shape: tuple[int, int, int] | None,  # of images at hand; None: those of `data`
) -> tuple[TrainConfig, Given]:
    """How to train a model of the caller's own: the usual settings, and what builds it again."""
    if isinstance(model, ShapedLater) and not hasattr(model, "image_shape"):
        c, h, w = load_data(data).train.shape if shape is None else shape
        model = model.shaped((c, h, w))
    check_attributes(model)
    config, code = recorded(model)
    twin = twin_of(model, config, code)
    weights = {name: tensor.cpu() for name, tensor in twin.state_dict().items()}
    return own_settings(run_name(model), config, data), Given(code, weights)


def _changed(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other settings, of its model and data too, each of its own type."""
    values = to_json(config)
    for name, value in settings.items():
        if name not in values:
            known = [field.name for field in fields(TrainConfig)]
            raise TypeError(f"train: there is no setting {name!r}{did_you_mean(name, known)}")
        if isinstance(value, Mapping) and isinstance(values[name], dict):
            for inner in value.keys() - values[name].keys():
                known = list(values[name])
                guess = did_you_mean(inner, known)
                raise TypeError(f"train: there is no setting {inner!r} of {name}{guess}")
            values[name] |= {inner: _plain(x) for inner, x in value.items()}
        else:
            values[name] = _plain(value)
    return from_json(TrainConfig, values, "train")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _named(own: DataConfig, data: "str | DataConfig | Mapping[str, Any]") -> DataConfig:
    """A data set by its name or by settings, in the place of a preset's."""
    if isinstance(data, DataConfig):
        return data
    changes = {"name": data} if isinstance(data, str) else data
    return from_json(DataConfig, to_json(own) | {k: _plain(x) for k, x in changes.items()}, "data")


def _kept(own: DataConfig, path: Path) -> DataConfig:
    """The images that a caller had at hand, in their file, served as the preset serves its own."""
    return replace(own, name=f"npz:{path}", root=None, classes=(), per_class=None, download=False)


def _fitted(config: TrainConfig, shape: tuple[int, int, int]) -> TrainConfig:
    """The configuration for images (c, h, w), resized as the preset resizes its own."""
    channels, height, width = shape
    side = config.data.size
    size = (height, width) if side is None else (side, side)
    return _changed(config, {"model": {"image_shape": (channels, *size)}})
