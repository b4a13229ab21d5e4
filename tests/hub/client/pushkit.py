"""Adapters to push, made by what the tests of the registry use."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "registry"))

from regkit import lora, save_adapter, save_base, save_tagger

__all__ = ["lora", "save_adapter", "save_base", "save_tagger"]
