"""A xorb on its way in: what is taken, and that everything else is refused by name."""

from __future__ import annotations

import lz4.frame
import numpy as np
import pytest
from xetbuilding import Made, chunk, header, made, names, send, some

from adapterhub.errors import AdapterHubError, IntegrityError, NotSupported
from adapterhub.hub.xet import hashing, xorb
from adapterhub.hub.xet.xorbs import Space


def take(space: Space, hash: str, body: bytes, piece: int = 100_000) -> bool:
    with space.receiving(hash) as receiving:
        for at in range(0, len(body), piece):
            receiving.feed(body[at : at + piece])
        return receiving.finish()


def refused(space: Space, body: bytes, hash: str = "0" * 64) -> AdapterHubError:
    """Takes it, and sees that nothing stays behind."""
    with pytest.raises(AdapterHubError) as caught:
        take(space, hash, body)
    assert names(space.folder) == []
    assert not space.has(hash)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 1000, 10**9])
def test_it_is_kept_unpacked_however_it_is_cut(space: Space, piece: int) -> None:
    each = some(3, 1, 2, 3, 4, 5, 999, 1000, 1001, 1002, 3000)
    assert send(space, each, piece=piece)
    found = space.open(each.digest)
    assert found is not None
    count = len(each.chunks)
    assert found.read(0, count) == b"".join(each.chunks)
    assert [found.read(i, i + 1) for i in range(count)] == list(each.chunks)
    assert found.hashes(0, count) == b"".join(digest for digest, _ in each.pairs)
    found.verify(0, count)
    assert names(space.folder) == [each.hash]


def test_the_second_time_nothing_is_inserted(space: Space) -> None:
    each = some(4, 100, 100)
    assert not space.has(each.hash)
    assert send(space, each) is True
    assert space.has(each.hash)
    assert send(space, each) is False
    assert names(space.folder) == [each.hash]


def test_two_at_once_are_one(space: Space) -> None:
    each = some(5, 100, 100)
    with space.receiving(each.hash) as one, space.receiving(each.hash) as two:
        for receiving in (one, two):
            receiving.feed(each.body)
        assert [one.finish(), two.finish()] == [True, False]
    assert names(space.folder) == [each.hash]


def test_who_ends_early_leaves_nothing(space: Space) -> None:
    each = some(6, 1000, 1000)
    with space.receiving(each.hash) as receiving:
        receiving.feed(each.body)
        assert not space.has(each.hash)
    assert names(space.folder) == []


@pytest.mark.parametrize("cut", [1, 7, 8, 100, 1008 + 4])
def test_a_truncated_one_is_refused(space: Space, cut: int) -> None:
    each = Made((bytes(1000), b"x" * 1000), (xorb.RAW, xorb.RAW))
    error = refused(space, each.body[:-cut], each.hash)
    assert f"xorb {each.hash} is cut off inside chunk" in error.message


def test_one_that_ends_between_two_chunks_is_refused(space: Space) -> None:
    each = some(7, 100, 200)
    first = chunk(each.chunks[0], each.kinds[0])
    assert "holds chunks whose hash is" in refused(space, first, each.hash).message


def test_one_of_no_bytes_is_refused(space: Space) -> None:
    assert "has no chunks" in refused(space, b"").message


def test_another_hash_in_the_address_is_refused(space: Space) -> None:
    each = some(8, 100)
    error = refused(space, each.body, hashing.to_hex(hashing.chunk_hash(b"other")))
    assert f"holds chunks whose hash is {each.hash}" in error.message


@pytest.mark.parametrize("hash", ["..", "../../etc/passwd", "x" * 64, "A" * 64, ""])
def test_what_is_no_hash_in_the_address_is_refused(space: Space, hash: str) -> None:
    with pytest.raises(IntegrityError, match="is not a Xet hash"), space.receiving(hash):
        pass
    with pytest.raises(IntegrityError, match="is not a Xet hash"):
        space.has(hash)


def test_any_flipped_bit_is_seen(space: Space) -> None:
    each = some(9, 40, 33, 50)
    for at in range(len(each.body)):
        broken = bytearray(each.body)
        broken[at] ^= 1 << at % 8
        try:
            kept = take(space, each.hash, bytes(broken))
        except (IntegrityError, NotSupported):
            assert names(space.folder) == []
            continue
        # LZ4's own header has bits that do not change what comes out
        found = space.open(each.digest)
        assert kept and found is not None and found.read(0, 3) == b"".join(each.chunks)
        (space.folder / each.hash).unlink()


def test_a_bomb_is_cut_short(space: Space) -> None:
    bomb = lz4.frame.compress(bytes(50_000_000))
    assert len(bomb) < xorb.MAX_STORED_BYTES
    error = refused(space, header(len(bomb), xorb.LZ4, 1000) + bomb)
    assert "chunk 0 of xorb 0000" in error.message
    assert "unpacks to more than the 1000 bytes that it claims" in error.message


