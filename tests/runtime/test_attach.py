"""`attach` against PEFT's forward pass, bit for bit against the merge, and back to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from living import LORA, Bench, adapter_of, bits, model_of, output

from adapterhub import api
from adapterhub.errors import (
    AlreadyExists,
    BaseMismatch,
    InvalidAdapter,
    InvalidBase,
    InvalidOption,
    NotMergeable,
    NotSupported,
)
from adapterhub.registry import Registry
from adapterhub.runtime import changing

QV = ["q_proj", "v_proj"]
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("lora", "llama", "LoraConfig", {**LORA, "target_modules": [*QV, "down_proj"]}),
    ("bias", "llama", "LoraConfig", {**LORA, "target_modules": QV, "lora_bias": True}),
    ("bias-only", "llama", "LoraConfig", {**LORA, "target_modules": QV, "bias": "lora_only"}),
    ("dora", "llama", "LoraConfig", {**LORA, "target_modules": QV, "use_dora": True}),
    ("embedding", "llama", "LoraConfig", {**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    (
        "tokens",
        "llama",
        "LoraConfig",
        {**LORA, "target_modules": QV, "trainable_token_indices": [3, 9]},
    ),
    ("head", "llama", "LoraConfig", {**LORA, "target_modules": QV, "modules_to_save": ["lm_head"]}),
    (
        "conv1d",
        "gpt2",
        "LoraConfig",
        {**LORA, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
    (
        "conv1d-dora",
        "gpt2",
        "LoraConfig",
        {**LORA, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    (
        "experts",
        "mixtral",
        "LoraConfig",
        {
            **LORA,
            "target_modules": QV,
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    ("convolution", "vit", "LoraConfig", {**LORA, "target_modules": ["projection"]}),
    (
        "ia3",
        "llama",
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    ("loha", "llama", "LoHaConfig", {"r": 4, "alpha": 6, "target_modules": QV}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "config", "fields"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_it_agrees_with_peft_and_with_the_merge_and_detaches_to_the_bit(
    kind: str, config: str, fields: dict[str, Any], dtype: str, registry: Registry, tmp_path: Path
) -> None:
    model = model_of(kind, dtype)
    model.save_pretrained(tmp_path / "base")
    expected = adapter_of(model, config, tmp_path / "a", **fields)
    before, answer = bits(model), output(model)
    with api.attach(model, tmp_path / "a", registry=registry) as attached:
        found = output(model)
        tolerance = 1e-5 if dtype == "float32" else 0.2
        assert torch.allclose(found.float(), expected.float(), atol=tolerance)
        assert not torch.equal(found, answer)
        after = bits(model)
        changed = {name for name in after if after[name] != before[name]}
        kept = sum(t.nbytes for name, t in model.state_dict().items() if name in changed)
        assert 0 < attached.memory == kept
        assert attached.fates
    assert bits(model) == before
    assert attached.memory == 0
    api.merge(tmp_path / "base", [tmp_path / "a"], out=tmp_path / "merged", registry=registry)
    merged = type(model).from_pretrained(tmp_path / "merged", dtype=dtype)
    assert bits(merged) == after


# --- several, in any order --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("restore", ["memory", "base"])
def test_any_sequence_equals_the_merge_of_what_is_attached(
    bench: Bench, seed: int, restore: str
) -> None:
    """Random attach, detach and switch, in any order, against merges from scratch."""
    dice = random.Random(seed)
    on: list[tuple[Any, str, float]] = []
    for _ in range(12):
        free = [name for name in "abc" if name not in [n for _, n, _ in on]]
        weight = dice.choice([1.0, 0.5, -0.25])
        verb = dice.choice(["attach", "detach", "switch"])
        if verb == "attach" and free:
            name = dice.choice(free)
            on.append((bench.attach(name, weight, restore=restore), name, weight))
        elif on and verb == "detach":
            on.pop(dice.randrange(len(on)))[0].detach()
        elif on and free and verb == "switch":
            place, name = dice.randrange(len(on)), dice.choice(free)
            handle = on[place][0]
            handle.switch(bench.root / name, weight)
            on[place] = (handle, name, weight)
        assert bits(bench.model) == bench.merged(*((name, w) for _, name, w in on))
    for handle, *_ in on:
        handle.detach()
        handle.detach()  # again does nothing


def test_a_list_attaches_together_and_is_one_handle(bench: Bench) -> None:
    specs: list[Any] = [bench.root / "a", (bench.root / "b", 0.5)]
    with api.attach(bench.model, specs, registry=bench.registry) as attached:
        assert bits(bench.model) == bench.merged(("a", 1.0), ("b", 0.5))
        assert attached.weights == (1.0, 0.5)
        assert {fate.source for fate in attached.fates} == {0, 1}


def test_two_contexts_may_end_in_any_order(bench: Bench) -> None:
    outer, inner = bench.attach("a"), bench.attach("b")
    with inner:
        outer.detach()
        assert not outer.active
        assert bits(bench.model) == bench.merged(("b", 1.0))


def test_switch_computes_only_what_differs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = changing._change

    def watched(work: Any, *rest: Any) -> None:
        seen.append(work.name.rpartition(".layers.")[2])
        real(work, *rest)

    with bench.attach("a"), bench.attach("b") as handle:
        monkeypatch.setattr(changing, "_change", watched)
        handle.switch(bench.root / "c")
        # b's q_proj is a's alone again; its up_proj and a's v_proj become c's; o_proj is new
        assert sorted(seen) == sorted(
            f"{layer}.{name}.weight"
            for layer in (0, 1)
            for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
        )
        seen.clear()
        handle.switch(bench.root / "b")
        handle.detach()
        assert bits(bench.model) == bench.merged(("a", 1.0))


def test_attaching_twice_is_refused(bench: Bench) -> None:
    with bench.attach("a"):
        held = bits(bench.model)
        with pytest.raises(AlreadyExists, match="is attached to this model already"):
            bench.attach("a", 2.0)
        assert bits(bench.model) == held


def test_restore_from_files_takes_no_memory_and_compares_first(
    bench: Bench, tmp_path: Path
) -> None:
    with bench.attach("a", restore="base", base=bench.root / "base") as attached:
        assert attached.memory == 0
        with pytest.raises(NotSupported, match="another way to restore"):
            bench.attach("b")
    model_of("llama", "bfloat16", seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatch, match="holds other bits") as caught:
        bench.attach("a", restore="base", base=tmp_path / "other")
    assert "model.layers.0.self_attn.q_proj.weight" in caught.value.details
    with pytest.raises(InvalidOption, match="one of memory, base"):
        bench.attach("a", restore="disk")


def test_files_that_change_are_noticed(bench: Bench, tmp_path: Path) -> None:
    bench.model.save_pretrained(tmp_path / "base")
    attached = bench.attach("a", restore="base", base=tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    aside = weights.rename(tmp_path / "aside")
    weights.write_bytes(aside.read_bytes())
    with pytest.raises(InvalidBase, match="changed while it was in use"):
        attached.detach()
    aside.rename(weights)
    attached.detach()


# --- nothing is left behind -------------------------------------------------------------------


def test_an_exception_inside_restores(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), bench.attach("a"):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), bench.attach("a"), bench.attach("b"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError("gone")])
@pytest.mark.parametrize("verb", ["attach", "switch", "detach"])
def test_a_failure_in_the_middle_leaves_what_was(
    bench: Bench, failure: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = changing._change, [2]

    def failing(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise failure
        real(*arguments)

    with bench.attach("a") as first, bench.attach("b") as second:
        held = bits(bench.model)
        memory = first.memory
        monkeypatch.setattr(changing, "_change", failing)
        with pytest.raises(type(failure) if isinstance(failure, Exception) else failure):
            if verb == "attach":
                bench.attach("c")
            elif verb == "switch":
                second.switch(bench.root / "c")
            else:
                first.detach()
        assert bits(bench.model) == held
        assert first.active and second.active
        assert first.memory == memory
        with pytest.raises(NotSupported, match="attached to this model"):
            bench.model.save_pretrained("nowhere")


def test_damaged_values_are_refused_by_name(bench: Bench, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "bad"
    adapter_of(bench.model, "LoraConfig", path, 1, **Bench.FIELDS[0])
    tensors = load_file(path / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.1" in name and "lora_B" in name)
    tensors[name][1, 2] = float("inf")
    save_file(tensors, path / "adapter_model.safetensors")
    with bench.attach("b"):
        held = bits(bench.model)
        with pytest.raises(InvalidAdapter, match="lora_B holds NaN or infinity"):
            api.attach(bench.model, path, registry=bench.registry)
        assert bits(bench.model) == held
        with pytest.raises(NotMergeable, match=r"does not fit BF16|beyond fp32"):
            bench.attach("c", 3e38)
        assert bits(bench.model) == held


def test_a_vanished_adapter_at_rollback_leaves_the_bare_model(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(bench.root / "a", tmp_path / "a")
    handle = api.attach(bench.model, tmp_path / "a", registry=bench.registry)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Exception, match="adapter_model"):
        bench.attach("b")
    assert bits(bench.model) == bench.bare
    assert not handle.active
    bench.model.save_pretrained(tmp_path / "saved")
