"""Walks through the latents of models: every model by every method, or a sentence why not."""

import csv
import math
import re
from dataclasses import fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2
from small_runs import small_run, train_ladder

from fastlatent import fit_prior, interpolate, train, walks
from fastlatent.commands.experiments import walk_table
from fastlatent.data import load
from fastlatent.geometry import as_metric
from fastlatent.inference.walking import WALKINGS, between, measured, space_of, walk, walkings
from fastlatent.metrics import frechet_from_features
from fastlatent.metrics.features import to_uint8
from fastlatent.metrics.frechet import frechet_standard_error
from fastlatent.models import build
from fastlatent.models.bigan import BiGANConfig
from fastlatent.models.capabilities import geometric_decoder, latent_prior, project
from fastlatent.models.glo import GLOConfig
from fastlatent.models.ladder import LaDDerConfig, PriorConfig
from fastlatent.models.lbae import LBAEConfig
from fastlatent.models.lvae import LVAEConfig
from fastlatent.models.vae import VAEConfig
from fastlatent.ops import binarize
from fastlatent.priors import (
    BernoulliCopula,
    CodeStatistics,
    GaussianMixture,
    Hierarchical,
    Ladder,
    Normal,
)
from fastlatent.runs import Run
from fastlatent.runs.evaluation.extractors import Extractor
from fastlatent.runs.likely import Likely, LikelyOptions

MODELS = {
    "vae": VAEConfig(image_shape=(1, 12, 12), dim=2),
    "bigan": BiGANConfig(image_shape=(1, 12, 12), dim=3),
    "lbae": LBAEConfig(dim=6),
    "lbae-gaussian": LBAEConfig(latent="gaussian", dim=2),
    "lvae": LVAEConfig(
        image_shape=(1, 16, 16), zdims=(1, 1), downsample=(1, 1), blocks=1, filters=4
    ),
    "glo": GLOConfig(image_shape=(1, 8, 8), dim=3, width=0.05, initial="gaussian"),
    "glo-sphere": GLOConfig(
        image_shape=(1, 8, 8), dim=3, width=0.05, initial="gaussian", projection="sphere"
    ),
    "ladder": LaDDerConfig(width=64, dim=3, prior=PriorConfig(width=8, layers=1, components=3)),
}
METHODS = ("copula", "linear", "spherical", "likelihood", "geodesic")
FAST = {"likelihood": {"iterations": 20}, "geodesic": {"spans": (2,), "max_iterations": 2}}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build(MODELS[request.param], seed=0).eval()


def ends_of(model, k=3):
    make = torch.Generator().manual_seed(0)
    z = torch.randn(2, k, model.latent_dim, generator=make)
    return [binarize(x)[0] if model.latent_kind == "bits" else project(model, x) for x in z]


def needs_of(model):
    """Everything that any method may need of this model."""
    d = model.latent_dim
    if model.latent_kind == "bits":
        codes = torch.randn(200, d, generator=torch.Generator().manual_seed(1)).sign()
        return {"copula": BernoulliCopula().fit(CodeStatistics.of(codes))}
    prior = latent_prior(model) or Normal(d)
    metric = as_metric(geometric_decoder(model), None, torch.zeros(2, d))
    return {"space": space_of(prior), "metric": metric}


