"""verify, gc, reindex, env, methods, formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import regkit
from clikit import Run

from adapterhub import __version__, api


def test_verify_of_a_whole_registry(run: Run, adapter: Path) -> None:
    run("add", adapter, "--name", "a")
    assert run("verify").out == "✓ whole: 1 version, 2 files\n"
    assert run("verify", "a", "--json").json["result"] == {
        "versions": 1,
        "files": 2,
        "problems": [],
    }


def test_verify_names_a_flipped_byte_and_exits_1(run: Run, adapter: Path, home: Path) -> None:
    run("add", adapter, "--name", "a")
    with api.open(home) as registry:
        blob = regkit.blob_of(registry, "a", "adapter_model.safetensors")
    regkit.flip(blob)
    for args in ((), ("a",)):
        said = run("verify", *args)
        assert said.code == 1
        assert said.out.startswith("✗ a@sha256:")
        assert f"adapter_model.safetensors: blob sha256:{blob.name} is damaged" in said.out
    assert run("verify", "--json").json["result"]["problems"]


def test_verify_of_directories(
    run: Run, adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", adapter, "--name", "a")
    run("export", "a", tmp_path / "out")
    run("merge", base, adapter, "--out", tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    for name in ("out", "merged"):
        assert run("verify", name).out == "✓ whole: 1 directory\n"
    regkit.flip(tmp_path / "out" / "adapter_model.safetensors")
    assert run("verify", "./out").out == "✗ adapter_model.safetensors has changed\n"
    regkit.flip(tmp_path / "merged" / "model.safetensors")
    said = run("verify", "merged")
    assert said.code == 1
    assert "✗ tensor" in said.out
    run("mv", "a", "merged")
    said = run("verify", "merged")
    assert (said.code, said.out) == (1, "")
    assert "both a name in the registry and a path" in said.err
    for where in ("./nowhere", str(base)):
        assert run("verify", where, "--json").json["error"]["code"] == "not-found"


def test_gc(run: Run, adapter: Path, home: Path) -> None:
    run("add", adapter, "--name", "a")
    assert run("gc").out == "freed 0 B: 0 versions, 0 files; 1 version kept\n"
    assert run("gc", "--dry-run", "--json").json["result"]["dry_run"] is True
    assert run("verify").code == 0


def test_reindex_after_the_index_was_deleted(run: Run, adapter: Path, home: Path) -> None:
    run("add", adapter, "--name", "a", "--tag", "t")
    listed = run("list", "--json").json
    for path in home.glob("index.db*"):
        path.unlink()
    assert run("reindex").out == "indexed 1 name\n"
    assert run("list", "--json").json == listed


def test_env(run: Run, home: Path) -> None:
    facts = run("env", "--json").json["result"]
    assert facts["adapterhub"] == __version__
    assert facts["home"] == str(home)
    assert run("env").lines[0].split() == ["adapterhub", __version__]
    assert not home.exists()


def test_tables_come_from_the_code(run: Run) -> None:
    assert [row["name"] for row in run("methods", "--json").json["result"]] == [
        row.name for row in api.methods()
    ]
    assert [line.split()[0] for line in run("formats").lines[1:]] == [
        row.name for row in api.formats()
    ]
