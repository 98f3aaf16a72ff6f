"""Code statistics, the Bernoulli copula, hyperplane directions and paths."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

import fastlatent.priors.copula
from fastlatent.ops import bernoulli_copula_sample, binary_moments, pack_bits, unpack_bits
from fastlatent.priors import (
    BernoulliCopula,
    CodeStatistics,
    edit_attribute,
    random_bits,
    slerp,
)
from fastlatent.priors.correlation import REPAIRS, clip, nearest_correlation
from fastlatent.priors.hyperplanes import margin_directions, split_directions

quick = settings(max_examples=40, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes_of(*rows: str) -> Tensor:
    """Codes from words of + and -."""
    return torch.tensor([[1.0 if c == "+" else -1.0 for c in row] for row in rows])


def clustered_codes(n: int, d: int, seed: int = 0) -> Tensor:
    """Codes as an encoder makes them: strongly dependent, biased, no thresholded Gaussian."""
    make = generator(seed)
    centres = 1.5 * torch.randn(10, 6, generator=make)
    z = centres[torch.randint(10, (n,), generator=make)] + torch.randn(n, 6, generator=make) / 2
    h = (z @ torch.randn(6, 32, generator=make) / 2).tanh()
    logits = h @ torch.randn(32, d, generator=make) + 2 * torch.randn(d, generator=make)
    return torch.where(logits >= 0, 1.0, -1.0)


def random_correlation(d: int, seed: int) -> Tensor:
    rows = torch.randn(d + 1, d + 1, generator=generator(seed), dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return (rows @ rows.T).fill_diagonal_(1)


def with_correlation(prior: BernoulliCopula, correlation: Tensor) -> BernoulliCopula:
    """A copula of the given correlations, fitted to counts that have them to eleven digits."""
    n = 10**12
    d = len(correlation) - 1
    statistics = CodeStatistics(d)
    same = ((1 - correlation.clamp(-1, 1).arccos() / math.pi) * n).round().long()
    statistics.count = n
    statistics.ones = same[:-1, -1].clone()
    statistics.agree = same[:-1, :-1].clone()
    return prior.fit(statistics)


@st.composite
def code_matrices(draw, max_d: int = 7, max_n: int = 12) -> Tensor:
    d, n = draw(st.integers(1, max_d)), draw(st.integers(1, max_n))
    bits = draw(st.lists(st.booleans(), min_size=n * d, max_size=n * d))
    return torch.tensor(bits).view(n, d) * 2.0 - 1


def assert_sampled_moments(prior: BernoulliCopula, n: int, errors: float, **options) -> None:
    """Frequencies of n samples within `errors` standard errors of the closed-form law."""
    words = prior.sample(n, packed=True, **options)
    ones, agree = binary_moments(words, prior.d)
    for frequency, p in (
        (ones.double() / n, (1 + prior.means()) / 2),
        (agree.double() / n, prior.agreement()),
    ):
        # One count of slack where p is 0 or 1 up to rounding.
        spread = (p * (1 - p) / n).clamp_min(0).sqrt()
        assert ((frequency - p).abs() <= errors * spread + 1e-12).all()


def test_statistics_count_by_definition():
    codes = clustered_codes(300, 70)
    statistics = CodeStatistics.of(codes)
    assert statistics.count == 300
    assert torch.equal(statistics.ones, (codes > 0).sum(0))
    equal = (codes[:, :, None] == codes[:, None, :]).sum(0)
    assert torch.equal(statistics.agree, equal)
    torch.testing.assert_close(statistics.means(), codes.double().mean(0))
    moments = codes.double().T @ codes.double() / 300
    torch.testing.assert_close(2 * statistics.agreement() - 1, moments)


@quick
@given(codes=code_matrices(max_d=70), cut=st.integers(0, 12), kind=st.sampled_from(["ids", "many"]))
def test_merged_and_streamed_statistics_equal_one_pass(codes, cut, kind):
    n, d = codes.shape
    make = generator(n)
    shape = (n,) if kind == "ids" else (n, 3)
    labels = torch.randint(3 if kind == "ids" else 2, shape, generator=make)
    words = pack_bits(codes)

    def gather(*parts: slice) -> CodeStatistics:
        statistics = CodeStatistics(d, labels=3)
        for part in parts:
            statistics.update(words[part], labels[part])
        return statistics

    whole = gather(slice(None))
    merged = gather(slice(0, cut))
    merged.merge(gather(slice(cut, None)))
    restored = CodeStatistics.from_state(whole.state())
    for other in (gather(slice(0, cut), slice(cut, None)), merged, restored):
        assert other.count == whole.count == n
        for name in ("ones", "agree", "label_count", "label_ones"):
            assert torch.equal(getattr(other, name), getattr(whole, name)), name
    for k in range(3):
        member = (labels if kind == "ids" else labels[:, k]) == (k if kind == "ids" else 1)
        assert whole.label_count[k] == member.sum()
        assert torch.equal(whole.label_ones[k], (codes[member] > 0).sum(0))


def test_state_is_small_and_independent_of_the_statistics():
    statistics = CodeStatistics.of(clustered_codes(50, 9))
    state = statistics.state()
    assert state["agree"].shape == (36,) and state["agree"].dtype == torch.int32
    before = state["ones"].clone()
    statistics.update(pack_bits(clustered_codes(50, 9)))
    assert torch.equal(state["ones"], before)
    with pytest.raises(ValueError, match="agree must be whole numbers of shape"):
        CodeStatistics.from_state(state | {"agree": state["agree"][1:]})
    with pytest.raises(ValueError, match="ones must be whole numbers"):
        CodeStatistics.from_state(state | {"ones": state["ones"].double()})
    del state["agree"]
    with pytest.raises(ValueError, match="state must hold count, ones, agree"):
        CodeStatistics.from_state(state)


def test_two_bits_of_known_law():
    codes = codes_of(*(["++"] + ["+-"] * 2 + ["-+"] * 3 + ["--"] * 4))
    prior = BernoulliCopula().fit(codes)
    h = prior.correlation
    torch.testing.assert_close(h[0, 1], torch.zeros((), dtype=h.dtype), atol=1e-15, rtol=0)
    expected = torch.tensor([-0.587785, -0.309017], dtype=h.dtype)
    torch.testing.assert_close(h[:2, 2], expected, atol=1e-6, rtol=0)
    expected = torch.tensor([0.335934, 1, 1.664066], dtype=h.dtype)
    torch.testing.assert_close(torch.linalg.eigvalsh(h), expected, atol=1e-6, rtol=0)
    samples = prior.sample(100_000, generator=generator(0))
    for code, p in (("++", 0.1), ("+-", 0.2), ("-+", 0.3), ("--", 0.4)):
        frequency = (samples == codes_of(code)).all(1).double().mean().item()
        assert abs(frequency - p) < 4 * math.sqrt(p * (1 - p) / 100_000)


@quick
@given(codes=code_matrices(max_d=2))
def test_one_or_two_bits_are_reproduced_whatever_their_law(codes):
    # Means and pair probability determine the joint law of two bits.
    for repair in REPAIRS:
        prior = BernoulliCopula(repair).fit(codes)
        assert torch.linalg.eigvalsh(prior.correlation)[0] > -1e-12
        statistics = CodeStatistics.of(codes)
        torch.testing.assert_close(prior.means(), statistics.means(), atol=1e-7, rtol=0)
        torch.testing.assert_close(prior.agreement(), statistics.agreement(), atol=1e-7, rtol=0)


THREE = codes_of("+--", "-+-", "--+")


@pytest.mark.parametrize("repair", ["clip", "nearest_correlation"])
def test_three_codes_that_need_a_repair(repair):
    prior = BernoulliCopula(repair).fit(THREE)
    assert prior.repaired
    expected = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(prior.correlation, expected, atol=1e-7, rtol=0)
    moment = 2 / math.pi * math.asin(-1 / 3)
    assert moment == pytest.approx(-0.216347, abs=1e-6)
    torch.testing.assert_close(
        prior.means(), torch.full((3,), moment, dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert prior.agreement()[0, 1].item() == pytest.approx(0.391827, abs=1e-6)
    assert prior.distortion() == pytest.approx((moment + 1 / 3,) * 4, abs=1e-7)
    assert_sampled_moments(prior, 40_000, 4.5, generator=generator(1))


def test_three_codes_with_exact_means():
    prior = BernoulliCopula("exact_means").fit(THREE)
    r = prior.correlation
    expected = torch.full((4, 4), -1 / 8, dtype=torch.float64).fill_diagonal_(1)
    expected[3, :3] = expected[:3, 3] = -1 / 2
    torch.testing.assert_close(r, expected)
    torch.testing.assert_close(prior.means(), torch.full((3,), -1 / 3, dtype=torch.float64))
    assert (2 * prior.agreement()[0, 1] - 1).item() == pytest.approx(-0.079786, abs=1e-6)
    distortion = prior.distortion()
    assert distortion.mean_max < 1e-12
    assert distortion.second_moment_max == pytest.approx(1 / 3 - 0.079786, abs=1e-6)


def test_clip_of_the_three_codes_before_scaling():
    h = torch.full((4, 4), -0.5, dtype=torch.float64).fill_diagonal_(1)
    expected = torch.tensor([-0.5, 1.5, 1.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(h), expected)
    torch.testing.assert_close(
        BernoulliCopula().fit(THREE)._fitted("test").h, h, atol=1e-15, rtol=1e-15
    )
    w, v = torch.linalg.eigh(h)
    plus = v @ w.clamp_min(0).diag() @ v.T
    expected = torch.full((4, 4), -0.375, dtype=torch.float64).fill_diagonal_(1.125)
    torch.testing.assert_close(plus, expected)
    factor = clip(h)
    torch.testing.assert_close(factor @ factor.T, plus / 1.125)


def test_constant_bit_stays_constant_and_the_others_fair():
    prior = BernoulliCopula().fit(codes_of("+-+", "-++", "+++", "--+"))
    for packed in (False, True):
        samples = prior.sample(20_000, generator=generator(0), packed=packed)
        samples = unpack_bits(samples, 3) if packed else samples
        assert (samples[:, 2] == 1).all()
        assert samples[:, :2].mean(0).abs().max() < 4.5 / math.sqrt(20_000)
        assert (samples[:, 0] * samples[:, 1]).mean().abs() < 4.5 / math.sqrt(20_000)
    assert prior.means().tolist() == pytest.approx([0, 0, 1], abs=1e-12)


def test_equal_opposite_and_constant_bits_are_exact_in_samples_and_law():
    base = clustered_codes(500, 20)
    codes = torch.cat([base, -base[:, 3:4], base[:, 7:9], torch.ones(500, 1), -base[:, :1]], 1)
    codes[:, 15] = -1
    for repair in REPAIRS:
        prior = BernoulliCopula(repair).fit(codes)
        samples = prior.sample(5000, generator=generator(2))
        assert torch.equal(samples[:, 20], -samples[:, 3])
        assert torch.equal(samples[:, 21:23], samples[:, 7:9])
        assert torch.equal(samples[:, 24], -samples[:, 0])
        assert (samples[:, 23] == 1).all() and (samples[:, 15] == -1).all()
        again = prior.sample(5000, generator=generator(2), packed=True)
        assert torch.equal(unpack_bits(again, 25), samples)
        assert prior.agreement()[20, 3] == 0 and prior.agreement()[21, 7] == 1
        assert prior.means()[23] == 1 and prior.means()[15] == -1
    directions = prior.directions(codes[:5])
    assert directions.beta.shape == (5, 26)


def test_only_constant_bits():
    prior = BernoulliCopula().fit(codes_of("+-+"))
    assert torch.equal(prior.sample(4), codes_of(*["+-+"] * 4))
    assert prior.distortion() == (0, 0, 0, 0)


def test_independent_fair_bits_give_the_identity():
    codes = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)))
    prior = BernoulliCopula().fit(codes)
    torch.testing.assert_close(
        prior.correlation, torch.eye(5, dtype=torch.float64), atol=1e-15, rtol=0
    )
    assert not prior.repaired
    assert_sampled_moments(prior, 40_000, 4.5, generator=generator(3))


@pytest.mark.parametrize("repair", list(REPAIRS))
def test_samples_follow_the_closed_form_law(repair):
    prior = BernoulliCopula(repair).fit(clustered_codes(4000, 64))
    assert prior.repaired
    assert_sampled_moments(prior, 100_000, 4, generator=generator(5), chunk=30_000)


def test_unrepaired_samples_reproduce_the_moments_of_the_data():
    make = generator(0)
    gaussian = torch.randn(20_000, 65, generator=make) @ torch.randn(65, 65, generator=make) / 8
    gaussian += torch.randn(20_000, 65, generator=make)
    codes = torch.where(gaussian[:, :64] * gaussian[:, 64:] >= 0, 1.0, -1.0)
    statistics = CodeStatistics.of(codes)
    for dtype in (torch.float32, torch.float64):
        prior = BernoulliCopula().fit(statistics)
        assert not prior.repaired
        torch.testing.assert_close(prior.agreement(), statistics.agreement())
        torch.testing.assert_close(prior.means(), statistics.means())
        assert_sampled_moments(prior, 100_000, 4, generator=generator(7), dtype=dtype)


@quick
@given(d=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_repairs_give_correlation_matrices(d, seed):
    h = torch.rand(d + 1, d + 1, generator=generator(seed), dtype=torch.float64) * 2 - 1
    h = ((h + h.T) / 2).fill_diagonal_(1)
    for name, repair in REPAIRS.items():
        factor = repair(h)
        r = factor @ factor.T
        torch.testing.assert_close(r.diagonal(), torch.ones(d + 1, dtype=h.dtype))
        assert torch.linalg.eigvalsh(r)[0] > -1e-12
        if name == "exact_means":
            torch.testing.assert_close(r[:-1, -1], h[:-1, -1])
    near, clipped = nearest_correlation(h), clip(h)
    assert (near @ near.T - h).norm() <= (clipped @ clipped.T - h).norm() + 1e-6


@quick
@given(codes=code_matrices())
def test_fitted_correlations_are_correlations_for_any_codes(codes):
    for repair in REPAIRS:
        prior = BernoulliCopula(repair).fit(codes)
        r = prior.correlation
        assert torch.equal(r, r.T) and (r.diagonal() == 1).all() and r.abs().max() <= 1
        assert torch.linalg.eigvalsh(r)[0] > -1e-9
        samples = prior.sample(3, generator=generator(0))
        assert samples.shape == (3, codes.shape[1]) and (samples.abs() == 1).all()


def test_nearest_correlation_of_a_published_example():
    # Higham 2002, section 4, to the four digits printed there.
    h = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    factor = nearest_correlation(h)
    r = factor @ factor.T
    assert r[0, 1].item() == pytest.approx(0.7607, abs=5e-5)
    assert r[1, 2].item() == pytest.approx(0.7607, abs=5e-5)
    assert r[0, 2].item() == pytest.approx(0.1573, abs=5e-5)


def test_repairs_trade_errors_as_they_promise():
    statistics = CodeStatistics.of(clustered_codes(4000, 64))
    cost = {name: BernoulliCopula(name).fit(statistics).distortion() for name in REPAIRS}
    assert cost["clip"].mean_max > 0.01
    assert cost["nearest_correlation"].second_moment_rms < cost["clip"].second_moment_rms
    assert cost["exact_means"].mean_max < 1e-9
    for distortion in cost.values():
        assert distortion.mean_rms <= distortion.mean_max
        assert distortion.second_moment_rms <= distortion.second_moment_max


def undertrained_codes(n: int = 4000, d: int = 200, seed: int = 0) -> Tensor:
    """Codes of which 94 bits of 200 are constant, equal to others or opposite to them."""
    codes, make = clustered_codes(n, d, seed), generator(seed + 1)
    dead, live = torch.randperm(d, generator=make).split([94, d - 94])
    codes[:, dead[:47]] = codes[0, dead[:47]]
    signs = 1 - 2 * torch.arange(47) % 4
    codes[:, dead[47:]] = codes[:, live[torch.arange(47) % 7]] * signs.sign()
    return codes


def original_correlation(codes: Tensor) -> Tensor:
    """R of the published repair, (d + 1, d + 1): every bit has a row of its own."""
    signs = torch.nn.functional.pad(codes.double(), (0, 1), value=1.0)
    h = (math.pi / 2 * (signs.T @ signs) / len(codes)).sin()
    w, v = torch.linalg.eigh(h)
    product = v * w.clamp_min(0) @ v.T
    length = product.diagonal().sqrt()
    return product / length / length[:, None]


def test_constant_and_equal_bits_count_in_the_repair_as_in_the_original():
    codes = undertrained_codes()
    prior = BernoulliCopula().fit(codes)
    assert prior.repaired
    torch.testing.assert_close(prior.correlation, original_correlation(codes), rtol=0, atol=1e-9)
    nearest = BernoulliCopula("nearest_correlation").fit(codes).distortion()
    assert nearest.second_moment_rms < 0.9 * prior.distortion().second_moment_rms


@pytest.mark.parametrize("repair", REPAIRS)
def test_samples_of_constant_and_equal_bits_have_the_pair_moments_of_the_fit(repair):
    codes, n = undertrained_codes(), 20_000
    prior = BernoulliCopula(repair).fit(codes)
    drawn = prior.sample(n, generator=generator(3))
    agree = CodeStatistics.of(drawn).agree
    law = prior.agreement()
    error = (law * (1 - law) * n).clamp_min(0).sqrt()
    fixed = CodeStatistics.of(codes).agree % len(codes) == 0
    assert (agree[fixed] == (law[fixed] * n).round()).all() and (error[fixed] < 1e-6 * n).all()
    z = ((agree - n * law) / error)[~fixed]
    assert z.abs().max() < 5.0  # 19,900 pairs: as large once in 90 repetitions
    assert z.square().mean().sqrt() == pytest.approx(1, abs=0.15)
    constant = (codes == codes[0]).all(0)
    assert (drawn[:, constant] == codes[0, constant]).all()


def test_weights_of_a_repair_are_numbers_of_equal_rows():
    h = torch.tensor([[1.0, 0.9, -0.6], [0.9, 1.0, 0.7], [-0.6, 0.7, 1.0]]).double()
    counts = torch.tensor([3, 1, 2])
    rows = torch.arange(3).repeat_interleave(counts)
    alone = REPAIRS["clip"](h[rows][:, rows], None)
    factor = REPAIRS["clip"](h, counts)[rows]
    torch.testing.assert_close(factor @ factor.T, alone @ alone.T, rtol=0, atol=1e-12)


def test_distortion_is_the_difference_of_moments():
    codes = clustered_codes(2000, 30)
    codes[:, 4] = codes[:, 5]
    codes[:, 6] = 1
    prior, statistics = BernoulliCopula().fit(codes), CodeStatistics.of(codes)
    means = (prior.means() - statistics.means()).abs()
    pairs = 2 * (prior.agreement() - statistics.agreement()).abs()
    pairs = pairs[tuple(torch.triu_indices(30, 30, 1))]
    expected = (means.max(), means.square().mean().sqrt())
    expected += (pairs.max(), pairs.square().mean().sqrt())
    assert prior.distortion() == pytest.approx([float(e) for e in expected], abs=1e-7)


def test_rare_differences_switch_the_product_to_float64(monkeypatch):
    used = []

    def spy(factor: Tensor, noise: Tensor, packed: bool = False) -> Tensor:
        used.append(factor.dtype)
        return bernoulli_copula_sample(factor, noise, packed=packed)

    monkeypatch.setattr(fastlatent.priors.copula, "bernoulli_copula_sample", spy)
    for n in (10**5, 10**7):
        statistics = CodeStatistics(2)
        statistics.count = n
        statistics.ones += n // 2
        statistics.agree += torch.tensor([[n, n - 1], [n - 1, n]])
        prior = BernoulliCopula().fit(statistics)
        samples = prior.sample(100, generator=generator(0))
        assert samples.dtype == torch.float32
        assert 1 - prior.agreement()[0, 1].item() == pytest.approx(1 / n, rel=1e-2)
    assert used == [torch.float32, torch.float64]


def test_sampling_is_a_function_of_the_generator():
    prior = BernoulliCopula().fit(clustered_codes(500, 70))
    state = torch.get_rng_state()
    a, b = (prior.sample(300, generator=generator(4)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(a, prior.sample(300, generator=generator(5)))
    words = prior.sample(300, generator=generator(4), packed=True)
    assert words.shape == (300, 2) and torch.equal(unpack_bits(words, 70), a)
    assert prior.sample(300, generator=generator(4), chunk=7).shape == (300, 70)
    assert prior.sample(0).shape == (0, 70)
    assert prior.sample(0, packed=True).shape == (0, 2)


def test_autocast_does_not_touch_the_samples():
    prior = BernoulliCopula().fit(clustered_codes(500, 40))
    expected = prior.sample(2000, generator=generator(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.sample(2000, generator=generator(4)), expected)


@pytest.mark.parametrize("find", [margin_directions, split_directions])
def test_paths_do_not_depend_on_the_factor(find):
    r = random_correlation(30, seed=0)
    w, v = torch.linalg.eigh(r)
    factors = torch.linalg.cholesky(r), v * w.sqrt()
    ends = codes_of(*("+-" * 15, "++-" * 10, "-" + "+" * 29, "-" * 29 + "+"))
    paths = []
    for factor in factors:
        directions = find(factor @ factor.T, ends) @ factor  # (4, r)
        t = torch.linspace(0, 1, 11, dtype=r.dtype)[:, None]
        arc = slerp(directions[None, :2], directions[None, 2:], t)  # (11, 2, r)
        paths.append(arc @ factor.T >= 0)
    assert torch.equal(*paths)
    prior = with_correlation(BernoulliCopula(), r)
    method = "margin" if find is margin_directions else "split"
    path = prior.interpolate(ends[:2], ends[2:], 11, method=method)
    assert torch.equal(path.codes > 0, paths[0][..., :-1].transpose(0, 1))


def test_split_of_four_independent_bits():
    beta = split_directions(torch.eye(5, dtype=torch.float64), codes_of("+++-", "++++"))
    third = 1 / math.sqrt(6)
    expected = torch.tensor([third, third, third, -1 / math.sqrt(2), 0], dtype=torch.float64)
    torch.testing.assert_close(beta[0], expected)
    torch.testing.assert_close(beta[1], torch.tensor([0.5, 0.5, 0.5, 0.5, 0]).double())


def split_of_rows(rows: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The published procedure on the factor's rows, with lists of row copies."""

    def pocket(side: np.ndarray, rounds: int | None) -> np.ndarray:
        best, fewest, done = None, math.inf, 0
        while rounds is None or done < rounds:
            p = side.mean(0) / np.linalg.norm(side.mean(0))
            wrong = side @ p < 0
            if wrong.sum() > fewest or (rounds is None and wrong.sum() == fewest):
                break
            best, fewest = p, wrong.sum()
            if fewest == 0:
                break
            side = np.concatenate([side, side[wrong]])
            done += 1
        return best

    m = pocket(rows[code > 0], None) - pocket(rows[code < 0], 10)
    return m / np.linalg.norm(m)


def test_split_is_the_published_procedure():
    codes = clustered_codes(3000, 40, seed=3)
    prior = BernoulliCopula().fit(codes)
    r = prior.correlation
    w, v = torch.linalg.eigh(r)
    rows = (v * w.clamp_min(0).sqrt())[:-1].numpy()
    beta = split_directions(r, codes[:20])
    repeats = 0
    for code, b in zip(codes[:20], beta, strict=True):
        expected = split_of_rows(rows, code.numpy())
        np.testing.assert_allclose(b[:-1].numpy() @ rows, expected, atol=1e-6)
        repeats += b[:-1].abs().unique().numel() > 2
    assert repeats > 0


def test_margin_of_independent_bits_is_the_code_itself():
    codes = codes_of("+-+-", "----", "+++-")
    beta = margin_directions(torch.eye(5, dtype=torch.float64), codes)
    expected = torch.cat([codes, torch.ones(3, 1)], 1).double() / math.sqrt(5)
    torch.testing.assert_close(beta, expected)


def test_margin_is_the_support_vector_machine():
    r = random_correlation(5, seed=2)
    code = codes_of("+-++-")
    y = np.append(code.numpy()[0], 1.0)
    matrix = r.numpy()
    solution = minimize(
        lambda b: b @ matrix @ b / 2,
        np.linalg.solve(matrix, y),
        jac=lambda b: matrix @ b,
        constraints={"type": "ineq", "fun": lambda b: y * (matrix @ b) - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    best = 1 / math.sqrt(2 * solution.fun)
    exact = solution.x / math.sqrt(2 * solution.fun)
    (beta,) = margin_directions(r, code, rounds=10_000, tolerance=1e-7).numpy()
    np.testing.assert_allclose(beta, exact, atol=1e-4)
    (rough,) = margin_directions(r, code).numpy()
    assert 0.95 * best <= (y * (matrix @ rough)).min() <= best * (1 + 1e-6)


@pytest.mark.parametrize("repair", list(REPAIRS))
def test_margin_directions_reproduce_their_codes_and_split_directions_often_do_not(repair):
    codes = clustered_codes(4000, 64)
    prior = BernoulliCopula(repair).fit(codes)
    margin = prior.directions(codes[:32])
    assert margin.wrong_bits.shape == (32,) and margin.beta.shape == (32, 65)
    lengths = ((margin.beta @ prior.correlation) * margin.beta).sum(1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    split = prior.directions(codes[:32], method="split")
    assert split.wrong_bits.double().mean() > 3
    assert margin.wrong_bits.double().mean() < 0.5


def test_path_of_independent_bits_flips_halfway():
    codes = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)))
    prior = BernoulliCopula().fit(codes)
    a, b = codes_of("++--"), codes_of("+-+-")
    path = prior.interpolate(a, b, 10)
    assert torch.equal(path.codes[0], torch.cat([a] * 5 + [b] * 5))
    assert path.hamming[0].tolist() == [[0, 2]] * 5 + [[2, 0]] * 5
    assert path.wrong_bits.tolist() == [[0, 0]]
    same = prior.interpolate(a, a, 4)
    assert torch.equal(same.codes[0], torch.cat([a] * 4))


