"""Adapters on main of the hub's repositories are in the registry; what cannot be says why."""

from __future__ import annotations

import io
import json
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regkit
from huggingface_hub import HfApi
from serverkit import Served, files_of, running

from adapterhub.errors import NotFound
from adapterhub.hub.server import takeover
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.operations import Add, Request
from adapterhub.registry import Registry

Client = Callable[..., HfApi]
CARD = b"---\nlicense: mit\ntags: [mine]\n---\n"


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """`adapter(prefix, seed)`: the files of a PEFT adapter."""

    def make(prefix: str = "", seed: int = 1, **fields: Any) -> dict[str, bytes]:
        directory = tmp_path / f"{prefix.replace('/', '_')}{seed}"
        regkit.save_adapter(directory, regkit.lora(seed), **fields)
        return files_of(directory, prefix)

    return make


def own(served: Served, id: str) -> dict[str, Any]:
    """What the repository's info tells of the index."""
    found = served.wire().ask("GET", f"/api/models/{id}").json.get("adapterhub", {})
    return {"adapters": [], "problems": []} | found


def test_an_adapter_on_main(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]]
) -> None:
    files = adapter(base_model_name_or_path="owner/tiny")
    repository = served.repo("Ns/First-Adapter", {**files, "README.md": CARD})
    name = "ns/first-adapter"
    shown = served.registry.show(name)
    assert shown["manifest"]["method"] == "lora"
    assert shown["manifest"]["rank"]["max"] == 2
    commit = served.hub.refs.resolve(repository, "main")
    assert shown["origin"] == {"hub": "Ns/First-Adapter", "commit": commit, "subfolder": ""}
    assert shown["card"]["licence"] == "mit"
    assert {e["path"] for e in shown["manifest"]["files"]} == set(files)
    (told,) = own(served, "Ns/First-Adapter")["adapters"]
    assert (told["name"], told["method"], told["base"]) == (name, "lora", "owner/tiny")
    assert told["version"] == shown["digest"]
    for filters in ("lora", "peft", "mine", "license:mit", "base_model:adapter:owner/tiny"):
        found = client().list_models(author="Ns", filter=filters)
        assert [each.id for each in found] == ["Ns/First-Adapter"], filters
    info = client().model_info("Ns/First-Adapter")
    assert info.library_name == "peft"
    assert "base_model:owner/tiny" in (info.tags or ())


def test_a_new_commit_makes_a_new_version(
    served: Served, adapter: Callable[..., dict[str, bytes]]
) -> None:
    repository = served.repo("ns/twice", adapter(seed=1))
    first = served.registry.show("ns/twice")["digest"]
    served.commit(repository, {"notes.txt": b"nothing that belongs to the adapter"})
    assert served.registry.show("ns/twice")["digest"] == first
    served.commit(repository, adapter(seed=2))
    now = served.registry.show("ns/twice")
    assert now["digest"] != first
    assert [each["digest"] for each in now["versions"]] == [first, now["digest"]]
    served.commit(repository, adapter(seed=3), revision=_branch(served, repository, "dev"))
    served.index()
    assert served.registry.show("ns/twice")["digest"] == now["digest"]  # main only


def _branch(served: Served, repository: Any, name: str) -> str:
    served.hub.refs.create_branch(repository, name)
    return name


def test_adapters_in_folders(served: Served, adapter: Callable[..., dict[str, bytes]]) -> None:
    files = adapter("", 1) | adapter("run one/", 2) | adapter("deep/er/", 3)
    repository = served.repo("ns/several", files)
    names = ["ns/several", "ns/several--deep--er", "ns/several--run-one"]
    assert sorted(each["name"] for each in own(served, "ns/several")["adapters"]) == names
    assert served.registry.show(names[1])["origin"]["subfolder"] == "deep/er"
    served.commit(repository, {"deep/": None})
    assert not served.registry.store.exists(names[1])
    assert served.registry.store.exists(names[2])
    served.registry.rollback(names[1], "latest")  # removed softly


