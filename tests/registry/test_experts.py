"""Sites of experts' factors, against the einsum of PEFT's ParamWrapper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.methods import LowRank
from adapterhub.registry.experts import Site, in_fused, of_parts, of_tensor, swapped_in_and_out
from adapterhub.tensorfile import ArrayTensor

EXPERTS, RANK = 3, 2
Array = np.ndarray[Any, Any]
Parts = list[list[tuple[str, tuple[int, ...]]]]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def part(out: int, into: int, experts: int = EXPERTS, rank: int = RANK) -> LowRank:
    a, b = random(1, rank * experts, into), random(2, out, rank * experts)
    roles = ("lora_A", "lora_B")
    return LowRank("m.experts", ArrayTensor(a), ArrayTensor(b), 1.0, "experts", roles, "up")


def delta(part: LowRank, *, transposed: bool, experts: int = EXPERTS) -> Array:
    """(experts, rows, columns): what ParamWrapper.get_delta_weight computes."""
    a, b = part.a.read(), part.b.read()
    a = a.reshape(experts, -1, a.shape[1])
    b = b.reshape(b.shape[0], -1, experts)
    found: Array = np.einsum("ore,eri->eio" if transposed else "ore,eri->eoi", b, a)
    return found


def applied(site: Site) -> Array:
    product = site.b.read() @ site.a.read()
    assert product.shape == site.shape
    return product.T if site.transposed else product


@pytest.mark.parametrize(
    ("shape", "transposed", "known"),
    [
        ((EXPERTS, 7, 5), False, None),
        ((EXPERTS, 7, 5), True, None),
        ((EXPERTS, 7, 5), True, False),  # shapes decide, whatever is said
        ((EXPERTS, 6, 6), False, False),
        ((EXPERTS, 6, 6), True, True),
    ],
)
def test_each_expert_has_its_place_and_its_product(
    shape: tuple[int, int, int], transposed: bool, known: bool | None
) -> None:
    _, rows, columns = shape
    mine = part(columns, rows) if transposed else part(rows, columns)
    sites = of_tensor("t", shape, mine, transposed=known)
    want = delta(mine, transposed=transposed)
    assert [site.expert for site in sites] == list(range(EXPERTS))
    assert [site.first for site in sites] == [e * rows * columns for e in range(EXPERTS)]
    for site, expected in zip(sites, want, strict=True):
        np.testing.assert_allclose(applied(site), expected, rtol=1e-12)


def test_square_matrices_that_nobody_can_tell_apart_are_refused() -> None:
    with pytest.raises(NotMergeable, match=r"m\.experts\.up: the experts' matrices are square"):
        of_tensor("t", (EXPERTS, 6, 6), part(6, 6), transposed=None)


def test_of_a_single_expert_peft_takes_the_product_as_it_stands() -> None:
    (site,) = of_tensor("t", (1, 6, 6), part(6, 6, 1), transposed=True)
    assert not site.transposed
    with pytest.raises(BaseMismatch, match=r"factors of shape \[7, 5\] for each expert"):
        of_tensor("t", (1, 5, 7), part(7, 5, 1), transposed=True)


@pytest.mark.parametrize(
    ("shape", "mine"),
    [
        ((4, 7, 5), part(7, 5)),  # 6 rows for 4 experts
        ((EXPERTS, 7, 5), part(7, 6)),
        ((EXPERTS, 7, 5), part(8, 5)),
        ((0, 7, 5), part(7, 5)),
        ((EXPERTS, 7, 5), replace(part(7, 5), b=part(7, 5, EXPERTS, 3).b)),
    ],
)
def test_counts_and_shapes_are_checked(shape: tuple[int, int, int], mine: LowRank) -> None:
    with pytest.raises(BaseMismatch, match=r"^m\.experts\.up: the adapter has factors of "):
        of_tensor("t", shape, mine, transposed=False)


def stored_parts(heights: Sequence[int], width: int) -> Parts:
    return [
        [(f"e.{e}.w{number}", (height, width)) for e in range(EXPERTS)]
        for number, height in enumerate(heights)
    ]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("heights", "width"), [((3, 4), 5), ((3, 3), 6), ((6,), 6)])
def test_parts_of_experts_get_their_rows_of_the_product(
    heights: tuple[int, ...], width: int, swapped: bool
) -> None:
    rows = sum(heights)
    mine = part(width, rows) if swapped else part(rows, width)
    sites = of_parts(stored_parts(heights, width), mine, transposed=swapped)
    want = delta(mine, transposed=swapped)
    by_name = {site.stored: applied(site) for site in sites}
    assert len(by_name) == len(sites) == EXPERTS * len(heights)
    for expert in range(EXPERTS):
        stacked = np.concatenate([by_name[f"e.{expert}.w{n}"] for n in range(len(heights))])
        np.testing.assert_allclose(stacked, want[expert], rtol=1e-12)
    assert all(site.first == 0 for site in sites)


def test_parts_of_unlike_shapes_are_named() -> None:
    parts = stored_parts((3, 4), 5)
    parts[1][2] = ("e.2.w1", (4, 6))
    with pytest.raises(BaseMismatch, match=r"^e\.2\.w1: .* shape \[4, 6\] there, and \[4, 5\]"):
        of_parts(parts, part(7, 5), transposed=False)
    with pytest.raises(BaseMismatch, match=r"^e\.0\.w1: .* shape \[4, 6\] there, and \[3, 5\]"):
        both = stored_parts((3,), 5) + stored_parts((0, 4), 6)[1:]
        of_parts(both, part(7, 5), transposed=False)
    parts = stored_parts((3,), 5)
    parts = [[(name, (3, 5, 1)) for name, _ in parts[0]]]
    with pytest.raises(BaseMismatch, match=r"^e\.0\.w0: .* shape \[3, 5, 1\] there"):
        of_parts(parts, part(3, 5), transposed=False)


def pair(out: int, into: int) -> LowRank:
    tensors = ArrayTensor(random(1, 2, into)), ArrayTensor(random(2, out, 2))
    return LowRank("m.experts.1.w3", *tensors, 1.0, "linear", ("lora_A", "lora_B"))


def test_a_pair_for_one_experts_tensor_finds_its_rows_in_a_fused_one() -> None:
    site = in_fused("t", (EXPERTS, 8, 5), pair(4, 5), expert=2, number=1, of=2)
    whole = np.zeros((EXPERTS, 8, 5))
    whole.reshape(-1)[site.first : site.first + 4 * 5] = 1
    np.testing.assert_array_equal(whole[2, 4:], 1)
    assert whole.sum() == 4 * 5


@pytest.mark.parametrize(
    ("mine", "expert", "of"), [(pair(4, 5), 3, 2), (pair(5, 5), 1, 2), (pair(2, 5), 1, 3)]
)
def test_a_pair_that_has_no_such_rows_is_named(mine: LowRank, expert: int, of: int) -> None:
    with pytest.raises(BaseMismatch, match=r"m\.experts\.1\.w3: .* 3 experts of \[8, 5\] in t"):
        in_fused("t", (EXPERTS, 8, 5), mine, expert=expert, number=1, of=of)


@pytest.mark.parametrize(
    ("version", "swapped"),
    [
        ("0.17.1", True),
        ("0.18.0", True),
        ("0.18.2.dev0@abc", None),
        ("0.19.0", False),
        ("0.21.2", False),
        ("1.0.0", False),
        (None, None),
        ("unknown", None),
        (18, None),
    ],
)
def test_what_a_version_of_peft_made_of_rows_and_columns(
    version: Any, swapped: bool | None
) -> None:
    assert swapped_in_and_out({"peft_version": version}) is swapped
