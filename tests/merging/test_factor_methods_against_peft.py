"""Merges of the methods that add factors or entries, against PEFT on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_methods_against_peft as common
from building import opened, read_adapter
from test_methods_against_peft import PROJECTIONS, Case

from adapterhub import merging as merge
from adapterhub.base import open_base
from adapterhub.errors import NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.methods import Delta, method

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CONV1D = {"target_modules": ["c_attn", "mlp.c_proj"]}
LINEAR = {"target_modules": PROJECTIONS}
PATTERNS = {
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
}
BANK = {"num_vectors": 12, "vector_length": 4, "topk": 3, "r": 2}
NEURAL = {"r": 4, "projection_prng_key": 7, "d_initial": 0.3}

FIRST = (
    *("adalora", "lokr", "vera", "pvera", "randlora", "vblora", "delora", "gralora", "shira"),
    *("supertuning-pair", "unilora", "tinylora-one"),
)
COPIES = ("randlora", "randlora-conv1d")
CASES = [
    Case("adalora", "AdaLoraConfig", {**LINEAR, "init_r": 4, "lora_alpha": 6, "total_step": 9}),
    Case("adalora-conv1d", "AdaLoraConfig", {**CONV1D, "init_r": 3, "total_step": 9}, "gpt2"),
    Case("lokr", "LoKrConfig", {**LINEAR, "r": 2, "alpha": 5}),
    Case("lokr-whole", "LoKrConfig", {**LINEAR, "r": 64, "alpha": 40}),
    Case(
        "lokr-both",
        "LoKrConfig",
        {**LINEAR, "r": 1, "alpha": 2, "decompose_both": True, "decompose_factor": 4},
    ),
    Case("lokr-patterns", "LoKrConfig", {**LINEAR, "r": 3, "alpha": 5, **PATTERNS}),
    Case("vera", "VeraConfig", {**LINEAR, **NEURAL}),
    Case("vera-conv1d", "VeraConfig", {**CONV1D, **NEURAL}, "gpt2"),
    Case("vera-seed", "VeraConfig", {**LINEAR, **NEURAL, "save_projection": False}, exact=False),
    Case(
        "vera-conv1d-seed",
        "VeraConfig",
        {**CONV1D, **NEURAL, "save_projection": False},
        "gpt2",
        exact=False,
    ),
    Case("pvera", "PveraConfig", {**LINEAR, **NEURAL}),
    Case("pvera-seed", "PveraConfig", {**LINEAR, **NEURAL, "save_projection": False}, exact=False),
    Case("randlora", "RandLoraConfig", {**LINEAR, "r": 5, "randlora_alpha": 8}),
    Case("randlora-conv1d", "RandLoraConfig", {**CONV1D, "r": 5, "randlora_alpha": 8}, "gpt2"),
    *(
        Case(
            f"randlora-seed{''.join(kind)}",
            "RandLoraConfig",
            {**LINEAR, "r": 4, "randlora_alpha": 8, "save_projection": False, **kind},
            exact=False,
        )
        for kind in ({}, {"sparse": True}, {"very_sparse": True})
    ),
    Case("vblora", "VBLoRAConfig", {**LINEAR, **BANK}, exact=False),
    Case("vblora-topk", "VBLoRAConfig", {**LINEAR, **BANK, "save_only_topk_weights": True}),
    Case("vblora-conv1d", "VBLoRAConfig", {**CONV1D, **BANK}, "gpt2", exact=False),
    Case(
        "delora",
        "DeloraConfig",
        {**LINEAR, "r": 4, "rank_pattern": {"q_proj": 2}, "lambda_pattern": {"v_proj": 3.0}},
    ),
    Case("gralora", "GraloraConfig", {**LINEAR, "r": 4, "alpha": 6}),
    Case("gralora-k4", "GraloraConfig", {**LINEAR, "r": 8, "gralora_k": 4, "hybrid_r": 3}),
    Case("gralora-conv1d", "GraloraConfig", {**CONV1D, "r": 4, "hybrid_r": 2}, "gpt2"),
    Case("shira", "ShiraConfig", {**LINEAR, "r": 2}),
    Case("supertuning", "SupertuningConfig", {**LINEAR, "sparsity": 0.9}),
    Case(
        "supertuning-pair",
        "SupertuningConfig",
        {**LINEAR, "sparsity": 0.9, "r": 3, "lora_alpha": 4},
    ),
    Case("unilora", "UniLoraConfig", {**LINEAR, "theta_d_length": 40, "save_indices": True}),
    Case(
        "unilora-conv1d",
        "UniLoraConfig",
        {**CONV1D, "theta_d_length": 40, "save_indices": True},
        "gpt2",
    ),
    Case("tinylora-one", "TinyLoraConfig", {**LINEAR, "r": 3, "u": 5, "weight_tying": 1.0}),
    Case("tinylora-layers", "TinyLoraConfig", {"target_modules": ["q_proj"], "r": 3, "u": 5}),
    Case(
        "tinylora-seed",
        "TinyLoraConfig",
        {"target_modules": ["q_proj"], "r": 3, "u": 5, "save_projection": False},
        exact=False,
    ),
]
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ADDED = [case for case in CASES if case.id in FIRST]
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 4,
}


def based(model: str, path: Path, dtype: Any = None) -> Any:
    """A saved base with random values, and its model; values that `dtype` holds exactly."""
    torch.manual_seed(0)
    config, fields, name = common.MODELS[model]
    base = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
    common.randomise(base, every=True)
    base.to(dtype or torch.float32).save_pretrained(path)
    return base.float()


def adapted(base: Any, case: Case, path: Path, seed: int = 1, **more: Any) -> Any:
    """PEFT's model of a saved adapter with random values that do something."""
    torch.manual_seed(seed)
    config = getattr(peft, case.config)(**case.fields, **more)
    live = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    live.save_pretrained(path)
    return live


