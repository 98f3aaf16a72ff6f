"""One process at a time writes into a run folder."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastlatent import train
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.presets import PRESETS
from fastlatent.runs import Log, Run, State, locked
from fastlatent.runs.lock import LOCK

TINY = (
    *("--model.width", "0.05", "--model.dim", "12", "--batch", "32", "--data.per-class", "16"),
    *("--pictures-every", "never", "--device", "cpu", "--steps", "1"),
)

# Holds the folder argv[1] until it is killed; a child that it forked lives on.
HOLDER = """
import os, sys, time
from pathlib import Path
from fastlatent.runs.lock import locked

with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def in_thread(work) -> BaseException | None:
    """What `work` raises in a thread of its own, a stranger to the locks of this one."""
    raised = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def hold(folder: Path) -> None:
    with locked(folder):
        pass


def test_a_folder_has_one_owner_who_may_ask_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with locked(folder), locked(folder):
        error = in_thread(lambda: hold(tmp_path / "runs" / ".." / "runs" / "a"))
        assert isinstance(error, RunError)
        assert f"is in use by process {os.getpid()} on " in str(error)
        assert in_thread(lambda: hold(tmp_path / "other")) is None
        assert (folder / LOCK).is_file()
    assert not list(tmp_path.iterdir())  # what is empty goes with the lock
    assert in_thread(lambda: hold(folder)) is None


def test_a_killed_owner_leaves_no_lock_behind(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(RunError, match=f"is in use by process {process.pid} on "):
                hold(folder)
            process.kill()
            process.wait()
            hold(folder)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"process {process.pid} on " in capsys.readouterr().out
    hold(folder)
    assert not capsys.readouterr().out


def test_a_disk_without_locks_has_the_word_of_the_file(tmp_path: Path, monkeypatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        assert isinstance(in_thread(lambda: hold(tmp_path)), RunError)
        mine = json.loads((tmp_path / LOCK).read_text())
    hold(tmp_path)
    with subprocess.Popen(["true"]) as ended:
        pass
    (tmp_path / LOCK).write_text(json.dumps(mine | {"pid": ended.pid}))
    hold(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps(mine | {"host": "elsewhere", "pid": ended.pid}))
    with pytest.raises(RunError, match=rf"process {ended.pid} on elsewhere.*remove .*{LOCK}"):
        hold(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host": 1}', "\x00"])
def test_a_damaged_lock_of_nobody_is_no_hindrance(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    hold(tmp_path)


def test_training_waits_for_nobody_and_spoils_nothing(tmp_path: Path, capsys) -> None:
    trained, new, codes = tmp_path / "run", tmp_path / "new", []
    assert train.main([*TINY, "--out", str(trained)]) == 0
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    capsys.readouterr()
    with locked(trained), locked(new):
        for where in (["--resume", str(trained), "--steps", "2"], [*TINY, "--out", str(new)]):
            in_thread(lambda where=where: codes.append(train.main(where)))
            said = capsys.readouterr().err
            assert said.startswith(
                f"error: {where[1] if where[0] == '--resume' else new} is in use"
            )
        assert [path.name for path in new.iterdir()] == [LOCK]
    assert codes == [1, 1]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert not new.exists()


def test_a_run_without_a_trained_step_may_be_started_over(tmp_path: Path) -> None:
    config = PRESETS["lbae-digits"].config
    run = Run(tmp_path, config)
    run.create()
    run.save(State(0, {"weights": {"w": torch.zeros(3)}}, {}))
    Log(tmp_path).close()
    again = Run(tmp_path, replace(config, seed=3))
    again.create()
    assert again.latest() is None and not again.steps()
    assert not (tmp_path / "weights.safetensors").exists()
    assert Run.open(tmp_path).config.seed == 3

    again.save(State(0, {"weights": {"w": torch.zeros(3)}}, {}))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train"}\n')
    with pytest.raises(UsageError, match="already holds a run"):
        again.create()
    (tmp_path / "metrics.jsonl").write_text("")
    again.save(State(1, {"weights": {"w": torch.zeros(3)}}, {}))
    with pytest.raises(UsageError, match="already holds a run"):
        again.create()


def test_what_a_full_disk_left_of_a_beginning_is_no_hindrance(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path / "run", PRESETS["lbae-digits"].config)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left.*config.json"), locked(run.path):
            run.create()
    assert not run.path.exists()
    run.path.mkdir()
    (run.path / ".config.json.1.tmp").touch()  # as a power cut leaves it
    run.create()
    assert Run.open(run.path).config == run.config


def test_training_leaves_alone_what_another_process_writes(tmp_path: Path) -> None:
    run = Run(tmp_path, PRESETS["lbae-digits"].config)
    run.create()
    run.save(State(1, {"weights": {"w": torch.zeros(3)}}, {}))
    with subprocess.Popen(["true"]) as ended:
        pass
    mine, gone, others = (
        tmp_path / f".evaluation.json.{pid}.tmp" for pid in (os.getpid(), ended.pid, os.getppid())
    )
    for path in (mine, gone, others):
        path.touch()
    run.prune(1)
    assert not mine.exists() and not gone.exists() and others.exists()
