"""Methods whose merge is left to PEFT, layer by layer; their formulas stand in peft's tuners.

    adamss  deft  frod  glora  osf  peanut  psoft  waveft

The engine streams as ever: each weight (and, where the method changes it, its bias) becomes what
`peft_layer.merged` makes of it and the layer's tensors in fp32, and is rounded once to the stored
dtype. Decompositions and sums are torch's, so the bits hang on the machine. What PEFT derives from
all layers together is taken from the adapter's files, or refused where they do not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import peft_layer
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Surroundings, Transform, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete, replacements
from adapterhub.methods.table import method
from adapterhub.tensorfile import shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]

WITH_BIAS = ("adamss", "glora")  # these change the bias too, by way of the weight
# Fields that say where and how to train, and nothing of the formula.
_NOT_THE_FORMULA = frozenset(
    {"peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"}
    | {"peft_version", "inference_mode", "runtime_config", "target_modules", "exclude_modules"}
    | {"layers_to_transform", "layers_pattern", "modules_to_save", "init_weights", "bias"}
    | {"fan_in_fan_out", "use_asa", "runtime_offload_base_weight", "progressbar"}
    | {"proportional_parameters", "n_frequency_pattern", "rank_pattern", "target_svd_config"}
    | {"trainable_token_indices", "ensure_weight_tying"}
)
BY_HAND = "merge it with peft: PeftModel.from_pretrained(…).merge_and_unload()"
_DROPOUT = re.compile(r".*_dropout")
_LOOPS = {"num_cayley_neumann_terms": 64, "psoft_svd_lowrank_niter": 64, "depth": 64}


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    """Raises MissingExtra where peft is not installed."""
    peft_layer.require()
    _refuse_derived(adapter)
    _refuse_loops(adapter)
    return complete(adapter, changes(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*changes(adapter), *replacements(adapter))


def changes(adapter: Adapter) -> Iterator[Transform]:
    """One for each parameter that PEFT computes."""
    sides = signature(adapter).modules
    settings = _settings(adapter)
    for module, roles in adapted(adapter):
        out, into = sides.get(module, (None, None))
        yield _change(Computation(adapter, module, roles, settings, "weight"), (out, into))
        if adapter.method in WITH_BIAS:
            yield _change(Computation(adapter, module, roles, settings, "bias"), (out,))


def _change(computation: Computation, shape: tuple[int | None, ...]) -> Transform:
    return Transform(
        computation.module,
        computation.parameter,
        computation,
        shape,
        tuple(computation.roles),
        optional=computation.parameter == "bias",
        exact=False,
        looks_around=True,
        by=peft_layer.version(),
    )


@dataclass(frozen=True, eq=False)
class Computation:
    """What becomes of one parameter of a layer. `settings`: those that all layers share."""

    adapter: Adapter
    module: str
    roles: Roles
    settings: Mapping[str, Any]
    parameter: Literal["weight", "bias"]

    def __call__(self, around: Surroundings, value: Values) -> Values:
        """Raises NotMergeable and MissingExtra."""
        settings = self._of_layer()
        kind = str(method(self.adapter.method).peft_type)
        layer = self._layer(around, value)
        shared = self.adapter.modules.get("", {})
        made = peft_layer.merged(layer, kind, settings, self.roles, shared)
        found = made.weight if self.parameter == "weight" else made.bias
        return value if found is None else found

    def _layer(self, around: Surroundings, value: Values) -> peft_layer.Layer:
        if self.parameter == "weight":
            beside = around.read(self.module, "bias") if self.adapter.method in WITH_BIAS else None
            return peft_layer.Layer(self.module, value, beside)
        weight = around.read(self.module, "weight")
        if weight is None:
            raise NotMergeable(f"{shown(self.module)} has a bias and no weight in this base")
        return peft_layer.Layer(self.module, weight, value)

    def _of_layer(self) -> Mapping[str, Any]:
        """The settings that make a model of this layer alone."""
        if self.adapter.method == "waveft":  # the file tells what a pattern or other layers did
            return {**self.settings, "n_frequency": self.roles["waveft_spectrum"].shape[0]}
        if self.adapter.method == "osf":
            return {**self.settings, "effective_rank": _kept(self.roles)}
        return self.settings


# --- the config of one layer ------------------------------------------------------------------


def _settings(adapter: Adapter) -> dict[str, Any]:
    """What the config says of the formula."""
    return {
        field: value
        for field, value in adapter.config.items()
        if value is not None
        and field in method(adapter.method).fields() - _NOT_THE_FORMULA
        and not _DROPOUT.fullmatch(field)
    }


def _refuse_loops(adapter: Adapter) -> None:
    for field, most in _LOOPS.items():
        said = Settings(adapter).get(field)
        if isinstance(said, int) and said > most:
            raise NotMergeable(
                f"adapter_config.json: {field} is {said}, and no more than {most} are "
                "computed here",
                remedy="check the field",
            )


def _kept(roles: Roles) -> int:
    """How many singular values OSF has left alone: all but those that it trained."""
    out, trained = roles["osf_svd_params.U_low"].shape
    return int(min(out, roles["osf_svd_params.V_low"].shape[1]) - trained)


def _refuse_derived(adapter: Adapter) -> None:
    """What hangs on the weights of many layers and is not in the files."""
    saved = any(role.startswith("frod_V.") for role in adapter.modules.get("", {}))
    if adapter.method == "frod" and not saved:
        raise NotMergeable(
            "FRoD was saved without what its layers share (save_projection), and PEFT makes that "
            "anew from all of their weights together",
            remedy=BY_HAND,
        )
