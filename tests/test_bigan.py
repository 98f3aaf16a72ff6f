"""The BiGAN: its losses, alternating steps, exact resume, the commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fastlatent import evaluate, interpolate, reconstruct, sample, train
from fastlatent.data import load
from fastlatent.inference.passes import measure_loss
from fastlatent.models import BiGAN, BiGANConfig, build
from fastlatent.noise import Noise
from fastlatent.plots import loss_curve
from fastlatent.runs import Run, read_metrics
from fastlatent.training import Learner, Plan

SMALL = BiGANConfig(image_shape=(2, 8, 12), dim=3)
# A model and a data set that take a step in milliseconds.
TINY = (
    *("bigan-digits", "--model.image-shape", "1", "8", "8", "--data.size", "8", "--model.dim", "2"),
    *("--batch", "32", "--data.per-class", "16", "--device", "cpu", "--log-every", "1 step"),
    *("--eval-every", "3 steps", "--checkpoint-every", "2 steps", "--pictures-every", "never"),
    *("--model.discriminator-rate", "0.6"),
)


def images(shape: tuple[int, ...], n: int = 5) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))


def count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def test_sizes_are_those_of_the_published_model() -> None:
    model = build(BiGANConfig(), 0)
    assert count(model.decoder) == 25_624
    assert count(model.encoder) == 23_762
    assert count(model.discriminator) == 45_702


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 8, 12)])
def test_contract(shape: tuple[int, int, int]) -> None:
    model = build(BiGANConfig(image_shape=shape, dim=3), 0).eval()
    x = images(shape)
    assert (model.image_shape, model.latent_dim, model.latent_kind) == (shape, 3, "real")
    values = model(x, noise=Noise(0, 0))
    assert set(values) == {"loss", "score_real", "score_fake"}
    assert all(v.shape == (5,) and v.isfinite().all() for v in values.values())
    z = model.encode(x)
    assert z.shape == (5, 3)
    reconstruction = model.reconstruct(x)
    assert reconstruction.shape == x.shape
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1
    expected = (2 * reconstruction - 2 * x).square().flatten(1).mean(1)
    torch.testing.assert_close(values["loss"], expected)
    other = model(x, target=1 - x, noise=Noise(0, 0))["loss"]
    torch.testing.assert_close(other, (2 * reconstruction + 2 * x - 2).square().mean((1, 2, 3)))
    with pytest.raises(ValueError, match="BiGAN: noise must be given"):
        model(x)


@pytest.mark.parametrize("training", [False, True])
def test_the_two_alternating_steps_minimise_opposite_cross_entropies(training: bool) -> None:
    model = build(SMALL, 0).double()
    x = images(SMALL.image_shape).double()
    for step in range(3):
        model(x, noise=Noise(1, step))
    model.train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    latents = []
    for step, label in (("discriminator", 0.0), ("generator", 1.0)):
        noise = Noise(7, 4)
        model.load_state_dict(state)
        values = model(x, noise=noise, alternating_step=step)
        model.load_state_dict(state)
        z = noise.normal(f"latent/{step}", (5, 3), dtype=torch.float64)
        latents.append(z)
        # Fakes and real ones are normalised apart from each other, in this order.
        fake = model.discriminator(model.decoder(z), z).sigmoid()
        real = model.discriminator(2 * x - 1, model.encoder(2 * x - 1)).sigmoid()

        def entropy(score: Tensor, target: float) -> Tensor:
            return F.binary_cross_entropy(score, torch.full_like(score, target), reduction="none")

        expected = entropy(fake, label) + entropy(real, 1 - label)
        torch.testing.assert_close(values["loss"], expected)
        if step == "discriminator":
            torch.testing.assert_close(values["score_fake"], fake)
            torch.testing.assert_close(values["score_real"], real)
    assert not torch.equal(*latents)  # fresh latents for each alternating step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": (1, 28, 26)}, "BiGANConfig: image_shape must be .* multiples of 4"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"discriminator_rate": 0.0}, "discriminator_rate must be positive"),
    ],
)
def test_configuration_errors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiGANConfig(**change)


def test_geometric_decoder_is_plain_layers() -> None:
    model = build(SMALL, 0).double()
    model(images(SMALL.image_shape).double(), noise=Noise(0, 0))
    z = torch.randn(4, 3, dtype=torch.float64)
    decoder = model.geometric_decoder()
    assert [type(layer) for layer in decoder] == [
        *(nn.Linear, nn.Unflatten, nn.ConvTranspose2d, nn.ELU, nn.ConvTranspose2d, nn.ELU),
        *(nn.Conv2d, nn.Tanh, nn.Flatten),
    ]
    assert not decoder.training and not any(p.requires_grad for p in decoder.parameters())
    assert torch.equal(torch.fx.symbolic_trace(decoder)(z), decoder(z))
    expected = (2 * model.eval().decode(z) - 1).flatten(1)
    torch.testing.assert_close(decoder(z), expected, rtol=1e-12, atol=1e-12)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What each optimizer step of the runs to come changes: names of parts, rates by part."""
    steps: list[dict] = []
    make = Learner.__init__

    def noting(self: Learner, *arguments) -> None:
        make(self, *arguments)
        optimizer = self.optimizer.optimizer
        take = optimizer.step

        def step(*rest):
            before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            result = take(*rest)
            after = dict(self.model.named_parameters())
            moved = {name.split(".")[0] for name in before if (before[name] != after[name]).any()}
            rates = [group["lr"] for group in optimizer.param_groups]
            gradients = {name.split(".")[0] for name, p in after.items() if p.grad is not None}
            steps.append({"moved": moved, "rates": rates, "gradients": gradients})
            return result

        optimizer.step = step

    monkeypatch.setattr(Learner, "__init__", noting)
    return steps


