"""PEFT's combinations, against PEFT's own, and against dense fp64 where PEFT is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import Q, composed, given, lora

from adapterhub.adapter import Adapter
from adapterhub.composing import blocks
from adapterhub.composing.factored import Factors
from adapterhub.composing.methods import as_peft, masks
from adapterhub.composing.methods.row import Delta, Given
from adapterhub.composing.methods.table import TABLE
from adapterhub.composing.run import seed_of
from adapterhub.errors import NotMergeable
from adapterhub.methods import LowRank, method

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
GPT2 = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
BERT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def convolutions() -> Any:
    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.wide = torch.nn.Conv2d(3, 8, 3)
            self.narrow = torch.nn.Conv2d(8, 6, 1)

    return Net()


def transformer(name: str, fields: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{name}Config")(**fields)
    if name == "Bert":
        return transformers.BertModel(config)
    causal = {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"}[name]
    return getattr(transformers, causal)(config)


@dataclass(frozen=True)
class Case:
    """A base, what the adapters target, and the fields of the configs in which each differs."""

    base: Any
    targets: tuple[str, ...]
    fewer: tuple[str, ...]
    others: tuple[dict[str, Any], ...] = ({}, {"lora_alpha": 2})
    fields: dict[str, Any] = field(default_factory=dict)


LLAMA_TARGETS = ("q_proj", "down_proj", "embed_tokens")
CASES = {
    "llama": Case(lambda: transformer("Llama", LLAMA), LLAMA_TARGETS, LLAMA_TARGETS[:2]),
    "conv1d": Case(
        lambda: transformer("GPT2", GPT2),
        ("c_attn", "mlp.c_proj", "wte"),
        ("c_attn", "wte"),
        fields={"fan_in_fan_out": True},
    ),
    "bert": Case(
        lambda: transformer("Bert", BERT),
        ("query", "word_embeddings", "output.dense"),
        ("query", "word_embeddings"),
    ),
    "conv2d": Case(convolutions, ("wide", "narrow"), ("narrow",)),
}
RANKS: tuple[dict[str, Any], ...] = ({"r": 3, "lora_alpha": 5}, {"r": 2, "lora_alpha": 1})
WEIGHTS = (0.7, -0.4)
NAMES = ("one", "two")


def live(case: Case, path: Path, others: tuple[dict[str, Any], ...], **fields: Any) -> Any:
    """PEFT's model with two adapters of random values, saved under `path`; the second has fewer
    targets."""
    torch.manual_seed(7)
    configs = [
        peft.LoraConfig(
            **{"r": 4, "lora_alpha": 6, **case.fields, **fields, **other},
            target_modules=list(targets),
        )
        for other, targets in zip(others, (case.targets, case.fewer), strict=False)
    ]
    model = peft.get_peft_model(case.base(), configs[0], adapter_name=NAMES[0])
    for name, config in zip(NAMES[1:], configs[1:], strict=False):
        model.add_adapter(name, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn_like(value))
    model.save_pretrained(path, selected_adapters=list(NAMES[: len(configs)]))
    return model


def layers(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and (
            name in module.lora_A or name in module.lora_embedding_A
        ):
            yield path.removeprefix("base_model.model."), module


def is_turned(layer: Any) -> bool:
    """Whether PEFT's delta is that of the formula transposed."""
    embedding = isinstance(layer, peft.tuners.lora.Embedding)
    return embedding or bool(getattr(layer, "fan_in_fan_out", False))


def deltas_of(model: Any, name: str) -> dict[str, Any]:
    """(out, in) of PEFT's own delta weights."""
    found = {}
    for module, layer in layers(model, name):
        if name in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        else:
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        flat = [each.detach().double().numpy() for each in (a, b)]
        b, a = flat[1].reshape(flat[1].shape[0], -1), flat[0].reshape(flat[0].shape[0], -1)
        found[module] = layer.scaling[name] * b @ a
    return found


def ours(adapter: Adapter) -> dict[str, Any]:
    found = {}
    for part in method("lora").implementation.meaning(adapter):
        if isinstance(part, LowRank):
            b, a = (np.asarray(t.read(), np.float64) for t in (part.b, part.a))
            found[part.module] = part.scale * b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    return found