@quick
@given(
    codes=code_matrices(max_d=12),
    steps=st.integers(2, 9),
    method=st.sampled_from(["margin", "split"]),
    repair=st.sampled_from(list(REPAIRS)),
    include_endpoints=st.booleans(),
)
def test_bits_change_at_most_once_along_a_path(codes, steps, method, repair, include_endpoints):
    prior = BernoulliCopula(repair).fit(codes)
    a, b = codes[:1].expand_as(codes), codes
    path = prior.interpolate(a, b, steps, method, include_endpoints)
    assert path.codes.shape == (*codes.shape[:1], steps, codes.shape[1])
    assert (path.codes.abs() == 1).all()
    flips = (path.codes[:, 1:] != path.codes[:, :-1]).sum(1)
    assert flips.max() <= 1
    from_start, to_end = path.hamming.unbind(-1)
    assert (from_start.diff(dim=1) >= 0).all()
    assert (from_start + to_end == (from_start + to_end)[:, :1]).all()
    if include_endpoints:
        assert (from_start[:, 0] == 0).all() and (to_end[:, -1] == 0).all()
        assert torch.equal((path.codes[:, 0] != a).sum(1), path.wrong_bits[:, 0])
        assert torch.equal((path.codes[:, -1] != b).sum(1), path.wrong_bits[:, 1])


