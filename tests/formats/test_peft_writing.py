"""`read(write(a)) == a`, and what PEFT's names cannot say is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub import formats
from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.errors import NotSupported, OutputError, UnknownFormat
from adapterhub.formats import peft, peft_keys
from adapterhub.formats.renamer import Renamer
from adapterhub.tensorfile import ArrayTensor, read_header

rng = np.random.default_rng(7)


def values(*shape: int, dtype: Any = np.float32) -> ArrayTensor:
    return ArrayTensor(rng.standard_normal(shape).astype(dtype))


ALL_ROLES = {
    "h.0.q": {
        "lora_A": values(2, 3),
        "lora_B": values(4, 2, dtype=ml_dtypes.bfloat16),
        "lora_B.bias": values(4),
        "lora_magnitude_vector": values(4),
        "lora_diag": values(2),
        "replace:bias": values(4, dtype=np.float16),
    },
    "wte": {
        "lora_embedding_A": values(2, 9),
        "lora_embedding_B": values(3, 2),
        "replace:weight": values(9, 3),
    },
    "wpe": {"token_rows": values(1, 3), "replace:weight": values(5, 3)},
    "conv": {"lora_A": values(2, 3, 1, 1), "lora_B": values(5, 2, 1, 1)},
    "attn.base_layer.out_proj": {"lora_A": values(2, 3), "lora_B": values(3, 2)},
    "mlp.experts": {
        "base_layer.base_layer.lora_A": values(4, 3),
        "base_layer.base_layer.lora_B": values(2, 4),
        "base_layer.lora_A": values(2, 3),
        "base_layer.lora_B": values(2, 2),
        "lora_A": values(4, 3),
        "lora_B": values(2, 4),
        "replace:gate_up_proj_bias": values(2, 3),
    },
    "v": {"lora_A": values(2, 3), "lora_B": values(4, 2), "lora_velora_embed": values(1)},
    "m": {"lora_A": values(2, 3), "lora_B": values(4, 2), "lora_monteclora.std_prior": values(2)},
    "classifier": {
        "replace:modules_to_save.dense.bias": values(3),
        "replace:original_module.dense.bias": values(3),
    },
    "classifier.dense": {"replace:weight": values(3, 3), "replace:bias": values(3)},
    "norm": {"replace:bias": values(3)},
}
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_dora": True,
    "rank_pattern": {"z.*": 4, "a.*": 2, "m": 3},
    "future_field": {"z": [1, {"y": None}], "a": "ä \u2028"},
    "base_model_name_or_path": "owner/base",
    "revision": "abc",
    "task_type": "SEQ_CLS",
}


def make(modules: Mapping[str, Any], config: Mapping[str, Any] = CONFIG) -> Adapter:
    base = BaseClaim(config.get("base_model_name_or_path"), config.get("revision"))
    return Adapter("lora", "peft", config, modules, base, config.get("task_type"))


def content(adapter: Adapter) -> dict[tuple[str, str], tuple[str, tuple[int, ...], bytes]]:
    return {
        (module, role): (t.dtype, t.shape, b"".join(t.pieces()))
        for module, role, t in adapter.tensors()
    }


def reread(adapter: Adapter, directory: Path) -> Adapter:
    formats.write(adapter, directory, to="peft")
    again = formats.read(directory).adapter
    assert again is not None
    return again


def test_every_role_comes_back_bit_by_bit(tmp_path: Path) -> None:
    adapter = make(ALL_ROLES)
    again = reread(adapter, tmp_path)
    assert content(again) == content(adapter)
    assert again.config == adapter.config
    assert (again.base, again.task) == (adapter.base, adapter.task)
    assert sorted(p.name for p in tmp_path.iterdir()) == [peft.CONFIG, peft.WEIGHTS]
    header = read_header(tmp_path / peft.WEIGHTS)
    assert header.metadata == {"format": "pt"}
    assert list(header.tensors)[:2] == [
        "base_model.model.attn.base_layer.out_proj.lora_A.weight",
        "base_model.model.attn.base_layer.out_proj.lora_B.weight",
    ]
    assert "base_model.model.h.0.q.base_layer.bias" in header.tensors
    assert "base_model.model.norm.bias" in header.tensors


def test_patterns_keep_their_order_since_the_first_match_wins(tmp_path: Path) -> None:
    again = reread(make(ALL_ROLES), tmp_path)
    assert list(again.config["rank_pattern"]) == ["z.*", "a.*", "m"]
    assert json.dumps(again.config) == json.dumps(CONFIG)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        path.mkdir()
        formats.write(make(ALL_ROLES), path, to="peft")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_fields_that_were_not_there_are_not_invented(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "task_type": "", "revision": None}
    again = reread(make({"q": ALL_ROLES["conv"]}, config), tmp_path)
    assert again.config == config


def test_what_the_adapter_says_wins_over_its_old_config(tmp_path: Path) -> None:
    adapter = Adapter(
        "lora", "mlx", {"r": 2, "task_type": "X"}, ALL_ROLES, BaseClaim("a/b", "c"), "SEQ_CLS"
    )
    again = reread(adapter, tmp_path)
    assert again.config == {
        "r": 2,
        "task_type": "SEQ_CLS",
        "peft_type": "LORA",
        "base_model_name_or_path": "a/b",
        "revision": "c",
    }


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("q", "ia3_l"),
        ("q", "lora_C"),
        ("q", "replace:"),
        ("q", "replace:a.b"),
        ("", "lora_A"),
        ("a..b", "lora_A"),
        ("x.lora_A", "replace:weight"),
        ("x.base_layer", "replace:weight"),
        ("x.modules_to_save", "replace:weight"),
        ("x", "replace:lora_A"),
    ],
)
def test_what_peft_cannot_say(tmp_path: Path, module: str, role: str) -> None:
    adapter = make({module: {role: values(2)}})
    with pytest.raises(NotSupported, match="PEFT has no spelling for"):
        formats.write(adapter, tmp_path, to="peft")
    assert list(tmp_path.iterdir()) == []


def test_methods_and_formats_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="PEFT has no spelling for the method 'mam'") as refused:
        formats.write(Adapter("mam", "adapters", {}, {}), tmp_path, to="peft")
    assert refused.value.remedy == "write it in the format that it came in"
    with pytest.raises(UnknownFormat, match="no format is called 'nonsense'") as caught:
        formats.write(make(ALL_ROLES), tmp_path, to="nonsense")
    assert caught.value.remedy == f"formats: {', '.join(sorted(formats.TABLE))}"


def test_a_full_disk_leaves_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = os.fsync, []

    def fsync(fd: int) -> None:
        count.append(fd)
        if len(count) == 3:  # the weights, their directory, then the config
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"adapter_config\.json cannot be written: No space left"):
        formats.write(make(ALL_ROLES), tmp_path, to="peft")
    assert [p.name for p in tmp_path.iterdir()] == [peft.WEIGHTS]
    assert formats.read(tmp_path).adapter is None


# --- the renamer ------------------------------------------------------------------------------

PARTS = st.sampled_from(
    ["q", "0", "lora_A", "weight", "base_layer", "token_adapter", "{name}", "{module}", "a b", "ü"]
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
ROLES = st.one_of(
    st.sampled_from(["lora_A", "lora_B", "lora_B.bias", "lora_embedding_A", "token_rows"]),
    PARTS.map(lambda part: f"replace:{part}"),
    PARTS.map(lambda part: f"wrapped:{part}"),
)


@given(PATHS, ROLES)
def test_what_the_renamer_writes_it_reads_back(module: str, role: str) -> None:
    key = peft_keys.KEYS.write(module, role)
    if key is not None:
        assert peft_keys.KEYS.read(key) == (module, role)
    elif not set(module.split(".")) & {"lora_A", "base_layer", "token_adapter"}:
        assert role.split(":")[-1] in ("lora_A", "lora_B")  # `x.lora_A` is no whole tensor


@given(st.lists(PARTS, min_size=1, max_size=6).map(".".join))
def test_what_the_renamer_reads_it_writes_back(path: str) -> None:
    key = f"base_model.model.{path}"
    place = peft_keys.KEYS.read(key)
    assert place is None or peft_keys.KEYS.write(*place) == key


def test_rows_are_tried_in_their_order() -> None:
    renamer = Renamer((("x.{module}.s", "special"), ("x.{module}.{name}", "r:{name}")))
    assert renamer.read("x.a.b.s") == ("a.b", "special")
    assert renamer.read("x.a.b.t") == ("a.b", "r:t")
    assert renamer.read("y.a.b.t") is None
    assert renamer.write("a.b", "r:t") == "x.a.b.t"
    assert renamer.write("a.b", "r:s") is None  # it would be read as special
    assert renamer.write("a.b", "other") is None


@given(config=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
def test_unknown_fields_come_back(tmp_path: Path, config: dict[str, Any]) -> None:
    fields = {"peft_type": "LORA", "r": 2, "unknown": config}
    assert reread(make({"q": ALL_ROLES["conv"]}, fields), tmp_path).config == fields
