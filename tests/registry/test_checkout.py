from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import regkit

from adapterhub import api
from adapterhub.errors import IntegrityError, OutputError
from adapterhub.registry import Registry
from adapterhub.store import files

# --- path -------------------------------------------------------------------------------------


def test_path_is_a_directory_with_the_same_bytes(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a")
    place = registry.path("a")
    for path in adapter.iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()
    assert registry.path("a") == place


def test_peft_loads_what_path_prints(registry: Registry, adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    registry.add(adapter, name="a")
    config = peft.PeftConfig.from_pretrained(str(registry.path("a")))
    assert config.r == 2
    weights = peft.load_peft_weights(str(registry.path("a")), device="cpu")
    assert {regkit.PREFIX + name for name in regkit.lora()} == weights.keys()


def test_a_directory_that_somebody_changed_is_made_anew(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a")
    place = registry.path("a")
    (place / "adapter_config.json").unlink()
    (place / "adapter_config.json").write_text("{}")
    again = registry.path("a")
    assert (again / "adapter_config.json").read_bytes() == (
        adapter / "adapter_config.json"
    ).read_bytes()


def test_a_home_can_be_moved(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.add(adapter, name="a")
    registry.path("a")
    registry.close()
    moved = registry.home.rename(tmp_path / "moved")
    with api.open(moved) as reopened:
        place = reopened.path("a")
        assert place.is_relative_to(moved)
        expected = (adapter / "adapter_model.safetensors").read_bytes()
        assert (place / "adapter_model.safetensors").read_bytes() == expected


def test_gc_sweeps_directories_of_versions_that_are_gone(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a")
    kept = registry.path("a")
    gone = kept.with_name("0" * 64)
    gone.mkdir()
    young = kept.with_name(".x.partial")
    young.mkdir()
    registry.gc(grace_seconds=0)
    assert (kept.is_dir(), gone.is_dir(), young.is_dir()) == (True, False, True)


# --- export -----------------------------------------------------------------------------------


def test_export_gives_the_original_bytes_as_plain_files(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    registry.add(adapter, name="a")
    out = tmp_path / "deep" / "out"
    registry.export("a", out)
    for path in adapter.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not any(path.is_symlink() for path in out.iterdir())
    assert api.verify_directory(out) == []


def test_an_export_that_was_changed_does_not_verify(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    registry.add(adapter, name="a")
    registry.export("a", tmp_path / "out")
    regkit.flip(tmp_path / "out" / "adapter_model.safetensors")
    (tmp_path / "out" / "adapter_config.json").unlink()
    assert api.verify_directory(tmp_path / "out") == [
        "adapter_config.json is missing",
        "adapter_model.safetensors has changed",
    ]


def test_a_directory_that_is_not_empty_is_refused(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    registry.add(adapter, name="a")
    out = tmp_path / "out"
    out.mkdir()
    registry.export("a", out)
    with pytest.raises(OutputError, match="is not empty"):
        registry.export("a", out)
    shutil.rmtree(out)
    out.write_text("a file")
    with pytest.raises(OutputError, match="is not empty"):
        registry.export("a", out)


def test_damaged_bytes_are_not_exported(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.add(adapter, name="a")
    regkit.flip(regkit.blob_of(registry, "a", "adapter_model.safetensors"))
    with pytest.raises(IntegrityError, match="is damaged"):
        registry.export("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_leaves_nothing(
    registry: Registry, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(adapter, name="a")

    def full(kind: str, path: Path) -> None:
        if kind == "fsync":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "HOOK", full)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        registry.export("a", tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []
