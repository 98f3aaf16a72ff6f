"""Binary codes: streaming statistics, fair random bits, attribute editing."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.ops import binary_moments, pack_bits, unpack_bits

_LABEL_CHUNK = 1 << 14  # codes unpacked at a time


class CodeStatistics:
    """Exact integer counts over codes +/-1, gathered in one streaming pass.

    count              number of codes n
    ones (d,)          how many have +1 at i
    agree (d, d)       how many have equal bits at i and j
    label_count (L,)   how many carry label k
    label_ones (L, d)  how many carry label k and have +1 at i

    All int64. They live on `device`; `update` brings the (small) packed codes there.
    """

    def __init__(self, d: int, labels: int = 0, device: torch.device | str = "cpu"):
        if d < 1 or labels < 0:
            raise ValueError(
                f"CodeStatistics: d must be at least 1 and labels at least 0; got {d} and {labels}"
            )

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.d = d
        self.labels = labels
        self.count = 0
        self.ones = zeros(d)
        self.agree = zeros(d, d)
        self.label_count = zeros(labels)
        self.label_ones = zeros(labels, d)

    @classmethod
    def of(cls, codes: Tensor) -> Self:
        """The statistics of codes (n, d) held in memory, on their device."""
        check_codes("CodeStatistics.of", "codes", codes)
        statistics = cls(codes.shape[1], device=codes.device)
        statistics.update(pack_bits(codes))
        return statistics

    def update(
        self,
        words: Tensor,  # (n, ceil(d / 64)) int64, packed codes
        labels: Tensor | None = None,  # (n,) class ids below L, or (n, L) attributes in {0, 1}
    ) -> None:
        """Count n more codes; `labels` is needed exactly when L > 0."""
        words = words.to(self.ones.device)
        ones, agree = binary_moments(words, self.d)
        if (labels is not None) != (self.labels > 0):
            need = "needed" if self.labels else "not expected"
            raise ValueError(
                f"CodeStatistics.update: labels are {need} where there are {self.labels} labels"
            )
        if labels is not None:
            members = self._members(labels.to(self.ones.device), len(words))
            self.label_count += members.sum(0, dtype=torch.int64)
            for start in range(0, len(words), _LABEL_CHUNK):
                rows = slice(start, start + _LABEL_CHUNK)
                # float64, so that no autocast rounds the counts.
                sums = members[rows].double().mT @ unpack_bits(words[rows], self.d, torch.float64)
                self.label_ones += (sums.long() + members[rows].sum(0)[:, None]) // 2
        self.count += len(words)
        self.ones += ones
        self.agree += agree

    def merge(self, other: "CodeStatistics") -> None:
        """Add the counts of codes that `other` has seen."""
        if (other.d, other.labels) != (self.d, self.labels):
            raise ValueError(
                f"CodeStatistics.merge: other must have d = {self.d} and {self.labels} labels; "
                f"got {other.d} and {other.labels}"
            )
        self.count += other.count
        for name in ("ones", "agree", "label_count", "label_ones"):
            mine = getattr(self, name)
            mine += getattr(other, name).to(mine.device)

    def means(self) -> Tensor:
        """E[b_i] over the codes: (d,) float64."""
        return 2 * self.ones.double() / self._counted("means") - 1

    def agreement(self) -> Tensor:
        """Fraction of the codes with equal bits at i and j: (d, d) float64."""
        return self.agree.double() / self._counted("agreement")

    def state(self) -> dict[str, Tensor]:
        """The counts as CPU tensors; `agree` is cut to its part above the diagonal, in int32."""
        row, column = torch.triu_indices(self.d, self.d, 1, device=self.agree.device)
        upper = self.agree[row, column]
        small = self.count <= torch.iinfo(torch.int32).max
        tensors = {
            "count": torch.tensor(self.count),
            "ones": self.ones,
            "agree": upper.to(torch.int32 if small else torch.int64),
            "label_count": self.label_count,
            "label_ones": self.label_ones,
        }
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], device: torch.device | str = "cpu") -> Self:
        """The statistics that `state` described."""
        names = ("count", "ones", "agree", "label_count", "label_ones")
        if set(state) != set(names):
            raise ValueError(
                f"CodeStatistics.from_state: state must hold {', '.join(names)}; "
                f"got {', '.join(sorted(state))}"
            )
        d, labels = state["ones"].numel(), state["label_count"].numel()
        shapes = ((), (d,), (d * (d - 1) // 2,), (labels,), (labels, d))
        for name, shape in zip(names, shapes, strict=True):
            tensor = state[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in (torch.int32, torch.int64):
                raise ValueError(
                    f"CodeStatistics.from_state: {name} must be whole numbers of shape {shape}; "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        most = dict.fromkeys(names, state["count"])
        most["label_ones"] = state["label_count"][:, None]
        for name in names:
            if not ((state[name] >= 0) & (state[name] <= most[name])).all():
                raise ValueError(
                    f"CodeStatistics.from_state: {name} must lie between 0 and the number of codes"
                )
        statistics = cls(d, labels, device)
        statistics.count = int(state["count"])
        row, column = torch.triu_indices(d, d, 1, device=device)
        upper = state["agree"].to(device, torch.int64)
        statistics.agree[row, column] = upper
        statistics.agree[column, row] = upper
        statistics.agree.fill_diagonal_(statistics.count)
        for name in ("ones", "label_count", "label_ones"):
            setattr(statistics, name, state[name].to(device, torch.int64, copy=True))
        return statistics

    def _members(self, labels: Tensor, n: int) -> Tensor:
        """(n, L) in {0, 1}: which code carries which label."""
        if labels.dim() == 1 and len(labels) == n and not labels.is_floating_point():
            if n and not 0 <= int(labels.min()) <= int(labels.max()) < self.labels:
                raise ValueError(
                    f"CodeStatistics.update: labels must lie in 0 ... {self.labels - 1}; "
                    f"got {int(labels.min())} ... {int(labels.max())}"
                )
            return F.one_hot(labels.long(), self.labels)
        if tuple(labels.shape) == (n, self.labels):
            if not ((labels == 0) | (labels == 1)).all():
                raise ValueError("CodeStatistics.update: attributes must be 0 or 1")
            return labels.long()
        raise ValueError(
            f"CodeStatistics.update: labels must be class ids ({n},) or attributes "
            f"({n}, {self.labels}); got {labels.dtype} of shape {tuple(labels.shape)}"
        )

    def _counted(self, method: str) -> int:
        if self.count == 0:
            raise ValueError(f"CodeStatistics.{method}: no codes have been counted")
        return self.count


def random_bits(
    n: int,
    d: int,
    *,
    generator: torch.Generator | None = None,
    packed: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (n, d) codes +/-1, or (n, ceil(d / 64)) int64
    """n codes of d independent fair bits, on `device`, by default the generator's.

    Raises ValueError for n below 0 and d below 1.
    """
    if n < 0 or d < 1:
        raise ValueError(f"random_bits: n must be at least 0 and d at least 1; got {n} and {d}")
    source = generator.device if generator is not None else device or "cpu"
    words = torch.empty(n, -(-d // 64), dtype=torch.int64, device=source)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    if d % 64:
        words[:, -1] &= (1 << d % 64) - 1
    words = words.to(device or source)
    return words if packed else unpack_bits(words, d, dtype)


def edit_attribute(
    codes: Tensor,  # (n, d)
    statistics: CodeStatistics,
    k: int,
    reference: Literal["population", "zero"] = "population",
    threshold: float = 0.12,
) -> Tensor:  # (n, d)
    """Codes with the bits that go with label k set to what they usually are under it.

    Bit i becomes the sign of c_i = E[b_i | k] - E[b_i] where |c_i| > threshold, else it stays.
    `reference="zero"` is the rule of the LBAE authors' program, c_i = E[b_i | k], which also
    overwrites every bit that is biased in all codes alike. Raises TypeError or ValueError for codes
    that are not +1 and -1, another number of bits, an unknown reference, and a label that is out of
    range or that no code carries.
    """
    check_codes("edit_attribute", "codes", codes)
    if codes.shape[1] != statistics.d:
        raise ValueError(
            f"edit_attribute: codes must have {statistics.d} bits; got {codes.shape[1]}"
        )
    if reference not in ("population", "zero"):
        raise ValueError(
            f"edit_attribute: reference must be 'population' or 'zero'; got {reference!r}"
        )
    if not 0 <= k < statistics.labels:
        raise ValueError(
            f"edit_attribute: k must be one of the {statistics.labels} counted labels; got {k}"
        )
    members = int(statistics.label_count[k])
    if members == 0:
        raise ValueError(f"edit_attribute: no code carries label {k}")
    contrast = 2 * statistics.label_ones[k].double() / members - 1
    if reference == "population":
        contrast = contrast - statistics.means()
    contrast = contrast.to(codes.device)
    return torch.where(contrast.abs() > threshold, contrast.sign().to(codes.dtype), codes)


def check_codes(who: str, name: str, codes: Tensor) -> None:
    """Raise unless `codes` is a floating-point tensor (n, d) of +/-1."""
    if not isinstance(codes, Tensor) or not codes.is_floating_point():
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"{who}: {name} must be floating-point codes of +1 and -1; got {kind}")
    if codes.dim() != 2 or codes.shape[1] == 0:
        raise ValueError(f"{who}: {name} must have shape (n, d); got {tuple(codes.shape)}")
    if not (codes.abs() == 1).all():
        raise ValueError(f"{who}: {name} must hold +1 and -1 only")
