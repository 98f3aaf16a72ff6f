"""Runs side by side: the numbers, what is called best, the page, and the page in a browser."""

import base64
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastlatent import compare, evaluate, plots, train
from fastlatent.commands.comparison import columns_of, curves, first_columns, screen_table, subjects
from fastlatent.commands.comparison.columns import METRICS, Cell, Column
from fastlatent.commands.comparison.page import PARTS
from fastlatent.metrics import Estimate, score
from fastlatent.models import build
from fastlatent.presets import PRESETS
from fastlatent.runs import Run, read_metrics
from fastlatent.runs.named import named_folder

SETS = {
    "features": {
        "extractor": "classifier trained on digits (accuracy 98.3 %)",
        "short": "classifier",
        "reference": "300 test images of digits",
    },
    "sets": {
        name: {
            "images": 300,
            "metrics": {
                "frechet_distance": {"value": 12.25, "error": 0.5},
                "kernel_distance": {"value": 0.0125, "error": 0.002},
                "precision": {"value": 0.75, "error": 0.02},
                "prd_f1/8": {"value": 0.5, "error": None},
            },
        }
        for name in ("prior", "reconstruction", "interpolation")
    },
}


def make_run(
    path: Path,
    preset: str = "vae-digits",
    losses: tuple[float, ...] = (940.0, 936.5, 937.25),
    evaluation: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run folder as training leaves it, with a log and pictures but without weights."""
    config = PRESETS[preset].config
    run = Run(path, replace(config, **settings))
    run.create()
    lines = []
    for k, loss in enumerate(losses, 1):
        for part in (1, 2):
            step = 100 * k - 100 + 50 * part
            numbers = {"loss": loss + 1 / part, "images_per_second": 400.0 * part}
            lines.append({"kind": "train", "step": step, "epoch": step / 50, **numbers})
        lines.append({"kind": "test", "step": 100 * k, "epoch": 2.0 * k, "loss": loss})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shade = torch.linspace(0, 1, 9 * 64).reshape(9, 1, 8, 8)
    pictures = {
        "samples-prior": plots.samples(shade, "samples"),
        "reconstructions": plots.reconstructions(shade, 1 - shade, "reconstructions"),
        "interpolation-linear": plots.samples(shade.expand(-1, 3, -1, -1) * 0.5, "in colour"),
        "loss": plots.samples(shade, "never shown"),
    }
    for name, picture in pictures.items():
        plots.save(picture, run.images / f"{name}.png")
    if evaluation is not None:
        (path / "evaluation.json").write_text(json.dumps(evaluation))
    return path


def values(loss: float, error: float | None, **others: Any) -> dict[str, Any]:
    """An evaluation.json with one value."""
    return {
        "weights": "last",
        "data": "digits",
        "split": "test",
        "images": 300,
        "values": {"loss": {"mean": loss, "standard_error": error}},
        **others,
    }


def columns(*paths: Path) -> dict[tuple[str, str, str], Column]:
    """The columns of the runs by group, title and unit."""
    found = columns_of(subjects(paths))
    return {(column.group, column.title, column.unit): column for column in found}


def texts(column: Column) -> list[str | None]:
    return [None if cell is None else cell.text for cell in column.cells]


def test_what_a_run_tells_about_itself(tmp_path: Path) -> None:
    table = columns(make_run(tmp_path / "one"))
    model = build(PRESETS["vae-digits"].config.model, 0)
    weights = sum(parameter.numel() for parameter in model.parameters())
    shown = {title: texts(column)[0] for (group, title, _), column in table.items()}
    assert shown == {
        "family": "vae",
        "data": "digits",
        "latents": "16 real",
        "parameters": f"{weights:,}",
        "steps": "300",
        "epochs": "6",
        "time": "0:18",  # three times 50 steps of 32 images at 400 and at 800 a second
        "test loss": "937.25",
        "best test loss": "936.5",
    }
    assert table["training", "best test loss", "nats per image"].cells[0].note == "after step 200"


def test_numbers_of_evaluate_and_of_features(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", evaluation=values(935.7429, 0.2385, **SETS))
    table = columns(run, make_run(tmp_path / "two"))
    assert texts(table["evaluation", "loss", "nats per image"]) == ["935.74 ± 0.24", None]
    assert texts(table["evaluation", "measured on", ""]) == ["test, 300 images", None]
    groups = {group for group, title, _ in table if title == "FD(classifier)"}
    assert groups == {"samples from the prior", "reconstruction", "interpolation"}
    assert texts(table["reconstruction", "FD(classifier)", ""])[0] == "12.25 ± 0.50"
    assert texts(table["reconstruction", "KD(classifier)", ""])[0] == "0.0125 ± 0.0020"
    assert texts(table["interpolation", "F1/8", ""])[0] == "0.5"
    assert not [title for _, title, _ in table if "FID" in title or "KID" in title]
    assert "98.3 %" in table["interpolation", "F1/8", ""].cells[0].note


def test_all_that_score_measures_is_known() -> None:
    real, fake = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    assert score(real, fake).metrics.keys() == METRICS.keys()


def test_only_inception_makes_it_fid(tmp_path: Path) -> None:
    inception = {"extractor": "InceptionV3", "short": "inception", "reference": "10,000 images"}
    evaluation = values(935.7, 0.2, **SETS | {"features": inception})
    titles = [title for _, title, _ in columns(make_run(tmp_path / "one", evaluation=evaluation))]
    assert {"FID", "KID"} <= set(titles)
    assert not [title for title in titles if title.startswith(("FD", "KD"))]


@pytest.mark.parametrize(
    "others",
    [
        {"jpeg": True},
        {"closed_balls": True},
        {"features": SETS["features"] | {"reference_images": 200}},
    ],
    ids=["stored as JPEG", "closed balls", "another reference"],
)
def test_sets_that_cannot_be_compared_have_no_best(tmp_path: Path, others: dict[str, Any]) -> None:
    def evaluated(name: str, distance: float, **more: Any) -> Path:
        metrics = {"frechet_distance": {"value": distance, "error": 0.5}}
        sets = {"prior": {"images": 300, "metrics": metrics}}
        evaluation = values(1.0, 0.1, **SETS | {"jpeg": False, "sets": sets} | more)
        return make_run(tmp_path / name, evaluation=evaluation)

    def column(*paths: Path) -> Column:
        return columns(*paths)["samples from the prior", "FD(classifier)", ""]

    plain, better = evaluated("plain", 20), evaluated("better", 10)
    other, worse = evaluated("other", 5, **others), evaluated("worse", 7, **others)
    assert column(plain, better).best == {1: True}
    assert column(plain, other).best == {}
    assert column(plain, better, other, worse).best == {1: True, 2: True}
    notes = [cell.note for cell in column(plain, other).cells if cell is not None]
    assert ["stored as JPEG" in note for note in notes] == [False, "jpeg" in others]


def test_layers_bits_and_draws(tmp_path: Path) -> None:
    evaluation = values(100.0, 1.0)
    evaluation["values"] |= {
        "log_likelihood": {
            "mean": -80.0,
            "standard_error": 2.0,
            "bits_per_dimension": 0.16,
            "samples": 1000,
        },
        "kl_layer_0": {"mean": 3.0, "standard_error": 0.5, "unit": "nats per image"},
    }
    table = columns(make_run(tmp_path / "one", evaluation=evaluation))
    title = "log likelihood, 1,000 samples"
    assert texts(table["evaluation", title, "nats per image"]) == ["-80.0 ± 2.0"]
    assert table["evaluation", title, "nats per image"].better == "higher"
    assert texts(table["evaluation", title, "bits per dimension"]) == ["0.1600 ± 0.0040"]
    assert table["evaluation", title, "bits per dimension"].better == "lower"
    assert texts(table["KL of each layer", "layer 0", "nats per image"]) == ["3.00 ± 0.50"]


def test_values_stand_in_their_own_units(tmp_path: Path) -> None:
    """As stored with each value; what earlier versions stored without one goes by the model."""
    stored = {"psnr": {"mean": 29.0, "standard_error": 0.1}, "laplacian": {"mean": 0.05}}
    newer = {"psnr": {"mean": 29.0, "unit": "dB"}, "of_tomorrow": {"mean": 3.0, "unit": "m"}}
    runs = [
        make_run(tmp_path / name, "glo-digits", evaluation={"values": found})
        for name, found in (("older", stored), ("newer", newer))
    ]
    table = columns(*runs)
    assert texts(table["evaluation", "psnr", "dB"]) == ["29.00 ± 0.10", "29"]
    assert table["evaluation", "laplacian", "Laplacian L1"]
    assert table["evaluation", "of tomorrow", "m"]


def test_weights_that_changed_since_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", evaluation=values(1.0, 0.1, fingerprint="0" * 32))
    assert texts(columns(run)["evaluation", "measured on", ""]) == ["test, 300 images"]
    (run / "weights.safetensors").write_bytes(b"others")
    assert texts(columns(run)["evaluation", "measured on", ""]) == [
        "test, 300 images, older weights"
    ]


def test_losses_that_cannot_be_compared_have_no_best(tmp_path: Path) -> None:
    vae = make_run(tmp_path / "vae")
    worse = make_run(tmp_path / "worse", losses=(950.0,))
    gan = make_run(tmp_path / "gan", "bigan-digits", losses=(0.5,))
    ladder = make_run(tmp_path / "ladder", "lvae-digits", losses=(280.0,))
    mnist = make_run(tmp_path / "mnist", "vae-mnist", losses=(900.0,))
    model = replace(PRESETS["vae-digits"].config.model, fixed_variance=1.0)
    sharper = make_run(tmp_path / "sharper", losses=(900.0,), model=model)
    wider = make_run(
        tmp_path / "wider",
        losses=(930.0,),
        model=replace(PRESETS["vae-digits"].config.model, dim=32),
    )

    def best(*paths: Path) -> dict[int, bool]:
        return columns(*paths)["training", "test loss", "nats per image"].best

    assert best(vae, worse) == {0: True}
    assert best(worse, gan, wider, vae) == {2: True}
    for other in (gan, ladder, mnist, sharper):
        assert best(vae, other) == {}
        assert best(vae, other, worse) == {0: True}
    table = columns(vae, gan)
    assert texts(table["training", "test loss", "nats per image"]) == ["937.25", None]
    assert texts(table["training", "test loss", "mean squared error"]) == [None, "0.5"]


@pytest.mark.parametrize(
    ("better", "cells", "best"),
    [
        ("lower", [(1.0, 0.1), (2.0, 0.1)], {0: True}),
        ("higher", [(1.0, 0.1), (2.0, 0.1)], {1: True}),
        ("lower", [(1.0, 0.3), (2.0, 0.4)], {0: False}),  # 2 sqrt(0.09 + 0.16) = 1
        ("lower", [(1.0, None), (2.0, 0.49), (3.0, 0.1)], {0: True}),
        ("lower", [(1.0, 0.1), (2.0, 0.1), (1.1, 0.1)], {0: False}),
        ("lower", [(1.0, 0.1), (1.0, 0.1)], {}),
        ("lower", [(1.0, 0.1), (1.0, 0.1), (2.0, 0.1)], {0: True, 1: True}),
        ("lower", [(1.0, 0.1), (math.nan, None)], {}),
        ("lower", [(math.nan, None), (2.0, 0.1), (1.0, 0.1)], {2: True}),
        (None, [(1.0, 0.1), (2.0, 0.1)], {}),
    ],
)
def test_best_of_a_column(
    better: Any, cells: list[tuple[float, float | None]], best: dict[int, bool]
) -> None:
    column = Column("group", "title", better=better)
    column.cells = [Cell("", value, error, ("same",)) for value, error in cells]
    assert column.best == best
    column.cells = [replace(cell, scale=(k,)) for k, cell in enumerate(column.cells)]
    assert column.best == {}
    column.cells = [replace(cell, scale=None) for cell in column.cells]
    assert column.best == {}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (935.7429, 0.2385, "935.74 ± 0.24"),
        (-793.819, 9.8618, "-793.8 ± 9.9"),
        (12345.6, 234.5, "12,346 ± 234"),
        (0.000123456, 0.0000123, "0.000123 ± 0.000012"),
        (0.5, 0.0, "0.5"),
        (math.nan, 0.1, "nan"),
        (935.7429, math.nan, "935.74"),
    ],
)
def test_numbers_are_written_to_the_second_digit_of_their_error(
    value: float, error: float, text: str
) -> None:
    assert str(Estimate(value, error)) == text


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(3, 8))
def test_ticks_are_few_even_and_inside(low: float, span: float, most: int) -> None:
    found = list(curves.ticks(low, low + span, most))
    assert 1 <= len(found) <= most + 1
    assert min(found) >= low - 1e-6 * span - 1e-9 and max(found) <= low + span * (1 + 1e-6) + 1e-9
    steps = np.diff(found)
    assert np.allclose(steps, steps[:1], rtol=1e-6)
    # Round: the step is 1, 2 or 5 times a power of ten.
    for step in steps[:1]:
        assert f"{step:.3e}"[:5] in ("1.000", "2.000", "5.000")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2000))
def test_thinned_curves_keep_their_ends_and_their_level(losses: list[float]) -> None:
    points = [(10 * k, loss) for k, loss in enumerate(losses, 1)]
    thin = curves.thinned(points)
    assert len(thin) == min(len(points), curves.MOST)
    assert thin[-1][0] == points[-1][0]
    assert [x for x, _ in thin] == sorted({x for x, _ in thin})
    if len(losses) % len(thin) == 0:
        assert np.mean([y for _, y in thin]) == pytest.approx(np.mean(losses), abs=1e-9)
    assert min(losses) - 1e-9 <= min(y for _, y in thin)


def test_curves_of_one_scale_share_a_panel(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", "bigan-digits", losses=(0.5, math.inf, 0.25)),
        make_run(tmp_path / "c", losses=(math.nan, 930.0, 920.0)),
    ]
    log = paths[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": 1.5', '"generator_loss": 3.0, "loss": 1.5'))
    panels = curves.charts_of(subjects(paths))
    drawn = {
        (panel.title, panel.loss): [(curve.run, curve.kind) for curve in panel.curves]
        for panel in panels
    }
    assert drawn == {
        ("vae on digits", "loss, nats per image"): [
            (0, "test"),
            (0, "train"),
            (2, "test"),
            (2, "train"),
        ],
        ("bigan on digits", "loss, mean squared error"): [(1, "test")],
        ("bigan on digits", "generator loss, training"): [(1, "train")],
    }
    for panel in panels:
        drawing = curves.chart_svg(panel)
        assert not re.search(r"\bnan\b|\binf\b", drawing, re.IGNORECASE)
        stored = json.loads(html.unescape(re.search(r'data-curves="([^"]*)"', drawing)[1]))
        for curve, kept in zip(panel.curves, stored, strict=True):
            finite = [[x, y] for x, y in curve.points if math.isfinite(y)]
            assert np.allclose(kept["points"], finite, rtol=1e-5)


class Parsed(HTMLParser):
    """The elements of a page, its text, and the text of each element of a class or tag."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_asks_the_network_for_nothing(tmp_path: Path, written: Path) -> None:
    text = written.read_text()
    assert "://" not in text
    assert not re.search(r"@import|@font-face|url\(|fetch\(|XMLHttp|<link|<base|<iframe", text)
    page = Parsed(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "href" not in attributes and "srcset" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    (policy,) = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")


def stored_picture(page: Path, alt: str) -> Path:
    """The file that a picture of the page was made from."""
    kind, _, label = alt.partition(" of ")
    names = {"samples": "samples-prior", "interpolations": "interpolation-linear"}
    return page.parent / label / "images" / f"{names.get(kind, kind)}.png"


def test_pictures_keep_every_pixel_and_get_smaller(written: Path) -> None:
    page = Parsed(written.read_text())
    images = {image["alt"]: image for image in page.of("img") if image["alt"]}
    assert len(images) == 6
    for alt, image in images.items():
        original = stored_picture(written, alt)
        content = base64.b64decode(image["src"].partition(",")[2])
        assert len(content) <= original.stat().st_size
        with Image.open(io.BytesIO(content)) as kept, Image.open(original) as stored:
            assert kept.convert("RGB").tobytes() == stored.tobytes()
            assert (int(image["width"]), int(image["height"])) == stored.size


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    """The page of two runs."""
    first = make_run(tmp_path / "first", evaluation=values(937.2, 0.2, **SETS))
    other = values(936.1, 0.2, **SETS)
    second = make_run(tmp_path / "second", losses=(930.0, 920.0), evaluation=other)
    out = tmp_path / "page.html"
    assert compare.main([str(first), str(second), "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def test_the_command_prints_the_table_and_names_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        make_run(tmp_path / f"run{k}", losses=(940.0 - k,), evaluation=values(940.0 - k, 1.0))
        for k in range(3)
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert compare.main(list(map(str, paths))) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +run0 +run1 +run2$", said, re.MULTILINE)
    assert re.search(r"test loss, nats per image +940 +939 +938 \*$", said, re.MULTILINE)
    assert re.search(
        r"  loss, nats per image +940.0 ± 1.0 +939.0 ± 1.0 +938.0 ± 1.0 ~$", said, re.M
    )
    assert "9 pictures, packed again without loss" in said
    size = (tmp_path / "compare.html").stat().st_size
    assert f"page: compare.html, {size / 1e6:.2f} MB" in said


def test_what_was_compared_is_shown(tmp_path: Path, capsys) -> None:
    """A star stands for the best of some runs where others have numbers of another scale."""
    vaes = [make_run(tmp_path / f"vae{k}", losses=(940.0 - k,)) for k in range(2)]
    ladder = make_run(tmp_path / "ladder", "ladder-digits", losses=(-1050.0,))
    names, out = [*map(str, vaes), str(ladder)], tmp_path / "page.html"
    assert compare.main([*names, "--out", str(out)]) == 0
    assert "\n  among vae0, vae1: test loss, best test loss\n" in capsys.readouterr().out
    assert out.read_text().count('<b title="best of vae0, vae1">★</b>') == 3
    assert compare.main([*names[:2], "--out", str(out)]) == 0
    assert "among" not in capsys.readouterr().out


def test_the_page_is_written_whoever_stops_reading(tmp_path: Path, monkeypatch) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "page.html"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert compare.main([str(run), "--out", str(out)]) == 0
    assert out.stat().st_size > 0


def test_runs_that_do_not_fit_beside_each_other_follow_below(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"run{k}", losses=(940.0 - k,)) for k in range(3)]
    table = columns_of(subjects(paths))
    labels = ["run0", "run1", "run2"]
    wide, narrow = (screen_table(table, labels, width) for width in (120, 70))
    assert [line.split() for line in wide].count(labels) == 1
    headings = [line.split() for line in narrow if "run" in line and line != "run"]
    assert headings == [["run0", "run1"], ["run2"]]
    assert max(map(len, narrow)) <= 70
    assert sum("best test loss" in line for line in narrow) == 2
    (one,) = {len(line) for line in screen_table(table, labels, 10) if line.endswith(" vae")}
    assert one > 10  # a run is never cut


def test_one_run_and_runs_without_log_or_pictures(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    Run(bare, PRESETS["bigan-digits"].config).create()
    shutil.rmtree(bare / "images")
    out = tmp_path / "new" / "page.html"
    assert compare.main([str(bare), "--out", str(out)]) == 0
    page = Parsed(out.read_text())
    assert "bigan" in page.text and not page.of("figure")
    assert compare.main([str(bare), str(make_run(tmp_path / "full")), "--out", str(out)]) == 0
    assert Parsed(out.read_text()).text.count("no such picture") == 3


def test_pictures_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    images = run / "images"
    newest = images / "step-00000200-samples-prior.png"
    (images / "samples-prior.png").rename(newest)
    shutil.copy(images / "loss.png", images / "step-00000100-samples-prior.png")
    shutil.copy(images / "loss.png", images / "step-00000100-reconstructions.png")
    (first, second, third) = compare.pictures_of(subjects([run])[0])
    assert (first.kind, first.caption) == ("samples", "prior, step 200")
    assert first.stored == newest.stat().st_size
    assert (second.kind, second.caption) == ("reconstructions", "")
    assert (third.kind, third.caption) == ("interpolation", "linear")


@pytest.mark.parametrize("kind", ["folder", "npz", "h5"])
def test_the_page_does_not_say_where_data_lies(tmp_path: Path, kind: str) -> None:
    name = f"{kind}:/home/somebody/a, secret place/faces.x"
    features = {
        "extractor": f"classifier of {name}, right on 95.0% of its test images",
        "short": "classifier",
        "reference": f"300 test images of {name}",
    }
    evaluation = values(1.0, 0.1, features=features, sets=SETS["sets"])
    config = replace(PRESETS["vae-digits"].config.data, name=name)
    runs = [make_run(tmp_path / "one", data=config, evaluation=evaluation)]
    evaluation["features"] = features | {"reference": "/home/somebody/secret/real.npz"}
    runs.append(make_run(tmp_path / "two", data=config, evaluation=evaluation))
    out = tmp_path / "page.html"
    assert compare.main([*map(str, runs), "--out", str(out)]) == 0
    text = out.read_text()
    assert "somebody" not in text and "secret" not in text
    assert f"classifier of {kind}:faces.x, right on 95.0%" in text
    assert f"300 test images of {kind}:faces.x" in text and "against real.npz" in text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    names = ["a&b <i>x", "\"q\" 'r' $title ${z}", "<script>alert(1)"]
    evaluation = values(1.0, 0.1, **SETS)
    evaluation["features"] = evaluation["features"] | {"short": "<b>", "extractor": "<u>&amp;"}
    evaluation["values"]["<em>"] = {"mean": 1.0, "standard_error": None}
    paths = [make_run(tmp_path / name, evaluation=evaluation) for name in names]
    out = tmp_path / "page.html"
    assert compare.main([*map(str, paths), "--out", str(out)]) == 0
    page = Parsed(out.read_text())
    heads = [row["data-value"] for row in page.of("th") if row.get("scope") == "row"]
    assert heads[:3] == names and set(heads) == set(names)
    alts = [image["alt"] for image in page.of("img")]
    assert [f"samples of {name}" for name in names] == alts[:3]
    assert not {"i", "u", "em"} & {tag for tag, _ in page.elements}
    assert "FD(<b>) ↓" in page.text and "<em>" in page.text
    assert len(page.of("script")) == 1


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert [run.label for run in subjects(paths)] == ["a/run", "b/run"]
    assert [run.label for run in subjects(paths[:1])] == ["run"]


def damage(name: str, content: str) -> Callable[[Path], list[Path]]:
    def change(folder: Path) -> list[Path]:
        run = make_run(folder / "run")
        (run / name).write_text(content)
        return [run]

    return change


LINE = '{"kind": "test", "step": 1, "epoch": 1.0, "loss": 2.0}\n'

BAD: dict[str, tuple[Callable[[Path], list[Any]], str, int]] = {
    "no run": (lambda folder: [], "give at least one run folder", 2),
    "not there": (lambda folder: [folder / "x"], "x is not a run folder: it holds no config", 1),
    "a file": (lambda folder: [__file__], "is not a run folder", 1),
    "twice": (
        lambda folder: [make_run(folder / "run"), folder / "run" / "images" / ".."],
        "run is named more than once",
        2,
    ),
    "no page": (
        lambda folder: [make_run(folder / "run"), "--out", "page.png"],
        "--out must end in .html",
        2,
    ),
    "config": (damage("config.json", "{"), "config.json is not valid JSON", 1),
    "log": (damage("metrics.jsonl", LINE + "{]\n"), "metrics.jsonl is damaged", 1),
    "log, bytes": (damage("metrics.jsonl", "\0\n"), "metrics.jsonl is damaged", 1),
    "log, list": (damage("metrics.jsonl", LINE + "[1]\n"), "damaged: line 2 must hold", 1),
    "log, word": (
        damage("metrics.jsonl", LINE.replace("2.0", '"low"')),
        "damaged: line 1 must hold",
        1,
    ),
    "evaluation": (damage("evaluation.json", "{"), "evaluation.json is damaged", 1),
    "evaluation, list": (
        damage("evaluation.json", "[]"),
        "evaluation.json is damaged: it must be a JSON object",
        1,
    ),
    "evaluation, value": (
        damage("evaluation.json", '{"values": {"loss": {"mean": "low"}}}'),
        "evaluation.json is damaged: values: loss: mean must be a number; got 'low'",
        1,
    ),
    "evaluation, error": (
        damage(
            "evaluation.json", '{"sets": {"p": {"metrics": {"prd_f8": {"value": 1, "error": []}}}}}'
        ),
        "evaluation.json is damaged: sets: p: prd_f8: error must be a number; got []",
        1,
    ),
    "evaluation, sets": (
        damage("evaluation.json", '{"sets": {"prior": 3}}'),
        "evaluation.json is damaged: sets: prior must be a JSON object; got 3",
        1,
    ),
    "evaluation, unit": (
        damage("evaluation.json", '{"values": {"kl": {"mean": 1, "unit": 3}}}'),
        "evaluation.json is damaged: values: kl: unit must be text; got 3",
        1,
    ),
    "picture": (
        damage("images/samples-prior.png", "no picture"),
        "samples-prior.png is damaged: it is no picture that can be read",
        1,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, sentence, code = BAD[case]
    arguments = [str(argument) for argument in prepare(tmp_path)]
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "compare.html").exists()


def test_a_cut_off_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "run")
    picture = run / "images" / "samples-prior.png"
    picture.write_bytes(picture.read_bytes()[:200])
    assert compare.main([str(run), "--out", str(tmp_path / "page.html")]) == 1
    assert f"error: {picture} is damaged" in capsys.readouterr().err


def test_a_log_cut_off_by_a_crash_still_shows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "te')
    assert texts(columns(run)["training", "test loss", "nats per image"]) == ["937.25"]


# Machado, Oliveira and Fernandes 2009, table 1, severity 1: linear RGB as others see it.
SIGHT = {
    "trichromacy": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    srgb = np.array([int(digits[k : k + 2], 16) for k in (0, 2, 4)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    t = to_xyz @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_eyes_tell_the_colours_apart(theme: str) -> None:
    styles = re.findall(r":root \{(.*?)\}", (PARTS / "style.css").read_text(), re.DOTALL)
    named = dict(re.findall(r"--(\w+): (#\w+);", styles[theme == "dark"]))
    colours = [named[f"c{k}"] for k in range(curves.COLOURS)]
    for sight, matrix in SIGHT.items():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in colours]
        for (first, a), (second, b) in combinations(zip(colours, seen, strict=True), 2):
            # A difference of 2.3 is just seen when colours touch; lines are thin and apart.
            assert np.linalg.norm(a - b) > 15, f"{first} and {second} under {sight}"
    luminance = np.array([0.2126, 0.7152, 0.0722])

    def contrast(first: str, second: str) -> float:
        low, high = sorted(float(luminance @ linear(colour)) for colour in (first, second))
        return (high + 0.05) / (low + 0.05)

    for ground in (named["paper"], named["card"]):
        # WCAG 2.1: 3 for lines (1.4.11), 4.5 for text (1.4.3).
        assert min(contrast(colour, ground) for colour in colours) >= 3
        assert min(contrast(named[text], ground) for text in ("ink", "faint", "accent")) >= 4.5
    assert contrast(named["ink"], named["mark"]) >= 4.5


def test_runs_beyond_the_colours_differ_in_their_dashes() -> None:
    looks = [curves.run_class(place) for place in range(3 * curves.COLOURS)]
    assert len(set(looks)) == len(looks)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# A frame of the wanted width: a window of Chromium has a least width.
FRAME = """<!doctype html><body data-report="">
<iframe src="driven.html" width="{width}" height="900"></iframe>
<script>addEventListener("message", (event) => {{ document.body.dataset.report = event.data; }});
</script>"""

WATCH = """<script>
const troubles = [];
for (const kind of ["error", "securitypolicyviolation", "unhandledrejection"])
  addEventListener(kind, (event) => troubles.push(kind + " " + event.message), true);
</script>"""

DRIVE = """<script>
addEventListener("load", async () => {
  const report = {};
  try { %s } catch (error) { troubles.push(String(error)); }
  parent.postMessage(JSON.stringify({ troubles, ...report }), "*");
});
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Opens a page in Chromium, runs statements there, gives what they put into `report`."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    folder = tmp_path / "browser"
    folder.mkdir()

    def run(page: Path, statements: str, width: int = 1200) -> dict[str, Any]:
        text = page.read_text()
        assert text.count("<head>") == text.count("</body>") == 1
        driven = text.replace("<head>", f"<head>{WATCH}")
        driven = driven.replace("</body>", DRIVE % statements + "</body>")
        (folder / "driven.html").write_text(driven)
        (folder / "frame.html").write_text(FRAME.format(width=width))
        # Without a sandbox: containers, where tests run, forbid it. The page is our own.
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
        result = subprocess.run(
            [
                CHROMIUM,
                *options,
                f"--user-data-dir={folder / 'profile'}",
                "--virtual-time-budget=5000",
                "--window-size=1400,1000",
                "--dump-dom",
                (folder / "frame.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r'data-report="([^"]+)"', result.stdout)
        assert found, result.stderr[-2000:]
        report = json.loads(html.unescape(found[1]))
        assert report.pop("troubles") == []
        return report

    yield run


NAMES = '[...table.querySelectorAll("tbody th")].map((th) => th.dataset.value)'
HEAD = """const table = document.querySelector("table");
const head = (title) => [...table.querySelectorAll("thead tr:last-child th")]
  .find((th) => th.textContent.startsWith(title));
const press = (title) => head(title).querySelector("button").click();
"""


def test_the_table_sorts_in_a_browser(tmp_path: Path, browse: Callable) -> None:
    runs = {"b": (941.0, "vae-digits"), "a": (99.5, "vae-digits"), "c": (1000.0, "vae-digits")}
    paths = [make_run(tmp_path / name, p, losses=(loss,)) for name, (loss, p) in runs.items()]
    paths.insert(1, make_run(tmp_path / "d", "bigan-digits", losses=(0.5,)))
    out = tmp_path / "page.html"
    titles = ["--columns", "best test loss", "family", "parameters"]
    assert compare.main([*map(str, paths), "--out", str(out), *titles]) == 0
    report = browse(
        out,
        HEAD
        + f"""
        report.before = {NAMES};
        press("best test loss"); report.up = {NAMES};
        report.aria = head("best test loss").ariaSort;
        press("best test loss"); report.down = {NAMES};
        press("run"); report.names = {NAMES}; report.left = head("best test loss").ariaSort;
        press("family"); report.family = {NAMES};
        report.rows = [...table.querySelectorAll("tbody tr")].map((row) => row.cells.length);
        report.columns = table.querySelectorAll("thead tr:last-child th").length;
        """,
    )
    assert report["before"] == ["b", "d", "a", "c"]
    assert report["up"] == ["a", "b", "c", "d"]  # by number, not by letter; none at the end
    assert report["aria"] == "ascending"
    assert report["down"] == ["c", "b", "a", "d"]
    assert report["names"] == ["a", "b", "c", "d"]
    assert report["left"] is None
    assert report["family"][0] == "d"
    assert set(report["rows"]) == {report["columns"]}


def test_the_page_begins_with_five_numbers_and_the_samples(tmp_path: Path) -> None:
    evaluation = values(935.7429, 0.2385, **SETS)
    out = tmp_path / "page.html"
    paths = [make_run(tmp_path / name, evaluation=evaluation) for name in ("one", "two")]
    assert compare.main([*map(str, paths), "--out", str(out)]) == 0
    text = out.read_text()
    table = text[text.index("<table") : text.index("</table>")]
    titles = re.findall(r'<button type="button">([^<↓↑]+)', table)
    assert [title.strip() for title in titles[1:]] == [
        *("loss", "FD(classifier)", "precision", "parameters", "time")
    ]
    headings = re.findall(r"<h2>([^<]+)", text)
    assert headings == ["At a glance", "Reconstructions", "Interpolations", "Curves", "All numbers"]
    assert text.index("samples of one") < text.index("Reconstructions</h2>")
    folded = re.findall(r"<details><summary>([^<]+)", text)
    assert folded == [
        *("run", "training", "evaluation"),
        *("samples from the prior", "reconstruction", "interpolation"),
    ]


def test_columns_are_chosen_by_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = str(make_run(tmp_path / "one", evaluation=values(935.7429, 0.2385, **SETS)))
    out = ["--out", str(tmp_path / "page.html")]
    assert compare.main([run, *out, "--columns", "fd(", "Loss"]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line.strip().split("  ")[0] for line in shown if " nats" in line or "FD(" in line]
    assert rows == [
        *["FD(classifier)"] * 3,
        *(f"{k}loss, nats per image" for k in ("test ", "best test ", "")),
    ]
    assert compare.main([run, *out, "--columns", "precisoin"]) == 2
    assert (
        "--columns: no column holds 'precisoin'; did you mean 'precision'?"
        in capsys.readouterr().err
    )


def test_runs_that_differ_in_their_seeds_alone_are_averaged(tmp_path: Path, capsys) -> None:
    losses = {0: 930.0, 1: 934.0, 2: 935.0}
    paths = [
        make_run(tmp_path / f"seed-{seed}", losses=(loss,), seed=seed)
        for seed, loss in losses.items()
    ]
    paths.append(make_run(tmp_path / "other", losses=(900.0,), batch=16))
    out = tmp_path / "page.html"
    assert compare.main([*map(str, paths), "--out", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(shown) if line.startswith("mean ± standard deviation"))
    assert shown[at + 1].split() == ["vae-digits,", "3", "runs"]
    assert shown[at + 3].split() == ["test", "loss,", "nats", "per", "image", "933.0", "±", "2.6"]
    assert "vae-digits, 3 runs" in out.read_text()
    assert compare.main([*map(str, paths[2:]), "--out", str(out)]) == 0
    assert "seeds" not in capsys.readouterr().out + out.read_text()


def test_pictures_and_curves_work_in_a_browser(written: Path, browse: Callable) -> None:
    report = browse(
        written,
        """
        const images = [...document.querySelectorAll("main img")];
        report.images = images.map((image) => {
          const canvas = document.createElement("canvas");
          canvas.width = image.naturalWidth;
          canvas.height = image.naturalHeight;
          const pen = canvas.getContext("2d");
          pen.drawImage(image, 0, 0);
          const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
          return [image.alt, canvas.width, canvas.height, data.reduce((a, b) => a + b, 0)];
        });

        const svg = document.querySelector(".panel svg");
        const box = svg.getBoundingClientRect();
        const at = (share) => svg.dispatchEvent(new PointerEvent("pointermove",
          { clientX: box.left + share * box.width, clientY: box.top + 50, bubbles: true }));
        at(1);
        const tip = document.querySelector(".tip");
        report.end = tip.innerText.split(/\\s*\\n\\s*/);
        const place = tip.getBoundingClientRect();
        const outer = document.querySelector(".panel").getBoundingClientRect();
        report.below = (place.top - box.top) / box.height;
        report.left = place.left - outer.left;
        report.right = outer.right - place.right;
        const legend = document.querySelectorAll(".legend button");
        legend[0].click();
        at(0);
        report.begin = tip.innerText.split(/\\s*\\n\\s*/);
        report.shown = [...document.querySelectorAll(".panel .curve")]
          .map((curve) => getComputedStyle(curve).display);
        svg.dispatchEvent(new PointerEvent("pointerleave"));
        report.gone = tip.hidden;
        legend[0].click();
        report.pressed = legend[0].getAttribute("aria-pressed");

        document.querySelector(".zoom").click();
        report.open = document.querySelector("dialog").open;
        report.large = document.querySelector("dialog img").src === images[0].src;
        document.querySelector("dialog button").click();
        report.closed = !document.querySelector("dialog").open;
        """,
    )
    assert len(report["images"]) == 6
    for alt, *seen in report["images"]:
        with Image.open(stored_picture(written, alt)) as stored:
            total = np.asarray(stored.convert("RGBA"), np.int64).sum()
            assert seen == [*stored.size, total]
    # The runs' last losses, as make_run wrote them.
    assert report["end"] == [
        "step 300",
        "first test",
        "937.25",
        "first train",
        "937.75",
        "second test",
        "920",
        "second train",
        "920.5",
    ]
    assert 0.85 < report["below"] < 0.95
    assert report["left"] > report["right"] >= 0
    assert report["begin"] == ["step 50", "second test", "930", "second train", "931"]
    assert sorted(report["shown"]) == ["inline", "inline", "none", "none"]
    assert report["gone"] and report["open"] and report["large"] and report["closed"]
    assert report["pressed"] == "true"


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_fits_the_screen(written: Path, browse: Callable, width: int) -> None:
    report = browse(
        written,
        """
        report.width = innerWidth;
        report.page = document.documentElement.scrollWidth;
        const table = document.querySelector(".wide");
        report.table = [table.scrollWidth, table.clientWidth];
        table.scrollLeft = 200;
        report.names = document.querySelector("tbody th").getBoundingClientRect().left
          - table.getBoundingClientRect().left;
        const text = document.querySelector(".tick");
        report.tick = text.getBoundingClientRect().height;
        """,
        width,
    )
    assert report["page"] <= report["width"] <= width
    if width < 1000:
        assert report["table"][0] > report["table"][1]  # it scrolls by itself,
    assert 0 <= report["names"] <= 2  # and the names stay in sight
    assert report["tick"] >= 9  # pixels


def test_a_trained_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "trained"
    options = ("--steps", "4", "--log-every", "2 steps", "--batch", "32", "--device", "cpu")
    small = ("--model.width", "0.05", "--model.dim", "12", "--pictures-every", "never")
    assert train.main(["lbae-digits", *small, *options, "--out", str(out)]) == 0
    assert evaluate.main([str(out), "--device", "cpu", "--features", "none"]) == 0
    capsys.readouterr()
    page = tmp_path / "page.html"
    every = [str(path) for path in tmp_path.iterdir()]  # the file of results among them
    assert len(every) == 2
    assert compare.main([*every, "--out", str(page)]) == 0
    table = columns(out)
    loss = [line["loss"] for line in read_metrics(out) if line["kind"] == "test"][-1]
    assert texts(table["training", "test loss", "nats per image"]) == [f"{loss:,.5g}"]
    measured = table["evaluation", "loss", "nats per image"].cells[0]
    assert measured.value == pytest.approx(loss, rel=1e-6)
    assert measured.error > 0
    assert texts(table["run", "latents", ""]) == ["12 bits"]
    assert "time" in {title for _, title, _ in table}
    kinds = [image["alt"].partition(" of ")[0] for image in Parsed(page.read_text()).of("img")]
    assert kinds.count("samples") == 2 and "reconstructions" in kinds and "interpolations" in kinds


def test_families_share_the_first_view(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Samples by what each draws from, losses in their units, and pictures where none are kept."""
    out = tmp_path / "page.html"
    assert compare.main(["lbae-digits", "glo-digits", "--out", str(out)]) == 0
    assert "2 pictures" in capsys.readouterr().out
    text = out.read_text()
    first = text[text.index("<table") : text.index("</table>")]
    assert "nats per image or Laplacian L1" in first
    assert "samples by the copula; " in first and "samples from the prior; " in first
    assert "drawn for this page" in text


def test_bits_and_nats_of_one_run_do_not_share_a_column() -> None:
    nats = Column("evaluation", "log likelihood", "nats per image", "higher", cells=[Cell("-9")])
    bits = Column("evaluation", "log likelihood", "bits per dimension", "lower", cells=[Cell("2")])
    (first,) = first_columns([nats, bits])
    assert (first.unit, first.cells) == ("nats per image", nats.cells)


def test_a_run_that_cannot_draw_is_compared_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, out = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(named_folder("lbae-digits"), run)
    (run / "weights.safetensors").write_bytes(b"damaged")
    assert compare.main([str(run), "--out", str(out)]) == 0
    assert "no samples of run are drawn: " in capsys.readouterr().out
    assert "At a glance" in out.read_text()
