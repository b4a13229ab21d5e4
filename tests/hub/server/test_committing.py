from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

import pytest
import wire
from transferkit import Place
from wire import Answer, Wire

from adapterhub.hub.server import committing
from adapterhub.hub.server.committing import MOST_FILES


def preupload(place: Place, *files: dict[str, Any], rev: str = "main", **more: Any) -> Answer:
    path = f"/api/models/{place.repo}/preupload/{rev}"
    return place.wire.send("POST", path, {"files": list(files), **more})


def asked(path: str, data: bytes, size: int | None = None) -> dict[str, Any]:
    sample = base64.b64encode(data[:512]).decode()
    return {"path": path, "sample": sample, "size": len(data) if size is None else size}


def modes(place: Place, *files: dict[str, Any], **more: Any) -> list[str]:
    answer = preupload(place, *files, **more)
    assert answer.status == 200, answer
    return [each["uploadMode"] for each in answer.json["files"]]


# --- preupload


def test_how_each_file_is_to_be_sent(place: Place) -> None:
    cut = ("é" * 300).encode()[:511]  # within a character
    files = {
        "README.md": (b"# text", None, "regular"),
        "notes.txt": (cut, None, "regular"),
        "long.txt": (b"text", 10 * 1024 * 1024 + 1, "lfs"),
        "model.safetensors": (b"text", None, "lfs"),
        "deep/down/model.bin": (b"\0", None, "lfs"),
        "unknown.dat": (b"a\0b", None, "lfs"),
        "latin.dat": ("ü".encode("latin-1") + b"b" * 50, None, "lfs"),
        "empty.bin": (b"", None, "regular"),
    }
    found = modes(place, *(asked(path, data, size) for path, (data, size, _) in files.items()))
    assert dict(zip(files, found, strict=True)) == {path: row[2] for path, row in files.items()}


def test_the_repositorys_own_attributes_decide(place: Place) -> None:
    text = b"*.txt filter=lfs diff=lfs\nkept/*.txt -filter\n*.dat -filter\n"
    before = place.wire.file(place.repo, ".gitattributes").body
    place.put({".gitattributes": text})
    files = [asked(path, b"ab\0") for path in ("a.txt", "kept/a.txt", "x.dat", "y.dat", "z.bin")]
    files[3]["size"] = 20_000_000
    assert modes(place, *files) == ["lfs", "regular", "regular", "lfs", "lfs"]
    place.put({".gitattributes": before})


def test_what_is_ignored(place: Place) -> None:
    files = [asked(path, b"x") for path in ("a.log", "logs/b.txt", "c.txt", "keep.log")]
    said = preupload(place, *files, gitIgnore="*.log\nlogs/\n!keep.log\n").json["files"]
    assert [each["shouldIgnore"] for each in said] == [True, True, False, False]
    assert not any(each["shouldIgnore"] for each in preupload(place, *files).json["files"])
    place.put({".gitignore": b"c.*\n"})
    said = preupload(place, *files).json["files"]
    assert [each["shouldIgnore"] for each in said] == [False, False, True, False]
    place.wire.commit(
        place.repo, wire.header(), {"key": "deletedFile", "value": {"path": ".gitignore"}}
    )


def test_what_is_there_already_is_named(place: Place) -> None:
    data, text = os.urandom(5000), b"some text"
    place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    lines = (wire.lfs("there/m.bin", data), wire.regular("there/a.txt", text))
    place.wire.commit(place.repo, wire.header(), *lines)
    files = [asked(path, b"x") for path in ("there/m.bin", "there/a.txt", "there", "nowhere")]
    oids = [each.get("oid") for each in preupload(place, *files).json["files"]]
    git_id = hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    assert oids == [wire.oid(data), git_id, None, None]


@pytest.mark.parametrize(
    "document",
    [
        {"files": None},
        {"files": {}},
        {"files": ["a"]},
        {"files": [{"path": "a"}]},
        {"files": [{"path": "a", "size": -1}]},
        {"files": [{"path": "a", "size": True}]},
        {"files": [{"path": 5, "size": 1}]},
        {"files": [{"path": "../a", "size": 1}]},
        {"files": [{"path": "a", "size": 1, "sample": "é"}]},
        {"files": [{"path": "a", "size": 1, "sample": "A"}]},
        {"files": [{"path": "a", "size": 1, "sample": 5}]},
        {"files": [{"path": "a", "size": 1}] * (MOST_FILES + 1)},
        {"files": [], "gitIgnore": ["a"]},
    ],
)
def test_questions_that_mean_nothing(place: Place, document: dict[str, Any]) -> None:
    answer = place.wire.send("POST", f"/api/models/{place.repo}/preupload/main", document)
    assert answer.status == 400
    assert answer.json["error"]


def test_patterns_that_take_too_long(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "PATTERN_SECONDS", -1.0)
    answer = preupload(place, asked("a", b"x"))
    assert (answer.status, "patterns" in answer.json["error"]) == (400, True)


def test_a_revision_that_is_not_there(place: Place) -> None:
    assert preupload(place, asked("a", b"x"), rev="nowhere").code == "RevisionNotFound"


# --- commit


