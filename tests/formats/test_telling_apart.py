"""Every format is told from every other by what lies there, and no value is read for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import making
import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter, Reading
from adapterhub.errors import AdapterHubError, NotSupported, UnknownFormat
from adapterhub.formats import named, pickles
from adapterhub.formats.sight import Sight
from adapterhub.registry import inspection


def _outline(reading: Reading) -> set[int]:
    return set(reading.outline.ranks.values()) if reading.outline else set()


@pytest.mark.parametrize("name", sorted(making.MAKERS))
def test_each_format_is_recognised_and_nothing_is_unpickled(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, method, ranks = making.MAKERS[name]
    path = make(tmp_path / "x")
    monkeypatch.setattr(pickles, "load", lambda path: pytest.fail("opened"))
    sight = Sight.of(path)
    takers = [r.name for r in formats.TABLE.values() if r.implementation.recognises(sight)]
    assert takers[:1] == [name]
    # torchtune exports a config of PEFT's; that row stands before, as it has the weights.
    assert takers[1:] == (["peft"] if name == "torchtune" else [])
    reading = formats.read(path)
    assert (reading.format, reading.method) == (name, method)
    assert _outline(reading) == ranks


def test_the_makers_are_those_of_the_table() -> None:
    assert set(making.MAKERS) == set(formats.TABLE)


@pytest.mark.parametrize("name", sorted(n for n, row in formats.TABLE.items() if not row.reads))
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    reading = formats.read(making.MAKERS[name][0](tmp_path / "x"), allow_pickle=True)
    with pytest.raises(NotSupported) as said:
        inspection.require(reading)
    assert "are recognised and not read by this version" in said.value.message
    assert said.value.remedy == making.REMEDIES.get(name, named.REMEDY)
    with pytest.raises(NotSupported, match="are not written by this version"):
        formats.write(_peft_adapter(tmp_path), tmp_path, to=name)


def _peft_adapter(tmp_path: Path) -> Adapter:
    return inspection.require(formats.read(making.peft(tmp_path / "peft")))


@pytest.mark.parametrize("dialect", sorted(making.DIFFUSERS))
def test_four_dialects_of_diffusers(tmp_path: Path, dialect: str) -> None:
    reading = formats.read(making.DIFFUSERS[dialect](tmp_path / "x"))
    assert reading.format == "diffusers"
    assert f"diffusers adapters ({dialect}) are" in reading.problems[0].message
    assert _outline(reading) == {2}


@pytest.mark.parametrize(
    ("name", "shape", "format"),
    [
        ("transformer.h.0.attn.c_attn.lora_A", (2, 6), "loralib"),  # GPT-2, not diffusers
        ("transformer.h.0.attn.qkv.lora_A", (2, 6), "litgpt"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (2, 6), "diffusers"),
        ("transformer.h.0.attn.c_attn.lora_A.weight", (2, 6), "unknown"),
        ("bert.layer.0.query.loras.md.lora_A", (2, 6), "adapterhub"),
        ("bert.layer.0.query.lora.lora_A", (2, 6), "unknown"),  # OpenDelta
        ("base_model.model.lin0.lora_A", (2, 6), "peft"),  # AdaLoRA
        ("lora_unet_mid.lokr_w1", (2, 6), "lycoris"),
        ("lycoris_mid_block.lora_down.weight", (2, 6), "lycoris"),
        ("lora_te1_layers_0_fc1.lora_down.weight", (2, 6), "kohya"),
        ("lora_unet_mid.dora_scale", (4, 1), "lycoris"),
        ("layers.0.attn.q_proj.lora_a.weight", (2, 6), "torchtune"),
        ("model.layers.0.q_proj.lora_a", (6, 2), "mlx"),
        ("model.layers.0.q_proj.weight", (6, 6), "unknown"),
    ],
)
def test_names_decide(tmp_path: Path, name: str, shape: tuple[int, ...], format: str) -> None:
    path = making.safetensors(tmp_path / "some.safetensors", {name: shape})
    assert formats.read(path).format == format


def test_metadata_counts_only_with_its_names(tmp_path: Path) -> None:
    said = {"ss_network_module": "networks.lora", "ss_sd_model_name": "sd15.safetensors"}
    other = making.safetensors(tmp_path / "a.safetensors", {"encoder.weight": (2, 6)}, said)
    assert formats.read(other).format == "unknown"
    names = {"my_mod.lora_down.weight": (2, 6)}
    loose = making.safetensors(tmp_path / "b.safetensors", names, said)
    reading = formats.read(loose)
    assert reading.format == "kohya"
    assert reading.outline is not None and reading.outline.base.name == "sd15.safetensors"
    without = making.safetensors(tmp_path / "c.safetensors", names)
    assert formats.read(without).format == "unknown"


def test_what_shows_of_named_formats(tmp_path: Path) -> None:
    mlx = formats.read(making.mlx(tmp_path / "mlx"))
    assert mlx.outline is not None
    assert (mlx.outline.alpha, mlx.outline.base.name) == (20.0, "owner/base")
    assert mlx.outline.targets == (
        "model.layers.3.self_attn.q_proj",
        "model.layers.3.mlp.experts.up_proj",
    )
    assert mlx.tensors["model.layers.3.self_attn.q_proj.lora_a"].shape == (6, 2)
    gguf = formats.read(making.gguf_lora(tmp_path / "gguf"))
    assert gguf.outline is not None and gguf.outline.alpha == 16.0
    assert gguf.outline.ranks == {"blk.0.attn_q.weight": 2, "token_embd.weight": 2}
    assert "(architecture llama)" in gguf.problems[0].message
    kohya = formats.read(making.kohya(tmp_path / "kohya"))
    assert kohya.outline is not None
    alpha = kohya.tensors["lora_unet_double_blocks_0_img_attn_qkv.alpha"].read()
    assert kohya.outline.alpha == float(alpha)


def test_a_gguf_model_is_no_adapter(tmp_path: Path) -> None:
    pairs = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"] * 50}
    path = making.gguf(tmp_path / "model.gguf", pairs, {"blk.0.attn_q.weight": (4, 6)})
    assert formats.read(path).format == "unknown"
    assert formats.detect(path) is None


def test_peft_weights_beside_torchtune_are_read_as_peft(tmp_path: Path) -> None:
    path = making.torchtune(tmp_path / "x")
    making.peft(path)
    assert formats.read(path).format == "peft"


def test_a_gguf_beside_peft_weights_is_left_aside(tmp_path: Path) -> None:
    path = making.gguf_lora(tmp_path / "x")
    assert formats.read(path).format == "gguf"
    making.peft(path)
    assert formats.read(path).format == "peft"


def test_the_final_weights_stand_before_many_checkpoints(tmp_path: Path) -> None:
    path = making.mlx(tmp_path / "x")
    (path / "adapter_config.json").unlink()
    for step in range(100, 2000, 100):
        name = f"{step:07d}_adapters.safetensors"
        making.safetensors(path / name, {"model.layers.3.q_proj.lora_a": (6, 3)})
    reading = formats.read(path)
    assert (reading.format, [f.name for f in reading.files]) == ("mlx", ["adapters.safetensors"])
    assert _outline(reading) == {2}


def test_peft_under_other_names(tmp_path: Path) -> None:
    path = making.peft(tmp_path / "x")
    (path / "adapter_config.json").rename(path / "old.json")
    (path / "adapter_model.safetensors").rename(path / "other.safetensors")
    config = formats.read(path / "old.json")
    assert (config.format, config.method, config.config["r"]) == ("peft", "lora", 2)
    assert [p.code for p in config.fatal] == ["no-weights"]
    weights = formats.read(path / "other.safetensors")
    assert (weights.format, weights.adapter) == ("peft", None)
    assert "call it adapter_model.safetensors" in weights.fatal[-1].remedy
    whole = formats.read(path)
    assert whole.format == "peft" and whole.adapter is None


def test_a_file_alone_is_not_mixed_with_its_neighbours(tmp_path: Path) -> None:
    path = making.peft(tmp_path / "x")
    making.kohya(path)
    np.save(path / "prompt.npy", making.numbers((5, 8)))
    assert formats.read(path).format == "peft"
    assert formats.read(path / "x.safetensors").format == "kohya"
    assert formats.read(path / "prompt.npy").format == "t5x_prompt"
    assert formats.read(path / "adapter_model.safetensors").format == "peft"


def test_merged_linear_of_early_peft_is_named(tmp_path: Path) -> None:
    path = making.merged_linear(tmp_path / "x")
    reading = formats.read(path)
    assert (reading.format, reading.method) == ("peft_merged_linear", "lora")
    (problem,) = reading.fatal
    assert problem.code == "format" and "before 0.4" in problem.message
    making.config(path / "adapter_config.json", peft_type="LORA", r=2, enable_lora=None)
    assert formats.read(path).format == "peft"


def test_metadata_of_null_as_mlx_wrote_it(tmp_path: Path) -> None:
    head = {"__metadata__": None, "a.lora_a": {"dtype": "F32", "shape": [1, 1]}}
    head["a.lora_a"]["data_offsets"] = [0, 4]  # type: ignore[index]
    text = json.dumps(head).encode()
    (tmp_path / "adapters.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(4)
    )
    reading = formats.read(tmp_path)
    assert reading.format == "mlx"
    assert [p.code for p in reading.fatal] == ["format"]


# --- what is unknown --------------------------------------------------------------------------


def test_unknown_says_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "x"
    making.config(path / "adapter_config.json", base_model="a/b", rank=4)
    making.pickled(
        path / "adapter_model.bin", {"model.proj.alpha": (), "model.proj.dropout_p": 0.1}
    )
    (path / "notes.txt").write_text("")
    reading = formats.read(path)
    assert (reading.format, reading.method, reading.adapter) == ("unknown", None, None)
    assert reading.config == {"base_model": "a/b", "rank": 4}
    with pytest.raises(UnknownFormat) as caught:
        inspection.require(reading)
    assert caught.value.message == (
        f'{path} is not an adapter of a known format; seen: adapter_config.json ("base_model", '
        f'"rank"), adapter_model.bin (1 tensors: "model.proj.alpha"), notes.txt'
    )


def test_a_model_is_not_an_adapter(tmp_path: Path) -> None:
    making.safetensors(tmp_path / "model.safetensors", {"encoder.weight": (2, 6)})
    with pytest.raises(UnknownFormat, match=r"seen: model\.safetensors"):
        formats.read(tmp_path)
    making.safetensors(tmp_path / "part.safetensors", {"encoder.weight": (2, 6)})
    making.config(tmp_path / "config.json", model_type="bert")
    with pytest.raises(UnknownFormat):
        formats.read(tmp_path)
    assert formats.detect(tmp_path) is None


def test_every_file_of_every_format_gives_a_reading_or_a_named_error(tmp_path: Path) -> None:
    for name, (make, _, _) in making.MAKERS.items():
        for file in sorted(make(tmp_path / name).rglob("*")):
            try:
                assert formats.read(file, allow_pickle=False).format in (name, "unknown", "peft")
            except AdapterHubError as error:
                assert error.message and error.remedy


def test_detection_imports_nothing_heavy(tmp_path: Path) -> None:
    for name, (make, _, _) in making.MAKERS.items():
        make(tmp_path / name)
    code = (
        "import sys; from pathlib import Path; from adapterhub import formats\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    reading = formats.read(path); print(path.name, reading.format)\n"
        "print(sorted({'torch', 'transformers', 'jsonschema', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert all(folder == said for folder, said in lines[:-1])
    assert len(lines) == len(making.MAKERS) + 1
    assert not {"'torch'", "'transformers'"} & set(done.stdout.strip("[]\n").split(", "))
    assert "torch" not in done.stdout.splitlines()[-1]