def test_inner_steps_leave_out_the_ends():
    codes = clustered_codes(4000, 64)
    prior = BernoulliCopula().fit(codes)
    whole = prior.interpolate(codes[:4], codes[4:8], 7)
    inner = prior.interpolate(codes[:4], codes[4:8], 5, include_endpoints=False)
    assert torch.equal(inner.codes, whole.codes[:, 1:-1])
    assert torch.equal(inner.hamming, whole.hamming[:, 1:-1])


def test_slerp_closed_forms():
    make = generator(0)
    a, b = torch.linalg.qr(torch.randn(6, 2, generator=make, dtype=torch.float64)).Q.T
    torch.testing.assert_close(slerp(a, b, 0.5), (a + b) / math.sqrt(2))
    assert torch.equal(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b, atol=1e-16, rtol=0)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.0, 0.3, 1.0])), a.expand(3, 6))
    arc = slerp(a, (a + 3 * b) / math.sqrt(10), torch.linspace(0, 1, 7))
    torch.testing.assert_close(arc.norm(dim=1), torch.ones(7, dtype=torch.float64))
    cosines = (arc[1:] * arc[:-1]).sum(1)
    torch.testing.assert_close(cosines, cosines[:1].expand(6))


def test_attribute_editing_with_both_references():
    codes = codes_of("++-+", "+---", "++--", "+--+")
    statistics = CodeStatistics(4, labels=2)
    statistics.update(pack_bits(codes), torch.tensor([[1, 0]] * 4))
    original = codes_of("-++-", "+-+-", "----")
    edited = edit_attribute(original, statistics, 0, reference="zero")
    assert torch.equal(edited, codes_of("++--", "+---", "+---"))
    assert torch.equal(edit_attribute(original, statistics, 0), original)
    with pytest.raises(ValueError, match="no code carries label 1"):
        edit_attribute(original, statistics, 1)

    statistics = CodeStatistics(4, labels=2)
    statistics.update(pack_bits(codes), torch.tensor([0, 1, 0, 1]))
    # Under label 0 the second bit is always +1, half of the time over all codes.
    assert torch.equal(edit_attribute(original, statistics, 0), codes_of("-++-", "+++-", "-+--"))
    assert torch.equal(edit_attribute(original, statistics, 0, threshold=1.0), original)


