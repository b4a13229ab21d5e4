"""Adapters composed and then merged, against all of them merged at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import (
    DOWN,
    GPT2,
    HIDDEN,
    INNER,
    LLAMA,
    Q0,
    Q1,
    VOCABULARY,
    Arrays,
    gpt2,
    llama,
    merged_arrays,
    pair,
    random,
    read_adapter,
    save_adapter,
    save_base,
    source,
)

from adapterhub import composing
from adapterhub.composing import Input, Options
from adapterhub.formats.roots import adapter_root
from adapterhub.methods import BiasDelta, LowRank, method

EXPERTS, MLP = 3, "model.layers.0.mlp.experts"
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
VIT = {"model_type": "vit", "architectures": ["ViTModel"]}
PATCHES = "embeddings.patch_embeddings.projection"
ATTN = "h.0.attn.c_attn"
Given = tuple[Arrays, dict[str, Any]]


def embedding(seed: int, rank: int) -> Arrays:
    start = "base_model.model.model.embed_tokens.lora_embedding_"
    return {
        f"{start}A": random(seed, rank, VOCABULARY),
        f"{start}B": random(seed + 1, HIDDEN, rank),
    }


def convolution(seed: int, rank: int) -> Arrays:
    start = f"base_model.model.{PATCHES}.lora_"
    return {
        f"{start}A.weight": random(seed, rank, 3, 4, 4),
        f"{start}B.weight": random(seed + 1, HIDDEN, rank, 1, 1),
    }


def experts(seed: int, rank: int) -> Arrays:
    found = {}
    for name, level, out, into in (
        ("gate_up_proj", "base_layer.", 2 * INNER, HIDDEN),
        ("down_proj", "", HIDDEN, INNER),
    ):
        start = f"base_model.model.{MLP}.{level}lora_"
        found[f"{start}A.weight"] = random(seed + len(name), rank * EXPERTS, into)
        found[f"{start}B.weight"] = random(seed + len(name) + 1, out, rank * EXPERTS)
    return found


def biased(seed: int, rank: int) -> Arrays:
    bias = {f"base_model.model.{ATTN}.lora_B.bias": random(seed + 9, 3 * HIDDEN)}
    return pair(ATTN, 3 * HIDDEN, HIDDEN, rank=rank, seed=seed) | bias


FUSED = {
    f"{MLP}.gate_up_proj": random(1, EXPERTS, 2 * INNER, HIDDEN),
    f"{MLP}.down_proj": random(2, EXPERTS, HIDDEN, INNER),
    "model.norm.weight": random(3, HIDDEN),
}
PARAMETERS = {
    "target_modules": [],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    "peft_version": "0.21.2",
}
CONV1D = {"fan_in_fan_out": True, "target_modules": ["c_attn"]}
RS = {"use_rslora": True}


@dataclass(frozen=True)
class Case:
    """`adapters`: tensors and config of each; `order`: which of them is given, and its weight."""

    id: str
    base: Mapping[str, Any]
    config: dict[str, Any]
    adapters: list[Given]
    order: tuple[tuple[int, float], ...] = ((0, 0.7), (1, -0.3), (2, 1.25))


def plain(seed: int, rank: int, **fields: Any) -> Given:
    return pair(Q0, HIDDEN, HIDDEN, rank=rank, seed=seed), {"r": rank, **fields}


CASES = [
    Case(
        "linear",
        llama(),
        LLAMA,
        [
            plain(10, 2, lora_alpha=3),
            (
                pair(Q0, HIDDEN, HIDDEN, rank=5, seed=20)
                | pair(Q1, HIDDEN, HIDDEN, rank=5, seed=25),
                {"r": 5, "lora_alpha": 7, **RS},
            ),
            (pair(DOWN, HIDDEN, INNER, rank=7, seed=30), {"r": 7, "target_modules": [DOWN]}),
        ],
    ),
    Case(
        "patterns",
        llama(),
        LLAMA,
        [
            (
                pair(Q0, HIDDEN, HIDDEN, rank=3, seed=10)
                | pair(Q1, HIDDEN, HIDDEN, rank=4, seed=12),
                {"r": 4, "rank_pattern": {"layers.0.*q_proj": 3}, "alpha_pattern": {Q1: 11}},
            ),
            plain(20, 2, layers_to_transform=[0], layers_pattern="layers"),
            plain(30, 2),
        ],
    ),
    Case("one scale", llama(), LLAMA, [plain(10, 2), plain(20, 2), plain(30, 2)]),
    Case(
        "repeated",
        llama(),
        LLAMA,
        [plain(10, 2), plain(20, 3, **RS)],
        ((0, 0.5), (1, 2.0), (0, -0.125), (1, -1.5), (0, 1.0)),
    ),
    Case(
        "taken away",
        llama(),
        LLAMA,
        [plain(10, 2), plain(20, 3)],
        ((0, 1.0), (1, 0.3), (0, -1.0)),
    ),
    Case(
        "Conv1D",
        gpt2(),
        GPT2,
        [
            (
                pair(ATTN, 3 * HIDDEN, HIDDEN, rank=2, seed=10)
                | pair("h.0.attn.c_proj", HIDDEN, HIDDEN, seed=14),
                {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]},
            ),
            (pair(ATTN, 3 * HIDDEN, HIDDEN, rank=3, seed=20), {"r": 3, **CONV1D, **RS}),
            (
                pair("h.0.attn.c_proj", HIDDEN, HIDDEN, rank=4, seed=30),
                {"r": 4, "target_modules": ["c_proj"]},
            ),
        ],
    ),
    Case(
        "lora_bias",
        gpt2(),
        GPT2,
        [
            (biased(10, 2), {"lora_bias": True, **CONV1D}),
            (biased(20, 3), {"r": 3, "lora_bias": True, **RS, **CONV1D}),
            (pair(ATTN, 3 * HIDDEN, HIDDEN, seed=30), CONV1D),
        ],
        ((0, 0.7), (1, -0.3), (2, 1.25), (0, 0.5)),
    ),
    Case(
        "embedding",
        llama(),
        LLAMA,
        [
            (embedding(10 * n, n + 2), {"r": n + 2, "target_modules": ["embed_tokens"], **more})
            for n, more in enumerate(({}, RS, {"lora_alpha": 1}))
        ],
    ),
    Case(
        "convolution",
        {f"{PATCHES}.weight": random(1, HIDDEN, 3, 4, 4), f"{PATCHES}.bias": random(2, HIDDEN)},
        VIT,
        [
            (convolution(10 * n, n + 2), {"r": n + 2, "target_modules": ["projection"], **more})
            for n, more in enumerate(({}, RS, {"lora_alpha": 1}))
        ],
    ),
    Case(
        "experts",
        FUSED,
        MIXTRAL,
        [
            (experts(40 * n, n + 2), {"r": n + 2, **PARAMETERS, **more})
            for n, more in enumerate(({}, RS, {"lora_alpha": 1}))
        ],
    ),
]


def dense(part: LowRank, shape: tuple[int, ...], coefficient: float) -> np.ndarray:
    """|coefficient|·|B|·|A| in the orientation of the base's weight."""
    a, b = (np.abs(np.asarray(t.read(), np.float64)) for t in (part.a, part.b))
    if part.layout == "experts":
        a, b = a.reshape(EXPERTS, -1, a.shape[1]), b.reshape(b.shape[0], -1, EXPERTS)
        made = np.einsum("ore,eri->eoi", b, a)
    else:
        made = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
        if part.layout == "embedding" or ".attn.c_" in part.module:
            made = made.T
    return np.asarray(abs(coefficient) * made.reshape(shape))


