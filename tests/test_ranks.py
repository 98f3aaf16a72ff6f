"""Several processes of one command: they agree, fail together, and notice who is gone."""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlatent import sample, train
from fastlatent.__main__ import COMMANDS
from fastlatent.jobs import ranks
from fastlatent.jobs.environment import check_launch
from fastlatent.jobs.ranks import main_alone, processes
from fastlatent.runs import Run, read_metrics

TINY = (
    *("vae-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8"),
    *("--model.dim", "2", "--model.samples", "1", "--model.variance-images", "40"),
    *("--model.variance-steps", "5", "--batch", "32", "--data.per-class", "16"),
    *("--pictures-every", "never", "--device", "cpu"),
)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def started(*ranks: Sequence[str], **environment: str) -> Iterator[list[subprocess.Popen]]:
    """A process for each list of arguments of Python: the ranks of a group."""
    # Without torchrun, which takes as long to start as a rank.
    shared = {"WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": free_port()}
    shared |= {"OMP_NUM_THREADS": "1"} | environment
    with ExitStack() as stack:
        processes = []
        for rank, arguments in enumerate(ranks):
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def ended(*ranks: Sequence[str], **environment: str) -> list[tuple[int, str, str]]:
    """Exit code, output and complaints of each rank."""
    with started(*ranks, **environment) as processes:
        said = [process.communicate(timeout=300) for process in processes]
        return [
            (process.returncode, *texts) for process, texts in zip(processes, said, strict=True)
        ]


def complaints(found: list[tuple[int, str, str]]) -> str:
    """What all ranks complain of, which no traceback is."""
    text = "".join(error for _, _, error in found)
    assert "Traceback" not in text, text
    return text


# Runs several commands one after the other in one process, as starting one takes seconds.
SCRIPT = """
import os, sys, json
from fastlatent import train
from fastlatent.__main__ import COMMANDS
rank = int(os.environ["RANK"])
for arguments in json.loads(sys.argv[1]):
    code = train.main([word.replace("RANK", str(rank)) for word in arguments])
    print("code", code, flush=True)
    print("next", file=sys.stderr, flush=True)
"""


def in_turn(commands: list[list[str]]) -> list[tuple[list[int], str]]:
    """For each of the commands, run by two ranks ("RANK" stands for it): codes and complaints."""
    found = ended(*[["-c", SCRIPT, json.dumps(commands)]] * 2)
    codes = [
        [int(line.split()[1]) for line in out.splitlines() if line.startswith("code")]
        for _, out, _ in found
    ]
    said = [error.split("next\n") for _, _, error in found]
    assert len(codes[0]) == len(codes[1]) == len(commands), [error for _, _, error in found]
    return [
        (list(pair), "".join(texts))
        for pair, texts in zip(zip(*codes, strict=True), zip(*said, strict=False), strict=False)
    ]


