"""Runs a plan: every byte range of it to `<out>.partial`, fsync, rename.

It decides nothing, and what it holds in memory does not grow with the model. A killed merge leaves
a directory whose name ends in `.partial` and which has no config.json until all weights are whole,
so that nothing loads it by mistake; `resume` goes on there after the last whole shard. Killed right
after the rename it leaves a whole result, with a small hidden file beside it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adapterhub import digest
from adapterhub.base import changed_file
from adapterhub.errors import AdapterHubError, IntegrityError, InvalidAdapter, InvalidBase
from adapterhub.merging import copying
from adapterhub.merging.output import (
    Entry,
    Partial,
    partial_directory,
    preallocated,
    publish,
    write,
)
from adapterhub.merging.ranges import Compute, Copy
from adapterhub.merging.stream import Done, stream
from adapterhub.merging.work import MergePlan
from adapterhub.tensorfile import ShardLayout, index_json, read_header, tensor_digests

Progress = Callable[[int], None]
INDEX = "model.safetensors.index.json"
UNSYNCED = 8  # finished shards that may wait for the disk


@dataclass(frozen=True)
class Written:
    """D of every output tensor, and sha256 of every other file.

    `idle`: (tensor, source, key) of terms whose B is zero and that so changed nothing. `resumed`,
    `discarded`: whole shards of an earlier, interrupted merge that were kept, or thrown away.
    """

    digests: Mapping[str, bytes]
    files: Mapping[str, str]
    idle: frozenset[tuple[str, int, str]] = frozenset()
    resumed: int = 0
    discarded: int = 0


def run(
    plan: MergePlan,
    out: Path,
    *,
    key: str,
    base_digests: Mapping[str, bytes],
    describe: Callable[[Written], bytes],
    progress: Progress | None = None,
    resume: bool = False,
    threads: int | None = None,
) -> Written:
    """Write the merge to `out`. `describe` makes adapterhub.json, the last file to be written.

    `key` names what is merged; `resume` goes on where an interrupted merge of the same key was.
    Raises OutputError (not empty, disk full, no permission) and whatever the values refuse with;
    either way nothing is left behind, unless by an interrupt from the keyboard.
    """
    out = out.absolute()
    with partial_directory(out, plan.write_bytes, key=key, resume=resume) as partial:
        shards = _Shards(plan, partial, base_digests, progress)
        shards.write(threads)
        files = _write_index(plan, partial.directory) | _write_small_files(plan, partial.directory)
        _check_inputs(plan)
        written = shards.written(dict(sorted(files.items())))
        write(partial.directory / "adapterhub.json", describe(written))
        publish(partial.directory, out)
    return written


def _check_inputs(plan: MergePlan) -> None:
    """What was written is only worth its report if the inputs stayed what they were."""
    plan.base.check_unchanged()
    if changed := changed_file(plan.adapter_files):
        raise InvalidAdapter(
            f"{changed} changed while it was in use", remedy="wait for its writer, try again"
        )


# --- weights ----------------------------------------------------------------------------------


class Collector:
    """Puts together what `stream` tells: D of each tensor of a shard when the shard ends."""

    def __init__(self, plan: MergePlan, base_digests: Mapping[str, bytes]) -> None:
        self._plan = plan
        self._base_digests = base_digests
        self._chunks: dict[str, list[bytes]] = defaultdict(list)
        self.idle: set[tuple[str, int, str]] = set()

    def take(self, done: Done) -> None:
        if isinstance(done.range, Compute):
            self._chunks[done.range.work.name].append(done.digest)
            self.idle |= {(done.range.work.name, *key) for key in done.idle}

    def digest_of(self, name: str) -> bytes:
        """D of a tensor whose ranges are all done."""
        work = self._plan.works[name]
        if work.is_copy and work.stored is not None:
            return self._base_digests[work.stored]
        return digest.merkle(self._chunks.pop(name))


@dataclass(frozen=True)
class _Open:
    """A file being written.

    One thread writes at a time: the kernel lets no two into a file, and has who comes second spin,
    which costs the threads that compute as much as the writing itself.
    """

    fd: int
    stack: ExitStack
    turn: threading.Lock


class _Shards:
    """The output's files: open while bytes come, then synced, recorded and closed."""

    def __init__(
        self,
        plan: MergePlan,
        partial: Partial,
        base_digests: Mapping[str, bytes],
        progress: Progress | None,
    ) -> None:
        self._plan = plan
        self._partial = partial
        self._progress = progress or (lambda _: None)
        self._collector = Collector(plan, base_digests)
        self._open: dict[str, _Open] = {}
        self._entries: dict[str, Entry] = {}
        self._resumed = 0

    def write(self, threads: int | None) -> None:
        """All shards; syncing one overlaps with computing the next."""
        endings: deque[Future[None]] = deque()
        with ExitStack() as stack, ThreadPoolExecutor(1, "sync") as syncing:
            stack.callback(self._close_all)
            for done in stream(self._plan, self._missing(), self, threads):
                self._collector.take(done)
                self._progress(done.range.nbytes if done.range else 0)
                if done.range is None:
                    entry = self._entry(done.shard)
                    endings.append(syncing.submit(self._finish, done.shard, entry))
                if len(endings) > UNSYNCED:  # many small files must not all be open
                    endings.popleft().result()
            for ending in endings:
                ending.result()

    def _missing(self) -> Iterator[ShardLayout]:
        """The shards that are not whole yet, each opened before it is handed out."""
        for shard in self._plan.shards:
            entry = self._partial.whole.get(shard.filename)
            if entry is not None and _is_whole(
                self._partial.directory / shard.filename, shard, entry
            ):
                self._entries[shard.filename] = entry
                self._resumed += 1
                self._progress(sum(spec.nbytes for spec in shard.specs))
                continue
            self._start(shard)
            yield shard

    def _start(self, shard: ShardLayout) -> None:
        path = self._partial.directory / shard.filename
        path.unlink(missing_ok=True)  # of an earlier merge, and not what it was
        stack = ExitStack()
        fd = stack.enter_context(preallocated(path, shard.nbytes))
        self._open[shard.filename] = _Open(fd, stack, threading.Lock())
        copying.write_at(fd, memoryview(shard.header), 0)

    def copy(self, shard: ShardLayout, job: Copy) -> None:
        file = self._open[shard.filename]
        with file.turn:
            copying.copy(job, file.fd)
        copying.start_writeback(file.fd, job.target, job.nbytes)

    def write_at(self, shard: ShardLayout, data: memoryview, offset: int) -> None:
        file = self._open[shard.filename]
        with file.turn:
            copying.write_at(file.fd, data, offset)
        copying.start_writeback(file.fd, offset, len(data))

    def _entry(self, shard: ShardLayout) -> Entry:
        digests = {spec.name: self._collector.digest_of(spec.name) for spec in shard.specs}
        idle = sorted(self._collector.idle)
        self._collector.idle.clear()
        return {
            "file": shard.filename,
            "digests": {name: found.hex() for name, found in digests.items()},
            "idle": [list(key) for key in idle],
        }

    def _finish(self, shard: ShardLayout, entry: Entry) -> None:
        file = self._open[shard.filename]
        os.fsync(file.fd)
        size = os.fstat(file.fd).st_size
        if size != shard.nbytes:
            raise IntegrityError(
                f"{shard.filename} has {size:,} bytes, the plan said {shard.nbytes:,}"
            )
        self._partial.record(entry)
        self._entries[shard.filename] = entry
        del self._open[shard.filename]
        file.stack.close()

    def _close_all(self) -> None:
        for file in self._open.values():
            file.stack.close()

    def written(self, files: Mapping[str, str]) -> Written:
        entries = [self._entries[shard.filename] for shard in self._plan.shards]
        digests = {n: bytes.fromhex(d) for entry in entries for n, d in entry["digests"].items()}
        idle = frozenset((str(t), int(s), str(k)) for entry in entries for t, s, k in entry["idle"])
        return Written(digests, files, idle, self._resumed, self._partial.left_over)


