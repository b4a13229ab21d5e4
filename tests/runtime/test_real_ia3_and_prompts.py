"""Adapters of the papers' authors: t-few's (IA)³ of T0-3B, mt0's (IA)³, T5X prompts of T5-base.

Their values on tiny models of the same naming, cut down to the sizes of those; prompts as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapterhub as ah
from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.registry import Registry, inspection

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TINY = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 4,
    "num_heads": 4,
    "d_ff": 24,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
ENCODER = [[5, 9, 2, 30, 1], [7, 7, 41, 3, 1]]
DECODER = [[0, 11, 4], [0, 22, 6]]


def model_of(path: Path, config: str, name: str, seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, config)(**{**TINY, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4 + (parameter.dim() == 1))
    model.save_pretrained(path)
    return loaded(path, name)


def loaded(path: Path, name: str = "T5ForConditionalGeneration") -> Any:
    return getattr(transformers, name).from_pretrained(path).eval()


def output(model: Any) -> Any:
    with torch.no_grad():
        ids, starts = torch.tensor(ENCODER), torch.tensor(DECODER)
        return model(input_ids=ids, decoder_input_ids=starts).logits


def of_corpus(path: Path) -> Adapter:
    return inspection.require(formats.read(path, allow_pickle=True))


def cut(adapter: Adapter, suffix: str) -> dict[str, np.ndarray]:
    """The vectors of the first two blocks under the names that the file has for them."""
    found = {}
    for module, roles in adapter.modules.items():
        if int(module.split(".")[2]) < 2:
            size = TINY["d_ff"] if module.endswith("wi_1") else TINY["d_model"]
            found[f"{module}{suffix}"] = roles["ia3_l"].read()[:size].astype(np.float32)
    return found


def scaled(model: Any, vectors: Mapping[str, np.ndarray]) -> Any:
    """t-few's formula, in fp64: what these layers give, times l."""
    model = model.double()
    for module, vector in vectors.items():
        times = torch.from_numpy(vector.astype(np.float64).reshape(-1))

        def after(_: Any, __: Any, given: Any, times: Any = times) -> Any:
            return given * times

        model.get_submodule(module).register_forward_hook(after)
    return output(model)


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with ah.open(home) as opened:
        yield opened


