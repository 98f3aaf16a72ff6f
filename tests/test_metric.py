"""Pull-back metrics: closed forms, published decoders, bounded memory, bad input."""

import functools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobians import by_autograd
from memory import allocated
from safetensors.torch import load_file
from torch import Tensor, nn
from trained_decoders import FOLDER, LATENTS, OUTPUTS, Mean, bigan, vae

from fastlatent.geometry import (
    Embedding,
    MetricField,
    as_metric,
    condition_number,
    jacobian,
    log_volume,
    pullback_metric,
    speed,
)
from fastlatent.geometry.tiles import CPU_BYTES

quick = settings(max_examples=25, deadline=None, derandomize=True)

# z: tr M, smallest and largest eigenvalue, M_00, log det
BIGAN = {
    "0": (1699.987061, 0.027967, 845.006821, 26.106592, 37.549904),
    "z_lin": (1862.745574, 0.050697, 597.711899, 84.706412, 43.520770),
    "ones": (1779.959141, 0.025752, 829.492747, 63.169200, 24.685676),
    "-ones": (2005.096178, 0.107293, 885.995991, 30.409291, 45.704055),
}
VAE = {
    "0": (433.857206, 0.900603, 109.288057, 2.222093, 39.941852),
    "z_lin": (568.698968, 0.405274, 231.342353, 2.550238, 37.973973),
    "ones": (682.250706, 1.055189, 183.477503, 3.432948, 46.320816),
    "-ones": (391.260448, 0.201561, 151.621968, 2.566932, 26.847968),
}
VAE_MEAN_TRACE = {"0": 430.780494, "z_lin": 556.161323, "ones": 662.863021, "-ones": 361.654042}
TOP = {
    "bigan_start": (1153.3714, 867.2084, 892.8550, 835.4865, 1967.7251, 1497.7649),
    "vae_start": (199.8337, 156.7122, 135.7082),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)


def network(d: int = 3, out: int = 12, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, out), nn.Sigmoid())
    return layers.to(dtype)


class Stochastic(nn.Module):
    """Mean and variance of given modules, for images of 3 by 4."""

    def __init__(self, mean: nn.Module, variance: nn.Module):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, z):
        return self.mean(z).view(-1, 3, 4), self.variance(z)


