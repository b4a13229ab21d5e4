"""Bottlenecks and their kin on live models, against what the library `adapters` 1.3 gave out.

`tools/make_adapter_goldens.py` made the files of tests/golden/adapters.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.runtime.hooks import Hooks, hooked, install

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "adapters"
CASES = sorted(
    f"{case.parent.name}/{case.name}"
    for case in GOLDEN.glob("*/*")
    if case.is_dir() and case.name != "base"
)
CLASSES = {
    "bert_lm": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
    "qwen2_lm": "AutoModelForCausalLM",
}


def model_of(architecture: str, attention: str = "eager") -> Any:
    auto = getattr(transformers, CLASSES.get(architecture, "AutoModel"))
    path = GOLDEN / architecture / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return auto.from_pretrained(path, attn_implementation=attention).eval()


def adapter_of(case: str) -> Adapter:
    reading = formats.read(GOLDEN / case)
    assert reading.adapter is not None, reading.problems
    return reading.adapter


def output_of(model: Any, architecture: str) -> Any:
    expected = load_file(GOLDEN / architecture / "expected.safetensors")
    inputs = {k.removeprefix("in."): v for k, v in expected.items() if k.startswith("in.")}
    with torch.no_grad():
        return model(**inputs)[0]


def expected_of(case: str) -> Any:
    architecture, name = case.split("/")
    return load_file(GOLDEN / architecture / "expected.safetensors")[f"out.{name}"]


def planned(model: Any, adapter: Adapter) -> Hooks:
    way = hooked(adapter.method)
    assert way is not None, adapter.method
    return way.plan(model, adapter, 1.0)


def distance(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_live_model_gives_what_the_library_gave(case: str) -> None:
    architecture = case.split("/")[0]
    model = model_of(architecture)
    before = output_of(model, architecture)
    assert distance(before, expected_of(f"{architecture}/base")) < 1e-5
    undo = install(model, planned(model, adapter_of(case)))
    found = output_of(model, architecture)
    undo()
    assert distance(found, expected_of(case)) < 1e-5
    assert torch.equal(output_of(model, architecture), before)
