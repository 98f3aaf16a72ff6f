"""LaDDer's joint training: who learns when, at which rate, and that it goes on bit for bit."""

import copy
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fastlatent import evaluate, interpolate, reconstruct, sample, train
from fastlatent.data import DataConfig, load
from fastlatent.data.split import Split
from fastlatent.inference.latents import draw
from fastlatent.inference.passes import refit
from fastlatent.models import LaDDerConfig, VAEConfig, build
from fastlatent.models.capabilities import draw_latents
from fastlatent.models.ladder import PriorConfig, PriorSchedule
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS, TrainConfig
from fastlatent.runs import Run, read_metrics
from fastlatent.runs.files import read_tensors
from fastlatent.training import Learner, Plan

KINDS = ("normal", "gmm", "vamp", "hierarchical", "ladder")
LEARNED = ("vamp", "hierarchical", "ladder")


def config_of(kind="ladder", prior=None, **schedule):
    settings = {"width": 16, "layers": 2, "components": 4} | (prior or {})
    plan = {"warmup_epochs": 2, "refit_samples": 200} | schedule
    return LaDDerConfig(
        width=64, dim=3, prior=PriorConfig(kind=kind, **settings), schedule=PriorSchedule(**plan)
    )


def images(n=24, seed=0):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def trained_config(model, **changes):
    settings = {"batch": 16, "lr": 1e-3, "betas": (0.9, 0.95), "device": "cpu"} | changes
    data = DataConfig(name="digits", size=28)
    return TrainConfig(name="test", model=model, data=data, **settings)


class Small:
    """A learner on a few images, step by step."""

    def __init__(self, model, split=None, **changes):
        self.config = trained_config(model, **changes)
        self.split = split or Split("train", (images(48) * 255).to(torch.uint8))
        self.learner = Learner(self.config, Accelerator(cpu=True), self.split, Path())
        self.plan = Plan(self.config, len(self.split), torch.device("cpu"))

    @property
    def model(self):
        return self.learner.model

    def run(self, first, last):
        for step, parts in self.plan.steps_after(first, self.split):
            if step == last:
                break
            self.learner.learn(step, parts, self.plan)
            if (step + 1) % self.plan.steps_per_epoch == 0:
                epochs = (step + 1) // self.plan.steps_per_epoch
                if self.model.refit_images(epochs):
                    refit(self.model, self.split, self.config.batch, 0, epochs)
        return self


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_has_the_standard_normal_form(kind):
    model = build(config_of(kind), 0).train()
    model.begin_epoch(0)
    x, noise = images(), Noise(1, 2)
    values = model(x, noise=noise)
    mean, std = model.encoder(x)
    expected = -0.5 * (mean**2 + std**2 + math.log(2 * math.pi)).sum(1)
    assert values["log_prior"].allclose(expected, rtol=1e-5)
    entropy = torch.distributions.Normal(mean, std).entropy().sum(1)
    assert values["log_posterior"].allclose(-entropy, rtol=1e-5)
    kl = 0.5 * (mean**2 + std**2 - 1).sum(1) - std.log().sum(1)
    assert values["kl"].allclose(kl, rtol=1e-4, atol=1e-5)
    assert values["elbo"].allclose(-values["reconstruction"] - values["kl"])
    assert values["loss"].equal(-values["elbo"])


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig(name="digits", size=28, classes=(0, 1, 7), per_class=80))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_model_and_prior_learn_together(kind, digits):
    """On images of the test split: 60 steps, the learned prior is in use in the last 45."""
    prior = {"width": 32, "components": 6}
    config = replace(config_of(kind, prior, warmup_epochs=3, refit_every=2), output="sigmoid")
    small = Small(config, digits.train, batch=48, lr=2e-3)
    x = digits.test.images(torch.arange(len(digits.test))) / 255

    @torch.no_grad()
    def measured():
        small.model.eval()
        values = small.model(x, noise=Noise(0, 0))
        z = draw_latents(small.model, x, Noise(0, 0))
        stream = torch.Generator().manual_seed(0)
        priors = small.model.prior.log_prob(z, 100, generator=stream), small.model.standard
        small.model.train()
        return values["loss"].mean(), (priors[0] - priors[1].log_prob(z)).mean()

    loss, _ = measured()
    small.run(0, 15)
    warm, ahead = measured()
    small.run(15, 60)
    last, further = measured()
    assert small.model.uses_learned_prior
    assert last < warm - 200 < loss - 400
    assert further > ahead + 10 > 10


