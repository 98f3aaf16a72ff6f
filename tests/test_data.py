"""Every data set from files of its own layout, every batch the same however it is served."""

import gzip
import hashlib
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from memory import needs_linux, peak
from PIL import Image

from fastlatent.data import Batch, DataConfig, Split, epoch_order, load, published
from fastlatent.data.images import Fit
from fastlatent.presets import PRESETS

ROOT = Path(os.environ.get("FASTLATENT_DATA", ""))
needs_data = pytest.mark.skipif(
    not os.environ.get("FASTLATENT_DATA"), reason="FASTLATENT_DATA is not set"
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def same(a: Batch, b: Batch) -> bool:
    labels = a.labels is b.labels is None or torch.equal(a.labels, b.labels)
    return torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and labels


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mnits"}, "data.name must be one of digits, mnist, fashion.*got 'mnits'"),
        ({"name": "folder:"}, "data.name"),
        ({"name": "mnist:x"}, "data.name"),
        ({"name": "emnist:upper"}, "SPLIT: balanced, byclass"),
        ({"size": 0}, "data.size must be a positive integer; got 0"),
        ({"size": True}, "data.size"),
        ({"per_class": -1}, "data.per_class"),
        ({"crop": 1.5}, "data.crop"),
        ({"classes": (1, -2)}, "data.classes"),
        ({"workers": -1}, "data.workers"),
        ({"resident": "gpu"}, "data.resident must be auto, device or stream; got 'gpu'"),
        ({"name": "static-mnist", "size": 64}, "data.size of static-mnist must be 28 or 32"),
        ({"name": "static-mnist", "crop": 20}, "data.crop"),
        ({"name": "multi-mnist", "size": 32}, "data.size of multi-mnist must be 64; got 32"),
        ({"name": "multi-dsprites", "crop": 60}, "data.crop does not apply to multi-dsprites"),
        ({"name": "celeba:train"}, "celeba:valid.*got 'celeba:train'"),
        ({"name": "digits", "download": True}, "data.download works for mnist"),
    ],
)
def test_config_names_the_field_at_fault(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_config_from_json_equals_the_original():
    config = DataConfig(name="mnist", root=Path("a"), classes=(1, 2))
    assert DataConfig(name="mnist", root="a", classes=[1, 2]) == config


def test_import_is_light():
    code = (
        "import sys, fastlatent.data;"
        "print({'torchvision', 'sklearn', 'scipy', 'PIL'} & set(sys.modules) or 'none')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "none"


@pytest.mark.parametrize("height, width", [(218, 178), (45, 100), (64, 64), (33, 40)])
@pytest.mark.parametrize("size, crop", [(32, None), (64, None), (20, 31), (None, 30)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_agrees_with_torchvision(rng, height, width, size, crop, channels):
    from torchvision.transforms import functional as tf

    pixels = torch.from_numpy(rng.integers(0, 256, (1, channels, height, width), np.uint8))
    picture = tf.to_pil_image(pixels[0])
    if crop:
        picture = tf.center_crop(picture, [crop])
    if size:
        picture = tf.center_crop(tf.resize(picture, [size]), [size])
    assert torch.equal(Fit(size, crop)(pixels)[0], tf.pil_to_tensor(picture))


def test_28_to_32_is_a_border():
    plain, padded = load(DataConfig()).test, load(DataConfig(size=32)).test
    index = torch.arange(len(plain))
    border = padded.images(index)
    assert torch.equal(border[:, :, 2:30, 2:30], plain.images(index))
    border[:, :, 2:30, 2:30] = 0
    assert not border.any()


def test_digits():
    from sklearn.datasets import load_digits

    data, stored = load(DataConfig()), load_digits()
    assert (len(data.train), len(data.test), data.train.shape) == (1497, 300, (1, 28, 28))
    assert data.label_names == tuple("0123456789")
    assert data.test.labels.tolist() == stored.target[::6].tolist()
    assert data.train.labels[:5].tolist() == stored.target[1:6].tolist()
    small = Image.fromarray((stored.images[7] * 255 / 16).round().astype(np.uint8))
    expected = np.asarray(small.resize((28, 28), Image.Resampling.BILINEAR))
    assert np.array_equal(data.train.images(torch.tensor([5]))[0, 0], expected)


@needs_data
def test_mnist():
    data = load(DataConfig(name="mnist", size=32))
    assert (len(data.train), len(data.test), data.train.shape) == (60_000, 10_000, (1, 32, 32))
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    pixels = data.train.images(torch.arange(60_000)).sum(dtype=torch.int64).item()
    # The well-known mean of the 28x28 training pixels.
    assert pixels / (60_000 * 784 * 255) == pytest.approx(0.1307, abs=1e-4)


@needs_data
def test_fashion_classes_and_per_class():
    data = load(DataConfig(name="fashion", classes=(0, 9), per_class=30))
    assert data.label_names[9] == "Ankle boot"
    assert data.train.labels.bincount().tolist() == [30] + 8 * [0] + [30]
    assert len(data.test) == 2000
    every = load(DataConfig(name="fashion")).train
    first = (every.labels == 9).nonzero()[:30, 0]
    mine = (data.train.labels == 9).nonzero()[:, 0]
    assert torch.equal(data.train.images(mine), every.images(first))


@needs_data
def test_static_mnist_holds_zeros_and_ones():
    data = load(DataConfig(name="static-mnist", size=32))
    assert (len(data.train), len(data.test), data.label_names) == (60_000, 10_000, None)
    batch = next(data.test.batches(10_000, "cpu"))
    assert batch.images.unique().tolist() == [0.0, 1.0]
    assert batch.images.sum().item() / (10_000 * 784) == pytest.approx(0.132512, abs=1e-6)


@needs_data
def test_npz_of_real_images():
    data = load(DataConfig(name=f"npz:{ROOT}/cifar10/cifar10_subset.npz"))
    assert (len(data.train), len(data.test), data.train.shape) == (2000, 500, (3, 32, 32))
    assert data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert data.label_names[6] == "frog"
    faces = load(DataConfig(name=f"npz:{ROOT}/olivetti/olivetti_faces.npz", size=32))
    assert (len(faces.train), len(faces.test), faces.train.shape) == (360, 40, (1, 32, 32))


@needs_data
def test_unpacked_mnist_is_checked_too(tmp_path):
    for path in (ROOT / "MNIST/raw").glob("t10k*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    for path in (ROOT / "MNIST/raw").glob("train*.gz"):
        (tmp_path / path.name).symlink_to(path)
    assert len(load(DataConfig(name="mnist", root=tmp_path)).test) == 10_000
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte has the wrong checksum"):
        load(DataConfig(name="mnist", root=tmp_path))


@needs_data
def test_mnist_may_have_been_packed_again(tmp_path):
    for path in (ROOT / "MNIST/raw").glob("*.gz"):
        content = gzip.decompress(path.read_bytes())
        (tmp_path / path.name).write_bytes(gzip.compress(content, 1))
    assert len(load(DataConfig(name="mnist", root=tmp_path)).test) == 10_000
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1] + b"\0"))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz has the wrong checksum"):
        load(DataConfig(name="mnist", root=tmp_path))


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_idx_set(folder: Path, prefixes: tuple[str, str], suffix: str = "") -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = []
    for prefix, count in zip(prefixes, (12, 5), strict=True):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        arrays += [images, labels]
    return arrays


EMNIST = ("emnist-balanced-train", "emnist-balanced-test")
MNIST = ("train", "t10k")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["EMNIST/raw", "raw", "."])
def test_emnist_is_turned_upright_and_its_folder_left_alone(tmp_path, folder, suffix):
    images, labels, _, test_labels = write_idx_set(tmp_path / folder, EMNIST, suffix)
    before = snapshot(tmp_path)
    data = load(DataConfig(name="emnist", root=tmp_path))
    read = data.train.images(torch.arange(12))[:, 0].numpy()
    assert np.array_equal(read, images.transpose(0, 2, 1))
    assert data.train.labels.tolist() == labels.tolist()
    assert data.test.labels.tolist() == test_labels.tolist()
    assert len(data.label_names) == 47 and data.label_names[46] == "t"
    assert snapshot(tmp_path) == before


def test_classes_and_their_first_images_of_emnist(tmp_path):
    prefixes = ("emnist-byclass-train", "emnist-byclass-test")
    images, *_ = write_idx_set(tmp_path, prefixes)
    labels = np.array([36, 10, 36, 0, 61, 10, 36, 10, 9, 36, 0, 10], np.uint8)
    write_idx(tmp_path / f"{prefixes[0]}-labels-idx1-ubyte", labels)
    write_idx(tmp_path / f"{prefixes[1]}-labels-idx1-ubyte", np.array([10, 1, 36, 2, 10], np.uint8))
    config = PRESETS["vae-emnist"].config.data
    config = replace(config, root=tmp_path, classes=(10, 36), per_class=2)
    data = load(config)
    assert data.train.labels.tolist() == [36, 10, 36, 10]
    assert data.test.labels.tolist() == [10, 36, 10]
    read = data.train.images(torch.arange(4))[:, 0].numpy()
    assert np.array_equal(read, images[[0, 1, 2, 5]].transpose(0, 2, 1))
    assert [data.label_names[k] for k in (9, 10, 36, 61)] == ["9", "A", "a", "z"]


def test_emnist_letters_are_numbered_from_one(tmp_path):
    write_idx_set(tmp_path, ("emnist-letters-train", "emnist-letters-test"))
    data = load(DataConfig(name="emnist:letters", root=tmp_path))
    assert (data.label_names[1], data.label_names[26]) == ("a", "z")


@pytest.mark.parametrize(
    "kind, folder", [("kmnist", "KMNIST/raw"), ("fashion", "FashionMNIST/raw")]
)
def test_idx_sets_by_their_folders(tmp_path, monkeypatch, kind, folder):
    monkeypatch.setitem(published.MD5, kind, {})
    images = write_idx_set(tmp_path / folder, MNIST, ".gz")[0]
    monkeypatch.setenv("FASTLATENT_DATA", str(tmp_path))
    data = load(DataConfig(name=kind))
    assert np.array_equal(data.train.images(torch.arange(12))[:, 0], images)


def test_missing_root_says_where_to_give_it(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"mnist needs its files: .* data\.root .*FASTLATENT_DATA"):
        load(DataConfig(name="mnist"))
    with pytest.raises(FileNotFoundError, match=r"data\.root is .*nowhere, which is not a folder"):
        load(DataConfig(name="mnist", root=tmp_path / "nowhere"))
    monkeypatch.setenv("FASTLATENT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"FASTLATENT_DATA is .*nowhere"):
        load(DataConfig(name="mnist"))


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("mnist", "train-images-idx3-ubyte or train-images-idx3-ubyte.gz in .*MNIST/raw"),
        ("emnist", "emnist-balanced-train-images-idx3-ubyte"),
        ("static-mnist", "binarized_mnist_train.amat in .*, nor binarized_mnist.npz"),
        ("svhn", "train_32x32.mat in "),
        ("cifar10", "data_batch_1 in .*cifar-10-batches-py"),
        ("celeba", "list_eval_partition.txt in .*celeba"),
    ],
)
def test_missing_files_are_named(tmp_path, name, looked_for):
    with pytest.raises(FileNotFoundError, match=f"{name}: no {looked_for}"):
        load(DataConfig(name=name, root=tmp_path))


