"""What adapters save whole (heads, biases, rows of tokens): never silently one of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import assert_close, composed, deltas, dense, given, lora
from safetensors.numpy import load_file, save_file

import adapterhub as ah
from adapterhub.adapter import Adapter
from adapterhub.composing import Input
from adapterhub.composing.cases import Case, Cases
from adapterhub.errors import AdapterHubError, InvalidOption, NotMergeable

pytestmark = pytest.mark.usefixtures("home")
HEAD, NORM = "score", "model.norm"
TOKENS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def head(seed: int, rows: int = 3) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)


def headed(path: Path, seed: int, rows: int = 3, **fields: Any) -> Path:
    """A LoRA with a head, and a norm that only odd seeds have trained."""
    lora(path, seed, modules_to_save=[HEAD], **{"task_type": "SEQ_CLS", **fields})
    more = {f"base_model.model.{HEAD}.weight": head(seed, rows)}
    if seed % 2:
        more[f"base_model.model.{NORM}.weight"] = head(seed + 50)[0]
    added(path, more)
    return path


def added(path: Path, more: dict[str, Any]) -> None:
    file = path / "adapter_model.safetensors"
    save_file({**load_file(file), **more}, file, {"format": "pt"})


def whole(adapter: Adapter, module: str = HEAD) -> Any:
    return adapter.modules[module]["replace:weight"].read()


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [headed(tmp_path / "a", 1), headed(tmp_path / "b", 2)]


@pytest.mark.parametrize("method", ["sum", "average", "ties", "tsv", "peft_cat"])
def test_heads_that_differ_are_refused_before_any_work(method: str, two: list[Path]) -> None:
    with pytest.raises(NotMergeable, match="saved whole differ") as error:
        composed([given(path) for path in two], method=method)
    assert error.value.details == ("score.weight: a, b",)
    assert "--whole average" in error.value.remedy and "--whole NAME" in error.value.remedy


@pytest.mark.parametrize("method", ["sum", "average"])
def test_their_average_is_by_the_weights(method: str, two: list[Path]) -> None:
    inputs = [given(two[0], 3.0), given(two[1], 1.0)]
    adapter, report = composed(inputs, method=method, whole="average")
    expected = 0.75 * head(1).astype(np.float64) + 0.25 * head(2)
    assert np.array_equal(whole(adapter), expected.astype(np.float32))
    assert (whole(adapter, NORM) == head(51)[0]).all()  # a alone has it
    assert report.reproducible and adapter.config["modules_to_save"] == [HEAD]
    assert adapter.task == "SEQ_CLS"


@pytest.mark.parametrize("number", [0, 1])
def test_or_those_of_one_are_taken(number: int, two: list[Path]) -> None:
    inputs = [given(path, 0.5) for path in two]
    adapter, _ = composed(inputs, whole=number)
    assert (whole(adapter) == head(number + 1)).all()
    assert (whole(adapter, NORM) == head(51)[0]).all()
    assert_close(deltas(adapter), dense(*inputs))


def test_one_holder_and_equal_ones_need_no_decision(tmp_path: Path, two: list[Path]) -> None:
    plain = given(lora(tmp_path / "plain", 7))
    for inputs in ([plain, given(two[1], 0.1)], [given(two[1], 0.3), given(two[1], 0.7)]):
        adapter, _ = composed(inputs)
        assert (whole(adapter) == head(2)).all()  # whole, whatever its weight


def test_by_name_in_a_verb(tmp_path: Path, two: list[Path]) -> None:
    specs: Any = [(path, 1.0) for path in two]
    ah.compose(specs, whole=str(two[1]), out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert (found[f"base_model.model.{HEAD}.weight"] == head(2)).all()
    lineage = json.loads((tmp_path / "out" / "adapterhub.json").read_text())["lineage"]
    assert lineage["parameters"]["whole"] == 1
    with pytest.raises(InvalidOption, match="which none of the adapters are"):
        ah.compose(specs, whole="c", out=tmp_path / "no")
    with pytest.raises(InvalidOption, match="which several of the adapters are"):
        ah.compose([two[0], two[0]], whole=str(two[0]), out=tmp_path / "no")


def test_what_has_no_average(tmp_path: Path, two: list[Path]) -> None:
    inputs = [given(two[0], 1.0), given(two[1], -1.0)]
    with pytest.raises(NotMergeable, match=r"score\.weight.* weights add up to 0"):
        composed(inputs, whole="average")
    wide = given(headed(tmp_path / "wide", 4, rows=5))
    with pytest.raises(NotMergeable, match="differ in shape or tokens"):
        composed([inputs[0], wide], whole="average")


def labelled(source: Input, labels: tuple[str, ...], task: str = "SEQ_CLS") -> Input:
    from dataclasses import replace

    return replace(source, adapter=replace(source.adapter, labels=labels, task=task))


def test_heads_of_other_labels_or_tasks_are_chosen_not_mixed(two: list[Path]) -> None:
    inputs = [labelled(given(two[0]), ("x", "y", "z")), labelled(given(two[1]), ("z", "y", "x"))]
    other = [inputs[0], labelled(given(two[1]), ("x", "y", "z"), "TOKEN_CLS")]
    for pair in (inputs, other):
        with pytest.raises(NotMergeable, match="different tasks or labels"):
            composed(pair, whole="average")
    for number, pair in ((0, inputs), (1, inputs), (1, other)):
        adapter, _ = composed(pair, whole=number)
        assert (adapter.task, adapter.labels) == (
            pair[number].adapter.task,
            pair[number].adapter.labels,
        )


def rows(path: Path, seed: int, tokens: list[int]) -> Path:
    lora(path, seed, trainable_token_indices={"embed_tokens": tokens})
    added(path, {TOKENS: head(seed, len(tokens))})
    return path


def test_rows_of_tokens(tmp_path: Path) -> None:
    a, b = given(rows(tmp_path / "a", 1, [2, 5])), given(rows(tmp_path / "b", 2, [2, 5]), 3.0)
    with pytest.raises(NotMergeable, match="saved whole differ") as error:
        composed([a, b])
    assert "embed_tokens" in error.value.details[0]
    adapter, _ = composed([a, b], whole="average")
    (roles,) = [r for m, r in adapter.modules.items() if m.endswith("embed_tokens")]
    (found,) = [tensor.read() for tensor in roles.values()]
    assert np.allclose(found, 0.25 * head(1, 2) + 0.75 * head(2, 2), atol=1e-7)
    (tokens,) = adapter.config["trainable_token_indices"].values()
    assert tokens == [2, 5]
    other = given(rows(tmp_path / "c", 3, [2, 6]))
    with pytest.raises(NotMergeable, match="differ in shape or tokens"):
        composed([a, other], whole="average")
    alike = rows(tmp_path / "d", 1, [2, 6])  # the same values, for other tokens
    with pytest.raises(NotMergeable, match="saved whole differ"):
        composed([a, given(alike)])
    chosen, _ = composed([a, other], whole=1)
    assert list(chosen.config["trainable_token_indices"].values()) == [[2, 6]]


def test_weights_that_hang_on_the_module_leave_heads_to_the_usual_ones(two: list[Path]) -> None:
    weights = {1: Cases((Case("q_proj", 5.0),))}
    inputs = [given(two[0], 3.0), given(two[1], 1.0)]
    adapter, _ = composed(inputs, whole="average", weights=weights)
    expected = 0.75 * head(1).astype(np.float64) + 0.25 * head(2)
    assert np.array_equal(whole(adapter), expected.astype(np.float32))


def test_what_diverged_is_refused(tmp_path: Path, two: list[Path]) -> None:
    broken = head(9)
    broken[1, 2] = np.inf
    added(two[1], {f"base_model.model.{HEAD}.weight": broken})
    for how in ("average", 1):
        with pytest.raises(AdapterHubError, match=r"NaN|infinit"):
            ah.compose(two, whole=how if how == "average" else str(two[1]), out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
