"""LoRAs resized, and other methods made LoRAs, against dense fp64 and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import Q, V, assert_close, deltas, lora
from extracting_building import GPT2, LLAMA, QWEN, Kind, config_of, model, peft_of
from safetensors.numpy import load_file

import adapterhub as ah
from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.base import open_base
from adapterhub.errors import InvalidOption, NotMergeable, NotSupported
from adapterhub.methods import Delta, LowRank, Transform, method
from adapterhub.registry.naming import Naming
from adapterhub.registry.shaped import settled

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))


def opened(path: Path) -> Adapter:
    reading = formats.read(path)
    assert reading.fatal == () and reading.adapter is not None
    return reading.adapter


def best(delta: Any, rank: int) -> Any:
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("given", [{"rank": 2}, {"energy": 0.9}, {"rank": 3, "energy": 0.7}])
def test_a_lora_becomes_the_best_of_its_rank(tmp_path: Path, given: dict[str, Any]) -> None:
    path = lora(tmp_path / "a", 1, rank=5, use_rslora=True, alpha_pattern={"q_proj": 3})
    report = ah.resize(path, out=tmp_path / "out", **given)
    expected = {}
    for module, delta in deltas(opened(path)).items():
        s = np.linalg.svd(delta, compute_uv=False)
        shares = np.cumsum(s**2) / np.sum(s**2)
        rank = given.get("rank", len(s))
        if "energy" in given:
            rank = min(rank, int(np.searchsorted(shares, given["energy"])) + 1)
        expected[module] = best(delta, rank)
        one = next(one for one in report.modules if one.module == module)
        assert one.rank == rank
        assert one.error == pytest.approx(np.sqrt(1 - shares[rank - 1]), abs=1e-6)
    assert_close(deltas(opened(tmp_path / "out")), expected)
    assert not report.reproducible and report.method == "lora"
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["lineage"]["operation"] == "resize"
    assert manifest["lineage"]["parameters"]["reproducible"] is False


def test_uniform_gives_all_one_rank(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1, rank=5, alpha_pattern={"q_proj": 60})
    report = ah.resize(path, energy=0.8, uniform=True, out=tmp_path / "out")
    spectra = [np.linalg.svd(d, compute_uv=False)[:5] for d in deltas(opened(path)).values()]
    squares = np.sum([s**2 for s in spectra], axis=0)
    rank = int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.8)) + 1
    assert {one.rank for one in report.modules} == {rank}
    own = ah.resize(path, energy=0.8, out=tmp_path / "own")
    assert {one.rank for one in own.modules} != {rank}
    assert report.error is not None and report.error <= np.sqrt(0.2)
    expected = {module: best(delta, rank) for module, delta in deltas(opened(path)).items()}
    assert_close(deltas(opened(tmp_path / "out")), expected)


def test_a_larger_rank_leaves_it_to_the_bit(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1, rank=3)
    report = ah.resize(path, rank=8, out=tmp_path / "out")
    assert report.reproducible and report.error is None
    assert report.notes == ["modules that keep their own, lower rank: 2"]
    files = [load_file(p / "adapter_model.safetensors") for p in (path, tmp_path / "out")]
    assert files[0].keys() == files[1].keys()
    assert all(files[1][name].tobytes() == values.tobytes() for name, values in files[0].items())
    assert deltas(opened(tmp_path / "out"))[Q].tobytes() == deltas(opened(path))[Q].tobytes()


def test_into_the_registry_and_again(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1, rank=5)
    with ah.open() as reg:
        reg.add(path, name="a")
        first = ah.resize("a", rank=2, name="small", registry=reg)
        again = ah.resize("a", rank=2, name="small", registry=reg)
        assert first.version == again.version
        lineage = reg.show("small")["manifest"]["lineage"]
        assert lineage["inputs"][0]["digest"] == reg.show("a")["digest"]
        assert lineage["parameters"] == {
            "rank": 2,
            "energy": None,
            "uniform": False,
            "reproducible": False,
        }


def test_heads_and_biases_come_along(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1, rank=4, modules_to_save=["score"], lora_bias=True)
    from safetensors.numpy import save_file

    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.score.weight"] = np.ones((3, 8), np.float32)
    bias = np.arange(12, dtype=np.float32)
    tensors[f"base_model.model.{Q}.lora_B.bias"] = bias
    save_file(tensors, file, {"format": "pt"})
    ah.resize(path, rank=2, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found["base_model.model.score.weight"].tolist() == [[1.0] * 8] * 3
    config = config_of(tmp_path / "out")
    assert config["modules_to_save"] == ["score"] and config["lora_bias"]
    scale = config["lora_alpha"] / config["r"]
    assert np.allclose(scale * found[f"base_model.model.{Q}.lora_B.bias"], 6 / 4 * bias)
    assert not found[f"base_model.model.{V}.lora_B.bias"].any()


# --- other methods ----------------------------------------------------------------------------

PROJECTIONS = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
CONV1D = {"target_modules": ["c_attn", "mlp.c_proj"]}
BANK = {"r": 3, "num_vectors": 16, "vector_length": 4, "topk": 2}
TOPK = {"save_only_topk_weights": True}
MINI = {"r": 8, "mini_r": 2, "init_weights": "mini"}
METHODS: list[tuple[str, str, dict[str, Any], Kind, int]] = [
    ("loha", "LoHaConfig", {**PROJECTIONS, "r": 2, "alpha": 3}, LLAMA, 4),
    ("lokr", "LoKrConfig", {**PROJECTIONS, "r": 2, "alpha": 5, "decompose_factor": 4}, LLAMA, 99),
    ("vera", "VeraConfig", {**PROJECTIONS, "r": 4, "d_initial": 0.3}, LLAMA, 4),
    ("vera-conv1d", "VeraConfig", {**CONV1D, "r": 4, "d_initial": 0.3}, GPT2, 4),
    ("fourierft", "FourierFTConfig", {**PROJECTIONS, "n_frequency": 9}, LLAMA, 99),
    ("randlora", "RandLoraConfig", {**PROJECTIONS, "r": 5}, LLAMA, 99),
    ("shira", "ShiraConfig", {**PROJECTIONS, "r": 2}, LLAMA, 99),
    ("delora", "DeloraConfig", {**PROJECTIONS, "r": 3}, LLAMA, 3),
    ("gralora", "GraloraConfig", {**PROJECTIONS, "r": 4}, LLAMA, 8),
    ("c3a", "C3AConfig", {**PROJECTIONS, "block_size": 4}, LLAMA, 99),
    ("adalora", "AdaLoraConfig", {**PROJECTIONS, "init_r": 3, "total_step": 9}, LLAMA, 3),
    ("lokr-whole", "LoKrConfig", {**PROJECTIONS, "r": 64, "decompose_factor": 4}, LLAMA, 99),
    ("gralora-hybrid", "GraloraConfig", {**PROJECTIONS, "r": 4, "hybrid_r": 2}, LLAMA, 10),
    ("vblora", "VBLoRAConfig", {**PROJECTIONS, **BANK}, LLAMA, 3),
    ("vblora-topk", "VBLoRAConfig", {**PROJECTIONS, **BANK, **TOPK}, LLAMA, 3),
    ("pvera", "PveraConfig", {**PROJECTIONS, "r": 4}, LLAMA, 4),
    ("miss", "MissConfig", {**PROJECTIONS, "r": 3}, LLAMA, 3),
    ("miss-mini", "MissConfig", {**PROJECTIONS, **MINI}, LLAMA, 8),
    ("waveft", "WaveFTConfig", {**PROJECTIONS, "n_frequency": 9}, LLAMA, 99),
]
# What stays a product of factors, to the bit: no decomposition, whatever rank is asked for.
OF_FACTORS = {"loha": 4, "vera": 4, "delora": 3, "gralora": 8, "adalora": 3, "gralora-hybrid": 10}
OF_FACTORS |= {"vblora": 3, "vblora-topk": 3, "pvera": 4, "miss": 3, "miss-mini": 8}


def trained(tmp_path: Path, config: str, fields: dict[str, Any], kind: Kind) -> Any:
    """PEFT's model of a random adapter, both saved."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = model(kind)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    live = peft.get_peft_model(base, getattr(peft, config)(**fields)).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    live.save_pretrained(tmp_path / "adapter")
    return live


