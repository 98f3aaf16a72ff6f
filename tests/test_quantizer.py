"""The quantizer of binary tokenizers: values, entropies, gradients, other packages' settings."""

import math
import socket
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from fastlatent import ops
from fastlatent.nn import BinaryQuantizer


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table_of_codes(bits):
    """(2^bits, bits) of +/-1, the first bit most significant."""
    return 2.0 * ((torch.arange(1 << bits)[:, None] >> torch.arange(bits - 1, -1, -1)) & 1) - 1


def entropies(x, code_scale, temperature, groups):
    """Both entropies of tokens (n, d) by the softmax over all codes of each group, in float64."""
    parts = x.double().unflatten(1, (groups, -1))
    codes = code_scale * table_of_codes(parts.shape[2]).double()
    p = (2 * temperature * parts @ codes.T).softmax(-1)
    token = -torch.xlogy(p, p).sum(-1).sum(1).mean()
    mean = p.mean(0)
    return token, -torch.xlogy(mean, mean).sum()


@pytest.mark.parametrize("spherical", [False, True, "groups"])
@pytest.mark.parametrize("groups", [1, 2])
def test_values_losses_and_gradients_are_those_of_the_softmax_over_all_codes(spherical, groups):
    x = normal(3, 5, 6).requires_grad_(True)
    quantizer = BinaryQuantizer(
        6,
        groups,
        scale=0.5,
        spherical=spherical,
        inverse_temperature=3.0,
        token_weight=0.3,
        codebook_weight=0.2,
        commitment_weight=0.7,
    )
    quantized, indices, losses = quantizer(x)
    same = x.detach().clone().requires_grad_(True)
    tokens, scale = same.flatten(0, 1), 0.5
    if spherical:
        parts = tokens.unflatten(1, (groups if spherical == "groups" else 1, -1))
        scale = 0.5 / math.sqrt(parts.shape[2])
        tokens = 0.5 * normalize(parts, dim=-1).flatten(1)
    codes = torch.where(tokens > 0, scale, -scale)
    token, codebook = entropies(tokens, scale, 3.0, groups)
    commitment = (tokens - codes).square().sum(1).mean()
    total = 0.3 * token - 0.2 * codebook + 0.7 * commitment
    torch.testing.assert_close(quantized.flatten(0, 1), codes)
    want = [total.float(), token.float(), codebook.float(), commitment]
    torch.testing.assert_close(list(losses), want, rtol=1e-5, atol=1e-6)
    assert indices.shape == ((3, 5) if groups == 1 else (3, 5, 2))
    torch.testing.assert_close(quantizer.codes_of(indices), quantized.detach())
    towards = normal(3, 5, 6, seed=1)
    ((quantized * towards).sum() + losses.total).backward()
    ((tokens * towards.flatten(0, 1)).sum() + total).backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-4, atol=1e-5)


def test_images_are_as_sequences():
    quantizer = BinaryQuantizer(4, commitment_weight=1.0)
    x, mask = normal(2, 4, 3, 5), normal(2, 3, 5, seed=1) > 0
    image = quantizer(x, mask)
    flat = quantizer(x.flatten(2).mT, mask.flatten(1))
    assert torch.equal(image.quantized.flatten(2).mT, flat.quantized)
    assert image.indices.shape == (2, 3, 5)
    assert torch.equal(image.indices.flatten(1), flat.indices)
    torch.testing.assert_close(list(image.losses), list(flat.losses))
    assert torch.equal(quantizer.codes_of(image.indices), image.quantized)
    first = BinaryQuantizer(4, channel_first=True)
    assert torch.equal(first(x.flatten(2)).indices, flat.indices)


def test_weights_leave_tokens_out():
    quantizer = BinaryQuantizer(4, 2, inverse_temperature=1.0, commitment_weight=1.0)
    x, mask = normal(3, 6, 4), torch.arange(18).view(3, 6) % 3 > 0
    kept = quantizer(x[mask])
    torch.testing.assert_close(list(quantizer(x, mask).losses), list(kept.losses))
    halves = quantizer(x.half(), 0.5 * mask)
    torch.testing.assert_close(list(halves.losses), list(kept.losses), rtol=2e-3, atol=2e-3)
    assert halves.quantized.dtype == torch.float16


