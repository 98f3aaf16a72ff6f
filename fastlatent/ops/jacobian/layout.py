"""How the elements of a sample lie in memory: contiguous, or channels last where x has that."""

from typing import NamedTuple

from torch import Tensor

from fastlatent.ops._register import contiguous_rows


class Layout(NamedTuple):
    """The order of the elements of (..., c, *spatial)."""

    channels_last: bool
    spatial: int  # dimensions
    inner: int  # elements of one channel that follow each other

    @classmethod
    def of(cls, x: Tensor) -> "Layout":  # (n, c, *spatial)
        last = x.dim() > 2 and x.stride(1) == 1 and x.stride(-1) > 1
        return cls(last, x.dim() - 2, 1 if last else x.shape[2:].numel())

    def dense(self, a: Tensor) -> Tensor:
        return self._restored(self._in_order(a).contiguous())

    def empty(self, a: Tensor) -> Tensor:
        """Memory for `dense(a)`."""
        return self._restored(a.new_empty(self._in_order(a).shape))

    def rows(self, a: Tensor) -> Tensor:
        """(..., c, *spatial) as (..., l), contiguous in the last dimension."""
        return contiguous_rows(self._in_order(a).flatten(-1 - self.spatial))

    def _in_order(self, a: Tensor) -> Tensor:
        return a.movedim(-1 - self.spatial, -1) if self.channels_last else a

    def _restored(self, a: Tensor) -> Tensor:
        return a.movedim(-1, -1 - self.spatial) if self.channels_last else a
