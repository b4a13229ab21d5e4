"""Each kind of adapter that has no factors, in files of its own kind, real ones where there are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import lora
from extracting_building import LLAMA, model, peft_of
from safetensors.numpy import load_file, save_file

from adapterhub import api, formats
from adapterhub.adapter import Adapter
from adapterhub.composing import Input, Options, tensorwise
from adapterhub.composing.scatter import union
from adapterhub.errors import AdapterHubError, BaseMismatch, NotMergeable, NotSupported
from adapterhub.methods.adamix import averaged
from adapterhub.registry import Registry, inspection
from adapterhub.tensorfile import ArrayTensor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ROOT, K = Path(__file__).parents[1], "model.layers.0.self_attn.k_proj"


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "home") as found:
        yield found


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def read(path: Path) -> Adapter:
    return inspection.require(formats.read(path, allow_pickle=True))


def values(adapter: Adapter) -> dict[tuple[str, str], Any]:
    return {(m, role): np.asarray(t.read(), np.float64) for m, role, t in adapter.tensors()}


def saved(path: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    path.mkdir()
    config = {"base_model_name_or_path": "owner/base", **config}
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors), path / "adapter_model.safetensors", {"format": "pt"})
    return path


def native(path: Path, method: str, tensors: Mapping[str, Any], **config: Any) -> Path:
    return saved(path, tensors, adapterhub=1, method=method, **config)


def assert_mean(found: Adapter, sources: list[Adapter], weights: list[float]) -> None:
    """Σ wᵢ·vᵢ / Σ wᵢ of every tensor."""
    made, given = values(found), [values(source) for source in sources]
    assert all(made.keys() == each.keys() for each in given) and made
    for place, array in made.items():
        parts = [w * each[place] for w, each in zip(weights, given, strict=True)]
        assert np.allclose(array, sum(parts) / sum(weights), rtol=1e-6, atol=1e-6), place


def average(registry: Registry, out: Path, paths: list[Path]) -> Adapter:
    """By weights 3 and 1, checked."""
    specs = list(zip(paths, (3.0, 1.0), strict=True))
    options = {"force_base": True, "allow_pickle": True, "registry": registry}
    api.compose(specs, method="average", out=out, **options)
    found, sources = read(out), [read(path) for path in paths]
    assert_mean(found, sources, [3.0, 1.0])
    assert (found.method, found.format) == (sources[0].method, sources[0].format)
    told = json.loads((out / "adapterhub.json").read_text())["lineage"]
    assert told["parameters"]["reproducible"] is True
    assert [each["weight"] for each in told["inputs"]] == [3.0, 1.0]
    return found


# --- kinds of our own format ------------------------------------------------------------------

BOTTLENECK = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 2,
    "non_linearity": "relu",
}


def sparse(seed: int) -> dict[str, Any]:
    places = np.sort(np.random.default_rng(seed).choice(24, 5, replace=False)).astype(np.int64)
    return {f"{K}:weight.indices": places, f"{K}:weight.values": noise(seed, 5)}


@pytest.mark.parametrize("method", ["bitfit", "ln_tuning", "beft"])
def test_vectors_that_are_trained(method: str, registry: Registry, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        if method == "bitfit":
            path = native(tmp_path / str(seed), method, {f"{K}.bias": noise(seed, 8)})
        elif method == "ln_tuning":
            name = "base_model.model.model.norm.ln_tuning_layers.weight"
            fields = {"peft_type": "LN_TUNING", "target_modules": ["norm"]}
            path = saved(tmp_path / str(seed), {name: noise(seed, 8)}, **fields)
        else:
            fields = {"peft_type": "BEFT", "target_modules": ["k_proj"]}
            tensors = {f"base_model.model.{K}.beft_bias": noise(seed, 1, 8)}
            path = saved(tmp_path / str(seed), tensors, **fields)
        paths.append(path)
    average(registry, tmp_path / "out", paths)


def as_kind(method: str, path: Path, seed: int) -> Path:
    """A bottleneck of AdapterHub's own as another method, with values of this seed."""
    source = read(ROOT / "golden" / "adapters" / "bert" / "pfeiffer")
    modules = {
        module: {role: ArrayTensor(noise(seed + n, *t.shape)) for n, (role, t) in enumerate(own)}
        for module, roles in source.modules.items()
        for own in [sorted(roles.items())]
    }
    path.mkdir()
    formats.write(Adapter(method, "native", BOTTLENECK, modules), path, to="native")
    return path


