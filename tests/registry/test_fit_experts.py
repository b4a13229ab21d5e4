"""Adapters and bases that hold a layer's experts in different ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.adapter import Adapter
from adapterhub.base import Base, open_base
from adapterhub.errors import NotMergeable
from adapterhub.methods import LowRank
from adapterhub.registry import fit
from adapterhub.registry.experts import Site
from adapterhub.registry.naming import Fusion, Home, Naming
from adapterhub.registry.places import sites, stored_names
from adapterhub.tensorfile import ArrayTensor, write_file

EXPERTS, INNER, HIDDEN, RANK = 3, 4, 6, 2
NOW = {"peft_version": "0.21.2"}
OLD = {"peft_version": "0.18.1"}
Shapes = dict[str, tuple[int, ...]]


def apart(prefix: str = "model.", inner: int = INNER) -> Shapes:
    """As Mixtral's checkpoints have it: three tensors for each expert."""
    start = f"{prefix}layers.0.block_sparse_moe.experts"
    shapes = {"w1": (inner, HIDDEN), "w2": (HIDDEN, inner), "w3": (inner, HIDDEN)}
    return {f"{start}.{e}.{w}.weight": s for e in range(EXPERTS) for w, s in shapes.items()}


def fused(prefix: str = "model.", inner: int = INNER) -> Shapes:
    """As it is in memory, and in files that were saved so."""
    start = f"{prefix}layers.0.mlp.experts"
    return {
        f"{start}.gate_up_proj": (EXPERTS, 2 * inner, HIDDEN),
        f"{start}.down_proj": (EXPERTS, HIDDEN, inner),
    }


def opened(
    path: Path, tensors: Shapes, name: str | None = "MixtralForCausalLM", **said: Any
) -> Base:
    path.mkdir()
    named = {"architectures": [name]} if name else {}
    (path / "config.json").write_text(json.dumps({"model_type": "mixtral", **named, **said}))
    arrays = {n: ArrayTensor(np.zeros(shape, np.float32)) for n, shape in tensors.items()}
    write_file(path / "model.safetensors", arrays)
    return open_base(path)


def part(
    parameter: str, out: int, into: int, *, prefix: str = "model.", experts: int = EXPERTS
) -> LowRank:
    rank = RANK * experts
    factors = ArrayTensor(np.ones((rank, into))), ArrayTensor(np.ones((out, rank)))
    module = f"{prefix}layers.0.mlp.experts"
    return LowRank(module, *factors, 1.0, "experts", ("lora_A", "lora_B"), parameter)


def single(module: str, out: int, into: int) -> LowRank:
    factors = ArrayTensor(np.ones((RANK, into))), ArrayTensor(np.ones((out, RANK)))
    return LowRank(module, *factors, 1.0, "linear", ("lora_A", "lora_B"))


GATE_UP = part("gate_up_proj", 2 * INNER, HIDDEN)
DOWN = part("down_proj", HIDDEN, INNER)


def places(found: tuple[Site, ...]) -> list[tuple[str, int, tuple[int, int], bool]]:
    return [(s.stored.rpartition("experts.")[2], s.first, s.shape, s.transposed) for s in found]


@pytest.mark.parametrize("in_files", ["model.", ""])
@pytest.mark.parametrize("in_adapter", ["model.", ""])
def test_both_layouts_are_found_with_and_without_prefix(
    tmp_path: Path, in_files: str, in_adapter: str
) -> None:
    gate_up = part("gate_up_proj", 2 * INNER, HIDDEN, prefix=in_adapter)
    down = part("down_proj", HIDDEN, INNER, prefix=in_adapter)
    name = "MixtralForCausalLM" if in_files else "MixtralModel"
    one = Naming(opened(tmp_path / "apart", apart(in_files), name))
    assert places(sites(one, gate_up, NOW)) == [
        (f"{e}.{w}.weight", 0, (INNER, HIDDEN), False) for e in range(EXPERTS) for w in ("w1", "w3")
    ]
    assert places(sites(one, down, NOW)) == [
        (f"{e}.w2.weight", 0, (HIDDEN, INNER), False) for e in range(EXPERTS)
    ]
    other = Naming(opened(tmp_path / "fused", fused(in_files), name))
    size = 2 * INNER * HIDDEN
    assert places(sites(other, gate_up, NOW)) == [
        ("gate_up_proj", e * size, (2 * INNER, HIDDEN), False) for e in range(EXPERTS)
    ]
    assert stored_names(other, down) == (f"{in_files}layers.0.mlp.experts.down_proj",)
    assert len(stored_names(one, gate_up)) == 2 * EXPERTS


