"""Sums and averages of LoRAs on their factors, against dense fp64 and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, Q, V, assert_close, composed, deltas, dense, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub import composing
from adapterhub.composing import Input, Options
from adapterhub.composing.cases import Case, Cases
from adapterhub.composing.factored import Factors, svd
from adapterhub.composing.methods.table import method as method_of
from adapterhub.errors import BaseMismatch, InvalidOption, NotMergeable
from adapterhub.formats import read
from adapterhub.methods import BiasDelta, method


@pytest.mark.parametrize("other", [{}, {"r": 5, "use_rslora": True}, {"lora_alpha": 1}])
def test_sum_is_the_sum_of_the_deltas(tmp_path: Path, other: dict[str, Any]) -> None:
    rank = other.pop("r", 3)
    inputs = [
        given(lora(tmp_path / "a", 1), 0.7),
        given(lora(tmp_path / "b", 2, [Q], rank, r=rank, **other), -0.3),
    ]
    adapter, report = composed(inputs)
    assert_close(deltas(adapter), dense(*inputs))
    assert report.reproducible and report.error is None
    ranks = {one.module: one.rank for one in report.modules}
    assert ranks == {Q: 3 + rank, V: 3}


def test_by_hand() -> None:
    from adapterhub.composing.factored import Factors
    from adapterhub.composing.methods.exact import total
    from adapterhub.composing.methods.row import Delta, Given

    one = Factors(np.array([[1], [2]], np.float32), np.array([[1, 0, 2]], np.float32))
    two = Factors(np.array([[0], [1]], np.float32), np.array([[3, 1, 0]], np.float32))
    made = total(
        [Delta(0, 2.0, 0.5, one), Delta(1, -1.0, 2.0, two)], Given((2, 3), {}, seed=0, inputs=2)
    )
    found = made.scale * made.factors.b @ made.factors.a
    assert found.tolist() == [[1, 0, 2], [-4, -2, 4]]


def test_one_adapter_with_weight_1_is_itself_to_the_bit(tmp_path: Path) -> None:
    source = given(lora(tmp_path / "a", 1))
    for name in ("sum", "average", "task_arithmetic"):
        adapter, _ = composed([source], method=name)
        for module, role, tensor in source.adapter.tensors():
            assert adapter.modules[module][role].read().tobytes() == tensor.read().tobytes()
        assert deltas(adapter)[Q].tobytes() == deltas(source.adapter)[Q].tobytes()


def test_what_is_taken_away_again_leaves_nothing(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    adapter, report = composed([given(a, 1), given(a, -1)])
    assert all(not delta.any() for delta in deltas(adapter).values())
    assert {one.rank for one in report.modules} == {1}
    adapter, report = composed([given(a, 0.5), given(b, 2), given(a, -0.5)])
    assert_close(deltas(adapter), dense(given(b, 2)))
    assert {one.rank for one in report.modules} == {3}


def test_an_average_divides_by_the_weights(tmp_path: Path) -> None:
    a, b = given(lora(tmp_path / "a", 1), 3.0), given(lora(tmp_path / "b", 2), 1.0)
    adapter, _ = composed([a, b], method="average")
    expected = {module: delta / 4 for module, delta in dense(a, b).items()}
    assert_close(deltas(adapter), expected)
    with pytest.raises(InvalidOption, match="add up to 0"):
        composed([a, given(tmp_path / "b", -3.0)], method="average")


def test_order_does_not_matter_for_the_delta(tmp_path: Path) -> None:
    a, b = given(lora(tmp_path / "a", 1), 0.7), given(lora(tmp_path / "b", 2), -0.3)
    assert_close(deltas(composed([a, b])[0]), deltas(composed([b, a])[0]))


@pytest.mark.parametrize(("rank", "energy"), [(2, None), (None, 0.8), (3, 0.99)])
def test_a_truncation_is_the_best_one_and_says_what_it_lost(
    tmp_path: Path, rank: int | None, energy: float | None
) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 0.7), given(lora(tmp_path / "b", 2), 0.4)]
    adapter, report = composed(inputs, rank=rank, energy=energy)
    assert not report.reproducible
    expected, lost, total = {}, 0.0, 0.0
    for module, delta in dense(*inputs).items():
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        shares = np.cumsum(s**2) / np.sum(s**2)
        kept = len(s) if rank is None else rank
        if energy is not None:
            kept = min(kept, int(np.searchsorted(shares, energy)) + 1)
        expected[module] = u[:, :kept] * s[:kept] @ vt[:kept]
        one = next(one for one in report.modules if one.module == module)
        assert one.rank == kept
        assert one.error == pytest.approx(np.sqrt(1 - shares[kept - 1]), abs=1e-6)
        lost, total = lost + np.sum(s[kept:] ** 2), total + np.sum(s**2)
    assert_close(deltas(adapter), expected)
    assert report.error == pytest.approx(np.sqrt(lost / total), abs=1e-6)


def test_what_is_written_is_read_again_with_its_lineage(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1), 0.5), given(lora(tmp_path / "b", 2, [Q]), 2.0)]
    plan = composing.plan(inputs, Options())
    adapter = composing.adapter_of(plan, composing.run(plan))
    composing.write(plan, adapter, tmp_path / "out")
    again = read(tmp_path / "out")
    assert again.fatal == () and again.adapter is not None
    assert_close(deltas(again.adapter), dense(*inputs))
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["lineage"]["operation"] == "compose"
    assert [each["weight"] for each in manifest["lineage"]["inputs"]] == [0.5, 2.0]
    assert manifest["lineage"]["parameters"]["reproducible"] is True
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 4


def lineage_of(tmp_path: Path, inputs: list[Input], options: Options) -> Any:
    plan = composing.plan(inputs, options)
    composing.write(plan, composing.adapter_of(plan, composing.run(plan)), tmp_path / "out")
    return json.loads((tmp_path / "out" / "adapterhub.json").read_text())["lineage"]


@pytest.mark.parametrize("order", ["abc", "cab"])
def test_a_lineage_has_inputs_in_order_method_parameters_and_seed(
    order: str, tmp_path: Path
) -> None:
    inputs = [given(lora(tmp_path / name, ord(name)), ord(name) / 64) for name in order]
    options = Options(
        "della", {"density": 0.4}, rank=2, seed=7, weights={1: Cases((Case("q_proj", 2.0),))}
    )
    told = lineage_of(tmp_path, inputs, options)
    assert [each["weights_root"] for each in told["inputs"]] == [each.root for each in inputs]
    assert [each["weight"] for each in told["inputs"]] == [each.weight for each in inputs]
    assert told["parameters"] == {
        "method": "della",
        "parameters": method_of("della").settings({"density": 0.4}),
        "rank": 2,
        "energy": None,
        "whole": "refuse",
        "force_base": False,
        "reproducible": False,
        "weights": {"1": [{"filter": "q_proj", "value": 2.0}]},
        "seed": 7,
    }


def test_a_seed_stands_where_it_decides(tmp_path: Path) -> None:
    told = lineage_of(tmp_path, [given(lora(tmp_path / "a", 1))], Options("ties", seed=7))
    assert "seed" not in told["parameters"] and told["parameters"]["reproducible"] is False


# --- refusals ---------------------------------------------------------------------------------


def test_bases_must_be_one(tmp_path: Path) -> None:
    a = given(lora(tmp_path / "a", 1))
    other = given(lora(tmp_path / "b", 2, base_model_name_or_path="owner/other"))
    nameless = given(lora(tmp_path / "c", 3, base_model_name_or_path=None))
    for wrong in (other, nameless):
        with pytest.raises(BaseMismatch, match="not known to be of one base"):
            composed([a, wrong])
        _, report = composed([a, wrong], force_base=True)
        assert any("forced" in note for note in report.notes)
    _, report = composed([a, given(lora(tmp_path / "d", 4))])
    assert report.notes == ["of one base by its name only: owner/base"]


def test_mirrors_of_a_base_are_that_base(tmp_path: Path) -> None:
    first = given(lora(tmp_path / "a", 1, base_model_name_or_path="huggyllama/llama-7b"))
    mirror = given(lora(tmp_path / "b", 2, base_model_name_or_path="decapoda-research/llama-7b-hf"))
    _, report = composed([first, mirror])
    assert report.notes == ["of one base by its name only: huggyllama/llama-7b"]
    larger = given(lora(tmp_path / "c", 3, base_model_name_or_path="huggyllama/llama-13b"))
    with pytest.raises(BaseMismatch):
        composed([first, larger])


def test_shapes_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = given(lora(tmp_path / "a", 1))
    monkeypatch.setitem(SIZES, Q, (12, 10))
    with pytest.raises(BaseMismatch, match="1 of their modules differ in shape") as error:
        composed([a, given(lora(tmp_path / "b", 2))])
    assert error.value.details == (f"{Q}: [12, 8] in a, [12, 10] in b",)


def test_unknown_methods_and_parameters(tmp_path: Path) -> None:
    a = given(lora(tmp_path / "a", 1))
    with pytest.raises(InvalidOption, match="no method 'averge'") as error:
        composed([a], method="averge")
    assert "did you mean average" in error.value.remedy
    with pytest.raises(InvalidOption, match="no method 'linear'") as error:
        composed([a], method="linear")
    assert error.value.remedy.startswith("average is mergekit's linear, peft_linear PEFT's")
    with pytest.raises(InvalidOption, match="sum has no parameter 'density'"):
        composed([a], parameters={"density": 0.5})
    with pytest.raises(InvalidOption, match="finite"):
        given(tmp_path / "a", float("nan"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"energy": 0.0}, r"energy 0\.0"),
        ({"energy": 1.01}, r"energy 1\.01"),
        ({"energy": float("nan")}, "energy nan"),
        ({"energy": Cases((Case("q_proj", 2.0),))}, r"energy 2\.0"),
        ({"rank": 0}, "rank 0"),
        ({"rank": True}, "rank True"),
        ({"rank": 2.0}, r"rank 2\.0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 64}, "seed 18446744073709551616"),
        ({"weights": {0: Cases((Case(None, float("inf")),))}}, "weight of adapter 1 is inf"),
    ],
)
def test_options_out_of_range_are_no_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        Options(**options)


def test_what_is_no_plain_lora_is_said_of_whom(tmp_path: Path) -> None:
    plain = given(lora(tmp_path / "plain", 1))
    wrong: list[dict[str, Any]] = [
        {"init_lora_weights": "pissa"},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 2]]},
    ]
    for number, fields in enumerate(wrong):
        odd = given(lora(tmp_path / f"odd{number}", 2, **fields))
        with pytest.raises(NotMergeable, match=f"^odd{number}: ") as error:
            composed([plain, odd])
        assert error.value.remedy


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1)
    tensors = load_file(path / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(NotMergeable, match="NaN or infinite"):
        composed([given(path)])


def test_biases_of_lora_b_are_added_too(tmp_path: Path) -> None:
    paths = [
        lora(tmp_path / name, seed, [Q], lora_bias=True) for name, seed in (("a", 1), ("b", 2))
    ]
    values = []
    for path in paths:
        file = path / "adapter_model.safetensors"
        bias = np.random.default_rng(len(values)).standard_normal(12).astype(np.float32)
        save_file(
            {**load_file(file), f"base_model.model.{Q}.lora_B.bias": bias}, file, {"format": "pt"}
        )
        values.append(bias.astype(np.float64))
    inputs = [given(paths[0], 0.5), given(paths[1], -2.0), given(paths[0], 0.25)]
    adapter, _ = composed(inputs)
    assert adapter.config["lora_bias"] is True
    (part,) = [
        p for p in method("lora").implementation.meaning(adapter) if isinstance(p, BiasDelta)
    ]
    found = part.scale * np.asarray(part.value.read(), np.float64)
    assert np.allclose(found, 2 * (0.75 * values[0] - 2 * values[1]), atol=1e-6)


def test_cases_hang_on_the_module(tmp_path: Path) -> None:
    a, b = given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))
    weights = {1: Cases((Case("v_proj", 0.0), Case("model.layers.?.*.q_proj", -2.0)))}
    rank = Cases((Case("q_proj", 2),))
    adapter, report = composed([a, b], weights=weights, rank=rank)
    assert_close({V: deltas(adapter)[V]}, {V: deltas(a.adapter)[V]})
    wanted = deltas(a.adapter)[Q] - 2 * deltas(b.adapter)[Q]
    u, s, vt = np.linalg.svd(wanted)
    assert_close({Q: deltas(adapter)[Q]}, {Q: u[:, :2] * s[:2] @ vt[:2]})
    assert {m.module: m.rank for m in report.modules} == {Q: 2, V: 3}
    assert not report.reproducible


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (7, 7), (40, 1)])
@pytest.mark.parametrize("spread", [0, 3, 9, 20])
def test_the_svd_of_factors_of_any_condition(shape: tuple[int, int], spread: int) -> None:
    """Columns from 1 to 10^-spread, some of them nearly alike, one of zeros."""
    dice = np.random.default_rng(spread)
    rank = min(shape) + 2
    b = dice.standard_normal((shape[0], rank)) * np.logspace(0, -spread, rank)
    b[:, -1] = b[:, 0] * (1 + 1e-9)
    a = dice.standard_normal((rank, shape[1]))
    a[rank // 2] = 0
    found = svd(Factors(b, a))
    expected = np.linalg.svd(b @ a, compute_uv=False)
    assert np.allclose(found.s[: len(expected)], expected, rtol=0, atol=1e-9 * expected[0])
    assert np.linalg.norm(found.u * found.s @ found.vt - b @ a) <= 1e-9 * np.linalg.norm(b @ a)
    kept = found.s > 1e-9 * found.s[0]
    for basis in (found.u[:, kept], found.vt[kept].T):
        assert np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-9)


def test_biases_where_weights_do_not_decide(tmp_path: Path) -> None:
    inputs = []
    for name in "ab":
        path = lora(tmp_path / name, ord(name), [Q], lora_bias=True)
        file = path / "adapter_model.safetensors"
        bias = np.full(12, ord(name), np.float32)
        save_file(
            {**load_file(file), f"base_model.model.{Q}.lora_B.bias": bias}, file, {"format": "pt"}
        )
        inputs.append(given(path))
    for name in ("slerp", "nuslerp", "sce", "ties", "knots_ties", "knots_dare"):
        with pytest.raises(NotMergeable, match=f"{name} does not say what becomes of the biases"):
            composed(inputs, method=name)
    for cases in ((Case("q_proj", True), Case(None, False)), (Case("v_proj", False),)):
        with pytest.raises(NotMergeable, match="ties does not say what becomes of the biases"):
            composed(inputs, method="ties", parameters={"normalize": Cases(cases)})
    elsewhere = {"normalize": Cases((Case("v_proj", True), Case(None, False)))}
    composed(inputs, method="ties", parameters=elsewhere)
    adapter, _ = composed(inputs, method="ties", parameters={"normalize": False, "lambda": 0.5})
    (part,) = [
        p for p in method("lora").implementation.meaning(adapter) if isinstance(p, BiasDelta)
    ]
    assert np.allclose(part.scale * part.value.read(), 0.5 * 2 * (ord("a") + ord("b")))
