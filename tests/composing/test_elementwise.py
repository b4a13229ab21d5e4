"""Methods on elements: by hand, against fp64 oracles, their laws, their memory."""

from __future__ import annotations

import importlib.util
import tracemalloc
from pathlib import Path
from typing import Any

import dense_oracles as oracles
import numpy as np
import pytest

from adapterhub.composing import blocks
from adapterhub.composing.methods import table
from adapterhub.composing.methods.row import Given

DENSE = [name for name, row in table.TABLE.items() if row.file in ("elementwise", "spherical")]
BY_CHANCE = ("dare_linear", "dare_ties", "della")
ONE = [[4, -1, 2], [0, -6, 3]]
TWO = [[-1, 5, 2], [-3, 4, 1]]


def applied(
    name: str, deltas: Any, weights: Any = (1.0, 1.0), *, seed: int = 7, **settings: Any
) -> Any:
    row = table.method(name)
    matrices = [np.array(delta, np.float32) for delta in deltas]
    given = Given(
        shape=matrices[0].shape,
        parameters=row.settings(settings),
        seed=seed,
        inputs=len(matrices),
        weights=tuple(weights),
        numbers=tuple(range(len(matrices))),
    )
    made = row.apply(matrices, list(weights), given)
    assert made.dtype == np.float32 and made is matrices[0]
    return made


def random(seed: int, shape: tuple[int, int] = (24, 31)) -> Any:
    dice = np.random.default_rng(seed)
    return (dice.standard_normal((shape[0], 5)) @ dice.standard_normal((5, shape[1]))).astype("f4")


# --- by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        # of ONE 4, -6 and 3 remain, of TWO 5, -3 and 4; they meet in -6 + 4
        ((1, 1), {}, [[4, 5, 0], [-3, -6, 3]]),
        ((1, 2), {}, [[4, 5, 0], [-3, 4, 3]]),
        ((1, 2), {"normalize": False}, [[4, 10, 0], [-6, 8, 3]]),
        ((1, 2), {"normalize": False, "lambda": -0.5}, [[-2, -5, 0], [3, -4, -1.5]]),
        ((-1, 1), {}, [[-4, 5, 0], [-3, 5, -3]]),
        ((1, 1), {"majority_sign_method": "frequency"}, [[4, 5, 0], [-3, 4, 3]]),
        # 16 of 13 and of 12 remain
        ((1, 1), {"rescale": True}, [[4 * 16 / 13, 5 * 16 / 12, 0], [-4, -6 * 16 / 13, 48 / 13]]),
    ],
)
def test_ties_by_hand(weights: Any, settings: Any, expected: Any) -> None:
    found = applied("ties", (ONE, TWO), weights, density=0.5, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (1, [[4, -1, 2], [0, -6, 3]]),
        (0.99, [[4, -1, 2], [0, -6, 3]]),
        (4 / 6, [[4, 0, 2], [0, -6, 3]]),
        (2 / 6, [[4, 0, 0], [0, -6, 0]]),
        (0.2, [[0, 0, 0], [0, -6, 0]]),
        (0.001, [[0, 0, 0], [0, -6, 0]]),
    ],
)
def test_the_largest_remain(density: float, expected: Any) -> None:
    assert applied("magnitude_prune", [ONE], [1.0], density=density).tolist() == expected


def test_of_equal_ones_the_first_remain() -> None:
    delta = [[2, -2, 1], [2, 0, -2]]
    for density, expected in ((2 / 6, [[2, -2, 0], [0, 0, 0]]), (0.5, [[2, -2, 0], [2, 0, 0]])):
        assert applied("magnitude_prune", [delta], [1.0], density=density).tolist() == expected


@pytest.mark.parametrize(
    ("density", "gamma", "expected"),
    [
        (0.5, 1 / 6, [[4, 0, 2], [0, 0, 3]]),
        (0.5, 0, [[4, 0, 0], [0, -6, 3]]),
        (2 / 6, 2 / 6, [[0, 0, 2], [0, 0, 3]]),
        (5 / 6, 0.5, [[4, -1, 2], [0, 0, 3]]),  # density wins
        (1, 0.5, ONE),
    ],
)
def test_breadcrumbs_by_hand(density: float, gamma: float, expected: Any) -> None:
    found = applied("breadcrumbs", [ONE], [1.0], density=density, gamma=gamma)
    assert found.tolist() == expected
    twice = applied("breadcrumbs", [ONE, ONE], [3, 1], density=density, gamma=gamma, normalize=True)
    assert twice.tolist() == expected


