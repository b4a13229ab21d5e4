"""Files of the methods' authors, through the registry: FISH masks, AdaMix experts, state dicts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from living import adapter_of, bits, model_of, output

import adapterhub as ah
from adapterhub import formats
from adapterhub.errors import (
    BaseMismatch,
    InvalidAdapter,
    NotMergeable,
    NotSupported,
    PickleRefused,
    UnknownFormat,
)
from adapterhub.methods.adamix import averaged
from adapterhub.registry import Registry

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

WIDTH = 16


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with ah.open(home) as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model_of("tokens").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def loaded(path: Path) -> Any:
    return transformers.BertForTokenClassification.from_pretrained(path).eval()


# --- FISH mask --------------------------------------------------------------------------------


def fish(path: Path, base: Path, *, weights: str, masks: Mapping[str, float]) -> dict[str, Any]:
    """Weights that were trained where any of the masks is 1: the state dict, as it is saved."""
    path.mkdir()
    generator = torch.Generator().manual_seed(5)
    state = {name: tensor.clone() for name, tensor in loaded(base).state_dict().items()}
    for file, share in masks.items():
        mask = {}
        for name, tensor in state.items():
            chosen = torch.rand(tensor.shape, generator=generator) < share
            tensor += torch.randn(tensor.shape, generator=generator) * chosen
            mask[name] = chosen if file == "mask.bin" else chosen.float()
        torch.save(mask, path / file)
    torch.save(state, path / weights)
    return state


@pytest.mark.parametrize(
    ("weights", "masks"),
    [
        ("finish.pt", {"mask.bin": 0.1}),  # t-few
        ("pytorch_model.bin", {"mask_0.bin": 0.05, "mask_1.bin": 0.05}),  # FISH
    ],
)
def test_weights_and_a_mask_become_what_changed(
    registry: Registry, base: Path, tmp_path: Path, weights: str, masks: Mapping[str, float]
) -> None:
    path = tmp_path / "fish"
    trained = fish(path, base, weights=weights, masks=masks)
    (path / "config.json").write_text((base / "config.json").read_text())
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    added = registry.add(path, name="fish", base=base, allow_pickle=True)
    assert (added.method, added.base) == ("fishmask", "tiny")
    shown = registry.show("fish")
    assert shown["origin"] == {"path": str(path.resolve())}
    assert shown["card"]["licence"] == "mit"
    assert [entry["path"] for entry in shown["manifest"]["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = registry.add(path, name="fish", base=base, allow_pickle=True)
    assert (again.status, again.digest) == ("unchanged", added.digest)
    ah.merge(base, ["fish"], out=tmp_path / "merged", registry=registry)
    bare, merged = loaded(base).state_dict(), loaded(tmp_path / "merged").state_dict()
    for name, tensor in trained.items():
        np.testing.assert_allclose(merged[name].numpy(), tensor.numpy(), rtol=1e-6, atol=1e-7)
        same = tensor == bare[name]
        assert torch.equal(merged[name][same], bare[name][same])
    assert any(not torch.equal(merged[name], bare[name]) for name in bare)


def test_without_the_base_it_says_what_to_do(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    fish(tmp_path / "fish", base, weights="finish.pt", masks={"mask.bin": 0.1})
    with pytest.raises(InvalidAdapter, match="only beside the base") as said:
        registry.add(tmp_path / "fish", allow_pickle=True)
    assert "--base BASE" in said.value.remedy
    with pytest.raises(PickleRefused, match="is a pickle"):
        registry.add(tmp_path / "fish", base=base)
    (tmp_path / "fish" / "finish.pt").unlink()
    with pytest.raises(InvalidAdapter, match="a mask and no weights"):
        registry.add(tmp_path / "fish", base=base, allow_pickle=True)
    assert registry.store.names() == ()


def test_another_base_is_refused(registry: Registry, base: Path, tmp_path: Path) -> None:
    fish(tmp_path / "fish", base, weights="finish.pt", masks={"mask.bin": 0.1})
    model_of("tokens", seed=7).save_pretrained(tmp_path / "other")
    with pytest.raises(InvalidAdapter, match="places outside the mask"):
        registry.add(tmp_path / "fish", base=tmp_path / "other", allow_pickle=True)
    assert registry.store.names() == ()


def test_a_link_that_leads_out_is_refused(registry: Registry, base: Path, tmp_path: Path) -> None:
    fish(tmp_path / "fish", base, weights="finish.pt", masks={"mask.bin": 0.1})
    (tmp_path / "fish" / "finish.pt").rename(tmp_path / "private.pt")
    (tmp_path / "fish" / "finish.pt").symlink_to(tmp_path / "private.pt")
    with pytest.raises(InvalidAdapter, match="leads out of its directory"):
        registry.add(tmp_path / "fish", base=base, allow_pickle=True)


# --- AdaMix -----------------------------------------------------------------------------------


def soup(path: Path, *, head: bool = True, other: bool = False) -> dict[str, Any]:
    """As the published `pytorch_model_<task>_expert_soup.bin`: MoA_B has one expert for all."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        start = f"bert.encoder.layer.{layer}.output.ExpertSoup"
        for side, count, shape in (("MoA_A", 4, (4, WIDTH)), ("MoA_B", 1, (WIDTH, 4))):
            for k in range(count):
                shapes[f"{start}.{side}.deepspeed_experts.{k}.weight"] = shape
                shapes[f"{start}.{side}.deepspeed_experts.{k}.bias"] = shape[:1]
    shapes |= {"classifier.weight": (2, WIDTH), "classifier.bias": (2,)} if head else {}
    shapes |= {"bert.pooler.dense.weight": (WIDTH, WIDTH)} if other else {}
    state = {n: torch.randn(shape, generator=generator) / 3 for n, shape in shapes.items()}
    scores = {
        f"bert.encoder.layer.{n}.output.ExpertSoup.MoA_A.expert_score_weight": torch.zeros(4)
        for n in range(2)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **scores}, path)
    return state


