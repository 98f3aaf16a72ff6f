"""Networks for features: Inception of the published FID, DINOv2 from files."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastlatent.metrics.features import (
    dinov2,
    distance_name,
    extract,
    inception,
    inception_v3,
    to_uint8,
    to_unit,
)

# Inception of the published FID


@pytest.fixture(scope="module")
def port():
    return pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")


@pytest.fixture(scope="module")
def weights(port, tmp_path_factory) -> Path:
    """Random weights of FID's network, as pytorch-fid's file has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.Inception3(
            num_classes=1008, aux_logits=False, init_weights=False
        )
        state = network.state_dict()
        # Batch norm unlike the identity, and signals that live until the last layer.
        for name, value in state.items():
            if value.dim() == 4:
                nn.init.kaiming_normal_(value)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif value.is_floating_point():
                value.uniform_(0.8, 1.2)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@torch.no_grad()
def test_inception_is_pytorch_fids(port, weights: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        port, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True)
    )
    theirs = port.InceptionV3([3]).eval()
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(5))
    expected = theirs(images)[0][:, :, 0, 0]
    assert expected.shape == (2, 2048) and expected.std(0).median() > 0
    ours = inception(weights, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert torch.equal(ours(images), expected)
    eight = to_uint8(images)
    assert torch.equal(ours(eight), theirs(eight.float() / 255)[0].flatten(1))
    grey = images[:, :1]
    assert torch.equal(ours(grey), ours(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(extract(images, ours).all(), expected)
    assert distance_name(ours) == "FD(inception)"


def test_inception_checks_its_weights(port, weights: Path, tmp_path: Path) -> None:
    fetch = port.load_state_dict_from_url
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{weights} has the SHA-256 {found}, expected 6726825d0a"):
        inception(weights)
    with pytest.raises(FileNotFoundError, match=f"no file of weights {tmp_path}/none.pth"):
        inception(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"bad.pth cannot be read as weights: "):
        inception(tmp_path / "bad.pth", sha256=None)
    for other in ({"a": torch.ones(1)}, [1, 2]):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(
            ValueError, match=r"other.pth does not hold the weights of FID's network"
        ):
            inception(tmp_path / "other.pth", sha256=None)
    assert port.load_state_dict_from_url is fetch


def test_inception_downloads_once_and_checks(port, weights: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    source = tmp_path / "published.pth"
    monkeypatch.setattr(inception_v3, "WEIGHTS_URL", source.as_uri())
    with pytest.raises(ConnectionError, match=r"cannot download file.*published.pth .*give its pa"):
        inception()
    source.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"published.pth came damaged: invalid hash value"):
        inception()
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    source.write_bytes(weights.read_bytes())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_v3, "WEIGHTS_SHA256", digest)
    model = inception(sha256=digest)
    assert distance_name(model) == "FID"
    source.unlink()
    again = inception(sha256=digest)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_inception_needs_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_fid", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastlatent\[inception\]'"):
        inception()


# DINOv2 from files


class Small(nn.Module):
    """Takes the place of a network of 224x224 images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 16, 16)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.patches(x)).mean((2, 3))


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


HUB = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.dropout = nn.Conv2d(3, 6, 16, 16), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.patches(x)).mean((2, 3))

def small(pretrained=True):
    assert not pretrained
    return Small()
"""


@pytest.mark.parametrize("form", ["torchscript", "export", "repository"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_dinov2_prepares_images_for_any_file(small: Small, tmp_path: Path, form: str) -> None:
    if form == "torchscript":
        torch.jit.trace(small.train(False), torch.rand(2, 3, 224, 224)).save(tmp_path / "m.pt")
        model = dinov2(tmp_path / "m.pt", trust_code=True)
    elif form == "export":
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.export.export(small, (torch.rand(2, 3, 224, 224),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "m.pt2")
        model = dinov2(tmp_path / "m.pt2", trust_code=True)
    else:
        (tmp_path / "hubconf.py").write_text(HUB)
        torch.save(small.state_dict(), tmp_path / "m.pth")
        model = dinov2(tmp_path, "small", tmp_path / "m.pth")
    images = torch.rand(3, 3, 40, 30, generator=torch.Generator().manual_seed(2))
    scaled = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = small((scaled - mean[:, None, None]) / deviation[:, None, None])
    torch.testing.assert_close(extract(images, model).all(), expected)
    assert distance_name(model) == "FD(dinov2)"
    eight = to_uint8(images)
    torch.testing.assert_close(model(eight), model(to_unit(eight)))
    grey = images[:, :1]
    torch.testing.assert_close(model(grey), model(grey.expand(-1, 3, -1, -1)))
    exact = torch.rand(1, 3, 224, 224)
    direct = small((exact - mean[:, None, None]) / deviation[:, None, None])
    torch.testing.assert_close(model(exact), direct)


def test_dinov2_says_what_is_wrong(small: Small, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file or folder {tmp_path}/none"):
        dinov2(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no hubconf.py"):
        dinov2(tmp_path, "small", tmp_path / "m.pth")
    (tmp_path / "hubconf.py").write_text(HUB)
    with pytest.raises(ValueError, match="is a repository: give the name of its network and its"):
        dinov2(tmp_path, "small")
    with pytest.raises(FileNotFoundError, match=f"no file of weights {tmp_path}/m.pth"):
        dinov2(tmp_path, "small", tmp_path / "m.pth")
    torch.save(small.state_dict(), tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"cannot load large of .*: Cannot find callable large"):
        dinov2(tmp_path, "large", tmp_path / "m.pth")
    with pytest.raises(ValueError, match="name and weights go with a folder"):
        dinov2(tmp_path / "m.pth", "small")
    with pytest.raises(ValueError, match=r"m.pth cannot be loaded"):
        dinov2(tmp_path / "m.pth", trust_code=True)
    with pytest.raises(ValueError, match="neither TorchScript nor an exported program"):
        dinov2(tmp_path / "hubconf.py")