def test_frequency_and_total_can_differ() -> None:
    deltas = ([[5, 1]], [[-1, 2]], [[-1, -1]])
    assert applied("ties", deltas, (1, 1, 1)).tolist() == [[5, 1.5]]
    found = applied("ties", deltas, (1, 1, 1), majority_sign_method="frequency")
    assert found.tolist() == [[-1, 1.5]]


def test_sce_by_hand() -> None:
    other = [[2, -1, -2], [0, 2, 1]]  # deviations from ONE: 1 0 2 / 0 4 1
    found = applied("sce", (ONE, other), select_topk=0.5)
    assert found.tolist() == [[0, 0, 2], [0, -6, 0]]
    # energies 66 and 14
    found = applied("sce", (ONE, other))
    np.testing.assert_allclose(found, [[3.65, -1, 2], [0, -6, 2.65]], rtol=1e-6)


def test_slerp_by_hand() -> None:
    half = np.sqrt(0.5)
    found = applied("slerp", ([[3, 0]], [[0, 4]]))
    np.testing.assert_allclose(found, [[3 * half, 4 * half]], rtol=1e-6)
    # 60 degrees apart; the middle of the arc lies at 30
    found = applied("slerp", ([[1, 0]], [[0.5, np.sqrt(0.75)]]))
    np.testing.assert_allclose(found, [[np.sqrt(0.75), 0.5]], rtol=1e-6)
    # weights scale; ends are the inputs
    found = applied("slerp", ([[1, 0]], [[0, 1]]), (2, -3), t=1)
    np.testing.assert_allclose(found, [[0, -3]], atol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_parallel_ones_are_interpolated_linearly(name: str) -> None:
    for factor in (1, 2, -1, -0.5):
        found = applied(name, ([[3, 4]], [[3 * factor, 4 * factor]]))
        np.testing.assert_allclose(found, np.array([[3, 4]]) * (1 + factor) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_zeros_count_as_orthogonal(name: str) -> None:
    for pair, expected in (
        (([[3, 4]], [[0, 0]]), [[3, 4]]),
        (([[0, 0]], [[3, 4]]), [[3, 4]]),
        (([[0, 0]], [[0, 0]]), [[0, 0]]),
    ):
        np.testing.assert_allclose(applied(name, pair), np.sqrt(0.5) * np.array(expected), 1e-6)


def test_nuslerp_takes_its_vectors_and_its_weights_as_mergekit_does() -> None:
    one, other = [[3, 0], [0, 1]], [[3, 0], [1, 0]]
    rows = applied("nuslerp", (one, other), nuslerp_flatten=False)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rows, [[3, 0], [half, half]], atol=1e-6)
    columns = applied(
        "nuslerp",
        (np.transpose(one), np.transpose(other)),
        nuslerp_flatten=False,
        nuslerp_row_wise=True,
    )
    np.testing.assert_allclose(columns, rows.T, atol=1e-6)
    # t = 1/4; and ½ where the weights add up to 0
    found = applied("nuslerp", ([[1, 0]], [[0, 1]]), (3, 1))
    np.testing.assert_allclose(found, [[np.sin(3 * np.pi / 8), np.sin(np.pi / 8)]], rtol=1e-6)
    found = applied("nuslerp", ([[1, 0]], [[0, 1]]), (1, -1))
    np.testing.assert_allclose(found, [[half, half]], rtol=1e-6)


# --- oracles ----------------------------------------------------------------------------------

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("ties", {"density": d}) for d in (1, 0.6, 0.21, 0.01)),
    ("ties", {"density": 0.3, "normalize": False, "rescale": True, "lambda": 1.5}),
    ("ties", {"density": 0.3, "majority_sign_method": "frequency"}),
    ("magnitude_prune", {"density": 0.37, "lambda": -2}),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.05}),
    ("breadcrumbs", {"density": 0.9, "gamma": 0.5, "normalize": True, "rescale": True}),
    ("dare_linear", {"density": 0.4}),
    ("dare_linear", {"density": 0.4, "rescale": False, "normalize": True, "lambda": 3}),
    ("dare_ties", {"density": 0.7}),
    ("dare_ties", {"density": 0.7, "normalize": True, "majority_sign_method": "frequency"}),
    ("della", {"density": 0.5, "epsilon": 0.2}),
    ("della", {"density": 0.2, "epsilon": 0.0, "rescale": False, "normalize": False}),
    *(("sce", {"select_topk": share}) for share in (1, 0.5, 0.02)),
    *(("slerp", {"t": t}) for t in (0, 0.3, 1)),
    ("nuslerp", {}),
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
]


