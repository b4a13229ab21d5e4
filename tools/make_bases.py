"""Writes `derived` in registry/bases/*.json from what transformers builds on the meta device.

    python tools/make_bases.py                 writes the files
    python tools/make_bases.py qwen2 bert      only these families
    python tools/make_bases.py --check         exits 1 if one differs from what would be written

People write the rest of these files: names, and figures with their sources. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from make_architectures import render

from adapterhub._introspect import kind_of
from adapterhub._introspect.describing import _build, _class_names, _quiet
from adapterhub._introspect.saving import _is_number, starred

FOLDER = Path(__file__).resolve().parent.parent / "registry" / "bases"
# What is written down for a model type: the class that most people load, for its parameters.
TASKS = ("SEQ_2_SEQ_LM", "MASKED_LM", "CAUSAL_LM", "FEATURE_EXTRACTION")
CLASSES = {"electra": "ElectraForPreTraining", "whisper": "WhisperForConditionalGeneration"}
# Counts of layers; heads are the same whatever they are, so classes are built with one for theirs.
DEPTHS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
FOUR_TIMES = ("gpt2", "gptj", "gpt_neo", "bloom", "falcon")  # their MLPs, if nothing is configured

Shape = tuple[int | None, ...]
Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """What a module holds directly: name of a parameter → shape as stored."""

    kind: str
    tensors: tuple[tuple[str, Shape], ...]


Modules = dict[str, Held]


# --- what a class holds -----------------------------------------------------------------------


def held(model: Any) -> tuple[Modules, Modules]:
    """By the names that saving gives, and by those in memory."""
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    saved = revert_weight_conversion(model, dict(state))
    live = {id(tensor): name for name, tensor in state.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = state.keys() - parameters
    stored = {name: tensor for name, tensor in saved.items() if live.get(id(tensor)) not in buffers}
    kinds = {
        name.rpartition(".")[0]: _kind(model, live.get(id(tensor)))
        for name, tensor in stored.items()
    }
    in_memory = {name: state[name] for name in sorted(parameters)}
    live_kinds = {name.rpartition(".")[0]: _kind(model, name) for name in in_memory}
    return _modules(stored, kinds), _modules(in_memory, live_kinds)


def _kind(model: Any, name: str | None) -> str:
    """A tensor that is none of the model's own in memory is a part of one: of an expert's."""
    return "Linear" if name is None else kind_of(model.get_submodule(name.rpartition(".")[0]))


def _modules(tensors: Mapping[str, Any], kinds: Mapping[str, str]) -> Modules:
    found: dict[str, list[tuple[str, Shape]]] = defaultdict(list)
    for name, tensor in sorted(tensors.items()):
        path, _, own = name.rpartition(".")
        found[path].append((own, tuple(tensor.shape)))
    return {path: Held(kinds[path], tuple(own)) for path, own in found.items()}


def blurred(one: Modules, other: Modules) -> Modules:
    """`one`, with None for each size that `other` has otherwise."""
    return {path: _blurred(own, other.get(path)) for path, own in one.items()}


def _blurred(one: Held, other: Held | None) -> Held:
    others = dict(other.tensors) if other else {}
    return Held(
        one.kind,
        tuple((name, _same_sizes(shape, others.get(name, shape))) for name, shape in one.tensors),
    )


def _same_sizes(one: Shape, other: Shape) -> Shape:
    if len(one) != len(other):
        return one
    return tuple(a if a == b else None for a, b in zip(one, other, strict=True))


# --- of a base --------------------------------------------------------------------------------


def derive(base: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of `base` make. Raises ValueError where transformers cannot build it."""
    import transformers

    model_type, unknown = base["config"]["model_type"], base.get("unknown", [])
    names, tasks = _class_names(model_type)
    main = CLASSES.get(model_type) or next(tasks[task] for task in TASKS if task in tasks)
    with _quiet():
        config, other = _config(base), _config(base, vary=[*unknown, "num_labels"])
        model, varied = _model(main, config), _model(main, other)
        stored, live = map(blurred, held(model), held(varied))
        plain, memory = held(_model(tasks["FEATURE_EXTRACTION"], _shallow(base)))
        heads, prefixes = _heads(base, names, {*plain, *memory})
    poolers = {path: own for path, own in plain.items() if not _ends(stored, path)}
    rest = {path: own for path, own in {**poolers, **heads}.items() if path not in stored}
    own_names = {path: own for path, own in live.items() if stored.get(path) != own}
    found: dict[str, Any] = {
        "generated_with": {"transformers": transformers.__version__},
        "class": main,
        "parameters": _parameters(model, base, stored),
        "facts": {**facts(config, unknown), "tied": base["config"].get("tie_word_embeddings")},
        "prefixes": sorted(prefixes),
        "modules": list(rows({**stored, **rest})),
    }
    return {**found, "live": list(rows(own_names))} if own_names else found


