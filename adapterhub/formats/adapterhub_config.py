"""What an adapter_config.json of AdapterHub says: which method, on which base, with which head.

An adapter's config holds the fields of the file's `config` object, those of LoRA and (IA)³ also
under PEFT's names; the rest of the file stands under `adapterhub`, with head_config.json as its
`head_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from adapterhub import schema
from adapterhub.adapter import Adapter, BaseClaim, Problem
from adapterhub.errors import NotSupported
from adapterhub.formats import named
from adapterhub.tensorfile import shown

OUTER = "adapterhub"
MOST = 10  # problems of a union's members that are told
_MEMBERS = ("bottleneck", "compacter", "prefix_tuning", "lora", "ia3")
HEAD = "head_config"
_VERSION = re.compile(r"adapters\.(\d+)\.(\d+)\..*")
# PEFT's name ← AdapterHub's, for the figures that a method's schema asks for.
_LENGTHS = {"prefix_tuning": "prefix_length", "prompt_tuning": "prompt_length"}
_ADDED = frozenset(("lora_alpha", "use_dora", "feedforward_modules", "num_virtual_tokens"))
_ARCHITECTURES = frozenset(("prefix_tuning", "prompt_tuning", "reft", "mtl_lora", "lora", "union"))
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


def _architecture(config: Mapping[str, Any]) -> str | None:
    """Of the inner config; "?" for what is no name."""
    value = config.get("architecture")
    return value if value is None or isinstance(value, str) else "?"


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def canonical(config: Mapping[str, Any], head: Mapping[str, Any] | None) -> dict[str, Any]:
    """An adapter's config from the parsed files. Nothing of them is lost."""
    inner = dict(_object(config.get("config")))
    outer = {name: value for name, value in config.items() if name != "config"}
    if head is not None:
        outer[HEAD] = dict(head)
    return {**inner, **_added(inner, outer), OUTER: outer}


def _added(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    architecture = _architecture(inner)
    if length := inner.get(_LENGTHS.get(architecture or "", "")):
        return {"num_virtual_tokens": length}
    if architecture != "lora":
        return {}
    if scales(inner):
        return {"feedforward_modules": []}
    alpha = _alpha(inner, outer)
    dora = {"use_dora": True} if inner.get("dora") else {}
    return {**({} if alpha is None else {"lora_alpha": alpha}), **dora}


def _alpha(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Any:
    """alpha as the forward pass took it: before 1.1.0 that was r, whatever the config says."""
    found = _VERSION.fullmatch(str(outer.get("version", ""))[:40])
    old = found is not None and (int(found[1][:6]), int(found[2][:6])) < (1, 1)
    return inner.get("r") if old else inner.get("alpha")


def alpha_of(member: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """alpha of a union's LoRA, as the forward pass took it; `config` is the adapter's."""
    return _alpha(member, _object(config.get(OUTER)))


def as_written(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The content of adapter_config.json and head_config.json, of what `canonical` made of them."""
    outer = dict(_object(config.get(OUTER)))
    head = outer.pop(HEAD, None)
    inner = {k: v for k, v in config.items() if k != OUTER}
    added = _added(inner, outer)
    return {"config": {k: v for k, v in inner.items() if k not in added}, **outer}, head


def name(config: Mapping[str, Any]) -> str:
    """What the adapter is called in its keys."""
    return str(_object(config.get(OUTER)).get("name"))


def method(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """`names` are those of the tensors, for what the config does not tell."""
    architecture = _architecture(config)
    if architecture is None:
        return "compacter" if config.get("phm_layer") else "bottleneck"
    if architecture == "lora":
        if scales(config):
            return "ia3"
        return "vera" if any(".vera_" in name for name in names) else "lora"
    if architecture == "union":
        return _union(config.get("configs"))
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
    return _architecture(config) == "lora" and config.get("composition_mode") == "scale"


def member_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Of the members of a union: each by its own method's schema."""
    if _architecture(config) != "union":
        return []
    members, outer = config.get("configs"), _object(config.get(OUTER))
    found: list[Problem] = []
    for number, member in enumerate(members if isinstance(members, list) else ()):
        if not isinstance(member, dict) or len(found) > MOST:
            continue  # said by the union's own schema
        kind = method(member, ())
        if kind not in _MEMBERS:
            text = f"configs[{number}] of the union is no {' or '.join(_MEMBERS)}"
            found.append(Problem("method", text, "correct adapter_config.json", fatal=True))
            continue
        added = {"lora_alpha": _alpha(member, outer)} if kind == "lora" else _added(member, outer)
        said = schema.problems({**member, **added}, f"methods/{kind}")
        found += [
            Problem("config", f"configs[{number}].{text}", "correct the field", fatal=True)
            for text in said
        ]
    return found[:MOST]


def refuse_changes(adapter: Adapter) -> None:
    """Raises NotSupported where the files would not say what the adapter is."""
    written, head = as_written(adapter.config)
    again = canonical(written, head)
    said = (again, base(again), task(again), labels(again))
    if said != (dict(adapter.config), adapter.base, adapter.task, adapter.labels):
        raise NotSupported("the config of this adapter was changed beyond what AdapterHub can say")


def base(config: Mapping[str, Any]) -> BaseClaim:
    return BaseClaim(name=named.text(_object(config.get(OUTER)).get("model_name")))


def _head(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(_object(_object(config.get(OUTER)).get(HEAD)).get("config"))


def task(config: Mapping[str, Any]) -> str | None:
    kind = _head(config).get("head_type")
    return _TASKS.get(kind) if isinstance(kind, str) else None


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the head's label2id, in order; none where it has gaps."""
    numbers = _object(_head(config).get("label2id"))
    by_number = {number: name for name, number in numbers.items() if type(number) is int}
    if len(by_number) != len(numbers) or set(by_number) != set(range(len(numbers))):
        return ()
    return tuple(by_number[number] for number in range(len(by_number)))


def problems(config: Mapping[str, Any]) -> list[Problem]:
    """Of an adapter_config.json: what keeps the fields from meaning what they should."""
    found = []
    inner = _object(config.get("config"))
    if "." in config["name"] or not config["name"]:
        text = f"an adapter cannot be called {shown(config['name'])}: its tensors carry the name"
        found.append(Problem("config", text, "correct the name", fatal=True))
    architecture = _architecture(inner)
    if architecture is not None and architecture not in _ARCHITECTURES:
        text = f"the architecture {architecture[:80]!a} is not one that this version knows"
        found.append(Problem("method", text, "upgrade adapterhub", fatal=True))
    ours = _ADDED if "dora" in inner else _ADDED - {"use_dora"}  # which adapters 1.3 writes itself
    clash = sorted((ours | {OUTER}) & set(inner)) + sorted({HEAD} & set(config))
    if clash:
        text = f"adapter_config.json has a field {clash[0]}, which AdapterHub does not write"
        found.append(Problem("config", text, "remove it", fatal=True))
    if scales(inner) and inner.get("alpha") not in (None, 1, 1.0):
        text = f"alpha is {str(inner.get('alpha'))[:40]}, and multiplies these (IA)³ vectors"
        found.append(Problem("config", text, "multiply the vectors and set it to 1", fatal=True))
    return found
