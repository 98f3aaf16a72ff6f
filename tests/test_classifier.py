"""The classifier of a data set's own training images, whose features take the place of FID's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_images import pictures
from safetensors import safe_open
from torch import Tensor

from fastlatent.data import DataConfig, load
from fastlatent.metrics.features import (
    Classifier,
    distance_name,
    extract,
    stored_classifier,
    to_unit,
    train_classifier,
)
from fastlatent.noise import generator

Pair = tuple[Tensor, Tensor]


def pair(split, count: int | None = None) -> Pair:
    rows = torch.arange(len(split) if count is None else count)
    return split.images(rows).to(torch.uint8), split.labels[rows]


@pytest.fixture(scope="module")
def digits() -> tuple[Pair, Pair]:
    data = load(DataConfig(name="digits"))
    return pair(data.train), pair(data.test)


@pytest.fixture(scope="module")
def classifier(digits: tuple[Pair, Pair]) -> Classifier:
    return train_classifier(*digits, 10, (1, 28, 28), dataset="digits", seed=1)


def test_the_classifier_reads_digits(classifier: Classifier, digits: tuple[Pair, Pair]) -> None:
    assert classifier.accuracy > 0.97
    assert distance_name(classifier) == "FD(classifier)"
    images, labels = digits[1]
    found = classifier.logits(images).argmax(1) == labels
    assert classifier.accuracy == pytest.approx(found.double().mean().item())
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    features = classifier.features(images)
    assert features.shape == (len(images), 128)
    torch.testing.assert_close(features, classifier.features(to_unit(images)))
    torch.testing.assert_close(extract(images, classifier, batch=100).all(), features)
    assert torch.linalg.matrix_rank(features.double().T.cov()) > 64


def test_its_features_tell_noise_from_digits(
    classifier: Classifier, digits: tuple[Pair, Pair]
) -> None:
    """The mean feature of other digits is nearer than that of the same digits under noise."""
    (train, _), (test, _) = digits
    make = torch.Generator().manual_seed(0)
    near = (classifier(train).mean(0) - classifier(test).mean(0)).square().sum()
    for strength in (0.1, 0.3):
        noise = strength * torch.randn(test.shape, generator=make)
        shifted = classifier((to_unit(test) + noise).clamp(0, 1)).mean(0)
        distance = (classifier(train).mean(0) - shifted).square().sum()
        assert distance > 2 * near
        near = distance


def test_training_repeats_by_its_seed(digits: tuple[Pair, Pair]) -> None:
    before = torch.get_rng_state()
    few = tuple((images[:300], labels[:300]) for images, labels in digits)
    with torch.no_grad():
        first, again, other = (
            train_classifier(*few, 10, (1, 28, 28), seed=seed, epochs=2) for seed in (1, 1, 2)
        )
    assert torch.equal(before, torch.get_rng_state())
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    assert first.accuracy == again.accuracy


def test_batches_and_tensors_train_alike(digits: tuple[Pair, Pair]) -> None:
    """A function of the epoch is asked once for each; its order is its own."""
    images, labels = digits[0][0][:256], digits[0][1][:256]
    asked, heard = [], []

    def batches(epoch: int) -> Iterator[Pair]:
        asked.append(epoch)
        make = generator(7, epoch, "classifier")
        for rows in torch.randperm(256, generator=make).split(128):
            yield images[rows], labels[rows]

    options = {"seed": 7, "epochs": 3, "progress": lambda *told: heard.append(told)}
    theirs = train_classifier(batches, (images, labels), 10, (1, 28, 28), **options)
    assert set(asked) == {0, 1, 2}
    assert [told[:2] for told in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[2][2] < heard[0][2]
    ours = train_classifier((images, labels), (images, labels), 10, (1, 28, 28), seed=7, epochs=3)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    split = load(DataConfig(name="digits")).test
    trained = train_classifier(
        lambda _: split.batches(100, "cpu"), digits[1], 10, (1, 28, 28), epochs=1
    )
    assert 0 < trained.accuracy <= 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48), (1, 128, 128)])
def test_any_size_and_colour(shape: tuple[int, int, int]) -> None:
    """Two classes that differ in where they are bright."""
    make = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (160,), generator=make)
    images = torch.rand(160, *shape, generator=make) * 0.5
    images[labels == 1, :, : shape[1] // 2] += 0.5
    model = train_classifier(
        (images[:128], labels[:128]), (images[128:], labels[128:]), 2, shape, batch=32, epochs=10
    )
    assert model.accuracy > 0.9
    assert model.features(images[:5]).shape == (5, 128)


def test_attributes_in_place_of_classes() -> None:
    make = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (320, 2), generator=make, dtype=torch.uint8)
    images = torch.rand(320, 1, 28, 28, generator=make) * 0.4
    images[:, 0, :14] += 0.3 * labels[:, 0, None, None]
    images[:, 0, 14:] += 0.3 * labels[:, 1, None, None]
    halves = ((images[:256], labels[:256]), (images[256:], labels[256:]))
    model = train_classifier(*halves, 2, (1, 28, 28), batch=32, epochs=6)
    assert model.description.labels == "attributes"
    found = (model.logits(images[256:]) > 0) == labels[256:].bool()
    assert model.accuracy == pytest.approx(found.double().mean().item()) and model.accuracy > 0.9


def test_stored_and_read_again(
    classifier: Classifier, digits: tuple[Pair, Pair], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "c.safetensors"
    classifier.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]
    again = Classifier.load(path)
    assert again.accuracy == classifier.accuracy and again.description == classifier.description
    assert torch.equal(again(digits[1][0]), classifier(digits[1][0]))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["classifier"])
    assert about["description"]["dataset"] == "digits"


def test_a_failed_write_leaves_the_old_file(
    classifier: Classifier, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        classifier.save(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_the_cache_tells_what_it_was_trained_on(
    digits: tuple[Pair, Pair], tmp_path: Path, monkeypatch
) -> None:
    few = tuple((images[:64], labels[:64]) for images, labels in digits)

    def get(dataset: str = "digits", seed: int = 0, classes: int = 10) -> Classifier:
        return stored_classifier(tmp_path, *few, classes, (1, 28, 28), dataset=dataset, seed=seed)

    first = get()
    assert len(list(tmp_path.iterdir())) == 1
    again = get()
    assert torch.equal(again.head.weight, first.head.weight)
    get("digits of three classes"), get(seed=1), get(classes=11)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr("fastlatent.metrics.features.classifier.train_classifier", None)
    assert torch.equal(get().head.weight, first.head.weight)
    path = first.description.path(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path} is damaged or not a classifier .*delete it to"):
        get()


def test_files_that_are_no_classifier(classifier: Classifier, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Classifier.load(tmp_path / "none")
    classifier.save(tmp_path / "c")
    monkeypatch.setattr("fastlatent.metrics.features.classifier.VERSION", 2)
    with pytest.raises(ValueError, match="it is of version 1, not 2"):
        Classifier.load(tmp_path / "c")


def test_training_says_what_is_wrong() -> None:
    images, labels = pictures(4, 1, 28, 28), torch.arange(4)

    def fit(train, test=None, classes: int = 4, shape=(1, 28, 28), **options: object) -> Classifier:
        good = (images, labels)
        return train_classifier(train, test or good, classes, shape, epochs=1, **options)

    with pytest.raises(ValueError, match="images must have labels; got none"):
        fit((images, None))
    with pytest.raises(ValueError, match="images of train have no labels; a classifier needs them"):
        fit(lambda _: [(images, None)])
    with pytest.raises(ValueError, match="each image must have a label; got 4 and 3"):
        fit((images, labels[:3]))
    with pytest.raises(ValueError, match=r"labels of train .* classes from 0 to 2 .* from 0 to 3"):
        fit((images, labels), classes=3)
    with pytest.raises(ValueError, match="labels of test must be whole numbers"):
        fit((images, labels), (images, labels.float()))
    with pytest.raises(
        ValueError, match=r"2 attributes of 0 and 1; got torch.int64 of shape \(4, 3"
    ):
        fit((images, torch.zeros(4, 3, dtype=torch.int64)), classes=2)
    with pytest.raises(ValueError, match="train holds no images"):
        fit(lambda _: [])
    with pytest.raises(ValueError, match="test holds no images"):
        fit((images, labels), lambda _: [])
    with pytest.raises(TypeError, match=r"a batch of train must be .* got int"):
        fit(lambda _: [3])
    with pytest.raises(ValueError, match=r"images must be \(1, 28, 28\), .* got \(1, 32, 32\)"):
        fit((pictures(4, 1, 32, 32), labels))
    with pytest.raises(ValueError, match="batch must be at least 1; got 0"):
        fit((images, labels), batch=0)
    for shape in ((2, 28, 28), (1, 4, 28)):
        with pytest.raises(ValueError, match="image_shape must be 1 or 3 channels and sides of at"):
            fit((images, labels), shape=shape)
    with pytest.raises(ValueError, match="1 classes or attributes are too few"):
        fit((images, torch.zeros(4, dtype=torch.int64)), classes=1)


@pytest.mark.slow  # about a minute
def test_the_classifier_reads_mnist(data_root: Path) -> None:
    data = load(DataConfig(name="mnist", root=str(data_root)))
    model = train_classifier(pair(data.train), pair(data.test), 10, (1, 28, 28))
    assert model.accuracy > 0.985
