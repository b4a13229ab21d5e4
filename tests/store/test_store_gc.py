from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import storekit

from adapterhub import digest as digests
from adapterhub.errors import IntegrityError, NotFound, OutputError, StoreError
from adapterhub.store import Store, blobs, files


def age(store: Store, seconds: float) -> None:
    for tree in ("blobs", "manifests", "tmp"):
        for path in (store.home / tree).rglob("*"):
            if path.is_file():
                os.utime(path, (time.time() - seconds,) * 2)


def test_every_version_of_every_name_stays(store: Store) -> None:
    for number in range(3):
        storekit.add(store, "a", number)
    orphan = storekit.put(store, 9)
    blob = store.manifest(orphan)["files"][0]["sha256"]
    age(store, 1000)
    report = store.gc(grace_seconds=500)
    assert (report.manifests, report.blobs) == (1, 1)
    assert (report.manifests_kept, report.blobs_kept, report.dry_run) == (3, 3, False)
    assert not store.has_blob(blob)
    storekit.check_home(store)


def test_what_is_young_stays_and_storing_again_makes_it_young(store: Store) -> None:
    storekit.put(store, 1)
    assert store.gc(grace_seconds=500).manifests == 0
    age(store, 1000)
    storekit.put(store, 1)
    assert store.gc(grace_seconds=500).blobs == 0
    age(store, 1000)
    dry = store.gc(grace_seconds=500, dry_run=True)
    assert (dry.manifests, dry.blobs, dry.dry_run) == (1, 1, True)
    wet = store.gc(grace_seconds=500)
    assert (wet.bytes_freed, wet.manifests) == (dry.bytes_freed, 1)
    assert store.gc(grace_seconds=500).bytes_freed == 0


def test_what_was_removed_is_kept_for_some_days(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    two = storekit.add(store, "a", 2)
    store.remove_version("a", two)
    storekit.add(store, "b", 3)
    store.remove_name("b")
    assert store.gc(grace_seconds=0).manifests == 0
    assert store.restorable("a") == (two,)
    assert store.gc(grace_seconds=0, removed_days=0).manifests == 2
    assert store.restorable("a") == ()
    with pytest.raises(NotFound, match="was removed, and its contents are gone"):
        store.rollback("a", "latest", to=two)
    with pytest.raises(NotFound, match="was removed, and its contents are gone"):
        store.rollback("b", "latest")
    assert store.resolve("a") == ("a", one)


def test_nothing_is_collected_where_a_log_or_manifest_is_unreadable(store: Store) -> None:
    one = storekit.add(store, "a", 1)
    storekit.put(store, 2)
    log = store.home / "refs" / "a.jsonl"
    sound = log.read_bytes()
    log.write_bytes(b"garbage\n" + sound)
    with pytest.raises(IntegrityError, match=r"nothing was collected, .*line 1 of"):
        store.gc(grace_seconds=0)
    log.write_bytes(sound)
    path = store.home / "manifests" / "sha256" / one[7:9] / one[7:]
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=f"nothing was collected, .*manifest {one} is damaged"):
        store.gc(grace_seconds=0)
    assert len(list((store.home / "blobs").rglob("??/*"))) == 2


def test_gc_waits_for_a_writer_to_make_its_ref(store: Store) -> None:
    reports = []
    collector = threading.Thread(target=lambda: reports.append(store.gc(grace_seconds=0)))
    with store.writing():
        digest = storekit.put(store, 1)
        collector.start()
        collector.join(0.3)
        assert collector.is_alive()
        with pytest.raises(StoreError, match=r"gc was asked for within writing\(\)"):
            store.gc()
        store.add_version("a", digest)
    collector.join(20)
    assert reports[0].manifests == 0
    assert store.is_whole(digest)


# --- contents -------------------------------------------------------------------------------------


