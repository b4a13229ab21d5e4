"""What all paths share: the reference's bits and faults on any range, thread and pair of dtypes."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import oracle
import pytest
from cases import DTYPES, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.kernels import Factor, NonFinite, Prepared, library, prepare, prepare_scaled
from adapterhub.kernels.compiled import _packed

CASES = {case.name: case for case in cases()}
INTEGER = {2: np.uint16, 4: np.uint32}
BF16 = DTYPES[2]


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(INTEGER[array.itemsize])


def run(prepared: Prepared, source: np.ndarray, first: int = 0) -> np.ndarray:
    target = np.empty(source.shape, prepared.out_dtype)
    prepared.run(source, target, first)
    return target


@cache
def oracle_sums(name: str) -> np.ndarray:
    case = CASES[name]
    return oracle.merge(case.weight.astype(np.float32), case.factors)


@cache
def rounded_sums(name: str, dtype: np.dtype) -> np.ndarray:
    sums = oracle_sums(name)
    exact = [oracle._round(float(x), dtype.name) for x in sums.reshape(-1)]
    return np.array(exact, np.float64).reshape(sums.shape)


@pytest.mark.parametrize("name", CASES)
def test_one_rounding_to_another_dtype(name: str) -> None:
    case = CASES[name]
    weight = np.ascontiguousarray(case.weight)
    for out_dtype in DTYPES:
        want = rounded_sums(name, out_dtype)
        prepared = prepare(weight.shape, case.factors, weight.dtype, out_dtype)
        if np.isfinite(want).all():
            assert np.array_equal(bits(run(prepared, weight)), bits(want.astype(out_dtype)))
            continue
        with pytest.raises(NonFinite) as caught:
            run(prepared, weight)
        first = np.unravel_index(int(np.argmax(~np.isfinite(want))), want.shape)
        assert (caught.value.operand, caught.value.index) == ("result", first)


def problem(
    rng: np.random.Generator, shape: tuple[int, int], ranks: tuple[int, ...], dtype: np.dtype
) -> Case:
    factors = tuple(
        Factor(
            rng.standard_normal((rank, shape[1])).astype(np.float32),
            rng.standard_normal((shape[0], rank)).astype(np.float32),
            np.float32(rng.uniform(-1, 1)),
        )
        for rank in ranks
    )
    return Case("", rng.standard_normal(shape).astype(np.float32).astype(dtype), factors)


def by_numpy(case: Case, out_dtype: np.dtype, transposed: bool = False) -> np.ndarray:
    """Flat as stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_KERNEL", "numpy")
        prepared = prepare(case.weight.shape, case.factors, case.weight.dtype, out_dtype)
    merged = run(prepared, np.ascontiguousarray(case.weight))
    return (merged.T if transposed else merged).reshape(-1)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(50, 200), (7, 64), (400, 3), (1, 1000), (13, 129)], ids=str)
def test_any_range_gives_the_same_bits(shape: tuple[int, int], transposed: bool) -> None:
    rng = np.random.default_rng(1)
    for dtype, out_dtype in [(BF16, BF16), (DTYPES[1], DTYPES[0]), (DTYPES[0], BF16)]:
        case = problem(rng, shape, (3, 2), dtype)
        want = by_numpy(case, out_dtype, transposed)
        prepared = prepare(shape, case.factors, dtype, out_dtype, transposed=transposed)
        stored = np.ascontiguousarray(case.weight.T if transposed else case.weight).reshape(-1)
        for _ in range(40):
            first, last = sorted(rng.integers(0, stored.size + 1, 2).tolist())
            # Guards around the target, whose bytes are at an odd address.
            raw = np.full((last - first) * out_dtype.itemsize + 65, 0xA5, np.uint8)
            inner = memoryview(raw)[1 : len(raw) - 64]
            prepared.run(stored[first:last], inner, first)
            assert bytes(inner) == want[first:last].tobytes()
            assert raw[0] == 0xA5 and (raw[len(raw) - 64 :] == 0xA5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: np.dtype) -> None:
    case = problem(np.random.default_rng(2), (31, 170), (5,), dtype)
    want = by_numpy(case, dtype).tobytes()
    raw = bytearray(case.weight.tobytes())
    prepared = prepare((31, 170), case.factors, dtype)
    cut = 1003 * dtype.itemsize
    prepared.run(memoryview(raw)[:cut], memoryview(raw)[:cut])
    prepared.run(memoryview(raw)[cut:], memoryview(raw)[cut:], 1003)
    assert bytes(raw) == want


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_chunks_change_nothing(threads: int) -> None:
    rng = np.random.default_rng(3)
    case = problem(rng, (150, 333), (16, 1), BF16)
    want = by_numpy(case, BF16)
    prepared = prepare((150, 333), case.factors, BF16)
    flat, merged = case.weight.reshape(-1), np.empty(150 * 333, BF16)
    cuts = np.concatenate([[0], np.sort(rng.integers(0, flat.size, 40)), [flat.size]]).tolist()

    def piece(span: tuple[int, int]) -> None:
        prepared.run(flat[slice(*span)], merged[slice(*span)], span[0])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(piece, pairwise(cuts)))
    assert merged.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_finite_value_is_read_exactly(dtype: np.dtype) -> None:
    every = np.arange(65536, dtype=np.uint16)
    exponent = 0x7C00 if dtype == np.float16 else 0x7F80
    finite = every[every & exponent != exponent].view(dtype)
    widened = run(prepare_scaled(finite.size, (), dtype, DTYPES[0]), finite)
    assert np.array_equal(widened.astype(np.float64), finite.astype(np.float64))
    assert np.array_equal(np.signbit(widened), np.signbit(finite.astype(np.float64)))
    back = run(prepare_scaled(finite.size, (), DTYPES[0], dtype), widened)
    assert back.tobytes() == finite.tobytes()