def test_wrong_checksum(tmp_path):
    write_idx_set(tmp_path, MNIST, ".gz")
    message = "train-images-idx3-ubyte.gz has the wrong checksum .*6bbc9ace898e44ae57da46a324031adb"
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name="mnist", root=tmp_path))


IMAGES = "emnist-balanced-train-images-idx3-ubyte"
LABELS = "emnist-balanced-train-labels-idx1-ubyte"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".gz", lambda d: cut(d / f"{IMAGES}.gz"), "ubyte.gz is truncated"),
        (".gz", lambda d: (d / f"{IMAGES}.gz").write_bytes(b"no gz"), "ubyte.gz is damaged"),
        ("", lambda d: cut(d / IMAGES), "is truncated: 9324 bytes .* announces 9424"),
        ("", lambda d: (d / IMAGES).write_bytes(b""), "is truncated: 0 bytes"),
        ("", lambda d: (d / IMAGES).open("ab").write(b"x"), "has bytes left over"),
        ("", lambda d: (d / IMAGES).write_bytes(bytes(99)), "is not an idx file of 3-dim"),
        ("", lambda d: write_idx(d / IMAGES, np.zeros((12, 20, 21), np.uint8)), "holds 20x21"),
        ("", lambda d: write_idx(d / LABELS, np.zeros(11, np.uint8)), "each of the 12 images"),
        ("", lambda d: write_idx(d / LABELS, np.full(12, 99, np.uint8)), "from 0 to 46"),
    ],
)
def test_damaged_idx_files(tmp_path, suffix, damage: Callable[[Path], object], message):
    write_idx_set(tmp_path, EMNIST, suffix)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name="emnist", root=tmp_path))


