"""`part="lora"`: of a UniPELT, the LoRA whose gate is constant; by formulas in fp64, and beside the
hooks that attach the same tensors, which the goldens of `adapters` 1.3 hold to that library."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapterhub as ah
from adapterhub import formats, schema
from adapterhub.adapter import Adapter
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidAdapter, NotMergeable
from adapterhub.merging import Source, plan, read_report
from adapterhub.methods import unions
from adapterhub.methods.lora_places import fused_of
from adapterhub.tensorfile import ArrayTensor, open_checkpoint, read_header, write_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "adapters"
ARCHITECTURES = sorted(path.parent.name for path in GOLDEN.glob("*/unipelt"))
ALPHA, R = 4, 2  # of the goldens
Arrays = dict[str, np.ndarray]
LORA_ROLES = (".lora_A", ".lora_B", ".gate.weight", ".gate.bias")


def arrays_of(path: Path) -> Arrays:
    """Of a file, or of a directory's checkpoint."""
    tensors = read_header(path).tensors if path.is_file() else open_checkpoint(path).tensors
    return {name: np.array(tensor.read()) for name, tensor in tensors.items()}


def still(name: str, value: np.ndarray) -> np.ndarray | None:
    return value * 0 if ".loras." in name and name.endswith("gate.weight") else value


def ungated(name: str, value: np.ndarray) -> np.ndarray | None:
    return None if ".loras." in name and ".gate." in name else value


Edit = Callable[[str, np.ndarray], np.ndarray | None]


def union(path: Path, architecture: str, edit: Edit = still, **fields: Any) -> Path:
    """The golden UniPELT with other tensors (None leaves one out) and fields of its LoRA."""
    golden = GOLDEN / architecture / "unipelt"
    path.mkdir(parents=True)
    edited = {n: edit(n, value) for n, value in arrays_of(golden / "adapter.safetensors").items()}
    kept = {n: ArrayTensor(value) for n, value in edited.items() if value is not None}
    write_file(path / "adapter.safetensors", kept)
    config = json.loads((golden / "adapter_config.json").read_text())
    (lora,) = (c for c in config["config"]["configs"] if c.get("architecture") == "lora")
    lora |= {"use_gating": edit is not ungated, **fields}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def base_of(architecture: str) -> Path:
    return GOLDEN / architecture / "base"


def factors(tensors: Mapping[str, np.ndarray], gated: bool) -> dict[str, list[Any]]:
    """Module → (what its product is multiplied with, A, B) of each part of its weight, in fp64."""
    found: dict[str, list[Any]] = {}
    for name in (n for n in tensors if n.endswith(".lora_A")):
        module, _, stem = name.removesuffix(".lora_A").partition(".loras.")
        start = f"{module}.loras.{stem}"
        a, b = (tensors[f"{start}.lora_{which}"].astype(np.float64) for which in "AB")
        count = len(a) // R
        gates = [ALPHA / R] * count
        if gated:
            biases = tensors[f"{start}.gate.bias"].astype(np.float64)
            gates = [1 / (1 + math.exp(-bias)) for bias in biases]
        found[module] = list(zip(gates, np.split(a, count), np.split(b, count), strict=True))
    return found


def expected(architecture: str, adapter: Path, gated: bool) -> Arrays:
    """Every weight of the base in fp64 with its products; GPT-2's q and v are thirds 0 and 2."""
    arrays = {n: v.astype(np.float64) for n, v in arrays_of(base_of(architecture)).items()}
    for module, pairs in factors(arrays_of(adapter / "adapter.safetensors"), gated).items():
        products = [gate * (b @ a) for gate, a, b in pairs]
        if architecture == "gpt2":
            q, v = products
            arrays[f"{module}.weight"] += np.concatenate((q, q * 0, v)).T
        else:
            arrays[f"{module}.weight"] += products[0]
    return arrays


