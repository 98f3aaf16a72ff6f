"""Generative Latent Optimization: closed forms of its parts."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import allocated
from torch import Tensor, nn

from fastlatent.data import Batch, DataConfig, Split, load
from fastlatent.inference.latents import draw
from fastlatent.inference.walking import walk
from fastlatent.models import GLO, AlternatingStep, GLOConfig, build
from fastlatent.models.glo import (
    LatentTable,
    PaperGenerator,
    SeedGenerator,
    arithmetic,
    fit_latents,
    image_loss,
    laplacian_loss,
    laplacian_pyramid,
    local_moment_loss,
    principal_directions,
    project,
)
from fastlatent.models.glo.generators import build_generator, legacy_bilinear
from fastlatent.models.glo.learning import MovingLatents
from fastlatent.models.glo.losses import low_pass_kernel, squared_error
from fastlatent.models.learned import Room
from fastlatent.noise import Noise, generator
from fastlatent.presets import TrainConfig
from fastlatent.runs.files import read_tensors
from fastlatent.runs.folder import write_latents
from fastlatent.training.learner import Learner
from fastlatent.training.objective import Objective

F64 = torch.float64


def images(*values: float, side: int = 16, channels: int = 1) -> Tensor:
    return torch.stack([torch.full((channels, side, side), v, dtype=F64) for v in values])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def checkerboard(side: int = 16) -> Tensor:
    place = torch.arange(side)
    return (1.0 - 2 * ((place[:, None] + place) % 2)).to(F64)[None, None]


# Losses


def test_local_moments_of_constants_and_shifts() -> None:
    assert float(local_moment_loss(images(0.7), images(-0.2))) == pytest.approx(0.9)
    x = noise(3, 2, 28, 28)
    torch.testing.assert_close(local_moment_loss(x, x + 0.3), torch.full((3,), 0.3, dtype=F64))
    assert local_moment_loss(x, x).eq(0).all()


@given(s=st.floats(-2, 2), t=st.floats(-2, 2))
@settings(deadline=None, max_examples=25)
def test_local_moments_are_blind_to_the_sign_of_detail(s: float, t: float) -> None:
    board = checkerboard()
    assert float(local_moment_loss(s * board, t * board)) == pytest.approx(
        abs(s * s - t * t), abs=1e-12
    )


def test_local_moments_look_at_windows_two_apart() -> None:
    """By loops over the windows: 13 x 13 of them on 28 x 28."""
    x, y = noise(2, 3, 28, 28), noise(2, 3, 28, 28, seed=1)

    def moments(z: Tensor) -> Tensor:
        windows = [z[:, :, i : i + 4, j : j + 4] for i in range(0, 25, 2) for j in range(0, 25, 2)]
        parts = torch.stack([w.flatten(2) for w in windows])
        assert len(parts) == 169
        return torch.stack([parts.mean(-1), parts.var(-1, correction=0)])

    want = (moments(x) - moments(y)).abs().mean((1, 3)).sum(0)
    torch.testing.assert_close(local_moment_loss(x, y), want)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", ["binomial", "laploss"])
def test_laplacian_of_constants_is_the_residual(levels, kernel) -> None:
    loss = laplacian_loss(images(0.7), images(-0.2), levels, kernel)
    assert float(loss) == pytest.approx(0.9)
    *bands, residual = laplacian_pyramid(images(0.7), levels, kernel)
    assert all(band.abs().max() < 1e-12 for band in bands)
    assert residual.shape[-1] == 16 >> levels


@pytest.mark.parametrize(("kernel", "want"), [("binomial", 2.71875), ("laploss", 2.878544)])
def test_laplacian_of_an_impulse(kernel, want) -> None:
    centre = float(low_pass_kernel(kernel)[2, 2])
    for row, column in ((8, 8), (3, 12), (7, 5)):
        x = torch.zeros(1, 1, 16, 16, dtype=F64)
        x[0, 0, row, column] = 1
        loss = float(laplacian_loss(x, 0 * x, 1, kernel))
        assert loss == pytest.approx((3 - 2 * centre) / 256, rel=1e-6)
        assert loss == pytest.approx(want / 256, rel=1e-6)


def test_kernels() -> None:
    binomial, laploss = low_pass_kernel("binomial"), low_pass_kernel("laploss")
    assert float(binomial[2, 2]) == 36 / 256
    assert float(laploss[2, 2]) == pytest.approx(0.060728, abs=5e-7)
    assert float(laploss[0, 0]) == pytest.approx(0.0223, abs=5e-5)
    for weights in (binomial, laploss):
        assert float(weights.sum()) == pytest.approx(1)
        assert torch.equal(weights, weights.T)
        assert torch.equal(weights, weights.flip(0, 1))


@pytest.mark.parametrize("bands", ["low_pass", "burt_adelson"])
@given(scale=st.floats(-3, 3), shift=st.floats(-2, 2), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_laplacian_is_a_seminorm_of_differences(bands, scale, shift, seed) -> None:
    x, y = noise(2, 3, 16, 16, seed=seed), noise(2, 3, 16, 16, seed=seed + 100)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return laplacian_loss(a, b, 3, bands=bands)

    before = loss(x, y)
    torch.testing.assert_close(loss(scale * x, scale * y), abs(scale) * before)
    torch.testing.assert_close(loss(x + shift, y + shift), before)
    torch.testing.assert_close(loss(y, x), before)
    assert loss(x, x).eq(0).all()


def test_means_of_levels_are_weights_of_sums() -> None:
    x = noise(2, 3, 32, 32)
    pyramid = laplacian_pyramid(x, 3)
    weighted = sum(4**j * band.abs().flatten(1).sum(1) for j, band in enumerate(pyramid))
    torch.testing.assert_close(laplacian_loss(x, 0 * x), weighted / (3 * 32 * 32))


@pytest.mark.parametrize("shape", [(16, 16), (15, 21), (28, 28)])
def test_burt_adelson_bands_give_the_image_back(shape) -> None:
    """Each level expanded and added to the next band: expansion written out with zeros."""
    x = noise(1, 2, *shape)
    pyramid = laplacian_pyramid(x, 3, bands="burt_adelson")
    image = pyramid[-1]
    for band in reversed(pyramid[:-1]):
        height, width = band.shape[-2:]
        around = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
        spread = torch.zeros(*around.shape[:2], *(2 * n for n in around.shape[-2:]), dtype=F64)
        spread[..., ::2, ::2] = around
        weights = 4 * low_pass_kernel("binomial")[None, None]
        smooth = nn.functional.conv2d(spread.flatten(0, 1)[:, None], weights)
        # Two pixels of the added border are before the first one, and the filter eats two.
        smooth = smooth.unflatten(0, image.shape[:2])[:, :, 0]
        image = band + smooth[..., :height, :width]
    torch.testing.assert_close(image, x)


def test_bands_differ_by_their_definition() -> None:
    x = noise(1, 1, 16, 16)
    assert float(laplacian_loss(x, 0 * x)) != pytest.approx(
        float(laplacian_loss(x, 0 * x, bands="burt_adelson")), rel=0.01
    )


def test_losses_of_a_configuration() -> None:
    x, y = noise(2, 1, 16, 16), noise(2, 1, 16, 16, seed=1)
    for name, want in {
        "mse": (x - y).square().mean((1, 2, 3)),
        "l1": (x - y).abs().mean((1, 2, 3)),
        "moments": local_moment_loss(x, y),
        "laplacian": laplacian_loss(x, y, 2, "laploss"),
    }.items():
        config = GLOConfig(
            image_shape=(1, 16, 16), loss=name, levels=2, kernel="laploss", squared_weight=0.5
        )
        torch.testing.assert_close(image_loss(config)(x, y), want + 0.5 * squared_error(x, y))


def test_losses_name_what_does_not_fit() -> None:
    x = torch.zeros(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"images \(n, c, h, w\) of one shape"):
        laplacian_loss(x, x[:1])
    with pytest.raises(ValueError, match="5 levels halve an image of 16x16 to nothing"):
        laplacian_loss(x, x, 5)
    with pytest.raises(ValueError, match="burt_adelson needs the kernel binomial"):
        laplacian_loss(x, x, 2, "laploss", "burt_adelson")


# Region and table


@pytest.mark.parametrize(
    ("region", "want"),
    [("sphere", [[0.6, 0.8], [0.6, 0.8], [0, 0]]), ("ball", [[0.6, 0.8], [0.3, 0.4], [0, 0]])],
)
def test_projection(region, want) -> None:
    z = torch.tensor([[3.0, 4], [0.3, 0.4], [0, 0]], dtype=F64)
    once = project(z, region)
    torch.testing.assert_close(once, torch.tensor(want, dtype=F64))
    torch.testing.assert_close(project(once, region), once)
    assert project(z, "none") is z


def test_arithmetic() -> None:
    z = noise(6, 3)
    want = z[:2].mean(0) - z[2:5].mean(0) + z[5]
    torch.testing.assert_close(arithmetic(z[:2], z[2:5], z[5:], "none"), want)
    got = arithmetic(z[:2], z[2:5], z[5:], "sphere")
    torch.testing.assert_close(got, want / want.norm())


@pytest.mark.parametrize("world", [1, 3])
def test_a_table_moves_the_rows_of_a_batch_only(world) -> None:
    n, d, rank = 20, 3, world - 1
    own = torch.arange(rank, n, world)
    table = LatentTable.empty(n, d, "ball", rank=rank, world=world)
    start = project(noise(n, d).float(), "ball")
    table.write(own, start[own])
    index = own[torch.tensor([3, 0, 4])]
    gradient = noise(3, d, seed=1).float()
    table.move(index, table.rows(index), gradient, 0.5)
    want = start.clone()
    want[index] = project(start[index] - 0.5 * gradient, "ball")
    assert torch.equal(table.rows(own), want[own])
    assert torch.equal(torch.cat([rows for _, rows in table.chunks()]), want[own])


def test_a_mapped_table_is_a_table(tmp_path) -> None:
    memory, mapped = (
        LatentTable.empty(50, 4, "sphere", scratch=scratch) for scratch in (None, tmp_path)
    )
    assert not list(tmp_path.iterdir())  # the file is gone from the folder, not from memory
    for table in (memory, mapped):
        table.write(torch.arange(50), noise(50, 4).float())
        table.move(torch.tensor([7, 3]), table.rows(torch.tensor([7, 3])), torch.ones(2, 4), 0.1)
    assert torch.equal(memory.values, mapped.values)


def test_no_room_for_a_mapped_table(tmp_path) -> None:
    with pytest.raises(OSError):
        LatentTable.empty(1 << 50, 128, "ball", scratch=tmp_path)


def test_a_table_checks_its_rows() -> None:
    with pytest.raises(ValueError, match=r"float32 \(3, d\), the rows of rank 1 of 3 out of 10"):
        LatentTable(torch.zeros(4, 2), "ball", count=10, rank=1, world=3)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        LatentTable(torch.zeros(4, 2, dtype=F64), "ball", count=4)


def test_a_table_knows_its_own_images() -> None:
    """Those of another rank lie at the same places of its rows."""
    table = LatentTable(torch.zeros(2, 3), "ball", count=4, rank=1, world=2)
    table.write(torch.tensor([1, 3]), torch.ones(2, 3))
    mixed = torch.tensor([3, 0])
    for call in (
        lambda: table.rows(mixed),
        lambda: table.write(mixed, torch.zeros(2, 3)),
        lambda: table.move(mixed, torch.zeros(2, 3), torch.zeros(2, 3), 1.0),
    ):
        with pytest.raises(ValueError, match=r"rank 1 of 2 holds .* images 1, 3, ...; got index 0"):
            call()
    assert torch.equal(table.values, torch.ones(2, 3))


def test_a_step_takes_no_memory_that_grows_with_the_table() -> None:
    table = LatentTable.empty(400_000, 64, "ball")  # 102 MB
    table.values.zero_()
    index = torch.arange(0, 400_000, 3125)

    def step() -> None:
        for _ in range(20):
            rows = table.rows(index)
            table.move(index, rows, rows, 0.1)

    step()
    assert allocated(step) < 1 << 20


def test_moments_take_a_chunk_at_a_time() -> None:
    table = LatentTable.empty(400_000, 64, "ball")
    table.values.normal_(generator=torch.Generator().manual_seed(0))
    table.moments()
    # A chunk of 16 MiB is twice that in float64, of which there are two. All latents are 195 MiB.
    assert allocated(table.moments) < 65 << 20
    mean, covariance = table.moments()
    torch.testing.assert_close(mean, table.values.double().mean(0))
    torch.testing.assert_close(covariance, table.values.double().T.cov())


def test_latents_are_saved_without_a_copy(tmp_path) -> None:
    table = LatentTable.empty(400_000, 64, "ball")
    table.values.normal_(generator=torch.Generator().manual_seed(0))
    (tmp_path / "weights").write_bytes(b"weights")

    def save() -> None:
        write_latents(tmp_path / "codes", {"codes": table.values}, tmp_path / "weights")

    save()
    assert allocated(save) < 1 << 20  # the table is 98 MiB
    assert torch.equal(read_tensors(tmp_path / "codes")[0]["codes"], table.values)


# Generators


def parameters(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


@pytest.mark.parametrize(("dim", "count"), [(100, 3_576_704), (128, 3_806_080), (512, 6_951_808)])
def test_paper_generator(dim, count) -> None:
    network = PaperGenerator(GLOConfig(image_shape=(3, 64, 64), dim=dim))
    assert parameters(network) == count
    with torch.no_grad():
        assert network(torch.randn(2, dim)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("side", [8, 32, 128])
def test_paper_generator_of_other_sizes(side) -> None:
    network = PaperGenerator(GLOConfig(image_shape=(1, side, side), dim=5))
    maps = [m.out_channels for m in network if isinstance(m, nn.ConvTranspose2d)]
    assert maps[:-1] == [512 >> k for k in range(len(maps) - 1)]
    with torch.no_grad():
        assert network(torch.randn(2, 5)).shape == (2, 1, side, side)


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_grey_images_begin_grey() -> None:
    config = GLOConfig(image_shape=(1, 16, 16), dim=16, width=0.25, initial_weights="normal")
    model = build(config, 0)
    for layer in convolutions(model):
        n = layer.weight.numel()
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))
    with torch.no_grad():
        image = model.generator(project(torch.randn(64, 16), "sphere"))
    assert float((image.abs() < 0.9).float().mean()) == 1


@pytest.mark.parametrize("architecture", ["paper", "seed"])
def test_black_has_a_slope_in_half_precision(architecture) -> None:
    config = GLOConfig(image_shape=(1, 32, 32), dim=4, width=0.1, architecture=architecture)
    network = build_generator(config)
    dark = []

    def darken(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
        dark.append(torch.full_like(out, -5).requires_grad_())
        return dark[0]

    convolutions(network)[-1].register_forward_hook(darken)
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 4)).sum().backward()
    assert dark[0].dtype == torch.bfloat16
    torch.testing.assert_close(dark[0].grad, torch.full_like(dark[0], 1 - math.tanh(5) ** 2))


@pytest.mark.parametrize(
    ("shape", "dim", "count"),
    [
        ((1, 28, 28), 10, 119_040),
        ((1, 28, 28), 100, 263_040),
        ((3, 32, 32), 25, 1_090_035),
        ((3, 32, 32), 35, 1_151_475),
        ((3, 32, 32), 100, 1_550_835),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_seed_generator(shape, dim, count, legacy) -> None:
    config = GLOConfig(
        image_shape=shape, architecture="seed", dim=dim, legacy_upsampling=legacy, levels=1
    )
    network = SeedGenerator(config)
    assert parameters(network) == count
    with torch.no_grad():
        made = network(torch.randn(2, dim))
    assert made.shape == (2, *shape) and made.abs().max() <= 1
    for convolution in network.convolutions:
        assert convolution.weight.abs().max() <= 0.04
        assert float(convolution.weight.detach().std()) == pytest.approx(0.0176, rel=0.2)
        assert not convolution.bias.any()


def test_seed_convolutions_are_padded_before_by_one() -> None:
    """A kernel with its one at (1, 1) does nothing."""
    config = GLOConfig(image_shape=(1, 32, 32), architecture="seed", dim=3)
    network = SeedGenerator(config)
    network.convolutions = nn.ModuleList([nn.Conv2d(3, 1, 4, bias=False)])
    network.norms = nn.ModuleList()
    network.size = (2, 2)
    with torch.no_grad():
        network.convolutions[0].weight.zero_()[0, :, 1, 1] = 1
        z = torch.randn(4, 3)
        want = torch.tanh(z.sum(1))[:, None, None, None].expand(4, 1, 2, 2)
        torch.testing.assert_close(network(z), want)


def test_legacy_bilinear() -> None:
    pair = torch.tensor([2.0, 6.0])
    assert legacy_bilinear(pair, 4, 0).tolist() == [2, 4, 6, 6]
    ramp = torch.arange(32.0)
    torch.testing.assert_close(legacy_bilinear(ramp, 28, 0), torch.arange(28.0) * 32 / 28)


# Steps of latents


class Linear(nn.Module):
    """Latents z to images of the vectors W z."""

    def __init__(self, matrix: Tensor, side: int):
        super().__init__()
        self.matrix = nn.Parameter(matrix)
        self.side = side

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T).reshape(-1, 1, self.side, self.side)


def test_a_step_of_a_linear_generator() -> None:
    """The gradient 2 / (B D) W^T (W z - x) of the mean squared error, by hand."""
    side, d, n = 4, 3, 5
    w = noise(side * side, d).float()
    x, z = noise(n, side * side, seed=1).float(), noise(n, d, seed=2).float()
    latents = z.clone().requires_grad_()
    loss = squared_error(Linear(w, side)(latents), x.reshape(n, 1, side, side)).mean()
    (gradient,) = torch.autograd.grad(loss, latents)
    want = 2 / (n * side * side) * (z @ w.T - x) @ w
    torch.testing.assert_close(gradient, want)
    table = LatentTable(z.clone(), "ball", count=n)
    table.move(torch.arange(n), z, gradient, 0.7)
    torch.testing.assert_close(table.values, project(z - 0.7 * want, "ball"))


@pytest.mark.parametrize("length", [0.4, 1.0, 2.5])
def test_a_held_out_latent_of_an_orthonormal_generator(length) -> None:
    """Least squares in the ball: c within, c / |c| without, with residual (|c| - 1)^2 / D."""
    side, d, n = 4, 3, 6
    w = torch.linalg.qr(noise(side * side, d)).Q.float()
    c = project(noise(n, d, seed=3).float(), "sphere") * length
    found = fit_latents(
        Linear(w, side),
        squared_error,
        (c @ w.T).reshape(n, 1, side, side),
        noise(n, 2, d, seed=4).float(),
        lambda z: project(z, "ball"),
        steps=400,
    )
    torch.testing.assert_close(found.latents, c / max(length, 1), rtol=0, atol=2e-4)
    want = torch.full((n,), max(length - 1, 0) ** 2 / side**2)
    torch.testing.assert_close(found.loss, want, rtol=1e-4, atol=1e-7)
    assert (found.loss <= found.start_loss).all()


def test_images_are_fitted_each_by_itself() -> None:
    side, d, n = 4, 3, 5
    network = Linear(noise(side * side, d).float(), side)
    x = noise(n, 1, side, side, seed=1).float()
    starts = noise(n, 2, d, seed=2).float()

    def fit(rows: slice):
        return fit_latents(
            network, squared_error, x[rows], starts[rows], lambda z: project(z, "ball"), 20
        )

    together = fit(slice(None))
    for k in range(n):
        alone = fit(slice(k, k + 1))
        torch.testing.assert_close(alone.latents, together.latents[k : k + 1])
    assert network.matrix.grad is None


def test_the_best_of_all_starts_and_steps_is_kept() -> None:
    """With a step far too large, the best latent is one of the starts."""
    network = Linear(noise(16, 3).float(), 4)
    x = noise(4, 1, 4, 4, seed=1).float()
    starts = noise(4, 3, 3, seed=2).float()
    found = fit_latents(network, squared_error, x, starts, lambda z: z, 1, rate=1e4)
    losses = (
        squared_error(network(starts.flatten(0, 1)), x.repeat_interleave(3, 0))
        .detach()
        .unflatten(0, (4, 3))
    )
    assert torch.equal(found.loss, losses.amin(1))
    assert torch.equal(found.latents, starts[torch.arange(4), losses.argmin(1)])
    assert torch.equal(found.loss, found.start_loss)


def test_training_of_a_linear_generator_reaches_the_discarded_variance() -> None:
    """Free latents and squared error are PCA: the loss is what d components leave, over D."""
    side, d, n = 4, 4, 64
    spectrum = torch.linspace(2, 0.3, side * side)
    x = noise(n, side * side).float() * spectrum
    x -= x.mean(0)
    values = torch.linalg.eigvalsh(x.double().T @ x.double() / n).flip(0)
    want = float(values[d:].sum()) / side**2
    network = Linear(0.3 * noise(side * side, d, seed=1).float(), side)
    table = LatentTable(0.3 * noise(n, d, seed=2).float(), "none", count=n)
    rate, batch = 2.0, 16
    for step in range(6000):
        index = torch.randperm(n, generator=generator(0, step, "x"))[:batch]
        latents = table.rows(index).requires_grad_()
        loss = squared_error(network(latents), x[index].reshape(-1, 1, side, side)).mean()
        loss.backward()
        with torch.no_grad():
            network.matrix -= 0.2 * (1 - step / 6000) * network.matrix.grad
            network.matrix.grad = None
        table.move(index, latents.detach(), latents.grad, rate)
    with torch.no_grad():
        error = squared_error(network(table.values), x.reshape(-1, 1, side, side)).mean()
    assert float(error) == pytest.approx(want, rel=0.02)
    assert float(error) > want * (1 - 1e-5)


# Principal components


def on_subspace(n: int, size: int, d: int) -> tuple[Tensor, Tensor]:
    basis = torch.linalg.qr(noise(size, d)).Q.T
    stretch = torch.linspace(3, 1, d, dtype=F64)
    return (noise(n, d, seed=1) * stretch @ basis + 0.5).float(), basis


@pytest.mark.parametrize("size", [40, 3100])  # by the covariance, and by products with it
def test_components_of_points_on_a_subspace(size) -> None:
    points, _ = on_subspace(200, size, 5)
    found = principal_directions(
        lambda: points.split(64), 200, size, 5, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(5))
    back = found.coordinates(points) @ found.directions + found.mean
    torch.testing.assert_close(back, points, rtol=0, atol=2e-5)
    spread = found.coordinates(points).std(0)
    assert torch.equal(spread, spread.sort(descending=True).values)
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_both_ways_find_the_same_components(monkeypatch) -> None:
    points = noise(500, 60).float() * torch.linspace(3, 0.1, 60)

    def found():
        make = torch.Generator().manual_seed(0)
        return principal_directions(lambda: points.split(100), 500, 60, 4, make)

    exact = found()
    monkeypatch.setattr("fastlatent.models.glo.principal.MOST_EXACT", 10)
    monkeypatch.setattr("fastlatent.models.glo.principal.ROUNDS", 30)
    torch.testing.assert_close(found().directions, exact.directions, rtol=0, atol=1e-4)


def test_more_components_than_there_are() -> None:
    points = noise(4, 10).float()
    with pytest.raises(ValueError, match="at most 4, as there are 4 images of 10 numbers; got 5"):
        principal_directions(lambda: [points], 4, 10, 5, torch.Generator())


# The model


def tiny(**changes) -> GLO:
    settings = {"image_shape": (1, 16, 16), "width": 0.02, "dim": 6, "fit_steps": 5}
    return build(GLOConfig(**{**settings, **changes}), seed=0)


@pytest.mark.parametrize("kind", ["gaussian", "diagonal"])
def test_drawn_latents_have_the_moments_of_the_learned(kind) -> None:
    """Within five standard errors, of latents that lie in a plane."""
    model = tiny(projection="none", sampling=kind, dim=3)
    latents = noise(500, 3).float()
    latents[:, 2] = latents[:, 0] - 2 * latents[:, 1] + 1
    table = LatentTable(latents, "none", count=500)
    model.describe_latents(*table.moments(), latents)
    n = 40_000
    drawn = model.draw_prior(n, generator(0, 0, "x")).double()
    mean, covariance = latents.double().mean(0), latents.double().T.cov()
    if kind == "diagonal":
        covariance = covariance.diagonal().diag()
    deviation = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean).abs() <= 5 * deviation / math.sqrt(n)).all()
    spread = (covariance.square() + deviation.outer(deviation).square()).sqrt()
    assert ((drawn.T.cov() - covariance).abs() <= 5 * spread / math.sqrt(n) + 1e-6).all()


@pytest.mark.parametrize("kind", ["gaussian", "diagonal"])
def test_equal_latents_give_equal_samples(kind) -> None:
    model = tiny(sampling=kind)
    latents = torch.full((30, 6), 0.2)
    model.describe_latents(*LatentTable(latents, "ball", count=30).moments(), latents)
    drawn = model.draw_prior(20, generator(0, 0, "x"))
    torch.testing.assert_close(drawn, latents[:20], rtol=0, atol=1e-6)


def test_a_single_latent_has_no_covariance() -> None:
    mean, covariance = LatentTable(torch.ones(1, 3), "none", count=1).moments()
    assert mean.tolist() == [1, 1, 1] and not covariance.any()


@pytest.mark.parametrize("region", ["ball", "sphere"])
def test_samples_lie_in_the_region_row_by_row(region) -> None:
    model = tiny(projection=region, dim=100)
    lengths = model.draw_prior(300, generator(0, 0, "x")).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(300))
    unit = tiny(projection=region, dim=100, sampling="unit").draw_prior(300, generator(0, 0, "x"))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(300))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = tiny().eval()
    with torch.no_grad():
        z = model.draw_prior(8, generator(0, 0, "x"))
        alone, together = model.decode(z[:1]), model.decode(z)[:1]
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_fitting_leaves_the_model_alone() -> None:
    model = tiny(initial="uniform").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.rand(3, 1, 16, 16)
    found = model.fit(x, starts=2)
    assert found.latents.shape == (3, 6) and (found.loss <= found.start_loss).all()
    assert model.training and model.generator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weights.grad is None for weights in model.parameters())


def test_more_starts_and_steps_never_fit_worse() -> None:
    model = tiny(initial="uniform").eval()
    latents = project(noise(256, 6).float(), "ball")
    model.describe_latents(latents.mean(0), latents.T.cov(), latents)
    with torch.no_grad():
        x = model.decode(project(noise(5, 6, seed=9).float(), "ball"))
    few, more = model.fit(x, starts=1).loss, model.fit(x, starts=4).loss
    assert (more <= few + 1e-6).all()
    assert (
        model.fit(x, starts=1, steps=0).loss == model.fit(x, starts=1, steps=0).start_loss
    ).all()
    assert float(model.fit(x, starts=4, steps=200).loss.mean()) < 0.5 * float(more.mean())


def test_training_needs_latents_and_evaluation_says_more() -> None:
    model = tiny()
    x = torch.rand(4, 1, 16, 16)
    with pytest.raises(ValueError, match="latents must be given in training"):
        model.train()(x)
    assert set(model(x, latents=torch.zeros(4, 6))) == {"loss"}
    with pytest.raises(ValueError, match=r"GLO: latents must .* of shape \(n, 6\); got \(4, 5\)"):
        model(x, latents=torch.zeros(4, 5))
    with pytest.raises(ValueError, match="latents must hold 4 rows, one for each of x; got 3"):
        model(x, latents=torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"GLO.fit: starts must be at least 1; got 0"):
        model.fit(x, starts=0)
    with pytest.raises(ValueError, match=r"GLO.fit: steps must be at least 0; got -1"):
        model.fit(x, steps=-1)
    values = model.eval()(x)
    difference = 2 * model.reconstruct(x) - 2 * x
    mse = difference.detach().square().mean((1, 2, 3))
    torch.testing.assert_close(values["squared_error"].detach(), mse)
    torch.testing.assert_close(values["psnr"].detach(), 10 * (4 / mse).log10())
    torch.testing.assert_close(values["loss"], values["laplacian"])
    assert (values["loss"] <= values["loss_of_start"] + 1e-6).all()


def test_a_loss_of_ones_own() -> None:
    config = tiny().config
    model = GLO(config, loss=lambda x, y: (x - y).abs().flatten(1).amax(1)).eval()
    x = torch.rand(2, 1, 16, 16)
    latents = torch.zeros(2, 6)
    want = (2 * model.decode(latents) - 2 * x).abs().flatten(1).amax(1)
    torch.testing.assert_close(model(x, latents=latents)["loss"], want)


def test_half_precision_leaves_the_loss_in_float32() -> None:
    model = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.rand(4, 1, 16, 16), latents=torch.zeros(4, 6))["loss"]
    assert loss.dtype == torch.float32


def test_the_geometric_decoder_is_the_generator() -> None:
    model = tiny().eval()
    z = torch.randn(3, 6)
    with torch.no_grad():
        want = (2 * model.decode(z) - 1).flatten(1)
        torch.testing.assert_close(model.geometric_decoder()(z), want)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_shape": (1, 28, 28)}, "square with a side of 8, 16, 32"),
        ({"image_shape": (1, 16, 32)}, "square with a side"),
        ({"image_shape": (2, 32, 32), "architecture": "seed"}, "of 1 or 3 channels"),
        ({"levels": 5}, "levels must be 1 to 4 for images of this size; got 5"),
        ({"bands": "burt_adelson", "kernel": "laploss"}, "binomial with bands='burt_adelson'"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"alpha": -1.0}, "alpha must be positive"),
        ({"per_sample_alpha": 0.0}, "per_sample_alpha must be positive"),
        ({"squared_weight": -0.1}, "squared_weight must be at least 0"),
    ],
)
def test_configurations_that_cannot_be(changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**changes)


# Data


def test_marks_tell_data_sets_apart() -> None:
    digits = load(DataConfig("digits"))
    again = load(DataConfig("digits", resident="stream"))
    assert torch.equal(digits.train.mark, again.train.mark)
    assert not torch.equal(digits.train.mark, digits.test.mark)
    some = load(DataConfig("digits", classes=(0, 1)))
    larger = load(DataConfig("digits", size=32))
    assert not torch.equal(digits.train.mark, some.train.mark)
    assert not torch.equal(digits.train.mark, larger.train.mark)


# Paths, and steps as training makes them


@pytest.mark.parametrize("t", [0.5, 0.25])
def test_lines_brought_onto_the_sphere_run_along_the_great_circle(t: float) -> None:
    """At the angle atan2(t sin w, 1 - t + t cos w): 45 and 18.4349 degrees of 90."""
    start, end = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])
    model = tiny(dim=2, projection="sphere")
    line = walk(model, "linear", start, end, 5).latents[:, round(4 * t)]
    x, y = project(line, "sphere")[0].tolist()
    assert math.atan2(y, x) == pytest.approx(math.atan2(t, 1 - t), abs=1e-6)
    x, y = walk(model, "spherical", start, end, 5).latents[0, round(4 * t)].tolist()
    assert math.atan2(y, x) == pytest.approx(t * math.pi / 2, abs=1e-6)
    inside = walk(model, "linear", start, end, 5).latents
    assert torch.equal(project(inside, "ball"), inside)


class Steps:
    """Latents that move, with the weights as they are and no batch norm; one rank of `world`."""

    def __init__(self, split: Split, config: GLOConfig, batch: int, rank: int = 0, world: int = 1):
        model = build(config, seed=0).train()
        model.generator = Linear(0.1 * noise(256, 4).float(), 16)
        room = Room(torch.device("cpu"), 0, batch, 64, Path(), rank, world)
        self.split, self.latents = split, MovingLatents(model, split, room)
        self.objective = Objective(model, AlternatingStep("", (model,)))
        self.latents.initialise()

    def step(self, index: Tensor) -> None:
        batch = Batch(self.split.images(index) / 255, index, None)
        values = self.objective(batch.images, Noise(0, 0), **self.latents.take(batch))
        if self.latents.simultaneous:
            values["loss"].backward()
        self.latents.move(self.objective, [batch], [Noise(0, 0)])


ORDERS = ("simultaneous", "alternating")


@pytest.mark.parametrize("order", ORDERS)
def test_steps_of_one_image_do_not_depend_on_the_batch(order: str) -> None:
    """With a step for each image."""
    split = load(DataConfig("digits", size=16)).train
    config = GLOConfig(
        image_shape=(1, 16, 16), dim=4, order=order, per_sample_alpha=3.0, initial="gaussian"
    )
    found = {}
    for size in (1, 4):
        steps = Steps(split, config, size)
        begun = steps.latents.table.rows(torch.arange(16))
        for index in torch.arange(8).split(size):
            steps.step(index)
        found[size] = steps.latents.table.rows(torch.arange(8))
        assert torch.equal(steps.latents.table.rows(torch.arange(8, 16)), begun[8:])
    assert (found[1] - found[4]).abs().max() < 1e-6
    assert (begun[:8] - found[4]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("initial", ["gaussian", "pca_scaled"])
def test_latents_begin_and_move_alike_on_any_number_of_ranks(order: str, initial: str) -> None:
    """A step on a batch of 12, of which each rank has the images whose latents it holds."""
    split = load(DataConfig("digits", size=16, per_class=2)).train
    config = GLOConfig(image_shape=(1, 16, 16), dim=4, order=order, alpha=30.0, initial=initial)
    begun, moved = {}, {}
    for world in (1, 2, 3):
        begun[world], moved[world] = torch.full((2, len(split), 4), math.nan)
        for rank in range(world):
            steps = Steps(split, config, 12, rank, world)
            mine = torch.arange(rank, len(split), world)
            begun[world][mine] = steps.latents.table.rows(mine)
            steps.step(torch.arange(rank, 12, world))
            moved[world][mine] = steps.latents.table.rows(mine)
    assert (moved[1][:12] - begun[1][:12]).norm(dim=1).min() > 1e-2
    for world in (2, 3):
        torch.testing.assert_close(begun[world], begun[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(moved[world], moved[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("length", "factor"), [(40.0, 0.5), (10.0, 1.0)])
def test_the_gradient_is_clipped_to_its_global_norm(length: float, factor: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    whole = noise(sum(w.numel() for w in model.parameters())).float()
    parts = (whole * length / whole.norm()).split([w.numel() for w in model.parameters()])
    for weights, part in zip(model.parameters(), parts, strict=True):
        weights.grad = part.reshape(weights.shape).clone()
    learner = SimpleNamespace(
        accelerator=SimpleNamespace(unscale_gradients=lambda: None),
        model=model,
        config=TrainConfig("x", GLOConfig(), DataConfig(), clip=20.0),
    )
    assert float(Learner._bound_gradient(learner)) == pytest.approx(length)
    for weights, part in zip(model.parameters(), parts, strict=True):
        torch.testing.assert_close(weights.grad.flatten(), factor * part)


def test_latents_of_fitted_priors_are_brought_into_the_region() -> None:
    class Far:
        def sample(self, n: int, noise: bool = True, generator=None) -> Tensor:
            return torch.full((n, 6), 3.0)

    drawn = draw(tiny(), "gmm", 4, generator(0, 0, "x"), prior=Far())
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4))
