"""Models of the user's own: trained in one call, recorded by their class, opened by every word."""

import json
import sys
from pathlib import Path

import pytest
import torch
from stranger import Stranger, Wide
from torch import nn

import fastlatent
import fastlatent.densities as densities
import fastlatent.reconstruct as reconstruct
from fastlatent import compare, evaluate, fit_prior, geodesics, interpolate, sample, walks
from fastlatent.inference.latents import draw
from fastlatent.models import AutoEncoder
from fastlatent.models.own import build_own, recorded
from fastlatent.priors import Hierarchical, VampPrior
from fastlatent.runs.trained import TrainedRun

FILE = str(Path(__file__).with_name("stranger.py"))
QUICK = {"device": "cpu", "batch": 16, "epochs": 1}
SHAPE = (1, 8, 8)


def images(n: int = 60) -> torch.Tensor:
    """(n, 1, 8, 8) in [0, 1]."""
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def model() -> Stranger:
    torch.manual_seed(0)
    return Stranger(SHAPE)


@pytest.fixture(scope="module")
def run(model: Stranger, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return fastlatent.train(model, images(), tmp_path_factory.mktemp("own") / "run", **QUICK)


def test_training_begins_with_the_weights_given_and_leaves_the_model(run, model):
    first = run.folder.load(0).tensors["weights"]
    assert first.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], tensor)
    assert not torch.equal(run.model.up.layers[0].weight, model.up.layers[0].weight)
    assert isinstance(run.model, Stranger) and run.model.pull == 0.1
    assert run.sample(3).shape == (3, *SHAPE) and run.encode(images(2)).shape == (2, 3)


