"""KnOTS, TSV-merge and Iso-C on factors, against dense fp64 and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, Q, V, composed, deltas, given, lora

from adapterhub.composing.factored import Factors
from adapterhub.composing.methods.row import Delta, Given
from adapterhub.composing.methods.table import method
from adapterhub.errors import InvalidOption

Matrix = Any
METHODS = ["knots_ties", "knots_dare", "tsv", "iso_c"]
SEED = 12345


# --- the definitions, on dense matrices -------------------------------------------------------


def real(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """The SVD without what is zero but for rounding."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum()) if s[0] > 1e-9 else 0
    return u[:, :rank], s[:rank], vt[:rank]


def side_by_side(dense: list[Matrix]) -> tuple[Matrix, list[Matrix]]:
    u, s, vt = real(np.hstack(dense))
    return u, np.split(s[:, None] * vt, len(dense), axis=1)


def voted(parts: list[Matrix]) -> Matrix:
    merged = np.zeros(parts[0].shape)
    for place in np.ndindex(*merged.shape):
        values = [part[place] for part in parts]
        total = sum(values)
        if abs(total) > 1e-9 * sum(map(abs, values)):
            agreeing = [value for value in values if value * total > 0]
            merged[place] = sum(agreeing) / len(agreeing)
    return merged


def dense_knots_ties(dense: list[Matrix], weights: list[float], density: float, **_: Any) -> Matrix:
    u, parts = side_by_side(dense)
    trimmed = []
    for part in parts:
        order = np.argsort(-np.abs(part), axis=None)
        kept = np.zeros(part.size)
        first = order[: max(1, int(density * part.size))]
        kept[first] = part.reshape(-1)[first]
        trimmed.append(kept.reshape(part.shape))
    return u @ voted([w * part for w, part in zip(weights, trimmed, strict=True)])


def dense_knots_dare(
    dense: list[Matrix], weights: list[float], density: float, numbers: list[int], **_: Any
) -> Matrix:
    u, parts = side_by_side(dense)
    dropped = []
    for number, weight, part in zip(numbers, weights, parts, strict=True):
        raw = np.random.Philox(key=SEED, counter=(number + 1) << 192).random_raw(part.size)
        kept = np.array([int(bits) / 2**64 < density for bits in raw]).reshape(part.shape)
        dropped.append(weight * part * kept / density)
    return u @ voted(dropped)


