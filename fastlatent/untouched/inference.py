"""Searches by gradients for callers in inference mode, which records none."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference_mode(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with copies of tensors made in that mode, as gradients can't use these."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            args, kwargs = tree_map(_usable, (args, kwargs))
            return function(*args, **kwargs)

    return run


def _usable(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
