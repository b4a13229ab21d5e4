from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import (
    DOWN,
    HIDDEN,
    LLAMA,
    Q0,
    VOCABULARY,
    arrays_of,
    contents,
    llama,
    lora,
    nothing_left,
    opened,
    pair,
    random,
    run,
    same_bits,
    save_adapter,
    save_base,
    source,
    whole,
)

from adapterhub import merging as merge
from adapterhub import schema
from adapterhub.base import LeafCache
from adapterhub.errors import (
    BaseMismatch,
    InvalidAdapter,
    InvalidBase,
    NotMergeable,
    OutputError,
)
from adapterhub.formats.roots import tensors_root
from adapterhub.merging import output
from adapterhub.tensorfile import read_header

# --- what comes out ---------------------------------------------------------------------------


def test_the_same_merge_gives_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "one", adapter)
    moved = tmp_path / "elsewhere" / "b"
    shutil.copytree(base, moved)
    run(moved, tmp_path / "deeper" / "two", adapter)
    assert contents(tmp_path / "one") == contents(tmp_path / "deeper" / "two")
    assert str(tmp_path) not in (tmp_path / "one" / "adapterhub.json").read_text()


def test_the_report_follows_its_schema_and_names_the_roots(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    report = run(base, tmp_path / "out", adapter)
    document = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    schema.check(document, "merge", what="adapterhub.json")
    assert document["base"]["weights_root"] == opened(base).weights_root()
    assert document["weights_root"] == opened(tmp_path / "out").weights_root()
    assert document["structure_root"] == opened(tmp_path / "out").structure_root
    assert document["structure_root"] == opened(base).structure_root
    assert report.weights_root == document["weights_root"] != document["base"]["weights_root"]
    assert report.actions == document["actions"] == {"copy": len(llama()) - 2, "merge": 2}
    assert report.to_dict()["model_class"] == "LlamaForCausalLM"
    assert set(document["files"]) == {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
    }


def test_the_report_tells_weights_and_options(base: Path, adapter: Path, tmp_path: Path) -> None:
    weighted = source(adapter, weight=0.25, digest="sha256:" + "1" * 64)
    run(base, tmp_path / "out", weighted, dtype="bfloat16", max_shard_bytes=500)
    document = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    weights = adapter / "adapter_model.safetensors"
    assert document["options"] == {
        "dtype": "bfloat16",
        "max_shard_bytes": 500,
        "base_is_initialised": False,
    }
    assert document["adapters"] == [
        {
            "digest": "sha256:" + "1" * 64,
            "adapter_root": tensors_root(dict(read_header(weights).tensors)),
            "method": "lora",
            "weight": 0.25,
            "declared_base": "someone/model",
            "recorded_base": None,
            "part": None,
        }
    ]
    assert document["actions"] == {"cast": len(llama()) - 2, "merge": 2}


def test_sharding_changes_no_root(base: Path, adapter: Path, tmp_path: Path) -> None:
    one = save_base(tmp_path / "one", llama(), LLAMA, shards=1)
    three = save_base(tmp_path / "three", llama(), LLAMA, shards=3)
    roots = {
        run(one, tmp_path / "out1", adapter).weights_root,
        run(three, tmp_path / "out3", adapter).weights_root,
        run(three, tmp_path / "out4", adapter, max_shard_bytes=700).weights_root,
    }
    assert len(roots) == 1


def test_what_is_not_touched_is_copied_byte_for_byte(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    run(base, tmp_path / "out", adapter)
    before, after = arrays_of(base), arrays_of(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not same_bits(before[name], after[name])}
    assert changed == {f"{Q0}.weight", f"{DOWN}.weight"}
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_progress_tells_of_every_byte(base: Path, adapter: Path, tmp_path: Path) -> None:
    hashed: list[int] = []
    written: list[int] = []
    plan = merge.plan(opened(base), [source(adapter)])
    merge.run(plan, tmp_path / "out", hashing=hashed.append, writing=written.append)
    total = sum(array.nbytes for array in llama().values())
    assert (sum(hashed), sum(written)) == (total, total)


def test_empty_tensors_and_weights_pass_through(adapter: Path, tmp_path: Path) -> None:
    arrays = llama() | {"model.layers.0.nothing.weight": np.zeros((0, 3), np.float32)}
    base = save_base(tmp_path / "base", arrays, LLAMA)
    nothing = save_adapter(tmp_path / "n", pair("model.layers.0.nothing", 0, 3))
    run(base, tmp_path / "out", nothing, dtype="bfloat16")
    assert arrays_of(tmp_path / "out")["model.layers.0.nothing.weight"].shape == (0, 3)


# --- the right base ---------------------------------------------------------------------------

OTHER = "sha256:" + "0" * 64


def test_another_base_than_the_recorded_one_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    recorded = source(adapter, base_weights_root=OTHER)
    with pytest.raises(BaseMismatch, match="is not the recorded base") as caught:
        run(base, tmp_path / "out", recorded)
    assert caught.value.details == (f"adapter was recorded with {OTHER}",)
    assert nothing_left(tmp_path / "out")


def test_force_base_merges_and_the_report_is_unverified(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    forced = run(base, tmp_path / "f", source(adapter, base_weights_root=OTHER), force_base=True)
    unrecorded = run(base, tmp_path / "u", adapter)
    root = opened(base).weights_root()
    verified = run(base, tmp_path / "v", source(adapter, base_weights_root=root))
    mixed = run(base, tmp_path / "m", source(adapter, base_weights_root=root), adapter)
    assert (forced.verified, unrecorded.verified, verified.verified) == (False, False, True)
    assert not mixed.verified
    assert forced.weights_root == unrecorded.weights_root == verified.weights_root


# --- where it may write -----------------------------------------------------------------------


def test_an_output_directory_with_something_in_it_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(OutputError, match=f"{out} is not empty"):
        run(base, out, adapter)
    assert contents(out) == {"mine": b"x"}
    assert not (tmp_path / "out.partial").exists()


def test_an_empty_output_directory_is_used(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(base, tmp_path / "out", adapter)
    assert (tmp_path / "out" / "adapterhub.json").is_file()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_output_that_is_no_directory_is_refused(
    base: Path, adapter: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    (tmp_path / "target").mkdir()
    if kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="exists and is not a directory"):
        run(base, out, adapter)
    assert os.path.lexists(out) and not list((tmp_path / "target").iterdir())


def foreign_directory(partial: Path) -> None:
    partial.mkdir()
    (partial / "thesis.tex").write_text("x")


def foreign_file(partial: Path) -> None:
    partial.write_text("x")


def link_to_a_remainder(partial: Path) -> None:
    elsewhere = partial.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / output.MARKER).write_text("")
    (elsewhere / "thesis.tex").write_text("x")
    partial.symlink_to(elsewhere)


@pytest.mark.parametrize("make", [foreign_directory, foreign_file, link_to_a_remainder])
def test_a_partial_that_no_merge_left_is_not_touched(
    base: Path, adapter: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out.partial")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="is not the remainder of a merge"):
        run(base, tmp_path / "out", adapter)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_remainder_of_a_killed_merge_is_replaced(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "out.partial"
    (partial / "deep").mkdir(parents=True)
    (partial / output.MARKER).write_text("")
    (partial / "model.safetensors").write_text("half")
    (partial / "deep" / "file").write_text("x")
    run(base, tmp_path / "out", adapter)
    run(base, tmp_path / "clean", adapter)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    assert not partial.exists()


def test_a_second_merge_to_the_same_place_is_told_to_wait(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with (
        output.partial_directory(out, 0) as partial,
        pytest.raises(OutputError, match="another merge is writing to"),
    ):
        (partial.directory / "model.safetensors").write_text("half")
        run(base, out, adapter)
    assert (partial.directory / "model.safetensors").read_text() == "half"


def test_too_little_space_is_seen_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"has 1,000 bytes free, the merge writes \d"):
        run(base, tmp_path / "out", adapter)
    assert nothing_left(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        run(base, closed / "out", adapter)


# --- values -----------------------------------------------------------------------------------


def test_nan_in_the_base_is_named_with_its_place(adapter: Path, tmp_path: Path) -> None:
    arrays = llama()
    arrays[f"{DOWN}.weight"][3, 11] = np.nan
    base = save_base(tmp_path / "base", arrays, LLAMA)
    with pytest.raises(InvalidBase, match=rf"{DOWN}\.weight at \[3, 11\] of the base is NaN"):
        run(base, tmp_path / "out", adapter)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("role", "place", "name"), [("A", [1, 7], "factor A"), ("B", [4, 0], "factor B")]
)
def test_infinity_in_a_factor_is_named_with_its_place(
    base: Path, tmp_path: Path, role: str, place: list[int], name: str
) -> None:
    tensors = lora()
    tensors[f"base_model.model.{Q0}.lora_{role}.weight"][tuple(place)] = -np.inf
    bad = save_adapter(tmp_path / "bad", tensors)
    says = rf"bad: {Q0} has a {name} that is NaN or infinite at \[{place[0]}, {place[1]}\]"
    with pytest.raises(InvalidAdapter, match=says):
        run(base, tmp_path / "out", bad)
    assert nothing_left(tmp_path / "out")


def test_nan_in_a_replacement_is_refused(base: Path, tmp_path: Path) -> None:
    head = random(1, VOCABULARY, HIDDEN)
    head[9, 2] = np.nan
    bad = save_adapter(tmp_path / "bad", whole("lm_head.weight", head))
    with pytest.raises(InvalidAdapter, match=r"lm_head\.weight at \[9, 2\] is NaN or infinite"):
        run(base, tmp_path / "out", bad)
    assert nothing_left(tmp_path / "out")


def test_overflow_in_fp16_is_refused_with_its_place(tmp_path: Path) -> None:
    arrays = llama(np.float16)
    arrays[f"{Q0}.weight"][...] = 60000
    base = save_base(tmp_path / "base", arrays, LLAMA)
    tensors = {name: np.zeros_like(array) for name, array in pair(Q0, HIDDEN, HIDDEN).items()}
    a, b = tensors
    tensors[a][0, 5], tensors[b][6, 0] = 60.0, 60.0
    adapter = save_adapter(tmp_path / "a", tensors)
    with pytest.raises(NotMergeable, match=rf"{Q0}\.weight at \[6, 5\]: .* does not fit F16"):
        run(base, tmp_path / "out", adapter)
    assert nothing_left(tmp_path / "out")


def test_the_place_of_an_overflow_is_that_of_the_stored_tensor(tmp_path: Path) -> None:
    """Conv1D stores (in, out); a cast has no terms and any number of dimensions."""
    from building import GPT2, gpt2

    arrays = gpt2()
    arrays["h.0.attn.c_attn.weight"] = arrays["h.0.attn.c_attn.weight"].astype(np.float16)
    base = save_base(tmp_path / "base", arrays, GPT2)
    tensors = {n: np.zeros_like(a) for n, a in pair("h.0.attn.c_attn", 24, HIDDEN).items()}
    a, b = tensors
    tensors[a][0, 5], tensors[b][20, 0] = 300.0, 300.0
    with pytest.raises(NotMergeable, match=r"c_attn\.weight at \[5, 20\]"):
        run(base, tmp_path / "out", save_adapter(tmp_path / "a", tensors))
    cube = llama() | {"cube": np.ones((2, 3, 4), np.float32)}
    cube["cube"][1, 2, 3] = 1e6
    wide = save_base(tmp_path / "wide", cube, LLAMA)
    with pytest.raises(NotMergeable, match=r"cube at \[1, 2, 3\]: the result does not fit F16"):
        run(wide, tmp_path / "out", save_adapter(tmp_path / "q", lora()), dtype="float16")


def test_a_rounding_mode_left_behind_by_others_changes_nothing(base: Path, tmp_path: Path) -> None:
    tensors = pair(Q0, HIDDEN, HIDDEN, rank=3)
    adapter = save_adapter(tmp_path / "a", tensors, r=3, lora_alpha=5)
    run(base, tmp_path / "usual", adapter)
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    up = 0x400000 if platform.machine() in ("aarch64", "arm64") else 0x800
    libm.fesetround(up)
    try:
        assert float(np.float32(np.float64(5) / 3)) > 1.6666667  # the mode is in force
        run(base, tmp_path / "up", adapter)
    finally:
        libm.fesetround(0)
    assert contents(tmp_path / "usual") == contents(tmp_path / "up")


# --- a base that changes ----------------------------------------------------------------------


def test_a_base_written_to_during_the_merge_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    shard = base / "model-00001-of-00002.safetensors"
    plan = merge.plan(opened(base), [source(adapter)])

    def touch(_: int) -> None:
        os.utime(shard, ns=(1, 1))

    with pytest.raises(InvalidBase, match=f"{shard.name} changed while it was in use"):
        merge.run(plan, tmp_path / "out", writing=touch)
    assert nothing_left(tmp_path / "out")


def test_an_adapter_written_to_during_the_merge_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    weights = adapter / "adapter_model.safetensors"
    plan = merge.plan(opened(base), [source(adapter)])
    with pytest.raises(InvalidAdapter, match=f"{weights.name} changed while it was in use"):
        merge.run(plan, tmp_path / "out", writing=lambda _: os.utime(weights, ns=(1, 1)))
    assert nothing_left(tmp_path / "out")


def test_a_base_replaced_since_it_was_opened_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    plan = merge.plan(opened(base), [source(adapter)])
    (base / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 9}))
    with pytest.raises(InvalidBase, match=r"config\.json changed while it was in use"):
        merge.run(plan, tmp_path / "out", cache=LeafCache(tmp_path / "cache"))


# --- memory and imports -----------------------------------------------------------------------

MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from building import opened, source
from adapterhub import merging as merge
plan = merge.plan(opened(Path(sys.argv[2])), [source(Path(sys.argv[3]))])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge.run(plan, Path(sys.argv[4]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers"}))
"""


@pytest.mark.slow
def test_a_merge_streams_and_needs_no_torch(tmp_path: Path) -> None:
    big = {f"model.layers.{n}.big.weight": random(n, 1024, 1024) for n in range(50)}
    base = save_base(tmp_path / "base", llama() | big, LLAMA)
    assert (base / "model.safetensors").stat().st_size > 200_000_000
    module = "model.layers.7.big"
    adapter = save_adapter(tmp_path / "a", lora() | pair(module, 1024, 1024))
    script = [sys.executable, "-c", MEMORY, str(Path(__file__).parent)]
    done = subprocess.run(
        [*script, base, adapter, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    growth, imported = done.stdout.splitlines()
    assert imported == "[]"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(growth) * unit < 60_000_000


def test_a_plain_merge_imports_neither_torch_nor_transformers(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    script = [sys.executable, "-c", MEMORY, str(Path(__file__).parent)]
    done = subprocess.run(
        [*script, base, adapter, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1] == "[]"