def write_static(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    bits = {
        part: rng.integers(0, 2, (count, 784), np.uint8)
        for part, count in (("train", 6), ("valid", 3), ("test", 2))
    }
    for part, rows in bits.items():
        packed = np.packbits(rows, axis=1)
        monkeypatch.setitem(
            published.BINARIZED_MD5, part, hashlib.md5(packed.tobytes()).hexdigest()
        )
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        (folder / f"binarized_mnist_{part}.amat").write_text(text)
    return bits


def test_static_mnist_from_text_and_from_npz(tmp_path, monkeypatch):
    bits = write_static(tmp_path, monkeypatch)
    text = load(DataConfig(name="static-mnist", root=tmp_path))
    expected = np.concatenate((bits["train"], bits["valid"])).reshape(-1, 1, 28, 28) * 255
    assert np.array_equal(text.train.images(torch.arange(9)), expected)
    packed = {part: np.packbits(rows, axis=1) for part, rows in bits.items()}
    (tmp_path / "binarized-mnist").mkdir()
    np.savez(tmp_path / "binarized-mnist/binarized_mnist.npz", **packed)
    for path in tmp_path.glob("*.amat"):
        path.unlink()
    arrays = load(DataConfig(name="static-mnist", root=tmp_path))
    for split in ("train", "test"):
        a, b = getattr(text, split), getattr(arrays, split)
        assert torch.equal(a.images(torch.arange(len(a))), b.images(torch.arange(len(b))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda old: old[:-100], "valid.amat is truncated"),
        (lambda old: b"MATLAB 5.0 MAT-file" + old, "valid.amat is not text of zeros and ones"),
        (lambda old: old.translate(bytes.maketrans(b"01", b"10")), "wrong checksum: its valid"),
    ],
)
def test_damaged_static_mnist(tmp_path, monkeypatch, content, message):
    write_static(tmp_path, monkeypatch)
    path = tmp_path / "binarized_mnist_valid.amat"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name="static-mnist", root=tmp_path))


def test_static_mnist_npz_without_a_part(tmp_path):
    np.savez(tmp_path / "binarized_mnist.npz", train=np.zeros((2, 98), np.uint8))
    with pytest.raises(ValueError, match=r"binarized_mnist.npz has no array 'valid'"):
        load(DataConfig(name="static-mnist", root=tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "channels"),
    [
        ("multi-dsprites", "multi-dsprites-binary-rgb/multi_dsprites_color_012.npz", 3),
        ("multi-mnist", "multi_mnist/multi_binary_mnist_012.npz", 1),
    ],
)
def test_multi_objects_leave_their_labels_unread(tmp_path, rng, name, file, channels):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    x = rng.integers(0, 2, (19, 64, 64, channels), np.uint8) * np.uint8(255)
    (tmp_path / file).parent.mkdir()
    np.savez_compressed(tmp_path / file, x=x, labels=np.array({"n_obj": Evil()}, object))
    data = load(DataConfig(name=name, root=tmp_path))
    assert (len(data.train), len(data.test), data.label_names) == (17, 2, None)
    assert data.train.shape == (channels, 64, 64)
    assert np.array_equal(data.test.images(torch.arange(2)), x[17:].transpose(0, 3, 1, 2))
    assert not (tmp_path / "harm").exists()
    with pytest.raises(ValueError, match=f"data.classes needs labels, and {name} has none"):
        load(DataConfig(name=name, root=tmp_path, classes=(1,)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 64, 64, 3), np.uint8), r"x must be uint8 of shape \(n, 64, 64, 1\); got"),
        (np.zeros((3, 64, 64, 1), np.float32), "got float32"),
        (np.full((3, 64, 64, 1), 254, np.uint8), "x must hold 0 and 255 alone"),
        (np.zeros((1, 64, 64, 1), np.uint8), "multi-mnist has no train image"),
    ],
)
def test_faults_in_multi_objects(tmp_path, x, message):
    np.savez(tmp_path / "multi_binary_mnist_012.npz", x=x)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name="multi-mnist", root=tmp_path))


