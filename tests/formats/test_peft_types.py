"""Every PEFT type, made by peft itself: read, written, and loaded by it again."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapterhub import formats
from adapterhub.adapter import REPLACE
from adapterhub.errors import NotMergeable
from adapterhub.methods import TABLE, Signature, method_of
from adapterhub.methods.layouts import LAYOUTS
from adapterhub.methods.meaning import roles_of
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor

TOKENS = torch.arange(12).reshape(2, 6) % 30


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = input_ids[..., None].float().cos() / torch.arange(1, 17)
        return self.head(self.norm(self.lin1(torch.relu(self.lin0(x)))))


class Mixed(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(32, 6), nn.Conv2d(2, 8, 3)
        self.out = nn.Linear(4, 8)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = self.table(input_ids)  # (2, 6, 6)
        return self.out(self.conv(x[None])[..., :4])


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            tie_word_embeddings=False,
        )
    )


def tied_llama() -> nn.Module:
    model = llama()
    model.config.tie_word_embeddings = True
    return LlamaForCausalLM(model.config)


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=4,
        )
    )


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=32, decoder_start_token_id=0, pad_token_id=0, **sizes)
    )


@dataclass(frozen=True)
class Case:
    """`rank` as the tensors show it; `sides` of one module; `width` … of a prompt."""

    model: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    rank: int | None = None
    sides: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    prompt: tuple[int | None, int | None, int | None] = (None, None, None)


T = {"target_modules": ["lin0", "lin1"]}
R = {**T, "r": 4}
BOTH = {"lin0": (32, 16), "lin1": (16, 32)}
OUT: dict[str, tuple[int | None, int | None]] = {"lin0": (32, None)}
INTO: dict[str, tuple[int | None, int | None]] = {"lin1": (None, 32)}
NOTHING: dict[str, tuple[int | None, int | None]] = {"lin0": (None, None)}
PROMPT = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
M = {"target_modules": ["conv", "out"]}
CASES = {
    "ADALORA": Case(Plain, {**T, "init_r": 6, "target_r": 4, "total_step": 10}, 6, BOTH),
    "ADAPTION_PROMPT": Case(
        llama,
        {"adapter_len": 3, "adapter_layers": 1, "task_type": "CAUSAL_LM"},
        None,
        {},
        (16, None, None),
    ),
    "BEFT": Case(Plain, T, None, OUT),
    "BOFT": Case(Plain, {**T, "boft_block_size": 4}, None, BOTH),
    "BOFT:mixed": Case(Mixed, {**M, "boft_block_size": 2}, None, {"out": (8, 4)}),
    "C3A": Case(Plain, {**T, "block_size": 4}, None, BOTH),
    "C3A:pattern": Case(Plain, {**T, "block_size": 4, "block_size_pattern": {"lin1": 8}}),
    "CARTRIDGE": Case(llama, PROMPT, prompt=(None, 2, 8)),
    "CPT": Case(
        llama,
        {
            "cpt_token_ids": [1, 2, 3],
            "cpt_mask": [1, 1, 1],
            "cpt_tokens_type_mask": [1, 2, 3],
            "task_type": "CAUSAL_LM",
        },
        prompt=(16, None, None),
    ),
    "DEFT": Case(Plain, R, 4, BOTH),
    "DEFT:para": Case(Plain, {**R, "para": True}, 4, OUT),
    "DELORA": Case(Plain, R, 4, BOTH),
    "FOURIERFT": Case(Plain, {**T, "n_frequency": 10}, None, NOTHING),
    "FROD": Case(Plain, {**T, "progressbar": False}, None, INTO),
    "GLORA": Case(Plain, R, 4, BOTH),
    "GLORA:vector": Case(Plain, {**R, "config_A_B": "vector", "config_C": "none"}),
    "GRALORA": Case(Plain, R, 4, BOTH),
    "GRALORA:hybrid": Case(Plain, {**R, "hybrid_r": 2}, 4, BOTH),
    "HIRA": Case(Plain, R, 4, BOTH),
    "HIRA:mixed": Case(
        Mixed,
        {"target_modules": ["conv", "out", "table"], "r": 3},
        3,
        {"conv": (8, 2), "table": (32, 6)},
    ),
    "HRA": Case(Plain, R, 4, INTO),
    "IA3": Case(Plain, {**T, "feedforward_modules": ["lin1"]}, None, {**OUT, **INTO}),
    "IA3:mixed": Case(Mixed, {**M, "feedforward_modules": ["conv"]}, None, {"out": (8, None)}),
    "IA3:head": Case(
        bert,
        {
            "target_modules": ["query", "output.dense"],
            "feedforward_modules": r".*output\.dense",
            "task_type": "SEQ_CLS",
        },
    ),
    "LILY": Case(llama, {"target_modules": ["q_proj", "v_proj"], "r": 4}, 4),
    "LN_TUNING": Case(Plain, {"target_modules": ["norm"]}, None, {"norm": (16, None)}),
    "LOHA": Case(Plain, {**R, "rank_pattern": {"lin.": 4}, "r": 8}, 4, BOTH),
    "LOHA:mixed": Case(Mixed, {**M, "r": 3, "use_effective_conv2d": True}, 3, {"conv": (8, 2)}),
    "LOKR": Case(Plain, {**T, "r": 1}, 1, BOTH),
    "LOKR:whole": Case(Plain, {**T, "r": 64}, None, BOTH),
    "LOKR:both": Case(Plain, {**T, "r": 1, "decompose_both": True}, 1, BOTH),
    "LOKR:mixed": Case(Mixed, {**M, "r": 1, "use_effective_conv2d": True}, 1, {"conv": (8, 2)}),
    "LORA": Case(Plain, {**R, "bias": "lora_only"}, 4, BOTH),
    "MISS": Case(Plain, R, 4, OUT),
    "MISS:mini": Case(Plain, {**R, "mini_r": 2, "init_weights": "mini"}, 4, NOTHING),
    "MISS:bat": Case(Plain, {**R, "init_weights": "bat"}, 4, OUT),
    "MULTITASK_PROMPT_TUNING": Case(llama, {**PROMPT, "num_tasks": 2}, prompt=(16, None, None)),
    "OFT": Case(Plain, {**T, "oft_block_size": 4, "bias": "oft_only"}, None, INTO),
    "OFT:share": Case(Plain, {**T, "oft_block_size": 4, "block_share": True}, None, NOTHING),
    "OFT:number": Case(Plain, {**T, "r": 4, "oft_block_size": 0}, None, INTO),
    "OSF": Case(Plain, {**T, "effective_rank": 4}, None, BOTH),
    "P_TUNING": Case(llama, {**PROMPT, "encoder_hidden_size": 8}, prompt=(16, None, None)),
    "PEANUT": Case(Plain, {**R, "depth": 2}, 4, OUT),
    "POLY": Case(
        llama,
        {
            "target_modules": ["q_proj"],
            "r": 4,
            "n_tasks": 2,
            "n_skills": 2,
            "task_type": "CAUSAL_LM",
        },
        4,
        {"model.layers.0.self_attn.q_proj": (16, 16)},
    ),
    "PREFIX_TUNING": Case(llama, PROMPT, prompt=(None, 2, 8)),
    "PREFIX_TUNING:projected": Case(
        llama, {**PROMPT, "prefix_projection": True, "encoder_hidden_size": 8}, prompt=(None, 2, 8)
    ),
    "PROMPT_TUNING": Case(llama, PROMPT, prompt=(16, None, None)),
    "PROMPT_TUNING:head": Case(
        bert, {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"}, prompt=(16, None, None)
    ),
    "PROMPT_TUNING:two": Case(
        t5, {"num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM"}, prompt=(16, None, None)
    ),
    "PSOFT": Case(Plain, R, 4, NOTHING),
    "PSOFT:free": Case(Plain, {**R, "psoft_orth": False}, 4, NOTHING),
    "PVERA": Case(Plain, R, 4, OUT),
    "RANDLORA": Case(Plain, R, 4, NOTHING),
    "ROAD": Case(Plain, {**T, "group_size": 4}, None, OUT),
    "ROAD:2": Case(Plain, {**T, "group_size": 4, "variant": "road_2"}, None, OUT),
    "ROAD:4": Case(Plain, {**T, "group_size": 4, "variant": "road_4"}, None, OUT),
    "SHADOW": Case(llama, {"r": 4, "task_type": "CAUSAL_LM"}),
    "SHIRA": Case(Plain, R, None, NOTHING),
    "SUPERTUNING": Case(Plain, T, None, NOTHING),
    "SUPERTUNING:pair": Case(Plain, {**R, "lora_alpha": 8}, 4, BOTH),
    "TINYLORA": Case(Plain, {**T, "r": 2, "u": 4}, 2, BOTH),
    "TINYLORA:mixed": Case(
        Mixed, {"target_modules": ["table", "out"], "r": 2, "u": 4}, 2, {"table": (32, 6)}
    ),
    "TINYLORA:unsaved": Case(Plain, {**T, "r": 2, "u": 4, "save_projection": False}, 2),
    "TRAINABLE_TOKENS": Case(
        llama,
        {"target_modules": ["embed_tokens"], "token_indices": [1, 3]},
        None,
        {"model.embed_tokens": (None, 16)},
    ),
    "TRAINABLE_TOKENS:tied": Case(
        tied_llama, {"target_modules": ["embed_tokens"], "token_indices": [1, 3]}
    ),
    "UNILORA": Case(Plain, {**R, "theta_d_length": 16}),
    "UNILORA:indices": Case(Plain, {**R, "theta_d_length": 16, "save_indices": True}, 4, BOTH),
    "VBLORA": Case(Plain, {**R, "num_vectors": 8, "vector_length": 8}, 4, BOTH),
    "VBLORA:topk": Case(
        Plain,
        {**R, "num_vectors": 8, "vector_length": 8, "save_only_topk_weights": True},
        4,
        BOTH,
    ),
    "VERA": Case(Plain, R, 4, OUT),
    "VERA:unsaved": Case(Plain, {**R, "save_projection": False}, 4, OUT),
    "WAVEFT": Case(Plain, {**T, "n_frequency": 10}, None, NOTHING),
    "WAVEFT:pattern": Case(
        Plain, {**T, "n_frequency": 10, "n_frequency_pattern": {"lin1": 12}}, None, NOTHING
    ),
}
# AdaMSS needs a package that is not among ours, WaveFT's transform too, X-LoRA adapters on disk.
BY_HAND = ("ADAMSS", "XLORA")
EXPECTED = ("no-base", "auto-mapping", "no-licence", "unpinned-base", "local-base")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        yield


def make(name: str, directory: Path) -> tuple[nn.Module, nn.Module]:
    """The base, and the model with an adapter of random values, saved into `directory`."""
    case = CASES[name]
    torch.manual_seed(5)
    base = case.model().eval()
    config = CONFIGS[PeftType(name.partition(":")[0])](**case.options)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(directory)
    return base, model


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    more: dict[str, Any] = {}
    if name.startswith(("MULTITASK", "POLY")) and isinstance(model, PeftModel):
        more["task_ids"] = torch.tensor([0, 1])
    if CASES[name].model is t5:
        more["decoder_input_ids"] = TOKENS
    with torch.no_grad():
        found = model(input_ids=TOKENS, **more)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("name", CASES)
def test_read_write_and_load_again(name: str, tmp_path: Path) -> None:
    base, model = make(name, tmp_path / "theirs")
    reading = formats.read(tmp_path / "theirs")
    adapter = inspection.require(reading)
    assert adapter.method == name.partition(":")[0].lower() == reading.method
    assert [p for p in reading.problems if p.code not in EXPECTED] == []
    assert len(list(adapter.tensors())) == len(reading.tensors)

    (tmp_path / "ours").mkdir()
    formats.write(adapter, tmp_path / "ours", to="peft")
    again = formats.read(tmp_path / "ours")
    assert again.adapter is not None
    assert (again.config, again.method) == (reading.config, reading.method)
    assert content(again.tensors) == content(reading.tensors)
    assert {m: set(roles) for m, roles in again.adapter.modules.items()} == {
        m: set(roles) for m, roles in adapter.modules.items()
    }
    loaded = [
        outputs(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / place).eval(), name)
        for place in ("theirs", "ours")
    ]
    assert torch.equal(loaded[0], loaded[1])
    if CASES[name].model is not t5:  # which is nothing but its prompts' effect on the encoder
        assert not torch.equal(loaded[1], outputs(base, name))
    torch.testing.assert_close(loaded[1], outputs(model, name), rtol=1e-4, atol=1e-5)


def content(tensors: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {n: (t.dtype, t.shape, b"".join(t.pieces())) for n, t in tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_its_tensors_tell(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    make(name, tmp_path)
    adapter = inspection.require(formats.read(tmp_path))
    implementation = TABLE[adapter.method].implementation
    ranks = implementation.ranks(adapter)
    assert (ranks and (ranks.lowest, ranks.highest)) == (case.rank and (case.rank, case.rank))
    signature: Signature = implementation.signature(adapter)
    assert {m: signature.modules.get(m) for m in case.sides} == case.sides
    assert (signature.width, signature.layers, signature.kv_width) == case.prompt
    whole = {f"{m}.{r.removeprefix(REPLACE)}" for m, r, _ in adapter.tensors() if REPLACE in r}
    assert set(signature.whole) == whole
    if name in UNTOLD:
        with pytest.raises(NotMergeable) as caught:
            implementation.meaning(adapter)
        assert caught.value.remedy
    elif "merge" in TABLE[adapter.method].does:
        parts = implementation.meaning(adapter)
        used = {(part.module, role) for part in parts for role in roles_of(part)}
        rest = {(m, r) for m, r, _ in adapter.tensors() if m} - used
        assert rest == {(m, r) for m, r, _ in implementation.idle(adapter)}
    else:
        with pytest.raises(NotMergeable, match=rf"\({adapter.method}\) cannot be merged") as caught:
            implementation.meaning(adapter)
        assert caught.value.remedy


# Methods that are merged where their files tell enough, which these do not.
UNTOLD = ("TINYLORA:mixed", "UNILORA")


def test_every_type_is_tried() -> None:
    tried = {name.partition(":")[0] for name in CASES} | set(BY_HAND)
    assert tried == {kind.value for kind in PeftType}
    assert set(LAYOUTS) | {"lora"} == {kind.lower() for kind in tried} | {"bone"}


# --- made by hand -----------------------------------------------------------------------------


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


BY_HAND_KEYS = {
    "ADAMSS": {
        "base_model.model.lin0.adamss_A.0": values(1, 8),
        "base_model.model.lin0.adamss_A.1": values(2, 8),
        "base_model.model.lin0.adamss_B.0": values(5, 1),
        "base_model.model.lin0.adamss_B.1": values(3, 2),
        "base_model.model.lin0.adamss_newB": values(8, 17),
    },
    "XLORA": {
        "base_model.internal_xlora_classifier.layers.0.weight": values(4, 8),
        "base_model.internal_xlora_classifier.layers.0.bias": values(4),
    },
    "BONE": {"base_model.model.lin0.bone_block": values(4, 32)},
    "OSF": {
        "base_model.model.lin0.osf_svd_params.U_low": values(8, 2),
        "base_model.model.lin0.osf_svd_params.S_low": values(2),
        "base_model.model.lin0.osf_svd_params.V_low": values(2, 6),
        "base_model.model.lin0._osf_U_high": values(8, 4),
        "base_model.model.lin0._osf_S_high": values(4),
        "base_model.model.lin0._osf_V_high": values(4, 6),
    },
}


@pytest.mark.parametrize("kind", BY_HAND_KEYS)
def test_types_that_are_made_by_hand(kind: str, tmp_path: Path) -> None:
    adapter = by_hand(tmp_path, kind, BY_HAND_KEYS[kind], r=4 if kind == "BONE" else ...)
    reading = formats.read(adapter)
    found = inspection.require(reading)
    (tmp_path / "ours").mkdir()
    formats.write(found, tmp_path / "ours", to="peft")
    assert content(formats.read(tmp_path / "ours").tensors) == content(reading.tensors)
    codes = [p.code for p in reading.problems if p.code not in EXPECTED]
    assert codes == (["renamed"] if kind == "BONE" else [])


def by_hand(tmp_path: Path, kind: str, tensors: dict[str, np.ndarray], **fields: Any) -> Path:
    from adapterhub.tensorfile import write_file

    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    named = {name: ArrayTensor(array) for name, array in tensors.items()}
    write_file(directory / "adapter_model.safetensors", dict(sorted(named.items())))
    config = {"peft_type": kind, **{k: v for k, v in fields.items() if v is not ...}}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_xlora_as_peft_writes_it(tmp_path: Path) -> None:
    """peft 0.21.2 calls the mixed adapters 0, 1 …, and drops the classifier's layers of that name:
    what it has saved is empty, and says so.
    """
    torch.manual_seed(1)
    base = llama()
    base.config.use_cache = False
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"], r=2))
    lora.save_pretrained(tmp_path / "lora")
    config = CONFIGS[PeftType.XLORA](
        hidden_size=16,
        adapters={"one": str(tmp_path / "lora")},
        task_type="CAUSAL_LM",
        xlora_depth=1,
    )
    model = get_peft_model(base, config)
    assert BY_HAND_KEYS["XLORA"].keys() <= model.state_dict().keys()
    model.save_pretrained(tmp_path / "xlora")
    reading = formats.read(tmp_path / "xlora")
    assert reading.method == "xlora"
    assert [p.message for p in reading.fatal] == ["the weights hold no tensor"]


# --- contradictions ---------------------------------------------------------------------------


def spoilt(tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """Fatal problems after `change` had its way with the tensors of one that peft made."""
    make(kind, tmp_path / "theirs")
    reading = formats.read(tmp_path / "theirs")
    tensors = {name: tensor.read().copy() for name, tensor in reading.tensors.items()}
    change(tensors)
    fields = {k: v for k, v in reading.config.items() if k != "peft_type"}
    return [
        f"{p.code}: {p.message}"
        for p in formats.read(by_hand(tmp_path, kind.partition(":")[0], tensors, **fields)).fatal
    ]


LIN0 = "base_model.model.lin0."


@pytest.mark.parametrize(
    ("kind", "key", "shape", "said"),
    [
        ("LOHA", LIN0 + "hada_w2_b", None, "missing-tensors: .*has no hada_w2_b beside it"),
        ("LOHA", LIN0 + "hada_w1_b", (3, 16), r"shape: .*hada_w1_b is \[3, 16\], expected \(r, in"),
        ("ADALORA", LIN0 + "lora_E", None, "missing-tensors: .*has no lora_E"),
        ("VERA", "base_model.vera_A", None, "missing-tensors: .*has no vera_A beside it"),
        ("VERA", LIN0 + "vera_lambda_d", (5,), "shape: .*with r = 4"),
        ("BOFT", LIN0 + "boft_R", (1, 4, 4, 3), r"shape: .*boft_R is \[1, 4, 4, 3\]"),
        ("OFT", LIN0 + "oft_R.weight", (4, 7), "shape: .*7 entries are no triangle"),
        ("C3A", LIN0 + "c3a_kernel", (8, 4, 5), "config-mismatch: .*has b 5, config says block_s"),
        ("HRA", LIN0 + "hra_u", (16, 6), 'rank-mismatch: "lin0" has rank 6, config says r=4'),
        ("LOKR", LIN0 + "lokr_w2_a", (8, 2), "shape: "),
        ("FOURIERFT", LIN0 + "fourierft_spectrum", (11,), "config says n_frequency=10"),
        ("PROMPT_TUNING", "prompt_embeddings", (4, 16), "config says num_virtual_tokens=3"),
        ("VBLORA", "base_model.vblora_vector_bank", None, "missing-tensors: the weights hold no"),
        ("MISS:bat", LIN0 + "miss_block", (4, 32), "shape: .*init_weights is 'bat'"),
        ("TRAINABLE_TOKENS", "base_model.model.model.embed_tokens.trainable_tokens_delta", (3, 16),
         "config-mismatch: .*has 3 rows of tokens, config names 2"),
        ("IA3", LIN0 + "lora_A.weight", (4, 16), "unknown-keys: 1 tensors have names that PEFT"),
    ],
)  # fmt: skip
def test_contradictions(
    tmp_path: Path, kind: str, key: str, shape: tuple[int, ...] | None, said: str
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = values(*shape)

    import re

    found = spoilt(tmp_path, kind, change)
    assert any(re.search(said, problem) for problem in found), found


def test_methods_of_peft_are_found_in_any_case() -> None:
    found = method_of("p_tuning")
    assert found is not None and found.name == "p_tuning"
    assert method_of("FINEGATES") is None
