"""Other packages' Frechet distance by ours: the same number, and one where theirs fails."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

import fastlatent
from fastlatent.patches import TARGETS, patch

Array = np.ndarray
Moments = tuple[Array, Array]

NAMES = ("pytorch_fid", "cleanfid", "torchmetrics", "torch_fidelity")
BY_SCIPY = NAMES[:2]  # those whose matrix root is scipy.linalg.sqrtm


def distance(name: str, one: Moments, two: Moments) -> Any:
    """What the package itself finds for two means and covariances."""
    function = function_of(name)
    if name == "torchmetrics":
        return function(*map(torch.from_numpy, (*one, *two)))
    if name == "torch_fidelity":
        stored = ({"mu": mu, "sigma": sigma} for mu, sigma in (one, two))
        return function(*stored, False)["frechet_inception_distance"]
    return function(*one, *two)


def function_of(name: str) -> FunctionType:
    return getattr(TARGETS[name].module(), TARGETS[name].function)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


@pytest.fixture(params=BY_SCIPY)
def by_scipy(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


def installed(name: str) -> str:
    distribution = TARGETS[name].distribution
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    return name


def moments(n: int, d: int, seed: int, shift: float = 0.0) -> Moments:
    """Of n features, the variances of which fall off as those of networks do."""
    make = np.random.default_rng(seed)
    mixing = make.normal(size=(d, d)) * np.arange(1, d + 1) ** -0.5
    features = make.normal(size=(n, d)) @ mixing.T + shift
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def exact(one: Moments, two: Moments) -> float:
    """By the eigenvalues of S1^(1/2) S2 S1^(1/2), which cannot be complex."""
    (m1, s1), (m2, s2) = one, two
    values, vectors = np.linalg.eigh(s1)
    half = vectors * np.sqrt(values.clip(0))
    inner = np.linalg.eigvalsh(half.T @ s2 @ half)
    root = np.sqrt(inner.clip(0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * root)


# The number


@pytest.mark.parametrize(("n", "d"), [(50, 1), (2000, 8), (5000, 64)])
def test_the_same_number_where_theirs_works(name: str, n: int, d: int, old_scipy: None) -> None:
    one, two = moments(n, d, 0), moments(n + 7, d, 1, 0.2)
    theirs = distance(name, one, two)
    with patch(name):
        ours = distance(name, one, two)
    assert type(ours) is type(theirs)
    # The trace of the root is a difference from the traces: errors are a part of those.
    slack = 1e-11 * (np.trace(one[1]) + np.trace(two[1]))
    assert abs(float(ours) - float(theirs)) <= slack
    assert abs(float(ours) - exact(one, two)) <= slack
    assert float(theirs) > 1e6 * slack


@pytest.fixture
def old_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy before 1.18 as the packages know it, so that theirs works with any."""
    root = scipy.linalg.sqrtm

    def sqrtm(a: Array, disp: bool = True, blocksize: int = 64) -> Any:
        return root(a) if disp else (root(a), 0.0)

    monkeypatch.setattr(scipy.linalg, "sqrtm", sqrtm)


