from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import regkit

from adapterhub import schema
from adapterhub.errors import (
    AlreadyExists,
    InvalidBase,
    InvalidName,
    NotFound,
    OutputError,
    SchemaError,
)
from adapterhub.registry import Registry

# --- add, list, show, rm ----------------------------------------------------------------------


def test_a_base_is_a_pointer(registry: Registry, base: Path) -> None:
    record = registry.base.add(base)
    assert schema.problems(record, "base") == []
    assert (record["name"], record["path"]) == ("minibert", str(base))
    assert (record["model_type"], record["architecture"]) == ("bert", "BertModel")
    assert record["parameters"] == 8 + 8 + 80 + 48 + 16 + 4 * 72
    assert not list((registry.home / "blobs").rglob("*?" * 64))
    assert registry.base.list() == [record]
    assert registry.base.show("minibert") == record


def test_the_same_base_again_only_refreshes_its_record(registry: Registry, base: Path) -> None:
    first = registry.base.add(base)
    second = registry.base.add(base)
    assert first | {"added": ""} == second | {"added": ""}
    assert len(registry.base.list()) == 1


def test_a_name_cannot_mean_two_bases(registry: Registry, base: Path, tmp_path: Path) -> None:
    registry.base.add(base, name="one")
    other = regkit.save_base(tmp_path / "other", seed=50)
    with pytest.raises(AlreadyExists, match="the name one already means") as caught:
        registry.base.add(other, name="one")
    assert "base rm one" in caught.value.remedy
    registry.base.add(other, name="two")
    assert [record["name"] for record in registry.base.list()] == ["one", "two"]


@pytest.mark.parametrize("name", ["../up", "a/b/c", ".hidden", "a b"])
def test_names_that_are_refused(registry: Registry, base: Path, name: str) -> None:
    with pytest.raises(InvalidName, match="cannot name a base"):
        registry.base.add(base, name=name)
    assert registry.base.list() == []


def test_forgetting_a_base_leaves_its_files(registry: Registry, base: Path) -> None:
    registry.base.add(base)
    assert registry.base.rm("minibert")["path"] == str(base)
    assert registry.base.list() == []
    assert (base / "model.safetensors").is_file()
    with pytest.raises(NotFound, match="no base is called 'minibert'"):
        registry.base.rm("minibert")


def test_a_damaged_record_is_named_and_can_be_forgotten(registry: Registry, base: Path) -> None:
    registry.base.add(base)
    (registry.home / "bases" / "minibert.json").write_text('{"schema": 1}')
    with pytest.raises(SchemaError, match=r"minibert\.json does not follow") as caught:
        registry.base.list()
    assert "adapterhub base rm minibert" in caught.value.remedy
    registry.base.rm("minibert")
    assert registry.base.list() == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("llama-7b", "llama-7b"),
        ("ner/model", "ner"),
        ("outputs/final/checkpoint", "outputs"),
        ("My Model (v2)", "My-Model-v2"),
        ("models--owner--name/snapshots/0123abc", "owner/name"),
    ],
)
def test_default_names(registry: Registry, tmp_path: Path, path: str, name: str) -> None:
    base = regkit.save_base(tmp_path / path)
    assert registry.base.add(base)["name"] == name


def test_what_is_no_base(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidBase, match=r"has no config\.json") as caught:
        registry.base.add(adapter)
    assert "this is an adapter" in caught.value.remedy
    with pytest.raises(InvalidBase, match="is not a directory"):
        registry.base.add(tmp_path / "nowhere")


# --- what a BASE means ------------------------------------------------------------------------


def test_a_name_and_a_directory_of_one_base_are_no_ambiguity(
    registry: Registry, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.base.add(base)
    monkeypatch.chdir(base.parent)
    assert registry.base.resolve("minibert").path == base


def test_a_name_that_is_also_another_directory_is_refused(
    registry: Registry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.base.add(base)
    other = regkit.save_base(tmp_path / "here" / "minibert", seed=50)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InvalidName, match="'minibert' could mean the registered base at") as caught:
        registry.base.resolve("minibert")
    assert "./minibert" in caught.value.remedy
    assert registry.base.resolve("./minibert").path == other
    assert registry.base.resolve(str(other)).path == other


def test_an_unknown_base_names_the_ways_to_get_it(registry: Registry, base: Path) -> None:
    registry.base.add(base)
    with pytest.raises(NotFound, match="owner/absent is no registered base") as caught:
        registry.base.resolve("owner/absent")
    assert "hf download owner/absent" in caught.value.remedy
    assert "minibert" in caught.value.remedy


def in_cache(cache: Path, owner: str, name: str, seed: int = 0) -> Path:
    """The layout of the Hugging Face cache, with links from a snapshot to blobs."""
    place = cache / f"models--{owner}--{name}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    made = regkit.save_base(place / "made", seed)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        blob = path.rename(place / "blobs" / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    made.rmdir()
    return snapshot


RESOLVE = """
import json, sys
from adapterhub import api
from adapterhub.errors import AdapterHubError
said = []
with api.open() as registry:
    for text in sys.argv[1:]:
        try:
            said.append(str(registry.base.resolve(text).path))
        except AdapterHubError as error:
            said.append(f"{error.code}: {error.message} | {error.remedy}")
    registry.base.add("owner/cached")
    said.append(registry.base.list()[0]["name"])
print(json.dumps(said))
"""


def test_hub_ids_are_found_in_the_cache_and_never_downloaded(home: Path, tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads the place of its cache once."""
    snapshot = in_cache(tmp_path / "hub", "owner", "cached")
    regkit.save_base(tmp_path / "work" / "owner" / "cached", seed=50)
    texts = ["owner/cached", "hub:owner/cached", "hub:owner/absent", "hub:a/b/c"]
    done = {}
    for folder in (tmp_path, tmp_path / "work"):
        result = subprocess.run(
            [sys.executable, "-c", RESOLVE, *texts],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            check=folder == tmp_path,
        )
        done[folder] = result
    first = json.loads(done[tmp_path].stdout)
    assert first[:2] == [str(snapshot), str(snapshot)]
    assert first[2].endswith("not in the Hugging Face cache | hf download owner/absent")
    assert first[3].startswith("not-found: a/b/c is not in")
    assert first[4] == "owner/cached"
    assert "'owner/cached' could mean" in done[tmp_path / "work"].stderr


# --- finding the base of a version ------------------------------------------------------------


def test_a_recorded_base_is_found_by_its_weights(registry: Registry, base: Path) -> None:
    record = registry.base.add(base, name="any-name")
    found = registry.base.find(record["weights_root"], None)
    assert found is not None
    assert found.path == base
    assert registry.base.find("sha256:" + "0" * 64, "any-name") is None
    by_name = registry.base.find(None, "any-name")
    assert by_name is not None
    assert by_name.path == base


def test_a_base_that_is_gone_is_not_found(registry: Registry, base: Path) -> None:
    record = registry.base.add(base)
    base.rename(base.parent / "moved")
    assert registry.base.find(record["weights_root"], "minibert") is None


def test_a_full_disk_leaves_no_half_record(
    registry: Registry, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.store import files

    def full(kind: str, path: Path) -> None:
        if kind == "write":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "HOOK", full)
    with pytest.raises(OutputError, match="disk full"):
        registry.base.add(base)
    monkeypatch.setattr(files, "HOOK", None)
    assert registry.base.list() == []
    assert list((registry.home / "bases").iterdir()) == []
    assert list((registry.home / "tmp").iterdir()) == []