@pytest.mark.parametrize("first", [0, 1, 63, 64, 500])
def test_scaled_terms_on_a_range(first: int) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal(777).astype(np.float16)
    terms = [(np.float32(c), rng.standard_normal(777).astype(np.float32)) for c in (0.5, -3, 2e-42)]
    acc = weight.astype(np.float64)
    for scale, bias in terms:
        exact = [oracle.fmaf(float(scale), float(t), float(s)) for t, s in zip(bias, acc)]  # noqa: B905
        acc = np.array(exact)
    prepared = prepare_scaled(777, terms, weight.dtype, DTYPES[0])
    got = run(prepared, weight[first:], first)
    assert np.array_equal(bits(got), bits(acc[first:].astype(np.float32)))


# --- anything at all --------------------------------------------------------------------------


def outcome(prepared: Prepared, stored: np.ndarray, first: int) -> object:
    try:
        return run(prepared, stored, first).tobytes()
    except NonFinite as error:
        return error.operand, error.index, error.factor


def some_bits(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """float32: ordinary numbers, or any bits with or without what is not finite."""
    if kind == "normal":
        return rng.standard_normal(shape).astype(np.float32)
    pattern = rng.integers(0, 2**32, shape, np.uint32)
    special = pattern & 0x7F800000 == 0x7F800000
    if kind == "finite":
        pattern = np.where(special, pattern & 0xBFFFFFFF, pattern)
    return pattern.astype(np.uint32).view(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Case, np.dtype, bool, int, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 150)))
    kinds = st.sampled_from(["normal", "normal", "finite"])
    factors = []
    for rank in draw(st.lists(st.integers(0, 9), max_size=3)):
        a = some_bits(rng, (rank, shape[1]), draw(kinds))
        b = some_bits(rng, (shape[0], rank), draw(kinds))
        factors.append(Factor(a, b, np.float32(draw(st.sampled_from([0.5, -1.7, 1e-42])))))
    weight = some_bits(rng, shape, draw(st.sampled_from(["normal", "finite", "any"])))
    dtype, out_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        weight = weight.astype(dtype)
    first, last = sorted(draw(st.tuples(*[st.integers(0, weight.size)] * 2)))
    return Case("", weight, tuple(factors)), out_dtype, draw(st.booleans()), first, last


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(problems())
def test_fuzz(drawn: tuple[Case, np.dtype, bool, int, int]) -> None:
    if os.environ[library.SWITCH] == "numpy":
        pytest.skip("numpy is what the others are compared with")
    case, out_dtype, transposed, first, last = drawn
    weight = case.weight
    stored = np.ascontiguousarray(weight.T if transposed else weight).reshape(-1)[first:last]
    got, want = (
        outcome(
            prepare(weight.shape, case.factors, weight.dtype, out_dtype, transposed=transposed),
            stored,
            first,
        )
        for switch in switched()
    )
    assert got == want


def switched() -> object:
    """First as the fixture has set it, then numpy."""
    yield None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_KERNEL", "numpy")
        yield None


def test_weight_goes_before_result_and_the_first_index_wins() -> None:
    weight = np.zeros((20, 100), np.float16)
    push = Factor(np.full((1, 100), 7e4, np.float32), np.zeros((20, 1), np.float32), np.float32(1))
    push.b[[3, 9]] = 1
    prepared = prepare(weight.shape, [push], weight.dtype)
    with pytest.raises(NonFinite, match=r"result overflows or is NaN at \(3, 0\)"):
        run(prepared, weight)
    weight[15, 7] = weight[12, 80] = np.nan
    with pytest.raises(NonFinite, match=r"weight is not finite at \(12, 80\)"):
        prepared.run(weight, weight)
    with pytest.raises(NonFinite, match=r"result overflows or is NaN at \(9, 50\)"):
        run(prepared, weight.reshape(-1)[950:1000], 950)


