"""Two sets as users have them: sizes, colours, arrays and places, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastlatent import evaluate, sample
from fastlatent.data import DataConfig, Dataset, load
from fastlatent.metrics import Estimate, FeatureStatistics, Scores, frechet_from_features
from fastlatent.metrics.features import extract, read_npz, to_uint8
from fastlatent.runs.evaluation import given, two_sets
from fastlatent.runs.evaluation.extractors import Extractor

DIGITS = ("--data", "digits")


def pooled(images: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DataConfig, Dataset]]:
    """What classifiers were trained on. Their features are means of pixels; one metric is taken."""
    trained: list[tuple[DataConfig, Dataset]] = []

    def classifier_of(config: DataConfig, data: Dataset, device: torch.device) -> Extractor:
        trained.append((config, data))

        def features(images: Tensor) -> Tensor:
            assert images.shape[1:] == data.train.shape
            return pooled(images)

        return Extractor(features, "classifier", f"classifier of {config.short}")

    def distance_alone(real: Tensor, fake: Tensor, *_: object, **__: object) -> Scores:
        distance = float(frechet_from_features(real, fake))
        return Scores({"frechet_distance": Estimate(distance, 0)}, None, [])

    monkeypatch.setattr(two_sets, "classifier_of", classifier_of)
    monkeypatch.setattr(given, "score", distance_alone)
    return trained


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def digits(n: int, size: int = 28, split: str = "test") -> np.ndarray:  # (n, size, size)
    data = load(DataConfig("digits", size=None if size == 28 else size))
    return getattr(data, split).images(torch.arange(n))[:, 0].numpy()


def folder_of(place: Path, images: np.ndarray, mode: str = "L") -> Path:
    place.mkdir(parents=True)
    for k, pixels in enumerate(images):
        Image.fromarray(pixels).convert(mode).save(place / f"{k:03}.png")
    return place


def measured(*arguments: object) -> dict[str, Any]:
    assert evaluate.main([str(word) for word in arguments]) == 0
    return json.loads(Path("found/evaluation.json").read_text())


def distance(real: np.ndarray, fake: np.ndarray) -> float:
    features = (pooled(torch.from_numpy(images)[:, None] / 255) for images in (real, fake))
    return float(frechet_from_features(*features))


def test_the_classifier_learns_images_as_large_as_those_it_is_to_see(
    tmp_path: Path, learnt, capsys
) -> None:
    real, fake = digits(20, 32), digits(20, 32, "train")
    sets = ("--real", folder_of(tmp_path / "a", real), "--fake", folder_of(tmp_path / "b", fake))
    found = measured(*sets, *DIGITS, "--folder", "found")
    ((config, data),) = learnt
    assert (config.size, data.train.shape) == (32, (1, 32, 32))
    value = found["sets"]["b"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(distance(real, fake), rel=1e-4)
    said = capsys.readouterr().out
    assert "the classifier learns digits at 32x32, the size of the images" in said
    counts = {row.split("  ")[1]: row.split()[-1] for row in said.splitlines() if "images " in row}
    assert counts["real images"] == counts["images"] == "20"
    assert "the classifier learns" not in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_grey_digits_in_other_modes_are_compared_as_grey(tmp_path: Path, learnt, mode) -> None:
    real, fake = digits(20), digits(20, split="train")
    sets = (folder_of(tmp_path / "a", real, mode), folder_of(tmp_path / "b", fake))
    found = measured("--real", sets[0], "--fake", sets[1], *DIGITS, "--folder", "found")
    value = found["sets"]["b"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(distance(real, fake), rel=1e-4)
    assert learnt[0][0].size is None


def test_images_of_several_sizes_are_resized_where_that_is_asked_for(
    tmp_path: Path, learnt, capsys
) -> None:
    real, fake = digits(20), digits(20, 40, "train")
    sets = ("--real", folder_of(tmp_path / "a", real), "--fake", folder_of(tmp_path / "b", fake))
    assert evaluate.main([*map(str, sets), *DIGITS]) == 2
    said = capsys.readouterr().err
    assert "/a of 28x28 and " in said and "/b of 40x40; give a --size to bring all to" in said
    assert not learnt
    found = measured(*sets, *DIGITS, "--size", "28", "--folder", "found")
    assert "/b: images of 40x40 are resized to 28x28, bicubic" in capsys.readouterr().out
    features = [
        extract(tmp_path / name, pooled, size=28, transform=to_uint8).all() for name in "ab"
    ]
    value = found["sets"]["b"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(float(frechet_from_features(*features)), rel=1e-4)


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (np.zeros((4, 20, 28), np.uint8), (), "takes square images, or such of 28x28; those of"),
        (np.zeros((4, 28, 28, 3), np.uint8) + np.arange(3, dtype=np.uint8), (), "000.png is a col"),
        (digits(4), ("--channels", "3"), "--channels must be 1, as images of digits have; got 3"),
        (digits(1), (), "must give at least 2 images or features; got 1"),
    ],
)
def test_what_a_classifier_cannot_see_is_said_before_it_is_trained(
    tmp_path: Path, learnt, capsys, images, options, sentence
) -> None:
    place = str(folder_of(tmp_path / "a", images, "L" if images.ndim == 3 else "RGB"))
    assert evaluate.main(["--real", place, "--fake", place, *DIGITS, *options]) in (1, 2)
    assert sentence in capsys.readouterr().err
    assert not learnt


def test_arrays_named_by_key_and_layouts_of_others(tmp_path: Path, learnt, capsys) -> None:
    real, fake = digits(20), digits(20, split="train")
    colours = np.repeat(real[..., None], 3, 3)
    np.savez(tmp_path / "a.npz", mine=colours, x=fake)
    np.savez(tmp_path / "b.npz", theirs=fake.astype(">f4") / 255, y=np.arange(20))
    sets = ("--real", tmp_path / "a.npz", "--fake", tmp_path / "b.npz", *DIGITS)
    found = measured(*sets, "--key", "mine", "theirs", "--folder", "found")
    value = found["sets"]["b.npz"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(distance(real, fake), rel=1e-4)
    assert evaluate.main([*map(str, sets), "--key", "mine"]) == 1
    assert "b.npz has no array mine; it holds theirs, y" in capsys.readouterr().err


def test_references_of_guided_diffusion(tmp_path: Path, learnt, capsys) -> None:
    real, fake = (np.repeat(digits(20, split=name)[..., None], 3, 3) for name in ("test", "train"))
    features = np.random.default_rng(0).normal(size=(30, 5))
    moments = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "reference.npz", arr_0=real, **moments, **spatial)
    np.savez(tmp_path / "samples.npz", arr_0=fake, arr_1=np.arange(20))
    sets = ("--real", tmp_path / "reference.npz", "--fake", tmp_path / "samples.npz")
    found = measured(*sets, *DIGITS, "--folder", "found")
    assert "reference.npz: arr_0 is read, and not mu and sigma" in capsys.readouterr().out
    value = found["sets"]["samples.npz"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(distance(real[..., 0], fake[..., 0]), rel=1e-4)
    assert found["features"]["reference_images"] == 20
    assert torch.equal(
        read_npz(tmp_path / "reference.npz"), torch.from_numpy(real).permute(0, 3, 1, 2)
    )
    by_key = read_npz(tmp_path / "reference.npz", "mu")
    assert isinstance(by_key, FeatureStatistics)
    assert torch.equal(by_key.mu, torch.from_numpy(moments["mu"]))
    # Next to features its moments are what can be compared.
    np.savez(tmp_path / "features.npz", features=features + 1)
    sets = ("--real", tmp_path / "reference.npz", "--fake", tmp_path / "features.npz")
    found = measured(*sets, "--folder", "found")
    assert found["sets"]["features.npz"]["metrics"]["frechet_distance"]["value"] == pytest.approx(5)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, np.float16])
def test_floats_of_any_width_and_byte_order(tmp_path: Path, dtype) -> None:
    rows = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "a.npz", features=rows.astype(dtype))
    assert read_npz(tmp_path / "a.npz").double().tolist() == rows.tolist()
    images = np.arange(12).reshape(3, 2, 2) / 16
    np.savez(tmp_path / "b.npz", x=images.astype(dtype))
    assert read_npz(tmp_path / "b.npz")[:, 0].double().tolist() == images.tolist()
    expected = load(DataConfig(name=f"npz:{tmp_path}/b.npz")).train.images(torch.arange(2))
    assert expected[:, 0].tolist() == (images[1:] * 255).round().tolist()
    np.savez(tmp_path / "c.npz", mu=rows[0].astype(dtype), sigma=np.eye(3).astype(dtype))
    found = read_npz(tmp_path / "c.npz")
    assert found.mu.tolist() == rows[0].tolist() and found.sigma.tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("dtype", [np.int64, ">i4", np.uint16, complex, "U3"])
def test_arrays_that_are_no_images_end_in_a_sentence(tmp_path: Path, learnt, capsys, dtype) -> None:
    np.savez(tmp_path / "a.npz", x=digits(4).astype(dtype))
    sets = ["--real", str(tmp_path / "a.npz"), "--fake", str(tmp_path / "a.npz")]
    assert evaluate.main([*sets, *DIGITS]) == 1
    said = capsys.readouterr().err
    assert "a.npz: x must be uint8, bool or float in [0, 1]; got" in said
    assert len(said.splitlines()) == 1


def test_bits_in_bytes_are_black_and_white(tmp_path: Path, learnt, capsys) -> None:
    bits = (digits(20) > 127).astype(np.uint8)
    np.savez(tmp_path / "bits.npz", x=bits)
    np.savez(tmp_path / "bools.npz", x=bits.astype(bool))
    sets = ("--real", tmp_path / "bits.npz", "--fake", tmp_path / "bools.npz", *DIGITS)
    found = measured(*sets, "--folder", "found")
    value = found["sets"]["bools.npz"]["metrics"]["frechet_distance"]["value"]
    assert value == pytest.approx(0, abs=1e-9)
    assert (
        "bits.npz: x: uint8 of 0 and 1 alone is taken as black and white" in capsys.readouterr().out
    )


def test_sets_of_one_name_have_folders_of_their_own(tmp_path: Path, learnt) -> None:
    for k, name in enumerate("ab"):
        folder_of(tmp_path / name / "samples", digits(20)[k:])
    real = folder_of(tmp_path / "real", digits(20))

    def evaluated(name: str, *options: str) -> None:
        sets = ["--real", str(real), "--fake", str(tmp_path / name / "samples")]
        assert evaluate.main([*sets, *DIGITS, *options]) == 0

    def stored(place: str) -> str:
        return Path(json.loads(Path(place, "evaluation.json").read_text())["fake"]).parent.name

    evaluated("a")
    evaluated("b")
    evaluated("a")
    evaluated("b", "--seed", "3")
    assert sorted(path.name for path in Path().glob("evaluation-*")) == [
        "evaluation-samples",
        "evaluation-samples-2",
    ]
    assert (stored("evaluation-samples"), stored("evaluation-samples-2")) == ("a", "b")
    assert json.loads(Path("evaluation-samples-2/evaluation.json").read_text())["seed"] == 3


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path, learnt, capsys) -> None:
    real = folder_of(tmp_path / "real", digits(20))
    (real / "labels.csv").write_text("")
    Image.fromarray(digits(1)[0]).save(real / "020.gif")
    found = measured("--real", real, "--fake", real, *DIGITS, "--folder", "found")
    assert found["features"]["reference_images"] == 21
    assert f"left out of {real}: other files (1: .csv 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("run", "--size", "28"), "--size goes with --real and --fake; a run knows its own"),
        (("run", "--key", "x"), "--key goes with two sets of images, or with a reference"),
        (
            ("run", "--background", "black"),
            "--background goes with two sets of images, or",
        ),
        (
            ("--real", "a", "--fake", "b", "--size", "0"),
            "--size must be a side, or height and width",
        ),
        (
            ("--real", "a", "--fake", "b", "--key", "x", "y", "z"),
            "--key names one array, or one for",
        ),
        (
            ("--real", "a", "--fake", "b", "--background", "blue"),
            "--background must be white, black",
        ),
    ],
)
def test_options_that_do_not_go_together(options, sentence, capsys) -> None:
    assert evaluate.main(list(options)) == 2
    assert sentence in capsys.readouterr().err


# Folders of single images


def test_single_images_take_the_place_of_earlier_ones(tmp_path: Path, capsys) -> None:
    place = tmp_path / "real"
    (place / "kept").mkdir(parents=True)
    (place / "labels.csv").write_text("")
    for n in (40, 20):
        assert sample.main(["digits", "--images", str(n), "--folder", str(place)]) == 0
        pictures = sorted(path.name for path in place.glob("*.png"))
        assert pictures == [f"{k:06}.png" for k in range(n)]
    assert "in place of 40 of an earlier call" in capsys.readouterr().out
    assert sorted(path.name for path in place.iterdir() if path.suffix != ".png") == [
        "kept",
        "labels.csv",
    ]


@pytest.mark.parametrize("name", ["000007.png", "a.jpg", "000000.png"])
def test_images_of_others_are_neither_removed_nor_joined(tmp_path: Path, name, capsys) -> None:
    place = tmp_path / "real"
    place.mkdir()
    Image.fromarray(digits(1)[0]).save(place / name)
    before = (place / name).read_bytes()
    assert sample.main(["digits", "--images", "10", "--folder", str(place)]) == 1
    assert (
        f"holds images that are not of fastlatent sample, such as {name}; give --folder another"
        in (capsys.readouterr().err)
    )
    assert [path.name for path in place.iterdir()] == [name]
    assert (place / name).read_bytes() == before
