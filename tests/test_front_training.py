"""The front door: training from Python in one call, on any images, with callbacks."""

import importlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import fastlatent
from fastlatent import sample
from fastlatent.data import DataConfig, load
from fastlatent.data.given import arrays_of
from fastlatent.presets import PRESETS, TrainConfig
from fastlatent.runs.trained import TrainedRun
from fastlatent.training import Callback, start

QUICK = {"device": "cpu", "batch": 16, "pictures_every": "never", "model": {"dim": 2}}


def noise(n: int = 40, *shape: int) -> torch.Tensor:
    """uint8 images (n, c, h, w)."""
    draw = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *(shape or (3, 8, 8))), generator=draw, dtype=torch.uint8)


class Listener(Callback):
    """Notes what it hears."""

    def __init__(self):
        self.steps, self.epochs, self.run = [], [], None

    def on_step(self, moment):
        self.steps.append((moment.step, moment.steps, moment.losses["loss"], moment.model.training))

    def on_epoch(self, moment):
        self.epochs.append((moment.epoch, moment.test_loss))

    def on_end(self, run):
        self.run = run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Listener]:
    out, heard = tmp_path_factory.mktemp("trained") / "run", Listener()
    labelled = TensorDataset(noise(), torch.arange(40) % 3)
    only_end = SimpleNamespace(on_end=lambda run: None)
    given = QUICK | {"data": labelled, "out": str(out), "callbacks": [heard, only_end]}
    return fastlatent.train("vae-digits", epochs=2, log_every="1 step", **given), heard


def test_one_call_trains_on_a_dataset_and_returns_the_run(trained):
    run, _ = trained
    assert run.config.epochs == 2 and run.config.batch == 16 and run.model.latent_dim == 2
    assert run.model.image_shape == (3, 28, 28), "their channels, at the size of the preset"
    assert run.data.label_names == ("0", "1", "2")
    kept = torch.cat(
        [run.data.test.images(torch.arange(4)), run.data.train.images(torch.arange(36))]
    )
    assert len(kept) == 40 and run.sample(3).shape == (3, 3, 28, 28)


def test_callbacks_hear_every_step_and_epoch_and_the_end(trained):
    run, heard = trained
    assert [step[:2] for step in heard.steps] == [(k, 4) for k in (1, 2, 3, 4)]
    assert all(training for *_, training in heard.steps)
    logged = [line["loss"] for line in run.metrics if line["kind"] == "train"]
    assert [loss for _, _, loss, _ in heard.steps] == pytest.approx(logged)
    assert heard.run is run and [epoch for epoch, _ in heard.epochs] == [1, 2]
    (tested,) = (
        line["loss"] for line in run.metrics if line["kind"] == "test" and line["epoch"] == 2
    )
    assert heard.epochs[-1][1] == pytest.approx(tested)


