"""Merges of real transformers models, against PEFT's own forward pass and two references."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import QUICK, RARE
from building import opened, read_adapter
from peft_models import EOS, MODELS, WIDER, Model

from adapterhub import merging as merge
from adapterhub.merging import Options, Source
from adapterhub.merging.work import Slab
from adapterhub.methods import LowRank, method

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SLOW = [pytest.param(model, marks=pytest.mark.slow) for model in (*WIDER, *RARE)]
ALL = [*MODELS, *QUICK, *SLOW]


@dataclass(frozen=True)
class Case:
    model: Model
    base: Path
    adapter: Path
    live: Any


def make(model: Model, path: Path) -> Case:
    """Save a base, put a random adapter on it as PEFT does, and save that too."""
    torch.manual_seed(len(model.id))
    labels = {"num_labels": model.labels} if model.labels else {}
    base_class = getattr(transformers, model.saved)
    config = getattr(transformers, model.config)(**{"tie_word_embeddings": False, **model.fields})
    dtype = getattr(torch, model.dtype)
    base = base_class(config).to(dtype).eval()
    randomise(base)
    shards = {"max_shard_size": model.shard} if model.shard else {}
    base.save_pretrained(path / "base", save_original_format=not model.fused_files, **shards)
    if model.says:
        config_file = path / "base" / "config.json"
        config_file.write_text(config_file.read_text().replace(model.saved, model.says))
    trained_class = getattr(transformers, model.trained)
    live = trained_class.from_pretrained(
        path / "base", dtype=dtype, ignore_mismatched_sizes=True, **labels
    ).eval()
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **model.lora}
    live = peft.get_peft_model(live, peft.LoraConfig(**settings)).eval()
    randomise(live, only_trained=True)
    live.save_pretrained(path / "adapter")
    return Case(model, path / "base", path / "adapter", live)


def randomise(model: Any, *, only_trained: bool = False) -> None:
    """Biases and norms too, which are zeros and ones when new."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not only_trained:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def merged(case: Case, out: Path) -> Any:
    plan = merge.plan(opened(case.base), [Source("it", read_adapter(case.adapter))], Options())
    return merge.run(plan, out)


def inputs(model: Any) -> dict[str, Any]:
    """Something that the model reads, whatever it reads."""
    reads = set(inspect.signature(model.forward).parameters)
    shapes = {
        "input_features": (2, 8, 16),
        "pixel_values": (2, 4, 3, 8, 8) if model.config.model_type == "videomae" else (2, 3, 8, 8),
    }
    found = {name: torch.rand(*shape) for name, shape in shapes.items() if name in reads}
    ids = torch.randint(2, 24, (2, 7))
    ids[:, -1] = EOS
    if "input_ids" in reads:
        found |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type in ("t5", "whisper") and "decoder_input_ids" in reads:
        found["decoder_input_ids"] = ids.flip(1)
    return found


def output(model: Any, given: dict[str, Any]) -> Any:
    """Logits, or what stands in their place."""
    found = model(**given)
    names = ("logits", "logits_per_image", "pooler_output")
    return next(found[name] for name in names if found.get(name) is not None)


