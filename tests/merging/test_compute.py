"""What one output tensor becomes, against fp64, for what has no LoRA of its own to test it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from building import LLAMA, llama, lora, opened, plan_of, random, save_adapter, save_base

from adapterhub.errors import InvalidAdapter, InvalidBase, NotMergeable
from adapterhub.merging import MergePlan
from adapterhub.merging.stream import stream
from adapterhub.merging.work import Row, Slab, Term, Work
from adapterhub.tensorfile import DTYPES, ArrayTensor, Spec, lay_out, spelling

BF16 = np.dtype(ml_dtypes.bfloat16)
SCALE = np.float32(0.75)


class Memory:
    """A sink of bytes."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = bytearray(nbytes)

    def copy(self, shard: Any, job: Any) -> None:
        raise AssertionError("nothing is to be copied here")

    def write_at(self, shard: Any, data: memoryview, offset: int) -> None:
        self.bytes[offset : offset + len(data)] = data


@pytest.fixture(scope="module")
def any_plan(tmp_path_factory: pytest.TempPathFactory) -> MergePlan:
    place = tmp_path_factory.mktemp("plan")
    base = save_base(place / "base", llama(), LLAMA)
    return plan_of(base, save_adapter(place / "adapter", lora()))


def computed(plan: MergePlan, work: Work, threads: int = 3) -> np.ndarray:
    layout = lay_out("model.safetensors", [Spec(work.name, work.dtype, work.shape)])
    plan = replace(plan, works={work.name: work}, shards=(layout,))
    sink = Memory(layout.nbytes)
    list(stream(plan, plan.shards, sink, threads))
    raw = bytes(sink.bytes[layout.offsets[work.name] :])
    return np.frombuffer(raw, DTYPES[work.dtype]).reshape(work.shape)


def work_of(value: np.ndarray, dtype: Any = None, **fields: Any) -> Work:
    out = spelling(np.dtype(dtype or value.dtype))
    assert out is not None
    fields = {"stored": "x.weight", **fields}
    return Work("x.weight", out, value.shape, ArrayTensor(value), **fields)


def term(a: np.ndarray, b: np.ndarray) -> Term:
    return Term(0, "x", ArrayTensor(a), ArrayTensor(b), SCALE)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Within one unit of the last place of the dtype, plus fp32's error in cancelled sums."""
    eps = {np.dtype(np.float32): 2e-6, BF16: 2.0**-7, np.dtype(np.float16): 2.0**-10}[got.dtype]
    assert (np.abs(wide(got) - want) <= eps * (np.abs(want) + 1)).all()


# --- several matrices in one tensor -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("transposed", [False, True])
def test_slabs_with_gaps_between_them(any_plan: MergePlan, dtype: Any, transposed: bool) -> None:
    """Experts 1 and 3 of five, over several chunks."""
    out, into, rank = 700, 611, 3
    stored = (into, out) if transposed else (out, into)
    value = random(1, 5, *stored, dtype=dtype)
    factors = {e: (random(e, rank, into), random(e + 9, out, rank)) for e in (1, 3)}
    slabs = tuple(
        Slab((out, into), (term(a, b),), first=e * out * into, transposed=transposed)
        for e, (a, b) in factors.items()
    )
    want = wide(value)
    for expert, (a, b) in factors.items():
        delta = float(SCALE) * (wide(b) @ wide(a))
        want[expert] += delta.T if transposed else delta
    got = computed(any_plan, work_of(value, slabs=slabs))
    close(got, want)
    for untouched in (0, 2, 4):
        assert got[untouched].tobytes() == value[untouched].tobytes()


def test_factors_of_many_experts_are_prepared_in_groups(
    any_plan: MergePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.merging.stream.GROUP_BYTES", 100)
    value = random(1, 40, 6, 5)
    slabs = tuple(
        Slab((6, 5), (term(random(e, 2, 5), random(e + 99, 6, 2)),), first=e * 30)
        for e in range(40)
    )
    want = wide(value)
    for e in range(40):
        want[e] += float(SCALE) * (wide(random(e + 99, 6, 2)) @ wide(random(e, 2, 5)))
    close(computed(any_plan, work_of(value, slabs=slabs)), want)


# --- DoRA -------------------------------------------------------------------------------------


def dora_works(dtype: Any, transposed: bool, shape: tuple[int, int]) -> tuple[Work, np.ndarray]:
    """A work and what it should give, in fp64."""
    out, into = shape
    value = random(1, *((into, out) if transposed else (out, into)), dtype=dtype)
    a, b = random(2, 4, into), random(3, out, 4)
    magnitude = np.abs(random(4, out)) + np.float32(0.5)
    slab = Slab(shape, (term(a, b),), transposed=transposed, magnitude=ArrayTensor(magnitude))
    directions = (wide(value).T if transposed else wide(value)) + float(SCALE) * (wide(b) @ wide(a))
    norms = np.sqrt((directions**2).sum(axis=1, keepdims=True))
    want = wide(magnitude)[:, None] * directions / norms
    return work_of(value, slabs=(slab,)), want.T if transposed else want


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (64, 64), (65, 129), (1, 70), (70, 1), (1500, 1100)])
def test_dora_is_magnitude_times_direction(
    any_plan: MergePlan, dtype: Any, transposed: bool, shape: tuple[int, int]
) -> None:
    work, want = dora_works(dtype, transposed, shape)
    close(computed(any_plan, work), want)