def test_files_are_stored_once_under_the_digest_of_their_bytes(
    store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(3_000_000))
    digest, size = store.put_blob_file(source)
    assert (digest, size) == (storekit.sha(source), 3_000_000)
    assert store.put_blob_bytes(source.read_bytes()) == (digest, size)
    assert store.blob_path(digest).stat().st_mode & 0o777 == 0o444
    with store.open_blob(digest) as file:
        assert file.read() == source.read_bytes()
    store.verify_blob(digest)
    assert store.blob_size(digest) == size
    with pytest.raises(NotFound, match=r"no such file: .*/absent"):
        store.put_blob_file(tmp_path / "absent")
    with pytest.raises(OutputError, match=r"cannot read .*: Is a directory"):
        store.put_blob_file(tmp_path)


def test_damage_is_found_and_healed_by_adding_again(store: Store) -> None:
    digest, _ = store.put_blob_bytes(b"weights")
    path = store.blob_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"weighty")
    with pytest.raises(IntegrityError, match=f"blob {digest} is damaged: its bytes hash to sha256"):
        store.verify_blob(digest)
    store.put_blob_bytes(b"weights")
    store.verify_blob(digest)
    path.chmod(0o644)
    path.write_bytes(b"cut")
    store.put_blob_bytes(b"weights")
    store.verify_blob(digest)
    path.unlink()
    with pytest.raises(IntegrityError, match=f"blob {digest} is missing"):
        store.open_blob(digest)


def test_a_manifest_is_canonical_and_hashed_at_every_read(store: Store) -> None:
    one = store.put_manifest({"b": 1, "a": [1.0, "x"]})
    assert one == store.put_manifest({"a": [1, "x"], "b": 1})
    assert store.manifest(one) == {"a": [1, "x"], "b": 1}
    path = store.home / "manifests" / "sha256" / one[7:9] / one[7:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=f"manifest {one} is damaged"):
        store.manifest(one)
    with pytest.raises(StoreError, match="the manifest is not canonical JSON: nan"):
        store.put_manifest({"a": float("nan")})


def test_a_blob_that_arrives_in_pieces(store: Store) -> None:
    with store.arriving_blob() as arriving:
        arriving.write(b"one ")
        arriving.write(memoryview(b"and two"))
        assert arriving.digest == digests.of_bytes(b"one and two") and arriving.size == 11
        assert not store.has_blob(arriving.digest)
        digest = arriving.commit()
    assert store.blob_path(digest).read_bytes() == b"one and two"
    assert list((store.home / "tmp").iterdir()) == []
    with store.arriving_blob() as arriving:  # the same again, over damaged bytes
        store.blob_path(digest).chmod(0o644)
        store.blob_path(digest).write_bytes(b"one and 2!!")
        arriving.write(b"one and two")
        assert arriving.commit() == digest
    store.verify_blob(digest)


def test_a_blob_may_arrive_in_any_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(blobs, "WRITEBACK", 4)
    monkeypatch.setattr(files, "start_writeback", begun.append)
    with store.arriving_blob() as arriving:
        for at, piece in ((6, b"two"), (3, b"and"), (3, b"und"), (0, b"one")):
            arriving.write_at(at, piece)
            if at == 3:
                arriving.hash_up_to(0)
        assert arriving.size == 0
        arriving.hash_up_to(4)
        arriving.hash_up_to(9)
        assert (arriving.size, arriving.digest) == (9, digests.of_bytes(b"oneundtwo"))
        digest = arriving.commit()
    assert store.blob_path(digest).read_bytes() == b"oneundtwo"
    assert len(begun) == 2


def test_writeback_that_begins_changes_nothing(store: Store) -> None:
    with store.arriving_blob() as arriving:
        for _ in range(40):
            arriving.write(bytes(1024 * 1024))
        digest = arriving.commit()
    store.verify_blob(digest)


def test_a_blob_that_never_ended_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.arriving_blob() as arriving:
        arriving.write(b"half")
        raise KeyError
    assert list((store.home / "tmp").iterdir()) == []
    assert not store.has_blob(digests.of_bytes(b"half"))
