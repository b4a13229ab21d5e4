"""Every method, from files to files, against its definition in dense fp64 on awkward data.

The definitions are written here from the papers, on stacked arrays, with zeros for who leaves a
matrix alone, as mergekit sees them; they share no code with the package but the masks of chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward_building as building
import numpy as np
import pytest
from awkward_building import BF16, Dense, Made
from composing_building import given

from adapterhub import composing
from adapterhub.composing import Options
from adapterhub.composing.methods import masks
from adapterhub.composing.methods.table import method
from adapterhub.composing.run import seed_of

SEED = 3


@dataclass(frozen=True)
class Case:
    """One matrix: Δ of each (n, out, in), the weights (n, 1, 1), parameters, the matrix's seed."""

    deltas: Dense
    weights: Dense
    p: dict[str, Any]
    seed: int

    @property
    def present(self) -> list[int]:
        return [n for n, delta in enumerate(self.deltas) if delta.any() and self.weights[n]]


def trimmed(delta: Dense, density: float, gamma: float = 0.0) -> Dense:
    """Of equal magnitudes the first stay; fp32, as the deltas of the package are."""
    sizes = np.abs(delta.astype(np.float32)).ravel()
    order = np.lexsort((np.arange(sizes.size), -sizes))
    count = max(1, math.floor(density * sizes.size))
    top = 0 if density == 1 else min(math.floor(gamma * sizes.size), sizes.size - count)
    made = np.zeros(delta.size)
    made[order[top : top + count]] = delta.ravel()[order[top : top + count]]
    return made.reshape(delta.shape)


def restored(thin: Dense, delta: Dense, rescale: bool) -> Dense:
    left = np.abs(thin).sum()
    return thin * (np.abs(delta).sum() / left) if rescale and left else thin


def drawn(case: Case, number: int) -> Dense:
    kept = np.ones(case.deltas[0].shape, np.float32)
    masks.drop_at_random(kept, case.p["density"], case.seed, number)
    return kept


def agreed(thin: Dense, weights: Dense, p: dict[str, Any], votes: Dense | None = None) -> Dense:
    voices = (weights if votes is None else votes) * thin
    if p.get("majority_sign_method") == "frequency":
        voices = np.sign(voices)
    sign = np.where(voices.sum(0) >= 0, 1, -1)
    agrees = np.sign(weights * thin) == sign
    total = (weights * thin * agrees).sum(0)
    shares = (np.abs(weights) * agrees).sum(0) if p.get("normalize", True) else np.ones(1)
    return p.get("lambda", 1.0) * total / np.where(shares == 0, 1, shares)


def added(thin: Dense, weights: Dense, p: dict[str, Any]) -> Dense:
    divisor = weights.sum() if p.get("normalize") else 1.0
    return p.get("lambda", 1.0) * (weights * thin).sum(0) / divisor


def total(case: Case) -> Dense:
    return (case.weights * case.deltas).sum(0)


def average(case: Case) -> Dense:
    return total(case) / case.weights.sum()


def ties(case: Case) -> Dense:
    thin = [restored(trimmed(d, case.p["density"]), d, case.p["rescale"]) for d in case.deltas]
    return agreed(np.array(thin), case.weights, case.p)


def magnitude_prune(case: Case) -> Dense:
    return added(
        np.array([trimmed(d, case.p["density"]) for d in case.deltas]), case.weights, case.p
    )


def breadcrumbs(case: Case) -> Dense:
    p = case.p
    thin = [restored(trimmed(d, p["density"], p["gamma"]), d, p["rescale"]) for d in case.deltas]
    return added(np.array(thin), case.weights, p)


def _dare(case: Case) -> Dense:
    kept = np.array([d * drawn(case, n) for n, d in enumerate(case.deltas)])
    return kept / case.p["density"] if case.p["rescale"] else kept


def dare_linear(case: Case) -> Dense:
    return added(_dare(case), case.weights, case.p)


