"""The page that explores a run: what its views show, and the server that gives it."""

import builtins
import copy
import html
import io
import os
import queue
import re
import shlex
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastlatent
from fastlatent import explore, layers, sample
from fastlatent.commands.console import parse
from fastlatent.commands.exploration.fields import Field, fields, marginal
from fastlatent.commands.exploration.mosaic import data_uri, mosaic
from fastlatent.commands.exploration.plane import Plane
from fastlatent.commands.exploration.subject import Subject
from fastlatent.commands.exploration.upload import fitted
from fastlatent.commands.exploration.walker import Walker, methods_of
from fastlatent.inference.layers import draw_row
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.noise import Noise
from fastlatent.runs.likely import Likely, LikelyOptions

FAMILIES = ("lbae-digits", "vae-digits", "lvae-digits", "ladder-digits", "glo-digits")


@cache
def subject(name: str) -> Subject:
    """A run of the package with few known images; tests change nothing of it."""
    return Subject(fastlatent.load(name, device="cpu"), 40, [name])


def bytes_of(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


# What is shown


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_those_of_the_command(name):
    known = subject(name)
    drawn = known.draw(3, known.methods[0], seed=5)
    expected = bytes_of(known.run.sample(3, seed=5))
    assert np.abs(known.pictures(drawn).astype(int) - expected).max() <= 1


def test_a_run_offers_the_priors_that_it_holds():
    assert subject("vae-digits").methods == ("prior", "gmm")
    assert subject("lvae-digits").methods == ("prior",)
    assert subject("lbae-digits").methods == ("copula", "random")


def test_temperature_is_the_factor_of_the_distance_from_the_mean():
    known = subject("vae-digits")
    whole, half, none = (known.draw(20, "prior", 1, t) for t in (1.0, 0.5, 0.0))
    torch.testing.assert_close(whole - none, 2 * (half - none))
    assert none.std(0).max() == 0
    with pytest.raises(UsageError, match="temperature 1"):
        subject("lbae-digits").draw(2, "copula", 1, 0.5)


def test_latents_of_glo_stay_in_the_region_of_the_model():
    known = subject("glo-digits")
    assert "train" in known.what  # it learned their latents
    radius = known.latents.norm(dim=1).max()
    assert known.decodable(3 * known.latents).norm(dim=1).max() <= radius * 1.001


@pytest.mark.parametrize("name", FAMILIES)
def test_principal_directions_are_those_of_the_covariance(name):
    known = subject(name)
    found = known.principal
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(len(found)))
    covariance = torch.cov(known.latents.double().T)
    along = torch.einsum("kd,de,ke->k", found.vectors.double(), covariance, found.vectors.double())
    largest = torch.linalg.eigvalsh(covariance).flip(0)[: len(found)]
    torch.testing.assert_close(along, largest, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.deviations.double().square(), largest, rtol=1e-4, atol=1e-6)


def test_bits_that_a_class_shares_are_those_of_nearly_all_of_its_images():
    known = subject("lbae-digits")
    shared = known.shared_bits("3")
    of_class = known.latents[[label == "3" for label in known.classes]]
    agreeing = (of_class == shared).float().mean(0)
    assert shared.abs().sum() > 0 and agreeing[shared != 0].min() >= 0.9
    assert torch.maximum(of_class.gt(0).float().mean(0), of_class.lt(0).float().mean(0))[
        shared == 0
    ].max() < 0.9  # fmt: skip
    with pytest.raises(UsageError, match="'x'"):
        known.shared_bits("x")


def test_a_decoder_that_gives_nan_is_an_error_in_words(monkeypatch):
    known = subject("vae-digits")
    monkeypatch.setattr(
        known.run.model, "decode", lambda z: torch.full((len(z), 1, 28, 28), torch.nan)
    )
    with pytest.raises(fastlatent.jobs.errors.RunError, match="not finite"):
        known.pictures(known.latents[:1])


