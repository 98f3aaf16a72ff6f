"""Weights of an original program under our names: every tensor taken over, none left."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_tensors(values: Any, what: str, prefix: str = "") -> None:
    """ValueError unless `values` is a state dictionary."""
    if not isinstance(values, Mapping):
        raise ValueError(f"convert_original: {what} must be a state dictionary")
    for name, tensor in values.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"convert_original: {prefix}{name} must be a tensor; got {type(tensor).__name__}"
            )


def rename(
    original: Mapping[str, Tensor],
    names: Mapping[str, str],  # our names to the original's
    expected: Mapping[str, Tensor],  # ours, of the shapes and types wanted; may be meta tensors
    model: str,  # in words, for messages
) -> dict[str, Tensor]:
    """Copies on the CPU under our names.

    Raises ValueError unless every tensor is there with its shape and none is left over.
    """
    left = set(original)
    weights: dict[str, Tensor] = {}
    for ours, like in expected.items():
        name = names[ours]
        if name not in left:
            raise ValueError(f"convert_original: the checkpoint lacks {name}")
        left.remove(name)
        tensor = original[name]
        if tensor.shape != like.shape:
            raise ValueError(
                f"convert_original: {name} must have shape {tuple(like.shape)} in {model}; "
                f"got {tuple(tensor.shape)}"
            )
        weights[ours] = tensor.detach().to("cpu", like.dtype, copy=True)
    if left:
        raise ValueError(
            f"convert_original: {min(left)} has no place in {model} ({len(left)} such tensors)"
        )
    return weights
