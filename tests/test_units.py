"""Each value that a model returns says its own unit, and what prints it repeats that unit."""

from dataclasses import replace

import pytest
import torch

from fastlatent.estimate import Estimate
from fastlatent.models import build
from fastlatent.models.capabilities import LearnsLatents, alternating_steps_of
from fastlatent.noise import Noise
from fastlatent.presets import PRESETS
from fastlatent.runs.evaluation.report import Losses

DIGITS = [name for name in PRESETS if name.endswith("-digits")]


def values_of(model) -> dict[str, str]:
    """The unit of each value of `forward`: in training, by alternating step, in evaluation."""
    x = torch.rand(4, *model.image_shape, generator=torch.Generator().manual_seed(0))
    noise = Noise(0, 0)
    given = (
        {"latents": model.draw_prior(4, torch.Generator())}
        if isinstance(model, LearnsLatents)
        else {}
    )
    found = set(model.train()(x, noise=noise, **given))
    for step in alternating_steps_of(model):
        found |= set(model(x, noise=noise, alternating_step=step.name))
    with torch.no_grad():
        found |= set(model.eval()(x, noise=noise))
    assert found <= set(model.units)
    return {name: model.unit_of(name) for name in found}


@pytest.mark.parametrize("name", DIGITS)
def test_every_value_has_its_unit(name: str) -> None:
    config = PRESETS[name].config.model
    if config.family == "glo":
        config = replace(config, fit_starts=1, fit_steps=1)
    units = values_of(build(config, 0))
    assert units["loss"] == build(config, 0).loss_unit
    counts = {"active_units", "score_real", "score_fake", "quantization_error", "latent_std"}
    assert all(units[value] == "" for value in counts & units.keys())
    if "psnr" in units:
        assert units["psnr"] == "dB" and units["squared_error"] == "mean squared error"
    if "bits_per_dim" in units:
        assert units["bits_per_dim"] == "bits per dimension"


def test_a_line_of_the_table_names_its_unit() -> None:
    means = {
        "loss": Estimate(0.05, 0.01),
        "psnr": Estimate(29.04, 0.1),
        "active": Estimate(8.0, 0.0),
    }
    units = {"loss": "Laplacian L1", "psnr": "dB"}
    lines = Losses(means, Estimate(0.1, 0.01), None, None, units, None).lines()
    words = [line.split(maxsplit=3) for line in lines]
    assert words[0] == ["mean", "standard", "error", "unit"]
    assert words[1:4] == [
        ["loss", "0.0500", "0.0100", "Laplacian L1"],
        ["psnr", "29.0400", "0.1000", "dB"],
        ["active", "8.0000", "0.0000"],
    ]


def test_only_nats_become_bits_per_dimension() -> None:
    means = {"elbo": Estimate(-10.0, 1.0), "score": Estimate(0.5, 0.1)}
    units = {"elbo": "nats per image", "score": ""}
    values = Losses(means, Estimate(0.1, 0.01), None, None, units, 0.5).values()
    assert values["elbo"]["bits_per_dimension"] == 5.0
    assert "bits_per_dimension" not in values["score"]
    assert "bits_per_dimension" not in values["pixel_error"]