@pytest.mark.processes
def test_ranks_that_would_train_different_things_end_with_one_sentence(tmp_path: Path) -> None:
    brief = [*TINY, "--steps", "2", "--checkpoint-every", "never"]
    for number in (0, 1):
        own = ["--lr", f"0.00{number + 1}", "--out", str(tmp_path / f"run{number}")]
        assert train.main([*brief, *own]) == 0
    generator = np.random.default_rng(0)
    for number in (0, 1):
        images = generator.integers(0, 256, (100 + 20 * number, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"images{number}.npz", x=images)
    for name in ("same0", "same1"):
        np.savez(tmp_path / f"{name}.npz", x=generator.integers(0, 256, (90, 8, 8), dtype=np.uint8))
    files = ["--data.name", f"npz:{tmp_path}/imagesRANK.npz", "--data.per-class", "None"]
    alike = ["--data.name", f"npz:{tmp_path}/sameRANK.npz", "--data.per-class", "None"]
    new = ["--out", str(tmp_path / "new")]
    (tmp_path / "only0").symlink_to(tmp_path / "run0")
    (tmp_path / "place0").mkdir()
    np.savez(tmp_path / "place0/x.npz", x=images)
    cases = {
        "process 1 has checkpoint 2 (of mark ": [
            "--resume",
            f"{tmp_path}/runRANK",
            "--lr",
            "0.001",
        ],
        "process 1 has lr 0.11, and process 0 has 0.01": [*brief, *new, "--lr", "0.RANK1"],
        "process 1 has train images 108 (of mark ": [*brief, *files, *new],
        "process 1 has train images 81 (of mark ": [*brief, *alike, *new],
        f"{tmp_path}/only1 is not a run folder": ["--resume", f"{tmp_path}/onlyRANK"],
        f"there is no file {tmp_path}/place1/x.npz": [
            *brief,
            *new,
            "--data.name",
            f"npz:{tmp_path}/placeRANK/x.npz",
            "--data.per-class",
            "None",
        ],
    }
    for (codes, said), expected in zip(in_turn(list(cases.values())), cases, strict=True):
        assert codes in ([1, 1], [2, 2]), (expected, said)
        assert expected in said
        assert said.count("error") == 1, said
        assert "Traceback" not in said, said
        assert not (tmp_path / "new").exists()


# A rank halts itself before a step, by the signal and in the step that the first words name.
HALTED = """
import os, signal, sys
import fastlatent.jobs.ranks
from fastlatent import train
from fastlatent.__main__ import COMMANDS
from fastlatent.training import Learner

number, rank = signal.Signals[sys.argv[1]], os.environ["RANK"]
fastlatent.jobs.ranks.GRACE = 1.0
learn = Learner.learn

def halted(self, step, parts, plan):
    if step == 3 and rank == "1":
        os.kill(os.getpid(), number)
    learn(self, step, parts, plan)

Learner.learn = halted
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("SIGSTOP", "process 1 has given no sign of life for 3 seconds"),
        pytest.param("SIGKILL", "another process has ended", marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_is_told_of_with_step_and_remedy(
    number: str, reason: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = (*TINY, "--steps", "8", "--checkpoint-every", "2 steps", "--timeout", "3")
    arguments = ("-c", HALTED, number, *options, "--out", str(out))
    with started(arguments, arguments) as (first, _):
        _, said = first.communicate(timeout=300)
        assert first.returncode == 1
    assert said.count("error") == 1 and "Traceback" not in said, said
    resume = f"torchrun --nproc-per-node 2 -m fastlatent.train --resume {out}"
    assert f"error: {reason}; training ends after step 3, go on after step 2 with: {resume}" in said


# In a group of the caller's, whose collectives end after 4 seconds, rank 0 fits for 6.
CALLER = """
import os, sys, threading, time
from datetime import timedelta
import torch, torch.distributed as dist
from accelerate.state import PartialState
from fastlatent.models import LaDDer
from fastlatent.presets import PRESETS
from fastlatent import train
from fastlatent.__main__ import COMMANDS
from fastlatent.training import loop
from fastlatent.runs import Run

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
    del os.environ[name]
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=4)
)
group = dist.group.WORLD
refit = LaDDer.refit

def long(self, *arguments):
    time.sleep(6)
    kept = Run.open(loop.Path(out)).load()
    print("kept", kept.step, "refit" in kept.values["due"], flush=True)
    return refit(self, *arguments)

