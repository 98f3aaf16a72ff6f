"""What an exact resume needs beside the weights, taken apart into tensors and JSON."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from fastlatent.runs.log import is_number


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors named "parameter/quantity", and the rest as JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, quantities in state["state"].items():
        for name, value in quantities.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


# What a checkpoint's values must be for a run to go on from it.
NEEDED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "images": ("a whole number from 1 up", lambda x: type(x) is int and x >= 1),
    "metrics_bytes": ("a whole number from 0 up", lambda x: type(x) is int and x >= 0),
    "test_loss": ("a number or null", lambda x: x is None or is_number(x)),
    "best": (
        "a step and a loss, or null",
        lambda x: x is None or (isinstance(x, list) and len(x) == 2 and all(map(is_number, x))),
    ),
    "optimizer": ("an object", lambda x: isinstance(x, dict) and {"groups", "numbers"} <= x.keys()),
    "scaler": ("an object or null", lambda x: x is None or isinstance(x, dict)),
    "averaged": ("a whole number or null", lambda x: x is None or type(x) is int),
    "skipped_in_a_row": ("a whole number from 0 up", lambda x: type(x) is int and x >= 0),
    "ranks": (
        "a list of objects",
        lambda x: isinstance(x, list) and bool(x) and all(isinstance(one, dict) for one in x),
    ),
}


def check_values(values: dict[str, Any]) -> None:
    """ValueError where a run could not go on from these values of a checkpoint."""
    for name, (expected, is_right) in NEEDED.items():
        if name not in values or not is_right(values[name]):
            found = repr(values[name])[:100] if name in values else "nothing"
            raise ValueError(f"{name} must be {expected}; got {found}")


def unpack_optimizer(
    optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Put back what `pack_optimizer` took; the settings (lr, ...) stay as `optimizer` has them."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, quantities in values["numbers"].items():
        state.setdefault(int(index), {}).update(quantities)
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        like = parameters[int(index)] if int(index) < len(parameters) else None
        if like is None or tensor.shape not in (like.shape, torch.Size()):
            raise ValueError(
                f"the saved optimizer state belongs to another model: {key} is of shape "
                f"{tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"the saved optimizer state is damaged: {key} is NaN or infinite")
        if tensor.shape == like.shape:
            # The file has lost the strides; with others than its parameter's, the step would take
            # another path through the kernels.
            tensor = torch.empty_like(like, dtype=tensor.dtype, device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    saved = [group["params"] for group in values["groups"]]
    if saved != [group["params"] for group in groups]:
        raise ValueError("the saved optimizer state belongs to another model")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def pack_generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of the global random generators of this process."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [kind, position, has_gauss, cached],
    }


def unpack_generators(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `pack_generators` took."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = values["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