def test_the_vectors_of_t0_on_a_tiny_t5(corpus: Path, registry: Registry, tmp_path: Path) -> None:
    source = corpus / "adapters" / "tfew-t03b-ia3"
    registry.add(source, name="t0", allow_pickle=True)
    shown = registry.show("t0")["manifest"]
    assert (shown["method"], shown["format"], shown["parameters"]) == ("ia3", "tfew", 540_672)
    assert shown["base"]["name"] == "bigscience/T0_3B"
    assert "encoder.block.*.layer.*.SelfAttention.k" in registry.inspect("t0").targets
    whole = of_corpus(source)
    assert len(list(whole.tensors())) == 192

    vectors = cut(whole, ".multi_lora_b")
    assert len(vectors) == 2 * 3 + 2 * 5
    (tmp_path / "ia3").mkdir()
    torch.save(
        {name: torch.from_numpy(vector) for name, vector in vectors.items()},
        tmp_path / "ia3" / "finish.pt",
    )
    model = model_of(tmp_path / "base", "T5Config", "T5ForConditionalGeneration")
    bare = output(model)
    registry.add(tmp_path / "ia3", name="tiny", base=tmp_path / "base", allow_pickle=True)
    with ah.attach(model, "tiny", registry=registry):
        attached = output(model)
    assert torch.equal(output(model), bare)
    ah.merge(tmp_path / "base", ["tiny"], out=tmp_path / "merged", registry=registry)
    assert torch.equal(output(loaded(tmp_path / "merged")), attached)
    by_module = {name.removesuffix(".multi_lora_b"): v for name, v in vectors.items()}
    expected = scaled(loaded(tmp_path / "base"), by_module)
    np.testing.assert_allclose(attached.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert float((attached - bare).abs().max()) > 1e-3


def test_the_vectors_of_mt0_on_a_tiny_mt5(corpus: Path, registry: Registry, tmp_path: Path) -> None:
    source = corpus / "adapters" / "mt0-large-ia3-bin"
    registry.add(source, name="mt0", allow_pickle=True)
    shown = registry.show("mt0")["manifest"]
    assert (shown["method"], shown["format"]) == ("ia3", "peft")
    assert shown["base"]["name"] == "bigscience/mt0-large"

    tiny = tmp_path / "ia3"
    tiny.mkdir()
    vectors = cut(of_corpus(source), ".ia3_l")
    assert len(vectors) == 16
    shutil.copyfile(source / "adapter_config.json", tiny / "adapter_config.json")
    torch.save(
        {f"base_model.model.{name}": torch.from_numpy(v) for name, v in vectors.items()},
        tiny / "adapter_model.bin",
    )
    model = model_of(tmp_path / "base", "MT5Config", "MT5ForConditionalGeneration")
    bare = output(model)
    registry.add(tiny, name="tiny", base=tmp_path / "base", allow_pickle=True)
    with ah.attach(model, "tiny", registry=registry):
        attached = output(model)
    assert torch.equal(output(model), bare)
    ah.merge(tmp_path / "base", ["tiny"], out=tmp_path / "merged", registry=registry)
    merged = loaded(tmp_path / "merged", "MT5ForConditionalGeneration")
    assert torch.equal(output(merged), attached)
    base = loaded(tmp_path / "base", "MT5ForConditionalGeneration")
    expected = output(peft.PeftModel.from_pretrained(base, tiny).eval())
    np.testing.assert_allclose(attached.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert float((attached - bare).abs().max()) > 1e-3


@pytest.mark.parametrize("task", ["mrpc", "sst2"])
def test_the_encoder_sees_the_hundred_vectors(
    corpus: Path, registry: Registry, tmp_path: Path, task: str
) -> None:
    source = corpus / "adapters" / "google-prompts-t5-base-npy" / f"{task}.npy"
    registry.add(source)
    shown = registry.show(task)["manifest"]
    assert (shown["method"], shown["format"]) == ("prompt_tuning", "t5x_prompt")
    assert shown["parameters"] == 100 * 768
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 32, "num_heads": 2}
    model = model_of(tmp_path / "base", "T5Config", "T5ForConditionalGeneration", **sizes)
    bare = output(model)
    with ah.attach(model, task, registry=registry):
        attached = output(model)
        seen: list[int] = []
        watch = model.encoder.block[0].register_forward_pre_hook(
            lambda _, given: seen.append(given[0].shape[1])
        )
        output(model)
        watch.remove()
    assert seen == [100 + len(ENCODER[0])]
    assert torch.equal(output(model), bare)

    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": 100,
        "token_dim": 768,
        "num_transformer_submodules": 1,
        "num_attention_heads": 2,
        "num_layers": 2,
        "inference_mode": True,
    }
    there = tmp_path / "peft"
    there.mkdir()
    (there / "adapter_config.json").write_text(json.dumps(config))
    prompt = {"prompt_embeddings": torch.from_numpy(np.load(source))}
    torch.save(prompt, there / "adapter_model.bin")
    expected = output(peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), there).eval())
    np.testing.assert_allclose(attached.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert float((attached - bare).abs().max()) > 1e-3


def test_the_prompts_are_kept_as_they_are(corpus: Path, registry: Registry, tmp_path: Path) -> None:
    source = corpus / "adapters" / "google-prompts-t5-base-npy" / "mrpc.npy"
    registry.add(source)
    registry.export("mrpc", tmp_path / "out")
    assert (tmp_path / "out" / "mrpc.npy").read_bytes() == source.read_bytes()