def _parameters(model: Any, base: Mapping[str, Any], stored: Modules) -> int | None:
    """None if a size, or whether two tensors are one, is unknown.

    T5 ties its embeddings whatever the configuration says, and takes them apart again for a
    checkpoint that has both: those whose configuration says so have them.
    """
    free = any(size is None for own in stored.values() for _, s in own.tensors for size in s)
    if free or "tie_word_embeddings" in base.get("unknown", []):
        return None
    count = sum(parameter.numel() for parameter in model.parameters())
    if base["config"].get("tie_word_embeddings") is False:
        last, first = model.get_output_embeddings(), model.get_input_embeddings()
        if last is not None and last.weight is first.weight:
            count += last.weight.numel()
    return int(count)


def _config(base: Mapping[str, Any], *, vary: Sequence[str] = ()) -> Any:
    """The configuration; those of the fields `vary` that it has get another value."""
    from transformers import CONFIG_MAPPING

    fields = {key: value for key, value in base["config"].items() if key != "model_type"}
    made = CONFIG_MAPPING[base["config"]["model_type"]]
    usual = made(**fields)
    for name in vary:
        value = getattr(usual, name, None)
        if isinstance(value, bool):
            fields[name] = not value
        elif isinstance(value, int):
            fields[name] = 2 * value
    return made(**fields) if vary else usual


def _ends(paths: Iterable[str], tail: str) -> bool:
    return any(f".{path}".endswith(f".{tail}") for path in paths)


def _shallow(base: Mapping[str, Any], vary: Sequence[str] = ()) -> Any:
    config = _config(base, vary=vary)
    for name in DEPTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1)
    return config


def _model(name: str, config: Any) -> Any:
    import transformers

    model = _build(getattr(transformers, name), config)
    if model is None:
        raise ValueError(f"{name} cannot be built on the meta device")
    return model


def _heads(
    base: Mapping[str, Any], names: Sequence[str], backbone: set[str]
) -> tuple[Modules, set[str]]:
    """What any class of the model type adds, and the prefixes that they put before the rest."""
    import transformers

    heads: Modules = {}
    prefixes: set[str] = set()
    expected = type(_config(base))
    for name in names:
        cls = getattr(transformers, name, None)
        if cls is None or getattr(cls, "config_class", None) is not expected:
            continue
        built = [_build(cls, _shallow(base, vary)) for vary in ((), _freed(base))]
        if any(model is None for model in built):
            continue
        for path, own in blurred(*(held(model)[0] for model in built)).items():
            prefix = _prefix(path, backbone)
            if prefix is None:
                heads[path] = _blurred(own, heads.get(path))
            elif prefix:
                prefixes.add(prefix)
    return heads, prefixes


def _freed(base: Mapping[str, Any]) -> list[str]:
    return [*base.get("unknown", []), "num_labels"]


def _prefix(path: str, backbone: set[str]) -> str | None:
    """What stands before the name that the bare model has; None if it has no such module."""
    parts = path.split(".")
    for start in range(min(3, len(parts))):
        if ".".join(parts[start:]) in backbone:
            return ".".join(parts[:start])
    return None


