from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from building import LLAMA, Q0, contents, llama, lora, plan_of, random, run, save_adapter, save_base

import adapterhub as ah
from adapterhub import api
from adapterhub import merging as merge
from adapterhub.errors import BaseMismatch, InvalidOption, NotFound


@pytest.fixture
def merged(base: Path, adapter: Path, tmp_path: Path) -> Path:
    run(base, tmp_path / "out", adapter)
    return tmp_path / "out"


def test_the_same_merge_repeats_without_writing(
    base: Path, adapter: Path, merged: Path, tmp_path: Path
) -> None:
    before = contents(merged), sorted(tmp_path.iterdir())
    told: list[int] = []
    report = merge.read_report(merged)
    assert merge.repeat(plan_of(base, adapter), report, progress=told.append) == []
    assert sum(told) == sum(array.nbytes for array in llama().values())
    assert (contents(merged), sorted(tmp_path.iterdir())) == before


def changed(report: dict[str, Any], *names: str) -> dict[str, Any]:
    report = copy.deepcopy(report)
    for name in names:
        report["tensors"][name]["digest"] = "sha256:" + "0" * 64
    return report


def test_the_first_tensor_that_differs_is_named(base: Path, adapter: Path, merged: Path) -> None:
    plan, report = plan_of(base, adapter), merge.read_report(merged)
    in_files = [spec.name for shard in plan.shards for spec in shard.specs]
    for name in (in_files[0], f"{Q0}.weight", in_files[-1]):
        (found,) = merge.repeat(plan, changed(report, name, in_files[-1]))
        real = report["tensors"][name]["digest"]
        assert found == (
            f"tensor {name} is sha256:{'0' * 64} in the report, and {real} when merged again"
        )


def test_other_tensors_are_named(base: Path, adapter: Path, merged: Path) -> None:
    plan, report = plan_of(base, adapter), merge.read_report(merged)
    more = copy.deepcopy(report)
    more["tensors"]["extra"] = report["tensors"]["model.norm.weight"]
    assert merge.repeat(plan, more) == [
        "tensor extra is in the report and not in the repeated merge"
    ]
    del more["tensors"]["extra"], more["tensors"]["model.norm.weight"]
    assert merge.repeat(plan, more) == ["tensor model.norm.weight is not in the report"]


# --- finding the inputs -----------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> ah.Registry:
    return ah.open(tmp_path / "home")


def again(out: Path, registry: ah.Registry, **options: Any) -> list[str]:
    return api.verify_directory(out, repeat=True, registry=registry, **options)


def test_inputs_are_found_by_their_digests(
    base: Path, adapter: Path, tmp_path: Path, registry: ah.Registry
) -> None:
    registry.base.add(base)
    registry.add(adapter, name="mine", base=base)
    other = save_adapter(tmp_path / "second", lora(), lora_alpha=7)
    registry.add(other, name="second")
    specs = [("mine", 0.5), ("second", -0.25)]
    ah.merge(base, specs, out=tmp_path / "out", dtype="bfloat16", registry=registry)
    registry.mv("mine", "renamed")
    assert again(tmp_path / "out", registry) == []


def test_what_is_not_at_hand_is_asked_for(
    base: Path, adapter: Path, tmp_path: Path, registry: ah.Registry
) -> None:
    out = tmp_path / "out"
    ah.merge(base, [adapter], out=out, registry=registry)
    with pytest.raises(NotFound, match="is not among the registered ones") as caught:
        again(out, registry)
    assert "--base DIR" in caught.value.remedy
    with pytest.raises(NotFound, match="took an adapter from a path") as caught:
        again(out, registry, base=base)
    assert "--adapter PATH" in caught.value.remedy
    assert again(out, registry, base=base, adapters=[adapter]) == []
    with pytest.raises(InvalidOption, match="2 adapters were given, the merge had 1"):
        again(out, registry, base=base, adapters=[adapter, adapter])


def test_other_inputs_are_refused(
    base: Path, adapter: Path, tmp_path: Path, registry: ah.Registry
) -> None:
    out = tmp_path / "out"
    ah.merge(base, [adapter], out=out, registry=registry)
    arrays = llama() | {"model.norm.weight": random(77, 8)}
    other_base = save_base(tmp_path / "other", arrays, LLAMA)
    with pytest.raises(BaseMismatch, match="is not the base of this merge"):
        again(out, registry, base=other_base, adapters=[adapter])
    tensors = lora()
    tensors[next(iter(tensors))][0, 0] += 1
    other = save_adapter(tmp_path / "changed", tensors)
    with pytest.raises(BaseMismatch, match="is not the adapter of this merge"):
        again(out, registry, base=base, adapters=[other])


def test_a_registered_adapter_and_the_same_at_a_path_have_one_root(
    base: Path, adapter: Path, tmp_path: Path, registry: ah.Registry
) -> None:
    registry.add(adapter, name="mine")
    ah.merge(base, ["mine"], out=tmp_path / "ref", registry=registry)
    ah.merge(base, [adapter], out=tmp_path / "path", registry=registry)
    roots = {
        merge.read_report(tmp_path / n)["adapters"][0]["adapter_root"] for n in ("ref", "path")
    }
    assert len(roots) == 1
