"""The network of the published FID: Inception v3 of TensorFlow, in pytorch-fid's port."""

import hashlib
import os
import threading
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from fastlatent.files.reading import read_checkpoint
from fastlatent.jobs.naming import setting
from fastlatent.metrics.features.images import check_images, to_unit

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048
_BUILDING = threading.Lock()


class Inception(nn.Module):
    """pytorch-fid's network: images (n, 1 or 3, h, w) in [0, 1] or uint8 -> (n, 2048) float32.

    Images of any size are scaled to 299x299 bilinearly and without antialiasing, as pytorch-fid
    does; grey ones are repeated to three channels. The features are those of the last pooling.
    """

    def __init__(self, network: nn.Module, published: bool):
        super().__init__()
        self.network = network
        self.distance_name = "FID" if published else "FD(inception)"

    def forward(self, images: Tensor) -> Tensor:
        check_images("inception", images)
        (features,) = self.network(to_unit(images).float().expand(-1, 3, -1, -1))
        return features.flatten(1)


def inception(
    weights: Path | str | None = None, *, sha256: str | None = WEIGHTS_SHA256
) -> Inception:
    """The network of FID in evaluation mode, frozen; needs the extra `fastlatent[inception]`.

    `weights` is pytorch-fid's file; by default it is downloaded once (96 MB) to where PyTorch keeps
    such files (`torch.hub.get_dir()`). A file with another SHA-256 is an error: what it gives is
    not FID. `sha256=None` takes any file of that network's weights.

    Raises ModuleNotFoundError without the extra, FileNotFoundError, ValueError for another checksum
    or other weights, and ConnectionError where the download fails.
    """
    try:
        from pytorch_fid import inception as port
    except ImportError as error:
        raise ModuleNotFoundError(
            f"inception: {error}; install what it needs with: pip install 'fastlatent[inception]'"
        ) from None
    path = _downloaded() if weights is None else Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"inception: there is no file of weights {path}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(
            f"inception: {path} has the SHA-256 {found}, expected {sha256}: it is damaged or "
            "another file; sha256=None takes it as it is"
        )
    state = read_checkpoint(path, "weights")
    # The port fetches its weights while it is built, and takes no others.
    with _BUILDING:
        fetch = port.load_state_dict_from_url
        port.load_state_dict_from_url = lambda *_, **__: state
        try:
            network = port.InceptionV3()
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"inception: {path} does not hold the weights of FID's network: "
                + str(error).strip().splitlines()[0]
            ) from None
        finally:
            port.load_state_dict_from_url = fetch
    return Inception(network, found == WEIGHTS_SHA256).eval()


def _place() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", os.path.basename(WEIGHTS_URL))


def stored_weights() -> Path | None:
    """The file of weights that an earlier download has left; None where there is none."""
    path = _place()
    return path if path.is_file() else None


def _downloaded() -> Path:
    path = _place()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Written beside its place, moved there when its checksum is right.
            torch.hub.download_url_to_file(WEIGHTS_URL, str(path), hash_prefix=WEIGHTS_SHA256)
        except RuntimeError as error:
            raise ValueError(f"inception: {WEIGHTS_URL} came damaged: {error}") from None
        except (URLError, OSError) as error:
            raise ConnectionError(
                f"inception: cannot download {WEIGHTS_URL} ({error}); fetch it where there is a "
                f"network and give its path by {setting('feature_weights')}"
            ) from None
    return path