def dense_tsv(dense: list[Matrix], weights: list[float], **_: Any) -> Matrix:
    us, values, vs = [], [], []
    for delta, weight in zip(dense, weights, strict=True):
        u, s, vt = real(delta)
        keep = max(1, len(s) // len(dense))
        us, values = [*us, u[:, :keep]], [*values, weight * s[:keep]]
        vs.append(vt[:keep].T)
    return polar(np.hstack(us)) * np.concatenate(values) @ polar(np.hstack(vs)).T


def polar(m: Matrix) -> Matrix:
    """M·(MᵀM)^(-½), on what is not the kernel."""
    values, vectors = np.linalg.eigh(m.T @ m)
    inverse = np.where(values > 1e-10, 1 / np.sqrt(np.maximum(values, 1e-10)), 0)
    return m @ (vectors * inverse @ vectors.T)


def dense_iso_c(dense: list[Matrix], weights: list[float], **_: Any) -> Matrix:
    u, s, vt = real(sum(w * delta for w, delta in zip(weights, dense, strict=True)))
    return s.mean() * u @ vt


# --- the methods on factors -------------------------------------------------------------------


def random_delta(number: int, weight: float, rank: int, shape: tuple[int, int] = (9, 13)) -> Delta:
    dice = np.random.default_rng([number, rank])
    b, a = dice.standard_normal((shape[0], rank)), dice.standard_normal((rank, shape[1]))
    return Delta(number, weight, 0.5 + number, Factors(b.astype("f"), a.astype("f")))


def applied(name: str, terms: Sequence[Delta], shape: tuple[int, int], **settings: Any) -> Matrix:
    row = method(name)
    made = row.apply(terms, Given(shape, row.settings(settings), SEED, inputs=len(terms)))
    return made.scale * made.factors.b @ made.factors.a


def deficient(delta: Delta) -> Delta:
    b = delta.factors.b.copy()
    b[:, -1] = b[:, 0] + b[:, 1]
    return Delta(delta.number, delta.weight, delta.scale, Factors(b, delta.factors.a))


def zero(number: int) -> Delta:
    """As training begins: B of zeros; and one whose factors cancel."""
    return Delta(number, 1.0, 2.0, Factors(np.zeros((9, 4), "f"), np.ones((4, 13), "f")))


def cancelling(number: int) -> Delta:
    one = random_delta(number, 1.0, 2).factors
    return Delta(number, 1.0, 2.0, Factors(np.hstack([one.b, one.b]), np.vstack([one.a, -one.a])))


CASES = {
    "one": [random_delta(0, 1.0, 4)],
    "two": [random_delta(0, 1.0, 4), random_delta(1, 1.0, 4)],
    "ranks": [random_delta(0, 0.7, 2), random_delta(1, 1.3, 5), random_delta(2, 0.4, 1)],
    "negative": [random_delta(0, 1.0, 4), random_delta(1, -0.6, 3), random_delta(2, 0.5, 4)],
    "missing": [random_delta(0, 1.0, 4), random_delta(3, -0.5, 4)],
    "deficient": [deficient(random_delta(0, 1.0, 4)), random_delta(1, 0.5, 3)],
    "full": [random_delta(0, 1.0, 6), random_delta(1, -0.5, 7)],
    "beyond": [random_delta(0, 1.0, 11), random_delta(1, 0.5, 16)],
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_on_factors_is_what_the_definition_gives(name: str, case: str, density: float) -> None:
    terms = CASES[case]
    settings = {"density": density} if name.startswith("knots") else {}
    found = applied(name, terms, (9, 13), **settings)
    expected = globals()[f"dense_{name}"](
        [d.scale * d.factors.b.astype("d") @ d.factors.a for d in terms],
        [d.weight for d in terms],
        density=density,
        numbers=[d.number for d in terms],
    )
    assert np.linalg.norm(expected) > 0.1
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nobody", [zero(1), cancelling(1), random_delta(1, 0.0, 3)])
def test_what_adds_nothing_counts_as_absent(name: str, nobody: Delta) -> None:
    terms = [random_delta(0, 1.0, 4), random_delta(2, -0.5, 4)]
    alone = applied(name, terms, (9, 13))
    assert np.allclose(applied(name, [terms[0], nobody, terms[1]], (9, 13)), alone, atol=1e-12)
    assert not applied(name, [nobody], (9, 13)).any()


# --- by hand ----------------------------------------------------------------------------------


def by_rows(number: int, rows: list[list[float]], weight: float = 1.0) -> Delta:
    return Delta(number, weight, 1.0, Factors(np.eye(2, dtype="f"), np.array(rows, "f")))


@pytest.mark.parametrize(
    ("weights", "density", "expected"),
    [
        # 4 wins against -2; 1 and 3 agree, as do 2 and 1
        ((1, 1), 1.0, [[4, 2, 0], [0, 0, 1.5]]),
        # of each two of six elements: 4 and 2, -2 and 3
        ((1, 1), 1 / 3, [[4, 3, 0], [0, 0, 2]]),
        # 4 and 6 agree; -9 wins against 1, -3 against 2
        ((1, -3), 1.0, [[5, -9, 0], [0, 0, -3]]),
        # 4 and 4 agree; -6 wins against 1; 2 and -2 is a draw
        ((1, -2), 1.0, [[4, -6, 0], [0, 0, 0]]),
    ],
)
def test_knots_ties_by_hand(
    weights: tuple[float, float], density: float, expected: list[list[float]]
) -> None:
    # the rows of both side by side are orthogonal: U is the identity, Σ·Vᵢᵀ is Δᵢ
    terms = [
        by_rows(0, [[4, 1, 0], [0, 0, 2]], weights[0]),
        by_rows(1, [[-2, 3, 0], [0, 0, 1]], weights[1]),
    ]
    found = applied("knots_ties", terms, (2, 3), density=density)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_who_adds_nothing_somewhere_has_no_voice_there() -> None:
    """Deltas into spaces that are orthogonal, but for rounding, do not share any element."""
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((9, 9)))[0]
    dice = np.random.default_rng(3)
    a = [dice.standard_normal((3, 13)) for _ in range(3)]
    terms = [Delta(n, 1.0, 1.0, Factors(turn[:, 3 * n : 3 * n + 3], a[n])) for n in range(3)]
    wanted = sum(each.factors.b @ each.factors.a for each in terms)
    found = applied("knots_ties", terms, (9, 13), density=1.0)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_tsv_by_hand() -> None:
    # u₁ = e₁ and u₂ = (e₁ + e₂)/√2, 45° apart: each turns by 22.5° until they are orthogonal
    terms = [by_rows(0, [[4, 0, 0], [0, 0, 0]]), by_rows(1, [[0, 2, 0], [0, 2, 0]], -1.0)]
    cos, sin, second = np.cos(np.pi / 8), np.sin(np.pi / 8), -2 * np.sqrt(2)
    expected = [[4 * cos, second * sin, 0], [-4 * sin, second * cos, 0]]
    np.testing.assert_allclose(applied("tsv", terms, (2, 3)), expected, atol=1e-12)


def test_tsv_keeps_a_share_of_the_rank() -> None:
    one = by_rows(0, [[5, 0, 0], [0, 3, 0]])
    other = by_rows(1, [[0, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(applied("tsv", [one], (2, 3)), [[5, 0, 0], [0, 3, 0]], atol=1e-12)
    half = applied("tsv", [one], (2, 3), share=0.5)
    np.testing.assert_allclose(half, [[5, 0, 0], [0, 0, 0]], atol=1e-12)
    with pytest.raises(InvalidOption, match="share is 0"):
        applied("tsv", [one, other], (2, 3), share=0)


def test_iso_c_by_hand() -> None:
    one, other = by_rows(0, [[2, 0, 0], [0, 1, 0]]), by_rows(1, [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        applied("iso_c", [one, other], (2, 3)), [[2, 0, 0], [0, 2, 0]], atol=1e-12
    )
    # a rank of 1 has a mean of 1 value, not of min(out, in)
    np.testing.assert_allclose(
        applied("iso_c", [other], (2, 3)), [[1, 0, 0], [0, 0, 0]], atol=1e-12
    )


# --- laws, by way of a whole composition ------------------------------------------------------

ALL = {"knots_ties": {"density": 0.4}, "tsv": {}, "iso_c": {}}


@pytest.mark.parametrize("name", METHODS)
def test_of_whole_adapters_one_without_a_module(tmp_path: Path, name: str) -> None:
    inputs = [
        given(lora(tmp_path / "a", 1), 0.7),
        given(lora(tmp_path / "b", 2, [Q], 5, r=5, use_rslora=True), -0.3),
    ]
    settings = {"density": 1.0} if name.startswith("knots") else {}
    adapter, report = composed(inputs, method=name, parameters=settings)
    both = [deltas(each.adapter) for each in inputs]
    for module, numbers in ((Q, [0, 1]), (V, [0])):
        expected = globals()[f"dense_{name}"](
            [both[n][module] for n in numbers],
            [inputs[n].weight for n in numbers],
            density=1.0,
            numbers=numbers,
        )
        found = deltas(adapter)[module]
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    assert report.reproducible is False
    assert [one.module for one in report.modules] == [Q, V]


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_inputs_does_not_matter(tmp_path: Path, name: str) -> None:
    one = given(lora(tmp_path / "a", 1), 0.7)
    other = given(lora(tmp_path / "b", 2, rank=2), -0.3)
    found = [
        deltas(composed(pair, method=name, parameters=ALL[name])[0])
        for pair in ([one, other], [other, one])
    ]
    for module in SIZES:
        np.testing.assert_allclose(found[0][module], found[1][module], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_an_adapter_less_itself_is_nothing(tmp_path: Path, name: str) -> None:
    path = lora(tmp_path / "a", 1)
    adapter, _ = composed([given(path, 1), given(path, -1)], method=name)
    assert all(np.abs(delta).max() < 1e-9 for delta in deltas(adapter).values())


@pytest.mark.parametrize("name", ["knots_ties", "knots_dare", "tsv"])
def test_one_adapter_is_itself(tmp_path: Path, name: str) -> None:
    source = given(lora(tmp_path / "a", 1))
    settings = {"density": 1.0} if name.startswith("knots") else {}
    found = deltas(composed([source], method=name, parameters=settings)[0])
    for module, delta in deltas(source.adapter).items():
        assert np.linalg.norm(found[module] - delta) <= 1e-6 * np.linalg.norm(delta)


@pytest.mark.parametrize("name", METHODS)
def test_one_weight_for_all_is_a_scale(name: str) -> None:
    once, thrice = (
        applied(name, [random_delta(n, weight, 3) for n in range(3)], (9, 13))
        for weight in (1.0, 3.0)
    )
    np.testing.assert_allclose(thrice, 3 * once, atol=1e-10)


# --- chance -----------------------------------------------------------------------------------


def test_what_is_dropped_hangs_on_the_seed_alone(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))]
    one, same, other = (
        deltas(composed(inputs, method="knots_dare", seed=seed)[0])[Q].tobytes()
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_share_kept_and_its_mean() -> None:
    from adapterhub.composing.methods.subspaces import _drawn

    for density in (0.1, 0.5, 0.9):
        kept = _drawn((200, 500), density, SEED, 0)
        assert abs(kept.mean() - density) < 5 * np.sqrt(density * (1 - density) / kept.size)
    assert _drawn((3, 4), 1.0, SEED, 0).all()
    assert (_drawn((200, 500), 0.5, SEED, 0) != _drawn((200, 500), 0.5, SEED, 1)).mean() > 0.4
