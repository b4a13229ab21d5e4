"""What PEFT calls the tensors of an adapter: both ways between keys and (module, role).

Keys are `base_model.model.<module path in the wrapped model>.<suffix>`; the adapter's own name is
not in them. Which suffixes there are hangs on the method: LoRA's stand below, those of the others
are the roles of `methods.layouts`. What belongs to no module, as `base_model.vera_A` and
`prompt_embeddings`, has the module path "".

A module of which `target_parameters` names several parameters is wrapped once for each, and its
path says how deep a pair lies (peft 0.21.2, `ParamWrapper`):

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
from dataclasses import dataclass
from functools import cache

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import NotSupported
from adapterhub.formats.renamer import Renamer
from adapterhub.methods.layouts import LAYOUTS
from adapterhub.tensorfile import Tensor, shown

WRAPPED = "wrapped:"  # replace:… of a module that an adapter wraps
TOKENS_WRAPPED = "tokens_wrapped:"  # … or that trainable tokens wrap
TOKEN_ROWS = "token_rows"
_MAGNITUDE = ".lora_magnitude_vector"
_PREFIX = "base_model.model."
# These wrap no model: what they have of their own has no prefix, and its heads a shorter one.
PROMPTS = (
    *("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning"),
    *("cpt", "cartridge"),
)
_LORA = (
    ("lora_A.weight", "lora_A"),
    ("lora_B.weight", "lora_B"),
    ("lora_B.bias", "lora_B.bias"),
    ("lora_embedding_A", "lora_embedding_A"),
    ("lora_embedding_B", "lora_embedding_B"),
    ("lora_magnitude_vector", "lora_magnitude_vector"),
    ("lora_diag", "lora_diag"),
    ("lora_velora_embed", "lora_velora_embed"),
    ("lora_monteclora_sampler.{name}", "lora_monteclora.{name}"),
)
_TOKENS = (
    ("token_adapter.trainable_tokens_delta", TOKEN_ROWS),
    ("token_adapter.base_layer.{name}", TOKENS_WRAPPED + "{name}"),
)
_WHOLE = (("base_layer.{name}", WRAPPED + "{name}"), ("{name}", REPLACE + "{name}"))
_OWN = {TOKEN_ROWS: "trainable_tokens_delta"}  # of the method trainable_tokens
# Parts of names that a wrapper owns. Where one is left in a module path, the key is none that
# PEFT writes (`lora_A.default.weight`), and no whole tensor of a base has such a name.
_FIRST_PARTS = sorted(
    {role.split(".")[0] for found in LAYOUTS.values() for role in (*found.roles(), *found.whole)}
)
_WRAPPERS = re.compile(
    r"(^|\.)(modules_to_save|original_module|token_adapter|trainable_tokens_delta|"
    r"(lora|ia3|hada|lokr|oft|boft|vera|randlora|adapter)_[^.]*|"
    rf"{'|'.join(map(re.escape, _FIRST_PARTS))})(\.|$)"
)
COPIES = (f"{REPLACE}modules_to_save.", f"{REPLACE}original_module.")
_ANY_WRAPPED = re.compile(f"^({WRAPPED}|{TOKENS_WRAPPED})")
_INNER = "base_layer."
_COPY = re.compile(
    r"base_model\.model\.([^.]+(?:\.[^.]+)*?)\.((?:modules_to_save|original_module)\.(.*bias.*))"
)
_NESTED = re.compile(r"(.+?)((?:\.base_layer)+)")


@dataclass(frozen=True)
class _Spelling:
    """The keys of one method: of modules, of what belongs to none, and those kept whole."""

    modules: Renamer
    shared: Renamer
    whole: re.Pattern[str] | None


@cache
def _spelling(method: str) -> _Spelling:
    if method == "lora":
        return _Spelling(_rows((*_LORA, *_TOKENS, *_WHOLE)), Renamer(()), None)
    layout = LAYOUTS[method]
    own = [(_OWN.get(role, role), role) for role in layout.roles()]
    prompts = method in PROMPTS
    others = _WHOLE[1:] if prompts else _WHOLE
    tokens = _TOKENS if method == "adalora" else ()  # whose config is LoRA's and more
    prefix = "" if prompts else "base_model."
    shared = [
        (f"{prefix}{role}".replace("{n}", "{name}"), role.replace("{n}", "{name}"))
        for role in layout.shared_roles()
    ]
    return _Spelling(
        _rows((*own, *tokens, *others), "base_model." if prompts else _PREFIX),
        Renamer(shared),
        _whole(layout.whole),
    )


def _rows(rows: tuple[tuple[str, str], ...], prefix: str = _PREFIX) -> Renamer:
    return Renamer(
        [
            (f"{prefix}{{module}}.{suffix}".replace("{n}", "{name}"), role.replace("{n}", "{name}"))
            for suffix, role in rows
        ]
    )


def _whole(starts: tuple[str, ...]) -> re.Pattern[str] | None:
    if not starts:
        return None
    names = "|".join(map(re.escape, starts))
    return re.compile(
        rf"base_model\.(?:model\.(?P<module>[^.]+(?:\.[^.]+)*?)\.)?(?P<role>({names})\..+)"
    )


def place(name: str, method: str = "lora") -> tuple[str, str] | None:
    """`(module, role)` of a tensor's name; None for a name that PEFT neither writes nor reads."""
    spelling = _spelling(method)
    if spelling.whole and (found := spelling.whole.fullmatch(name)):
        return found["module"] or "", found["role"]
    if common := spelling.shared.read(name):
        return common
    if (copied := _COPY.fullmatch(name)) and not _WRAPPERS.search(f"{copied[1]}.{copied[3]}"):
        return copied[1], REPLACE + copied[2]
    return _placed(name, spelling)


