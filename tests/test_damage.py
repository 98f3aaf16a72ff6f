"""Numbers that were damaged on the disk are refused, foreign files are left alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastlatent import sample, train
from fastlatent.models import VAEConfig, build
from fastlatent.presets import PRESETS
from fastlatent.priors import CodeStatistics, GaussianMixture, PriorSettings
from fastlatent.runs import Run, State, read_metrics
from fastlatent.runs.files import digest, read_tensors, write_tensors
from fastlatent.runs.priors import read_prior, write_prior

DIM = 4
NAMES = [f"{k}" for k in range(40)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a VAE with seeded weights and a prior fitted to noise."""
    config = PRESETS["vae-digits"].config
    config = replace(config, model=replace(config.model, dim=DIM))
    run = Run(tmp_path_factory.mktemp("runs") / "vae", config)
    run.create()
    run.write_weights(build(config.model, 0).state_dict())
    settings = PriorSettings("gmm", components=2)
    prior = settings.build(DIM, config.model.image_shape)
    prior.fit(torch.randn(64, DIM, generator=torch.Generator().manual_seed(0)))
    write_prior(run, "last", settings, prior)
    return run.path


@pytest.fixture
def run(untrained: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(untrained, tmp_path / "run"))


def said_by(capsys: pytest.CaptureFixture, main, *words: object) -> str:
    """What a command that fails says, in one sentence."""
    assert main([*map(str, words), "--device", "cpu"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def rewritten(path: Path, change: Callable[[Tensor], Tensor], own: bool) -> None:
    """Change the numbers of a file; `own`: through our writer, which puts a new mark on them."""
    if own:
        tensors, metadata = read_tensors(path)
        write_tensors(path, {name: change(x) for name, x in tensors.items()}, metadata)
        return
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: change(file.get_tensor(name)).contiguous() for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * torch.nan,
        lambda x: x + torch.inf,
        lambda x: x.long(),
        lambda x: x.half(),
        lambda x: x.double(),
        lambda x: x.reshape(-1),
    ],
    ids=["NaN", "infinity", "int64", "half", "double", "flat"],
)
def test_weights_that_were_damaged_are_refused(change, own: bool, run: Run, capsys) -> None:
    path = run.weights_file("last")
    rewritten(path, change, own)
    assert str(path) in said_by(capsys, sample.main, run.path, "--images", 1, "--no-quality")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        lambda x: -x,
        lambda x: x * torch.nan,
        lambda x: x.double(),
        lambda x: x[:1],
    ],
    ids=["zeros", "negated", "NaN", "double", "fewer"],
)
def test_priors_that_were_damaged_are_refused(change, own: bool, run: Run, capsys) -> None:
    words = (run.path, "--images", 1, "--method", "gmm", "--no-quality")
    assert sample.main([*map(str, words), "--device", "cpu"]) == 0
    path = run.path / "prior-gmm.safetensors"
    rewritten(path, change, own)
    capsys.readouterr()
    assert str(path) in said_by(capsys, sample.main, *words)


def test_a_prior_of_an_older_version_has_no_mark(run: Run) -> None:
    path = run.path / "prior-gmm.safetensors"
    tensors, marks = read_tensors(path)
    assert marks.pop("numbers") == digest(tensors)
    save_file(tensors, path, marks)
    assert isinstance(read_prior(run, "last", "gmm", run.model("last")), GaussianMixture)


@pytest.mark.parametrize("change", [lambda x: -x, lambda x: x + 100, lambda x: x.float()])
def test_counts_of_codes_that_cannot_be_are_refused(change) -> None:
    state = CodeStatistics.of(torch.randn(50, 5).sign()).state()
    assert CodeStatistics.from_state(state).count == 50
    for name in ("ones", "agree"):
        with pytest.raises(ValueError, match=name):
            CodeStatistics.from_state(state | {name: change(state[name])})


def latents_file(run: Run, latents: Tensor) -> Path:
    path = run.path / "latents.safetensors"
    write_tensors(path, {"codes": latents})
    return path


@pytest.mark.parametrize(
    ("latents", "complaint"),
    [
        (torch.full((9, DIM), torch.nan), "NaN or infinite"),
        (torch.ones(9, DIM).double(), r"float32; got torch\.float64"),
        (torch.ones(8, DIM), "latents of 9 images; got 8"),
        (torch.ones(9, DIM + 1), "latents of 4 numbers each"),
    ],
)
def test_latents_that_were_damaged_are_refused(latents: Tensor, complaint: str, run: Run) -> None:
    run.save(State(1, {"weights": {"w": torch.zeros(1)}}, {"images": 9}))
    latents_file(run, torch.ones(9, DIM))
    assert run.latents("last", DIM).shape == (9, DIM)
    path = latents_file(run, latents)
    with pytest.raises(ValueError, match=rf"{path} .*{complaint}"):
        run.latents("last", DIM)