def test_svhn(tmp_path, monkeypatch, rng):
    from scipy.io import savemat

    x = rng.integers(0, 256, (32, 32, 3, 11), np.uint8)
    y = np.array([[1], [10], [2], [9], [3], [10], [1], [2], [4], [5], [6]], np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": y})
    with pytest.raises(ValueError, match=r"train_32x32.mat has the wrong checksum"):
        load(DataConfig(name="svhn", root=tmp_path))
    monkeypatch.setitem(published.MD5, "svhn", {})
    data = load(DataConfig(name="svhn", root=tmp_path))
    assert np.array_equal(data.train.images(torch.arange(11)), x.transpose(3, 2, 0, 1))
    assert data.test.labels.tolist() == [1, 0, 2, 9, 3, 0, 1, 2, 4, 5, 6]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the published batches."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_batch(path: Path, content: object) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def write_cifar10(folder: Path) -> np.ndarray:
    folder.mkdir()
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (6, 2, 3072), np.uint8)
    for k, name in enumerate(published.MD5["cifar10"]):
        write_batch(folder / name, {b"data": x[k], b"labels": [k, 9 - k]})
    return x.reshape(6, 2, 3, 32, 32)


def test_cifar10(tmp_path, monkeypatch):
    x = write_cifar10(tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match="data_batch_1 has the wrong checksum"):
        load(DataConfig(name="cifar10", root=tmp_path))
    monkeypatch.setattr(published, "MD5", {"cifar10": dict.fromkeys(published.MD5["cifar10"])})
    data = load(DataConfig(name="cifar10", root=tmp_path))
    assert np.array_equal(data.train.images(torch.arange(10)), x[:5].reshape(10, 3, 32, 32))
    assert np.array_equal(data.test.images(torch.arange(2)), x[5])
    assert data.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert data.label_names[9] == "truck"


def test_a_cifar10_batch_that_runs_code_is_refused(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    write_cifar10(tmp_path / "cifar-10-batches-py")
    write_batch(tmp_path / "cifar-10-batches-py/data_batch_2", Evil())
    monkeypatch.setattr(published, "MD5", {"cifar10": dict.fromkeys(published.MD5["cifar10"])})
    with pytest.raises(ValueError, match="data_batch_2 is not a CIFAR-10 batch: it asks for"):
        load(DataConfig(name="cifar10", root=tmp_path))
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def celeba(tmp_path, monkeypatch, rng) -> Path:
    """Eight images: four train, two validation, two test; attributes of image i are i in binary."""
    monkeypatch.setitem(published.MD5, "celeba", {})
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 9)]
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
        coarse.resize((178, 218)).save(folder / "img_align_celeba" / name)
    rows = [
        f"{name} " + " ".join(" 1" if i >> k & 1 else "-1" for k in range(3))
        for i, name in enumerate(names)
    ]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["8", "Bald Male Young ", *rows]))
    parts = [0, 0, 0, 0, 1, 1, 2, 2]
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {part}\n" for name, part in zip(names, parts, strict=True))
    )
    return folder


@pytest.mark.parametrize("crop", [None, 140])
@pytest.mark.parametrize("resident", ["device", "stream"])
def test_celeba(celeba, crop, resident):
    from torchvision.transforms import functional as tf

    data = load(
        DataConfig(name="celeba", root=celeba.parent, size=64, crop=crop, resident=resident)
    )
    assert (len(data.train), len(data.test), data.train.shape) == (4, 2, (3, 64, 64))
    assert data.label_names == ("Bald", "Male", "Young")
    assert data.train.labels.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert data.test.labels.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert data.train.labels.dtype == torch.uint8
    picture = Image.open(celeba / "img_align_celeba/000007.jpg")
    if crop:
        picture = tf.center_crop(picture, [crop])
    expected = tf.pil_to_tensor(tf.center_crop(tf.resize(picture, [64]), [64]))
    assert torch.equal(data.test.images(torch.tensor([0]))[0], expected)


def test_celeba_tested_on_its_validation_images(celeba):
    data = load(DataConfig(name="celeba:valid", root=celeba.parent, size=16))
    assert (len(data.train), len(data.test)) == (4, 2)
    assert data.test.labels.tolist() == [[0, 0, 1], [1, 0, 1]]


def test_celeba_tested_on_images_drawn_from_all(celeba, monkeypatch):
    config = DataConfig(name="celeba:random", root=celeba.parent, size=16)
    with pytest.raises(ValueError, match="celeba:random sets 20,000 images apart; there are 8"):
        load(config)
    monkeypatch.setattr(published, "CELEBA_RANDOM", 3)

    def numbers(split):  # the attributes of image i are i in binary
        return [int("".join(map(str, row)), 2) for row in split.labels.tolist()]

    data, again = load(config), load(config)
    train, test = numbers(data.train), numbers(data.test)
    assert len(test) == 3 and sorted(train + test) == sorted({*train, *test})
    assert len(train + test) == 8
    assert numbers(again.test) == test
    others = [numbers(load(replace(config, split_seed=seed)).test) for seed in range(1, 6)]
    assert any(other != test for other in others)


def test_validation_images_are_taken_from_the_training_images():
    whole = load(DataConfig(name="digits"))
    config = DataConfig(name="digits", validation=100)
    data = load(config)
    assert whole.validation is None
    assert (len(data.train), len(data.validation)) == (len(whole.train) - 100, 100)
    assert data.validation.name == "validation"
    assert torch.equal(data.test.images(torch.arange(9)), whole.test.images(torch.arange(9)))
    pixels = {
        name: {bytes(image.numpy().tobytes()) for image in split.images(torch.arange(len(split)))}
        for name, split in (("train", data.train), ("apart", data.validation), ("all", whole.train))
    }
    assert pixels["train"] | pixels["apart"] == pixels["all"]
    assert data.train.labels.sum() + data.validation.labels.sum() == whole.train.labels.sum()
    other = load(replace(config, split_seed=1)).validation
    assert not torch.equal(other.labels, data.validation.labels)
    with pytest.raises(ValueError, match=r"data.validation must be less than the 1,497 training"):
        load(replace(config, validation=1497))


