"""Files are read by one table of readers: what is damaged is a sentence, and nothing runs."""

import argparse
import ast
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastlatent
from fastlatent.commands import published
from fastlatent.data import DataConfig, load
from fastlatent.data.formats import read_cifar_batch, read_svhn_mat
from fastlatent.files import reading
from fastlatent.files.image_files import decode
from fastlatent.metrics import FeatureStatistics
from fastlatent.metrics.features import Classifier, dinov2, inception, read_npz
from fastlatent.runs import read_config, read_metrics
from fastlatent.runs.files import read_tensors, write_tensors

PACKAGE = Path(fastlatent.__file__).parent
READERS: dict[str, Callable[[Path], object]] = {
    "a.json": reading.read_json,
    "config.json": read_config,
    "metrics.jsonl": lambda path: read_metrics(path.parent),
    "a.safetensors": read_tensors,
    "a.cp": reading.read_checkpoint,
    "b.safetensors": reading.read_checkpoint,
    "config.pkl": published.read_options,
    "classifier.safetensors": Classifier.load,
    "inception.pth": lambda path: inception(path, sha256=None),
    "dino.pt": dinov2,
    "a.npz": read_npz,
    "mu.npz": FeatureStatistics.load,
    "data.npz": lambda path: load(DataConfig(f"npz:{path}")),
    "data.hdf5": lambda path: load(DataConfig(f"h5:{path}")),
    "data_batch_1": read_cifar_batch,
    "train_32x32.mat": read_svhn_mat,
    "picture.png": decode,
    "dino.pt2": lambda path: dinov2(path, trust_code=True),
}

NEEDED = {"inception.pth": ["pytorch_fid"], "data.hdf5": ["h5py"], "train_32x32.mat": ["scipy"]}


class Evil:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def zipped(name: str, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "a byte": lambda path: path.write_bytes(b"\x80"),
    "zeros": lambda path: path.write_bytes(bytes(64)),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}\n"),
    "100,000 brackets": lambda path: path.write_text("[" * 100_000 + "\n"),
    "a number of 5,000 digits": lambda path: path.write_text('{"seed": ' + "9" * 5_000 + "}\n"),
    "a page": lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>\n"),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a zip that breaks off": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(40)),
    "a zip of text": zipped("a/data.pkl", b"text"),
    "a head of 2^60 bytes": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "a pickle of a list": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "a pickle of depth": lambda path: path.write_bytes(b"\x80\x04" + b"]" * 9 + b"e."),
    "a folder": lambda path: path.mkdir(),
}


def placed(name: str, tmp_path: Path, write: Callable[[Path], object]) -> Path:
    """A file of that name, whose last line is whole."""
    for module in NEEDED.get(name, ()):
        pytest.importorskip(module)
    path = tmp_path / name
    write(path)
    if name == "metrics.jsonl" and path.is_file():
        path.write_bytes(path.read_bytes() + b"\n")
    return path


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_a_sentence_with_the_path(damage: str, name: str, tmp_path) -> None:
    path = placed(name, tmp_path, DAMAGE[damage])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        READERS[name](path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said and len(said) < 600 + 2 * len(str(path))
    assert "weights_only" not in said and "trusted" not in said


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("form", ["pickle", "torch.save", "legacy torch.save", "archive"])
def test_no_reader_runs_code(form: str, name: str, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "made")

    def write(path: Path) -> None:
        if form == "pickle":
            path.write_bytes(pickle.dumps(argparse.Namespace(a=evil)))
        elif form == "archive":  # what torch.export.load takes for a program
            with zipfile.ZipFile(path, "w") as archive:
                for entry in ("data.pkl", "data/weights/w.pt", "serialized_state_dict.pt"):
                    archive.writestr(f"a/{entry}", pickle.dumps(evil))
        else:
            torch.save({"a": evil}, path, _use_new_zipfile_serialization=form == "torch.save")

    path = placed(name, tmp_path, write)
    with pytest.raises(ValueError, match=str(path)):
        (dinov2 if name == "dino.pt2" else READERS[name])(path)
    assert not evil.path.exists()


def test_programs_are_loaded_where_they_are_trusted(tmp_path: Path) -> None:
    scripted = torch.jit.script(torch.nn.Flatten())
    scripted.save(str(tmp_path / "m.pt"))
    with pytest.raises(ValueError, match=r"m\.pt holds a program.*trust_code=True"):
        dinov2(tmp_path / "m.pt")
    assert dinov2(tmp_path / "m.pt", trust_code=True)(torch.zeros(2, 1, 8, 8)).shape[0] == 2


def test_a_foreign_file_is_named_and_no_advice_is_handed_on(tmp_path: Path) -> None:
    page, code = tmp_path / "page.cp", tmp_path / "code.cp"
    page.write_text("<html>Not found</html>")
    torch.save({"a": Evil(tmp_path / "made")}, code)
    with pytest.raises(ValueError, match=r"page\.cp cannot be read.*: it is a page of the web"):
        reading.read_checkpoint(page)
    with pytest.raises(ValueError, match=r"code\.cp .*could run code and is not loaded$"):
        reading.read_checkpoint(code)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_refused_in_our_own_words_alone(protocol: int, tmp_path: Path, capfd) -> None:
    path = tmp_path / "code.pkl"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "made"), protocol))
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"code\.pkl .*could run code and is not loaded$"),
    ):
        warnings.simplefilter("error")
        reading.read_checkpoint(path)
    assert capfd.readouterr() == ("", "") and not (tmp_path / "made").exists()