SINGULAR = {
    "fewer samples than features": (moments(12, 40, 2), moments(15, 40, 3, 0.1)),
    "two samples": (moments(2, 10, 4), moments(2, 10, 5)),
    "no variance": (moments(30, 5, 6), (np.ones(5), np.zeros((5, 5)))),
    "orthogonal ranges": (
        (np.zeros(4), np.diag([1.0, 2, 0, 0])),
        (np.zeros(4), np.diag([0.0, 0, 3, 4])),
    ),
    "nothing varies": ((np.zeros(3), np.zeros((3, 3))), (np.ones(3), np.zeros((3, 3)))),
    "condition 1e16": (
        (np.zeros(40), np.diag(np.logspace(-16, 0, 40))),
        moments(20, 40, 7),
    ),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_a_number_for_singular_covariances(name: str, case: str) -> None:
    one, two = SINGULAR[case]
    with patch(name):
        found = float(distance(name, one, two))
        same = float(distance(name, one, one))
    total = float(np.trace(one[1]) + np.trace(two[1]))
    # The reference squares what it takes the root of: right to the root of the precision.
    assert found == pytest.approx(exact(one, two), abs=1e-7 * total)
    assert found >= 0 and 0 <= same <= 1e-8 * np.trace(one[1])


def test_a_number_where_theirs_goes_complex(by_scipy: str, old_scipy: None) -> None:
    """Two features of a rank that rounding hides: the general root has imaginary parts."""
    make = np.random.default_rng(2)
    thin = make.normal(size=(40, 3)) * 1e4
    near = thin + make.normal(size=thin.shape) * 1e-3
    one, two = ((np.zeros(40), x @ x.T) for x in (thin, near))
    with pytest.raises(ValueError, match="Imaginary component"):
        distance(by_scipy, one, two)
    with patch(by_scipy):
        found = distance(by_scipy, one, two)
    assert isinstance(found, np.float64)
    assert found == pytest.approx(exact(one, two), abs=1e-7 * (np.trace(one[1]) * 2))


def test_a_number_where_scipy_has_lost_its_argument(
    by_scipy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SciPy 1.18 has no `disp`; where it is older, a function of the new signature stands in."""
    one, two = moments(500, 6, 0), moments(500, 6, 1)
    if version_of("scipy") < (1, 18):
        root = scipy.linalg.sqrtm
        monkeypatch.setattr(scipy.linalg, "sqrtm", lambda A: root(A))
    with pytest.raises(TypeError, match="unexpected keyword argument 'disp'"):
        distance(by_scipy, one, two)
    with patch(by_scipy):
        found = distance(by_scipy, one, two)
    assert found == pytest.approx(exact(one, two), rel=1e-9)
    with pytest.raises(TypeError, match="disp"):
        distance(by_scipy, one, two)


def version_of(distribution: str) -> tuple[int, ...]:
    major, minor, *_ = importlib.metadata.version(distribution).split(".")
    return int(major), int(minor)


@pytest.mark.skipif(version_of("scipy") < (1, 18), reason="SciPy has sqrtm(disp=...) before 1.18")
def test_scipy_itself_breaks_them(by_scipy: str) -> None:
    one, two = moments(500, 6, 0), moments(500, 6, 1)
    for _ in range(2):
        with pytest.raises(TypeError, match="disp"):
            distance(by_scipy, one, two)
        with patch(by_scipy):
            assert distance(by_scipy, one, two) == pytest.approx(exact(one, two), rel=1e-9)


def test_covariances_that_float32_rounded_are_repaired(name: str) -> None:
    one, two = moments(12, 40, 2), moments(15, 40, 3)
    rounded = [(m, s.astype(np.float32).astype(np.float64)) for m, s in (one, two)]
    assert min(np.linalg.eigvalsh(s)[0] for _, s in rounded) < -1e-9
    with patch(name):
        found = float(distance(name, *rounded))
    assert found == pytest.approx(exact(one, two), rel=1e-3)


# What training meets


def changed(of: Moments, mu: float | None = None, sigma: float | None = None) -> Moments:
    """With another number in the first place of the mean or of the covariance."""
    m, s = of[0].copy(), of[1].copy()
    if mu is not None:
        m[0] = mu
    if sigma is not None:
        s[0, 0] = sigma
    return m, s


ONE, TWO = moments(200, 4, 0), moments(200, 4, 1, 0.2)
NOT_FINITE = {
    "a mean": (changed(ONE, mu=np.nan), TWO, np.nan),
    "the other mean": (ONE, changed(TWO, mu=np.nan), np.nan),
    "a covariance": (changed(ONE, sigma=np.nan), TWO, np.nan),
    "an infinite variance": (ONE, changed(TWO, sigma=np.inf), np.nan),
    "all": ((ONE[0] * np.nan, ONE[1] * np.nan),) * 2 + (np.nan,),
    "an infinite mean": (changed(ONE, mu=np.inf), TWO, np.inf),
    "both means infinite": (changed(ONE, mu=np.inf), changed(TWO, mu=np.inf), np.nan),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_moments_that_are_not_finite_give_that_with_a_warning(name: str, case: str) -> None:
    one, two, expected = NOT_FINITE[case]
    with patch(name), pytest.warns(RuntimeWarning, match="the moments hold NaN or infinity"):
        found = distance(name, one, two)
        kind = type(distance(name, ONE, TWO))
    assert type(found) is kind
    np.testing.assert_equal(float(found), expected)


ODD = {
    "a triangle": ((ONE[0], np.triu(ONE[1])), TWO),
    "indefinite": ((ONE[0], ONE[1] - np.eye(4)), TWO),
    "negative": ((ONE[0], -ONE[1]), (TWO[0], -TWO[1])),
    "one negative": ((ONE[0], -ONE[1]), TWO),
    "complex": ((ONE[0], ONE[1] + 0j), TWO),
    "float32": tuple((m.astype(np.float32), s.astype(np.float32)) for m, s in (ONE, TWO)),
    "float16": tuple((m.astype(np.float16), s.astype(np.float16)) for m, s in (ONE, TWO)),
    "long double": tuple((m.astype(np.longdouble), s.astype(np.longdouble)) for m, s in (ONE, TWO)),
    "integers": ((np.arange(3), 2 * np.eye(3, dtype=int)), (np.ones(3, int), np.eye(3, dtype=int))),
    "big-endian": tuple((m.astype(">f8"), s.astype(">f8")) for m, s in (ONE, TWO)),
    "lists": tuple((m.tolist(), s.tolist()) for m, s in (ONE, TWO)),
    "a row as mean": ((ONE[0][None], ONE[1]), (TWO[0][None], TWO[1])),
    "other lengths": (ONE, (TWO[0][:3], TWO[1][:3, :3])),
    "not square": ((ONE[0], ONE[1][:3]), (TWO[0], TWO[1][:3])),
    "many": tuple((np.stack([m, m]), np.stack([s, s])) for m, s in (ONE, TWO)),
    "none": ((np.zeros(0), np.zeros((0, 0))),) * 2,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", ODD)
def test_what_the_package_answers_it_answers_when_patched(
    name: str, case: str, old_scipy: None
) -> None:
    one, two = ODD[case]

    def answered() -> Any:
        try:
            return distance(name, one, two)
        except Exception as error:
            return error

    theirs = answered()
    with patch(name):
        ours = answered()
    if isinstance(theirs, Exception):
        # An answer where the package has none is welcome.
        assert type(ours) is type(theirs) or np.isfinite(np.asarray(ours)).all()
        return
    assert type(ours) is type(theirs)
    close = 1e-2 if case == "float16" else 1e-6
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=close, atol=1e-9)


def test_what_is_refused_is_said_and_left_to_the_package(name: str, old_scipy: None) -> None:
    one, two = ODD["negative"]
    theirs = distance(name, one, two)
    refused = "by its own code: frechet_distance: sigma1 must be positive semi-definite"
    with patch(name), pytest.warns(RuntimeWarning, match=refused):
        assert float(distance(name, one, two)) == float(theirs) < 0


def test_what_is_refused_is_an_error_where_scipy_breaks_the_package(
    by_scipy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version_of("scipy") < (1, 18):
        root = scipy.linalg.sqrtm
        monkeypatch.setattr(scipy.linalg, "sqrtm", lambda A: root(A))
    with (
        patch(by_scipy),
        pytest.warns(RuntimeWarning, match="by its own code"),
        pytest.raises(ValueError, match="sigma1 must be positive semi-definite"),
    ):
        distance(by_scipy, *ODD["negative"])


# What the packages do with it


def test_whole_metric_of_torchmetrics() -> None:
    """Fewer images than features, of which torchmetrics' own eigenvalues make what they can."""
    pytest.importorskip("torchmetrics")
    pytest.importorskip("torch_fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.mifid import _compute_fid

    class Pixels(torch.nn.Module):
        num_features = 48

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)

    make = torch.Generator().manual_seed(0)
    real, fake = (
        torch.randint(high, (20, 3, 4, 4), dtype=torch.uint8, generator=make) for high in (256, 200)
    )
    metric = FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, 4, 4))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with patch("torchmetrics"):
        found = metric.compute()
        assert _compute_fid.__code__ is function_of("torchmetrics").__code__
    arrays = [x.flatten(1).double().numpy() for x in (real, fake)]
    expected = exact(*((x.mean(0), np.cov(x, rowvar=False)) for x in arrays))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_flow_through_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    m, s = (torch.from_numpy(x) for x in moments(100, 5, 0))
    other = [torch.from_numpy(x) for x in moments(100, 5, 1)]
    mean, sigma = m.clone().requires_grad_(), s.clone().requires_grad_()
    gradients = []
    for patched in (False, True):
        undoable = patch("torchmetrics") if patched else None
        value = function_of("torchmetrics")(mean, sigma, *other)
        gradients.append(torch.autograd.grad(value, (mean, sigma)))
        if undoable:
            undoable.undo()
    symmetric = [(g + g.mT) / 2 for _, g in gradients]
    torch.testing.assert_close(gradients[1][0], gradients[0][0])
    torch.testing.assert_close(symmetric[1], symmetric[0])


