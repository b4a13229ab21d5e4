from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.registry import windows
from adapterhub.registry.windows import Shared, Window, row_range
from adapterhub.tensorfile import ArrayTensor, FileTensor, open_checkpoint, write_file


@pytest.fixture
def matrix(tmp_path: Path) -> FileTensor:
    array = np.arange(60, dtype=np.float32).reshape(6, 10)
    write_file(
        tmp_path / "model.safetensors", {"x": ArrayTensor(array[:1]), "y": ArrayTensor(array)}
    )
    return open_checkpoint(tmp_path).tensors["y"]


class Counted:
    """A tensor that counts how often it is read."""

    def __init__(self, rows: int, columns: int) -> None:
        self.array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
        self.dtype, self.shape, self.nbytes = "F32", self.array.shape, self.array.nbytes
        self.reads = 0
        self._lock = threading.Lock()

    def read(self) -> Any:
        with self._lock:
            self.reads += 1
        time.sleep(0.01)  # the others come while it is read
        return self.array.copy()

    def pieces(self, size: int = 1) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(1, None, 3)),
        (slice(2, 5), slice(None)),
        (slice(2, 5), slice(0, None, 4)),
        (slice(0, 0), slice(None)),
    ],
)
def test_a_window_is_a_tensor_like_any_other(
    matrix: FileTensor, rows: slice, columns: slice
) -> None:
    window, want = Window(Shared(matrix), rows, columns), matrix.read()[rows, columns]
    got = window.read()
    assert (window.dtype, window.shape, window.nbytes) == ("F32", want.shape, want.nbytes)
    np.testing.assert_array_equal(got, want)
    assert got.flags.c_contiguous and got.flags.writeable
    assert b"".join(bytes(piece) for piece in window.pieces(8)) == want.tobytes()
    if got.size:
        got[:] = -1
        np.testing.assert_array_equal(window.read(), want)


def test_rows_of_a_file_are_a_place_in_it(matrix: FileTensor) -> None:
    found = row_range(Shared(matrix), 2, 5)
    assert isinstance(found, FileTensor)
    np.testing.assert_array_equal(found.read(), matrix.read()[2:5])
    in_memory = row_range(Shared(ArrayTensor(matrix.read())), 2, 5)
    np.testing.assert_array_equal(in_memory.read(), matrix.read()[2:5])


def test_many_windows_read_their_matrix_once() -> None:
    tensor = Counted(4, 32)
    shared = Shared(tensor)
    with ThreadPoolExecutor(4) as pool:
        every = [Window(shared, slice(None), slice(e, None, 8)) for e in range(8)]
        found = list(pool.map(lambda window: window.read(), every * 4))
    assert tensor.reads == 1
    np.testing.assert_array_equal(found[9], tensor.array[:, 1::8])


def test_memory_is_bounded_and_the_last_one_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HELD_BYTES", 2 * 4 * 8 * 4)
    one, two, three, large = (Shared(Counted(rows, 8)) for rows in (4, 4, 4, 40))
    for shared in (one, two, one, three):
        shared.array()
    assert [shared.held for shared in (one, two, three)] == [True, False, True]
    large.array()
    assert [shared.held for shared in (one, two, three, large)] == [False, False, False, True]
    two.array()
    assert two.held and not large.held


def test_what_nobody_uses_any_more_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HELD_BYTES", 2 * 4 * 8 * 4)
    kept = Shared(Counted(4, 8))
    kept.array()
    for _ in range(3):
        Shared(Counted(4, 8)).array()
    last = Shared(Counted(4, 8))
    last.array()
    assert kept.held and last.held