@pytest.mark.parametrize("parts", [1, 2])
def test_each_alternating_step_has_its_own_weights_and_rate(parts, tmp_path, monkeypatch) -> None:
    steps = watched(monkeypatch)
    options = ("--steps", "6", "--lr", "0.01", "--lr-decay", "0.5", "--accumulate", str(parts))
    assert train.main([*TINY, *options, "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == 12
    for number, step in enumerate(steps):
        own = {"discriminator"} if number % 2 == 0 else {"encoder", "decoder"}
        assert step["moved"] == step["gradients"] == own
        rate = 0.01 if number < 10 else 0.005
        assert step["rates"] == [pytest.approx(0.6 * rate), rate]


def test_a_step_is_what_two_plain_optimizers_would_do(tmp_path: Path) -> None:
    """Against a loop as anyone would write it, by detaching instead of freezing."""
    out = tmp_path / "run"
    options = ("--steps", "4", "--lr-decay", "1", "--checkpoint-every", "4 steps")
    assert train.main([*TINY, *options, "--out", str(out)]) == 0
    run = Run.open(out)
    config = run.config
    model = build(config.model, config.seed)
    assert isinstance(model, BiGAN)
    both = [*model.encoder.parameters(), *model.decoder.parameters()]
    adam = {
        "discriminator": torch.optim.Adam(
            model.discriminator.parameters(), lr=0.6 * config.lr, weight_decay=config.weight_decay
        ),
        "generator": torch.optim.Adam(both, lr=config.lr, weight_decay=config.weight_decay),
    }
    split = load(config.data).train
    plan = Plan(config, len(split), torch.device("cpu"))
    model.train()
    for step, (batch,) in plan.steps_after(0, split):
        for name, optimizer in adam.items():
            x = 2 * batch.images - 1
            z = plan.noise(step, 0).normal(f"latent/{name}", (len(x), 2))
            image, code = model.decoder(z), model.encoder(x)
            if name == "discriminator":
                image, code = image.detach(), code.detach()
            fake = model.discriminator(image, z).sigmoid()
            real = model.discriminator(x, code).sigmoid()
            truth = float(name == "discriminator")
            loss = F.binary_cross_entropy(real, torch.full_like(real, truth))
            loss += F.binary_cross_entropy(fake, torch.full_like(fake, 1 - truth))
            for one in adam.values():
                one.zero_grad()
            loss.backward()
            optimizer.step()
    # Adam moves weights of almost no gradient by the sign of its rounding.
    for name, tensor in load_file(out / "weights.safetensors").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bigan") / "run"
    assert train.main([*TINY, "--steps", "9", "--out", str(out)]) == 0
    return out


def test_both_losses_are_logged(run: Path) -> None:
    lines = read_metrics(run)
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 9
    for line in steps:
        assert line["loss"] == pytest.approx(line["discriminator_loss"] + line["generator_loss"])
        assert 0 < line["score_real"] < 1 and 0 < line["score_fake"] < 1
        assert line["discriminator_gradient_norm"] > 0 and line["generator_gradient_norm"] > 0
    tests = [line for line in lines if line["kind"] == "test"]
    assert set(tests[0]) == {"kind", "step", "epoch", "loss", "score_real", "score_fake"}
    model, test = Run.open(run).model("last"), load(Run.open(run).config.data).test
    values = measure_loss(model, test, 500, Run.open(run).config.seed)
    assert tests[-1]["loss"] == pytest.approx(values["loss"], rel=1e-5)
    plain = loss_curve([line for line in lines if line["kind"] == "test"], "x")
    losses = {"discriminator_loss": "nats per image", "generator_loss": "nats per image"}
    both = loss_curve(lines, "x", losses)
    assert both.width > plain.width  # beside it, on an axis in their own unit


def test_commands(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert sample.main([str(run), "--images", "4"]) == 0
    assert reconstruct.main([str(run), "--images", "4", "--weights", "best"]) == 0
    assert "mean squared error" in capsys.readouterr().out
    assert evaluate.main([str(run), "--images", "20", "--features", "none"]) == 0
    assert "score fake" in capsys.readouterr().out
    for method in ("linear", "spherical"):
        assert interpolate.main([str(run), "--method", method, "--pairs", "2"]) == 0


# Runs the command and dies by SIGKILL between the two alternating steps of optimizer step argv[1].
KILLED = """
import os, signal, sys
from fastlatent import train
from fastlatent.training import Learner

take, taken = Learner._take, []

def take_or_die(self, *arguments):
    taken.append(arguments)
    if len(taken) == 2 * int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *arguments)

Learner._take = take_or_die
train.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "options",
    [("--accumulate", "2", "--ema", "0.9"), ("--clip", "1", "--skip", "3")],
    ids=["accumulated, moving average", "clipped, skipping"],
)
def test_killed_and_resumed_is_never_interrupted(options: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*TINY, *options, "--lr-decay", "0.5", "--steps", "12"]
    assert train.main([*arguments, "--out", str(whole)]) == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "8", *arguments, "--out", str(broken)],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    assert Run.open(broken).latest() == 6
    assert train.main(["--resume", str(broken)]) == 0
    same_runs(whole, broken)


def same_runs(whole: Path, broken: Path) -> None:
    names = [path.relative_to(whole) for path in (whole / "state/12").glob("*.safetensors")]
    assert Path("state/12/optimizer.safetensors") in names
    for name in [Path("weights.safetensors"), Path("best.safetensors"), *names]:
        ours, theirs = load_file(whole / name), load_file(broken / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name

    def numbers(folder: Path) -> list[dict]:
        return [
            {name: value for name, value in line.items() if name != "images_per_second"}
            for line in read_metrics(folder)
        ]

    assert numbers(whole) == numbers(broken)


@pytest.mark.processes
def test_two_processes_stopped_and_resumed_are_never_interrupted(tmp_path: Path) -> None:
    def launch(*arguments: str) -> None:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "fastlatent.train", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=240,
        )
        assert done.returncode == 0, done.stderr

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launch(*TINY, "--accumulate", "2", "--steps", "12", "--out", str(whole))
    launch(*TINY, "--accumulate", "2", "--steps", "6", "--out", str(broken))
    launch("--resume", str(broken), "--steps", "12")
    for path in (whole / "state/12").glob("*.safetensors"):
        if path.name != "best.safetensors":  # the end of the first run was a test of its own
            ours, theirs = load_file(path), load_file(broken / "state/12" / path.name)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), path.name
    lines = [line for line in read_metrics(whole) if line["kind"] == "train"]
    assert all(line["generator_loss"] > 0 for line in lines)


@pytest.mark.parametrize("step", ["discriminator", "generator"])
def test_an_alternating_step_that_is_not_finite_is_left_out(
    step: str, tmp_path: Path, monkeypatch, capsys
):
    forward = BiGAN.forward

    def failing(self: BiGAN, x, target=None, noise=None, alternating_step=None):
        values = forward(self, x, target, noise, alternating_step)
        if alternating_step == failing.step and noise.step in failing.steps:
            values["loss"] = values["loss"] * float("nan")
        return values

    failing.step, failing.steps = step, {2, 3}
    monkeypatch.setattr(BiGAN, "forward", failing)
    arguments = [*TINY, "--steps", "6"]
    assert train.main([*arguments, "--skip", "2", "--out", str(tmp_path / "skipping")]) == 0
    lines = [line for line in read_metrics(tmp_path / "skipping") if line["kind"] == "train"]
    assert lines[-1]["skipped_steps"] == 2
    weights = load_file(tmp_path / "skipping/weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())

    capsys.readouterr()
    assert train.main([*arguments, "--skip", "1", "--out", str(tmp_path / "often")]) == 1
    assert "in each of the 2 steps up to step 4; in the last one loss" in capsys.readouterr().err
    assert train.main([*arguments, "--out", str(tmp_path / "never")]) == 1
    assert "the loss became infinite or NaN at step 3" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train.main([*TINY, "--steps", "3", "--precision", precision, "--out", str(out)]) == 0
    assert all(t.dtype != torch.bfloat16 for t in load_file(out / "weights.safetensors").values())


def test_compiled_turns_do_not_recompile_at_every_step() -> None:
    model = build(SMALL, 0)
    x = images(SMALL.image_shape)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")

    def step(number: int) -> None:
        for alternating in model.alternating_steps:
            own = {id(p) for module in alternating.modules for p in module.parameters()}
            for p in model.parameters():
                p.requires_grad_(id(p) in own)
            loss = compiled(x, noise=Noise(0, number), alternating_step=alternating.name)["loss"]
            loss.mean().backward()

    step(0)
    step(1)
    with torch.compiler.set_stance("fail_on_recompile"):
        step(2)
        step(3)
    torch._dynamo.reset()