def deltas(live: Any) -> dict[str, np.ndarray]:
    """What PEFT adds to each weight, as it is stored."""
    found = {}
    for name, layer in live.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            delta = layer.get_delta_weight("default").detach()
            found[f"{name}.weight"] = (delta.to_dense() if delta.is_sparse else delta).numpy()
    return found


def merged(base: Path, out: Path, *adapters: tuple[Path, float]) -> Any:
    sources = [Source(p.name, read_adapter(p), weight) for p, weight in adapters]
    plan = merge.plan(opened(base), sources, Options())
    report = merge.run(plan, out)
    return plan, report, open_base(out).tensors


@quiet
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_merge_computes_what_peft_computes(case: Case, tmp_path: Path) -> None:
    live = adapted(based(case.model, tmp_path / "base"), case, tmp_path / "adapter")
    plan, report, _ = merged(tmp_path / "base", tmp_path / "out", (tmp_path / "adapter", 1.0))
    assert report.reproducible is case.exact
    fates = [fate.fate for fate in plan.fates if "unused" in fate.fate]
    assert all("copy" in fate for fate in fates) and bool(fates) == (case.id in COPIES)
    again = getattr(transformers, common.MODELS[case.model][2]).from_pretrained(tmp_path / "out")
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected, found = live(tokens).logits, again.eval()(tokens).logits
        with live.disable_adapter():
            plain = live(tokens).logits
    assert float((expected - plain).abs().max()) > 1e-3  # the adapter does something
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)


@quiet
@pytest.mark.parametrize("case", ADDED, ids=lambda case: case.id)
def test_several_add_up(case: Case, tmp_path: Path) -> None:
    weights, added = (0.7, -0.3), []
    for number in range(2):
        base = based(case.model, tmp_path / f"base{number}")
        added.append(deltas(adapted(base, case, tmp_path / f"a{number}", seed=number)))
    pairs = [(tmp_path / f"a{number}", weight) for number, weight in enumerate(weights)]
    _, _, found = merged(tmp_path / "base0", tmp_path / "out", *pairs)
    for name, tensor in open_base(tmp_path / "base0").tensors.items():
        expected = tensor.read().astype(np.float64)
        for delta, weight in zip(added, weights, strict=True):
            expected += weight * delta.get(name, np.zeros(())).astype(np.float64)
        np.testing.assert_allclose(found[name].read(), expected, atol=1e-6, rtol=1e-5)
    assert set(added[0]) <= set(found)


@quiet
@pytest.mark.parametrize("case", ADDED, ids=lambda case: case.id)
def test_a_bf16_base_is_rounded_once_and_heads_are_replaced(case: Case, tmp_path: Path) -> None:
    base = based(case.model, tmp_path / "base", torch.bfloat16)
    more: dict[str, Any] = {"modules_to_save": ["lm_head"]}
    live = adapted(base, case, tmp_path / "adapter", **more)
    _, _, found = merged(tmp_path / "base", tmp_path / "out", (tmp_path / "adapter", 1.0))
    stored, added = open_base(tmp_path / "base").tensors, deltas(live)
    for name, delta in added.items():
        assert found[name].dtype == "BF16"
        expected = stored[name].read().astype(np.float64) + delta
        np.testing.assert_allclose(found[name].read().astype(np.float64), expected, rtol=2**-8)
    head = live.base_model.model.lm_head.modules_to_save["default"].weight.detach()
    told = torch.from_numpy(found["lm_head.weight"].read().astype(np.float32))
    assert torch.equal(told, head.bfloat16().float())


