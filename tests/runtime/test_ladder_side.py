"""Ladder side-tuning on live models, against the paper's formula written down in fp64."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapterhub as ah
from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotMergeable, NotSupported
from adapterhub.methods import method
from adapterhub.registry import inspection
from adapterhub.runtime.hooks import hooked, install
from adapterhub.tensorfile import ArrayTensor, write_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, HEADS, FACTOR = 16, 2, 2
SIDE = WIDTH // FACTOR
LLAMA = {
    "vocab_size": 32,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
BERT = {
    "vocab_size": 32,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "num_labels": 3,
}
Arrays = dict[str, np.ndarray]


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).eval()


def numbers() -> Iterator[Any]:
    rng = np.random.default_rng(5)
    while True:
        yield lambda *shape: (rng.standard_normal(shape) * 0.5).astype(np.float32)


def ladder(stack: str, layers: tuple[int, ...], side: dict[str, tuple[int, ...]]) -> Arrays:
    made = next(numbers())
    found = {
        ":first_down.weight": made(SIDE, WIDTH),
        ":norm.weight": made(SIDE),
        ":up.weight": made(WIDTH, SIDE),
    }
    for number in layers:
        start = f"{stack}.{number}:"
        found[f"{start}down.weight"] = made(SIDE, WIDTH)
        found[f"{start}down.bias"] = made(SIDE)
        found[f"{start}gate"] = made(1) * np.float32(0.1)
        found |= {f"{start}layer.{name}": made(*shape) for name, shape in side.items()}
    return found


LLAMA_LAYER: dict[str, tuple[int, ...]] = {
    **{f"self_attn.{name}_proj.weight": (SIDE, SIDE) for name in "qkvo"},
    "mlp.gate_proj.weight": (12, SIDE),
    "mlp.up_proj.weight": (12, SIDE),
    "mlp.down_proj.weight": (SIDE, 12),
    "input_layernorm.weight": (SIDE,),
    "post_attention_layernorm.weight": (SIDE,),
}


def saved(path: Path, arrays: Arrays, **fields: Any) -> Adapter:
    path.mkdir(exist_ok=True)
    config = {"adapterhub": 1, "method": "ladder_side", "reduction_factor": FACTOR, **fields}
    (path / "adapter_config.json").write_text(json.dumps({"output": "model.norm", **config}))
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    write_file(path / "adapter_model.safetensors", tensors)
    return inspection.require(formats.read(path))


def attached(model: Any, adapter: Adapter, weight: float = 1.0) -> Any:
    method = hooked("ladder_side")
    assert method is not None
    return install(model, method.plan(model, adapter, weight))


# --- the reference ----------------------------------------------------------------------------


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight)


def rotated(x: np.ndarray) -> np.ndarray:
    """x: (heads, T, size)."""
    length, size = x.shape[1:]
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, size, 2) / size))
    cos, sin = (np.concatenate([f(angles)] * 2, -1) for f in (np.cos, np.sin))
    half = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return np.asarray(x * cos + half * sin)


def llama_layer(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """A layer of a Llama on x: (T, width)."""
    y = rms(x, w["input_layernorm.weight"])
    heads = [
        (y @ w[f"self_attn.{n}_proj.weight"].T).reshape(len(x), HEADS, -1).swapaxes(0, 1)
        for n in "qkv"
    ]
    q, k, v = rotated(heads[0]), rotated(heads[1]), heads[2]
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:])) > 0, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ v
    x = x + mixed.swapaxes(0, 1).reshape(len(x), -1) @ w["self_attn.o_proj.weight"].T
    y = rms(x, w["post_attention_layernorm.weight"])
    gate = y @ w["mlp.gate_proj.weight"].T
    inner = gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)
    return np.asarray(x + inner @ w["mlp.down_proj.weight"].T)


def expected(hidden: list[np.ndarray], arrays: Arrays, layers: tuple[int, ...]) -> np.ndarray:
    """What stands in the place of the last norm's output; hidden[0] is what layer 0 is given."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    state = hidden[0] @ a[":first_down.weight"].T
    for number in layers:
        start = f"model.layers.{number}:"
        share = 1 / (1 + np.exp(-a[f"{start}gate"] / 0.1))
        down = hidden[number + 1] @ a[f"{start}down.weight"].T + a[f"{start}down.bias"]
        state = share * state + (1 - share) * down
        weights = {n: a[f"{start}layer.{n}"] for n in LLAMA_LAYER}
        state = llama_layer(state, weights)
    return np.asarray(rms(state, a[":norm.weight"]) @ a[":up.weight"].T)