def bounds(base: Mapping[str, Any], inputs: Sequence[Input], weights: Sequence[float]) -> Any:
    """(R + 4)·2⁻²⁴·(Σ|c||B||A| + |W|) of each tensor that is changed."""
    sizes: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for one, weight in zip(inputs, weights, strict=True):
        for part in method("lora").implementation.meaning(one.adapter):
            if isinstance(part, LowRank):
                rank = part.b.shape[1] // (EXPERTS if part.layout == "experts" else 1)
                name = f"{part.module}.{part.parameter or 'weight'}"
                size = dense(part, base[name].shape, weight * part.scale)
            else:
                assert isinstance(part, BiasDelta)
                rank, name = 1, f"{part.module}.bias"
                size = np.abs(weight * part.scale * np.asarray(part.value.read(), np.float64))
            sizes[name] = sizes.get(name, np.abs(base[name].astype(np.float64))) + size
            ranks[name] = ranks.get(name, 0) + rank
    return {name: (ranks[name] + 4) * 2.0**-24 * size for name, size in sizes.items()}


@pytest.mark.parametrize("how", ["sum", "average"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_composing_then_merging_is_merging_at_once(case: Case, how: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", case.base, case.config)
    paths = [
        save_adapter(tmp_path / f"a{number}", arrays, **fields)
        for number, (arrays, fields) in enumerate(case.adapters)
    ]
    total = sum(weight for _, weight in case.order) if how == "average" else 1.0
    weights = [weight / total for _, weight in case.order]
    adapters = [read_adapter(paths[number]) for number, _ in case.order]
    inputs = [
        Input(f"{n}", adapter, weight, root=adapter_root(adapter))
        for n, (adapter, (_, weight)) in enumerate(zip(adapters, case.order, strict=True))
    ]
    plan = composing.plan(inputs, Options(method=how))
    composing.write(plan, composing.adapter_of(plan, composing.run(plan)), tmp_path / "made")
    one = merged_arrays(base, tmp_path / "one", tmp_path / "made")
    sources = [
        source(paths[number], name=f"{n}", weight=weight)
        for n, ((number, _), weight) in enumerate(zip(case.order, weights, strict=True))
    ]
    other = merged_arrays(base, tmp_path / "other", *sources)
    allowed = bounds(case.base, inputs, weights)
    assert one.keys() == other.keys() == case.base.keys()
    for name, array in case.base.items():
        bound = allowed.get(name, 0.0)
        difference = np.abs(one[name].astype(np.float64) - other[name])
        assert (difference <= bound).all(), (name, (difference / bound).max())
        assert (name in allowed) == (np.abs(other[name] - array).max() > 0.05)
