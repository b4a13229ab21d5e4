"""PEFT's directories, sound and damaged, as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub import formats
from adapterhub.adapter import Problem, Reading
from adapterhub.errors import AdapterHubError, InvalidAdapter, NotFound, NotSupported, UnknownFormat
from adapterhub.formats.peft import looks_like_path
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor, write_file

Maker = Callable[..., Path]
ONE = np.ones((2, 2), np.float32)
PAIR = {"q.lora_A.weight": ONE, "q.lora_B.weight": ONE}


def problem(reading: Reading, code: str) -> Problem:
    (found,) = [p for p in reading.problems if p.code == code]
    return found


def refusal(reading: Reading) -> AdapterHubError:
    with pytest.raises(AdapterHubError) as caught:
        inspection.require(reading)
    return caught.value


def test_a_sound_adapter(peft_dir: Maker) -> None:
    path = peft_dir(my_note="kept")
    reading = formats.read(path)
    adapter = inspection.require(reading)
    assert (reading.format, reading.method, reading.path) == ("peft", "lora", path)
    assert [f.name for f in reading.files] == ["adapter_model.safetensors", "adapter_config.json"]
    assert (adapter.base.name, adapter.base.revision) == ("owner/base", "abc123")
    assert (adapter.task, adapter.labels) == ("CAUSAL_LM", ())
    assert adapter.config["my_note"] == "kept"
    assert (adapter.parameters, adapter.dtypes) == (10, ("F32",))
    assert [(m, role, t.shape) for m, role, t in adapter.tensors()] == [
        ("layer.0.q", "lora_A", (2, 3)),
        ("layer.0.q", "lora_B", (2, 2)),
    ]
    assert [p.code for p in reading.problems] == ["unknown-fields", "no-licence"]
    assert formats.read(path / "adapter_config.json").adapter == adapter
    assert formats.read(path / "adapter_model.safetensors").adapter == adapter


@pytest.mark.parametrize(
    ("key", "module", "role"),
    [
        ("h.0.q.lora_A.weight", "h.0.q", "lora_A"),
        ("h.0.q.lora_B.weight", "h.0.q", "lora_B"),
        ("h.0.q.lora_B.bias", "h.0.q", "lora_B.bias"),
        ("wte.lora_embedding_A", "wte", "lora_embedding_A"),
        ("wte.lora_embedding_B", "wte", "lora_embedding_B"),
        ("h.0.q.lora_magnitude_vector", "h.0.q", "lora_magnitude_vector"),
        ("h.0.q.lora_diag", "h.0.q", "lora_diag"),
        ("wte.token_adapter.trainable_tokens_delta", "wte", "token_rows"),
        ("h.0.q.base_layer.bias", "h.0.q", "replace:bias"),
        ("wte.base_layer.weight", "wte", "replace:weight"),
        ("wte.token_adapter.base_layer.weight", "wte", "replace:weight"),
        ("classifier.weight", "classifier", "replace:weight"),
        ("classifier.out_proj.bias", "classifier.out_proj", "replace:bias"),
        ("attn.base_layer.out_proj.lora_A.weight", "attn.base_layer.out_proj", "lora_A"),
        ("experts.base_layer.lora_A.weight", "experts", "base_layer.lora_A"),
        ("x.base_layer.base_layer.lora_B.weight", "x", "base_layer.base_layer.lora_B"),
        ("experts.base_layer.base_layer.down_bias", "experts", "replace:down_bias"),
        ("h.0.q.lora_magnitude_vector.weight", "h.0.q", "lora_magnitude_vector"),
        ("h.0.q.lora_velora_embed", "h.0.q", "lora_velora_embed"),
        ("h.0.q.lora_monteclora_sampler.std_prior", "h.0.q", "lora_monteclora.std_prior"),
        ("score.modules_to_save.bias", "score", "replace:modules_to_save.bias"),
        ("score.original_module.a.bias", "score", "replace:original_module.a.bias"),
    ],
)
def test_every_role(peft_dir: Maker, key: str, module: str, role: str) -> None:
    reading = formats.read(peft_dir({key: ONE}))
    assert reading.adapter is not None
    assert {(m, r) for m, r, _ in reading.adapter.tensors()} == {(module, role)}
    assert "unknown-keys" not in [p.code for p in reading.problems]


@pytest.mark.parametrize(
    "key",
    [
        "h.0.q.lora_A.default.weight",
        "h.0.q.lora_A.weight.lora_A.weight",
        "h.0.q.lora_B.default.bias",
        "h.0.q.lora_C.weight",
        "h.0.q.lora_A",
        "h.0.q.ia3_l",
        "h.0.q.hada_w1_a",
        "classifier.modules_to_save.default.weight",
        "classifier.modules_to_save.weight",
        "classifier.original_module.weight",
        "wte.token_adapter.weight",
        "h.0.q.lora_magnitude_vector.default",
        "h.0.q.lora_magnitude_vector.default.weight",
        "h.0.q.base_layer.lora_magnitude_vector",
        "h.0.q.base_layer.lora_embedding_A",
        "h.0.q.lora_A.modules_to_save.bias",
        "weight",
        ".weight",
        "a..weight",
        "a.b.",
    ],
)
def test_a_key_that_peft_does_not_write(peft_dir: Maker, key: str) -> None:
    error = refusal(formats.read(peft_dir({**PAIR, key: ONE})))
    assert isinstance(error, InvalidAdapter)
    assert error.message == (
        f'1 tensors have names that PEFT does not write: "base_model.model.{key}"'
    )
    assert error.remedy == "re-export with peft's save_pretrained"


def test_a_key_without_the_wrapper(peft_dir: Maker) -> None:
    path = peft_dir(PAIR)
    write_file(path / "adapter_model.safetensors", {"q.lora_A.weight": ArrayTensor(ONE)})
    assert "1 tensors have names that PEFT does not write" in refusal(formats.read(path)).message


def test_a_tensor_that_stands_twice(peft_dir: Maker) -> None:
    names = {**PAIR, "q.bias": ONE, "q.base_layer.bias": ONE}
    error = refusal(formats.read(peft_dir(names)))
    assert error.message.endswith(
        '"base_model.model.q.bias" (stands twice, with and without base_layer)'
    )
    magnitude = "q.lora_magnitude_vector"
    error = refusal(
        formats.read(peft_dir({**PAIR, magnitude: ONE, f"{magnitude}.weight": ONE}, name="other"))
    )
    assert error.message.endswith('vector.weight" (stands twice, with and without weight)')


# --- config -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not valid JSON: Expecting value"),
        (b"[]", "holds a JSON list, expected an object"),
        (b'{"r": 1, "r": 2}', "the key 'r' occurs twice"),
        (b'{"peft_type": "LORA", "r": 8, "lora_alpha": NaN}', "NaN is not a JSON value"),
        (b'{"peft_type": "LORA", "r": 8, "lora_alpha": 1e999}', "the number 1e999 is too large"),
        (b'{"peft_type": "LORA", "base_model_name_or_path": "\\ud800"}', "U+D800 alone"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": "%s"}' % (b"x" * 4 * 1024 * 1024), "is larger than 4,194,304 bytes"),
        (b"\xff\xfe", "is not valid JSON: 'utf-8' codec"),
    ],
)
def test_a_config_that_cannot_be_parsed(peft_dir: Maker, text: bytes, said: str) -> None:
    path = peft_dir()
    (path / "adapter_config.json").write_bytes(text)
    reading = formats.read(path)
    error = refusal(reading)
    assert said in error.message and "adapter_config.json" in error.message
    assert (reading.method, reading.adapter, dict(reading.config)) == (None, None, {})


@pytest.mark.parametrize("config", [{}, {"r": 8}, {"peft_type": None}, {"peft_type": 7}])
def test_a_config_without_a_method(peft_dir: Maker, config: dict[str, Any]) -> None:
    path = peft_dir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    assert refusal(formats.read(path)).message == "adapter_config.json names no peft_type"


def test_no_config(peft_dir: Maker) -> None:
    path = peft_dir()
    (path / "adapter_config.json").unlink()
    error = refusal(formats.read(path))
    assert error.message == f"{path} has no adapter_config.json"
    assert error.remedy == "put the adapter_config.json that belongs to these weights beside them"


@pytest.mark.parametrize("peft_type", ["FINEGATES", "UILINLORA", "DIAG", "\x1b[31m", "X" * 500])
def test_a_method_that_is_not_supported(peft_dir: Maker, peft_type: str) -> None:
    reading = formats.read(peft_dir(peft_type=peft_type))
    error = refusal(reading)
    assert isinstance(error, NotSupported)
    shown = json.dumps(peft_type)
    assert f"peft_type {shown[:90]}" in error.message
    assert error.message.isprintable() and len(error.message) < 200
    assert error.remedy == (
        "no release of peft up to 0.21 has it: upgrade adapterhub, or correct the name "
        "(adapterhub methods)"
    )
    assert inspection.inspect(reading, source="x").method == peft_type.lower()
    assert list(reading.tensors) and reading.adapter is None


def test_fields_that_are_not_known_are_named(peft_dir: Maker) -> None:
    reading = formats.read(peft_dir(zeta=1, alpha_beta=2))
    assert problem(reading, "unknown-fields").message == (
        'adapter_config.json has fields that this version does not know: "alpha_beta", "zeta"'
    )
    assert not problem(reading, "unknown-fields").fatal


def test_a_class_to_import_is_data(peft_dir: Maker) -> None:
    mapping = {"base_model_class": "system", "parent_library": "os"}
    reading = formats.read(peft_dir(auto_mapping=mapping))
    assert not problem(reading, "auto-mapping").fatal
    assert reading.config["auto_mapping"] == mapping


@pytest.mark.parametrize("config", [{"r": 0}, {"r": "8"}, {"r": ...}, {"lora_alpha": "16"}])
def test_a_config_that_contradicts_its_schema(peft_dir: Maker, config: dict[str, Any]) -> None:
    error = refusal(formats.read(peft_dir(**config)))
    assert error.message.startswith("adapter_config.json: ")
    assert next(iter(config)) in error.message


# --- base -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bert-base-uncased", False),
        ("google/gemma-3-270m-it", False),
        ("NovaSearch/stella_en_400M_v5", False),
        ("01-ai/Yi-6B", False),
        ("/content/Llama-2-7b-hf", True),
        ("./models/x", True),
        ("../x", True),
        ("~/x", True),
        ("a/b/c", True),
        ("C:\\models\\x", True),
        ("x/", True),
        (".", True),
        ("my model", True),
        ("models/mistral-7b-openorca", True),
        ("run7/checkpoint-500", True),
        ("checkpoint-500", True),
        ("checkpoint-lab/model", False),
        ("x" * 97, True),
        ("owner/name\n", True),
    ],
)
def test_paths_and_ids(name: str, path: bool) -> None:
    assert looks_like_path(name) is path


def test_what_is_said_of_the_base(peft_dir: Maker) -> None:
    local = formats.read(peft_dir(name="a", base_model_name_or_path="/root/x\x1b[0m"))
    assert problem(local, "local-base").message == (
        'the base is a path on somebody\'s machine: "/root/x\\u001b[0m"'
    )
    unpinned = formats.read(peft_dir(name="b", revision=None))
    assert problem(unpinned, "unpinned-base").message == (
        "the base owner/base is not pinned to a revision"
    )
    for number, nothing in enumerate((None, "", ...)):
        path = peft_dir(name=f"c{number}", base_model_name_or_path=nothing)
        none = formats.read(path)
        assert problem(none, "no-base").message == "adapter_config.json names no base model"


# --- labels -----------------------------------------------------------------------------------


def _with_model_config(path: Path, text: str) -> Reading:
    (path / "config.json").write_text(text)
    return formats.read(path)


def test_labels_stand_in_the_order_of_their_numbers(peft_dir: Maker) -> None:
    numbers = [str(n) for n in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)]
    labels = {number: f"L{number}" for number in numbers}
    reading = _with_model_config(peft_dir(), json.dumps({"id2label": labels}))
    assert reading.adapter is not None
    assert reading.adapter.labels == tuple(f"L{n}" for n in range(11))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id2label": {"0": "O", "2": "SRC"}}', "does not number its labels from 0"),
        ('{"id2label": {"O": 0}}', "does not number its labels from 0"),
        ('{"id2label": {"00": "O"}}', "does not number its labels from 0"),
        ('{"id2label": {"0": null}}', "holds labels that are no text"),
        ("{", "is not valid JSON"),
    ],
)
def test_labels_that_cannot_be_taken(peft_dir: Maker, text: str, said: str) -> None:
    reading = _with_model_config(peft_dir(), text)
    found = problem(reading, "labels")
    assert said in found.message and found.remedy == "give --labels when adding"
    assert not found.fatal
    assert inspection.require(reading).labels == ()


@pytest.mark.parametrize("text", ["{}", '{"id2label": null}', '{"x": Infinity, "id2label": {}}'])
def test_a_model_config_without_labels(peft_dir: Maker, text: str) -> None:
    reading = _with_model_config(peft_dir(), text)
    assert inspection.require(reading).labels == ()
    assert "labels" not in [p.code for p in reading.problems]


# --- files ------------------------------------------------------------------------------------


def test_no_weights(peft_dir: Maker) -> None:
    path = peft_dir()
    (path / "adapter_model.safetensors").unlink()
    reading = formats.read(path)
    error = refusal(reading)
    assert error.message == f"{path} has no adapter_model.safetensors"
    assert error.remedy == "copy the weights beside the config"
    assert reading.config["r"] == 2 and [f.name for f in reading.files] == ["adapter_config.json"]


def test_a_pointer_in_place_of_weights(peft_dir: Maker) -> None:
    path = peft_dir()
    (path / "adapter_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )
    error = refusal(formats.read(path))
    assert "is a Git-LFS pointer" in error.message and "git lfs pull" in error.remedy


def test_truncated_weights(peft_dir: Maker) -> None:
    path = peft_dir()
    weights = path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for size in range(len(whole)):
        weights.write_bytes(whole[:size])
        assert refusal(formats.read(path)).message


def test_tokenizer_files_belong_to_the_adapter(peft_dir: Maker) -> None:
    path = peft_dir()
    for name in ("tokenizer.json", "chat_template.jinja", "optimizer.pt", "README.md"):
        (path / name).write_text("{}")
    assert [(f.name, f.kind) for f in formats.read(path).files] == [
        ("adapter_model.safetensors", "weights"),
        ("adapter_config.json", "config"),
        ("chat_template.jinja", "tokenizer"),
        ("tokenizer.json", "tokenizer"),
    ]


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="seen: an empty directory"):
        formats.read(tmp_path)
    for number in range(10):
        (tmp_path / f"f{number}\x1b").touch()
    with pytest.raises(UnknownFormat) as caught:
        formats.read(tmp_path)
    assert "'f7\\x1b' and 2 more" in caught.value.message
    with pytest.raises(UnknownFormat, match="seen: one file, 'f0"):
        formats.read(tmp_path / "f0\x1b")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing does not exist"):
        formats.read(tmp_path / "nothing")
    with pytest.raises(NotFound, match="cannot be read: File name too long"):
        formats.read(tmp_path / ("x" * 300))
    with pytest.raises(NotFound, match="does not exist"):
        formats.read(Path("a\0b"))


# --- what is named, beside what is fatal ------------------------------------------------------


def test_the_tensors_are_there_as_the_file_names_them(peft_dir: Maker) -> None:
    reading = formats.read(peft_dir())
    assert sorted(reading.tensors) == [
        "base_model.model.layer.0.q.lora_A.weight",
        "base_model.model.layer.0.q.lora_B.weight",
    ]
    assert all(file.safe is None for file in reading.files)


def test_a_pickle_brings_its_safe_form(peft_dir: Maker) -> None:
    path = peft_dir(peft_type="IA3")
    (path / "adapter_model.safetensors").unlink()
    vector = torch.arange(4.0).reshape(4, 1)
    torch.save({"base_model.model.q.ia3_l": vector}, path / "adapter_model.bin")
    reading = formats.read(path, allow_pickle=True)
    inspection.require(reading)
    safe = reading.files[0].safe
    assert safe is not None and safe.name == "adapter_model.safetensors"
    assert list(safe.tensors) == list(reading.tensors) == ["base_model.model.q.ia3_l"]
    assert safe.tensors["base_model.model.q.ia3_l"].read().tolist() == vector.tolist()


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_heads_that_are_not_declared_and_declared_ones_that_are_not_there(
    peft_dir: Maker, kind: str
) -> None:
    own = {"q.ia3_l": np.ones((2, 1), np.float32)} if kind == "IA3" else PAIR
    head = {"score.dense.weight": ONE, "score.dense.bias": ONE[0]}

    def codes(tensors: dict[str, np.ndarray], name: str, **fields: Any) -> list[str]:
        found = formats.read(peft_dir(tensors, name=name, peft_type=kind, **fields)).problems
        return [p.code for p in found if "head" in p.code or "saved" in p.code]

    assert codes({**own, **head}, "a") == ["undeclared-head"]
    assert codes({**own, **head}, "b", modules_to_save=["score"]) == []
    assert codes({**own, **head}, "c", task_type="SEQ_CLS") == []  # peft adds it for the task
    assert codes(own, "d", modules_to_save=["classifier", "score"]) == ["no-saved"]
    assert codes({**own, "norm.bias": ONE[0]}, "e", bias="all") == []
    assert codes({**own, "embed_tokens.weight": ONE}, "f") == []
    said = formats.read(tmp := peft_dir({**own, **head}, name="g", peft_type=kind))
    assert problem(said, "undeclared-head").message == (
        'the weights hold "score.dense" whole, and modules_to_save does not name it'
    )
    assert problem(said, "undeclared-head").remedy and tmp.is_dir()


def test_a_task_that_peft_does_not_have(peft_dir: Maker) -> None:
    reading = formats.read(peft_dir(task_type="SEQUENCE_CLASSIFICATION"))
    inspection.require(reading)
    found = problem(reading, "task-type")
    assert found.message == 'task_type "SEQUENCE_CLASSIFICATION" is none of peft\'s'
    assert found.remedy.startswith("correct it to one of SEQ_CLS, ")


def test_a_type_that_peft_renamed(peft_dir: Maker) -> None:
    block = {"q.bone_block": np.ones((2, 3), np.float32)}
    reading = formats.read(peft_dir(block, peft_type="BONE"))
    assert inspection.require(reading).method == "bone"
    assert problem(reading, "renamed").message == "peft has renamed BONE, and loads it no more"
    assert problem(reading, "renamed").remedy == "convert it to MISS with the script in peft"


@pytest.mark.parametrize("name", ["base_model", "final_model", "model", "merged", "outputs"])
def test_names_of_folders_are_no_ids(name: str) -> None:
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "owner/my_model", "owner/base"])
def test_ids_of_the_hub(name: str) -> None:
    assert not looks_like_path(name)