def linear(weight: Tensor, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def sphere(u: Tensor) -> Tensor:
    """The unit sphere by stereographic projection: (n, 2) -> (n, 3)."""
    q = u.square().sum(1, keepdim=True)
    return torch.cat([2 * u, q - 1], 1) / (1 + q)


@pytest.mark.parametrize(("name", "part"), [("vae mean", 0), ("vae variance", 1), ("bigan", None)])
def test_reference_outputs(data_root, name, part):
    decoder = (bigan if part is None else vae)(data_root)
    z = torch.stack([LATENTS[at] for at in OUTPUTS[name]])
    with torch.no_grad():
        y = decoder(z) if part is None else decoder(z)[part]
        y = y.flatten(1)
        f = as_metric(decoder).output(z)
    torch.testing.assert_close(
        f if part is None else f[:, :784] if part == 0 else f[:, 784:].square(), y
    )
    total, squares, centre = torch.tensor(list(OUTPUTS[name].values()), dtype=torch.float64).T
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(y.sum(1), total, **close)
    torch.testing.assert_close(y.square().sum(1), squares, **close)
    torch.testing.assert_close(y[:, 406], centre, **close)


@pytest.mark.parametrize(("build", "table"), [(bigan, BIGAN), (vae, VAE)], ids=["bigan", "vae"])
def test_trained_decoders(data_root, build, table):
    decoder = build(data_root)
    z = torch.stack([LATENTS[name] for name in table])
    metric = as_metric(decoder, example=z)
    assert metric.analytic, metric.obstacle
    m = metric.matrix(z)
    j = by_autograd(decoder, z)
    torch.testing.assert_close(m, j.mT @ j, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(jacobian(decoder, z), j, rtol=1e-10, atol=1e-10)
    by_func = as_metric(decoder, example=z, analytic=False)
    assert not by_func.analytic
    torch.testing.assert_close(by_func.matrix(z), m, rtol=1e-10, atol=1e-10)
    eigenvalues = torch.linalg.eigvalsh(m)
    expected = torch.tensor(list(table.values()), dtype=torch.float64).T
    trace, smallest, largest, corner, log_det = expected
    close = {"rtol": 1e-5, "atol": 0.0}
    torch.testing.assert_close(m.diagonal(dim1=1, dim2=2).sum(1), trace, **close)
    torch.testing.assert_close(eigenvalues[:, -1], largest, **close)
    torch.testing.assert_close(m[:, 0, 0], corner, **close)
    torch.testing.assert_close(eigenvalues[:, 0], smallest, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(2 * log_volume(m), log_det, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(condition_number(m), largest / smallest, rtol=1e-4, atol=0.0)


def test_trained_mean_alone(data_root):
    z = torch.stack([LATENTS[name] for name in VAE_MEAN_TRACE])
    m = pullback_metric(Mean(vae(data_root)), z)
    expected = torch.tensor(list(VAE_MEAN_TRACE.values()), dtype=torch.float64)
    torch.testing.assert_close(m.diagonal(dim1=1, dim2=2).sum(1), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("build", "name"), [(bigan, "bigan_start"), (vae, "vae_start")])
def test_largest_eigenvalues_at_the_published_pairs(data_root, build, name):
    z = load_file(data_root / FOLDER / "check_pairs.safetensors")[name].double()
    largest = torch.linalg.eigvalsh(pullback_metric(build(data_root), z))[:, -1]
    torch.testing.assert_close(
        largest, torch.tensor(TOP[name], dtype=torch.float64), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("build", [bigan, vae])
def test_float32_agrees_with_float64(data_root, build):
    z = normal(12, 16).float()
    exact = pullback_metric(build(data_root), z.double())
    single = pullback_metric(build(data_root, torch.float32), z)
    error = (single - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert error.max() < 2e-6  # 4e-7 are published for other latents
    smallest = [torch.linalg.eigvalsh(m.double())[:, 0] for m in (single, exact)]
    torch.testing.assert_close(*smallest, rtol=1e-2, atol=0)


def test_linear_decoder():
    w, z = normal(9, 4), normal(5, 4, seed=1)
    for decoder in (linear(w, bias=True), lambda x: x @ w.T + 1):
        m = pullback_metric(decoder, z)
        torch.testing.assert_close(m, (w.T @ w).expand(5, -1, -1), rtol=0, atol=1e-12)


def test_linear_mean_deviation_and_feature():
    a, b, phi = normal(12, 3), normal(12, 3, seed=1), normal(6, 12, seed=2)
    z = normal(5, 3, seed=3)

    def decoder(x):
        return (x @ a.T).view(-1, 3, 4), (x @ b.T).square()

    feature = nn.Sequential(nn.Flatten(), linear(phi))
    expected = a.T @ phi.T @ phi @ a + b.T @ torch.diag((phi.T @ phi).diagonal()) @ b
    m = pullback_metric(decoder, z, feature)
    torch.testing.assert_close(m, expected.expand(5, -1, -1), rtol=0, atol=1e-12)
    plain = pullback_metric(decoder, z)
    torch.testing.assert_close(plain, (a.T @ a + b.T @ b).expand(5, -1, -1), rtol=0, atol=1e-12)


def feature_metric_by_definition(mean, variance, phi, z):
    """J_m^T M_phi J_m + J_s^T diag(M_phi) J_s of each latent, by reverse mode."""

    def one(x):
        image = mean(x[None])[0]
        j_m = torch.autograd.functional.jacobian(lambda x: mean(x[None])[0], x, create_graph=True)
        j_s = torch.autograd.functional.jacobian(
            lambda x: variance(x[None])[0].sqrt(), x, create_graph=True
        )
        j_phi = torch.autograd.functional.jacobian(
            lambda y: phi(y.view(1, 3, 4))[0], image, create_graph=True
        )
        m_phi = j_phi.T @ j_phi
        return j_m.T @ m_phi @ j_m + j_s.T @ torch.diag(m_phi.diagonal()) @ j_s

    return torch.stack([one(x) for x in z])


@pytest.mark.parametrize("kind", ["logistic", "other"])
def test_features_of_a_stochastic_decoder(kind):
    """With gradients through all of it, J_phi included."""
    mean, variance = network(), network()
    layer = nn.Linear(12, 5).double()
    last = nn.LogSoftmax(1) if kind == "logistic" else nn.Softmax(1)
    phi = nn.Sequential(nn.Flatten(), layer, last)
    z, v = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    metric = as_metric(Stochastic(mean, variance), phi, z)
    assert not isinstance(metric, Embedding)
    expected = feature_metric_by_definition(mean, variance, phi, z)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(metric.matrix(z), expected, **close)
    by_matrix = torch.einsum("ni,nij,nj->n", v, expected, v)
    squared = metric.speed_squared(z, v)
    torch.testing.assert_close(squared, by_matrix, **close)
    gradients = [torch.autograd.grad(y.sum(), z)[0] for y in (squared, by_matrix)]
    torch.testing.assert_close(*gradients, **close)
    with torch.no_grad():
        metric.max_bytes = 1
        torch.testing.assert_close(metric.matrix(z), expected, **close)
        torch.testing.assert_close(metric.speed_squared(z, v), by_matrix, **close)


def test_features_of_a_deterministic_decoder():
    f, phi = network(), nn.Sequential(nn.Linear(12, 5), nn.LogSoftmax(1)).double()
    z, v = normal(6, 3).requires_grad_(), normal(6, 3, seed=1)
    metric = as_metric(f, phi, z)
    assert isinstance(metric, Embedding) and metric.analytic
    j = by_autograd(nn.Sequential(f, phi), z)
    torch.testing.assert_close(metric.matrix(z), j.mT @ j, rtol=1e-10, atol=1e-12)
    # J_phi = W - 1 p^T W
    x = f(z)
    w = phi[0].weight
    j_phi = w - torch.einsum("nk,kj->nj", phi(x).exp(), w)[:, None]
    j_phi = j_phi @ by_autograd(f, z)
    squared = torch.einsum("nkd,nd->nk", j_phi, v).square().sum(1)
    torch.testing.assert_close(metric.speed_squared(z, v), squared, rtol=1e-10, atol=0)


CONSTANTS = {
    "number": lambda z: 0.5,
    "scalar": lambda z: torch.tensor(0.5),
    "one row": lambda z: torch.full((1, 12), 0.5, dtype=z.dtype),
    "zero": lambda z: torch.zeros(len(z), 12, dtype=z.dtype),
    "detached": lambda z: z.detach()[:, :1].square().expand(-1, 12),
}


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS.keys())
@pytest.mark.parametrize("analytic", [True, False])
def test_a_constant_variance_adds_nothing(constant, analytic):
    f, z, v = network(), normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    metric = as_metric(lambda x: (f(x), constant(x)), analytic=analytic)
    alone = as_metric(f)
    torch.testing.assert_close(metric.matrix(z), alone.matrix(z))
    torch.testing.assert_close(metric.output(z), f(z))
    gradient = torch.autograd.grad(metric.speed_squared(z, v).sum(), z)
    torch.testing.assert_close(gradient, torch.autograd.grad(alone.speed_squared(z, v).sum(), z))


@pytest.mark.parametrize("analytic", [True, False])
def test_a_variance_of_zero_at_some_pixels(analytic):
    f, z = network(), normal(4, 3)
    where = torch.arange(12.0).double() % 2
    metric = as_metric(lambda x: (f(x), where * f(x)), analytic=analytic)
    j = by_autograd(lambda x: (f(x), f(x)), z)
    j[:, 12::2] = 0
    torch.testing.assert_close(metric.matrix(z), j.mT @ j)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("analytic", [True, False])
def test_forward_mode_is_reverse_mode(dtype, analytic):
    f, z, v = network(dtype=dtype), normal(6, 3, dtype=dtype), normal(6, 3, seed=1, dtype=dtype)
    metric = as_metric(f, analytic=analytic)
    j = by_autograd(f, z)
    m = metric.matrix(z)
    close = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    )
    torch.testing.assert_close(metric.jacobian(z), j, **close)
    torch.testing.assert_close(m, j.mT @ j, **close)
    torch.testing.assert_close(metric.jvp(z, v), torch.einsum("noi,ni->no", j, v), **close)
    squared = torch.einsum("ni,nij,nj->n", v, m, v)
    torch.testing.assert_close(metric.speed_squared(z, v), squared, **close)
    torch.testing.assert_close(speed(f, z, v), squared.sqrt(), **close)
    assert torch.equal(m, m.mT)
    assert torch.linalg.eigvalsh(m.double()).min() > -1e-6 * m.abs().max()
    assert m.dtype == dtype


def test_sphere():
    u = normal(7, 2)
    m = pullback_metric(sphere, u)
    q = u.square().sum(1)
    expected = (4 / (1 + q) ** 2)[:, None, None] * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(m, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_volume(m), (4 / (1 + q) ** 2).log())


def test_metric_given_directly():
    half_plane = MetricField(lambda z: torch.eye(2, dtype=z.dtype) / z[:, 1:, None] ** 2, 2)
    z, v = torch.tensor([[0.0, 1.0], [3.0, 2.0]]).double(), normal(2, 2)
    torch.testing.assert_close(half_plane.speed_squared(z, v), v.square().sum(1) / z[:, 1] ** 2)
    assert as_metric(half_plane) is half_plane
    torch.testing.assert_close(pullback_metric(half_plane, z), half_plane.matrix(z))
    with pytest.raises(ValueError, match="not pulled back from a Euclidean space"):
        jacobian(half_plane, z)
    with pytest.raises(ValueError, match="z must have shape \\(n, 2\\)"):
        half_plane.matrix(normal(2, 3))
    with pytest.raises(ValueError, match="the function must give"):
        MetricField(lambda z: z).matrix(z)
    with pytest.raises(ValueError, match="feature_map needs a decoder"):
        as_metric(half_plane, network())


@pytest.mark.parametrize("analytic", [True, False])
def test_gradients_of_output_and_speed(analytic):
    f = network()
    metric = as_metric(f, analytic=analytic)
    z, v = normal(3, 3).requires_grad_(), normal(3, 3, seed=1).requires_grad_()
    metric.output(z)
    assert torch.autograd.gradcheck(metric.output, (z,))
    assert torch.autograd.gradgradcheck(metric.output, (z,))
    assert torch.autograd.gradcheck(metric.speed_squared, (z, v))
    assert all(p.grad is None for p in f.parameters())
    metric.output(z).sum().backward()
    assert z.grad is not None and all(p.grad is None for p in f.parameters())


def test_speed_zero_has_gradient_zero():
    z, v = normal(2, 3).requires_grad_(), torch.zeros(2, 3).double().requires_grad_()
    by_z, by_v = torch.autograd.grad(speed(network(), z, v).sum(), (z, v))
    assert not by_z.any() and not by_v.any()


def test_log_volume_does_not_overflow():
    m = 1e5 * torch.eye(200, dtype=torch.float64)[None]
    assert torch.isinf(torch.linalg.det(m)).all()
    torch.testing.assert_close(log_volume(m), 100 * torch.tensor([1e5]).double().log())
    single = log_volume(m.float())
    assert single.dtype == torch.float32 and single.isfinite().all()
    singular, unknown = torch.zeros(2, 2), torch.full((2, 2), torch.nan)
    assert log_volume(singular) == -torch.inf and log_volume(unknown).isnan()
    assert condition_number(torch.diag(torch.tensor([2.0, 0.0]))) == torch.inf
    assert condition_number(singular) == torch.inf and condition_number(unknown).isnan()
    a = normal(4, 3, 3)
    spd = (a @ a.mT + torch.eye(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: log_volume((m + m.mT) / 2), (spd,))


@quick
@given(st.integers(1, 200_000), st.integers(1, 9))
def test_chunks_do_not_change_results(max_bytes, n):
    f, z, v = network(d=5), normal(n, 5), normal(n, 5, seed=1)
    for analytic in (True, False):
        whole, cut = as_metric(f, analytic=analytic), as_metric(f, analytic=analytic)
        cut.max_bytes = max_bytes
        for method in (whole.matrix, whole.jacobian, whole.output):
            chunked = getattr(cut, method.__name__)(z)
            torch.testing.assert_close(chunked, method(z), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(cut.speed_squared(z, v), whole.speed_squared(z, v))


def test_no_points():
    for z in (torch.zeros(0, 3), torch.zeros(0, 3).double()):
        metric = as_metric(network(dtype=z.dtype))
        for _ in range(2):
            assert metric.matrix(z).shape == (0, 3, 3)
            assert metric.jacobian(z).shape == (0, 12, 3)
            assert metric.output(z).shape == (0, 12)
            assert metric.speed_squared(z, z).shape == (0,)
            metric.output(normal(2, 3, dtype=z.dtype))  # from here on it knows the decoder


def test_smaller_chunks_when_memory_runs_out():
    """And a clear error once there is nothing left to halve."""
    f, z = network(d=5), normal(9, 5)
    room = 4
    seen = []

    class Narrow(type(as_metric(f))):
        def push_forward(self, z, tangents):
            rows = len(z) * (1 + tangents.shape[1])
            seen.append(rows)
            if rows > room:
                raise torch.OutOfMemoryError("no memory")
            return super().push_forward(z, tangents)

        def rows(self, z, tangents):
            return self.push_forward(z, tangents)[1]

    plain = as_metric(f)
    narrow = as_metric(f)
    narrow.__class__ = Narrow
    torch.testing.assert_close(narrow.matrix(z), plain.matrix(z))
    torch.testing.assert_close(narrow.jacobian(z), plain.jacobian(z))
    assert max(seen) > room
    room = 1
    with pytest.raises(MemoryError, match="matrix: out of memory with a single tangent"):
        narrow.matrix(z)


@pytest.mark.parametrize("analytic", [True, False])
def test_memory_does_not_grow_with_the_points(analytic):
    metric = as_metric(bigan(None, torch.float32), analytic=analytic)
    metric.matrix(normal(64, 16, dtype=torch.float32))
    z = normal(3_000, 16, dtype=torch.float32)
    used = allocated(lambda: metric.matrix(z))
    everything = len(z) * 17 * (2704 + 2352 + 2 * 784) * 4
    assert used < 2 * CPU_BYTES < everything / 10


def snapshot(module: nn.Module) -> list:
    state = [(name, value.clone()) for name, value in module.state_dict().items()]
    flags = [(m.training, len(m._forward_pre_hooks), list(vars(m))) for m in module.modules()]
    return state + flags + [(p.requires_grad, p.grad, p.data_ptr()) for p in module.parameters()]


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("build", [bigan, vae])
def test_modules_are_left_as_found(build, analytic):
    decoder = build(None)
    decoder(normal(1, 16))
    decoder.conv[0].ConvTranspose.bias.grad = (
        torch.ones(1)[0].expand_as(decoder.conv[0].ConvTranspose.bias).double()
    )
    before = snapshot(decoder)
    metric = as_metric(decoder, analytic=analytic)
    z = normal(3, 16).requires_grad_()
    metric.output(z).sum().backward()
    metric.speed_squared(z, z).sum().backward()
    metric.matrix(z.detach())
    after = snapshot(decoder)
    for a, b in zip(before, after, strict=True):
        assert all(same(x, y) for x, y in zip(a, b, strict=True)), (a, b)


def test_running_statistics_are_left_as_found():
    """An instance norm in training mode does not mix latents, but it counts them."""
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    decoder = nn.Sequential(nn.Linear(3, 48), nn.Unflatten(1, (3, 4, 4)), norm).double().train()
    pullback_metric(decoder, normal(4, 3))
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0 and norm.training


class Held:
    """Calls what it holds."""

    def __init__(self, net):
        self.net = net

    def __call__(self, z):
        return self.net(z)

    decode = __call__


def through(held):
    return lambda z: held[0](z)


def helped(net):
    def helper(z):
        return net(z)

    return lambda z: helper(z)


HOLDERS = {
    "object": Held,
    "method": lambda net: Held(net).decode,
    "object in a closure": lambda net: through((Held(net),)),
    "attribute": lambda net: (lambda held: lambda z: held.net(z))(SimpleNamespace(net=net)),
    "list": lambda net: through([net]),
    "tuple": lambda net: through((net,)),
    "dictionary": lambda net: through({0: net}),
    "partial": lambda net: functools.partial(lambda nets, z: nets[0](z), [net]),
    "helper": helped,
    "inner function": lambda net: lambda z: torch.cat([(lambda: net(x))() for x in z.split(2)]),
}  # fmt: skip


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_modules_are_found_wherever_they_are_held(hold):
    norm = nn.BatchNorm1d(12).double()
    net = nn.Sequential(network(), norm)
    with pytest.raises(ValueError, match=r"is in training mode.*\.eval\(\)"):
        pullback_metric(hold(net), normal(4, 3))
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    z = normal(4, 3).requires_grad_()
    as_metric(hold(net.eval())).output(z).sum().backward()
    assert z.grad.any() and all(p.grad is None for p in net.parameters())


namesake = nn.BatchNorm1d(12)


def test_attributes_are_no_global_variables():
    held = SimpleNamespace(namesake=network())
    assert pullback_metric(lambda z: held.namesake(z), normal(4, 3)).shape == (4, 3, 3)


class Counted(nn.Module):
    """Batch norm by hand."""

    def forward(self, z):
        return z - z.mean(0)


F = network()
BAD_DECODERS = {
    "integers": (lambda z: F(z).round().long(), TypeError, "floating dtype"),
    "detached": (lambda z: F(z.detach()), ValueError, "not differentiable"),
    "constant": (lambda z: torch.ones(len(z), 4).double(), ValueError, "not differentiable"),
    "numpy": (lambda z: torch.from_numpy(z.detach().numpy()), ValueError, "not differentiable"),
    "batch norm": (nn.Sequential(F, nn.BatchNorm1d(12)), ValueError, r"decoder\.1.*\.eval\(\)"),
    "no statistics": (
        nn.Sequential(F, nn.BatchNorm1d(12, track_running_stats=False)).eval(),
        ValueError,
        "no running statistics",
    ),
    "hidden batch norm": (
        lambda z: nn.functional.batch_norm(F(z).view(-1, 3, 4), None, None, training=True),
        ValueError,
        "depends on the others in its batch",
    ),
    "own batch norm": (Counted(), ValueError, "depends on the others in its batch"),
    "dropout": (nn.Sequential(F, nn.Dropout()), ValueError, "the output is random"),
    "hidden dropout": (
        lambda z: nn.functional.dropout(F(z), 0.5),
        ValueError,
        "or on chance",
    ),
    "a little noise": (
        lambda z: F(z) + 1e-6 * torch.randn(len(z), 12),
        ValueError,
        "depends on chance",
    ),
    "spectral norm": (
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)).double(),
        ValueError,
        "spectral norm in training mode",
    ),
    "old spectral norm": (
        nn.utils.spectral_norm(nn.Linear(3, 4)).double(),
        ValueError,
        "spectral norm in training mode",
    ),
    "latent size": (network(d=4), ValueError, "can't be evaluated on latents of shape"),
    "dtype": (network(dtype=torch.float32), ValueError, "dtype float64"),
    "one number": (lambda z: F(z).sum(), ValueError, r"output of shape \(n, ...\)"),
    "transposed": (lambda z: F(z).T, ValueError, r"output of shape \(n, ...\)"),
    "dictionary": (lambda z: {"mean": F(z)}, TypeError, "got dict"),
    "three": (lambda z: (z, z, z), TypeError, "tuple of length 3"),
    "sizes": (lambda z: (F(z), z.square()), ValueError, "as many elements"),
    "no function": ("decoder", TypeError, "got str"),
}


@pytest.mark.parametrize(("decoder", "kind", "words"), BAD_DECODERS.values(), ids=BAD_DECODERS)
def test_bad_decoders(decoder, kind, words):
    with pytest.raises(kind, match=words) as caught:
        pullback_metric(decoder, normal(4, 3))
    assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=words):
        pullback_metric(decoder, normal(1, 3))


BAD_LATENTS = {
    "list": ([[0.0, 0.0, 0.0]], TypeError, "z must be a tensor"),
    "integers": (torch.zeros(2, 3, dtype=torch.long), TypeError, "float32 or float64; got int64"),
    "half": (torch.zeros(2, 3, dtype=torch.half), TypeError, "float32 or float64; got float16"),
    "one": (torch.zeros(3).double(), ValueError, r"shape \(n, d\)"),
    "no columns": (torch.zeros(3, 0).double(), ValueError, r"shape \(n, d\)"),
    "nan": (torch.full((2, 3), torch.nan).double(), ValueError, "finite"),
    "infinite": (torch.full((2, 3), torch.inf).double(), ValueError, "finite"),
}


@pytest.mark.parametrize(("z", "kind", "words"), BAD_LATENTS.values(), ids=BAD_LATENTS)
def test_bad_latents(z, kind, words):
    for call in (jacobian, pullback_metric, lambda f, z: speed(f, z, z)):
        with pytest.raises(kind, match=words):
            call(network(), z)


def test_later_latents_must_be_alike():
    metric = as_metric(network())
    metric.output(normal(2, 3))
    with pytest.raises(ValueError, match=r"z must have shape \(n, 3\)"):
        metric.matrix(normal(2, 4))
    with pytest.raises(TypeError, match="must stay float64"):
        metric.matrix(normal(2, 3).float())
    with pytest.raises(ValueError, match="v must have the shape of z"):
        metric.speed_squared(normal(2, 3), normal(1, 3))
    with pytest.raises(TypeError, match="v must be a tensor of z's dtype"):
        metric.jvp(normal(2, 3), normal(2, 3).float())
    with pytest.raises(ValueError, match="example latents"):
        as_metric(network(), network(d=12))


def test_bad_matrices():
    for call in (log_volume, condition_number):
        with pytest.raises(ValueError, match=r"must be \(..., d, d\)"):
            call(torch.zeros(2, 3))
        with pytest.raises(TypeError, match="floating"):
            call(torch.zeros(2, 2, dtype=torch.long))