@pytest.mark.parametrize("method", METHODS)
def test_every_model_by_every_method(model, method):
    start, end = ends_of(model)
    given = needs_of(model)
    if method not in WALKINGS[model.latent_kind]:
        with pytest.raises(ValueError, match=f"{method!r} does not fit a model with") as caught:
            walk(model, method, start, end, 5, **given)
        assert str(caught.value).count(";") == 1 and "use " in str(caught.value)
        return
    path = walk(model, method, start, end, 5, **given, search=FAST.get(method))
    assert path.method == method and path.latents.shape == (3, 5, model.latent_dim)
    torch.testing.assert_close(path.latents[:, [0, -1]], torch.stack([start, end], 1))
    numbers = measured(model, path, 4, given.get("space"))
    z = path.latents
    if model.latent_kind == "real":
        z = project(model, between(z, 8))
    with torch.no_grad():
        images = torch.stack([model.decode(points).flatten(1) for points in z])
    length = images.diff(dim=1).norm(dim=2).sum(1)
    torch.testing.assert_close(numbers.image_length, length, rtol=1e-4, atol=1e-5)
    if model.latent_kind == "bits":
        assert numbers.terms is None
        return
    inner = path.latents[:, 1:-1].double()
    expected = 0.5 * (inner.square() + math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(numbers.terms.nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "need"),
    [
        ("likelihood", "a prior with a density; spherical and linear walks need nothing"),
        ("geodesic", "the metric of the decoder; spherical and linear walks need nothing"),
    ],
)
def test_a_missing_need_is_named(method, need):
    model = build(MODELS["vae"], seed=0)
    with pytest.raises(ValueError, match=f"the method {method} needs {need}"):
        walk(model, method, *ends_of(model), 5)


def test_a_missing_copula_is_named():
    model = build(MODELS["lbae"], seed=0)
    with pytest.raises(ValueError, match="copula needs a copula fitted to the codes"):
        walk(model, "copula", *ends_of(model), 5)


@pytest.mark.parametrize(
    ("name", "default"), [("vae", "spherical"), ("glo", "linear"), ("glo-sphere", "spherical")]
)
def test_the_default_walk_suits_the_region_of_latents(name, default):
    methods = walkings(build(MODELS[name], seed=0))
    assert methods[0] == default and set(methods) == set(WALKINGS["real"])


@pytest.mark.parametrize("method", ["linear", "likelihood", "geodesic"])
def test_walks_stay_on_the_sphere(method):
    """Between nearly opposite codes the straight line passes by the origin."""
    model = build(MODELS["glo-sphere"], seed=0).eval()
    start, end = torch.tensor([[1.0, 0, 0]]), model.project(torch.tensor([[-1.0, 1e-3, 0]]))
    given = needs_of(model) | {"space": space_of(Normal(3))}
    path = walk(model, method, start, end, 5, **given, search=FAST.get(method))
    torch.testing.assert_close(path.latents.norm(dim=2), torch.ones(1, 5))
    torch.testing.assert_close(path.points, path.latents)


def test_a_space_of_another_dimension_is_named():
    model = build(MODELS["vae"], seed=0).eval()
    ladder = Ladder(3, 2, 4, width=8, depth=1).eval()
    z = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"Ladder.posterior: z must be of shape \(..., 3\)"):
        walk(model, "likelihood", z, z, 5, space=space_of(ladder))
    with pytest.raises(ValueError, match=r"Normal.path_space.encode: .*\(..., 3\); got \(2, 2\)"):
        walk(model, "linear", z, z, 5, space=space_of(Normal(3)))


def test_likely_walks_beat_linear_ones():
    """Under a mixture with a hole between the ends."""
    model = build(MODELS["vae"], seed=0).eval()
    angle = torch.linspace(0, 2 * math.pi, 13)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    prior = GaussianMixture(2, 12).set(
        torch.full((12,), 1 / 12), ring, 4 * torch.eye(2).expand(12, 2, 2)
    )
    space = space_of(prior)
    start, end = torch.tensor([[-1.0, 0]]), torch.tensor([[1.0, 0]])
    linear, likely = (
        walk(model, method, start, end, 10, space=space) for method in ("linear", "likelihood")
    )
    numbers = [measured(model, path, 64, space).terms for path in (linear, likely)]
    assert float(numbers[1].nll) < float(numbers[0].nll) - 3
    assert float(numbers[1].length) > float(numbers[0].length)
    torch.testing.assert_close(
        numbers[1].objective, likely.found.terms.objective, atol=1e-4, rtol=0
    )


