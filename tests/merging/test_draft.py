"""What a draft makes of parts: slabs in order, and what does not go together refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import opened, random, save_base

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.merging.draft import Draft
from adapterhub.merging.work import Work
from adapterhub.methods import LowRank, Part
from adapterhub.registry import fit
from adapterhub.registry.fit import Naming
from adapterhub.tensorfile import ArrayTensor

UNKNOWN = {"model_type": "nobody-knows-it"}
EXPERTS = "layers.0.experts"


def tensor(seed: int, *shape: int) -> ArrayTensor:
    return ArrayTensor(random(seed, *shape))


def pair(
    module: str, out: int, into: int, *, rank: int = 2, seed: int = 1, **fields: Any
) -> LowRank:
    factors = tensor(seed, rank, into), tensor(seed + 1, out, rank)
    roles = ("lora_A", "lora_B", "lora_magnitude_vector")
    roles = roles if "magnitude" in fields else roles[:2]
    return LowRank(module, *factors, 0.5, fields.pop("layout", "linear"), roles, **fields)


def experts(parameter: str, out: int, into: int, count: int = 3, **fields: Any) -> LowRank:
    rank = 2 * count
    return pair(EXPERTS, out, into, rank=rank, layout="experts", parameter=parameter, **fields)


def dora(module: str, out: int, into: int, **fields: Any) -> LowRank:
    return pair(module, out, into, magnitude=tensor(9, out), **fields)


def source(name: str, weight: float = 1.0, **config: Any) -> Source:
    modules = {"attn": {"lora_A": tensor(1, 2, 6)}} if config.pop("attention", False) else {}
    config = {"peft_version": "0.21.2", **config}
    return Source(name, Adapter("lora", "peft", config, modules), weight)


def base(path: Path, config: dict[str, Any] | None = None, **shapes: tuple[int, ...]) -> Base:
    arrays = {name: random(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return opened(save_base(path / "base", arrays, config or UNKNOWN))


def drafted(base: Base, *given: tuple[Source, Sequence[Part]]) -> Draft:
    draft = Draft(Naming(base), [source for source, _ in given], Options())
    for number, (_, parts) in enumerate(given):
        for part in parts:
            draft.add(number, part)
    draft.refuse_conflicts()
    return draft


def works(base: Base, *given: tuple[Source, Sequence[Part]]) -> dict[str, Work]:
    return drafted(base, *given).works()[0]


# --- experts ----------------------------------------------------------------------------------


@pytest.fixture
def fused(tmp_path: Path) -> Base:
    return base(tmp_path, **{f"{EXPERTS}.up": (3, 8, 5), f"{EXPERTS}.down": (3, 5, 4)})


def test_each_expert_is_a_slab_in_the_order_of_its_elements(fused: Base) -> None:
    found = works(fused, (source("a"), [experts("up", 8, 5), experts("down", 5, 4)]))
    up = found[f"{EXPERTS}.up"]
    assert [(slab.first, slab.shape, slab.transposed) for slab in up.slabs] == [
        (0, (8, 5), False),
        (40, (8, 5), False),
        (80, (8, 5), False),
    ]
    assert [slab.terms[0].key for slab in up.slabs] == [f"{EXPERTS}.up[{e}]" for e in range(3)]
    assert [slab.first for slab in found[f"{EXPERTS}.down"].slabs] == [0, 20, 40]


def test_adapters_of_before_peft_0_19_add_transposes(fused: Base) -> None:
    old = source("a", peft_version="0.18.0")
    (slab, *_) = works(fused, (old, [experts("up", 5, 8)]))[f"{EXPERTS}.up"].slabs
    assert (slab.shape, slab.transposed) == ((5, 8), True)


def test_adapters_on_the_same_experts_add_up_in_the_order_given(fused: Base) -> None:
    first, second = experts("up", 8, 5), experts("up", 8, 5, seed=5)
    given = (source("a"), [first]), (source("b", 0.5), [second])
    slabs = works(fused, *given)[f"{EXPERTS}.up"].slabs
    assert [[(t.source, float(t.scale)) for t in slab.terms] for slab in slabs] == 3 * [
        [(0, 0.5), (1, 0.25)]
    ]


def test_two_orientations_on_one_expert_do_not_go_together(fused: Base) -> None:
    old = source("old", peft_version="0.17.0"), [experts("up", 5, 8)]
    with pytest.raises(NotMergeable, match=r"new and old divide layers\.0\.experts\.up"):
        works(fused, (source("new"), [experts("up", 8, 5)]), old)


def test_square_experts_of_unknown_modules_are_refused_when_they_are_merged(
    tmp_path: Path,
) -> None:
    square = base(tmp_path, **{f"{EXPERTS}.up": (3, 5, 5)})
    part = experts("up", 5, 5)
    assert fit.mismatch(Naming(square), part) == ""
    with pytest.raises(NotMergeable, match=r"layers\.0\.experts\.up: .* are square"):
        drafted(square, (source("a"), [part]))
    old = works(square, (source("a", peft_version="0.18.0"), [part]))
    assert old[f"{EXPERTS}.up"].slabs[0].transposed


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (experts("up", 8, 6), r"factors of shape \[8, 6\] for each expert, .* of \[8, 5\]"),
        (experts("up", 8, 5, 4), r"factors of \[8, 5\] and \[8, 8\], the base a \[3, 8, 5\]"),
        (experts("gate", 8, 5), r"\.gate: the base has no such tensor"),
    ],
)
def test_what_does_not_fit_the_experts_is_a_sentence(fused: Base, part: LowRank, says: str) -> None:
    assert re.search(says, fit.mismatch(Naming(fused), part))


def test_a_2d_parameter_is_never_transposed(tmp_path: Path) -> None:
    """PEFT takes the weight of GPT-2's Conv1D for (out, in) if it is trained as a parameter."""
    gpt2 = base(tmp_path, {"model_type": "gpt2"}, **{"h.0.attn.c_attn.weight": (8, 24)})
    for layout in ("experts", "linear"):
        part = pair("transformer.h.0.attn.c_attn", 8, 24, layout=layout, parameter="weight")
        (slab,) = works(gpt2, (source("a"), [part]))["h.0.attn.c_attn.weight"].slabs
        assert (slab.shape, slab.transposed) == ((8, 24), False)
        wrong = replace(part, a=part.b, b=part.a)
        assert "c_attn.weight: the adapter has factors" in fit.mismatch(Naming(gpt2), wrong)