# --- the order of layers ----------------------------------------------------------------------


class Ordered:
    """A base of which the order of the layers is known."""

    def __init__(self, live: Any) -> None:
        self._names = [name for name, _ in live.base_model.model.named_modules()]

    def ordered(self, modules: Sequence[str]) -> list[str]:
        return sorted(modules, key=self._names.index)


@quiet
@pytest.mark.parametrize("more", [{}, {"weight_tying": 0.5}, {"save_projection": False}])
def test_tinylora_of_several_kinds_of_layers(more: dict[str, Any], tmp_path: Path) -> None:
    case = Case("tinylora", "TinyLoraConfig", {**LINEAR, "r": 3, "u": 5, **more})
    live = adapted(based("llama", tmp_path / "base"), case, tmp_path / "adapter")
    adapter, implementation = read_adapter(tmp_path / "adapter"), method("tinylora").implementation
    with pytest.raises(NotMergeable, match="hangs on the order of the layers"):
        implementation.meaning(adapter)
    found = {}
    for part in implementation.meaning_over(adapter, Ordered(live)):  # type: ignore[attr-defined]
        found[f"{part.module}.weight"] = part.b.read().astype(np.float64) @ part.a.read()
    expected = deltas(live)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-6, rtol=1e-5)


# --- AdaLoRA's pruning ------------------------------------------------------------------------


@quiet
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_adalora_keeps_the_scale_of_its_first_rank(tmp_path: Path) -> None:
    case = CASES[0]
    live = adapted(based("llama", tmp_path / "base"), case, tmp_path / "whole")
    kept = iter([[True, False, True, True], [False] * 4, *[[True] * 4] * 9])
    live.peft_config["default"].rank_pattern = {
        name.removeprefix("base_model.model."): next(kept)
        for name, _ in live.named_parameters()
        if "lora_E" in name
    }
    live.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(
        based("llama", tmp_path / "again"), tmp_path / "adapter"
    )
    _, _, found = merged(tmp_path / "base", tmp_path / "out", (tmp_path / "adapter", 1.0))
    stored, ranks = open_base(tmp_path / "base").tensors, set()
    for name, delta in deltas(loaded).items():
        layer = loaded.base_model.model.get_submodule(name.removesuffix(".weight"))
        ranks.add(layer.lora_A["default"].shape[0])
        expected = stored[name].read() + delta
        np.testing.assert_allclose(found[name].read(), expected, atol=1e-6, rtol=1e-5)
    assert ranks == {0, 3, 4}


# --- convolutions -----------------------------------------------------------------------------


CONVOLUTIONS = [
    Case("adalora", "AdaLoraConfig", {"init_r": 3, "lora_alpha": 6, "total_step": 9}),
    Case("lokr", "LoKrConfig", {"r": 1, "alpha": 3, "decompose_factor": 2}),
    Case("lokr-whole", "LoKrConfig", {"r": 16, "alpha": 30}),
    Case(
        "lokr-tucker",
        "LoKrConfig",
        {"r": 1, "alpha": 3, "decompose_factor": 2, "use_effective_conv2d": True},
    ),
]


@quiet
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.id)
def test_a_convolution(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = transformers.ViTModel(transformers.ViTConfig(**VIT)).eval()
    base.save_pretrained(tmp_path / "base")
    live = adapted(base, case, tmp_path / "adapter", target_modules=["projection", "query"])
    _, report, found = merged(tmp_path / "base", tmp_path / "out", (tmp_path / "adapter", 1.0))
    stored, added = open_base(tmp_path / "base").tensors, deltas(live)
    assert report.reproducible and any(delta.ndim == 4 for delta in added.values())
    for name, delta in added.items():
        expected = stored[name].read() + delta
        assert np.abs(delta).max() > 1e-3
        np.testing.assert_allclose(found[name].read(), expected, atol=1e-6, rtol=1e-5)


@quiet
@pytest.mark.parametrize("more", [{"r": 16}, {"r": 2}, {"r": 2, "use_effective_conv2d": True}])
def test_lokr_of_a_conv1d(more: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(16, 32, 5)})
    case = Case("lokr", "LoKrConfig", {"target_modules": ["conv"], "alpha": 3, **more})
    live = adapted(base, case, tmp_path)
    adapter = read_adapter(tmp_path)
    (part,) = method("lokr").implementation.meaning(adapter)
    (expected,) = deltas(live).values()
    assert isinstance(part, Delta) and expected.shape == (32, 16, 5)
    found = part.scale * part.value.read().astype(np.float64)
    np.testing.assert_allclose(found, expected.reshape(32, -1), atol=1e-6, rtol=1e-5)
