"""fid, kid and precision_recall: two sets in one call, wherever they lie."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastlatent.data import Split
from fastlatent.metrics import (
    FeatureStatistics,
    compared,
    fid,
    frechet_from_features,
    frechet_standard_error,
    kernel_distance,
    kid,
    precision_recall,
)

COUNT = 40


def images(seed: int) -> Tensor:
    """uint8 (n, 3, 8, 8)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256 - 60 * seed, (COUNT, 3, 8, 8), generator=draw, dtype=torch.uint8)


def corners(x: Tensor) -> Tensor:
    """Six features of images (n, 3, h, w) in [0, 1]."""
    return x[:, :, :2, 0].flatten(1).float()


class Pictures(Dataset):
    """As torchvision's: pictures of PIL and classes."""

    def __init__(self, x: Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.x[index].permute(1, 2, 0).numpy()), 0


def forms(x: Tensor, folder: Path) -> dict[str, object]:
    """The same set of images in every form."""
    folder.mkdir()
    for number, pixels in enumerate(x):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.png")
    np.savez(folder.with_suffix(".npz"), images=x.numpy())
    return {
        "tensor": x,
        "floats": x / 255,
        "array": x.numpy(),
        "folder": folder,
        "text": str(folder),
        "npz": folder.with_suffix(".npz"),
        "tensors": TensorDataset(x),
        "pictures": Pictures(x),
        "split": Split("test", x),
        "batches": list(x.split(16)),
    }


def test_sets_in_every_form_are_as_far_apart(tmp_path):
    a, b = images(0), images(1)
    x, y = corners(a / 255), corners(b / 255)
    expected = float(frechet_from_features(x, y))
    error = float(frechet_standard_error(x, y))
    other = forms(b, tmp_path / "b")
    for name, form in forms(a, tmp_path / "a").items():
        found = fid(form, other[name], corners)
        assert found.value == pytest.approx(expected, rel=1e-5), name
        assert found.error == pytest.approx(error, rel=1e-4), name
        assert found.name == "FD(corners)" and found.features == "corners", name
        assert found.counts == (COUNT, COUNT)
    assert str(found).startswith("FD(corners) ") and "±" in str(found)


def test_features_are_taken_as_they_are(tmp_path):
    x, y = corners(images(0) / 255), corners(images(1) / 255)
    np.savez(tmp_path / "x.npz", features=x.numpy())
    found = fid(tmp_path / "x.npz", y)
    assert found.value == pytest.approx(float(frechet_from_features(x, y)))
    assert (found.name, found.features) == ("FD", "features as given")
    again = kid(x, y, subsets=None)
    assert again[:2] == kernel_distance(x, y, None)[:2] and again.name == "KD"
    mixed = fid(x, images(1), corners)
    assert mixed.value == pytest.approx(found.value, rel=1e-5) and mixed.features == "corners"


def test_moments_give_a_distance_without_an_error(tmp_path):
    x, y = corners(images(0) / 255), corners(images(1) / 255)
    statistics = FeatureStatistics(6)
    statistics.update(x)
    statistics.save(tmp_path / "moments.npz")
    found = fid(tmp_path / "moments.npz", y)
    assert found.value == pytest.approx(float(frechet_from_features(x, y)), rel=1e-6)
    assert math.isnan(found.error) and found.counts == (COUNT, COUNT)
    with pytest.raises(ValueError, match="kid: a holds moments alone"):
        kid(tmp_path / "moments.npz", y)
    with pytest.raises(ValueError, match="precision_recall: b holds moments alone"):
        precision_recall(y, tmp_path / "moments.npz")


def test_precision_and_recall_of_sets(tmp_path):
    x, y = corners(images(0) / 255), corners(images(1) / 255)
    found = precision_recall(images(0), Pictures(images(1)), features=corners)
    assert found == precision_recall(x, y) and found.features == "corners"
    precision, recall = precision_recall(x, y, 5)
    assert precision.value != recall.value
    assert precision_recall(x, y).features == "features as given"


def test_the_network_of_fid_gives_fid_and_is_never_downloaded(monkeypatch, tmp_path):
    def network(weights: str) -> object:
        assert weights == "weights.pth"
        corners.distance_name = "FID"
        return corners

    monkeypatch.setattr(compared, "stored_weights", lambda: None)
    with pytest.raises(ValueError, match="fid: weights must be the file of the Inception network"):
        fid(images(0), images(1), "inception")
    monkeypatch.setattr(compared, "inception", network)
    try:
        found = fid(images(0), images(1), "inception", weights="weights.pth")
        assert (found.name, found.features) == ("FID", "Inception network of the FID")
        assert kid(images(0), images(1), "inception", weights="weights.pth").name == "KID"
    finally:
        del corners.distance_name


@pytest.mark.parametrize(
    ("a", "options", "error", "words"),
    [
        (images(0), {}, ValueError, "features must name a network for images, as a holds"),
        (images(0), {"features": "vgg"}, TypeError, "'dinov2' or a function .* got 'vgg'"),
        (images(0), {"features": "dinov2"}, ValueError, "weights must be the file of the DINOv2"),
        (images(0), {"features": corners, "weights": "x"}, ValueError, "weights go with features"),
        (Path("nowhere"), {"features": corners}, FileNotFoundError, "no file or folder nowhere"),
        (3, {"features": corners}, TypeError, "source must be a tensor, a path or"),
        (torch.rand(COUNT, 5), {"features": corners}, ValueError, "as many features as real, 5"),
    ],
)
def test_sets_that_cannot_be_compared(a, options, error, words):
    for measure in (fid, kid):
        with pytest.raises(error, match=words):
            measure(a, images(1), **options)