def test_torch_fidelity_prints_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_fidelity")
    one, two = ({"mu": m, "sigma": s} for m, s in (moments(200, 4, 0), moments(200, 4, 1)))
    said = []
    for patched in (False, True):
        undoable = patch("torch_fidelity") if patched else None
        found = function_of("torch_fidelity")(one, two, True)
        said.append(capsys.readouterr())
        if undoable:
            undoable.undo()
    assert said[0] == said[1] and "Frechet Inception Distance: " in said[0].err + said[0].out
    assert list(found) == ["frechet_inception_distance"]


# In force and undone


def test_whoever_imported_the_function_before_is_served_too(name: str) -> None:
    imported = function_of(name)
    original, defaults = imported.__code__, imported.__defaults__
    undoable = fastlatent.patch(name)
    assert imported is function_of(name) and imported.__code__ is not original
    assert imported.__defaults__ == defaults
    undoable.undo()
    assert imported.__code__ is original and function_of(name) is imported


def test_undone_at_the_end_of_the_block_even_after_an_error(name: str) -> None:
    original = function_of(name).__code__
    with pytest.raises(KeyError), patch(name) as undoable:
        assert undoable.active and function_of(name).__code__ is not original
        raise KeyError
    assert not undoable.active and function_of(name).__code__ is original


