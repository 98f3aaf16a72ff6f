"""What a run says about its data; a field out of range is a ValueError that names it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from fastlatent.files.image_files import BACKGROUND, check_background
from fastlatent.jobs.naming import setting

EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
DOWNLOADABLE = ("mnist", "fashion", "kmnist", "emnist", "svhn", "cifar10", "celeba")
BINARY_SIZES = {"static-mnist": (28, 32), "multi-dsprites": (64,), "multi-mnist": (64,)}
OWN = ("folder", "npz", "h5")
KINDS = ("digits", *DOWNLOADABLE, *BINARY_SIZES, *OWN)
KNOWN = (
    "digits, mnist, fashion, kmnist, emnist, emnist:SPLIT, static-mnist, svhn, cifar10, celeba, "
    "celeba:valid, celeba:random, multi-dsprites, multi-mnist, folder:PATH, npz:PATH, h5:PATH"
)

Resident = Literal["auto", "device", "stream"]


@dataclass(frozen=True)
class DataConfig:
    """Which images to use and how to serve them."""

    name: str = "digits"
    """Data set: digits, mnist, fashion, kmnist, emnist (balanced) or emnist:SPLIT, static-mnist,
    svhn, cifar10, celeba, multi-dsprites, multi-mnist, folder:PATH, npz:PATH or h5:PATH.
    celeba:valid tests on the validation images. celeba:random tests on 20,000 of all images, drawn
    by --data.split-seed."""
    root: Path | None = None
    """Folder that holds the data sets; default: the environment variable FASTLATENT_DATA."""
    size: int | None = None
    """Side of the square image the model sees; default: the data set's own size."""
    classes: tuple[int, ...] = ()
    """Keep only images with these labels; default: all."""
    per_class: int | None = None
    """Training images of each label, at most: the first in file order."""
    validation: int = 0
    """Training images to set apart, drawn by --data.split-seed. Training measures its progress on
    these. The test images are measured only at its end."""
    split_seed: int = 0
    """Seed of the images that are set apart."""
    crop: int | None = None
    """Side of a centre crop taken before resizing; default: resize the shorter side, then crop."""
    background: str = BACKGROUND
    """Colour behind transparent pixels of image files: white, black or #rrggbb."""
    resident: Resident = "auto"
    """device: uint8 images are kept on the device; stream: worker processes read them; auto: by
    size."""
    workers: int = 2
    """Worker processes that read a streamed data set."""
    download: bool = False
    """Let torchvision download missing files into the root."""

    def __post_init__(self) -> None:
        # A configuration read back from JSON brings lists and strings.
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root))
        _check_name(self.name)
        for field in ("size", "per_class", "crop"):
            value = getattr(self, field)
            if value is not None and not _is_integer(value, at_least=1):
                raise ValueError(
                    f"{setting(f'data.{field}')} must be a positive integer; got {value!r}"
                )
        for field in ("workers", "validation", "split_seed"):
            value = getattr(self, field)
            if not _is_integer(value, at_least=0):
                raise ValueError(
                    f"{setting(f'data.{field}')} must be an integer from 0 up; got {value!r}"
                )
        if not all(_is_integer(label, at_least=0) for label in self.classes):
            raise ValueError(
                f"{setting('data.classes')} must hold labels from 0 up; got {self.classes!r}"
            )
        check_background(setting("data.background"), self.background)
        if self.resident not in get_args(Resident):
            raise ValueError(
                f"{setting('data.resident')} must be auto, device or stream; got {self.resident!r}"
            )
        if self.kind in BINARY_SIZES:
            # Any other size would turn its 0s and 1s into greys.
            sizes = BINARY_SIZES[self.kind]
            if self.size not in (None, *sizes):
                listed = " or ".join(map(str, sizes))
                raise ValueError(
                    f"{setting('data.size')} of {self.kind} must be {listed}; got {self.size}"
                )
            if self.crop is not None:
                raise ValueError(f"{setting('data.crop')} does not apply to {self.kind}")
        if self.download and self.kind not in DOWNLOADABLE:
            raise ValueError(
                f"{setting('data.download')} works for {', '.join(DOWNLOADABLE)}; got {self.name!r}"
            )

    @property
    def short(self) -> str:
        """The name without the folders that a path lies in, which may tell whose it is."""
        if self.kind in OWN:
            return f"{self.kind}:{Path(self.detail).name}"
        return self.name

    @property
    def kind(self) -> str:
        """The name up to its colon: `folder` of `folder:PATH`."""
        return self.name.partition(":")[0]

    @property
    def detail(self) -> str:
        """The name after its colon: `PATH` of `folder:PATH`; empty without one."""
        return self.name.partition(":")[2]


def with_absolute_paths(config: DataConfig) -> DataConfig:
    """The same data by paths that hold wherever they are read from."""
    if config.kind in OWN:
        config = replace(
            config, name=f"{config.kind}:{Path(config.detail).expanduser().absolute()}"
        )
    if config.root is not None:
        config = replace(config, root=config.root.expanduser().absolute())
    return config


def moved_to(config: DataConfig, root: Path) -> DataConfig:
    """The same data below another folder: for own images what the path's last part names there.

    Where that part does not exist below it, `root` is taken for the images' own new place.
    """
    root = root.expanduser()
    if config.kind not in OWN:
        return replace(config, root=root)
    place = root / Path(config.detail).name
    return replace(config, name=f"{config.kind}:{(place if place.exists() else root).absolute()}")


def _check_name(name: str) -> None:
    kind, colon, detail = name.partition(":")
    if kind == "emnist" and colon:
        known = detail in EMNIST_SPLITS
    elif kind == "celeba" and colon:
        known = detail in ("valid", "random")
    elif kind in OWN:
        known = bool(detail)
    else:
        known = name in ("digits", *BINARY_SIZES, *DOWNLOADABLE)
    if not known:
        splits = f" (SPLIT: {', '.join(EMNIST_SPLITS)})" if kind == "emnist" else ""
        raise ValueError(f"{setting('data.name')} must be one of {KNOWN}{splits}; got {name!r}")


def _is_integer(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
