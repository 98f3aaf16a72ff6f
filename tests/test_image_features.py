"""Features of images: sources, extraction, published networks, the classifier of one's own data."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from random_images import pictures
from torch import Tensor, nn

from fastlatent.data import DataConfig, load
from fastlatent.metrics import FeatureStatistics
from fastlatent.metrics.features import (
    distance_name,
    extract,
    jpeg_round_trip,
    read_npz,
    resize,
    to_uint8,
    to_unit,
)

Pair = tuple[Tensor, Tensor]


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def write(path: Path, pixels: Tensor, **options: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(path, **options)


# 8 bits and JPEG


def test_eight_bits_round_half_up_and_clip() -> None:
    x = torch.tensor([-0.5, 0, 0.4999 / 255, 0.5 / 255, 127.5 / 255, 254.5 / 255, 1, 1.7])
    assert to_uint8(x.view(1, 1, 2, 4)).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(every) is every
    half = torch.tensor(0.7998046875, dtype=torch.float16)  # 255 x + 0.5 = 204.45
    assert to_uint8(half.view(1, 1, 1, 1)).item() == 204
    with pytest.raises(ValueError, match="to_uint8: images must be numbers; got NaN"):
        to_uint8(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(TypeError, match=r"uint8 or floating point; got torch.int64"):
        to_uint8(torch.ones(1, 1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [75, 30])
def test_jpeg_is_pillows(channels: int, quality: int) -> None:
    images = torch.rand(3, channels, 28, 20, generator=torch.Generator().manual_seed(1))
    found = jpeg_round_trip(images, quality)
    for image, ours in zip(images, found, strict=True):
        pixels = np.clip(np.floor(255 * image.numpy() + np.float32(0.5)), 0, 255).astype(np.uint8)
        stored = io.BytesIO()
        picture = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        picture.save(stored, "JPEG", quality=quality)
        theirs = np.array(Image.open(stored)).reshape(28, 20, channels)
        assert np.array_equal(ours.permute(1, 2, 0), theirs)
    assert not torch.equal(found, to_uint8(images))


def test_jpeg_subsamples_colour_and_reads_grey_as_colour() -> None:
    # Columns of two colours that are equally bright: only their colour tells them apart.
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[:, 0, :, ::2], stripes[:, 1] = 200, 60
    stripes[:, 1, :, 1::2] = 162
    assert jpeg_round_trip(stripes, 95)[0, 0].float().std(1).mean() < 20
    grey = pictures(2, 1, 16, 16)
    colour = jpeg_round_trip(grey, rgb=True)
    assert colour.shape == (2, 3, 16, 16)
    assert torch.equal(colour, jpeg_round_trip(grey).expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="quality must lie in 1 to 95; got 0"):
        jpeg_round_trip(grey, 0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got -1 to 1"):
        jpeg_round_trip(torch.tensor([-1.0, 1]).view(1, 1, 1, 2))


def test_resizing_is_pillows_without_its_rounding() -> None:
    image = pictures(1, 1, 40, 30, seed=3)
    picture = Image.fromarray(image[0, 0].float().numpy())
    theirs = np.array(picture.resize((12, 16), Image.Resampling.BICUBIC))
    ours = resize(image, (16, 12))[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(theirs).clamp(0, 255) / 255)
    assert resize(image, (40, 30)) is image


# Sources


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 50),
    world=st.integers(1, 4),
    kind=st.sampled_from(["features", "images", "stream"]),
)
@settings(max_examples=40, deadline=None)
def test_batches_hold_everything_once_whatever_their_size(n, batch, world, kind) -> None:
    images = pictures(n, 1, 2, 2)
    values = flat(to_unit(images))
    whole = {"features": values, "images": images}.get(kind)
    source = list(images.split(7)) if whole is None else whole
    ranks = []
    for rank in range(world):
        features = extract(source, flat, batch=batch, rank=rank, world=world)
        parts = list(features)
        assert all(len(part) <= batch for part in parts)
        if whole is not None:
            assert features.count == n and features.batches == len(parts)
        ranks.append(parts)
    # Batch i is the (i // world)-th of rank i % world.
    together = [ranks[i % world][i // world] for i in range(sum(map(len, ranks)))]
    torch.testing.assert_close(torch.cat(together), values, rtol=0, atol=0)


def test_a_stream_holds_no_more_than_a_batch() -> None:
    drawn = 0

    def endless() -> Iterator[Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield pictures(4, seed=drawn)

    features = iter(extract(endless(), flat, batch=4))
    assert drawn == 0
    for _ in range(3):
        assert next(features).shape == (4, 90)
    assert drawn == 3


def test_batches_of_data_sets_and_loaders() -> None:
    split = load(DataConfig(name="digits")).test
    expected = extract(split.images(torch.arange(len(split))).to(torch.uint8), flat).all()
    assert torch.equal(extract(split.batches(50, "cpu"), flat).all(), expected)
    dataset = torch.utils.data.TensorDataset(pictures(9), torch.arange(9))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    assert torch.equal(extract(loader, flat).all(), flat(to_unit(pictures(9))))
    arrays = [pictures(3).numpy()]
    assert torch.equal(extract(arrays, flat).all(), flat(to_unit(pictures(3))))
    assert torch.equal(extract(arrays[0], flat).all(), flat(to_unit(pictures(3))))


@pytest.mark.parametrize("world", [1, 2])
def test_a_limit_spreads_over_what_has_a_length_and_ends_batches(tmp_path: Path, world) -> None:
    rows = torch.arange(20.0).view(10, 2)
    np.savez(tmp_path / "rows.npz", features=rows.numpy())
    stream = list(rows.split(3))
    for source, want in [
        (rows, [0, 2, 5, 7]),
        (tmp_path / "rows.npz", [0, 2, 5, 7]),
        (stream, [0, 1, 2, 3]),
    ]:
        parts = [
            part
            for rank in range(world)
            for part in extract(source, batch=1, limit=4, rank=rank, world=world)
        ]
        assert sorted(torch.cat(parts)[:, 0].tolist()) == rows[want, 0].tolist()
        assert torch.equal(extract(source, limit=11).all(), rows)
    with pytest.raises(ValueError, match="limit must be at least 1; got 0"):
        extract(rows, limit=0)


def test_folders_of_files(tmp_path: Path) -> None:
    images = pictures(5)
    names = ["b.png", "a.bmp", "below/c.PNG", "below/deeper/d.webp", "e.tiff"]
    for name, image in zip(names, images, strict=True):
        write(tmp_path / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    (tmp_path / "labels.txt").write_text("no image")
    write(tmp_path / ".hidden" / "f.png", images[0])
    write(tmp_path / ".g.png", images[0])
    order = [1, 0, 2, 3, 4]  # sorted by path
    features = extract(tmp_path, flat, batch=2)
    assert (features.count, features.batches) == (5, 3)
    assert torch.equal(features.all(), flat(to_unit(images[order])))
    assert torch.equal(features.all(), extract(str(tmp_path), flat, batch=100).all())
    flat_only = extract(tmp_path, flat, recursive=False)
    assert torch.equal(flat_only.all(), flat(to_unit(images[[1, 0, 4]])))
    some = extract(tmp_path, flat, batch=2, limit=3)
    assert (some.count, some.batches) == (3, 2)
    assert torch.equal(some.all(), flat(to_unit(images[[1, 0, 3]])))


def test_folders_of_several_sizes_and_colours(tmp_path: Path) -> None:
    sizes = [(6, 6), (9, 12), (20, 7)]
    for number, size in enumerate(sizes):
        write(tmp_path / f"{number}.png", pictures(1, 3, *size, seed=number)[0])
    with pytest.raises(ValueError, match=r"1.png is 9x12 where the first image is 6x6; give a si"):
        extract(tmp_path, flat).all()
    expected = [
        resize(pictures(1, 3, *size, seed=number), (6, 6)) for number, size in enumerate(sizes)
    ]
    expected = torch.cat([to_unit(image) for image in expected])
    torch.testing.assert_close(extract(tmp_path, flat, size=6).all(), flat(expected))
    write(tmp_path / "3.png", pictures(1, 1, 6, 6)[0])
    found = extract(tmp_path, flat, size=(6, 6)).all()[3].view(3, -1)
    assert torch.equal(found, to_unit(pictures(1, 1, 6, 6))[0].expand(3, -1, -1).flatten(1))
    with pytest.raises(ValueError, match=r"0.png is a colour image among grey ones$"):
        extract(tmp_path, flat, size=6, channels=1)
    only_grey = tmp_path / "grey"
    for number in range(2):
        write(only_grey / f"{number}.png", pictures(1, 1, seed=number)[0])
    assert extract(only_grey, flat).all().shape == (2, 30)
    assert extract(only_grey, flat, channels=3).all().shape == (2, 90)
    write(only_grey / "2.png", pictures(1, 3)[0])
    with pytest.raises(ValueError, match=r"2.png is a colour image among grey ones; channels=3"):
        extract(only_grey, flat)


def test_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder {tmp_path}/none"):
        extract(tmp_path / "none", flat)
    write(tmp_path / "below" / "a.png", pictures(1)[0])
    with pytest.raises(ValueError, match=r"holds no image files directly in it \(\.apng \.bmp"):
        extract(tmp_path, flat, recursive=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=f"{empty} holds no image files in it or below"):
        extract(empty, flat)
    data = (tmp_path / "below" / "a.png").read_bytes()
    (tmp_path / "below" / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"below/b.png is not a readable image"):
        extract(tmp_path, flat).all()
    (tmp_path / "below" / "b.png").unlink()
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(tmp_path / "below" / "c.png")
    with pytest.raises(ValueError, match=r"below/c.png has more than 8 bits a channel"):
        extract(tmp_path, flat).all()


@pytest.mark.parametrize("key", ["images", "x", "samples", "arr_0"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "grey"])
def test_images_in_npz(tmp_path: Path, key: str, layout: str) -> None:
    images = pictures(4, 1 if layout == "grey" else 3)
    array = {
        "nchw": images.numpy(),
        "nhwc": images.permute(0, 2, 3, 1).numpy(),
        "grey": images[:, 0].numpy(),
    }[layout]
    np.savez(tmp_path / "a.npz", **{key: array})
    assert torch.equal(extract(tmp_path / "a.npz", flat).all(), flat(to_unit(images)))


def test_features_and_statistics_in_npz(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for key in ("features", "feats", "arr_0"):
        np.savez_compressed(tmp_path / "a.npz", **{key: features})
        assert np.array_equal(extract(tmp_path / "a.npz").all(), features)
    np.savez(tmp_path / "b.npz", mine=features, features=features + 1)
    assert np.array_equal(extract(tmp_path / "b.npz", key="mine").all(), features)
    mu, sigma = features.mean(0), np.cov(features, rowvar=False)
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    found = read_npz(tmp_path / "s.npz")
    assert isinstance(found, FeatureStatistics)
    assert np.array_equal(found.mu, mu) and np.array_equal(found.sigma, sigma)
    with pytest.raises(ValueError, match=r"s.npz holds statistics \(mu and sigma\)"):
        extract(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds mu; expected mu and sigma both"),
        ({"m": np.zeros(3), "s": 0}, "holds m, s; expected mu and sigma, or one of features, fe"),
        ({}, "holds nothing; expected"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(2)},
            r"mu \(d,\) .* got float64 \(3,\) and float64 \(2, 2\)",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "x": np.zeros((1, 2, 2))}, "name the array to be"),
        ({"features": np.zeros((3, 2)), "feats": np.zeros((3, 2))}, "name the array to be read"),
        ({"features": np.zeros((3, 2), int)}, r"features must be floating-point .* got int64"),
        ({"features": np.zeros(3)}, r"must be floating-point features \(n, d\); got float64 of"),
        ({"x": np.zeros((3, 5, 4, 2))}, r"x must be \(n, h, w\), .* with 1 or 3 channels"),
        ({"x": np.full((1, 2, 2), 9.0)}, "x holds floats outside 0 to 1: 9 to 9"),
        ({"x": np.array([{}])}, "damaged at x: it holds Python objects"),
    ],
)
def test_npz_says_what_is_wrong(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_npz(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value)


def test_npz_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
        read_npz(path)
    np.savez(path, features=np.random.default_rng(0).normal(size=(200, 3)))
    with pytest.raises(ValueError, match=r"a.npz has no array mine; it holds features"):
        read_npz(path, "mine")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"not an .npz file, or it is truncated"):
        read_npz(path)
    data[1000] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.npz is damaged at features: "):
        read_npz(path)


# Extraction


class Probe(nn.Module):
    """Its features depend on its mode; it remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(90, 4), nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.dropout(self.linear(images.float().flatten(1)))


