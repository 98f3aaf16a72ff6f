"""The commands of latent geometry, on tiny runs whose latents are real."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentences import assert_one_sentence
from small_runs import TINY

from fastlatent import geodesics, interpolate, plots, sample, train
from fastlatent.commands.experiments import geodesic_walks, pictures
from fastlatent.commands.experiments.shorter import pair_images, shorten
from fastlatent.commands.trained import Trained
from fastlatent.data import DataConfig, load
from fastlatent.geometry import as_metric, curve_length, pullback_metric, straight
from fastlatent.inference.latents import unit_images
from fastlatent.models.capabilities import geometric_decoder
from fastlatent.plots import drawn
from fastlatent.runs import Run
from fastlatent.training import showing

FAST = ("--spans", "1", "--points", "4")
FEATURES = ("{space}", "--method", "geodesic", "--feature")


def train_tiny(data: Path, out: Path, latents: int) -> Path:
    """A run on images of 8x8 pixels."""
    images = (
        "--data.name",
        f"npz:{data}",
        "--data.size",
        "8",
        "--model.image-shape",
        "1",
        "8",
        "8",
    )
    options = ("--model.dim", str(latents), "--steps", "4", "--batch", "8", "--device", "cpu")
    assert train.main(["vae-digits", *images, *options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("geometry")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (16, 8, 8), np.uint8),
        "test_x": rng.integers(0, 256, (24, 8, 8), np.uint8),
        "train_y": np.arange(16) % 3,
        "test_y": np.arange(24) % 3,
    }
    np.savez(folder / "noise.npz", **arrays)
    return folder / "noise.npz"


@pytest.fixture(scope="module")
def plane(data: Path, folder: Path) -> Path:
    """Two latents."""
    return train_tiny(data, folder / "plane", 2)


@pytest.fixture(scope="module")
def space(data: Path, folder: Path) -> Path:
    """Three latents."""
    return train_tiny(data, folder / "space", 3)


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bits") / "run"
    assert train.main([*TINY, "--steps", "1", "--out", str(out)]) == 0
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path)).astype(int)
    assert pixels.std() > 5
    return pixels


def test_monte_carlo(plane: Path, capsys: pytest.CaptureFixture) -> None:
    assert geodesics.main([str(plane), "--pairs", "5", "--step-size", "0.5", *FAST]) == 0
    said = capsys.readouterr().out
    rows = rows_of(plane / "geodesics.csv")
    stored = json.loads((plane / "geodesics.json").read_text())
    curves = np.load(plane / "geodesics.npz")
    assert len(rows) == 5 and [row["pair"] for row in rows] == list("12345")
    gains = np.array([float(row["improvement"]) for row in rows])
    summary = stored["improvement"]["measured"]
    assert summary["mean"] == pytest.approx(gains.mean(), rel=1e-6)
    assert summary["sd"] == pytest.approx(gains.std(ddof=1), rel=1e-6)
    assert (summary["count"], summary["least"], summary["most"]) == (5, gains.min(), gains.max())
    assert summary["low"] < summary["mean"] < summary["high"]
    assert f"{100 * summary['mean']:.2f} %" in said
    assert (stored["pairs"], stored["step_size"], stored["seed"]) == (5, 0.5, 12345)
    assert sum(stored["status"].values()) == 5
    assert stored["seconds_per_pair"] == pytest.approx(stored["seconds"] / 5)
    assert re.search(r"converged; [\d.]+ s, [\d.]+ s and [\d,]+ decoder evaluations a pair", said)

    # The rows are those of the decoder: ends a step apart along the largest eigenvector.
    decoder = geometric_decoder(Run.open(plane).model("last"))
    control = torch.from_numpy(curves["control"])
    start, end = control[:, 0], control[:, -1]
    torch.testing.assert_close((end - start).norm(dim=1), torch.full((5,), 0.5))
    values, vectors = torch.linalg.eigh(pullback_metric(decoder, start).double())
    along = ((end - start).double() * vectors[..., -1]).sum(1).abs()
    assert (along[values[:, 1] > 1.01 * values[:, 0]] > 0.499).all()
    assert (((end - start) * start).sum(1) < 0).all()
    for rule, column in (("chord", "length"), ("original", "original_length")):
        knots = torch.from_numpy(curves["knots"])
        found = curve_length(decoder, control, knots, rule, points=4).length
        expected = torch.tensor([float(row[column]) for row in rows])
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    history = curves["history"]  # of the straight lines, and after the only level
    assert history.shape == (2, 5) and (history[1] <= history[0]).all()
    lengths = [[float(row[name]) for row in rows] for name in ("straight_length", "length")]
    np.testing.assert_allclose(history, lengths, rtol=1e-6)
    for name in ("histogram", "pairs", "history", "sequences", "map"):
        picture(plane / f"images/geodesics-{name}.png")


def test_the_same_seed_gives_the_same_pairs(space: Path, tmp_path: Path) -> None:
    for name, options in (("a", ()), ("b", ("--chunk", "1")), ("c", ("--seed", "5"))):
        where = ("--folder", str(tmp_path / name), "--show", "0")
        assert geodesics.main([str(space), "--pairs", "3", *FAST, *where, *options]) == 0
    a, b, c = (np.load(tmp_path / name / "geodesics.npz")["control"] for name in "abc")
    np.testing.assert_array_equal(a[:, [0, -1]], b[:, [0, -1]])
    np.testing.assert_allclose(a, b, atol=2e-3)
    assert np.abs(a - c).min() > 0
    files = {path.name for path in (tmp_path / "a").iterdir()}
    # Three latents have no map.
    pictures = {f"geodesics-{name}.png" for name in ("histogram", "pairs", "history")}
    assert files == {"geodesics.csv", "geodesics.json", "geodesics.npz"} | pictures
    assert not (space / "geodesics.csv").exists()


@pytest.mark.parametrize("method", ["adam", "original"])
def test_other_methods(method: str, space: Path, tmp_path: Path) -> None:
    options = ("--solver", method, "--max-iterations", "5", "--ends", "prior")
    where = ("--folder", str(tmp_path))
    assert geodesics.main([str(space), "--pairs", "2", *FAST, *options, *where]) == 0
    stored = json.loads((tmp_path / "geodesics.json").read_text())
    assert (stored["method"], stored["ends"]) == (method, "prior")
    rows = rows_of(tmp_path / "geodesics.csv")
    assert "tied" not in rows[0]
    for row in rows:
        assert (
            float(row["length"]) <= float(row["straight_length"]) * (1 + 1e-6) or method != "adam"
        )


def test_pairs_of_images(plane: Path, tmp_path: Path) -> None:
    options = ("--ends", "images", "--per-class", "2", "--no-map", "--folder", str(tmp_path))
    assert geodesics.main([str(plane), "--pairs", "3", *FAST, *options]) == 0
    assert not (tmp_path / "geodesics-map.png").exists()
    trained = Trained(geodesics.Options(plane))
    index = pair_images(trained, 3, 2)
    assert sorted(index.flatten().tolist()) == [0, 1, 2, 3, 4, 5]  # two of each class, none twice
    control = torch.from_numpy(np.load(tmp_path / "geodesics.npz")["control"])
    rows = rows_of(tmp_path / "geodesics.csv")
    for end, images in zip(("first", "last"), index.tolist(), strict=True):
        assert [int(row[f"{end}_image"]) for row in rows] == images
        assert [int(row[f"{end}_label"]) for row in rows] == [k % 3 for k in images]
    with torch.no_grad():
        latents = trained.model.encode(unit_images(trained.split("test"), index.flatten(), "cpu"))
    torch.testing.assert_close(control[:, [0, -1]].transpose(0, 1).flatten(0, 1), latents)


def test_comparison_of_models_with_other_latents(
    plane: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ("--pairs", "4", *FAST, "--show", "2", "--folder", str(tmp_path))
    assert geodesics.main([str(plane), str(space), *options]) == 0
    said = capsys.readouterr().out
    rows = rows_of(tmp_path / "comparison.csv")
    used = [int(row[f"{end}_image"]) for row in rows for end in ("first", "last")]
    assert len(set(used)) == 8
    assert all(int(row["first_label"]) == int(row["first_image"]) % 3 for row in rows)
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert [model["latents"] for model in stored["models"]] == [2, 3]
    assert [model["run"] for model in stored["models"]] == ["plane", "space"]
    assert all(name in said for name in ("plane: 4 ", "space: 4 "))
    for number, run in enumerate((plane, space), 1):
        trained = Trained(geodesics.Options(run))
        control = torch.from_numpy(np.load(tmp_path / f"comparison-{number}.npz")["control"])
        for end, column in (("first", 0), ("last", -1)):
            index = torch.tensor([int(row[f"{end}_image"]) for row in rows])
            latents = trained.latents_of(trained.split("test"), index)
            torch.testing.assert_close(control[:, column], latents)
    gap = [abs(float(row["improvement_1"]) - float(row["improvement_2"])) for row in rows]
    least = {f"comparison-pair-{k + 1}.png" for k in np.argsort(gap, kind="stable")[:2]}
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"comparison-improvements.png", "comparison-ends.png", *least}
    for name in drawn:
        picture(tmp_path / name)


def test_a_threshold_may_leave_no_pair(plane: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plane, copy)
    options = ("--pairs", "2", *FAST, "--folder", str(tmp_path / "out"), "--threshold", "0")
    assert geodesics.main([str(plane), str(copy), *options]) == 0
    assert (tmp_path / "out/comparison-pair-1.png").exists()  # the same model differs by nothing
    weights = Run.open(copy).model("last")
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    Run.open(copy).write_weights(weights.state_dict())
    shutil.rmtree(tmp_path / "out")
    assert geodesics.main([str(plane), str(copy), *options]) == 0
    assert "none differs by so little as --threshold asks for" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("comparison-pair-*.png"))


def test_interpolate_along_shorter_curves(space: Path, tmp_path: Path, capsys) -> None:
    path, singles = tmp_path / "walks.png", tmp_path / "single"
    ends = ("--split", "test", "--from", "0", "5", "--to", "3", "1", "--steps", "4")
    where = ("--out", str(path), "--folder", str(singles))
    arguments = [str(space), "--method", "geodesic", *ends, *FAST, *where]
    assert interpolate.main(arguments) == 0
    said = capsys.readouterr().out
    assert "test image 5 to 1; converged" in said
    picture(path)
    picture(tmp_path / "walks-correlations-images.png")
    picture(tmp_path / "walks-history.png")
    assert not (tmp_path / "walks-correlations-features.png").exists()
    assert len(list(singles.iterdir())) == 2 * 2 * 4
    rows = rows_of(tmp_path / "walks.csv")
    assert [(row["first_image"], row["last_image"]) for row in rows] == [("0", "3"), ("5", "1")]
    assert [(row["first_label"], row["last_label"]) for row in rows] == [("0", "0"), ("2", "1")]
    assert [row["split"] for row in rows] == ["test", "test"]
    for row in rows:
        assert 0 <= float(row["curve_measure"]) <= 1
        assert float(row["variance_of_images"]) >= 0
        assert float(row["length"]) <= float(row["straight_length"])
        assert f"{float(row['length']):.4f}" in said

    stored = json.loads((tmp_path / "walks.json").read_text())
    assert (stored["split"], stored["points"], stored["draws"]) == ("test", 4, None)
    gains = [float(row["improvement"]) for row in rows]
    assert stored["improvement"]["measured"]["mean"] == pytest.approx(np.mean(gains), rel=1e-6)
    with np.load(tmp_path / "walks.npz") as curves:
        control, knots = (torch.from_numpy(curves[name]) for name in ("control", "knots"))
    decoder = geometric_decoder(Run.open(space).model("last"))
    lengths = torch.tensor([float(row["length"]) for row in rows])
    torch.testing.assert_close(
        curve_length(decoder, control, knots).length, lengths, rtol=2e-3, atol=0
    )

    # Both walks of a pair begin and end with the decoded ends.
    images = [np.asarray(Image.open(one)).astype(int) for one in sorted(singles.iterdir())]
    trained = Trained(interpolate.Options(space))
    split = trained.split("test")
    with torch.no_grad():
        decoded = trained.model.decode(trained.latents_of(split, torch.tensor([0, 3])))
    expected = (255 * decoded[:, 0]).round().int().numpy()
    for at, end in ((0, 0), (3, 1), (4, 0), (7, 1)):
        assert abs(images[at] - expected[end]).max() <= 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), {"max_iterations": None, "tolerance": None, "chunk": None}),
        (("--solver", "original"), {"method": "original", "max_iterations": 50}),
        (
            ("--max-iterations", "3", "--tolerance", "0.1", "--chunk", "1"),
            {"max_iterations": 3, "tolerance": 0.1, "chunk": 1},
        ),
    ],
)
def test_walks_are_searched_for_as_asked(given, expected, space: Path, tmp_path, monkeypatch):
    seen = {}

    def watched(*arguments, **options):
        seen.update(options)
        return shorten(*arguments, **options)

    monkeypatch.setattr(geodesic_walks, "shorten", watched)
    where = ("--steps", "2", "--from", "-1", "--to", "1", "--out", str(tmp_path / "walks.png"))
    assert interpolate.main([str(space), "--method", "geodesic", *where, *FAST, *given]) == 0
    assert seen | expected == seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--method", "linear", "--chunk", "2"), "--chunk needs --method geodesic"),
        (("--method", "geodesic", "--chunk", "0"), "--chunk must be at least 1; got 0"),
        (("--method", "geodesic", "--tolerance", "2"), "--tolerance must be between 0 and 1"),
    ],
)
def test_searches_that_cannot_be(given, message: str, space: Path, capsys) -> None:
    assert interpolate.main([str(space), *given]) != 0
    assert message in capsys.readouterr().err


def test_interpolate_in_the_space_of_features(space: Path, tmp_path: Path, capsys) -> None:
    options = ("--from", "-1", "--to", "1", "--steps", "2", "--out", str(tmp_path / "walks.png"))
    arguments = [str(space), "--method", "geodesic", "--feature", "logistic", *options, *FAST]
    assert interpolate.main(arguments) == 0
    assert "var, features" in capsys.readouterr().out
    for what in ("images", "features"):
        picture(tmp_path / f"walks-correlations-{what}.png")
    (row,) = rows_of(tmp_path / "walks.csv")
    assert (row["first_value"], row["last_value"]) == ("-1.0", "1.0")
    trained = Trained(interpolate.Options(space))
    metric = as_metric(
        geometric_decoder(trained.model), trained.logistic_regression, torch.zeros(2, 3)
    )
    line = straight(-torch.ones(1, 3), torch.ones(1, 3)).control
    expected = float(curve_length(metric, line, rule="original", points=4).length)
    assert float(row["original_straight_length"]) == pytest.approx(expected, rel=1e-4)


def test_a_run_by_features_leaves_that_by_images_as_it_was(space: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(space, run, ignore=shutil.ignore_patterns("images"))
    walks = ("--method", "geodesic", "--pairs", "1", "--steps", "2")
    for command, options, name in (
        (interpolate, walks, "interpolation-geodesic"),
        (geodesics, ("--pairs", "1"), "geodesics"),
    ):
        assert command.main([str(run), *options, *FAST]) == 0
        before = {path: path.read_bytes() for path in run.rglob(f"{name}*")}
        assert {path.suffix for path in before} >= {".csv", ".png"}
        assert command.main([str(run), *options, *FAST, "--feature", "logistic"]) == 0
        assert all(path.read_bytes() == content for path, content in before.items())
        new = {path.name for path in run.rglob(f"{name}*") if path not in before}
        assert new and all(one.startswith(f"{name}-logistic") for one in new)
        assert new >= {path.name.replace(name, f"{name}-logistic") for path in before}


def test_lengths_between_features(plane: Path, tmp_path: Path, capsys) -> None:
    options = ("--feature", "logistic", "--ends", "prior", "--folder", str(tmp_path))
    assert geodesics.main([str(plane), "--pairs", "2", *FAST, *options]) == 0
    assert "lengths between class log-probabilities of a logistic" in capsys.readouterr().out
    stored = json.loads((tmp_path / "geodesics-logistic.json").read_text())
    assert (stored["feature"], stored["draws"]) == ("logistic", None)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        f"geodesics-logistic-{what}.png"
        for what in ("histogram", "history", "pairs", "sequences", "map")
    }
    trained = Trained(geodesics.Options(plane))
    metric = as_metric(
        geometric_decoder(trained.model), trained.logistic_regression, torch.zeros(2, 2)
    )
    control = torch.from_numpy(np.load(tmp_path / "geodesics-logistic.npz")["control"])
    line = straight(control[:, 0], control[:, -1]).control
    expected = curve_length(metric, line, rule="original", points=4).length.tolist()
    rows = rows_of(tmp_path / "geodesics-logistic.csv")
    found = [float(row["original_straight_length"]) for row in rows]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "ends",
    [("--from", "5", "--to", "5"), ("--ends", "constant", "--from", "1", "--to", "1")],
    ids=["image", "constant"],
)
def test_a_walk_may_end_where_it_begins(ends, space: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "walks.png"
    options = ("--method", "geodesic", *ends, "--steps", "2", "--out", str(path))
    assert interpolate.main([str(space), *options, *FAST]) == 0
    said = capsys.readouterr().out
    assert "degenerate" in said and "nan" not in said
    (row,) = rows_of(tmp_path / "walks.csv")
    assert float(row["length"]) == float(row["straight_length"]) == 0
    picture(path)
    picture(tmp_path / "walks-correlations-images.png")


def test_numbers_do_not_wait_for_pictures(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(pictures, "correlations", fail)
    monkeypatch.setattr(plots, "walks", fail)
    monkeypatch.setattr(pictures, "improvement_histogram", fail)
    walks = ("--method", "geodesic", "--pairs", "1", "--out", str(tmp_path / "walks.png"))
    assert interpolate.main([str(space), *walks, *FAST]) == 1
    assert "measured lengths" in capsys.readouterr().out
    assert geodesics.main([str(space), "--pairs", "1", *FAST, "--folder", str(tmp_path)]) == 1
    assert "mean improvement" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("walks", "geodesics") for kind in ("csv", "npz", "json")
    }


def test_of_one_pair_there_is_no_spread(space: Path, tmp_path: Path, capsys) -> None:
    options = ("--pairs", "1", "--show", "0", "--folder", str(tmp_path))
    assert geodesics.main([str(space), *options, *FAST]) == 0
    said = capsys.readouterr().out
    assert re.search(r"95 % interval +unknown +unknown\n +standard deviation +unknown", said)
    assert "nan" not in said


def test_lengths_beyond_all_numbers(plane: Path, tmp_path: Path, capsys) -> None:
    options = ("--pairs", "2", "--step-size", "1e30", "--folder", str(tmp_path))
    assert geodesics.main([str(plane), *options, *FAST]) == 0
    assert "unknown" in capsys.readouterr().out
    assert rows_of(tmp_path / "geodesics.csv")[0]["original_improvement"] == ""
    for name in ("histogram", "pairs"):
        picture(tmp_path / f"geodesics-{name}.png")


def gains(measured: Sequence[float], by_rule: Sequence[float]) -> Any:
    """As much of an experiment as pictures of improvements take."""
    return SimpleNamespace(
        counted=torch.ones(len(measured), dtype=torch.bool),
        improvement=torch.tensor(measured),
        original_improvement=torch.tensor(by_rule),
    )


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            gains([0.02, 0.04], [0.03, 0.05]),
            ["measured", "mean 3.00 %", "by the original's rule", "mean 4.00 %"],
        ),
        (
            gains([0.02, 0.04], [float("nan"), 0.05]),
            ["measured", "mean 3.00 %", "by the original's rule", "mean 5.00 % of 1 of 2 pairs"],
        ),
        (
            gains([0.0, 0.0], [float("nan"), float("inf")]),
            ["measured", "mean 0.00 %", "by the original's rule: unknown"],
        ),
        (gains([], []), ["measured: unknown", "by the original's rule: unknown"]),
    ],
    ids=["known", "one unknown", "one rule unknown", "no pair"],
)
def test_the_legend_tells_the_means_and_covers_nothing(
    result, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "drawn", lambda page: (drawn(page), page)[1])
    two = (result.improvement, result.original_improvement, torch.arange(len(result.counted)))
    names = (pictures.MEASURED, pictures.BY_RULE)
    for page in (
        pictures.improvement_histogram(result, "title"),
        pictures.improvement_of_pairs(result, "title"),
        pictures.improvements_of_two(*two, names, "title"),
    ):
        (axes,) = page.axes
        legend = axes.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == expected
        assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title() == "title"


def test_cosines_that_are_alike_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "drawn", lambda page: (drawn(page), page)[1])
    alike = 1 - 1e-7 * torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    for value, titles in (
        (1.0, ["variance 0.0000", "variance 0.0000"]),
        (float("nan"), ["variance 0.0000", "variance unknown"]),
    ):
        page = pictures.correlations(alike, torch.full((1, 5, 5), value), "images")
        shown = [axes.get_title() for axes in page.axes[:2]]
        assert [title.partition(": ")[2] for title in shown] == titles
    nothing = torch.full((1, 5, 5), float("nan"))
    page = pictures.correlations(nothing, nothing, "images")
    assert all("unknown" in axes.get_title() for axes in page.axes)


def test_training_names_the_commands_of_geometry_where_there_is_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = train_tiny(data, tmp_path / "real", 2)
    said = capsys.readouterr().out
    assert f"python -m fastlatent.geodesics {out} --pairs 20\n" in said
    assert f"python -m fastlatent.interpolate {out} --method geodesic\n" in said
    monkeypatch.setattr(showing, "MOST_LATENTS", 1)
    train_tiny(data, tmp_path / "large", 2)
    assert train.main([*TINY, "--steps", "1", "--out", str(tmp_path / "bits")]) == 0
    assert "geodesic" not in capsys.readouterr().out


def test_models_that_put_all_images_in_one_place(plane: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(plane, broken)
    weights = Run.open(broken).model("last").state_dict()
    weights["encoder.mean.weight"].zero_()
    Run.open(broken).write_weights(weights)
    options = ("--pairs", "2", *FAST, "--folder", str(tmp_path / "out"))
    assert geodesics.main([str(plane), str(broken), *options]) == 0
    said = capsys.readouterr().out
    assert "no pair to show: no lines are of finite, positive length in both models" in said
    assert "--threshold" not in said and "nan" not in said


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--from", "-1", "--to", "1"), "all latents -1 to all 1"),
        (("--ends", "constant"), "all latents -1 to all 1"),
        (
            ("--ends", "constant", "--from", "0", "0.5", "--to", "2", "2"),
            "all latents 0.5 to all 2",
        ),
        (("--ends", "prior", "--pairs", "1"), "two draws from the prior"),
    ],
)
def test_walks_between_latents_of_no_image(options, name: str, space: Path, tmp_path, capsys):
    for method in ("geodesic", "linear"):
        out = ("--out", str(tmp_path / f"{method}.png"), "--steps", "3")
        fast = FAST if method == "geodesic" else ()
        assert interpolate.main([str(space), "--method", method, *options, *out, *fast]) == 0
        assert name in capsys.readouterr().out
        picture(tmp_path / f"{method}.png")


def test_real_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "real"
    assert sample.main([f"npz:{data}", "--images", "7", "--batch", "2", "--folder", str(out)]) == 0
    assert f"7 test images of npz:{data}" in capsys.readouterr().out
    paths = sorted(out.iterdir())
    assert [path.name for path in paths] == [f"{k:06}.png" for k in range(7)]
    pixels = np.load(data)["test_x"]
    # Class by class in file order, the first class giving the image that is left over.
    for path, k in zip(paths, (0, 3, 6, 1, 4, 2, 5), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), pixels[k])
    options = ("--split", "train", "--classes", "2", "--size", "16")
    again = tmp_path / "again"
    assert sample.main([f"npz:{data}", "--images", "2", *options, "--folder", str(again)]) == 0
    config = DataConfig(f"npz:{data}", size=16, classes=(2,))
    expected = load(config).train.images(torch.arange(2))[:, 0].numpy()
    for path, image in zip(sorted(again.iterdir()), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image)


def test_real_images_of_mnist(data_root: Path, tmp_path: Path) -> None:
    arguments = ["mnist", "--root", str(data_root), "--images", "20", "--folder", str(tmp_path)]
    assert sample.main(arguments) == 0
    test = load(DataConfig("mnist", data_root)).test
    seven = (test.labels == 7).nonzero()[:2, 0]
    for path, image in zip(sorted(tmp_path.iterdir())[14:16], test.images(seven), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image[0].numpy())


@pytest.mark.parametrize(
    ("command", "arguments", "code", "complaint"),
    [
        (geodesics, ["{bits}"], 2, "holds a model whose latents are bits"),
        (geodesics, ["{space}", "--pairs", "0"], 2, "--pairs must be at least 1; got 0"),
        (geodesics, ["{space}", "--step-size", "0"], 2, "--step-size must be positive; got 0"),
        (geodesics, ["{space}", "--step-size", "nan"], 2, "--step-size must be positive; got nan"),
        (geodesics, ["{space}", "--spans", "4", "1"], 1, "spans must be increasing numbers"),
        (geodesics, ["{space}", "--tolerance", "2"], 2, "tolerance must be between 0 and 1"),
        (geodesics, ["{space}", "--points", "1"], 1, "points must be a whole number, at least 2"),
        (geodesics, ["{space}", "--threshold", "1"], 2, "--threshold needs two runs"),
        (geodesics, ["{space}", "--per-class", "3"], 2, "--per-class needs --ends images"),
        (
            geodesics,
            ["{space}", "--ends", "images", "--pairs", "13"],
            2,
            "--pairs must be at most 12",
        ),
        (geodesics, ["{space}", "--solver", "newton"], 2, "--solver"),
        (geodesics, ["{space}", "nowhere"], 1, "nowhere is not a run folder"),
        (geodesics, ["{space}", "{bits}"], 2, "holds a model whose latents are bits"),
        (geodesics, ["{space}", "{plane}", "--ends", "prior"], 2, "--ends does not go with two"),
        (
            geodesics,
            ["{space}", "{plane}", "--feature", "logistic"],
            2,
            "--feature and --vgg do not go with two runs",
        ),
        (geodesics, ["{space}", "--feature", "vgg"], 2, "--feature vgg and --vgg, the file"),
        (geodesics, ["{space}", "--vgg", "x.pth"], 2, "--feature vgg and --vgg, the file"),
        (interpolate, ["{bits}", "--method", "geodesic"], 1, "does not fit a model with bits"),
        (interpolate, ["{bits}", "--ends", "prior"], 2, "--ends prior needs a model with real"),
        (interpolate, ["{bits}", "--from", "-1", "--to", "1"], 2, "--from must lie in 0 to 1496"),
        (interpolate, ["{space}", "--from", "-1", "2", "--to", "1"], 2, "as many constants each"),
        (interpolate, ["{space}", "--ends", "images", "--from", "1.5", "--to", "1"], 2, "got 1.5"),
        (
            interpolate,
            ["{space}", "--ends", "prior", "--from", "1"],
            2,
            "do not go with --ends prior",
        ),
        (interpolate, ["{space}", "--ends", "constant", "--from", "inf"], 2, "must be finite"),
        (interpolate, ["{space}", "--feature", "logistic"], 2, "--feature needs --method geodesic"),
        (interpolate, ["{space}", "--vgg", "x.pth"], 2, "--vgg needs --method geodesic"),
        (interpolate, ["{space}", "--solver", "lbfgs"], 2, "--solver needs --method geodesic"),
        (interpolate, ["{space}", "--spans", "4"], 2, "--spans needs --method geodesic"),
        (interpolate, ["{bits}", "--points", "4"], 2, "--points needs --method geodesic"),
        (interpolate, [*FEATURES, "vgg"], 2, "--feature vgg and --vgg, the file"),
        (interpolate, [*FEATURES, "logistic", "--vgg", "x.pth"], 2, "--feature vgg and --vgg, the"),
        (sample, ["digits", "--images", "5"], 2, "need a place: give --folder"),
        (sample, ["digits", "--folder", "x", "--out", "x.png"], 2, "--out does not go with a data"),
        (sample, ["digits", "--folder", "x", "--method", "prior"], 2, "--method does not go with"),
        (sample, ["digits", "--folder", "x", "--images", "400"], 2, "of each of 10 classes; class"),
        (
            sample,
            ["digits", "--folder", "x", "--classes", "12"],
            1,
            "must be labels from 0 to 9, those of digits; got (12,)",
        ),
        (sample, ["npz", "--folder", "x"], 2, "the data set must be one of"),
        (sample, ["npz:nowhere.npz", "--folder", "x"], 1, "nowhere.npz"),
        (sample, ["mnist", "--root", "nowhere", "--folder", "x"], 1, "mnist"),
        (sample, ["{space}", "--classes", "1"], 2, "--classes needs a data set in place of a run"),
        (sample, ["nowhere"], 1, "nowhere is not a run folder"),
    ],
)
def test_what_is_wrong_is_said(
    command, arguments, code, complaint, plane, space, bits, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.format(bits=bits, space=space, plane=plane) for word in arguments]
    assert command.main(words) == code
    assert_one_sentence(capsys.readouterr().err, complaint)
    assert not list(tmp_path.iterdir())


def test_runs_on_other_images_are_not_compared(plane: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(plane, other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["classes"] = [1, 2]
    (other / "config.json").write_text(json.dumps(config))
    assert geodesics.main([str(plane), str(other), "--pairs", "2"]) == 2
    assert_one_sentence(capsys.readouterr().err, "their classes differ: all and (1, 2)")


def test_weights_that_are_no_numbers_are_a_sentence(space: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(space, broken)
    model = Run.open(broken).model("last")
    weights = model.state_dict()
    weights["decoder.image.weight"].fill_(torch.nan)
    Run.open(broken).write_weights(weights)
    assert geodesics.main([str(broken), "--pairs", "2", *FAST]) == 1
    assert_one_sentence(
        capsys.readouterr().err, "32 of the 32 numbers of decoder.image.weight are NaN or infinite"
    )
