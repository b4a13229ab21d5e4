"""What PEFT calls the tensors of an adapter: both ways between keys and (module, role).

Keys are `base_model.model.<module path in the wrapped model>.<suffix>`; the adapter's own name is
not in them. A module of which `target_parameters` names several parameters is wrapped once for
each, and its path says how deep a pair lies (peft 0.21.2, `ParamWrapper`):

    …experts.lora_A.weight                         lora_A
    …experts.base_layer.lora_A.weight              base_layer.lora_A
    …experts.base_layer.base_layer.lora_A.weight   base_layer.base_layer.lora_A

With bias="all", and a head with biases that is saved whole, PEFT writes those of the head three
times; it reads `classifier.bias`, and not `classifier.modules_to_save.bias`, the same once more,
and `classifier.original_module.bias`, what it was: `replace:modules_to_save.bias` and
`replace:original_module.bias` of `classifier`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import NotSupported
from adapterhub.formats.renamer import Renamer
from adapterhub.tensorfile import Tensor, shown

WRAPPED = "wrapped:"  # replace:… of a module that an adapter wraps
TOKENS_WRAPPED = "tokens_wrapped:"  # … or that trainable tokens wrap
_MAGNITUDE = ".lora_magnitude_vector"

KEYS = Renamer(
    (
        ("base_model.model.{module}.lora_A.weight", "lora_A"),
        ("base_model.model.{module}.lora_B.weight", "lora_B"),
        ("base_model.model.{module}.lora_B.bias", "lora_B.bias"),
        ("base_model.model.{module}.lora_embedding_A", "lora_embedding_A"),
        ("base_model.model.{module}.lora_embedding_B", "lora_embedding_B"),
        ("base_model.model.{module}.lora_magnitude_vector", "lora_magnitude_vector"),
        ("base_model.model.{module}.lora_diag", "lora_diag"),
        ("base_model.model.{module}.lora_velora_embed", "lora_velora_embed"),
        ("base_model.model.{module}.lora_monteclora_sampler.{name}", "lora_monteclora.{name}"),
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
COPIES = (f"{REPLACE}modules_to_save.", f"{REPLACE}original_module.")
_ANY_WRAPPED = re.compile(f"^({WRAPPED}|{TOKENS_WRAPPED})")
_INNER = "base_layer."
_COPY = re.compile(
    r"base_model\.model\.([^.]+(?:\.[^.]+)*?)\.((?:modules_to_save|original_module)\.(.*bias.*))"
)
_NESTED = re.compile(r"(.+?)((?:\.base_layer)+)")


def place(name: str) -> tuple[str, str] | None:
    """`(module, role)` of a tensor's name; None for a name that PEFT neither writes nor reads."""
    if (copied := _COPY.fullmatch(name)) and not _WRAPPERS.search(f"{copied[1]}.{copied[3]}"):
        return copied[1], REPLACE + copied[2]
    # PEFT reads the magnitude under the name that it has in memory, too.
    found = KEYS.read(name.removesuffix(".weight") if _is_magnitude(name) else name)
    if found is None:
        return None
    module, role = found[0], re.sub(_ANY_WRAPPED, REPLACE, found[1])
    if nested := _NESTED.fullmatch(module):
        module = nested[1]
        if role in ("lora_A", "lora_B"):
            role = _INNER * nested[2].count(".") + role
        elif not role.startswith(REPLACE):
            return None
    own = f"{module}.{role.removeprefix(REPLACE)}" if role.startswith(REPLACE) else module
    return None if _WRAPPERS.search(own) else (module, role)


def _is_magnitude(name: str) -> bool:
    return name.endswith(f"{_MAGNITUDE}.weight")


def modules_of(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Modules → roles → tensors, and the names that have no place there."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name in sorted(tensors):
        found = place(name)
        if found is None:
            unknown.append(shown(name))
            continue
        module, role = found
        if role in modules.setdefault(module, {}):
            unknown.append(f"{shown(name)} (stands twice, {_twice(name)})")
        modules[module][role] = tensors[name]
    return modules, unknown


def _twice(name: str) -> str:
    return "with and without " + ("weight" if _is_magnitude(name) else "base_layer")


def key(adapter: Adapter, module: str, role: str) -> str:
    """The name on disk of a tensor. Raises NotSupported where PEFT has none."""
    roles = adapter.modules[module]
    path, bare = module, role
    if role.startswith(COPIES):
        return _checked(f"base_model.model.{module}.{role.removeprefix(REPLACE)}", module, role)
    if role.startswith(REPLACE):
        bare = role.replace(REPLACE, _wrapper(roles), 1)
        path += ".base_layer" * max(other.count(_INNER) for other in roles)
    elif role.startswith(_INNER):
        bare = role.replace(_INNER, "")
        path += ".base_layer" * role.count(_INNER)
    return _checked(KEYS.write(path, bare), module, role)


def _checked(name: str | None, module: str, role: str) -> str:
    if name is None or place(name) != (module, role):
        raise NotSupported(f"PEFT has no spelling for {role} of {module}")
    return name


def _wrapper(roles: Mapping[str, Tensor]) -> str:
    """How PEFT marks the module's own tensors beside these roles."""
    if any(role.startswith("lora_") for role in roles):
        return WRAPPED
    return TOKENS_WRAPPED if "token_rows" in roles else REPLACE