def test_celeba_classes_keep_images_with_any_of_the_attributes(celeba):
    data = load(DataConfig(name="celeba", root=celeba.parent, size=16, classes=(1,)))
    assert data.train.labels.tolist() == [[0, 1, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match=r"data.per_class needs one class"):
        load(DataConfig(name="celeba", root=celeba.parent, per_class=1))


def test_celeba_files_missing_or_wrong(celeba, monkeypatch):
    config = DataConfig(name="celeba", root=celeba.parent, size=16)
    (celeba / "img_align_celeba/000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 images are missing.*000003\.jpg"):
        load(config)
    (celeba / "img_align_celeba").rename(celeba / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"celeba: no folder .*img_align_celeba"):
        load(config)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"list_eval_partition.txt has the wrong checksum"):
        load(config)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (9, 9)) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    return pictures


def test_folder_holds_out_every_tenth_image(tmp_path):
    pictures = write_pictures(tmp_path, 21, size=(9, 11))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    before = snapshot(tmp_path)
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert (len(data.train), len(data.test), data.train.shape) == (18, 3, (3, 9, 11))
    expected = np.stack([pictures[i] for i in (0, 10, 20)]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.test.images(torch.arange(3)), expected)
    assert data.label_names is data.train.labels is None
    assert snapshot(tmp_path) == before


def test_folder_with_splits_and_classes(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("dog", "cat")):
            write_pictures(tmp_path / split / name, count + k)
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert data.label_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]
    dogs = load(DataConfig(name=f"folder:{tmp_path}", classes=(1,), per_class=2))
    assert (dogs.train.labels.tolist(), len(dogs.test)) == ([1, 1], 2)
    (tmp_path / "test").rename(tmp_path / "spare")
    with pytest.raises(ValueError, match="has the folder train but not its counterpart"):
        load(DataConfig(name=f"folder:{tmp_path}"))


def test_grey_pictures_have_one_channel(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((5, 5), i, np.uint8)).save(tmp_path / f"{i}.png")
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert data.train.images(torch.tensor([1])).unique().tolist() == [2]
    assert data.train.shape == (1, 5, 5)
    Image.new("RGB", (5, 5), "red").save(tmp_path / "9.png")
    with pytest.raises(ValueError, match=r"9\.png is a colour image among grey ones"):
        load(DataConfig(name=f"folder:{tmp_path}"))


def spoil_size(folder: Path) -> None:
    Image.new("RGB", (4, 9)).save(folder / "002.png")


def spoil_depth(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "002.png")


