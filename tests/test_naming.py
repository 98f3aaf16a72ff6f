"""What messages call a setting: the argument in Python, the option on a command line."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY, TINY_VAE

import fastlatent
from fastlatent import paths
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.naming import call_or_command, naming, require, setting
from fastlatent.metrics import extract
from fastlatent.models import MODELS
from fastlatent.presets import TrainConfig
from fastlatent.priors import Normal

PACKAGE = Path(fastlatent.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z{]|--$")
# They write whole command lines, which a caller in Python can run, too.
COMMAND_LINES = {"files/code.py", "jobs/ranks.py", "jobs/naming.py"}
PROGRAMS = ("fastlatent.", "torchrun", "tensorboard")

Runs = dict[str, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    quiet = ("--steps", "1", "--pictures-every", "never")
    found = {"vae": folder / "vae", "bits": folder / "bits"}
    assert fastlatent.train.main([*TINY_VAE, *quiet, "--out", str(found["vae"])]) == 0
    assert fastlatent.train.main(["lbae-digits", *TINY, *quiet, "--out", str(found["bits"])]) == 0
    return found


def said(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one sentence that a command fails with."""
    word, *arguments = line.split()
    capsys.readouterr()
    assert import_module(f"fastlatent.{word}").main(arguments) in (1, 2)
    (sentence,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return sentence.removeprefix("error: ")


def trained(**given: Any) -> Any:
    settings = {"config": "vae-digits", "device": "cpu"} | given
    return fastlatent.train(**settings)


def vae(runs: Runs) -> Any:
    return fastlatent.load(runs["vae"], device="cpu")


def bits(runs: Runs) -> Any:
    return fastlatent.load(runs["bits"], device="cpu")


def walked(**given: Any) -> Any:
    prior = Normal(2).fit(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    ends = torch.zeros(1, 2), torch.ones(1, 2)
    return paths.likelihood_path(prior.log_prob, *ends, 5, **given)


def sets(folder: Path, *sides: int) -> Path:
    """A folder of images of these sides."""
    folder.mkdir(exist_ok=True)
    for number, side in enumerate(sides):
        Image.fromarray(np.full((side, side), number, np.uint8)).save(folder / f"{number}.png")
    return folder


# What is called, what it says; the command for the same, what that says.
CASES: dict[str, tuple[Callable[[Runs, Path], Any], str, str, str]] = {
    "samples": (
        lambda runs, _: bits(runs).evaluate(samples=3),
        "samples needs a model with a likelihood",
        "evaluate {bits} --samples 3 --device cpu",
        "--samples needs a model with a likelihood",
    ),
    "features": (
        lambda runs, _: vae(runs).evaluate(features="dinov2", limit=2),
        "features='dinov2' needs feature_weights, the network's file",
        "evaluate {vae} --features dinov2 --images 2 --device cpu",
        "--features dinov2 needs --feature-weights, the network's file",
    ),
    "a prior's setting": (
        lambda runs, _: vae(runs).fit_prior(code_dim=0),
        "fit_prior: code_dim must be at least 1; got 0",
        "fit_prior {vae} --code-dim 0",
        "--code-dim must be at least 1; got 0 (see --help)",
    ),
    "a prior of bits": (
        lambda runs, _: bits(runs).fit_prior(),
        "sample draws bits by method='copula' or random, without fit_prior",
        "fit_prior {bits} --device cpu",
        "sample draws bits by --method copula or random, without fit_prior",
    ),
    "a prior not fitted": (
        lambda runs, _: vae(runs).sample(method="gmm"),
        "is fitted to {vae} yet; call fit_prior('gmm') of the run",
        "sample {vae} --method gmm --device cpu",
        "is fitted to {vae} yet; run python -m fastlatent.fit_prior {vae} --prior gmm",
    ),
    "a likely path": (
        lambda runs, _: walked(length_weight=-1.0),
        "likelihood_path: length_weight must be finite and not below 0",
        "interpolate {vae} --method likelihood --length-weight -1 --device cpu",
        "--length-weight must be finite and not below 0",
    ),
    "training": (
        lambda _, out: trained(batch=0, out=out),
        "train: batch must be at least 1; got 0",
        "train vae-digits --batch 0 --out {out}",
        "--batch must be at least 1; got 0 (see --help)",
    ),
    "two settings of training": (
        lambda _, out: trained(batch=10, accumulate=3, out=out),
        "train: batch must be a multiple of accumulate=3; got 10",
        "train vae-digits --batch 10 --accumulate 3 --out {out}",
        "--batch must be a multiple of --accumulate 3; got 10 (see --help)",
    ),
    "an interval": (
        lambda _, out: trained(log_every="often", out=out),
        "train: log_every: an interval must read like",
        "train vae-digits --log-every often --out {out}",
        "--log-every: an interval must read like",
    ),
    "a model": (
        lambda _, out: trained(model={"fixed_variance": 0.0}, out=out),
        "VAEConfig: fixed_variance must be positive; got 0.0",
        "train vae-digits --model.fixed-variance 0 --out {out}",
        "--model.fixed-variance must be positive; got 0.0 (see --help)",
    ),
    "a part of a model": (
        lambda _, out: trained(config="ladder-digits", model={"schedule": {"refit_samples": 0}}),
        "PriorSchedule: refit_samples must be at least 1; got 0",
        "train ladder-digits --model.schedule.refit-samples 0 --out {out}",
        "--model.schedule.refit-samples must be at least 1; got 0 (see --help)",
    ),
    "two parts of a model": (
        lambda _, out: trained(config="ladder-digits", model={"schedule": {"refit_samples": 3}}),
        "LaDDerConfig: schedule.refit_samples must be at least prior.components=20; got 3",
        "train ladder-digits --model.schedule.refit-samples 3 --out {out}",
        "--model.schedule.refit-samples must be at least --model.prior.components 20; got 3",
    ),
    "data": (
        lambda _, out: trained(data={"size": 0}, out=out),
        "data.size must be a positive integer; got 0",
        "train vae-digits --data.size 0 --out {out}",
        "--data.size must be a positive integer; got 0 (see --help)",
    ),
    "data of sample": (
        lambda _, out: trained(data="celeba:half", out=out),
        "data.name must be one of digits",
        "sample celeba:half --folder {out}",
        "the data set must be one of digits",
    ),
    "data that is not there": (
        lambda _, out: trained(data="mnist", out=out),
        "with data.root or the environment variable FASTLATENT_DATA; data.download=True fetches",
        "train vae-digits --data.name mnist --out {out}",
        "with --data.root or the environment variable FASTLATENT_DATA; --data.download fetches",
    ),
    "data that another command lacks": (
        lambda _, out: trained(data="mnist", out=out),
        "with data.root or the environment variable FASTLATENT_DATA; data.download=True fetches",
        "sample mnist --folder {out}",
        "with --root or the environment variable FASTLATENT_DATA; --data.download of train fetches",
    ),
    "a batch too large": (
        lambda _, out: trained(batch=100_000, out=out),
        "batch=100000 is larger than the training set",
        "train vae-digits --batch 100000 --device cpu --out {out}",
        "--batch 100000 is larger than the training set",
    ),
    "precision": (
        lambda _, out: trained(precision="fp16", out=out),
        "precision='fp16' needs a GPU; use bf16 or fp32 on the CPU",
        "train vae-digits --precision fp16 --device cpu --out {out}",
        "--precision fp16 needs a GPU; use bf16 or fp32 on the CPU",
    ),
    "a bound that a model lacks": (
        lambda _, out: trained(config="lbae-digits", bound_every="1 step", out=out),
        "bound_every needs a model with a likelihood, such as lvae; this is lbae",
        "train lbae-digits --bound-every 1 --device cpu --out {out}",
        "--bound-every needs a model with a likelihood, such as lvae; this is lbae",
    ),
    "a folder that is taken": (
        lambda runs, _: trained(out=runs["vae"]),
        "choose another folder by out",
        "train vae-digits --device cpu --out {vae}",
        "choose another folder by --out",
    ),
    "images of several sizes": (
        lambda _, out: extract(sets(out, 8, 9), None),
        "where the first image is 8x8; give a size to bring all to",
        "evaluate --real {out} --fake {out} --data digits --device cpu",
        "where the first image is 8x8; give a --size to bring all to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_message_names_what_its_reader_wrote(
    case: str,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    call, in_python, line, in_command = CASES[case]
    names = runs | {"out": tmp_path / "out"}
    with pytest.raises((ValueError, RunError)) as caught:
        call(runs, names["out"])
    python = str(caught.value)
    assert in_python.format_map(names) in python
    assert not OPTION.search(re.sub(r"python -m .*?[,;]", "", python))
    command = said(capsys, line.format_map(names))
    assert in_command.format_map(names) in command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^device='cuda' needs a CUDA GPU"):
        trained(device="cuda", out=tmp_path / "run")
    assert said(capsys, f"train --device cuda --out {tmp_path / 'run'}").startswith(
        "--device cuda needs a CUDA GPU"
    )


def test_what_training_offers_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"model": {"image_shape": (1, 8, 8), "dim": 2}, "data": {"size": 8, "per_class": 16}}
    trained(**small, batch=32, steps=1, pictures_every="never", out=tmp_path / "run")
    offered = capsys.readouterr().out.partition("next:\n")[2]
    assert "  run.sample(100)\n" in offered and "fastlatent.sample" not in offered
    assert f"python -m fastlatent.train --resume {tmp_path / 'run'} --steps 2\n" in offered


def test_a_setting_and_its_value() -> None:
    assert setting("data.size") == "data.size" and setting("size", 3) == "size=3"
    assert setting("n", argument="count") == "count"
    assert call_or_command("f()", "fastlatent f") == "f()"
    with naming({"data.size": "--size"}):
        assert setting("data.size", 28) == "--size 28"
        assert setting("code_dim") == "--code-dim" and setting("jpeg", True) == "--jpeg"
        assert setting("data.classes", (1, 2)) == "--data.classes 1 2"
        assert call_or_command("f()", "fastlatent f") == "fastlatent f"
        with naming(None):
            assert setting("data.size") == "data.size"
    with pytest.raises(ZeroDivisionError), naming({}):
        _ = 1 / 0
    assert setting("size") == "size"


def test_settings_read_from_a_file_are_fields(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (runs["vae"] / "config.json").read_text()
    path = tmp_path / "config.json"
    path.write_text(text.replace('"batch": 32', '"batch": 0'))
    assert "batch must be at least 1" in (found := said(capsys, f"train --config {path}"))
    assert "--batch" not in found


def places(form: Any, prefix: str = "") -> Iterator[tuple[type, str]]:
    """Every configuration that a training's holds, with the prefix of its options."""
    yield form, prefix
    for item in fields(form):
        kinds = [item.type, *get_args(item.type)]
        for kind in kinds:
            if is_dataclass(kind) and isinstance(kind, type):
                yield from places(kind, f"{prefix}{item.name}.")


def test_configurations_know_where_their_options_lie() -> None:
    found = [*places(TrainConfig)]
    assert {form for form, _ in MODELS.values()} <= {form for form, _ in found}
    for form, prefix in found:
        if hasattr(form, "OPTIONS"):
            assert prefix == form.OPTIONS, form
    assert sum(hasattr(form, "OPTIONS") for form, _ in found) == 9
    with naming({}), pytest.raises(ValueError, match=r"^--model\.prior\.dim must be even; got 2$"):
        prior = dict((form.__name__, form) for form, _ in found)["PriorConfig"]()
        require(False, prior, "dim", "even")


def test_the_library_writes_no_option_by_hand() -> None:
    """Only `setting` knows whether a reader types options, or a whole command line shows them."""
    wrong = []
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("commands/") or name in COMMAND_LINES:
            continue
        source = path.read_text()
        if not OPTION.search(source):
            continue
        tree = ast.parse(source)
        whole = {id(part) for node in ast.walk(tree) for part in command_line_parts(node)}
        whole |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and OPTION.search(text) and id(node) not in whole:
                wrong.append(f"{name}:{node.lineno}: {text}")
    assert len(files) > 150 and not wrong


def command_line_parts(node: ast.AST) -> list[ast.expr]:
    """The parts of an f-string that begins a command line somewhere."""
    if not isinstance(node, ast.JoinedStr):
        return [node] if isinstance(node, ast.Constant) and program_in(node) else []
    programs = [part for part in node.values if program_in(part)]
    return list(node.values) if programs else []


def program_in(part: ast.AST) -> bool:
    if isinstance(part, ast.FormattedValue):
        return isinstance(part.value, ast.Attribute) and part.value.attr == "command"
    text = part.value if isinstance(part, ast.Constant) else None
    return isinstance(text, str) and any(program in text for program in PROGRAMS)
