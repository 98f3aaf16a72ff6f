"""The Frechet distance of other packages, computed by ours: `fastlatent.patch("pytorch_fid")`.

What changes is the code of one function, not a name in a module. So whoever imported that function
by name, before or after, is served too. It is one assignment: no patch is ever half there.
"""

import importlib.metadata
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlatent.metrics.frechet import frechet_distance
from fastlatent.metrics.statistics import asymmetry
from fastlatent.ops.roots import project_psd

Array = np.ndarray[Any, Any]


class Change(NamedTuple):
    """One function and what computes the trace of the matrix square root in it."""

    function: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.function} uses {self.after} in place of {self.before}"


class Patch:
    """A patch of one package, in force until `undo()` or the end of its `with` block.

    Patches of one package may be nested: the last one undone brings the original back.
    """

    def __init__(self, name: str, version: str, changes: tuple[Change, ...], target: "_Target"):
        self.name, self.version, self.changes = name, version, changes
        self._target = target
        self._holds, self._entered = 0, False
        self._hold()

    @property
    def active(self) -> bool:
        """Whether this patch is in force: not yet undone."""
        return self._holds > 0

    def undo(self) -> None:
        """Give the function its own code back, unless another patch still holds it.

        Undoing again does nothing.
        """
        while self._holds:
            self._release()

    def __enter__(self) -> "Patch":
        # The patch is in force since it was made: the first block takes that over.
        if self._entered or not self._holds:
            self._hold()
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._holds:
            self._release()

    def __str__(self) -> str:
        state = "" if self.active else " (undone)"
        lines = (f"  {change}" for change in self.changes)
        return "\n".join([f"patch of {self.name} {self.version}{state}:", *lines])

    def __repr__(self) -> str:
        return f"<{self}>"

    def _hold(self) -> None:
        self._target.hold()
        self._holds += 1

    def _release(self) -> None:
        self._holds -= 1
        self._entered = self._entered and self._holds > 0
        self._target.release()


def patch(name: str) -> Patch:
    """Let the package `name` compute its Frechet distance by `fastlatent.metrics.frechet_distance`.

    `name` is "pytorch_fid", "cleanfid", "torchmetrics" or "torch_fidelity". The patch is in force
    at once; it is undone by `undo()`, or at the end of a `with` block. The patched functions keep
    their arguments and the type of their result; `eps`, which some add to singular covariances, no
    longer has an effect. Features and statistics stay those of the package.

    Moments that are not finite give NaN, or infinity where only the means are infinite, with a
    RuntimeWarning. What `frechet_distance` refuses, as sigmas that are no covariances, goes to the
    package's own code, with a RuntimeWarning that says why.

    Raises ValueError for another name. Raises ModuleNotFoundError where the package is not
    installed. Raises RuntimeError where its version or its function is not one whose code is known
    here.
    """
    if name not in TARGETS:
        known = ", ".join(map(repr, TARGETS))
        raise ValueError(f"patch: name must be one of {known}; got {name!r}")
    target = TARGETS[name]
    try:
        version = importlib.metadata.version(target.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"patch: {target.distribution} is not installed", name=name
        ) from None
    if version not in target.versions:
        raise RuntimeError(
            f"patch: {target.distribution} {version} is installed; its code is known in versions "
            + ", ".join(target.versions)
        )
    function = target.find()
    path = f"{function.__module__}.{function.__qualname__}"
    change = Change(path, target.before, "fastlatent.metrics.frechet_distance")
    return Patch(name, version, (change,), target)


def _pytorch_fid() -> ModuleType:
    from pytorch_fid import fid_score

    return fid_score


def _cleanfid() -> ModuleType:
    from cleanfid import fid

    return fid


def _torchmetrics() -> ModuleType:
    from torchmetrics.image import fid

    return fid


def _torch_fidelity() -> ModuleType:
    from torch_fidelity import metric_fid

    return metric_fid


# The code of the functions below runs among the names of the module that it is given to, and so
# may use none of this one's.


def _of_pytorch_fid(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6) -> Any:
    from fastlatent.patches import TARGETS

    return TARGETS["pytorch_fid"].answer(mu1, sigma1, mu2, sigma2, eps)


def _of_cleanfid(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6) -> Any:
    from fastlatent.patches import TARGETS

    return TARGETS["cleanfid"].answer(mu1, sigma1, mu2, sigma2, eps)


