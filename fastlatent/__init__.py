"""Fast latent-variable models in PyTorch, on custom C++, CUDA and Triton kernels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlatent.patches import patch as patch

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: whoever wants one op, or one command's help, need not wait for torch.
    if name == "patch":
        from fastlatent.patches import patch

        return patch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "patch"]