def test_modules_run_in_evaluation_mode_without_gradients_and_are_left_as_they_were() -> None:
    probe = Probe()
    probe.linear.eval()
    images = pictures(6)
    features = extract(images, probe, batch=4).all()
    assert not features.requires_grad
    torch.testing.assert_close(features, probe.linear(flat(to_unit(images))).detach())
    assert probe.training and probe.dropout.training and not probe.linear.training
    assert [len(part) for part in probe.seen] == [4, 2]
    assert all(part.dtype == torch.float32 for part in probe.seen)
    for _ in extract(images, probe, batch=4):
        assert probe.training  # the caller's own code between two batches sees its own mode


def test_extractors_may_take_eight_bits_and_transformed_images() -> None:
    images = pictures(3)
    probe = Probe()
    for source in (images, to_unit(images)):
        extract(source, probe, takes="uint8").all()
        assert torch.equal(probe.seen[-1], images)
    extract(to_unit(images), probe, transform=jpeg_round_trip, takes="uint8").all()
    assert torch.equal(probe.seen[-1], jpeg_round_trip(images))
    noisy = to_unit(images) * 0.99
    extract(noisy, probe, transform=to_uint8).all()
    assert torch.equal(probe.seen[-1], to_unit(to_uint8(noisy)))
    pooled = extract(images, lambda x: x.mean((2, 3), keepdim=True)).all()
    torch.testing.assert_close(pooled, to_unit(images).mean((2, 3)))