def test_bottlenecks_of_our_own_format(registry: Registry, tmp_path: Path) -> None:
    average(
        registry, tmp_path / "out", [as_kind("bottleneck", tmp_path / str(n), n) for n in (1, 9)]
    )


def masked(adapter: Adapter, seed: int, ending: str) -> Adapter:
    """No format has these yet."""
    dice, modules = np.random.default_rng(seed), {}
    for module, roles in adapter.modules.items():
        modules[module] = {f"{role}{ending}": tensor for role, tensor in roles.items()}
        for role, tensor in roles.items():
            mask = (dice.random(tensor.shape) < 0.5).astype(np.float32)
            modules[module][f"{role}_mask"] = ArrayTensor(mask)
    return replace(adapter, method="sparse_adapter", modules=modules)


def used(adapter: Adapter, ending: str) -> dict[tuple[str, str], Any]:
    found = values(adapter)
    return {
        (m, role): array * found[m, f"{role.removesuffix(ending)}_mask"]
        for (m, role), array in found.items()
        if not role.endswith("_mask")
    }


@pytest.mark.parametrize("ending", ["", "_orig"])
def test_pruned_bottlenecks(ending: str, tmp_path: Path) -> None:
    inputs = []
    for seed, weight in ((1, 3.0), (2, 1.0)):
        source = read(as_kind("bottleneck", tmp_path / str(seed), seed))
        pruned = masked(source, seed, ending)
        inputs.append(Input(str(seed), pruned, weight, base={"name": "owner/base"}))
    _, made = tensorwise.composed(inputs, Options("average"))
    one, two = (used(each.adapter, ending) for each in inputs)
    found = used(made, ending)
    assert found.keys() == one.keys() and found
    for place, array in found.items():
        assert np.allclose(array, 0.75 * one[place] + 0.25 * two[place], atol=1e-6)
    dropped = [(array == 0).mean() for array in found.values()]
    assert 0.1 < np.mean(dropped) < 0.4  # a quarter is in neither


@pytest.mark.parametrize("method", ["fishmask", "diff_pruning"])
@pytest.mark.parametrize(("how", "weights"), [("sum", (2, -1)), ("average", (0.75, 0.25))])
def test_unions_of_sparse_sets(
    method: str, how: str, weights: Any, registry: Registry, tmp_path: Path
) -> None:
    shapes, expected, specs = {f"{K}.weight": [4, 6]}, np.zeros(24), []
    for seed, weight in zip((1, 2), weights, strict=True):
        path = native(tmp_path / str(seed), method, sparse(seed), shapes=shapes)
        where, what = sparse(seed).values()
        expected[where] += weight * what.astype(np.float64)
        specs.append((path, weight * (4 if how == "average" else 1)))
    api.compose(specs, method=how, out=tmp_path / "out", registry=registry)
    assert read(tmp_path / "out").method == method
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    places = found[f"{K}:weight.indices"]
    assert places.tolist() == np.flatnonzero(expected).tolist()
    assert np.allclose(found[f"{K}:weight.values"], expected[places], atol=1e-6)