def souped(model: Any, state: Mapping[str, Any]) -> Any:
    """The original's forward pass with averaged experts and its head, in fp64."""
    model = copy.deepcopy(model).double()
    model.classifier.weight.data = state["classifier.weight"].double()
    model.classifier.bias.data = state["classifier.bias"].double()
    for number, layer in enumerate(model.bert.encoder.layer):
        start = f"bert.encoder.layer.{number}.output.ExpertSoup"

        def mean(side: str, what: str, count: int, start: str = start) -> Any:
            found = [state[f"{start}.{side}.deepspeed_experts.{k}.{what}"] for k in range(count)]
            return torch.stack(found).double().mean(0)

        def after(_: Any, __: Any, given: Any, mean: Any = mean) -> Any:
            down = given @ mean("MoA_A", "weight", 4).T + mean("MoA_A", "bias", 4)
            up = torch.nn.functional.gelu(down) @ mean("MoA_B", "weight", 1).T
            return given + up + mean("MoA_B", "bias", 1)

        layer.output.dense.register_forward_hook(after)
    return output(model)


def test_the_published_experts_and_their_head(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mnli" / "pytorch_model_mnli_expert_soup.bin"
    state = soup(file)
    added = registry.add(file, name="soup", base=base, allow_pickle=True)
    assert (added.method, added.base) == ("adamix", "tiny")
    seen = registry.inspect("soup")
    assert (seen.format, seen.rank and seen.rank["max"]) == ("adamix", 4)
    registry.export("soup", tmp_path / "out")
    assert registry.add(tmp_path / "out", name="soup").status == "unchanged"

    model = loaded(base)
    before, bare = bits(model), output(model)
    expected = souped(model, state)
    with ah.attach(model, "soup", registry=registry):
        attached = output(model)
    assert bits(model) == before and torch.equal(output(model), bare)
    np.testing.assert_allclose(attached.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)

    (tmp_path / "one").mkdir()
    formats.write(averaged(registry.load("soup").adapter), tmp_path / "one", to="native")
    registry.add(tmp_path / "one", name="one", base=base)
    assert registry.show("one")["manifest"]["method"] == "bottleneck"
    with ah.attach(model, "one", registry=registry):
        assert torch.equal(output(model), attached)
    assert bits(model) == before
    with pytest.raises(NotMergeable, match="a nonlinearity within") as said:
        ah.merge(base, ["soup"], out=tmp_path / "merged", registry=registry)
    assert 'formats.write(methods.adamix.averaged(adapter), DIR, to="native")' in said.value.remedy


def test_experts_of_another_width_or_in_a_whole_model(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    soup(tmp_path / "soup.bin", other=True)
    with pytest.raises(InvalidAdapter, match="1 tensors are neither experts nor a head") as said:
        registry.add(tmp_path / "soup.bin", allow_pickle=True)
    assert "'ExpertSoup' in n" in said.value.remedy
    soup(tmp_path / "soup.bin", head=False)
    wide = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=24,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(BaseMismatch, match="1 mismatch"):
        registry.add(tmp_path / "soup.bin", base=tmp_path / "wide", allow_pickle=True)


def test_lora_pairs_of_adamix_are_named(registry: Registry, tmp_path: Path) -> None:
    pairs = {f"transformer.h.0.attn.c_attn.experts_lora_A.{k}": torch.ones(2, 8) for k in range(2)}
    torch.save(pairs, tmp_path / "pairs.pt")
    with pytest.raises(NotSupported, match="AdaMix's LoRA pairs are recognised and not") as said:
        registry.add(tmp_path / "pairs.pt", allow_pickle=True)
    assert said.value.remedy == "average A and B over the experts, as a LoRA of PEFT"


# --- refused, and why -------------------------------------------------------------------------


def test_said_and_ladders_of_their_authors_are_refused(registry: Registry, tmp_path: Path) -> None:
    said = {"intrinsic_parameter": torch.ones(5), "intrinsic_parameter_said": torch.ones(9)}
    torch.save(said, tmp_path / "said.bin")
    with pytest.raises(NotSupported, match="not the subspace, which was drawn anew") as caught:
        registry.add(tmp_path / "said.bin", allow_pickle=True)
    assert "adapterhub.registry.sparse.difference" in caught.value.remedy
    ladder = {"encoder.side_gate_params.0": torch.ones(1)}
    torch.save(ladder, tmp_path / "side.pt")
    with pytest.raises(NotSupported, match="stands in the arguments of its run") as caught:
        registry.add(tmp_path / "side.pt", allow_pickle=True)
    assert "ladder_side.json" in caught.value.remedy


# --- state dicts of biases --------------------------------------------------------------------


def trained_biases(base: Path) -> tuple[Any, dict[str, Any]]:
    model = loaded(base)
    named = {n: p for n, p in model.named_parameters() if n.endswith(".bias")}
    generator = torch.Generator().manual_seed(2)
    for parameter in named.values():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return model, named


@pytest.mark.parametrize("file", ["biases.pt", "pytorch_model.bin"])
def test_parameters_as_a_loop_over_the_model_saves_them(
    registry: Registry, base: Path, tmp_path: Path, file: str
) -> None:
    """torch writes the attributes that transformers gives parameters; a model's name misleads."""
    model, named = trained_biases(base)
    assert any(vars(parameter) for parameter in named.values())
    torch.save(named, tmp_path / file)
    registry.add(tmp_path / file, name="biases", base=base, allow_pickle=True)
    ah.merge(base, ["biases"], out=tmp_path / "merged", registry=registry)
    assert bits(loaded(tmp_path / "merged")) == bits(model)
    registry.export("biases", tmp_path / "out")
    assert registry.add(tmp_path / "out", name="biases").status == "unchanged"


def test_a_directory_with_a_file_that_is_called_like_a_model(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    model, named = trained_biases(base)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "model.safetensors"
    save_file({name: parameter.detach() for name, parameter in named.items()}, file)
    with pytest.raises(UnknownFormat) as said:
        registry.add(tmp_path / "run", base=base)
    assert said.value.remedy.endswith(f"or name the file, if it is one: {file}")
    registry.add(file, name="biases", base=base)
    with ah.attach(loaded(base), "biases", registry=registry) as attached:
        assert bits(attached.model) == bits(model)


T5 = {
    "vocab_size": 24,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def test_the_biases_that_t_few_gives_a_t5(registry: Registry, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval()
    model.save_pretrained(tmp_path / "base")
    names = ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o")
    layers = [f"{stack}.block.0.layer.0.{n}" for stack in ("encoder", "decoder") for n in names]
    biases = {f"{layer}.bias": torch.randn(16) for layer in layers}
    (tmp_path / "bitfit").mkdir()
    torch.save(biases, tmp_path / "bitfit" / "finish.pt")
    registry.add(tmp_path / "bitfit", allow_pickle=True)

    def answer(model: Any) -> Any:
        with torch.no_grad():
            ids = torch.tensor([[3, 7, 1, 9, 12]])
            return model(input_ids=ids, decoder_input_ids=ids).logits

    expected = copy.deepcopy(model)
    for layer in layers:
        expected.get_submodule(layer).bias = torch.nn.Parameter(biases[f"{layer}.bias"])
    before, bare = bits(model), answer(model)
    with ah.attach(model, "bitfit", registry=registry):
        attached = answer(model)
    assert bits(model) == before and torch.equal(answer(model), bare)
    np.testing.assert_allclose(attached.numpy(), answer(expected).numpy(), rtol=1e-5, atol=1e-5)
    assert float((attached - bare).abs().max()) > 1e-2

    with pytest.raises(NotSupported, match="has no weight"):
        ah.attach(model, "bitfit", weight=0.5, registry=registry)
    torch.save({"encoder.block.0.layer.0.SelfAttention.q.bias": torch.ones(16)}, tmp_path / "b.pt")
    registry.add(tmp_path / "b.pt", name="other", allow_pickle=True)
    with pytest.raises(NotMergeable, match=r"SelfAttention\.q a bias"):
        ah.attach(model, ["bitfit", "other"], registry=registry)
    assert bits(model) == before
    with pytest.raises(BaseMismatch, match=f"{len(biases)} mismatches") as said:
        ah.merge(tmp_path / "base", ["bitfit"], out=tmp_path / "merged", registry=registry)
    assert "gets one in memory only" in said.value.details[0]


@pytest.mark.filterwarnings("ignore:.lora_bias:UserWarning")
def test_what_lora_adds_to_a_bias_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    model = model_of("llama", attention_bias=False)
    model.save_pretrained(tmp_path / "tiny")
    fields = {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ["q_proj", "up_proj"]}
    expected = adapter_of(model, "LoraConfig", tmp_path / "lora", **fields)
    registry.add(tmp_path / "lora", name="lora")
    before, bare = bits(model), output(model)
    with ah.attach(model, "lora", registry=registry):
        attached = output(model)
    assert bits(model) == before and torch.equal(output(model), bare)
    np.testing.assert_allclose(attached.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    adapter_of(model, "LoraConfig", tmp_path / "other", 2, **fields)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora", "a").eval()
    wrapped.load_adapter(tmp_path / "other", "b")
    wrapped.base_model.set_adapter(["a", "b"])
    with ah.attach(model, ["lora", tmp_path / "other"], registry=registry):
        np.testing.assert_allclose(output(model), output(wrapped), rtol=1e-5, atol=1e-5)
    assert bits(model) == before
    with pytest.raises(BaseMismatch, match="4 mismatches"):
        ah.merge(tmp_path / "tiny", ["lora"], out=tmp_path / "merged", registry=registry)
