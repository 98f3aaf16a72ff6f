"""Training a Ladder VAE: what the log says, exact resume, initialisation, steps left out."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastlatent import train
from fastlatent.data import load
from fastlatent.models import LadderVAE
from fastlatent.noise import Noise
from fastlatent.runs import Run, read_metrics
from fastlatent.training import Learner

# A model and a data set that take a step in milliseconds.
TINY = (
    *("lvae-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8"),
    *("--model.zdims", "2", "3", "--model.downsample", "1", "0", "--model.filters", "4"),
    *("--batch", "32", "--data.per-class", "16", "--device", "cpu", "--test-batch", "200"),
    *("--log-every", "1 step", "--eval-every", "3 steps", "--checkpoint-every", "1 step"),
    *("--pictures-every", "never", "--keep", "20"),
)


def lines(folder: Path, kind: str) -> list[dict]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options",
    [
        ("--model.beta-anneal", "9", "--accumulate", "2", "--ema", "0.9"),
        pytest.param(
            ("--model.residual", "cabdcabd", "--clip", "5", "--data.resident", "stream"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["annealing, accumulated, moving average", "clipped, streaming"],
)
def test_stopped_and_resumed_is_never_interrupted(options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    bound = ("--bound-every", "4 steps", "--bound-samples", "3", "--bound-images", "10")
    arguments = [*TINY, *options, *bound]
    assert train.main([*arguments, "--steps", "12", "--out", str(whole)]) == 0
    assert train.main([*arguments, "--steps", "6", "--out", str(broken)]) == 0
    assert train.main(["--resume", str(broken), "--steps", "12"]) == 0
    for path in (whole / "state/12").glob("*.safetensors"):
        if path.name != "best.safetensors":  # the end of the first run was a test of its own
            assert same(load_file(path), load_file(broken / "state/12" / path.name)), path.name

    def numbers(folder: Path, kind: str) -> list[dict]:
        return [
            {name: value for name, value in line.items() if name != "images_per_second"}
            for line in lines(folder, kind)
        ]

    for kind in ("train", "bound", "test"):
        assert numbers(whole, kind) == numbers(broken, kind)
    assert [line["step"] for line in lines(whole, "bound")] == [4, 8, 12]


def test_the_log_tells_of_every_layer(tmp_path, capsys):
    out = tmp_path / "run"
    bound = ("--bound-every", "2 steps", "--bound-samples", "3", "--bound-images", "10")
    assert train.main([*TINY, *bound, "--steps", "3", "--out", str(out)]) == 0
    train_lines = lines(out, "train")
    assert [line["step"] for line in train_lines] == [1, 2, 3]
    for line in train_lines + lines(out, "test"):
        assert line["kl"] == pytest.approx(line["kl_layer_0"] + line["kl_layer_1"], rel=1e-4)
        assert line["elbo"] == pytest.approx(-line["reconstruction"] - line["kl"], rel=1e-4)
    assert all(line["gradient_norm"] > 0 and line["skipped_steps"] == 0 for line in train_lines)
    assert all(line["loss"] == -line["elbo"] for line in lines(out, "test"))
    (measured,) = lines(out, "bound")
    assert measured["samples"] == 3 and measured["step"] == 2
    assert -1000 < measured["log_likelihood"] < 0 < measured["standard_error"]
    assert "log-likelihood at least" in capsys.readouterr().out


def test_a_bound_needs_a_likelihood(tmp_path, capsys):
    arguments = ("--bound-every", "1 step", "--steps", "1", "--device", "cpu")
    assert train.main(["lbae-digits", *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "--bound-every needs a model with a likelihood, such as lvae; this is lbae" in said
    assert not (tmp_path / "run").exists()


def test_initialised_once_from_images_spread_over_the_split(tmp_path, monkeypatch):
    seen: list[Tensor] = []
    initialise = LadderVAE.initialise

    def noted(self: LadderVAE, x: Tensor, noise: Noise) -> None:
        seen.append(x)
        initialise(self, x, noise)

    monkeypatch.setattr(LadderVAE, "initialise", noted)
    out = tmp_path / "run"
    assert train.main([*TINY, "--ema", "0.9", "--steps", "1", "--out", str(out)]) == 0
    run = Run.open(out)
    (images,) = seen
    train_images = load(run.config.data).train
    expected = train_images.images(train_images.spread(32))
    torch.testing.assert_close(images, expected / 255)
    start = load_file(out / "state/0/weights.safetensors")
    assert same(start, load_file(out / "state/0/model.safetensors"))
    counters = [value for name, value in start.items() if name.endswith("num_batches_tracked")]
    assert counters and all(value == 1 for value in counters)

    assert train.main(["--resume", str(out), "--steps", "2"]) == 0
    assert len(seen) == 1
    plain = [*TINY, "--model.no-data-dependent-init", "--steps", "1"]
    assert train.main([*plain, "--out", str(tmp_path / "plain")]) == 0
    assert len(seen) == 1


# Nats of a batch of 64 at each step, of one run of the authors' program with this command.
PUBLISHED = {1: 585, 2: 477, 5: 318, 10: 264, 20: 234, 50: 195.7, 100: 168.8}


@pytest.mark.slow  # minutes
def test_the_first_steps_are_those_of_the_authors_program(data_root, tmp_path):
    arguments = ("--data.root", str(data_root), "--steps", "100", "--log-every", "1 step")
    seldom = ("--eval-every", "never", "--pictures-every", "never", "--test-images", "500")
    options = [*arguments, *seldom, "--device", "cpu", "--out", str(tmp_path / "run")]
    assert train.main(["lvae-static-mnist-3", *options]) == 0
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "run", "train")}
    assert {step: losses[step] for step in PUBLISHED} == pytest.approx(PUBLISHED, rel=0.15)
    (tested,) = lines(tmp_path / "run", "test")
    assert tested["loss"] == pytest.approx(192.5, rel=0.15)


def poisoned(*steps: int):
    """A forward pass that is shown NaN at these steps."""
    forward = LadderVAE.forward

    def spoilt(self: LadderVAE, x: Tensor, target: Tensor | None = None, noise: Noise = None):
        if self.training and noise.step in steps:
            x = x * float("nan")
        return forward(self, x, target, noise)

    return spoilt


def test_steps_that_are_not_finite_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(LadderVAE, "forward", poisoned(3, 4, 6))
    out = tmp_path / "run"
    assert train.main([*TINY, "--skip", "2", "--steps", "8", "--out", str(out)]) == 0
    counts = [line["skipped_steps"] for line in lines(out, "train")]
    assert counts == [0, 0, 0, 1, 2, 2, 3, 3]
    assert [line["step"] for line in lines(out, "train") if "loss" not in line] == [4, 5, 7]

    def state(step: int, name: str) -> dict[str, Tensor]:
        tensors = load_file(out / f"state/{step}/{name}.safetensors")
        return {name: value for name, value in tensors.items() if "num_batches_tracked" not in name}

    for name in ("weights", "optimizer"):
        assert same(state(3, name), state(5, name))
        assert same(state(6, name), state(7, name))
        assert not same(state(5, name), state(6, name))
    resumed = ["--resume", str(out), "--from-step", "5", "--steps", "6"]
    assert train.main(resumed) == 0
    assert lines(out, "train")[-1]["skipped_steps"] == 2


RANK = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from fastlatent import train
from fastlatent.models import LadderVAE
from fastlatent.training.learner import Learner

forward, learn = LadderVAE.forward, Learner.learn
learners = []

def spoilt(self, x, target=None, noise=None):
    if self.training and noise.step in (1, 3) and dist.get_rank() == 1:
        x = x * float("nan")
    return forward(self, x, target, noise)

def watched(self, *arguments):
    learners[:] = [self]
    return learn(self, *arguments)

LadderVAE.forward, Learner.learn = spoilt, watched
failed = train.main(sys.argv[1:])
rank = os.environ["RANK"]
sums = [weight.double().abs().sum().item() for weight in learners[0].model.parameters()]
found = {"skipped": learners[0].skipped, "weights": sums}
Path(sys.argv[-1], f"rank-{rank}.json").write_text(json.dumps(found))
sys.exit(failed)
"""


