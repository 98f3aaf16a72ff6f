"""The commands as a user runs them: what they leave behind, what they say, how they fail."""

import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from original_lbae import original_checkpoint
from PIL import Image
from safetensors.torch import load_file
from sentences import assert_one_sentence
from small_runs import TINY
from torch._inductor.exc import InvalidCxxCompiler

from fastlatent import __main__ as dispatcher
from fastlatent import convert, evaluate, geodesics, interpolate, layers, reconstruct, sample, train
from fastlatent.commands.console import command
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import load
from fastlatent.inference import gallery, latents
from fastlatent.inference.gallery import pick_pairs
from fastlatent.inference.passes import gather_codes, measure_loss
from fastlatent.jobs import progress
from fastlatent.jobs.errors import UsageError
from fastlatent.metrics import moment_error, nearest_distance
from fastlatent.ops import KernelMissing
from fastlatent.plots import grid, to_bytes
from fastlatent.presets import PRESETS
from fastlatent.priors import BernoulliCopula
from fastlatent.runs import Run, read_metrics
from fastlatent.training import Learner


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "bits"
    options = ("--epochs", "2", "--pictures-every", "1 epoch", "--eval-every", "25 steps")
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "gaussian"
    options = ("--model.latent", "gaussian", "--model.kl-weight", "1", "--steps", "4")
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    return out


def test_training_leaves_a_self_describing_folder(bits: Path) -> None:
    run = Run.open(bits)
    files = {path.name for path in bits.iterdir()}
    assert {"config.json", "weights.safetensors", "best.safetensors", "codes.safetensors"} <= files
    assert {"metrics.jsonl", "state", "images"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    kinds = {path.suffix for path in (bits / "state").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ""}  # the pointer has no suffix
    pictures = {path.name for path in (bits / "images").iterdir()}
    kept = ("reconstructions", "samples-copula", "samples-random", "interpolation-copula", "loss")
    assert {f"{name}.png" for name in kept} <= pictures
    assert "step-00000046-samples-copula.png" in pictures

    lines = read_metrics(bits)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(10, 93, 10)]
    assert [line["step"] for line in lines if line["kind"] == "test"] == [25, 50, 75, 92]
    losses = [line["loss"] for line in lines if line["kind"] == "test"]
    assert losses[-1] < losses[0]
    assert lines[-1]["kind"] == "samples"
    assert run.latest() == 92
    best = load_file(bits / "best.safetensors")
    assert best.keys() == load_file(bits / "weights.safetensors").keys()


def test_stored_numbers_are_those_of_the_stored_weights(bits: Path) -> None:
    run = Run.open(bits)
    data, model = load(run.config.data), run.model("last")
    loss = measure_loss(model, data.test, 64)["loss"]
    with torch.no_grad():
        each = model(torch.cat([b.images for b in data.test.batches(300, "cpu")]))["loss"]
    assert loss == pytest.approx(float(each.mean()), rel=1e-6)
    logged = [line["loss"] for line in read_metrics(bits) if line["kind"] == "test"][-1]
    assert loss == pytest.approx(logged, rel=1e-6)

    stored, fresh = run.codes("last"), gather_codes(model, data.train, 1497, labels=10)
    assert stored is not None
    assert stored.count == fresh.count == 1497
    assert torch.equal(stored.label_count, data.train.labels.bincount())
    # Another batch size may tip a logit that is almost 0.
    assert (stored.ones - fresh.ones).abs().max() <= 2
    assert (stored.agree - fresh.agree).abs().max() <= 4


