"""The evaluation of a run by features of its images, and of two sets of images."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastlatent import evaluate, train
from fastlatent.commands.trained import Trained
from fastlatent.data import DataConfig, load
from fastlatent.inference.gallery import pick_pairs
from fastlatent.inference.latents import draw
from fastlatent.inference.passes import measure_reconstructions
from fastlatent.metrics import (
    Estimate,
    FeatureStatistics,
    Neighbourhoods,
    frechet_from_features,
    frechet_standard_error,
    kernel_distance,
    moment_error,
    prd_curve,
    prd_f_beta,
    score,
)
from fastlatent.metrics.features import jpeg_round_trip, to_uint8
from fastlatent.noise import generator
from fastlatent.runs import Run
from fastlatent.runs.evaluation import extractors
from fastlatent.runs.evaluation.sets import features_of, made_by_model, real_images

TINY = ("--model.width", "0.05", "--model.dim", "16", "--batch", "32")
TWO = ("--data.classes", "0", "1", "--epochs", "28", "--lr", "0.01")  # digits
METRICS = {
    *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
    *("prd_f8", "prd_f1/8"),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bits"
    assert train.main([*TINY, *TWO, "--out", str(folder)]) == 0
    return folder


def pixels(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


def test_a_run_next_to_the_test_images(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([str(run)]) == 0
    said = capsys.readouterr().out
    stored = json.loads((run / "evaluation.json").read_text())
    data = load(Run.open(run).config.data)
    assert set(stored["sets"]) == {"copula", "random", "reconstruction", "interpolation"}
    for name, found in stored["sets"].items():
        assert found["images"] == len(data.test), name
        assert set(found["metrics"]) == METRICS
        for value in found["metrics"].values():
            assert np.isfinite(value["value"]) and value["error"] >= 0
    assert stored["features"]["short"] == "classifier"
    assert "FD(classifier)" in said and "FID" not in said
    assert said.count("kernel distance of one subset") == 1  # of all sets
    assert stored["features"]["reference"] == f"{len(data.test)} test images of digits"
    assert "right on 100.0% of its test images" in said or "right on 9" in said
    assert np.asarray(Image.open(run / "images/prd.png")).std() > 10
    pixel_error = stored["values"]["pixel_error"]
    assert 0 < pixel_error["standard_error"] < pixel_error["mean"] < 0.25


def test_lines_of_results_add_up(run: Path, tmp_path: Path) -> None:
    results = tmp_path / "all.jsonl"
    options = ("--features", "none", "--images", "5", "--results", str(results))
    for _ in range(2):
        assert evaluate.main([str(run), *options]) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["run"] for line in lines] == [str(run)] * 2
    assert lines[0]["values"] == lines[1]["values"]


def test_comparisons_outlive_an_evaluation_without_them(run: Path) -> None:
    def evaluated(*options: str) -> dict[str, object]:
        assert evaluate.main([str(run), *options]) == 0
        return json.loads((run / "evaluation.json").read_text())

    compared = evaluated("--images", "12")
    assert evaluated("--images", "12", "--features", "none") == compared
    assert "sets" not in evaluated("--images", "11", "--features", "none")
    (run / "evaluation.json").write_text("[]")
    assert "sets" not in evaluated("--images", "12", "--features", "none")


def measured_by_hand(real: Tensor, fake: Tensor, seed: int, paired: bool) -> dict[str, Estimate]:
    near = Neighbourhoods(real, fake, (3, 5), paired=paired)
    prd = prd_f_beta(prd_curve(real, fake, seed=seed, paired=paired))
    distance = float(frechet_from_features(real, fake))
    error = float(frechet_standard_error(real, fake, paired=paired))
    kernel = kernel_distance(real, fake, None, paired=paired)
    return {
        "frechet_distance": Estimate(distance, error),
        "kernel_distance": Estimate(kernel.value, kernel.error),
        **near.precision_recall(3)._asdict(),
        **near.density_coverage(5)._asdict(),
        "prd_f8": prd.recall,
        "prd_f1/8": prd.precision,
    }


@pytest.mark.parametrize("jpeg", [False, True])
def test_the_numbers_are_those_of_the_metrics(run: Path, jpeg: bool) -> None:
    """Each set, made here and measured by one metric after the other."""
    n = 40
    assert evaluate.main([str(run), "--images", str(n), *["--jpeg"] * jpeg]) == 0
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["jpeg"] == jpeg
    trained = Trained(evaluate.Options(run))
    model, data, seed = trained.model, trained.data, trained.seed
    features = extractors.classifier_of(trained.config.data, data, CPU).features
    images = data.test.images(data.test.spread(n)) / 255

    def seen(made: Tensor) -> Tensor:
        return features(jpeg_round_trip(made) if jpeg else to_uint8(made))

    codes = {
        method: draw(
            model, method, n, generator(seed, 0, f"samples/{method}"), trained.copula("clip")
        )
        for method in ("copula", "random")
    }
    with torch.no_grad():
        made = {method: model.decode(drawn) for method, drawn in codes.items()}
        made["reconstruction"] = model.reconstruct(images)
    for name, fake in made.items():
        metrics = stored["sets"][name]["metrics"]
        want = measured_by_hand(seen(images), seen(fake), seed, name == "reconstruction")
        assert metrics.keys() == want.keys()
        for metric, found in metrics.items():
            error = math.nan if found["error"] is None else found["error"]
            close = pytest.approx(tuple(want[metric]), rel=1e-4, abs=1e-6, nan_ok=True)
            assert (found["value"], error) == close, (name, metric)
    bare = float(frechet_from_features(features(to_uint8(images)), features(to_uint8(fake))))
    distance = metrics["frechet_distance"]["value"]
    assert (distance == pytest.approx(bare, rel=1e-3)) != jpeg


def sets_and_codes(trained: Trained, n: int, monkeypatch) -> dict[str, tuple[Tensor, Tensor]]:
    """The images of each set, and the latents that they were decoded from."""
    model, data = trained.model, trained.data
    decode, noted = model.decode, []

    def noting(latents: Tensor) -> Tensor:
        noted.append(latents)
        return decode(latents)

    monkeypatch.setattr(model, "decode", noting)
    found = {}
    latents = measure_reconstructions(model, data.test, 7, 0, n).latents
    for images in made_by_model(model, data.train, latents, n, 7, 0, trained.copula("clip")):
        noted.clear()
        parts = [part for _, part in images.made()]
        found[images.name] = torch.cat(parts), torch.cat(noted)
    monkeypatch.undo()
    return found


def test_sets_are_of_the_images_they_say(run: Path, monkeypatch) -> None:
    trained = Trained(evaluate.Options(run))
    model, data, n = trained.model, trained.data, 33
    sets = sets_and_codes(trained, n, monkeypatch)
    assert list(sets) == ["copula", "random", "reconstruction", "interpolation"]
    with torch.no_grad():
        for images, codes in sets.values():
            torch.testing.assert_close(images, model.decode(codes))
            assert images.shape == (n, *data.test.shape)
        want = model.reconstruct(data.test.images(data.test.spread(n)) / 255)
        torch.testing.assert_close(sets["reconstruction"][0], want)
        pairs = pick_pairs(len(data.train), n, 0)
        start, end = (model.encode(data.train.images(index) / 255) for index in pairs)
    codes = sets["interpolation"][1]
    apart = (start != end).sum(1)
    from_start, to_end = ((codes != ends).sum(1) for ends in (start, end))
    inside = (from_start > 0) & (to_end > 0)
    assert (from_start + to_end == apart).double().mean() > 0.8  # all but where no arc fits the end
    assert inside[apart >= 4].double().mean() > 0.5
    assert len(torch.unique(from_start)) > 2


def test_samples_have_the_moments_that_their_names_say(run: Path, monkeypatch) -> None:
    trained = Trained(evaluate.Options(run))
    n = 1000
    sets = sets_and_codes(trained, n, monkeypatch)
    counts = trained.codes
    learned = counts.agree.double() / counts.count
    even = torch.full_like(learned, 0.5)
    errors = {}
    for name in ("copula", "random"):
        codes = sets[name][1].double()
        agreement = (1 + codes.mT @ codes / n) / 2
        errors[name] = [moment_error(agreement, law).rms for law in (learned, even)]
    noise = 1 / n**0.5
    assert errors["random"][1] < 1.2 * noise < 3 * noise < errors["random"][0]
    assert errors["copula"][0] < 3 * noise < errors["copula"][1]


def test_features_are_of_the_images_as_stored(run: Path) -> None:
    data = load(Run.open(run).config.data)
    real = real_images(data.test, 33, 7, CPU)
    want = pixels(data.test.images(data.test.spread(33)) / 255)
    found = features_of(real, pixels, 7, to_uint8)
    torch.testing.assert_close(found, want)
    assert torch.equal(features_of(real, pixels, 7, to_uint8), found)
    stored = features_of(real, pixels, 7, jpeg_round_trip)
    assert not torch.equal(stored, want)
    torch.testing.assert_close(stored, want, rtol=0, atol=4 / 255)


def test_the_classifier_is_trained_once(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([str(run), "--images", "10"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(run), "--images", "10"]) == 0
    assert "for its features: epoch" not in capsys.readouterr().out


def on_two_ranks(*arguments: str) -> list[str]:
    """What each of two processes says that evaluate with these arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without torchrun, which takes as long to start as a rank.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for sums of the same order as here
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "fastlatent.evaluate", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    said = []
    try:
        for process in ranks:
            out, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, complaint
            said.append(out)
    finally:
        for process in ranks:
            process.kill()
    return said


