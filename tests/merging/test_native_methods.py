"""Merges of native adapters, against references written from the papers in fp64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import (
    BERT,
    BF16,
    GPT2,
    HIDDEN,
    INNER,
    LLAMA,
    Q0,
    arrays_of,
    bert,
    gpt2,
    llama,
    opened,
    plan_of,
    random,
    same_bits,
    save_adapter,
    save_base,
    source,
)
from native_building import changes, save_native

from adapterhub import merging as merge
from adapterhub.errors import BaseMismatch, InvalidAdapter, NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.methods import method
from adapterhub.registry import fit
from adapterhub.registry.sparse import difference
from adapterhub.tensorfile import ArrayTensor

sys.path.append(str(Path(__file__).parents[1] / "methods"))
import fastfood_reference

DOWN = "model.layers.0.mlp.down_proj"
NORM = "model.layers.1.input_layernorm"
QUERY = "encoder.layer.0.attention.self.query"


def merged(base: Path, adapter: Path, out: Path, **fields: Any) -> dict[str, np.ndarray]:
    """Checks on the way that every tensor was used, and that the bits are promised."""
    one = source(adapter, **fields)
    fit.check(opened(base), one.adapter, name="it")
    plan = merge.plan(opened(base), [one], Options())
    told = {fate.tensor for fate in plan.fates}
    own = {f"{m}.{role}" for m, role, _ in one.adapter.tensors() if m}
    assert told == own and not any("unused" in fate.fate for fate in plan.fates)
    assert merge.run(plan, out).reproducible
    return arrays_of(out)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2e-6, atol=2e-6)


# --- biases -----------------------------------------------------------------------------------


def test_bitfit_puts_its_biases_in_place(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    trained = {f"bert.{QUERY}.bias": random(1, HIDDEN), "bert.pooler.dense.bias": random(2, HIDDEN)}
    adapter = save_native(tmp_path / "it", "bitfit", trained)
    found, before = merged(base, adapter, tmp_path / "out"), arrays_of(base)
    changed = {name for name in before if not same_bits(before[name], found[name])}
    assert changed == {f"{QUERY}.bias", "pooler.dense.bias"}
    assert same_bits(found[f"{QUERY}.bias"], trained[f"bert.{QUERY}.bias"])


def test_biases_that_the_base_leaves_out_are_refused(tmp_path: Path) -> None:
    """As t-few makes them in a T5: Llama's class has them where its config asks for them."""
    base = save_base(tmp_path / "base", llama(), LLAMA)
    arrays = {f"{Q0}.bias": random(1, HIDDEN)}
    adapter = save_native(tmp_path / "it", "bitfit", arrays, task_type="CAUSAL_LM")
    with pytest.raises(BaseMismatch, match="1 mismatch") as caught:
        plan_of(base, adapter)
    assert caught.value.details[0] == (
        f"{Q0}.bias: the base has no such tensor; its layer has no bias, and gets one in memory "
        "only (ah.attach)"
    )


def test_biases_that_no_class_has_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    adapter = save_native(tmp_path / "it", "bitfit", {"bert.strange.bias": random(1, HIDDEN)})
    with pytest.raises(BaseMismatch, match="1 mismatch") as caught:
        plan_of(base, adapter)
    assert "neither the base nor any bert class has it" in caught.value.details[0]


def test_a_whole_bias_has_no_half(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", bert(), BERT)
    adapter = save_native(tmp_path / "it", "bitfit", {f"{QUERY}.bias": random(1, HIDDEN)})
    with pytest.raises(NotMergeable, match="cannot be taken with weight"):
        plan_of(base, source(adapter, weight=0.5))


# --- sparse changes ---------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    f"{DOWN}.weight": (HIDDEN, INNER),
    f"{NORM}.weight": (HIDDEN,),
    "model.embed_tokens.weight": (10, HIDDEN),
}


@pytest.mark.parametrize("name", ["fishmask", "diff_pruning"])
def test_sparse_changes_are_added_where_they_are(tmp_path: Path, name: str) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    arrays, dense = changes(np.random.default_rng(3), SHAPES)
    adapter = save_native(tmp_path / "it", name, arrays, shapes=SHAPES)
    found, before = merged(base, adapter, tmp_path / "out", weight=0.5), arrays_of(base)
    for tensor, value in before.items():
        close(found[tensor], value + 0.5 * dense.get(tensor, np.zeros(value.shape)))
        untouched = dense.get(tensor, np.zeros(value.shape)) == 0
        assert same_bits(found[tensor][untouched], value[untouched])


