"""Runs whose own images have moved since: their new place is taken, other images are not."""

from pathlib import Path

import numpy as np
import pytest

from fastlatent import reconstruct, train
from fastlatent.data.config import DataConfig, moved_to
from fastlatent.runs import Run

SMALL = ("vae-digits", "--model.image-shape", "1", "8", "8", "--model.dim", "2", "--data.size", "8")


def write(path: Path, seed: int) -> Path:
    drawn = np.random.default_rng(seed)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, train_x=drawn.integers(0, 256, (48, 8, 8), np.uint8), test_x=np.eye(8)[None])
    return path


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the new place of its images."""
    folder = tmp_path_factory.mktemp("moved")
    old, run = write(folder / "old" / "x.npz", 0), folder / "run"
    options = ("--steps", "2", "--batch", "16", "--pictures-every", "never", "--out", str(run))
    assert train.main([*SMALL, "--data.name", f"npz:{old}", *options]) == 0
    (folder / "new").mkdir()
    return run, old.rename(folder / "new" / "x.npz")


def test_a_run_goes_on_with_its_images_in_another_place(moved, tmp_path, capsys) -> None:
    run, new = moved
    longer = ["--resume", str(run), "--steps", "3"]
    assert train.main(longer) == 1  # they are not where they were
    others = write(tmp_path / "x.npz", 1)
    assert train.main([*longer, "--data.name", f"npz:{others}"]) == 1
    assert "the 48 training images are others than those" in capsys.readouterr().err
    assert train.main([*longer, "--data.name", "digits"]) == 2
    assert train.main([*longer, "--data.name", f"npz:{new}"]) == 0
    assert Run.open(run).config.data.name == f"npz:{new}"


def test_commands_find_the_images_below_a_new_root(moved, tmp_path, capsys) -> None:
    run, new = moved
    place = ["--out", str(tmp_path / "picture.png")]
    for root in (new.parent, new):
        assert reconstruct.main([str(run), "--root", str(root), *place]) == 0
    write(tmp_path / "x.npz", 1)
    capsys.readouterr()
    assert reconstruct.main([str(run), "--root", str(tmp_path), *place]) == 1
    assert f"the images below {tmp_path} are others than those that" in capsys.readouterr().err


def test_where_data_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    faces = DataConfig(name="folder:/somewhere/faces")
    assert moved_to(faces, tmp_path).name == f"folder:{tmp_path / 'faces'}"
    assert moved_to(faces, tmp_path / "faces").name == f"folder:{tmp_path / 'faces'}"
    assert moved_to(DataConfig(name="mnist"), tmp_path) == DataConfig(name="mnist", root=tmp_path)
