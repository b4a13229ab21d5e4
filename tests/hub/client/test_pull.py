"""`pull`: from a stranger's repository to a version; the second time, nothing comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pullkit
import pytest
from pullkit import Hub, tree_of

import adapterhub as ah
from adapterhub.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidName,
    InvalidOption,
    NotFound,
    NotSupported,
    PickleRefused,
    RemoteError,
    UnknownFormat,
)
from adapterhub.hub.client.pulling import PullPlan
from adapterhub.registry import Registry

Make = Callable[..., Path]
PROMPTS = "google-prompts-t5-base-npy"
RANDOM = np.random.default_rng(5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with pullkit.connected(tmp_path, monkeypatch) as served:
        yield served


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with ah.open() as opened:
        yield opened


def tensors(width: int = 3) -> dict[str, np.ndarray]:
    return {
        "layer.0.q.lora_A.weight": RANDOM.standard_normal((2, width), np.float32),
        "layer.0.q.lora_B.weight": RANDOM.standard_normal((2, 2), np.float32),
    }


@pytest.fixture
def adapter(peft_dir: Make) -> Callable[..., Path]:
    def make(name: str = "adapter", **fields: object) -> Path:
        return peft_dir(tensors(), name=name, **fields)

    return make


def stored(registry: Registry, version: str | None) -> dict[str, bytes]:
    files = registry.show(version or "")["manifest"]["files"]
    return {e["path"]: registry.store.blob_path(e["sha256"]).read_bytes() for e in files}


# --- the way it should be ---------------------------------------------------------------------


def test_a_strangers_adapter_is_taken_with_its_commit(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    tree = tree_of(adapter()) | {"README.md": b"---\nlicense: mit\n---\nhello\n"}
    junk = {"handler.py": b"import os", "optimizer.pt": b"\x80\x02", ".gitattributes": b"*"}
    commit = hub.put("Some/Thing_1", tree | junk)
    plans: list[PullPlan] = []
    (one,) = ah.pull("Some/Thing_1", registry=registry, on_plan=plans.append, tag="v1")
    assert (one.name, one.status) == ("some/thing_1", "added")
    shown = registry.show("some/thing_1:v1")
    assert shown["origin"] == {
        "hub": "Some/Thing_1",
        "endpoint": hub.url,
        "commit": commit,
        "subfolder": "",
    }
    assert shown["version"] == one.version
    assert shown["card"]["licence"] == "mit"
    weights = ("adapter_config.json", "adapter_model.safetensors")
    assert stored(registry, one.version) == {name: tree[name] for name in weights}
    assert one.notes[-1] == "not taken: handler.py, optimizer.pt"
    asked = {path.rpartition("/")[2] for path in hub.asked("/resolve/")}
    assert asked == {*weights, "README.md"}
    taken = sum(len(tree[name]) for name in (*weights, "README.md"))
    assert (one.downloaded, hub.sent, plans[0].bytes) == (taken, taken, taken)
    assert registry.verify()["problems"] == []


def test_the_second_pull_asks_for_the_commit_and_nothing_else(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    hub.put("a/b", tree_of(adapter()))
    (first,) = ah.pull("a/b", registry=registry)
    hub.forget()
    (second,) = ah.pull("a/b", registry=registry)
    assert (second.status, second.version, second.downloaded) == ("unchanged", first.version, 0)
    assert [r.path for r in hub.requests] == ["/api/models/a/b/revision/main"]
    assert (second.method, second.base) == (first.method, first.base)
    assert (second.parameters, second.bytes) == (first.parameters, first.bytes)
    (tagged,) = ah.pull("a/b", registry=registry, tag=["v1"])
    assert tagged.status == "updated"
    assert registry.show("a/b:v1")["version"] == first.version


def test_another_registry_takes_it_from_the_cache(
    hub: Hub, registry: Registry, adapter: Make, tmp_path: Path
) -> None:
    hub.put("a/b", tree_of(adapter()))
    (first,) = ah.pull("a/b", registry=registry)
    hub.forget()
    with ah.open(tmp_path / "other") as other:
        (second,) = ah.pull("a/b", registry=other)
    assert (second.status, second.version) == ("added", first.version)
    assert (second.downloaded, hub.sent) == (0, 0)
    assert hub.asked("/resolve/") == []


def test_a_new_commit_is_a_new_version(hub: Hub, registry: Registry, adapter: Make) -> None:
    old = hub.put("a/b", tree_of(adapter("one")))
    (first,) = ah.pull("a/b", registry=registry)
    new = hub.put("a/b", tree_of(adapter("two")))
    (second,) = ah.pull("a/b", registry=registry)
    assert second.status == "added"
    assert first.version != second.version == registry.show("a/b")["version"]
    assert registry.show("a/b")["origin"]["commit"] == new
    (again,) = ah.pull("a/b", revision=old, registry=registry)
    assert (again.status, again.version) == ("unchanged", first.version)
    assert "a/b:latest is another version" in again.notes[0]
    assert registry.show("a/b")["version"] == second.version


def test_a_commit_with_the_same_bytes_changes_nothing(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    tree = tree_of(adapter())
    hub.put("a/b", tree)
    (first,) = ah.pull("a/b", registry=registry)
    hub.put("a/b", tree | {"notes.txt": b"new"})
    hub.forget()
    (second,) = ah.pull("a/b", registry=registry)
    assert (second.status, second.version) == ("unchanged", first.version)
    assert (second.downloaded, hub.sent) == (0, 0)


def test_a_name_that_came_from_elsewhere_is_left_alone(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    path = adapter("local")
    registry.add(path, name="a/b")
    hub.put("a/b", tree_of(adapter("remote")))
    with pytest.raises(AlreadyExists, match="the name a/b is taken, by what came from /") as caught:
        ah.pull("a/b", registry=registry)
    assert "--name" in caught.value.remedy
    assert hub.asked("/resolve/") == []
    (one,) = ah.pull("a/b", name="mine", registry=registry)
    assert one.name == "mine"
    hub.put("c/d", tree_of(adapter("third")))
    with pytest.raises(AlreadyExists, match=f"mine is taken, by what came from a/b of {hub.url}"):
        ah.pull("c/d", name="mine", registry=registry)
    with pytest.raises(InvalidName):
        ah.pull("c/d", name="No Name", registry=registry)
    with pytest.raises(InvalidName):
        ah.pull("c/d", tag="No Tag", registry=registry)


def test_a_removed_version_comes_back(hub: Hub, registry: Registry, adapter: Make) -> None:
    hub.put("a/b", tree_of(adapter()))
    (first,) = ah.pull("a/b", registry=registry)
    registry.rm("a/b")
    (second,) = ah.pull("a/b", registry=registry)
    assert (second.status, second.version) == ("added", first.version)


def test_a_revision_may_be_a_branch_a_tag_or_a_commit(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    hub.put("a/b", tree_of(adapter("one")))
    commit = hub.put("a/b", tree_of(adapter("two")), branch="dev/x")
    (branch,) = ah.pull("a/b", revision="dev/x", registry=registry)
    assert branch.origin.commit == commit
    hub.forget()
    (same,) = ah.pull("a/b", revision=commit, registry=registry)
    assert (same.status, hub.requests) == ("unchanged", [])
    with pytest.raises(NotFound, match="a/b has no such revision"):
        ah.pull("a/b", revision="nowhere", registry=registry)
    with pytest.raises(NotFound, match="has no such revision"):
        ah.pull("a/b", revision="0" * 40, registry=registry)
    with pytest.raises(NotFound, match=f"{hub.url} has no repository no/where"):
        ah.pull("no/where", registry=registry)


# --- several ----------------------------------------------------------------------------------


def test_several_are_listed_and_chosen(hub: Hub, registry: Registry, adapter: Make) -> None:
    hub.page = 2
    hub.put(
        "a/b",
        tree_of(adapter("x"), "runs/x")
        | tree_of(adapter("y", base_model_name_or_path="owner/other"), "Runs_2/Y")
        | {"README.md": b"both"},
    )
    plans: list[PullPlan] = []
    with pytest.raises(InvalidOption, match="a/b holds 2 adapters, and none at its root") as caught:
        ah.pull("a/b", registry=registry, on_plan=plans.append)
    assert caught.value.details == ("Runs_2/Y", "runs/x")
    assert "a/b/Runs_2/Y" in caught.value.remedy
    listed = [(f.path, f.format, f.method, f.base) for f in plans[0].found]
    assert listed == [
        ("Runs_2/Y", "peft", "lora", "owner/other"),
        ("runs/x", "peft", "lora", "owner/base"),
    ]
    assert not any("safetensors" in path for path in hub.asked("/resolve/"))
    (one,) = ah.pull("a/b/Runs_2/Y", registry=registry)
    assert (one.name, one.origin.path) == ("a/b--runs_2--y", "Runs_2/Y")
    (one,) = ah.pull("a/b/runs", registry=registry)
    assert (one.name, one.origin.path) == ("a/b--runs--x", "runs/x")
    with pytest.raises(NotFound, match=r"nothing at run at commit .*; it has adapters in Runs_2/Y"):
        ah.pull("a/b/run", registry=registry)


def test_all_takes_each_by_itself(hub: Hub, registry: Registry, adapter: Make) -> None:
    broken = tree_of(adapter("z", peft_type="NO_SUCH"), "z")
    clash = tree_of(adapter("c"), "x--y") | tree_of(adapter("d"), "x/y")
    hub.put("a/b", tree_of(adapter("r")) | tree_of(adapter("x"), "x") | broken | clash)
    found = ah.pull("a/b", all=True, registry=registry)
    assert [(one.origin.path, one.name, one.status) for one in found] == [
        ("", "a/b", "added"),
        ("x", "a/b--x", "added"),
        ("x--y", "a/b--x--y", "added"),
        ("x/y", "a/b--x--y", "refused"),
        ("z", "a/b--z", "refused"),
    ]
    assert found[3].error == "its name a/b--x--y is that of x--y"
    assert 'peft_type "NO_SUCH" is not supported' in (found[4].error or "")
    hub.forget()
    again = ah.pull("a/b", all=True, registry=registry)
    assert [one.status for one in again][:3] == ["unchanged"] * 3
    assert not hub.asked("safetensors")
    named = ah.pull("a/b", all=True, name="n", registry=registry)
    assert [one.name for one in named][:2] == ["n", "n--x"]


def test_the_root_goes_first_and_the_others_are_told(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    hub.put("a/b", tree_of(adapter("r")) | tree_of(adapter("x"), "checkpoint-500"))
    (one,) = ah.pull("a/b", registry=registry)
    assert (one.name, one.origin.path) == ("a/b", "")
    assert one.notes[-1] == "a/b holds 1 more in its folders (--all, or a/b/FOLDER)"


# --- refused ----------------------------------------------------------------------------------


def test_a_pickle_is_listed_before_anything_comes(
    hub: Hub, registry: Registry, corpus: Path
) -> None:
    source = corpus / "adapters" / "gpt2-prompt-tuning-bin"
    hub.put("a/b", tree_of(source))
    with pytest.raises(PickleRefused, match="a/b has its weights in a pickle") as caught:
        ah.pull("a/b", registry=registry)
    assert caught.value.details[0].startswith("adapter_model.bin (")
    assert "--allow-pickle" in caught.value.remedy
    assert hub.asked("/resolve/") == []
    (one,) = ah.pull("a/b", allow_pickle=True, registry=registry)
    assert set(stored(registry, one.version)) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_pickle_beside_safetensors_stays_there(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    hub.put("a/b", tree_of(adapter()) | {"adapter_model.bin": b"\x80\x02."})
    (one,) = ah.pull("a/b", allow_pickle=True, registry=registry)
    assert "not taken: adapter_model.bin" in one.notes
    assert not hub.asked(".bin")


@pytest.mark.parametrize(
    ("tree", "said", "remedy"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, "holds a model, not", "base add a/b"),
        (
            {"config.json": b"{}", "model.safetensors": b"", "adapterhub.json": b"{}"},
            "holds a merged model, not an adapter; seen: adapterhub.json, config.json, model",
            "hf download a/b",
        ),
        ({"x.gguf": b"GGUF", "y.md": b""}, "that can be pulled; seen: x.gguf, y.md", "inspect hub"),
        ({}, "has no files at commit", "spelling"),
    ],
)
def test_what_holds_no_adapter_is_named(
    tree: dict[str, bytes], said: str, remedy: str, hub: Hub, registry: Registry
) -> None:
    hub.put("a/b", tree)
    with pytest.raises((UnknownFormat, NotFound), match=said) as caught:
        ah.pull("a/b", registry=registry)
    assert remedy in caught.value.remedy
    assert hub.asked("/resolve/") == []


def test_a_format_that_is_only_named_is_refused_before_its_weights(
    hub: Hub, registry: Registry, corpus: Path
) -> None:
    hub.put("a/b", tree_of(corpus / "adapters" / "mlx-gemma-2b-medqa"))
    with pytest.raises(NotSupported, match="a/b is in the format of mlx-lm"):
        ah.pull("a/b", registry=registry)
    assert {path.rpartition("/")[2] for path in hub.asked("/resolve/")} == {"adapter_config.json"}


@pytest.mark.parametrize("text", ["", "/", "a//b", "../x", "a/b/../c", "https://h/a/b", "a b/c"])
def test_what_names_no_repository(text: str, hub: Hub, registry: Registry) -> None:
    with pytest.raises(InvalidName, match="names no repository of a hub"):
        ah.pull(text, registry=registry)
    assert hub.requests == []


def test_a_file_damaged_on_the_way_is_brought_anew(
    hub: Hub, registry: Registry, adapter: Make
) -> None:
    hub.put("a/b", tree_of(adapter()))
    sent: list[str] = []

    def damaged_once(path: str, data: bytes) -> bytes:
        sent.append(path)
        return data if sent.count(path) > 2 else bytes(len(data))  # HEAD and GET

    hub.body = damaged_once
    (one,) = ah.pull("a/b", registry=registry)
    assert one.status == "added"
    assert sorted(set(sent)) == ["adapter_config.json", "adapter_model.safetensors"]


def test_damage_is_named_after_the_repository(hub: Hub, registry: Registry, adapter: Make) -> None:
    tree = tree_of(adapter())
    hub.put("a/b", {**tree, "adapter_model.safetensors": b"\xff" * 20})
    with pytest.raises(ah.AdapterHubError, match=r"^a/b/adapter_model\.safetensors: "):
        ah.pull("a/b", registry=registry)
    assert registry.list() == ()
    assert list((registry.home / "tmp").iterdir()) == []


# --- real adapters ----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_real_adapter_pulled_is_the_one_added(
    hub: Hub, registry: Registry, corpus: Path
) -> None:
    taken = 0
    for path in sorted((corpus / "adapters").iterdir()):
        if not path.is_dir():
            continue
        hub.put(f"real/{path.name}", tree_of(path))
        try:
            added = registry.add(path, name=f"local-{path.name}", allow_pickle=True)
        except ah.AdapterHubError as error:
            with pytest.raises(ah.AdapterHubError) as caught:
                ah.pull(f"real/{path.name}", allow_pickle=True, registry=registry)
            several = isinstance(caught.value, InvalidOption)
            assert several or isinstance(caught.value, type(error) | UnknownFormat), path.name
            continue
        (one,) = ah.pull(f"real/{path.name}", allow_pickle=True, registry=registry)
        assert (one.version or "").endswith(added.digest), path.name
        taken += 1
    assert taken >= 10


def test_prompts_are_files_of_a_folder(hub: Hub, registry: Registry, corpus: Path) -> None:
    hub.put(f"real/{PROMPTS}", tree_of(corpus / "adapters" / PROMPTS))
    prompts = ah.pull(f"real/{PROMPTS}", all=True, registry=registry)
    assert [one.name.rpartition("--")[2] for one in prompts] == ["mrpc", "sst2"]
    assert {one.status for one in prompts} == {"added"}
    (one,) = ah.pull(f"real/{PROMPTS}/sst2.npy", name="own", registry=registry)
    assert (one.status, one.version) == ("added", f"own@{(prompts[1].version or '')[-71:]}")


# --- adapterhub.json --------------------------------------------------------------------------


@pytest.fixture
def exported(registry: Registry, adapter: Make, tmp_path: Path) -> Path:
    registry.add(adapter("source"), name="source", labels=())
    registry.export("source", tmp_path / "exported")
    return tmp_path / "exported"


def test_what_we_exported_comes_back_as_the_same_version(
    hub: Hub, registry: Registry, exported: Path
) -> None:
    hub.put("a/b", tree_of(exported))
    (one,) = ah.pull("a/b", registry=registry)
    assert (one.version or "").endswith(registry.show("source")["digest"])
    assert not any("adapterhub.json" in text for text in one.notes)


def test_its_labels_and_lineage_are_taken(hub: Hub, registry: Registry, exported: Path) -> None:
    lineage = {"operation": "train", "inputs": [{"role": "x"}], "parameters": {"epochs": 3}}
    tree = _changed(exported, labels=["A", "B"], lineage=lineage)
    hub.put("a/b", tree)
    (one,) = ah.pull("a/b", registry=registry)
    manifest = registry.show(one.version or "")["manifest"]
    assert (manifest["labels"], manifest["lineage"]) == (["A", "B"], lineage)


def _changed(exported: Path, **fields: object) -> dict[str, bytes]:
    document = json.loads((exported / "adapterhub.json").read_text())
    return tree_of(exported) | {"adapterhub.json": json.dumps(document | fields).encode()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "ia3"}, "its method is 'ia3', the files show 'lora'"),
        ({"alpha": 99}, "its alpha is 99, the files show 4"),
        ({"parameters": 1}, "its number of parameters is 1, the files show 10"),
        ({"adapter_root": "sha256:" + "0" * 64}, "its adapter root is 'sha256:000"),
        ({"rank": {"min": 1, "max": 2, "pattern": {}}}, "its lowest rank is 1, the files show 2"),
        ({"base": {"name": "owner/evil"}}, "its base is 'owner/evil', the files show 'owner/base'"),
        ({"base": {"revision": "b" * 40}}, "its base's revision is 'bbb"),
        ({"nonsense": 1}, "nonsense"),
        ({"files": []}, "files"),
    ],
)
def test_one_that_contradicts_the_files_is_refused(
    fields: dict[str, object], said: str, hub: Hub, registry: Registry, exported: Path
) -> None:
    if isinstance(base := fields.get("base"), dict):
        own = json.loads((exported / "adapterhub.json").read_text())["base"]
        fields = {"base": own | base}
    hub.put("a/b", _changed(exported, **fields))
    with pytest.raises(IntegrityError, match="json of a/b contradicts the files") as caught:
        ah.pull("a/b", registry=registry)
    assert any(said in detail for detail in caught.value.details), caught.value.details
    assert not registry.store.exists("a/b")


def test_one_about_other_files_is_refused(hub: Hub, registry: Registry, exported: Path) -> None:
    tree = tree_of(exported)
    config = json.loads(tree["adapter_config.json"])
    changed = json.dumps(config | {"lora_alpha": 400}).encode()
    hub.put("a/b", tree | {"adapter_config.json": changed})
    with pytest.raises(IntegrityError) as caught:
        ah.pull("a/b", registry=registry)
    assert "adapter_config.json has" in caught.value.details[0]
    hub.put("a/b", tree | {"vocab.txt": b"x"})
    with pytest.raises(IntegrityError) as caught:
        ah.pull("a/b", registry=registry)
    assert caught.value.details == ("it does not list vocab.txt",)
    hub.put("a/b", tree | {"adapterhub.json": b'{"kind": '})
    with pytest.raises(IntegrityError):
        ah.pull("a/b", registry=registry)


def test_one_of_another_kind_is_noted(hub: Hub, registry: Registry, adapter: Make) -> None:
    hub.put("a/b", tree_of(adapter()) | {"adapterhub.json": b'{"kind": "other"}'})
    (one,) = ah.pull("a/b", registry=registry)
    assert any("nothing that this version understands (kind 'other'" in n for n in one.notes)


# --- offline ----------------------------------------------------------------------------------


def _go_offline(patch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_what_was_pulled_is_there(
    hub: Hub, registry: Registry, adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("a/b", tree_of(adapter()))
    (first,) = ah.pull("a/b", registry=registry)
    _go_offline(monkeypatch)
    hub.forget()
    (same,) = ah.pull("a/b", registry=registry)
    assert (same.status, same.version) == ("unchanged", first.version)
    (other,) = ah.pull("a/b", name="other", registry=registry)
    assert (other.status, other.downloaded) == ("added", 0)
    with pytest.raises(RemoteError, match="a/c cannot be pulled offline: which commit is main"):
        ah.pull("a/c", registry=registry)
    assert hub.requests == []


def test_offline_what_another_tool_downloaded_is_there(
    hub: Hub, registry: Registry, adapter: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.put("a/b", tree_of(adapter()))
    place = Path(snapshot_download("a/b", endpoint=hub.url, cache_dir=tmp_path / "hf"))
    _go_offline(monkeypatch)
    (one,) = ah.pull("a/b", registry=registry)
    assert (one.status, one.origin.commit, one.downloaded) == ("added", commit, 0)
    (place / "adapter_model.safetensors").unlink()
    with pytest.raises(RemoteError, match=r"adapter_model\.safetensors is missing"):
        ah.pull("a/b", name="again", registry=registry)
    with pytest.raises(RemoteError, match="what belongs to commit 000000000000 is not known"):
        ah.pull("a/b", revision="0" * 40, registry=registry)


def test_a_damaged_cache_is_mended(
    hub: Hub, registry: Registry, adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("a/b", tree_of(adapter()))
    (first,) = ah.pull("a/b", registry=registry)
    (blob,) = (tmp_path / "hf").rglob("snapshots/*/adapter_model.safetensors")
    target = blob.resolve()
    target.chmod(0o644)
    content = target.read_bytes()
    target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with monkeypatch.context() as patch:
        _go_offline(patch)
        with pytest.raises(RemoteError, match=r"adapter_model\.safetensors is damaged"):
            ah.pull("a/b", name="other", registry=registry)
    (second,) = ah.pull("a/b", name="other", registry=registry)
    assert (second.version or "").endswith((first.version or "").partition("@")[2])
    assert second.downloaded == len(content)
    assert target.read_bytes() == content
