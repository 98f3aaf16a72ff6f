"""GLO in training runs: latents move with the weights and are kept with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastlatent import evaluate, film, fit_prior, interpolate, reconstruct, sample, train
from fastlatent.data import DataConfig, epoch_order, load
from fastlatent.inference.latents import draw
from fastlatent.inference.passes import measure_loss
from fastlatent.jobs.errors import RunError
from fastlatent.models import GLO
from fastlatent.models.glo import LatentTable, project
from fastlatent.models.glo.learning import MovingLatents
from fastlatent.models.learned import Room
from fastlatent.noise import generator
from fastlatent.presets import PRESETS
from fastlatent.priors import Normal
from fastlatent.runs import Run, read_metrics
from fastlatent.runs.files import read_tensors, write_tensors
from fastlatent.runs.priors import read_prior

TINY = (
    *("glo-digits", "--device", "cpu", "--data.classes", "0", "1", "--model.width", "0.03"),
    *("--model.dim", "6", "--batch", "32", "--model.fit-steps", "4", "--test-images", "20"),
    *("--log-every", "1 steps", "--film-images", "6"),
)
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def trained(out: Path, *options: str) -> Run:
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    return Run.open(out)


def latents_of(run: Run, which: str = "last") -> torch.Tensor:
    return run.latents(which, 6).clone()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "glo"
    options = ("--steps", "20", "--film-every", "5 steps", "--eval-every", "7 steps")
    return trained(out, *options)


def test_a_run_keeps_a_latent_for_each_image(run: Run) -> None:
    data, latents = load(run.config.data), latents_of(run)
    assert latents.shape == (len(data.train), 6) and latents.dtype == torch.float32
    assert latents.norm(dim=1).max() <= 1 + 1e-6
    state = run.path / "state/20"
    assert os.path.samefile(state / "latents.safetensors", run.path / "latents.safetensors")
    assert (run.path / "latents-best.safetensors").is_file()
    model = run.model("last")
    torch.testing.assert_close(model.code_mean, latents.double().mean(0).float())
    torch.testing.assert_close(model.code_covariance, latents.double().T.cov().float())
    losses = [line["loss"] for line in read_metrics(run.path) if line["kind"] == "train"]
    assert len(losses) == 20 and np.mean(losses[-3:]) < 0.8 * losses[0]


def test_latents_are_bound_to_their_weights(run: Run, tmp_path: Path, monkeypatch) -> None:
    """New weights with old latents, as a crash between the two files leaves them, are refused."""
    copied = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    tensors = copied.model("best").state_dict()
    latents = {"codes": torch.zeros(300, 6)}
    with monkeypatch.context() as patch:
        patch.setattr("fastlatent.runs.folder.write_latents", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copied.write_best(tensors | {"code_mean": torch.ones(6)}, 40, 0.1, latents)
    with pytest.raises(RunError, match=r"latents-best\.safetensors holds latents learned with"):
        copied.model("best")
    copied.write_best(tensors, 40, 0.1, latents)
    assert torch.equal(copied.model("best").latents, latents["codes"])
    copied.write_weights(copied.model("last").state_dict() | {"code_mean": torch.ones(6)})
    with pytest.raises(RunError, match=r"learned with other weights than weights\.safetensors"):
        copied.model("last")


def test_latents_begin_at_the_components(tmp_path: Path) -> None:
    """After one step, the latents of images that the step has not seen are as they began."""
    run = trained(tmp_path / "run", "--steps", "1")
    data, model = load(run.config.data), run.model("last")
    with torch.no_grad():
        start = model.components(data.train.images(torch.arange(len(data.train))) / 255)
    torch.testing.assert_close(start.norm(dim=1), torch.ones(len(start)))
    seen = torch.zeros(len(start), dtype=torch.bool)
    seen[epoch_order(len(start), run.config.seed, 0)[:32]] = True
    # A batch size of its own for the product may round otherwise.
    far = (latents_of(run) - start).abs().amax(1) > 1e-5
    assert torch.equal(far, seen)
    x = data.train.images(torch.arange(len(data.train))).flatten(1).double()
    x = x - x.mean(0)
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:6]
    assert ((axes @ model.directions.double().T).abs() - torch.eye(6)).abs().max() < 1e-3


@pytest.mark.parametrize("style", ["paper", "seed"])
def test_every_latent_moves_in_every_epoch(tmp_path: Path, style: str) -> None:
    """Guards against latents that are stored once only; 240 images in batches of 30."""
    options = ("--style", style, "--data.per-class", "120", "--batch", "30")
    after = {}
    for epochs in (1, 2, 3):
        steps = ("--steps", str(8 * epochs))
        after[epochs] = latents_of(trained(tmp_path / str(epochs), *options, *steps))
    assert len(after[1]) == 240
    for one, two in ((1, 2), (2, 3)):
        assert (after[one] != after[two]).any(1).all()


@pytest.mark.parametrize("style", ["paper", "seed"])
@pytest.mark.parametrize("table", ["device", "file"])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, style: str, table: str) -> None:
    options = ("--style", style, "--code-table", table, "--film-every", "2 steps")
    whole = trained(tmp_path / "whole", *options, "--steps", "11")
    part = trained(tmp_path / "part", *options, "--steps", "6", "--checkpoint-every", "3 steps")
    resume = ("--resume", str(part.path), "--from-step", "3", "--steps", "11")
    assert train.main([*resume]) == 0
    assert torch.equal(latents_of(whole), latents_of(part))
    for name in ("weights", "best", "latents-best"):
        files = [load_file(one.path / f"{name}.safetensors") for one in (whole, part)]
        for key, tensor in files[0].items():
            assert torch.equal(tensor, files[1][key]), (name, key)
    one, two = (
        [line["loss"] for line in read_metrics(folder.path) if line["kind"] == "train"]
        for folder in (whole, part)
    )
    assert one == two
    assert not list(tmp_path.glob(".codes-*"))


def test_a_table_in_a_file_gives_the_same_latents(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / where, "--steps", "5", "--code-table", where)
        for where in ("device", "file")
    ]
    assert torch.equal(*map(latents_of, runs))


class StillNorm(torch.nn.BatchNorm2d):
    """Batch norm that keeps to its running statistics, in training too."""

    def train(self, mode: bool = True) -> "StillNorm":
        return super().train(False)


def test_parts_of_a_step_are_the_step(tmp_path: Path, monkeypatch) -> None:
    """One step in two parts: batch norm would see other batches, so it is kept still."""
    monkeypatch.setattr(torch.nn, "BatchNorm2d", StillNorm)
    for order in ("simultaneous", "alternating"):
        options = ("--steps", "1", "--model.order", order, "--model.initial", "gaussian")
        # Without batch norm gradients are small, and the full step of the weights kills all units.
        long = (*options, "--model.alpha", "1e4", "--lr", "1e-3")
        one = latents_of(trained(tmp_path / f"{order}1", *long))
        two = latents_of(trained(tmp_path / f"{order}2", *long, "--accumulate", "2"))
        start = latents_of(trained(tmp_path / f"{order}0", *options, "--model.alpha", "1e-9"))
        moved = (one - start).norm(dim=1)
        assert int((moved > 1e-2).sum()) == 32
        assert ((two - one).norm(dim=1) <= 1e-4 * moved).all()


def launch(*options: str) -> None:
    """Train in two processes."""
    done = subprocess.run(
        [sys.executable, *TWO, "-m", "fastlatent.train", *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


# An epoch is 8 steps of both processes.
HALVES = (*TINY, "--data.per-class", "120", "--batch", "30", "--film-every", "4 steps")


@pytest.mark.processes
def test_two_processes_hold_half_the_latents_each(tmp_path: Path) -> None:
    """All latents are in the run, each at its image, and one process can go on with it."""
    launch(*HALVES, "--steps", "4", "--out", str(tmp_path / "run"))
    run = Run.open(tmp_path / "run")
    before, model = latents_of(run), run.model("last")
    torch.testing.assert_close(model.code_mean, before.double().mean(0).float())
    images = load(run.config.data).train.images(torch.arange(240)) / 255
    with torch.no_grad():
        start = model.components(images)
    # Half an epoch moves half of the latents, by less than they are apart.
    assert int(((before - start).abs().amax(1) > 1e-5).sum()) == 120
    assert torch.equal(torch.cdist(before, start).argmin(1), torch.arange(240))
    assert train.main(["--resume", str(run.path), "--steps", "16"]) == 0
    assert (latents_of(Run.open(run.path)) != before).any(1).all()


@pytest.mark.parametrize("world", [2, 7])
def test_latents_of_all_processes_are_joined_in_order(
    run: Run, tmp_path: Path, monkeypatch, world: int
) -> None:
    """Latents so long that they are gathered in parts; another process gives the first its rows."""
    dim, split = 30_000, load(run.config.data).train
    model: Any = SimpleNamespace(
        latent_dim=dim, images_mark=split.mark, config=run.model("last").config
    )
    latents = torch.arange(300.0).repeat_interleave(dim).view(300, dim)
    ranks = []
    for rank in range(world):
        room = Room(torch.device("cpu"), 0, 8, 8, tmp_path, rank, world)
        ranks.append(MovingLatents(model, split, room))
        ranks[rank].restore(latents)
        assert torch.equal(ranks[rank].table.values, latents[rank::world])
    sent: list[list[torch.Tensor]] = [[] for _ in ranks]
    for rank in reversed(range(world)):

        def gather(shares: list[torch.Tensor], mine: torch.Tensor, rank: int = rank) -> None:
            part = len(sent[rank])
            sent[rank].append(mine)
            for other in range(rank, world):
                shares[other].copy_(sent[other][part])

        monkeypatch.setattr("torch.distributed.all_gather", gather)
        whole = ranks[rank].whole()
        assert len(sent[rank]) > 1 and (whole is None) == (rank > 0)
    assert whole is not None and torch.equal(whole, latents)


@pytest.mark.processes
def test_two_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    launch(*HALVES, "--steps", "16", "--out", str(tmp_path / "whole"))
    launch(*HALVES, "--steps", "8", "--out", str(tmp_path / "part"))
    whole, part = (Run.open(tmp_path / name) for name in ("whole", "part"))
    half = latents_of(part)
    launch("--resume", str(part.path), "--steps", "16")
    assert torch.equal(latents_of(whole), latents_of(part))
    assert (latents_of(whole) != half).any(1).all()


def test_training_images_are_decoded_from_their_latents(run: Run) -> None:
    data, model = load(run.config.data), run.model("last")
    assert isinstance(model, GLO)
    loss = measure_loss(model, data.train, 64)
    x = data.train.images(torch.arange(len(data.train))) / 255
    with torch.no_grad():
        want = model(x, latents=latents_of(run))
    for name, values in want.items():
        assert loss[name] == pytest.approx(float(values.mean()), rel=1e-5), name
    assert "loss_of_start" not in loss
    assert "loss_of_start" in measure_loss(model, data.test, 64, limit=5)


def test_latents_of_other_images_are_refused(run: Run, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["classes"] = [0, 2]
    (other / "config.json").write_text(json.dumps(config))
    assert reconstruct.main([str(other), "--split", "train"]) == 1
    said = capsys.readouterr().err
    assert "latents are of other images than the" in said and "Traceback" not in said
    assert reconstruct.main([str(other), "--images", "2"]) == 0  # others are fitted
    config["data"]["classes"], config["data"]["per_class"] = [0, 1], 20
    (other / "config.json").write_text(json.dumps(config))
    assert reconstruct.main([str(other), "--split", "train"]) == 1
    said = "latents are of other images than the 40 of this"
    assert said in capsys.readouterr().err
    assert fit_prior.main([str(other), "--prior", "normal", "--device", "cpu"]) == 1
    assert said in capsys.readouterr().err
    assert not (other / "prior-normal.safetensors").exists()
    (other / "latents.safetensors").unlink()
    assert sample.main([str(other)]) == 1
    assert "holds no latents.safetensors" in capsys.readouterr().err


def test_part_of_a_latent_table_is_refused(run: Run, tmp_path: Path, capsys) -> None:
    copied = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    path = copied.path / "latents.safetensors"
    tensors, marks = read_tensors(path)
    write_tensors(path, {"codes": tensors["codes"][:100].clone()}, marks)
    commands = (
        (fit_prior, ("--prior", "normal")),
        (reconstruct, ("--split", "train")),
        (interpolate, ()),
    )
    for command, options in commands:
        assert command.main([str(copied.path), *options, "--device", "cpu"]) == 1
        said = capsys.readouterr().err
        assert "must hold latents of 300 images; got 100" in said
    assert not (copied.path / "prior-normal.safetensors").exists()


def test_a_run_does_not_go_on_with_other_images(run: Run, tmp_path: Path, capsys) -> None:
    """As many images, but two of them changed places."""
    data = load(run.config.data)
    x = data.train.images(torch.arange(64)).numpy()
    np.savez(tmp_path / "x.npz", train_x=x, test_x=x[:8])
    out = tmp_path / "run"
    options = [*TINY[:3], *TINY[6:], "--data.name", f"npz:{tmp_path}/x.npz", "--steps", "2"]
    assert train.main([*options, "--out", str(out)]) == 0
    x[[0, 1]] = x[[1, 0]]
    np.savez(tmp_path / "x.npz", train_x=x, test_x=x[:8])
    capsys.readouterr()
    assert train.main(["--resume", str(out), "--steps", "4"]) == 1
    assert "the 64 training images are others than those" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--model.dim", "301"), "dim must be at most 300, as there are 300 images of 1024"),
        (("--precision", "fp16"), "fp16"),
        (("--style", "other"), "there is no --style other of glo-digits"),
        (("--data.size", "28"), "the model takes images of 32x32"),
    ],
)
def test_what_cannot_be_trained(tmp_path: Path, options, sentence, capsys) -> None:
    assert train.main([*TINY, *options, "--out", str(tmp_path / "run")]) in (1, 2)
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_styles_belong_to_presets(capsys) -> None:
    assert train.main(["lbae-digits", "--style", "seed"]) == 2
    assert "lbae-digits, which has no styles" in capsys.readouterr().err
    assert PRESETS["glo-mnist"].config is PRESETS["glo-mnist"].styles["paper"]
    assert train.main(["glo-celeba", "--style", "seed"]) == 2
    assert "there is no --style seed of glo-celeba" in capsys.readouterr().err


def holds(config: object, **settings: object) -> bool:
    return {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10", "celeba"])
def test_presets_hold_the_settings_of_the_paper(name: str) -> None:
    config = PRESETS[f"glo-{name}"].styles["paper"]
    assert holds(config, batch=128, steps=None)
    if name == "mnist":
        # At a rate of 1 its black pixels would saturate.
        assert holds(config, optimizer="adam", lr=1e-3, betas=(0.5, 0.999), epochs=12)
    else:
        assert holds(config, optimizer="sgd", lr=1.0, lr_decay=1.0, epochs=25)
    assert config.model.initial_weights == ("normal" if name == "mnist" else "pytorch")
    latents = {"dim": 128, "projection": "ball", "initial": "pca", "alpha": 10.0}
    how = {"order": "simultaneous", "loss": "laplacian", "levels": 3, "sampling": "gaussian"}
    assert holds(config.model, architecture="paper", width=1.0, **latents, **how)


@pytest.mark.parametrize(
    ("name", "dim", "initial", "alpha", "batch", "side", "rates"),
    [
        ("mnist", 10, "pca", 5.0, 32, 28, {"lr": 1e-4, "lr_decay": 1.0}),
        (
            *("svhn", 25, "uniform", 10.0, 16, 32),
            {"lr": 1e-4, "lr_decay": 0.5, "lr_decay_every": "10000 steps"},
        ),
        ("cifar10", 35, "gaussian", 10.0, 16, 32, {"lr": 1e-5, "lr_decay": 1.0}),
    ],
)
def test_presets_hold_the_settings_of_the_original_program(
    name, dim, initial, alpha, batch, side, rates
) -> None:
    config = PRESETS[f"glo-{name}"].styles["seed"]
    steps = {"batch": batch, "steps": 100_000}
    rates |= {"betas": (0.9, 0.999), "clip": 20.0}
    assert holds(config, optimizer="adam", **rates, **steps)
    latents = {"dim": dim, "projection": "sphere", "initial": initial, "alpha": alpha}
    how = {"order": "alternating", "loss": "moments", "sampling": "unit"}
    assert holds(config.model, architecture="seed", **latents, **how)
    assert config.model.image_shape[1:] == (side, side)


def test_sphere_latents_stay_on_it(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--style", "seed", "--steps", "6")
    lengths = latents_of(run).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(lengths)))
    names = {name for line in read_metrics(run.path) for name in line if line["kind"] == "train"}
    assert "loss_of_moved_weights" in names


def test_a_small_step_of_the_latents_lowers_the_loss() -> None:
    """Of the same images, with the weights as they are, in training mode."""
    model = GLO(PRESETS["glo-digits"].config.model).train()
    data = load(PRESETS["glo-digits"].config.data)
    x = data.train.images(torch.arange(32)) / 255
    make = torch.Generator().manual_seed(0)
    latents = project(torch.randn(32, model.latent_dim, generator=make), "ball")
    latents.requires_grad_()
    before = model(x, latents=latents)["loss"].mean()
    (gradient,) = torch.autograd.grad(before, latents)
    table = LatentTable(latents.detach().clone(), "ball", count=32)
    table.move(torch.arange(32), latents.detach(), gradient, 0.5)
    with torch.no_grad():
        after = model(x, latents=table.values)["loss"].mean()
    # To first order by rate |g|^2, of which projection takes at most what points outwards.
    assert before.detach() - after > 0.1 * 0.5 * gradient.square().sum()


def test_commands(run: Run, tmp_path: Path, capsys, monkeypatch) -> None:
    path = str(run.path)
    assert sample.main([path, "--images", "9", "--folder", str(tmp_path / "single")]) == 0
    assert len(list((tmp_path / "single").iterdir())) == 9
    assert reconstruct.main([path, "--images", "6"]) == 0
    fitted = capsys.readouterr().out
    assert "loss of start" in fitted and "psnr" in fitted
    assert "images, latents fitted by 4 steps from 2 starts" in fitted
    assert reconstruct.main([path, "--images", "6", "--split", "train"]) == 0
    learned = capsys.readouterr().out
    assert "loss of start" not in learned and "images, learned latents" in learned
    for method in ("spherical", "linear"):
        assert interpolate.main([path, "--pairs", "2", "--steps", "4", "--method", method]) == 0
        assert Image.open(run.images / f"interpolation-{method}.png").size[0] > 100
    fit, searched = GLO.fit, []
    monkeypatch.setattr(GLO, "fit", lambda model, x: searched.append(len(x)) or fit(model, x))
    assert evaluate.main([path, "--images", "12"]) == 0
    assert searched == [12]  # for the losses, the error of the pixels and the features
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert set(stored["sets"]) == {"prior", "reconstruction", "interpolation"}


def test_a_mixture_of_the_latents(run: Run, capsys) -> None:
    """Fitted, drawn from and walked through; draws are in the ball and the walks start at
    latents."""
    path = str(run.path)
    assert fit_prior.main([path, "--prior", "gmm", "--components", "3", "--device", "cpu"]) == 0
    assert "270 latents of 6 dimensions" in capsys.readouterr().out  # of 300
    assert sample.main([path, "--method", "gmm", "--images", "4", "--device", "cpu"]) == 0
    assert np.asarray(Image.open(run.images / "samples-gmm.png")).std() > 5
    model = run.model("last")
    prior = read_prior(run, "last", "gmm", model)
    drawn = draw(model, "gmm", 500, generator(0, 0, "test"), prior=prior)
    assert drawn.norm(dim=1).max() <= 1 + 1e-6
    latents = latents_of(run)
    gain = prior.log_prob(latents).mean() - Normal(6, "full").fit(latents).log_prob(latents).mean()
    assert gain > 0
    options = ("--prior", "gmm", "--pairs", "2", "--steps", "4", "--iterations", "20")
    assert interpolate.main([path, "--method", "likelihood", *options, "--device", "cpu"]) == 0
    rows = (run.images / "interpolation-likelihood-gmm.csv").read_text().splitlines()
    assert len(rows) == 3


def test_a_prior_of_pseudo_images_is_not_advised(run: Run, capsys) -> None:
    """There is no encoder whose posteriors it could mix, so that fit_prior refuses it."""
    for command, option in ((sample, "--method"), (fit_prior, "--prior")):
        assert command.main([str(run.path), option, "vamp", "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert "the prior vamp needs a model whose encoder gives a Gaussian posterior" in said
        assert "run python" not in said


def test_commands_on_the_sphere(tmp_path: Path, capsys) -> None:
    """The seed style, its latents on the sphere, drawn from it and walked around it."""
    run = trained(tmp_path / "run", "--style", "seed", "--steps", "6")
    path = str(run.path)
    assert sample.main([path, "--images", "4"]) == 0
    assert reconstruct.main([path, "--images", "4"]) == 0
    assert "images, latents fitted by 4 steps from 3 starts" in capsys.readouterr().out
    assert interpolate.main([path, "--pairs", "2", "--steps", "3"]) == 0
    assert (run.images / "interpolation-spherical.png").is_file()
    assert fit_prior.main([path, "--prior", "gmm", "--components", "3"]) == 0
    model = run.model("last")
    prior = read_prior(run, "last", "gmm", model)
    for method in ("prior", "gmm"):
        z = draw(model, method, 50, generator(0, 0, "test"), prior=prior)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(50))


def test_the_film_shows_the_same_images_through_training(run: Run, tmp_path: Path, capsys) -> None:
    assert sorted(path.name for path in run.film.iterdir()) == [
        *(f"{step:08}.png" for step in (5, 10, 15, 20)),
        "originals.png",
    ]
    model, data = run.model("last"), load(run.config.data)
    index = torch.linspace(0, len(data.train) - 1, 6).round().long()
    with torch.no_grad():
        want = model.decode(latents_of(run)[index])
    sheet = np.asarray(Image.open(run.film / "00000020.png")).astype(float)
    assert sheet.shape == (96, 64)  # two in a row, each pixel as it is
    shown = np.concatenate(np.split(sheet, 2, 1), 0).reshape(2, 3, 32, 32)
    for k in range(6):
        row, column = divmod(k, 2)
        error = shown[column, row] - want[k, 0].numpy() * 255
        assert np.abs(error).max() <= 0.51
    originals = np.asarray(Image.open(run.film / "originals.png"))
    assert np.array_equal(originals[:32, :32], data.train.images(index[:1])[0, 0].numpy())

    out = tmp_path / "film.gif"
    assert film.main([str(run.path), "--fps", "4", "--images", "4", "--out", str(out)]) == 0
    assert "film of 4 frames" in capsys.readouterr().out
    with Image.open(out) as moving:
        assert moving.n_frames == 4 and moving.info["duration"] == 250
        first = np.asarray(moving.convert("RGB"))
        moving.seek(3)
        last = np.asarray(moving.convert("RGB"))
    assert first.shape == last.shape and (first != last).any()
    drawn = np.asarray(Image.open(tmp_path / "film.png"))
    assert np.abs(last.astype(int) - drawn).max() <= 2  # in 64 greys
    assert (last[drawn == 255] == 255).all()


def test_a_run_without_frames_has_no_film(tmp_path: Path, capsys) -> None:
    run = trained(tmp_path / "run", "--steps", "1", "--film-every", "never")
    assert film.main([str(run.path)]) == 1
    assert "holds no frames of a film; train with --film-every" in capsys.readouterr().err
    assert film.main([str(run.path), "--out", "film.mp4"]) == 2
    assert "--out must end in .gif" in capsys.readouterr().err


def write_h5(folder: Path, count: int = 64) -> np.ndarray:
    """The layout of the original program: (n, h, w, c) images by id, in the order of id.txt."""
    h5py = pytest.importorskip("h5py")
    images = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 1), dtype=np.uint8)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for k, image in enumerate(images):
            group = file.create_group(f"img{k}")
            group["image"] = image
            group["code"] = np.zeros(10)
    (folder / "id.txt").write_text("".join(f"img{k}\n" for k in reversed(range(count))))
    return images


@pytest.mark.parametrize("name", ["", "data.hdf5"])
def test_data_of_the_original_program(tmp_path: Path, name: str) -> None:
    images = write_h5(tmp_path)
    data = load(DataConfig(f"h5:{tmp_path / name}"))
    assert (len(data.train), len(data.test)) == (57, 7)
    assert data.test.ids == ("img63", "img53", "img43", "img33", "img23", "img13", "img3")
    index = data.train.find(["img0", "img62"])
    assert index.tolist() == [56, 0]
    got = data.train.images(index).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(got, images[[0, 62]])
    (tmp_path / "id.txt").unlink()
    assert load(DataConfig(f"h5:{tmp_path}")).test.ids[0] == "img0"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "id.txt").write_text("img0\nother\n"), "has no image of the id 'other'"),
        (lambda f: (f / "id.txt").write_text("img0\nimg0\n"), "names an image twice"),
        (lambda f: (f / "id.txt").write_text("img0\n"), "at least 2 images; got 1"),
        (lambda f: (f / "data.hdf5").write_bytes(b"x" * 99), "is no h5 file of images, or damaged"),
        (lambda f: (f / "data.hdf5").unlink(), "there is no file"),
    ],
)
def test_damaged_data_of_the_original_program(tmp_path: Path, spoil, sentence) -> None:
    write_h5(tmp_path, 12)
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load(DataConfig(f"h5:{tmp_path}"))


def test_other_layouts_of_h5_files_are_told_which_one_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "data.hdf5"
    pixels = np.zeros((20, 8, 8), np.uint8)
    floats = np.zeros((20, 9, 9, 1), np.float32)
    read = r"; what is read is a group for each image, with a dataset image \(h, w, c\) in it"
    for arrays, held in (
        ({"images": pixels}, r"the array 'images' of shape \(20, 8, 8\)"),
        (
            {"labels": np.arange(20), "x": pixels},
            r"the array 'x' of shape \(20, 8, 8\) and labels",
        ),
        (
            {"a": np.zeros(9000), "test/y": np.arange(20), "test/x": pixels, "train/x": floats},
            r"the array 'train/x' of shape \(20, 9, 9, 1\) and test/x, a, test/y",
        ),
        ({}, "nothing"),
    ):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        with pytest.raises(ValueError, match=rf"hdf5 holds {held}{read}"):
            load(DataConfig(f"h5:{path}"))
    with h5py.File(path, "w") as file:
        for k in range(20):
            file[f"{k:02}/image"] = np.full((8, 8, 1), k % 2, np.uint8)
        file["20"] = h5py.SoftLink("/nowhere")
    with pytest.raises(ValueError, match="has no image of the id '20'"):
        load(DataConfig(f"h5:{path}"))
    with h5py.File(path, "a") as file:
        del file["20"]
        file["labels"] = np.arange(20)
    with pytest.raises(ValueError, match="has no image of the id 'labels'; what else is in"):
        load(DataConfig(f"h5:{path}"))
    with h5py.File(path, "a") as file:
        del file["labels"]
    data = load(DataConfig(f"h5:{path}"))
    assert data.train.images(torch.arange(3))[:, 0, 0, 0].tolist() == [255, 0, 255]
    assert data.notes == [f"{path}: image: uint8 of 0 and 1 alone is taken as black and white"]


def test_images_of_two_sizes_in_one_file(tmp_path: Path) -> None:
    write_h5(tmp_path, 12)
    with pytest.importorskip("h5py").File(tmp_path / "data.hdf5", "a") as file:
        del file["img3"]["image"]
        file["img3"]["image"] = np.zeros((8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=r"image of 'img3' is uint8 \(8, 8, 1\) where that of"):
        load(DataConfig(f"h5:{tmp_path}"))


def test_chosen_ids(tmp_path: Path, capsys) -> None:
    write_h5(tmp_path)
    options = [*TINY[:3], *TINY[6:], "--data.name", f"h5:{tmp_path}", "--steps", "1"]
    out = str(tmp_path / "run")
    assert train.main([*options, "--out", out]) == 0
    capsys.readouterr()
    folder = tmp_path / "single"
    chosen = ("--data-id", "img13", "img63", "--folder", str(folder))
    assert reconstruct.main([out, *chosen]) == 0
    assert "mean over 2 images" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png"]
    assert reconstruct.main([out, "--split", "train", "--data-id", "img0", "img62"]) == 0
    assert reconstruct.main([out, "--data-id", "img0"]) == 1
    assert "no test image has the id 'img0'" in capsys.readouterr().err


def test_ids_are_numbers_without_names(run: Run, capsys) -> None:
    data, model = load(run.config.data), run.model("last")
    assert reconstruct.main([str(run.path), "--split", "train", "--data-id", "7", "3"]) == 0
    said = capsys.readouterr().out
    x = data.train.images(torch.tensor([7, 3])) / 255
    with torch.no_grad():
        loss = model(x, latents=latents_of(run)[[7, 3]])["loss"].mean()
    assert f"train loss {float(loss):.4f} Laplacian L1, mean over 2 images" in said
    assert reconstruct.main([str(run.path), "--data-id", "60"]) == 1
    assert "no test image has the id '60'; ids go from 0 to 59" in capsys.readouterr().err


def test_the_rate_falls_at_intervals(tmp_path: Path) -> None:
    decay = ("--lr-decay", "0.5", "--lr-decay-every", "2 steps")
    run = trained(tmp_path / "run", *decay, "--lr", "0.8", "--steps", "5")
    (group,) = run.load().values["optimizer"]["groups"]
    assert group["lr"] == 0.8 / 4  # the fifth step is after two decays


def test_half_precision(tmp_path: Path) -> None:
    """Latents move nearly as in float32, and stay in it."""
    common = ("--steps", "1", "--model.initial", "gaussian")
    start = latents_of(trained(tmp_path / "start", *common, "--model.alpha", "1e-9"))
    for order in ("simultaneous", "alternating"):
        options = (*common, "--model.order", order, "--precision")
        full, half = (
            latents_of(trained(tmp_path / f"{order}-{precision}", *options, precision))
            for precision in ("fp32", "bf16")
        )
        assert half.dtype == torch.float32
        assert (half - full).norm() < 0.3 * (full - start).norm()


def test_components_are_a_better_start_than_random_latents(tmp_path: Path) -> None:
    """At as many steps."""
    last = {}
    for initial in ("pca", "gaussian"):
        options = ("--steps", "60", "--model.initial", initial, "--film-every", "never")
        run = trained(tmp_path / initial, *options)
        losses = [line["loss"] for line in read_metrics(run.path) if line["kind"] == "train"]
        last[initial] = np.mean(losses[-10:])
    assert last["pca"] < 0.9 * last["gaussian"]