def test_the_router_is_found_under_its_name_in_the_files(tmp_path: Path) -> None:
    """PEFT makes a parameter of it, as transformers has since version 5."""
    stored = "model.layers.0.block_sparse_moe.gate.weight"
    naming = Naming(opened(tmp_path / "b", {stored: (EXPERTS, HIDDEN)}))
    router = LowRank(
        "model.layers.0.mlp.gate",
        ArrayTensor(np.ones((RANK, HIDDEN))),
        ArrayTensor(np.ones((EXPERTS, RANK))),
        1.0,
        "experts",
        ("lora_A", "lora_B"),
        "weight",
    )
    (site,) = sites(naming, router, NOW)
    assert (site.stored, site.shape, site.expert) == (stored, (EXPERTS, HIDDEN), None)


@pytest.mark.parametrize("layout", [apart, fused])
def test_square_products_go_by_the_catalogue_and_the_version(tmp_path: Path, layout: Any) -> None:
    square = Naming(opened(tmp_path / "b", layout(inner=HIDDEN)))
    down = part("down_proj", HIDDEN, HIDDEN)
    assert {site.transposed for site in sites(square, down, NOW)} == {False}
    assert {site.transposed for site in sites(square, down, OLD)} == {True}
    assert fit.mismatch(square, down) == ""
    with pytest.raises(NotMergeable, match=r"mlp\.experts\.down_proj: the experts' matrices are"):
        sites(square, down, {})


def test_parts_of_before_peft_0_19_take_their_columns(tmp_path: Path) -> None:
    naming = Naming(opened(tmp_path / "b", apart()))
    old = part("gate_up_proj", HIDDEN, 2 * INNER)
    found = sites(naming, old, OLD)
    assert places(found)[:2] == [(f"0.{w}.weight", 0, (HIDDEN, INNER), True) for w in ("w1", "w3")]


@pytest.mark.parametrize(
    ("name", "first", "shape"),
    [
        ("2.w1", 2 * 2 * INNER * HIDDEN, (INNER, HIDDEN)),
        ("2.w3", (2 * 2 + 1) * INNER * HIDDEN, (INNER, HIDDEN)),
        ("1.w2", INNER * HIDDEN, (HIDDEN, INNER)),
    ],
)
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_adapters_for_each_expert_on_fused_files(
    tmp_path: Path, prefix: str, name: str, first: int, shape: tuple[int, int]
) -> None:
    cls = "MixtralForCausalLM" if prefix else "MixtralModel"
    naming = Naming(opened(tmp_path / "b", fused(prefix), cls))
    mine = single(f"model.layers.0.block_sparse_moe.experts.{name}", *shape)
    (site,) = sites(naming, mine, NOW)
    assert (site.first, site.shape) == (first, shape)
    assert stored_names(naming, mine) == (site.stored,)
    beyond = single("model.layers.0.block_sparse_moe.experts.3.w1", INNER, HIDDEN)
    assert "the base 3 experts of [8, 6] in" in fit.mismatch(naming, beyond)


def test_adapters_for_each_expert_on_files_like_them(tmp_path: Path) -> None:
    naming = Naming(opened(tmp_path / "b", apart()))
    module = "model.layers.0.block_sparse_moe.experts.1.w3"
    (site,) = sites(naming, single(module, INNER, HIDDEN), NOW)
    assert (site.stored, site.first) == (f"{module}.weight", 0)