def test_counts_of_other_weights_are_not_used(bits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(bits, copy)
    weights = load_file(copy / "weights.safetensors")
    changed = Run.open(copy)
    changed.write_weights(weights | {"decoder.project.bias": weights["decoder.project.bias"] + 1})
    assert changed.codes("last") is None
    (copy / "codes.safetensors").unlink()
    assert sample.main([str(copy), "--images", "1", "--no-quality"]) == 0
    assert changed.codes("last") is not None


def test_sample(bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, folder = tmp_path / "a" / "samples.png", tmp_path / "single"
    options = ("--images", "10", "--batch", "4", "--out", str(out), "--folder", str(folder))
    assert sample.main([str(bits), *options]) == 0
    said = capsys.readouterr().out
    assert f"10 samples: {out}" in said
    rows = re.findall(r"pair moments, rms error +([\d.]+) +([\d.]+)", said)
    assert float(rows[0][0]) < float(rows[0][1])
    assert [path.name for path in sorted(folder.iterdir())] == [f"{k:06}.png" for k in range(10)]
    assert Image.open(folder / "000009.png").size == (32, 32)
    first = Image.open(out).tobytes()

    assert sample.main([str(bits), *options, "--no-quality"]) == 0
    assert Image.open(out).tobytes() == first
    assert sample.main([str(bits), *options, "--no-quality", "--seed", "1"]) == 0
    assert Image.open(out).tobytes() != first
    assert sample.main([str(bits), *options, "--no-quality", "--method", "random"]) == 0
    assert Image.open(out).tobytes() != first


def test_samples_are_the_same_in_any_batch_and_are_not_all_drawn_at_once(
    bits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample.main([str(bits), "--images", "1000000000", "--no-quality"]) == 0
    monkeypatch.setattr(latents, "PART", 5)
    for batch in ("2", "8"):
        options = ("--images", "12", "--batch", batch, "--folder", str(tmp_path / batch))
        assert sample.main([str(bits), *options, "--no-quality"]) == 0
    names = [path.name for path in sorted((tmp_path / "8").iterdir())]
    assert names == [f"{k:06}.png" for k in range(12)]
    for name in names:
        ours, theirs = (np.asarray(Image.open(tmp_path / b / name)).astype(int) for b in ("2", "8"))
        assert abs(ours - theirs).max() <= 1


def test_reconstruct(bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "single"
    assert reconstruct.main([str(bits), "--images", "5", "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    logged = [line["loss"] for line in read_metrics(bits) if line["kind"] == "test"][-1]
    loss = re.search(r"test loss ([\d.]+) nats per image, mean over 300 images", said)
    assert loss is not None
    assert float(loss[1]) == pytest.approx(logged, abs=2e-3)
    assert len(list(folder.iterdir())) == 300
    assert reconstruct.main([str(bits), "--split", "train", "--weights", "best"]) == 0
    said = capsys.readouterr().out
    assert "train loss" in said
    assert "reconstructions-train.png" in said


def test_pictures_show_images_spread_over_the_split(bits: Path, tmp_path, monkeypatch) -> None:
    seen: list[list[int]] = []
    reconstruction_of = gallery.reconstruction_of

    def noted(model, images, split, index):
        seen.append(index.tolist())
        return reconstruction_of(model, images, split, index)

    for module in (gallery, reconstruct):
        monkeypatch.setattr(module, "reconstruction_of", noted)
    out = str(tmp_path / "picture.png")
    assert reconstruct.main([str(bits), "--images", "5", "--out", out]) == 0
    run = Run.open(bits)
    gallery.show_model(
        run.model("last"),
        load(run.config.data).test,
        0,
        64,
        BernoulliCopula().fit(run.codes("last")),
    )
    assert seen == [[0, 60, 120, 180, 240], [300 * k // 32 for k in range(32)]]


def test_interpolate(bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, folder = tmp_path / "walk.png", tmp_path / "single"
    options = ("--from", "3", "1", "--to", "5", "3", "--steps", "4", "--split", "test")
    arguments = [str(bits), *options, "--out", str(out), "--folder", str(folder)]
    assert interpolate.main(arguments) == 0
    said = capsys.readouterr().out
    assert "row 2: test image 1 to 3" in said
    assert len(list(folder.iterdir())) == 8
    # Both walks have image 3 at an end; margin directions keep every bit of a code.
    images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert np.array_equal(images[0], images[7])

    assert interpolate.main([str(bits), "--set-attribute", "4", "--pairs", "3"]) == 0
    said = capsys.readouterr().out
    assert "with 4 set" in said
    assert "attribute-4.png" in said
    assert interpolate.main([str(bits), "--direction", "split", "--pairs", "2"]) == 0


def test_gaussian_run(gaussian: Path, capsys: pytest.CaptureFixture) -> None:
    assert not (gaussian / "codes.safetensors").exists()
    assert (gaussian / "images" / "samples-prior.png").exists()
    assert sample.main([str(gaussian), "--images", "4"]) == 0
    assert "samples-prior.png" in capsys.readouterr().out
    for method in ("linear", "spherical"):
        assert interpolate.main([str(gaussian), "--method", method, "--pairs", "2"]) == 0
    assert reconstruct.main([str(gaussian)]) == 0
    assert "kl" in capsys.readouterr().out
    assert sample.main([str(gaussian), "--method", "copula"]) == 1
    assert "does not fit a model with real latents; use prior" in capsys.readouterr().err
    assert interpolate.main([str(gaussian), "--method", "copula"]) == 1
    capsys.readouterr()
    assert interpolate.main([str(gaussian), "--set-attribute", "1"]) == 2
    assert_one_sentence(capsys.readouterr().err, "--set-attribute needs a model whose latents are")
    with pytest.raises(UsageError, match="has no codes"):
        _ = Trained(RunOptions(gaussian)).codes


def test_the_smallest_run(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    """One bit, one test image, and class names that are no file names."""
    arrays = {
        "train_x": rng.integers(0, 256, (16, 28, 28), np.uint8),
        "test_x": rng.integers(0, 256, (1, 28, 28), np.uint8),
        "train_y": np.arange(16) % 2,
        "test_y": np.zeros(1, np.int64),
        "classes": np.array(["T-shirt/top", "../x"]),
    }
    np.savez(tmp_path / "small.npz", **arrays)
    out = tmp_path / "run"
    data = ("--data.name", f"npz:{tmp_path / 'small.npz'}", "--data.size", "32")
    options = (*data, "--model.dim", "1", "--batch", "8", "--steps", "2", "--pictures-every", "1")
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    assert sample.main([str(out), "--images", "2"]) == 0
    for k, name in enumerate(arrays["classes"]):
        assert interpolate.main([str(out), "--pairs", "2", "--set-attribute", name]) == 0
        assert (out / "images" / f"attribute-{k}.png").exists()
    capsys.readouterr()
    assert interpolate.main([str(out), "--split", "test"]) == 2
    assert_one_sentence(capsys.readouterr().err, "the test split has one image")


def test_denoising_is_measured_and_shown_with_the_same_noise(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    model = ("--model.latent", "gaussian", "--model.kl-weight", "1")
    test = ("--model.evaluate-with", "sample", "--model.test-corruption", "noise")
    strength = ("--model.test-corruption-strength", "0.3")
    options = (*model, *test, *strength, "--steps", "1", "--test-batch", "128")
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    (logged,) = [line["loss"] for line in read_metrics(out) if line["kind"] == "test"]
    drawn = np.asarray(Image.open(out / "images/reconstructions.png"))
    capsys.readouterr()
    assert reconstruct.main([str(out)]) == 0
    assert f"test loss {logged:.4f} " in capsys.readouterr().out
    again = np.asarray(Image.open(out / "images/reconstructions.png"))
    # Input, corrupted, output: the border of a digit is black until there is noise on it.
    top = 8 + 22 * 2
    tiles = [again[top : top + 64, left : left + 64, 0] for left in (8, 78, 148)]
    assert tiles[0][:4].max() == 0
    assert tiles[1][:4].max() > 0
    # The caption has changed, and the line below.
    assert np.array_equal(drawn[top:-20, :148], again[top:-20, :148])


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.delenv("FASTLATENT_DATA", raising=False)
    checkpoint, out = tmp_path / "best.cp", tmp_path / "run"
    torch.save(original_checkpoint("mnist", "bits", 200), checkpoint)
    assert convert.main(["lbae", str(checkpoint), str(out)]) == 0
    said = capsys.readouterr().out
    assert "mnist model with 200 bits latents" in said
    assert "nothing was measured" in said
    run = Run.open(out)
    assert run.config.name == "lbae-mnist"
    weights = load_file(out / "weights.safetensors")
    saved = torch.load(checkpoint, weights_only=True)
    assert torch.equal(weights["encoder.heads.logits.weight"], saved["enc"]["l0l.weight"])
    assert train.main(["--resume", str(out)]) == 1
    assert "no checkpoint to resume from" in capsys.readouterr().err
    assert sample.main([str(out), "--images", "2", "--method", "random", "--no-quality"]) == 0


@pytest.mark.parametrize("whole_zip", [True, False])
def test_convert_damaged(whole_zip: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "best.cp"
    entries = {"gen": {"l1l.bias": torch.ones(3)}, "enc": {}}
    torch.save(entries, checkpoint, _use_new_zipfile_serialization=whole_zip)
    content = checkpoint.read_bytes()
    # Of the older format these end in IndexError, struct.error and EOFError.
    for length in (1, 18, 300):
        checkpoint.write_bytes(content[:length])
        assert convert.main(["lbae", str(checkpoint), str(tmp_path / "other")]) == 1
        assert_one_sentence(capsys.readouterr().err, "cannot be read as a checkpoint")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["resnet"], 2, "there is no preset 'resnet'; choose from lbae-digits"),
        (["lbae-digit"], 2, "there is no preset 'lbae-digit'; did you mean 'lbae-digits'?"),
        (["--foo", "3"], 2, "there is no option --foo (see --help)"),
        (["--data.nme", "x"], 2, "there is no option --data.nme; did you mean --data.name?"),
        (["--bach", "3", "--no-compil"], 2, "did you mean --batch and --compile?"),
        (["lbae-digits", "vae-digits"], 2, "there is no place for vae-digits"),
        (["--precision", "pf16"], 2, "must be one of fp32, bf16, fp16; got 'pf16'; did you mean"),
        (["--lr", "1 --a --b --c " * 8 + "2"], 2, "got '" + "1 --a --b --c " * 8 + "2'"),
        (["--epochs", "many"], 2, "--epochs"),
        (["--epochs", "0"], 2, "epochs must be at least 1; got 0"),
        (["--seed", "-1"], 2, "seed must be from 0 to 4294967295"),
        (["--seed", "4294967296"], 2, "seed must be from 0 to 4294967295"),
        (["--name", ".."], 2, "name must be letters, digits, . _ -, and not dots alone; got '..'"),
        (["bigan-digits", "--batch", "1"], 2, "--batch must be at least 2"),
        (["bigan-digits", "--batch", "4", "--accumulate", "4"], 2, "--batch must be at least 8"),
        (["--model.dim", "0"], 2, "dim must be at least 1; got 0"),
        (["--eval-every", "often"], 2, 'must read like "50 steps"'),
        (["--batch", "64", "--accumulate", "3"], 2, "a multiple of --accumulate 3"),
        (["--batch", "5000"], 2, "larger than the training set of 1497 images"),
        (["--data.size", "28"], 2, "the model takes images of 32x32 pixels"),
        (["--precision", "fp16", "--device", "cpu"], 2, "fp16 needs a GPU"),
        (["--from-step", "3"], 2, "--from-step needs --resume"),
        (["lbae-mnist", "--resume", "."], 2, "one of PRESET, --config and --resume"),
        (["--resume", "nowhere"], 1, "nowhere is not a run folder"),
        (["--config", "nowhere.json"], 1, "nowhere.json: No such file"),
        (["--data.name", "mnist", "--data.root", "nowhere"], 1, "mnist"),
        (["--out", "a-file"], 2, "a-file is there and is no run"),
        (["--out", "a-file/run"], 1, "a-file/run"),
    ],
)
def test_train_says_what_is_wrong(
    arguments: list[str],
    code: int,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    assert train.main(arguments) == code
    assert_one_sentence(capsys.readouterr().err, complaint)
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize(
    ("fail", "complaint"),
    [
        (lambda: torch.empty(1 << 60), "out of memory: can't allocate memory"),
        (lambda: raise_(KernelMissing("ops: no kernel\nserves")), "ops: no kernel serves"),
        (lambda: raise_(InvalidCxxCompiler()), "--compile does not work here"),
        (lambda: raise_(torch.OutOfMemoryError("tried\nto")), "out of GPU memory: tried"),
    ],
)
def test_what_the_machine_cannot_do_is_a_sentence(fail, complaint: str, capsys) -> None:
    assert command(lambda _: fail())([]) == 1
    assert_one_sentence(capsys.readouterr().err, complaint)


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        command(lambda _: raise_(RuntimeError("shapes do not match")))([])


def raise_(error: Exception) -> None:
    raise error


def test_an_exception_inside_nested_jobs_is_the_one_that_is_seen(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with pytest.raises(KeyError, match="mine"), progress.Progress("outer", 1):
        inner = progress.track([1, 2, 3], "inner", 3)
        next(inner)
        next(inner)
        raise KeyError("mine")
    inner.close()
    assert progress.Progress._screen is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_sentence(capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--device", "cuda", "--out", "nowhere"]) == 1
    assert_one_sentence(capsys.readouterr().err, "--device cuda needs a CUDA GPU")


@pytest.mark.parametrize(
    ("command", "arguments", "code", "complaint"),
    [
        (sample, ["{run}", "--images", "0"], 2, "--images must be at least 1"),
        (sample, ["{run}", "--out", "x.jpg"], 2, "--out must end in .png"),
        (interpolate, ["{run}", "--steps", "100000"], 1, "a picture holds at most 40,000 images"),
        (sample, ["{run}", "--method", "gaussian"], 2, "--method"),
        (sample, ["{run}", "--method", "prior"], 1, "use copula or random"),
        (sample, [], 2, "RUN"),
        (sample, ["nowhere"], 1, "nowhere is not a run folder"),
        (reconstruct, ["{run}", "--split", "validation"], 2, "--split"),
        (interpolate, ["{run}", "--from", "1"], 2, "--from and --to go together"),
        (interpolate, ["{run}", "--from", "1497", "--to", "0"], 2, "must lie in 0 to 1496"),
        (interpolate, ["{run}", "--steps", "1"], 2, "--steps must be at least 2"),
        (interpolate, ["{run}", "--set-attribute", "10"], 2, "a number from 0 to 9"),
        (interpolate, ["{run}", "--set-attribute", "1", "--to", "3"], 2, "--to does not go"),
        (convert, ["lbae", "nowhere.cp", "out"], 1, "nowhere.cp: No such file"),
        (convert, ["glo", "nowhere.cp", "out"], 2, "glo"),
    ],
)
def test_commands_say_what_is_wrong(
    command, arguments: list[str], code: int, complaint: str, bits: Path, capsys
) -> None:
    assert command.main([word.format(run=bits) for word in arguments]) == code
    assert_one_sentence(capsys.readouterr().err, complaint)


@pytest.mark.parametrize(
    "command", [train, sample, reconstruct, interpolate, geodesics, evaluate, layers, convert]
)
def test_help_documents_every_option(command, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert command.main(["--help"]) == 0
    said = re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out)  # frames, in older versions of tyro
    _, *options = re.split(r"\n  ?(?=--[a-z])", said)
    assert options
    for option in options:
        name, text = option.split(maxsplit=1)
        text = re.sub(r"\(default: [^)]*\)|\{.*?\}|[A-Z|]{3,}", "", text)
        if not name.startswith("--model."):  # a model family documents its own
            assert len(re.findall(r"[a-z]{3,}", text.lower())) >= 2, option


def test_help_lists_presets(capsys: pytest.CaptureFixture) -> None:
    assert train.main(["lbae-mnist", "--help"]) == 0
    assert "(default: 5000)" in capsys.readouterr().out
    assert train.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(
        f"  {name}" in said and preset.result in " ".join(said.split())
        for name, preset in PRESETS.items()
    )


def test_dispatcher(bits: Path, capsys: pytest.CaptureFixture) -> None:
    assert dispatcher.main([]) == 0
    assert "reconstruct" in capsys.readouterr().out
    assert dispatcher.main(["paint"]) == 2
    assert_one_sentence(capsys.readouterr().err, "there is no command 'paint'; choose from train")
    assert dispatcher.main(["fit-prio"]) == 2
    assert_one_sentence(capsys.readouterr().err, "'fit-prio'; did you mean 'fit_prior'?")
    assert dispatcher.main(["fit-prior", "--prior", "copula", str(bits)]) == 2
    assert_one_sentence(capsys.readouterr().err, "--prior copula is not for fit_prior")
    assert dispatcher.main(["--version"]) == 0
    assert dispatcher.main(["sample", str(bits), "--images", "1", "--no-quality"]) == 0


def test_settings_of_another_run(bits: Path, tmp_path: Path, capsys) -> None:
    options = ("--config", str(bits), "--name", "copy", "--steps", "1")
    assert train.main([*options, "--out", str(tmp_path / "run")]) == 0
    copy, source = Run.open(tmp_path / "run").config, Run.open(bits).config
    assert (copy.model, copy.data, copy.epochs) == (source.model, source.data, source.epochs)
    assert (copy.name, copy.steps) == ("copy", 1)
    assert train.main([*options, "--out", str(tmp_path / "run")]) == 2
    assert_one_sentence(capsys.readouterr().err, "already holds a run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_stop(number: int, tmp_path: Path, capsys, monkeypatch) -> None:
    learn = Learner.learn

    def learn_and_signal(self: Learner, step: int, *rest) -> None:
        learn(self, step, *rest)
        if step == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Learner, "learn", learn_and_signal)
    before = signal.getsignal(number)
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "9", "--out", str(out)]) == 128 + number
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert "stopped at step 5 of 9 and saved; go on with: python -m fastlatent.train" in said
    assert Run.open(out).latest() == 5
    assert train.main(["--resume", str(out)]) == 0
    assert Run.open(out).latest() == 9


def test_divergence_stops_and_keeps_the_last_good(tmp_path: Path, capsys, monkeypatch) -> None:
    learn = Learner.learn

    def poisoned(self: Learner, step: int, parts, plan) -> None:
        if step == 5:
            parts[0].images[:] = float("nan")
        learn(self, step, parts, plan)

    monkeypatch.setattr(Learner, "learn", poisoned)
    out = tmp_path / "run"
    every = ("--checkpoint-every", "2 steps", "--log-every", "4 steps", "--eval-every", "never")
    assert train.main([*TINY, *every, "--steps", "9", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert_one_sentence(said, "the loss became infinite or NaN at step 6")
    assert "the last good checkpoint is that of step 4" in said
    state = Run.open(out).load()
    assert state.step == 4
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors["weights"].values())


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A stand-in for a full disk: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_what_was_saved(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "3", "--out", str(out)]) == 0
    pages = {path: path.read_bytes() for path in (out / "state/3").iterdir()}
    capsys.readouterr()
    with files_up_to(20_000):
        assert train.main(["--resume", str(out), "--steps", "6", "--eval-every", "never"]) == 1
    said = capsys.readouterr().err
    assert_one_sentence(said, "File too large")
    assert Run.open(out).latest() == 3
    assert {path: path.read_bytes() for path in (out / "state/3").iterdir()} == pages
    assert not list(out.rglob("*.tmp"))
    assert train.main(["--resume", str(out)]) == 0
    assert Run.open(out).latest() == 6


def test_bf16_and_moving_average(tmp_path: Path) -> None:
    options = ("--precision", "bf16", "--ema", "0.5", "--clip", "1", "--weight-decay", "0.01")
    out = tmp_path / "run"
    assert train.main([*TINY, *options, "--steps", "3", "--out", str(out)]) == 0
    state = Run.open(out).load()
    weights, model = state.tensors["weights"], state.tensors["model"]
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.values())
    name = "encoder.stem.weight"
    assert not torch.equal(weights[name], model[name])
    # Batch normalisation statistics are not averaged but taken over.
    name = "encoder.stem_norm.running_mean"
    assert torch.equal(weights[name], model[name])


@pytest.mark.slow  # for the compiler
def test_compiled_training_learns_the_same(tmp_path: Path) -> None:
    losses = []
    for option in ("--compile", "--no-compile"):
        out = tmp_path / option
        options = ("--steps", "3", "--log-every", "1", option)
        assert train.main([*TINY, *options, "--out", str(out)]) == 0
        losses.append([line["loss"] for line in read_metrics(out) if line["kind"] == "train"])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_accumulated_parts_give_the_same_step(tmp_path: Path, monkeypatch) -> None:
    freeze_batch_norm(monkeypatch)
    losses = []
    for parts in ("1", "4"):
        out = tmp_path / parts
        options = ("--accumulate", parts, "--steps", "4", "--log-every", "1")
        assert train.main([*TINY, *options, "--out", str(out)]) == 0
        losses.append([line["loss"] for line in read_metrics(out) if line["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][3]


def freeze_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of a batch the mean of those of its parts."""
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, mode=True: self)
    made = torch.nn.BatchNorm2d.__init__

    def make(self, *arguments, **keywords) -> None:
        made(self, *arguments, **keywords)
        self.training = False

    monkeypatch.setattr(torch.nn.BatchNorm2d, "__init__", make)


# As freeze_batch_norm, for a process of its own.
RANK = """
import sys, torch
from fastlatent import train

norm = torch.nn.BatchNorm2d
made = norm.__init__

def make(self, *arguments, **keywords):
    made(self, *arguments, **keywords)
    self.training = False

norm.__init__, norm.train = make, lambda self, mode=True: self
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.processes
def test_two_processes_train_like_one(tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    options = [*TINY, "--steps", "6", "--log-every", "1", "--eval-every", "3 steps"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two, one = tmp_path / "two", tmp_path / "one"
    launched = subprocess.run(
        [sys.executable, *launcher, str(script), *options, "--out", str(two)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr
    assert "fp32 on cpu on 2 processes" in launched.stdout
    assert launched.stdout.count("test loss") == 3  # rank 0 alone speaks
    freeze_batch_norm(monkeypatch)
    assert train.main([*options, "--out", str(one)]) == 0

    ours, theirs = read_metrics(one), read_metrics(two)
    assert [line["kind"] for line in ours] == [line["kind"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine["kind"] != "samples":
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)

    run = Run.open(two)
    codes, data = run.codes("last"), load(run.config.data)
    assert codes is not None
    assert torch.equal(codes.label_count, data.train.labels.bincount())
    fresh = gather_codes(run.model("last"), data.train, 500, labels=10)
    assert (codes.agree - fresh.agree).abs().max() <= 4
    state = run.load()
    assert len(state.values["ranks"]) == 2
    assert {name.split("/")[0] for name in state.tensors["generators"]} == {"0", "1"}


def test_a_batch_that_ranks_cannot_share(tmp_path: Path) -> None:
    from fastlatent.training import Plan

    config = PRESETS["lbae-digits"].config
    with pytest.raises(UsageError, match=r"batch=64 cannot .* by 3 processes; take 63 or 66"):
        Plan(config, 1000, torch.device("cpu"), 0, 3)
    small = replace(config, batch=2, accumulate=2)
    with pytest.raises(UsageError, match="by 3 processes, 2 parts each; take 6"):
        Plan(small, 1000, torch.device("cpu"), 0, 3)


def test_pictures_show_true_values() -> None:
    images = torch.tensor([0.0, 0.5, 1.0, 2.0]).reshape(4, 1, 1, 1).expand(4, 1, 32, 32)
    assert to_bytes(images)[:, 0, 0, 0].tolist() == [0, 128, 255, 255]
    halves = torch.tensor([0.5, 1.5, 2.5, torch.nan]).reshape(4, 1, 1, 1) / 255
    assert to_bytes(halves).flatten().tolist() == [1, 2, 3, 0]  # halves go up, as for features
    picture = np.asarray(grid(images, 2))
    assert picture.shape == (8 + 64 + 6 + 64 + 8, 8 + 64 + 6 + 64 + 8, 3)
    assert [picture[40, 40, 0], picture[40, 110, 0], picture[110, 40, 0]] == [0, 128, 255]
    colours = torch.rand(3, 3, 64, 64)
    assert np.array_equal(np.asarray(grid(colours, 3))[8:72, 8:72], to_bytes(colours)[0])
    with pytest.raises(ValueError, match=r"images must be \(n, 1 or 3, h, w\)"):
        grid(torch.zeros(0, 1, 2, 2), 1)


def test_pairs_are_distinct() -> None:
    pairs = pick_pairs(9, 8, seed=0)
    assert pairs.shape == (2, 4)
    assert len(pairs.unique()) == 8
    assert torch.equal(pairs, pick_pairs(9, 8, seed=0))


def test_sample_metrics() -> None:
    agreement = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.9], [0.2, 0.9, 1.0]]).double()
    error = moment_error(agreement, torch.full((3, 3), 0.5).double())
    assert error.max == pytest.approx(0.8)
    assert error.rms == pytest.approx(((0.6**2 + 0.8**2) / 3) ** 0.5)
    with pytest.raises(ValueError, match="moment_error"):
        moment_error(agreement, agreement[:2])

    images, references = torch.rand(5, 1, 4, 4), torch.rand(7, 1, 4, 4)
    difference = (images[:, None] - references).double().square().mean((2, 3, 4)).sqrt()
    nearest = nearest_distance(images, references.split(3))
    assert torch.allclose(nearest, difference.amin(1))
    assert nearest_distance(references[2:3], [references]).item() == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="at least one image"):
        nearest_distance(images, [])


FAULTS = """
import resource
import torch
from fastlatent.commands.console import command

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

@command
def main(argv=None):
    for i in range(30):
        torch.ones(64 << 20, dtype=torch.uint8)
        if i == 19:
            before = faults()
    print((faults() - before) * resource.getpagesize() >> 20)

main([])
main()
"""


LIBC, VERSION = platform.libc_ver()


@pytest.mark.skipif(
    LIBC != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35),
    reason="older than 2.35, glibc keeps no block beyond 32 MiB",
)
def test_a_command_keeps_memory_that_it_frees():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=60)
    called, started = map(int, run.stdout.split())  # MiB of new pages
    assert called > 600
    assert started < 100


def test_progress_of_training_shows_the_epoch(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("fastlatent.jobs.progress.PLAIN_SECONDS", 0.0)
    options = ("--data.per-class", "16", "--batch", "16", "--model.width", "0.1", "--steps", "2")
    assert train.main([*options, "--eval-every", "never", "--out", str(tmp_path / "run")]) == 0
    assert "training, epoch 0.10: step 1/2" in capsys.readouterr().out
