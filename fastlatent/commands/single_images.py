"""Images as files of their own, one folder for those of one call."""

from pathlib import Path

from torch import Tensor

from fastlatent.files.image_files import SUFFIXES
from fastlatent.jobs.progress import say
from fastlatent.plots import to_bytes

_HEAD = 256  # bytes of a PNG file within which its writer stands


class SingleImages:
    """PNGs 000000.png and so on in a folder, in the place of those of an earlier call.

    Each names the command that wrote it. Raises ValueError, before anything is written, where the
    folder holds images of another origin, which these would mix with.
    """

    def __init__(self, folder: Path, command: str):
        self.folder = folder.expanduser()
        self._writer = f"fastlatent {command}"
        text = b"Software\0" + self._writer.encode()
        self._chunk = len(text).to_bytes(4, "big") + b"tEXt" + text  # as a PNG file holds it
        self._earlier = self._written_before()
        self._count = 0

    def add(self, images: Tensor) -> None:
        """Write images (n, c, h, w) in [0, 1], at their own size, behind those written before."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        if self._count == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self._earlier:
                path.unlink()
        text = PngInfo()
        text.add_text("Software", self._writer)
        for number, pixels in enumerate(to_bytes(images), self._count):
            picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            picture.save(self.folder / f"{number:06}.png", pnginfo=text)
        self._count += len(images)

    def say(self, what: str = "single images") -> None:
        """Tell where they are, and how many they took the place of."""
        earlier = len(self._earlier)
        place = f", in place of {earlier:,} of an earlier call" if earlier else ""
        say(f"{what}: {self.folder}{place}")

    def _written_before(self) -> list[Path]:
        if not self.folder.exists():
            return []
        earlier = []
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            if not (path.stem.isdigit() and path.is_file() and self._is_own(path)):
                raise ValueError(
                    f"{self.folder} holds images that are not of {self._writer}, such as "
                    f"{path.name}; give --folder another folder, or empty it"
                )
            earlier.append(path)
        return earlier

    def _is_own(self, path: Path) -> bool:
        with path.open("rb") as file:
            return self._chunk in file.read(_HEAD)