def _placed(name: str, spelling: _Spelling) -> tuple[str, str] | None:
    """A tensor of a module."""
    # PEFT reads the magnitude under the name that it has in memory, too.
    found = spelling.modules.read(name.removesuffix(".weight") if _is_magnitude(name) else name)
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
    tensors: Mapping[str, Tensor], method: str = "lora"
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Modules → roles → tensors, and the names that have no place there."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name in sorted(tensors):
        found = place(name, method)
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
    if adapter.method != "lora" and adapter.method not in LAYOUTS:
        raise NotSupported(
            f"PEFT has no spelling for the method {adapter.method!r}",
            remedy="keep it in the format that it came in",
        )
    return _checked(_key(adapter, module, role), adapter.method, module, role)


def _key(adapter: Adapter, module: str, role: str) -> str | None:
    spelling, roles = _spelling(adapter.method), adapter.modules[module]
    path, bare = module, role
    if spelling.whole and spelling.whole.fullmatch(f"base_model.{role}"):
        return f"{_PREFIX}{module}.{role}" if module else f"base_model.{role}"
    if module == "":
        return spelling.shared.write("", role)
    if role.startswith(COPIES):
        return f"{_PREFIX}{module}.{role.removeprefix(REPLACE)}"
    if role.startswith(REPLACE):
        bare = role.replace(REPLACE, _wrapper(adapter.method, roles), 1)
        path += ".base_layer" * max(other.count(_INNER) for other in roles)
    elif role.startswith(_INNER):
        bare = role.replace(_INNER, "")
        path += ".base_layer" * role.count(_INNER)
    return spelling.modules.write(path, bare)


def _checked(name: str | None, method: str, module: str, role: str) -> str:
    if name is None or place(name, method) != (module, role):
        raise NotSupported(f"PEFT has no spelling for {role} of {module or 'the adapter'}")
    return name


def _wrapper(method: str, roles: Mapping[str, Tensor]) -> str:
    """How PEFT marks the module's own tensors beside these roles."""
    own = [role for role in roles if not role.startswith(REPLACE)]
    if any(role != TOKEN_ROWS or method == "trainable_tokens" for role in own):
        return WRAPPED
    return TOKENS_WRAPPED if own else REPLACE


KEYS = _spelling("lora").modules
