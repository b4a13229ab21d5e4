"""kill -9 before every single write, fsync and rename; and memory, however large the file."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from functools import partial
from pathlib import Path

import killing
import pytest
from xetbuilding import FileEntry, Made, made, send, shard_of, some, whole

from adapterhub.hub.xet import xorb
from adapterhub.hub.xet.ingest import register
from adapterhub.hub.xet.xorbs import Space, Xorbs
from adapterhub.store import Store, files

MIB = 2**20


def push(home: Path, xorbs: tuple[Made, ...], file: FileEntry, note: Path) -> None:
    """Both xorbs, the shard; `note` gets a line for each delivery."""
    with Store(home) as store:
        space = Xorbs(home / "xet").space("7")
        for each in xorbs:
            send(space, each)
        with note.open("a") as lines:
            register(store, space, shard_of(file), lambda digest, size: lines.write(digest))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, as only Linux does safely")
def test_whatever_moment_it_is_killed_nothing_half_is_seen(tmp_path: Path) -> None:
    xorbs = (some(1, 500, 700), some(2, 900))
    file = whole(*xorbs)
    home = tmp_path / "home"
    Store(home).close()

    def pushed(step: int) -> None:
        files.HOOK = killing.at(step)
        push(home, xorbs, file, tmp_path / "note")

    step = 1
    while killing.died(partial(pushed, step)):
        step += 1
        with Store(home) as store:
            whole_or_absent(store, Xorbs(home / "xet").space("7"), xorbs, file)
            if (tmp_path / "note").exists() and (tmp_path / "note").read_text():
                assert store.has_blob(file.digest)
        push(home, xorbs, file, tmp_path / "again")  # and whoever repeats it succeeds
        assert (tmp_path / "again").read_text() == file.digest
        shutil.rmtree(home / "xet")
        for path in (tmp_path / "note", tmp_path / "again", blob(home, file)):
            path.unlink(missing_ok=True)
    assert step > 19
    assert (tmp_path / "note").read_text() == file.digest


def blob(home: Path, file: FileEntry) -> Path:
    with Store(home) as store:
        return store.blob_path(file.digest)


def whole_or_absent(store: Store, space: Space, xorbs: tuple[Made, ...], file: FileEntry) -> None:
    for each in xorbs:
        if space.has(each.hash):
            found = space.open(each.digest)
            assert found is not None
            assert found.read(0, len(each.chunks)) == b"".join(each.chunks)
    if store.has_blob(file.digest):
        store.verify_blob(file.digest)


def anonymous() -> int:
    """Bytes of this process's own memory, without what it has mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon")


class Peak:
    """The most memory seen while it runs, beyond what there was at its start."""

    def __enter__(self) -> Peak:
        self.base = self.most = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.base


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_gigabytes_in_little_memory(tmp_path: Path) -> None:
    """A xorb of 64 MiB, taken in pieces of 1 MiB, and a file that is 32 times that xorb."""
    block = os.urandom(xorb.MAX_CHUNK_BYTES)
    each = made(*[block[at:] + block[:at] for at in range(512)])
    body = each.body
    with Store(tmp_path / "home") as store:
        space = Xorbs(tmp_path / "xet").space("7")
        with Peak() as receiving, space.receiving(each.hash) as target:
            for at in range(0, len(body), MIB):
                target.feed(memoryview(body)[at : at + MIB])
            target.finish()
        sha256 = hashlib.sha256()
        for chunk in each.chunks * 32:
            sha256.update(chunk)
        data = shard_of(FileEntry([(each, 0, 512)] * 32, sha256=sha256.digest()))
        sizes: list[int] = []
        with Peak() as rebuilding:
            register(store, space, data, lambda digest, size: sizes.append(size))
        assert sizes == [2 * 2**30]
        store.blob_path(f"sha256:{sha256.hexdigest()}").unlink()
    assert receiving.grown < 8 * MIB
    assert rebuilding.grown < 24 * MIB