def test_published_settings_train(digits):
    """Five epochs under N(0, I) and two more, a step each: few images, small networks and fits."""
    preset = PRESETS["ladder-mnist-original"].config
    model = replace(
        preset.model,
        width=64,
        prior=replace(preset.model.prior, width=32, components=6),
        schedule=replace(preset.model.schedule, refit_samples=240),
    )
    few = Split("train", digits.train.images(torch.arange(60)))
    options = {name: getattr(preset, name) for name in ("lr", "lr_decay", "clip_value", "skip")}
    small = Small(model, few, batch=60, **options)
    outer, inner = state(small.model.encoder), state(small.model.prior)
    small.run(0, 4)
    assert same(state(small.model.prior), inner)
    small.run(4, 5)
    fitted = state(small.model.prior.code)
    assert small.model.prior.code.active == 6
    small.run(5, 7)
    assert small.model.uses_learned_prior
    assert small.learner.skipped == 0
    assert float(small.model.prior.scale.value) == pytest.approx(0.1)
    assert not same(state(small.model.prior.decoder), decoder_of(inner))
    assert not same(state(small.model.prior.code), fitted)
    assert not same(state(small.model.encoder), outer)
    assert all(bool(weight.isfinite().all()) for weight in small.model.parameters())


def decoder_of(prior):
    return {
        name.removeprefix("decoder."): tensor
        for name, tensor in prior.items()
        if name.startswith("decoder.")
    }


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("kind", LEARNED)
def test_prior_rests_until_its_turn_comes(kind, alternate):
    small = Small(config_of(kind, alternate=alternate))  # learns after 1 of 2 epochs, 3 steps each
    prior, outer = state(small.model.prior), state(small.model.encoder)
    small.run(0, 3)
    assert same(state(small.model.prior), prior)
    assert not same(state(small.model.encoder), outer)
    small.run(3, 4)
    assert not same(state(small.model.prior), prior)
    assert not small.model.uses_learned_prior
    small.run(4, 7)
    assert small.model.uses_learned_prior
    assert small.model.rules


def test_learned_prior_gives_the_encoder_no_gradient_before_it_is_in_use():
    for kind in LEARNED:
        gradients = []
        for epochs in (0, 1):  # the second time the prior learns too
            model = build(config_of(kind), 0).train()
            model.begin_epoch(epochs)
            model(images(), noise=Noise(0, 0))["loss"].mean().backward()
            gradients.append([weight.grad for weight in model.encoder.parameters()])
            learns = [weight.grad is not None for weight in model.prior.parameters()]
            assert all(learns) if epochs else not any(learns)
        for alone, beside in zip(*gradients, strict=True):
            assert alone.equal(beside)


