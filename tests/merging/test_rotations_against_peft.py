"""Merges of rotations, transforms and replaced tensors, against PEFT's own forward pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import test_methods_against_peft as shared
from building import opened, read_adapter
from test_methods_against_peft import LLAMA, PROJECTIONS, Case, made, randomise
from torch_models import Layers, model, saved
from torch_models import randomise as shake

from adapterhub import merging as merge
from adapterhub.adapter import Adapter
from adapterhub.base import open_base
from adapterhub.errors import AdapterHubError, NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.methods.oft import problems as oft_problems

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

T = {"target_modules": PROJECTIONS}
SIXTEEN = {"target_modules": ["q_proj", "o_proj"]}  # (16, 16)
EXACT_CAYLEY = {"use_cayley_neumann": False}


def oft(name: str, fields: dict[str, Any], exact: bool = True) -> Case:
    return Case(f"oft-{name}", "OFTConfig", {**T, "oft_block_size": 4, **fields}, exact=exact)


CASES = [
    *(oft(f"neumann-{terms}", {"num_cayley_neumann_terms": terms}) for terms in (2, 3, 4, 5, 7)),
    oft("cayley", EXACT_CAYLEY),
    oft("by-number", {"r": 2, "oft_block_size": 0, **EXACT_CAYLEY}),
    oft("does-not-divide", {"oft_block_size": 5}),
    oft("larger-than-the-weight", {"oft_block_size": 32, **EXACT_CAYLEY}),
    oft("shared", {"block_share": True}),
    oft("shared-cayley", {"block_share": True, **EXACT_CAYLEY}),
    oft("constrained", {"coft": True, "eps": 0.2}),
    oft("constrained-cayley", {"coft": True, "eps": 0.2, "bias": "oft_only", **EXACT_CAYLEY}),
    oft("head", {"modules_to_save": ["lm_head"], "bias": "all"}),
    oft("embedding", {"target_modules": ["embed_tokens", "lm_head"]}),
    oft("embedding-shared", {"target_modules": ["embed_tokens"], "block_share": True}),
    Case("oft-tied", "OFTConfig", {"target_modules": ["wte"], "oft_block_size": 4}, "gpt2"),
    Case("boft", "BOFTConfig", {**T, "boft_block_size": 4}),
    Case("boft-number", "BOFTConfig", {**T, "boft_block_size": 0, "boft_block_num": 2}),
    Case("boft-odd", "BOFTConfig", {"target_modules": ["down_proj"], "boft_block_size": 3}),
    Case("boft-bias", "BOFTConfig", {**T, "bias": "boft_only", "modules_to_save": ["lm_head"]}),
    Case("hra", "HRAConfig", {**T, "r": 4, "init_weights": False}),
    Case("hra-odd", "HRAConfig", {**T, "r": 3, "bias": "all"}),
    Case("hra-gs", "HRAConfig", {**T, "r": 4, "apply_GS": True, "init_weights": False}),
    *(
        Case(
            f"{variant}-{group}",
            "RoadConfig",
            {**T, "variant": variant, "group_size": group, "init_weights": False},
            exact=False,
        )
        for variant in ("road_1", "road_2", "road_4")
        for group in (2, 8)
    ),
    Case("c3a", "C3AConfig", {**T, "block_size": 8}),
    Case(
        "c3a-patterns",
        "C3AConfig",
        {
            **T,
            "block_size": 8,
            "block_size_pattern": {"v_proj": 4, "layers.1.self_attn.q_proj": 2},
            "modules_to_save": ["lm_head"],
        },
    ),
    Case("fourierft", "FourierFTConfig", {**T, "n_frequency": 40}, exact=False),
    Case(
        "fourierft-patterns",
        "FourierFTConfig",
        {
            **T,
            "n_frequency": 40,
            "n_frequency_pattern": {"q_proj": 11},
            "random_loc_seed": 3,
            "scaling": -20.0,
            "bias": "all",
        },
        exact=False,
    ),
    Case(
        "fourierft-conv1d",
        "FourierFTConfig",
        {"target_modules": ["c_attn", "mlp.c_proj", "attn.c_proj"], "n_frequency": 60},
        "gpt2",
        exact=False,
    ),
    Case("miss", "MissConfig", {**T, "r": 4}),
    Case("miss-random", "MissConfig", {**T, "r": 4, "init_weights": False}),
    Case("miss-does-not-divide", "MissConfig", {**T, "r": 5, "modules_to_save": ["lm_head"]}),
    Case("miss-mini", "MissConfig", {**T, "r": 4, "mini_r": 2, "init_weights": "mini"}),
    Case("miss-mini-rest", "MissConfig", {**T, "r": 7, "mini_r": 4, "init_weights": "mini"}),
    Case("miss-bat", "MissConfig", {**T, "r": 4, "init_weights": "bat", "bias": "miss_only"}),
    Case("hira", "HiraConfig", {**T, "r": 4, "rank_pattern": {"q_proj": 2}}),
    Case("hira-tied", "HiraConfig", {"target_modules": ["wte"], "r": 4}, "gpt2"),
    Case("hira-embedding", "HiraConfig", {"target_modules": ["embed_tokens", "lm_head"], "r": 4}),
    Case(
        "hira-conv1d",
        "HiraConfig",
        {"target_modules": ["c_attn", "mlp.c_proj", "attn.c_proj"], "r": 3},
        "gpt2",
    ),
    Case("ln_tuning", "LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    Case(
        "ln_tuning-biases",
        "LNTuningConfig",
        {"target_modules": ["ln_1", "ln_f"], "task_type": "CAUSAL_LM"},
        "gpt2",
    ),
    Case("beft", "BeftConfig", {"target_modules": ["v_proj", "k_proj"]}),
    Case("tokens", "TrainableTokensConfig", {"token_indices": [1, 7, 3]}),
    Case(
        "tokens-of-a-head",
        "TrainableTokensConfig",
        {"token_indices": [2, 4], "target_modules": ["embed_tokens", "lm_head"]},
    ),
    Case(
        "tokens-tied",
        "TrainableTokensConfig",
        {"token_indices": [1, 7], "target_modules": ["wte"]},
        "gpt2",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_merge_computes_what_peft_computes(case: Case, tmp_path: Path) -> None:
    shared.test_a_merge_computes_what_peft_computes(case, tmp_path)


@pytest.fixture
def butterflies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What peft computes with CUDA alone: it asks an extension for block-diagonal matrices."""
    from peft.tuners.boft import layer

    class Blocks:
        @staticmethod
        def apply(given: Any) -> Any:
            return torch.stack([torch.block_diag(*one) for one in given])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: object())
    monkeypatch.setattr(layer, "FastBlockDiag", Blocks)


