"""hf_xet itself, unmodified, uploads: its hashes are ours, and every file comes out equal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from casserver import Cas, serving, upload

from adapterhub.errors import IntegrityError
from adapterhub.hub.xet import hashing, ingest, shard, stored, xorb

pytest.importorskip("hf_xet")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(5)
    contents = {
        "empty": b"",
        "one": b"x",
        "random": rng.bytes(100_000),
        "text": b"some words, again and again; " * 9000,
        "float32": rng.standard_normal(750_000).astype("<f4").tobytes() + b"end",
        "mixed": rng.bytes(1_000_000) + bytes(700_000) + b"abc" * 400_000,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.fixture
def cas(tmp_path: Path) -> Iterator[Cas]:
    with serving(tmp_path / "home") as listening:
        yield listening


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def same(cas: Cas, path: Path) -> bool:
    with cas.store.open_blob(digest_of(path)) as file:
        return file.read() == path.read_bytes()


def posts(cas: Cas, kind: str) -> int:
    return sum(f"/v1/{kind}" in each for each in cas.requests)


def test_one_file_at_a_time(cas: Cas, files: dict[str, Path], tmp_path: Path) -> None:
    for name, path in files.items():
        (info,) = upload(cas, "7", [path], tmp_path / "cache" / name)
        _, done = cas.delivered[-1]
        assert same(cas, path), name
        assert (done.hash, done.size) == (info["hash"], path.stat().st_size), name
        assert done.digest == digest_of(path), name
    assert cas.refusals == []


def test_several_files_in_one_shard(cas: Cas, files: dict[str, Path], tmp_path: Path) -> None:
    upload(cas, "7", list(files.values()), tmp_path / "cache")
    assert len(cas.sent_shards) == 1
    assert {each.digest for _, each in cas.delivered} == set(map(digest_of, files.values()))
    assert all(same(cas, path) for path in files.values())


def test_its_xorbs_hold_every_kind_of_chunk_and_their_hashes_are_ours(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    upload(cas, "7", list(files.values()), tmp_path / "cache")
    kinds = set()
    for hash, body in cas.sent_xorbs.items():
        pairs, at = [], 0
        while at < len(body):
            header = xorb.read_header(body[at : at + 8], "chunk")
            at += xorb.HEADER_BYTES + header.stored
            data = memoryview(body)[at - header.stored : at]
            pairs.append((hashing.chunk_hash(xorb.unpack(header, data, "chunk")), header.length))
            kinds.add(header.kind)
        assert hashing.to_hex(hashing.xorb_hash(pairs)) == hash
        assert len(pairs) > 50
    assert kinds == {xorb.RAW, xorb.LZ4, xorb.GROUPED_LZ4}
    assert all(each.ranges is not None for each in shard.parse(cas.sent_shards[0]).files())


def test_a_file_sent_before_needs_a_shard_only(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    for _ in range(2):
        upload(cas, "7", [files["mixed"]], tmp_path / "cache")
    assert posts(cas, "xorbs") == 1
    assert len(cas.sent_shards) == len(cas.delivered) == 2


def test_after_an_epoch_everything_is_sent_afresh(
    cas: Cas, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap: clients remember what they sent, and old xorbs are gone."""
    upload(cas, "7", [files["mixed"]], tmp_path / "cache")
    start = float(cas.xorbs.space("7").epoch.split("-")[0])
    monkeypatch.setattr(cas.xorbs, "_now", lambda: start + 8.1 * 86400)
    assert cas.xorbs.collect().epochs == 1
    upload(cas, "7", [files["mixed"]], tmp_path / "cache")
    assert posts(cas, "xorbs") == 2
    assert len(cas.delivered) == 2
    assert cas.refusals == []


def test_a_client_whose_xorbs_were_lost_recovers_by_repeating(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    upload(cas, "7", [files["random"]], tmp_path / "cache")
    (hash,) = cas.sent_xorbs
    (cas.xorbs.space("7").folder / hash).unlink()
    with pytest.raises(RuntimeError, match="400 Bad Request"):
        upload(cas, "7", [files["random"]], tmp_path / "cache")
    assert "was not uploaded to this repository" in cas.refusals[0].message
    upload(cas, "7", [files["random"]], tmp_path / "cache")
    assert [each.digest for _, each in cas.delivered] == [digest_of(files["random"])] * 2


def test_a_client_whose_xorbs_were_damaged_recovers_by_repeating(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    upload(cas, "7", [files["random"]], tmp_path / "cache")
    space = cas.xorbs.space("7")
    (hash,) = cas.sent_xorbs
    (note,) = space.folder.glob("file-*")
    note.unlink()
    path = space.folder / hash
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(50_000)
        file.write(b"?!?!")
    with pytest.raises(RuntimeError, match="400 Bad Request"):
        upload(cas, "7", [files["random"]], tmp_path / "cache")
    assert isinstance(cas.refusals[0], stored.Damaged)
    upload(cas, "7", [files["random"]], tmp_path / "cache")
    assert len(cas.delivered) == 2


def test_repositories_have_addresses_and_memories_of_their_own(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    for repository in ("7", "8"):
        upload(cas, repository, [files["random"]], tmp_path / "cache")
    assert posts(cas, "xorbs") == 2
    assert [repository for repository, _ in cas.delivered] == ["7", "8"]


def test_a_real_shard_gives_nothing_in_another_repository(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    upload(cas, "7", [files["random"]], tmp_path / "cache")
    with pytest.raises(IntegrityError, match="was not uploaded to this repository"):
        ingest.register(cas.store, cas.xorbs.space("8"), cas.sent_shards[0], lambda *a: None)


def test_a_file_without_sha256_is_refused(cas: Cas, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="400 Bad Request"):
        upload(cas, "7", [files["random"]], tmp_path / "cache", "--no-sha256")
    assert "the shard has no sha256 entry for file" in cas.refusals[0].message
    assert not cas.store.has_blob(digest_of(files["random"]))


def test_a_changed_file_sends_what_changed(
    cas: Cas, files: dict[str, Path], tmp_path: Path
) -> None:
    """Terms of two xorbs: chunks of the first upload, and new ones between them."""
    old = files["mixed"].read_bytes()
    new = tmp_path / "new"
    new.write_bytes(old[:500_000] + b"something else" + old[500_000:])
    upload(cas, "7", [files["mixed"]], tmp_path / "cache")
    upload(cas, "7", [new], tmp_path / "cache")
    assert same(cas, new)
    (file,) = shard.parse(cas.sent_shards[1]).files()
    assert len({bytes(each) for each in file.terms["xorb"]}) == 2
    assert min(map(len, cas.sent_xorbs.values())) < 600_000


@pytest.mark.slow
def test_seventy_megabytes_in_two_xorbs(cas: Cas, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    path = tmp_path / "large"
    path.write_bytes(
        rng.bytes(40_000_000)
        + rng.standard_normal(6_000_000).astype("<f4").tobytes()
        + os.urandom(6_000_001)
    )
    upload(cas, "7", [path], tmp_path / "cache")
    assert len(cas.sent_xorbs) == 2
    assert same(cas, path)