@pytest.mark.parametrize("index", ["code", "groups", "words"])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_indices_give_codes_back(index, order):
    quantizer = BinaryQuantizer(60, 5, index=index, order=order)
    found = quantizer(normal(2, 3, 60))
    assert torch.equal(quantizer.codes_of(found.indices), found.quantized)
    assert found.indices.dtype == torch.int64
    few = BinaryQuantizer(3, order=order)(torch.tensor([[1.0, -1.0, -1.0]]))
    assert few.indices.item() == (1 if order == "lsb" else 4)


def test_bits_are_drawn_in_training_and_thresholded_without():
    quantizer = BinaryQuantizer(2, stochastic=True)
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    noise = torch.tensor([[0.49, 0.74], [0.51, 0.26]])  # sigmoid(+/-1) = 0.731, 0.269
    want = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.equal(quantizer(x, noise=noise).quantized, want)
    many = torch.full((20_000, 2), 1.0)
    torch.manual_seed(0)
    share = (quantizer(many).quantized > 0).float().mean().item()
    assert abs(share - 0.7311) < 5 * math.sqrt(0.7311 * 0.2689 / 40_000)
    assert torch.equal(quantizer.eval()(many).quantized, torch.ones_like(many))


@pytest.mark.parametrize(
    ("surrogate", "slope"),
    [
        ("identity", lambda x: torch.ones_like(x)),
        ("clip", lambda x: (x.abs() <= 1).float()),
        ("tanh", lambda x: 1 - x.tanh() ** 2),
        ("sigmoid", lambda x: 2 * x.sigmoid() * (-x).sigmoid()),
        (nn.Softsign(), lambda x: (1 + x.abs()) ** -2),
    ],
)
def test_codes_take_the_gradient_of_the_surrogate(surrogate, slope):
    x = (2 * normal(50, 4)).requires_grad_(True)
    quantized = BinaryQuantizer(4, surrogate=surrogate)(x).quantized
    assert set(quantized.flatten().tolist()) == {-1.0, 1.0}
    (grad,) = torch.autograd.grad(quantized.sum(), x)
    torch.testing.assert_close(grad, slope(x.detach()))


def test_it_compiles_whole():
    quantizer = BinaryQuantizer(6, 2, dim=5, spherical=True, stochastic=True)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    x, noise = normal(2, 5, 3, 4), torch.rand(2, 6, 3, 4)
    found, want = compiled(x, noise=noise), quantizer(x, noise=noise)
    torch.testing.assert_close(found.quantized, want.quantized)
    assert torch.equal(found.indices, want.indices)
    torch.testing.assert_close(list(found.losses), list(want.losses))
    found.losses.total.backward()
    assert quantizer.project_in.weight.grad.abs().sum() > 0


def test_autocast_does_not_round_the_losses():
    quantizer, x = BinaryQuantizer(6, inverse_temperature=1.0), normal(40, 6)
    want = quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(x)
    assert torch.equal(found.losses.total, want.losses.total)
    assert found.quantized.dtype == torch.float32


