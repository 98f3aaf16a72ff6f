"""The run folder: configuration, durable files, checkpoints, exact resume."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import nn

from fastlatent import train
from fastlatent.files.writing import written_whole
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.presets import PRESETS, Interval, TrainConfig
from fastlatent.runs import (
    Log,
    Run,
    State,
    from_json,
    pack_generators,
    pack_optimizer,
    read_config,
    read_metrics,
    to_json,
    unpack_generators,
    unpack_optimizer,
)
from fastlatent.runs.files import read_tensors, write_json, write_tensors
from fastlatent.training.learner import optimizer_of

# A model and a data set that take a step in milliseconds.
TINY = (
    *("--model.width", "0.05", "--model.dim", "12", "--batch", "32", "--data.per-class", "16"),
    *("--log-every", "1 step", "--eval-every", "3 steps", "--checkpoint-every", "2 steps"),
    *("--pictures-every", "never", "--device", "cpu"),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", PRESETS["lbae-digits"].config)
    made.create()
    return made


def state(step: int, value: float = 1.0) -> State:
    return State(step, {"weights": {"w": torch.full((3,), value)}}, {"step": step})


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name: str, tmp_path: Path) -> None:
    config = PRESETS[name].config
    data = replace(config.data, root=Path("/data"), classes=(1, 2))
    config = replace(config, data=data, steps=7, clip=1.0)
    write_json(tmp_path / "config.json", to_json(config))
    assert repr(read_config(tmp_path / "config.json")) == repr(config)  # 4 would equal 4.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"epoch": 3}, "unknown key 'epoch'"),
        ({"model": {"dims": 3}}, "unknown key 'dims'"),
        ({"epochs": "3"}, "epochs must be of type int; got '3'"),
        ({"epochs": True}, "epochs must be of type int; got True"),
        ({"clip": "x"}, "clip must be a number; got 'x'"),
        ({"precision": "fp8"}, "precision must be one of 'fp32', 'bf16', 'fp16'; got 'fp8'"),
        ({"data": {"classes": 3}}, "classes must be a list; got 3"),
        ({"data": {"root": 3}}, "root must be a path; got 3"),
        ({"data": 3}, "data must be a JSON object; got 3"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"model": {"family": "gan"}}, "model: family must be one of .*, glo.*; got .gan."),
    ],
)
def test_config_is_strict(change: dict, complaint: str) -> None:
    values = to_json(PRESETS["lbae-digits"].config)
    with pytest.raises(ValueError, match=complaint):
        from_json(TrainConfig, values | change)


def test_config_needs_what_has_no_default() -> None:
    with pytest.raises(ValueError, match="lacks the key 'name'"):
        from_json(TrainConfig, {})


def test_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "due"),
    [("2 epochs", [10, 20]), ("1 epoch", [5, 10, 15, 20]), ("8", [8, 16]), ("8 steps", [8, 16])],
)
def test_intervals(text: str, due: list[int]) -> None:
    every = Interval.parse(text)
    assert [step for step in range(1, 21) if every.due(step, steps_per_epoch=5)] == due
    assert not any(Interval.parse("never").due(step, 5) for step in range(20))


@pytest.mark.parametrize("kind", ["adam", "adamax", "sgd"])
def test_an_overflow_under_a_loss_scale_is_noticed(kind: str) -> None:
    """As on a GPU in fp16: steps that the scaler leaves out are counted, so they must be seen."""
    weight = nn.Parameter(torch.ones(2))
    config = replace(PRESETS["vae-digits"].config, optimizer=kind, precision="fp16")
    Accelerator(cpu=True)  # its state is what the wrapped optimizer asks for
    scaler = torch.amp.GradScaler("cpu")
    optimizer = AcceleratedOptimizer(
        optimizer_of(config, [{"params": [weight], "lr": 0.1}]), scaler=scaler
    )
    for scale, skipped in ((1.0, False), (math.inf, True), (1.0, False)):
        before = weight.detach().clone()
        scaler.scale(scale * weight.sum()).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == skipped
        assert torch.equal(before, weight) == skipped
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("folder", "title"), [("lbae-digits", "lbae-digits"), ("first", "first: lbae-digits")]
)
def test_a_title_says_each_name_once(folder: str, title: str) -> None:
    assert Run(Path("runs", folder), PRESETS["lbae-digits"].config).title == title


def test_tensors_round_trip_with_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7), "c": torch.empty(0, 2)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"key": "value"})
    read, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"key": "value"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b[:6], lambda b: b"", lambda b: b"x" * 99]
)
def test_damaged_tensors_are_a_sentence(tmp_path: Path, damage) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.randn(30)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
        read_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    with pytest.raises(OSError, match="No such file"):
        write_json(tmp_path / "nowhere" / "values.json", [2])
    assert json.loads(path.read_text()) == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["values.json"]


def test_errors_of_writing_say_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(OSError, match=r"^cannot write mode F as PNG$"), written_whole(path):
        raise OSError("cannot write mode F as PNG")
    with pytest.raises(OSError, match="No such file") as other, written_whole(path):
        (tmp_path / "another").read_bytes()
    assert other.value.filename == str(tmp_path / "another")
    with pytest.raises(OSError, match="No space left") as own, written_whole(path):
        raise OSError(28, "No space left on device")  # as write() raises it, without a name
    assert own.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as own, written_whole(path) as temporary:
        temporary.read_bytes()
    assert own.value.filename == str(path)


def test_a_disk_that_cannot_be_written_is_named_by_the_file_asked_for(
    tmp_path, monkeypatch
) -> None:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    path = tmp_path / "values.json"
    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        write_json(path, [1])
    assert error.value.filename == str(path)


def test_a_run_that_vanishes_is_a_sentence(run: Run, capfd: pytest.CaptureFixture) -> None:
    log = Log(run.path)
    log.numbers("train", 1, 0.1, {"loss": 1.0})
    log._board.call("flush")
    shutil.rmtree(run.path)
    for step in range(2, 5):
        log.numbers("train", step, 0.1, {"loss": 1.0})
        log._board.call("flush")
    with pytest.raises(RunError, match=rf"cannot write the checkpoint of step 4 to {run.path}: No"):
        run.save(state(4))
    log.close()
    said, errors = capfd.readouterr()
    assert said.count("gets nothing more for TensorBoard") == 1
    assert not errors
    assert not run.path.exists()


def test_training_goes_on_without_tensorboard(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Log(tmp_path)
    log.numbers("train", 1, 0.1, {"loss": 1.0})
    log.close()
    assert read_metrics(tmp_path)[0]["loss"] == 1
    assert "gets nothing more for TensorBoard: import of torch.utils" in capsys.readouterr().out


def test_checkpoints_keep_the_newest(run: Run) -> None:
    assert run.latest() is None
    for step in (0, 10, 20, 30):
        run.save(state(step, step))
        run.prune(2)
    assert run.steps() == [20, 30]
    assert run.latest() == 30
    assert run.load().tensors["weights"]["w"].tolist() == [30.0] * 3
    assert run.load(20).values == {"step": 20}
    assert load_file(run.path / "weights.safetensors")["w"].tolist() == [30.0] * 3


def test_checkpoint_brings_back_its_best_weights(run: Run) -> None:
    run.save(state(0))
    run.write_best({"w": torch.ones(1)}, 1, 0.5)
    run.save(state(2))
    run.write_best({"w": torch.zeros(1)}, 3, 0.25)
    run.save(state(4))
    run.rewind(2)
    assert load_file(run.path / "best.safetensors")["w"].tolist() == [1.0]
    assert run.latest() == 2
    assert run.steps() == [0, 2]  # what came after is dropped
    run.rewind(0)
    assert not (run.path / "best.safetensors").exists()


def test_an_unfinished_checkpoint_is_not_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(state(1))
    whole = run.load().tensors

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(
                RunError, match="No space left on device; the one of step 1 is whole"
            ):
                run.save(state(2))
        assert run.latest() == 1
        assert torch.equal(run.load().tensors["weights"]["w"], whole["weights"]["w"])
        assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "json"])
def test_damaged_checkpoint_is_a_sentence(run: Run, damage: str) -> None:
    run.save(state(1))
    run.save(state(2))
    path = run.path / "state/2/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "flip":
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-4])
    elif damage == "remove":
        path.unlink()
    else:
        (run.path / "state/2/state.json").write_text("{")
    with pytest.raises(RunError, match=r"state/2 cannot be used: .*; try step=1"):
        run.load()
    assert run.load(1).step == 1


def test_load_names_what_there_is(run: Run) -> None:
    with pytest.raises(RunError, match="no checkpoint to resume from"):
        run.load()
    run.save(state(3))
    with pytest.raises(RunError, match="no checkpoint of step 2; kept: 3"):
        run.load(2)


def test_place_of_a_new_run(run: Run, tmp_path: Path) -> None:
    Run.check_free(tmp_path / "new")
    Run.check_free(run.path)  # it never got as far as a trained step
    run.save(state(1))
    with pytest.raises(
        UsageError,
        match=r"already holds a run; go on with it by python -m .* --resume",
    ):
        Run.check_free(run.path)
    (tmp_path / "other").mkdir()
    Run.check_free(tmp_path / "other")
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is there and is no run"):
        Run.check_free(tmp_path / "other")
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"editor": "mine"}')
    with pytest.raises(UsageError, match="is there and is no run"):
        Run.check_free(tmp_path / "other")


def test_a_run_that_only_began_gives_way_but_nothing_else_does(run: Run) -> None:
    for name in ("metrics.jsonl", "events.out.tfevents.1", ".latest.17.tmp"):
        (run.path / name).touch()
    Run.check_free(run.path)
    (run.path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"holds letter\.txt, which is no part of a run"):
        Run.check_free(run.path)


@pytest.mark.parametrize("pointer", ["{}", "[3]", "true", '"3"'])
def test_damaged_pointer_is_a_sentence(run: Run, pointer: str) -> None:
    run.save(state(3))
    (run.path / "state/latest").write_text(pointer)
    with pytest.raises(ValueError, match="latest is damaged: it must hold a step"):
        run.load()


def test_a_step_saved_again_replaces_the_first_only_once_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(state(1, 1.0))
    replace_file = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == ".1.tmp":
            raise OSError(5, "Input/output error")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(RunError, match="the one of step 1 is whole"):
            run.save(state(1, 2.0))
    assert run.load().tensors["weights"]["w"].tolist() == [1.0] * 3
    run.save(state(1, 2.0))
    assert run.load().tensors["weights"]["w"].tolist() == [2.0] * 3
    assert not list(run.path.rglob("*.tmp"))


def test_weights_that_do_not_fit(run: Run) -> None:
    run.write_weights({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"does not fit the model of config\.json"):
        run.model("last")
    with pytest.raises(RunError, match="no best weights yet"):
        run.model("best")


def test_log_is_cut_back(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.numbers("train", 1, 0.5, {"loss": 0.1})
    length = log.flush_to_disk()
    log.numbers("train", 2, 1.0, {"loss": 0.2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # a crash in the middle of a line
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.1, 0.2]
    log = Log(tmp_path, 1, length)
    log.numbers("train", 2, 1.0, {"loss": 0.3})
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.1, 0.3]


def test_optimizer_round_trip() -> None:
    def make() -> tuple[torch.nn.Conv2d, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Conv2d, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3, 3, 3)).square().sum().backward()
        optimizer.step()

    first, adam = make()
    step(first, adam)
    tensors, values = pack_optimizer(adam)
    values = json.loads(json.dumps(values))
    second, other = make()
    second.load_state_dict(first.state_dict())
    stored = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    unpack_optimizer(other, stored, values)
    for moment in ("exp_avg", "exp_avg_sq"):
        back, kept = other.state[second.weight][moment], adam.state[first.weight][moment]
        assert torch.equal(back, kept)
        assert (
            back.stride() == kept.stride() == first.weight.stride() != stored["0/exp_avg"].stride()
        )
    step(first, adam)
    step(second, other)
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(ValueError, match="belongs to another model"):
        unpack_optimizer(torch.optim.Adam([torch.zeros(1)]), tensors, values)


def test_generators_round_trip() -> None:
    import random

    import numpy as np

    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.randn()), float(torch.randn(()))

    numbers()  # leaves half a pair of normal numbers in numpy's generator
    tensors, values = pack_generators()
    values = json.loads(json.dumps(values))
    expected = numbers()
    unpack_generators(tensors, values)
    assert numbers() == expected


# Runs the command and dies by SIGKILL just before optimizer step argv[1].
KILLED = """
import os, signal, sys
from fastlatent import train
from fastlatent.training import Learner

