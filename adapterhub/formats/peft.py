"""Hugging Face PEFT: adapter_config.json + adapter_model.safetensors (or .bin, with consent).

How the tensors are called: `peft_keys`. Source: peft/utils/save_and_load.py, read at 0.20.1 and
run at 0.21.2.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub import schema, strictjson
from adapterhub.adapter import Adapter, Problem, Reading, SafeForm, SourceFile
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import AdapterHubError, NotSupported, OutputError, SchemaError
from adapterhub.formats import card, peft_sight
from adapterhub.formats.claims import claim
from adapterhub.formats.peft_keys import key, modules_of
from adapterhub.formats.peft_weights import PICKLE, WEIGHTS, Weights, read_weights
from adapterhub.formats.sight import Sight
from adapterhub.methods import TABLE as METHODS
from adapterhub.methods import Method, method_of
from adapterhub.methods.targets import pattern_problems
from adapterhub.tensorfile import Tensor, shown, write_file

__all__ = [
    "CONFIG",
    "PICKLE",
    "WEIGHTS",
    "key",
    "labels_of",
    "looks_like_path",
    "read",
    "recognises",
    "spelled",
    "write",
]

CONFIG = "adapter_config.json"
METADATA = {"format": "pt"}
# `name` or `owner/name`; what the Hub takes as the id of a repository.
_HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_FOLDER = re.compile(
    r"(models?|outputs?|checkpoints?|ckpts?|results|runs|weights)/|(.*/)?checkpoint-\d+$|"
    # No model of the Hub without an owner has one of these names, or an underscore.
    r"(models?|outputs?|checkpoints?|results|base|final|merged|[^/]*_[^/]*)$"
)
TASKS = (  # peft.TaskType
    *("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
)


def recognises(sight: Sight) -> bool:
    return peft_sight.recognises(sight)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    directory = sight.directory
    config, problems = _read_config(sight)
    row = method_of(str(config.get("peft_type")))
    if not problems:
        problems += _config_problems(config, row)
    weights, weight_problems = read_weights(sight, allow_pickle=allow_pickle)
    problems += weight_problems
    labels, label_problems = _read_labels(directory)
    problems += label_problems
    adapter = None
    if weights is not None and row is not None:
        modules, unknown = modules_of(weights[1], row.name)
        problems += _key_problems(unknown)
        adapter = _adapter(row.name, config, modules, labels)
        problems += row.implementation.problems(adapter)
    elif row is not None:
        problems += _schema_problems(row, config)
    front, card_problems = card.read(directory / "README.md")
    return Reading(
        path=directory if sight.file is None else sight.path,
        format="peft",
        method=row.name if row else _unknown_method(config),
        config=config,
        adapter=adapter,
        files=_files(sight, weights, adapter),
        problems=tuple(problems + card_problems),
        card=front,
        tensors=weights[1] if weights else {},
        outline=peft_sight.outline(sight) if adapter is None else None,
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
        base=claim(config),
        task=_string(config, "task_type"),
        labels=labels,
    )


def _string(config: Mapping[str, Any], field: str) -> str | None:
    value = config.get(field)
    return value if isinstance(value, str) and value else None


def _key_problems(unknown: Sequence[str]) -> list[Problem]:
    if not unknown:
        return []
    text = f"{len(unknown)} tensors have names that PEFT does not write: {', '.join(unknown[:5])}"
    return [_fatal("unknown-keys", text, "re-export with peft's save_pretrained")]


def _unknown_method(config: Mapping[str, Any]) -> str | None:
    peft_type = _string(config, "peft_type")
    return peft_type.lower() if peft_type else None


# --- config -----------------------------------------------------------------------------------


def _read_config(sight: Sight) -> tuple[Mapping[str, Any], list[Problem]]:
    if not sight.has_config:
        remedy = f"put the {CONFIG} that belongs to these weights beside them"
        return {}, [_fatal("no-config", f"{sight.directory} has no {CONFIG}", remedy)]
    return sight.config, [sight.config_problem] if sight.config_problem else []


def _config_problems(config: Mapping[str, Any], row: Method | None) -> list[Problem]:
    if _string(config, "peft_type") is None:
        return [_fatal("no-method", f"{CONFIG} names no peft_type", "re-export with peft")]
    if row is None:
        text = f"peft_type {shown(config['peft_type'])} is not supported by this version"
        remedy = (
            "no release of peft up to 0.21 has it: upgrade adapterhub, or correct the name "
            "(adapterhub methods)"
        )
        return [_fatal("method", text, remedy)]
    found = _base_problems(config) + _task_problems(config) + _version_problems(config)
    if row.successor:
        now = METHODS[row.successor].peft_type
        text = f"peft has renamed {row.peft_type}, and loads it no more"
        found.append(Problem("renamed", text, f"convert it to {now} with the script in peft"))
    if unknown := sorted(set(config) - row.fields()):
        names = ", ".join(shown(name) for name in unknown[:10])
        text = f"{CONFIG} has fields that this version does not know: {names}"
        found.append(Problem("unknown-fields", text, "they are kept; check that none matters"))
    if config.get("auto_mapping"):
        text = "auto_mapping names a class to import; it is kept as data and never imported"
        remedy = "have that class at hand where peft loads the adapter"
        found.append(Problem("auto-mapping", text, remedy))
    return found


def _schema_problems(row: Method, config: Mapping[str, Any]) -> list[Problem]:
    """What shows without tensors."""
    sentences = schema.problems(dict(config), row.schema)
    if sentences:
        return [_fatal("config", f"{CONFIG}: {line}", "correct the field") for line in sentences]
    return pattern_problems(config, ())


def _version_problems(config: Mapping[str, Any]) -> list[Problem]:
    """A build between two releases may have had fields, or meanings, that no release has."""
    version = _string(config, "peft_version")
    if version is None or not re.search(r"dev|[@+]", version):
        return []
    text = f"a development build of peft wrote it: {shown(version)}"
    return [Problem("peft-dev", text, "save it again with a release, and compare the outputs")]


def _task_problems(config: Mapping[str, Any]) -> list[Problem]:
    task = _string(config, "task_type")
    if task is None or task in TASKS:
        return []
    text = f"task_type {shown(task)} is none of peft's"
    return [Problem("task-type", text, f"correct it to one of {', '.join(TASKS)}")]


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


def _files(
    sight: Sight, weights: Weights | None, adapter: Adapter | None
) -> tuple[SourceFile, ...]:
    files = [_with_safe_form(weights, adapter)] if weights else _unread(sight)
    if sight.has_config:
        files.append(SourceFile(CONFIG, sight.config_path, "config"))
    for name in TOKENIZER_FILES:
        if sight.has(name):
            files.append(SourceFile(name, sight.directory / name, "tokenizer"))
    return tuple(files)


def _unread(sight: Sight) -> list[SourceFile]:
    """Weights that are there, and damaged or refused."""
    names = [name for name in (WEIGHTS, PICKLE) if sight.file is None and sight.has(name)]
    return [SourceFile(name, sight.directory / name, "weights") for name in names]


def _with_safe_form(weights: Weights, adapter: Adapter | None) -> SourceFile:
    """A pickle with what is stored in its place: its tensors under the keys that peft reads."""
    source = weights[0]
    if source.name != PICKLE or adapter is None:
        return source
    return replace(source, safe=SafeForm(WEIGHTS, spelled(adapter)))


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under PEFT's names, in their order. Raises NotSupported."""
    tensors = {key(adapter, module, role): t for module, role, t in adapter.tensors()}
    return dict(sorted(tensors.items()))


def write(adapter: Adapter, directory: Path) -> None:
    row = METHODS.get(adapter.method)
    if row is None or row.peft_type is None:
        raise NotSupported(
            f"PEFT has no spelling for the method {adapter.method!r}",
            remedy="write it in the format that it came in",
        )
    said = {
        "peft_type": row.peft_type,
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.base.revision,
        "task_type": adapter.task,
    }
    changed = {field: value for field, value in said.items() if _differs(adapter, field, value)}
    write_file(directory / WEIGHTS, spelled(adapter), METADATA)
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