class LFQ(nn.Module):
    """The attributes of vector-quantize-pytorch's, and its loss written out anew."""

    def __init__(self, bits, codebooks, scale, spherical, weights, dim=None):
        super().__init__()
        self.codebook_dim, self.num_codebooks, self.codebook_scale = bits, codebooks, scale
        self.entropy_loss_weight, self.diversity_gamma, self.commitment_loss_weight = weights
        self.spherical, self.activation = spherical, nn.Identity()
        self.keep_num_codebooks_dim = codebooks > 1
        self.soft_clamp_input_value = 2.0
        self.dim = dim or bits * codebooks
        self.project_in = nn.Linear(dim, bits * codebooks) if dim else nn.Identity()
        self.project_out = nn.Linear(bits * codebooks, dim) if dim else nn.Identity()

    def forward(self, x, inverse_temperature):
        x = (self.project_in(x) / 2).tanh() * 2
        parts = x.unflatten(-1, (self.num_codebooks, self.codebook_dim))
        sphere = (lambda t: self.codebook_scale * normalize(t, dim=-1)) if self.spherical else None
        parts = sphere(parts) if sphere else parts
        codes = torch.where(parts > 0, self.codebook_scale, -self.codebook_scale)
        number = ((codes > 0) * (2 ** torch.arange(self.codebook_dim - 1, -1, -1))).sum(-1)
        codes = sphere(codes) if sphere else codes
        every = self.codebook_scale * table_of_codes(self.codebook_dim)
        every = sphere(every) if sphere else every
        p = (2 * inverse_temperature * parts @ every.T).softmax(-1)
        token = -torch.xlogy(p, p).sum(-1).mean()
        mean = p.flatten(0, -3).mean(0)
        codebook = -torch.xlogy(mean, mean).sum(-1).mean()
        loss = self.entropy_loss_weight * (token - self.diversity_gamma * codebook)
        loss = loss + self.commitment_loss_weight * (parts - codes).square().mean()
        return self.project_out(codes.flatten(-2)), number, loss


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("codebooks", [1, 3])
def test_settings_of_lfq(spherical, codebooks):
    theirs = LFQ(4, codebooks, 0.7, spherical, (0.1, 0.5, 0.25), dim=7).eval()
    ours = BinaryQuantizer.from_lfq(theirs, inverse_temperature=5.0)
    x = normal(2, 6, 7)
    quantized, number, loss = theirs(x, 5.0)
    found = ours(x)
    torch.testing.assert_close(found.quantized, quantized)
    assert torch.equal(found.indices, number if codebooks > 1 else number[..., 0])
    torch.testing.assert_close(found.losses.total, loss)
    assert not ours.training and ours.project_in is theirs.project_in
    if spherical:
        other = BinaryQuantizer.from_bsq(theirs)
        assert torch.equal(other(x).quantized, found.quantized)


def bsq(**changed):
    """The attributes of bsq-vit's."""
    settings = {"embed_dim": 6, "num_groups": 2, "beta": 0.3, "gamma0": 0.8, "gamma": 0.4}
    settings |= {"zeta": 0.5, "input_format": "bchw", "soft_entropy": True, "l2_norm": True}
    return SimpleNamespace(**settings | {"inv_temperature": 2.0, "training": True} | changed)


