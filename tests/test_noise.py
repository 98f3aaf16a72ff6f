"""Noise of images: a function of seed, image, draw and name, and of nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastlatent.data.split import Split
from fastlatent.inference.passes import measure, measure_bound, measure_reconstructions
from fastlatent.models import BiGANConfig, LaDDerConfig, LBAEConfig, LVAEConfig, VAEConfig, build
from fastlatent.models.capabilities import corrupted
from fastlatent.models.ladder import PriorConfig, PriorSchedule
from fastlatent.noise import Noise

BASE = Noise(7, 0)


def drawn(index: list[int], **draws: int) -> Tensor:
    noise = BASE.of_images(torch.tensor(index), **draws)
    return noise.normal("z", (len(index) * draws.get("draws", 1), 5))


def test_a_row_belongs_to_its_image_and_draw() -> None:
    rows = drawn([4, 0, 9])
    assert torch.equal(rows[1:2], drawn([0]))
    assert torch.equal(rows[[2, 0, 1]], drawn([9, 4, 0]))
    many = drawn([4, 9], draws=6)
    assert torch.equal(
        many.unflatten(0, (2, 6))[:, 2:5].flatten(0, 1), drawn([4, 9], first=2, draws=3)
    )
    assert torch.equal(many[0], rows[0])
    assert many.unique().numel() == many.numel()


def test_seed_name_and_derivation_make_other_noise() -> None:
    index = torch.arange(3)
    noises = (BASE, Noise(8, 0), Noise(7, 1), Noise(7, 0, 1), BASE.derived("bound"))
    drawn = [noise.of_images(index).normal("z", (3, 4)) for noise in noises]
    drawn += [BASE.of_images(index).normal("t", (3, 4)), BASE.normal("z", (3, 4))]
    drawn += [BASE.of_images(index).derived("bound").derived("again").normal("z", (3, 4))]
    assert torch.stack(drawn).unique().numel() == len(drawn) * 12
    late = BASE.of_images(index).derived("bound").normal("z", (3, 4))
    assert torch.equal(late, drawn[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_numbers_are_below_one_and_evenly_spread(dtype: torch.dtype) -> None:
    numbers = BASE.of_images(torch.arange(2000)).uniform("u", (2000, 100), dtype=dtype).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, 16, 0, 1)
    # Pearson's statistic of 15 degrees of freedom: above 44 once in 10,000 draws.
    assert float(((counts - 12_500) ** 2 / 12_500).sum()) < 44


def test_normal_numbers_are_normal_within_and_between_images() -> None:
    x = BASE.of_images(torch.arange(4000)).normal("z", (4000, 50), dtype=torch.float64)
    n = x.numel()
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    for near in ((x[1:] * x[:-1]), (x[:, 1:] * x[:, :-1])):
        assert abs(float(near.mean())) < 4 / near.numel() ** 0.5
    beyond = (x.abs() > 3).double().mean()
    assert float(beyond) == pytest.approx(math.erfc(3 / 2**0.5), rel=0.2)


def test_large_noise_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BASE.of_images(torch.arange(9)).normal("z", (9, 3, 4, 4))
    monkeypatch.setattr("fastlatent.noise.PART", 100)
    assert torch.equal(BASE.of_images(torch.arange(9)).normal("z", (9, 3, 4, 4)), whole)


def test_a_shape_of_other_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"noise of 3 images, 2 draws of each, has 6 rows"):
        BASE.of_images(torch.arange(3), draws=2).normal("z", (3, 4))


def test_a_stream_goes_on_by_rows() -> None:
    def numbers(index: list[int]) -> tuple[Tensor, Tensor]:
        stream = BASE.of_images(torch.tensor(index)).stream("prior")
        first = stream.normal((2, len(index), 3), torch.float32)
        return first, stream.normal((len(index), 3), torch.float32)

    (first, second), (first_alone, second_alone) = numbers([5, 2, 8]), numbers([8])
    assert torch.equal(first[:, 2:], first_alone)
    assert torch.equal(second[2:], second_alone)
    assert not torch.equal(first[0], second)


SQUARE = (1, 8, 8)
LADDER = LaDDerConfig(
    width=64,
    dim=3,
    prior=PriorConfig(kind="ladder", width=8, layers=1, components=3, evaluation_draws=3),
    schedule=PriorSchedule(warmup_epochs=0),
)
DRAWING = {
    "vae": VAEConfig(image_shape=SQUARE, dim=2),
    "bigan": BiGANConfig(image_shape=SQUARE, dim=2),
    "lvae": LVAEConfig(image_shape=SQUARE, zdims=(2, 3), downsample=(1, 1), filters=4, blocks=1),
    "lbae, noise": LBAEConfig(test_corruption="noise", test_corruption_strength=0.3, width=0.1),
    "lbae, blank": LBAEConfig(test_corruption="blank", test_corruption_strength=0.3, width=0.1),
    "ladder, one draw": replace(LADDER, prior=replace(LADDER.prior, kind="hierarchical")),
    "ladder": LADDER,
}


@pytest.mark.parametrize("name", DRAWING)
def test_measurements_do_not_depend_on_the_batch(name: str) -> None:
    model = build(DRAWING[name], 0).eval()
    if hasattr(model, "rules"):
        model.rules.fill_(True)
    images = torch.randint(256, (15, *model.image_shape), dtype=torch.uint8)
    split = Split("test", images)

    def values(batch: int, seed: int = 3) -> dict[str, float]:
        measured = measure_reconstructions(model, split, batch, seed)
        assert measured.means == measure(model, split, batch, seed)
        found = {key: mean.value for key, mean in measured.means.items()}
        found.pop("active_units", None)  # of the batch as a whole
        found["pixels"] = measured.pixel_error.value
        if hasattr(model, "log_weights"):
            found["bound"] = measure_bound(model, split, 5, batch, seed).value
        return found

    whole = values(15)
    assert whole != values(15, seed=4)
    for batch in (4, 7):
        assert values(batch) == pytest.approx(whole, rel=2e-6, abs=1e-6), batch


@pytest.mark.parametrize("name", DRAWING)
def test_loss_and_reconstruction_share_one_encoding(name: str) -> None:
    model = build(DRAWING[name], 0).eval()
    images = torch.randint(256, (15, *model.image_shape), dtype=torch.uint8)
    split, seen = Split("test", images), []
    encoder = model.bottom_up if name == "lvae" else model.encoder
    first = encoder[0][0] if name == "lvae" else encoder
    first.register_forward_hook(lambda _, given, found: seen.append(len(given[0])))
    found = measure_reconstructions(model, split, 8, 3, limit=11)
    assert seen == [8, 3]
    index = split.spread(11)
    with torch.no_grad():
        shown = corrupted(model, split.images(index) / 255, Noise(3, 0).of_images(index))
        assert torch.allclose(found.latents, model.encode(shown), atol=1e-6)
        errors = (model.reconstruct(shown) - split.images(index) / 255).square().flatten(1).mean(1)
    assert found.pixel_error.value == pytest.approx(float(errors.mean()), rel=1e-5)