def test_many_small_bombs_are_too_much_together(space: Space) -> None:
    packed = chunk(bytes(xorb.MAX_CHUNK_BYTES), xorb.LZ4)
    body = packed * (xorb.MAX_UNPACKED_BYTES // xorb.MAX_CHUNK_BYTES + 1)
    assert len(body) < 2**20
    assert f"unpacks to more than {128 * 2**20} bytes" in refused(space, body).message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x01" + header(4, 0, 4)[1:] + b"abcd", "has version 1; this server reads 0"),
        (header(4, 3, 4) + b"abcd", "has compression type 3; known are 0, 1, 2"),
        (header(0, 0, 0), "claims 0 bytes"),
        (header(1, 0, 131073), "claims 131073 bytes; 1 to 131072 are allowed"),
        (header(262145, 1, 4), "claims 262145 stored bytes; 1 to 262144 are allowed"),
        (header(5, 0, 4) + b"abcde", "is stored raw in 5 bytes, but claims 4"),
        (header(16, 1, 4) + b"abcd" * 4, "is not an LZ4 frame"),
        (chunk(bytes(900), xorb.LZ4, length=901), "unpacks to 900 bytes from"),
        (chunk(bytes(900), xorb.LZ4, length=899), "unpacks to more than the 899 bytes"),
        (header(19, 1, 900) + chunk(bytes(900), xorb.LZ4)[8:27], "ends before its LZ4 frame does"),
    ],
)
def test_a_chunk_that_lies_is_refused(space: Space, body: bytes, said: str) -> None:
    message = refused(space, body).message
    assert said in message
    assert message.startswith("chunk 0 of xorb 0000")


def test_bytes_behind_a_frame_are_refused(space: Space) -> None:
    frame = lz4.frame.compress(bytes(900)) + b"more"
    message = refused(space, header(len(frame), xorb.LZ4, 900) + frame).message
    assert f"unpacks to 900 bytes from {len(frame) - 4} of {len(frame)}" in message


def test_too_many_chunks_are_refused(space: Space) -> None:
    body = chunk(b"x") * (xorb.MAX_CHUNKS + 1)
    assert "has more than 8192 chunks" in refused(space, body).message
    most = made(*[b"x"] * xorb.MAX_CHUNKS)
    assert take(space, most.hash, most.body)


def test_too_many_bytes_are_refused(space: Space) -> None:
    random = chunk(np.random.default_rng(1).bytes(xorb.MAX_CHUNK_BYTES))
    body = random * (xorb.MAX_XORB_BYTES // len(random) + 1)
    assert f"is larger than {xorb.MAX_XORB_BYTES} bytes" in refused(space, body).message


def test_one_that_is_there_is_counted_all_the_same(space: Space) -> None:
    each = some(10, 100)
    send(space, each)
    with space.receiving(each.hash) as receiving, pytest.raises(IntegrityError, match="is larger"):
        for _ in range(100):
            receiving.feed(bytes(2**20))


# --- footers, which older clients send --------------------------------------------------------


def footer(digest: bytes, *, version: int = 1, claimed: int | None = None) -> bytes:
    body = b"XETBLOB" + bytes([version]) + digest + bytes(100)
    return body + (len(body) if claimed is None else claimed).to_bytes(4, "little")


@pytest.mark.parametrize("piece", [1, 10**9])
def test_a_footer_is_read_and_dropped(space: Space, piece: int) -> None:
    each = some(11, 100, 200)
    assert take(space, each.hash, each.body + footer(each.digest), piece)
    found = space.open(each.digest)
    assert found is not None and found.read(0, 2) == b"".join(each.chunks)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (footer(bytes(32)), "the footer of xorb .* names xorb 0000"),
        (footer(bytes(32), version=2), "has version 2; known are 0 and 1"),
        (footer(bytes(32), claimed=7), "claims 7 of 140 bytes"),
        (b"XETBLOB\x01", "the footer of xorb .* claims"),
        (b"XETBLOB\x01" + bytes(2**20), "is larger than 1048576 bytes"),
    ],
)
def test_a_footer_that_lies_is_refused(space: Space, ending: bytes, said: str) -> None:
    each = some(12, 100)
    with pytest.raises(AdapterHubError, match=said):
        take(space, each.hash, each.body + ending)
    assert names(space.folder) == []


@pytest.mark.parametrize("length", range(1, 14))
def test_grouped_bytes_of_every_remainder(length: int) -> None:
    data = bytes(range(length))
    assert bytes(xorb.ungroup(b"".join(data[lane::4] for lane in range(4)))) == data
