"""`clean` removes what only training needs, and nothing else."""

import shutil
from pathlib import Path

import pytest

from fastlatent import clean, sample, train

TINY = (
    *("lbae-digits", "--model.width", "0.05", "--model.dim", "12", "--data.per-class", "8"),
    *("--batch", "16", "--steps", "4", "--checkpoint-every", "2 steps", "--keep", "3"),
    *("--film-every", "1 step", "--pictures-every", "never", "--device", "cpu"),
)


def named(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main([*TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def trained(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def said(capsys: pytest.CaptureFixture):
    def run(*words: object) -> tuple[int, str]:
        code = clean.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def samples(folder: Path) -> bytes:
    out = folder / "sample.png"
    assert sample.main([str(folder), "--images", "4", "--no-quality", "--out", str(out)]) == 0
    return out.read_bytes()


def test_training_is_gone_and_samples_stay(trained: Path, said, tmp_path: Path, capsys) -> None:
    before = samples(trained)
    foreign = [trained / "state" / "note.txt", trained / "film" / "1-note.png"]
    for path in foreign:
        path.write_text("dear")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("dear")
    (trained / "state" / "1").symlink_to(elsewhere)
    files = named(trained)

    assert said(trained, "--dry-run")[0] == 0
    assert named(trained) == files

    code, text = said(trained)
    gone = files - named(trained)
    assert code == 0 and " MB before" in text
    assert {name.split("/")[0] for name in gone} == {"state", "film"}
    assert all(path.read_text() == "dear" for path in [*foreign, elsewhere / "mine.txt"])
    assert samples(trained) == before

    assert train.main(["--resume", str(trained), "--steps", "6"]) == 1
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert said(trained)[0] == 0


def test_a_run_that_can_go_on_is_kept_unless_asked(trained: Path, said) -> None:
    for path in trained.glob("state/*/finished.json"):
        path.unlink()
    files = named(trained)
    code, text = said(trained)
    assert code == 1 and "step 4 to go on; --unfinished removes" in text
    assert named(trained) == files
    assert said(trained, "--unfinished")[0] == 0
    assert not (trained / "state").exists() and not (trained / "film").exists()


def test_what_is_no_run_is_left_alone(tmp_path: Path, said) -> None:
    (tmp_path / "state").mkdir()
    code, text = said(tmp_path)
    assert code == 1 and "is not a run folder" in text
    assert (tmp_path / "state").exists()
