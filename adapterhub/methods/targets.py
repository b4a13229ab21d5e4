"""Patterns from strangers that say which modules are adapted, tried on the modules in the file.

A string is a regular expression that has to match the whole path (`re.fullmatch` in peft's
`match_target_against_key`); keys of `…_pattern` are those of `patterns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.errors import InvalidAdapter
from adapterhub.methods.patterns import Clock, Patterns, WholePattern
from adapterhub.tensorfile import shown

TARGETS = ("target_modules", "exclude_modules", "feedforward_modules")
_LAYERS = "layers_pattern"
_MOST = 8  # names in a sentence
_DEEPEST = 32  # parts of a name in target_modules
_WORDS = ("all-linear",)  # a word of peft's, and no pattern
_ENDINGS = "ADAPTION_PROMPT"  # whose string is the ending of a path


def problems(adapter: Adapter) -> list[Problem]:
    """Fatal for a pattern that cannot be used; a note where target_modules matches nothing."""
    modules = [
        module
        for module, roles in adapter.modules.items()
        if module and any(not role.startswith(REPLACE) for role in roles)
    ]
    return [*pattern_problems(adapter.config, modules), *_unmatched(adapter.config, modules)]


def _unmatched(config: Mapping[str, Any], modules: Sequence[str]) -> Iterator[Problem]:
    """Names of `target_modules` that adapt nothing: peft passes over them in silence."""
    names = config.get(TARGETS[0])
    if not isinstance(names, list) or not modules:
        return
    ends = {ending for module in modules for ending in _endings(module)}
    idle = sorted(name for name in names if isinstance(name, str) and name not in ends)
    if idle:
        listed = ", ".join(map(shown, idle[:_MOST])) + (" …" if len(idle) > _MOST else "")
        text = f"{TARGETS[0]} names {listed}, and the weights hold nothing for "
        text += "it" if len(idle) == 1 else "them"
        remedy = "check that the base has modules of that name, and that all weights are here"
        yield Problem("target-mismatch", text, remedy)


def _endings(module: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`: what peft compares a name with."""
    parts = module.split(".")[-_DEEPEST:]
    return (".".join(parts[start:]) for start in range(len(parts)))


def pattern_problems(config: Mapping[str, Any], modules: Sequence[str]) -> list[Problem]:
    """`modules`: paths to try them on; without any they are only compiled."""
    found: list[Problem] = []
    clock = Clock()  # for all of them together
    for field, text in _strings(config):
        try:
            matched = WholePattern(field, text, clock).count(modules)
        except InvalidAdapter as error:
            return [*found, Problem("pattern", error.message, error.remedy, fatal=True)]
        if field == TARGETS[0] and modules and not matched:
            said = f"{field} {shown(text)} matches none of the {len(modules)} modules in the file"
            found.append(Problem("target-mismatch", said, "check that this is its config"))
    return [*found, *_key_problems(config, modules, clock)]


def _strings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in () if config.get("peft_type") == _ENDINGS else TARGETS:
        value = config.get(field)
        if isinstance(value, str) and value and value.lower() not in _WORDS:
            yield field, value
    names = config.get(_LAYERS)
    for name in [names] if isinstance(names, str) else names or ():
        yield _LAYERS, rf".*\.{name}\.(\d+).*"


def _key_problems(config: Mapping[str, Any], modules: Sequence[str], clock: Clock) -> list[Problem]:
    """Of `rank_pattern`, `block_size_pattern` … (AdaLoRA's names of parameters are no patterns)."""
    for field, value in config.items():
        if not field.endswith("_pattern") or not isinstance(value, Mapping):
            continue
        try:
            Patterns(value, field=field, clock=clock).check(modules)
        except InvalidAdapter as error:
            return [Problem("pattern", error.message, error.remedy, fatal=True)]
    return []