@pytest.mark.parametrize("kind", LEARNED)
def test_one_pass_gives_the_gradients_of_the_turns(kind):
    x, noise = images(), Noise(3, 0)

    def gradients(alternate):
        config = config_of(kind, {"scale": "learned"}, alternate=alternate)
        model = build(replace(config, image_scale="max_floor", start_scale=0.9), 0).train()
        model.begin_epoch(2)
        for alternating in model.alternating_steps or (None,):
            modules = (model,) if alternating is None else alternating.modules
            weights = [weight for module in modules for weight in module.parameters()]
            loss = model(x, noise=noise, alternating_step=alternating and alternating.name)[
                "loss"
            ].mean()
            for weight, value in zip(
                weights, torch.autograd.grad(loss, weights, retain_graph=False), strict=True
            ):
                weight.grad = value
        return {name: weight.grad for name, weight in model.named_parameters()}

    once, parts = gradients(False), gradients(True)
    assert once.keys() == parts.keys()
    for name in once:
        assert once[name].allclose(parts[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("kind", LEARNED)
def test_frozen_parts_stay_bit_equal(kind):
    small = Small(config_of(kind, train_model=False, warmup_epochs=1))
    before = {part: state(getattr(small.model, part)) for part in ("encoder", "decoder", "prior")}
    scale = state(small.model.likelihood)
    small.run(0, 7)
    assert same(state(small.model.encoder), before["encoder"])
    assert same(state(small.model.decoder), before["decoder"])
    assert same(state(small.model.likelihood), scale)
    assert not same(state(small.model.prior), before["prior"])
    small = Small(config_of(kind, train_prior=False, warmup_epochs=1))
    small.run(0, 7)
    assert same(state(small.model.prior), before["prior"])
    assert not same(state(small.model.encoder), before["encoder"])
    with pytest.raises(ValueError, match="train_prior must be on without the model"):
        PriorSchedule(train_model=False, train_prior=False)


def test_groups_have_rates_of_their_own():
    config = config_of(
        "ladder", {"scale": "learned"}, prior_rate=0.5, prior_scale_rate=0.25, prior_decay=1.01
    )
    small = Small(replace(config, image_scale="max_floor"), lr=1e-3, lr_decay=0.9)
    small.run(0, 4)  # in the second epoch
    rates = {
        name: group["lr"]
        for name, weight in small.model.named_parameters()
        for group in small.learner.optimizer.param_groups
        if any(weight is one for one in group["params"])
    }
    assert len(rates) == len([*small.model.named_parameters()])
    assert rates["encoder.head.mean.weight"] == pytest.approx(0.9e-3)
    assert rates["likelihood.raw"] == pytest.approx(0.9e-3 * 5 / 3)
    assert rates["prior.decoder.0.weight"] == pytest.approx(1.01e-3 * 0.5)
    assert rates["prior.scale.logit"] == pytest.approx(1.01e-3 * 0.25)


@pytest.mark.parametrize(("clip", "largest"), [(None, 1e-3), (1e-3, 1e-3)])
def test_gradients_are_cut_entry_by_entry_before_they_are_scaled(monkeypatch, clip, largest):
    seen = []
    small = Small(config_of("normal"), clip_value=1e-3, clip=clip)
    step = small.learner.optimizer.step

    def noted():
        seen.append(torch.cat([weight.grad.flatten() for weight in small.model.parameters()]))
        step()

    monkeypatch.setattr(small.learner.optimizer, "step", noted)
    small.run(0, 1)
    assert seen[0].abs().max() <= largest
    assert (seen[0].norm() <= 1e-3 * 1.001) == (clip is not None)
    assert small.learner.meter.read()["gradient_norm"] > 1


def test_refits_come_when_they_are_due():
    model = build(config_of("ladder", warmup_epochs=4, refit_every=3), 0)
    due = [epochs for epochs in range(12) if model.refit_images(epochs)]
    assert due == [4, 7, 10]
    assert not any(map(build(config_of("vamp"), 0).refit_images, range(9)))
    once = build(config_of("hierarchical", warmup_epochs=4, mask_from=6), 0)
    assert [epochs for epochs in range(12) if once.refit_images(epochs)] == [4, 6]
    frozen = build(config_of("gmm", train_prior=False), 0)
    assert not any(map(frozen.refit_images, range(9)))


def test_refit_is_a_function_of_seed_and_epoch():
    split = Split("train", (images(60) * 255).to(torch.uint8))
    fits = []
    for seed, epochs in ((0, 3), (0, 3), (0, 4), (1, 3)):
        model = build(config_of("gmm"), 0)
        numbers = refit(model, split, 32, seed, epochs)
        assert numbers["active"] >= 1
        fits.append(state(model.prior))
    assert same(fits[0], fits[1])
    assert not same(fits[0], fits[2])
    assert not same(fits[0], fits[3])


def test_refit_draws_latents_of_few_images_several_times():
    seen = []
    model = build(config_of("gmm", refit_samples=1000), 0).eval()
    model.prior.refit = lambda z, seed: seen.append(z)
    x = images(40)
    with torch.no_grad():
        model.refit([x[:20], x[20:]], Noise(0, 0), 2)
        mean, std = model.encoder(x)
    (z,) = seen
    assert z.shape == (1000, 3)
    draws = (z.unflatten(0, (25, 40)) - mean) / std
    assert abs(draws.mean()) < 4 / 3000**0.5
    assert draws.std().item() == pytest.approx(1, abs=4 / 6000**0.5)


def test_learned_inner_scale_begins_at_its_likeliest_value():
    config = config_of("hierarchical", {"scale": "learned", "start_scale": 0.06})
    model = build(config, 0).eval()
    x = images(60)
    with torch.no_grad():
        model.refit([x], Noise(0, 0), 2)
        mean, std = model.encoder(x)
        z = mean + std * Noise(0, 0).normal("latent", (3, *mean.shape))
        t, _ = model.prior.posterior(z)
        error = (z - model.prior.conditional(t)[0]).square().mean().sqrt()
    assert model.prior.scale.value.item() == pytest.approx(error.item(), rel=1e-4)
    assert error > 0.1


def test_learned_inner_scale_comes_back_from_its_bound():
    """Errors far above the upper bound, then far below: a clamped scale would lose its gradient."""
    config = config_of("hierarchical", {"scale": "learned", "most_scale": 0.1})
    scale = build(config, 0).prior.scale
    optimizer = torch.optim.Adam(scale.parameters(), lr=0.05, betas=(0.9, 0.95))
    found = []
    for error, steps in ((2.0, 300), (0.06, 600)):
        for _ in range(steps):
            tau = scale.value
            loss = 0.5 * (error / tau) ** 2 + tau.log()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(scale.value.item())
    assert found[0] == pytest.approx(0.1, rel=0.05)
    assert found[1] == pytest.approx(0.06, rel=0.05)


def test_mask_is_fixed_by_the_training_images():
    model = build(config_of("ladder", mask_from=3, mask_above=0.9), 0).eval()
    model.encoder.head.std.weight.data.zero_()
    model.encoder.head.std.bias.data.copy_(torch.tensor([-3.0, 2.0, -3.0]))
    x = images(60)
    with torch.no_grad():
        model.refit([x], Noise(0, 0), 2)
        assert not model.prior.masked.any()
        model.refit([x], Noise(0, 0), 3)
    assert model.prior.masked.tolist() == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_importance_weights_have_the_mean_of_the_bound(kind):
    """log_weights is the ELBO's integrand: the same mean over draws."""
    small = Small(config_of(kind, warmup_epochs=1)).run(0, 9)
    model, x = small.model.eval(), images(48)
    assert model.uses_learned_prior
    with torch.no_grad():
        weights = torch.stack(
            [model.log_weights(model.features(x), x, Noise(0, k)) for k in range(100)]
        ).double()
        elbos = torch.stack([model(x, noise=Noise(0, k))["elbo"] for k in range(100)]).double()
    difference = (weights - elbos).mean(1)
    error = difference.std() / 10
    assert abs(difference.mean()) < 4 * error + 1e-4


def test_values_are_logged_in_parts():
    values = Small(config_of("ladder", warmup_epochs=1)).run(0, 6).learner.meter.read()
    parts = {"reconstruction", "log_posterior", "log_prior", "image_scale", "prior_scale"}
    assert parts | {"latent_std", "active_units", "inner_log_prior"} <= values.keys()


def train_digits(out: Path, *options: str) -> int:
    common = ["ladder-digits", "--device", "cpu", "--out", str(out), "--batch", "128"]
    small = ["--data.per-class", "26", "--model.dim", "3", "--model.prior.width", "16"]
    plan = ["--model.schedule.warmup-epochs", "1", "--model.schedule.refit-every", "1"]
    rest = ["--model.prior.components", "3", "--model.schedule.refit-samples", "300"]
    often = ["--pictures-every", "never", "--log-every", "1 step"]
    return train.main([*common, *small, *plan, *rest, *often, *options])


@pytest.mark.parametrize(
    "options",
    [
        ("--model.prior.kind", "ladder"),
        ("--model.prior.kind", "gmm", "--model.prior.original-fit"),
        ("--model.prior.kind", "vamp", "--model.schedule.alternate", "--ema", "0.9"),
    ],
    ids=["ladder", "gmm", "vamp"],
)
def test_stopped_run_goes_on_bit_for_bit(tmp_path, options):
    steps = ["--checkpoint-every", "1 step"]
    assert train_digits(tmp_path / "whole", *options, "--epochs", "4") == 0
    assert train_digits(tmp_path / "parts", *options, *steps, "--epochs", "4", "--steps", "5") == 0
    again = ["--resume", str(tmp_path / "parts"), "--steps", "8", "--checkpoint-every", "1 epoch"]
    assert train.main(again) == 0
    weights = [
        read_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "parts")
    ]
    assert same(*weights)
    kinds = [line["kind"] for line in read_metrics(tmp_path / "whole")]
    assert ("refit" in kinds) == ("vamp" not in options)
    for line in read_metrics(tmp_path / "whole"):
        assert ("held_out_log_prob" in line) == (line["kind"] == "refit")


@pytest.mark.parametrize("kind", ["gmm", "ladder"])
def test_a_fit_is_judged_by_unseen_images(kind):
    """Few latents of images alike are fitted too closely for others."""
    model = build(config_of(kind, {"components": 4}, refit_samples=20), 0)
    split = Split("train", (images(20) * 255).to(torch.uint8))
    unseen = Split("test", (images(30, seed=1) * 255).to(torch.uint8))
    numbers = refit(model, split, 16, 0, 2, unseen)
    assert numbers["held_out_log_prob"] < numbers["log_prob"]
    with torch.no_grad():
        torch.manual_seed(0)
        mean, std = model.eval().encoder(unseen.images(torch.arange(30)) / 255)
        z = mean + std * torch.randn(200, 30, 3)
        if kind == "gmm":
            each = model.prior.log_prob(z)
        else:
            m, v = model.prior.posterior(z)
            each = model.prior.code.log_prob(m + v * torch.randn_like(m))
    # 30 images, a draw of each: its mean is within four standard errors of that of many.
    error = each.std(0).square().mean().sqrt() / 30**0.5
    assert abs(numbers["held_out_log_prob"] - each.mean()) < 4 * error


def test_warmed_up_run_samples_from_its_own_prior(tmp_path):
    assert train_digits(tmp_path / "run", "--model.prior.kind", "gmm", "--epochs", "3") == 0
    model = Run.open(tmp_path / "run").model("last")
    assert model.uses_learned_prior
    assert model.prior.active <= 3
    drawn = model.draw_prior(5, torch.Generator().manual_seed(0))
    assert drawn.equal(model.prior.sample(5, generator=torch.Generator().manual_seed(0)))
    assert "prior._means" in model.state_dict()


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        (("--epochs", "2"), "2"),
        (("--epochs", "9", "--steps", "3"), "1.5"),
        (("--epochs", "3"), None),
        (("--epochs", "1", "--prior", "normal"), None),
    ],
)
def test_a_training_that_ends_in_the_warm_up_says_so(tmp_path, capsys, options, epochs):
    warmup = ("--model.schedule.warmup-epochs", "2", "--data.per-class", "1", "--batch", "5")
    assert train_digits(tmp_path / "run", *warmup, "--model.prior.width", "4", *options) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "stays unused" in line]
    told = f"the prior ladder stays unused: {epochs} epochs do not exceed the 2 under N(0, I)"
    assert [line.startswith(told) for line in said] == [True] * (epochs is not None)