def _is_whole(path: Path, shard: ShardLayout, entry: Entry) -> bool:
    """Whether a file of an interrupted merge is still what the journal says, byte for byte."""
    try:
        with path.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                return False
        tensors = read_header(path).tensors
        found = {name: value.hex() for name, value in tensor_digests(tensors).items()}
    except (AdapterHubError, OSError):
        return False
    return found == entry.get("digests")


# --- other files ------------------------------------------------------------------------------


def _write_index(plan: MergePlan, directory: Path) -> dict[str, str]:
    """sha256 of the index, if there is one."""
    if [shard.filename for shard in plan.shards] == ["model.safetensors"]:
        return {}
    index = index_json(plan.shards)
    write(directory / INDEX, index)
    return {INDEX: digest.of_bytes(index)}


def _write_small_files(plan: MergePlan, directory: Path) -> dict[str, str]:
    files = {}
    for name, path in plan.companions.items():
        data = _bytes_of(path)
        write(directory / name, data)
        files[name] = digest.of_bytes(data)
    data = _config_bytes(plan)
    write(directory / "config.json", data)
    files["config.json"] = digest.of_bytes(data)
    return files


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidBase(
            f"{path} cannot be read: {error.strerror}", remedy="check the file"
        ) from error


def _config_bytes(plan: MergePlan) -> bytes:
    """The base's own bytes where the merge changes nothing that they say."""
    if plan.config == plan.base.config:
        return plan.base.bytes_of("config.json")
    return (json.dumps(plan.config, indent=2) + "\n").encode("ascii")
