"""Signals are heard within seconds, whatever is being done, and nothing is lost."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlatent import train
from fastlatent.commands.console import command
from fastlatent.jobs.errors import Heard
from fastlatent.jobs.progress import say
from fastlatent.jobs.signals import Signals
from fastlatent.models import MODELS, VAE, VAEConfig
from fastlatent.runs import Run, read_metrics
from fastlatent.training import measuring, showing


@pytest.fixture(autouse=True)
def heard_by_default() -> Iterator[None]:
    """Signals as a shell in the foreground hands them on, whoever started the tests."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """A signal in the midst of work that would last long."""
    os.kill(os.getpid(), number)
    for _ in range(300):
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_signals_wait_for_the_step_and_break_off_what_can_be_done_again(number: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        with pytest.raises(Heard), signals.at_once(), signals.at_once():
            send(number)
        assert signals.received == number
        with pytest.raises(Heard), signals.at_once():  # it came before
            pytest.fail("begun all the same")
    with Signals() as signals:
        with signals.at_once():
            pass
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_commands_tidy_up_when_they_are_ended(number: int, monkeypatch) -> None:
    tidied = []

    def work(_: object) -> None:
        try:
            send(number)
        finally:
            tidied.append(True)

    before = signal.getsignal(number)
    monkeypatch.setattr("fastlatent.commands.console.keep_freed_memory", lambda: None)
    try:
        assert command(work)() == 128 + number
    finally:
        signal.signal(number, before)
    assert tidied


TINY = (
    *("vae-digits", "--device", "cpu", "--batch", "16", "--log-every", "1 step"),
    *("--eval-every", "2 steps", "--pictures-every", "1 epoch", "--steps", "3"),
    *("--film-every", "2 steps"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(2, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(path, x=pixels)
    return f"npz:{path}"


class RefittedVAE(VAE):
    """What a class is found to be of a protocol is remembered, so this is one of its own."""

    def refit_images(self, epochs: int) -> int:
        return 8

    def refit(self, *_: object) -> dict[str, float]:
        return {}

    def held_out_log_prob(self, *_: object) -> float:
        return 0.0


def scramble_and_send(model: VAE, *_: object) -> dict[str, float]:
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    send(signal.SIGTERM)
    return {}


def test_what_follows_a_step_is_broken_off_and_made_up_for(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(MODELS, "vae", (VAEConfig, RefittedVAE))
    monkeypatch.setattr(measuring, "refit", lambda *_: {"refitted": 1.0})
    options = [*TINY, "--data.name", data]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "broken"
    arguments = [*options, "--out", str(out)]
    for module, name, due in (
        (measuring, "refit", ["refit", "eval", "film", "pictures"]),
        (measuring, "measure_loss", ["eval", "film", "pictures"]),
        (showing, "show_model", ["pictures", "film"]),
        (showing, "unit_images", ["film"]),
    ):
        with monkeypatch.context() as patch:
            long = scramble_and_send if name == "refit" else lambda *_, **__: send(signal.SIGTERM)
            patch.setattr(module, name, long)
            assert train.main(arguments) == 128 + signal.SIGTERM
        found = Run.open(out).load()
        assert set(found.values["due"]) - {"log"} == set(due), name
        arguments = ["--resume", str(out)]
    assert train.main(arguments) == 0
    assert Run.open(out).load().values["due"] == []
    lines = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(path)]
        for path in (tmp_path / "whole", out)
    ]
    assert lines[0] == lines[1]
    weights = [Run.open(path).model("last").state_dict() for path in (tmp_path / "whole", out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ctrl_c_during_imports_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for words in (["-m", "fastlatent.sample"], ["-m", "fastlatent", "sample"]):
        ended = subprocess.run(
            [sys.executable, *words, "--help"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )
        assert ended.returncode in (130, -signal.SIGINT)
        assert ended.stderr == "interrupted\n"


def test_a_stdout_of_ascii_is_spoken_to_in_ascii(monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    say("1.5 ± 0.2 \N{EM DASH} ü")
    assert written.getvalue() == b"1.5 +/- 0.2 \\u2014 \\xfc\n"
