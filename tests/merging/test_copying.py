from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import InvalidTensorFile
from adapterhub.merging import copying
from adapterhub.merging.ranges import Copy

DATA = os.urandom(3_000_001)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def copied(tmp_path: Path, *jobs: Copy) -> bytes:
    target = tmp_path / "target"
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        for job in jobs:
            copying.copy(job, fd)
            copying.start_writeback(fd, job.target, job.nbytes)
    finally:
        os.close(fd)
    return target.read_bytes()


def failing(code: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def short(original: Callable[..., int]) -> Callable[..., int]:
    """Copies as little at a time as the system may."""
    return lambda source, target, count, *offsets: original(
        source, target, min(count, 999_999), *offsets
    )


@pytest.mark.parametrize("way", ["whole", "short", "none", "absent", errno.EXDEV, errno.ENOSYS])
def test_bytes_arrive_at_their_place(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str | int
) -> None:
    if way == "short":
        monkeypatch.setattr(os, "copy_file_range", short(os.copy_file_range))
    elif way == "none":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    elif way == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    elif isinstance(way, int):
        monkeypatch.setattr(os, "copy_file_range", failing(way))
    jobs = Copy(5, source, 7, 2_000_000), Copy(2_000_005, source, 2_999_000, 1001)
    assert copied(tmp_path, *jobs) == b"\0" * 5 + DATA[7:2_000_007] + DATA[2_999_000:]


def test_the_system_may_stop_halfway(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = os.copy_file_range, [0]

    def once(source: int, target: int, count: int, *offsets: int) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EINVAL, "no")
        return original(source, target, 1000, *offsets)

    monkeypatch.setattr(os, "copy_file_range", once)
    assert copied(tmp_path, Copy(0, source, 3, 5000)) == DATA[3:5003]


@pytest.mark.parametrize("way", ["system", "own"])
def test_a_source_that_was_cut_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "own":
        monkeypatch.delattr(os, "copy_file_range")
    with pytest.raises(InvalidTensorFile, match=r"source: ends .*early"):
        copied(tmp_path, Copy(0, source, 2_999_999, 10))


def test_a_full_disk_is_no_reason_to_try_otherwise(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copied(tmp_path, Copy(0, source, 0, 10))


def test_write_back_is_advice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    copying.start_writeback(-1, 0, 10)
    monkeypatch.setattr(copying, "_sync_file_range", lambda: None)
    copying.start_writeback(-1, 0, 10)
