"""Indices of codes and the likelihood of their bits."""

import math

import pytest
import torch

from fastlatent import ops


def signs(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)


def test_indices_by_hand_and_in_half_precision():
    codes = torch.tensor([[1.0, -1, 1, 1], [-1, -1, -1, 1]])
    assert ops.code_indices(codes).tolist() == [0b1101, 0b1000]
    assert ops.code_indices(codes, "msb").tolist() == [0b1011, 0b0001]
    wide = signs(50, 63)
    want = [sum(1 << j for j in range(63) if row[j] > 0) for row in wide.tolist()]
    for dtype in (torch.float32, torch.bfloat16):
        assert ops.code_indices(wide.to(dtype)).tolist() == want
        assert ops.code_indices(wide.flip(1).to(dtype), "msb").tolist() == want
    assert torch.equal(ops.code_indices(wide), ops.pack_bits(wide)[:, 0])
    assert ops.code_indices(signs(2, 3, 4, 6)).shape == (2, 3, 4)


def test_indices_compile():
    compiled = torch.compile(ops.code_indices, fullgraph=True, backend="aot_eager")
    codes = signs(7, 20)
    assert torch.equal(compiled(codes, "msb"), ops.code_indices(codes, "msb"))


@pytest.mark.parametrize("d", [1, 64, 130])
def test_likelihood_of_packed_and_unpacked_codes(d):
    codes = signs(9, d)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(9, d, generator=generator)).requires_grad_(True)
    got = ops.bernoulli_log_prob(codes, logits)
    truth = torch.distributions.Bernoulli(logits=logits.double()).log_prob((codes + 1).double() / 2)
    torch.testing.assert_close(got.double(), truth.sum(1), rtol=1e-6, atol=1e-5)
    words = ops.pack_bits(codes)
    assert torch.equal(ops.bernoulli_log_prob(words, logits), got)
    (grad,) = torch.autograd.grad(ops.bernoulli_log_prob(words, logits).sum(), logits)
    torch.testing.assert_close(grad, codes * (-codes * logits).sigmoid())


def test_likelihood_at_the_edges():
    logits = torch.tensor([[0.0, 1e4, -1e4]])
    agree, differ = torch.tensor([[1.0, 1, -1]]), torch.tensor([[1.0, -1, -1]])
    got = ops.bernoulli_log_prob(torch.cat([agree, differ]), logits.expand(2, 3))
    torch.testing.assert_close(got, torch.tensor([-math.log(2), -1e4 - math.log(2)]))
    half = ops.bernoulli_log_prob(signs(2, 4000).half(), torch.zeros(2, 4000).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.full((2,), -4000 * math.log(2)))
    assert ops.bernoulli_log_prob(agree, logits * torch.nan).isnan().all()


@pytest.mark.parametrize(
    ("attempt", "error", "sentence"),
    [
        (lambda: ops.code_indices(torch.ones(2, 64)), ValueError, "at most 63 coordinates"),
        (lambda: ops.code_indices(torch.ones(2).long()), TypeError, "codes must have dtype"),
        (
            lambda: ops.bernoulli_log_prob(torch.zeros(2, 1).long(), torch.zeros(2, 65)),
            ValueError,
            r"packed codes must be \(2, 2\) for these logits; got \(2, 1\)",
        ),
        (
            lambda: ops.bernoulli_log_prob(torch.ones(2, 4), torch.zeros(2, 5)),
            ValueError,
            r"codes must be \(2, 5\) for these logits; got \(2, 4\)",
        ),
        (
            lambda: ops.bernoulli_log_prob(torch.ones(2, 5).double(), torch.zeros(2, 5)),
            TypeError,
            "codes must have the dtype of logits, float32",
        ),
    ],
)
def test_sentences(attempt, error, sentence):
    with pytest.raises(error, match=sentence):
        attempt()