def test_doras_norm_has_the_same_bits_however_the_weight_is_stored_and_cut(
    any_plan: MergePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _ = dora_works(np.float32, False, (130, 333))
    turned, _ = dora_works(np.float32, True, (130, 333))
    value = work.value.read()
    turned = replace(turned, value=ArrayTensor(np.ascontiguousarray(value.T)))
    one = computed(any_plan, work)
    monkeypatch.setattr("adapterhub.merging.factors._BLOCK_ELEMENTS", 1)
    assert computed(any_plan, work, 1).tobytes() == one.tobytes()
    assert computed(any_plan, turned).T.tobytes() == one.tobytes()


def test_dora_of_a_zero_row_is_refused(any_plan: MergePlan) -> None:
    value = random(1, 3, 4)
    value[1] = 0
    a, b = random(2, 2, 4), random(3, 3, 2)
    b[1] = 0
    slab = Slab((3, 4), (term(a, b),), magnitude=ArrayTensor(random(4, 3)))
    with pytest.raises(NotMergeable, match=r"x\.weight: row 1 of the merged weight is zero"):
        computed(any_plan, work_of(value, slabs=(slab,)))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_magnitude_that_overflows_is_named_with_its_place(
    any_plan: MergePlan, transposed: bool
) -> None:
    work, _ = dora_works(np.float16, transposed, (3, 2))
    magnitude = np.ones(3, np.float32)
    magnitude[2] = 1e6
    slab = replace(work.slabs[0], magnitude=ArrayTensor(magnitude))
    place = r"\[0, 2\]" if transposed else r"\[2, 0\]"
    with pytest.raises(NotMergeable, match=rf"x\.weight at {place}: the result does not fit F16"):
        computed(any_plan, replace(work, slabs=(slab,)))


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_rows_are_replaced_also_where_chunks_cut_them(any_plan: MergePlan, dtype: Any) -> None:
    value = random(1, 900, 3000, dtype=dtype)
    rows = random(2, 3, 3000)
    places = [0, 349, 699]  # a chunk of fp32 ends within row 349, one of bf16 within row 699
    replaced = tuple(
        Row(place * 3000, number, ArrayTensor(rows)) for number, place in enumerate(places)
    )
    want = value.copy()
    want[places] = rows.astype(dtype)
    assert computed(any_plan, work_of(value, rows=replaced)).tobytes() == want.tobytes()


def test_rows_come_after_what_is_added(any_plan: MergePlan) -> None:
    value, a, b = random(1, 6, 4), random(2, 2, 4), random(3, 6, 2)
    rows = (Row(2 * 4, 0, ArrayTensor(random(5, 1, 4))),)
    got = computed(any_plan, work_of(value, slabs=(Slab((6, 4), (term(a, b),)),), rows=rows))
    want = wide(value) + float(SCALE) * (wide(b) @ wide(a))
    want[2] = random(5, 1, 4)
    close(got, want)


def test_a_row_that_is_nan_is_named(any_plan: MergePlan) -> None:
    row = random(2, 1, 4)
    row[0, 3] = np.nan
    work = work_of(random(1, 6, 4), rows=(Row(8, 0, ArrayTensor(row)),))
    with pytest.raises(InvalidAdapter, match=r"row 2 of x\.weight is NaN or infinite at 3"):
        computed(any_plan, work)


# --- values that are refused ------------------------------------------------------------------


def faults(shape: Sequence[int], place: tuple[int, ...], bad: float) -> np.ndarray:
    value = random(1, *shape)
    value[place] = bad
    return value


def test_the_first_fault_is_told_whichever_thread_meets_one(any_plan: MergePlan) -> None:
    value = faults((5, 700, 611), (1, 3, 4), np.nan)
    value[2:] = np.inf
    slabs = (Slab((700, 611), (term(random(2, 2, 611), random(3, 700, 2)),), first=700 * 611),)
    for threads in (1, 4):
        with pytest.raises(InvalidBase, match=r"x\.weight at \[1, 3, 4\] of the base is NaN"):
            computed(any_plan, work_of(value, slabs=slabs), threads)


def test_between_slabs_values_are_checked_too(any_plan: MergePlan) -> None:
    value = faults((5, 7, 6), (4, 6, 5), np.inf)
    slabs = (Slab((7, 6), (term(random(2, 2, 6), random(3, 7, 2)),), first=42),)
    with pytest.raises(InvalidBase, match=r"x\.weight at \[4, 6, 5\] of the base"):
        computed(any_plan, work_of(value, slabs=slabs))


def test_other_dtypes_than_floats_are_replaced_byte_by_byte(any_plan: MergePlan) -> None:
    value = np.arange(3_000_000, dtype=np.int64)
    work = work_of(value, replaces=True)
    assert computed(any_plan, work).tobytes() == value.tobytes()


def test_a_tensor_in_a_file_is_read_where_it_lies(tmp_path: Path, any_plan: MergePlan) -> None:
    tensor = opened(save_base(tmp_path / "b", {"y": random(5, 1100, 1000)}, LLAMA)).tensors["y"]
    work = Work("y", "BF16", tensor.shape, tensor, "y")
    assert computed(any_plan, work).tobytes() == random(5, 1100, 1000).astype(BF16).tobytes()