def test_moving_average_takes_what_is_fitted():
    small = Small(config_of("gmm", warmup_epochs=1), ema=0.9)
    small.run(0, 3)
    small.learner.copy_buffers()
    assert same(state(small.learner.average.module.prior), state(small.model.prior))
    assert small.model.prior.report is not None


def test_vamp_prior_holds_no_encoder_of_its_own():
    model = build(config_of("vamp"), 0)
    assert [name for name in model.state_dict() if name.startswith("prior.")] == ["prior.raw"]
    twin = copy.deepcopy(model)
    twin.encoder.head.mean.bias.data.add_(5)
    assert (twin.prior.mixture()[0] - model.prior.mixture()[0] - 5).abs().max() < 1e-4


def test_presets_hold_the_published_settings():
    names = ("ladder-digits", "ladder-mnist", "ladder-fashion", "ladder-celeba")
    assert {*names, "ladder-mnist-original"} <= PRESETS.keys()
    shared = {"lr_decay": 0.99, "betas": (0.9, 0.95), "optimizer": "adam"}
    for name, lr, epochs, batch, warmup, prior_rate, scale_rate in (
        ("ladder-mnist", 3e-4, 30, 256, 5, 3e-4, 5e-4),
        ("ladder-fashion", 3e-4, 30, 256, 10, 3e-4, 5e-4),
        ("ladder-celeba", 2.5e-4, 50, 64, 10, 1.25e-4, 2.5e-4),
        ("ladder-mnist-original", 3e-4, 30, 256, 5, 3e-4, 5e-4),
    ):
        config = PRESETS[name].config
        given = {"lr": lr, "epochs": epochs, "batch": batch} | shared
        assert {key: getattr(config, key) for key in given} == given, name
        prior, schedule = config.model.prior, config.model.schedule
        assert (prior.width, prior.layers, prior.components) == (512, 5, 50), name
        assert prior.activation == "leaky_relu" and prior.least_scale == 0.05, name
        assert schedule.warmup_epochs == warmup, name
        rates = [lr * rate for rate in (schedule.prior_rate, schedule.scale_rate)]
        assert rates == pytest.approx([prior_rate, scale_rate]), name
        assert lr * schedule.prior_scale_rate == pytest.approx(2e-4), name
    original = PRESETS["ladder-mnist-original"].config
    assert original.clip_value == 1.0 and original.clip is None
    assert original.data.validation == 0
    quirks = original.model
    assert (quirks.posterior_std, quirks.image_scale) == ("relu", "max_floor")
    assert (quirks.prior.scale, quirks.prior.start_scale) == ("fixed", 0.1)
    assert (quirks.prior.draws, quirks.prior.ridge, quirks.prior.original_fit) == (100, 0.01, True)
    assert (quirks.schedule.alternate, quirks.schedule.prior_decay) == (True, 1.01)
    assert (quirks.schedule.refit_samples, quirks.schedule.mask_from) == (2048, 50)
    sizes = {
        "ladder-mnist": (1_120_502 - 1, 2_121_749 - 1),  # sigma and tau are no weights here
        "ladder-fashion": (3_448_898 - 1, 2_138_149 - 1),
        "ladder-celeba": (18_861_572 - 1, 2_413_889 - 1),
    }
    for name, expected in sizes.items():
        with torch.device("meta"):
            model = type(build(config_of(), 0))(PRESETS[name].config.model)
        outer, inner = (
            sum(weight.numel() for part in parts for weight in part.parameters())
            for parts in ((model.encoder, model.decoder), (model.prior,))
        )
        assert (outer, inner) == expected


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model.prior.kind", "gauss", "must be one of normal, gmm"),
        ("--model.prior.components", "0", "components must be at least 1"),
        (
            "--model.prior.most-scale",
            "0.01",
            "most-scale must be more than --model.prior.least",
        ),
        (
            "--model.schedule.prior-from",
            "50",
            "prior-from must be from 0 to --model.schedule.warmup-epochs",
        ),
        (
            "--model.schedule.mask-from",
            "1",
            "mask-from must be at least --model.schedule.warmup-epochs",
        ),
        ("--betas", "0.9 1.0", "betas must be two numbers"),
        ("--clip-value", "0", "clip-value must be positive"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, capsys, option, value, words):
    given = ["ladder-digits", option, *value.split(), "--out", str(tmp_path / "run")]
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_are_refused(tmp_path, capsys):
    assert train.main(["ladder-digits", "--data.size", "32", "--out", str(tmp_path / "x")]) == 2
    assert "28x28" in capsys.readouterr().err