@pytest.mark.parametrize(
    ("spoil", "fields", "message"),
    [
        (spoil_size, {}, r"002\.png is 9x4 where .*is 9x9; give data\.size"),
        (spoil_size, {"crop": 5}, r"002\.png: data\.crop is 5, more than images of 9x4 have"),
        (spoil_depth, {}, r"002\.png has more than 8 bits a channel"),
        (lambda d: cut(d / "002.png"), {}, r"002\.png is not a readable image"),
        (lambda d: (d / "002.png").write_text("x"), {}, r"002\.png is not a readable image"),
        (lambda d: write_pictures(d / "deeper", 1), {}, "lies outside the class folders"),
        (lambda d: None, {"classes": (0,)}, "data.classes needs labels, and folder:.* has none"),
        (lambda d: None, {"per_class": 3}, "data.per_class needs labels"),
    ],
)
def test_faults_in_a_folder(tmp_path, spoil, fields, message):
    write_pictures(tmp_path, 4)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name=f"folder:{tmp_path}", **fields))


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="holds no image files"):
        load(DataConfig(name=f"folder:{tmp_path}"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load(DataConfig(name=f"folder:{tmp_path}/nowhere"))
    write_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match="has no train image"):
        load(DataConfig(name=f"folder:{tmp_path}"))


@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x,
        lambda x: x.transpose(0, 2, 3, 1),
        lambda x: x.astype(np.float32) / 255,
        lambda x: x.transpose(0, 2, 3, 1).astype(np.float64) / 255,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_npz_layouts(tmp_path, rng, stored, channels):
    x = rng.integers(0, 256, (20, channels, 6, 7), np.uint8)
    np.savez(tmp_path / "a.npz", x=stored(x), y=np.arange(20)[:, None] % 3)
    data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
    assert np.array_equal(data.test.images(torch.arange(2)), x[[0, 10]])
    assert np.array_equal(data.train.images(torch.tensor([0, 17])), x[[1, 19]])
    assert data.test.labels.tolist() == [0, 1]
    assert data.label_names == ("0", "1", "2")


@needs_linux
@pytest.mark.parametrize(
    ("save", "names", "most"),
    [
        (np.savez, ("train_x", "test_x"), 1.2),  # and these are the pages of the file
        (np.savez, ("x",), 2.2),
        (np.savez_compressed, ("train_x", "test_x"), 1.2),
        (np.savez_compressed, ("x",), 2.2),
    ],
)
def test_images_of_an_npz_take_their_size_once_or_twice(tmp_path, rng, save, names, most):
    arrays = {name: rng.integers(0, 256, (8000, 64, 64), np.uint8) for name in names}
    save(tmp_path / "a.npz", **arrays)
    config = DataConfig(name=f"npz:{tmp_path}/a.npz")
    whole = sum(x.nbytes for x in arrays.values())
    kept = []
    # Beside them what is imported for them, and what the heap keeps: 3 times would still be seen.
    assert peak(lambda: kept.append(load(config))) < most * whole + 9e6
    first = arrays[names[0]][1 if len(names) == 1 else 0]
    assert np.array_equal(kept[0].train.images(torch.tensor([0]))[0, 0], first)


@needs_linux
def test_images_of_an_h5_take_no_more_than_a_few_megabytes_beside_themselves(tmp_path):
    h5py = pytest.importorskip("h5py")
    path, count = tmp_path / "a.h5", 6000
    with h5py.File(path, "w") as file:
        for number in range(count):
            file[f"{number:05}/image"] = np.full((16, 16, 1), number % 256, np.uint8)
    kept = []
    extra = peak(lambda: kept.append(load(DataConfig(name=f"h5:{path}"))))
    # The images, their hold-out, their names, and the 2 MiB that HDF5 keeps of any file.
    assert extra < 2 * 256 * count + 200 * count + 9e6
    assert int(kept[0].train.images(torch.tensor([0]))[0, 0, 0, 0]) == 1


def test_damage_of_a_mapped_npz_is_seen(tmp_path, rng):
    path = tmp_path / "a.npz"
    np.savez(path, train_x=rng.integers(0, 256, (20, 8, 8), np.uint8), test_x=np.ones((2, 8, 8)))
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged at train_x: .*CRC"):
        load(DataConfig(name=f"npz:{path}"))


def test_arrays_that_no_map_fits_are_read(tmp_path, rng):
    x = rng.integers(0, 256, (20, 6, 6), np.uint8)
    for stored in (np.asfortranarray(x), x.astype(">f4") / 255):
        np.savez(tmp_path / "a.npz", x=stored)
        data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
        assert np.array_equal(data.test.images(torch.arange(2))[:, 0], x[::10])


def test_npz_of_booleans_without_a_channel(tmp_path):
    x = np.arange(2 * 12).reshape(2, 3, 4) % 5 == 0
    np.savez(tmp_path / "a.npz", train_x=x, test_x=x)
    data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
    assert data.train.shape == (1, 3, 4)
    assert np.array_equal(next(data.test.batches(2, "cpu")).images[:, 0], x)


def test_bits_in_bytes_are_black_and_white_and_that_is_said(tmp_path, rng):
    bits = rng.integers(0, 2, (20, 4, 4), np.uint8)
    name = f"npz:{tmp_path}/a.npz"
    for arrays in ({"x": bits}, {"train_x": bits, "test_x": np.zeros((2, 4, 4), np.uint8)}):
        np.savez(tmp_path / "a.npz", **arrays)
        data = load(DataConfig(name=name))
        assert data.notes == [
            f"{tmp_path}/a.npz: {next(iter(arrays))}: uint8 of 0 and 1 alone is taken as black "
            "and white"
        ]
        expected = bits[1] if "x" in arrays else bits[0]
        assert torch.equal(next(data.train.batches(1, "cpu")).images[0, 0], torch.tensor(expected))
    for x in (bits * np.uint8(2), bits * 0, np.stack((bits, bits * np.uint8(9)), 1)[:, 1]):
        np.savez(tmp_path / "a.npz", x=x)
        data = load(DataConfig(name=name))
        assert data.notes == [] and np.array_equal(data.test.images(torch.tensor([0]))[0, 0], x[0])


@pytest.mark.parametrize("white", [np.uint8(255), 1.0, True])
def test_each_array_is_looked_at_for_bits_in_bytes(tmp_path, rng, white):
    bits = rng.integers(0, 2, (20, 4, 4), np.uint8)
    other = np.where(bits[::-1] == 1, white, np.zeros((), np.asarray(white).dtype))
    for first, second in (("train_x", "test_x"), ("test_x", "train_x")):
        np.savez(tmp_path / "a.npz", **{first: bits, second: other})
        data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
        splits = {"train_x": data.train, "test_x": data.test}
        found = {x: split.images(torch.arange(20))[:, 0] for x, split in splits.items()}
        assert torch.equal(found[first], torch.tensor(bits * 255))
        assert torch.equal(found[second], torch.tensor(bits[::-1] * 255))
        (said,) = data.notes
        assert said.endswith(f"a.npz: {first}: uint8 of 0 and 1 alone is taken as black and white")


@pytest.mark.parametrize("greys", [np.uint8(200), np.float32(0.5)])
def test_bits_beside_greys_are_refused(tmp_path, greys):
    bits = np.ones((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train_x=bits * greys, test_x=bits)
    expected = r"a\.npz: test_x holds uint8 of 0 and 1 alone, and train_x holds greys; give all in"
    with pytest.raises(ValueError, match=expected):
        load(DataConfig(name=f"npz:{tmp_path}/a.npz"))


def test_images_of_two_scales_in_one_array_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    white = np.array([1, 1, 255, 0], np.uint8)
    images = np.ones((4, 5, 5, 1), np.uint8) * white[:, None, None, None]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k, image in enumerate(images):
            file[f"{k}/image"] = image
    np.savez(tmp_path / "a.npz", x=images)
    for name, array in ((f"h5:{tmp_path}/a.h5", "image"), (f"npz:{tmp_path}/a.npz", "x")):
        expected = rf"{array} holds 2 images of 0 and 1 and 1 of 0 and 255; give all in one scale"
        with pytest.raises(ValueError, match=expected):
            load(DataConfig(name=name))
    # Three values in one image are no bits.
    images[0, 0] = 255
    np.savez(tmp_path / "a.npz", x=images)
    found = load(DataConfig(name=f"npz:{tmp_path}/a.npz")).test.images(torch.tensor([0]))
    assert found.unique().tolist() == [1, 255]


def test_arrays_that_are_not_read_are_named(tmp_path):
    arrays = {"x": X + np.uint8(7), "train_x": X, "test_x": X, "extra": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
    assert data.train.images(torch.arange(2)).unique().tolist() == [7]
    (said,) = data.notes
    assert said.endswith("a.npz: images are x; not read: extra, test_x, train_x")


def test_what_is_no_array_or_is_encrypted_ends_in_a_sentence(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"words")
    with pytest.raises(ValueError, match=r"a\.npz: x is not an array"):
        load(DataConfig(name=f"npz:{path}"))
    np.savez(path, x=np.zeros((20, 4, 4), np.uint8))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the entry and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged at x: .*encrypted"):
        load(DataConfig(name=f"npz:{path}"))


def test_npz_of_attributes(tmp_path):
    x, y = np.zeros((2, 4, 4), np.uint8), np.array([[0, 1, 1], [1, 0, 0]])
    np.savez(tmp_path / "a.npz", train_x=x, test_x=x, train_y=y, test_y=y, classes=list("abc"))
    data = load(DataConfig(name=f"npz:{tmp_path}/a.npz"))
    assert data.label_names == ("a", "b", "c")
    assert torch.equal(data.train.labels, torch.tensor(y, dtype=torch.uint8))


X = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": X}, "holds pictures; expected some of train_x, test_x"),
        ({"train_x": X}, "has no array test_x"),
        ({"x": X[0]}, r"x must be \(n, h, w\), .*got \(4, 4\)"),
        ({"x": np.zeros((3, 4, 4, 2), np.uint8)}, "1 or 3 channels"),
        ({"x": X.astype(np.int64)}, "x must be uint8, bool or float in .*; got int64"),
        ({"x": X + 1.5}, "x holds floats outside 0 to 1"),
        ({"x": X + np.nan}, "x holds floats outside 0 to 1"),
        ({"x": X, "y": np.zeros(2, int)}, r"y must be integer class ids \(3,\).*shape \(2,\)"),
        ({"x": X, "y": np.zeros(3)}, "got float64"),
        ({"x": X, "y": np.array([0, -1, 0])}, "y must lie in 0 to 9999; got -1 to 0"),
        ({"x": X, "y": np.full((3, 2), 7)}, "y must lie in 0 to 1"),
        ({"x": X, "y": np.array([0, 1, 2]), "classes": ["a"]}, "classes must name 3 labels"),
        ({"train_x": X, "test_x": X, "train_y": np.arange(3)}, "train_y and test_y must both"),
        ({"train_x": X, "test_x": X[:, 1:]}, r"train images are \(1, 4, 4\) and test images"),
        ({"x": np.array([{}, {}])}, "is damaged at x"),
    ],
)
def test_faults_in_an_npz_file(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name=f"npz:{tmp_path}/a.npz"))