@pytest.fixture
def mixtral(tmp_path: Path) -> Base:
    shapes = {"model.layers.0.mlp.experts.gate_up_proj": (3, 8, 5)}
    return base(tmp_path, {"model_type": "mixtral", "architectures": ["MixtralModel"]}, **shapes)


def single(expert: int, weight: str) -> LowRank:
    return pair(f"model.layers.0.block_sparse_moe.experts.{expert}.{weight}", 4, 5)


def test_slabs_are_in_the_order_of_their_elements(mixtral: Base) -> None:
    """Whatever the order of an adapter's modules is: `experts.10` comes before `experts.2`."""
    parts = [single(2, "w1"), single(0, "w3"), single(0, "w1"), single(1, "w3")]
    (work,) = works(mixtral, (source("a"), parts)).values()
    assert [slab.first for slab in work.slabs] == [0, 20, 60, 80]


def test_a_whole_expert_and_a_part_of_it_do_not_go_together(mixtral: Base) -> None:
    whole = pair("model.layers.0.mlp.experts", 8, 5, rank=6, layout="experts")
    whole = replace(whole, parameter="gate_up_proj")
    given = (source("old"), [single(1, "w3")]), (source("new"), [whole])
    with pytest.raises(NotMergeable, match=r"new and old divide .*gate_up_proj into different"):
        works(mixtral, *given)


# --- DoRA -------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Base:
    return base(tmp_path, **{"one.weight": (6, 4), "one.bias": (6,), "two.weight": (4, 6)})


def test_a_magnitude_stands_in_the_slab(plain: Base) -> None:
    part = dora("one", 6, 4)
    draft = drafted(plain, (source("a"), [part]))
    (slab,) = draft.works()[0]["one.weight"].slabs
    assert slab.magnitude is part.magnitude and len(slab.terms) == 1
    assert [fate.tensor for fate in draft.fates()] == [f"one.{role}" for role in part.roles]


def test_a_magnitude_cannot_be_scaled(plain: Base) -> None:
    with pytest.raises(NotMergeable, match=r"^a has a DoRA magnitude for one, .* scaled by 0\.7"):
        works(plain, (source("a", 0.7), [dora("one", 6, 4)]))


@pytest.mark.parametrize("order", [1, -1])
def test_a_magnitude_is_alone_on_its_tensor(plain: Base, order: int) -> None:
    given = [(source("a"), [dora("one", 6, 4)]), (source("b"), [pair("one", 6, 4)])][::order]
    with pytest.raises(NotMergeable, match=r"both change one\.weight: a DoRA magnitude cannot be"):
        works(plain, *given)


def test_adapters_with_magnitudes_on_other_tensors_go_together(plain: Base) -> None:
    found = works(plain, (source("a"), [dora("one", 6, 4)]), (source("b"), [dora("two", 4, 6)]))
    assert all(found[f"{name}.weight"].slabs[0].magnitude for name in ("one", "two"))