def states(model: Any, tokens: Any) -> list[np.ndarray]:
    """What each layer is given and gives, before the last norm."""
    found: list[Any] = []
    handles = [
        model.model.layers[0].register_forward_pre_hook(lambda m, args: found.append(args[0]))
    ]
    for layer in model.model.layers:
        handles.append(layer.register_forward_hook(lambda m, args, out: found.append(out)))
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    tensors = [each[0] if isinstance(each, tuple) else each for each in found]
    return [tensor[0].double().numpy() for tensor in tensors]


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2)])
@pytest.mark.parametrize("last_gate", [None, 0.07])
def test_a_ladder_beside_a_llama(
    tmp_path: Path, layers: tuple[int, ...], last_gate: float | None
) -> None:
    model = llama()
    arrays = ladder("model.layers", layers, LLAMA_LAYER)
    if last_gate is not None:
        arrays[":last_gate"] = np.array([last_gate], np.float32)
    adapter = saved(tmp_path / "it", arrays)
    tokens = torch.arange(9)[None]
    hidden = states(model, tokens)
    y = expected(hidden, arrays, layers)
    if last_gate is not None:
        share = 1 / (1 + np.exp(-np.float64(np.float32(last_gate)) / 0.1))
        norm = model.model.norm.weight.detach().double().numpy()
        y = share * y + (1 - share) * rms(hidden[-1], norm)
    head = model.lm_head.weight.detach().double().numpy()
    with torch.no_grad():
        before = model(tokens, use_cache=False).logits
        undo = attached(model, adapter)
        found = model(tokens, use_cache=False).logits
        undo()
        after = model(tokens, use_cache=False).logits
    np.testing.assert_allclose(found[0].numpy(), y @ head.T, atol=1e-5, rtol=1e-5)
    assert torch.equal(before, after)
    assert float((found - before).abs().max()) > 1e-2


def test_a_copy_of_the_model_has_the_ladder_too(tmp_path: Path) -> None:
    model = llama()
    adapter = saved(tmp_path / "it", ladder("model.layers", (0, 1, 2), LLAMA_LAYER))
    undo = attached(model, adapter)
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        twin = copy.deepcopy(model)
        undo()
        assert torch.equal(twin(tokens, use_cache=False).logits, expected)
        assert not torch.equal(model(tokens, use_cache=False).logits, expected)


