"""The methods that add factors or entries: values worked out by hand, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import HIDDEN, INNER, LLAMA, VOCABULARY, llama, opened, random, save_base

from adapterhub import merging as merge
from adapterhub.adapter import Adapter
from adapterhub.base import open_base
from adapterhub.errors import BaseMismatch, InvalidAdapter, NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.methods import Delta, LowRank, Meaning, Shaped, is_exact, method
from adapterhub.tensorfile import ArrayTensor

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SHAPES = {Q: (HIDDEN, HIDDEN), DOWN: (HIDDEN, INNER)}
Arrays = Mapping[str, np.ndarray]


def adapter_of(name: str, modules: Mapping[str, Arrays], **config: Any) -> Adapter:
    tensors = {
        module: {role: ArrayTensor(np.asarray(array)) for role, array in roles.items()}
        for module, roles in modules.items()
    }
    return Adapter(name, "peft", {"peft_type": name.upper(), **config}, tensors)


def meant(adapter: Adapter) -> Meaning:
    return method(adapter.method).implementation.meaning(adapter)


def change(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> np.ndarray:
    """What the one part of an adapter adds, in fp64."""
    (part,) = meant(adapter)
    if isinstance(part, Shaped):
        part = part.make(shapes.__getitem__)
    if isinstance(part, LowRank):
        return part.scale * (part.b.read().astype(np.float64) @ part.a.read())
    assert isinstance(part, Delta)
    return part.scale * part.value.read().astype(np.float64)


def f32(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


# --- by hand ----------------------------------------------------------------------------------


def test_adalora_divides_by_the_first_rank() -> None:
    roles = {"lora_A": f32([1, 2, 3]), "lora_B": f32([2], [4]), "lora_E": f32([5])}
    adapter = adapter_of("adalora", {Q: roles}, init_r=4, lora_alpha=8)
    expected = np.outer([2, 4], [5, 10, 15]) * 8 / (4 + 1e-5)
    np.testing.assert_allclose(change(adapter, {Q: (2, 3)}), expected)


def test_lokr_is_a_kronecker_product() -> None:
    roles = {"lokr_w1": f32([1, 2]), "lokr_w2": f32([3, 4], [5, 6])}
    found = change(adapter_of("lokr", {Q: roles}, r=2, alpha=6))
    np.testing.assert_array_equal(found, np.array([[9, 12, 18, 24], [15, 18, 30, 36]]))


def test_lokr_of_factors() -> None:
    a, b, c, d = random(1, 2, 3), random(2, 3, 4), random(3, 5, 3), random(4, 3, 2)
    roles = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d}
    found = change(adapter_of("lokr", {Q: roles}, r=3, alpha=1))
    expected = np.kron(a.astype(np.float64) @ b, c.astype(np.float64) @ d) / 3
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tucker_of_a_convolution() -> None:
    core, a, b = random(1, 2, 2, 3, 3), random(2, 2, 5), random(3, 2, 4)
    roles = {"lokr_w1": f32([2.0]), "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    found = change(adapter_of("lokr", {Q: roles}, r=2, alpha=2))
    wide = [x.astype(np.float64) for x in (core, a, b)]
    expected = 2 * np.einsum("pqkl,po,qi->oikl", *wide)
    np.testing.assert_allclose(found, expected.reshape(5, 36), atol=1e-5)


def test_delora_normalises_rows_and_columns() -> None:
    roles = {
        "delora_A": f32([3, 4, 0], [0, 0, 2]),
        "delora_B": f32([0, 6], [1, 8]),
        "delora_lambda": f32(8),
        "delora_w_norm": f32(1, 2, 3),
    }
    found = change(adapter_of("delora", {Q: roles}, r=2))
    directions = np.outer([0, 1], [0.6, 0.8, 0]) + np.outer([0.6, 0.8], [0, 0, 1])
    np.testing.assert_allclose(found, 8 / 2 * directions * [1, 2, 3], rtol=1e-6)


def test_delora_has_a_least_length() -> None:
    roles = {
        "delora_A": np.zeros((1, 2), np.float32),
        "delora_B": f32([1], [0]),
        "delora_lambda": f32(1),
        "delora_w_norm": f32(1, 1),
    }
    np.testing.assert_array_equal(change(adapter_of("delora", {Q: roles}, r=1)), np.zeros((2, 2)))


def test_vera_cuts_what_all_share() -> None:
    shared = {"vera_A": f32([1, 2, 3], [4, 5, 6]), "vera_B": f32([1, 2], [3, 4], [5, 6])}
    own = {"vera_lambda_b": f32(1, 10), "vera_lambda_d": f32(2, 3)}
    found = change(adapter_of("vera", {"": shared, Q: own}, r=2), {Q: (2, 2)})
    expected = np.array([[1, 2], [30, 40]]) @ np.array([[2, 4], [12, 15]])
    np.testing.assert_array_equal(found, expected)


def test_saved_weights_of_vblora_are_exact_and_the_last_is_implied() -> None:
    bank = f32([1, 2], [10, 20], [100, 200])
    own = {
        "vblora_logits_A_topk_indices": np.array([[[2, 0]]], np.uint8),
        "vblora_logits_A_topk_weights": f32([[0.25]]),
        "vblora_logits_B_topk_indices": np.array([[[0, 1]], [[1, 2]]], np.uint8),
        "vblora_logits_B_topk_weights": f32([[1]], [[0.5]]),
    }
    adapter = adapter_of("vblora", {"": {"vblora_vector_bank": bank}, Q: own}, topk=2)
    (part,) = meant(adapter)
    assert isinstance(part, LowRank) and is_exact(part.a) and is_exact(part.b)
    np.testing.assert_array_equal(change(adapter), np.outer([1, 2, 55, 110], [25.75, 51.5]))


def test_gralora_is_a_grid() -> None:
    a, b = random(1, 2, 3, 4), random(2, 2, 4, 5)
    found = change(adapter_of("gralora", {Q: {"gralora_A": a, "gralora_B": b}}, alpha=4, r=4))
    for j in range(2):
        for n in range(2):
            ranks = a[n][:, 2 * j : 2 * j + 2].astype(np.float64)
            expected = (ranks @ b[j][2 * n : 2 * n + 2]).T
            block = found[5 * j : 5 * j + 5, 3 * n : 3 * n + 3]
            np.testing.assert_allclose(block, expected, atol=1e-6)


def test_entries_are_added_where_they_are_named() -> None:
    places = np.array([[0, 1, 1], [2, 0, 0]])
    roles = {"shira_weight": f32(1, 2, 4), "shira_indices": places.astype(np.int32)}
    found = change(adapter_of("shira", {Q: roles}), {Q: (2, 3)})
    np.testing.assert_array_equal(found, [[0, 0, 1], [6, 0, 0]])
    assert np.signbit(found[0, 0])  # −0, which leaves −0 and 0 as they are
    roles["shira_indices"] = places.astype(np.float32)  # as they are saved on Windows
    again = change(adapter_of("shira", {Q: roles}), {Q: (2, 3)})
    np.testing.assert_array_equal(again, found)


# --- parts that wait for shapes ---------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), {**LLAMA, "vocab_size": VOCABULARY})


def vera(rows: int, into: int, *modules: str, **config: Any) -> Adapter:
    shared = {"vera_A": random(1, 2, into), "vera_B": random(2, rows, 2)}
    own = {"vera_lambda_b": random(3, HIDDEN), "vera_lambda_d": random(4, 2)}
    return adapter_of("vera", {"": shared, **dict.fromkeys(modules, own)}, r=2, **config)


def planned(base: Path, adapter: Adapter) -> Any:
    return merge.plan(opened(base), [Source("it", adapter)], Options())


def test_a_merge_finds_the_shapes(base: Path, tmp_path: Path) -> None:
    adapter = vera(HIDDEN, INNER, Q, DOWN)
    merge.run(planned(base, adapter), tmp_path / "out")
    before, after = open_base(base).tensors, open_base(tmp_path / "out").tensors
    for module, (out, into) in SHAPES.items():
        shared, own = adapter.modules[""], adapter.modules[module]
        a = own["vera_lambda_d"].read()[:, None] * shared["vera_A"].read()[:, :into]
        b = own["vera_lambda_b"].read()[:, None] * shared["vera_B"].read()[:out]
        expected = before[f"{module}.weight"].read() + b @ a
        np.testing.assert_allclose(after[f"{module}.weight"].read(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (vera(HIDDEN, INNER - 1, DOWN), r"base has a weight of \[8, 12\], .* at most \[8, 11\]"),
        (vera(HIDDEN, INNER, "model.layers.9.self_attn.q_proj"), "base has no such tensor"),
        (vera(HIDDEN, INNER, "model.layers.0.mlp.up_proj"), r"factors of shape \[8, 8\]"),
        (vera(HIDDEN, INNER, "model.norm"), r"a weight of \[8\], expected a matrix"),
    ],
)
def test_what_does_not_fit_is_listed(base: Path, adapter: Adapter, said: str) -> None:
    with pytest.raises(BaseMismatch, match="1 mismatch") as caught:
        planned(base, adapter)
    assert re.search(said, caught.value.details[0])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{Q}.weight": np.ones((HIDDEN, HIDDEN), np.int8)}, "is stored as I8"),
        ({f"{Q}.weight_scale": np.ones(1, np.float32)}, "is quantised"),
    ],
)
def test_a_quantised_weight_is_refused(tmp_path: Path, extra: Arrays, said: str) -> None:
    base = save_base(tmp_path / "base", {**llama(), **extra}, LLAMA)
    with pytest.raises(NotMergeable, match=said):
        planned(base, vera(HIDDEN, INNER, Q))


@pytest.mark.parametrize("places", [[[0], [HIDDEN]], [[-1], [0]], [[0.5], [0]]])
def test_places_outside_the_weight(base: Path, tmp_path: Path, places: Any) -> None:
    indices = np.array(places, np.float32)
    adapter = adapter_of("shira", {Q: {"shira_weight": f32(1), "shira_indices": indices}})
    with pytest.raises(InvalidAdapter, match=f"is no place among {HIDDEN}"):
        merge.run(planned(base, adapter), tmp_path / "out")


# --- what is refused --------------------------------------------------------------------------

THETA = {"unilora_theta_d": random(1, 4)}
ENTRIES = {"supertuning_values": f32(1), "supertuning_indices": np.array([1], np.int32)}
COPY = {"randlora_A": random(1, 2, 1, 4), "randlora_B": random(2, 8, 4, 2)}
TINY = {"tinylora_A": random(1, 2, 8), "tinylora_B": random(2, 8, 2)}
VECTORS = {"tinylora_v.0": random(3, 4), "tinylora_v.1": random(4, 4)}
REFUSED = [
    (vera(8, 8, Q, save_projection=False), "which ones were trained with is not certain"),
    (adapter_of("pvera", {}, sample_at_inference=True), "another one in every forward pass"),
    (adapter_of("unilora", {"": THETA}), "saved without the indices"),
    (
        adapter_of("supertuning", {Q: {"supertuning_values": f32(1)}}),
        'q_proj" has no supertuning_indices',
    ),
    (adapter_of("supertuning", {Q: ENTRIES}, r=2, lora_alpha=4), "no low-rank pair, and"),
    (
        adapter_of("randlora", {"": COPY, Q: {**COPY, "randlora_A": random(9, 2, 1, 4)}}),
        "randlora_A is not the randlora_A that all modules share",
    ),
    (adapter_of("delora", {Q: {"delora_A": f32([1])}}), "has no delora_w_norm"),
    (
        adapter_of("gralora", {Q: {"gralora_A": random(1, 2, 4, 3)}}, r=3),
        "rank 3 is no multiple of gralora_k=2",
    ),
    (adapter_of("tinylora", {"": VECTORS, Q: TINY, DOWN: TINY}), "hangs on the order of the"),
    (adapter_of("tinylora", {"": VECTORS, Q: TINY}), "have 1 vectors, the weights hold 2"),
    (
        adapter_of("lokr", {Q: {"lokr_w1": f32([1]), "lokr_w2": f32([1])}}, rs_lokr=True),
        "fields that this version does not know",
    ),
]


@pytest.mark.parametrize(("adapter", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refusals(adapter: Adapter, said: str) -> None:
    with pytest.raises(NotMergeable, match=said) as caught:
        for part in meant(adapter):
            assert isinstance(part, Shaped)
            part.make({**SHAPES}.__getitem__)
    assert caught.value.remedy


@pytest.mark.parametrize(("adapter", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_refused_can_be_compared_with_a_base(adapter: Adapter, said: str) -> None:
    method(adapter.method).implementation.parts(adapter)


def test_layers_come_in_the_order_of_their_numbers() -> None:
    names = [f"layers.{number}.q_proj" for number in ("10", "9", "2", "1" * 5000)]
    vectors = {f"tinylora_v.{i}": np.full(1, i, np.float32) for i in range(4)}
    own = {**TINY, "tinylora_P": np.ones((1, 2, 2), np.float32)}
    found = meant(adapter_of("tinylora", {"": vectors, **dict.fromkeys(names, own)}))
    values = {part.module: part.b.read() for part in found if isinstance(part, LowRank)}
    rows = own["tinylora_B"].sum(axis=1)
    for number, name in enumerate([names[2], names[1], names[0], names[3]]):
        np.testing.assert_allclose(values[name][:, 0], number * rows, rtol=1e-5, atol=1e-6)