@pytest.mark.processes
def test_two_processes_measure_as_one(run: Path, tmp_path: Path, monkeypatch) -> None:
    """Each with a share of the images; one of them alone trains the classifier."""
    monkeypatch.setenv("FASTLATENT_CACHE", str(tmp_path))
    options = ("--images", "25", "--batch", "4")
    said = on_two_ranks(str(run), *options)
    assert said[0].count("FD(classifier)") == said[0].count("epoch 20 of 20") == 1
    assert not said[1]
    two = json.loads((run / "evaluation.json").read_text())
    assert evaluate.main([str(run), *options]) == 0
    one = json.loads((run / "evaluation.json").read_text())
    assert_as_measured(two, one)


@pytest.mark.processes
def test_two_processes_with_another_reference_measure_as_one(run: Path, tmp_path: Path) -> None:
    data = load(Run.open(run).config.data)
    np.savez(tmp_path / "images.npz", images=data.train.images(torch.arange(30)).numpy())
    reference = ("--reference", str(tmp_path / "images.npz"))
    options = ("--images", "25", "--batch", "4", *reference)
    assert evaluate.main([str(run), *options]) == 0
    one = json.loads((run / "evaluation.json").read_text())
    on_two_ranks(str(run), *options)
    assert_as_measured(json.loads((run / "evaluation.json").read_text()), one)


