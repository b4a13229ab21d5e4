"""`adapterhub push`: what it prints, and for whom."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clikit import Run

sys.path.append(str(Path(__file__).parents[1] / "hub" / "client"))

from minihub import CUT, TOKEN, MiniHub, talking_to
from pushkit import LICENSED, pushable


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MiniHub]:
    with MiniHub().serving() as served:
        talking_to(served, monkeypatch, tmp_path)
        yield served


def test_people_get_one_line(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "team/a")
    said = run("push", "team/a", "me/a")
    assert (said.code, said.err) == (0, "")
    commit = hub.repositories["me/a"].branches["main"]
    (line,) = said.lines
    assert line.startswith("pushed team/a@sha256:")
    assert f" to {hub.url}/me/a (private): 4 files, 1.8 kB, commit {commit[:12]}" in line
    said = run("push", "team/a", "me/a")
    assert said.code == 0
    assert f"{hub.url}/me/a has team/a@sha256:" in said.out
    assert said.lines[0].endswith(f"already, at commit {commit[:12]}: nothing was sent")


def test_programs_get_json_and_scripts_an_id(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "a")
    said = run("push", "a", "me/a", "--public", "-m", "First", "--json")
    assert said.json["command"] == "push"
    result = said.json["result"]
    repository = hub.repositories["me/a"]
    commit = repository.branches["main"]
    assert (result["status"], result["commit"], result["private"]) == ("pushed", commit, False)
    assert len(result["sent"]) == 4
    assert repository.titles[commit] == "First"
    said = run("push", "a", "me/a", "-q")
    assert said.out == f"me/a@{commit}\n"


def test_warnings_go_to_stderr_with_what_mends_them(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a", None), "--name", "a")
    said = run("push", "a", "me/a")
    assert said.code == 0
    assert len(said.lines) == 1
    assert said.err == (
        "note: no licence is stated (adapterhub edit a --licence ID, such as apache-2.0)\n"
    )


def test_what_stops_it_is_told_before_anything_is_sent(
    hub: MiniHub, run: Run, tmp_path: Path
) -> None:
    path = pushable(tmp_path / "a", None, base_model_name_or_path="/home/jo/x")
    run("add", path, "--name", "a")
    said = run("push", "a", "me/a", "--public")
    assert said.code == 1
    assert "error: a@sha256:" in said.err
    assert "  - the base is a path on somebody's machine (/home/jo/x)" in said.err
    assert "  - no licence is stated, and everybody will see it (adapterhub edit a" in said.err
    assert "  → mend each of these, and push again" in said.err
    said = run("push", "a", "me/a", "--public", "--json")
    assert len(said.json["error"]["details"]) == 2
    assert hub.repositories == {}


def test_one_finding_has_its_remedy_once(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a", None), "--name", "a")
    said = run("push", "a", "me/a", "--public")
    assert said.err.count("adapterhub edit a --licence ID, such as apache-2.0") == 1


def test_what_a_push_makes_itself_needs_no_warning(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "a")
    assert run("push", "a", "me/a", "--public").err == ""
    said = run("push", "a", "me/a", "--revision", "dev")
    assert "nothing was sent; the branch dev is new" in said.out
    assert "me/a is public already" in said.err


def test_a_namespace_has_its_warnings_once_a_kind(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        run("add", pushable(tmp_path / name, None, seed), "--name", f"team/{name}")
    said = run("push", "team", "me", "--all")
    assert said.err.splitlines() == [
        "note: 2 names, 0 refused",
        "note: team/a, team/b: no licence is stated (adapterhub edit team/a --licence ID, such as "
        "apache-2.0)",
    ]


def test_a_dry_run_prints_the_plan(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "a")
    run("push", "a", "me/a")
    run("add", pushable(tmp_path / "b", seed=5), "--name", "a")
    hub.requests.clear()
    said = run("push", "a", "me/a", "--dry-run")
    assert said.code == 0
    assert said.lines[0] == "plan (nothing is sent)"
    rows = {line.split()[0]: line.split()[-1] for line in said.lines[-4:]}
    assert rows["adapter_config.json"] == "unchanged"
    assert rows["adapter_model.safetensors"] == "changed"
    assert "its owners only" in said.out
    plan = run("push", "a", "me/a", "--dry-run", "--json").json["result"]
    assert {file["path"]: file["status"] for file in plan["files"]} == rows
    names = run("push", "a", "me/a", "--dry-run", "-q").lines
    assert names == ["adapter_model.safetensors", "adapterhub.json"]
    assert hub.wrote() == []


def test_a_dry_run_of_what_would_be_refused_exits_with_1(
    hub: MiniHub, run: Run, tmp_path: Path
) -> None:
    run("add", pushable(tmp_path / "a", None), "--name", "a")
    said = run("push", "a", "me/a", "--dry-run", "--public")
    assert said.code == 1
    assert "✗ no licence is stated, and everybody will see it" in said.out
    assert "    → adapterhub edit a --licence ID" in said.out
    assert run("push", "a", "me/a", "--dry-run").code == 0


def test_a_namespace_gets_a_table(hub: MiniHub, run: Run, tmp_path: Path) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "team/a")
    run("add", pushable(tmp_path / "b", base_model_name_or_path="./x"), "--name", "team/b")
    said = run("push", "team", "me", "--all", "--dry-run")
    assert said.code == 1
    assert [line.split()[:3] for line in said.lines[1:]] == [
        ["team/a", "me/a", "planned"],
        ["team/b", "me/b", "refused"],
    ]
    said = run("push", "team", "me", "--all")
    assert said.code == 1
    assert [line.split()[:3] for line in said.lines[1:]] == [
        ["team/a", "me/a", "pushed"],
        ["team/b", "me/b", "refused"],
    ]
    assert "the base is a path on somebody's machine (./x)" in said.lines[2]
    assert said.err == "note: 2 names, 1 refused\n"
    commit = hub.repositories["me/a"].branches["main"]
    assert run("push", "team", "me", "--all", "-q").out == f"me/a@{commit}\n"
    statuses = [
        one["status"] for one in run("push", "team", "me", "--all", "--json").json["result"]
    ]
    assert statuses == ["unchanged", "refused"]


def test_what_fails_on_the_wire_is_one_line_without_the_token(
    hub: MiniHub, run: Run, tmp_path: Path
) -> None:
    run("add", pushable(tmp_path / "a"), "--name", "a")
    hub.fault = lambda method, path: CUT if "/commit/" in path else None
    said = run("push", "a", "me/a")
    assert said.code == 1
    assert said.err.splitlines() == [
        f"error: pushing to me/a failed: the connection to {hub.url} was cut",
        "  → to push again is safe: what has arrived is not sent twice",
    ]
    hub.fault = lambda method, path: 401
    said = run("push", "a", "me/a", "--json")
    assert said.json["error"]["code"] == "remote-error"
    assert TOKEN not in said.out + said.err


@pytest.mark.slow
def test_the_environment_of_the_hugging_face_clients_is_honoured(
    process: Run, tmp_path: Path
) -> None:
    """In a process of its own: huggingface_hub reads it when it is imported."""
    process("add", pushable(tmp_path / "a", LICENSED), "--name", "a")
    said = process("push", "a", "me/a", HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN)
    assert said.code == 1
    assert said.err.splitlines()[0] == (
        "error: push is not possible offline: HF_HUB_OFFLINE is set; nothing was tried"
    )
    env = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    with MiniHub().serving() as served:
        env |= {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf")}
        said = process("push", "a", "me/a", **env)
        assert (said.code, said.err) == (0, "")
        assert all(f"Bearer {TOKEN}" in h for h in served.headers if "hf_hub" in h)
        assert "me/a" in served.repositories
        process("add", pushable(tmp_path / "b", seed=3), "--name", "a")
        served.fault = lambda method, path: 503 if "/preupload/" in path else None
        said = process("push", "a", "me/a", **env, HF_DEBUG="1")
    assert TOKEN not in said.out + said.err