def test_the_run_records_the_class_and_its_arguments(run):
    recorded = json.loads((run.path / "config.json").read_text())["model"]
    assert recorded["code"] == "stranger:Stranger"
    assert recorded["arguments"] == {
        "image_shape": {"tuple": [1, 8, 8]}, "latent_dim": 3, "pull": 0.1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "options"),
    [
        (sample, ["--images", "4"]),
        (reconstruct, ["--images", "4"]),
        (interpolate, ["--pairs", "2"]),
        (evaluate, ["--features", "none"]),
        (fit_prior, ["--components", "2"]),
        (geodesics, ["--pairs", "2", "--max-iterations", "2", "--no-map"]),
        (walks, ["--pairs", "2", "--out", "walks.csv"]),
        (compare, ["--out", "page.html"]),
    ],
    ids=lambda part: part.__name__.rpartition(".")[2] if hasattr(part, "__name__") else "",
)
def test_every_command_opens_it(run, word, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert word.main([str(run.path), *options]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--model-from FILE" in said and "stranger:Stranger" in said
    assert word.main([str(run.path), *options, "--model-from", FILE]) == 0, capsys.readouterr().err
    assert "Stranger" in capsys.readouterr().out or word is not compare


def test_it_is_resumed(run, capsys):
    words = ["--resume", str(run.path), "--epochs", "2"]
    assert fastlatent.train.main(words) == 2
    assert "--model-from FILE" in capsys.readouterr().err
    assert fastlatent.train.main([*words, "--model-from", FILE]) == 0
    assert f"fastlatent.sample {run.path} --model-from {FILE} --images" in capsys.readouterr().out
    assert fastlatent.load(run.path, model=Stranger).metrics[-1]["epoch"] == 2


@pytest.mark.parametrize("named", [{"model_from": FILE}, {"model_from": "stranger"}, {"model": 0}])
def test_python_opens_it_where_the_code_is_named(run, model, named):
    opened = fastlatent.load(run.path, **({"model": model} if "model" in named else named))
    assert opened.sample(2).shape == (2, *SHAPE) and opened.path == run.path
    with pytest.raises(ValueError, match="needs the code of stranger:Stranger"):
        fastlatent.load(run.path)


def test_a_run_folder_names_no_code_to_run(run, tmp_path):
    """Not what happens to be importable, and of torch only blocks of networks."""
    other = run.save(tmp_path / "run")
    config = json.loads((other / "config.json").read_text())
    for name in ("os:system", "torch:load", "torch.nn:Linear.__init__", "stranger:Stranger"):
        config["model"]["code"] = name
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"needs the code of {name}"):
            fastlatent.load(other)


def test_only_classes_are_made_of_a_run_folder(run, tmp_path):
    other = run.save(tmp_path / "run")
    config = json.loads((other / "config.json").read_text())
    call = {"code": "torch.nn.functional:relu", "arguments": {"input": 3}}
    config["model"]["arguments"]["pull"] = call
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="relu must be a class; it is function"):
        fastlatent.load(other, model=Stranger)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_thing", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("x = 1", "needs the code of stranger:Stranger"),
        ("class Stranger: pass", "stranger:Stranger must be a class of models"),
        (None, "cannot be loaded: there is no such file"),
    ],
)
def test_code_that_does_not_serve_is_told(run, text, words, tmp_path, capsys):
    path = tmp_path / "other.py"
    if text is not None:
        path.write_text(text)
    before = list(sys.path)
    assert sample.main([str(run.path), "--images", "2", "--model-from", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and sys.path == before


class Forgetful(Stranger):
    def __init__(self, image_shape, slope=0.5):
        super().__init__(image_shape, pull=slope)


class Doubling(Stranger):
    def __init__(self, image_shape, hidden=2):
        super().__init__(image_shape)
        self.hidden = 2 * hidden
        self.extra = nn.Linear(2, hidden)


class Total(Stranger):
    def forward(self, x):
        return super().forward(x).mean()


class Silent(Stranger):
    def forward(self, x):
        return {"error": super().forward(x)}


class Narrow(Stranger):
    def encode(self, x):
        return super().encode(x)[:, :1]

    def forward(self, x):
        return x.flatten(1).sum(1)


class Shapeless(nn.Module):
    def forward(self, x):
        return x


def inner() -> nn.Module:
    class Local(Stranger):
        pass

    return Local(SHAPE)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Forgetful(SHAPE, 0.7), "computes other numbers; each argument"),
        (lambda: Doubling(SHAPE), "has other weights; each argument"),
        (lambda: Total(SHAPE), r"forward of Total must return losses \(n,\)"),
        (lambda: Silent(SHAPE), "forward of Silent must return losses"),
        (lambda: Narrow(SHAPE), r"encode of Narrow must give a tensor \(4, 3\); got \(4, 1\)"),
        (Shapeless, "Shapeless must have forward, encode and decode; it lacks encode"),
        (inner, "must be a class or function at the top level"),
        (lambda: Stranger((1, 9, 9)), "takes images"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_what_breaks_the_contract_is_told_before_training(make, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        fastlatent.train(make(), images(), tmp_path / "run", **QUICK)


def encoder(dim: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2 * dim))


@pytest.mark.parametrize(
    ("likelihood", "numbers"),
    [
        ("bernoulli", 64),
        ("gaussian", 64),
        ("gaussian", 128),
        ("discretized_logistic", 128),
        ("discretized_logistic_mixture", 64 * 30),
    ],
)
@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_two_modules_become_an_autoencoder(likelihood, numbers, prior):
    torch.manual_seed(1)
    made = AutoEncoder(encoder(), nn.Linear(2, numbers), likelihood, prior, image_shape=SHAPE)
    assert made.latent_dim == 2
    twin = build_own(*recorded(made))
    twin.load_state_dict(made.state_dict())
    x = (images(5) * 255).round() / 255
    noise = fastlatent.noise.Noise(3, 0)
    values = made(x, noise=noise)
    assert torch.equal(values["loss"], values["reconstruction"] + values["kl"])
    for name, value in twin(x, noise=noise).items():
        assert value.shape == (5,) and torch.equal(value, values[name])
    values["loss"].mean().backward()
    assert all(part.grad is not None for part in made.parameters())
    decoded = made.decode(made.encode(x))
    assert decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1
    # The mean importance weight of one draw is its ELBO.
    weights = torch.stack([made.log_weights(made.features(x), x, fastlatent.noise.Noise(s, 0))
                           for s in range(600)])  # fmt: skip
    losses = torch.stack([made(x, noise=fastlatent.noise.Noise(s, 0))["loss"] for s in range(600)])
    gap = (weights + losses).mean(0).abs()
    assert (gap <= 5 * (weights + losses).std(0) / 600**0.5 + 1e-4).all()


def test_the_loss_is_the_negative_elbo():
    """By hand, of logits and a closed KL."""
    torch.manual_seed(2)
    encode, decode = encoder(), nn.Linear(2, 64)
    made = AutoEncoder(encode, decode, image_shape=SHAPE)
    x, noise = images(5), fastlatent.noise.Noise(0, 0)
    mean, log_variance = encode(x).chunk(2, 1)
    z = mean + (log_variance / 2).exp() * noise.normal("latent", mean.shape, "cpu", mean.dtype)
    pixels = nn.functional.binary_cross_entropy_with_logits(decode(z), x.flatten(1),
                                                            reduction="none").sum(1)  # fmt: skip
    kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
    torch.testing.assert_close(made(x, noise=noise)["loss"], pixels + kl)


def test_an_autoencoder_takes_the_shape_of_the_data_and_opens_without_code(tmp_path, capsys):
    """Blocks of torch need no naming; other people's do."""
    made = fastlatent.AutoEncoder(encoder(), nn.Linear(2, 64))
    run = fastlatent.train(made, images(), tmp_path / "run", **QUICK)
    assert run.model.image_shape == SHAPE and "AutoEncoder" in repr(run)
    assert "--model-from" not in capsys.readouterr().out
    assert sample.main([str(run.path), "--images", "2"]) == 0
    assert densities.main([str(run.path), "--images", "8"]) == 0
    mixed = fastlatent.AutoEncoder(encoder(), Wide(2, 64))
    run = fastlatent.train(mixed, images(), tmp_path / "mixed", **QUICK)
    assert sample.main([str(run.path), "--images", "2"]) == 2
    assert "needs the code of stranger:Wide" in capsys.readouterr().err
    assert sample.main([str(run.path), "--images", "2", "--model-from", FILE]) == 0


def test_a_prior_of_ones_own_learns_with_the_model():
    prior = VampPrior(2, SHAPE, 5)
    made = AutoEncoder(encoder(), nn.Linear(2, 64), prior=prior, image_shape=SHAPE)
    twin = build_own(*recorded(made))
    assert twin.latent_prior.components == 5 and isinstance(twin.latent_prior, VampPrior)
    assert sum("raw" in name for name in made.state_dict()) == 1
    with pytest.raises(ValueError, match=r"prior must be over 2 latents, .*; it is over 3"):
        AutoEncoder(encoder(), nn.Linear(2, 64), prior=VampPrior(3, SHAPE), image_shape=SHAPE)


def test_latents_of_a_prior_of_ones_own_are_drawn_with_and_without_its_noise():
    torch.manual_seed(3)
    prior = Hierarchical(2, 1, width=8, depth=1, start_scale=0.5).eval()
    made = AutoEncoder(encoder(), nn.Linear(2, 64), prior=prior, image_shape=SHAPE).eval()
    loud, quiet = (
        draw(made, "prior", 4000, torch.Generator().manual_seed(0), noise=noise)
        for noise in (True, False)
    )
    assert (loud - quiet).std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"encoder": len}, TypeError, "encoder must be a torch module; got builtin_function"),
        ({"likelihood": "normal"}, ValueError, "likelihood must be one of bernoulli, gaussian"),
        ({"prior": "gmm"}, ValueError, "prior must be 'normal', 'vamp', .* by run.fit_prior"),
        ({"encoder": nn.Flatten(0)}, ValueError, "encoder must give the mean and the log-variance"),
        ({"decoder": nn.Linear(2, 63)}, ValueError, r"decoder must give \(1, 8, 8\) numbers"),
    ],
)
def test_modules_that_do_not_fit_are_told(given, error, words):
    whole = {"encoder": encoder(), "decoder": nn.Linear(2, 64), "image_shape": SHAPE} | given
    with pytest.raises(error, match=words):
        AutoEncoder(**whole).decode(torch.zeros(3, 2))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that registers a model and a prior."""
    text = (
        Path(FILE)
        .read_text()
        .replace("image_shape: tuple[int, int, int],", "image_shape=(1, 28, 28),")
    )
    text += "\n\nclass Needs(Stranger):\n    def __init__(self, image_shape):\n        pass\n"
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "__init__.py").write_text(text)
    (tmp_path / "strange" / "priors.py").write_text(
        "from fastlatent.priors import Normal\nclass Mine(Normal):\n    pass\n"
    )
    info = tmp_path / "strange-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fastlatent.models]\nodd = strange:Stranger\nwide = strange:Wide\nbad = strange:nn\n"
        "needs = strange:Needs\n"
        "[fastlatent.priors]\nmine = strange.priors:Mine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("strange", "strange.priors"):
        sys.modules.pop(name, None)


def test_registered_models_are_trained_and_opened_by_name(package, capsys):
    out = package / "run"
    words = ["odd", "--out", str(out), "--epochs", "1", "--device", "cpu", "--data.per-class", "20"]
    assert "strange" not in sys.modules
    assert fastlatent.train.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "strange:Stranger" in said and "strange" not in sys.modules, "nothing imported"
    assert fastlatent.train.main(words) == 0, capsys.readouterr().err
    assert "--model-from" not in capsys.readouterr().out
    assert sample.main([str(out), "--images", "2"]) == 0
    assert fastlatent.load(out).config.model.code == "strange:Stranger"
    for name, words in (("wide", "must have forward, encode and decode"),
                        ("needs", "must be one that is built without arguments"),
                        ("bad", "must be a class"), ("od", "there is no preset")):  # fmt: skip
        assert fastlatent.train.main([name]) in (1, 2)
        assert words in capsys.readouterr().err


def test_registered_priors_learn_by_name(package):
    made = AutoEncoder(encoder(), nn.Linear(2, 64), prior="mine", image_shape=SHAPE)
    assert type(made.latent_prior).__name__ == "Mine"
    assert torch.isfinite(made(images(3), noise=fastlatent.noise.Noise(0, 0))["loss"]).all()


class Until:
    """Ends a training at a step, or after an epoch."""

    def __init__(self, step=None):
        self.step = step

    def on_step(self, moment):
        return moment.step == self.step

    def on_epoch(self, moment):
        return self.step is None


@pytest.mark.parametrize(("step", "end"), [(2, 2), (None, 3)])
def test_a_callback_ends_a_training(step, end, tmp_path, capsys):
    out = tmp_path / "run"
    settings = QUICK | {"epochs": 4}
    run = fastlatent.train(Stranger(SHAPE), images(), out, callbacks=[Until(step)], **settings)
    assert f"a callback ends the training at step {end} of 12" in capsys.readouterr().out
    assert run.folder.latest() == end and run.metrics[-1]["step"] == end
    assert run.metrics[-1]["kind"] == "test" and (out / "images" / "loss.png").is_file()
    assert fastlatent.train.main(["--resume", str(out), "--model-from", FILE]) == 0
    assert run.metrics[-1]["step"] == 12