def combined(model: Any, path: Path, kind: str, **settings: Any) -> tuple[Any, Any]:
    """What PEFT makes of the two adapters, and what we do."""
    names = [name for name in NAMES if name in model.peft_config]
    weights = list(WEIGHTS[: len(names)])
    model.add_weighted_adapter(names, weights, "new", kind, **settings)
    options = {"rank": settings.pop("svd_rank", None)}
    inputs = [given(path / n, w) for n, w in zip(names, weights, strict=True)]
    adapter, _ = composed(
        inputs, method=f"peft_{kind}", parameters=settings, force_base=True, seed=5, **options
    )
    return deltas_of(model, "new"), ours(adapter)


def assert_alike(expected: dict[str, Any], found: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert expected.keys() == found.keys()
    for module, delta in expected.items():
        size = np.linalg.norm(delta)
        assert size > 1e-2
        assert np.linalg.norm(found[module] - delta) <= tolerance * size, module


# --- parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_linear_cat_and_svd(tmp_path: Path, case: str, kind: str) -> None:
    model = live(CASES[case], tmp_path, CASES[case].others)
    assert_alike(*combined(model, tmp_path, kind))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_different_ranks(tmp_path: Path, case: str, kind: str) -> None:
    model = live(CASES[case], tmp_path, RANKS)
    settings = {"density": 0.6} if "_" in kind else {}
    assert_alike(*combined(model, tmp_path, kind, **settings))


def test_the_rank_is_that_of_the_option_else_the_largest_of_all(tmp_path: Path) -> None:
    # in q_proj both have rank 1, elsewhere 3 and 2: PEFT's largest is 3, which keeps all of q_proj
    patterns = tuple({**each, "rank_pattern": {"q_proj": 1}} for each in RANKS)
    model = live(CASES["llama"], tmp_path, patterns)
    assert_alike(*combined(model, tmp_path, "svd"))
    model.delete_adapter("new")
    assert_alike(*combined(model, tmp_path, "svd", svd_rank=2))


@pytest.mark.parametrize("case", ["llama", "conv1d", "conv2d"])
@pytest.mark.parametrize("kind", ["ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("density", [0.31, 1.0])
def test_largest_elements(tmp_path: Path, case: str, kind: str, density: float) -> None:
    model = live(CASES[case], tmp_path, CASES[case].others)
    assert_alike(*combined(model, tmp_path, kind, density=density))


@pytest.mark.parametrize("kind", ["ties", "ties_svd"])
def test_signs_by_frequency(tmp_path: Path, kind: str) -> None:
    model = live(CASES["bert"], tmp_path, CASES["bert"].others)
    settings = {"density": 0.5, "majority_sign_method": "frequency"}
    assert_alike(*combined(model, tmp_path, kind, **settings))


@pytest.mark.parametrize("case", ["llama", "conv1d"])
@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_the_same_chance_gives_the_same_result(
    tmp_path: Path, case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = live(CASES[case], tmp_path, CASES[case].others)
    ours = ours_in_the_order_of_peft(model, kind)

    def bernoulli(probabilities: Any) -> Any:
        mask = next(ours)(float(probabilities.flatten()[0]))
        assert mask.shape == tuple(probabilities.shape)
        return torch.from_numpy(mask.astype("f"))

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    assert_alike(*combined(model, tmp_path, kind, density=0.6))
    assert next(ours, None) is None


def ours_in_the_order_of_peft(model: Any, kind: str) -> Iterator[Any]:
    found = dict(layers(model, "two"))
    for module, layer in layers(model, "one"):
        seed = seed_of(5, module, 0)
        count = 2 if module in found else 1
        for side in range(1 if kind.endswith("svd") else 2):
            for number in range(count):
                if kind.endswith("svd"):
                    shape = deltas_of(model, "one")[module].shape
                    yield drawn(seed, 2 * number, shape, is_turned(layer))
                else:
                    yield drawn(seed, 2 * number + side, factor(layer, side), False)


def factor(layer: Any, side: int) -> tuple[int, ...]:
    name = "one"
    if name in layer.lora_embedding_A:
        return tuple((layer.lora_embedding_A, layer.lora_embedding_B)[side][name].shape)
    return tuple((layer.lora_A, layer.lora_B)[side][name].weight.shape)


def drawn(seed: int, stream: int, shape: tuple[int, ...], turned: bool) -> Any:
    def mask(density: float) -> Any:
        kept = np.ones(shape, np.float32)
        masks.drop_at_random(kept, density, seed, stream)
        kept = kept != 0
        return kept.T.copy() if turned else kept

    return mask


@pytest.mark.parametrize("kind", ["ties", "ties_svd", "dare_linear", "svd"])
def test_one_adapter_alone_is_only_scaled(tmp_path: Path, kind: str) -> None:
    model = live(CASES["llama"], tmp_path, CASES["llama"].others[:1])
    settings = {} if kind == "svd" else {"density": 0.2}
    expected, found = combined(model, tmp_path, kind, **settings)
    assert_alike(expected, found)
    scaled = {m: WEIGHTS[0] * delta for m, delta in deltas_of(model, "one").items()}
    assert_alike(scaled, found)


# --- where PEFT is wrong ----------------------------------------------------------------------


def summed(model: Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for name, weight in zip(NAMES, WEIGHTS, strict=True):
        for module, delta in deltas_of(model, name).items():
            total[module] = total.get(module, 0) + weight * delta
    return total


@pytest.mark.parametrize("kind", ["cat", "svd", "linear"])
def test_rslora_counts_its_scale_once(tmp_path: Path, kind: str) -> None:
    model = live(CASES["llama"], tmp_path, CASES["llama"].others, use_rslora=True)
    wrong, found = combined(model, tmp_path, kind, **({"svd_rank": 8} if kind == "svd" else {}))
    rank = {"cat": 8, "svd": 8, "linear": 4}[kind]
    # PEFT keeps use_rslora in a config of alpha = r, whose scale is then √r
    assert_alike(wrong, {module: math.sqrt(rank) * delta for module, delta in found.items()})
    if kind != "linear":
        assert_alike(summed(model), found, 1e-6)


@pytest.mark.parametrize("kind", ["cat", "svd", "linear", "dare_linear", "magnitude_prune_svd"])
def test_lora_bias_is_added(tmp_path: Path, kind: str) -> None:
    targets = ("q_proj", "v_proj")
    case = Case(CASES["llama"].base, targets, targets, fields={"lora_bias": True})
    model = live(case, tmp_path, case.others)
    settings = {"density": 0.5} if "_" in kind else {}
    combined(model, tmp_path, kind, **settings)
    inputs = [given(tmp_path / n, w) for n, w in zip(NAMES, WEIGHTS, strict=True)]
    for electing in ("ties", "ties_svd", "dare_ties", "dare_ties_svd"):  # a mean, which is no sum
        with pytest.raises(NotMergeable, match="becomes of the biases of lora_B"):
            composed(inputs, method=f"peft_{electing}", force_base=True)
    adapter, _ = composed(inputs, method=f"peft_{kind}", parameters=settings, force_base=True)
    scales = {
        part.module: part.scale
        for part in method("lora").implementation.meaning(adapter)
        if isinstance(part, LowRank)
    }
    assert len(scales) == 2
    for module, layer in layers(model, "new"):
        expected = sum(
            weight * layer.scaling[name] * layer.lora_B[name].bias.detach().double().numpy()
            for name, weight in zip(NAMES, WEIGHTS, strict=True)
        )
        assert np.abs(expected).max() > 0.1
        assert not layer.lora_B["new"].bias.any()  # PEFT: nothing
        bias = scales[module] * adapter.modules[module]["lora_B.bias"].read().astype("d")
        np.testing.assert_allclose(bias, expected, rtol=1e-6, atol=1e-7)


def test_dora_is_refused_where_peft_drops_its_magnitudes(tmp_path: Path) -> None:
    model = live(CASES["llama"], tmp_path, CASES["llama"].others, use_dora=True)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        model.set_adapter("one")
        alone = model(tokens).logits
        model.add_weighted_adapter(["one"], [1.0], "new", "cat")
        model.set_adapter("new")
        # PEFT: one adapter with the weight 1 is another one afterwards
        assert float((model(tokens).logits - alone).abs().max()) > 0.1
    inputs = [given(tmp_path / name) for name in NAMES]
    for row in TABLE:
        if row.startswith("peft_"):
            with pytest.raises(NotMergeable, match="is a DoRA"):
                composed(inputs, method=row, force_base=True)
    kept, _ = composed(inputs[:1], method="peft_cat", force_base=True)
    for module, role, tensor in inputs[0].adapter.tensors():
        assert kept.modules[module][role].read().tobytes() == tensor.read().tobytes()
    assert kept.config["use_dora"] is True


# --- refusals, and by hand --------------------------------------------------------------------


def test_methods_on_factors_refuse_different_ranks(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2, [Q], 5))]
    for row in TABLE.values():
        if row.equal_ranks:
            with pytest.raises(NotMergeable, match="1 modules have several") as error:
                composed(inputs, method=row.name)
            assert error.value.details == (f'"{Q}": 3 in a, 5 in b',)
            wanted = "peft_cat or peft_svd" if row.name == "peft_linear" else f"{row.name}_svd"
            assert wanted in error.value.remedy
        elif row.name.startswith("peft_"):
            composed(inputs, method=row.name)


def test_what_is_truncated_says_what_it_lost(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 2))]
    for name in ("peft_svd", "peft_magnitude_prune_svd"):
        _, report = composed(inputs, method=name)
        assert {one.rank for one in report.modules} == {3}
        assert report.error is not None and report.error > 0.1
        _, report = composed(inputs, method=name, rank=6)
        assert {one.rank for one in report.modules} == {6}
    for name in ("peft_cat", "peft_linear", "peft_dare_ties"):
        _, report = composed(inputs, method=name)
        assert report.error is None and report.reproducible and TABLE[name].exact
    assert not TABLE["peft_svd"].exact


TWO = [np.array([[4, 1, 0], [-5, 0, 2]], "f"), np.array([[-2, 3, 0.5], [-1, 0, 1]], "f")]


@pytest.mark.parametrize(
    ("kind", "weights", "density", "expected"),
    [
        # signs of the unweighted sums + + + / - + +; the means of those that have them
        ("ties_svd", (1, 1), 1.0, [[4, 2, 0.5], [-3, 0, 1.5]]),
        # of each the 3 largest: 4, -5, 2 and -2, 3, and the first of -1 and 1
        ("ties_svd", (1, 1), 0.5, [[4, 3, 0], [-3, 0, 2]]),
        # the weights take no part in the votes
        ("ties_svd", (1, -10), 0.5, [[4, -30, 0], [2.5, 0, 2]]),
        ("magnitude_prune_svd", (2, -1), 0.5, [[10, -3, 0], [-9, 0, 4]]),
        # ⌊0.1 · 6⌋ is none, of which PEFT makes a matrix of zeros; ours keeps one
        ("magnitude_prune_svd", (1, 1), 0.1, [[0, 3, 0], [-5, 0, 0]]),
    ],
)
def test_by_hand(
    kind: str, weights: tuple[float, float], density: float, expected: list[list[float]]
) -> None:
    row = TABLE[f"peft_{kind}"]
    found = row.apply(
        [each.copy() for each in TWO],
        weights,
        Given((2, 3), row.settings({"density": density}), 1, inputs=2),
    )
    assert found.tolist() == expected


def test_linear_by_hand() -> None:
    one = Factors(np.array([[1], [2]], "f"), np.array([[1, 0, 2]], "f"))
    two = Factors(np.array([[0], [1]], "f"), np.array([[3, 1, 0]], "f"))
    terms = [Delta(0, 2.0, 0.5, one), Delta(1, -2.0, 2.0, two)]
    made = as_peft.linear(terms, Given((2, 3), {}, 0, inputs=2))
    # weights 1 and -4: a = a₁ - 2·a₂, b = b₁ + 2·b₂
    assert made.factors.a.tolist() == [[-5, -2, 2]] and made.factors.b.tolist() == [[1], [4]]


def test_the_largest_of_more_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ELEMENTS", 50)
    dice = np.random.default_rng(3)
    for density in (0.02, 0.5, 0.97):
        values = np.round(dice.standard_normal((40, 30)) * 4).astype("f")  # many are equal
        pruned = values.copy()
        as_peft._keep_largest(pruned, density, 0, 0)
        order = np.argsort(-np.abs(values), axis=None, kind="stable")[: int(density * 1200)]
        expected = np.zeros(1200, "f")
        expected[order] = values.reshape(-1)[order]
        assert np.array_equal(pruned.reshape(-1), expected)
