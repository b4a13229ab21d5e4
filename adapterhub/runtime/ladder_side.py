"""Ladder side-tuning on a live model: see `methods.ladder_side` for the formula.

The side network reads what the model's layers give, and runs beside them, layer by layer, with the
masks and positions that they were called with; gradients never pass through the model for it. It
sees whole sequences: while it is attached the model generates without a cache, and a pass that
continues one is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterhub.adapter import Adapter
from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.methods.ladder_side import LAYER, rungs
from adapterhub.runtime.hooks import After, Hooks, Undo
from adapterhub.runtime.passing import Passing
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_PLACE = re.compile(r"(.+)\.(0|[1-9]\d{0,3})")
# What transformers' configs call the sizes that a narrower model has less of.
_SIZES = ("hidden_size", "intermediate_size", "head_dim", "n_inner", "hidden_dim")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_CACHES = ("past_key_values", "past_key_value", "layer_past")
_WHERE = "check that this is the model that the adapter was trained on"


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """As `hooks.Hooked`. Raises BaseMismatch, NotSupported."""
    if weight != 1.0:
        raise NotSupported(
            f"a ladder cannot be attached with weight {weight:g}: it takes the place of the output",
            remedy="give this adapter weight 1",
        )
    layers = rungs(adapter)
    stack, numbers = _stack(model, layers)
    output = str(adapter.config["output"])
    _module(model, output)
    ladder = _Ladder(model, adapter, stack, numbers)
    after: list[tuple[str, After]] = [
        (layer, ladder.rung(number)) for layer, number in zip(layers, numbers, strict=True)
    ]
    return Hooks(
        before=((f"{stack}.0", ladder.start),),
        after=(*after, (output, ladder.finish)),
        others=(_without_cache(model),),
        nbytes=sum(p.numel() * p.element_size() for p in ladder.parameters()),
    )


def _stack(model: PreTrainedModel, layers: list[str]) -> tuple[str, list[int]]:
    """The path of the one list of layers, and the numbers in it, which ascend."""
    places = [_PLACE.fullmatch(layer) for layer in layers]
    lists = {place[1] for place in places if place}
    if None in places or not lists:
        raise BaseMismatch("the ladder stands on modules that are no layers of a list")
    if len(lists) > 1:
        raise NotSupported(
            f"a ladder on several lists of layers, {' and '.join(sorted(lists))}, is not attached: "
            "its side decoder would look at its side encoder",
            remedy="use the code that it was trained with",
        )
    stack = lists.pop()
    numbers = [int(place[2]) for place in places if place]
    count = len(_module(model, stack))
    lacking = [f"{stack}.{number}: the model has {count} layers" for number in numbers]
    lacking = [text for text, number in zip(lacking, numbers, strict=True) if number >= count]
    if lacking:
        raise BaseMismatch(
            f"the ladder has {len(lacking)} layers that the model lacks",
            details=lacking,
            remedy=_WHERE,
        )
    return stack, numbers


def _module(model: PreTrainedModel, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        name = type(model).__name__
        raise BaseMismatch(f"this {name} has no module {path}", remedy=_WHERE) from error


def _without_cache(model: PreTrainedModel) -> Callable[[], Undo]:
    configs = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    found = [config for config in configs if getattr(config, "use_cache", None)]

    def change() -> Undo:
        for config in found:
            config.use_cache = False

        def undo() -> None:
            for config in found:
                config.use_cache = True

        return undo

    return change


class _Ladder:
    """The side network, and what it has seen of the pass at hand."""

    def __init__(
        self, model: PreTrainedModel, adapter: Adapter, stack: str, numbers: list[int]
    ) -> None:
        shared = adapter.modules[""]
        self._shared = {role: _torch(tensor) for role, tensor in shared.items()}
        self._output = adapter.config["output"]
        self._temperature = float(adapter.config.get("gate_temperature") or 0.1)
        side = _narrow(model, adapter)
        self._rotary = getattr(side, "rotary_emb", None)
        self._epsilon = _epsilon(side.config)
        self._layers: dict[int, nn.Module] = {}
        self._own: dict[int, dict[str, torch.Tensor]] = {}
        found = _module(side, _inside(model, stack))
        for number in numbers:
            roles = adapter.modules[f"{stack}.{number}"]
            self._layers[number] = _filled(found[number], roles, f"{stack}.{number}")
            self._own[number] = {
                role: _torch(tensor)
                for role, tensor in roles.items()
                if role in ("down.weight", "down.bias", "gate")
            }
        self._pass = Passing()

    def parameters(self) -> Iterator[torch.Tensor]:
        yield from self._shared.values()
        for number, layer in self._layers.items():
            yield from self._own[number].values()
            yield from layer.parameters()

    # --- what runs ----------------------------------------------------------------------------

    def start(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's first layer."""
        self._pass.put(self._linear(_given(args, kwargs), self._shared, "first_down"))

    def rung(self, number: int) -> After:
        return partial(self._after, number)  # no closure: a copy of the model has its own ladder

    def _after(
        self, number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        _refuse_cache(kwargs, hidden)
        down = self._linear(hidden, self._own[number], "down")
        mixed = self._mixed(self._own[number]["gate"], self._pass.take(), down)
        layer = self._layers[number].to(mixed.device, mixed.dtype)
        rest = args[1:] if args else ()
        made = layer(mixed, *rest, **self._narrowed(mixed, kwargs))
        self._pass.put(made[0] if isinstance(made, tuple) else made)

    def finish(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        hidden = output if _is_tensor(output) else output[0]
        state = self._pass.take()
        if state is None or hidden.shape[:-1] != state.shape[:-1]:
            raise BaseMismatch(
                f"the ladder's output, {self._output}, does not follow the model's layers",
                remedy="correct output in adapter_config.json: the last norm, or the stack",
            )
        made = self._linear(self._norm(state), self._shared, "up")
        if (gate := self._shared.get("last_gate")) is not None:
            made = self._mixed(gate, made, hidden)
        return made if _is_tensor(output) else _replaced(output, made)

    # --- the formula --------------------------------------------------------------------------

    def _linear(self, x: torch.Tensor, roles: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        from torch.nn import functional

        roles[f"{name}.weight"] = weight = roles[f"{name}.weight"].to(x.device, x.dtype)
        return functional.linear(x, weight, _met(roles, f"{name}.bias", x))

    def _mixed(self, gate: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        share = (gate.to(one.device).float() / self._temperature).sigmoid().to(one.dtype)
        return share * one + (1 - share) * other

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        weight, bias = (_met(self._shared, name, x) for name in ("norm.weight", "norm.bias"))
        if bias is None:
            return functional.rms_norm(x, x.shape[-1:], weight, self._epsilon)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self._epsilon)

    def _narrowed(self, x: torch.Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model's layer was called with, less the cache, and with narrower rotations."""
        import torch

        found = {**kwargs, **{name: None for name in _CACHES if name in kwargs}}
        found.pop("hidden_states", None)
        if "use_cache" in found:
            found["use_cache"] = False
        if found.get("position_embeddings") is not None and self._rotary is not None:
            positions = found.get("position_ids")
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device)[None]
            found["position_embeddings"] = self._rotary.to(x.device)(x, positions)
        return found


# --- small things -----------------------------------------------------------------------------


def _met(roles: dict[str, torch.Tensor], role: str, x: torch.Tensor) -> torch.Tensor | None:
    """A tensor where, and as, x is; it stays there."""
    if role not in roles:
        return None
    roles[role] = roles[role].to(x.device, x.dtype)
    return roles[role]


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _replaced(output: Any, first: torch.Tensor) -> Any:
    """A tuple or a ModelOutput with another first value."""
    if isinstance(output, tuple):
        return (first, *output[1:])
    found = copy.copy(output)
    found[next(iter(output.keys()))] = first
    return found


def _refuse_cache(kwargs: Mapping[str, Any], hidden: Any) -> None:
    past: Any = next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)
    length = past.get_seq_length() if hasattr(past, "get_seq_length") else 0
    if length and length != hidden.shape[1]:
        raise NotSupported(
            f"a ladder sees whole sequences, and this pass continues one of {length} tokens",
            remedy="call the model with use_cache=False",
        )


def _torch(tensor: Tensor) -> torch.Tensor:
    """A copy of its values in fp32."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(tensor.read(), dtype=np.float32))


def _narrow(model: PreTrainedModel, adapter: Adapter) -> Any:
    """A model of the same class with every width divided, its values not yet those of the side."""
    import torch
    from transformers import AutoModel

    factor = int(adapter.config["reduction_factor"])
    config = copy.deepcopy(model.config.get_text_config())
    for name in _SIZES:
        size = getattr(config, name, None)
        if isinstance(size, int):
            if size % factor:
                raise BaseMismatch(
                    f"{name} of the model is {size}, which reduction_factor {factor} does not "
                    "divide",
                    remedy=_WHERE,
                )
            setattr(config, name, size // factor)
    config.vocab_size, config.pad_token_id = 1, 0  # nothing is embedded
    attention = getattr(model.config, "_attn_implementation", None)
    with torch.random.fork_rng():
        side = AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return side.eval().requires_grad_(False)


def _epsilon(config: Any) -> float:
    found = (getattr(config, name, None) for name in _EPSILONS)
    return float(next((value for value in found if value is not None), 1e-6))


def _inside(model: PreTrainedModel, path: str) -> str:
    """A path in the bare model."""
    prefix = f"{model.base_model_prefix}."
    return path.removeprefix(prefix) if hasattr(model, model.base_model_prefix) else path


def _filled(layer: nn.Module, roles: Mapping[str, Tensor], where: str) -> nn.Module:
    given = {r.removeprefix(LAYER): _torch(t) for r, t in roles.items() if r.startswith(LAYER)}
    asked = layer.state_dict()
    wrong = [f"{where}: the side layer lacks {name}" for name in sorted(asked.keys() - given)]
    wrong += [f"{where}: a side layer has no {name}" for name in sorted(given.keys() - asked)]
    wrong += [
        f"{where}: {name} is {list(given[name].shape)}, expected {list(asked[name].shape)}"
        for name in sorted(given.keys() & asked.keys())
        if given[name].shape != asked[name].shape
    ]
    if wrong:
        raise BaseMismatch(
            f"the side layers are not those of this model: {len(wrong)} mismatches",
            details=wrong[:20],
            remedy=_WHERE,
        )
    layer.load_state_dict(given)
    return layer
