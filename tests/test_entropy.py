"""Entropies of binary codes against the table of all codes that they do without."""

import math

import pytest
import torch
from memory import allocated

from fastlatent import ops
from fastlatent.ops import entropy


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def by_table(logits, weight=None, groups=1):
    """Token entropies, entropies of the mean and its probabilities by a softmax over all codes."""
    n, d = logits.shape
    g = d // groups
    codes = torch.tensor([[1 if c >> j & 1 else -1 for j in range(g)] for c in range(2**g)])
    half = logits.view(n, groups, g).double() / 2
    p = (half @ codes.double().mT).softmax(-1)
    share = torch.ones(n) if weight is None else weight
    mean = (p * (share / share.sum()).double()[:, None, None]).sum(0)
    tokens = torch.special.entr(p).sum((1, 2))
    return tokens, torch.special.entr(mean).sum(-1), mean


def test_equals_the_softmax_over_all_codes():
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[::5] = 0
    for d, groups in ((1, 1), (6, 1), (12, 3), (9, 9), (8, 2)):
        logits = normal(40, d, scale=2)
        for w in (None, weight):
            got = ops.binary_entropy(logits, w, groups)
            for g, want in zip(got, by_table(logits, w, groups), strict=True):
                torch.testing.assert_close(g, want)


def test_gradient_equals_that_of_the_table():
    logits = normal(30, 8, scale=2).requires_grad_(True)
    weight = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(tokens, mean, probabilities):
        return tokens.square().sum() - mean.sum() + 7 * probabilities[:, ::3].square().sum()

    got = torch.autograd.grad(loss(*ops.binary_entropy(logits, weight, 2)), logits)[0]
    want = torch.autograd.grad(loss(*by_table(logits, weight, 2)), logits)[0]
    torch.testing.assert_close(got, want)


def test_values_known_beforehand():
    tokens, mean, probabilities = ops.binary_entropy(torch.zeros(3, 5))
    torch.testing.assert_close(tokens, torch.full((3,), 5 * math.log(2)))
    torch.testing.assert_close(mean, torch.tensor([5 * math.log(2)]))
    torch.testing.assert_close(probabilities, torch.full((1, 32), 1 / 32))
    sure = torch.tensor([[1e4, -1e4, 1e4]])
    tokens, mean, probabilities = ops.binary_entropy(sure)
    assert tokens.tolist() == [0] and mean.tolist() == [0]
    assert probabilities.argmax() == 0b101 == ops.pack_bits(sure.sign())[0, 0]
    one = normal(1, 7)
    tokens, mean, _ = ops.binary_entropy(one)
    torch.testing.assert_close(mean, tokens)


def test_a_mask_leaves_tokens_out():
    logits = normal(20, 6)
    mask = torch.arange(20) % 3 > 0
    got, want = ops.binary_entropy(logits, mask, 3), ops.binary_entropy(logits[mask], None, 3)
    torch.testing.assert_close(got[0][mask], want[0])
    torch.testing.assert_close(got[1:], want[1:])


def test_all_codes_seen_once_are_uniform_whatever_the_tokens_say():
    codes = torch.cartesian_prod(*[torch.tensor([-1e3, 1e3])] * 6)
    tokens, mean, _ = ops.binary_entropy(codes)
    assert (tokens == 0).all()
    torch.testing.assert_close(mean, torch.tensor([6 * math.log(2)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    logits = normal(300, 12, dtype=dtype, scale=3)
    for got, want in zip(
        ops.binary_entropy(logits, None, 2), by_table(logits, None, 2), strict=True
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)


def test_small_probabilities_count():
    """With 2^14 codes most are below 1e-5, where a clamp of the logarithm would lose them."""
    logits = normal(256, 14, dtype=torch.float32, scale=4)
    want = by_table(logits)[1]
    torch.testing.assert_close(ops.binary_entropy(logits)[1].double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_tiles_give_what_the_whole_gives(monkeypatch, implementation):
    logits, weight = normal(50, 20, scale=2).requires_grad_(True), torch.rand(50).double()

    def run():
        with ops.use(implementation):
            tokens, mean, probabilities = ops.binary_entropy(logits, weight, 2)
            (first,) = torch.autograd.grad(
                tokens.square().sum() + mean.sum(), logits, create_graph=True
            )
            (second,) = torch.autograd.grad(first.square().sum(), logits)
        return (tokens, mean, first, second), probabilities

    whole, table = run()
    monkeypatch.setattr(entropy, "_TABLE", 96)  # three codes of 32 at a time
    monkeypatch.setattr(entropy, "_FACTORS", 1000)
    monkeypatch.setattr(entropy, "_ROWS", 7)  # tokens at a time
    parts, nothing = run()
    assert table.shape == (2, 1024) and nothing.shape == (2, 0)
    for got, want in zip(parts, whole, strict=True):
        torch.testing.assert_close(got, want)


def test_memory_does_not_hold_tokens_times_codes():
    """Of 4,096 tokens and 2^14 codes, a table alone takes 256 MiB in float32."""
    logits = normal(4096, 14, dtype=torch.float32).requires_grad_(True)

    def run():
        tokens, mean, _ = ops.binary_entropy(logits)
        (tokens.mean() - mean.sum()).backward()

    assert allocated(run) < 2**28 / 10


def test_sentences():
    logits = torch.zeros(4, 6)
    for wrong, sentence in [
        ({"logits": logits.long()}, "logits must have dtype float16"),
        ({"logits": logits[0]}, "logits must have 2 dimensions"),
        ({"logits": logits * torch.nan}, "logits must be numbers; got NaN"),
        ({"groups": 4}, "groups must divide the 6 bits of a token; got 4"),
        ({"groups": 0}, "groups must be a whole number from 1 up; got 0"),
        ({"logits": torch.zeros(2, 66), "groups": 2}, "at most 32 bits in each"),
        ({"weight": torch.zeros(4)}, "weight must be above 0 for one token; got only 0"),
        ({"weight": torch.tensor([1.0, -1, 1, 1])}, "weight must be finite and at least 0"),
        ({"weight": torch.tensor([1.0, torch.nan, 1, 1])}, "weight must be finite"),
        ({"weight": torch.zeros(4, dtype=torch.bool)}, "weight must be above 0"),
        ({"weight": torch.ones(3)}, r"weight must be \(n,\) = \(4,\); got \(3,\)"),
        ({"weight": torch.ones(4).double()}, "weight must have the dtype of logits, float32"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"^binary_entropy: .*{sentence}"):
            ops.binary_entropy(**{"logits": logits, **wrong})
    tokens, mean, _ = ops.binary_entropy(torch.zeros(0, 6))
    assert tokens.shape == (0,) and mean.tolist() == [0]
