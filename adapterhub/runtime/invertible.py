"""Invertible adapters at the embeddings (MAD-X: Pfeiffer et al., https://arxiv.org/abs/2005.00052).

NICE, with the hidden units in halves x1, x2, of which the first has ⌊hidden / 2⌋:

    y1 = x1 + F(x2),  y2 = x2 + G(y1)         back: x2 = y2 - G(y1),  x1 = y1 - F(x2)

F and G are two linear layers with the config's non-linearity between. Behind the embeddings it
runs forward, and where `Places.turned_back`, before the output embeddings backward. GLOW is
refused: the library's own forward pass of it cannot take a batch of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BaseMismatch, NotSupported
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottleneck import activation
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.places import Places, base_path
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONTAINER = "invertible_adapters:"
CHECK = "check that this is the model it was trained on: adapterhub show REF"
_NETS = tuple(f"{net}.{i}.{end}" for net in "FG" for i in (0, 2) for end in ("weight", "bias"))


def planned(
    model: PreTrainedModel, places: Places, roles: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Hooks:
    """Raises NotSupported, BaseMismatch."""
    kind = config.get("inv_adapter")
    if not kind and not roles:
        return Hooks()
    if kind != "nice" or places.embedded is None:
        raise NotSupported(
            f"the invertible adapter {str(kind)[:40]!r} is not attached to a "
            f"{model.config.model_type}; NICE is, behind the embeddings of text models",
            remedy="load it with the library adapters",
        )
    tensors = _tensors(roles, int(model.config.hidden_size))
    coupling = Coupling(tensors, activation(config["non_linearity"]))
    when, path = places.embedded
    path = base_path(model) + path
    entering = ((path, coupling.entering),) if when == "before" else ()
    leaving = ((path, coupling.leaving),) if when == "after" else ()
    if places.turned_back and (head := _head(model)):
        entering = (*entering, (head, coupling.back))
    nbytes = sum(tensor.nbytes for tensor in coupling.tensors.values())
    return Hooks(before=entering, after=leaving, nbytes=nbytes)


def _tensors(roles: Mapping[str, Tensor], hidden: int) -> dict[str, torch.Tensor]:
    found = {role.removeprefix(CONTAINER): tensor for role, tensor in roles.items()}
    wrong = [f"there is no {name}" for name in _NETS if name not in found]
    wrong += [f"{name} is none of NICE's" for name in found if name not in _NETS]
    if not wrong:
        half, rest = hidden // 2, hidden - hidden // 2
        for net, sizes in (("F", (rest, half)), ("G", (half, rest))):
            inner = next(iter(found[f"{net}.0.weight"].shape), 0)
            wanted = {
                f"{net}.0.weight": (inner, sizes[0]), f"{net}.0.bias": (inner,),
                f"{net}.2.weight": (sizes[1], inner), f"{net}.2.bias": (sizes[1],),
            }  # fmt: skip
            wrong += [
                f"{name} is {list(found[name].shape)}, {list(shape)} was expected"
                for name, shape in wanted.items()
                if found[name].shape != shape
            ]
    if wrong:
        raise BaseMismatch(
            "the invertible adapter's tensors do not fit", details=wrong, remedy=CHECK
        )
    return {name: torch_of(tensor) for name, tensor in found.items()}


def _head(model: PreTrainedModel) -> str | None:
    """The path of the output embeddings, if the model has any."""
    found = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is found), None)


@dataclass(frozen=True)
class Coupling:
    """`tensors`: weights and biases of F and G; `activate`: the function within them."""

    tensors: Mapping[str, torch.Tensor]
    activate: Callable[[Any], Any]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        half = x.shape[-1] // 2
        y1 = x[..., :half] + self._net("F", x[..., half:])
        return torch.cat((y1, x[..., half:] + self._net("G", y1)), dim=-1)

    def reverse(self, y: torch.Tensor) -> torch.Tensor:
        import torch

        half = y.shape[-1] // 2
        x2 = y[..., half:] - self._net("G", y[..., :half])
        return torch.cat((y[..., :half] - self._net("F", x2), x2), dim=-1)

    def _net(self, net: str, x: torch.Tensor) -> torch.Tensor:
        import torch

        linear = torch.nn.functional.linear
        held = {end: self.tensors[f"{net}.{end}"].to(x) for end in _ENDS}
        inner = self.activate(linear(x, held["0.weight"], held["0.bias"]))
        return linear(inner, held["2.weight"], held["2.bias"])

    def leaving(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return self.forward(output)

    def entering(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self.forward(args[0]), *args[1:]), kwargs

    def back(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self.reverse(args[0]), *args[1:]), kwargs


_ENDS = ("0.weight", "0.bias", "2.weight", "2.bias")