def test_masks_reach_the_side_network(tmp_path: Path) -> None:
    """What is padded on the left does not change what follows."""
    model = llama()
    adapter = saved(tmp_path / "it", ladder("model.layers", (0, 1, 2), LLAMA_LAYER))
    undo = attached(model, adapter)
    tokens, padded = torch.tensor([[3, 4, 5]]), torch.tensor([[9, 9, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    with torch.no_grad():
        alone = model(tokens, use_cache=False).logits[0]
        beside = model(padded, attention_mask=mask, position_ids=positions, use_cache=False)
    undo()
    assert torch.allclose(alone, beside.logits[0, 2:], atol=1e-5)


def test_generation_goes_without_a_cache_and_says_so(tmp_path: Path) -> None:
    model = llama()
    adapter = saved(tmp_path / "it", ladder("model.layers", (0, 1, 2), LLAMA_LAYER))
    assert model.generation_config.use_cache
    undo = attached(model, adapter)
    tokens = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        made = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
        for end in range(3, made.shape[1]):
            step = model(made[:, :end], use_cache=False).logits[0, -1].argmax()
            assert int(step) == int(made[0, end])
        begun = model(tokens, use_cache=True).past_key_values
        with pytest.raises(NotSupported, match="this pass continues one of 4 tokens"):
            model(tokens[:, :1], past_key_values=begun, use_cache=True)
    undo()
    assert model.generation_config.use_cache and model.config.use_cache


def test_beside_a_bert_the_pooler_reads_it(tmp_path: Path) -> None:
    model = bert()
    layer = {
        **{f"attention.self.{n}.weight": (SIDE, SIDE) for n in ("query", "key", "value")},
        **{f"attention.self.{n}.bias": (SIDE,) for n in ("query", "key", "value")},
        "attention.output.dense.weight": (SIDE, SIDE),
        "attention.output.dense.bias": (SIDE,),
        "attention.output.LayerNorm.weight": (SIDE,),
        "attention.output.LayerNorm.bias": (SIDE,),
        "intermediate.dense.weight": (12, SIDE),
        "intermediate.dense.bias": (12,),
        "output.dense.weight": (SIDE, 12),
        "output.dense.bias": (SIDE,),
        "output.LayerNorm.weight": (SIDE,),
        "output.LayerNorm.bias": (SIDE,),
    }
    arrays = ladder("bert.encoder.layer", (0, 1), layer)
    arrays[":norm.bias"] = arrays[":norm.weight"] * 2
    adapter = saved(tmp_path / "it", arrays, output="bert.encoder")
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        before = model(tokens).logits
        undo = attached(model, adapter)
        found = model(tokens).logits
        encoded = model.bert.encoder(model.bert.embeddings(tokens))[0]
        head = model.classifier(model.bert.pooler(encoded))
        undo()
    assert torch.allclose(head, found, atol=1e-6)
    assert float((found - before).abs().max()) > 1e-3


def test_the_same_in_bfloat16(tmp_path: Path) -> None:
    adapter = saved(tmp_path / "it", ladder("model.layers", (0, 1, 2), LLAMA_LAYER))
    tokens = torch.arange(9)[None]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = llama().to(dtype)
        undo = attached(model, adapter)
        with torch.no_grad():
            found.append(model(tokens, use_cache=False).logits.float())
        undo()
    scale = float(found[0].abs().max())
    assert float((found[0] - found[1]).abs().max()) < 0.1 * scale


def test_a_head_that_was_trained_beside_it_goes_along(tmp_path: Path) -> None:
    head = next(numbers())(32, WIDTH)
    arrays = ladder("model.layers", (0, 1, 2), LLAMA_LAYER)
    saved(tmp_path / "both", {**arrays, "lm_head.weight": head})
    model, tokens = llama(), torch.arange(6).reshape(1, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = llama()
    undo = attached(other, saved(tmp_path / "alone", arrays))
    other.lm_head.weight.data.copy_(torch.from_numpy(head))
    with torch.no_grad(), ah.open(tmp_path / "home") as registry:
        with ah.attach(model, tmp_path / "both", registry=registry):
            assert torch.equal(model(tokens).logits, other(tokens).logits)
        assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    undo()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = llama()
    state = torch.random.get_rng_state()
    good = ladder("model.layers", (0, 1, 2), LLAMA_LAYER)
    adapter = saved(tmp_path / "a", good)
    attached(model, adapter)()
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(NotSupported, match="cannot be attached with weight"):
        attached(model, adapter, 0.5)
    with pytest.raises(NotMergeable, match="is no change of the base's weights"):
        method("ladder_side").implementation.meaning(adapter)
    with pytest.raises(BaseMismatch, match=r"has no module model\.last"):
        attached(model, saved(tmp_path / "b", good, output="model.last"))
    with pytest.raises(BaseMismatch, match="1 layers that the model lacks"):
        attached(model, saved(tmp_path / "c", ladder("model.layers", (0, 7), LLAMA_LAYER)))
    undo = attached(model, saved(tmp_path / "f", good, output="model.embed_tokens"))
    with pytest.raises(BaseMismatch, match="does not follow the model's layers"):
        model(torch.arange(3)[None])
    undo()
    two = good | {
        name.replace("model.layers", "other.layers"): a
        for name, a in good.items()
        if "layers.1" in name
    }
    with pytest.raises(NotSupported, match="on several lists of layers"):
        attached(model, saved(tmp_path / "d", two))
    wide = {**LLAMA_LAYER, "mlp.up_proj.weight": (13, SIDE), "mlp.up_proj.bias": (13,)}
    with pytest.raises(BaseMismatch, match="2 mismatches") as caught:
        attached(model, saved(tmp_path / "e", ladder("model.layers", (0,), wide)))
    assert "mlp.up_proj.weight is [13, 8], expected [12, 8]" in caught.value.details[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({":up.weight": (SIDE, WIDTH)}, "up.weight is"),
        ({":strange": (1,)}, '"strange" is no tensor of a ladder'),
        ({"model.layers.0:gate": (2,)}, "gate is [2], expected [1]"),
        ({"model.layers.1:gate": (1,)}, '"model.layers.1": down.weight is missing'),
        ({":first_down.weight": (SIDE, WIDTH + 2)}, "and reduction_factor 2"),
    ],
)
def test_a_ladder_that_contradicts_itself(
    tmp_path: Path, change: dict[str, tuple[int, ...]], said: str
) -> None:
    arrays = ladder("model.layers", (0,), LLAMA_LAYER)
    arrays |= {name: np.ones(shape, np.float32) for name, shape in change.items()}
    tensors = {name: ArrayTensor(array) for name, array in arrays.items()}
    saved(tmp_path / "it", ladder("model.layers", (0,), LLAMA_LAYER))
    write_file(tmp_path / "it" / "adapter_model.safetensors", tensors)
    messages = [problem.message for problem in formats.read(tmp_path / "it").fatal]
    assert any(said in message for message in messages), messages
