from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killing
import pytest
from building import (
    LLAMA,
    arrays_of,
    llama,
    nothing_left,
    opened,
    random,
    run,
    save_base,
    source,
)

from adapterhub import merging as merge
from adapterhub.errors import (
    OutputError,
)
from adapterhub.merging import output

# --- a disk that fills up ---------------------------------------------------------------------


def failing(action: Callable[..., Any], room: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return action(*args, **kwargs)

    return call


def until_it_works(attempt: Callable[[int], bool]) -> int:
    """The first n for which `attempt(n)` is true; it is called for every n before."""
    return next(n for n in range(200) if attempt(n))


def test_a_full_disk_at_any_write_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = merge.plan(opened(base), [source(adapter)])
    left = [0]
    for name in ("pwrite", "copy_file_range", "posix_fallocate", "fsync"):
        monkeypatch.setattr(os, name, failing(getattr(os, name), left))

    def attempt(room: int) -> bool:
        left[0] = room
        try:
            merge.run(plan, tmp_path / "out", threads=1)
        except OutputError as error:
            assert "the disk is full" in error.remedy
            assert nothing_left(tmp_path / "out")
            return False
        return True

    assert until_it_works(attempt) > 15
    assert arrays_of(tmp_path / "out").keys() == llama().keys()


def test_a_disk_too_full_for_the_first_file_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **kwargs: Any) -> Any:
        if self.name == output.MARKER:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, mode, *rest, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(base, tmp_path / "out", adapter)
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("what", ["fsync", "mkdir", "replace"])
def test_a_failure_at_any_step_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan = merge.plan(opened(base), [source(adapter)])
    room = [0]
    owner = os if what == "fsync" else Path
    monkeypatch.setattr(owner, what, failing(getattr(owner, what), room))

    def attempt(count: int) -> bool:
        room[0] = count
        try:
            merge.run(plan, tmp_path / "out")
        except OutputError:
            assert nothing_left(tmp_path / "out")
            return False
        return True

    assert until_it_works(attempt) >= {"fsync": 7, "mkdir": 2, "replace": 1}[what]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a tmpfs is not possible here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(
    adapter: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", llama() | {"big": random(1, 1 << 20)}, LLAMA)
    with pytest.raises(OutputError, match="bytes free, the merge writes"):
        run(base, small_disk / "out", adapter)
    monkeypatch.setattr(output, "_check_space", lambda *_: None)
    with pytest.raises(OutputError, match="No space left on device"):
        run(base, small_disk / "out", adapter)
    assert list(small_disk.iterdir()) == []


# --- a process that dies ----------------------------------------------------------------------


def test_a_merge_killed_at_any_step_leaves_nothing_or_everything(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    killed = killing.drive(Path(__file__).parent / "merge_driver.py", base, adapter, results)
    assert killed > 8
    whole_ones = 0
    for n in range(1, killed + 2):
        out = results / str(n)
        partial = results / f"{n}.partial"
        if out.exists():
            assert merge.differences(out) == [] and not partial.exists()
            whole_ones += 1
            continue
        # Goes on with what the killed one left, or starts anew over it.
        merge.run(merge.plan(opened(base), [source(adapter)]), out, resume=n % 2 == 0)
        assert merge.differences(out) == [] and not partial.exists()
    assert whole_ones >= 2  # the one that lived, and those killed after the rename