def test_random_bits_are_fair_and_independent():
    n, d = 40_000, 70
    codes = random_bits(n, d, generator=generator(0))
    assert codes.shape == (n, d) and codes.dtype == torch.float32
    statistics = CodeStatistics.of(codes)
    assert statistics.means().abs().max() < 4.5 / math.sqrt(n)
    pairs = (2 * statistics.agreement() - 1).fill_diagonal_(0)
    assert pairs.abs().max() < 5 / math.sqrt(n)
    words = random_bits(n, d, generator=generator(0), packed=True)
    assert torch.equal(words, pack_bits(codes))
    assert random_bits(0, 5).shape == (0, 5)


def test_contract_of_priors():
    prior = BernoulliCopula()
    assert prior.density == "none"
    assert prior.fit(THREE) is prior
    with pytest.raises(NotImplementedError, match="no closed form"):
        prior.log_prob(THREE)
    with pytest.raises(ValueError, match="noise must be True"):
        prior.sample(3, noise=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: BernoulliCopula("svd"), ValueError, "repair must be one of clip"),
        (lambda p: BernoulliCopula().sample(1), ValueError, "sample: fit must be called first"),
        (lambda p: BernoulliCopula().fit(CodeStatistics(3)), ValueError, "at least one code"),
        (lambda p: p.fit(torch.zeros(2, 3)), ValueError, "codes must hold .1 and -1 only"),
        (lambda p: p.fit(torch.ones(3)), ValueError, r"codes must have shape \(n, d\)"),
        (lambda p: p.fit(THREE.long()), TypeError, "codes must be floating-point"),
        (lambda p: p.sample(-1), ValueError, "n must be at least 0"),
        (lambda p: p.directions(THREE[:, :2]), ValueError, "codes must have 3 bits; got 2"),
        (lambda p: p.directions(THREE, "svm"), ValueError, "method must be 'margin' or 'split'"),
        (lambda p: p.interpolate(THREE, THREE, 1), ValueError, "steps must be at least 2"),
        (lambda p: p.interpolate(THREE, THREE[:2], 3), ValueError, r"b must have the shape of a"),
        (lambda p: CodeStatistics(0), ValueError, "d must be at least 1"),
        (lambda p: CodeStatistics(3).means(), ValueError, "no codes have been counted"),
        (lambda p: random_bits(1, 0), ValueError, "d at least 1"),
        (
            lambda p: CodeStatistics(3).merge(CodeStatistics(4)),
            ValueError,
            "other must have d = 3",
        ),
        (
            lambda p: CodeStatistics(3).update(pack_bits(THREE), torch.zeros(3).long()),
            ValueError,
            "labels are not expected",
        ),
        (
            lambda p: CodeStatistics(3, 2).update(pack_bits(THREE)),
            ValueError,
            "labels are needed",
        ),
        (
            lambda p: CodeStatistics(3, 2).update(pack_bits(THREE), torch.tensor([0, 1, 2])),
            ValueError,
            r"labels must lie in 0 \.\.\. 1; got 0 \.\.\. 2",
        ),
        (
            lambda p: CodeStatistics(3, 2).update(pack_bits(THREE), torch.full((3, 2), 2)),
            ValueError,
            "attributes must be 0 or 1",
        ),
        (
            lambda p: CodeStatistics(3, 2).update(pack_bits(THREE), torch.zeros(2, 3)),
            ValueError,
            r"class ids \(3,\) or attributes \(3, 2\)",
        ),
        (
            lambda p: edit_attribute(THREE, CodeStatistics(3), 0),
            ValueError,
            "k must be one of the 0 counted labels",
        ),
        (
            lambda p: edit_attribute(THREE, CodeStatistics(3, 1), 0, reference="mean"),
            ValueError,
            "reference must be 'population' or 'zero'",
        ),
        (lambda p: edit_attribute(THREE, CodeStatistics(4, 1), 0), ValueError, "must have 4 bits"),
    ],
)
def test_errors_are_sentences(call, error, message):
    with pytest.raises(error, match=message):
        call(BernoulliCopula().fit(THREE))
