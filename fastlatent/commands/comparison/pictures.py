"""The pictures of a run, kept to the pixel and as small as that allows, to stand inside a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastlatent import plots
from fastlatent.commands.comparison.subject import Subject
from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say
from fastlatent.runs.folder import WEIGHT_FILES
from fastlatent.runs.trained import TrainedRun

if TYPE_CHECKING:
    from PIL import Image

KINDS = {
    "samples": "Samples",
    "reconstructions": "Reconstructions",
    "interpolation": "Interpolations",
}
SAMPLES = 64  # drawn for a run that holds no picture of any


@dataclass(frozen=True)
class Picture:
    """One picture as a data URI."""

    kind: str  # a key of KINDS
    caption: str  # what sets it apart from others of its kind
    uri: str
    size: tuple[int, int]  # pixels
    stored: int  # bytes of the PNG
    kept: int  # bytes, before they are written in letters

    @property
    def is_broad(self) -> bool:
        return self.size[0] > 2 * self.size[1]


def pictures_of(run: Subject) -> list[Picture]:
    """The newest pictures of each kind, and samples drawn anew where there are none.

    Raises RunError for a picture that cannot be read.
    """
    found = [_read(path, *described) for path, described in _chosen(run.run.images).items()]
    return found if any(picture.kind == "samples" for picture in found) else _drawn(run) + found


def _drawn(run: Subject) -> list[Picture]:
    """Samples as the run draws them by default; none where it cannot draw, which is said."""
    if not (run.run.path / WEIGHT_FILES["last"]).is_file():
        return []
    try:
        images = TrainedRun(run.run, "last", torch.device("cpu")).sample(SAMPLES)
    except (OSError, ValueError, RunError) as error:
        say(f"no samples of {run.label} are drawn: {error}")
        return []
    image = plots.samples(images, f"samples of {run.label}")
    content = _encoded(image, "PNG")
    return [_picture("samples", "drawn for this page", image, content)]


def _chosen(folder: Path) -> dict[Path, tuple[str, str]]:
    """The files to show, each with kind and caption.

    Where a run was stopped, its last pictures stand in for those that it draws at the end.
    """
    files = sorted(folder.glob("*.png")) if folder.is_dir() else []
    newest: dict[str, tuple[Path, str]] = {}
    for path in files:
        words = path.stem.split("-", 2)
        drawn = len(words) == 3 and words[0] == "step" and words[1].isdigit()
        if drawn:
            newest[words[2]] = (path, f"step {int(words[1]):,}")
    newest |= {path.stem: (path, "") for path in files if not path.stem.startswith("step-")}
    chosen: dict[Path, tuple[str, str]] = {}
    for kind in KINDS:
        for name in sorted(newest):
            if name == kind or name.startswith(f"{kind}-"):
                path, when = newest[name]
                variant = name.removeprefix(kind).strip("-").replace("-", " ")
                chosen[path] = (kind, ", ".join(filter(None, (variant, when))))
    return chosen


def _read(path: Path, kind: str, caption: str) -> Picture:
    from PIL import Image

    # Opening a pipe waits for its other end.
    if not path.is_file():
        raise RunError(f"{path} is damaged: it is no file")
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
            return _picture(kind, caption, image, content)
    except Exception:  # damage can end in any of them
        raise RunError(f"{path} is damaged: it is no picture that can be read") from None


def _picture(kind: str, caption: str, image: "Image.Image", content: bytes) -> Picture:
    small, form = smallest(image, content)
    return Picture(kind, caption, data_uri(small, form), image.size, len(content), len(small))


def smallest(image: "Image.Image", content: bytes) -> tuple[bytes, str]:
    """The shortest of some forms that keep every pixel: the file itself, WebP, PNG in grey."""
    from PIL import features

    forms: list[tuple[bytes, str]] = [(content, "png")]
    if image.mode == "RGB":
        red, green, blue = (channel.tobytes() for channel in image.split())
        if red == green == blue:
            forms.append((_encoded(image.getchannel(0), "PNG", optimize=True), "png"))
        if features.check("webp"):
            webp = _encoded(image, "WEBP", lossless=True, quality=100, method=4)
            forms.append((webp, "webp"))
    return min(forms, key=lambda form: len(form[0]))


def _encoded(image: "Image.Image", form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def data_uri(content: bytes, form: str) -> str:
    """The content as an address that needs no network."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def by_kind(runs: Sequence[Sequence[Picture]]) -> dict[str, list[list[Picture]]]:
    """For each kind that any run has, the pictures of each run."""
    rows = {kind: [[p for p in run if p.kind == kind] for run in runs] for kind in KINDS}
    return {kind: row for kind, row in rows.items() if any(row)}
