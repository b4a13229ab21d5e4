from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from building import (
    LLAMA,
    Arrays,
    contents,
    llama,
    lora,
    opened,
    pair,
    plan_of,
    random,
    save_adapter,
    save_base,
)

from adapterhub import merging as merge
from adapterhub.digest import CHUNK_BYTES
from adapterhub.merging import MergePlan
from adapterhub.merging.ranges import COPY_BYTES, Compute, Copy, memory, ranges

WIDE = "model.layers.0.mlp.wide"


def large() -> Arrays:
    """A tensor of several chunks, the last of them cut, between others."""
    return llama() | {f"{WIDE}.weight": random(7, 1100, 2001), "model.z": random(8, 3000, 3000)}


def test_every_byte_behind_the_header_is_in_exactly_one_range(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    plans = [
        plan_of(base, adapter),
        plan_of(base, adapter, dtype="bfloat16"),
        plan_of(base, adapter, max_shard_bytes=700),
        plan_of(save_base(tmp_path / "large", large(), LLAMA, shards=3), adapter),
    ]
    for plan in plans:
        for shard in plan.shards:
            at = len(shard.header)
            for item in ranges(shard, plan.works):
                assert item.target == at
                at += item.nbytes
            assert at == shard.nbytes


def test_neighbours_are_copied_as_one_and_never_across_a_changed_tensor(
    base: Path, adapter: Path
) -> None:
    plan = plan_of(base, adapter)
    for shard in plan.shards:
        items = list(ranges(shard, plan.works))
        for one, two in itertools.pairwise(items):
            assert not (isinstance(one, Copy) and isinstance(two, Copy))
        computed = [item.work.name for item in items if isinstance(item, Compute)]
        assert computed == [spec.name for spec in shard.specs if plan.works[spec.name].terms]


def test_a_copied_range_holds_the_bytes_of_its_tensors(base: Path, adapter: Path) -> None:
    plan = plan_of(base, adapter)
    for shard in plan.shards:
        for item in ranges(shard, plan.works):
            if isinstance(item, Copy):
                held = item.path.read_bytes()[item.offset : item.offset + item.nbytes]
                inside = [
                    s
                    for s in shard.specs
                    if item.target <= shard.offsets[s.name] < item.target + item.nbytes
                ]
                assert held == b"".join(plan.base.tensors[s.name].read().tobytes() for s in inside)


def test_ranges_are_the_chunks_of_digests_and_long_copies_are_cut(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.merging.ranges.COPY_BYTES", 1000)
    wide = save_adapter(tmp_path / "wide", pair(WIDE, 1100, 2001))
    plan = plan_of(save_base(tmp_path / "large", large(), LLAMA), wide)
    (shard,) = plan.shards
    items = list(ranges(shard, plan.works))
    chunks = [item for item in items if isinstance(item, Compute)]
    assert [item.start for item in chunks] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert {item.nbytes for item in chunks[:-1]} == {CHUNK_BYTES}
    assert max(item.nbytes for item in items if isinstance(item, Copy)) == 1000 < COPY_BYTES


def test_memory_does_not_grow_with_the_model(adapter: Path, tmp_path: Path) -> None:
    small = plan_of(save_base(tmp_path / "small", llama(), LLAMA), adapter)
    big = plan_of(save_base(tmp_path / "big", large(), LLAMA), adapter)
    assert memory(small, 4) == memory(big, 4) < memory(big, 8) < 500e6


# --- the same bytes however it is done --------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base with tensors of several chunks and an adapter on some of them."""
    place = tmp_path_factory.mktemp("two")
    arrays = pair(WIDE, 1100, 2001, rank=5) | lora()
    return (
        save_base(place / "base", large(), LLAMA, shards=3),
        save_adapter(place / "adapter", arrays, rank_pattern={"wide": 5}),
    )


def merged(plan: MergePlan, out: Path, threads: int = 2) -> str:
    return merge.run(plan, out, threads=threads).weights_root


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2, 7])
@pytest.mark.parametrize("dtype", [pytest.param(None, marks=pytest.mark.slow), "bfloat16"])
def test_threads_and_shards_change_no_byte(
    two: tuple[Path, Path], tmp_path: Path, threads: int, dtype: str | None
) -> None:
    base, adapter = two
    one = save_base(tmp_path / "one", large(), LLAMA)
    want = merged(plan_of(one, adapter, dtype=dtype), tmp_path / "want", 1)
    assert merged(plan_of(base, adapter, dtype=dtype), tmp_path / "out", threads) == want
    again = plan_of(base, adapter, dtype=dtype)
    assert merged(again, tmp_path / "again", 3) == want
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    small = plan_of(base, adapter, dtype=dtype, max_shard_bytes=9_000_000)
    assert merged(small, tmp_path / "small", threads) == want


@pytest.mark.parametrize("kernel", ["portable", "avx2", "avx512"])
def test_every_kernel_gives_the_root_of_the_reference(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    from adapterhub.errors import NotSupported
    from adapterhub.kernels import library

    plan = plan_of(*two)
    monkeypatch.setenv(library.SWITCH, "numpy")
    want = merged(plan, tmp_path / "numpy")
    monkeypatch.setenv(library.SWITCH, kernel)
    try:
        library.choose()
    except NotSupported as error:
        pytest.skip(error.message)
    assert merged(plan, tmp_path / kernel) == want


def test_digests_are_those_of_the_bytes(two: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = two
    report = merge.run(plan_of(base, adapter), tmp_path / "out")
    assert opened(tmp_path / "out").weights_root() == report.weights_root
    assert merge.differences(tmp_path / "out") == []


def test_the_result_is_the_formula_in_every_chunk(two: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = two
    merge.run(plan_of(base, adapter), tmp_path / "out")
    weight, factors = large()[f"{WIDE}.weight"], pair(WIDE, 1100, 2001, rank=5)
    a, b = (factors[f"base_model.model.{WIDE}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    want = weight.astype(np.float64) + np.float64(np.float32(4 / 5)) * (b @ a)
    got = opened(tmp_path / "out").tensors[f"{WIDE}.weight"].read()
    assert np.abs(got - want).max() < 1e-5
    assert np.abs(got - weight).max() > 0.1
