"""What AdapterHub calls the tensors of an adapter: both ways between keys and (module, role).

A key is `<module>.<container>.<adapter's name>.<rest>`; the name goes, and the container too where
the role tells it:

    bert.encoder.layer.0.output.adapters.md.adapter_down.0.weight    adapter_down.0.weight
    bert.encoder.layer.0.attention.self.query.loras.md.lora_A        lora_A
    roberta.prompt_tuning.prompt_tunings.md.prompt_embedding.weight  prompt_embedding.weight
    bert.invertible_adapters.md.F.0.weight                           invertible_adapters:F.0.weight
    heads.md.1.weight                           of `heads.1`: replace:weight

(IA)³ is a LoRA with one vector here, `lora_B` [out, 1] on the output: PEFT's `ia3_l`; and DoRA's
`m.weight` [out, 1] is PEFT's magnitude [out]. Source: adapters/loading.py (filter_func), methods/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapterhub.adapter import REPLACE
from adapterhub.errors import NotSupported
from adapterhub.tensorfile import ArrayTensor, FileTensor, Tensor, shown

_CONTAINERS = (
    r"(?:\w+_)?adapters|loras|prefix_tunings|prefix_gates|prompt_tunings|refts|shared_parameters"
)
# How the rest of a key begins → the container that needs no saying.
_USUAL = (
    (re.compile(r"adapter_(down|up|norm_before|norm_after)(\.|$)"), "adapters"),
    (re.compile(r"(lora_[AB]|m\.weight|vera_[DB])$"), "loras"),
    (re.compile(r"(self|encoder|cross)_prefix\."), "prefix_tunings"),
    (re.compile(r"prompt_embedding\."), "prompt_tunings"),
    (re.compile(r"units\."), "refts"),
)
_HEADS = "heads"
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Keys:
    """The spelling for the adapter called `name`; `scales`: its loras are (IA)³."""

    name: str
    scales: bool = False

    @property
    def _pattern(self) -> re.Pattern[str]:
        name = re.escape(self.name)
        return re.compile(rf"(?:(?P<module>\S+?)\.)??(?P<held>{_CONTAINERS})\.{name}\.(?P<rest>.+)")

    def place(self, key: str) -> tuple[str, str] | None:
        """`(module, role)` of a key of the adapter's own file, or None."""
        found = self._pattern.fullmatch(key)
        if found is None:
            return None
        module, held, rest = found["module"] or "", found["held"], found["rest"]
        if _usual(rest) != held:
            return module, f"{held}:{rest}"
        if self.scales and rest == "lora_B":
            return module, "ia3_l"
        return module, MAGNITUDE if rest == "m.weight" else rest

    def key(self, module: str, role: str) -> str:
        """The key of `(module, role)`. Raises NotSupported where there is none."""
        rest = {"ia3_l": "lora_B" if self.scales else role, MAGNITUDE: "m.weight"}.get(role, role)
        held, colon, other = rest.partition(":")
        if not colon:
            held, other = _usual(rest), rest
        key = ".".join((*([module] if module else []), held, self.name, other))
        if not held or self.place(key) != (module, role):
            raise NotSupported(f"AdapterHub has no spelling for {role} of {module}")
        return key

    def head_place(self, key: str) -> tuple[str, str] | None:
        """`(module, role)` of a key of the head's file; the adapter's name goes from it, too."""
        module, dot, parameter = key.rpartition(".")
        if not dot or not parameter:
            return None
        parts = module.split(".")
        if parts[0] == _HEADS:
            if parts[1:2] != [self.name]:
                return None
            del parts[1]
        return ".".join(parts), f"{REPLACE}{parameter}"

    def head_key(self, module: str, role: str) -> str:
        """Raises NotSupported."""
        parts = module.split(".")
        if parts[0] == _HEADS:
            parts.insert(1, self.name)
        key = ".".join((*parts, role.removeprefix(REPLACE)))
        if self.head_place(key) != (module, role):
            raise NotSupported(f"AdapterHub has no spelling for {role} of {module}")
        return key


def _usual(rest: str) -> str:
    return next((held for pattern, held in _USUAL if pattern.match(rest)), "")


def is_key(key: str) -> bool:
    """Whether AdapterHub writes such names, for an adapter of any name."""
    return _ANY.fullmatch(key) is not None


_ANY = re.compile(
    r"(\S+\.)?(adapters\.[^.]+\.adapter_(down|up)\.|loras\.[^.]+\.lora_[AB]$"
    r"|prefix_tunings\.[^.]+\.|prompt_tunings\.[^.]+\.|refts\.[^.]+\.units\.).*"
)


def modules_of(
    keys: Keys, tensors: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Modules → roles → tensors, and the names that have no place there."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for place, group in ((keys.place, tensors), (keys.head_place, head)):
        for name in sorted(group):
            found = place(name)
            tensor = _inside(found, group[name])
            if found is None or tensor is None or found[1] in modules.get(found[0], {}):
                unknown.append(shown(name))
                continue
            modules.setdefault(found[0], {})[found[1]] = tensor
    return modules, unknown


def _inside(place: tuple[str, str] | None, tensor: Tensor) -> Tensor | None:
    """The tensor as its role has it: a magnitude loses its second axis."""
    if place is None or place[1] != MAGNITUDE:
        return tensor
    shape = tensor.shape
    return reshaped(tensor, shape[:1]) if len(shape) == 2 and shape[1] == 1 else None


def outside(role: str, tensor: Tensor) -> Tensor:
    """The tensor as the file has it."""
    return reshaped(tensor, (*tensor.shape, 1)) if role == MAGNITUDE else tensor


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same elements in the same order, in another shape of as many."""
    if isinstance(tensor, FileTensor):
        return replace(tensor, shape=shape)
    return ArrayTensor(tensor.read().reshape(shape))
