"""Modules are left as they are found, whatever is measured of them and however that ends."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from fastlatent import geometry
from fastlatent.geometry.experiment import eigenvector_pairs, experiment
from fastlatent.geometry.field import metric_field
from fastlatent.paths import likelihood_path

D = 2


def points(n: int = 3) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def state(module: nn.Module) -> dict:
    """What a user can see of a module: objects by identity, and values of tensors."""
    seen = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for name, value in vars(part).items():
            seen[path, name] = held(value)
            if isinstance(value, dict):
                seen |= {(path, name, key): held(entry) for key, entry in value.items()}
                seen[path, name, "order"] = tuple(value)
            if isinstance(value, list):
                seen[path, name, "entries"] = tuple(map(id, value))
        seen[path, "type"] = type(part), part.training
    return seen


def held(value) -> tuple:
    if not isinstance(value, torch.Tensor):
        return type(value), value if isinstance(value, int | float | bool | str) else id(value)
    gradient = (
        None
        if not value.is_leaf or value.grad is None
        else (id(value.grad), *value.grad.flatten().tolist())
    )
    numbers = tuple(value.detach().flatten().tolist())
    return type(value), id(value), value.requires_grad, value.data_ptr(), gradient, numbers


class Both:
    """Holds a module and a part of it."""

    def __init__(self, module: nn.Sequential):
        self.part, self.module, self.list = module[-1], module, [module[0], {"again": module}]

    def __call__(self, z):
        return self.module(z) + self.part(self.list[0](z))


class Counting(nn.Module):
    """Writes to what it holds, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("peak", torch.zeros(4))
        self.calls, self.last, self.seen = 0, None, []

    def forward(self, z):
        self.calls += 1
        self.count += 1
        self.layer.weight.data.clamp_(min=0)
        with torch.no_grad():
            self.scale.mul_(0.5)
        y = self.layer(z) * self.scale
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.peak.data.add_(1)
        self.last = y
        self.seen.append(y)
        return y.tanh() + self.peak


class Wrapper(nn.Module):
    """As those that spread a module over devices."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.replicas = [module]

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, z):
        return self.replicas[0](z)


class Waiting(nn.Module):
    """Makes a layer and a table at the first input."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = None, None
        self.register_buffer("shift", None)

    def forward(self, z):
        if self.layer is None:
            self.layer = nn.Linear(D, 4)
            self.shift = torch.ones(4)
        if self.table is None:
            self.table = torch.arange(4.0)
        return self.layer(z).tanh() * self.table + self.shift


def twice(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(D, 4))


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 4), nn.Linear(4, 3))
    net[3].weight = nn.Parameter(net[2].weight.detach().mT.contiguous())
    net[2].bias = net[2].weight_too = nn.Parameter(torch.ones(4))
    net.append(nn.Linear(3, 4))
    net[4].weight, net[4].bias = net[2].weight, net[2].bias
    return net


def hooked() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh())
    net[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    net[0].register_forward_hook(lambda module, args, y: setattr(module, "kept", y))
    net.register_full_backward_hook(lambda module, gin, gout: None)
    return net


def frozen() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 4))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net[2].weight.grad = torch.ones(4, 3)
    return net


def sequence(module: nn.Module):
    return lambda z: module(z[:, None].expand(-1, 3, -1))[0]


def inferred() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Tanh()).eval()


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 4)).eval()


def of(hold, build=lambda: twice(nn.Linear(D, D)).eval()):
    """A module, and what refers to it."""

    def make():
        net = build()
        return net, hold(net)

    return make


def itself(net):
    return net