def test_sparse_sets_of_other_shapes(registry: Registry, tmp_path: Path) -> None:
    paths = [
        native(tmp_path / str(wide), "fishmask", sparse(1), shapes={f"{K}.weight": [4, wide]})
        for wide in (6, 7)
    ]
    with pytest.raises(NotMergeable, match=r"k_proj\.weight is \[4, 7\] in .*, \[4, 6\]"):
        api.compose(paths, out=tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()


# --- AdaMix -----------------------------------------------------------------------------------


def experts(seed: int, scores: Any = None) -> dict[str, Any]:
    found, start = {}, "bert.encoder.layer.0.output.ExpertSoup"
    for side, count, shape in (("MoA_A", 3, (2, 6)), ("MoA_B", 1, (6, 2))):
        for k in range(count):
            expert = f"{start}.{side}.deepspeed_experts.{k}"
            found[f"{expert}.weight"] = noise(seed + 10 * k, *shape)
            found[f"{expert}.bias"] = noise(seed + 10 * k + 1, shape[0])
    if scores is not None:
        found[f"{start}.MoA_A.expert_score_weight"] = np.array(scores, np.float32)
    return found


@pytest.mark.parametrize("scores", [None, [0.5, -1.0, 2.0]])
@pytest.mark.parametrize("format", ["adamix", "native"])
def test_the_mean_of_experts_is_that_of_the_bottlenecks(
    scores: Any, format: str, registry: Registry, tmp_path: Path
) -> None:
    paths = []
    for seed in (1, 2):
        path = tmp_path / str(seed)
        if format == "native":
            native(path, "adamix", experts(seed, scores), num_experts=3)
        else:
            path.mkdir()
            save_file(experts(seed, scores), path / "expert_soup.safetensors")
        paths.append(path)
    made = average(registry, tmp_path / "out", paths)
    assert_mean(averaged(made), [averaged(read(path)) for path in paths], [3.0, 1.0])


def test_experts_that_are_mixed_differently(registry: Registry, tmp_path: Path) -> None:
    paths = [
        native(tmp_path / str(n), "adamix", experts(n, [n, 0, 1]), num_experts=3) for n in (1, 2)
    ]
    with pytest.raises(NotMergeable, match="weigh their experts differently") as error:
        api.compose(paths, method="average", out=tmp_path / "out", registry=registry)
    assert error.value.details == (f"{paths[0]}: [1.0, 0.0, 1.0]", f"{paths[1]}: [2.0, 0.0, 1.0]")
    assert not (tmp_path / "out").exists()


# --- prompts ----------------------------------------------------------------------------------


def prompt(path: Path, seed: int, kind: str, tokens: int = 3) -> Path:
    fields = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": tokens,
        "token_dim": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
    }
    tensors = {"prompt_embeddings": noise(seed, tokens, 4)}
    if kind == "MULTITASK_PROMPT_TUNING":
        fields |= {"num_tasks": 2, "num_ranks": 1}
        tensors |= {
            "prefix_task_cols": noise(seed + 1, 2, tokens, 1),
            "prefix_task_rows": noise(seed + 2, 2, 1, 4),
        }
    return saved(path, tensors, **fields)


@pytest.mark.parametrize(
    "kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"]
)
def test_the_mean_of_prompts(kind: str, registry: Registry, tmp_path: Path) -> None:
    average(registry, tmp_path / "out", [prompt(tmp_path / str(n), n, kind) for n in (1, 5)])


def test_prompts_of_other_models_do_not_stand_in_a_row(registry: Registry, tmp_path: Path) -> None:
    paths = [prompt(tmp_path / "1", 1, "PROMPT_TUNING")]
    config = json.loads((paths[0] / "adapter_config.json").read_text())
    paths.append(
        saved(tmp_path / "2", {"prompt_embeddings": noise(1, 3, 8)}, **config | {"token_dim": 8})
    )
    with pytest.raises(NotMergeable, match="differ in what their tensors mean") as error:
        api.compose(paths, method="concat", out=tmp_path / "out", registry=registry)
    assert "token_dim: 4, 8" in error.value.details
    fields = {"peft_type": "P_TUNING", "num_virtual_tokens": 3}
    bare = [
        saved(tmp_path / f"bare{n}", {"prompt_embeddings": noise(n, 3, n)}, **fields)
        for n in (4, 8)
    ]
    with pytest.raises(NotMergeable, match="differ in width"):
        api.compose(bare, method="concat", out=tmp_path / "out", registry=registry)
    for file in ("1.npy", "2.npy"):
        np.save(tmp_path / file, noise(1, 2, 4 * int(file[0])))
    files = [tmp_path / "1.npy", tmp_path / "2.npy"]
    for method, said in (("concat", "token_dim|differ in width"), ("average", "token_dim|another")):
        with pytest.raises(NotMergeable) as error:
            api.compose(
                files, method=method, out=tmp_path / "o", force_base=True, registry=registry
            )
        assert re.search(said, f"{error.value} {' '.join(error.value.details)}")


