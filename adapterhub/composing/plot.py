"""The picture of a comparison: layers × modules and adapters × adapters, by matplotlib."""

from __future__ import annotations
from pathlib import Path
from adapterhub.composing.comparison import Comparison

def check(path: Path) -> None: ...
def write(found: Comparison, path: Path) -> None: ...
