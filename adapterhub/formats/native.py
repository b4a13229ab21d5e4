"""adapterhub's own spelling, of methods that no library has one for.

    adapter_config.json        {"adapterhub": 1, "method": "bitfit", …}
    adapter_model.safetensors

`adapterhub` is the version of this spelling; the method's fields stand beside it, and those of the
base and the task as PEFT calls them; `labels` is a list of names. Tensors are called by what an
adapter has, so that nothing has to be guessed:

    encoder.layer.0.output.dense.bias                  a whole tensor: `replace:bias` of the module
    encoder.layer.0.output.dense:weight.values         a role of a module
    :intrinsic_vector                                  a role of none, shared by all modules
    encoder.layer.0.output.ExpertSoup.MoA_A.…          AdaMix's, as its authors' code calls them

Weights are never pickles here. What roles a method has: its file in `methods`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, Problem, Reading, SourceFile
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import AdapterHubError, NotSupported
from adapterhub.formats import card
from adapterhub.formats.checking import (
    base_problems,
    method_problems,
    unknown_keys,
    write_whole,
)
from adapterhub.formats.claims import claim
from adapterhub.formats.sight import CONFIG, Sight
from adapterhub.methods.adamix import SOUP
from adapterhub.tensorfile import Tensor, read_header, shown, write_file

FORMAT = "native"
VERSION = 1
WEIGHTS = "adapter_model.safetensors"
METHODS = (
    *("adamix", "bitfit", "bottleneck", "diff_pruning", "fishmask", "intrinsic_said", "krona"),
    "ladder_side",
)
_OWN = ("adapterhub", "method", "labels")
_ROLE = ":"
_SOUP = f".{SOUP}."
Modules = dict[str, dict[str, Tensor]]


def is_config(config: Mapping[str, Any]) -> bool:
    """What it is for certain: both fields, and nobody else's."""
    return "adapterhub" in config and "method" in config and "peft_type" not in config


def recognises(sight: Sight) -> bool:
    return is_config(sight.config)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    config, problems = _checked(sight.config)
    method = str(sight.config["method"])[:80]
    tensors, found = _tensors(sight)
    problems += found
    adapter = None
    if tensors is not None and not problems:
        modules, unknown = modules_of(method, tensors)
        problems += unknown_keys(unknown, "adapterhub")
        adapter = _adapter(method, config, modules, sight.config.get("labels"))
        problems += [*method_problems(adapter), *base_problems(adapter.base)]
    front, card_problems = card.read(sight.directory / "README.md")
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=method,
        config=config,
        adapter=adapter,
        files=_files(sight),
        problems=(*problems, *card_problems),
        card=front,
        tensors=tensors or {},
    )


def _fatal(code: str, message: str, remedy: str) -> Problem:
    return Problem(code, message, remedy, fatal=True)


def _checked(whole: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The method's fields, and what is wrong with ours."""
    config = {field: value for field, value in whole.items() if field not in _OWN}
    version, method, labels = (whole.get(field) for field in _OWN)
    if type(version) is not int or version != VERSION:
        text = f"{CONFIG} is of version {_said(version)} of adapterhub's spelling, known is 1"
        return config, [_fatal("config", text, "upgrade adapterhub, or write it again")]
    if method not in METHODS:
        text = f"{CONFIG} names the method {_said(method)}, which has no native spelling"
        return config, [_fatal("method", text, f"those that have one: {', '.join(METHODS)}")]
    if labels is not None and not _are_names(labels):
        text = f"{CONFIG}: labels is {_said(labels)}, expected a list of names"
        return config, [_fatal("config", text, "correct the field")]
    return config, []


def _said(value: object) -> str:
    return shown(value) if isinstance(value, str) else repr(value)[:80]


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _tensors(sight: Sight) -> tuple[Mapping[str, Tensor] | None, list[Problem]]:
    if not (sight.directory / WEIGHTS).is_file():
        text = f"{sight.directory} has no {WEIGHTS}"
        return None, [_fatal("no-weights", text, "copy the weights beside the config")]
    try:
        return read_header(sight.directory / WEIGHTS).tensors, []
    except AdapterHubError as error:
        return None, [_fatal(error.code, error.message, error.remedy)]


def _adapter(method: str, config: dict[str, Any], modules: Modules, labels: Any) -> Adapter:
    task = config.get("task_type")
    return Adapter(
        method=method,
        format=FORMAT,
        config=config,
        modules=modules,
        base=claim(config),
        task=task if isinstance(task, str) and task else None,
        labels=tuple(labels or ()),
    )


def _files(sight: Sight) -> tuple[SourceFile, ...]:
    kinds = {WEIGHTS: "weights", CONFIG: "config", **dict.fromkeys(TOKENIZER_FILES, "tokenizer")}
    return tuple(
        SourceFile(name, sight.directory / name, kind)
        for name, kind in kinds.items()
        if sight.has(name)
    )


# --- names ------------------------------------------------------------------------------------


def modules_of(method: str, tensors: Mapping[str, Tensor]) -> tuple[Modules, list[str]]:
    """Modules → roles → tensors, and the names that mean nothing here."""
    modules: Modules = {}
    unknown = []
    for name in sorted(tensors):
        place = _place(method, name)
        if place is None:
            unknown.append(name)
        else:
            modules.setdefault(place[0], {})[place[1]] = tensors[name]
    return modules, unknown


def _place(method: str, name: str) -> tuple[str, str] | None:
    """`(module, role)`; None for a name that cannot be one."""
    if method == "adamix" and _SOUP in name:
        module, _, role = name.partition(_SOUP)
        return (module, role) if module and role and _ROLE not in name else None
    if _ROLE in name:
        module, _, role = name.partition(_ROLE)
        return (module, role) if role and _ROLE not in role else None
    module, _, parameter = name.rpartition(".")
    return (module, REPLACE + parameter) if module and parameter else None


def _name(method: str, module: str, role: str) -> str:
    """Raises NotSupported for a role that would be read back as another."""
    if role.startswith(REPLACE):
        name = f"{module}.{role.removeprefix(REPLACE)}"
    elif method == "adamix":
        name = f"{module}{_SOUP}{role}"
    else:
        name = f"{module}{_ROLE}{role}"
    if _place(method, name) != (module, role):
        raise NotSupported(f"{shown(f'{module}.{role}')} has no native spelling")
    return name


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under their native names. Raises NotSupported."""
    if adapter.method not in METHODS or (adapter.method == "bottleneck" and not _is_own(adapter)):
        raise NotSupported(
            f"the method {adapter.method!r} has no native spelling",
            remedy="write it in the format that it came in",
        )
    tensors = {_name(adapter.method, m, role): t for m, role, t in adapter.tensors()}
    return dict(sorted(tensors.items()))


def _is_own(adapter: Adapter) -> bool:
    """The average of an AdaMix; other bottlenecks have a spelling of AdapterHub's."""
    return adapter.format == FORMAT


def write(adapter: Adapter, directory: Path) -> None:
    """Config and weights. Raises NotSupported for methods that others have a spelling for."""
    tensors = spelled(adapter)
    said = {
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.base.revision,
        "task_type": adapter.task,
    }
    changed = {f: value for f, value in said.items() if (adapter.config.get(f) or None) != value}
    ours: dict[str, Any] = {"adapterhub": VERSION, "method": adapter.method}
    labels = {"labels": list(adapter.labels)} if adapter.labels else {}
    document = {**ours, **adapter.config, **changed, **labels}
    write_file(directory / WEIGHTS, tensors, {"format": "pt"})
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_whole(directory / CONFIG, text.encode())
