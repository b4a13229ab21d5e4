"""What holds for every method of the table, or does not, by its definition."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import Q, assert_close, composed, deltas, dense, given, lora

from adapterhub.composing import Input
from adapterhub.composing.factored import Factors
from adapterhub.composing.methods.row import Delta, Given
from adapterhub.composing.methods.table import TABLE, method
from adapterhub.errors import InvalidOption

ON_LORAS = [name for name, row in TABLE.items() if row.kind != "tensors"]
SUMS = ("sum", "average", "task_arithmetic", "peft_cat")
FEW = {"density": 0.5, "select_topk": 0.5, "epsilon": 0.2, "t": 0.3}
ALL = {"density": 1.0, "select_topk": 1.0}
WHOLE = 8  # the rank of the matrices here: nothing is lost by a truncation to it
# A density of 1 is not theirs, or they take two.
TWO = ("sce", "slerp", "nuslerp")


def asked(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    known = {parameter.name for parameter in method(name).parameters}
    return {key: value for key, value in wanted.items() if key in known}


def result(name: str, inputs: Sequence[Input], wanted: dict[str, Any], **more: Any) -> Any:
    """Deltas at a rank that loses nothing; those that are exact stay as they are."""
    row = method(name)
    whole = row.kind == "dense" or row.largest_rank
    size = {"rank": WHOLE} if whole else {}
    options = {"method": name, "parameters": asked(name, wanted), **size, **more}
    return deltas(composed(list(inputs), **options)[0])


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [lora(tmp_path / "a", 1), lora(tmp_path / "b", 2, lora_alpha=9)]


def weighted(paths: Sequence[Path], *weights: float) -> list[Input]:
    return [given(path, weight) for path, weight in zip(paths, weights, strict=True)]


# --- one adapter is itself --------------------------------------------------------------------

# The one value that all singular values become is not A's own. KnOTS trims by default, even one.
NOT_ITSELF = ("iso_c",)


@pytest.mark.parametrize("name", [n for n in ON_LORAS if n not in (*TWO, *NOT_ITSELF)])
def test_one_adapter_is_itself(name: str, two: list[Path]) -> None:
    source = given(two[1])
    assert_close(result(name, [source], ALL), dense(source))
    if name in SUMS:
        found = composed([source], method=name)[0]
        for module, role, tensor in source.adapter.tensors():
            assert found.modules[module][role].read().tobytes() == tensor.read().tobytes()
        assert {m: d.tobytes() for m, d in deltas(found).items()} == {
            m: d.tobytes() for m, d in deltas(source.adapter).items()
        }


def test_one_adapter_whose_scale_no_alpha_gives(tmp_path: Path) -> None:
    """13/√3 is no number over 3 in fp64: B is scaled, and rounds."""
    source = given(lora(tmp_path / "a", 1, lora_alpha=13, use_rslora=True))
    found = composed([source])[0]
    assert found.config["lora_alpha"] == found.config["r"] == 3
    assert_close(deltas(found), dense(source), 2.0**-24)


@pytest.mark.parametrize("name", TWO)
def test_an_adapter_with_itself_is_itself(name: str, two: list[Path]) -> None:
    assert_close(result(name, weighted([two[0]] * 2, 1, 1), ALL), dense(given(two[0])))


@pytest.mark.parametrize("name", NOT_ITSELF)
def test_one_adapter_is_not_itself(name: str, two: list[Path]) -> None:
    found, wanted = result(name, [given(two[0])], ALL), dense(given(two[0]))
    assert all(np.linalg.norm(found[m] - wanted[m]) > 0.1 for m in wanted)
    assert all(  # but the sum of its singular values stays
        np.isclose(*(np.linalg.norm(d[m], "nuc") for d in (found, wanted))) for m in wanted
    )


# --- what is taken away -----------------------------------------------------------------------

# Elected signs: where the votes cancel out the sign is +, and who has it stays: |Δ|. (PEFT's votes
# have no weights, both agree, and their sum is 0.) nuslerp's weights give t alone, here ½, and the
# deltas are alike. An average has nothing to divide by. (slerp gives 0 at t = ½ alone.)
ELECTED = ("ties", "dare_ties", "della", "sce")
NOT_NOTHING = (*ELECTED, "nuslerp", "average")


@pytest.mark.parametrize("name", [n for n in ON_LORAS if n not in NOT_NOTHING])
def test_an_adapter_less_itself_is_nothing(name: str, two: list[Path]) -> None:
    found = result(name, weighted([two[0]] * 2, 1, -1), ALL)
    sizes = dense(given(two[0]))
    exact = method(name).function == "total"
    for module, delta in found.items():
        bound = 0 if exact else 1e-7 * np.linalg.norm(sizes[module])
        assert np.linalg.norm(delta) <= bound
    assert found.keys() == sizes.keys()


def test_an_average_of_nothing_is_refused(two: list[Path]) -> None:
    with pytest.raises(InvalidOption, match="add up to 0"):
        composed(weighted([two[0]] * 2, 1, -1), method="average")


@pytest.mark.parametrize("name", [*ELECTED, "nuslerp"])
def test_an_adapter_less_itself_by_elected_signs(name: str, two: list[Path]) -> None:
    sizes = dense(given(two[0]))
    wanted = sizes if name == "nuslerp" else {module: np.abs(d) for module, d in sizes.items()}
    assert_close(result(name, weighted([two[0]] * 2, 1, -1), ALL), wanted)


# --- order ------------------------------------------------------------------------------------

# Chance hangs on the seed and the place of an input, t is that of the second.
ORDERED = ("slerp", *(name for name in ON_LORAS if method(name).seeded))


@pytest.mark.parametrize("name", ON_LORAS)
def test_order_matters_where_chance_or_t_hangs_on_it(name: str, two: list[Path]) -> None:
    one, other = weighted(two, 0.7, 0.4)
    found, swapped = (result(name, pair, FEW, seed=5) for pair in ([one, other], [other, one]))
    if name not in ORDERED:
        assert_close(found, swapped, 3e-6)
        return
    assert any(np.linalg.norm(found[m] - swapped[m]) > 0.05 for m in found)
    calm = {**ALL, "t": 0.5}
    found, swapped = (result(name, pair, calm, seed=5) for pair in ([one, other], [other, one]))
    assert_close(found, swapped, 3e-6)


# --- scales -----------------------------------------------------------------------------------

# Their weights are shares of the whole.
SHARES = ("average", "ties", "della", "nuslerp")


@pytest.mark.parametrize("name", ON_LORAS)
def test_twice_the_weights(name: str, two: list[Path]) -> None:
    """Twice the result, or the same where they are shares."""
    once = result(name, weighted(two, 0.75, 0.5), FEW)
    twice = result(name, weighted(two, 1.5, 1.0), FEW)
    factor = 1.0 if name in SHARES else 2.0
    assert_close(twice, {module: factor * delta for module, delta in once.items()}, 3e-6)


@pytest.mark.parametrize("name", ON_LORAS)
def test_adapters_twice_as_large(name: str, tmp_path: Path) -> None:
    """lora_alpha twice: twice the result, of every method."""
    found = []
    for factor in (1, 2):
        paths = [
            lora(tmp_path / f"{factor}a", 1, lora_alpha=6 * factor),
            lora(tmp_path / f"{factor}b", 2, lora_alpha=9 * factor),
        ]
        found.append(result(name, weighted(paths, 0.75, 0.5), FEW))
    assert_close(found[1], {module: 2 * delta for module, delta in found[0].items()}, 3e-6)


@pytest.mark.parametrize(
    "name", [n for n in ON_LORAS if "lambda" in {p.name for p in method(n).parameters}]
)
def test_lambda_is_a_factor_of_the_result(name: str, two: list[Path]) -> None:
    inputs = weighted(two, 0.75, 0.5)
    found = result(name, inputs, {**FEW, "lambda": -3.0})
    once = result(name, inputs, FEW)
    assert_close(found, {module: -3 * delta for module, delta in once.items()}, 3e-6)


@pytest.mark.parametrize("name", ["sum", "average", "task_arithmetic", "peft_cat", "tsv", "iso_c"])
def test_an_adapter_of_weight_0_is_absent(name: str, two: list[Path]) -> None:
    found = result(name, weighted(two, 0.5, 0.0), {})
    assert_close(found, result(name, weighted(two[:1], 0.5), {}))


def test_a_sum_of_sums_is_the_sum(two: list[Path], tmp_path: Path) -> None:
    from adapterhub import composing
    from adapterhub.composing import Options

    third = lora(tmp_path / "c", 3, [Q], 5, r=5, use_rslora=True)
    plan = composing.plan(weighted(two, 0.7, -0.4), Options())
    composing.write(plan, composing.adapter_of(plan, composing.run(plan)), tmp_path / "ab")
    nested = composed(weighted([tmp_path / "ab", third], 2.0, 1.0))[0]
    flat = weighted([*two, third], 1.4, -0.8, 1.0)
    assert_close(deltas(nested), deltas(composed(flat)[0]))
    assert_close(deltas(nested), dense(*flat))


# --- the same bits everywhere -----------------------------------------------------------------

# Products, sums and choices of elements alone; all else decomposes.
EXACT = {"sum", "average", "task_arithmetic", "concat", "peft_linear", "peft_cat", "peft_ties"}
EXACT |= {"peft_dare_linear", "peft_dare_ties", "peft_magnitude_prune"}


@pytest.mark.parametrize("name", ON_LORAS)
def test_who_says_that_every_machine_makes_the_same(name: str, two: list[Path]) -> None:
    assert method(name).exact == (name in EXACT)
    for size, exact in (({}, name in EXACT), ({"rank": 1}, False), ({"energy": 0.9}, False)):
        _, report = composed(weighted(two, 1, 1), method=name, **size)
        assert report.reproducible is exact


# --- functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in TABLE if method(n).kind != "tensors"])
def test_a_method_names_its_paper_where_it_is_written_down(name: str) -> None:
    row = method(name)
    said = f"{importlib.import_module(row.apply.__module__).__doc__}{row.apply.__doc__}"
    assert row.paper is None or row.paper in said
    assert said.strip()


@pytest.mark.parametrize("name", [n for n in ON_LORAS if method(n).kind == "factors"])
def test_a_method_leaves_the_factors_as_they_are(name: str) -> None:
    dice = np.random.default_rng(1)
    terms = [
        Delta(n, 0.5 - n, 2.0, Factors(*(dice.standard_normal(s).astype("f") for s in shapes)))
        for n, shapes in enumerate([((5, 3), (3, 4))] * 2)
    ]
    before = [(t.factors.b.tobytes(), t.factors.a.tobytes()) for t in terms]
    row = method(name)
    given = Given((5, 4), row.settings(asked(name, FEW)), 7, 2, (0.5, -0.5), (0, 1))
    found = [row.apply(terms, given) for _ in range(2)]
    assert before == [(t.factors.b.tobytes(), t.factors.a.tobytes()) for t in terms]
    assert found[0].scale == found[1].scale
    for side in ("b", "a"):
        one, other = (getattr(made.factors, side) for made in found)
        assert np.array_equal(one, other)
