"""Results of a pool in the order of its tasks, with a bound on how many are under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    pool: Executor, tasks: Iterable[Task], run: Callable[[Task], Result], ahead: int
) -> Iterator[tuple[Task, Result]]:
    """`(task, run(task))` for each task, of which at most `ahead` are under way or waiting.

    `tasks` is iterated in the caller's thread. The first task in order that fails raises here, so
    that the same fault gives the same error whichever thread meets it.
    """
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    for task in tasks:
        if len(waiting) == ahead:
            first, future = waiting.popleft()
            yield first, future.result()
        waiting.append((task, pool.submit(run, task)))
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