def test_walks_below_a_hierarchical_prior():
    """Points of t, lifted by g; in z under the bound, the same at each call."""
    model = build(MODELS["bigan"], seed=0).eval()
    torch.manual_seed(0)
    prior = Ladder(3, 2, components=4).eval()
    start, end = ends_of(model)
    below = space_of(prior, "t")
    path = walk(model, "likelihood", start, end, 6, space=below, search={"iterations": 30})
    assert path.points.shape == (3, 6, 2) and path.latents.shape == (3, 6, 3)
    with torch.no_grad():
        torch.testing.assert_close(path.latents, prior.conditional(path.points)[0])
        torch.testing.assert_close(path.points[:, 0], prior.posterior(start)[0])
    upstairs = space_of(prior, "z", seed=1)
    z = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(upstairs.log_prob(z), upstairs.log_prob(z))
        assert not torch.equal(upstairs.log_prob(z), space_of(prior, "z", seed=2).log_prob(z))
    path = walk(model, "likelihood", start, end, 6, space=upstairs, search={"iterations": 30})
    assert torch.equal(path.latents[:, 0], start)
    assert (path.found.terms.objective <= path.found.line.objective).all()


def test_what_is_typical_below_a_hierarchical_prior_are_draws_of_p_t():
    """Its g is hardly trained, so the encoded draws of z lie close together."""
    torch.manual_seed(0)
    prior = Hierarchical(3, 2, width=8, depth=1).eval()
    own = {"latent_prior": prior, "draw_prior": prior.sample, "leaves_noise_out": True}
    model = SimpleNamespace(latent_kind="real", latent_dim=3, **own)
    trained = SimpleNamespace(model=model, seed=0, device=torch.device("cpu"))
    level = Likely(trained, LikelyOptions(typical=True)).level
    # Chi-squared of 2 degrees: its density at the quantile of 95 % sets the error of 10,000 draws.
    error = math.sqrt(0.05 * 0.95 / 10_000) / 0.05
    assert level == pytest.approx(math.log(2 * math.pi) + math.log(20), abs=4 * error)


def normal_likely(dim, **options):
    """The search under N(0, I)."""
    model = SimpleNamespace(
        latent_kind="real", prior_dim=dim, latent_dim=dim, latent_prior=Normal(dim)
    )
    trained = SimpleNamespace(model=model, seed=0, device=torch.device("cpu"))
    return Likely(trained, LikelyOptions(**options))


def test_above_8_dimensions_what_is_typical_costs_nothing():
    assert normal_likely(8).level is None
    assert normal_likely(8, typical=True).level is not None
    assert normal_likely(9, typical=False).level is None
    assert normal_likely(9, search="original").level is None
    quantile = chi2(9).ppf(0.95)
    error = math.sqrt(0.05 * 0.95 / 10_000) / chi2(9).pdf(quantile) / 2
    level = 9 / 2 * math.log(2 * math.pi) + quantile / 2
    assert normal_likely(9).level == pytest.approx(level, abs=4 * error)


def test_a_prior_without_density_is_refused():
    flat = Normal(3, "full").fit(torch.randn(50, 2) @ torch.randn(2, 3))
    with pytest.raises(ValueError, match="needs real latents with a density; Normal has"):
        space_of(flat)


def test_between():
    z = torch.tensor([[[0.0, 0], [1, 0], [1, 2]]])
    assert between(z, 2).tolist() == [[[0, 0], [0.5, 0], [1, 0], [1, 1], [1, 2]]]


