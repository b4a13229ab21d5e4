"""What the store keeps of each format: safe files, one root, no link that leads out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import regkit

from adapterhub import api, formats
from adapterhub.errors import AdapterHubError, InvalidAdapter, NotSupported, PickleRefused
from adapterhub.formats.roots import adapter_root, tensors_root
from adapterhub.registry import Registry, inspection
from adapterhub.tensorfile import read_header

MODULE = "bert.encoder.layer.0.output"
SHAPES: dict[str, tuple[int, ...]] = {
    f"{MODULE}.adapters.md.adapter_down.0.weight": (4, 8),
    f"{MODULE}.adapters.md.adapter_up.weight": (8, 4),
}
HEAD: dict[str, tuple[int, ...]] = {"heads.md.1.weight": (3, 8), "heads.md.1.bias": (3,)}
CONFIG = {
    "config": {"reduction_factor": 2, "mh_adapter": False, "output_adapter": True},
    "hidden_size": 8,
    "model_name": "owner/bert",
    "model_type": "bert",
    "name": "md",
    "version": "adapters.1.2.0",
}
HEAD_CONFIG = {"config": {"head_type": "tagging"}, "name": "md"}


def arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: regkit.numbers(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def pickled(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({n: torch.from_numpy(a) for n, a in arrays(shapes).items()}, path)
    return path


@pytest.fixture
def adapterhub(tmp_path: Path) -> Path:
    path = tmp_path / "md"
    pickled(path / "pytorch_adapter.bin", SHAPES)
    pickled(path / "pytorch_model_head.bin", HEAD)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (path / "head_config.json").write_text(json.dumps(HEAD_CONFIG))
    return path


@pytest.fixture
def tfew(tmp_path: Path) -> Path:
    name = "encoder.block.0.layer.0.SelfAttention.k.multi_lora_b"
    return pickled(tmp_path / "run" / "t03b_finish.pt", {name: (6, 1)})


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "t5_1_1_lm100k_base" / "mrpc.npy"
    path.parent.mkdir()
    np.save(path, regkit.numbers(3, 5, 8))
    return path


# --- each format: added, verified, exported, read again ---------------------------------------


def kept(registry: Registry, source: Path, out: Path) -> dict[str, np.ndarray]:
    """Adds, verifies, exports and reads again; arrays by module and role, equal all the way."""
    before = inspection.require(formats.read(source, allow_pickle=True))
    added = registry.add(source, name="kept", allow_pickle=True)
    assert added.status == "added"
    assert registry.verify("kept")["problems"] == []
    registry.export("kept", out)
    for place in (out, registry.path("kept")):
        reading = formats.read(place)
        after = inspection.require(reading)
        assert (reading.format, after.method) == (before.format, before.method)
        assert list(after.modules) == list(before.modules)
        assert after.config == before.config
        for module, role, tensor in before.tensors():
            assert np.array_equal(after.modules[module][role].read(), tensor.read())
    loaded = registry.load("kept")
    assert loaded.adapter.base.name == before.base.name
    assert loaded.manifest is not None
    assert loaded.manifest["adapter_root"] == adapter_root(loaded.adapter) == adapter_root(before)
    assert registry.inspect("kept").format == before.format
    with api.open(registry.home.parent / "second-home") as other:
        assert other.add(out, name="again").digest == added.digest
    return {f"{m}.{role}": tensor.read() for m, role, tensor in before.tensors()}


def files_of(registry: Registry) -> dict[str, str | None]:
    """Stored file → the pickle that it was made from."""
    entries = registry.show("kept")["manifest"]["files"]
    return {e["path"]: e.get("converted_from", {}).get("path") for e in entries}


def test_adapterhub_is_kept(registry: Registry, adapterhub: Path, tmp_path: Path) -> None:
    kept(registry, adapterhub, tmp_path / "out")
    assert files_of(registry) == {
        "adapter.safetensors": "pytorch_adapter.bin",
        "model_head.safetensors": "pytorch_model_head.bin",
        "adapter_config.json": None,
        "head_config.json": None,
    }
    manifest = registry.show("kept")["manifest"]
    original = (adapterhub / "pytorch_adapter.bin").read_bytes()
    said = next(e for e in manifest["files"] if e["path"] == "adapter.safetensors")
    assert said["converted_from"]["sha256"] == "sha256:" + hashlib.sha256(original).hexdigest()
    found = [read_header(tmp_path / "out" / n).tensors for n in files_of(registry) if "saf" in n]
    assert manifest["adapter_root"] == tensors_root({**found[0], **found[1]})
    assert set(found[0]) | set(found[1]) == set(SHAPES) | set(HEAD)
    assert manifest["format"] == "adapterhub"
    assert manifest["saved"] == ["heads.*"]
    assert manifest["task"] == "TOKEN_CLS"
    assert manifest["base"]["name"] == "owner/bert"


def test_tfew_is_kept(registry: Registry, tfew: Path, tmp_path: Path) -> None:
    kept(registry, tfew.parent, tmp_path / "out")
    assert files_of(registry) == {"t03b_finish.safetensors": "t03b_finish.pt"}
    (name,) = read_header(tmp_path / "out" / "t03b_finish.safetensors").tensors
    assert name.endswith(".multi_lora_b")


def test_a_prompt_is_kept_as_it_is(registry: Registry, prompt: Path, tmp_path: Path) -> None:
    kept(registry, prompt, tmp_path / "out")
    assert files_of(registry) == {"mrpc.npy": None}
    assert (tmp_path / "out" / "mrpc.npy").read_bytes() == prompt.read_bytes()
    manifest = registry.show("kept")["manifest"]
    assert manifest["targets"] == []
    assert manifest["base"]["name"] == "google/t5-base-lm-adapt"


def test_the_root_of_peft_goes_by_its_names(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a")
    tensors = read_header(adapter / "adapter_model.safetensors").tensors
    assert registry.show("a")["manifest"]["adapter_root"] == tensors_root(dict(tensors))


@pytest.mark.slow
def test_the_corpus_is_kept(registry: Registry, corpus: Path, tmp_path: Path) -> None:
    """Adapters of strangers: whatever is read is kept with equal tensors, the rest is refused."""
    folders = sorted(path for path in (corpus / "adapters").iterdir() if path.is_dir())
    prompts = corpus / "adapters" / "google-prompts-t5-base-npy"
    taken: dict[str, int] = {}
    for number, path in enumerate([*folders, *sorted(prompts.glob("*.npy"))]):
        reading = formats.read(path, allow_pickle=True)
        try:
            before = inspection.require(reading)
        except AdapterHubError as error:
            with pytest.raises(type(error)):
                registry.add(path, name="a", allow_pickle=True)
            continue
        registry.add(path, name=f"a{number}", allow_pickle=True)
        assert registry.verify(f"a{number}")["problems"] == []
        registry.export(f"a{number}", tmp_path / str(number))
        after = inspection.require(formats.read(tmp_path / str(number)))
        for module, role, tensor in before.tensors():
            assert np.array_equal(after.modules[module][role].read(), tensor.read())
        taken[reading.format] = taken.get(reading.format, 0) + 1
    assert taken.pop("peft") >= 11
    assert taken == {"adapterhub": 1, "tfew": 1, "t5x_prompt": 2}


# --- refused ----------------------------------------------------------------------------------


def test_pickles_are_refused_without_consent(
    registry: Registry, adapterhub: Path, tfew: Path
) -> None:
    for path in (adapterhub, tfew):
        with pytest.raises(PickleRefused):
            registry.add(path, name="a")
    assert registry.list() == ()


def test_named_formats_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    regkit.write_tensors(path, {"lora_unet_mid.lora_down.weight": regkit.numbers(1, 2, 6)})
    with pytest.raises(NotSupported, match="kohya adapters are recognised and not read"):
        registry.add(path, name="a")
    assert registry.inspect(path).format == "kohya"


def test_what_is_unknown_is_inspected_and_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"base_model": "a/b"}')
    assert registry.inspect(path).format == "unknown"
    with pytest.raises(AdapterHubError, match="seen: one file, some"):
        registry.add(path, name="a")


def test_the_same_tensor_in_two_files_is_refused(registry: Registry, adapterhub: Path) -> None:
    name = f"{MODULE}.adapters.md.adapter_up.weight"
    pickled(adapterhub / "pytorch_model_head.bin", {name: (8, 4)})
    with pytest.raises(InvalidAdapter, match="two files of the adapter hold a tensor"):
        registry.add(adapterhub, name="a", allow_pickle=True)
    assert registry.list() == ()


# --- links ------------------------------------------------------------------------------------


def linked(directory: Path, name: str, target: Path) -> None:
    """`name` in the directory becomes a link to where its content now lies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (directory / name).rename(target)
    (directory / name).symlink_to(target)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_a_link_that_leads_out_is_refused(
    registry: Registry, adapter: Path, tmp_path: Path, name: str
) -> None:
    (adapter / "README.md").write_text("# x\n")
    secret = tmp_path / "elsewhere" / "secret"
    linked(adapter, name, secret)
    with pytest.raises(InvalidAdapter, match="is a link that leads out of its directory") as error:
        registry.add(adapter, name="a")
    assert str(adapter / name) in error.value.message and str(secret) in error.value.message
    assert registry.list() == ()


def test_a_link_within_the_directory_is_followed(registry: Registry, adapter: Path) -> None:
    linked(adapter, "adapter_model.safetensors", adapter / "step-100" / "weights")
    assert registry.add(adapter, name="a").status == "added"


def test_the_cache_of_hugging_face_is_followed_to_its_own_blobs(
    registry: Registry, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--owner--lora"
    snapshot = regkit.save_adapter(repository / "snapshots" / "abc" / "nested")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        linked(snapshot, name, repository / "blobs" / name)
    assert registry.add(snapshot, name="a").status == "added"
    (snapshot / "README.md").write_text("# x\n")
    linked(snapshot, "README.md", tmp_path / "hub" / "models--other--x" / "blobs" / "r")
    with pytest.raises(InvalidAdapter, match="leads out"):
        registry.add(snapshot, name="b")


def test_a_version_may_be_added_from_its_own_links(registry: Registry, adapter: Path) -> None:
    first = registry.add(adapter, name="a")
    assert registry.add(registry.path("a"), name="b").digest == first.digest