@pytest.mark.parametrize("edit", [still, ungated])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lora_alone_is_merged(
    architecture: str, edit: Edit, tmp_path: Path, home: Path
) -> None:
    adapter = union(tmp_path / "a", architecture, edit)
    report = ah.merge(base_of(architecture), [adapter], out=tmp_path / "m", part="lora")
    found = arrays_of(tmp_path / "m")
    wanted = expected(architecture, adapter, edit is still)
    before = arrays_of(base_of(architecture))
    assert found.keys() == wanted.keys()
    changed = [name for name in found if not np.array_equal(found[name], before[name])]
    assert len(changed) == report.actions["merge"] > 0
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert report.reproducible


@pytest.mark.parametrize("edit", [still, ungated])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
def test_the_merged_model_gives_what_the_attached_lora_gives(
    architecture: str, edit: Edit, tmp_path: Path, home: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    from adapterhub.runtime import unions as live
    from adapterhub.runtime.hooks import install

    path = union(tmp_path / "a", architecture, edit)
    ah.merge(base_of(architecture), [path], out=tmp_path / "m", part="lora")
    stored = GOLDEN / architecture / "expected.safetensors"
    inputs = {
        name.removeprefix("in."): torch.from_numpy(value)
        for name, value in arrays_of(stored).items()
        if name.startswith("in.")
    }
    model = AutoModel.from_pretrained(base_of(architecture)).eval()
    merged = AutoModel.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        plain = model(**inputs)[0]
        undo = install(model, live.plan(model, only_lora(read(path)), 1.0))
        attached = model(**inputs)[0]
        undo()
        found = merged(**inputs)[0]
    assert float((attached - plain).abs().max()) > 1e-2
    assert float((attached - found).abs().max()) < 1e-5


def read(path: Path) -> Adapter:
    adapter = formats.read(path).adapter
    assert adapter is not None
    return adapter


def only_lora(adapter: Adapter) -> Adapter:
    modules: dict[str, dict[str, Any]] = {}
    for module, role, tensor in adapter.tensors():
        if unions.is_lora(role):
            modules.setdefault(module, {})[role] = tensor
    config = {**adapter.config, "configs": [unions.member(adapter)]}
    return replace(adapter, modules=modules, config=config)


def test_the_weight_and_equal_gates_of_one_fused_weight(tmp_path: Path, home: Path) -> None:
    def equal(name: str, value: np.ndarray) -> np.ndarray | None:
        if name.endswith("gate.bias") and ".loras." in name:
            return np.full_like(value, -0.75)
        return still(name, value)

    adapter = union(tmp_path / "a", "gpt2", equal)
    ah.merge(base_of("gpt2"), [(adapter, 0.5)], out=tmp_path / "m", part="lora")
    found, before = arrays_of(tmp_path / "m"), arrays_of(base_of("gpt2"))
    for name, value in expected("gpt2", adapter, True).items():
        half = (value + before[name]) / 2
        np.testing.assert_allclose(found[name], half, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("bias", [0.0, 1.0, -1.0, 36.5, -36.5, 745.0, -745.0, -3.4e38, 3.4e38])
def test_sigmoid_is_the_nearest_number(bias: float) -> None:
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 400
        power = Decimal(max(-5000.0, min(5000.0, -bias))).exp()
        wanted = float(1 / (1 + power))
    assert struct.pack("d", unions.sigmoid(bias)) == struct.pack("d", wanted)


# --- what is refused --------------------------------------------------------------------------


def planned(path: Path, architecture: str = "bert", part: str | None = "lora") -> ah.MergePlan:
    return ah.plan_merge(base_of(architecture), [path], part=part)


def test_one_gate_that_hangs_on_the_input_is_refused(tmp_path: Path, home: Path) -> None:
    def nearly(name: str, value: np.ndarray) -> np.ndarray | None:
        value = np.array(still(name, value))
        if name.endswith("layer.1.attention.self.value.loras.golden.gate.weight"):
            value[0, 3] = 1e-30
        return value

    path = union(tmp_path / "a", "bert", nearly)
    with pytest.raises(NotMergeable, match="the gate of 1 of 4 LoRA modules hangs on") as caught:
        planned(path)
    assert caught.value.details == ('"encoder.layer.1.attention.self.value"',)
    assert "ah.attach" in caught.value.remedy
    with pytest.raises(NotMergeable, match="cannot be merged") as caught:
        planned(path, part=None)
    assert "ah.attach" in caught.value.remedy and "--part" not in caught.value.remedy


def test_without_part_the_remedy_names_it(tmp_path: Path, home: Path) -> None:
    with pytest.raises(NotMergeable, match=r"UniPELT \(unipelt\) cannot be merged") as caught:
        planned(union(tmp_path / "a", "bert"), part=None)
    assert "--part lora" in caught.value.remedy and "ah.attach" in caught.value.remedy


def test_no_union_and_a_union_without_lora(tmp_path: Path, home: Path) -> None:
    with pytest.raises(NotMergeable, match=r"houlsby: it is no union \(bottleneck\)"):
        planned(GOLDEN / "bert" / "houlsby")
    with pytest.raises(NotMergeable, match="mam: this mam has no LoRA"):
        planned(GOLDEN / "bert" / "mam")
    with pytest.raises(AdapterHubError, match="part 'prefix' is unknown"):
        planned(union(tmp_path / "a", "bert"), part="prefix")


def without_a_gate(name: str, value: np.ndarray) -> np.ndarray | None:
    return None if "layer.0" in name and "loras" in name and name.endswith("gate.bias") else value


def cut(name: str, value: np.ndarray) -> np.ndarray | None:
    return value[:1].copy() if name.endswith("lora_A") else still(name, value)


def diverged(name: str, value: np.ndarray) -> np.ndarray | None:
    return value * np.nan if name.endswith("gate.bias") else still(name, value)


def wide(name: str, value: np.ndarray) -> np.ndarray | None:
    return value.astype(np.float64) if name.endswith("lora_B") else still(name, value)


def longer(name: str, value: np.ndarray) -> np.ndarray | None:
    return np.tile(value, (2, 1)) if name.endswith("lora_B") else still(name, value)


@pytest.mark.parametrize(
    ("edit", "fields", "error", "said"),
    [
        (without_a_gate, {}, InvalidAdapter, "has .*the config asks for .* loras:gate.bias"),
        (ungated, {"use_gating": True}, InvalidAdapter, "the config asks for"),
        (still, {"use_gating": False}, InvalidAdapter, "the config asks for lora_A, lora_B"),
        (cut, {}, InvalidAdapter, r"lora_A is \[1, 8\], \[2, 8\] was expected: 1 part of rank 2"),
        (diverged, {}, InvalidAdapter, "gate.bias holds NaN or infinity"),
        (wide, {}, NotMergeable, "lora_B is stored as F64"),
        (longer, {}, BaseMismatch, "does not fit the base"),
        (still, {"r": 4}, InvalidAdapter, r"lora_A is \[2, 8\], \[4, 8\]"),
        (still, {"use_dora": True}, NotMergeable, "use_dora is set"),
        (still, {"vera_d": 0.1}, NotMergeable, "vera_d is set"),
    ],
)
def test_what_contradicts_itself(
    edit: Edit, fields: dict[str, Any], error: type, said: str, tmp_path: Path, home: Path
) -> None:
    with pytest.raises(error, match=said):
        planned(union(tmp_path / "a", "bert", edit, **fields))


def test_a_gate_that_is_not_finite_in_memory() -> None:
    one = np.ones((2, 2), np.float32)
    roles = dict(zip(unions.LORA, (one, one, np.zeros((1, 2)), np.full(1, np.inf)), strict=True))
    tensors = {role: ArrayTensor(value.astype(np.float32)) for role, value in roles.items()}
    config = {"configs": [{"architecture": "lora", "r": 2, "use_gating": True}]}
    adapter = Adapter("unipelt", "adapterhub", config, {"a": tensors})
    with pytest.raises(InvalidAdapter, match=r"gate\.bias is not finite"):
        unions.lora(adapter, 4, lambda module: (module, ""))


@pytest.mark.parametrize("matrices", [["k2"], "qv", 7])
def test_matrices_that_no_fused_weight_has(matrices: Any, tmp_path: Path, home: Path) -> None:
    with pytest.raises(InvalidAdapter, match="attn_matrices names no part"):
        planned(union(tmp_path / "a", "gpt2", attn_matrices=matrices), "gpt2")


@pytest.mark.parametrize(
    ("kind", "module", "wanted"),
    [
        ("gpt2", "h.11.attn.c_attn", ("h.11.attn.c_attn", "qkv")),
        ("gpt2", "transformer.h.0.attn.c_attn", ("transformer.h.0.attn.c_attn", "qkv")),
        ("gpt2", "h.0.mlp.c_fc", None),
        ("vit", "vit.encoder.layer.3.output.dense", ("vit.layers.3.mlp.fc2", "")),
        ("vit", "encoder.layer.3.attention.output.dense", None),
        ("bert", "encoder.layer.0.attention.self.query", None),
        (None, "h.0.attn.c_attn", None),
    ],
)
def test_where_a_lora_stands(kind: str | None, module: str, wanted: Any) -> None:
    assert fused_of(kind, module) == wanted


# --- nothing silent ---------------------------------------------------------------------------


def test_every_tensor_has_a_fate_and_the_rest_is_said(tmp_path: Path, home: Path) -> None:
    path = union(tmp_path / "a", "bert")
    made = planned(path)
    told = {fate.tensor: fate.fate for fate in made.fates}
    names = list(arrays_of(path / "adapter.safetensors"))
    assert len(told) == len(made.fates) == len(names)
    left = [name for name, fate in told.items() if fate == "left out: --part lora"]
    assert len(left) == sum(".loras." not in name for name in names) == 31
    assert all("merged into" in fate for name, fate in told.items() if name not in left)
    assert [note for note in made.notes if "--part lora" in note] == [
        f"of {path} (UniPELT) only the LoRA is merged (--part lora); left out are 31 tensors: "
        "12 of the bottlenecks, 19 of the prefixes"
    ]


def test_a_head_is_left_out_with_its_labels() -> None:
    adapter = read(GOLDEN / "bert" / "unipelt")
    modules = {m: dict(roles) for m, roles in adapter.modules.items()}
    for roles in modules.values():
        if gate := roles.get("loras:gate.weight"):
            roles["loras:gate.weight"] = ArrayTensor(np.zeros(gate.shape, np.float32))
    modules["heads.1"] = {"replace:weight": ArrayTensor(np.ones((2, 8), np.float32))}
    adapter = replace(adapter, modules=modules, labels=("yes", "no"), task="SEQ_CLS")
    from adapterhub.base import open_base

    made = plan(open_base(base_of("bert")), [Source("u", adapter, part="lora")])
    assert "1 of the head" in made.notes[-1]
    assert "id2label" not in made.config
    assert {f.tensor: f.fate for f in made.fates}["heads.1.replace:weight"].startswith("left out")


@pytest.mark.parametrize("by_ref", [True, False])
def test_the_report_says_the_part_and_verify_repeats_it(
    by_ref: bool, tmp_path: Path, home: Path
) -> None:
    path, out = union(tmp_path / "a", "gpt2"), tmp_path / "m"
    with ah.open() as registry:
        registry.add(path, name="u", base=base_of("gpt2"))
        ah.merge(
            base_of("gpt2"), ["u" if by_ref else path], out=out, part="lora", registry=registry
        )
        given = [] if by_ref else [path]
        assert read_report(out)["adapters"][0]["part"] == "lora"
        again = {"repeat": True, "base": base_of("gpt2"), "adapters": given, "registry": registry}
        assert ah.verify_directory(out, **again) == []
        report = json.loads((out / "adapterhub.json").read_text())
        del report["adapters"][0]["part"]  # as older merges have it: then it is all of the adapter
        (out / "adapterhub.json").write_text(json.dumps(report))
        schema.check(report, "merge", what="report")
        with pytest.raises(NotMergeable, match="UniPELT"):
            ah.verify_directory(out, **again)
