from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from adapterhub.hub.server import commitbody, ndjson
from adapterhub.hub.server.commitbody import CommitBody
from adapterhub.hub.server.ndjson import PLACEHOLDER, Base64, Lines
from adapterhub.hub.state.errors import InvalidRequest, TooLarge
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.operations import Add, Delete, DeleteFolder
from adapterhub.store import Store


class Seen:
    """Lines, each with what its long string was."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, bytes]] = []
        self.long = b""
        self.reader = Lines(self.line, self.take)

    def take(self, piece: bytes) -> None:
        self.long += piece

    def line(self, text: bytes) -> None:
        self.lines.append((json.loads(text), self.long))
        self.long = b""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "LONG", 100)
    monkeypatch.setattr(ndjson, "MOST_HELD", 1000)


def read(data: bytes, cut: Callable[[], int]) -> list[tuple[Any, bytes]]:
    seen = Seen()
    at = 0
    while at < len(data):
        size = cut()
        seen.reader.feed(data[at : at + size])
        at += size
    seen.reader.finish()
    return seen.lines


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("seed", range(30))
def test_lines_however_they_arrive(seed: int) -> None:
    random_ = random.Random(seed)
    documents: list[dict[str, Any]] = []
    expected: list[tuple[Any, bytes]] = []
    for number in range(6):
        text = "".join(random_.choices('a"\\é\n{}:, ', k=random_.randrange(12)))
        long = base64.b64encode(random_.randbytes(random_.randrange(600))) if number % 2 else b""
        documents.append({"key": text, "value": {"content": long.decode(), "path": text}})
        is_long = len(long) > 100
        shown = PLACEHOLDER if is_long else long.decode()
        value = {"content": shown, "path": text}
        expected.append(({"key": text, "value": value}, long if is_long else b""))
    ascii_ = bool(seed % 2)
    data = b"\n".join(json.dumps(d, ensure_ascii=ascii_).encode() for d in documents)
    assert read(data, lambda: random_.randrange(1, 90)) == expected
    assert read(data, lambda: 1) == expected
    assert read(data + b"\n\n", lambda: 10_000) == expected


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("at", range(96, 106))
def test_strings_about_as_long_as_may_be_held(at: int) -> None:
    for size in (1, 7, 1000):
        data = json.dumps(["x" * at]).encode()
        ((line, long),) = read(data, lambda size=size: size)
        assert (line, long) == ((["x" * at], b"") if at <= 100 else ([PLACEHOLDER], b"x" * at))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (b'["' + b"a" * 200 + b'","' + b"a" * 200 + b'"]', InvalidRequest, "two strings"),
        (b'["' + b"a" * 200 + b'\\n"]', InvalidRequest, "not base64"),
        (b'["' + b"a" * 200 + b'\n"]', InvalidRequest, "not base64"),
        (b'["' + b"a" * 200, InvalidRequest, "cut off"),
        (b'["a', InvalidRequest, "cut off"),
        (b"[" + b"1," * 600 + b"1]", TooLarge, "more than 1000 bytes"),
    ],
)
def test_lines_that_are_refused(text: bytes, error: type[Exception], said: str) -> None:
    for size in (1, 50, 5000):
        with pytest.raises(error, match=said):
            read(text, lambda size=size: size)


def test_empty_lines_are_not_read_for_ever() -> None:
    assert read(b"\n \r\n" * 499, lambda: 64) == []
    with pytest.raises(InvalidRequest, match="more than 1000 empty lines"):
        read(b"\n" * 100_000, lambda: 64 * 1024)


def test_memory_is_bounded_whatever_comes() -> None:
    seen = Seen()
    seen.reader.feed(b'{"content": "')
    for _ in range(100):
        seen.reader.feed(b"A" * 100_000)
        seen.long = b""
        assert len(seen.reader._held) < ndjson.LONG + 200_000


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100, 1001])
def test_base64_in_pieces(size: int) -> None:
    data = os.urandom(size)
    text = base64.b64encode(data)
    for step in (1, 2, 3, 5, 64, 5000):
        out = bytearray()
        decoder = Base64(out.extend)
        for at in range(0, len(text), step):
            decoder.feed(text[at : at + step])
        decoder.finish()
        assert bytes(out) == data


@pytest.mark.parametrize("text", [b"QQ", b"QQ==QQ==", b"QQ=Q", b"Q Q=", b"QQ-_", b"====", b"Q"])
def test_what_is_not_base64(text: bytes) -> None:
    for step in (1, 4, 100):
        decoder = Base64(lambda data: None)
        with pytest.raises(InvalidRequest, match="not base64"):
            for at in range(0, len(text), step):
                decoder.feed(text[at : at + step])
            decoder.finish()
            raise AssertionError(text)


# --- the body of a commit


@pytest.fixture
def store(tmp_path: Any) -> Any:
    with Store(tmp_path / "home") as store:
        yield store


def line(key: str, **value: Any) -> bytes:
    return json.dumps({"key": key, "value": value}).encode() + b"\n"


def file(path: str, data: bytes) -> bytes:
    return line("file", path=path, content=base64.b64encode(data).decode(), encoding="base64")


HEADER = line("header", summary="a title", description="why", parentCommit="a" * 40)


def test_a_body_becomes_a_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitbody, "_WAITING_BYTES", 1000)
    small = [os.urandom(600) for _ in range(5)]
    large = os.urandom(2_000_000)
    body = CommitBody(store, Limits())
    data = HEADER + b"".join(file(f"f{n}", each) for n, each in enumerate(small))
    data += file("large", large) + line("deletedFile", path="x") + line("deletedFolder", path="y/")
    data += line("lfsFile", path="m", algo="sha256", oid="b" * 64, size=5)
    data += line("lfsFile", path="copy", oid="c" * 64)
    for at in range(0, len(data), 70_000):
        body.feed(data[at : at + 70_000])
    request = body.finish()
    body.close()
    assert (request.title, request.message, request.parent) == ("a title", "why", "a" * 40)
    *files, delete, folder, lfs, copy = request.operations
    assert (delete, folder) == (Delete("x"), DeleteFolder("y/"))
    assert lfs == Add("m", "sha256:" + "b" * 64, True, 5)
    assert copy == Add("copy", "sha256:" + "c" * 64, True, None)
    assert [each.path for each in files] == ["f0", "f1", "f2", "f3", "f4", "large"]
    for each, data in zip(files, [*small, large], strict=True):
        assert isinstance(each, Add)
        assert store.blob_path(each.digest).read_bytes() == data
    assert {each.digest for each in files} == set(body.digests)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no header"),
        (file("a", b"x"), "no header"),
        (HEADER + HEADER, "two header"),
        (HEADER + b"nonsense\n", "not JSON"),
        (HEADER + b"[]\n", "is not {"),
        (HEADER + b'{"key": "file"}\n', "is not {"),
        (HEADER + b'{"key": "file", "key": "file", "value": {}}\n', "occurs twice"),
        (HEADER + line("movedFile", path="a"), "unknown kind"),
        (HEADER + line("file", path="a", content="QQ=="), "says so"),
        (HEADER + line("file", path="a", content=5, encoding="base64"), "says so"),
        (HEADER + line("file", path="a", content="é", encoding="base64"), "not base64"),
        (HEADER + line("file", path="a", content=PLACEHOLDER, encoding="base64"), "not base64"),
        (HEADER + line("file", path=5, content="QQ==", encoding="base64"), "no path"),
        (HEADER + line("file", content="QQ==", encoding="base64"), "no path"),
        (HEADER + line("lfsFile", path="a"), "sha256"),
        (HEADER + line("lfsFile", path="a", algo="md5", oid="a"), "sha256"),
        (HEADER + line("lfsFile", path="a", oid="a" * 64, size="5"), "number of bytes"),
        (HEADER + line("deletedFile"), "no path"),
        (line("header", summary=5), "are texts"),
        (line("header", summary="a", parentCommit=["a"]), "are texts"),
        (HEADER + line("deletedFile", path="A" * 600_000), "longer text"),
        (
            HEADER + line("file", path="A" * 600_000, content="QQ==", encoding="base64"),
            "longer text",
        ),
        (line("header", summary="A" * 600_000), "longer text"),
    ],
)
def test_bodies_that_are_refused(store: Store, data: bytes, said: str) -> None:
    body = CommitBody(store, Limits())
    with pytest.raises(InvalidRequest, match=said):
        body.feed(data)
        body.finish()
    body.close()
    assert list((store.home / "tmp").iterdir()) == []


def test_limits_hold_while_it_arrives(store: Store) -> None:
    body = CommitBody(store, Limits(regular_size=1_000_000, operations=3))
    text = base64.b64encode(bytes(1_100_000)).decode()
    start = json.dumps({"key": "file", "value": {"content": text}}).encode()
    with pytest.raises(TooLarge, match="bytes of a file within a commit"):
        for at in range(0, len(start), 100_000):
            body.feed(start[at : at + 100_000])
    body.close()
    assert list((store.home / "tmp").iterdir()) == []
    body = CommitBody(store, Limits(operations=3))
    with pytest.raises(TooLarge, match="operations in one commit"):
        body.feed(HEADER + line("deletedFile", path="a") * 4)


def test_a_small_file_over_the_limit(store: Store) -> None:
    body = CommitBody(store, Limits(regular_size=10))
    with pytest.raises(TooLarge, match="bytes of a file"):
        body.feed(HEADER + file("a", bytes(11)))