def test_folders_of_one_name(served: Served, adapter: Callable[..., dict[str, bytes]]) -> None:
    served.repo("ns/same", adapter("a b/", 1) | adapter("a-b/", 2))
    told = own(served, "ns/same")
    assert [each["subfolder"] for each in told["adapters"]] == ["a b"]
    assert told["problems"] == [
        "a-b: its name ns/same--a-b is that of the adapter in a b (rename the folder)"
    ]


def test_what_is_refused_says_why(
    served: Served, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    files = adapter()
    config = files["adapter_config.json"]
    cases = {
        "pickled": ({"adapter_config.json": config, "adapter_model.bin": _pickle()}, "pickle"),
        "nan": (files | {"adapter_model.safetensors": _nan(tmp_path)}, "NaN"),
        "no-weights": ({"adapter_config.json": config}, "adapter_model.safetensors"),
        "bad-config": (files | {"adapter_config.json": b"{"}, "adapter_config.json"),
        "cut": (files | {"adapter_model.safetensors": b"\0" * 100}, "adapter_model.safetensors"),
    }
    for name, (content, said) in cases.items():
        served.repo(f"bad/{name}", content)
        told = own(served, f"bad/{name}")
        assert told["adapters"] == [], name
        (problem,) = told["problems"]
        assert said in problem
        assert "/tmp" not in problem and str(tmp_path) not in problem
        assert not served.registry.store.exists(f"bad/{name}")


def _pickle() -> bytes:
    stream = io.BytesIO()
    pickle.dump({"weight": 1}, stream)
    return stream.getvalue()


def _nan(tmp_path: Path) -> bytes:
    arrays = regkit.lora()
    next(iter(arrays.values()))[0, 0] = np.nan
    regkit.save_adapter(tmp_path / "nan", arrays)
    return (tmp_path / "nan" / "adapter_model.safetensors").read_bytes()


def test_no_adapters_no_problems(served: Served) -> None:
    model = {"config.json": b'{"model_type": "bert"}', "vocab.txt": b"a\nb\n"}
    served.repo("ns/tokenizer", model)
    assert own(served, "ns/tokenizer") == {"adapters": [], "problems": []}


def test_names_from_elsewhere_are_left_alone(
    served: Served, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    regkit.save_adapter(tmp_path / "local", regkit.lora(9))
    added = served.registry.add(tmp_path / "local", name="ns/mine")
    repository = served.repo("Ns/Mine", adapter())
    assert served.registry.show("ns/mine")["digest"] == added.digest
    told = own(served, "Ns/Mine")
    assert told["adapters"] == []
    assert "ns/mine in the registry came from elsewhere" in told["problems"][0]
    served.hub.repositories.delete(repository)
    served.service.indexer.forget(repository)
    assert served.registry.store.exists("ns/mine")


def test_a_name_that_somebody_took_over_is_left_alone(
    served: Served, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    repository = served.repo("ns/taken", adapter(seed=1))
    regkit.save_adapter(tmp_path / "local", regkit.lora(9))
    local = served.registry.add(tmp_path / "local", name="ns/taken")
    served.commit(repository, adapter(seed=2))
    assert served.registry.show("ns/taken")["digest"] == local.digest
    assert "came from elsewhere" in own(served, "ns/taken")["problems"][0]


def test_what_somebody_took_over_is_neither_moved_nor_deleted(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    regkit.save_adapter(tmp_path / "local", regkit.lora(9))
    for name in ("over/moved", "over/deleted"):
        served.repo(name, adapter())
        local = served.registry.add(tmp_path / "local", name=name)
    client().move_repo("over/moved", "over/elsewhere")
    client().delete_repo("over/deleted")
    for name in ("over/moved", "over/deleted"):
        assert served.registry.show(name)["digest"] == local.digest
    assert "came from elsewhere" in own(served, "over/elsewhere")["problems"][0]


def test_no_namespace_comes_by_the_names_of_another(
    served: Served, adapter: Callable[..., dict[str, bytes]]
) -> None:
    """`ns_/x` has no name in the registry, and so have the adapters in its folders."""
    served.repo("respelled_/_one", adapter("sub/", 3))
    assert not served.registry.store.exists("respelled/one--sub")
    assert own(served, "respelled_/_one")["adapters"] == []
    served.repo("respelled/one", adapter("sub/", 4) | adapter("a/b c/", 5))
    names = [each["name"] for each in own(served, "respelled/one")["adapters"]]
    assert names == ["respelled/one--a--b-c", "respelled/one--sub"]


def test_moves_and_deletions_are_followed(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]]
) -> None:
    repository = served.repo("Follow/One", adapter() | adapter("sub/", 2))
    version = served.registry.show("follow/one")["digest"]
    client().move_repo("Follow/One", "Follow/Two")
    assert not served.registry.store.exists("follow/one")
    assert served.registry.show("follow/two")["digest"] == version
    assert served.registry.store.exists("follow/two--sub")
    names = [each["name"] for each in own(served, "Follow/Two")["adapters"]]
    assert names == ["follow/two", "follow/two--sub"]
    served.commit(served.hub.repositories.again(repository), adapter(seed=5))
    assert served.registry.show("follow/two")["digest"] != version
    client().delete_repo("Follow/Two")
    assert not served.registry.store.exists("follow/two")
    assert not served.registry.store.exists("follow/two--sub")
    served.repo("Follow/Two", adapter())
    assert served.registry.show("follow/two")["digest"] == version


def test_a_move_onto_a_name_that_is_taken(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    served.repo("follow/three", adapter())
    regkit.save_adapter(tmp_path / "local", regkit.lora(9))
    local = served.registry.add(tmp_path / "local", name="follow/four")
    client().move_repo("follow/three", "follow/four")
    assert served.registry.show("follow/four")["digest"] == local.digest
    assert served.registry.store.exists("follow/three")
    told = own(served, "follow/four")
    assert told["adapters"][0]["name"] == "follow/three"
    assert "follow/four is taken" in told["problems"][0]


def test_a_merged_pull_request_is_indexed(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]]
) -> None:
    repository = served.repo("ns/pulled")
    number = client().create_pull_request("ns/pulled", title="An adapter").num
    served.commit(repository, adapter(), revision=f"refs/pr/{number}")
    assert not served.registry.store.exists("ns/pulled")
    client().merge_pull_request("ns/pulled", number)
    assert served.registry.show("ns/pulled")["manifest"]["method"] == "lora"


def test_data_sets_are_not_looked_into(
    served: Served, client: Client, adapter: Callable[..., dict[str, bytes]]
) -> None:
    client().create_repo("ns/data", repo_type="dataset", private=False)
    repository = served.hub.repositories.list(kind="dataset", namespace="ns")[0]
    served.commit(repository, adapter() | {"README.md": CARD.replace(b"mine", b"theirs")})
    with pytest.raises(NotFound):
        served.registry.show("ns/data")
    assert [each.id for each in client().list_datasets(filter="theirs")] == ["ns/data"]


def test_what_a_stopped_server_left_over(
    tmp_path: Path, adapter: Callable[..., dict[str, bytes]]
) -> None:
    home = tmp_path / "home"
    with running(home) as served:
        repository = served.repo("left/over")
        served.service.indexer.close()
        served.commit(repository, adapter())
    with Registry(home) as registry:
        assert not registry.store.exists("left/over")
    with running(home) as served:
        served.index()
        assert served.registry.show("left/over")["manifest"]["method"] == "lora"


@pytest.mark.parametrize("deleted", [True, False])
def test_nobody_waits_for_what_is_being_indexed(
    served: Served,
    client: Client,
    adapter: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    deleted: bool,
) -> None:
    """What was deleted or moved meanwhile is put right afterwards."""
    served.repo("busy/other", adapter())
    repository = served.hub.create(parse_id("busy/large"))
    at, go, take = threading.Event(), threading.Event(), takeover.take

    def slowly(*args: Any) -> dict[str, Any]:
        at.set()
        assert go.wait(20)
        return take(*args)

    monkeypatch.setattr(takeover, "take", slowly)
    try:
        for path, data in adapter(seed=2).items():
            content = served.hub.contents.put_bytes(repository, data)
            request = Request((Add(path, content.digest, lfs=True),), "one file")
            served.hub.commit(repository, "main", request, "ann")
        number = served.service.indexer.tell()
        assert at.wait(20)
        if deleted:
            client().delete_repo("busy/other")
            client().delete_repo("busy/large")
        else:
            client().move_repo("busy/other", "busy/second")
            client().move_repo("busy/large", "busy/huge")
        assert not served.registry.store.exists("busy/other")
    finally:
        go.set()
    while not served.service.indexer.has_seen(number):
        time.sleep(0.01)
    names = set(served.registry.store.names("busy"))
    assert names == (set() if deleted else {"busy/second", "busy/huge"})
    if not deleted:
        client().delete_repo("busy/second")
        client().delete_repo("busy/huge")


def test_what_is_deleted_before_its_turn_is_no_fault(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repository = served.repo("gone/soon", {"a.txt": b"a"})
    commit = served.hub.commit_of(repository, "main").id
    served.hub.repositories.delete(repository)
    monkeypatch.setattr(
        served.hub.repositories, "unindexed", lambda: ((repository, commit), (repository, "f" * 40))
    )
    served.index()
    assert "Traceback" not in caplog.text


def test_a_fault_in_one_repository_does_not_stop_the_others(
    served: Served,
    adapter: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from adapterhub.hub.server import indexing

    gather = indexing.facts.gather

    def fails(hub: Any, store: Any, repository: Any, commit: str) -> Any:
        if repository.id.name == "broken":
            raise RuntimeError("a bug")
        return gather(hub, store, repository, commit)

    monkeypatch.setattr(indexing.facts, "gather", fails)
    served.repo("faults/broken", adapter())
    served.repo("faults/whole", adapter())
    assert served.registry.store.exists("faults/whole")
    assert not served.registry.store.exists("faults/broken")
    assert "a bug" in caplog.text
    monkeypatch.undo()
    served.repo("faults/later")
    assert not served.registry.store.exists("faults/broken")  # until the next start


def test_an_exported_adapter_keeps_its_identity(
    served: Served, adapter: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    """What was exported (with its manifest) and pushed is the same version again."""
    regkit.save_adapter(tmp_path / "local", regkit.lora(4))
    added = served.registry.add(tmp_path / "local", name="original")
    served.registry.export("original", tmp_path / "out")
    served.repo("ns/copy", files_of(tmp_path / "out"))
    assert served.registry.show("ns/copy")["digest"] == added.digest
    assert json.loads((tmp_path / "out" / "adapterhub.json").read_text())["kind"] == "adapter"


def test_a_card_that_comes_later_is_in_the_registry_too(
    served: Served, adapter: Callable[..., dict[str, bytes]]
) -> None:
    repository = served.repo("ns/card", adapter())
    assert "licence" not in served.registry.show("ns/card")["card"]
    served.commit(repository, {"README.md": CARD})
    assert served.registry.show("ns/card")["card"]["licence"] == "mit"
    served.commit(repository, {"README.md": CARD.replace(b"mit", b"apache-2.0")})
    assert served.registry.show("ns/card")["card"]["licence"] == "apache-2.0"
    served.registry.edit("ns/card", {"licence": "bsd-2-clause"})
    served.commit(repository, {"README.md": CARD})
    assert served.registry.show("ns/card")["card"]["licence"] == "bsd-2-clause"
