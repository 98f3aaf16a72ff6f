"""What training says of latents, layers and bits that collapsed."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from fastlatent import train
from fastlatent.data import DataConfig, load
from fastlatent.models import build
from fastlatent.ops import pack_bits
from fastlatent.presets import PRESETS
from fastlatent.priors import CodeStatistics
from fastlatent.runs import read_metrics
from fastlatent.training.usage import constant_bits, latents_in_use, usage

TEST = load(DataConfig(name="digits", size=8)).test


class Half(torch.nn.Module):
    """Posteriors of 4 latents, of which the last two say nothing."""

    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def gaussian_posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.zeros(len(x), 4)
        mean[:, :2] = x.flatten(1)[:, 20:22]
        return mean, torch.ones_like(mean)


def test_latents_whose_means_do_not_move_are_not_in_use() -> None:
    model = Half().train()
    assert latents_in_use(model, TEST, 100) == 2 and model.training
    assert usage(model, {}, 2) == "2 of 4 latents in use"
    assert usage(model, {}, 4) == usage(model, {"kl_layer_0": 3.0}, None) == ""
    layers = {"kl_layer_0": 20.0, "kl_layer_1": 0.004, "kl_layer_2": 0.5}
    assert usage(model, layers, None) == "2 of 3 layers in use"


def test_models_without_gaussian_posteriors_do_not_know() -> None:
    config = replace(PRESETS["lbae-digits"].config.model, width=0.125, dim=3)
    assert (
        latents_in_use(build(config, 0), load(PRESETS["lbae-digits"].config.data).test, 150) is None
    )


def test_bits_that_never_change() -> None:
    codes = torch.ones(5, 6)
    codes[2, 1] = codes[:, 4] = -1
    statistics = CodeStatistics(6, 0, torch.device("cpu"))
    statistics.update(pack_bits(codes))
    assert constant_bits(statistics) == 5


def test_training_says_what_collapsed(tmp_path: Path, capsys) -> None:
    """Latents of a VAE whose pixels weigh next to nothing say nothing of the image."""
    small = ("--model.image-shape", "1", "8", "8", "--data.size", "8", "--model.dim", "3")
    options = ("--model.fixed-variance", "1e4", "--steps", "60", "--batch", "32", "--device", "cpu")
    run = tmp_path / "run"
    assert train.main(["vae-digits", *small, *options, "--lr", "0.01", "--out", str(run)]) == 0
    (line,) = re.findall(
        r"test loss .* the lowest so far; (\d) of 3 latents in use", capsys.readouterr().out
    )
    (found,) = (x["latents_in_use"] for x in read_metrics(run) if x["kind"] == "test")
    assert int(line) == found < 3