def test_a_commit_with_everything(place: Place) -> None:
    data, large = os.urandom(5000), os.urandom(3_000_000)
    place.put({"old.txt": b"old", "folder/a": b"a", "folder/b": b"b"})
    place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    before = place.wire.head(place.repo)
    answer = place.wire.commit(
        place.repo,
        wire.header("All of it", parentCommit=before),
        wire.regular("new.txt", b"new"),
        wire.regular("large.txt", large),
        wire.lfs("m.safetensors", data),
        {"key": "deletedFile", "value": {"path": "old.txt"}},
        {"key": "deletedFolder", "value": {"path": "folder/"}},
    )
    assert answer.status == 200
    said = answer.json
    commit = said["commitOid"]
    assert said["commitUrl"] == f"{place.wire.url}/{place.repo}/commit/{commit}"
    assert "pullRequestUrl" not in said
    assert place.wire.head(place.repo) == commit != before
    for path, body in (("new.txt", b"new"), ("large.txt", large), ("m.safetensors", data)):
        assert place.wire.file(place.repo, path).body == body
    for path in ("old.txt", "folder/a", "folder/b"):
        assert place.wire.file(place.repo, path).code == "EntryNotFound"
        assert place.wire.file(place.repo, path, before).status == 200


def test_an_unknown_content_of_lfs(place: Place) -> None:
    before = place.wire.head(place.repo)
    answer = place.wire.commit(place.repo, wire.header(), wire.lfs("m", os.urandom(10)))
    assert (answer.status, "was not uploaded" in answer.json["error"]) == (400, True)
    assert place.wire.head(place.repo) == before


def test_a_size_that_is_not_the_contents(place: Place) -> None:
    data = os.urandom(100)
    place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    line = wire.lfs("m", data)
    line["value"]["size"] = 99
    assert place.wire.commit(place.repo, wire.header(), line).status == 400


def test_a_copy_within_the_repository_has_no_size(place: Place) -> None:
    data = os.urandom(100)
    place.public.ask("PUT", place.wire.upload_href(place.repo, data), data)
    place.wire.commit(place.repo, wire.header(), wire.lfs("one", data))
    line = wire.lfs("two", data)
    del line["value"]["size"]
    assert place.wire.commit(place.repo, wire.header(), line).status == 200
    assert place.wire.file(place.repo, "two").body == data


def test_copies_between_repositories(place: Place) -> None:
    """Only of what is committed there, and what the caller may read."""
    hub = place.service.hub
    data, uncommitted = os.urandom(100), os.urandom(100)
    for each in (data, uncommitted):
        place.public.ask("PUT", place.wire.upload_href(place.repo, each), each)
    place.wire.commit(place.repo, wire.header(), wire.lfs("shared", data))
    place.wire.create("other/target")
    document = {
        "target": {"type": "model", "name": "other/target"},
        "files": [
            {"xetHash": "x", "sha256": wire.oid(data), "filename": "shared"},
            {"xetHash": "x", "sha256": wire.oid(uncommitted), "filename": "u"},
        ],
    }
    path = f"/api/models/{place.repo}/lfs-files/duplicate"
    assert place.wire.commit("other/target", wire.header(), wire.lfs("c", data)).status == 400
    (failed,) = place.wire.send("POST", path, document).json["failed"]
    assert failed["sha256"] == wire.oid(uncommitted)
    assert place.wire.commit("other/target", wire.header(), wire.lfs("c", data)).status == 200
    assert place.wire.file("other/target", "c").body == data
    _, theirs = hub.tokens.create("theirs", "write", ["other"])
    _, ours = hub.tokens.create("ours", "write", ["ns"])
    assert Wire(place.wire.url, theirs).send("POST", path, document).status == 404
    assert Wire(place.wire.url, ours).send("POST", path, document).status in (403, 404)
    assert place.public.send("POST", path, document).status == 401
    assert place.wire.send("POST", path, {"target": {}, "files": []}).status == 400


def test_a_pull_request(place: Place) -> None:
    before = place.wire.head(place.repo)
    path = f"/api/models/{place.repo}/commit/main?create_pr=1"
    body = wire.ndjson(wire.header("Propose"), wire.regular("proposed.txt", b"p"))
    first, again = (place.wire.ask("POST", path, body) for _ in range(2))
    assert first.status == 200
    number = int(first.json["pullRequestUrl"].rsplit("/discussions/")[1])
    assert again.json == first.json
    assert place.wire.head(place.repo) == before
    assert place.wire.file(place.repo, "proposed.txt", f"refs%2Fpr%2F{number}").body == b"p"


def test_a_stale_parent(place: Place) -> None:
    before = place.wire.head(place.repo)
    place.put({"moved.txt": b"on"})
    parent = wire.header(parentCommit=before)
    answer = place.wire.commit(place.repo, parent, wire.regular("x", b"x"))
    assert answer.status == 412
    assert place.wire.head(place.repo) in answer.json["error"]


def test_a_commit_that_is_cut_or_too_large_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place.wire.head(place.repo)
    body = wire.ndjson(wire.header(), wire.regular("large.txt", os.urandom(3_000_000)))
    path = f"/api/models/{place.repo}/commit/main"
    for keep in (0, 50, 1_000_000, len(body) - 2):
        place.wire.cut("POST", path, body, keep)
    assert place.left_behind() == []
    monkeypatch.setattr(committing, "MOST_BYTES", 2_000_000)
    assert place.wire.ask("POST", path, body).status == 413
    assert place.left_behind() == []
    assert place.wire.head(place.repo) == before


def test_many_small_files_in_one_commit(place: Place) -> None:
    files = {f"many/{n % 10}/{n}.txt": f"file {n}".encode() for n in range(300)}
    place.put(files)
    for path in ("many/0/0.txt", "many/9/299.txt"):
        assert place.wire.file(place.repo, path).body == files[path]
