"""Hugging Face PEFT: adapter_config.json + adapter_model.safetensors (or .bin, with consent).

Keys are `base_model.model.<module path in the wrapped model>.<suffix>`; the adapter's own name is
not in them. Source of names: peft/utils/save_and_load.py, read at 0.20.1 and run at 0.21.2.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub import strictjson
from adapterhub.adapter import REPLACE, Adapter, BaseClaim, Problem, Reading, SourceFile
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import (
    AdapterHubError,
    NotSupported,
    OutputError,
    PickleRefused,
    SchemaError,
)
from adapterhub.formats import card, pickles
from adapterhub.formats.renamer import Renamer
from adapterhub.methods import TABLE as METHODS
from adapterhub.tensorfile import Tensor, read_header, shown, write_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
METADATA = {"format": "pt"}
WRAPPED = "wrapped:"  # replace:… of a module that an adapter wraps
TOKENS_WRAPPED = "tokens_wrapped:"  # … or that trainable tokens wrap

KEYS = Renamer(
    (
        ("base_model.model.{module}.lora_A.weight", "lora_A"),
        ("base_model.model.{module}.lora_B.weight", "lora_B"),
        ("base_model.model.{module}.lora_B.bias", "lora_B.bias"),
        ("base_model.model.{module}.lora_embedding_A", "lora_embedding_A"),
        ("base_model.model.{module}.lora_embedding_B", "lora_embedding_B"),
        ("base_model.model.{module}.lora_magnitude_vector", "lora_magnitude_vector"),
        ("base_model.model.{module}.lora_diag", "lora_diag"),
        ("base_model.model.{module}.token_adapter.trainable_tokens_delta", "token_rows"),
        ("base_model.model.{module}.token_adapter.base_layer.{name}", TOKENS_WRAPPED + "{name}"),
        ("base_model.model.{module}.base_layer.{name}", WRAPPED + "{name}"),
        ("base_model.model.{module}.{name}", REPLACE + "{name}"),
    )
)


# Parts of names that the wrapper owns. Where one is left in a module path, the key is none that
# PEFT writes (`lora_A.default.weight`), and no whole tensor of a base has such a name.
_WRAPPERS = re.compile(
    r"(^|\.)(modules_to_save|original_module|token_adapter|trainable_tokens_delta|"
    r"(lora|ia3|hada|lokr|oft|boft|vera|randlora|adapter)_[^.]*)(\.|$)"
)
_ANY_WRAPPED = re.compile(f"^({WRAPPED}|{TOKENS_WRAPPED})")
# `name` or `owner/name`; what the Hub takes as the id of a repository.
_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_FOLDER = re.compile(
    r"(models?|outputs?|checkpoints?|ckpts?|results|runs|weights)/|(.*/)?checkpoint-\d+$"
)


def recognises(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in (CONFIG, WEIGHTS, PICKLE))
    return path.name in (CONFIG, WEIGHTS, PICKLE)


def read(path: Path, *, allow_pickle: bool) -> Reading:
    directory = path if path.is_dir() else path.parent
    config, problems = _read_config(directory)
    method = _method_name(config)
    if not problems:
        problems += _config_problems(config, method)
    weights, weight_problems = _read_weights(directory, allow_pickle)
    problems += weight_problems
    labels, label_problems = _read_labels(directory)
    problems += label_problems
    adapter = None
    if weights is not None:
        modules, key_problems = _modules(weights[1])
        problems += key_problems
        if method is not None and method in METHODS:
            adapter = _adapter(method, config, modules, labels)
            problems += METHODS[method].implementation.problems(adapter)
    front, card_problems = card.read(directory / "README.md")
    return Reading(
        path=directory,
        format="peft",
        method=method,
        config=config,
        adapter=adapter,
        files=_files(directory, weights[0] if weights else None),
        problems=tuple(problems + card_problems),
        card=front,
    )


def _fatal(code: str, message: str, remedy: str) -> Problem:
    return Problem(code, message, remedy, fatal=True)


def _adapter(
    method: str,
    config: Mapping[str, Any],
    modules: Mapping[str, Mapping[str, Tensor]],
    labels: tuple[str, ...],
) -> Adapter:
    return Adapter(
        method=method,
        format="peft",
        config=config,
        modules=modules,
        base=BaseClaim(
            name=_string(config, "base_model_name_or_path"), revision=_string(config, "revision")
        ),
        task=_string(config, "task_type"),
        labels=labels,
    )


def _string(config: Mapping[str, Any], field: str) -> str | None:
    value = config.get(field)
    return value if isinstance(value, str) and value else None


def _method_name(config: Mapping[str, Any]) -> str | None:
    peft_type = _string(config, "peft_type")
    return peft_type.lower() if peft_type else None


# --- config -----------------------------------------------------------------------------------


def _read_config(directory: Path) -> tuple[dict[str, Any], list[Problem]]:
    path = directory / CONFIG
    if not path.is_file():
        remedy = f"put the {CONFIG} that belongs to these weights beside them"
        return {}, [_fatal("no-config", f"{directory} has no {CONFIG}", remedy)]
    try:
        return strictjson.load_object(path), []
    except AdapterHubError as error:
        return {}, [_fatal("config", error.message, error.remedy)]


def _config_problems(config: Mapping[str, Any], method: str | None) -> list[Problem]:
    if method is None:
        return [_fatal("no-method", f"{CONFIG} names no peft_type", "re-export with peft")]
    if method not in METHODS:
        known = ", ".join(sorted(row.peft_type for row in METHODS.values()))
        text = f"peft_type {shown(config['peft_type'])} is not supported by this version"
        return [_fatal("method", text, f"supported: {known}")]
    found = _base_problems(config)
    unknown = sorted(set(config) - METHODS[method].implementation.fields())
    if unknown:
        names = ", ".join(shown(name) for name in unknown[:10])
        text = f"{CONFIG} has fields that this version does not know: {names}"
        found.append(Problem("unknown-fields", text, "they are kept; check that none matters"))
    if config.get("auto_mapping"):
        text = "auto_mapping names a class to import; it is kept as data and never imported"
        found.append(Problem("auto-mapping", text, "none needed"))
    return found


def _base_problems(config: Mapping[str, Any]) -> list[Problem]:
    name = _string(config, "base_model_name_or_path")
    if name is None:
        return [Problem("no-base", f"{CONFIG} names no base model", "give --base when adding")]
    if looks_like_path(name):
        text = f"the base is a path on somebody's machine: {shown(name)}"
        return [Problem("local-base", text, "give --base when adding")]
    if _string(config, "revision") is None:
        text = f"the base {name} is not pinned to a revision"
        return [Problem("unpinned-base", text, "give --base DIR when adding: its digest pins it")]
    return []


def looks_like_path(name: str) -> bool:
    """Whether a base's name is a path rather than a Hub id (`name` or `owner/name`).

    `models/mistral-7b` and `run/checkpoint-500` could be ids, and are folders in practice.
    """
    return _HUB_ID.fullmatch(name) is None or _FOLDER.match(name) is not None


def _read_labels(directory: Path) -> tuple[tuple[str, ...], list[Problem]]:
    """Label names from a `config.json` beside the adapter; PEFT itself saves none."""
    path = directory / "config.json"
    if not path.is_file():
        return (), []
    try:
        return labels_of(strictjson.load_object(path, constants=True)), []
    except AdapterHubError as error:
        return (), [Problem("labels", error.message, "give --labels when adding")]


def labels_of(model_config: Mapping[str, Any]) -> tuple[str, ...]:
    """`id2label` of a transformers config, in order. Raises SchemaError if it has gaps."""
    id2label = model_config.get("id2label")
    if not isinstance(id2label, dict):
        return ()
    expected = [str(i) for i in range(len(id2label))]
    if set(id2label) != set(expected):
        raise SchemaError("id2label of config.json does not number its labels from 0")
    labels = tuple(id2label[number] for number in expected)
    if not all(isinstance(label, str) for label in labels):
        raise SchemaError("id2label of config.json holds labels that are no text")
    return labels


# --- weights ----------------------------------------------------------------------------------


def _read_weights(
    directory: Path, allow_pickle: bool
) -> tuple[tuple[SourceFile, Mapping[str, Tensor]] | None, list[Problem]]:
    safe, pickle = directory / WEIGHTS, directory / PICKLE
    problems = []
    if safe.is_file() and pickle.is_file():
        text = f"both {WEIGHTS} and {PICKLE} are present; {PICKLE} is left aside"
        problems.append(Problem("two-weights", text, f"remove {PICKLE}"))
    if not safe.is_file() and not pickle.is_file():
        text = f"{directory} has no {WEIGHTS}"
        return None, [_fatal("no-weights", text, "copy the weights beside the config")]
    try:
        if safe.is_file():
            tensors: Mapping[str, Tensor] = read_header(safe).tensors
            return (SourceFile(WEIGHTS, safe, "weights"), tensors), problems
        if not allow_pickle:
            text = f"{PICKLE} is a pickle, which can run code when it is read"
            raise PickleRefused(text, remedy="--allow-pickle reads its tensors and nothing else")
        return (SourceFile(PICKLE, pickle, "weights"), pickles.load(pickle)), problems
    except AdapterHubError as error:
        return None, [*problems, _fatal(error.code, error.message, error.remedy)]


def _modules(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], list[Problem]]:
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name in sorted(tensors):
        place = _place(name)
        if place is None:
            unknown.append(shown(name))
            continue
        module, role = place
        if role in modules.setdefault(module, {}):
            unknown.append(f"{shown(name)} (stands twice, with and without base_layer)")
        modules[module][role] = tensors[name]
    if not unknown:
        return modules, []
    text = f"{len(unknown)} tensors have names that PEFT does not write: {', '.join(unknown[:5])}"
    return modules, [_fatal("unknown-keys", text, "re-export with peft's save_pretrained")]


def _place(name: str) -> tuple[str, str] | None:
    """`(module, role)` of a tensor's name; None for a name that PEFT does not write."""
    place = KEYS.read(name)
    if place is None:
        return None
    module, role = place[0], re.sub(_ANY_WRAPPED, REPLACE, place[1])
    own = f"{module}.{role.removeprefix(REPLACE)}" if role.startswith(REPLACE) else module
    return None if _WRAPPERS.search(own) else (module, role)


