"""One reader of image files and folders, for data sets and for measures."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastlatent.data import DataConfig, load
from fastlatent.files.image_files import SUFFIXES, decode, read_header
from fastlatent.files.image_folders import find_images, survey
from fastlatent.metrics.features import extract


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def noise(k: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, shape, np.uint8)


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


# Which files


def test_image_files_of_bits_in_bytes_are_told_of(tmp_path: Path) -> None:
    bits = np.eye(4, dtype=np.uint8)
    for name, white in (("dark", 1), ("white", 255), ("grey", 2)):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.fromarray(bits * np.uint8(white)).save(tmp_path / name / f"{k}.png")
        told = any(
            "all but black" in note for note in survey(list((tmp_path / name).iterdir())).notes
        )
        assert told == (white == 1)


def test_data_sets_and_measures_find_the_same_files(tmp_path: Path) -> None:
    forms = {".apng": "PNG", ".pbm": "PPM", ".pnm": "PPM", ".jfif": "JPEG", ".jpe": "JPEG"}
    forms |= {".gif": "GIF", ".tif": "TIFF", ".webp": "WEBP", ".PNG": "PNG"}
    names = sorted(SUFFIXES | {".PNG"})
    for k, suffix in enumerate(names):
        form = forms.get(suffix, {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix))
        write(tmp_path / f"{k:02}{suffix}", noise(k, 5, 5), format=form)
    (tmp_path / "99.png").symlink_to(write(tmp_path.parent / "elsewhere.png", noise(99, 5, 5)))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b.JSON").write_text("{}")
    (tmp_path / ".DS_Store").write_text("")
    count = len(names) + 1
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert len(data.train) + len(data.test) == count
    measured = extract(tmp_path, flat)
    assert measured.count == count
    assert data.notes == measured.notes
    (said,) = data.notes
    assert said == f"left out of {tmp_path}: other files (2: .json 1, .txt 1); hidden entries (1)"
    paths = find_images(tmp_path)[0].paths
    read = torch.stack([decode(path, 1) for path in paths])
    assert torch.equal(measured.all(), flat(read / 255))


@pytest.mark.parametrize(
    ("link", "target"), [("a/up", ".."), ("self", "."), ("b", "a"), ("a/in/root", "../../../..")]
)
def test_a_folder_is_read_once_whatever_links_to_it(tmp_path: Path, link, target) -> None:
    root = tmp_path / "images"
    (root / "a/in").mkdir(parents=True)
    for k in range(21):
        write(root / f"a/{k:02}.png", noise(k, 4, 4))
    (root / link).symlink_to(target)
    data = load(DataConfig(name=f"folder:{root}"))
    assert (len(data.train), len(data.test)) == (18, 3)
    assert data.label_names == ("a",)
    (said,) = data.notes
    assert "links to folders that are read already (1)" in said
    assert extract(root, flat).count == 21


def test_linked_folders_are_read_and_real_ones_keep_their_place(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("x", "y"):
        for k in range(2):
            write(outside / name / f"{k}.png", noise(k, 4, 4))
    root = tmp_path / "images"
    root.mkdir()
    (root / "c").symlink_to(outside / "x")
    (root / "d").symlink_to(outside / "x")  # the same again
    write(root / "z/0.png", noise(5, 4, 4))
    (root / "b").symlink_to("z")  # before z in order, and yet z keeps its name
    assert [str(path.relative_to(root)) for path in find_images(root)[0].paths] == [
        "c/0.png",
        "c/1.png",
        "z/0.png",
    ]


def test_links_carry_no_test_images_into_the_training_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for k in range(3):
            write(tmp_path / split / "c" / f"{k}.png", noise(k, 4, 4))
    (tmp_path / "train/more").symlink_to("../test")
    (tmp_path / "train/c/more").symlink_to("../../test/c")
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert (len(data.train), len(data.test)) == (3, 3)
    # Test images that are meant to be the training images are.
    for path in (tmp_path / "test/c").iterdir():
        path.unlink()
    (tmp_path / "test/c").rmdir()
    (tmp_path / "test").rmdir()
    (tmp_path / "test").symlink_to("train")
    data = load(DataConfig(name=f"folder:{tmp_path}"))
    assert (len(data.train), len(data.test)) == (3, 3)


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"{k}.png", noise(k, 4, 4))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "ring.png").symlink_to("ring.png")
    (found,) = find_images(tmp_path)
    assert [path.name for path in found.paths] == ["0.png", "1.png"]
    assert "entries that are no regular files (3)" in found.left_out
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match=f"{path} is not a regular file"):
            decode(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_folders_of_the_kernel_end_in_a_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^/proc/self holds no image files; left out of"):
        load(DataConfig(name="folder:/proc/self"))


# What a file holds


def png(colour: int, bits: int, pixel: bytes, width: int = 4) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    rows = (b"\0" + pixel * width) * width
    head = struct.pack(">IIBBBBB", width, width, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


WIDE = {
    "grey.png": png(0, 16, bytes(2)),
    "colour.png": png(2, 16, bytes(6)),
    "alpha.png": png(6, 16, bytes(8)),
    "greyalpha.png": png(4, 16, bytes(4)),
    "binary.ppm": b"P6 2 2 65535\n" + bytes(24),
    "text.ppm": b"P3 1 1 1023\n1 2 3\n",
    "grey.pgm": b"P5 2 2 65535\n" + bytes(8),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_than_8_bits_are_refused_in_grey_and_in_colour(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WIDE[name])
    for read in (decode, read_header):
        with pytest.raises(ValueError, match=f"{name} has more than 8 bits a channel"):
            read(tmp_path / name)


def test_16_bit_colours_of_tiff_are_refused(tmp_path: Path) -> None:
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 32), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHII", tag, kind, count, value)
    body = bytes(24) + struct.pack("<3H", 16, 16, 16) + directory + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 38) + body)
    with pytest.raises(ValueError, match=r"a.tif has more than 8 bits a channel"):
        decode(tmp_path / "a.tif")


def test_8_bits_and_fewer_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 8, bytes((9, 8, 7))))
    assert decode(tmp_path / "a.png")[:, 0, 0].tolist() == [9, 8, 7]
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 100\n" + bytes((100, 50, 0)))
    assert decode(tmp_path / "a.ppm").flatten().tolist() == [255, 128, 0]
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 0, 4, 0, 0, 0, 0)  # BMP of 5, 5 and 5 bits
    file = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + head + struct.pack("<HH", 0x7FFF, 0)
    (tmp_path / "a.bmp").write_bytes(file)
    assert decode(tmp_path / "a.bmp")[0].tolist() == [[255, 0]]


def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    stored = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stored, "ICO")
    (tmp_path / "b.jpg").write_bytes(stored.getvalue())
    for name in ("a.png", "b.jpg"):
        with pytest.raises(ValueError, match=f"{name} is not a readable image: it is none of BMP,"):
            decode(tmp_path / name)
    write(tmp_path / "c.jpg", noise(0, 4, 4), format="PNG")
    assert np.array_equal(decode(tmp_path / "c.jpg")[0], noise(0, 4, 4))


@pytest.mark.parametrize("form", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_upright(tmp_path: Path, form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    path = write(tmp_path / f"a.{form}", noise(turn, 6, 10, 3), exif=exif)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(path).permute(1, 2, 0), upright)
    header = read_header(path)
    assert header.size == upright.shape[:2] == ((10, 6) if turn > 4 else (6, 10))
    assert header.turned == (turn > 1)


def icon(mode: str) -> Image.Image:
    """Black, and opaque at the centre alone: its shape is in its alpha."""
    pixels = np.zeros((3, 3, 4), np.uint8)
    pixels[1, 1, 3] = 255
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        image.putdata([1, 1, 1, 1, 0, 1, 1, 1, 1])
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.info["transparency"] = 1
    return image if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(
    ("background", "ground"),
    [(None, (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48))],
)
def test_transparent_pixels_are_laid_on_the_background(
    tmp_path: Path, mode: str, background: str | None, ground: tuple[int, ...]
) -> None:
    for k in range(2):
        icon(mode).save(tmp_path / f"{k}.png")
    options = {} if background is None else {"background": background}
    pixels = decode(tmp_path / "0.png", 3, **options)
    assert pixels[:, 1, 1].tolist() == [0, 0, 0]
    assert (pixels.flatten(1)[:, :4] == torch.tensor(ground)[:, None]).all()
    data = load(DataConfig(name=f"folder:{tmp_path}", **options))
    grey = mode == "LA" and len(set(ground)) == 1
    assert torch.equal(data.test.images(torch.tensor([0]))[0], pixels[:1] if grey else pixels)
    said = f"have an alpha channel and are laid on {background or 'white'}"
    assert data.notes == [f"{split} split, 1 of 1 images {said}" for split in ("train", "test")]
    measured = extract(tmp_path, flat, channels=3, **options)
    assert torch.equal(measured.all()[0], flat(pixels[None] / 255)[0])
    assert measured.notes == [f"{tmp_path}, 2 of 2 images {said}"]


def test_half_transparent_pixels_are_mixed_and_opaque_ones_kept(tmp_path: Path) -> None:
    pixels = noise(3, 8, 8, 4)
    pixels[:4, :, 3], pixels[4:, :, 3] = 255, 128
    found = decode(write(tmp_path / "a.png", pixels), background="#ff0000").permute(1, 2, 0).numpy()
    assert np.array_equal(found[:4], pixels[:4, :, :3])
    mixed = pixels[4:, :, :3] * (128 / 255) + np.array([255, 0, 0]) * (127 / 255)
    assert np.abs(found[4:] - mixed).max() <= 1
    with pytest.raises(
        ValueError, match=r"data.background must be white, black or #rrggbb; got 'b"
    ):
        DataConfig(background="blue")
    with pytest.raises(ValueError, match=r"extract: background must be white, black"):
        extract(tmp_path, flat, background="#12345")


@pytest.mark.parametrize("form", ["gif", "webp", "apng", "tif"])
def test_the_first_picture_of_an_animation_is_read_and_said(tmp_path: Path, form: str) -> None:
    frames = [Image.fromarray(noise(k, 6, 6)) for k in range(3)]
    options = {"format": "PNG"} if form == "apng" else {}
    options |= {"lossless": True} if form == "webp" else {}
    for k in range(2):
        frames[0].save(tmp_path / f"{k}.{form}", save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(tmp_path / f"0.{form}")[0], noise(0, 6, 6))
    notes = load(DataConfig(name=f"folder:{tmp_path}")).notes
    notes += extract(tmp_path, flat).notes
    assert sum("are animations, of which the first picture is read" in note for note in notes) == 3


def test_grey_in_other_modes_is_grey_where_grey_is_asked_for(tmp_path: Path) -> None:
    grey = noise(0, 6, 6)
    write(tmp_path / "0.png", np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).convert("P").save(tmp_path / "1.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "2.png")
    for k in range(3):
        assert np.array_equal(decode(tmp_path / f"{k}.png", 1), grey[None])
        assert np.array_equal(decode(tmp_path / f"{k}.png"), np.repeat(grey[None], 3, 0))
    assert survey([tmp_path / "1.png"]).channels == 3
    write(tmp_path / "3.png", noise(0, 6, 6, 3))
    with pytest.raises(ValueError, match=r"3.png is a colour image among grey ones"):
        survey(sorted(tmp_path.iterdir()), channels=1)


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_faults_are_found_before_the_first_batch(tmp_path: Path, resident: str) -> None:
    for k in range(12):
        write(tmp_path / f"{k:02}.png", noise(k, 9, 9))
    config = DataConfig(name=f"folder:{tmp_path}", resident=resident)
    faults = {
        "07.png is 4x9 where .*0[01].png is 9x9": noise(0, 4, 9),
        "07.png is a colour image among grey ones": noise(0, 9, 9, 3),
        "07.png has more than 8 bits": noise(0, 9, 9).astype(np.uint16),
    }
    for message, pixels in faults.items():
        write(tmp_path / "07.png", pixels)
        with pytest.raises(ValueError, match=message):
            load(config)
        with pytest.raises(ValueError):
            extract(tmp_path, flat)
    (tmp_path / "07.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"07.png is not a readable image"):
        load(config)


def test_names_reach_a_terminal_as_text(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\x9b\udcff"
    code = (
        "from fastlatent.commands.console import command\n"
        "from fastlatent.jobs.progress import say\n"
        "def main(argv):\n"
        "    say(argv[0] + ' ±')\n"
        "    raise ValueError(argv[0])\n"
        "command(main)(['a' + NAME])\n"
    ).replace("NAME", ascii(name))
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert run.stdout.decode() == "a\\x1b]0;owned\\x07\\x9b\\udcff ±\n"
    assert run.stderr.decode() == "error: a\\x1b]0;owned\\x07\\x9b\\udcff\n"