learn = Learner.learn

def learn_or_die(self, step, parts, plan):
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    learn(self, step, parts, plan)

Learner.learn = learn_or_die
train.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "options",
    [
        ("--ema", "0.9", "--accumulate", "2", "--clip", "100"),
        (
            *("--data.resident", "stream", "--data.workers", "2"),
            *("--model.latent", "gaussian", "--model.kl-weight", "1"),
            *("--model.corruption", "noise", "--model.corruption-strength", "0.1"),
        ),
    ],
    ids=["bits, resident, moving average", "gaussian, streaming, noise"],
)
def test_killed_and_resumed_is_never_interrupted(options: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*TINY, *options, "--steps", "12"]
    assert train.main([*arguments, "--out", str(whole)]) == 0

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "7", *arguments, "--out", str(broken)],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    assert Run.open(broken).latest() == 6
    assert read_metrics(broken)[-1]["step"] == 7  # logged after the checkpoint, to be taken back
    assert train.main(["--resume", str(broken)]) == 0

    names = ["weights.safetensors", "best.safetensors"]
    states = [f"state/12/{path.name}" for path in (whole / "state/12").glob("*.safetensors")]
    assert {Path(name).stem for name in states} >= {"weights", "optimizer", "generators"}
    for name in names + states:
        ours, theirs = load_file(whole / name), load_file(broken / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert without_rates(whole) == without_rates(broken)
    assert (whole / "codes.safetensors").exists() == ("gaussian" not in options)


@pytest.mark.processes
def test_two_processes_stopped_and_resumed_are_never_interrupted(tmp_path: Path) -> None:
    def launch(*arguments: str) -> subprocess.CompletedProcess:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        return subprocess.run(
            [sys.executable, *launcher, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=120,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*TINY, "--model.latent", "gaussian", "--model.kl-weight", "1", "--steps", "8"]
    command = ("-m", "fastlatent.train")
    assert launch(*command, *arguments, "--out", str(whole)).returncode == 0
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    assert launch(str(script), "5", *arguments, "--out", str(broken)).returncode != 0
    assert Run.open(broken).latest() == 4
    resumed = launch(*command, "--resume", str(broken))
    assert resumed.returncode == 0, resumed.stderr

    for path in (whole / "state/8").glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(broken / "state/8" / path.name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), path.name
    assert without_rates(whole) == without_rates(broken)


def without_rates(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(folder)
    ]


def test_resume_from_an_earlier_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "6", "--keep", "4", "--out", str(out)]) == 0
    run = Run.open(out)
    assert run.steps() == [0, 2, 4, 6]
    end = load_file(out / "weights.safetensors")

    assert train.main(["--resume", str(out), "--from-step", "2", "--keep", "9"]) == 0
    assert run.steps() == [0, 2, 4, 6]
    again = load_file(out / "weights.safetensors")
    assert all(torch.equal(end[name], again[name]) for name in end)

    capsys.readouterr()
    assert train.main(["--resume", str(out), "--steps", "8"]) == 0
    said = capsys.readouterr().out
    assert "changed: steps from 6 to 8" in said
    assert "going on after step 6" in said
    assert Run.open(out).config.steps == 8
    drawn = out / "images" / "samples-copula.png"
    drawn.write_bytes(b"what sample drew later")
    assert train.main(["--resume", str(out)]) == 0
    assert "already trained to step 8" in capsys.readouterr().out
    assert drawn.read_bytes() == b"what sample drew later"
    for option in ("--model.dim", "--batch", "--data.per-class"):
        assert train.main(["--resume", str(out), option, "8"]) == 2
        said = capsys.readouterr().err
        assert re.search(rf"{option} cannot change in a resumed run: had .*; got 8", said)


def test_resume_from_the_beginning_needs_no_pictures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "2", "--out", str(out)]) == 0
    end = (out / "weights.safetensors").read_bytes()
    shutil.rmtree(out / "images")
    assert train.main(["--resume", str(out), "--from-step", "0"]) == 0
    assert (out / "weights.safetensors").read_bytes() == end
    assert (out / "images" / "reconstructions.png").exists()


def test_resume_on_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "2", "--out", str(out)]) == 0
    state = out / "state/2/state.json"
    state.write_text(state.read_text().replace('"images": 160', '"images": 170'))
    assert train.main(["--resume", str(out), "--steps", "4"]) == 1
    said = capsys.readouterr().err
    assert "the training set has 160 images now and had 170" in said


def test_files_do_not_grow_secret(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(1)})
    assert (tmp_path / "t.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