NOWHERE: Any = None  # no method here looks around


def dense(path: Path, base: Path) -> dict[str, Any]:
    adapter = opened(path)
    naming, found = Naming(open_base(base)), {}
    for part in settled(naming, method(adapter.method).implementation.meaning(adapter)):
        assert isinstance(part, LowRank | Delta | Transform)
        if isinstance(part, Transform):  # PEFT's own sum
            weight = np.asarray(naming.base.tensors[f"{part.module}.weight"].read(), np.float64)
            became = part.within(NOWHERE)(weight.astype(np.float32))
            found[part.module] = became.astype(np.float64) - weight
        elif isinstance(part, LowRank):
            b, a = (np.asarray(t.read(), np.float64) for t in (part.b, part.a))
            found[part.module] = part.scale * b @ a
        else:
            found[part.module] = part.scale * np.asarray(part.value.read(), np.float64)
    return found


@pytest.mark.parametrize(
    ("config", "fields", "kind", "rank"), [row[1:] for row in METHODS], ids=[r[0] for r in METHODS]
)
def test_what_adds_becomes_a_lora(
    tmp_path: Path, config: str, fields: dict[str, Any], kind: Kind, rank: int
) -> None:
    import torch

    live = trained(tmp_path, config, fields, kind)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    report = ah.resize(adapter, rank=rank, base=tmp_path / "base", out=out)
    expected = dense(adapter, tmp_path / "base")
    assert_close(deltas(opened(out)), expected, 2e-6)
    assert report.error is None or report.error < 1e-5
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        wanted = live(tokens).logits
        assert torch.allclose(peft_of(model(kind), out)(tokens).logits, wanted, atol=1e-4)
    small = ah.resize(adapter, rank=1, base=tmp_path / "base", out=tmp_path / "small")
    assert {one.rank for one in small.modules} == {1}
    found = deltas(opened(tmp_path / "small"))
    for one in small.modules:  # equal singular values leave more than one best
        delta = expected[one.module]
        lost = np.linalg.norm(delta - best(delta, 1)) / np.linalg.norm(delta)
        assert one.error == pytest.approx(lost, abs=1e-5)
        away = np.linalg.norm(delta - found[one.module]) / np.linalg.norm(delta)
        assert away == pytest.approx(lost, abs=1e-5)