def load(case: Case, out: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """Load the result as a user would; nothing missing, nothing left over, no warning."""
    caplog.clear()
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            model, info = getattr(transformers, case.model.trained).from_pretrained(
                out, output_loading_info=True
            )
    finally:
        transformers.utils.logging.disable_propagation()
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert [record.getMessage() for record in caplog.records] == []
    return model.eval()


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore:The following .* keys did not"
)
@pytest.mark.parametrize("model", ALL, ids=lambda model: model.id)
def test_the_result_computes_what_peft_computes(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = make(model, tmp_path)
    report = merged(case, tmp_path / "out")
    assert report.model_class == (model.trained if model.known else None)
    loaded = load(case, tmp_path / "out", caplog)
    assert loaded.dtype == getattr(torch, model.dtype)
    if model.labels:
        assert loaded.config.num_labels == model.labels
    with torch.no_grad():
        given = inputs(loaded)
        got, want = output(loaded, given), output(case.live, given)
    assert want.abs().max() > 0.01
    tolerance = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[model.dtype]
    assert (got - want).abs().max() <= tolerance
    check_weights(case, tmp_path / "out")


def check_weights(case: Case, out: Path) -> None:
    """Every matrix that changed, against fp64 rounded once; one of them against the contract."""
    base, result = opened(case.base), opened(out)
    adapter = read_adapter(case.adapter)
    works = merge.plan(base, [Source("it", adapter)]).works
    found = [(work, slab) for work in works.values() for slab in work.slabs if len(slab.shape) > 1]
    parts = method("lora").implementation.meaning(adapter)
    keys = {slab.terms[0].key.partition("[")[0] for _, slab in found}
    assert len(keys) == sum(isinstance(part, LowRank) for part in parts)
    for number, (work, slab) in enumerate(found):
        weight = matrix(work.value.read(), slab)
        got = matrix(result.tensors[work.name].read(), slab)
        (term,) = slab.terms
        a, b = flat(term.a.read()), flat(term.b.read())
        if slab.magnitude is not None:
            assert_close_to_dora(got, weight, a, b, term.scale, slab.magnitude.read())
            continue
        want = weight.astype(np.float64) + float(term.scale) * wide(b, a)
        assert_within_one_ulp(got, want, bound(weight, a, b, term.scale))
        if number == 0:
            assert_contract(got, weight, a, b, term.scale)


def matrix(array: np.ndarray, slab: Slab) -> np.ndarray:
    """The formula's (out, in) of a slab of a tensor."""
    out, into = slab.shape
    elements = array.reshape(-1)[slab.first : slab.first + slab.size]
    return elements.reshape(into, out).T if slab.transposed else elements.reshape(out, into)


def wide(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    return b.astype(np.float64) @ a.astype(np.float64)


def assert_close_to_dora(
    got: np.ndarray,
    weight: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    scale: np.float32,
    magnitude: np.ndarray,
) -> None:
    direction = weight.astype(np.float64) + float(scale) * wide(b, a)
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    want = magnitude.reshape(-1, 1) * direction / length
    assert_within_one_ulp(
        got, want, 8 * bound(weight, a, b, scale) * magnitude.max() / length.min()
    )


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[0], -1)


def bound(weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: np.float32) -> np.ndarray:
    """Error of fp32 accumulation: (rank + 2) roundings of terms of this size."""
    size = np.abs(float(scale)) * wide(np.abs(b), np.abs(a))
    return (a.shape[0] + 2) * 2.0**-24 * (size + np.abs(weight))


def assert_within_one_ulp(got: np.ndarray, want: np.ndarray, slack: np.ndarray) -> None:
    """Half a unit of the stored dtype for the one rounding, plus fp32's own error before it."""
    digits = {"float32": 23, "float16": 10, "bfloat16": 7}[got.dtype.name]
    unit = 2.0 ** (np.floor(np.log2(np.abs(want) + 1e-30)) - digits)
    assert (np.abs(got.astype(np.float64) - want) <= 0.5 * unit + slack).all()


def assert_contract(
    got: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: np.float32
) -> None:
    """Bit for bit, on a sample of rows and columns, by loops over libm's fma."""
    import oracle

    from adapterhub.kernels import Factor

    rows, columns = slice(0, None, 5), slice(0, None, 3)
    factor = Factor(
        a=np.ascontiguousarray(a[:, columns], np.float32),
        b=np.ascontiguousarray(b[rows], np.float32),
        scale=scale,
    )
    want = oracle.merge(weight[rows, columns], [factor])
    sample = np.ascontiguousarray(got[rows, columns])
    np.testing.assert_array_equal(sample.view(bits(got)), want.view(bits(got)))


def bits(array: np.ndarray) -> np.dtype[Any]:
    return np.dtype({2: np.uint16, 4: np.uint32}[array.itemsize])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_demos_case_is_renamed_trimmed_and_labelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = make(MODELS[0], tmp_path)
    adapter = replace(read_adapter(case.adapter), labels=("O", "SRC", "REL", "TGT"))
    plan = merge.plan(opened(case.base), [Source("ner", adapter)])
    report = merge.run(plan, tmp_path / "out")
    assert report.left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    names = set(opened(tmp_path / "out").tensors)
    assert {name.partition(".")[0] for name in names} == {"bert", "classifier"}
    loaded = load(case, tmp_path / "out", caplog)
    assert loaded.config.id2label == {0: "O", 1: "SRC", 2: "REL", 3: "TGT"}
    assert loaded.config.label2id == {"O": 0, "SRC": 1, "REL": 2, "TGT": 3}
    auto = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert type(auto).__name__ == "BertForTokenClassification"
