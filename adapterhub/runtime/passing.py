"""What a forward pass hands from one hook to the next, in each thread its own.

Several threads may run one model at a time, as servers do.
"""

from __future__ import annotations

import threading
from typing import Any


class Passing:
    """One value. Copies, as of a whole model, start without."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def put(self, value: Any) -> None:
        self._values[_thread()] = value

    def take(self) -> Any:
        """The value, which is then gone; None if there is none."""
        return self._values.pop(_thread(), None)

    @property
    def there(self) -> bool:
        return _thread() in self._values

    def __deepcopy__(self, memo: dict[int, Any]) -> Passing:
        return Passing()

    def __reduce__(self) -> tuple[Any, ...]:
        return Passing, ()


def _thread() -> int:
    import torch

    return 0 if torch.compiler.is_compiling() else threading.get_ident()