def test_place_is_logical_where_the_bytes_are_transposed() -> None:
    stored = np.zeros((6, 5), np.float32)
    stored[4, 3] = np.inf
    with pytest.raises(NonFinite, match=r"weight is not finite at \(3, 4\)"):
        run(prepare((5, 6), (), stored.dtype, transposed=True), stored)


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_are_packed_as_the_header_says(path: str, transposed: bool) -> None:
    if path == "numpy":
        pytest.skip("numpy packs nothing")
    width, lanes = {"portable": (16, 4), "avx2": (32, 8)}.get(path, (64, 16))
    columns = np.arange(1, 2 * 70 + 1, dtype=np.float32).reshape(2, 70)
    packed = _packed(library.choose(), np.asfortranarray(columns) if transposed else columns)
    assert packed.ctypes.data % 64 == 0
    padded = np.pad(columns, [(0, 0), (0, 58)])
    want = padded.reshape(2, 128 // width, width).transpose(1, 0, 2)
    if path != "portable":
        pairs = want.reshape(*want.shape[:2], -1, lanes, 2)
        want = pairs.swapaxes(3, 4).reshape(want.shape)
    assert np.array_equal(packed.reshape(want.shape), want)


# --- the door of engines ----------------------------------------------------------------------


def test_ranges_and_buffers_must_fit() -> None:
    prepared = prepare((4, 5), (), BF16, DTYPES[0])
    source, target = bytes(8), bytearray(16)
    for first in (-1, 17):
        with pytest.raises(ValueError, match=rf"elements {first} to {first + 4} of a tensor of 20"):
            prepared.run(source, target, first)
    with pytest.raises(ValueError, match="source has 4 elements, target 5"):
        prepared.run(source, bytearray(20))
    with pytest.raises(ValueError, match="target has 15 bytes, no whole number of float32"):
        prepared.run(source, bytearray(15))
    with pytest.raises(ValueError, match="target is read-only"):
        prepared.run(source, bytes(16))
    with pytest.raises(ValueError, match="source must be contiguous"):
        prepared.run(np.zeros((4, 8), BF16)[:, ::2], target)
    with pytest.raises(ValueError, match="source and target overlap"):
        prepared.run(memoryview(target)[:8], target)
    same = prepare((4, 5), (), BF16)
    with pytest.raises(ValueError, match="source and target overlap"):
        same.run(memoryview(target)[:8], memoryview(target)[2:10])
    prepared.run(b"", bytearray(), 20)


def test_trouble_beside_the_range_does_not_matter() -> None:
    """In the row of which a part is merged, other columns overflow."""
    case = problem(np.random.default_rng(5), (3, 90), (1,), BF16)
    case.factors[0].a[0, ::2] = 3e38
    case.factors[0].b[:] = 2
    prepared = prepare((3, 90), case.factors, BF16)
    odd = case.weight.reshape(-1)[91:92].copy()
    want = oracle.merge(case.weight[1:2, 1:2], [_part(case.factors[0])])
    assert run(prepared, odd, 91).tobytes() == want.tobytes()
    with pytest.raises(NonFinite, match=r"at \(1, 2\)"):
        run(prepared, case.weight.reshape(-1)[91:95], 91)


def _part(factor: Factor) -> Factor:
    return Factor(factor.a[:, 1:2], factor.b[1:2], factor.scale)


def test_run_allocates_nothing_that_grows(path: str) -> None:
    if path == "numpy":
        pytest.skip("numpy works in tiles, which test_reference.py measures")
    case = problem(np.random.default_rng(6), (512, 512), (2,), DTYPES[0])
    prepared, weight = prepare((512, 512), case.factors, DTYPES[0]), case.weight.copy()
    prepared.run(weight, weight)
    tracemalloc.start()
    try:
        prepared.run(weight, weight)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_other_threads_run_meanwhile(path: str) -> None:
    """Ticks of this thread in the middle half of a merge in another: the GIL was released.

    A busy machine may give this thread no time during one merge; with the GIL held it gets none
    during any.
    """
    if path == "numpy":
        pytest.skip("numpy takes the GIL between its tiles")
    case = problem(np.random.default_rng(7), (1500, 1000), (64,), BF16)
    prepared = prepare((1500, 1000), case.factors, BF16)
    assert any(_ticks_during(prepared, case.weight.copy()) for _ in range(50))


def _ticks_during(prepared: Prepared, weight: np.ndarray) -> bool:
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        prepared.run(weight, weight)
        span.append(time.perf_counter())

    worker, ticks = threading.Thread(target=work), []
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
    start, stop = span
    quarter = (stop - start) / 4
    return any(start + quarter < tick < stop - quarter for tick in ticks)
