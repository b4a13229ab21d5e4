from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub import kernels
from adapterhub.kernels import Factor, operands, reference

CASES = list(cases())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
finite_bits = st.integers(0, 2**32 - 1).filter(lambda bits: bits & 0x7F800000 != 0x7F800000)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view({2: np.uint16, 4: np.uint32}[array.itemsize])


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(bits(got), bits(want))


def floats(pattern: object) -> np.ndarray:
    return np.asarray(pattern, np.uint32).view(np.float32)


def by_libm(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    triples = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    return np.array([oracle.fmaf(*triple) for triple in triples], np.float32)


def random_finite(rng: np.random.Generator, n: int) -> np.ndarray:
    pattern = rng.integers(0, 2**32, 2 * n, np.uint32)
    return floats(pattern[(pattern & 0x7F800000) != 0x7F800000][:n])


def hard_triples(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products that end close to a midpoint of c's neighbours, over the whole range of c."""
    c = random_finite(rng, n)
    a = np.ldexp(1 + rng.integers(0, 3, n) * 2.0**-23, rng.integers(-70, 50, n))
    unit = np.spacing(np.abs(c)).astype(np.float64)
    b = unit / 2 / a * (1 + rng.integers(-3, 4, n) * 2.0**-23) * rng.choice([-1, 1], n)
    with np.errstate(all="ignore"):
        a, b = a.astype(np.float32), b.astype(np.float32)
    ok = np.isfinite(a) & np.isfinite(b)
    return a[ok], b[ok], c[ok]


class TestFma:
    paths = ("numpy",)

    def test_equals_libm_on_random_bits(self) -> None:
        a, b, c = (random_finite(np.random.default_rng(s), 20_000) for s in (1, 2, 3))
        assert_same_bits(reference.fma(a, b, c), by_libm(a, b, c))

    def test_equals_libm_beside_midpoints(self) -> None:
        a, b, c = hard_triples(np.random.default_rng(4), 60_000)
        want = by_libm(a, b, c)
        assert_same_bits(reference.fma(a, b, c), want)
        with np.errstate(all="ignore"):
            naive = (a.astype(np.float64) * b + c).astype(np.float32)
        assert (bits(naive) != bits(want)).sum() > 100  # so these triples can tell them apart

    def test_the_two_oracles_agree(self) -> None:
        triples = [random_finite(np.random.default_rng(s), 1000) for s in (5, 6, 7)]
        hard = hard_triples(np.random.default_rng(8), 2000)
        for a, b, c in (triples, hard):
            exact = [
                oracle.fma_fraction(*t)
                for t in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
            ]
            assert_same_bits(by_libm(a, b, c), np.array(exact, np.float32))

    @settings(max_examples=400, deadline=None)
    @given(st.tuples(finite_bits, finite_bits, finite_bits))
    def test_equals_libm_on_any_bits(self, pattern: tuple[int, int, int]) -> None:
        a, b, c = floats(pattern)[:, None]
        assert_same_bits(reference.fma(a, b, c), by_libm(a, b, c))

    @pytest.mark.parametrize(
        ("a", "b", "c", "want"),
        [
            (0x00000000, 0x80000000, 0x80000000, 0x80000000),  # +0 · -0 + -0 = -0
            (0x00000000, 0x00000000, 0x80000000, 0x00000000),  # +0 + -0 = +0
            (0x3F800000, 0x3F800000, 0xBF800000, 0x00000000),  # 1 - 1 = +0
            (0x80000001, 0x00000001, 0x00000000, 0x80000000),  # underflow keeps the sign
            (0x00000001, 0x3F000000, 0x00000001, 0x00000002),  # 1.5 units: tie to even
            (0x33800001, 0x3F7FFFFE, 0x3F800001, 0x3F800001),  # 2^-46 below a midpoint
            (0x7F7FFFFF, 0x32800000, 0x7F7FFFFF, 0x7F7FFFFF),  # a quarter unit beyond the largest
            (0x7F7FFFFF, 0x33000000, 0x7F7FFFFF, 0x7F7FFFFF),  # just below half a unit
            (0x73000000, 0x3F800000, 0x7F7FFFFF, 0x7F800000),  # half a unit: overflow
        ],
    )
    def test_by_hand(self, a: int, b: int, c: int, want: int) -> None:
        assert bits(reference.fma(*floats([a, b, c])[:, None])).tolist() == [want]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestMerge:
    def test_equals_the_oracle(self, case: Case) -> None:
        got = kernels.merge_low_rank(case.weight, case.factors)
        assert_same_bits(got, oracle.merge(case.weight, case.factors))
        assert got.flags.c_contiguous and not np.shares_memory(got, case.weight)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestTiles:
    paths = ("numpy",)

    @pytest.mark.parametrize("tile", [5, 64])
    def test_tiles_change_nothing(
        self, case: Case, tile: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = kernels.merge_low_rank(case.weight, case.factors)
        monkeypatch.setattr(operands, "TILE", tile)
        monkeypatch.setattr(reference, "TILE", tile)
        assert_same_bits(kernels.merge_low_rank(case.weight, case.factors), want)


def plain(case: Case) -> np.ndarray:
    """The formula with float64 sums that are simply cast: the mistake to be told apart."""
    acc = case.weight.astype(np.float64)
    for factor in case.factors:
        t = np.zeros(acc.shape)
        for k in range(factor.a.shape[0]):
            t = (factor.b[:, k, None].astype(np.float64) * factor.a[k] + t).astype(np.float32)
        acc = (np.float64(factor.scale) * t + acc).astype(np.float32)
    return acc.astype(case.weight.dtype)


@pytest.mark.parametrize("name", ["outer", "inner", "subnormal"])
def test_cases_catch_double_rounding(name: str) -> None:
    case = next(case for case in CASES if case.name == f"double-rounding-{name}")
    want = oracle.merge(case.weight, case.factors, oracle.fma_fraction)
    assert_same_bits(kernels.merge_low_rank(case.weight, case.factors), want)
    assert (bits(plain(case)) != bits(want)).any()


def test_large_weight_equals_the_definition() -> None:
    """Several tiles of the real size, against `fma` applied to whole arrays."""
    rng = np.random.default_rng(9)
    weight = rng.standard_normal((700, 501)).astype(np.float32)
    a = rng.standard_normal((3, 501)).astype(np.float32)
    b = rng.standard_normal((700, 3)).astype(np.float32)
    t = np.zeros_like(weight)
    for k in range(3):
        t = reference.fma(b[:, k, None], a[k], t)
    want = reference.fma(np.float32(0.1), t, weight)
    got = kernels.merge_low_rank(weight, [Factor(a, b, np.float32(0.1))])
    assert weight.size > 2 * operands.TILE
    assert_same_bits(got, want)


@pytest.mark.parametrize("value", [1.0, 0.0, 2.0**-75])
def test_scratch_does_not_grow_with_the_weight(value: float) -> None:
    """Also where every sum is zero or subnormal, and so takes the slow way."""
    weight = np.zeros((1500, 2000), BFLOAT16)
    a, b = np.full((1, 2000), value, np.float32), np.full((1500, 1), value, np.float32)
    tracemalloc.start()
    try:
        kernels.merge_low_rank(weight, [Factor(a, b, np.float32(1))])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weight.nbytes < peak < weight.nbytes + 32e6


def test_zero_factor_turns_minus_zero_positive() -> None:
    factor = Factor(np.ones((1, 2), np.float32), np.zeros((1, 1), np.float32), np.float32(2))
    weight = np.array([[-0.0, -1.0]], np.float32)
    assert bits(kernels.merge_low_rank(weight, [factor])).tolist() == [[0, 0xBF800000]]
    assert bits(kernels.merge_low_rank(weight, [])).tolist() == [[0x80000000, 0xBF800000]]


def test_factors_apply_in_the_order_given() -> None:
    one = np.ones((1, 1), np.float32)
    big, small = Factor(one, one, np.float32(2.0**24)), Factor(one, one, np.float32(1))
    weight, minus = np.zeros((1, 1), np.float32), Factor(one, one, np.float32(-(2.0**24)))
    assert kernels.merge_low_rank(weight, [big, small, minus]).item() == 0
    assert kernels.merge_low_rank(weight, [big, minus, small]).item() == 1


def test_arithmetic_is_named(path: str) -> None:
    if path == "numpy":
        assert kernels.name == "numpy reference"
        note = "ADAPTERHUB_KERNEL=numpy"
        assert kernels.describe() == {"kernel": "numpy-reference", "exact": True, "note": note}
    else:
        compiled = path.removesuffix("-emulated")
        assert kernels.name == f"C ({compiled})"
        assert kernels.describe() == {"kernel": f"c-{compiled}", "exact": True}


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16])
def test_add_scaled_equals_the_oracle(dtype: np.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    weight = rng.standard_normal(37).astype(np.float32).astype(dtype)
    biases = [rng.standard_normal(37).astype(np.float32) for _ in range(3)]
    terms = [(np.float32(c), bias) for c, bias in zip((0.3, -1, 2e-42), biases, strict=True)]
    # A bias is a rank-1 factor with b = 1, since fma(1, bias, 0) is the bias (none is -0 here).
    one = np.ones((1, 1), np.float32)
    factors = [Factor(bias[None], one, scale) for scale, bias in terms]
    want = oracle.merge(weight[None], factors)[0]
    assert_same_bits(kernels.add_scaled(weight, terms), want)
    monkeypatch.setattr(operands, "TILE", 5)
    assert_same_bits(kernels.add_scaled(weight, terms), want)


def test_add_scaled_takes_the_bias_as_it_is() -> None:
    """-0 stays -0, where a rank-1 factor would make it +0."""
    minus = np.array([-0.0], np.float32)
    assert bits(kernels.add_scaled(minus, [(np.float32(1), minus)])).tolist() == [0x80000000]