def test_a_magnitude_has_a_value_for_each_row(plain: Base) -> None:
    part = pair("one", 6, 4, magnitude=tensor(9, 5))
    says = "one: the adapter has a magnitude of shape [5], expected a value for each of 6 rows"
    assert fit.mismatch(Naming(plain), part) == says
    shaped = replace(part, magnitude=tensor(9, 1, 6, 1, 1))
    assert fit.mismatch(Naming(plain), shaped) == ""


def test_a_magnitude_for_packed_experts_is_refused(fused: Base) -> None:
    part = experts("up", 8, 5, magnitude=tensor(9, 8))
    with pytest.raises(NotMergeable, match=r"magnitude for factors of several experts"):
        works(fused, (source("a"), [part]))


def test_one_adapter_may_not_name_a_tensor_twice(tmp_path: Path) -> None:
    bare = base(tmp_path, {"model_type": "llama"}, **{"layers.0.mlp.up_proj.weight": (6, 4)})
    parts = [pair("layers.0.mlp.up_proj", 6, 4), pair("model.layers.0.mlp.up_proj", 6, 4)]
    with pytest.raises(NotMergeable, match=r"^a: layers\.0\.mlp\.up_proj and model\.layers\.0\."):
        works(bare, (source("a"), parts))


# --- attention and convolutions ---------------------------------------------------------------


@pytest.fixture
def attention(tmp_path: Path) -> Base:
    shapes = {"attn.in_proj_weight": (18, 6), "attn.out_proj.weight": (6, 6)}
    return base(tmp_path, **shapes, **{"attn.in_proj_bias": (18,)})


def scale(base: Base, source: Source, *parts: Part) -> list[float]:
    found = works(base, (source, parts))["attn.out_proj.weight"]
    return [float(term.scale) for term in found.terms]


OUT_PROJ = pair("attn.out_proj", 6, 6)


def test_packed_projections_are_one_matrix(attention: Base) -> None:
    found = works(attention, (source("a"), [pair("attn", 18, 6)]))
    (slab,) = found["attn.in_proj_weight"].slabs
    assert (slab.shape, slab.transposed) == ((18, 6), False)
    assert fit.mismatch(Naming(attention), pair("attn", 18, 6)) == ""
    assert "a weight of [18, 6]" in fit.mismatch(Naming(attention), pair("attn", 17, 6))


def test_out_proj_counts_as_often_as_in_pefts_forward_pass(attention: Base) -> None:
    for part in (OUT_PROJ, replace(OUT_PROJ, module="attn.base_layer.out_proj")):
        assert scale(attention, source("a", attention=True), part) == [1.0]  # twice 0.5
    alone = source("a")
    assert scale(attention, alone, OUT_PROJ) == []
    fates = {fate.fate for fate in drafted(attention, (alone, [OUT_PROJ])).fates()}
    assert fates == {
        "not merged, since torch's attention never calls it, into attn.out_proj.weight"
    }


@pytest.mark.parametrize(("version", "fails"), [("0.13.0", False), (None, False), ("0.22.0", True)])
def test_a_peft_that_may_count_otherwise_is_refused(
    attention: Base, version: str | None, fails: bool
) -> None:
    given = source("a", attention=True, peft_version=version)
    if not fails:
        assert scale(attention, given, OUT_PROJ) == [1.0]
        return
    with pytest.raises(NotMergeable, match=r"attn\.out_proj: peft up to 0\.21 .* what 0\.22 does"):
        scale(attention, given, OUT_PROJ)


def test_any_other_out_proj_counts_once(tmp_path: Path) -> None:
    other = base(tmp_path, **{"attn.q_proj.weight": (6, 6), "attn.out_proj.weight": (6, 6)})
    assert scale(other, source("a"), OUT_PROJ) == [0.5]


@pytest.mark.parametrize("kind", ["GroupedConv1d", "GroupedConv2d", "PaddedConv2d", "PaddedConv3d"])
def test_convolutions_that_are_no_sum_are_refused(
    plain: Base, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Naming, "kind", lambda self, module: kind)
    with pytest.raises(NotMergeable, match=r"^one cannot be merged: it is a convolution"):
        works(plain, (source("a"), [pair("one", 6, 4)]))


def test_groups_show_in_the_shapes(tmp_path: Path) -> None:
    grouped = base(tmp_path, **{"conv.weight": (8, 2, 3)})
    factors = tensor(1, 2, 4, 3), tensor(2, 8, 2, 1)
    part = LowRank("conv", *factors, 1.0, "linear", ("lora_A", "lora_B"))
    says = "conv: the adapter has factors of shape [8, 4, 3], the base a weight of [8, 2, 3]"
    assert fit.mismatch(Naming(grouped), part) == says