def test_error_of_a_distance_when_samples_come_together():
    """Rows repeated ten times are as good as one each, not as ten."""
    make = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=make).double()
    fake = 1.3 * torch.randn(60, 4, generator=make).double() + 0.5
    repeated = fake.repeat_interleave(10, 0)
    single = frechet_standard_error(real, fake)
    torch.testing.assert_close(frechet_standard_error(real, repeated, 10), single)
    assert frechet_standard_error(real, repeated) < 0.6 * single
    with pytest.raises(ValueError, match="multiple of together; got 7"):
        frechet_standard_error(real, repeated, 7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A VAE with two latents and an autoencoder of bits, hardly trained."""
    root = tmp_path_factory.mktemp("walks")
    small = ("--steps", "4", "--batch", "32", "--pictures-every", "0", "--device", "cpu")
    found = {}
    for preset, options in (
        ("vae-digits", ("--model.dim", "2")),
        (
            "lbae-digits",
            (
                "--model.dim",
                "8",
            ),
        ),
    ):
        found[preset] = root / preset
        arguments = [preset, *small, *options, "--out", str(found[preset])]
        assert train.main(arguments) == 0
    return found


@pytest.mark.parametrize("prior", ["own", "gmm"])
def test_interpolate_along_likely_paths(runs, prior, capsys):
    run = runs["vae-digits"]
    if prior == "gmm":
        assert fit_prior.main([str(run), "--prior", "gmm", "--components", "5"]) == 0
    options = ["--prior", prior, "--pairs", "3", "--iterations", "40", "--steps", "6"]
    assert interpolate.main([str(run), "--method", "likelihood", *options]) == 0
    name = f"interpolation-likelihood-{prior}"
    for kind in ("", "-history", "-density"):
        picture = Image.open(run / "images" / f"{name}{kind}.png")
        assert np.asarray(picture).std() > 5, kind
    rows = list(csv.DictReader((run / "images" / f"{name}.csv").open()))
    assert len(rows) == 3
    for row in rows:
        assert float(row["likely_objective"]) <= float(row["linear_objective"]) + 1e-4
        assert float(row["linear_spread"]) < 1e-5
        j = 10 * float(row["linear_length"]) + float(row["linear_nll"])
        assert float(row["linear_objective"]) == pytest.approx(j, abs=1e-2)
        assert int(row["iterations"]) == 40 and row["typical_from"] == ""
    assert "typical" not in capsys.readouterr().out


def test_interpolate_says_from_where_points_cost_nothing(runs, tmp_path, capsys):
    """With one inner point, the table holds all that J is made of."""
    out = tmp_path / "likely.png"
    options = [
        "--typical",
        "True",
        "--pairs",
        "3",
        "--iterations",
        "10",
        "--steps",
        "3",
        "--out",
        str(out),
    ]
    assert interpolate.main([str(runs["vae-digits"]), "--method", "likelihood", *options]) == 0
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    level = float(rows[0]["typical_from"])
    # Chi-squared of 2 degrees: its density at the quantile of 95 % sets the error of 10,000 draws.
    error = math.sqrt(0.05 * 0.95 / 10_000) / 0.05
    assert level == pytest.approx(math.log(2 * math.pi) + math.log(20), abs=4 * error)
    said = capsys.readouterr().out
    assert f"  Normal, typical from {level:.2f} nats\n" in said
    # All is typical between images of one small run, so no path is better than the line.
    lines = sum(row["likely_length"] == row["linear_length"] for row in rows)
    assert f"  {lines} of 3 likely paths are the straight lines: their points" in said
    for row, name in product(rows, ("linear", "likely")):
        length, spread, nll, objective = (
            float(row[f"{name}_{term}"]) for term in ("length", "spread", "nll", "objective")
        )
        cost = max(0, nll - level)
        assert objective == pytest.approx(10 * length + 100 * spread + cost, abs=1e-3)


def test_interpolate_above_and_below_a_ladder(tmp_path, capsys):
    """Lines and paths run through its two inner latents, or through its three."""
    run = Run.open(small_run(tmp_path / "run", "--model.dim", "3"))
    model, images = run.model("last"), load(run.config.data).train.images(torch.arange(3)) / 255
    with torch.no_grad():
        z = model.encode(images)
        points = {"t": model.latent_prior.posterior(z)[0], "z": z}
    common = ["--method", "likelihood", "--from", "0", "0", "--to", "1", "2", "--steps", "5"]
    for space, ends in points.items():
        out = tmp_path / f"{space}.png"
        options = [*common, "--space", space, "--iterations", "10", "--out", str(out)]
        assert interpolate.main([str(run.path), *options]) == 0
        rows = list(csv.DictReader(out.with_suffix(".csv").open()))
        found = [float(row["linear_length"]) for row in rows]
        assert found == pytest.approx((ends[1:] - ends[0]).norm(dim=1).tolist(), rel=1e-4)
        assert out.with_name(f"{space}-density.png").is_file() == (space == "t")


def test_interpolate_by_the_published_search(runs, tmp_path, capsys):
    folder = tmp_path / "single"
    options = ["--search", "original", "--iterations", "20", "--from", "0", "--to", "32"]
    options += ["--split", "test", "--steps", "4", "--folder", str(folder)]
    assert interpolate.main([str(runs["vae-digits"]), "--method", "likelihood", *options]) == 0
    assert "test image 0 to 32; from the line" in capsys.readouterr().out
    images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert len(images) == 8
    assert np.array_equal(images[0], images[4]) and np.array_equal(images[3], images[7])


@pytest.fixture
def walked(monkeypatch) -> dict[str, torch.Tensor]:
    """The latents of each method's walks, as a table of walks comes to them."""
    found = {}

    def recorded(model, path, *others):
        found[path.method] = path.latents
        return measured(model, path, *others)

    monkeypatch.setattr("fastlatent.commands.experiments.walk_table.measured", recorded)
    return found


def test_table_of_walks(runs, walked, tmp_path, capsys):
    out = tmp_path / "walks.csv"
    options = ["--pairs", "4", "--steps", "5", "--out", str(out)]
    assert walks.main([*map(str, runs.values()), *options, "--no-features"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in runs)
    rows = list(csv.DictReader(out.open()))
    assert [row["method"] for row in rows] == [
        "spherical",
        "linear",
        "likelihood",
        "geodesic",
        "copula",
    ]
    by_method = {row["method"]: row for row in rows}
    assert by_method["copula"]["log_density"] == "" and by_method["copula"]["distance"] == ""
    density = {name: float(by_method[name]["log_density"]) for name in ("linear", "likelihood")}
    assert density["likelihood"] >= density["linear"] - 1e-6
    for method in ("spherical", "linear", "likelihood", "geodesic"):
        inner = walked[method][:, 1:-1]
        log_prob = -inner.square().sum(2) / 2 - math.log(2 * math.pi)
        assert inner.shape == (4, 3, 2)
        found = float(by_method[method]["log_density"])
        assert found == pytest.approx(float(log_prob.mean()), abs=1e-5)
        error = float(log_prob.mean(1).std()) / 2
        assert float(by_method[method]["log_density_error"]) == pytest.approx(error, abs=1e-5)
    assert float(by_method["geodesic"]["image_length"]) > 0


def test_a_table_says_what_is_not_possible(runs, tmp_path, capsys):
    """A Ladder VAE has no density of all its latents, and no prior is fitted to the VAE."""
    ladder, out = train_ladder(tmp_path, 1), tmp_path / "walks.csv"
    options = ["--pairs", "2", "--steps", "4", "--prior", "vamp", "--no-features"]
    paths = [str(ladder), str(runs["vae-digits"])]
    assert walks.main([*paths, *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{ladder}: no likely walks and no log p: likely paths need a density of all" in said
    assert "use spherical or linear or geodesic" in said
    assert f"{runs['vae-digits']}: no likely walks and no log p: no prior 'vamp' is fitted" in said
    rows = list(csv.DictReader(out.open()))
    methods = ["spherical", "linear", "geodesic", "likelihood"]
    assert [row["method"] for row in rows] == methods * 2
    assert rows[3]["image_length"] == "" != rows[2]["image_length"]
    assert re.search(r"likelihood +no density: no prior 'vamp' is fitted", said)
    assert all(row["log_density"] == "" for row in rows)
    assert interpolate.main([str(ladder), "--method", "likelihood"]) == 2
    error = capsys.readouterr().err
    assert "use spherical or linear or geodesic" in error and "fit_prior" not in error


def test_table_with_distances_of_features(runs, walked, tmp_path, monkeypatch):
    """Of the inner images to the split, by features that a network gives."""
    weight = torch.randn(28 * 28, 3, generator=torch.Generator().manual_seed(0))

    def features(images):
        return images.flatten(1).double() @ weight[: images[0].numel()].double() / 255

    monkeypatch.setattr(
        walk_table, "classifier_of", lambda *_: Extractor(features, "classifier", "")
    )
    out = tmp_path / "walks.csv"
    run = Run.open(runs["vae-digits"])
    assert walks.main([str(run.path), "--pairs", "6", "--steps", "5", "--out", str(out)]) == 0
    rows = {row["method"]: row for row in csv.DictReader(out.open())}
    split, model = load(run.config.data).test, run.model("last")
    real = features(split.images(torch.arange(len(split))) / 255)
    for method, row in rows.items():
        with torch.no_grad():
            inner = to_uint8(model.decode(walked[method][:, 1:-1].flatten(0, 1)))
        fake = features(inner / 255)
        found, error = float(row["distance"]), float(row["distance_error"])
        assert found == pytest.approx(float(frechet_from_features(real, fake)), rel=1e-4)
        assert error == pytest.approx(float(frechet_standard_error(real, fake, 3)), rel=1e-3)


OTHER_THAN_DEFAULT = {
    "prior": "gmm",
    "space": "z",
    "reduction": "mean",
    "typical": "False",
    "search": "original",
}


@pytest.mark.parametrize("name", [option.name for option in fields(LikelyOptions)])
def test_options_of_likely_paths_need_their_method(name, runs, capsys):
    option = f"--{name.replace('_', '-')}"
    given = [option, OTHER_THAN_DEFAULT.get(name, "7"), "--method", "linear"]
    assert interpolate.main([str(runs["vae-digits"]), *given]) == 2
    assert f"{option} needs --method likelihood" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "code", "complaint"),
    [
        (interpolate, ["{bits}", "--method", "likelihood"], 1, "use copula"),
        (
            interpolate,
            ["{real}", "--method", "likelihood", "--prior", "ladder"],
            1,
            "fastlatent.fit_prior",
        ),
        (interpolate, ["{real}", "--prior", "gmm"], 2, "--prior needs --method likelihood"),
        (interpolate, ["{real}", "--search", "original"], 2, "--search needs --method likelihood"),
        (
            interpolate,
            ["{real}", "--method", "likelihood", "--steps", "2"],
            2,
            "--method likelihood needs --steps 3 or more",
        ),
        (
            interpolate,
            ["{real}", "--method", "likelihood", "--length-weight", "-1"],
            1,
            "--length-weight must be finite and not below 0",
        ),
        (walks, [], 2, "name a run folder"),
        (walks, ["nowhere"], 1, "nowhere is not a run folder"),
        (walks, ["{real}", "--pairs", "0"], 2, "--pairs must be at least 1"),
        (walks, ["{real}", "--pairs", "1000"], 2, "--pairs must be at most 150"),
    ],
)
def test_commands_say_what_is_wrong(runs, command, arguments, code, complaint, capsys):
    names = {"bits": runs["lbae-digits"], "real": runs["vae-digits"]}
    assert command.main([word.format(**names) for word in arguments]) == code
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


def test_help_documents_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert walks.main(["--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--pairs", "--steps", "--split", "--prior", "--features", "--repair", "--out"):
        assert option in said