def _files(directory: Path, weights: SourceFile | None) -> tuple[SourceFile, ...]:
    files = [weights] if weights else []
    if (directory / CONFIG).is_file():
        files.append(SourceFile(CONFIG, directory / CONFIG, "config"))
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            files.append(SourceFile(name, directory / name, "tokenizer"))
    return tuple(files)


# --- writing ----------------------------------------------------------------------------------


def write(adapter: Adapter, directory: Path) -> None:
    if adapter.method not in METHODS:
        raise NotSupported(f"PEFT has no spelling for the method {adapter.method!r}")
    said = {
        "peft_type": METHODS[adapter.method].peft_type,
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.base.revision,
        "task_type": adapter.task,
    }
    changed = {field: value for field, value in said.items() if _differs(adapter, field, value)}
    tensors = {key(adapter, module, role): t for module, role, t in adapter.tensors()}
    write_file(directory / WEIGHTS, dict(sorted(tensors.items())), METADATA)
    # Keys are not sorted: the first pattern of rank_pattern that matches wins.
    text = json.dumps({**adapter.config, **changed}, indent=2, ensure_ascii=False)
    _write_text(directory / CONFIG, text + "\n")


def _differs(adapter: Adapter, field: str, value: str | None) -> bool:
    """Whether the config says otherwise; null, "" and no field at all say the same."""
    return (adapter.config.get(field) or None) != value


def _write_text(path: Path, text: str) -> None:
    """The whole file or none of it. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}",
            remedy="free some space, or choose a directory that you may write to",
        ) from error


def key(adapter: Adapter, module: str, role: str) -> str:
    """The name on disk of a tensor. Raises NotSupported where PEFT has none."""
    roles = adapter.modules[module]
    wrapper = TOKENS_WRAPPED if "token_rows" in roles else REPLACE
    wrapper = WRAPPED if any(other.startswith("lora_") for other in roles) else wrapper
    name = KEYS.write(module, role.replace(REPLACE, wrapper, 1))
    if name is None or _place(name) != (module, role):
        raise NotSupported(f"PEFT has no spelling for {role} of {module}")
    return name
