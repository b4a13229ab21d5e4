"""One bottleneck: from what a block gives to what the model goes on with.

    x = norm_before(input)        down(x) = f(W_d x + b_d)        up = s · (W_u down(x) + b_u)

with a gate, up is multiplied by the mean over the tokens of σ(W_g input + b_g). Given h, the
block's output, and r, to which the model adds it:

    sequential   input = norm(h + r) if original_ln_before (h + r without a norm), else h
                 residual = h;  or the input, where residual_before_ln is false;  or h + r, if it is
                 "post_add"
                 y = norm_after(up) + residual, or norm_after(up + residual)
    parallel     input = r,  y = norm_after(up) + h
    then         norm(y + r) if original_ln_after, else y

Source: adapters/methods/modeling.py of adapters 1.3 (Houlsby et al. 2019, Pfeiffer et al. 2020, He
et al. 2021). Compacter's projections are sums of Kronecker products, Σ_i A_i ⊗ (L_i R_i) (Karimi
Mahabadi et al., https://arxiv.org/abs/2106.04647), made once into a plain matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InvalidAdapter, NotSupported

if TYPE_CHECKING:
    import torch

Norm = Callable[["torch.Tensor"], "torch.Tensor"]
Tensors = Mapping[str, "torch.Tensor"]
_EPS = 1e-5  # that of torch's LayerNorm, which the library takes as it is


@dataclass(frozen=True)
class Settings:
    """The fields of a config that change the forward pass; the library's defaults."""

    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    is_parallel: bool = False
    scaling: float | str = 1.0

    def __post_init__(self) -> None:
        if self.residual_before_ln not in (True, False, "post_add"):
            raise InvalidAdapter(
                f"residual_before_ln is {self.residual_before_ln!r:.40}; true, false or "
                '"post_add" were expected',
                remedy="correct adapter_config.json",
            )
        if isinstance(self.scaling, str) and self.scaling not in ("learned", "channel"):
            raise InvalidAdapter(
                f'scaling is {self.scaling!r:.40}; a number, "learned" or "channel" was expected',
                remedy="correct adapter_config.json",
            )


def settings(config: Mapping[str, Any]) -> Settings:
    """Raises InvalidAdapter for what means nothing, NotSupported for what is not known."""
    names = Settings.__dataclass_fields__
    found = {name: config[name] for name in names if config.get(name) is not None}
    if "non_linearity" not in found:
        raise InvalidAdapter("the config has no non_linearity", remedy="re-export the adapter")
    activation(found["non_linearity"])
    return Settings(**found)


def activation(name: str) -> Callable[[Any], Any]:
    """The function that AdapterHub calls so. Raises NotSupported."""
    import torch
    from transformers.activations import ACT2FN

    said = str(name).lower()
    if said == "leakyrelu":
        return torch.nn.functional.leaky_relu
    if said not in ACT2FN:
        raise NotSupported(
            f"the non-linearity {said[:40]!r} is not one of transformers",
            remedy="upgrade transformers, or load the adapter with the library adapters",
        )
    found: Callable[[Any], Any] = ACT2FN[said]
    if any(True for _ in found.parameters()):  # type: ignore[attr-defined]
        raise NotSupported(
            f"the non-linearity {said} has parameters of its own, which no adapter brings",
            remedy="load the adapter with the library adapters",
        )
    return found


@dataclass(frozen=True)
class Bottleneck:
    """`tensors`: down.weight (width, hidden), up.weight (hidden, width), and what else there is of
    down.bias, up.bias, before.weight, before.bias, after.…, gate.weight (1, hidden), gate.bias,
    scaling (1,) or (hidden,). `activate`: the function that the settings name.
    """

    settings: Settings
    tensors: Tensors
    activate: Callable[[Any], Any]

    def __call__(self, h: torch.Tensor, r: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """What the model adds r to and normalises; see `leaves` for where it shall not."""

        given = self.settings
        x, residual = (r, h) if given.is_parallel else self._before(h, r, norm)
        up = self._up(x)
        inside = given.adapter_residual_before_ln and not given.is_parallel
        if inside:
            up = up + residual
        if "after.weight" in self.tensors:
            up = _norm(up, self._like("after.weight", up), self._like("after.bias", up))
        result: torch.Tensor = up if inside else up + residual
        return result

    @property
    def leaves(self) -> bool:
        """Whether the model goes on with the result as it is, without r and norm."""
        return not self.settings.original_ln_after

    def _before(
        self, h: torch.Tensor, r: torch.Tensor, norm: Norm | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = self.settings
        x = h
        if given.original_ln_before:
            x = h + r if norm is None else norm(h + r)
        if given.residual_before_ln == "post_add":
            return x, h + r
        return x, h if given.residual_before_ln else x

    def _up(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        down = x
        if "before.weight" in self.tensors:
            down = _norm(x, self._like("before.weight", x), self._like("before.bias", x))
        down = self.activate(self._linear("down", down))
        up = self._linear("up", down)
        scaling = self.settings.scaling
        up = up * (self._like("scaling", x) if isinstance(scaling, str) else scaling)
        if "gate.weight" in self.tensors:
            gate = torch.sigmoid(self._linear("gate", x)).mean(dim=1).unsqueeze(-1)
            up = up * gate
        return up

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        import torch

        bias = self._like(f"{name}.bias", x) if f"{name}.bias" in self.tensors else None
        return torch.nn.functional.linear(x, self._like(f"{name}.weight", x), bias)

    def _like(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.tensors[name].to(x)


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, _EPS)


# --- Compacter --------------------------------------------------------------------------------


def kronecker_sum(rules: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_i rules[i] ⊗ weights[i], turned: rules (n, n, n), weights (n, in/n, out/n) → (out, in)."""
    import torch

    total = sum(torch.kron(rule, weight) for rule, weight in zip(rules, weights, strict=True))
    return torch.as_tensor(total).T.contiguous()
