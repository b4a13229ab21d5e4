"""AdapterHub's library `adapters`: adapter_config.json with a `config` object + its weights.

    pytorch_adapter.bin | adapter.safetensors, and for a head that was trained with it
    head_config.json + pytorch_model_head.bin | model_head.safetensors

What becomes of the config: `adapterhub_config`; how tensors are called: `adapterhub_keys`. Source:
adapters/loading.py, configuration/adapter_config.py (1.0 to 1.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, Outline, Problem, Reading
from adapterhub.errors import NotSupported
from adapterhub.formats import adapterhub_config as configs
from adapterhub.formats import card
from adapterhub.formats.adapterhub_files import (
    HEAD_CONFIG,
    HEAD_WEIGHTS,
    WEIGHTS,
    Part,
    Parts,
    head_config,
    parts,
)
from adapterhub.formats.adapterhub_keys import Keys, is_key, modules_of, outside
from adapterhub.formats.checking import (
    base_problems,
    method_problems,
    unknown_keys,
    write_whole,
)
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import CONFIG, Sight
from adapterhub.tensorfile import Tensor, write_file

FORMAT = "adapterhub"
# Methods that have other tensors here than in PEFT, under the same name.
_OTHER_TENSORS = ("prefix_tuning", "prompt_tuning", "vera")


def recognises(sight: Sight) -> bool:
    return configs.is_config(sight.config) or sight.find(_is_weights) is not None


def _is_weights(content: Content) -> bool:
    return any(is_key(name) for name in content.shapes)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = parts(sight, _is_weights, allow_pickle)
    head, head_problems = head_config(sight)
    problems = _config_problems(sight) + head_problems + list(found.problems)
    config = configs.canonical(sight.config, head)
    adapter = None
    if configs.is_config(sight.config):
        problems += configs.problems(sight.config)
        problems += _head_problems(sight.config, head, found)
        if found.weights is not None:
            adapter, more = _adapter(config, found.weights, found.head)
            problems += more
    front, card_problems = card.read(sight.directory / "README.md")
    return Reading(
        path=sight.path if sight.file else sight.directory,
        format=FORMAT,
        method=adapter.method if adapter else configs.method(config, found.names),
        config=config,
        adapter=adapter,
        files=found.files,
        problems=(*problems, *card_problems),
        card=front,
        tensors=found.tensors,
        outline=_outline(config, found),
    )


def _outline(config: Mapping[str, Any], found: Parts) -> Outline:
    """What shows without consent to read a pickle."""
    keys = Keys(configs.name(config), configs.scales(config))
    places = [keys.place(name) for name in found.names]
    modules = dict.fromkeys(place[0] for place in places if place is not None)
    return Outline(targets=tuple(modules), base=configs.base(config))


def _config_problems(sight: Sight) -> list[Problem]:
    if sight.config_problem is not None:
        return [sight.config_problem]
    if configs.is_config(sight.config):
        return []
    what = "is not one of AdapterHub" if sight.has_config else "is missing"
    remedy = f"put the {CONFIG} that belongs to these weights beside them"
    return [Problem("no-config", f"{sight.directory / CONFIG} {what}", remedy, fatal=True)]


def _head_problems(
    config: Mapping[str, Any], head: Mapping[str, Any] | None, found: Parts
) -> list[Problem]:
    if head is None:
        return []
    problems = []
    if not found.has_head:
        text = "head_config.json has no weights beside it"
        problems.append(Problem("no-weights", text, "copy them, or remove it", fatal=True))
    if (name := head.get("name")) is not None and name != config.get("name"):
        text = f"the head is called {str(name)[:80]!a}, the adapter {config['name'][:80]!a}"
        problems.append(Problem("config", text, "save both again under one name", fatal=True))
    return problems


def _adapter(
    config: Mapping[str, Any], weights: Part, head: Part | None
) -> tuple[Adapter, list[Problem]]:
    keys = Keys(configs.name(config), configs.scales(config))
    modules, unknown = modules_of(keys, weights.tensors, head.tensors if head else {})
    adapter = Adapter(
        method=configs.method(config, weights.tensors),
        format=FORMAT,
        config=config,
        modules=modules,
        base=configs.base(config),
        task=configs.task(config),
        labels=configs.labels(config),
    )
    problems = [
        *unknown_keys(unknown, "AdapterHub"),
        *method_problems(adapter, own_tensors=adapter.method in _OTHER_TENSORS),
        *configs.member_problems(config),
        *base_problems(adapter.base),
    ]
    return adapter, problems


# --- writing ----------------------------------------------------------------------------------


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under AdapterHub's names, of both files. Raises NotSupported."""
    weights, head = _spelled(adapter)
    return weights | head


def _spelled(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if adapter.format != FORMAT or not configs.is_config(configs.as_written(adapter.config)[0]):
        raise NotSupported("only adapters that came from AdapterHub are written as such")
    keys = Keys(configs.name(adapter.config), configs.scales(adapter.config))
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
    config, its_config = configs.as_written(adapter.config)
    if bool(head) != (its_config is not None):
        raise NotSupported("AdapterHub wants a head's weights and its config, and one is missing")
    configs.refuse_changes(adapter)
    write_file(directory / WEIGHTS[0], dict(sorted(weights.items())))
    write_whole(directory / CONFIG, _json(config))
    if its_config is not None:
        write_file(directory / HEAD_WEIGHTS[0], dict(sorted(head.items())))
        write_whole(directory / HEAD_CONFIG, _json(its_config))


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