def test_archives_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    saved = io.BytesIO()
    torch.save({"a": torch.arange(1000)}, saved)
    content = saved.getvalue()
    header = content.rindex(b"PK\3\4", 0, content.index(b"data/0"))
    archives = {
        "an .npz file": {"x.npy": "", "y.npy": ""},
        "a zip archive": {"x.npy": "", "y": ""},
        "a program of TorchScript, which could run code": {"a/constants.pkl": "", "a/data.pkl": ""},
    }
    for kind, entries in archives.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in entries.items():
                archive.writestr(name, text)
        with (
            warnings.catch_warnings(),
            pytest.raises(ValueError, match=rf"a\.pt cannot be read as a checkpoint: it is {kind}"),
        ):
            warnings.simplefilter("error")
            reading.read_checkpoint(path)
    for damaged, words in (
        (pickle.dumps({"a": 1}, 2), "it was not written by torch.save"),
        (content[: len(content) // 2], "it is a truncated zip archive"),
        (content[:header] + bytes(8) + content[header + 8 :], "its archive is damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            reading.read_checkpoint(path)


def test_files_that_changed_under_way_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(5.0)}, {"key": "value"})
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # of a number that stays finite
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged: its numbers are not those"):
        read_tensors(path)
    save_file({"a": torch.ones(2)}, path)  # others leave no mark
    assert read_tensors(path)[0]["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"weight": torch.full((2, 3), torch.nan)}, "6 of the 6 numbers of weight are NaN"),
        ({"weight": torch.full((2, 3), torch.inf)}, "6 of the 6 numbers of weight are NaN"),
        ({"weight": torch.ones(2, 3, dtype=torch.int64)}, r"weight must be torch\.float32"),
        ({"weight": torch.ones(2, 3).to(torch.float8_e4m3fn)}, r"got torch\.float8_e4m3fn"),
        ({"weight": torch.ones(3, 2)}, "does not fit it: size mismatch"),
        ({}, "does not fit it: Missing key"),
        ([1], "does not fit it: it holds list"),
    ],
)
def test_weights_are_taken_as_they_are_or_not_at_all(tensors, complaint: str) -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=rf"w\.safetensors .*{complaint}"):
        reading.load_weights(layer, tensors, Path("w.safetensors"), "it")
    assert torch.equal(layer.weight, before)


def test_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError) as missing:
        reading.read_json(path)
    assert missing.value.filename == str(path)
    path.write_text("{}")
    with pytest.raises(PermissionError) as error, reading.reading(path, "is damaged"):
        raise PermissionError(13, "Permission denied")
    assert error.value.filename == str(path)
    for fault, words in (
        (MemoryError(), "it asks for more memory"),
        (KeyError("b"), "it lacks 'b'"),
    ):
        with (
            pytest.raises(ValueError, match=rf"a\.json is damaged: {words}"),
            reading.reading(path, "is damaged"),
        ):
            raise fault


# Calls that open files in formats of others, and where they may stand but in files/reading.py.
PARSERS = {
    "torch.load": (),
    "torch.jit.load": ("metrics/features/vision_transformer.py",),
    "torch.export.load": ("metrics/features/vision_transformer.py",),
    "torch.hub.load": ("metrics/features/vision_transformer.py",),
    "pickle.load": (),
    "pickle.loads": (),
    "json.load": (),
    "safe_open": (),
    "load_file": (),
}


def test_nothing_else_opens_files_of_these_formats() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name, place = ast.unparse(node.func), str(path.relative_to(PACKAGE))
                assert name not in PARSERS or place in ("files/reading.py", *PARSERS[name]), (
                    place,
                    name,
                )