@pytest.mark.usefixtures("butterflies")
@pytest.mark.parametrize(("side", "factors"), [(4, 2), (2, 2), (2, 3), (2, 4)])
def test_several_butterflies(side: int, factors: int, tmp_path: Path) -> None:
    fields = {**SIXTEEN, "boft_block_size": side, "boft_n_butterfly_factor": factors}
    case = Case(f"boft-{side}-{factors}", "BOFTConfig", fields)
    shared.test_a_merge_computes_what_peft_computes(case, tmp_path)


# --- convolutions -----------------------------------------------------------------------------


def trained(layers: Layers, path: Path, config: str, **fields: Any) -> Any:
    """As torch_models.adapted, for another method than LoRA."""
    from safetensors.torch import save_file

    torch.manual_seed(3)
    base = model(layers).eval()
    shake(base)
    (path / "base").mkdir()
    (path / "base" / "config.json").write_text('{"model_type": "nobody-knows-it"}')
    save_file(base.state_dict(), path / "base" / "model.safetensors")
    settings = getattr(peft, config)(target_modules=["layer"], **fields)
    live = peft.get_peft_model(base, settings).eval()
    shake(live, only_trained=True)
    live.save_pretrained(path / "adapter")
    return live


def planned(path: Path) -> Any:
    base = open_base(path / "base")
    return merge.plan(base, [Source("it", read_adapter(path / "adapter"))], Options())


CONV2D = Layers("Conv2d", (4, 6, 3), (2, 4, 6, 6), {"padding": 1})
SINGLE = [
    (Layers("Conv2d", (4, 6, 1), (2, 4, 6, 6)), "OFTConfig", {"oft_block_size": 2}),
    (CONV2D, "BOFTConfig", {"boft_block_size": 4}),
    (CONV2D, "HRAConfig", {"r": 3}),
    (CONV2D, "HRAConfig", {"r": 3, "apply_GS": True}),
    (CONV2D, "HiraConfig", {"r": 3}),
    (Layers("Conv2d", (4, 6, (3, 2)), (2, 4, 6, 6), {"stride": 2}), "HiraConfig", {"r": 3}),
    (Layers("Conv1d", (4, 6, 3), (2, 4, 6)), "HiraConfig", {"r": 3}),
    (Layers("Conv3d", (4, 6, (1, 2, 3)), (2, 4, 3, 4, 4)), "HiraConfig", {"r": 3}),
    (Layers("Embedding", (9, 6), (2, 5)), "HiraConfig", {"r": 3}),
    (Layers("Embedding", (9, 6), (2, 5)), "OFTConfig", {"oft_block_size": 3}),
    (Layers("Linear", (140, 6), (2, 140)), "OFTConfig", {"oft_block_size": 70, **EXACT_CAYLEY}),
]


