"""DINOv2, or another network of ImageNet's preprocessing, from files on this machine."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlatent.files.reading import looks_like, read_checkpoint, reading
from fastlatent.jobs.naming import setting
from fastlatent.metrics.features.images import check_images, resize, to_unit

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours of ImageNet


class DINOv2(nn.Module):
    """Images (n, 1 or 3, h, w) in [0, 1] or uint8 -> features (n, d) of the network.

    Images are scaled to 224x224, bicubic and antialiased, grey ones repeated to three channels, and
    normalised by the mean and deviation of ImageNet.
    """

    distance_name = "FD(dinov2)"
    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        check_images("dinov2", images)
        scaled = to_unit(resize(images, (SIDE, SIDE))).float().expand(-1, 3, -1, -1)
        return self.network((scaled - self.mean) / self.deviation)


def dinov2(
    path: Path | str,
    name: str | None = None,
    weights: Path | str | None = None,
    *,
    trust_code: bool = False,
) -> DINOv2:
    """A network from `path`, in evaluation mode and frozen; nothing is downloaded.

    `path` is a folder with a `hubconf.py`, such as a clone of facebookresearch/dinov2; `name` is
    its entry, such as "dinov2_vitl14", called with pretrained=False, and `weights` the file of its
    state dict. The folder's code runs. Or `path` is a file of TorchScript or of `torch.export`
    (with a dynamic batch); loading it can run any code, so it needs `trust_code`.

    Raises FileNotFoundError, and ValueError where the path holds no such network.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        network = _from_repository(path, name, weights)
    elif not path.is_file():
        raise FileNotFoundError(f"dinov2: there is no file or folder {path}")
    elif name is not None or weights is not None:
        raise ValueError(f"dinov2: name and weights go with a folder; {path} is a file")
    else:
        network = _from_file(path, trust_code)
    model = DINOv2(network)
    for part in model.modules():
        part.training = False
    return model.requires_grad_(False)


def _from_repository(folder: Path, name: str | None, weights: Path | str | None) -> nn.Module:
    if not (folder / "hubconf.py").is_file():
        raise ValueError(f"dinov2: {folder} has no hubconf.py")
    if name is None or weights is None:
        raise ValueError(
            f"dinov2: {folder} is a repository: give the name of its network and its weights"
        )
    weights = Path(weights).expanduser()
    if not weights.is_file():
        raise FileNotFoundError(f"dinov2: there is no file of weights {weights}")
    tensors = read_checkpoint(weights, "weights")
    try:
        network = torch.hub.load(str(folder), name, source="local", pretrained=False)
        network.load_state_dict(tensors)
    except Exception as error:  # the repository's own code ran
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"dinov2: cannot load {name} of {folder}: {reason[0]}") from None
    return network


def _from_file(path: Path, trust_code: bool) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"dinov2: {path} is neither TorchScript nor an exported program, but {looks_like(path)}"
        )
    if not trust_code:
        raise ValueError(
            f"dinov2: {path} holds a program, which can run any code when it is loaded; where you "
            f"trust it, say so by {setting('trust_feature_code', True, argument='trust_code')}"
        )
    with reading(path, "cannot be loaded as a network"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of TorchScript, which is to go
        with zipfile.ZipFile(path) as archive:
            scripted = any(entry.endswith("/constants.pkl") for entry in archive.namelist())
        if scripted:
            return torch.jit.load(str(path), map_location="cpu")
        return torch.export.load(str(path)).module()