@pytest.mark.parametrize("name", OF_FACTORS)
def test_what_has_factors_keeps_them(name: str, tmp_path: Path) -> None:
    config, fields, kind = next(row[1:4] for row in METHODS if row[0] == name)
    trained(tmp_path, config, fields, kind)
    report = ah.resize(tmp_path / "adapter", rank=99, base=tmp_path / "base", out=tmp_path / "out")
    assert {one.rank for one in report.modules} == {OF_FACTORS[name]}
    assert report.error is None


def test_what_peft_adds_needs_a_base_and_is_compared_as_a_sum(tmp_path: Path) -> None:
    trained(tmp_path, "WaveFTConfig", {**PROJECTIONS, "n_frequency": 9}, LLAMA)
    path, base = tmp_path / "adapter", tmp_path / "base"
    with pytest.raises(NotSupported, match="hangs on the shapes of its base"):
        ah.resize(path, rank=99, out=tmp_path / "out")
    report = ah.resize(path, rank=99, base=base, out=tmp_path / "out")
    assert not report.reproducible
    found = ah.compare([path, tmp_path / "out"], base=base)
    assert found.pairs[0].cosine == pytest.approx(1, abs=1e-6)
    assert found.adapters[0].norm == pytest.approx(found.adapters[1].norm, rel=1e-6)
    with pytest.raises(NotSupported) as error:
        ah.compare([path, tmp_path / "out"])
    assert "--base BASE" in error.value.details[0]


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 4), (2, 2)])
@pytest.mark.parametrize("whole", [True, False])
def test_a_kronecker_product_has_the_lower_of_its_ranks(
    shape: tuple[int, int], whole: bool
) -> None:
    from adapterhub.composing.converting import _lokr
    from adapterhub.tensorfile import ArrayTensor

    def noise(seed: int, *sides: int) -> Any:
        return np.random.default_rng(seed).standard_normal(sides).astype(np.float32)

    w1, w2_a, w2_b = noise(1, *shape), noise(2, 5, 2), noise(3, 2, 4)
    roles: dict[str, Any] = {"lokr_w1": w1}
    if not whole:
        one, other = noise(4, shape[0], 1), noise(5, 1, shape[1])
        roles, w1 = {"lokr_w1_a": one, "lokr_w1_b": other}, one @ other
    roles |= {"lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
    pair = _lokr({role: ArrayTensor(array) for role, array in roles.items()})
    assert pair is not None
    a, b = (tensor.read().astype(np.float64) for tensor in pair)
    assert len(a) == 2 * min(shape)
    assert np.allclose(b @ a, np.kron(w1.astype(np.float64), w2_a @ w2_b), atol=1e-5)


def test_miss_by_hand(tmp_path: Path) -> None:
    """ΔW[o, i] = M[i mod r, o]"""
    from adapterhub.composing.converting import _miss
    from adapterhub.tensorfile import ArrayTensor

    block = ArrayTensor(np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    a, b = (tensor.read() for tensor in _miss(block, (3, 5)))
    assert (b @ a).tolist() == [[1, 4, 1, 4, 1], [2, 5, 2, 5, 2], [3, 6, 3, 6, 3]]
    a, b = (tensor.read() for tensor in _miss(block, (6, 3)))  # mini
    assert (b @ a).tolist() == 2 * [[1, 4, 1], [2, 5, 2], [3, 6, 3]]


def test_loha_needs_no_base_and_has_rank_squared(tmp_path: Path) -> None:
    trained(tmp_path, "LoHaConfig", {"target_modules": ["q_proj"], "r": 3, "alpha": 4}, LLAMA)
    report = ah.resize(tmp_path / "adapter", rank=9, out=tmp_path / "out")
    assert {one.rank for one in report.modules} == {9}
    assert report.reproducible and report.error is None and report.method == "loha"
    assert_close(deltas(opened(tmp_path / "out")), dense(tmp_path / "adapter", tmp_path / "base"))


@pytest.mark.parametrize("saved", [True, False])
def test_factors_made_anew_from_a_seed_are_not_the_same_everywhere(
    saved: bool, tmp_path: Path
) -> None:
    fields = {**PROJECTIONS, "r": 4, "d_initial": 0.3, "save_projection": saved}
    trained(tmp_path, "VeraConfig", fields, LLAMA)
    report = ah.resize(tmp_path / "adapter", rank=4, base=tmp_path / "base", out=tmp_path / "out")
    assert report.error is None and report.reproducible is saved
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["lineage"]["parameters"]["reproducible"] is saved


def test_a_change_of_an_embedding_is_that_of_its_transpose(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model(LLAMA).save_pretrained(tmp_path / "base")
    path, name = tmp_path / "adapter", "model.embed_tokens"
    path.mkdir()
    change = np.zeros((24, 16), np.float32)
    change[3:6, 2:9] = np.random.default_rng(1).standard_normal((3, 7))
    where = np.flatnonzero(change).astype(np.int64)
    tensors = {f"{name}:weight.indices": where, f"{name}:weight.values": change.reshape(-1)[where]}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"adapterhub": 1, "method": "fishmask", "shapes": {f"{name}.weight": [24, 16]}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    ah.resize(path, rank=3, base=tmp_path / "base", out=tmp_path / "out")
    found = opened(tmp_path / "out").modules[name]
    b, a = (found[f"lora_embedding_{side}"].read() for side in "BA")
    assert (b.shape, a.shape) == ((16, 3), (3, 24))
    assert np.allclose((b @ a).T, change, atol=1e-5)


def test_biases_become_those_of_lora_b(tmp_path: Path) -> None:
    import torch

    fields = {"target_modules": ["q_proj", "v_proj"]}
    live = trained(tmp_path, "BeftConfig", fields, QWEN)
    with pytest.raises(NotSupported, match="only its bias changes"):
        ah.resize(tmp_path / "adapter", rank=4, out=tmp_path / "out")
    ah.resize(tmp_path / "adapter", rank=4, base=tmp_path / "base", out=tmp_path / "out")
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        found = peft_of(model(QWEN), tmp_path / "out")(tokens).logits
        assert torch.allclose(found, live(tokens).logits, atol=1e-5)


# --- refusals ---------------------------------------------------------------------------------


def test_what_is_no_sum_is_refused_by_name(tmp_path: Path) -> None:
    fields = {**PROJECTIONS, "feedforward_modules": ["down_proj"]}
    trained(tmp_path, "IA3Config", fields, LLAMA)
    out = tmp_path / "out"
    with pytest.raises(NotMergeable, match="is ia3, which does not add") as error:
        ah.resize(tmp_path / "adapter", rank=4, base=tmp_path / "base", out=out)
    assert "adapterhub extract" in error.value.remedy
    assert "model.layers.0.mlp.down_proj" in error.value.details
    assert not out.exists()


OF_A_BASE: list[tuple[str, dict[str, Any]]] = [
    ("HiraConfig", {"r": 3}),
    ("MissConfig", {"r": 4, "init_weights": "bat"}),
    ("OFTConfig", {"oft_block_size": 4}),
    ("GloraConfig", {"r": 3}),
    ("PsoftConfig", {"r": 3}),
]


@pytest.mark.parametrize(("config", "fields"), OF_A_BASE)
def test_so_is_what_hangs_on_the_weights(
    config: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    trained(tmp_path, config, {**PROJECTIONS, **fields}, LLAMA)
    with pytest.raises(NotMergeable, match="no LoRA is the same for every base"):
        ah.resize(tmp_path / "adapter", rank=4, base=tmp_path / "base", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dora_is_refused_by_name(tmp_path: Path) -> None:
    trained(tmp_path, "LoraConfig", {**PROJECTIONS, "use_dora": True}, LLAMA)
    with pytest.raises(NotMergeable, match="is a DoRA"):
        ah.resize(tmp_path / "adapter", rank=4, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shapes_are_asked_for(tmp_path: Path) -> None:
    trained(tmp_path, "VeraConfig", {**PROJECTIONS, "r": 4}, LLAMA)
    with pytest.raises(NotSupported, match="hangs on the shapes of its base") as error:
        ah.resize(tmp_path / "adapter", rank=4, out=tmp_path / "out")
    assert "--base" in error.value.remedy
    with ah.open() as reg:  # the base that was recorded is found
        reg.base.add(tmp_path / "base")
        reg.add(tmp_path / "adapter", name="v", base=tmp_path / "base")
        assert ah.resize("v", rank=4, out=tmp_path / "out", registry=reg).error is None


def test_options(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", 1)
    for wrong in ({}, {"rank": 0}, {"energy": 0}, {"energy": 1.1}):
        with pytest.raises(InvalidOption):
            ah.resize(path, out=tmp_path / "out", **wrong)
    with pytest.raises(InvalidOption, match="one of name and out"):
        ah.resize(path, rank=2)
    assert not (tmp_path / "out").exists()


# --- other layouts ----------------------------------------------------------------------------


def test_each_expert_and_an_embedding_is_cut_by_itself(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    dice = np.random.default_rng(3)
    experts, rank, out, into = 2, 3, 5, 4
    a = dice.standard_normal((experts * rank, into)).astype(np.float32)
    b = dice.standard_normal((out, rank * experts)).astype(np.float32)
    rows = dice.standard_normal((rank, 9)).astype(np.float32)
    columns = dice.standard_normal((6, rank)).astype(np.float32)
    start = "base_model.model.model"
    path = tmp_path / "a"
    path.mkdir()
    save_file(
        {
            f"{start}.layers.0.mlp.experts.lora_A.weight": a,
            f"{start}.layers.0.mlp.experts.lora_B.weight": b,
            f"{start}.embed_tokens.lora_embedding_A": rows,
            f"{start}.embed_tokens.lora_embedding_B": columns,
        },
        path / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["embed_tokens"],
        "target_parameters": ["mlp.experts.down_proj"],
        "base_model_name_or_path": "owner/base",
        "peft_version": "0.21.2",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    ah.resize(path, rank=1, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    new_a = found[f"{start}.layers.0.mlp.experts.lora_A.weight"]
    new_b = found[f"{start}.layers.0.mlp.experts.lora_B.weight"]
    assert (new_a.shape, new_b.shape) == ((experts, into), (out, experts))
    for e in range(experts):
        delta = b[:, e::experts].astype(np.float64) @ a[e * rank : (e + 1) * rank]
        assert np.allclose(new_b[:, e::experts] @ new_a[e : e + 1], best(delta, 1), atol=1e-5)
    product = columns.astype(np.float64) @ rows
    made = (found[f"{start}.embed_tokens.lora_embedding_{x}"] for x in "BA")
    assert np.allclose(next(made) @ next(made), best(product, 1), atol=1e-5)


def test_experts_of_different_ranks_share_the_largest(tmp_path: Path) -> None:
    """One has two directions that are worth keeping, the other one has one."""
    from safetensors.numpy import save_file

    dice, path = np.random.default_rng(4), tmp_path / "a"
    q, p = (np.linalg.qr(dice.standard_normal((n, 2)))[0] for n in (5, 4))
    wanted = [q * s @ p.T for s in ((3.0, 2.0), (3.0, 0.01))]
    a = np.ascontiguousarray(np.concatenate([p.T, p.T]), np.float32)  # expert by expert
    b = np.stack([q * (3.0, 2.0), q * (3.0, 0.01)], axis=2).reshape(5, -1)  # rank by rank
    start = "base_model.model.model.layers.0.mlp.experts.lora_"
    path.mkdir()
    tensors = {f"{start}A.weight": a, f"{start}B.weight": b.astype(np.float32)}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "peft_version": "0.21.2"}
    config |= {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}
    config |= {"base_model_name_or_path": "owner/base"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    ah.resize(path, energy=0.95, out=tmp_path / "resized")
    ah.compose([path], energy=0.95, out=tmp_path / "composed")
    for out in ("resized", "composed"):
        found = load_file(tmp_path / out / "adapter_model.safetensors")
        new_a, new_b = found[f"{start}A.weight"], found[f"{start}B.weight"]
        assert (new_a.shape, new_b.shape) == ((4, 4), (5, 4))
        for e, (kept, delta) in enumerate(zip((2, 1), wanted, strict=True)):
            made = new_b[:, e::2].astype(np.float64) @ new_a[2 * e : 2 * e + 2]
            assert np.allclose(made, best(delta, kept), atol=1e-5)
