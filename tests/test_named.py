"""Trained weights that are found by name."""

import json
import math

import numpy as np
import pytest
import torch

import fastlatent
from fastlatent import compare, evaluate, reconstruct, sample, train
from fastlatent.runs import named
from fastlatent.runs.files import fingerprint, read_tensors, write_tensors

NAMES = ["glo-digits", "ladder-digits", "lbae-digits", "lvae-digits", "vae-digits"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTLATENT_CACHE", str(folder))
    monkeypatch.delenv("FASTLATENT_WEIGHTS", raising=False)
    return folder


def test_what_comes_with_the_package():
    assert set(NAMES) <= set(named.names())
    shipped = named.PACKAGE / "weights"
    assert sorted(path.name for path in shipped.iterdir()) == NAMES
    assert sum(path.stat().st_size for path in shipped.rglob("*")) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_by_name_give_the_numbers_that_were_measured(name):
    run = fastlatent.load(name)
    images = run.sample(4)
    assert images.shape == (4, *run.model.image_shape)
    assert bool(((images >= 0) & (images <= 1)).all()) and images.std() > 0.1
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert stored["fingerprint"] == fingerprint(run.path / "weights.safetensors")
    if name != "glo-digits":  # which searches for latents: seconds
        again = run.evaluate(features="none")["values"]["loss"]["mean"]
        assert math.isclose(again, stored["values"]["loss"]["mean"], rel_tol=1e-4)


@pytest.mark.parametrize("name", ["glo-digits", "vae-digits"])
def test_their_fitted_prior_comes_with_them(name):
    assert fastlatent.load(name).sample(3, "gmm").shape[0] == 3


def test_a_second_use_unpacks_nothing(cache):
    first = fastlatent.load("lbae-digits")
    weights = first.path / "weights.safetensors"
    before = weights.stat()
    assert fastlatent.load("lbae-digits").path == first.path
    assert weights.stat().st_ino == before.st_ino
    assert [path.name for path in first.path.parent.iterdir()] == ["lbae-digits"]
    assert cache in first.path.parents


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    fastlatent.load("lbae-digits").save(tmp_path / "vae-digits")
    monkeypatch.chdir(tmp_path)
    assert fastlatent.load("vae-digits").config.model.family == "lbae"


def test_weights_of_ones_own_by_name(tmp_path, monkeypatch):
    run = fastlatent.load("lbae-digits")
    named.pack(run.path, tmp_path / "mine" / "bits", ("config.json", "weights.safetensors"))
    monkeypatch.setenv("FASTLATENT_WEIGHTS", f"{tmp_path / 'missing'}:{tmp_path / 'mine'}")
    assert "bits" in named.names()
    bits = fastlatent.load("bits")
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(bits.encode(images), run.encode(images))


def test_packing_loses_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    tensors = {
        "rounded": torch.randn(50).half().float(),
        "whole": torch.randn(50),
        "large": torch.tensor([1e5]),
        "count": torch.arange(3),
    }
    write_tensors(tmp_path / "run" / "weights.safetensors", tensors)
    named.pack(tmp_path / "run", tmp_path / "packed", ("weights.safetensors",))
    packed, _ = read_tensors(tmp_path / "packed" / "weights.safetensors")
    assert [t.dtype for _, t in sorted(packed.items())] == [
        torch.int64,
        torch.float32,
        torch.float16,
        torch.float32,
    ]
    folder = named._unpacked(tmp_path / "packed")
    found, _ = read_tensors(folder / "weights.safetensors")
    assert all(
        torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors.items()
    )


def test_damaged_weights_are_told_and_leave_nothing(tmp_path, monkeypatch, cache):
    source = named.PACKAGE / "weights" / "lbae-digits"
    broken = tmp_path / "weights" / "lbae-digits"
    broken.mkdir(parents=True)
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    data = bytearray((broken / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(data)
    monkeypatch.setenv("FASTLATENT_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ValueError, match="is damaged"):
        fastlatent.load("lbae-digits")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_commands_take_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sample.main(["lbae-digits", "--images", "4", "--no-quality"])
    assert (tmp_path / "lbae-digits-samples-copula.png").is_file()
    reconstruct.main(["vae-digits"])
    assert [path.name for path in tmp_path.glob("vae-digits-*.png")]
    compare.main(["lbae-digits", "lvae-digits"])
    assert (tmp_path / "compare.html").is_file()
    said = capsys.readouterr().out
    assert "lvae-digits" in said and "269.7 ± 1.8" in said


@pytest.mark.parametrize(
    "main, arguments",
    [(sample.main, ["lbea-digits"]), (evaluate.main, ["nothing"])],
    ids=["sample", "evaluate"],
)
def test_an_unknown_name_says_which_there_are(main, arguments, capsys):
    assert main(arguments) != 0
    assert "lbae-digits, lvae-digits" in capsys.readouterr().err.replace("\n", " ")


def test_there_is_nothing_to_resume(capsys):
    assert train.main(["--resume", "lbae-digits", "--epochs", "100"]) != 0
    assert "no checkpoint to resume from" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", ".", "..", "weights/lbae-digits", "lbae-digits/"])
def test_only_plain_names_are_names(path):
    assert named.named_folder(path) is None


def test_weights_are_float32_once_unpacked():
    run = fastlatent.load("glo-digits")
    kinds = {p.dtype for p in run.model.parameters()} | {
        run.folder.latents("last", run.model.latent_dim).dtype
    }
    assert kinds == {torch.float32}
    assert np.isfinite(run.sample(2).numpy()).all()