def test_twice_is_once_and_the_last_undone_restores(name: str) -> None:
    original = function_of(name).__code__
    first, second = patch(name), patch(name)
    patched = function_of(name).__code__
    assert patched is not original
    first.undo()
    first.undo()
    assert function_of(name).__code__ is patched and second.active
    with patch(name):
        second.undo()
        assert function_of(name).__code__ is patched
    assert function_of(name).__code__ is original
    second.undo()
    assert function_of(name).__code__ is original


def test_one_patch_in_blocks_within_blocks(name: str) -> None:
    original = function_of(name).__code__
    undoable = patch(name)
    with undoable:
        with undoable:
            assert function_of(name).__code__ is not original
        assert function_of(name).__code__ is not original
    assert function_of(name).__code__ is original
    with undoable:
        assert function_of(name).__code__ is not original
        undoable.undo()
        assert function_of(name).__code__ is original
    assert function_of(name).__code__ is original and not undoable.active


def test_it_says_what_it_changed(name: str) -> None:
    with patch(name) as undoable:
        (change,) = undoable.changes
        function = function_of(name)
        assert change.function == f"{function.__module__}.{TARGETS[name].function}"
        version = importlib.metadata.version(TARGETS[name].distribution)
        assert str(undoable) == (
            f"patch of {name} {version}:\n  {change.function} uses "
            f"fastlatent.metrics.frechet_distance in place of {change.before}"
        )
    assert str(undoable).startswith(f"patch of {name} {version} (undone):")


# What cannot be patched


def test_other_names() -> None:
    with pytest.raises(ValueError, match=r"name must be one of 'pytorch_fid', .*; got 'piq'"):
        patch("piq")


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", _raises)
    with pytest.raises(ModuleNotFoundError, match="patch: clean-fid is not installed"):
        patch("cleanfid")


def _raises(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_other_versions_are_named_with_those_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = function_of(name).__code__
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "99.1")
    known = ", ".join(TARGETS[name].versions)
    with pytest.raises(RuntimeError, match=rf" 99.1 is installed; .* known in versions {known}$"):
        patch(name)
    assert function_of(name).__code__ is original


@pytest.mark.parametrize("other", [lambda a, b: 0.0, print, None])
def test_a_function_that_others_replaced_is_left_alone(
    name: str, other: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TARGETS[name].module(), TARGETS[name].function, other)
    with pytest.raises(
        RuntimeError, match=r"is not its function of .*: other code has replaced it"
    ):
        patch(name)
    monkeypatch.undo()
    original = function_of(name).__code__
    with patch(name):
        assert function_of(name).__code__ is not original
    assert function_of(name).__code__ is original


COST = """
import sys
import fastlatent
assert "patch" in dir(fastlatent) and "torch" not in sys.modules
import fastlatent.ops
rivals = {"pytorch_fid", "cleanfid", "torchmetrics", "torch_fidelity", "scipy", "torchvision"}
assert not rivals & set(sys.modules), rivals & set(sys.modules)
assert fastlatent.patch.__module__ == "fastlatent.patches"
assert not rivals & set(sys.modules), rivals & set(sys.modules)
try:
    fastlatent.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""


def test_importing_fastlatent_imports_no_other_package() -> None:
    subprocess.run([sys.executable, "-c", COST], check=True)