def dare_ties(case: Case) -> Dense:
    return agreed(_dare(case), case.weights, case.p)


def sce(case: Case) -> Dense:
    thin = case.weights * case.deltas
    spread = np.sqrt(((thin - thin.mean(0)) ** 2).mean(0)).astype(np.float32).ravel()
    if case.p["select_topk"] < 1:
        order = np.lexsort((np.arange(spread.size), -spread))
        kept = np.zeros(spread.size)
        kept[order[: math.floor(case.p["select_topk"] * np.count_nonzero(spread))]] = 1
        thin = thin * kept.reshape(thin[0].shape)
    energies = (thin**2).sum((1, 2), keepdims=True)
    return agreed(thin, energies / (energies.sum() or 1), {}, np.ones_like(energies))


def slerp(case: Case) -> Dense:
    one, other = case.weights * case.deltas
    return on_the_arc(one, other, case.p["t"], 0.9995)


def nuslerp(case: Case) -> Dense:
    t = (case.weights[1] / case.weights.sum()).item()
    one, other = case.deltas
    if case.p["nuslerp_flatten"]:
        return on_the_arc(one, other, t, 1 - 1e-8)
    pairs = zip(one, other, strict=True)
    return np.array([on_the_arc(x, y, t, 1 - 1e-8) for x, y in pairs])


def on_the_arc(one: Dense, other: Dense, t: float, alike: float) -> Dense:
    size = math.sqrt((one**2).sum() * (other**2).sum())
    cosine = (one * other).sum() / size if size else 0.0
    if abs(cosine) > alike:
        return (1 - t) * one + t * other
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


def svd(delta: Dense) -> tuple[Dense, Dense, Dense]:
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    rank = int((s > 1e-7 * s[0]).sum()) if s[0] else 0
    return u[:, :rank], s[:rank], vt[:rank]


def knots_ties(case: Case) -> Dense:
    """At a density of 1, where it is the mean of those with the sign of the sum, in the basis."""
    there = case.present
    if not there:
        return np.zeros(case.deltas[0].shape)
    u, _, _ = svd(np.hstack(case.deltas[there]))
    parts = case.weights[there] * (u.T @ case.deltas[there])
    sign = np.sign(parts.sum(0))
    sign[np.abs(parts.sum(0)) < 1e-9 * np.abs(parts).sum(0)] = 0
    agrees = parts * sign > 1e-12 * np.abs(parts).max()
    mean: Dense = u @ ((parts * agrees).sum(0) / np.maximum(agrees.sum(0), 1))
    return mean


