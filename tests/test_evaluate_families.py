"""The evaluation of runs of every family, and of priors fitted to them."""

import json
from pathlib import Path

import pytest
import torch

from fastlatent import compare, evaluate, fit_prior, train
from fastlatent.data import load
from fastlatent.inference.passes import evaluating, measure
from fastlatent.metrics import importance_log_likelihood
from fastlatent.models import LaDDer
from fastlatent.noise import Noise
from fastlatent.runs import Run
from fastlatent.runs.priors import read_prior

RUNS = {
    "vae": (
        *("vae-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8"),
        *("--model.dim", "2", "--model.samples", "1"),
    ),
    "bigan": (
        *("bigan-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8"),
        *("--model.dim", "2", "--model.discriminator-rate", "0.6"),
    ),
    "lvae": (
        *("lvae-digits", "--model.zdims", "2", "3", "--model.downsample", "1", "1"),
        *("--model.filters", "4"),
    ),
    "ladder": ("ladder-digits", "--prior", "normal", "--model.dim", "3"),
}
BRIEF = (
    *("--device", "cpu", "--batch", "32", "--steps", "4", "--pictures-every", "never"),
    *("--data.per-class", "30"),
)
LIMIT = ("--images", "24", "--device", "cpu")


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    assert train.main([*RUNS[request.param], *BRIEF, "--out", str(out)]) == 0
    return out


def test_a_fitted_prior_is_a_set_of_its_own(run: Path, tmp_path: Path, capsys) -> None:
    assert fit_prior.main([str(run), "--prior", "gmm", "--components", "3", "--images", "60"]) == 0
    assert evaluate.main([str(run), *LIMIT]) == 0
    stored = json.loads((run / "evaluation.json").read_text())
    assert set(stored["sets"]) == {"prior", "gmm", "reconstruction", "interpolation"}
    assert stored["sets"]["gmm"]["metrics"] != stored["sets"]["prior"]["metrics"]
    assert {found["images"] for found in stored["sets"].values()} == {24}
    capsys.readouterr()
    page = tmp_path / "compare.html"
    assert compare.main([str(run), "--out", str(page)]) == 0
    assert "samples from a fitted prior: gmm" in page.read_text()


def test_a_prior_of_other_weights_is_left_out(run: Path, capsys) -> None:
    assert fit_prior.main([str(run), "--prior", "normal", "--images", "60"]) == 0
    path = run / "prior-normal.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert evaluate.main([str(run), *LIMIT]) == 0
    assert "left out: " in capsys.readouterr().out
    stored = json.loads((run / "evaluation.json").read_text())
    assert "normal" not in stored["sets"]
    path.unlink()


def test_bounds_of_one_vae_under_several_priors(tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "run"
    assert train.main([*RUNS["ladder"], *BRIEF, "--out", str(out)]) == 0
    for kind in ("gmm", "hierarchical"):
        small = ("--components", "3", "--width", "8", "--depth", "1", "--steps", "20")
        assert fit_prior.main([str(out), "--prior", kind, *small]) == 0
    options = ("--features", "none", "--samples", "20", "--images", "60", "--device", "cpu")
    weighed = []
    log_weights = LaDDer.log_weights

    def noted(model: LaDDer, features, x, noise):
        weighed.append(len(x))
        return log_weights(model, features, x, noise)

    monkeypatch.setattr(LaDDer, "log_weights", noted)
    assert evaluate.main([str(out), *options]) == 0
    assert sum(weighed) == 3 * 60 * 20  # draws of 60 images under each of three priors
    monkeypatch.undo()
    said = capsys.readouterr().out
    stored = json.loads((out / "evaluation.json").read_text())
    assert set(stored["priors"]) == {"prior", "gmm", "hierarchical"}
    assert stored["priors"]["prior"]["loss"] == stored["values"]["loss"]
    losses = {kind: found["loss"]["mean"] for kind, found in stored["priors"].items()}
    assert len(set(losses.values())) == 3
    assert "under" in said and "hierarchical" in said
    opened = Run.open(out)
    model, test = opened.model("last"), load(opened.config.data).test
    own = measure(model, test, 64, 12345, 60)["loss"].value
    x = test.images(test.spread(60)) / 255
    for kind in ("gmm", "hierarchical"):
        with model.under(read_prior(opened, "last", kind, model)), evaluating(model):
            inside = measure(model, test, 64, 12345, 60)["loss"].value
            elbo = torch.stack([model(x, noise=Noise(0, k))["elbo"] for k in range(20)])
            bound, _ = importance_log_likelihood(model, x, 50, noise=Noise(1, 0))
        error = float(elbo.var(0).sum()) ** 0.5 / 60  # of the mean over 60 images of one draw each
        assert -losses[kind] == pytest.approx(float(elbo.mean()), abs=5 * error)
        # The images' own spread, as large as all the rest, is not in the differences.
        gain = bound - elbo.mean(0)
        assert gain.mean() > 3 * gain.std() / 60**0.5
    assert measure(model, test, 64, 12345, 60)["loss"].value == own != inside