def test_prior_by_its_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.per-class", "14", "--batch", "128", "--steps", "1", "--device", "cpu"]
    options = [*small, "--pictures-every", "never", "--model.prior.width", "8"]
    assert train.main(["ladder-digits", "--prior", "hierarchical", *options]) == 0
    run = tmp_path / "runs/ladder-digits-hierarchical"
    assert Run.open(run).config.model.prior.kind == "hierarchical"
    assert train.main(["--resume", str(run), "--prior", "gmm"]) == 2
    assert "--model.prior.kind cannot change" in capsys.readouterr().err
    assert train.main(["vae-digits", "--prior", "gmm"]) == 2
    assert "--prior goes with the family ladder; vae-digits is of vae" in capsys.readouterr().err


def test_samples_with_and_without_the_inner_noise(tmp_path, capsys):
    run = tmp_path / "run"
    assert train_digits(run, "--model.prior.kind", "ladder", "--epochs", "2") == 0
    assert Image.open(run / "images/terms.png").width > Image.open(run / "images/loss.png").width
    model = Run.open(run).model("last")
    loud, quiet = (
        draw(model, "prior", 4000, torch.Generator().manual_seed(0), noise=noise)
        for noise in (True, False)
    )
    tau = model.prior.scale.value.item()
    assert (loud - quiet).std().item() == pytest.approx(tau, rel=0.05)
    out = ["--out", str(tmp_path / "a.png"), "--images", "4"]
    assert sample.main([str(run), "--no-noise", *out]) == 0
    assert reconstruct.main([str(run)]) == 0
    assert interpolate.main([str(run), "--pairs", "2"]) == 0
    assert evaluate.main([str(run), "--features", "none", "--samples", "3", "--images", "20"]) == 0
    table = capsys.readouterr().out
    for name in ("elbo", "kl", "bits per dim", "inner log prior", "log-likelihood, 3 samples"):
        assert name in table
    vae = build(VAEConfig(dim=2), 0)
    with pytest.raises(ValueError, match="VAE draws no latents without noise"):
        draw(vae, "prior", 2, torch.Generator(), noise=False)


