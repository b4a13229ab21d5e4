"""From shards to blobs: what is rebuilt, and every reason to refuse."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xetbuilding import BOOKEND, FileEntry, Made, names, send, shard_of, some, whole

from adapterhub.errors import AdapterHubError, IntegrityError, NotFound, NotSupported
from adapterhub.hub.xet import hashing, ingest, shard, xorbs
from adapterhub.hub.xet.ingest import Delivered, register
from adapterhub.hub.xet.stored import Damaged
from adapterhub.hub.xet.xorbs import Space, Xorbs
from adapterhub.store import Store


def blobs(store: Store) -> list[str]:
    return [f"sha256:{each.name}" for each in (store.home / "blobs").rglob("*") if each.is_file()]


def nothing(digest: str, size: int) -> None:
    raise AssertionError(f"{digest} was delivered")


def refused(store: Store, space: Space, data: bytes) -> AdapterHubError:
    """Registers, and sees that nothing is stored, delivered or left."""
    before = blobs(store)
    with pytest.raises(AdapterHubError) as caught:
        register(store, space, data, nothing)
    assert blobs(store) == before
    assert names(store.home / "tmp") == []
    assert caught.value.remedy
    return caught.value


@pytest.fixture
def one(space: Space) -> Made:
    each = some(1, 500, 700, 900, 1100)
    send(space, each)
    return each


@pytest.fixture
def two(space: Space) -> Made:
    each = some(2, 300, 200_000 // 2)
    send(space, each)
    return each


def test_files_are_rebuilt_and_delivered(store: Store, space: Space, one: Made, two: Made) -> None:
    files = (
        whole(one),
        FileEntry([(two, 1, 2), (one, 0, 4), (one, 2, 3), (two, 0, 2)]),
        FileEntry([(one, 1, 2)]),
    )
    got: list[tuple[str, int]] = []
    done = register(store, space, shard_of(*files, xorbs=(one, two)), lambda *a: got.append(a))
    assert [(each.digest, each.size) for each in done] == got
    assert got == [(each.digest, len(each.content)) for each in files]
    for each in files:
        with store.open_blob(each.digest) as file:
            assert file.read() == each.content
    assert done[0].hash == hashing.to_hex(hashing.file_hash(one.pairs))
    assert names(store.home / "tmp") == []


def test_a_range_is_read_in_batches(
    store: Store, space: Space, one: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BATCH_BYTES", 1200)  # 500+700 fit exactly, 900, 1100 do not
    (file,) = shard.parse(shard_of(whole(one))).files()
    ranges = ingest._ranges(file, ingest._Shelf(space))
    assert [(start, end) for _, start, end in ranges] == [(0, 2), (2, 3), (3, 4)]
    (done,) = register(store, space, shard_of(whole(one)), lambda *a: None)
    assert done.digest == whole(one).digest


def test_more_xorbs_than_are_known_at_a_time(store: Store, space: Space) -> None:
    many = [some(seed, 10, 20) for seed in range(ingest.KNOWN_XORBS + 5)]
    for each in many:
        send(space, each)
    file = whole(*many, *many[::-1])
    register(store, space, shard_of(file), lambda *a: None)
    with store.open_blob(file.digest) as opened:
        assert opened.read() == file.content


def test_delivery_happens_while_the_store_is_being_written(
    store: Store, space: Space, one: Made
) -> None:
    def deliver(digest: str, size: int) -> None:
        assert store.has_blob(digest)
        assert store.blob_size(digest) == size
        with pytest.raises(AdapterHubError, match=r"gc was asked for within writing\(\)"):
            store.gc()

    register(store, space, shard_of(whole(one)), deliver)
    register(store, space, shard_of(whole(one)), deliver)


def test_a_file_of_no_bytes(store: Store, space: Space) -> None:
    """hf_xet says zeros for its sha256; others may say the right one."""
    empty = f"sha256:{hashlib.sha256().hexdigest()}"
    for sha256 in (bytes(32), None):
        done = register(store, space, shard_of(FileEntry([], sha256=sha256)), lambda *a: None)
        assert done == (Delivered(empty, 0, "0" * 64),)
    assert store.blob_size(empty) == 0


def test_a_shard_of_no_files(store: Store, space: Space, one: Made) -> None:
    assert register(store, space, shard_of(xorbs=[one]), nothing) == ()


def test_verification_entries_may_be_absent(store: Store, space: Space, one: Made) -> None:
    file = FileEntry([(one, 0, 4)], flags=shard.WITH_SHA256)
    assert register(store, space, shard_of(file), lambda *a: None)[0].digest == file.digest


# --- what is refused --------------------------------------------------------------------------


def test_a_xorb_of_another_repository_is_refused(
    store: Store, xorbs: Xorbs, space: Space, one: Made
) -> None:
    data = shard_of(whole(one))
    error = refused(store, xorbs.space("8"), data)
    assert isinstance(error, IntegrityError)
    assert f"refers to xorb {one.hash}, which was not uploaded to this repository" in error.message
    assert register(store, space, data, lambda *a: None)
    assert (
        refused(store, xorbs.space("8"), data).message
        == error.message.replace(error.message.split()[-1], xorbs.space("8").epoch)
        or "was not uploaded" in error.message
    )


def test_a_xorb_that_is_not_there_ends_the_epoch(store: Store, xorbs: Xorbs, space: Space) -> None:
    each = some(3, 10)
    error = refused(store, space, shard_of(whole(each)))
    assert "everything will be sent afresh" in error.remedy
    fresh = xorbs.space("7")
    assert fresh.epoch != space.epoch
    send(fresh, each)
    assert register(store, fresh, shard_of(whole(each)), lambda *a: None)


def test_no_other_fault_ends_the_epoch(store: Store, xorbs: Xorbs, space: Space, one: Made) -> None:
    refused(store, space, shard_of(FileEntry([(one, 0, 4)], sha256=b"x" * 32)))
    assert xorbs.space("7").epoch == space.epoch


def test_one_bad_file_spoils_the_shard(store: Store, space: Space, one: Made) -> None:
    refused(store, space, shard_of(whole(one), whole(some(9, 10))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hash": bytes(32)}, "the chunks of file 0000.* have the hash"),
        ({"sizes": [3201]}, "term 0 of file .* claims 3201 bytes; its chunks have 3200"),
        ({"ranges": [bytes(32)]}, "term 0 of file .* has a verification entry that does not"),
        ({"sha256": bytes(32)}, "the bytes of file .* have sha256:.*; the shard says sha256:0000"),
        ({"flags": shard.WITH_VERIFICATION}, "the shard has no sha256 entry for file"),
        ({"flags": 0}, "the shard has no sha256 entry for file"),
        ({"flags": 1}, "has unknown flags 0x00000001"),
    ],
)
def test_a_file_that_lies_is_refused(
    store: Store, space: Space, one: Made, change: dict[str, object], said: str
) -> None:
    file = FileEntry([(one, 0, 4)], **change)  # type: ignore[arg-type]
    with pytest.raises(AdapterHubError, match=said):
        raise refused(store, space, shard_of(file))


def test_chunks_beyond_the_end_are_refused(store: Store, space: Space, one: Made) -> None:
    data = bytearray(shard_of(whole(one)))
    at = shard.RECORD * 2 + 44  # `end` of the first term
    assert struct.unpack_from("<I", data, at) == (4,)
    struct.pack_into("<I", data, at, 5)
    message = refused(store, space, bytes(data)).message
    assert f"takes chunks 0 to 5 of xorb {one.hash}, which has 4" in message


def test_files_above_the_limit_are_refused(store: Store, space: Space, one: Made) -> None:
    data = shard_of(whole(one))
    assert register(store, space, data, lambda *a: None, max_file_bytes=3200)
    with pytest.raises(IntegrityError, match="has 3200 bytes; this hub takes at most 3199"):
        register(store, space, data, nothing, max_file_bytes=3199)


def test_more_chunks_than_clients_make_are_refused(store: Store, space: Space) -> None:
    tiny = Made(tuple(bytes([i % 256]) for i in range(5000)), (0,) * 5000)
    send(space, tiny)
    assert register(store, space, shard_of(whole(tiny)), lambda *a: None)
    assert (
        "has 10000 chunks for 10000 bytes"
        in refused(store, space, shard_of(whole(tiny, tiny))).message
    )


def test_an_epoch_that_goes_meanwhile_is_named(
    store: Store, xorbs: Xorbs, space: Space, one: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild = ingest._rebuild

    def late(*args: object) -> None:
        xorbs.forget("7")
        rebuild(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "_rebuild", late)
    assert isinstance(refused(store, space, shard_of(whole(one))), NotFound)


@pytest.mark.parametrize("at", [0, 600, 3199])
def test_damage_on_disk_is_found_and_ends_the_epoch(
    store: Store, xorbs: Xorbs, space: Space, one: Made, at: int
) -> None:
    path = space.folder / one.hash
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)
    error = refused(store, space, shard_of(whole(one)))
    assert isinstance(error, Damaged)
    assert "does not match its hash" in error.message
    assert xorbs.space("7").epoch != space.epoch


# --- the same again ---------------------------------------------------------------------------


def test_the_same_shard_again_reads_no_xorb(
    store: Store, space: Space, one: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_of(whole(one))
    first = register(store, space, data, lambda *a: None)
    monkeypatch.setattr(ingest, "_rebuild", None)
    got: list[tuple[str, int]] = []
    assert register(store, space, data, lambda *a: got.append(a)) == first
    assert got == [(whole(one).digest, 3200)]


def test_what_the_store_has_lost_is_rebuilt(store: Store, space: Space, one: Made) -> None:
    data = shard_of(whole(one))
    register(store, space, data, lambda *a: None)
    store.blob_path(whole(one).digest).unlink()
    register(store, space, data, lambda *a: None)
    path = store.blob_path(whole(one).digest)
    path.chmod(0o600)
    path.write_bytes(bytes(3200))
    register(store, space, data, lambda *a: None)
    assert path.read_bytes() == whole(one).content


def test_another_sha256_for_a_known_file_is_refused(
    store: Store, space: Space, one: Made, two: Made
) -> None:
    register(store, space, shard_of(whole(one), whole(two)), lambda *a: None)
    other = hashlib.sha256(whole(two).content).digest()
    error = refused(store, space, shard_of(FileEntry([(one, 0, 4)], sha256=other)))
    assert "the shard says sha256:" in error.message


@pytest.mark.parametrize("text", ["", "x", "sha256:00 3200", "../../etc 3200", "é", "a b c"])
def test_a_spoilt_note_of_what_was_done_is_no_obstacle(
    store: Store, space: Space, one: Made, text: str
) -> None:
    data = shard_of(whole(one))
    register(store, space, data, lambda *a: None)
    (note,) = space.folder.glob("file-*")
    note.write_text(text, "utf-8")
    assert register(store, space, data, lambda *a: None)[0].digest == whole(one).digest


def test_who_asks_twice_at_once_waits(
    store: Store, space: Space, one: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilds: list[str] = []
    entered, go = threading.Event(), threading.Event()
    rebuild: Callable[..., None] = ingest._rebuild

    def slow(*args: object) -> None:
        rebuilds.append("one")
        entered.set()
        go.wait(10)
        rebuild(*args)

    monkeypatch.setattr(ingest, "_rebuild", slow)
    got: list[tuple[str, int]] = []
    data = shard_of(whole(one))
    threads = [
        threading.Thread(target=register, args=(store, space, data, lambda *a: got.append(a)))
        for _ in range(3)
    ]
    for each in threads:
        each.start()
    entered.wait(10)
    go.set()
    for each in threads:
        each.join(10)
    assert len(rebuilds) == 1
    assert got == [(whole(one).digest, 3200)] * 3


def test_a_delivery_that_fails_is_tried_again(store: Store, space: Space, one: Made) -> None:
    def full(digest: str, size: int) -> None:
        raise NotSupported("no more room")

    data = shard_of(whole(one))
    with pytest.raises(NotSupported, match="no more room"):
        register(store, space, data, full)
    got: list[tuple[str, int]] = []
    register(store, space, data, lambda *a: got.append(a))
    assert got == [(whole(one).digest, 3200)]


# --- the shard itself -------------------------------------------------------------------------


def test_a_shard_cut_anywhere_is_refused(store: Store, space: Space, one: Made, two: Made) -> None:
    data = shard_of(whole(one, two), whole(two), xorbs=(one, two))
    shard.parse(data)
    for length in range(len(data)):
        with pytest.raises(IntegrityError, match=r"the shard|no shard"):
            shard.parse(data[:length])
    with pytest.raises(IntegrityError, match="1 bytes follow the end of the shard"):
        shard.parse(data + b"\0")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the shard has 0 bytes; its header alone has 48"),
        (bytes(100), "this is no shard"),
        (shard.MAGIC + struct.pack("<QQ", 3, 0), "the shard has version 3; known is 2"),
        (shard.MAGIC + struct.pack("<QQ", 2, 1), "claims a footer of 1 bytes; 0 or 200"),
        (shard.MAGIC + struct.pack("<QQ", 2, 200), "claims a footer of 200 bytes"),
        (bytes(shard.MAX_SHARD_BYTES + 1), "67108864 are allowed"),
        (
            shard.MAGIC + struct.pack("<QQ", 2, 0) + struct.pack("<32sIIQ", b"", 0, 2**32 - 1, 0),
            "the shard is cut off: 4294967295 terms of file",
        ),
        (shard.MAGIC + struct.pack("<QQ", 2, 200) + BOOKEND * 2 + bytes(200), "footer has version"),
    ],
)
def test_a_shard_that_lies_is_refused(data: bytes, said: str) -> None:
    with pytest.raises((IntegrityError, NotSupported), match=said):
        shard.parse(data)


def test_a_footer_is_passed_over(store: Store, space: Space, one: Made) -> None:
    data = shard_of(whole(one), xorbs=[one])
    lookup_tables = bytes(77)
    data = shard.MAGIC + struct.pack("<QQ", 2, 200) + data[48:] + lookup_tables
    data += struct.pack("<Q", 1) + bytes(192)
    assert register(store, space, data, lambda *a: None)[0].digest == whole(one).digest


def test_empty_terms_and_flags_are_refused(one: Made) -> None:
    for at, value, said in (
        (40, 4, "takes chunks 4 to 4"),
        (40, 2**31, "takes chunks 2147483648 to 4"),
        (36, 0, "0 bytes; at least"),
        (32, 1, "term 0 of file .* has unknown flags"),
    ):
        data = bytearray(shard_of(whole(one)))
        struct.pack_into("<I", data, shard.RECORD * 2 + at, value)
        with pytest.raises((IntegrityError, NotSupported), match=said):
            shard.parse(bytes(data))


def test_verification_for_some_files_only_is_refused(one: Made) -> None:
    files = (whole(one), FileEntry([(one, 0, 1)], flags=shard.WITH_SHA256))
    with pytest.raises(IntegrityError, match="1 of 2 files have verification entries"):
        shard.parse(shard_of(*files))


def test_xorbs_whose_chunks_do_not_follow_each_other_are_refused(one: Made) -> None:
    data = bytearray(shard_of(xorbs=[one]))
    struct.pack_into("<I", data, shard.RECORD * 4 + 32, 499)
    with pytest.raises(IntegrityError, match=f"the shard says that xorb {one.hash} has 3200 bytes"):
        shard.parse(bytes(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_harmless(store: Store, xorbs: Xorbs, at: int, value: int) -> None:
    """Either it is refused with a name, or exactly the right files come out."""
    space = xorbs.space("9")
    one, two = some(1, 500, 700, 900, 1100), some(2, 300, 1000)
    send(space, one)
    send(space, two)
    files = (FileEntry([(one, 1, 3), (two, 0, 2)]), whole(two))
    data = bytearray(shard_of(*files, xorbs=(one, two)))
    data[at % len(data)] = value
    try:
        done = register(store, space, bytes(data), lambda *a: None)
    except (IntegrityError, NotSupported):
        return
    assert {each.digest for each in done} <= {each.digest for each in files}


def test_the_folder_holds_xorbs_and_notes_only(
    store: Store, space: Space, one: Made, tmp_path: Path
) -> None:
    register(store, space, shard_of(whole(one)), lambda *a: None)
    note = f"file-{hashing.to_hex(hashing.file_hash(one.pairs))}"
    assert names(space.folder) == sorted([one.hash, note])
    assert xorbs.EPOCH_SECONDS == 7 * 86400
