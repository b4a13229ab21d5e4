"""Any JSON value in any field of a config: a reading, an inspection, or a named error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub import formats
from adapterhub.errors import AdapterHubError
from adapterhub.methods import lora
from adapterhub.registry import inspection

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    10**300,
    1.5,
    1e300,
    "",
    "x",
    "\x1b[31m\u202e",
    "../../etc",
    "x" * 10_000,
    [],
    [None],
    [1, "a"],
    [["a"]],
    {},
    {"a": None},
    {"q": 2},
    {"(": 2},
    {"(a|a)*[bc]": 2},
    {"q": "2"},
    {"": 2},
    [[[[[[[[{"a": [[[[]]]]}]]]]]]]],
)
FIELDS = sorted(lora.fields() | {"unknown"})


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_a_field(peft_dir: Callable[..., Path], field: str) -> None:
    path = peft_dir()
    config = json.loads((path / "adapter_config.json").read_text())
    for value in VALUES:
        (path / "adapter_config.json").write_text(json.dumps({**config, field: value}))
        reading = formats.read(path)
        seen = inspection.inspect(reading, source="x")
        json.dumps(seen.to_dict(), allow_nan=False).encode("utf-8")
        assert all(p.message.isprintable() and len(p.message) < 2000 for p in seen.problems)
        try:
            lora.meaning(inspection.require(reading))
        except AdapterHubError as error:
            assert error.message.isprintable() and error.remedy
            assert all(detail.isprintable() for detail in error.details)
