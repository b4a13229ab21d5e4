"""LoRA beside weights that bitsandbytes holds, against PEFT on the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

import torch
import transformers
from living import LLAMA, adapter_of, bits, model_of, output, randomise

from adapterhub import api
from adapterhub.errors import BaseMismatch, NotMergeable, NotSupported
from adapterhub.registry import Registry

WIDE = {**LLAMA, "hidden_size": 64, "intermediate_size": 64}
FIELDS = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "base"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE))
    randomise(model, 0, every=True)
    model.save_pretrained(path)
    return path


def quantised(base: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.BitsAndBytesConfig(
            llm_int8_skip_modules=["lm_head", "v_proj"], **options
        )
        return transformers.AutoModelForCausalLM.from_pretrained(
            base, quantization_config=config, dtype="float32", device_map="cpu"
        ).eval()


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return quantised(base, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture(scope="module")
def model8(base: Path) -> Any:
    """LLM.int8, which bitsandbytes computes on a CPU, too."""
    return quantised(base, load_in_8bit=True)


@pytest.fixture(params=["model", "model8"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_factors_go_beside(either: Any, registry: Registry, tmp_path: Path) -> None:
    model = either
    expected = adapter_of(model, "LoraConfig", tmp_path / "a", **FIELDS)
    before, answer = bits(model), output(model)
    with api.attach(model, tmp_path / "a", registry=registry) as attached:
        assert torch.allclose(output(model), expected, atol=1e-5)
        assert not torch.allclose(expected, answer, atol=1e-2)
        assert bits(model) == before
        assert {fate.fate for fate in attached.fates} == {"runs beside the weights"}
        assert len(attached.fates) == 2 * 2 * 2
        assert attached.memory == 4 * 4 * 4 * (64 + 64)  # two modules of two layers, A and B, fp32
        with pytest.raises(NotSupported, match="save_pretrained"):
            model.save_pretrained(tmp_path / "out")
    assert torch.equal(output(model), answer)


def test_weights_that_are_not_quantised_are_merged_into(
    either: Any, registry: Registry, tmp_path: Path
) -> None:
    model = either
    fields = {**FIELDS, "target_modules": ["q_proj", "v_proj"]}
    expected = adapter_of(model, "LoraConfig", tmp_path / "a", **fields)
    before, answer = bits(model), output(model)
    with api.attach(model, tmp_path / "a", weight=1, registry=registry):
        assert torch.allclose(output(model), expected, atol=1e-5)
        changed = {name for name, digest in bits(model).items() if digest != before[name]}
        assert changed == {f"model.layers.{n}.self_attn.v_proj.weight" for n in (0, 1)}
    assert bits(model) == before
    assert torch.equal(output(model), answer)


@pytest.mark.parametrize(
    ("config", "fields", "what"),
    [
        ("LoraConfig", {**FIELDS, "use_dora": True}, "a DoRA magnitude"),
        ("LoHaConfig", {"r": 2, "target_modules": ["q_proj"]}, "Delta"),
        ("GloraConfig", {"r": 2, "target_modules": ["q_proj"]}, "Transform"),
    ],
)
def test_what_needs_the_weight_is_refused(
    config: str, fields: dict[str, Any], what: str, either: Any, registry: Registry, tmp_path: Path
) -> None:
    model = either
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE))
    adapter_of(plain, config, tmp_path / "a", **fields)
    with pytest.raises(NotMergeable, match=f"is quantised by bitsandbytes, and {what}"):
        api.attach(model, tmp_path / "a", registry=registry)


def test_the_wrong_model_is_refused_with_the_list(
    model: Any, registry: Registry, tmp_path: Path
) -> None:
    adapter_of(model_of("llama"), "LoraConfig", tmp_path / "a", **FIELDS)
    with pytest.raises(BaseMismatch, match="4 mismatches") as caught:
        api.attach(model, tmp_path / "a", registry=registry)
    assert len(caught.value.details) == 4


def test_the_quantised_files_are_not_taken_for_the_base(
    either: Any, base: Path, registry: Registry, tmp_path: Path
) -> None:
    """Their weights_root is another, and the adapter goes onto them all the same."""
    expected = adapter_of(either, "LoraConfig", tmp_path / "a", **FIELDS)
    registry.add(tmp_path / "a", name="a", base=base)
    either.save_pretrained(tmp_path / "small")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", device_map="cpu", dtype="float32"
    ).eval()
    with api.attach(model, "a", registry=registry):
        assert torch.allclose(output(model), expected, atol=1e-5)


def test_load_model_onto_a_quantised_base(either: Any, registry: Registry, tmp_path: Path) -> None:
    model, kind = either, type(either.model.layers[0].self_attn.q_proj)
    expected = adapter_of(model, "LoraConfig", tmp_path / "a", task_type="CAUSAL_LM", **FIELDS)
    model.save_pretrained(tmp_path / "base4")
    loaded = api.load_model(tmp_path / "a", base=tmp_path / "base4", registry=registry)
    assert type(loaded.model.layers[0].self_attn.q_proj) is kind
    assert torch.allclose(output(loaded), expected, atol=1e-5)
    with pytest.raises(NotSupported, match="save_pretrained"):
        loaded.save_pretrained(tmp_path / "out")
