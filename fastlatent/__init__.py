"""Fast latent-variable models in PyTorch, on custom C++, CUDA and Triton kernels."""

import importlib
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlatent import data as data
    from fastlatent import geometry as geometry
    from fastlatent import metrics as metrics
    from fastlatent import models as models
    from fastlatent import nn as nn
    from fastlatent import ops as ops
    from fastlatent import paths as paths
    from fastlatent import priors as priors
    from fastlatent.models import AutoEncoder as AutoEncoder
    from fastlatent.patches import patch as patch
    from fastlatent.runs.trained import load as load
    from fastlatent.training.start import train as train

__version__ = "0.1.0"

# What `import fastlatent` alone offers, imported when it is first used; `train` is the command's
# module, which can be called.
MODULES = ("data", "geometry", "metrics", "models", "nn", "ops", "paths", "priors", "train")
FUNCTIONS = {
    "AutoEncoder": "fastlatent.models",
    "load": "fastlatent.runs.trained",
    "patch": "fastlatent.patches",
}


def _spoken(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


if sys.argv[:1] == ["-m"]:  # python -m fastlatent.WORD, whose imports take seconds
    sys.excepthook = _spoken
    if "fastlatent" not in sys.orig_argv:  # which begins without them
        importlib.import_module("fastlatent.jobs.loading").say_loading()


def __getattr__(name: str) -> Any:
    # On demand: whoever wants one op, or one command's help, need not wait for torch.
    if name in MODULES:
        return importlib.import_module(f"fastlatent.{name}")
    if name in FUNCTIONS:
        return getattr(importlib.import_module(FUNCTIONS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *MODULES, *FUNCTIONS]