def test_nothing_changes_a_bit_where_nothing_changed(tmp_path: Path) -> None:
    arrays = llama(BF16)
    arrays[f"{DOWN}.weight"][0, :4] = [-0.0, 0.0, 1e-40, -1.0]
    base = save_base(tmp_path / "base", arrays, LLAMA)
    change = {f"{DOWN}:weight.indices": np.array([3]), f"{DOWN}:weight.values": random(1, 1)}
    shapes = {f"{DOWN}.weight": [HIDDEN, INNER]}
    adapter = save_native(tmp_path / "it", "fishmask", change, shapes=shapes)
    found = merged(base, adapter, tmp_path / "out")[f"{DOWN}.weight"]
    before = arrays[f"{DOWN}.weight"]
    assert found[0, 3] != before[0, 3]
    found[0, 3] = before[0, 3]
    assert same_bits(found, before)


def test_conv1d_and_biases(tmp_path: Path) -> None:
    """The base stores (in, out), the shape says (out, in)."""
    base = save_base(tmp_path / "base", gpt2(), GPT2)
    name = "transformer.h.0.attn.c_attn"
    shapes = {f"{name}.weight": (3 * HIDDEN, HIDDEN), f"{name}.bias": (3 * HIDDEN,)}
    arrays, dense = changes(np.random.default_rng(4), shapes)
    adapter = save_native(tmp_path / "it", "diff_pruning", arrays, shapes=shapes)
    found, before = merged(base, adapter, tmp_path / "out"), arrays_of(base)
    weight, bias = "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias"
    close(found[weight], before[weight] + dense[f"{name}.weight"].T)
    close(found[bias], before[bias] + dense[f"{name}.bias"])


