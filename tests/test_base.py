from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import base as base_module
from adapterhub import digest
from adapterhub.base import Base, LeafCache, open_base
from adapterhub.errors import InvalidBase
from adapterhub.tensorfile import ArrayTensor, tensor_digests, write_file

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
HOUR = 3600


def save(path: Path, names: list[str], config: Mapping[str, Any], *, age: float = HOUR) -> Path:
    """A checkpoint whose weights were last changed `age` seconds ago."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    tensors = {n: ArrayTensor(np.full((2, 3), i, np.float32)) for i, n in enumerate(names)}
    write_file(path / "model.safetensors", tensors)
    grow_old(path / "model.safetensors", age)
    return path


def grow_old(path: Path, age: float = HOUR) -> None:
    then = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(then, then))


class Counter:
    """How often files are hashed, and the real thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(base_module, "tensor_digests", self)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, bytes]:
        self.calls += 1
        return tensor_digests(*args, **kwargs)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> LeafCache:
    return LeafCache(tmp_path / "cache" / "leaves")


NAMES = ["model.embed_tokens.weight", "model.norm.weight"]


# --- roots and their cache --------------------------------------------------------------------


def test_the_weights_root_is_that_of_the_definition(tmp_path: Path) -> None:
    base = open_base(save(tmp_path / "b", NAMES, LLAMA))
    arrays = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(NAMES)}
    leaves = {
        name: digest.leaf(name, "F32", (2, 3), digest.of_tensor(array.tobytes()))
        for name, array in arrays.items()
    }
    assert base.weights_root() == digest.root(digest.WEIGHTS_TAG, leaves)
    assert base.structure_root == digest.structure_root((name, (2, 3)) for name in NAMES)
    assert (base.parameters, base.dtypes) == (12, ("F32",))


def test_a_second_root_reads_nothing(tmp_path: Path, hashing: Counter, cache: LeafCache) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    told: list[int] = []
    first = open_base(path).weights_root(cache)
    second = open_base(path).weights_root(cache, told.append)
    assert (first == second, hashing.calls, sum(told)) == (True, 1, 48)
    assert open_base(path).weights_root() == first
    assert hashing.calls == 2  # without a cache


def rewrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def replace(path: Path) -> None:
    """Another inode with the same size and mtime."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


def grow(path: Path) -> None:
    stat = path.stat()
    tensors = {n: ArrayTensor(np.ones((2, 9), np.float32)) for n in NAMES}
    write_file(path, tensors)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, replace, grow])
def test_a_changed_file_is_hashed_anew(
    tmp_path: Path, hashing: Counter, cache: LeafCache, change: Any
) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    before = open_base(path).weights_root(cache)
    change(path / "model.safetensors")
    after = open_base(path).weights_root(cache)
    assert (hashing.calls, before == after) == (2, False)
    assert after == open_base(path).weights_root()


def test_a_file_changed_a_moment_before_is_not_remembered(
    tmp_path: Path, hashing: Counter, cache: LeafCache
) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA, age=0.5)
    open_base(path).weights_root(cache)
    open_base(path).weights_root(cache)
    assert hashing.calls == 2
    assert not cache.directory.exists()


def test_the_moment_counts_from_the_start_of_hashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: LeafCache
) -> None:
    """A long hash of a file that had just been written must not make it look quiet."""
    path = save(tmp_path / "b", NAMES, LLAMA, age=0)
    start = time.time_ns()
    clock = iter([start, start + 60_000_000_000, start + 120_000_000_000])
    monkeypatch.setattr(base_module.time, "time_ns", lambda: next(clock))
    open_base(path).weights_root(cache)
    assert not cache.directory.exists()


def entry(cache: LeafCache) -> Path:
    (found,) = cache.directory.iterdir()
    return found


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_digest(path: Path) -> None:
    document = json.loads(path.read_text())
    name = next(iter(document["digests"]))
    document["digests"][name] = "00" * 32
    path.write_text(json.dumps(document))


def shorten_a_digest(path: Path) -> None:
    document = json.loads(path.read_text())
    document["digests"] = dict.fromkeys(document["digests"], "00")
    path.write_text(json.dumps(document))


def another_type(path: Path) -> None:
    path.write_text("[1, 2]")


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_digest, shorten_a_digest, another_type, nested, directory]
)
def test_a_damaged_cache_entry_counts_as_absent(
    tmp_path: Path, hashing: Counter, cache: LeafCache, damage: Any
) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    root = open_base(path).weights_root(cache)
    damage(entry(cache))
    assert open_base(path).weights_root(cache) == root
    assert hashing.calls == 2
    assert len(list(cache.directory.iterdir())) == 1  # no temporary file left


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, hashing: Counter) -> None:
    (tmp_path / "file").write_text("")
    cache = LeafCache(tmp_path / "file" / "leaves")
    path = save(tmp_path / "b", NAMES, LLAMA)
    assert open_base(path).weights_root(cache) == open_base(path).weights_root()
    assert hashing.calls == 2


def test_a_file_written_to_while_it_is_hashed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: LeafCache
) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)

    def interrupted(*args: Any, **kwargs: Any) -> dict[str, bytes]:
        os.utime(path / "model.safetensors", ns=(1, 1))
        return tensor_digests(*args, **kwargs)

    monkeypatch.setattr(base_module, "tensor_digests", interrupted)
    with pytest.raises(InvalidBase, match=r"model\.safetensors changed while it was read"):
        open_base(path).weights_root(cache)
    assert not cache.directory.exists()


def test_a_file_replaced_after_opening_is_not_hashed_under_old_offsets(tmp_path: Path) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    base = open_base(path)
    grow(path / "model.safetensors")
    with pytest.raises(InvalidBase, match=r"model\.safetensors changed while it was in use"):
        base.weights_root()


# --- names, as stored and in the class --------------------------------------------------------

BARE = ["wte.weight", "h.0.attn.c_attn.weight"]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_ties_are_recognised_however_the_files_spell_them(tmp_path: Path, prefix: str) -> None:
    """GPT-2 on the Hub has bare names, and a config that names the class with a head."""
    base = open_base(save(tmp_path / "b", [f"{prefix}{name}" for name in BARE], GPT2))
    assert base.prefix == prefix.rstrip(".")
    assert base.tied == {"lm_head.weight": f"{prefix}wte.weight"}
    assert base.in_class(f"{prefix}h.0.attn.c_attn") == "transformer.h.0.attn.c_attn"
    assert base.in_class("lm_head.weight") == "lm_head.weight"
    assert base.is_backbone(f"{prefix}wte.weight") and not base.is_backbone("lm_head.weight")


def test_ties_follow_the_config(tmp_path: Path) -> None:
    def opened(name: str, tie: object, *more: str) -> Base:
        config = {**LLAMA, "tie_word_embeddings": tie}
        return open_base(save(tmp_path / name, [*NAMES, *more], config))

    tie = {"lm_head.weight": "model.embed_tokens.weight"}
    assert opened("tied", True).tied == tie
    assert opened("untied", False).tied == {}
    both = opened("both", True, "lm_head.weight")
    assert (both.tied, both.ties) == ({}, tie)


def test_a_view_in_memory_has_tied_tensors_under_all_their_names(tmp_path: Path) -> None:
    config = {**GPT2, "tie_word_embeddings": True}
    base = open_base(save(tmp_path / "b", BARE, config))
    view = base.in_memory(base.model_class)
    assert view.borrowed == {"lm_head.weight": "wte.weight"}
    assert view.tensors == {**base.tensors, "lm_head.weight": base.tensors["wte.weight"]}
    assert view.in_memory(view.model_class) is view
    assert (base.in_memory(None), base.borrowed) == (base, {})
    bart = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
    names = ["model.encoder.layernorm_embedding.weight", "lm_head.weight"]
    head = open_base(save(tmp_path / "h", names, bart))
    shared = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    borrowed = head.in_memory(head.model_class).borrowed
    assert borrowed == {f"{name}.weight": "lm_head.weight" for name in shared}


def test_a_bare_model_that_was_saved_without_a_head_has_no_ties(tmp_path: Path) -> None:
    base = open_base(save(tmp_path / "b", BARE, {**GPT2, "architectures": ["GPT2Model"]}))
    assert (base.prefix, base.ties, base.in_class("h.0.x")) == ("", {}, "h.0.x")


@pytest.mark.parametrize("model_type", ["no-such-model", "../../etc/passwd", 7, None])
def test_an_unknown_model_type_is_a_base_all_the_same(tmp_path: Path, model_type: object) -> None:
    base = open_base(save(tmp_path / "b", NAMES, {"model_type": model_type}))
    assert (base.architecture, base.model_class, base.prefix, base.ties) == (None, None, "", {})
    assert base.is_backbone("anything") and base.in_class("a.b") == "a.b"


@pytest.mark.parametrize("named", [[], ["NoSuchClass"], "LlamaForCausalLM", [7], None])
def test_a_config_that_names_no_known_class_means_the_bare_one(
    tmp_path: Path, named: object
) -> None:
    base = open_base(save(tmp_path / "b", NAMES, {**LLAMA, "architectures": named}))
    assert base.model_class is not None and base.model_class.name == "LlamaModel"


# --- digests of config and tokenizer ----------------------------------------------------------


def test_the_config_digest_ignores_who_wrote_it(tmp_path: Path) -> None:
    def of(**fields: Any) -> str:
        return open_base(save(tmp_path / "b", NAMES, {**LLAMA, **fields})).config_digest

    plain = of()
    assert plain == of(transformers_version="5.1", _name_or_path="someone/x")
    assert plain == digest.of_bytes(digest.canonical(LLAMA))
    assert plain != of(hidden_size=8)


def test_a_config_may_hold_infinity(tmp_path: Path) -> None:
    path = save(tmp_path / "b", NAMES, {**LLAMA, "time_step_limit": [0.0, float("inf")]})
    assert "Infinity" in (path / "config.json").read_text()
    base = open_base(path)
    assert base.config["time_step_limit"] == [0.0, float("inf")]
    other = save(tmp_path / "c", NAMES, {**LLAMA, "time_step_limit": [0.0, 1.0]})
    assert base.config_digest != open_base(other).config_digest


def test_a_config_without_canonical_form_is_refused(tmp_path: Path) -> None:
    base = open_base(save(tmp_path / "b", NAMES, {**LLAMA, "n": 2**60}))
    with pytest.raises(InvalidBase, match=r"config\.json: integer \d+ is beyond"):
        _ = base.config_digest


def test_the_tokenizer_digest_binds_names_and_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    digests = [open_base(path).tokenizer_digest]
    (path / "vocab.txt").write_text("a\nb\n")
    digests.append(open_base(path).tokenizer_digest)
    (path / "vocab.txt").write_text("a\nc\n")
    digests.append(open_base(path).tokenizer_digest)
    (path / "vocab.txt").rename(path / "vocab.json")
    digests.append(open_base(path).tokenizer_digest)
    (path / "README.md").write_text("not part of it")
    digests.append(open_base(path).tokenizer_digest)
    assert digests[0] is None
    assert len(set(digests)) == 4 and digests[3] == digests[4]


# --- what is no base --------------------------------------------------------------------------


def refused(path: Path) -> InvalidBase:
    with pytest.raises(InvalidBase) as caught:
        open_base(path)
    return caught.value


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").message == f"{tmp_path / 'gone'} is not a directory"
    (tmp_path / "b").mkdir()
    assert refused(tmp_path / "b").message == f"{tmp_path / 'b'} has no config.json"
    (tmp_path / "b" / "config.json").write_text("{}")
    assert "no model.safetensors" in refused(tmp_path / "b").message
    assert refused(tmp_path / "b").remedy


def test_an_adapter_given_as_a_base_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("")
    error = refused(tmp_path)
    assert error.message.endswith("has no config.json")
    assert error.remedy == "this is an adapter; give it as ADAPTER, not as BASE"


def test_a_pickle_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    error = refused(tmp_path)
    assert 'pytorch_model.bin" is a pickle' in error.message
    assert "convert it" in error.remedy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a JSON list"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    (path / "config.json").write_text(text)
    assert says in refused(path).message


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "b", NAMES, LLAMA)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in refused(path).message
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git" in refused(path).message.lower()


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert refused(tmp_path / "a").remedy
