"""What extract meets at the edges: experts, unknown architectures, convolutions, much memory."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from composing_building import assert_close, deltas
from extracting_building import GPT2, LLAMA, TIED, VIT, Arrays, nudged, saved, tuned
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

import adapterhub as ah
from adapterhub import formats
from adapterhub.cli import main
from adapterhub.composing import blas, window
from adapterhub.composing.extracting import checkpoints
from adapterhub.composing.extracting.checkpoints import Pair
from adapterhub.composing.extracting.saving import Wanted, is_target
from adapterhub.errors import InvalidBase, NotMergeable, NotSupported
from adapterhub.tensorfile import ArrayTensor

pytest.importorskip("transformers")
MIXTRAL = (
    "MixtralConfig",
    {**LLAMA[1], "num_local_experts": 2, "num_experts_per_tok": 1},
    "MixtralForCausalLM",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))


def test_experts_are_refused_by_name_or_dropped(tmp_path: Path) -> None:
    base = saved(MIXTRAL, tmp_path / "base")
    names = load_file(base / "model.safetensors")
    experts = [name for name in sorted(names) if ".experts." in name]
    assert experts
    fine = tuned(base, tmp_path / "fine", nudged("q_proj.weight", experts[0]))
    with pytest.raises(NotMergeable, match=r"1 tensors changed .* PEFT cannot save") as error:
        ah.extract(base, fine, rank=2, out=tmp_path / "out")
    assert "one of several experts" in error.value.details[0]
    report = ah.extract(base, fine, rank=2, rest="drop", out=tmp_path / "out")
    assert report.dropped == [experts[0]] and len(report.modules) == 2


def test_an_architecture_that_nobody_knows_needs_targets(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    dice = np.random.default_rng(1)
    arrays = {f"body.{n}.weight": dice.standard_normal((6, 4), np.float32) for n in "ab"}
    save_file(arrays, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "nobody-knows-it"}))
    fine = tuned(base, tmp_path / "fine", nudged("a.weight"))
    with pytest.raises(NotSupported, match="no weight of a linear layer differs"):
        ah.extract(base, fine, rank=2, out=tmp_path / "out")
    report = ah.extract(base, fine, rank=2, targets=["body.a"], out=tmp_path / "out")
    assert [one.module for one in report.modules] == ["body.a"]


def test_a_convolution_keeps_its_kernel(tmp_path: Path) -> None:
    base = saved(VIT, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("projection.weight"))
    ah.extract(base, fine, rank=2, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sorted(values.shape for values in found.values()) == [(2, 3, 4, 4), (16, 2, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "kind", "is_one"),
    [
        ((8, 4, 3, 3), "Conv2d", True),
        ((8, 1, 3, 3), "Conv2d", False),  # depthwise: a kernel for each channel
        ((8, 1), "Linear", True),
        ((8, 4), "Embedding", False),
        ((8,), "Linear", False),
        ((8, 4), None, False),
    ],
)
def test_what_has_factors_unasked(shape: tuple[int, ...], kind: Any, is_one: bool) -> None:
    tensor: Any = ArrayTensor(np.zeros(shape, np.float32))
    pair = Pair("features.0", "weight", kind, False, False, False, tensor, tensor)
    assert is_target(pair, Wanted()) is is_one
    assert not is_target(replace(pair, head=True), Wanted())
    asked = is_target(replace(pair, head=True), Wanted(("features.0",)))
    assert asked is (len(shape) > 1)


@pytest.mark.slow
def test_what_is_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out, into, count = tmp_path / "base", 1024, 1024, 24
    base.mkdir()
    dice = np.random.default_rng(1)
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(count)]
    save_file(
        {name: dice.standard_normal((out, into), np.float32) for name in names},
        base / "model.safetensors",
    )
    (base / "config.json").write_text((saved(LLAMA, tmp_path / "x") / "config.json").read_text())

    def change(arrays: Arrays) -> None:
        for name in names:
            arrays[name] = arrays[name] + np.float32(0.01) * dice.standard_normal(
                arrays[name].shape
            )
            arrays[name] = arrays[name].astype(np.float32)

    fine = tuned(base, tmp_path / "fine", change)
    one = 4 * out * into
    monkeypatch.setattr(checkpoints, "_BLOCK_BYTES", one // 8)
    monkeypatch.setattr(window, "HELD_BYTES", 2 * one)
    window.keep_freed_memory()  # once in a process, untouched, and so no memory
    tracemalloc.start()
    try:
        ah.extract(base, fine, rank=2, out=tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * one  # two deltas, and for each some blocks of both files and of squares


def test_sparse_and_biases_can_be_made_loras(tmp_path: Path) -> None:
    base = saved(GPT2, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("c_attn.weight", "c_attn.bias", "ln_f.weight"))
    ah.extract(base, fine, sparse=1.0, out=tmp_path / "sparse")
    with pytest.raises(NotSupported, match="hangs on the shapes of its base"):
        ah.resize(tmp_path / "sparse", rank=2, out=tmp_path / "no")
    ah.resize(tmp_path / "sparse", rank=2, base=base, out=tmp_path / "again")
    ah.extract(base, fine, rank=2, out=tmp_path / "lora")
    one, other = (formats.read(tmp_path / name).adapter for name in ("again", "lora"))
    assert one is not None and other is not None
    assert_close(deltas_of_weights(one), deltas_of_weights(other), 1e-5)
    ah.merge(base, [tmp_path / "again"], out=tmp_path / "merged")
    found, wanted = (load_file(tmp_path / d / "model.safetensors") for d in ("merged", "fine"))
    for name, values in wanted.items():
        assert np.allclose(found[name], values, atol=1e-5), name


def deltas_of_weights(adapter: object) -> dict[str, object]:

    from adapterhub.adapter import Adapter

    assert isinstance(adapter, Adapter)
    modules = {
        module: {role: t for role, t in roles.items() if role.startswith("lora_")}
        for module, roles in adapter.modules.items()
    }
    return deltas(replace(adapter, modules={m: roles for m, roles in modules.items() if roles}))


def test_blas_gets_its_threads_back() -> None:
    def counts() -> set[int]:
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    blas._libraries.cache_clear()  # other tests load libraries that have a BLAS of their own
    with threadpool_limits(2, "blas"):
        before = counts()
        with blas.one_thread():
            with blas.one_thread():
                assert counts() == {1}
            assert counts() == {1}
        assert counts() == before == {2}


# --- on the command line ----------------------------------------------------------------------


def run(home: Path, *args: object, code: int = 0) -> str:
    result = CliRunner(env={"ADAPTERHUB_HOME": str(home)}).invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def test_extract_and_resize_as_a_user_meets_them(tmp_path: Path) -> None:
    base, home = saved(LLAMA, tmp_path / "base"), tmp_path / "home"
    fine = tuned(base, tmp_path / "fine", nudged("_proj.weight", "norm.weight", rank=4))
    said = run(home, "extract", base, fine, "--rank", 3, "--name", "made")
    assert "extracted made@sha256:" in said and "saved whole" in said
    assert "most lost in" in said and "of the energy" in said
    made = json.loads(
        run(home, "extract", base, fine, "--rank", 3, "--out", tmp_path / "a", "--json")
    )["result"]
    assert {"modules", "error", "saved", "dropped", "unchanged"} <= made.keys()
    version = run(home, "resize", "made", "--rank", 2, "--name", "made", "-q").strip()
    assert version.startswith("made@sha256:")
    said = run(home, "resize", "made", "--energy", 0.9, "--uniform", "--out", tmp_path / "b")
    assert f"resized {tmp_path / 'b'}" in said
    shown = json.loads(run(home, "show", "made", "--json"))["result"]["manifest"]
    assert shown["lineage"]["operation"] == "resize"
    assert shown["base"]["weights_root"] == made["base_root"]
    for wrong in (("--rank", 0), (), ("--rank", 2, "--out", tmp_path / "a")):
        run(home, "resize", "made", *wrong, code=1)
        run(home, "extract", base, fine, *wrong, code=1)
    run(home, "extract", base, fine, "--rank", 2, "--rest", "burn", "--out", "x", code=2)


# --- names ------------------------------------------------------------------------------------


def test_modules_are_called_as_in_memory_whatever_the_files_say(tmp_path: Path) -> None:
    base = saved(GPT2, tmp_path / "saved")

    def bare(arrays: Arrays) -> None:
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)

    hub = tuned(base, tmp_path / "hub", bare)  # as the Hub has GPT-2
    fine = tuned(base, tmp_path / "fine", nudged("c_attn.weight", "ln_f.weight"))
    both = tuned(hub, tmp_path / "both", nudged("c_attn.weight", "ln_f.weight"))
    expected = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    files = []
    for number, (old, new) in enumerate(((base, fine), (hub, fine), (hub, both))):
        report = ah.extract(old, new, rank=2, out=tmp_path / str(number))
        assert [one.module for one in report.modules] == expected
        assert report.saved == ["transformer.ln_f.bias", "transformer.ln_f.weight"]
        assert report.left_out == []
        files.append((tmp_path / str(number) / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("how", [{"rank": 2}, {"sparse": 0.1}])
def test_a_difference_beyond_fp32_is_refused(tmp_path: Path, how: dict[str, float]) -> None:
    base = saved(LLAMA, tmp_path / "base")
    pair = [
        tuned(base, tmp_path / str(value), lambda arrays, v=value: _filled(arrays, v))
        for value in (3e38, -3e38)
    ]
    with pytest.raises(InvalidBase, match="so far apart"):
        ah.extract(*pair, out=tmp_path / "out", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def _filled(arrays: Arrays, value: float) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    arrays[name] = np.full_like(arrays[name], value)


def test_a_scalar_that_changed_is_no_place_of_a_sparse_delta(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")

    def scalar(arrays: Arrays, value: float) -> None:
        nudged("k_proj.weight")(arrays)
        arrays["model.layers.0.self_attn.q_proj.weight"] = np.array(value, np.float32)

    old = tuned(base, tmp_path / "old", lambda arrays: scalar(arrays, 1.0))

    def again(arrays: Arrays) -> None:
        nudged("v_proj.weight")(arrays)
        arrays["model.layers.0.self_attn.q_proj.weight"] = np.array(2.0, np.float32)

    report = ah.extract(old, tuned(old, tmp_path / "new", again), sparse=1, out=tmp_path / "out")
    assert report.saved == ["model.layers.0.self_attn.q_proj.weight"]
    assert formats.read(tmp_path / "out").fatal == ()


def test_a_head_that_is_tied_no_more_is_saved(tmp_path: Path) -> None:
    base = saved(TIED, tmp_path / "base")
    assert "lm_head.weight" not in load_file(base / "model.safetensors")

    def untied(arrays: Arrays) -> None:
        nudged("q_proj.weight")(arrays)
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + np.float32(0.5)

    fine = tuned(base, tmp_path / "fine", untied)
    config = json.loads((fine / "config.json").read_text())
    (fine / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    report = ah.extract(base, fine, rank=2, out=tmp_path / "out")
    assert report.saved == ["lm_head.weight"]
    ah.merge(base, [tmp_path / "out"], out=tmp_path / "merged")
    found, wanted = (load_file(tmp_path / d / "model.safetensors") for d in ("merged", "fine"))
    for name, values in wanted.items():
        assert np.allclose(found[name], values, atol=1e-5), name
