"""PEFT as it shows from outside: by which files it is recognised, and what is odd about them."""

from __future__ import annotations

from adapterhub.adapter import Outline, Problem
from adapterhub.formats import adapterhub_config, merged_linear, mlx, named
from adapterhub.formats.claims import claim
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import CONFIG, Sight

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PROMPT = "prompt_embeddings"
_PREFIX = "base_model.model."
_RANKS = ((r"lora_(embedding_)?A(\.weight)?", 0), (r"ia3_l", 2))  # (IA)³ has no third axis


def recognises(sight: Sight) -> bool:
    """A config with `peft_type`; or PEFT's names of tensors; or its files, too damaged to tell."""
    if merged_linear.is_config(sight.config):
        return False
    if "peft_type" in sight.config:
        return True
    if adapterhub_config.is_config(sight.config) or mlx.is_config(sight.config):
        return False
    if sight.find(_is_peft) is not None:
        return True
    own = [sight.content(name) for name in WEIGHTS if name in sight.weights]
    if own:
        return not any(content.shapes or content.others for content in own)
    return sight.config_problem is not None and sight.file is None and not sight.weights


def _is_peft(content: Content) -> bool:
    names = content.shapes
    return any(n.startswith("base_model.") or n == _PROMPT for n in names)


def outline(sight: Sight) -> Outline:
    """What a pickle that nobody consented to shows by its names and shapes."""
    contents = [sight.content(name) for name in WEIGHTS if name in sight.weights]
    by_module, modules = named.ranks(contents, _RANKS)
    ranks = {name.removeprefix(_PREFIX): rank for name, rank in by_module.items()}
    alpha = named.number(sight.config.get("lora_alpha"))
    targets = tuple(name.removeprefix(_PREFIX) for name in modules)
    return Outline(ranks, targets, alpha, claim(sight.config), named.elements(contents))


def alone(sight: Sight) -> list[Problem]:
    """Why one file of another name is no adapter by itself."""
    if sight.weights:
        text = f"{sight.path} is one file, and PEFT's weights belong beside a config"
        remedy = f"call it {WEIGHTS[0]} and put its {CONFIG} beside it"
        damage = [p for name in sight.weights if (p := sight.content(name).problem)]
        return [*damage, Problem("no-config", text, remedy, fatal=True)]
    text = f"{sight.path} is a config without weights"
    remedy = f"call it {CONFIG} and put {WEIGHTS[0]} beside it"
    return [Problem("no-weights", text, remedy, fatal=True)]