@pytest.mark.parametrize("weights", [(0.7, 0.4, 1.1), (0.7, -0.3, 0.5)])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_against_fp64(name: str, settings: Any, weights: tuple[float, ...]) -> None:
    count = table.method(name).inputs[1] or 3
    deltas = [random(seed) for seed in range(count)]
    found = applied(name, deltas, weights[:count], **settings)
    expected = getattr(oracles, name)(
        [delta.astype(np.float64) for delta in deltas],
        list(weights[:count]),
        table.method(name).settings(settings),
        7,
    )
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def merge_utils() -> Any:
    """PEFT's module of that name alone: it takes seconds to import the package."""
    package = importlib.util.find_spec("peft")
    if package is None or not package.submodule_search_locations:
        pytest.skip("PEFT is not installed")
    path = Path(package.submodule_search_locations[0]) / "utils" / "merge_utils.py"
    spec = importlib.util.spec_from_file_location("peft_merge_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("density", [0.8, 0.31])
def test_as_peft_where_peft_means_the_same(density: float) -> None:
    torch = pytest.importorskip("torch")
    peft = merge_utils()
    deltas = [random(seed) for seed in range(3)]
    tensors = [torch.from_numpy(delta) for delta in deltas]
    for signs in ("total", "frequency"):
        theirs = peft.ties(tensors, torch.ones(3), density, signs)
        ours = applied("ties", deltas, (1, 1, 1), density=density, majority_sign_method=signs)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    weights = (0.3, -2.0, 1.0)
    theirs = peft.magnitude_prune(tensors, torch.tensor(weights), density)
    ours = applied("magnitude_prune", deltas, weights, density=density)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dare_linear", "magnitude_prune", "breadcrumbs"])
def test_density_1_is_the_weighted_sum(name: str) -> None:
    weights = (0.7, -0.3, 2.0)
    deltas = [random(seed) for seed in range(3)]
    found = applied(name, deltas, weights)
    expected = sum(w * d.astype(np.float64) for w, d in zip(weights, deltas, strict=True))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("name", ["ties", "magnitude_prune", "breadcrumbs", "sce"])
def test_order_does_not_matter(name: str) -> None:
    settings = {"select_topk": 0.5} if name == "sce" else {"density": 0.5}
    deltas, weights = [random(seed) for seed in range(3)], [0.75, -0.25, 0.5]
    one = applied(name, deltas, weights, **settings)
    other = applied(name, deltas[::-1], weights[::-1], **settings)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_the_arc_runs_both_ways(name: str) -> None:
    deltas = [random(1), random(2)]
    if name == "slerp":
        one, other = applied(name, deltas, t=0.3), applied(name, deltas[::-1], t=0.7)
    else:
        one, other = applied(name, deltas, (3, 1)), applied(name, deltas[::-1], (1, 3))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def settings_of(name: str) -> dict[str, Any]:
    known = {parameter.name for parameter in table.method(name).parameters}
    wanted = {"density": 0.4, "select_topk": 0.4, "rescale": True, "nuslerp_flatten": False}
    return {key: value for key, value in wanted.items() if key in known}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("factor", [2.0**40, 2.0**-50])
def test_scale_goes_through(name: str, factor: float) -> None:
    deltas = [random(1), random(2)]
    one = applied(name, deltas, (0.7, 0.4), **settings_of(name))
    other = applied(name, [factor * delta for delta in deltas], (0.7, 0.4), **settings_of(name))
    np.testing.assert_array_equal(other, np.float32(factor) * one)


@pytest.mark.parametrize("name", DENSE)
def test_a_sign_goes_through(name: str) -> None:
    """But for ties, which go to +, and do not occur here; weights count for nuslerp otherwise."""
    deltas, weights = [random(1), random(2)], (0.7, 0.4)
    one = applied(name, deltas, weights, **settings_of(name))
    turned = applied(name, [-delta for delta in deltas], weights, **settings_of(name))
    np.testing.assert_array_equal(turned, -one)
    if name != "nuslerp":
        other = applied(name, deltas, (-0.7, -0.4), **settings_of(name))
        np.testing.assert_array_equal(other, -one)


@pytest.mark.parametrize("name", DENSE)
def test_threads_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [random(1, (200, 9)), random(2, (200, 9))]
    monkeypatch.setattr(blocks, "ELEMENTS", 50)
    monkeypatch.setattr(blocks, "usable_cores", lambda: 8)
    found = []
    for threads in (1, 2, 7, 7):
        monkeypatch.setattr(blocks, "THREADS", threads)
        found.append(applied(name, deltas, (0.7, 0.4), **settings_of(name)).tobytes())
    assert len(set(found)) == 1
    # nor the blocks, but for the sums in fp64
    monkeypatch.setattr(blocks, "ELEMENTS", 1 << 20)
    whole = applied(name, deltas, (0.7, 0.4), **settings_of(name))
    np.testing.assert_allclose(whole.ravel(), np.frombuffer(found[0], "f4"), rtol=1e-6)


# --- chance -----------------------------------------------------------------------------------


def test_masks_are_the_same_on_every_machine() -> None:
    ones = np.ones((3, 9))
    found = applied("dare_linear", [ones], [1.0], seed=12345, density=0.5)
    assert set(found.ravel()) == {0, 2}
    rows = ["".join("x" if value else "." for value in row) for row in found]
    assert rows == ["x......xx", ".....x..x", "xxxxxx.x."]


def test_dare_keeps_the_mean() -> None:
    ones = np.ones((400, 500), np.float32)
    masks = []
    for seed, number in ((1, 1), (2, 1), (1, 2)):
        deltas = [np.zeros_like(ones)] * number + [ones]
        found = applied("dare_linear", deltas, [1.0] * len(deltas), seed=seed, density=0.2)
        assert set(found.ravel()) == {0, 5}
        # the deviation of a mean of 200 000, each with variance 4
        assert abs(found.mean() - 1) < 4 * np.sqrt(4 / found.size)
        assert abs(found.mean(0) - 1).max() < 5 * np.sqrt(4 / 400)
        masks.append(found > 0)
    for one, other in ((0, 1), (0, 2), (1, 2)):  # other seeds and inputs draw by themselves
        both = (masks[one] & masks[other]).mean()
        assert abs(both - 0.04) < 4 * np.sqrt(0.04 / ones.size)


def test_della_keeps_the_mean_and_prefers_the_large() -> None:
    delta = np.tile(np.arange(1, 11, dtype=np.float32), (20000, 1))
    found = applied("della", [delta], [1.0], density=0.5, epsilon=0.3)
    np.testing.assert_allclose((found > 0).mean(0), np.linspace(0.2, 0.8, 10), atol=0.015)
    np.testing.assert_allclose(found.mean(0) / delta[0], 1, atol=0.06)


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ties", "della", "sce", "nuslerp"])
def test_buffers_are_small(name: str) -> None:
    shape = (2048, 4096)
    dice = np.random.default_rng(1)
    deltas = [dice.standard_normal(shape, dtype=np.float32) for _ in range(2)]
    row = table.method(name)
    given = Given(shape, row.settings(settings_of(name)), 3, 2, (0.7, 0.4), (0, 1))
    tracemalloc.start()
    try:
        made = row.apply(deltas, [0.7, 0.4], given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made is deltas[0]
    assert peak < 60e6, f"{peak / 1e6:.0f} MB beside the deltas"
