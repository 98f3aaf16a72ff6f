"""Where to compute."""

from typing import Literal

import torch

from fastlatent.jobs.errors import RunError

Device = Literal["auto", "cpu", "cuda"]


def choose_device(device: Device) -> torch.device:
    """The device to compute on; RunError when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RunError("--device cuda was asked for, but PyTorch sees no CUDA GPU here")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