@pytest.mark.parametrize(
    ("source", "extractor", "options", "message"),
    [
        (torch.zeros(0, 3), None, {}, "there are no images or features in the tensor"),
        (iter(()), None, {}, "there are no images or features in the batches"),
        (torch.zeros(2, 3, 4, 4), None, {}, "the tensor, batch 0 holds images; an extractor"),
        (torch.zeros(2, 3, 4), None, {}, r"features \(n, d\) or images .*; got \(2, 3, 4\)"),
        ([torch.zeros(2, 3, 4)], flat, {}, r"\(n, c, h, w\) with 1 or 3 channels; got \(2, 3, 4\)"),
        (torch.zeros(2, 2, 4, 4), flat, {}, r"1 or 3 channels; got \(2, 2, 4, 4\)"),
        (torch.full((2, 1, 4, 4), 255.0), flat, {}, r"must lie in \[0, 1\]; got 255 to 255"),
        (torch.full((2, 1, 4, 4), torch.nan), flat, {}, r"must lie in \[0, 1\]; got nan to nan"),
        (torch.tensor([[1.0], [torch.nan]]), None, {"batch": 1}, "tensor, batch 1 has features th"),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            None,
            {},
            "batch 1 has 4 features where .* have 3",
        ),
        (torch.zeros(2, 3, dtype=torch.int64), None, {}, r"floating point, .*; got torch.int64"),
        (pictures(2), lambda x: x, {}, r"must return features \(n, d\); got \(2, 3, 6, 5\)"),
        (pictures(2), lambda x: flat(x)[:1], {}, r"one row for each of 2 images; .* \(1, 90\)"),
        (pictures(2), flat, {"batch": 0}, "batch must be at least 1; got 0"),
        (pictures(2), flat, {"rank": 2, "world": 2}, "rank must lie in 0 to 1; got 2"),
        (pictures(2), flat, {"takes": "bytes"}, "takes must be 'unit' or 'uint8'; got 'bytes'"),
        (pictures(2), flat, {"channels": 2}, "channels must be 1 or 3; got 2"),
        (pictures(2), flat, {"size": 0}, "size must be a side or .* got 0"),
    ],
)
def test_extract_says_what_is_wrong(source, extractor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"extract: .*{message}"):
        extract(source, extractor, **options).all()