LaDDer.refit = long
codes = []
thread = threading.Thread(target=lambda: codes.append(train.main(sys.argv[4:])))
thread.start()
thread.join()
assert dist.is_initialized() and dist.group.WORLD is group and "RANK" not in os.environ
assert PartialState._shared_state == {}
total = torch.ones(1)
dist.all_reduce(total)
print("code", codes[0], "sum", int(total), flush=True)
"""


@pytest.mark.processes
def test_a_group_of_the_caller_serves_a_thread_and_outlives_long_work_of_one_rank(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    options = [
        "ladder-digits",
        "--model.dim",
        "3",
        "--model.prior.width",
        "8",
        "--model.width",
        "64",
    ]
    options += ["--model.prior.components", "3", "--model.schedule.warmup-epochs", "1"]
    options += ["--model.schedule.refit-samples", "200", "--data.per-class", "13", "--batch", "64"]
    options += ["--epochs", "1", "--device", "cpu", "--pictures-every", "never", "--out", str(out)]
    options += ["--model.prior.kind", "gmm"]
    ranks = [["-c", CALLER, str(k), str(tmp_path / "store"), str(out), *options] for k in (0, 1)]
    found = ended(*ranks)
    assert [code for code, *_ in found] == [0, 0], complaints(found)
    assert "code 0 sum 2" in found[0][1] and "code 0 sum 2" in found[1][1], found
    assert "kept 2 True" in found[0][1]  # the epoch was saved before the fit
    assert Run.open(out).load().values["due"] == []


class Stop(Exception):
    """Ends a run where a test wants it."""


def test_a_fit_that_was_broken_off_is_made_up_for(tmp_path: Path, monkeypatch) -> None:
    """After the epoch's checkpoint, bit for bit as if nothing had happened."""
    from fastlatent.models import LaDDer

    options = ["ladder-digits", "--model.dim", "3", "--model.width", "64", "--data.per-class", "13"]
    options += ["--model.prior.components", "3", "--model.schedule.warmup-epochs", "1"]
    options += ["--model.schedule.refit-samples", "200", "--batch", "64", "--epochs", "2"]
    options += ["--model.prior.kind", "gmm", "--device", "cpu", "--pictures-every", "never"]
    options += ["--checkpoint-every", "1 epoch"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*options, "--out", str(whole)]) == 0

    def fail(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(LaDDer, "refit", fail)
        with pytest.raises(Stop):
            train.main([*options, "--out", str(broken)])
    assert Run.open(broken).latest() == 2
    assert train.main([*options, "--out", str(broken), "--resume-or-start"]) == 0
    for name in ("weights", "optimizer", "generators"):
        ours, theirs = (Run.open(out).load().tensors[name] for out in (whole, broken))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    kinds = [[line["kind"] for line in read_metrics(out)] for out in (whole, broken)]
    assert kinds[0] == kinds[1]


def test_one_command_begins_goes_on_and_ends(tmp_path: Path, monkeypatch, capsys) -> None:
    from fastlatent.training import Learner

    out = tmp_path / "run"
    command = [*TINY, "--steps", "6", "--resume-or-start", "--out", str(out)]
    learn = Learner.learn

    def signalled(self: Learner, step: int, *rest: object) -> None:
        learn(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", signalled)
        assert train.main(command) == 128 + signal.SIGUSR1
    assert "stopped at step 4 of 6 and saved" in capsys.readouterr().err
    assert train.main(command) == 0
    assert "going on after step 4" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert train.main(command) == 0
    expected = f"{out} is finished at step 6; --steps takes it further\n"
    assert capsys.readouterr() == (expected, "")
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert train.main([*command, "--batch", "16", "--model.dim", "3", "--film-images", "4"]) == 2
    said = capsys.readouterr().err
    assert "--model.dim, --batch, --film-images cannot change in a resumed run: had 2, 32, " in said
    assert "; got 3, 16, 4\n" in said
    assert train.main(["lbae-digits", *command[-3:]]) == 2
    assert "its family is vae; got lbae" in capsys.readouterr().err
    # What another setting shows at the end is shown anew.
    assert train.main([*command, "--test-images", "20"]) == 0
    assert "already trained to step 6" in capsys.readouterr().out
    assert train.main([*command, "--test-images", "20"]) == 0
    assert "finished" in capsys.readouterr().out
    assert Run.open(out).latest() == 6


def test_training_in_a_thread(tmp_path: Path) -> None:
    codes: list[int] = []
    arguments = [*TINY, "--steps", "1", "--out", str(tmp_path / "run")]
    thread = threading.Thread(target=lambda: codes.append(train.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_tasks_of_a_scheduler_that_know_nothing_of_each_other(
    variable: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "1")
    check_launch()
    monkeypatch.setenv(variable, "4")
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"{variable} tells of 4 tasks" in said and "torchrun --nproc-per-node" in said
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    check_launch()


LAUNCHED = {
    **{"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29999"},
}


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"WORLD_SIZE": "2"}, "of 2 processes, but RANK and MASTER_ADDR and MASTER_PORT is"),
        ({"RANK": "1"}, "RANK is set, but WORLD_SIZE is not"),
        ({"RANK": "1", "LOCAL_RANK": "0"}, "RANK and LOCAL_RANK is set, but WORLD_SIZE is not"),
        ({**LAUNCHED, "RANK": ""}, "WORLD_SIZE tells of 2 processes, but RANK is not set"),
        ({**LAUNCHED, "MASTER_ADDR": ""}, "but MASTER_ADDR is not set"),
        ({**LAUNCHED, "MASTER_PORT": "http"}, "MASTER_PORT must be from 1 to 65535; got 'http'"),
        ({**LAUNCHED, "MASTER_PORT": "70000"}, "MASTER_PORT must be from 1 to 65535; got '70000'"),
        ({**LAUNCHED, "WORLD_SIZE": "two"}, "WORLD_SIZE must be a number of processes; got 'two'"),
        ({**LAUNCHED, "WORLD_SIZE": ""}, "WORLD_SIZE must be a number of processes; got ''"),
        ({**LAUNCHED, "LOCAL_RANK": "x"}, "LOCAL_RANK must be a number from 0 up; got 'x'"),
        ({**LAUNCHED, "RANK": "x"}, "RANK must be from 0 to 1, as WORLD_SIZE is 2; got 'x'"),
        ({**LAUNCHED, "RANK": "-1"}, "RANK must be from 0 to 1, as WORLD_SIZE is 2; got '-1'"),
        ({**LAUNCHED, "RANK": "2"}, "RANK must be from 0 to 1, as WORLD_SIZE is 2; got '2'"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK must be from 0 to 0, as WORLD_SIZE is 1; got '1'"),
    ],
)
@pytest.mark.parametrize("word", ["train", "evaluate"])
def test_an_environment_that_tells_half_names_the_launcher(
    word: str, environment: dict[str, str], complaint: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main = importlib.import_module(f"fastlatent.{word}").main
    assert main([*TINY, "--out", str(tmp_path / "run")] if word == "train" else ["run"]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
    assert f"torchrun --nproc-per-node PROCESSES -m fastlatent.{word} ..." in said
    assert not (tmp_path / "run").exists()


def test_training_refuses_the_number_of_a_process_without_their_number(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "LOCAL_RANK is set, but WORLD_SIZE is not; torchrun --nproc-per-node" in said


def test_a_lone_process_may_be_numbered(monkeypatch, capsys, tmp_path: Path) -> None:
    """Environments that have always been taken, or failed in PyTorch alone."""
    from fastlatent.training.loop import Training

    monkeypatch.setattr(Training, "finalise", lambda self: None)
    brief = [*TINY, "--steps", "1", "--checkpoint-every", "never"]
    for case, (size, number, local) in enumerate(
        [
            (None, "0", None),
            (None, None, "0"),
            ("1", None, None),
            (" 1", " 0", "-1"),
            ("0", "0", "3"),
        ]
    ):
        with monkeypatch.context() as patch:
            for name, value in zip(LAUNCHED, (size, number, local), strict=False):
                patch.delenv(name, raising=False)
                if value is not None:
                    patch.setenv(name, value)
            code = train.main([*brief, "--out", str(tmp_path / str(case))])
            said = capsys.readouterr()
            assert code == 0, (case, said.err)
            assert "images of" in said.out, case
    # What asks no other process works for one of any number, and for the first of several.
    for environment in ({"RANK": "1"}, {"LOCAL_RANK": "3"}, {"WORLD_SIZE": "2"}):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            picture = tmp_path / f"{'-'.join(environment)}.png"
            arguments = [
                str(tmp_path / "0"),
                "--images",
                "1",
                "--device",
                "cpu",
                "--out",
                str(picture),
            ]
            assert sample.main(arguments) == 0
            assert picture.is_file() and str(picture) in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0", "1"])
def test_processes_that_never_come_are_told_of(
    number: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**LAUNCHED, **place, "RANK": number}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fastlatent.jobs.ranks.GATHERING", timedelta(seconds=1))
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    met = f"not all of 2 processes met at 127.0.0.1:{place['MASTER_PORT']} within 1 seconds: "
    assert met in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_process_that_waits_for_others_hears_ctrl_c(monkeypatch, capsys, tmp_path: Path) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**LAUNCHED, **place}.items():
        monkeypatch.setenv(name, value)
    patience = timedelta(seconds=60)
    monkeypatch.setattr("fastlatent.jobs.ranks.GATHERING", patience)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    before = time.monotonic()
    # Where tests run in the background, the signal is ignored by default.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, ours)
    assert time.monotonic() - before < patience.total_seconds()
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("word", [word for word in COMMANDS if word not in ("train", "evaluate")])
def test_commands_that_share_no_work_run_in_the_first_process(
    word: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    """The others take no look at the arguments, which this run folder would fail."""
    main = importlib.import_module(f"fastlatent.{word}").main
    monkeypatch.setattr("sys.argv", [word, str(tmp_path / "none")])
    monkeypatch.setattr("fastlatent.commands.console.keep_freed_memory", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main() == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main() != 0
    said = capsys.readouterr()
    assert "one process does all of this, the first of 2" in said.out
    assert said.err


def test_alone_is_what_a_lone_process_is() -> None:
    with main_alone() as mine:
        assert mine
    assert (processes(1), processes(2)) == ("1 process", "2 processes")


def test_no_thread_is_in_the_store_when_a_process_ends(monkeypatch) -> None:
    """One that comes back from PyTorch while the interpreter ends aborts the process."""

    class Slow:
        def set(self, key: str, value: str) -> None:
            busy.set()
            time.sleep(0.3)

        def check(self, keys: list[str]) -> bool:
            return False

    busy, before = threading.Event(), set(threading.enumerate())
    monkeypatch.setattr(ranks, "BEAT", 0.0)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        with ranks.Minder(patience=20) as minder:
            minder._beats = Slow()
            assert busy.wait(10)
        minder.part()
        assert set(threading.enumerate()) <= before
    finally:
        torch.distributed.destroy_process_group()


def test_the_number_of_test_images_holds_to_the_end(tmp_path: Path, monkeypatch) -> None:
    from fastlatent.training import measuring

    seen, measure = [], measuring.measure_loss

    def noted(model, split, batch, seed, limit) -> dict[str, float]:
        seen.append((split.name, limit))
        return measure(model, split, batch, seed, limit)

    monkeypatch.setattr(measuring, "measure_loss", noted)
    options = ["--steps", "2", "--test-images", "20", "--data.validation", "40"]
    assert train.main([*TINY, *options, "--out", str(tmp_path / "run")]) == 0
    assert set(seen) == {("validation", 20), ("test", 20)}
    assert len(seen) == 3  # while training, on the test images, after the last fit


@pytest.mark.processes
# Two ranks read files of which one, which falls to the second of them, is cut off.
def test_a_damaged_image_ends_all_with_one_sentence(tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(80):
        pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    # Every tenth is test. Marks look at all 72 others, so the damage comes once they are taken.
    spoil = (
        "import os; del os.environ['LOCAL_RANK']\n"  # several hosts need no such number
        "import fastlatent.training.loop as loop, pathlib\n"
        "create = loop.Run.create\n"
        "def spoiling(self):\n"
        "    create(self)\n"
        f"    for path in pathlib.Path({str(folder)!r}).glob('*5.png'):\n"
        "        path.write_bytes(path.read_bytes()[:40])\n"
        "loop.Run.create = spoiling\n"
    )
    out = tmp_path / "run"
    data = ("--data.name", f"folder:{folder}", "--data.resident", "stream", "--data.workers", "0")
    options = [*TINY, *data, "--data.per-class", "None", "--steps", "6", "--out", str(out)]
    found = ended(*[["-c", spoil + SCRIPT, json.dumps([options])]] * 2)
    said = complaints(found)
    assert said.count("error") == 1, said
    assert re.search(r"5\.png .*; training ends after step [01], go on after step 0 with: t", said)
    assert [out.count("code 1") for _, out, _ in found] == [1, 1]
