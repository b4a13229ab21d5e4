"""AdapterHub's library `adapters`: adapter_config.json with a `config` object + its weights.

    pytorch_adapter.bin | adapter.safetensors, and for a head that was trained with it
    head_config.json + pytorch_model_head.bin | model_head.safetensors

An adapter's `config` is that of the file, with `head_config` where there is a head; LoRA and (IA)³
also get the fields that their mathematics needs, under PEFT's names. How tensors are called:
`adapterhub_keys`. Source: adapters/loading.py, configuration/adapter_config.py (1.0 to 1.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, Problem, Reading
from adapterhub.errors import NotSupported
from adapterhub.formats import adapterhub_config as configs
from adapterhub.formats import card, named
from adapterhub.formats.adapterhub_config import HEAD
from adapterhub.formats.adapterhub_files import CONFIG, Part, Parts, head_config, parts
from adapterhub.formats.adapterhub_keys import Keys, is_key, modules_of, outside
from adapterhub.formats.checking import (
    base_problems,
    method_problems,
    unknown_keys,
    write_whole,
)
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor, write_file

FORMAT = "adapterhub"


def recognises(sight: Sight) -> bool:
    return configs.is_config(sight.config) or sight.find(_is_weights) is not None


def _is_weights(content: Content) -> bool:
    return any(is_key(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = parts(sight, _is_weights, allow_pickle)
    head, head_problems = head_config(sight)
    config: dict[str, Any] = dict(sight.config)
    problems = _config_problems(sight) + head_problems + list(found.problems)
    if head is not None:
        problems += _head_problems(config, head, found)
        config[HEAD] = head
    adapter = None
    if configs.is_config(config):
        problems += configs.problems(config)
        if found.weights is not None:
            adapter, more = _adapter(config, found.weights, found.head)
            problems += more
    front, card_problems = card.read(sight.directory / "README.md")
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=adapter.method if adapter else configs.method(config, ()),
        config=adapter.config if adapter else configs.canonical(config),
        adapter=adapter,
        files=found.files,
        problems=(*problems, *card_problems),
        card=front,
        tensors=found.tensors,
        outline=named.outline(found.contents, ((r"\.loras\.[^.]+\.lora_A", 0),)),
    )


def _config_problems(sight: Sight) -> list[Problem]:
    if sight.config_problem is not None:
        return [sight.config_problem]
    if configs.is_config(sight.config):
        return []
    what = "is not one of AdapterHub" if sight.has_config else "is missing"
    remedy = f"put the {CONFIG} that belongs to these weights beside them"
    return [Problem("no-config", f"{sight.directory / CONFIG} {what}", remedy, fatal=True)]


def _head_problems(
    config: Mapping[str, Any], head: Mapping[str, Any], found: Parts
) -> list[Problem]:
    problems = []
    if HEAD in config:
        text = f"{CONFIG} has a field {HEAD}, which is where the config of the head is kept"
        problems.append(Problem("config", text, "rename the field", fatal=True))
    if found.head is None and found.weights is not None:
        text = "head_config.json has no weights beside it"
        problems.append(Problem("no-weights", text, "copy them, or remove it", fatal=True))
    if (name := head.get("name")) is not None and name != config.get("name"):
        text = f"the head is called {name!a}, the adapter {config.get('name')!a}"
        problems.append(Problem("config", text, "save both again under one name", fatal=True))
    return problems


def _adapter(
    config: Mapping[str, Any], weights: Part, head: Part | None
) -> tuple[Adapter, list[Problem]]:
    keys = Keys(str(config["name"]), configs.scales(config))
    modules, unknown = modules_of(keys, weights.tensors, head.tensors if head else {})
    adapter = Adapter(
        method=configs.method(config, weights.tensors),
        format=FORMAT,
        config=configs.canonical(config),
        modules=modules,
        base=configs.base(config),
        task=configs.task(config),
        labels=configs.labels(config),
    )
    problems = [
        *unknown_keys(unknown, "AdapterHub"),
        *method_problems(adapter),
        *base_problems(adapter.base),
    ]
    return adapter, problems


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under AdapterHub's names, of both files. Raises NotSupported."""
    weights, head = _spelled(adapter)
    return weights | head


def _spelled(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    config = configs.as_written(adapter.config)
    if adapter.format != FORMAT or not configs.is_config(config):
        raise NotSupported("only adapters that came from AdapterHub are written as such")
    keys = Keys(str(config["name"]), configs.scales(config))
    weights, head = {}, {}
    for module, role, tensor in adapter.tensors():
        if role.startswith(REPLACE):
            head[keys.head_key(module, role)] = tensor
        else:
            weights[keys.key(module, role)] = outside(role, tensor)
    return weights, head


def write(adapter: Adapter, directory: Path) -> None:
    """adapter.safetensors and its config, and those of the head. Raises NotSupported."""
    weights, head = _spelled(adapter)
    config = configs.as_written(adapter.config)
    head_config = adapter.config.get(HEAD)
    if bool(head) != (head_config is not None):
        raise NotSupported("AdapterHub wants a head's weights and its config, and one is missing")
    configs.refuse_changes(adapter, config)
    write_file(directory / "adapter.safetensors", dict(sorted(weights.items())))
    write_whole(directory / CONFIG, _json(config))
    if head_config is not None:
        write_file(directory / "model_head.safetensors", dict(sorted(head.items())))
        write_whole(directory / "head_config.json", _json(head_config))


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
