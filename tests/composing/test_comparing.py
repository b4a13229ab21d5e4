"""Whole adapters compared: figures by module and in all, bases, other methods, the base's norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, Q, V, deltas, given, lora
from safetensors.numpy import load_file, save_file

from adapterhub.composing import Comparison, Input
from adapterhub.composing.comparing.verb import compare, compared
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.registry import Registry


def look(*inputs: Input, **options: Any) -> Comparison:
    return compared(inputs, [None] * len(inputs), **options)


def flat(source: Input, modules: tuple[str, ...] = (Q, V)) -> Any:
    """The whole delta as one vector, with zeros where a module is left alone."""
    found = deltas(source.adapter)
    return np.concatenate([found.get(m, np.zeros(SIZES[m])).ravel() for m in modules])


def cosine(one: Any, other: Any) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_by_module_and_in_all(tmp_path: Path) -> None:
    inputs = [
        given(lora(tmp_path / "a", 1)),
        given(lora(tmp_path / "b", 2, rank=5, r=5, use_rslora=True)),
        given(lora(tmp_path / "c", 3, [Q])),
    ]
    found = look(*inputs)
    vectors = [flat(each) for each in inputs]
    for one in range(3):
        assert found.adapters[one].norm == pytest.approx(np.linalg.norm(vectors[one]))
        for other in range(3):
            expected = cosine(vectors[one], vectors[other])
            assert found.cosine[one][other] == pytest.approx(expected, abs=1e-12)
    assert [met.pair for met in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [met.modules for met in found.pairs] == [2, 1, 1]
    assert [adapter.modules for adapter in found.adapters] == [2, 2, 1]
    query, value = found.modules
    assert (query.module, query.shape, value.module) == (Q, (12, 8), V)
    assert len(query.pairs) == 3 and [met.pair for met in value.pairs] == [(0, 1)]
    assert value.norms[2] is None
    both = deltas(inputs[0].adapter)[V].ravel(), deltas(inputs[1].adapter)[V].ravel()
    assert value.cosine == pytest.approx(cosine(*both))
    signs = [np.sign(vectors[0]) * np.sign(vectors[1]) < 0]
    assert found.pairs[0].sign_conflicts == pytest.approx(np.mean(signs))
    assert found.looked_at == query.looked_at == 1


def test_an_adapter_with_itself(tmp_path: Path) -> None:
    a = given(lora(tmp_path / "a", 1))
    found = look(a, a)
    assert found.pairs[0].cosine == pytest.approx(1)
    assert found.pairs[0].sign_conflicts == 0
    assert found.pairs[0].columns is not None
    assert found.pairs[0].columns.mean == pytest.approx(1)


def test_alpha_counts_for_the_norm_and_not_for_the_angle(tmp_path: Path) -> None:
    a, b = given(lora(tmp_path / "a", 1)), given(lora(tmp_path / "b", 1, lora_alpha=-12))
    found = look(a, b)
    assert found.pairs[0].cosine == pytest.approx(-1)
    assert found.adapters[1].norm == pytest.approx(2 * found.adapters[0].norm)


def test_a_delta_of_zeros(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    tensors = load_file(b / "adapter_model.safetensors")
    zeros = {n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}
    save_file(zeros, b / "adapter_model.safetensors", {"format": "pt"})
    met = look(given(a), given(b)).pairs[0]
    assert (met.cosine, met.columns, met.sign_conflicts, met.both_change) == (None, None, 0, 0)


def test_layer_2_comes_before_layer_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layers.{n}.q_proj" for n in (0, 2, 10)]
    for name in names:
        monkeypatch.setitem(SIZES, name, (4, 4))
    a, b = (given(lora(tmp_path / x, n, names)) for n, x in enumerate("ab"))
    assert [one.module for one in look(a, b).modules] == names


def test_shapes_that_differ_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = given(lora(tmp_path / "a", 1))
    monkeypatch.setitem(SIZES, Q, (12, 10))
    found = look(a, given(lora(tmp_path / "b", 2)))
    assert found.shapes == (f"{Q}: [12, 8] in a; [12, 10] in b",)
    assert [bool(one.pairs) for one in found.modules] == [False, False, True]
    assert found.pairs[0].modules == 1


def test_bases_are_told_and_not_refused(tmp_path: Path) -> None:
    a = given(lora(tmp_path / "a", 1))
    b = given(lora(tmp_path / "b", 2, base_model_name_or_path="owner/other"))
    c = given(lora(tmp_path / "c", 3, base_model_name_or_path=None))
    d = Input("d", a.adapter, root=a.root, base={"weights_root": "sha256:1"})
    e = Input("e", a.adapter, root=a.root, base={"weights_root": "sha256:2"})
    found = look(a, b, c, d, d, e)
    relations = {each.pair: each.relation for each in found.bases}
    assert relations[0, 1] == "different" and relations[0, 2] == "unknown"
    assert relations[0, 3] == "by name"
    assert relations[3, 4] == "same" and relations[4, 5] == "different"
    assert next(each.said for each in found.bases if each.said).startswith("a is for owner/base")


def test_what_is_not_compared_is_listed(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1, modules_to_save=["score"])
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] = np.ones((2, 8), np.float32)
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    found = look(given(path), given(lora(tmp_path / "b", 2)))
    assert found.adapters[0].left_out == ("score.weight: it is saved whole",)
    assert found.adapters[1].left_out == ()


def experts(path: Path, seed: int, count: int = 3, rank: int = 2) -> Path:
    dice = np.random.default_rng(seed)
    start = "base_model.model.model.layers.0.mlp.experts.lora_"
    tensors = {
        f"{start}A.weight": dice.standard_normal((rank * count, 5)).astype(np.float32),
        f"{start}B.weight": dice.standard_normal((7, rank * count)).astype(np.float32),
    }
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "peft_version": "0.21.2"}
    config |= {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []}
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def expert_deltas(path: Path, count: int = 3) -> Any:
    a, b = load_file(path / "adapter_model.safetensors").values()
    a, b = a.astype(np.float64).reshape(count, -1, 5), b.astype(np.float64).reshape(7, -1, count)
    return np.einsum("ore,eri->eoi", b, a)


def test_experts_are_matrices_of_their_own(tmp_path: Path) -> None:
    paths = [experts(tmp_path / "a", 1), experts(tmp_path / "b", 2)]
    (one,) = (found := look(*map(given, paths))).modules
    assert (one.module, one.matrices) == ("model.layers.0.mlp.experts.down_proj", 3)
    x, y = (expert_deltas(path) for path in paths)
    assert found.adapters[0].norm == pytest.approx(np.linalg.norm(x))
    assert found.pairs[0].cosine == pytest.approx(cosine(x.ravel(), y.ravel()))
    assert one.pairs[0].sign_conflicts == pytest.approx(np.mean(x * y < 0))
    overlaps = []
    for each in zip(x, y, strict=True):
        u, v = (np.linalg.svd(delta)[0][:, :2] for delta in each)
        overlaps.append(np.linalg.norm(u.T @ v) ** 2 / 2)
    assert one.pairs[0].columns is not None
    assert one.pairs[0].columns.mean == pytest.approx(np.mean(overlaps))


# --- other methods ----------------------------------------------------------------------------


def loha(path: Path, seed: int, rank: int = 2) -> Path:
    dice = np.random.default_rng(seed)
    out, into = SIZES[Q]
    shapes = {"w1_a": (out, rank), "w1_b": (rank, into), "w2_a": (out, rank), "w2_b": (rank, into)}
    tensors = {
        f"base_model.model.{Q}.hada_{role}": dice.standard_normal(shape).astype(np.float32)
        for role, shape in shapes.items()
    }
    config = {"peft_type": "LOHA", "base_model_name_or_path": "owner/base", "r": rank, "alpha": 4}
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def test_methods_that_are_not_low_rank_but_add_up(tmp_path: Path) -> None:
    one, other = loha(tmp_path / "h", 1), given(lora(tmp_path / "a", 2, [Q]))
    found = look(given(one), other)
    t = load_file(one / "adapter_model.safetensors")
    w1a, w1b, w2a, w2b = (
        t[f"base_model.model.{Q}.hada_{role}"].astype(np.float64)
        for role in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    expected = 2 * (w1a @ w1b) * (w2a @ w2b)
    assert found.adapters[0].norm == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    met = found.pairs[0]
    assert met.cosine == pytest.approx(cosine(expected.ravel(), flat(other, (Q,))), rel=1e-5)
    assert met.columns is None and met.sign_conflicts is not None


def test_methods_that_add_nothing_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.mkdir()
    config = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{Q}.ia3_l": np.ones((12, 1), np.float32)}
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(NotSupported, match="only what adapters add") as error:
        look(given(path), given(lora(tmp_path / "a", 1)))
    assert len(error.value.details) == 1
    assert "what it does to a weight is no sum" in error.value.details[0]


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1)
    tensors = load_file(path / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.inf
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(NotMergeable, match="NaN or infinite"):
        look(given(path), given(lora(tmp_path / "b", 2)))


# --- beside a base ----------------------------------------------------------------------------

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}


def save_base(path: Path) -> dict[str, Any]:
    import ml_dtypes

    dice = np.random.default_rng(0)
    tensors = {
        f"{Q}.weight": dice.standard_normal(SIZES[Q]).astype(ml_dtypes.bfloat16),
        f"{V}.weight": dice.standard_normal(SIZES[V]).astype(np.float32),
    }
    from adapterhub.tensorfile import ArrayTensor, write_file

    path.mkdir()
    arrays = {name: ArrayTensor(array) for name, array in tensors.items()}
    write_file(path / "model.safetensors", arrays, {})
    (path / "config.json").write_text(json.dumps(CONFIG))
    return tensors


def test_norms_relative_to_the_base(tmp_path: Path) -> None:
    weights = save_base(tmp_path / "base")
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2, [Q])
    expected = deltas(given(a).adapter)
    sizes = {m: np.linalg.norm(weights[f"{m}.weight"].astype(np.float64)) for m in (Q, V)}
    with Registry(tmp_path / "home") as registry:
        found = compare([a, b], base=tmp_path / "base", registry=registry)
        for one in found.modules:
            share = np.linalg.norm(expected[one.module]) / sizes[one.module]
            assert one.of_base[0] == pytest.approx(share)
        assert found.modules[1].of_base[1] is None
        whole = found.adapters[0].norm / np.hypot(*sizes.values())
        assert found.adapters[0].of_base == pytest.approx(whole)
        # one that a version records is found by itself
        registry.add(a, name="a", base=tmp_path / "base")
        again = compare(["a", b], registry=registry)
        assert again.adapters[0].of_base == pytest.approx(whole)
        assert again.adapters[1].of_base is None


def test_two_spellings_of_one_model_meet_by_the_names_of_its_files(tmp_path: Path) -> None:
    """A model with a head calls its modules otherwise than the bare one of the same files."""
    base = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "num_hidden_layers": 1,
        "hidden_size": 8,
    }
    query = "encoder.layer.0.attention.self.query"
    from adapterhub.tensorfile import ArrayTensor, write_file

    (tmp_path / "base").mkdir()
    weight = ArrayTensor(np.ones((8, 8), np.float32))
    write_file(tmp_path / "base/model.safetensors", {f"{query}.weight": weight}, {})
    (tmp_path / "base/config.json").write_text(json.dumps(base))
    paths = []
    for name, prefix in (("a", ""), ("b", "bert.")):
        paths.append(lora(tmp_path / name, 1, rank=2, target_modules=["query"]))
        dice = np.random.default_rng(5)
        tensors = {
            f"base_model.model.{prefix}{query}.lora_{side}.weight": dice.standard_normal(
                shape
            ).astype(np.float32)
            for side, shape in (("A", (2, 8)), ("B", (8, 2)))
        }
        save_file(tensors, paths[-1] / "adapter_model.safetensors", {"format": "pt"})
    with Registry(tmp_path / "home") as registry:
        found = compare(paths, base=tmp_path / "base", registry=registry)
        assert [one.module for one in found.modules] == [query]
        assert found.cosine[0][1] == pytest.approx(1)
        apart = compare(paths, registry=registry)
        assert apart.cosine[0][1] == 0
        assert any("may be one module" in note for note in apart.notes)


def test_one_adapter_is_no_comparison(tmp_path: Path) -> None:
    with Registry(tmp_path / "home") as registry, pytest.raises(InvalidOption, match="two"):
        compare([lora(tmp_path / "a", 1)], registry=registry)