def test_tensorboard_has_the_settings(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = EventAccumulator(str(trained[0].path)).Reload()
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["epochs"].number_value == 2 and found["model.family"].string_value == "vae"
    assert "test/loss" in board.Tags()["scalars"]


def test_commands_open_what_python_trained(trained, tmp_path):
    run, _ = trained
    assert sample.main([str(run.path), "--images", "2", "--out", str(tmp_path / "new.png")]) == 0
    assert fastlatent.train.main(["--resume", str(run.path), "--epochs", "2"]) == 0


def test_a_run_that_is_there_is_not_overwritten(trained):
    with pytest.raises(ValueError, match="already holds a run"):
        fastlatent.train("vae-digits", noise(), trained[0].path)


@pytest.mark.parametrize("first", ["the module", "the function"])
def test_train_is_the_function_and_the_module_of_the_command(first, monkeypatch):
    """Importing a module sets it in its package, over whatever was there."""
    monkeypatch.delitem(sys.modules, "fastlatent.train")
    monkeypatch.delattr(fastlatent, "train", raising=False)
    if first == "the module":
        importlib.import_module("fastlatent.train")
    function = fastlatent.train
    assert importlib.import_module("fastlatent.train") is function is fastlatent.train
    with pytest.raises(ValueError, match="train: config must be one of"):
        function("no such preset")
    assert callable(function.main) and inspect.signature(function) == inspect.signature(start.train)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"config": "lbae-digit"}, ValueError, "did you mean 'lbae-digits'"),
        ({"config": 3}, TypeError, "config must be the name of a preset, .* model .*; got int"),
        ({"epoch": 3}, TypeError, "no setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": "3"}, ValueError, "epochs must be of type int; got '3'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
        ({"model": {"dims": 3}}, TypeError, "no setting 'dims' of model; did you mean 'dim'"),
        ({"data": 5}, TypeError, "data must be the name of a data set, a tensor, .*; got int"),
        ({"data": "mnits"}, ValueError, "data.name must be one of digits, mnist"),
        ({"data": noise(1)}, ValueError, "data must hold at least 2 images; got 1"),
        ({"data": np.zeros((5, 28, 28), int)}, ValueError, "data must be uint8, bool or float"),
        ({"data": torch.full((5, 1, 8, 8), 7.0)}, ValueError, "data holds floats outside 0 to 1"),
        ({"callbacks": [print]}, TypeError, "callbacks must have on_step, on_epoch or on_end"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told_in_a_sentence(given, error, words, tmp_path):
    given = {"config": "vae-digits", "out": tmp_path / "run"} | given
    with pytest.raises(error, match=words) as caught:
        fastlatent.train(**given)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_settings_are_those_of_the_configuration(monkeypatch, tmp_path):
    """Only what is trained; the training itself is left out."""
    seen = []
    monkeypatch.setattr(start.loop, "train", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr(start, "load", lambda *_, **__: None)
    preset: TrainConfig = PRESETS["lbae-digits"].config
    fastlatent.train("lbae-digits", out=tmp_path / "a")
    fastlatent.train(preset, {"per_class": 5}, tmp_path / "b", lr=1, model={"dim": 7})
    fastlatent.train(preset, DataConfig("digits", size=16), tmp_path / "c")
    fastlatent.train(preset, "folder:photos", tmp_path / "d")
    assert seen[0] == preset
    assert seen[1].lr == 1.0 and seen[1].model.dim == 7 and seen[1].data.per_class == 5
    assert seen[1].data.size == preset.data.size
    assert seen[2].data == DataConfig("digits", size=16)
    assert seen[3].data.name == f"folder:{Path('photos').absolute()}"


class Pictures(Dataset):
    """As torchvision's: pictures of PIL and classes."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        from PIL import Image

        return Image.fromarray(noise(20, 9, 8)[index].numpy()), index % 2


def test_images_come_in_every_form(tmp_path):
    x = noise(20, 1, 9, 8)
    same = [x, x.numpy(), x[:, 0], x.permute(0, 2, 3, 1).numpy(), x / 255, TensorDataset(x)]
    for given in same:
        arrays = arrays_of(given)
        assert arrays.keys() == {"x"} and np.array_equal(arrays["x"], x.numpy())
    arrays = arrays_of((Pictures(), Pictures()))
    assert np.array_equal(arrays["train_x"], noise(20, 9, 8)[:, None].numpy())
    assert arrays["test_y"].tolist() == [k % 2 for k in range(20)]
    start.keep_images(arrays, tmp_path / "data.npz")
    data = load(DataConfig(f"npz:{tmp_path / 'data.npz'}"))
    assert len(data.train) == len(data.test) == 20 and data.label_names == ("0", "1")


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield noise(1)[0]


class Changing(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return noise(1, 1, 8, 8 + index)[0]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (Endless(), TypeError, "a torch Dataset with a length"),
        (Changing(), ValueError, r"images of one shape; got \(1, 8, 8\) and \(1, 8, 9\), at 1"),
        (TensorDataset(torch.rand(4)), TypeError, r"images \(h, w\), \(c, h, w\) or"),
        ((noise(), 3), TypeError, "data: test must be"),
    ],
)
def test_data_that_hold_no_images(given, error, words):
    with pytest.raises(error, match=words):
        arrays_of(given)