def _of_torchmetrics(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> Any:
    from fastlatent.patches import TARGETS

    return TARGETS["torchmetrics"].answer(mu1, sigma1, mu2, sigma2)


def _of_torch_fidelity(stat_1: Any, stat_2: Any, verbose: Any) -> Any:
    from fastlatent.patches import TARGETS

    return TARGETS["torch_fidelity"].answer(stat_1, stat_2, verbose)


def _arrays(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float) -> np.floating[Any]:
    arrays = [np.asanyarray(part) for part in (mu1, sigma1, mu2, sigma2)]
    one = np.result_type(*arrays, np.float32).type(1)
    # The type that packages end in: of 2 and a float32, NumPy 1 makes a float64.
    return type(2 * one)(_distance_of_arrays(*arrays))


def _dictionaries(stat_1: Any, stat_2: Any, verbose: Any) -> dict[str, float]:
    from torch_fidelity.helpers import vprint
    from torch_fidelity.metric_fid import KEY_METRIC_FID

    moments = (stat_1["mu"], stat_1["sigma"], stat_2["mu"], stat_2["sigma"])
    out = {KEY_METRIC_FID: _distance_of_arrays(*map(np.asanyarray, moments))}
    vprint(verbose, f"Frechet Inception Distance: {out[KEY_METRIC_FID]:.7g}")
    return out


def _distance_of_arrays(
    mu1: Array,  # (d,), or a number
    sigma1: Array,  # (d, d), or a number
    mu2: Array,
    sigma2: Array,
) -> float:
    arrays = (mu1, sigma1, mu2, sigma2)
    if any(np.iscomplexobj(array) for array in arrays):
        raise TypeError("the moments must be real numbers")
    m1, m2 = (torch.from_numpy(np.atleast_1d(np.array(mu, np.float64))) for mu in (mu1, mu2))
    s1, s2 = (torch.from_numpy(np.atleast_2d(np.array(s, np.float64))) for s in (sigma1, sigma2))
    if m1.dim() != 1:
        raise ValueError("the means must be of one set each")
    with torch.no_grad():
        return float(_distance(m1, s1, m2, s2))


def _tensors(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """On their device and in their precision."""
    if not mu1.is_floating_point():
        raise TypeError("the moments must be floating-point numbers")
    return _distance(mu1.double(), sigma1.double(), mu2.double(), sigma2.double()).to(mu1.dtype)


def _distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """Covariances may have eigenvalues below 0 by rounding in float32, in which packages sum."""
    sigmas = [sigma1, sigma2]
    if not all(part.isfinite().all() for part in (mu1, mu2, *sigmas)):
        return _not_finite(mu1, sigma1, mu2, sigma2)
    try:
        return frechet_distance(mu1, sigma1, mu2, sigma2)
    except ValueError:
        square = mu1.shape * 2
        if not all(sigma.shape == square and asymmetry(sigma) <= 1 for sigma in sigmas):
            raise
        nearest = [project_psd(sigma) for sigma in sigmas]
        slack = len(mu1) * torch.finfo(torch.float32).eps
        for sigma, near in zip(sigmas, nearest, strict=True):
            if torch.linalg.matrix_norm(sigma - near) > slack * torch.linalg.matrix_norm(sigma):
                raise
        return frechet_distance(mu1, nearest[0], mu2, nearest[1])


def _not_finite(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """What arithmetic makes of it: packages give that, and a training that logs it goes on."""
    warnings.warn(
        "patch: the moments hold NaN or infinity, so the Frechet distance does, too",
        RuntimeWarning,
        stacklevel=6,
    )
    value = (mu1 - mu2).square().sum(-1)
    known = all(sigma.isfinite().all() for sigma in (sigma1, sigma2))
    return value if known else value * torch.nan


_LOCK = threading.Lock()


@dataclass
class _Target:
    """A function of another package, and the code that replaces its own."""

    distribution: str  # its name on the package index
    versions: tuple[str, ...]  # those whose code was compared with what is replaced here
    module: Callable[[], ModuleType]  # imports it
    function: str
    before: str
    replacement: CodeType
    ours: Callable[..., Any]  # of the function's arguments; TypeError or ValueError: refused
    _changed: tuple[FunctionType, CodeType] | None = None  # the function, and its own code
    _holds: int = 0

    def find(self) -> FunctionType:
        """The function as its module has it. Raises RuntimeError where that is another one."""
        function = getattr(self.module(), self.function, None)
        ours = _arguments(self.replacement)
        if not isinstance(function, FunctionType) or _arguments(function.__code__) != ours:
            raise RuntimeError(
                f"patch: {self.function} of {self.distribution} is not its function of "
                f"({', '.join(ours)}): other code has replaced it"
            )
        return function

    def answer(self, *arguments: Any) -> Any:
        """The distance by ours, or by the package's own code where ours refuses the moments."""
        try:
            return self.ours(*arguments)
        except (TypeError, ValueError) as refusal:
            assert self._changed is not None
            function, code = self._changed
            warnings.warn(
                f"patch: {self.distribution} computes this by its own code: {refusal}",
                RuntimeWarning,
                stacklevel=3,
            )
            original = FunctionType(code, function.__globals__)
            try:
                return original(*arguments)
            except TypeError as broken:
                if "disp" not in str(broken):
                    raise
            # SciPy has taken away the argument by which it calls the root.
            raise refusal

    def hold(self) -> None:
        with _LOCK:
            if not self._holds:
                function = self.find()
                self._changed = function, function.__code__
                function.__code__ = self.replacement
            self._holds += 1

    def release(self) -> None:
        with _LOCK:
            self._holds -= 1
            if not self._holds and self._changed is not None:
                function, code = self._changed
                function.__code__ = code


def _arguments(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount]


TARGETS = {
    "pytorch_fid": _Target(
        "pytorch-fid",
        ("0.2.0", "0.2.1", "0.3.0"),
        _pytorch_fid,
        "calculate_frechet_distance",
        "scipy.linalg.sqrtm",
        _of_pytorch_fid.__code__,
        _arrays,
    ),
    "cleanfid": _Target(
        "clean-fid",
        ("0.1.34", "0.1.35"),
        _cleanfid,
        "frechet_distance",
        "scipy.linalg.sqrtm",
        _of_cleanfid.__code__,
        _arrays,
    ),
    "torchmetrics": _Target(
        "torchmetrics",
        (
            *("1.4.3", "1.5.2", "1.6.3", "1.7.0", "1.7.1", "1.7.2", "1.7.3", "1.7.4"),
            *("1.8.0", "1.8.1", "1.8.2", "1.9.0"),
        ),
        _torchmetrics,
        "_compute_fid",
        "torch.linalg.eigvals",
        _of_torchmetrics.__code__,
        _tensors,
    ),
    "torch_fidelity": _Target(
        "torch-fidelity",
        ("0.3.0", "0.4.0"),
        _torch_fidelity,
        "fid_statistics_to_metric",
        "numpy.linalg.eigvals",
        _of_torch_fidelity.__code__,
        _dictionaries,
    ),
}
