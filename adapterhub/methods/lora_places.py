"""Where AdapterHub adds LoRA to another weight than its keys name, or to parts of one.

`registry/bottlenecks.json` says so, for each architecture under `loras`; `runtime.places` reads
the rest of that file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from adapterhub import schema

FILE = "bottlenecks.json"


@dataclass(frozen=True)
class Fused:
    """A matrix that AdapterHub adds LoRA to under another name than the model's, or of which it
    adds to `parts`: of "qkv", one third of the rows each."""

    stored: str
    module: str
    parts: str = ""


@cache
def table() -> Mapping[str, Mapping[str, Any]]:
    """Model type → its row."""
    path = schema.data_dir("registry") / FILE
    found: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


def fused_of(model_type: str | None, module: str) -> tuple[str, str] | None:
    """`(path in the model, parts)` for a module that an adapter's keys name, with whatever stands
    before the base model's paths; None where it is what it is called."""
    row = table().get(model_type or "", {})
    row = table()[row["same_as"]] if "same_as" in row else row
    for fused in (Fused(**lora) for lora in row.get("loras", ())):
        pattern = re.escape(fused.stored).replace(r"\*", r"(0|[1-9][0-9]{0,5})")
        if match := re.fullmatch(rf"((?:\w+\.)??){pattern}", module):
            return match[1] + fused.module.replace("*", match[2]), fused.parts
    return None
