"""Every byte of the output in order, on all cores: read, compute, hash and write overlap.

The unit is a range of the plan, so that workers cross the borders of tensors and shards. Factors
are read and packed some ranges ahead, and dropped after the last range that needs them; a bounded
number of ranges is under way, each in its thread's own buffers.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from adapterhub import kernels
from adapterhub.merging.compute import compute, explained
from adapterhub.merging.factors import Ready, make_ready
from adapterhub.merging.ranges import Compute, Copy, Range, factor_bytes, item_bytes, ranges
from adapterhub.merging.work import MergePlan, Slab, Work
from adapterhub.tensorfile import ShardLayout, usable_cores
from adapterhub.tensorfile.ordered import in_order

GROUP_BYTES = 32 * 1024 * 1024  # factors that are prepared at once: those of some experts


class Sink(Protocol):
    """Where bytes go; called by many threads. A sink of None only has digests computed."""

    def copy(self, shard: ShardLayout, job: Copy) -> None: ...

    def write_at(self, shard: ShardLayout, data: memoryview, offset: int) -> None: ...


@dataclass(frozen=True)
class Done:
    """A range that is finished, or with `range` None the end of a shard.

    `digest`: sha256 of a computed range. `idle`: what changed nothing, as `Ready` has it.
    """

    shard: ShardLayout
    range: Range | None
    digest: bytes = b""
    idle: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True)
class _Task:
    shard: ShardLayout
    range: Range | None
    factors: tuple[Future[list[Ready]], ...] = ()


def stream(
    plan: MergePlan,
    shards: Iterable[ShardLayout],
    sink: Sink | None,
    threads: int | None = None,
) -> Generator[Done]:
    """Do every range of these shards, in order. Raises what reading, computing and `sink` raise.

    `shards` is iterated as the work comes to them.
    """
    threads = threads or usable_cores()

    def do(task: _Task) -> Done:
        return _do(task, plan, sink)

    with ThreadPoolExecutor(threads, "merge") as pool:
        tasks = _tasks(plan, shards, pool, 2 * threads)
        for _, done in in_order(pool, tasks, do, 3 * threads):
            yield done


def _do(task: _Task, plan: MergePlan, sink: Sink | None) -> Done:
    if isinstance(task.range, Copy) and sink:
        sink.copy(task.shard, task.range)
    if not isinstance(task.range, Compute):
        return Done(task.shard, task.range)
    ready = [item for future in task.factors for item in future.result()]
    data = compute(task.range, ready, plan)
    digest = hashlib.sha256(data).digest()
    if sink:
        sink.write_at(task.shard, data, task.range.target)
    idle = frozenset(key for item in ready for key in item.idle)
    return Done(task.shard, task.range, digest, idle)


def _tasks(
    plan: MergePlan, shards: Iterable[ShardLayout], pool: Executor, ahead: int
) -> Iterator[_Task]:
    """The tasks in order; factors are sent to the pool `ahead` tasks before they are needed.

    So a task that waits for its factors waits for what is already running, never for what stands
    behind it in the pool's queue.
    """
    window: deque[_Task] = deque()
    for task in _all_tasks(plan, shards, pool):
        window.append(task)
        if len(window) > ahead:
            yield window.popleft()
    while window:
        yield window.popleft()


def _all_tasks(plan: MergePlan, shards: Iterable[ShardLayout], pool: Executor) -> Iterator[_Task]:
    for shard in shards:
        groups: deque[_Group] = deque()
        work: Work | None = None
        for item in ranges(shard, plan.works):
            if isinstance(item, Copy):
                yield _Task(shard, item)
                continue
            if item.work is not work:
                work = item.work
                groups = deque(_groups(work))
            yield _Task(shard, item, _needed(item, groups, plan, pool))
        yield _Task(shard, None)


class _Group:
    """Slabs whose factors are prepared together."""

    def __init__(self, work: Work, slabs: Sequence[Slab]) -> None:
        self.work = work
        self.slabs = slabs
        self.first, self.last = slabs[0].first, slabs[-1].first + slabs[-1].size
        self._future: Future[list[Ready]] | None = None

    def future(self, plan: MergePlan, pool: Executor) -> Future[list[Ready]]:
        if self._future is None:
            self._future = pool.submit(_prepare, self.work, self.slabs, plan)
        return self._future


def _groups(work: Work) -> Iterator[_Group]:
    slabs: list[Slab] = []
    size = 0
    for slab in work.slabs:
        more = factor_bytes(slab.terms)
        if slabs and size + more > GROUP_BYTES:
            yield _Group(work, slabs)
            slabs, size = [], 0
        slabs.append(slab)
        size += more
    if slabs:
        yield _Group(work, slabs)


def _needed(
    item: Compute, groups: deque[_Group], plan: MergePlan, pool: Executor
) -> tuple[Future[list[Ready]], ...]:
    """The factors of a range; groups that end before it are dropped, since ranges ascend."""
    size = item_bytes(item.work.dtype)
    first, last = item.start // size, (item.start + item.nbytes) // size
    while groups and groups[0].last <= first and first < last:
        groups.popleft()
    # Without elements there is nothing to compute, but bad factors are refused all the same.
    wanted = [group for group in groups if group.first < last or first == last]
    return tuple(group.future(plan, pool) for group in wanted)


def _prepare(work: Work, slabs: Sequence[Slab], plan: MergePlan) -> list[Ready]:
    found = []
    for slab in slabs:
        try:
            found.append(make_ready(work, slab))
        except kernels.NonFinite as error:
            raise explained(error, work, slab, plan) from error
    return found
