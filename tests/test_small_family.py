"""What a family needs is its forward, encode and decode, its shapes and its configuration."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_family import Small, SmallConfig

from fastlatent import evaluate, fit_prior, geodesics, interpolate, reconstruct, sample
from fastlatent.models import MODELS
from fastlatent.presets import PRESETS
from fastlatent.runs import read_metrics
from fastlatent.training import train


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("small") / "run"
    config = replace(
        PRESETS["vae-digits"].config,
        name="small",
        model=SmallConfig(),
        epochs=2,
        batch=128,
        eval_every="1 epoch",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "small", (SmallConfig, Small))
        train(config, run)
        yield run


def test_it_learns(small: Path) -> None:
    losses = [line["loss"] for line in read_metrics(small) if line["kind"] == "test"]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize(
    ("word", "options"),
    [
        (sample, ["--images", "4"]),
        (reconstruct, ["--images", "4"]),
        (interpolate, ["--pairs", "2", "--method", "linear"]),
        (interpolate, ["--pairs", "2", "--method", "likelihood", "--iterations", "5"]),
        (geodesics, ["--pairs", "2", "--max-iterations", "2"]),
        (fit_prior, ["--components", "2"]),
    ],
    ids=lambda part: part.__name__.rpartition(".")[2] if hasattr(part, "__name__") else part[-1],
)
def test_words_serve_it(small: Path, word, options, tmp_path: Path) -> None:
    assert word.main([str(small), *options]) == 0


def test_it_is_measured(small: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([str(small), "--features", "none"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\n  loss +\d+\.\d+ +\d+\.\d+  squared error per image\n", said)
    assert (small / "evaluation.json").is_file()