def test_samples_stand_in_where_the_data_set_is_not_there(monkeypatch):
    run = fastlatent.load("vae-digits", device="cpu")
    monkeypatch.setattr(
        "fastlatent.runs.opened.load_data",
        lambda config: (_ for _ in ()).throw(FileNotFoundError(2, "No such file", "x.npz")),
    )
    without = Subject(run, 10)
    assert without.what == "samples" and without.classes is None
    assert without.images.shape == (10, 28, 28, 1)
    assert "x.npz" in without.notes[0]


@pytest.mark.parametrize("kind", ["principal", "single"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_drag_moves_in_the_plane_and_leaves_the_rest(name, kind):
    known = subject(name)
    plane = Plane.of_directions(known, kind, 1, 0)
    z = known.latents[3]
    moved = plane.moved(z, (0.25, -0.5))
    torch.testing.assert_close(plane.points(moved[None]), torch.tensor([[0.25, -0.5]]))
    change = moved - z
    across = change - plane.vectors.T @ (plane.vectors @ change)
    assert across.abs().max() < 1e-5
    with pytest.raises(UsageError, match="twice"):
        Plane.of_directions(known, kind, 1, 1)


def test_the_strip_is_straight_between_the_handles():
    known = subject("vae-digits")
    walker = Walker(known, steps=5)
    walker.handles = {"A": known.latents[4], "B": known.latents[7]}
    (strip,) = walker.strips(["linear"])
    z = torch.lerp(known.latents[4], known.latents[7], torch.linspace(0, 1, 5)[:, None])
    images = known.run.decode(z)
    np.testing.assert_array_equal(strip.pictures, bytes_of(images))
    steps = images.flatten(1).diff(dim=0).norm(dim=1).sum()
    assert strip.length == pytest.approx(float(steps), rel=1e-5)
    assert strip.distance == pytest.approx(float((z[0] - z[-1]).norm()), rel=1e-5)
    np.testing.assert_allclose(strip.points[0], walker.place("A"), rtol=1e-5)


def test_handles_of_bits_differ_in_whole_bits():
    known = subject("lbae-digits")
    walker = Walker(known)
    differing = (walker.handles["A"] != walker.handles["B"]).sum()
    (strip,) = walker.strips(["copula"])
    assert strip.distance == differing > 0


def test_a_drag_takes_the_nearer_handle_or_none():
    walker = Walker(subject("vae-digits"))
    a, b = walker.place("A"), walker.place("B")
    assert walker.nearest(a, 0.1) == "A" and walker.nearest(b, 0.1) == "B"
    assert walker.nearest((a[0] + 100, a[1]), 0.1) is None
    walker.drag("A", (b[0] + 0.01, b[1]))
    k = walker.to_image("A")
    assert torch.equal(walker.handles["A"], walker.subject.latents[k])


def test_paths_are_those_that_the_run_has():
    assert methods_of(subject("vae-digits")) == ("spherical", "linear", "likelihood", "geodesic")
    assert methods_of(subject("lbae-digits")) == ("copula",)
    # No density of all latents, and 416 of them, in which a geodesic takes minutes.
    assert methods_of(subject("lvae-digits")) == ("spherical", "linear")


@pytest.mark.parametrize(
    ("method", "name"), [("likelihood", "vae-digits"), ("geodesic", "ladder-digits")]
)
def test_a_searched_path_comes_rough_and_then_whole(method, name, monkeypatch):
    known = subject(name)
    monkeypatch.setattr(known, "likely", Likely(known.apart, LikelyOptions(iterations=30)))
    walker = Walker(known, steps=5)
    rough, whole = walker.strips([method])
    assert rough.rough and not whole.rough
    for strip in (rough, whole):
        np.testing.assert_allclose(strip.points[0], walker.place("A"), atol=2e-3)
        np.testing.assert_allclose(strip.points[-1], walker.place("B"), atol=2e-3)
    (line,) = walker.strips(["linear"])
    if method == "geodesic":
        assert whole.length < line.length
    else:
        assert whole.least >= line.least
        (alone,) = walker.strips([method], refine=False)
        np.testing.assert_allclose(alone.points, rough.points, atol=1e-5)


def test_a_path_is_that_of_the_handles_when_it_was_asked_for():
    walker = Walker(subject("vae-digits"))
    strips, before = walker.strips(["linear"]), walker.place("B")
    walker.drag("B", (0.0, 0.0))
    np.testing.assert_allclose(next(strips).points[-1], before, atol=1e-5)


def test_the_aggregate_posterior_in_a_plane_is_a_mixture_of_gaussians_there():
    from scipy.stats import multivariate_normal

    known = subject("vae-digits")
    mean, std = known.posterior
    plane = Plane.of_directions(known, "principal", 0, 1)
    points = plane.points(known.latents[:4]).double() + 0.1
    w = plane.vectors.double().numpy()
    each = [
        multivariate_normal(
            w @ (m - plane.origin).double().numpy(), w * s.double().numpy() ** 2 @ w.T
        )
        for m, s in zip(mean, std, strict=True)
    ]
    expected = np.log(np.mean([one.pdf(points.numpy()) for one in each], 0))
    np.testing.assert_allclose(marginal(plane, points, mean, std), expected, rtol=1e-4, atol=1e-4)


def test_a_field_goes_from_coarse_to_fine():
    plane = Plane.of_directions(subject("vae-digits"), "principal", 0, 1)
    field = Field("height", lambda plane, points: points[:, 0] + 10 * points[:, 1], 48)
    images = [*field.refined(plane, (0.0, 2.0, 0.0, 1.0))]
    assert {image.shape for image in images} == {(8, 8), (16, 16), (32, 32), (64, 64)}
    assert np.isnan(images[0]).sum() == 16 and not np.isnan(images[1]).any()
    middles = (np.arange(64) + 0.5) / 64
    np.testing.assert_allclose(images[-1], 2 * middles + 10 * middles[:, None], rtol=1e-5)


@pytest.mark.parametrize("name", ["vae-digits", "ladder-digits", "glo-digits"])
def test_fields_are_the_densities_and_the_metric_of_the_run(name):
    known = subject(name)
    plane = Plane.of_directions(known, "single", 0, 1)
    points = plane.points(known.latents[:3])
    found = {field.name: field.values(plane, points) for field in fields(known)}
    metric = known.run.metric().matrix(plane.latents(points)).double()
    eigenvalues = torch.linalg.eigvalsh(metric)
    torch.testing.assert_close(
        found["metric, log volume"].double(),
        eigenvalues.log().sum(1) / 2,
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(
        found["metric, log10 of the condition number"],
        (eigenvalues[:, -1] / eigenvalues[:, 0]).log10(),
        rtol=1e-3,
        atol=1e-3,
    )
    if name != "ladder-digits":
        log_prob = known.run.prior("gmm").log_prob(plane.latents(points))
        torch.testing.assert_close(found["prior gmm, log density (nats)"], log_prob)
    assert ("aggregate posterior, log density (nats)" in found) == (name != "glo-digits")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mosaic_holds_each_image_where_it_belongs(channels):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), np.uint8)
    sheet = mosaic(pictures, 3)
    assert sheet.shape == (2 * 6, 3 * 8, 4) and (sheet[..., 3] == 255).all()
    np.testing.assert_array_equal(sheet[7:11, 9:15, :channels], pictures[4])
    assert (sheet[6:, 16:] == 255).all()
    assert data_uri(pictures[0]).startswith("data:image/png;base64,iVBOR")


# The page


def new_page(name: str) -> Any:
    """The page of a new tab."""
    pytest.importorskip("bokeh")
    from bokeh.document import Document

    from fastlatent.commands.exploration.page import Page

    return Page(subject(name), Document())


# One for all tests that ask for it: each takes it as the last one left it.
shared_page = cache(new_page)


def settle(page) -> None:
    """Do what waits for the next turn of the server's loop."""
    for waiting in page.document.session_callbacks:
        waiting.callback()


def shown(raster) -> np.ndarray:
    return raster.source.data["image"][0].copy()


def strip_of(page) -> Any:
    """The strip of the first path on the map."""
    return next(iter(page.views["Map"].trails.values())).strip


def at(x: float, y: float) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_view_opens(name):
    page = shared_page(name)
    page.document.validate()
    layered = ["Layers"] if name == "lvae-digits" else []
    assert list(page.views) == ["Samples", "Latents", "Map", *layered, "Reconstruct"]
    assert page.message.text == ""
    for raster in (page.samples.raster, page.latents.raster, strip_of(page)):
        assert len(np.unique(shown(raster))) > 10


def test_two_tabs_do_not_mix():
    one, other = new_page("vae-digits"), shared_page("vae-digits")
    before = [shown(other.samples.raster), shown(strip_of(other))]
    one.samples.seed.value += 1
    one.views["Map"].walker.drag("A", (0.0, 0.0))
    one.views["Map"].draw()
    settle(one)
    after = [shown(other.samples.raster), shown(strip_of(other))]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(shown(one.samples.raster), after[0])
    assert not np.array_equal(shown(strip_of(one)), after[1])


def test_seed_method_and_temperature_change_the_samples():
    page = shared_page("vae-digits")
    view = page.samples
    view.temperature.value = 1
    seen = [shown(view.raster)]
    for widget, value in ((view.seed, 77), (view.method, "gmm"), (view.temperature, 0.5)):
        widget.value = value
        settle(page)
        seen.append(shown(view.raster))
        assert not np.array_equal(seen[-2], seen[-1])
    assert "temperature 1 only" in view.command.text


def test_a_clicked_sample_becomes_the_base_of_latents():
    page = shared_page("lbae-digits")
    page.samples._tap(at(2.5, 1.5))
    assert torch.equal(page.latents.base, page.samples.latents[10])
    assert page.tabs.active == 1 and "sample 11" in page.latents.of.text
    page.samples._tap(at(-1, 1))
    assert torch.equal(page.latents.base, page.samples.latents[10])
    page.samples.goal.active = 2
    page.samples._tap(at(0.5, 0.5))
    assert torch.equal(page.views["Map"].walker.handles["B"], page.samples.latents[0])
    assert page.tabs.active == 2 and torch.equal(page.latents.base, page.samples.latents[10])
    page.samples.goal.active = 0


def test_a_slider_moves_the_image_along_its_direction():
    page = shared_page("vae-digits")
    view, known = page.latents, page.subject
    before = shown(view.raster)
    view.hands.sliders[1].value = 2
    view.hands.sliders[0].value = -1
    settle(page)
    found = known.principal
    expected = view.base + found.deviations[1] * 2 * found.vectors[1]
    expected = expected - found.deviations[0] * found.vectors[0]
    torch.testing.assert_close(view.hands.moved(view.base), expected)
    assert not np.array_equal(before, shown(view.raster))
    view.hands.kind.active = 1
    assert view.hands.sliders[0].title.startswith("latent") and view.hands.sliders[0].value == 0


def test_a_switch_flips_its_bit():
    page = shared_page("lbae-digits")
    view = page.latents
    view.hands._tap(at(3.2, 1.9))  # the fourth of the second row of eight
    changed = (view.hands.code != view.base).nonzero()[:, 0].tolist()
    assert changed == [11]
    view.hands._tap(at(3.2, 1.9))
    assert torch.equal(view.hands.code, view.base)
    view.hands.shared.value = "3"
    view.hands._set()
    shared = page.subject.shared_bits("3")
    assert torch.equal(view.hands.code[shared != 0], shared[shared != 0])
    assert view.hands.source.data["line"].count("white") == int((shared == 0).sum())


def test_a_drag_on_the_map_changes_the_strip():
    page = shared_page("vae-digits")
    view = page.views["Map"]
    settle(page)
    before, (x, y) = shown(strip_of(page)), view.walker.place("B")
    step = -0.2 if x > 0 else 0.2  # inwards
    view._take(at(x, y))
    for k in range(1, 5):
        view._move(at(x + k * step, y))
    assert len(page.document.session_callbacks) == 1  # one picture for all that came before it
    settle(page)
    view._let_go(at(x + 5 * step, y))
    settle(page)
    assert not np.array_equal(before, shown(strip_of(page)))
    assert view.chart.ends.data["x"][1] == pytest.approx(x + 5 * step, abs=1e-4)
    view._move(at(0, 0))  # nothing is held any more
    assert view.walker.place("B")[0] == pytest.approx(x + 5 * step, abs=1e-4)


def test_a_handle_stays_whole_on_the_map():
    view = shared_page("vae-digits").views["Map"]
    view._take(at(*view.walker.place("A")))
    view._let_go(at(1e3, -1e3))
    x, y = view.chart.figure.x_range, view.chart.figure.y_range
    right, bottom = view.walker.place("A")
    assert right == pytest.approx(x.end - 0.03 * (x.end - x.start), abs=1e-4)
    assert bottom == pytest.approx(y.start + 0.03 * (y.end - y.start), abs=1e-4)
    # Where it was dragged along another plane, this one grows to show it.
    view.walker.handles["A"] = view.walker.handles["A"] + 9 * view.walker.plane.vectors[1]
    view._change_plane()
    assert y.start < view.walker.place("A")[1] < y.end == y.reset_end
    view._to_image("A")


def finish(page) -> None:
    """Let long tasks end, and show what they found."""
    page.subject.pool.submit(lambda: None).result(60)
    settle(page)


def test_a_field_is_painted_behind_the_dots():
    page = shared_page("vae-digits")
    view = page.views["Map"]
    assert view.chart.field.data["image"] == [] and not view.chart.scale.visible
    view.field.value = "aggregate posterior, log density (nats)"
    finish(page)
    (image,) = view.chart.field.data["image"]
    assert image.shape == (64, 64) and np.isfinite(image).all()
    assert view.chart.shades.low < view.chart.shades.high and view.chart.scale.visible
    view.field.value = ""
    assert view.chart.field.data["image"] == [] and not view.chart.scale.visible


def test_a_searched_path_is_told_of_until_it_is_found(monkeypatch):
    page = shared_page("vae-digits")
    monkeypatch.setattr(
        page.subject, "likely", Likely(page.subject.apart, LikelyOptions(iterations=3))
    )
    view = page.views["Map"]
    trail = view.trails["likelihood"]
    view.chosen.active = [view.methods.index("likelihood"), view.methods.index("linear")]
    assert "searching" in trail.strip.figure.title.text and len(trail.line.data["x"]) == 0
    assert not view.trails["spherical"].strip.figure.visible
    finish(page)
    assert re.match(r"likely: \S+ long, .*log p from \S+ nats up$", trail.strip.figure.title.text)
    assert len(trail.line.data["x"]) == view.walker.steps
    view.chosen.active = [1]
    assert len(trail.line.data["x"]) == 0


def test_of_long_tasks_the_newest_is_shown():
    page = shared_page("vae-digits")
    later, seen = page.views["Map"].search, []
    began, go = threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        began.set()
        go.wait(20)
        yield "old"

    later.start(slow, seen.append)
    assert began.wait(20)
    later.start(lambda: iter(["new", "newer"]), seen.append)
    go.set()
    finish(page)
    assert seen == ["newer"]

    def broken() -> Iterator[str]:
        raise RunError("no path")
        yield

    later.start(broken, seen.append)
    finish(page)
    assert seen == ["newer"] and page.message.text == "no path"


def test_a_layer_is_drawn_as_the_command_draws_it():
    page = shared_page("lvae-digits")
    view, run = page.views["Layers"], page.subject.run
    view.layer.value = "1"
    settle(page)
    with torch.no_grad():
        row = draw_row(run.model, 1, 8, Noise(int(view.seed.value), 2))
    sheet = shown(view.raster).view(np.uint8).reshape(8, 30, 8, 30, 4)
    np.testing.assert_array_equal(sheet[2, 1:-1, :, 1:-1, 0].swapaxes(0, 1), bytes_of(row)[..., 0])
    words = shlex.split(html.unescape(re.sub(r"<[^>]*>", "", view.command.text.split("<br>")[1])))
    again = parse(layers.Options, words[3:], "layers", "")
    assert (again.layers, again.images, again.seed) == ((1,), 8, view.seed.value)


def png_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_cropped_scaled_and_greyed_for_the_model():
    red = np.zeros((56, 84, 3), np.uint8)
    red[:, 8:76] = (200, 0, 0)  # the middle, which stays
    (found,) = fitted(png_of(red), "red.png", (1, 28, 28))
    torch.testing.assert_close(found, torch.full((1, 28, 28), 60 / 255), rtol=0, atol=1e-6)
    grey = fitted(png_of(red[..., 0]), "grey.png", (3, 28, 28))
    torch.testing.assert_close(grey, torch.full((1, 3, 28, 28), 200 / 255))
    assert fitted(png_of(red), "red.png", (3, 10, 20)).shape == (1, 3, 10, 20)


@pytest.mark.parametrize("name", ["vae-digits", "lbae-digits"])
def test_an_image_of_ones_own_is_reconstructed_and_taken_elsewhere(name):
    page = shared_page(name)
    view, run = page.views["Reconstruct"], page.subject.run
    (image,) = run.data.test.images(run.data.test.spread(1))
    size = run.model.image_shape[-1]
    view.take(png_of(image[0].numpy()), "my <one>.png")
    assert view.to_latents.disabled and "encoding" in view.text.text
    finish(page)
    assert page.message.text == "" and view.text.text.startswith("my &lt;one&gt;.png: the two")
    sheet = shown(view.raster).view(np.uint8).reshape(size + 2, 2, size + 2, 4)[1:-1, :, 1:-1, 0]
    np.testing.assert_array_equal(sheet[:, 0], image[0])
    expected = bytes_of(run.reconstruct(image))[0, ..., 0].astype(int)
    assert np.abs(sheet[:, 1] - expected).max() <= 1
    view._take()
    assert torch.equal(page.latents.base, run.encode(image)[0]) and page.tabs.active == 1
    view._place("B")
    assert torch.equal(page.views["Map"].walker.handles["B"], run.encode(image)[0])
    assert page.tabs.active == 2


def test_a_file_that_is_no_image_is_a_message_on_the_page(monkeypatch):
    page = shared_page("vae-digits")
    view = page.views["Reconstruct"]
    page.guarded(lambda: view.take(b"no image", "../../notes.txt"))()
    assert page.message.text.startswith("notes.txt is not a readable image")
    assert view.to_latents.disabled
    monkeypatch.setattr("fastlatent.commands.exploration.upload.MOST", 99)
    page.guarded(lambda: view.take(png_of(np.zeros((10, 10), np.uint8)), "large.png"))()
    assert page.message.text == "large.png is 10x10; 99 pixels are the most"


def test_what_goes_wrong_is_a_message_on_the_page():
    page = shared_page("vae-digits")
    view = page.views["Map"]
    view.y.value = view.x.value
    assert "two directions" in page.message.text
    view.y.value = "2"
    assert page.message.text == ""

    def broken() -> None:
        raise ZeroDivisionError("by <zero>")

    page.guarded(broken)()
    assert page.message.text == "ZeroDivisionError: by &lt;zero&gt;"


def test_the_page_names_the_run_as_the_user_does(monkeypatch):
    options = explore.Options(Path("my run"), weights="best", root=Path("data sets"), seed=3)
    known = subject("lbae-digits")
    monkeypatch.setattr(known, "words", options.words)
    page = new_page("lbae-digits")
    page.samples._next_seed()
    settle(page)
    shown_line = html.unescape(re.sub(r"<[^>]*>", "", page.samples.command.text.split("<br>")[1]))
    python, flag, module, *words = shlex.split(shown_line)
    assert (python, flag, module) == ("python", "-m", "fastlatent.sample")
    again = parse(sample.Options, words, "sample", "")
    assert again.run == Path("my run") and again.weights == "best"
    assert again.root == Path("data sets") and again.method == "copula"
    assert again.seed == page.samples.seed.value == known.run.seed + 1
    heading = page.document.roots[0].children[0].children[0].text
    assert heading.startswith("<b>my run</b>") and heading.count("my run") == 1


def test_a_closed_subject_ends_a_task_that_would_go_on():
    pytest.importorskip("bokeh")
    from bokeh.document import Document

    from fastlatent.commands.exploration.later import Later

    known = copy.copy(subject("vae-digits"))
    known.__dict__.pop("pool", None)  # a thread of its own
    began = threading.Event()

    def endless() -> Iterator[int]:
        while True:
            began.set()
            yield 0
            time.sleep(0.001)

    Later(known, Document(), lambda action: action).start(endless, print)
    assert began.wait(20)
    known.close()  # comes back
    assert known.closed


# The command


def test_without_bokeh_it_is_one_sentence(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.partition(".")[0] == "bokeh":
            raise ModuleNotFoundError(f"No module named {name!r}", name="bokeh")
        return real(name, *arguments, **keywords)

    for module in ("server", "page"):
        monkeypatch.delitem(sys.modules, f"fastlatent.commands.exploration.{module}", False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert explore.main(["vae-digits", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert said == "error: explore needs Bokeh: pip install 'fastlatent[explore]'\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--port", "70000"), "--port must lie in 0 to 65535; got 70000"),
        (("--images", "2"), "--images must be at least 3, which a plane takes; got 2"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(words, sentence, capsys):
    assert explore.main(["vae-digits", *words]) == 2
    assert capsys.readouterr().err == f"error: {sentence} (see --help)\n"


def test_the_server_gives_the_page_to_who_has_the_token(monkeypatch, capsys):
    pytest.importorskip("bokeh")
    known, lines, seen = subject("vae-digits"), queue.Queue(), []
    known = copy.copy(known)  # the command closes it
    known.__dict__.pop("pool", None)
    monkeypatch.setattr(explore, "Subject", lambda *_: known)
    monkeypatch.setattr(explore, "say", lines.put)

    def read(address: str) -> str:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.read().decode()

    def visit() -> None:
        try:
            address = lines.get(timeout=30).removeprefix("vae-digits: ")
            seen.append((address, read(address)))
            root = address[: address.rindex("/", 0, -1) + 1]
            for place in ("", "wrong/", "static/js/bokeh.min.js", "ws"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    read(root + place)
            seen.append("all")
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    # Where tests run in the background, the signal is ignored by default.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    visitor = threading.Thread(target=visit)
    try:
        visitor.start()
        assert explore.main(["vae-digits", "--device", "cpu"]) == 0
    finally:
        visitor.join(30)
        signal.signal(signal.SIGINT, ours)
    (address, text), _ = seen
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", address)
    assert "vae-digits - fastlatent" in text
    # Nothing on the page comes from elsewhere.
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sources and not [s for s in sources if s.startswith(("http", "//"))]
    assert [*lines.queue] == ["Ctrl-C ends it", "ended"]