def test_npz_files_that_are_none(tmp_path, rng):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*a\.npz"):
        load(DataConfig(name=f"npz:{path}"))
    np.savez(path, x=rng.integers(0, 256, (20, 9, 9), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a\.npz is not an \.npz file, or it is truncated"):
        load(DataConfig(name=f"npz:{path}"))
    directory = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:directory] + b"xx" + whole[directory + 2 :])
    with pytest.raises(ValueError, match=r"a\.npz is damaged: Bad magic number"):
        load(DataConfig(name=f"npz:{path}"))
    path.write_bytes(whole[:900] + bytes(20) + whole[920:])
    with pytest.raises(ValueError, match=r"a\.npz is damaged at x"):
        load(DataConfig(name=f"npz:{path}"))


def test_classes_that_leave_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) // 10 * 2)
    with pytest.raises(ValueError, match=r"must be labels from 0 to 2, .*; got \(3,\)"):
        load(DataConfig(name=f"npz:{tmp_path}/a.npz", classes=(3,)))
    with pytest.raises(ValueError, match=r"has no train image with a label in data.classes=\(1,\)"):
        load(DataConfig(name=f"npz:{tmp_path}/a.npz", classes=(1,)))


def test_download_only_what_is_missing(tmp_path, monkeypatch):
    from torchvision import datasets

    calls = []

    def fetch(root: Path, download: bool) -> None:
        calls.append(download)
        write_idx_set(root / "KMNIST/raw", MNIST)

    monkeypatch.setattr(datasets, "KMNIST", fetch)
    for _ in range(2):
        data = load(DataConfig(name="kmnist", root=tmp_path / "new", download=True))
    assert (calls, len(data.train)) == ([True], 12)


def test_missing_files_name_the_option_that_fetches_them(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^mnist: no .*; data\.download=True fetches it$"):
        load(DataConfig(name="mnist", root=tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load(DataConfig(name="static-mnist", root=tmp_path))
    assert "download" not in str(caught.value), "what cannot be fetched"
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"; data\.download=True fetches them into it$"):
        load(DataConfig(name="mnist"))


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    from torchvision import datasets

    def fetch(root: Path, download: bool) -> None:
        raise RuntimeError("Error downloading x:\nTried a, got:\nb")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    with pytest.raises(OSError, match=r"^mnist could not be downloaded .*: Tried a, got: b$"):
        load(DataConfig(name="mnist", root=tmp_path, download=True))


@pytest.fixture
def pictures(tmp_path) -> Path:
    for k, name in enumerate(("a", "b")):
        write_pictures(tmp_path / "train" / name, 12 + k)
        write_pictures(tmp_path / "test" / name, 2)
    return tmp_path


def served(pictures: Path, resident: str) -> Split:
    return load(DataConfig(name=f"folder:{pictures}", resident=resident, workers=0)).train


def test_resident_and_streaming_batches_are_the_same(pictures):
    resident, streaming = served(pictures, "device"), served(pictures, "stream")
    assert (resident.streams, streaming.streams) == (False, True)
    order = epoch_order(25, seed=1, epoch=0)
    expected = list(resident.batches(4, "cpu", order=order))
    assert [len(batch.index) for batch in expected] == [4, 4, 4, 4, 4, 4, 1]
    assert torch.equal(torch.cat([batch.index for batch in expected]), order)
    for batch in expected:
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.images, resident.images(batch.index) / 255)
        assert torch.equal(batch.labels, resident.labels[batch.index])
    state = torch.get_rng_state()
    got = list(streaming.batches(4, "cpu", order=order))
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    got = list(streaming.batches(4, "cpu", order=order, workers=2, rank=1, world=3))
    sliced = list(resident.batches(4, "cpu", order=order, rank=1, world=3))
    assert [len(batch.index) for batch in got] == [4, 4, 0]
    assert all(same(a, b) for a, b in zip(sliced, got, strict=True))
    # Serving images must not disturb the random numbers of training.
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_start_resumes_an_interrupted_epoch(pictures, resident):
    split, order = served(pictures, resident), epoch_order(25, seed=1, epoch=3)
    whole = list(split.batches(3, "cpu", order=order, world=2, rank=1, drop_last=True))
    assert len(whole) == 4
    for start in range(6):
        rest = list(
            split.batches(3, "cpu", order=order, world=2, rank=1, drop_last=True, start=start)
        )
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_partition_each_step(pictures, drop_last):
    split, order = served(pictures, "device"), epoch_order(25, seed=2, epoch=0)
    alone = list(split.batches(9, "cpu", order=order, drop_last=drop_last))
    ranks = [
        list(split.batches(3, "cpu", order=order, drop_last=drop_last, rank=r, world=3))
        for r in range(3)
    ]
    assert len(alone) == (2 if drop_last else 3)
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)