@pytest.mark.parametrize(
    ("tensors", "mine", "says"),
    [
        (apart(), part("gate_up_proj", 2 * INNER, HIDDEN, experts=4), "the base 3 experts"),
        (apart(), part("down_proj", HIDDEN, INNER + 1), "the base matrices of [6, 4]"),
        (fused(), part("gate_up_proj", INNER, HIDDEN), "the base matrices of [8, 6]"),
        ({"model.norm.weight": (6,)}, GATE_UP, "gate_up_proj: the base has no such tensor"),
        (apart(), part("router", 2, 2), "experts.router: the base has no such tensor"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    tmp_path: Path, tensors: Shapes, mine: LowRank, says: str
) -> None:
    assert says in fit.mismatch(Naming(opened(tmp_path / "b", tensors)), mine, NOW)


@pytest.mark.parametrize("lacking", ["1.w1", "2.w3", "0.w1"])
def test_an_expert_that_the_files_lack_is_named(tmp_path: Path, lacking: str) -> None:
    tensors = apart()
    del tensors[f"model.layers.0.block_sparse_moe.experts.{lacking}.weight"]
    naming = Naming(opened(tmp_path / "b", tensors))
    says = f"the base has no model.layers.0.block_sparse_moe.experts.{lacking}.weight"
    assert fit.mismatch(naming, GATE_UP, NOW).endswith(says)


@pytest.mark.parametrize("config", [NOW, OLD, {}])
def test_modules_that_call_themselves_transposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str]
) -> None:
    """Their matrices are (in, out) for every peft; tensors for each expert are (out, in)."""
    square = Naming(opened(tmp_path / "b", fused(inner=HIDDEN) | apart(inner=HIDDEN)))
    pattern = "model.layers.0.block_sparse_moe.experts.*.w2.weight"
    monkeypatch.setattr(Naming, "fusion", lambda self, part: Fusion((pattern,), True))
    down = part("down_proj", HIDDEN, HIDDEN)
    assert {site.transposed for site in sites(square, down, config)} == {True}
    monkeypatch.setattr(Naming, "parameter", lambda self, part: "not in the files")
    found = sites(square, down, config)
    assert {site.transposed for site in found} == {False}
    assert [site.stored for site in found] == [pattern.replace("*", str(e)) for e in range(EXPERTS)]


def test_rows_that_a_fused_tensor_holds_as_columns_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naming = Naming(opened(tmp_path / "b", fused()))
    stored = "model.layers.0.mlp.experts.gate_up_proj"
    home = Home(stored, expert=1, number=0, of=2, transposed=True)
    monkeypatch.setattr(Naming, "fused_home", lambda self, module: home)
    mine = single("model.layers.0.mlp.experts.1.gate_proj", INNER, HIDDEN)
    with pytest.raises(NotMergeable, match=r"experts\.1\.gate_proj: the base holds its rows as"):
        sites(naming, mine, NOW)


def test_a_rank_that_the_config_does_not_say_is_a_mismatch(tmp_path: Path) -> None:
    """Of an adapter for 6 experts of rank 2 one for 3 experts would be made, of rank 4."""
    base = opened(tmp_path / "b", apart())
    config = {"peft_type": "LORA", "r": RANK, "target_parameters": ["mlp.experts.down_proj"], **NOW}
    for experts, says in (
        (EXPERTS, []),
        (2 * EXPERTS, ["the adapter has rank 4, its config says r=2"]),
    ):
        mine = part("down_proj", HIDDEN, INNER, experts=experts)
        modules = {mine.module: {"lora_A": mine.a, "lora_B": mine.b}}
        found = fit.mismatches(base, Adapter("lora", "peft", config, modules), (mine,))
        assert [sentence.partition("base ")[2] for sentence in found] == says
