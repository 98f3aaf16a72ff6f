"""Folders of image files: which are found, which are left out, and what their headers tell."""

import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fastlatent.files.image_files import BACKGROUND, SUFFIXES, decode, read_header
from fastlatent.files.subset import spread

DECODED = 16  # files whose pixels are looked at
LOOKED_AT = 10_000  # files whose headers are read where not all need be
_HIDDEN = (".", "__MACOSX")
_KINDS_SHOWN = 5
Place = tuple[int, int | str]


class Found(NamedTuple):
    """The image files of a folder."""

    paths: list[Path]  # sorted
    left_out: str  # what is left out, in a sentence; empty where nothing is


class Survey(NamedTuple):
    """What the headers of image files tell of them all."""

    channels: int
    sizes: dict[tuple[int, int], Path]  # heights and widths, and the first file of each
    notes: list[str]  # what is done to some of the files, in sentences


def find_images(*folders: Path, recursive: bool = True) -> list[Found]:
    """The image files in each folder, or below it, by their suffixes.

    Links to files and folders are followed, but each folder is read once: as part of the one of
    `folders` that holds it, else of the first that links to it. Links to `folders` themselves and
    to folders around them are not followed. Hidden entries, files of other kinds, what is no
    regular file and folders that cannot be read are left out. All that is left out is counted.

    Raises OSError where one of `folders` cannot be read.
    """
    if len({_place(folder) for folder in folders}) < len(folders):
        return [find_images(folder, recursive=recursive)[0] for folder in folders]
    walks = [_Walk(folder) for folder in folders]
    if recursive:
        whole = [Path(os.path.realpath(folder)) for folder in folders]
        seen = {_place(place) for folder in whole for place in (folder, *folder.parents)}
        # Links last: a folder that is also linked to keeps its own place.
        for links in (False, True):
            for walk in walks:
                walk.descend(seen, links)
    return [Found(sorted(walk.paths), walk.left_out()) for walk in walks]


class _Walk:
    """What was found below one folder, and which folders remain to be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths: list[Path] = []
        self._inner: deque[str] = deque()
        self._links: deque[str] = deque()
        self._kinds: Counter[str] = Counter()  # suffixes of other files
        self._left: Counter[str] = Counter()
        self._read(folder)

    def descend(self, seen: set[Place], links: bool) -> None:
        """Read the folders below, with or without linked ones, but for places seen before."""
        while self._inner or (links and self._links):
            folder = (self._inner or self._links).popleft()
            try:
                place = _place(folder)
                if place in seen:
                    self._left["links to folders that are read already"] += 1
                else:
                    seen.add(place)
                    self._read(folder)
            except OSError:
                self._left["folders that cannot be read"] += 1

    def left_out(self) -> str:
        """A sentence on what was left out."""
        parts = []
        if self._kinds:
            shown = [f"{kind} {count:,}" for kind, count in self._kinds.most_common(_KINDS_SHOWN)]
            more = ["..."] * (len(self._kinds) > _KINDS_SHOWN)
            listed = ", ".join(shown + more)
            parts.append(f"other files ({self._kinds.total():,}: {listed})")
        below = len(self._inner) + len(self._links)
        left = sorted(self._left.items()) + [("folders", below)] * (below > 0)
        parts += [f"{what} ({count:,})" for what, count in left]
        return f"left out of {self.folder}: {'; '.join(parts)}" if parts else ""

    def _read(self, folder: Path | str) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(_HIDDEN):
                    self._left["hidden entries"] += 1
                elif _is(entry, "is_dir"):
                    (self._links if entry.is_symlink() else self._inner).append(entry.path)
                elif not _is(entry, "is_file"):
                    self._left["entries that are no regular files"] += 1
                elif Path(entry.name).suffix.lower() in SUFFIXES:
                    self.paths.append(Path(entry.path))
                else:
                    self._kinds[Path(entry.name).suffix.lower() or "without a suffix"] += 1


def _is(entry: "os.DirEntry[str]", question: str) -> bool:
    # A link to itself answers by an error.
    try:
        return bool(getattr(entry, question)())
    except OSError:
        return False


def _place(folder: Path | str) -> Place:
    """What is the same for all names of a folder: device and inode, where there are inodes."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino or os.path.realpath(folder)


def survey(
    paths: Sequence[Path | str],
    channels: int | None = None,  # None: as the first file has them
    background: str = BACKGROUND,
    every: bool = True,  # read all headers; else at most LOOKED_AT, evenly spread
) -> Survey:
    """What image files have in common, before they are used: nothing is found out halfway.

    Raises FileNotFoundError, and ValueError, naming the file, where one is no 8-bit image;
    ColourError where one has colours and the others are to be grey.
    """
    looked = [paths[k] for k in spread(len(paths), None if every else LOOKED_AT).tolist()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(lambda path: read_header(path, background), looked))
        if channels is None:
            channels = 1 if headers[0].grey else 3
        if channels == 1:
            # Colours may be greys all the same, which only the pixels tell.
            stored = zip(looked, headers, strict=True)
            coloured = [path for path, header in stored if not header.grey]
            for _ in pool.map(lambda path: decode(path, 1, background).shape, coloured):
                pass
    sizes: dict[tuple[int, int], Path] = {}
    for path, header in zip(looked, headers, strict=True):
        sizes.setdefault(header.size, Path(path))
    treated = {
        f"have an alpha channel and are laid on {background}": sum(h.transparent for h in headers),
        "are turned upright, as their EXIF orientation says": sum(h.turned for h in headers),
        "are animations, of which the first picture is read": sum(h.animated for h in headers),
    }
    notes = [f"{n:,} of {len(looked):,} images {what}" for what, n in treated.items() if n]
    some = [looked[k] for k in spread(len(looked), DECODED).tolist()]
    if _brightest(some, background) == 1:
        notes.append(
            "pixels are 0 and 1 of 255, all but black; where they are bits, store 255 for 1"
        )
    return Survey(channels, sizes, notes)


def _brightest(paths: Sequence[Path | str], background: str) -> int:
    """The greatest value in image files, up to the first that is above 1 or cannot be read."""
    brightest = 0
    for path in paths:
        try:
            brightest = max(brightest, int(decode(path, background=background).max()))
        except (OSError, ValueError):  # told of where the file is used
            return 255
        if brightest > 1:
            break
    return brightest