def test_file_order_and_a_chosen_subset(pictures):
    split = served(pictures, "device")
    assert torch.cat([b.index for b in split.batches(10, "cpu")]).tolist() == list(range(25))
    chosen = torch.tensor([7, 3, 3])
    (batch,) = split.batches(10, "cpu", order=chosen)
    assert torch.equal(batch.index, chosen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"start": -1}, "start must be at least 0"),
        ({"rank": 2, "world": 2}, "rank must lie in 0 to 1; got 2"),
        ({"order": torch.tensor([25])}, "order must lie in 0 to 24, the samples of the train"),
        ({"order": torch.tensor([-1])}, "order must lie in 0 to 24"),
        ({"order": torch.tensor([0.5])}, "order must be int64"),
    ],
)
def test_batches_refuse_at_the_call(pictures, fields, message):
    split = served(pictures, "device")
    with pytest.raises(ValueError, match=message):
        split.batches(**{"batch": 4, "device": "cpu"} | fields)


def test_a_worker_reports_damage_in_one_sentence_and_outlives_ctrl_c(pictures):
    split = served(pictures, "stream")
    cut(pictures / "train/b/012.png")
    batches = split.batches(2, "cpu", workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    with pytest.raises(ValueError, match=r"^\S*012\.png is not a readable image: [^\n]*$"):
        list(batches)


def test_large_sets_stream_and_small_ones_do_not(pictures, monkeypatch):
    from fastlatent.data import dataset

    config = DataConfig(name=f"folder:{pictures}")
    assert not load(config).train.streams
    monkeypatch.setattr(dataset, "_RESIDENT_FILES", 10)
    assert load(config).train.streams
    assert not load(DataConfig()).train.streams
    monkeypatch.setattr(dataset, "_RESIDENT_BYTES", 1797 * 784 - 1)
    assert load(DataConfig()).train.streams


def test_streaming_an_array_needs_no_files():
    a = load(DataConfig(resident="stream", workers=0)).test
    b = load(DataConfig(resident="device")).test
    order = epoch_order(300, 5, 0)
    pairs = zip(a.batches(128, "cpu", order=order), b.batches(128, "cpu", order=order), strict=True)
    assert all(same(x, y) for x, y in pairs)


def test_to_keeps_what_is_served(pictures):
    split = served(pictures, "device")
    moved = split.to("cpu")
    assert all(
        same(a, b) for a, b in zip(split.batches(7, "cpu"), moved.batches(7, "cpu"), strict=True)
    )
    streaming = served(pictures, "stream")
    assert streaming.to("cpu") is streaming


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("resident", ["device", "stream"])
def test_the_gpu_gets_the_bits_of_the_cpu(pictures, resident, moved):
    split, order = served(pictures, resident), epoch_order(25, 1, 1)
    expected = list(split.batches(8, "cpu", order=order))
    on_gpu = split.to("cuda") if moved else split
    for a, b in zip(expected, on_gpu.batches(8, "cuda", order=order, workers=1), strict=True):
        assert b.images.is_cuda and b.index.is_cuda and b.labels.is_cuda
        assert same(a, Batch(b.images.cpu(), b.index.cpu(), b.labels.cpu()))


@pytest.mark.parametrize("n", [None, 1, 3, 4, 10, 99, 100, 101])
def test_a_limit_takes_as_many_of_each_class_of_a_sorted_file(n):
    labels = torch.arange(10).repeat_interleave(10)
    split = Split("test", torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)
    index = split.spread(n)
    assert len(index) == (100 if n is None else min(n, 100))
    assert torch.equal(index, index.unique())
    counts = labels[index].bincount(minlength=10)
    assert counts.max() - counts.min() <= 1
    assert len(split.images(index)) == len(index)


def test_epoch_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(1000, seed=7, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(1000, seed=7, epoch=2))
    assert not torch.equal(order, epoch_order(1000, seed=7, epoch=3))
    assert not torch.equal(order, epoch_order(1000, seed=8, epoch=2))


def test_images_by_a_list_of_indices():
    split = load(DataConfig("digits")).test
    expected = split.images(torch.tensor([3, 1]))
    for index in ([3, 1], (3, 1), np.array([3, 1]), range(3, 0, -2)):
        assert torch.equal(split.images(index), expected)
    with pytest.raises(ValueError, match="index must be whole numbers"):
        split.images([0.5])
    with pytest.raises(ValueError, match="index must lie in 0 to 299"):
        split.images([300])
