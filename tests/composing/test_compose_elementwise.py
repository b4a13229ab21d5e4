"""compose by methods on elements: from files to a LoRA, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense_oracles as oracles
import numpy as np
import pytest
from composing_building import SIZES, Q, V, assert_close, composed, deltas, dense, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub import composing
from adapterhub.composing import Options
from adapterhub.composing.cases import Case, Cases
from adapterhub.composing.methods.table import TABLE, method
from adapterhub.composing.run import seed_of
from adapterhub.errors import InvalidOption, NotMergeable

DENSE = [name for name, row in TABLE.items() if row.file in ("elementwise", "spherical")]
THINNED = {"density": 0.5, "select_topk": 0.5, "epsilon": 0.2, "t": 0.3}


def settings_of(name: str) -> dict[str, Any]:
    known = {parameter.name for parameter in method(name).parameters}
    return {key: value for key, value in THINNED.items() if key in known}


@pytest.mark.parametrize("name", DENSE)
def test_every_method_from_files(name: str, tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 0.7), given(lora(tmp_path / "b", 2, rank=5, r=5), 0.4)]
    adapter, report = composed(inputs, method=name, parameters=settings_of(name), rank=8, seed=11)
    expected = {}
    for module in SIZES:
        expected[module] = getattr(oracles, name)(
            [deltas(each.adapter)[module] for each in inputs],
            [0.7, 0.4],
            method(name).settings(settings_of(name)),
            seed_of(11, module, 0),
        )
    assert_close(deltas(adapter), expected, 1e-5)
    assert not report.reproducible
    again, _ = composed(inputs, method=name, parameters=settings_of(name), rank=8, seed=11)
    for module, role, tensor in adapter.tensors():
        assert again.modules[module][role].read().tobytes() == tensor.read().tobytes()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della"])
def test_another_seed_is_another_result(name: str, tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))]
    one, two = (
        deltas(composed(inputs, method=name, parameters={"density": 0.5}, seed=seed)[0])
        for seed in (1, 2)
    )
    assert all(np.linalg.norm(one[module] - two[module]) > 0.1 for module in SIZES)


def test_a_truncation_draws_from_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Philox(np.random.Philox):
        def __init__(self, key: int, **more: Any) -> None:
            super().__init__(key=key, **more)  # type: ignore[call-arg]
            seeds.append(key)

    monkeypatch.setitem(SIZES, Q, (90, 80))
    monkeypatch.setattr(np.random, "Philox", Philox)
    inputs = [given(lora(tmp_path / "a", 1, [Q])), given(lora(tmp_path / "b", 2, [Q]))]
    composed(inputs, method="dare_linear", parameters={"density": 0.5}, rank=1)
    assert len(seeds) == 3 and seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("name", ["dare_linear", "magnitude_prune", "breadcrumbs"])
def test_density_1_is_the_sum_at_its_rank(name: str, tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 0.7), given(lora(tmp_path / "b", 2), -0.3)]
    adapter, report = composed(inputs, method=name)
    assert_close(deltas(adapter), dense(*inputs))
    assert {one.rank for one in report.modules} == {6}
    assert report.error is not None and report.error < 1e-6
    nothing, _ = composed([given(tmp_path / "a"), given(tmp_path / "a", -1)], method=name)
    assert not any(delta.any() for delta in deltas(nothing).values())


@pytest.mark.parametrize("name", [name for name in DENSE if method(name).inputs == (1, None)])
def test_one_adapter_is_itself_at_density_1(name: str, tmp_path: Path) -> None:
    source = given(lora(tmp_path / "a", 1))
    assert_close(deltas(composed([source], method=name)[0]), dense(source))
    less, _ = composed([given(tmp_path / "a", -0.5)], method=name, parameters={"lambda": 2})
    if method(name).settings({}).get("normalize"):  # the weight's size goes, its sign stays
        assert_close(deltas(less), dense(given(tmp_path / "a", -2.0)))
    else:
        assert_close(deltas(less), dense(given(tmp_path / "a", -1.0)))


def test_the_error_of_what_is_not_low_rank_is_told(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))]
    whole, _ = composed(inputs, method="ties", parameters={"density": 0.3}, rank=8)
    cut, report = composed(inputs, method="ties", parameters={"density": 0.3}, rank=2)
    for one in report.modules:
        full, less = deltas(whole)[one.module], deltas(cut)[one.module]
        assert one.error == pytest.approx(
            np.linalg.norm(full - less) / np.linalg.norm(full), rel=1e-5
        )


# --- adapters that leave a module alone -------------------------------------------------------


@pytest.mark.parametrize("absent", [0, 1])
@pytest.mark.parametrize("name", ["slerp", "nuslerp", "sce", "dare_linear", "breadcrumbs"])
def test_who_leaves_a_module_alone_counts_as_zeros(name: str, absent: int, tmp_path: Path) -> None:
    modules = [[Q, V], [Q, V]]
    modules[absent] = [Q]
    inputs = [
        given(lora(tmp_path / str(number), number, targets), weight)
        for number, (targets, weight) in enumerate(zip(modules, (3.0, 1.0), strict=True))
    ]
    asked = settings_of(name) | ({"normalize": True} if "density" in settings_of(name) else {})
    adapter, _ = composed(inputs, method=name, parameters=asked, rank=8)
    zeros = np.zeros(SIZES[V])
    expected = getattr(oracles, name)(
        [deltas(each.adapter).get(V, zeros) for each in inputs],
        [3.0, 1.0],
        method(name).settings(asked),
        seed_of(0, V, 0),
    )
    assert np.linalg.norm(expected) > 0.1
    assert_close({V: deltas(adapter)[V]}, {V: expected}, 1e-5)


def test_vectors_of_which_one_is_missing(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 1.0), given(lora(tmp_path / "b", 2, [Q]), 1.0)]
    for row_wise in (False, True):
        asked = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
        adapter, _ = composed(inputs, method="nuslerp", parameters=asked, rank=8)
        expected = np.sqrt(0.5) * dense(inputs[0])[V]
        assert_close({V: deltas(adapter)[V]}, {V: expected})


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("ties", {"density": 0}, "density is 0"),
        ("ties", {"density": 1.01}, "density is 1.01"),
        ("ties", {"density": -0.5}, "density is -0.5"),
        ("ties", {"density": float("nan")}, "density is nan"),
        ("ties", {"density": True}, "density is True"),
        ("ties", {"density": "half"}, "density is 'half'"),
        ("ties", {"lambda": float("nan")}, "lambda is nan"),
        ("ties", {"lambda": float("inf")}, "lambda is inf"),
        ("ties", {"lambda": 10**400}, "lambda is 1000"),
        ("ties", {"normalize": 1}, "normalize is 1"),
        ("ties", {"majority_sign_method": "most"}, "majority_sign_method is 'most'"),
        ("ties", {"epsilon": 0.1}, "ties has no parameter 'epsilon'"),
        ("della", {"epsilon": 0.6}, "epsilon is 0.6"),
        ("della", {"density": 0.1}, "with probabilities from -0.05 to 0.25"),
        ("della", {"density": 0.9}, "with probabilities from 0.75 to 1.05"),
        ("breadcrumbs", {"gamma": -0.1}, "gamma is -0.1"),
        ("sce", {"select_topk": 0}, "select_topk is 0"),
        ("slerp", {"t": 1.5}, "t is 1.5"),
        ("nuslerp", {"t": 0.5}, "nuslerp has no parameter 't'"),
    ],
)
def test_parameters_are_checked_before_any_work(
    name: str, parameters: Any, said: str, tmp_path: Path
) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))]
    with pytest.raises(InvalidOption, match=said):
        composing.plan(inputs, Options(method=name, parameters=parameters))


def test_so_are_counts_and_weights(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / str(seed), seed)) for seed in range(3)]
    for name, count in (("slerp", 1), ("slerp", 3), ("nuslerp", 3), ("sce", 1)):
        with pytest.raises(InvalidOption, match=f"{name} takes 2.* adapters, {count} were given"):
            composing.plan(inputs[:count], Options(method=name))
    pair = [inputs[0], given(tmp_path / "1", -1.0)]
    for name in ("dare_linear", "breadcrumbs"):
        with pytest.raises(InvalidOption, match="add up to 0 and cannot be normalized"):
            composing.plan(pair, Options(method=name, parameters={"normalize": True}))
        composing.plan(pair, Options(method=name))
        for weights, said in (((0.1, 0.2, -0.3), "add up to 0"), ((1e308,) * 3, "too large")):
            three = [given(tmp_path / str(n), weight) for n, weight in enumerate(weights)]
            with pytest.raises(InvalidOption, match=said):
                composing.plan(three, Options(method=name, parameters={"normalize": True}))
    huge = [given(tmp_path / str(n), 1e308) for n in range(2)]
    with pytest.raises(InvalidOption, match="too large"):
        composing.plan(huge, Options(method="nuslerp"))


def test_what_hangs_on_the_module_is_checked_and_followed(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 2.0), given(lora(tmp_path / "b", 2), 1.0)]
    cases = Cases((Case("q_proj", 0.3), Case(None, 0.9)))
    with pytest.raises(InvalidOption, match=r"with probabilities from 0\.75 to 1\.05"):
        composing.plan(inputs, Options(method="della", parameters={"density": cases}))
    weights: dict[int, Any] = {1: Cases((Case("v_proj", -2.0),))}
    with pytest.raises(InvalidOption, match="add up to 0 and cannot be normalized"):
        settings: dict[str, Any] = {"density": cases, "normalize": True}
        composing.plan(inputs, Options(method="breadcrumbs", parameters=settings, weights=weights))
    adapter, _ = composed(inputs, method="nuslerp", weights={1: Cases((Case("v_proj", 6.0),))})
    both = [deltas(each.adapter) for each in inputs]
    expected = {
        module: oracles.nuslerp([each[module] for each in both], [2.0, weight], asked, 0)
        for module, weight in ((Q, 1.0), (V, 6.0))
        for asked in [method("nuslerp").settings({})]
    }
    assert_close(deltas(adapter), expected, 1e-5)


def test_filters_are_compared_with_weights_and_must_fit_something(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 2.0), given(lora(tmp_path / "b", 2), 1.0)]
    cases = Cases((Case("q_proj.weight", 1), Case("k_proj", 9), Case("*.q_proj", 9), Case("", 2)))
    weights: dict[int, Any] = {1: Cases((Case("q_porj", 2.0), Case("v_proj", 3.0)))}
    assert cases.of("", 0) == 2  # of no module in particular
    _, report = composed(inputs, weights=weights, rank=cases)
    assert {one.module: one.rank for one in report.modules} == {Q: 1, V: 2}
    assert [note for note in report.notes if "filter" in note] == [
        'no module fits the filter "k_proj"',
        'no module fits the filter "q_porj"',
    ]


def test_what_becomes_infinite_is_refused(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 1e39), given(lora(tmp_path / "b", 2), 1e39)]
    for name in DENSE:
        if name == "nuslerp" or "normalize" in method(name).settings({}):
            continue
        with pytest.raises(NotMergeable, match=r"q_proj: a delta .* becomes infinite or NaN"):
            composed(inputs, method=name)


@pytest.mark.parametrize("name", DENSE)
def test_factors_whose_product_is_infinite(name: str, tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1)
    file = path / "adapter_model.safetensors"
    huge = {key: tensor * np.float32(1e25) for key, tensor in load_file(file).items()}
    save_file(huge, file, {"format": "pt"})
    with pytest.raises(NotMergeable, match=r"q_proj: a delta .* becomes infinite or NaN"):
        composed([given(path), given(lora(tmp_path / "b", 2))], method=name)