def assert_as_measured(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["features"] == one["features"]
    for name, value in one["values"].items():
        assert two["values"][name]["mean"] == pytest.approx(value["mean"], rel=1e-5), name
    for name, found in one["sets"].items():
        for metric, value in found["metrics"].items():
            where = name, metric
            other = two["sets"][name]["metrics"][metric]
            assert other["value"] == pytest.approx(value["value"], rel=1e-5, abs=1e-6), where
            assert other["error"] == pytest.approx(value["error"], rel=1e-5, abs=1e-6), where


@pytest.mark.processes
def test_two_sets_are_compared_by_the_first_of_two_processes(tmp_path: Path) -> None:
    data = load(DataConfig("digits"))
    for name, split in (("real", data.test), ("fake", data.train)):
        np.savez(tmp_path / f"{name}.npz", images=split.images(torch.arange(12)).numpy())
    sets = ("--real", str(tmp_path / "real.npz"), "--fake", str(tmp_path / "fake.npz"))
    features = ("--features", "classifier", "--data", "digits", "--folder", str(tmp_path))
    said = on_two_ranks(*sets, *features)
    assert said[0].count("FD(classifier)") == 1
    assert not said[1]
    assert len((tmp_path.parent / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_surfaces_of_balls_count_as_asked(tmp_path: Path, closed: bool) -> None:
    """Features on a grid, with many equal distances."""
    rows = np.random.default_rng(0).integers(0, 4, size=(2, 60, 2)).astype(np.float32)
    for name, features in zip(("real", "fake"), rows, strict=True):
        np.savez(tmp_path / f"{name}.npz", features=features)
    sets = ("--real", str(tmp_path / "real.npz"), "--fake", str(tmp_path / "fake.npz"))
    folder = tmp_path / "compared"
    assert evaluate.main([*sets, "--folder", str(folder), *["--closed-balls"] * closed]) == 0
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["closed_balls"] == closed
    real, fake = map(torch.from_numpy, rows)
    near, other = (Neighbourhoods(real, fake, (3, 5), closed=c) for c in (closed, not closed))
    numbers = stored["sets"]["fake.npz"]["metrics"]
    expected = near.precision_recall(3)._asdict() | near.density_coverage(5)._asdict()
    for name, number in expected.items():
        assert tuple(numbers[name].values()) == number, name
    assert numbers["precision"]["value"] != other.precision_recall(3).precision.value


def test_two_sets_of_features(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make = np.random.default_rng(0)
    x = make.normal(size=(60, 5))
    np.savez(tmp_path / "real.npz", features=x[:30])
    np.savez(tmp_path / "fake.npz", features=x[30:] + 3)
    sets = ("--real", str(tmp_path / "real.npz"), "--fake", str(tmp_path / "fake.npz"))
    results = tmp_path / "results.jsonl"
    folder = tmp_path / "compared"
    assert evaluate.main([*sets, "--results", str(results), "--folder", str(folder)]) == 0
    assert " FD " in capsys.readouterr().out
    (line,) = map(json.loads, results.read_text().splitlines())
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored == {name: value for name, value in line.items() if name != "time"}
    assert (stored["seed"], stored["jpeg"]) == (12345, False)
    assert stored["features"]["reference_images"] == 30
    metrics = score(torch.tensor(x[:30]), torch.tensor(x[30:] + 3)).metrics
    for name, number in metrics.items():
        assert tuple(stored["sets"]["fake.npz"]["metrics"][name].values()) == number, name
    assert stored["sets"]["fake.npz"]["kernel"] == {"subsets": 1, "subset_size": 30, "deviation": 0}
    with Image.open(folder / "prd.png") as picture:
        assert picture.width > 100
    assert evaluate.main([*sets, "--seed", "0", "--folder", str(folder)]) == 0
    assert json.loads((folder / "evaluation.json").read_text())["seed"] == 0


def test_two_folders_of_images(tmp_path: Path, capsys, monkeypatch) -> None:
    data = load(DataConfig("digits"))
    for name, split in (("real", data.test), ("fake", data.train)):
        (tmp_path / name).mkdir()
        for k, pixels in enumerate(split.images(torch.arange(12))):
            Image.fromarray(pixels[0].numpy()).save(tmp_path / name / f"{k}.png")
    sets = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "fake")]
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([*sets, "--features", "classifier", "--data", "digits"]) == 0
    assert "FD(classifier)" in capsys.readouterr().out
    stored = json.loads(Path("evaluation-fake/evaluation.json").read_text())
    assert stored["sets"]["fake"]["images"] == 12
    assert len(Path("results.jsonl").read_text().splitlines()) == 1
    assert evaluate.main(sets) == 2
    assert "holds images: name the network" in capsys.readouterr().err


def bad_sets(tmp_path: Path) -> None:
    make = np.random.default_rng(0)
    np.savez(tmp_path / "good.npz", features=make.normal(size=(10, 3)))
    np.savez(tmp_path / "one.npz", features=make.normal(size=(1, 3)))
    np.savez(tmp_path / "nan.npz", features=np.full((10, 3), np.nan))
    np.savez(tmp_path / "wide.npz", features=make.normal(size=(10, 4)))
    np.savez(tmp_path / "other.npz", something=np.zeros((10, 3)))
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 28, 28), np.uint8))
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/a.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("fake", "options", "sentence"),
    [
        ("one.npz", (), "one.npz must give at least 2 images or features; got 1"),
        ("nan.npz", (), "nan.npz, batch 0 has features that are NaN or infinite"),
        ("wide.npz", (), "fake must have as many features as real, 3; got 4"),
        ("other.npz", (), "other.npz holds something; expected mu and sigma, or one of"),
        ("none.npz", (), "there is no file"),
        ("words.txt", (), "words.txt is neither a folder of images nor an .npz file"),
        ("empty", ("--data", "digits"), "empty holds no image files"),
        ("damaged", ("--features", "classifier", "--data", "digits"), "a.png"),
        ("good.npz", ("--features", "classifier", "--data", "digits"), "holds features already"),
        ("good.npz", ("--jpeg",), "good.npz holds features already"),
        ("empty", (), "empty holds images: name the network"),
        ("empty", ("--features", "classifier"), "needs --data, the data set whose"),
        ("empty", ("--features", "dinov2"), "needs --feature-weights"),
        ("empty", ("--features", "inception", "--feature-weights", "none.pth"), "inception: "),
    ],
)
def test_bad_sets_are_named(fake, options, sentence, tmp_path, capsys) -> None:
    bad_sets(tmp_path)
    real = "images.npz" if "--features" in options or "--data" in options else "good.npz"
    arguments = ["--real", str(tmp_path / real), "--fake", str(tmp_path / fake)]
    assert evaluate.main([*arguments, *options]) in (1, 2)
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a run folder, or two sets by --real and --fake"),
        (["--real", "a"], "--real and --fake go together"),
        (["{run}", "--real", "a", "--fake", "b"], "name a run folder, or two sets"),
        (["{run}", "--data", "digits"], "--data goes with --real and --fake"),
        (["--real", "a", "--fake", "b", "--reference", "c"], "--reference goes with a run"),
        (["--real", "a", "--fake", "b", "--samples", "5"], "--samples goes with a run"),
        (["--real", "a", "--fake", "b", "--split", "train"], "--split goes with a run"),
        (["--real", "a", "--fake", "b", "--weights", "best"], "--weights goes with a run"),
        (["{run}", "--folder", "a"], "--folder goes with --real and --fake"),
        (["{run}", "--feature-weights", "a"], "--feature-weights goes with --features inception"),
        (["{run}", "--feature-name", "a"], "--feature-name goes with --features dinov2"),
    ],
)
def test_what_does_not_go_together(run: Path, arguments, sentence, capsys) -> None:
    assert evaluate.main([word.format(run=run) for word in arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_moments_have_a_frechet_distance_alone(tmp_path: Path, capsys) -> None:
    x, y = (torch.randn(9, 3, generator=torch.Generator().manual_seed(k)) for k in range(2))
    statistics = FeatureStatistics(3)
    statistics.update(x)
    statistics.save(tmp_path / "real.npz")
    np.savez(tmp_path / "fake.npz", features=y.numpy())
    sets = ["--real", str(tmp_path / "real.npz"), "--fake", str(tmp_path / "fake.npz")]
    assert evaluate.main([*sets, "--folder", str(tmp_path / "compared")]) == 0
    assert "from moments alone, which tell neither an error" in capsys.readouterr().out
    stored = json.loads((tmp_path / "compared/evaluation.json").read_text())
    assert stored["sets"]["fake.npz"]["metrics"] == {
        "frechet_distance": {
            "value": pytest.approx(float(frechet_from_features(x, y)), rel=1e-5),
            "error": None,
        }
    }
    assert not (tmp_path / "compared/prd.png").exists()


def test_another_reference(run: Path, tmp_path: Path) -> None:
    data = load(Run.open(run).config.data)
    np.savez(tmp_path / "images.npz", images=data.test.images(data.test.spread(15)).numpy())
    options = ("--images", "15", "--reference", str(tmp_path / "images.npz"))
    assert evaluate.main([str(run), "--images", "15"]) == 0
    own = json.loads((run / "evaluation.json").read_text())
    assert evaluate.main([str(run), *options]) == 0
    given = json.loads((run / "evaluation.json").read_text())
    assert given["features"]["reference"].endswith("images.npz")
    for name in own["sets"]:
        metrics = (found["sets"][name]["metrics"] for found in (own, given))
        values = [found["frechet_distance"]["value"] for found in metrics]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_run_without_labels(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "images"
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
        for k in range(8):
            noise = np.random.default_rng(k).integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{k}.png")
    out = tmp_path / "run"
    data = ("--data.name", f"folder:{folder}", "--epochs", "1", "--out", str(out))
    assert train.main([*TINY, *data, "--batch", "8"]) == 0
    assert evaluate.main([str(out)]) == 0
    assert "has no labels to learn features from: name --features" in capsys.readouterr().out
    assert "sets" not in json.loads((out / "evaluation.json").read_text())