def test_progress_is_measured_on_images_set_apart(tmp_path, capsys):
    run = tmp_path / "run"
    assert train_digits(run, "--data.validation", "40", "--epochs", "1") == 0
    kinds = [line["kind"] for line in read_metrics(run)]
    assert kinds.count("validation") >= 1
    assert kinds.count("test") == 1
    shown = capsys.readouterr().out
    assert "40 validation images" in shown and "test loss" in shown


TELLING = """
import sys
from pathlib import Path
import torch
from fastlatent import train
from fastlatent.training.loop import Training

finalise = Training.finalise

def telling(self):
    prior = self.learner.model.prior.code
    torch.manual_seed(0)
    density = prior.log_prob(3 * torch.randn(50, prior.dim)).detach()
    torch.save((prior.active, density), Path(sys.argv[1]) / f"{self.accelerator.process_index}.pt")
    finalise(self)

Training.finalise = telling
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.processes
def test_two_ranks_train_and_fit_alike(tmp_path):
    """The density of the fitted mixture, too: on both ranks, after steps that follow the fits."""
    out, script = tmp_path / "run", tmp_path / "telling.py"
    script.write_text(TELLING)
    options = ["--model.prior.kind", "ladder", "--epochs", "3", "--batch", "128"]
    common = ["--device", "cpu", "--out", str(out), "--data.per-class", "26", "--model.dim", "3"]
    small = ["--model.prior.width", "16", "--model.schedule.warmup-epochs", "1"]
    rest = ["--pictures-every", "never", "--model.prior.components", "3"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *[*launcher, "--nproc-per-node", "2", str(script), str(tmp_path), "ladder-digits"],
            *[*common, *small, *rest, *options],
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "prior fitted anew" in done.stdout
    assert Run.open(out).model("last").uses_learned_prior
    (active, density), (other_active, other) = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert active == other_active > 1
    assert torch.equal(density, other)
