"""The quantizer of binary tokenizers: lookup-free (LFQ) and binary spherical quantisation (BSQ).

LFQ: Yu et al. 2023, arXiv:2310.05737. BSQ: Zhao et al. 2024, arXiv:2406.07548.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent import ops
from fastlatent.jobs.environment import grouped
from fastlatent.nn.adapters import INDEX_BITS, bsq_settings, lfq_settings
from fastlatent.nn.blocks import at_least_float32
from fastlatent.ops import _check
from fastlatent.ops.entropy import entropy_of_probabilities

Index = Literal["code", "groups", "words"]
INDICES = ("code", "groups", "words")
ORDERS = ("lsb", "msb")
_GROUP_BITS = 32  # that binary_entropy counts

SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {  # the functions whose slopes codes take
    "identity": lambda x: x,
    "clip": partial(torch.clamp, min=-1.0, max=1.0),
    "tanh": torch.tanh,
    "sigmoid": lambda x: 2 * x.sigmoid(),
}


class QuantizerLosses(NamedTuple):
    """Scalars; entropies in nats."""

    total: Tensor  # token_weight * token_entropy - codebook_weight * codebook_entropy + ...
    token_entropy: Tensor  # of a token's own distribution over codes, mean over tokens
    codebook_entropy: Tensor  # of the mean distribution of all tokens, summed over groups
    commitment: Tensor  # squared distance of a token to its code, mean over tokens


class Quantized(NamedTuple):
    quantized: Tensor  # as x
    indices: Tensor  # int64, (b, n) or (b, h, w), of groups and words with one dimension more
    losses: QuantizerLosses


class BinaryQuantizer(nn.Module):
    """x (b, n, d) or (b, d, h, w) to codes of +/-`scale`, straight through, with their entropies.

    Input of four dimensions or more has its bits in dimension 1, other input in the last one;
    `channel_first` says otherwise. A value of 0 and below gives -scale. Where `dim` is not `bits`,
    linear layers `project_in` and `project_out` stand before and after.

    `soft_clamp` c replaces x by c tanh(x / c). `spherical` divides x and codes by their norms
    before they are scaled: codes are +/-scale / sqrt(bits); "groups" does so in each group alone.

    Entropies are those of the softmax of 2 inverse_temperature <x, c> over all codes c, exact, by
    `fastlatent.ops.binary_entropy`. `groups` of consecutive bits have a codebook each, and their
    entropies are added. losses.total = token_weight * token_entropy
    - codebook_weight * codebook_entropy + commitment_weight * commitment, in evaluation as well.

    The gradient of codes is that of the surrogate: "identity", "clip" (of [-1, 1]), "tanh",
    "sigmoid" (2 sigmoid(x)) or a function of your own. `stochastic` draws each bit with
    probability sigmoid(x) in training, from `noise` or PyTorch's generator; evaluation with no
    noise thresholds.

    `index` "code" is one number for all bits, "groups" one for each group, "words" the 64-bit words
    of `pack_bits`; None is "code" for one group and "groups" for several. `order` "lsb" has bit 0
    count 1, "msb" the last bit.

    In training under torch.distributed, losses are those of the tokens of all processes. Each
    process then has the gradient of which DistributedDataParallel takes the mean. All processes
    must call the module as often, as each call is one all-reduce.

    Raises TypeError or ValueError for settings and input that do not fit, in one sentence.
    """

    def __init__(
        self,
        bits: int,
        groups: int = 1,
        scale: float = 1.0,
        spherical: bool | Literal["groups"] = False,
        stochastic: bool = False,
        surrogate: str | Callable[[Tensor], Tensor] = "identity",
        *,
        dim: int | None = None,
        inverse_temperature: float = 100.0,
        token_weight: float = 0.1,
        codebook_weight: float = 0.1,
        commitment_weight: float = 0.0,
        soft_clamp: float | None = None,
        channel_first: bool | None = None,
        index: Index | None = None,
        order: Literal["lsb", "msb"] = "lsb",
    ):
        super().__init__()
        self.bits = _count("bits", bits)
        self.groups = _count("groups", groups)
        if self.bits % self.groups:
            raise ValueError(f"BinaryQuantizer: groups must divide {bits} bits; got {groups}")
        self.group_bits = self.bits // self.groups
        if self.group_bits > _GROUP_BITS:
            raise ValueError(
                f"BinaryQuantizer: groups must leave at most {_GROUP_BITS} bits in each, whose "
                f"codes are counted one by one; got {groups} for {bits} bits"
            )
        self.scale = _number("scale", scale, above=0.0)
        if spherical not in (False, True, "groups"):
            raise ValueError(
                f'BinaryQuantizer: spherical must be True, False or "groups"; '
                f"got {_check.shown(spherical)}"
            )
        self.spherical = spherical
        self.stochastic = _flag("stochastic", stochastic)
        if not callable(surrogate):
            _check.choice("BinaryQuantizer", "surrogate", surrogate, tuple(SURROGATES))
        self.surrogate = surrogate
        self.inverse_temperature = _number("inverse_temperature", inverse_temperature, above=0.0)
        self.token_weight = _number("token_weight", token_weight)
        self.codebook_weight = _number("codebook_weight", codebook_weight)
        self.commitment_weight = _number("commitment_weight", commitment_weight)
        self.soft_clamp = None if soft_clamp is None else _number("soft_clamp", soft_clamp, 0.0)
        if channel_first is not None:
            channel_first = _flag("channel_first", channel_first)
        self.channel_first = channel_first
        if index is not None:
            _check.choice("BinaryQuantizer", "index", index, INDICES)
        self.index = index or ("code" if self.groups == 1 else "groups")
        if self.index == "code" and self.bits > INDEX_BITS:
            raise ValueError(
                f'BinaryQuantizer: index "code" holds at most {INDEX_BITS} bits, got {bits}: '
                'use "groups" or "words"'
            )
        _check.choice("BinaryQuantizer", "order", order, ORDERS)
        self.order = order
        self.dim = self.bits if dim is None else _count("dim", dim)
        projects = self.dim != self.bits
        self.project_in: nn.Module = nn.Linear(self.dim, self.bits) if projects else nn.Identity()
        self.project_out: nn.Module = nn.Linear(self.bits, self.dim) if projects else nn.Identity()

    @classmethod
    def from_lfq(cls, module: Any, inverse_temperature: float = 100.0) -> Self:
        """One with the settings of an `LFQ` of vector-quantize-pytorch, whose layers it shares.

        `losses.total` is its auxiliary loss, with its entropies exact and of all tokens, whatever
        its `frac_per_sample_entropy`. Its entropies are means over codebooks and its commitment
        is a mean over bits; ours are sums, so the weights are divided. Indices are its numbers in
        int64. The temperature, which it takes with each call, is set once.

        Raises TypeError for another module, ValueError for `orthogonal_rotation` and
        `experimental_softplus_entropy_loss`.
        """
        quantizer = cls(**lfq_settings(module), inverse_temperature=inverse_temperature)
        quantizer.dim = module.dim
        quantizer.project_in, quantizer.project_out = module.project_in, module.project_out
        return quantizer.train(module.training)

    @classmethod
    def from_bsq(cls, module: Any) -> Self:
        """One with the settings of bsq-vit's `BinarySphericalQuantizer`, or of a spherical `LFQ`.

        `losses.total` is its loss, with exact entropies. With its `l2_norm`, input is put on the
        sphere, where its own caller does that. Indices are its numbers: of the code up to 63 bits,
        of the groups beyond.

        Raises TypeError for another module, ValueError for hard entropies (`soft_entropy=False`)
        and for an `LFQ` that is not spherical.
        """
        if not hasattr(module, "codebook_dim"):
            return cls(**bsq_settings(module)).train(module.training)
        if not getattr(module, "spherical", False):
            raise ValueError("from_bsq: module must be spherical; use from_lfq for this LFQ")
        return cls.from_lfq(module)

    def forward(
        self,
        x: Tensor,  # (b, n, dim) or (b, dim, h, w), floating
        weight: Tensor | None = None,  # (b, n) or (b, h, w), at least 0, or a mask: of each token
        noise: Tensor | None = None,  # of x's shape, but bits for dim; uniform on [0, 1)
    ) -> Quantized:
        first = self._bits_first(x)
        tokens = x.movedim(1, -1) if first else x
        grid = tokens.shape[:-1]
        if weight is not None:
            _check_weight(weight, x, grid)
        projected = self.project_in(tokens)
        with torch.autocast(x.device.type, enabled=False):
            flat = self._squashed(at_least_float32(projected).reshape(-1, self.bits))
            signs = self._signs(flat, self._flat_noise(noise, x, grid, first))
            codes = self._sized(signs)
            share = None if weight is None else weight.detach().reshape(-1).to(flat.dtype)
            losses = self._losses(flat, codes, share)
            slope = (
                SURROGATES[self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
            )
            soft = slope(flat)
            straight = codes + (soft - soft.detach())  # exactly the codes, with soft's gradient
        out = self.project_out(straight.to(projected.dtype)).reshape(*grid, self.dim).to(x.dtype)
        out = out.movedim(-1, 1) if first else out
        return Quantized(out, self._indices(signs, grid), losses)

    def codes_of(self, indices: Tensor) -> Tensor:
        """What `forward` puts out for these indices: (b, n, dim), or (b, dim, h, w).

        Raises TypeError for indices that are not int64, ValueError for a shape that does not fit.
        """
        _check.tensor("BinaryQuantizer", "indices", indices, None, (torch.int64,))
        last = {"code": 0, "groups": self.groups, "words": -(-self.bits // 64)}[self.index]
        if last and indices.shape[-1] != last:
            raise ValueError(
                f"BinaryQuantizer: indices must have {last} {self.index} in the last dimension; "
                f"got shape {tuple(indices.shape)}"
            )
        grid = indices.shape[:-1] if last else indices.shape
        if self.index == "words":
            signs = ops.unpack_bits(indices.reshape(-1, last), self.bits)
        else:
            width = self.group_bits if last else self.bits
            place = torch.arange(width, device=indices.device)
            place = place if self.order == "lsb" else place.flip(0)
            signs = (2 * ((indices[..., None] >> place) & 1) - 1).reshape(-1, self.bits)
        weights = next(self.project_out.parameters(), None)
        dtype = torch.float32 if weights is None else weights.dtype
        out = self.project_out(self._sized(signs.to(dtype))).reshape(*grid, self.dim)
        first = len(grid) >= 3 if self.channel_first is None else self.channel_first
        return out.movedim(-1, 1) if first else out

    def extra_repr(self) -> str:
        spherical = f", spherical={self.spherical!r}" if self.spherical else ""
        return f"{self.bits}, groups={self.groups}, scale={self.scale:g}{spherical}"

    def _bits_first(self, x: Tensor) -> bool:
        """Whether dimension 1 holds the bits, of input that fits."""
        _check.tensor("BinaryQuantizer", "x", x, None, _check.FLOATING)
        first = x.dim() >= 4 if self.channel_first is None else self.channel_first
        where = 1 if first else -1
        if x.dim() < 2 or x.shape[where] != self.dim:
            place = "dimension 1" if first else "the last dimension"
            raise ValueError(
                f"BinaryQuantizer: x must have two dimensions or more, and {self.dim} in {place}; "
                f"got shape {tuple(x.shape)}"
            )
        return first

    def _flat_noise(
        self, noise: Tensor | None, x: Tensor, grid: torch.Size, first: bool
    ) -> Tensor | None:
        """Uniforms (tokens, bits) where bits are drawn; None where they are thresholded."""
        if noise is None:
            if not (self.stochastic and self.training):
                return None
            return torch.rand(grid.numel(), self.bits, device=x.device)
        if not self.stochastic:
            raise ValueError("BinaryQuantizer: noise must be None unless stochastic=True")
        _check.tensor("BinaryQuantizer", "noise", noise, None, _check.FLOATING)
        shape = (grid[0], self.bits, *grid[1:]) if first else (*grid, self.bits)
        if tuple(noise.shape) != tuple(shape) or noise.device != x.device:
            raise ValueError(
                f"BinaryQuantizer: noise must be {tuple(shape)} on {x.device}; "
                f"got {tuple(noise.shape)} on {noise.device}"
            )
        return (noise.movedim(1, -1) if first else noise).reshape(-1, self.bits)

    def _squashed(self, x: Tensor) -> Tensor:
        """What is quantised, of the projected input (tokens, bits)."""
        if self.soft_clamp is not None:
            x = (x / self.soft_clamp).tanh() * self.soft_clamp
        if self.spherical == "groups":
            parts = x.unflatten(1, (self.groups, self.group_bits))
            return F.normalize(parts, dim=-1).flatten(1) * self.scale
        return F.normalize(x, dim=-1) * self.scale if self.spherical else x

    @staticmethod
    def _signs(x: Tensor, noise: Tensor | None) -> Tensor:
        above = x.detach() > 0 if noise is None else noise < x.detach().sigmoid()
        one = torch.ones_like(x)
        return torch.where(above, one, -one)

    def _sized(self, signs: Tensor) -> Tensor:
        return signs * self.code_scale

    @property
    def code_scale(self) -> float:
        """The absolute value of a code's coordinates."""
        if not self.spherical:
            return self.scale
        return self.scale * (self.group_bits if self.spherical == "groups" else self.bits) ** -0.5

    def _losses(self, x: Tensor, codes: Tensor, weight: Tensor | None) -> QuantizerLosses:
        logits = 4 * self.inverse_temperature * self.code_scale * x
        distance = (x - codes).square().sum(1)
        if self.training and grouped() and dist.get_world_size() > 1:
            token, codebook, commitment = self._of_all_processes(logits, distance, weight)
        else:
            tokens, mean, _ = ops.binary_entropy(logits, weight, self.groups)
            token, codebook = _mean(tokens, weight), mean.sum()
            commitment = _mean(distance, weight)
        total = self.token_weight * token - self.codebook_weight * codebook
        total = total + self.commitment_weight * commitment
        return QuantizerLosses(total, token, codebook, commitment)

    def _of_all_processes(
        self, logits: Tensor, distance: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both entropies and the commitment of the tokens of all processes, by one all-reduce."""
        if self.group_bits > 24:
            raise ValueError(
                "BinaryQuantizer: groups must leave at most 24 bits in each under several "
                f"processes, which average a table of all codes; got {self.group_bits}"
            )
        one = torch.ones_like(distance)
        share = one if weight is None else weight
        here = share.sum()
        # A process whose tokens are all left out has no distribution, and no share.
        tokens, _, table = ops.binary_entropy(
            logits, torch.where(here > 0, share, one), self.groups
        )
        sums = [
            here * table.flatten(),
            (share * torch.stack([tokens, distance])).sum(1),
            here[None],
        ]
        local = torch.cat(sums)
        everywhere = local.detach().clone()
        dist.all_reduce(everywhere)
        readable = everywhere.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and not bool(everywhere[-1] > 0):
            raise ValueError(
                "BinaryQuantizer: weight must be above 0 for one token of all processes"
            )
        # The losses are the same function of these sums in every process, so that the gradients
        # which an all-reduce would add are equal: no second all-reduce is needed.
        everywhere = everywhere + dist.get_world_size() * (local - local.detach())
        means = everywhere[:-1] / everywhere[-1].detach()
        p = means[:-2].view_as(table)
        return means[-2], entropy_of_probabilities(p).sum(), means[-1]

    def _indices(self, signs: Tensor, grid: torch.Size) -> Tensor:
        if self.index == "words":
            return ops.pack_bits(signs).reshape(*grid, -(-self.bits // 64))
        if self.index == "groups":
            parts = signs.unflatten(1, (self.groups, self.group_bits))
            return ops.code_indices(parts, self.order).reshape(*grid, self.groups)
        return ops.code_indices(signs, self.order).reshape(grid)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.sum() / max(values.shape[0], 1)
    return (weight * values).sum() / weight.sum()


def _check_weight(weight: Tensor, x: Tensor, grid: torch.Size) -> None:
    _check.tensor("BinaryQuantizer", "weight", weight, None, (torch.bool, *_check.FLOATING))
    if tuple(weight.shape) != tuple(grid) or weight.device != x.device:
        raise ValueError(
            f"BinaryQuantizer: weight must be {tuple(grid)} on {x.device}, one for each token; "
            f"got {tuple(weight.shape)} on {weight.device}"
        )


def _count(name: str, value: Any) -> int:
    return _check.whole("BinaryQuantizer", name, value, 1, 2**31 - 1, "a whole number from 1 up")


def _flag(name: str, value: Any) -> bool:
    return _check.flag("BinaryQuantizer", name, value)


def _number(name: str, value: Any, above: float | None = None) -> float:
    number = _check.real(value)
    least = float("-inf") if above is None else above
    if number is None or not least < number < float("inf"):
        bound = "" if above is None else f" above {above:g}"
        raise ValueError(
            f"BinaryQuantizer: {name} must be a finite number{bound}; got {_check.shown(value)}"
        )
    return number
