"""A hub that lies: paths, sizes, digests, headers, lists without end, and addresses elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pullkit
import pytest
from patience import ends
from pullkit import TOKEN, Hub, tree_of

import adapterhub as ah
from adapterhub.errors import (
    AdapterHubError,
    IntegrityError,
    InvalidAdapter,
    OutputError,
    RemoteError,
)
from adapterhub.hub.client import pull_fetching, pull_guard, pull_listing
from adapterhub.registry import Registry

Make = Callable[..., Path]
Row = dict[str, Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with pullkit.connected(tmp_path, monkeypatch) as served:
        yield served


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with ah.open() as opened:
        yield opened
        assert all(row.name.startswith("taken") for row in opened.list())
        assert list((opened.home / "tmp").iterdir()) == []


@pytest.fixture
def tree(peft_dir: Make) -> dict[str, bytes]:
    return tree_of(peft_dir())


def refused(hub: Hub, registry: Registry, kind: type[AdapterHubError], said: str) -> str:
    """Pulls, is refused, and tells the whole of the error."""
    with pytest.raises(kind, match=said) as caught:
        ah.pull("a/b", registry=registry)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", "a//b", "./x", "a/.", "x\0y", "", "a/..", "..", "a/"],
)
def test_a_path_that_leads_out_refuses_the_repository(
    path: str, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [*rows, {**rows[0], "path": path}]
    refused(hub, registry, IntegrityError, "a/b lists the file .*, which leads out of it; nothing")
    assert hub.asked("/resolve/") == []


@pytest.mark.parametrize("path", ["a\\b", "x\ny", "x" * 300, "y/" * 600 + "z", "\x1b[2J", "\ud800"])
def test_an_odd_path_is_not_looked_at(
    path: str, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [*rows, {**rows[0], "path": path}]
    (one,) = ah.pull("a/b", name="taken", registry=registry)
    assert one.notes[-1] == "1 files with names that no disk should hold were not looked at"


def test_a_file_that_is_listed_twice(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [*rows, {**rows[0], "size": 3}]
    refused(hub, registry, IntegrityError, "lists the file 'adapter_config.json', twice")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("adapter_config.json", "Adapter_Config.json"),
        ("adapter_config.json", "ADAPTER_CONFIG.JSON"),
        ("adapter_model.safetensors", "adapter_model.\u017fafetensors"),  # a long s folds to s
    ],
)
def test_files_that_differ_in_case_only(
    one: str, other: str, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree | {other: b"{}"})
    said = f"differ in case only: {one} and {other}"
    refused(hub, registry, IntegrityError, said)
    assert hub.asked("/resolve/") == []


# --- lists ------------------------------------------------------------------------------------


def test_a_list_without_end(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_listing, "MAX_ENTRIES", 50)
    hub.put("a/b", tree)
    hub.next_page = lambda path, number: f"{hub.url}{path}?page={number + 1}"
    hub.entries = lambda rows: [
        {"type": "file", "path": f"f{time.monotonic_ns()}-{n}", "size": 1, "oid": "0" * 40}
        for n in range(20)
    ]
    refused(hub, registry, RemoteError, "a/b lists more than 50 files and folders")


@pytest.mark.slow
def test_a_list_of_empty_pages_without_end(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_listing, "MAX_PAGES", 20)
    hub.put("a/b", tree)
    hub.next_page = lambda path, number: f"{hub.url}{path}?page={number + 1}"
    hub.entries = lambda rows: []
    refused(hub, registry, RemoteError, "127.0.0.1 was asked 20 times and there is no end")
    assert len(hub.asked("/tree/")) == 20


def test_an_answer_without_end(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_guard, "MAX_ANSWER_BYTES", 5000)
    hub.put("a/b", tree)
    hub.info = lambda found: {**found, "x": "y" * 6000}
    refused(hub, registry, IntegrityError, "sends more than the 5,000 bytes there can be")


def test_an_answer_that_unpacks(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.head = lambda path: {"Content-Encoding": "gzip"}
    refused(hub, registry, IntegrityError, "compresses an answer that was asked for as it is")
    assert {r.headers["accept-encoding"] for r in hub.requests} == {"identity"}


@pytest.mark.parametrize(
    "rows",
    [
        None,
        {"error": "x"},
        [1],
        [[]],
        [{"path": "x"}],
        [{"type": "file", "path": "x", "size": 1}],
        [{"type": "file", "path": 5, "size": 1, "oid": "0" * 40}],
        [{"type": "file", "path": "x", "size": -1, "oid": "0" * 40}],
        [{"type": "file", "path": "x", "size": "9", "oid": "0" * 40}],
        [{"type": "file", "path": "x", "size": True, "oid": "0" * 40}],
        [{"type": "file", "path": "x", "size": 1.5, "oid": "0" * 40}],
        [{"type": "file", "path": "x", "size": 1, "oid": "0" * 40, "lfs": []}],
        [{"type": "file", "path": "x", "size": 1, "oid": "0" * 40, "lfs": {"oid": "y"}}],
        [
            {
                "type": "file",
                "path": "x",
                "size": 1,
                "oid": "0" * 40,
                "lfs": {"oid": "0" * 64, "size": 2, "pointerSize": 1},
            }
        ],
    ],
)
def test_a_list_that_makes_no_sense(
    rows: Any, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda found: rows
    refused(hub, registry, RemoteError, "answers about a/b what makes no sense|lacks")


@pytest.mark.parametrize("info", [None, [], 5, {}, {"id": "a/b"}, {"id": "a/b", "sha": "../../x"}])
def test_a_commit_that_makes_no_sense(
    info: Any, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.info = lambda found: info
    refused(hub, registry, RemoteError, "answers about a/b what makes no sense|lacks")


def test_a_file_without_digest(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [{**row, "oid": "?"} for row in rows]
    refused(hub, registry, InvalidAdapter, "gives no digest of adapter_config.json")
    assert hub.asked("/resolve/") == []


@pytest.mark.slow
def test_a_hundred_thousand_files(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    commit = hub.put("a/b", tree)
    rows = [
        {"type": "file", "path": f"data/{n % 100}/{n}.txt", "size": n, "oid": f"{n:040x}"}
        for n in range(100_000)
    ]
    hub.entries = lambda own: [*rows, *own]
    listed: list[int] = []
    with ends():
        (one,) = ah.pull("a/b", name="taken", registry=registry, on_list=listed.append)
    assert (one.origin.commit, sum(listed)) == (commit, 100_002)


# --- bytes ------------------------------------------------------------------------------------


def test_other_bytes_than_stated(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.body = lambda path, data: data[:-1] + b"!"
    said = refused(hub, registry, IntegrityError, "with (sha256|git-sha1) .*, the hub states")
    assert "nothing was added" in said


@pytest.mark.parametrize("cut", [-1, 1])
@pytest.mark.parametrize("length", [True, False])
def test_more_or_fewer_bytes_than_stated(
    cut: int, length: bool, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.length = length
    hub.body = lambda path, data: data[:-1] if cut < 0 else data + b"!"
    refused(hub, registry, IntegrityError, "sends '[0-9]+' bytes of a file of|, the hub states")


@pytest.mark.slow
def test_a_file_that_never_ends(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put("a/b", tree)
    hub.length = False
    more = 64 * 1024 * 1024
    hub.body = lambda path, data: data + b"\0" * more
    refused(hub, registry, IntegrityError, "sends more than the [0-9,]+ bytes there can be")
    assert hub.sent == 0
    monkeypatch.setattr(pull_guard, "_bounded", lambda stream, watch: stream)
    refused(hub, registry, IntegrityError, "goes on after [0-9,]+ bytes, and the hub states fewer")
    cache = Path(_cache()) / "models--a--b"
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 10_000
    assert commit


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def test_a_size_that_lies(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [
        {**row, "size": 1, "lfs": {**row["lfs"], "size": 1}} if "lfs" in row else {**row, "size": 1}
        for row in rows
    ]
    refused(hub, registry, IntegrityError, "sends '[0-9]+' bytes of a file of 1")


def test_a_config_of_forty_gigabytes(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.entries = lambda rows: [{**rows[0], "size": 40 * 10**9}, *rows[1:]]
    refused(hub, registry, InvalidAdapter, "adapter_config.json has 40,000,000,000 bytes, at most")
    assert hub.asked("/resolve/") == []


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"ETag": '"../../../../escaped"'},
        {"ETag": 'W/"/tmp/escaped"'},
        {"X-Linked-Etag": '"a/b"'},
        {"X-Linked-Etag": '".."'},
        {"ETag": '""'},
        {"ETag": f'"{"x" * 300}"'},
    ],
)
def test_an_etag_that_names_a_file_elsewhere(
    header: dict[str, str], hub: Hub, registry: Registry, tree: dict[str, bytes], tmp_path: Path
) -> None:
    hub.put("a/b", tree)
    hub.head = lambda path: header
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    refused(hub, registry, IntegrityError, "sends the ETag .*, which names no file")
    after = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    assert not {path for path in after - before if path.is_file()}


@pytest.mark.parametrize("commit", ["../../x", "f" * 40])
def test_a_file_of_another_commit(
    commit: str, hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    hub.head = lambda path: {"X-Repo-Commit": commit}
    refused(hub, registry, IntegrityError, f"sends a file of commit '{commit}', not of")


# --- tokens -----------------------------------------------------------------------------------


def _said(hub: Hub) -> list[str]:
    return [r.headers.get("authorization", "") for r in hub.requests]


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub,
    registry: Registry,
    tree: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    commit = hub.put("a/b", tree)
    with Hub().serving() as other, caplog.at_level(logging.DEBUG):
        other.commits, other.branches = hub.commits, hub.branches
        hub.elsewhere = other.url
        (one,) = ah.pull("a/b", name="taken", registry=registry)
        assert one.origin.commit == commit
        assert set(_said(hub)) == {f"Bearer {TOKEN}"}
        assert other.asked("adapter_model.safetensors")
        assert set(_said(other)) == {""}
        assert not any(TOKEN in str(r.headers) + r.path for r in other.requests)
    out = capfd.readouterr()
    for text in (caplog.text, out.out, out.err, str(one.to_dict())):
        assert TOKEN not in text
        assert "verysecret" not in text or text is caplog.text
    assert not any(TOKEN in p.read_text("utf-8", "replace") for p in _files(registry.home))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_not_even_where_the_next_page_leads(
    hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    hub.put("a/b", tree)
    with Hub().serving() as other:
        other.commits, other.branches = hub.commits, hub.branches
        hub.next_page = lambda path, number: f"{other.url}{path}?page=7"
        ah.pull("a/b", name="taken", registry=registry)
        assert len(other.asked("/tree/")) == 1
        assert set(_said(other)) == {""}


def test_nor_to_a_route_for_xet(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    with Hub().serving() as other:
        route = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{other.url}/api/models/a/b/xet"}
        hub.head = lambda path: route
        (one,) = ah.pull("a/b", name="taken", registry=registry)
        assert one.downloaded == sum(len(data) for data in tree.values())
        assert other.requests == []


def test_an_address_with_a_password_is_not_recorded(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.put("a/b", tree)
    secret = hub.url.replace("//", "//me:verysecret@")
    monkeypatch.setattr(constants, "ENDPOINT", secret)
    ah.pull("a/b", name="taken", registry=registry)
    assert not any("verysecret" in p.read_text("utf-8", "replace") for p in _files(registry.home))


# --- the wire ---------------------------------------------------------------------------------


def test_a_hub_in_trouble_is_one_line(hub: Hub, registry: Registry, tree: dict[str, bytes]) -> None:
    hub.put("a/b", tree)
    hub.fault = lambda method, path: 503 if "safetensors" in path else None
    said = refused(hub, registry, RemoteError, "downloading adapter_model.* of a/b failed")
    assert "answered 503" in said
    assert "repeat the command" in said
    hub.fault = lambda method, path: None
    ah.pull("a/b", name="taken", registry=registry)


def test_a_full_disk_is_named(
    hub: Hub, registry: Registry, tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("a/b", tree)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(pull_fetching.os, "link", full)
        patch.setattr(pull_fetching.shutil, "copyfile", full)
        refused(hub, registry, OutputError, "disk full while writing")
    monkeypatch.setattr(pull_fetching.os, "link", full)  # another disk: a copy
    ah.pull("a/b", name="taken", registry=registry)


def test_what_a_killed_pull_left_is_swept(
    hub: Hub, registry: Registry, tree: dict[str, bytes]
) -> None:
    import os

    left, young = registry.home / "tmp" / "pull-old", registry.home / "tmp" / "pull-new"
    for place in (left, young):
        place.mkdir()
        (place / "x").write_bytes(b"x")
    os.utime(left, (0, 0))
    hub.put("a/b", tree)
    ah.pull("a/b", name="taken", registry=registry)
    assert young.is_dir()
    assert not left.exists()
    (young / "x").unlink()
    young.rmdir()


def test_the_hooks_do_nothing_for_others(
    hub: Hub, registry: Registry, tree: dict[str, bytes], tmp_path: Path
) -> None:
    from huggingface_hub import HfApi, get_session

    hub.put("a/b", tree)
    for name in ("taken", "taken-too"):
        ah.pull("a/b", name=name, registry=registry)
    hooks = get_session().event_hooks
    assert hooks["request"].count(pull_guard._on_request) == 1
    hub.forget()
    HfApi(endpoint=hub.url).model_info("a/b", revision="main")
    assert hub.requests[0].headers["accept-encoding"] != "identity"
