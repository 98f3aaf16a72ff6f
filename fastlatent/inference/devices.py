"""Where to compute."""

from typing import Literal

import torch

from fastlatent.jobs.errors import RunError
from fastlatent.jobs.naming import setting

Device = Literal["auto", "cpu", "cuda"]


def choose_device(device: Device) -> torch.device:
    """The device to compute on; RunError when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RunError(f"{setting('device', 'cuda')} needs a CUDA GPU, and PyTorch sees none here")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def device_of(name: str, device: torch.device | str | None) -> torch.device:
    """The device that a function called `name` is given, by default the GPU if there is one.

    Raises ValueError where there is no such device, TypeError for what names none.
    """
    if device is None or device == "auto":
        return choose_device("auto")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(
            f"{name}: device must be such as 'cpu' or 'cuda'; got {type(device).__name__}"
        )
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name}: device must be one that is here; got {device}: {reason}"
        ) from None
    return found
