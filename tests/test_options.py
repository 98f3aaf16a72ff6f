"""What --help says of options, and what is said of values that do not fit."""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

from fastlatent import train
from fastlatent.__main__ import COMMANDS
from fastlatent.commands.console import parse
from fastlatent.commands.options import field_docstrings
from fastlatent.jobs.errors import UsageError
from fastlatent.presets import PRESETS
from fastlatent.train import Command


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    """How fast."""


@dataclass(frozen=True)
class Base:
    seed: int | None = None
    """Seed of everything random; default: the
    run's."""


@dataclass(frozen=True)
class Form(Base):
    kind: Literal["b", "a"] | Literal["auto"] | None = None
    """Which
    kind."""
    sure: bool | None = None
    sizes: tuple[int, ...] = ()
    """Sizes."""
    inner: Inner = field(default_factory=Inner)
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.seed == 13:
            raise ValueError("--seed must not be 13")


def options(*words: str) -> Form:
    return parse(Form, words, "x", "About x.")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"doctor"}))
def test_help_speaks_of_no_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module(f"fastlatent.{command}").main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage" in shown and "None" not in shown and "(default: )" not in shown


def test_help_is_the_docstring_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--help")
    shown = capsys.readouterr().out
    assert "Seed of everything random; default: the run's." in " ".join(shown.split())
    assert "--kind {b,a,auto}" in shown and "--seed INT" in shown
    assert "(default: 0.5)" in shown


def test_values_become_what_the_fields_say() -> None:
    found = options("--kind", "a", "--sure", "False", "--sizes", "1", "2", "--out", "x")
    assert (found.kind, found.sure, found.sizes, found.out) == ("a", False, (1, 2), Path("x"))
    assert options("--seed", "None", "--inner.rate", "2").inner == Inner(2.0)
    start = Form(seed=3, inner=Inner(0.1))
    assert parse(Form, ["--kind", "b"], "x", "", start) == Form(3, "b", inner=Inner(0.1))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--kind", "c"), "--kind: must be one of b, a, auto; got 'c'"),
        (("--sure", "maybe"), "--sure: must be one of True, False; got 'maybe'"),
        (("--seed", "x"), "--seed: must be a whole number; got 'x'"),
        (("--seed", "1.5"), "--seed: must be a whole number; got '1.5'"),
        (("--inner.rate", "fast"), "--inner.rate: must be a number; got 'fast'"),
        (("--sizes", "3", "x"), "--sizes: must be a whole number; got 'x'"),
        (("--seed", "13"), "--seed must not be 13"),
    ],
)
def test_a_value_that_does_not_fit_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(*words)
    assert str(caught.value) == f"{sentence} (see --help)"


def test_the_help_of_train_fits_two_screens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for preset in ("lbae-digits", "ladder-digits"):
        assert train.main([preset, "--help"]) == 0
        short = capsys.readouterr().out
        assert len(short.splitlines()) <= 100
        assert "--epochs" in short and "--clip" not in short and "needs no files" not in short
        assert train.main([preset, "--help-all"]) == 0
        assert "--clip" in capsys.readouterr().out


def test_presets_with_results_are_listed_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list"]) == 0
    listed = re.findall(r"^  (\S+)", capsys.readouterr().out, re.MULTILINE)
    measured = [name for name in PRESETS if PRESETS[name].result]
    assert listed == measured + [name for name in PRESETS if name not in measured]


def test_presets_without_results_are_those_of_the_table() -> None:
    page = (Path(__file__).parent.parent / "docs" / "presets.md").read_text()
    table = page.partition("## ")[0]
    without = set()
    for names, row in re.findall(r"^\| (`.*?) \| (.*)$", table, re.MULTILINE):
        if re.match(r".*\| not (measured|trained) yet", row):
            first, *others = re.findall(r"`([\w-]+)`", names)
            stem = re.sub(r"-\d+$", "", first)
            without |= {first} | {stem + x if x.startswith("-") else x for x in others}
        elif "others: not trained yet" in row:
            without |= {"lvae-static-mnist-6", "lvae-static-mnist-12"}
    assert without == {name for name, preset in PRESETS.items() if not preset.result}


def test_earlier_names_of_options_stand_for_their_new_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    renamed = {"--start": "--seed", "--max-kind": "--kind"}
    given = ["--start=2", "--max_kind", "a", "--sizes", "1", "--start", "3"]
    found = parse(Form, given, "x", "", renamed=renamed)
    assert (found.seed, found.kind, found.sizes) == (3, "a", (1,))
    said = "note: --start is now --seed\nnote: --max-kind is now --kind\n"
    assert capsys.readouterr().err == said
    assert parse(Form, ["--seed", "3"], "x", "", renamed=renamed).seed == 3
    assert capsys.readouterr().err == ""


EARLIER = [
    ("sample", "--n", "--images"),
    ("reconstruct", "--n", "--images"),
    ("film", "--n", "--images"),
    ("layers", "--n", "--images"),
    ("fit_prior", "--n", "--images"),
    ("evaluate", "--limit", "--images"),
    ("interpolate", "--n", "--pairs"),
    ("geodesics", "--method", "--solver"),
    ("densities", "--prior-steps", "--steps"),
]


@pytest.mark.parametrize(("command", "earlier", "now"), EARLIER)
def test_commands_take_the_earlier_names_of_their_options(
    command: str, earlier: str, now: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main = import_module(f"fastlatent.{command}").main
    value = "lbfgs" if now == "--solver" else "5"
    assert main([str(tmp_path), earlier, value]) == 1
    note, error = capsys.readouterr().err.splitlines()
    assert note == f"note: {earlier} is now {now}" and "is not a run folder" in error
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert f" {now} " in shown and f" {earlier} " not in shown


def undocumented(options: object) -> list[str]:
    """The fields of a dataclass, and of those in it, that --help would say nothing of."""
    texts, missing = field_docstrings(type(options)), []
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            missing += undocumented(value)
        elif one.name not in texts:
            missing.append(f"{type(options).__name__}.{one.name}")
    return missing


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_of_a_preset_is_explained(name: str) -> None:
    assert undocumented(Command(PRESETS[name].config)) == []


def test_a_field_without_a_docstring_is_found() -> None:
    assert undocumented(Form()) == ["Form.sure", "Form.out"]
