"""Fast latent-variable models in PyTorch, on custom C++, CUDA and Triton kernels."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlatent.patches import patch as patch

__version__ = "0.1.0"


def _spoken(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


if sys.argv[:1] == ["-m"]:  # python -m fastlatent.WORD, whose imports take seconds
    sys.excepthook = _spoken


def __getattr__(name: str) -> Any:
    # On demand: whoever wants one op, or one command's help, need not wait for torch.
    if name == "patch":
        from fastlatent.patches import patch

        return patch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "patch"]
