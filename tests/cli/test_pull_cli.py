"""`adapterhub pull`, in this process and as a user's shell would run it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clikit import Run

sys.path.append(str(Path(__file__).parents[1] / "hub" / "client"))

import pullkit
from pullkit import TOKEN, Hub, tree_of


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with pullkit.connected(tmp_path, monkeypatch) as served:
        yield served


def test_one_is_pulled_and_shown(run: Run, hub: Hub, adapter: Path) -> None:
    commit = hub.put("Some/Thing", tree_of(adapter) | {"x.py": b""})
    said = run("pull", "Some/Thing", "--tag", "v1")
    assert said.code == 0, said.err
    assert said.lines[0].startswith("pulled: some/thing@sha256:")
    assert said.lines[1].startswith("  lora, ")
    assert said.lines[2].startswith(f"  Some/Thing at {commit[:12]} (")
    assert said.lines[2].endswith(" downloaded)")
    assert "note: not taken: x.py" in said.err
    again = run("pull", "Some/Thing")
    assert again.lines[0].startswith("already there, nothing changed: some/thing@")
    assert "(nothing downloaded)" in again.lines[2]
    shown = run("show", "some/thing:v1").out
    assert f"Some/Thing at {commit[:12]} of {hub.url}" in shown


def test_quiet_prints_the_version_and_json_all_of_it(run: Run, hub: Hub, adapter: Path) -> None:
    commit = hub.put("a/b", tree_of(adapter, "sub/x"))
    quiet = run("pull", "-q", "a/b")
    (one,) = run("pull", "--json", "a/b/sub/x").json["result"]
    assert quiet.lines == [one["version"]]
    assert one["status"] == "unchanged"
    assert (one["hub"], one["endpoint"], one["commit"], one["subfolder"]) == (
        "a/b",
        hub.url,
        commit,
        "sub/x",
    )
    assert one["name"] == "a/b--sub--x"


def test_several_are_a_table_and_an_error(run: Run, hub: Hub, adapter: Path, tagger: Path) -> None:
    hub.put("a/b", tree_of(adapter, "x") | tree_of(tagger, "y"))
    said = run("pull", "a/b")
    assert said.code == 1
    assert said.lines[0].split() == ["subfolder", "format", "method", "base", "size"]
    assert [line.split()[:3] for line in said.lines[1:]] == [
        ["x", "peft", "lora"],
        ["y", "peft", "lora"],
    ]
    assert "error: a/b holds 2 adapters, and none at its root" in said.err
    assert "--all" in said.err
    as_json = run("pull", "a/b", "--json").json
    assert as_json["error"]["details"] == ["x", "y"]
    both = run("pull", "a/b", "--all")
    assert both.code == 0
    assert [line.split()[:2] for line in both.lines[1:]] == [["x", "added"], ["y", "added"]]
    assert run("pull", "a/b", "--all", "-q").lines == [
        line.partition(" ")[0] for line in run("pull", "a/b", "--all", "-q").lines
    ]


def test_when_all_are_refused_it_fails(run: Run, hub: Hub) -> None:
    hub.put("a/b", {"x/adapter_config.json": b"{", "y/adapter_config.json": b"[]"})
    said = run("pull", "a/b", "--all")
    assert said.code == 1
    assert "0 of 2 adapters pulled" in said.err


def test_what_was_exported_comes_back_with_its_base(
    run: Run, hub: Hub, tagger: Path, base: Path, tmp_path: Path
) -> None:
    added = run("add", tagger, "--name", "src", "--base", base, "--labels", "A,B,C,D", "-q")
    assert added.code == 0, added.err
    run("export", "src", tmp_path / "out")
    hub.put("a/b", tree_of(tmp_path / "out"))
    said = run("pull", "a/b", "-q")
    assert said.code == 0, said.err
    assert said.lines[0].rpartition("@")[2] == added.lines[0].rpartition("@")[2]
    manifest = run("show", "a/b", "--json").json["result"]["manifest"]
    assert manifest["labels"] == ["A", "B", "C", "D"]
    assert manifest["base"]["weights_root"]


@pytest.mark.slow
def test_in_a_process_the_environment_is_heard(
    process: Run, hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    hub.put("a/b", tree_of(adapter))
    cache = tmp_path / "own"
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(cache)}
    said = process("pull", "a/b", HF_HUB_OFFLINE="0", HF_DEBUG="1", **env)
    assert said.code == 0, said.err
    about = [r for r in hub.requests if "a/b" in r.path]
    assert {r.headers["authorization"] for r in about} == {f"Bearer {TOKEN}"}
    assert TOKEN not in said.out + said.err
    assert list(cache.rglob("snapshots/*/adapter_config.json"))
    hub.forget()
    offline = process("pull", "a/b", "--name", "other", HF_HUB_OFFLINE="1", **env)
    assert offline.code == 0, offline.err
    assert hub.requests == []
    refused = process("pull", "c/d", HF_HUB_OFFLINE="1", **env)
    assert refused.code == 1
    assert refused.err.startswith("error: c/d cannot be pulled offline: which commit is main")
    assert "Traceback" not in refused.err
    nowhere = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    gone = process("pull", "a/b@main", HF_HUB_OFFLINE="0", **nowhere)
    assert (gone.code, gone.err.splitlines()[0]) == (
        1,
        "error: 'a/b@main' names no repository of a hub",
    )


@pytest.mark.slow
def test_pull_imports_neither_torch_nor_transformers(
    process: Run, hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    hub.put("a/b", tree_of(adapter))
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "own"), "HF_HUB_OFFLINE": "0"}
    said = process("pull", "a/b", PYTHONPROFILEIMPORTTIME="1", **env)
    assert said.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in said.err.splitlines() if "|" in line}
    assert "huggingface_hub" in loaded
    assert not {"torch", "transformers"} & loaded