def test_it_adds_up_with_a_lora(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    lora = save_adapter(tmp_path / "lora", _pair(DOWN))
    arrays, dense = changes(np.random.default_rng(5), {f"{DOWN}.weight": (HIDDEN, INNER)})
    shapes = {f"{DOWN}.weight": [HIDDEN, INNER]}
    adapter = save_native(tmp_path / "it", "fishmask", arrays, shapes=shapes)
    merge.run(plan_of(base, lora, adapter), tmp_path / "out")
    found = arrays_of(tmp_path / "out")[f"{DOWN}.weight"]
    a, b = (array.astype(np.float64) for array in _pair(DOWN).values())
    close(found, arrays_of(base)[f"{DOWN}.weight"] + 2 * (b @ a) + dense[f"{DOWN}.weight"])


def _pair(module: str) -> dict[str, np.ndarray]:
    start = f"base_model.model.{module}"
    return {
        f"{start}.lora_A.weight": random(8, 2, INNER),
        f"{start}.lora_B.weight": random(9, HIDDEN, 2),
    }


def test_whole_weights_become_a_sparse_change(tmp_path: Path) -> None:
    """As t-few has a FISH mask: all weights, and a mask for each of them."""
    base = save_base(tmp_path / "base", gpt2(), GPT2)
    rng = np.random.default_rng(6)
    trained = {f"transformer.{name}": array.copy() for name, array in arrays_of(base).items()}
    masks = {name: rng.random(array.shape) < 0.2 for name, array in trained.items()}
    for name, mask in masks.items():
        trained[name][mask] += rng.standard_normal(int(mask.sum())).astype(np.float32)
    tensors = {name: ArrayTensor(array) for name, array in trained.items()}
    adapter = difference(
        opened(base), tensors, masks={name: ArrayTensor(mask) for name, mask in masks.items()}
    )
    assert not method("fishmask").implementation.problems(adapter)
    merge.run(merge.plan(opened(base), [Source("it", adapter)], Options()), tmp_path / "out")
    for name, array in arrays_of(tmp_path / "out").items():
        close(array, trained[f"transformer.{name}"].astype(np.float64))
    attention = adapter.modules["transformer.h.0.attn.c_attn"]
    share = attention["weight.indices"].shape[0] / (3 * HIDDEN * HIDDEN)
    assert 0.1 < share < 0.3


def test_a_mask_and_weights_that_contradict_each_other(tmp_path: Path) -> None:
    base = opened(save_base(tmp_path / "base", llama(), LLAMA))
    name = f"{Q0}.weight"
    value = base.tensors[name].read() + 1
    mask = np.ones_like(value)
    mask[0, 0] = 0
    with pytest.raises(InvalidAdapter, match="has changed in 1 places outside the mask"):
        difference(base, {name: ArrayTensor(value)}, masks={name: ArrayTensor(mask)})
    with pytest.raises(InvalidAdapter, match="has changed in 64 places outside the mask"):
        difference(base, {name: ArrayTensor(value)}, masks={})
    with pytest.raises(InvalidAdapter, match="the mask names x, which the trained weights lack"):
        difference(base, {}, masks={"x": ArrayTensor(mask)})
    with pytest.raises(BaseMismatch, match=r"the base has \[8, 8\]"):
        difference(base, {name: ArrayTensor(value[:4])})
    with pytest.raises(BaseMismatch, match="the base has no such tensor"):
        difference(base, {"model.strange.weight": ArrayTensor(value)})
    with pytest.raises(InvalidAdapter, match="nothing differs"):
        difference(base, {name: base.tensors[name]})


# --- intrinsic dimension ----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (BF16, 2e-2)])
def test_intrinsic_said(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    base = save_base(tmp_path / "base", llama(dtype), LLAMA)
    vector = random(7, 21)
    arrays = {":intrinsic_vector": vector}
    for number, name in enumerate(SHAPES):
        scale = np.array([0.5 + number], np.float32)
        arrays[name.replace(".weight", ":weight.scale")] = scale
    adapter = save_native(
        tmp_path / "it", "intrinsic_said", arrays, algorithm="fastfood-v1", seed=11, shapes=SHAPES
    )
    found, before = merged(base, adapter, tmp_path / "out"), arrays_of(base)
    for number, (name, shape) in enumerate(SHAPES.items()):
        matrix = fastfood_reference.matrix(21, int(np.prod(shape)), 11, name)
        change = (0.5 + number) * (matrix @ vector.astype(np.float64)).reshape(shape)
        expected = before[name].astype(np.float64) + change
        np.testing.assert_allclose(found[name].astype(np.float64), expected, atol=tolerance)
        assert np.abs(change).max() > 0.1
    assert same_bits(found[f"{Q0}.weight"], before[f"{Q0}.weight"])


# --- KronA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.25])
def test_krona(tmp_path: Path, scale: float | None) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    a, b = random(1, 2, 3), random(2, 4, 4)
    fields = {} if scale is None else {"scaling": scale}
    adapter = save_native(
        tmp_path / "it", "krona", {f"{DOWN}:krona_A": a, f"{DOWN}:krona_B": b}, **fields
    )
    found, before = merged(base, adapter, tmp_path / "out"), arrays_of(base)
    expected = np.kron(a.astype(np.float64), b.astype(np.float64)) * (scale or 1.0)
    close(found[f"{DOWN}.weight"], before[f"{DOWN}.weight"] + expected)


def test_krona_that_does_not_fit(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    arrays = {f"{DOWN}:krona_A": random(1, 2, 3), f"{DOWN}:krona_B": random(2, 4, 2)}
    with pytest.raises(BaseMismatch) as caught:
        plan_of(base, save_native(tmp_path / "it", "krona", arrays))
    assert "the adapter is for [8, 6], the base has [8, 12]" in caught.value.details[0]


def test_what_overflows_is_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama(), LLAMA)
    huge = np.full(3, 3e38, np.float32)
    said = {":intrinsic_vector": huge, f"{DOWN}:weight.scale": huge[:1]}
    fields = {"shapes": {f"{DOWN}.weight": [HIDDEN, INNER]}}
    cases = {
        "intrinsic_said": (said, {"algorithm": "fastfood-v1", "seed": 1, **fields}),
        "krona": (
            {f"{DOWN}:krona_A": huge[:1, None], f"{DOWN}:krona_B": np.full((8, 12), 3e38)},
            {},
        ),
        "fishmask": (
            {f"{DOWN}:weight.indices": np.arange(3), f"{DOWN}:weight.values": huge * np.inf},
            fields,
        ),
    }
    for name, (arrays, config) in cases.items():
        floats = {n: a if a.dtype == np.int64 else a.astype(np.float32) for n, a in arrays.items()}
        adapter = save_native(tmp_path / name, name, floats, **config)
        with pytest.raises(InvalidAdapter, match=rf"{name}.*{DOWN}.*(inf|nan|finite)"):
            merge.run(plan_of(base, adapter), tmp_path / f"out-{name}")