def facts(config: Any, unknown: Sequence[str]) -> dict[str, Any]:
    def first(*names: str) -> Any:
        own = {config.attribute_map.get(name, name) for name in names}
        values = [getattr(config, name, None) for name in names]
        known = None if own & {*unknown} else next((v for v in values if v is not None), None)
        return known if isinstance(known, int) else None

    width, heads = first("hidden_size", "d_model"), first("num_attention_heads")
    kv_heads = first("num_key_value_heads") or heads
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        kv_heads = 1
    inner = first(
        "intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner", "hidden_dim"
    )
    if inner is None and width and config.model_type in FOUR_TIMES:
        inner = 4 * width
    return {
        "layers": first("num_hidden_layers"),
        "decoder_layers": first("decoder_layers", "num_decoder_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": first("head_dim", "d_kv") or (width // heads if width and heads else None),
        "intermediate": inner,
        "vocabulary": first("vocab_size"),
    }


# --- rows -------------------------------------------------------------------------------------


def rows(modules: Modules) -> Iterator[dict[str, Any]]:
    """One row for like modules whose paths differ in numbers only, if all combinations exist."""
    groups: dict[tuple[str, Held], set[Numbers]] = defaultdict(set)
    for path, own in modules.items():
        numbers = tuple(int(part) for part in path.split(".") if _is_number(part))
        groups[starred(path), own].add(numbers)
    for (pattern, own), found in sorted(
        groups.items(), key=lambda item: (item[0][0], min(item[1]))
    ):
        for axes in products(found):
            at = [spelled(axis) for axis in axes if len(axis) > 1]
            yield {
                "path": _with_numbers(pattern, axes),
                **({"at": at} if at else {}),
                "kind": own.kind,
                "tensors": {name: list(shape) for name, shape in own.tensors},
            }


def products(found: Iterable[Numbers]) -> Iterator[tuple[Numbers, ...]]:
    """Splits tuples into sets of all combinations: {(0, 0), (0, 1), (1, 0)} → 0×{0, 1}, 1×0."""
    found = set(found)
    axes = tuple(tuple(sorted(set(axis))) for axis in zip(*found, strict=True))
    if prod(map(len, axes)) == len(found):
        yield axes
        return
    last = max(place for place, axis in enumerate(axes) if len(axis) > 1)
    for value in axes[last]:
        yield from products(numbers for numbers in found if numbers[last] == value)


def spelled(axis: Numbers) -> str:
    """(0, 1, 2, 5) → "0-2,5"."""
    runs: list[list[int]] = []
    for number in axis:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def _with_numbers(pattern: str, axes: Sequence[Numbers]) -> str:
    """A number that is the same in all paths is written out."""
    rest = iter(axes)
    parts = [
        str(axis[0]) if part == "*" and len(axis := next(rest)) == 1 else part
        for part in pattern.split(".")
    ]
    return ".".join(parts)


# --- files ------------------------------------------------------------------------------------


def contents(path: Path, log: bool = False) -> str:
    document = json.loads(path.read_text("utf-8"))
    derived = {}
    for base in document["bases"]:
        if log:
            print(base["name"], file=sys.stderr)
        derived[base["name"]] = derive(base)
    return render({**document, "derived": derived}) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write `derived` of registry/bases/*.json.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if different")
    options = parser.parse_args(arguments)
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    unknown = sorted(set(options.families) - set(known))
    if unknown:
        parser.error(f"not in {FOLDER.name}: {', '.join(unknown)}")

    stale = []
    for family in options.families or known:
        path = FOLDER / f"{family}.json"
        text = contents(path, log=not options.check)
        if path.read_text("utf-8") != text:
            stale.append(family)
            if not options.check:
                path.write_text(text, "utf-8")
    word = "differs" if options.check else "written"
    print("\n".join(f"{word}: {family}" for family in stale) or "all up to date")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