SHAPES = {
    "twice": of(itself),
    "twice, nested": of(lambda net: nn.Sequential(nn.Sequential(net[0]), net)),
    "tied": of(itself, tied),
    "closure of parent and child": of(lambda net: lambda z: net(z) + net[0](z)[:, :1]),
    "closure of child and parent": of(
        lambda net: (lambda child: lambda z: child(z)[:, :1] + net(z))(net[0])
    ),
    "partial": of(lambda net: functools.partial(lambda a, z, b: a(z) + b[0](z)[:, :1], net, b=net)),
    "object": of(Both),
    "method": of(lambda net: Both(net).__call__),
    "attributes": of(
        lambda net: (lambda held: lambda z: held.b(held.a(z)))(SimpleNamespace(a=net[0], b=net))
    ),
    "list": of(lambda net: (lambda nets: lambda z: nets[1](nets[0](z)))([net[0], net])),
    "weight norm": of(itself, lambda: twice(parametrizations.weight_norm(nn.Linear(D, D))).eval()),
    "old weight norm": of(itself, lambda: twice(nn.utils.weight_norm(nn.Linear(D, D))).eval()),
    "spectral norm": of(
        itself, lambda: twice(parametrizations.spectral_norm(nn.Linear(D, D))).eval()
    ),
    "old spectral norm": of(itself, lambda: twice(nn.utils.spectral_norm(nn.Linear(D, D))).eval()),
    "hooks": of(itself, hooked),
    "writes": of(itself, lambda: Counting().eval()),
    "writes, in training": of(itself, Counting),
    "training": of(
        itself, lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Dropout(0.0)).train()
    ),
    "batch norm": of(itself, lambda: nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4)).eval()),
    "one batch norm twice": of(itself, lambda: nn.Sequential(*2 * [nn.BatchNorm1d(D)]).eval()),
    "nested": of(itself, lambda: nn.Sequential(nn.Sequential(plain()), nn.Sequential()).eval()),
    "module list": of(
        lambda net: lambda z: net[1](net[0](z)),
        lambda: nn.ModuleList([nn.Linear(D, D), nn.Linear(D, 4)]),
    ),
    "parameter list": of(
        lambda net: lambda z: (z @ net[0]).tanh() @ net[1] + net[0][0],
        lambda: nn.ParameterList([torch.ones(D, D), torch.ones(D, D)]),
    ),
    "wrapper": of(itself, lambda: Wrapper(twice(nn.Linear(D, D))).eval()),
    "data parallel": of(itself, lambda: nn.DataParallel(twice(nn.Linear(D, D))).eval()),
    "frozen": of(itself, frozen),
    "recurrent": of(sequence, lambda: nn.GRU(D, 3, batch_first=True).eval()),
    "inference": of(itself, inferred),
    "compiled": of(lambda net: torch.compile(net, backend="eager")),
    "compiled part": of(
        lambda net: nn.Sequential(torch.compile(net[0], backend="eager"), net).eval()
    ),
    "scripted": of(itself, lambda: torch.jit.script(plain())),
    "exported": of(
        lambda net: torch.export.export(
            net, (points(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        ).module(),
        plain,
    ),
    "mean and variance": of(lambda net: lambda z: (net(z), net[0](z).exp().repeat(1, 2))),
}

FUNCTIONS = {
    "matrix": lambda f: geometry.pullback_metric(f, points()),
    "matrix by torch.func": lambda f: geometry.as_metric(f, analytic=False).matrix(points()),
    "backward": lambda f: backward(geometry.as_metric(f)),
    "backward by torch.func": lambda f: backward(geometry.as_metric(f, analytic=False)),
}


def backward(metric: geometry.Embedding) -> None:
    z = points().requires_grad_()
    (metric.output(z).sum() + metric.speed_squared(z, points()).sum()).backward()


@pytest.fixture
def make(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param()


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES, indirect=True)
def test_modules_of_all_shapes(make):
    module, decoder = make
    before = state(module)
    for name, function in FUNCTIONS.items():
        function(decoder)
        assert state(module) == before, name
    found = geometry.as_metric(decoder).output(points())
    with torch.no_grad():
        output = decoder(points())  # which may change the module
    if isinstance(output, torch.Tensor):
        torch.testing.assert_close(found, output.flatten(1))


@pytest.mark.parametrize("at", range(9))
def test_whatever_call_of_a_decoder_fails(at):
    """The modules are as found when the decoder raises at its n-th run."""
    left = [at]
    net = twice(nn.Linear(D, D)).eval()

    def decoder(z):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("enough")
        return net(z) * net[0](z)[:, :1]

    before = state(net)
    for function in FUNCTIONS.values():
        left[0] = at
        try:
            function(decoder)
        except (RuntimeError, ValueError) as error:
            assert "enough" in str(error)
        assert state(net) == before


EVERYTHING = {
    "as_metric": lambda f: geometry.as_metric(f, example=points()),
    "condition_number": lambda f: geometry.condition_number(geometry.pullback_metric(f, points())),
    "feature map": lambda f: geometry.pullback_metric(nn.Flatten(), points(), f),
    "jacobian": lambda f: geometry.jacobian(f, points()),
    "speed": lambda f: geometry.speed(f, points(), points()),
    "curve_length": lambda f: [
        geometry.curve_length(f, line().control, rule=rule)
        for rule in ("chord", "gauss", "original")
    ],
    "curve_measure": lambda f: geometry.curve_measure(f, line()),
    "distance_matrix": lambda f: geometry.distance_matrix(f, points(), spans=(1,)),
    "equal_steps": lambda f: geometry.equal_steps(f, line(), 4),
    "midpoint": lambda f: geometry.midpoint(f, line()),
    "graph_curves": lambda f: geometry.graph_curves(f, points(9), points(), -points()),
    "geodesic": lambda f: geometry.geodesic(f, points(), -points(), spans=(1,), max_iterations=1),
    "adam": lambda f: geometry.geodesic(
        f, points(), -points(), "adam", spans=(1,), max_iterations=2
    ),
    "original": lambda f: geometry.geodesic(f, points(), -points(), "original", max_iterations=2),
    "field": lambda f: metric_field(f, -torch.ones(2), torch.ones(2), 4),
    "pairs": lambda f: eigenvector_pairs(f, points()),
    "experiment": lambda f: experiment(f, points(), -points(), spans=(1,), max_iterations=1),
}  # fmt: skip


def line() -> geometry.Curves:
    return geometry.straight(points(), -points())


@pytest.mark.parametrize("function", EVERYTHING.values(), ids=EVERYTHING)
@pytest.mark.parametrize("shape", ["twice", "writes", "object"])
def test_all_public_functions(function, shape):
    module, decoder = SHAPES[shape]()
    before = state(module)
    function(decoder)
    assert state(module) == before


def test_a_density_is_left_as_found():
    net = Counting().train()
    before = state(net)
    found = likelihood_path(lambda z: -net(z).square().sum(1), points(), -points(), iterations=3)
    assert found.points.isfinite().all() and state(net) == before


def test_latents_are_left_as_found():
    z = points()
    kept = z.clone()
    for analytic in (True, False):
        metric = geometry.as_metric(
            nn.Sequential(nn.Tanh(), nn.Hardtanh(-0.1, 0.1, inplace=True)), analytic=analytic
        )
        metric = geometry.as_metric(lambda z: F.elu(z, inplace=True), analytic=analytic)
        metric.matrix(z)
        metric.output(z)
    assert torch.equal(z, kept)


def test_what_waits_for_the_first_input_is_made_once():
    for decoder in (Waiting(), nn.Sequential(nn.LazyLinear(4), nn.Tanh())):
        metric = geometry.as_metric(decoder, analytic=False)
        matrix = metric.matrix(points())
        before = state(decoder)
        torch.testing.assert_close(geometry.pullback_metric(decoder, points()), matrix)
        backward(metric)
        assert state(decoder) == before
        assert all(p.requires_grad and p.grad is None for p in decoder.parameters())
        assert len([*decoder.parameters()]) == 2