@pytest.mark.parametrize(("layers", "config", "fields"), SINGLE)
def test_single_layers(tmp_path: Path, layers: Layers, config: str, fields: Any) -> None:
    live = trained(layers, tmp_path, config, **fields)
    report = merge.run(planned(tmp_path), tmp_path / "out")
    with torch.no_grad():
        want, got = live(), saved(layers, tmp_path / "out")()
        bare = saved(layers, tmp_path / "base")()
    assert report.reproducible is (layers.kind != "Linear")
    assert (want - bare).abs().max() > 0.01
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_rotated_patches_are_refused(tmp_path: Path) -> None:
    trained(CONV2D, tmp_path, "OFTConfig", oft_block_size=4)
    with pytest.raises(NotMergeable, match=r"layer: a convolution with a kernel of \[3, 3\]"):
        planned(tmp_path)


# --- other bases, several adapters ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["oft-cayley", "boft", "hra", "road_4-8", "c3a", "fourierft", "miss-mini", "miss-bat", "hira"],
)
def test_a_bf16_base_gets_one_rounding(name: str, tmp_path: Path) -> None:
    """Its weights are peft's sums in fp32, rounded."""
    case = next(case for case in CASES if case.id == name)
    torch.manual_seed(1)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    randomise(base, every=True)
    base.bfloat16().save_pretrained(tmp_path / "base")
    live = peft.get_peft_model(base.float(), getattr(peft, case.config)(**case.fields))
    randomise(live)
    live.save_pretrained(tmp_path / "adapter")
    merge.run(planned(tmp_path), tmp_path / "merged")
    want = live.merge_and_unload().state_dict()
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert found.dtype == torch.bfloat16
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value.float(), want[key], atol=1e-6, rtol=2**-8)


def other(case: Case, live: Any, path: Path) -> None:
    """A second adapter for the same base."""
    fields = {key: value for key, value in case.fields.items() if key != "bias"}
    live.add_adapter("more", getattr(peft, case.config)(**fields))
    live.set_adapter("more")
    randomise(live)
    live.save_pretrained(path, selected_adapters=["more"])


def both(path: Path, weights: tuple[float, float]) -> Any:
    adapters = (read_adapter(path / "adapter"), read_adapter(path / "second" / "more"))
    sources = [Source(*row) for row in zip(("a", "b"), adapters, weights, strict=True)]
    return merge.plan(opened(path / "base"), sources, Options())


