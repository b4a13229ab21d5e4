"""Methods on elements and on the sphere as their definitions read, in plain dense fp64."""

from __future__ import annotations

from typing import Any

import numpy as np

Dense = np.ndarray[Any, np.dtype[Any]]


def top(delta: Dense, density: float, gamma: float = 0.0) -> Dense:
    """The mask of the int(density·n) largest below the int(gamma·n) largest."""
    count = max(1, int(density * delta.size))
    skipped = min(int(gamma * delta.size), delta.size - count)
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    mask = np.zeros(delta.size)
    mask[order[skipped : skipped + count]] = 1
    return mask.reshape(delta.shape)


def bits(shape: tuple[int, int], seed: int, number: int) -> Dense:
    """32 bits for each element: halves of the words of one stream, rows begin at whole counts."""
    rows, columns = shape
    found = np.zeros(shape, np.uint64)
    counts = (columns + 7) // 8
    words = np.random.Philox(key=seed, counter=number << 192).random_raw(rows * counts * 4)
    for row in range(rows):
        for column in range(columns):
            word = int(words[row * counts * 4 + column // 2])
            found[row, column] = word >> 32 if column % 2 else word & 0xFFFFFFFF
    return found


def keep_shares(delta: Dense, density: float, epsilon: float) -> Dense:
    shares = np.empty(delta.shape)
    for row, values in enumerate(delta):
        for rank, column in enumerate(np.argsort(np.abs(values), kind="stable")):
            shares[row, column] = density - epsilon + 2 * epsilon * rank / (len(values) - 1)
    return shares


def sampled(delta: Dense, shares: Dense, seed: int, number: int, rescale: bool) -> Dense:
    kept = bits(delta.shape, seed, number) < shares * 2**32
    return np.where(kept, delta / shares if rescale else delta, 0.0)


def restored(thin: Dense, delta: Dense, rescale: bool) -> Dense:
    return thin * (np.abs(delta).sum() / np.abs(thin).sum()) if rescale else thin


def merged_by_sign(
    thin: list[Dense], weights: list[float], by: str, normalize: bool, votes: Any = None
) -> Dense:
    result = np.zeros(thin[0].shape)
    for place in np.ndindex(*thin[0].shape):
        voices = [v * float(d[place]) for v, d in zip(votes or weights, thin, strict=True)]
        poll = sum(voices) if by == "total" else sum(np.sign(voices))
        sign = 1 if poll >= 0 else -1
        values = [w * float(d[place]) for w, d in zip(weights, thin, strict=True)]
        agree = [n for n, value in enumerate(values) if value * sign > 0]
        whole = sum(abs(weights[n]) for n in agree) if normalize and agree else 1.0
        result[place] = sum(values[n] for n in agree) / whole
    return result


def arc(one: Dense, other: Dense, t: float, alike: float) -> Dense:
    """Of two vectors."""
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    cosine = one @ other / lengths if lengths else 0.0
    if abs(cosine) > alike:
        return (1 - t) * one + t * other
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * one + np.sin(t * theta) * other) / np.sin(theta)


def ties(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    thin = [restored(d * top(d, p["density"]), d, p["rescale"]) for d in deltas]
    return p["lambda"] * merged_by_sign(thin, weights, p["majority_sign_method"], p["normalize"])


def magnitude_prune(
    deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int
) -> Dense:
    thin = [d * top(d, p["density"]) for d in deltas]
    return p["lambda"] * sum(w * d for w, d in zip(weights, thin, strict=True))


def breadcrumbs(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    thin = [
        restored(d * top(d, p["density"], p["gamma"] if p["density"] < 1 else 0), d, p["rescale"])
        for d in deltas
    ]
    total = sum(w * d for w, d in zip(weights, thin, strict=True))
    return p["lambda"] * total / (sum(weights) if p["normalize"] else 1)


def _dare(deltas: list[Dense], p: dict[str, Any], seed: int) -> list[Dense]:
    shares = np.full(deltas[0].shape, p["density"])
    return [sampled(d, shares, seed, n, p["rescale"]) for n, d in enumerate(deltas)]


def dare_linear(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    total = sum(w * d for w, d in zip(weights, _dare(deltas, p, seed), strict=True))
    return p["lambda"] * total / (sum(weights) if p["normalize"] else 1)


def dare_ties(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    thin = _dare(deltas, p, seed)
    return p["lambda"] * merged_by_sign(thin, weights, p["majority_sign_method"], p["normalize"])


def della(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    thin = [
        sampled(d, keep_shares(d, p["density"], p["epsilon"]), seed, n, p["rescale"])
        if p["density"] < 1
        else d
        for n, d in enumerate(deltas)
    ]
    return p["lambda"] * merged_by_sign(thin, weights, p["majority_sign_method"], p["normalize"])


def sce(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    stacked = np.array([w * d for w, d in zip(weights, deltas, strict=True)])
    spread = stacked.var(0)
    if p["select_topk"] < 1:
        count = int(p["select_topk"] * np.count_nonzero(spread))
        mask = np.zeros(spread.size)
        mask[np.argsort(-spread.ravel(), kind="stable")[:count]] = 1
        stacked *= mask.reshape(spread.shape)
    energies = (stacked**2).sum((1, 2))
    shares = list(energies / energies.sum())
    return merged_by_sign(list(stacked), shares, "total", True, votes=[1.0] * len(deltas))


def slerp(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    one, other = (w * d.ravel() for w, d in zip(weights, deltas, strict=True))
    return arc(one, other, p["t"], 0.9995).reshape(deltas[0].shape)


def nuslerp(deltas: list[Dense], weights: list[float], p: dict[str, Any], seed: int) -> Dense:
    t = weights[1] / sum(weights)
    one, other = deltas
    if p["nuslerp_flatten"]:
        return arc(one.ravel(), other.ravel(), t, 1 - 1e-9).reshape(one.shape)
    if p["nuslerp_row_wise"]:
        pairs = zip(one.T, other.T, strict=True)
        return np.array([arc(x, y, t, 1 - 1e-9) for x, y in pairs]).T
    return np.array([arc(x, y, t, 1 - 1e-9) for x, y in zip(one, other, strict=True)])