def test_prompts_in_a_row_run_in_peft(registry: Registry, tmp_path: Path) -> None:
    """A model with both sees the tokens of one, then those of the other."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    rows = []
    for seed, tokens in ((1, 2), (2, 3)):
        torch.manual_seed(seed)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
        live = peft.get_peft_model(model(LLAMA), config)
        live.save_pretrained(tmp_path / str(seed))
        rows.append(live.get_prompt_embedding_to_save("default"))
    paths = [tmp_path / "1", tmp_path / "2"]
    api.compose(paths, method="concat", out=tmp_path / "out", force_base=True, registry=registry)
    tokens = torch.tensor([[1, 5, 7, 2]])
    base = model(LLAMA)
    embedded = base.get_input_embeddings()(tokens)
    with torch.no_grad():
        seen = torch.cat([*(row[None] for row in rows), embedded], dim=1)
        expected = base(inputs_embeds=seen).logits[:, 5:]
        found = peft_of(model(LLAMA), tmp_path / "out")(tokens).logits[:, 5:]
    assert torch.allclose(found, expected, atol=1e-5)


def test_prompts_of_t5x(registry: Registry, tmp_path: Path) -> None:
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for seed, path in enumerate(paths):
        np.save(path, noise(seed, 3, 4))
    with pytest.raises(BaseMismatch, match="not known to be of one base"):
        api.compose(paths, method="average", out=tmp_path / "out", registry=registry)
    average(registry, tmp_path / "out", paths)
    api.compose(paths, method="concat", out=tmp_path / "row", force_base=True, registry=registry)
    found = np.load(next((tmp_path / "row").glob("*.npy")))
    assert (found == np.concatenate([noise(0, 3, 4), noise(1, 3, 4)])).all()


# --- SHiRA ------------------------------------------------------------------------------------


def test_a_union_by_hand() -> None:
    one = np.array([[0, 2, 0], [1, 0, 1]]), np.array([1.0, 2.0, 4.0])  # (0, 1) stands twice
    other = np.array([[2, 1], [0, 5]]), np.array([-2.0, 3.0])
    where, what = union([one, other])
    assert where.tolist() == [[0, 1, 2], [1, 5, 0]] and what.tolist() == [5.0, 3.0, 0.0]


def shira(path: Path, seed: int, rank: int, **fields: Any) -> Any:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.ShiraConfig(
        r=rank, target_modules=["q_proj", "down_proj"], random_seed=seed, **fields
    )
    live = peft.get_peft_model(model(LLAMA), config)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "shira_weight" in name:
                parameter.add_(torch.randn_like(parameter))
    live.save_pretrained(path)
    return live.eval()


@pytest.mark.parametrize(("how", "weights"), [("sum", (2.0, -0.5)), ("average", (0.75, 0.25))])
def test_shira_is_the_union_in_peft_too(
    how: str, weights: Any, registry: Registry, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    paths = [tmp_path / "a", tmp_path / "b"]
    lives = [shira(paths[0], 1, 1), shira(paths[1], 2, 2)]
    api.compose(
        list(zip(paths, weights, strict=True)),
        method=how,
        out=tmp_path / "out",
        force_base=True,
        registry=registry,
    )
    base = model(LLAMA)
    theirs = [dict(each.merge_and_unload().named_parameters()) for each in lives]
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            old = parameter.clone()
            for weight, found in zip(weights, theirs, strict=True):
                parameter += weight * (found[name] - old)
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        found = peft_of(model(LLAMA), tmp_path / "out")(tokens).logits
        assert torch.allclose(found, base(tokens).logits, atol=1e-5)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3


def places(path: Path, seed: int, count: int, rank: Any, module: str = K) -> Path:
    dice = np.random.default_rng(seed)
    start = f"base_model.model.{module}.shira_"
    tensors = {
        f"{start}indices": dice.integers(0, 6, (2, count)).astype(np.int32),
        f"{start}weight": noise(seed, count),
    }
    return saved(path, tensors, peft_type="SHIRA", r=rank, target_modules=["k_proj", "v_proj"])


def test_shira_less_itself_is_nothing(registry: Registry, tmp_path: Path) -> None:
    path = places(tmp_path / "a", 1, 14, 1)
    api.compose([path, (path, -1.0)], out=tmp_path / "out", registry=registry)
    (roles,) = read(tmp_path / "out").modules.values()
    assert not roles["shira_weight"].read().any() and roles["shira_weight"].shape == (14,)


def test_shira_of_other_modules_and_of_other_sizes(registry: Registry, tmp_path: Path) -> None:
    other = K.replace("k_proj", "v_proj")
    a, b = places(tmp_path / "a", 1, 14, 1), places(tmp_path / "b", 2, 20, 2, other)
    api.compose([a, b], out=tmp_path / "out", registry=registry)
    counts = {m: roles["shira_weight"].shape for m, roles in read(tmp_path / "out").modules.items()}
    assert counts == {K: (28,), other: (20,)}  # one r for both, as PEFT has it
    wrong = places(tmp_path / "c", 3, 16, 1)
    with pytest.raises(NotMergeable, match="14 and 16 inputs and outputs"):
        api.compose([a, wrong], out=tmp_path / "no", registry=registry)
    with pytest.raises(NotMergeable, match="has 15 places, no multiple of r=2"):
        api.compose([places(tmp_path / "d", 4, 15, 2)], out=tmp_path / "no", registry=registry)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices": np.zeros((2, 13), np.int32)},
        {"indices": np.zeros((3, 14), np.int32)},
        {"indices": np.zeros(14, np.int32)},
        {"indices": np.full((2, 14), -1, np.int32)},
        {"indices": np.full((2, 14), 0.5, np.float32)},
        {"indices": np.full((2, 14), np.nan, np.float32)},
        {"indices": np.full((2, 14), 3e9, np.float32)},
        {"weight": np.full(14, np.nan, np.float32)},
        {"weight": np.zeros((14, 1), np.float32)},
        {"weight": np.zeros(0, np.float32), "indices": np.zeros((2, 0), np.int32)},
    ],
)
def test_damaged_places(wrong: dict[str, Any], registry: Registry, tmp_path: Path) -> None:
    good, bad = places(tmp_path / "a", 1, 14, 1), places(tmp_path / "b", 2, 14, 1)
    file = bad / "adapter_model.safetensors"
    changed = {f"base_model.model.{K}.shira_{role}": array for role, array in wrong.items()}
    save_file({**load_file(file), **changed}, file, {"format": "pt"})
    with pytest.raises(AdapterHubError):
        api.compose([good, bad], out=tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()


# --- (IA)³ as PEFT adds it up -----------------------------------------------------------------


def test_vectors_as_peft_averages_them(registry: Registry, tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    targets = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    live = peft.get_peft_model(model(LLAMA), peft.IA3Config(**targets), "a")
    live.add_adapter("b", peft.IA3Config(**targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "ia3_l" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    live.save_pretrained(tmp_path)
    live.base_model.add_weighted_adapter(["a", "b"], [0.25, 0.75], "both")
    live.set_adapter("both")
    api.compose(
        [(tmp_path / "a", 1.0), (tmp_path / "b", 3.0)],
        method="average",
        out=tmp_path / "out",
        force_base=True,
        registry=registry,
    )
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        found = peft_of(model(LLAMA), tmp_path / "out")(tokens).logits
        assert torch.allclose(found, live.eval()(tokens).logits, atol=1e-5)
        assert not torch.allclose(found, model(LLAMA)(tokens).logits, atol=1e-2)


# --- what does not go together ----------------------------------------------------------------


def test_formats_and_configs_that_differ(registry: Registry, tmp_path: Path) -> None:
    own = native(tmp_path / "a", "bitfit", {f"{K}.bias": noise(1, 8)})
    save_file({f"{K}.bias": noise(2, 8)}, tmp_path / "b.safetensors")
    options: Any = {"method": "average", "force_base": True, "registry": registry}
    with pytest.raises(NotSupported, match="bitfit adapters in different formats"):
        api.compose([own, tmp_path / "b.safetensors"], out=tmp_path / "out", **options)
    relu, gelu = as_kind("bottleneck", tmp_path / "c", 1), as_kind("bottleneck", tmp_path / "d", 2)
    config = json.loads((gelu / "adapter_config.json").read_text())
    (gelu / "adapter_config.json").write_text(json.dumps({**config, "non_linearity": "gelu"}))
    with pytest.raises(NotMergeable, match="differ in what their tensors mean") as error:
        api.compose([relu, gelu], out=tmp_path / "out", **options)
    assert "non_linearity: 'relu', 'gelu'" in error.value.details
    assert not (tmp_path / "out").exists()


KINDS: dict[str, tuple[str, Any]] = {
    "ia3": ("ia3", lambda p: ia3(p, 1)),
    "bitfit": ("bitfit", lambda p: native(p, "bitfit", {f"{K}.bias": noise(1, 8)})),
    "fishmask": (
        "fishmask",
        lambda p: native(p, "fishmask", sparse(1), shapes={f"{K}.weight": [4, 6]}),
    ),
    "shira": ("shira", lambda p: places(p, 1, 14, 1)),
    "bottleneck": ("bottleneck", lambda p: as_kind("bottleneck", p, 1)),
    "adamix": ("adamix", lambda p: native(p, "adamix", experts(1), num_experts=3)),
    "prompt": ("prompt_tuning", lambda p: prompt(p, 1, "PROMPT_TUNING")),
    "prefix": ("prefix_tuning", lambda p: prompt(p, 1, "PREFIX_TUNING")),
    "lora": ("lora", lambda p: lora(p, 1)),
}


def ia3(path: Path, seed: int) -> Path:
    fields = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    return saved(path, {f"base_model.model.{K}.ia3_l": noise(seed, 8, 1)}, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_with_others_and_by_methods_that_are_not_its_own(
    kind: str, registry: Registry, tmp_path: Path
) -> None:
    name, build = KINDS[kind]
    path = build(tmp_path / "it")
    other, others = KINDS["lora" if kind != "lora" else "ia3"]
    options: Any = {"out": tmp_path / "out", "force_base": True, "registry": registry}
    with pytest.raises(NotSupported, match="cannot be composed with each other") as error:
        api.compose([path, others(tmp_path / "other")], method="average", **options)
    assert set(error.value.details) == {f"{path}: {name}", f"{tmp_path / 'other'}: {other}"}
    with pytest.raises(NotSupported, match=r"cannot be composed by (ties|concat)"):
        api.compose([path], method="concat" if kind == "lora" else "ties", **options)
    assert not (tmp_path / "out").exists()


def test_what_nothing_composes_says_what_to_do(registry: Registry, tmp_path: Path) -> None:
    path = ROOT / "golden" / "adapters" / "bert" / "unipelt"
    with pytest.raises(NotSupported, match="unipelt adapters cannot be composed by") as error:
        api.compose([path], method="average", out=tmp_path / "out", registry=registry)
    assert "attach them to a model" in error.value.remedy
    oft = saved(
        tmp_path / "oft",
        {f"base_model.model.{K}.oft_R.weight": noise(1, 2, 6)},
        peft_type="OFT",
        oft_block_size=4,
        target_modules=["k_proj"],
    )
    with pytest.raises(NotSupported, match="oft adapters cannot be composed by sum") as error:
        api.compose([oft], out=tmp_path / "out", registry=registry)
    assert "adapterhub resize" in error.value.remedy


# --- made by AdapterHub -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prefix", "prefix_flat", "prefix_gated", "mam", "late"])
def test_what_adapterhub_wrote(kind: str, registry: Registry, tmp_path: Path) -> None:
    source = ROOT / "golden" / "adapters" / "bert" / kind
    average(registry, tmp_path / "out", [source, nudged(source, tmp_path / "other", 5)])


# --- made by strangers ------------------------------------------------------------------------


def test_google_s_prompts(corpus: Path, registry: Registry, tmp_path: Path) -> None:
    at = corpus / "adapters" / "google-prompts-t5-base-npy"
    average(registry, tmp_path / "out", [at / "mrpc.npy", at / "sst2.npy"])


def nudged(source: Path, path: Path, seed: int) -> Path:
    """The adapter with other values, in its own format."""
    adapter = read(source)
    modules = {
        module: {role: ArrayTensor(t.read() + noise(seed, *t.shape)) for role, t in roles.items()}
        for module, roles in adapter.modules.items()
    }
    path.mkdir()
    other = Adapter(
        adapter.method, adapter.format, adapter.config, modules, adapter.base, adapter.task,
        adapter.labels,
    )  # fmt: skip
    formats.write(other, path, to=adapter.format)
    return path


@pytest.mark.parametrize(
    "name", ["tfew-t03b-ia3", "mt0-large-ia3-bin", "gpt2-prompt-tuning-bin", "adapterhub-bert-md"]
)
def test_an_average_with_a_real_one(
    name: str, corpus: Path, registry: Registry, tmp_path: Path
) -> None:
    source = corpus / "adapters" / name
    other = nudged(source, tmp_path / "other", 3)
    specs: Any = [(source, 3.0), (other, 1.0)]
    options: Any = {"method": "average", "force_base": True, "allow_pickle": True}
    options["whole"] = "average"
    api.compose(specs, name="both", registry=registry, **options)
    assert_mean(registry.load("both").adapter, [read(source), read(other)], [3.0, 1.0])