def by_peft(path: Path, adapter: str) -> dict[str, Any]:
    """What peft makes of the base's weights, in fp64."""
    base = transformers.LlamaForCausalLM.from_pretrained(path / "base")
    merged = peft.PeftModel.from_pretrained(base, path / adapter).merge_and_unload()
    return {key: value.double() for key, value in merged.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c3a", "fourierft", "miss", "miss-mini", "beft"])
def test_what_adds_may_be_added_up(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == name)
    live = made(case, tmp_path)
    other(case, live, tmp_path / "second")
    merge.run(both(tmp_path, (0.5, -2.0)), tmp_path / "merged")
    one, two = by_peft(tmp_path, "adapter"), by_peft(tmp_path, "second/more")
    load = transformers.LlamaForCausalLM.from_pretrained
    base, found = (load(tmp_path / where).state_dict() for where in ("base", "merged"))
    assert any((one[key] - two[key]).abs().max() > 1e-3 for key in base)
    for key, value in base.items():
        want = value + 0.5 * (one[key] - value) - 2.0 * (two[key] - value)
        torch.testing.assert_close(found[key].double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["oft-cayley", "boft", "hra", "road_1-8", "miss-bat", "hira"])
def test_what_multiplies_stands_alone(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == name)
    live = made(case, tmp_path)
    other(case, live, tmp_path / "second")
    with pytest.raises(NotMergeable):
        both(tmp_path, (1.0, 1.0))
    with pytest.raises(NotMergeable, match=r"cannot be taken with weight 0\.5"):
        both(tmp_path, (0.5, 1.0))


# --- refusals ---------------------------------------------------------------------------------


def refused(path: Path, case: Case, **changes: Any) -> AdapterHubError:
    """The error for the adapter of `case` with other fields in its config."""
    made(case, path)
    found = read_adapter(path / "adapter")
    adapter = Adapter(
        found.method, found.format, {**found.config, **changes}, found.modules, found.base
    )
    with pytest.raises(AdapterHubError) as caught:
        merge.plan(opened(path / "base"), [Source("it", adapter)], Options())
    return caught.value


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("oft-cayley", {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2000}, "2000"),
        ("oft-shared", {"block_share": False, "r": 0, "twist": True}, "fields that this version"),
        ("road_1-8", {"group_size": 5}, r"has 16 outputs, which groups of 5 do not divide"),
        ("road_1-8", {"variant": "road_3"}, "variant is 'road_3'"),
        ("tokens", {"token_indices": [1, 7]}, r"has 3 rows of tokens, and token_indices names 2"),
        ("tokens", {"token_indices": [1, 7, 1]}, "names 2 tokens, 3 in all"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == name)
    assert re.search(said, refused(tmp_path, case, **changes).message)


def test_a_block_size_that_is_not_the_nearest_is_a_contradiction(tmp_path: Path) -> None:
    made(oft("nearest", {"oft_block_size": 5, "target_modules": ["q_proj"]}), tmp_path)
    found = read_adapter(tmp_path / "adapter")  # 5 became 4
    for size, said in ((6, 0), (4, 0), (7, 2), (2, 2)):
        config = {**found.config, "oft_block_size": size}
        adapter = Adapter(found.method, found.format, config, found.modules, found.base)
        wrong = [p for p in oft_problems(adapter) if p.code == "config-mismatch"]
        assert len(wrong) == said, size


@pytest.mark.parametrize("init", [True, "bat"])
def test_bone_is_miss_by_another_name(init: bool | str, tmp_path: Path) -> None:
    live = made(Case("bone", "MissConfig", {**T, "r": 4, "init_weights": init}), tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors_torch.load_file(weights)
    renamed = {key.replace("miss_block", "bone_block"): value for key, value in tensors.items()}
    safetensors_torch.save_file(renamed, weights)
    config = tmp_path / "adapter" / "adapter_config.json"
    fields = {**json.loads(config.read_text()), "peft_type": "BONE"}
    del fields["mini_r"], fields["miss_dropout"]
    config.write_text(json.dumps(fields))
    assert read_adapter(tmp_path / "adapter").method == "bone"
    merge.run(planned(tmp_path), tmp_path / "merged")
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for key, value in live.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["oft-cayley", "boft", "hra", "road_2-8", "miss-bat", "hira"])
def test_what_is_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == name)
    live = made(case, tmp_path)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.reshape(-1)[0] = float("inf")
    live.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterHubError, match=r"is NaN or infinite|does not fit F32"):
        merge.run(planned(tmp_path), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


EXACT = ["oft-cayley", "oft-neumann-5", "boft-number", "hra", "hra-gs", "miss-bat", "hira", "c3a"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_what_is_called_reproducible_has_the_bits_of_the_reference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(next(case for case in CASES if case.id == name), tmp_path)
    for kernel in ("portable", "numpy"):
        monkeypatch.setenv("ADAPTERHUB_KERNEL", kernel)
        report = merge.run(planned(tmp_path), tmp_path / kernel)
        assert report.reproducible
    one, other = ((tmp_path / k / "model.safetensors").read_bytes() for k in ("portable", "numpy"))
    assert one == other


def test_a_layer_without_a_bias_takes_none(tmp_path: Path) -> None:
    error = refused(tmp_path, Case("beft", "BeftConfig", {"target_modules": ["down_proj"]}))
    assert "bias" in str(error)


def test_a_switch_set_to_null_is_off_as_in_peft(tmp_path: Path) -> None:
    case = oft("null", {"use_cayley_neumann": None})
    shared.test_a_merge_computes_what_peft_computes(case, tmp_path)


def test_sums_of_a_library_are_said(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == "fourierft")
    made(case, tmp_path)
    report = merge.run(planned(tmp_path), tmp_path / "merged")
    assert report.reproducible is False
    (said,) = [note for note in report.notes if "computed by" in note]
    assert said.endswith("computed by numpy or torch, which repeats itself to a tolerance only")