@pytest.mark.parametrize(
    ("source", "extractor", "message"),
    [
        (3, flat, "a tensor, a path or an iterable of batches; got int"),
        (["a", "b"], flat, "a batch must be a tensor, .* got str"),
        (pictures(2), lambda x: [flat(x)], "the extractor must return a tensor; got list"),
        (pictures(2).long(), flat, "images must be uint8 or floating point; got torch.int64"),
    ],
)
def test_extract_says_what_has_the_wrong_type(source, extractor, message: str) -> None:
    with pytest.raises(TypeError, match=f"extract: .*{message}"):
        extract(source, extractor).all()


def test_bits_in_bytes_are_black_and_white() -> None:
    """However they are handed in, and as bool; what is said of them."""
    bits = torch.tensor([0, 0, 0, 1, 1, 0], dtype=torch.uint8).view(3, 1, 1, 2)
    expected = bits.flatten(1).float()
    said = "uint8 of 0 and 1 alone is taken as black and white"
    batches = list(bits.split(1))  # the first of them is all black
    for source, notes in [
        (bits, [f"the tensor: {said}"]),
        (bits.numpy(), [f"the tensor: {said}"]),
        (batches, [f"the batches: {said}"]),
        ([(part, 0) for part in batches], [f"the batches: {said}"]),
        (bits.bool(), []),
        ([part.bool() for part in batches], []),
        (bits * 255, []),
        (bits.float(), []),
    ]:
        for takes, white in (("unit", 1), ("uint8", 255)):
            features = extract(source, lambda x: x.flatten(1).float(), batch=2, takes=takes)
            assert torch.equal(features.all(), white * expected), (notes, takes)
            assert features.all().shape == (3, 2)
            assert features.notes == notes
    assert torch.equal(extract([bits * 3, bits], nn.Flatten()).all()[3:], expected / 255)
    for mixed in ([bits, bits * 255], torch.cat([bits, bits * 255])):
        with pytest.raises(ValueError, match="give all in one scale"):
            extract(mixed, nn.Flatten()).all()


def test_only_the_distance_of_fids_network_is_called_fid() -> None:
    names = [distance_name(extractor) for extractor in (None, flat, Probe())]
    assert names == ["FD", "FD(flat)", "FD(Probe)"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_extraction_follows_the_module_to_its_device() -> None:
    probe = Probe().cuda()
    features = extract(pictures(6), probe, batch=4).all()
    assert features.is_cuda
    expected = extract(pictures(6), probe.cpu()).all()
    torch.testing.assert_close(features.cpu(), expected, rtol=1e-5, atol=1e-5)