@pytest.mark.parametrize("on_sphere", [True, False])
def test_settings_of_bsq(on_sphere):
    ours = BinaryQuantizer.from_bsq(bsq(l2_norm=on_sphere))
    x = normal(2, 6, 3, 4)
    x = normalize(x, dim=1) if on_sphere else x
    x.requires_grad_(True)
    found = ours(x)
    scale = 6**-0.5 if on_sphere else 1.0
    tokens = x.detach().movedim(1, -1).flatten(0, 2)
    token, codebook = entropies(tokens, scale, 2.0, 2)
    codes = torch.where(tokens > 0, scale, -scale)
    loss = 0.3 * (tokens - codes).square().sum(1).mean()
    loss = loss + 0.5 * (0.8 * token - 0.4 * codebook) / 2
    torch.testing.assert_close(found.losses.total, loss.float())
    torch.testing.assert_close(found.quantized.movedim(1, -1).flatten(0, 2), codes)
    assert torch.equal(found.indices.flatten(), ops.code_indices(codes, "msb"))
    towards = normal(2, 6, 3, 4, seed=1)
    (grad,) = torch.autograd.grad((found.quantized * towards).sum(), x)
    along = x.detach() * (towards * x.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(grad, scale * (towards - along) if on_sphere else towards)


@pytest.mark.parametrize(
    ("attempt", "sentence"),
    [
        (lambda: BinaryQuantizer(0), "bits must be a whole number from 1 up; got 0"),
        (lambda: BinaryQuantizer(6, 4), "groups must divide 6 bits; got 4"),
        (lambda: BinaryQuantizer(66), "groups must leave at most 32 bits in each"),
        (lambda: BinaryQuantizer(66, 6, index="code"), "at most 63 bits, got 66: use"),
        (lambda: BinaryQuantizer(4, scale=0.0), "scale must be a finite number above 0; got 0.0"),
        (lambda: BinaryQuantizer(4, token_weight=math.nan), "token_weight must be a finite number"),
        (lambda: BinaryQuantizer(4, spherical="all"), "spherical must be True, False or"),
        (lambda: BinaryQuantizer(4, surrogate="relu"), "surrogate must be one of 'identity'"),
        (lambda: BinaryQuantizer(4, index="bits"), "index must be one of"),
        (lambda: BinaryQuantizer(4)(normal(2, 3, 5)), "x must have two dimensions or more, and 4"),
        (lambda: BinaryQuantizer(4)(normal(2, 3, 3, 4)), "4 in dimension 1; got shape"),
        (lambda: BinaryQuantizer(4)(normal(2, 4).long()), "x must have dtype"),
        (lambda: BinaryQuantizer(4)(normal(2, 4) * math.nan), "must be numbers; got NaN"),
        (lambda: BinaryQuantizer(4)(normal(2, 4), torch.zeros(2)), "weight must be above 0"),
        (lambda: BinaryQuantizer(4)(normal(2, 4), torch.ones(3)), "one for each token"),
        (lambda: BinaryQuantizer(4)(normal(2, 4), noise=normal(2, 4)), "noise must be None unless"),
        (
            lambda: BinaryQuantizer(4, 2).codes_of(torch.zeros(3, dtype=torch.int64)),
            "have 2 groups",
        ),
        (lambda: BinaryQuantizer.from_lfq(nn.Linear(2, 3)), "must be a LFQ; got Linear"),
        (lambda: BinaryQuantizer.from_bsq(nn.Linear(2, 3)), "SphericalQuantizer; got Linear"),
        (lambda: BinaryQuantizer.from_bsq(bsq(soft_entropy=False)), "must have soft_entropy"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(attempt, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        attempt()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def tokens_of(rank, world):
    """Unequal parts of 12 tokens and weights, where rank 1 has weights of 0 only."""
    x, weight = normal(12, 5), torch.rand(12, generator=torch.Generator().manual_seed(1))
    weight[4:6] = 0
    bounds = [0, 4, 12] if world == 2 else [0, 4, 6, 12]
    part = slice(bounds[rank], bounds[rank + 1])
    return x[part], weight[part]


def model():
    torch.manual_seed(3)
    return BinaryQuantizer(
        6, 2, dim=5, inverse_temperature=0.3, commitment_weight=0.5, codebook_weight=1.0
    )


def trained_apart(rank, port, world, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    together = nn.parallel.DistributedDataParallel(model())
    x, weight = tokens_of(rank, world)
    quantized, _, losses = together(x, weight)
    (losses.total + 0 * quantized.sum()).backward()  # DDP waits for all parameters
    gradients = [p.grad for p in together.module.project_in.parameters()]
    compiled = torch.compile(together.module, fullgraph=True, backend="aot_eager")
    again = compiled(x, weight).losses
    torch.save([list(losses), gradients, list(again)], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.processes
def test_several_processes_are_as_one(world, tmp_path):
    x, weight = normal(12, 5), torch.rand(12, generator=torch.Generator().manual_seed(1))
    weight[4:6] = 0
    alone = model()
    losses = alone(x, weight).losses
    losses.total.backward()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(trained_apart, (port, world, tmp_path), nprocs=world)
    for rank in range(world):
        values, gradients, again = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(values, list(losses))
        torch.testing.assert_close(again, list(losses))
        torch.testing.assert_close(gradients, [p.grad for p in alone.project_in.parameters()])