@pytest.mark.processes
def test_a_step_that_one_rank_cannot_take_is_left_out_by_all(tmp_path):
    script, out = tmp_path / "rank.py", tmp_path / "run"
    script.write_text(RANK)
    options = [*TINY, "--eval-every", "5 steps", "--checkpoint-every", "5 steps", "--skip", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without torchrun, which takes as long to start as a rank.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *options, "--steps", "5", "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    try:
        for process in ranks:
            _, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, complaint[-2000:]
    finally:
        for process in ranks:
            process.kill()
    poisoned_one, other = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in (1, 0))
    assert poisoned_one["skipped"] == other["skipped"] == 2
    assert poisoned_one["weights"] == other["weights"] and all(map(math.isfinite, other["weights"]))
    assert [line["skipped_steps"] for line in lines(out, "train")] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("skip", "complaint"),
    [
        (
            "2",
            "the loss or its gradient was infinite or NaN in each of the 3 steps up to step 6; "
            "in the last one elbo, kl, kl_layer_0, kl_layer_1, loss, reconstruction",
        ),
        ("0", "the loss became infinite or NaN at step 4"),
    ],
)
def test_too_many_such_steps_in_a_row_end_the_run(skip, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LadderVAE, "forward", poisoned(3, 4, 5, 6))
    arguments = ("--skip", skip, "--steps", "8", "--out", str(tmp_path / "run"))
    assert train.main([*TINY, *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_the_published_optimizer_is_adamax(tmp_path, monkeypatch):
    kinds = []
    learn = Learner.learn

    def noted(self: Learner, *rest) -> None:
        kinds.append(type(self.optimizer.optimizer))
        learn(self, *rest)

    monkeypatch.setattr(Learner, "learn", noted)
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "1", "--out", str(out)]) == 0
    assert train.main([*TINY, "--optimizer", "adam", "--steps", "1", "--out", f"{out}2"]) == 0
    assert kinds == [torch.optim.Adamax, torch.optim.Adam]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ("--model.downsample", "1"),
            "downsample must be 2 whole numbers, one for each of --model.zdims",
        ),
        (("--model.likelihood", "poisson"), "poisson"),
        (("--model.dim", "3"), "--model.dim"),
        (("--optimizer", "adagrad"), "adagrad"),
        (("--skip", "-1"), "skip must be at least 0"),
        (("--bound-samples", "0"), "--bound-samples must be at least 1"),
        (("--data.size", "9"), "the model takes images of 8x8 pixels and 1 channel, but digits"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(options, complaint, tmp_path, capsys):
    assert train.main([*TINY, *options, "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