def tsv(case: Case) -> Dense:
    us, values, vs = [], [], []
    for number in case.present:
        u, s, vt = svd(case.deltas[number])
        keep = max(1, len(s) // len(case.present))
        us, vs = [*us, u[:, :keep]], [*vs, vt[:keep].T]
        values.append(case.weights[number].item() * s[:keep])
    if not us:
        return np.zeros(case.deltas[0].shape)
    made: Dense = nearest(np.hstack(us)) * np.concatenate(values) @ nearest(np.hstack(vs)).T
    return made


def nearest(columns: Dense) -> Dense:
    """The pseudo-inverse of the root of the Gram matrix, behind the columns."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    there = values > 1e-10
    made: Dense = columns @ (vectors[:, there] / np.sqrt(values[there]) @ vectors[:, there].T)
    return made


def iso_c(case: Case) -> Dense:
    u, s, vt = svd(total(case))
    return s.mean() * u @ vt if len(s) else total(case)


def peft_ties_svd(case: Case) -> Dense:
    """Votes without weights; means of those who have a part of the matrix and agree."""
    thin = np.array([trimmed(d, case.p["density"]) for d in case.deltas])
    agrees = np.sign(thin) == np.where(thin.sum(0) >= 0, 1, -1)
    return (case.weights * thin * agrees).sum(0) / np.maximum(agrees.sum(0), 1)


NAMED: dict[str, Callable[[Case], Dense]] = {
    **dict.fromkeys(("sum", "task_arithmetic", "peft_cat", "peft_svd"), total),
    "peft_magnitude_prune_svd": magnitude_prune,
}
METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("sum", "average", "task_arithmetic", "peft_cat", "peft_svd")),
    *(("ties", {"density": d, "normalize": n}) for d in (0.35, 1.0) for n in (True, False)),
    ("ties", {"density": 0.35, "rescale": True, "majority_sign_method": "frequency"}),
    *((name, {"density": 0.35}) for name in ("magnitude_prune", "dare_ties", "peft_ties_svd")),
    ("peft_magnitude_prune_svd", {"density": 0.35}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1, "normalize": True, "lambda": -0.5}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.0, "rescale": True}),
    ("dare_linear", {"density": 0.35, "normalize": True}),
    ("dare_ties", {"density": 0.35, "rescale": False, "normalize": True}),
    *(("sce", {"select_topk": share}) for share in (0.3, 1.0)),
    ("knots_ties", {"density": 1.0}),
    *(("tsv", {}), ("iso_c", {})),
    *(("slerp", {"t": 0.3}), ("nuslerp", {}), ("nuslerp", {"nuslerp_flatten": False})),
]
PAIRS = ("slerp", "nuslerp")
WEIGHTS = {3: (0.75, -0.5, 1.5), 5: (1.0, 0.25, -0.5, 2.0, 0.5)}


def inputs(path: Path, kind: str, count: int) -> list[Made]:
    """Of several ranks, scales and dtypes; one leaves modules alone, one of five is all zeros."""
    some: list[dict[str, Any]] = [
        {},
        {"rank": 1, "without": (building.OTHER, building.WORDS), "dtype": BF16},
        {"rslora": True, "dtype": np.float16},
        {"zero": True, "rank": 2},
        {"rank": 7, "without": (building.EXPERTS,)},
    ]
    return [
        building.adapter(path / str(n), 10 + n, kind, **settings)
        for n, settings in enumerate(some[:count])
    ]


def result(path: Path, made: Sequence[Made], weights: Sequence[float], **options: Any) -> Any:
    sources = [given(one.path, weight) for one, weight in zip(made, weights, strict=True)]
    plan = composing.plan(sources, Options(**options))
    composing.write(plan, composing.adapter_of(plan, composing.run(plan)), path)
    return building.read(path)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("equal", 3),
        ("sparse", 3),
        *(pytest.param(kind, 5, marks=pytest.mark.slow) for kind in ("plain", "skewed")),
    ],
)
def test_from_files_to_files(kind: str, count: int, tmp_path: Path) -> None:
    sources = inputs(tmp_path, kind, count)
    names = {name: None for one in sources for name in one.deltas}
    for number, (name, asked) in enumerate(METHODS):
        used = sources[:2] if name in PAIRS else sources
        weights = (1.5, 0.5) if name in PAIRS else WEIGHTS[count]
        whole = {} if name in ("sum", "average", "task_arithmetic", "peft_cat") else {"rank": 64}
        out = tmp_path / f"out-{number}"
        found = result(out, used, weights, method=name, parameters=asked, seed=SEED, **whole)
        assert found.keys() == names.keys()
        for matrix, delta in found.items():
            shape = next(one.deltas[matrix].shape for one in sources if matrix in one.deltas)
            case = Case(
                np.array([one.deltas.get(matrix, np.zeros(shape)) for one in used]),
                np.array(weights)[:, None, None],
                method(name).settings(asked),
                _seed(matrix),
            )
            wanted = (NAMED.get(name) or globals()[name])(case)
            size = np.linalg.norm(wanted)
            assert np.linalg.norm(delta - wanted) <= 2e-6 * size + 1e-12, (name, asked, matrix)


def _seed(matrix: str) -> int:
    if not matrix.startswith(building.EXPERTS):
        return seed_of(SEED, matrix, 0)
    module, _, number = matrix.rpartition(".")
    return seed_of(SEED, f"{module}.down_proj", int(number))
