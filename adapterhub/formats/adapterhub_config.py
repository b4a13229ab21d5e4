"""What an adapter_config.json of AdapterHub says: which method, on which base, with which head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from adapterhub.adapter import Adapter, BaseClaim, Problem
from adapterhub.errors import NotSupported
from adapterhub.formats import named
from adapterhub.tensorfile import shown

HEAD = "head_config"
_VERSION = re.compile(r"adapters\.(\d+)\.(\d+)\..*")
# Fields that `canonical` adds beside the file's own.
_ADDED = frozenset(("r", "lora_alpha", "use_dora", "target_modules", "feedforward_modules"))
_ARCHITECTURES = {"prefix_tuning", "prompt_tuning", "reft", "mtl_lora"}
# AdapterHub's kind of head → PEFT's name of the task.
_TASKS = {
    "classification": "SEQ_CLS",
    "multilabel_classification": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
}


def is_config(config: Mapping[str, Any]) -> bool:
    """An object `config`, the model's type and width, and the adapter's name."""
    if "peft_type" in config or not isinstance(config.get("config"), dict):
        return False
    version = config.get("version")
    ours = isinstance(version, str) and version.startswith("adapters.")
    described = "model_type" in config and "hidden_size" in config
    return (ours or described) and isinstance(config.get("name"), str)


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("config")
    return inner if isinstance(inner, dict) else {}


def method(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """`names` are those of the tensors, for what the config does not tell."""
    inner = _inner(config)
    architecture = inner.get("architecture")
    if architecture is None:
        return "compacter" if inner.get("phm_layer") else "bottleneck"
    if architecture == "lora":
        if scales(config):
            return "ia3"
        return "vera" if any(".vera_" in name for name in names) else "lora"
    if architecture == "union":
        return _union(inner.get("configs"))
    return architecture if architecture in _ARCHITECTURES else "unknown"


def _union(configs: object) -> str:
    members = [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
    kinds = {str(member.get("architecture")) for member in members}
    if kinds == {"None", "prefix_tuning", "lora"}:
        return "unipelt"
    parallel = any(member.get("is_parallel") for member in members)
    return "mam" if kinds == {"None", "prefix_tuning"} and parallel else "union"


def scales(config: Mapping[str, Any]) -> bool:
    """Whether its loras are (IA)³."""
    inner = _inner(config)
    return inner.get("architecture") == "lora" and inner.get("composition_mode") == "scale"


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file's own fields, and those of LoRA and (IA)³ under PEFT's names."""
    inner = _inner(config)
    if inner.get("architecture") != "lora":
        return dict(config)
    targets = inner.get("attn_matrices")
    targets = {"target_modules": targets} if isinstance(targets, list) else {}
    if scales(config):
        return {**config, **targets, "feedforward_modules": []}
    added = {"r": inner.get("r"), "lora_alpha": _alpha(config), **targets}
    dora = {"use_dora": True} if inner.get("use_dora") or inner.get("dora") else {}
    return {**config, **{k: v for k, v in added.items() if v is not None}, **dora}


def _alpha(config: Mapping[str, Any]) -> Any:
    """alpha as the forward pass took it: before 1.1.0 that was r, whatever the config says."""
    inner = _inner(config)
    found = _VERSION.fullmatch(str(config.get("version", ""))[:40])
    old = found is not None and (int(found[1][:6]), int(found[2][:6])) < (1, 1)
    return inner.get("r") if old else inner.get("alpha")


def as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the file, of what `canonical` made of them."""
    inner = _inner(config)
    added = _ADDED if inner.get("architecture") == "lora" else frozenset()
    return {k: v for k, v in config.items() if k not in added and k != HEAD}


def refuse_changes(adapter: Adapter, written: Mapping[str, Any]) -> None:
    """Raises NotSupported where the file would not say what the adapter is."""
    head = {HEAD: adapter.config[HEAD]} if HEAD in adapter.config else {}
    again = {**written, **head}
    said = (canonical(again), base(again), task(again), labels(again))
    if said != (dict(adapter.config), adapter.base, adapter.task, adapter.labels):
        raise NotSupported("the config of this adapter was changed beyond what AdapterHub can say")


def base(config: Mapping[str, Any]) -> BaseClaim:
    return BaseClaim(name=named.text(config.get("model_name")))


def task(config: Mapping[str, Any]) -> str | None:
    kind = _inner(config.get(HEAD) or {}).get("head_type")
    return _TASKS.get(kind) if isinstance(kind, str) else None


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the head's label2id, in order; none where it has gaps."""
    numbers = _inner(config.get(HEAD) or {}).get("label2id")
    if not isinstance(numbers, dict):
        return ()
    by_number = {number: name for name, number in numbers.items() if type(number) is int}
    if len(by_number) != len(numbers) or set(by_number) != set(range(len(numbers))):
        return ()
    return tuple(by_number[number] for number in range(len(by_number)))


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """What keeps the fields from meaning what they should."""
    found = []
    inner = _inner(config)
    if "." in config["name"] or not config["name"]:
        text = f"an adapter cannot be called {shown(config['name'])}: its tensors carry the name"
        found.append(Problem("config", text, "correct the name", fatal=True))
    architecture = inner.get("architecture")
    if architecture is not None and architecture not in _ARCHITECTURES | {"lora", "union"}:
        text = f"the architecture {str(architecture)[:80]!a} is not one that this version knows"
        found.append(Problem("method", text, "upgrade adapterhub", fatal=True))
    clash = sorted(_ADDED & set(config)) if architecture == "lora" else []
    if clash:
        text = f"adapter_config.json has the field {clash[0]} outside of config"
        found.append(Problem("config", text, "remove it", fatal=True))
    if scales(config) and inner.get("alpha") not in (None, 1, 1.0):
        text = (
            f"alpha is {str(inner.get('alpha'))[:40]}, by which these (IA)³ vectors are multiplied"
        )
        found.append(Problem("config", text, "multiply the vectors and set it to 1", fatal=True))
    return found
