"""A LoRA of what a training did, against the fine-tuned model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from extracting_building import (
    BERT,
    GPT2,
    LABELLED,
    LLAMA,
    QWEN,
    TIED,
    VIT,
    Arrays,
    Kind,
    config_of,
    low,
    model,
    nudged,
    peft_of,
    saved,
    tuned,
)
from safetensors.numpy import load_file, save_file

import adapterhub as ah
from adapterhub.cli import main
from adapterhub.errors import BaseMismatch, InvalidOption, NotMergeable, NotSupported, OutputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
TOKENS = torch.tensor([[1, 5, 7, 2, 9, 3]])
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))


def answers(live: Any, given: Any = TOKENS) -> Any:
    with torch.no_grad():
        out = live(given)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


CASES: list[tuple[str, Kind, tuple[str, ...]]] = [
    ("llama", LLAMA, ("_proj.weight", "norm.weight", "lm_head.weight", "embed_tokens.weight")),
    ("tied", TIED, ("q_proj.weight", "embed_tokens.weight")),
    ("qwen", QWEN, ("q_proj.weight", "q_proj.bias", "v_proj.bias")),
    ("gpt2", GPT2, ("c_attn.weight", "c_fc.weight", "c_proj.weight", "c_attn.bias", "ln_1.bias")),
    ("gpt2-norms", GPT2, ("c_attn.weight", "ln_1.weight", "wte.weight", "wpe.weight")),
    ("vit", VIT, ("projection.weight", "query.weight", "dense.bias", "classifier.weight")),
]


@quiet
@pytest.mark.parametrize(("kind", "ends"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_peft_runs_it_as_the_fine_tuned_model(
    tmp_path: Path, kind: Kind, ends: tuple[str, ...]
) -> None:
    base = saved(kind, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged(*ends))
    report = ah.extract(base, fine, rank=2, out=tmp_path / "out")
    assert report.error is not None and report.error < 1e-3
    name = getattr(transformers, kind[2])
    given = torch.randn(1, 3, 8, 8) if kind is VIT else TOKENS
    expected = answers(name.from_pretrained(fine).eval(), given)
    plain = answers(name.from_pretrained(base).eval(), given)
    assert (plain - expected).abs().max() > 0.05
    found = answers(peft_of(name.from_pretrained(base).eval(), tmp_path / "out"), given)
    assert torch.allclose(found, expected, atol=2e-4)
    # and so does a merge of our own, with the bits of what was saved whole
    ah.merge(base, [tmp_path / "out"], out=tmp_path / "merged")
    merged, wanted = (load_file(tmp_path / d / "model.safetensors") for d in ("merged", "fine"))
    assert merged.keys() >= wanted.keys()
    for tensor, values in wanted.items():
        assert np.allclose(merged[tensor], values, atol=1e-5), tensor
    for tensor in set(report.saved) & wanted.keys():
        assert merged[tensor].tobytes() == wanted[tensor].tobytes()


@quiet
def test_a_new_head_comes_along_with_its_labels(tmp_path: Path) -> None:
    base = saved(BERT, tmp_path / "base")
    start = model(LABELLED)
    start.config.id2label = {0: "O", 1: "SRC", 2: "TGT"}
    start.save_pretrained(tmp_path / "start")
    arrays = load_file(base / "model.safetensors")

    def change(found: Arrays) -> None:
        found |= {f"bert.{n}": a for n, a in arrays.items() if f"bert.{n}" in found}
        nudged("query.weight", "query.bias")(found)

    fine = tuned(tmp_path / "start", tmp_path / "fine", change)
    report = ah.extract(base, fine, rank=2, out=tmp_path / "out")
    assert report.left_out == ["pooler.dense.bias", "pooler.dense.weight"]
    assert {"classifier.weight", "classifier.bias"} <= set(report.saved)
    assert config_of(tmp_path / "out")["task_type"] == "TOKEN_CLS"
    expected = transformers.BertForTokenClassification.from_pretrained(fine).eval()
    bare = transformers.BertForTokenClassification.from_pretrained(base, num_labels=3).eval()
    found = peft_of(bare, tmp_path / "out")
    assert torch.allclose(answers(found), answers(expected), atol=2e-4)
    with ah.open() as reg:
        assert reg.add(tmp_path / "out", name="ner").status == "added"
    ah.merge(base, ["ner"], out=tmp_path / "merged")
    merged = transformers.BertForTokenClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.id2label == {0: "O", 1: "SRC", 2: "TGT"}
    assert torch.allclose(answers(merged), answers(expected), atol=2e-4)


# --- what it finds ----------------------------------------------------------------------------


def test_merged_and_extracted_again_is_the_loras_delta(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base", max_shard_size="8KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    lora = tmp_path / "lora"
    dice, tensors = np.random.default_rng(1), {}
    module = "model.layers.1.mlp.up_proj"
    tensors[f"base_model.model.{module}.lora_A.weight"] = dice.standard_normal((3, 16))
    tensors[f"base_model.model.{module}.lora_B.weight"] = dice.standard_normal((20, 3))
    tensors = {name: values.astype(np.float32) for name, values in tensors.items()}
    lora.mkdir()
    save_file(tensors, lora / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["up_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    ah.merge(base, [lora], out=tmp_path / "fine", max_shard_size="20KB")
    report = ah.extract(base, tmp_path / "fine", energy=0.999999, out=tmp_path / "out")
    assert [(one.module, one.rank) for one in report.modules] == [(module, 3)]
    assert report.saved == report.dropped == [] and report.unchanged == 20
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    old_a, old_b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    assert np.allclose(b @ a, old_b @ old_a, atol=1e-5)
    assert a.dtype == b.dtype == np.float32
    # √S on either side
    assert np.allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-4)


@pytest.mark.parametrize("given", [{"rank": 3}, {"energy": 0.9}, {"rank": 4, "energy": 0.8}])
def test_truncated_as_the_best_there_is(tmp_path: Path, given: dict[str, Any]) -> None:
    base = saved(GPT2, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("c_fc.weight", rank=16))
    report = ah.extract(base, fine, out=tmp_path / "out", **given)
    old, new = (load_file(d / "model.safetensors") for d in (base, fine))
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    lost = total = 0.0
    for one in report.modules:
        name = f"{one.module}.weight"
        delta = (new[name].astype(np.float32) - old[name]).astype(np.float64).T
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        shares = np.cumsum(s**2) / np.sum(s**2)
        rank = given.get("rank", len(s))
        if "energy" in given:
            rank = min(rank, int(np.searchsorted(shares, given["energy"])) + 1)
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        a, b = (found[f"base_model.model.{one.module}.lora_{x}.weight"] for x in "AB")
        assert one.rank == rank == a.shape[0]
        assert np.allclose(b.astype(np.float64) @ a, best, atol=1e-5)
        assert one.error == pytest.approx(np.sqrt(1 - shares[rank - 1]), abs=1e-5)
        lost, total = lost + np.sum(s[rank:] ** 2), total + np.sum(s**2)
    assert report.error == pytest.approx(np.sqrt(lost / total), abs=1e-5)
    assert len(report.modules) == 2


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_bf16_and_mixed_dtypes(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    start = model(LLAMA).to(torch.bfloat16)
    start.to(getattr(torch, dtypes[0])).save_pretrained(tmp_path / "base")
    weight = start.model.layers[0].self_attn.q_proj.weight
    old = weight.float().detach().numpy().copy()
    with torch.no_grad():
        weight += torch.from_numpy(low((16, 16), 2, 1)).to(torch.bfloat16)
    new = weight.float().detach().numpy()
    start.to(getattr(torch, dtypes[1])).save_pretrained(tmp_path / "fine")
    report = ah.extract(tmp_path / "base", tmp_path / "fine", rank=16, out=tmp_path / "out")
    (one,) = report.modules
    assert one.module == "model.layers.0.self_attn.q_proj" and report.saved == []
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.{one.module}.lora_{x}.weight"] for x in "AB")
    assert np.allclose(b @ a, new - old, atol=1e-5)


@quiet
def test_targets_narrow_and_may_name_heads_and_embeddings(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("weight"))
    given = ("q_proj", "*layers.1*down_proj", "lm_head", "embed_tokens")
    report = ah.extract(base, fine, rank=2, targets=given, rest="drop", out=tmp_path / "out")
    assert [one.module for one in report.modules] == [
        "lm_head",
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert "model.layers.0.mlp.down_proj.weight" in report.dropped
    assert config_of(tmp_path / "out")["target_modules"] == [o.module for o in report.modules]
    ah.merge(base, [tmp_path / "out"], out=tmp_path / "merged")
    merged, wanted = (load_file(tmp_path / d / "model.safetensors") for d in ("merged", "fine"))
    for one in report.modules:
        assert np.allclose(
            merged[f"{one.module}.weight"], wanted[f"{one.module}.weight"], atol=1e-5
        )
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in names
    with torch.no_grad():
        theirs = peft_of(model(LLAMA), tmp_path / "out")(TOKENS).logits
        ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.allclose(theirs, ours(TOKENS).logits, atol=1e-4)


def test_the_command_takes_targets_between_commas_too(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("weight"))
    command = ["extract", str(base), str(fine), "--rank", "2", "--rest", "drop", "--json"]
    made = []
    for number, targets in enumerate((("q_proj", "v_proj"), ("q_proj, v_proj",))):
        options = [text for target in targets for text in ("--targets", target)]
        out = ["--out", str(tmp_path / str(number))]
        result = CliRunner().invoke(main, [*command, *options, *out])
        assert result.exit_code == 0, result.output
        made.append(json.loads(result.stdout)["result"]["modules"])
    assert made[0] == made[1] and len(made[0]) == 4


def test_the_manifest_tells_base_and_lineage(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "minillama")
    fine = tuned(base, tmp_path / "fine", nudged("v_proj.weight"))
    with ah.open() as reg:
        report = ah.extract(base, fine, rank=2, name="tuned/v", registry=reg)
        assert report.version is not None
        manifest = reg.show("tuned/v")["manifest"]
        root = reg.base.add(base)["weights_root"]
    assert manifest["base"]["name"] == "minillama"
    assert manifest["base"]["weights_root"] == root == report.base_root
    assert manifest["lineage"]["operation"] == "extract"
    assert manifest["lineage"]["inputs"] == [
        {"role": "base", "weights_root": root},
        {"role": "finetuned", "weights_root": report.tuned_root},
    ]
    assert manifest["lineage"]["parameters"]["rank"] == 2
    assert ah.load_model("tuned/v", base=base) is not None


def test_a_resized_vocabulary_is_saved_whole(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")

    def change(arrays: Arrays) -> None:
        nudged("q_proj.weight")(arrays)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            arrays[name] = np.concatenate([arrays[name], arrays[name][:2] + 1])

    fine = tuned(base, tmp_path / "fine", change)
    report = ah.extract(base, fine, rank=2, out=tmp_path / "out")
    assert report.saved == ["lm_head.weight", "model.embed_tokens.weight"]
    ah.merge(base, [tmp_path / "out"], out=tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["lm_head.weight"].shape == (26, 16)


# --- refusals ---------------------------------------------------------------------------------


def test_what_it_refuses_leaves_nothing(tmp_path: Path) -> None:
    base = saved(LLAMA, tmp_path / "base")
    fine = tuned(base, tmp_path / "fine", nudged("q_proj.weight", "norm.weight"))
    other = saved(QWEN, tmp_path / "other")
    shallow = saved(("LlamaConfig", {**LLAMA[1], "num_hidden_layers": 1}, LLAMA[2]), tmp_path / "s")
    wide = saved(("LlamaConfig", {**LLAMA[1], "intermediate_size": 24}, LLAMA[2]), tmp_path / "w")
    out = tmp_path / "out"
    with pytest.raises(NotMergeable, match="5 tensors changed and have no low rank") as error:
        ah.extract(base, fine, rank=2, rest="refuse", out=out)
    assert "model.norm.weight [16] (Norm)" in error.value.details
    for wrong in (other, shallow, wide):
        with pytest.raises(BaseMismatch, match="their structures differ"):
            ah.extract(base, wrong, rank=2, out=out)
    with pytest.raises(BaseMismatch, match="their structures differ") as error:
        ah.extract(shallow, base, rank=2, out=out)
    assert any("the base has no such tensor" in line for line in error.value.details)
    with pytest.raises(NotSupported, match="the same weights"):
        ah.extract(base, base, rank=2, out=out)
    norms = tuned(base, tmp_path / "norms", nudged("norm.weight"))
    with pytest.raises(NotSupported, match="no weight of a linear layer differs"):
        ah.extract(base, norms, rank=2, out=out)
    for options in ({}, {"rank": 0}, {"energy": 1.5}, {"rank": 2, "biases_only": True}):
        with pytest.raises(InvalidOption):
            ah.extract(base, fine, out=out, **options)
    with pytest.raises(InvalidOption, match="no module is called 'qq_proj'"):
        ah.extract(base, fine, rank=2, targets=["qq_proj"], out=out)
    with pytest.raises(InvalidOption, match="one of name and out"):
        ah.extract(base, fine, rank=2)
    broken = tuned(fine, tmp_path / "broken", _with_nan)
    with pytest.raises(ah.AdapterHubError, match="NaN or infinite"):
        ah.extract(base, broken, rank=2, out=out)
    assert not out.exists()
    with pytest.raises(OutputError, match="is not empty"):
        ah.extract(base, fine, rank=2, out=base)
    report = ah.extract(base, fine, rank=2, rest="drop", out=out)
    assert "model.norm.weight" in report.dropped and report.saved == []


def _with_nan(arrays: Arrays) -> None:
    arrays["model.layers.0.self_attn.q_proj.weight"][3, 2] = np.nan