def test_settings_of_another_world_are_a_sentence(run: Run, capsys) -> None:
    file = run.path / "config.json"
    values = json.loads(file.read_text())
    for name, value in (("dim", 10**30), ("dim", 1 << 62), ("dim", -1), ("image_shape", [1, 2])):
        file.write_text(json.dumps(values | {"model": values["model"] | {name: value}}))
        said = said_by(capsys, sample.main, run.path, "--images", 1, "--no-quality")
        assert "out of memory" in said or str(file) in said
    assert VAEConfig.__name__  # the family that these are of


def test_foreign_files_are_left_alone(run: Run, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        run.save(State(step, {"weights": {"w": torch.zeros(1)}}, {}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("dear")
    run.film.mkdir()
    states = run.path / "state"
    foreign = [run.film / "1-note.png", run.film / "².png", states / "²", states / "4"]
    foreign[-1].touch()
    for path in foreign[:-1]:
        path.touch()
    (states / "0").symlink_to(tmp_path / "elsewhere")
    frames = [run.film / f"{step:08}.png" for step in (1, 3)]
    for path in frames:
        path.touch()
    assert [step for step, _ in run.frames()] == [1, 3]
    run.prune(2)
    run.rewind(2)
    assert run.steps() == [0, 2]
    assert all(path.exists() for path in foreign)
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "dear"
    assert [path.exists() for path in frames] == [True, False]


LINE = '{"kind": "train", "step": 1, "epoch": 0.5, "loss": 3}\n'


@pytest.mark.parametrize(
    "line", ["garbage", "[]", "3", '{"kind": "train"}', LINE.replace("1", "-1", 1).strip(), "\xff"]
)
def test_a_damaged_line_of_metrics_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{LINE}{line}\n{LINE}", encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{path} is damaged: line 2 "):
        read_metrics(tmp_path)
    assert len(read_metrics(tmp_path, len(LINE))) == 1
    path.write_text(LINE + LINE.replace("3", "Infinity") + LINE[:9])
    assert [line["loss"] for line in read_metrics(tmp_path)] == [3, float("inf")]


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 8, 8), dtype=np.uint8)


TINY = (
    *("vae-digits", "--device", "cpu", "--data.size", "28", "--batch", "32", "--steps", "1"),
    *("--pictures-every", "never", "--eval-every", "never"),
)


def test_a_checkpoint_is_looked_at_before_training_goes_on(tmp_path: Path, capsys) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "run"
    np.savez(data, x=images(0))
    assert train.main([*TINY, "--data.name", f"npz:{data}", "--out", str(out)]) == 0
    file = out / "state/1/state.json"
    values = json.loads(file.read_text())
    more = ("--resume", out, "--steps", 2)
    capsys.readouterr()
    for name, wrong in (
        ("images", None),
        ("images", "36"),
        ("metrics_bytes", -1),
        ("metrics_bytes", 1e99),
        ("best", [1]),
        ("best", {}),
        ("optimizer", {}),
        ("ranks", []),
        ("ranks", [3]),
        ("test_loss", "low"),
        ("skipped_in_a_row", None),
        ("averaged", []),
    ):
        file.write_text(json.dumps(values | {name: wrong}))
        said = said_by(capsys, train.main, *more)
        assert f"{file} is damaged: {name} must be" in said
        file.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
        assert f"{file} is damaged: {name} must be" in said_by(capsys, train.main, *more)
    for name in ("optimizer", "ranks"):
        wrong = json.loads(json.dumps(values))
        inner = wrong[name] if name == "optimizer" else wrong[name][0]
        for key in inner:
            kept, inner[key] = inner[key], 3
            file.write_text(json.dumps(wrong))
            assert "checkpoint of step 1" in said_by(capsys, train.main, *more)
            inner[key] = kept
    file.write_text(json.dumps(values))

    log = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(b"garbage\n" + log[8:])
    assert "metrics.jsonl is damaged: line 1 " in said_by(capsys, train.main, *more)
    (out / "metrics.jsonl").write_bytes(log)

    np.savez(data, x=images(1))
    assert "images are others than those" in said_by(capsys, train.main, *more)
    np.savez(data, x=images(0))
    assert train.main([*map(str, more), "--device", "cpu"]) == 0
