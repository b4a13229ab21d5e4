"""Methods whose merge is left to PEFT, layer by layer; their formulas stand in peft's tuners.

    adamss  deft  frod  glora  osf  peanut  psoft  supertuning  tinylora  unilora  waveft

The engine streams as ever: each weight (and, where the method changes it, its bias) becomes what
`peft_layer.merged` makes of it and the layer's tensors in fp32, and is rounded once to the stored
dtype. Decompositions and sums are torch's, so the bits hang on the machine. What PEFT derives from
all layers together is taken from the adapter's files, or refused where they do not hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import peft_layer
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, Surroundings, Transform, Values
from adapterhub.methods.mergeable import Roles, Settings, adapted, complete
from adapterhub.methods.table import method
from adapterhub.tensorfile import Tensor, shown

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
_DROPOUT = re.compile(r".*_dropout")
_LOOPS = {"num_cayley_neumann_terms": 64, "psoft_svd_lowrank_niter": 64, "depth": 64}


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    """Raises MissingExtra where peft is not installed."""
    peft_layer.require()
    return parts(adapter)


def parts(adapter: Adapter) -> Meaning:
    _refuse_derived(adapter)
    return complete(adapter, _own(adapter))


def _own(adapter: Adapter) -> Iterator[Transform]:
    sides = signature(adapter).modules
    kind = str(method(adapter.method).peft_type)
    common = _settings(adapter)
    orders = _groups(adapter) if adapter.method == "tinylora" else {}
    for module, roles in adapted(adapter):
        settings, shared = _of_layer(adapter, module, roles, common, orders)
        compute = partial(_computed, module, kind, settings, roles, shared)
        out, into = sides.get(module, (None, None))
        into = None if adapter.method == "adamss" else into
        yield _change(adapter, module, roles, compute, "weight", (out, into))
        if adapter.method in WITH_BIAS:
            yield _change(adapter, module, roles, compute, "bias", (out,))


def _change(
    adapter: Adapter,
    module: str,
    roles: Roles,
    compute: Any,
    parameter: Literal["weight", "bias"],
    shape: tuple[int | None, ...],
) -> Transform:
    with_bias = adapter.method in WITH_BIAS
    return Transform(
        module,
        parameter,
        partial(compute, parameter, with_bias),
        shape,
        tuple(roles),
        optional=parameter == "bias",
        exact=False,
        looks_around=True,
        by=peft_layer.version(),
    )


def _computed(
    module: str,
    peft_type: str,
    settings: Mapping[str, Any],
    own: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    parameter: str,
    with_bias: bool,
    around: Surroundings,
    value: Values,
) -> Values:
    if parameter == "weight":
        weight: Values | None = value
        bias = around.read(module, "bias") if with_bias else None
    else:
        weight, bias = around.read(module, "weight"), value
    if weight is None or weight.ndim != 2:
        raise NotMergeable(f"{shown(module)} has no weight that is a matrix")
    made = peft_layer.merged(
        peft_layer.Layer(module, weight, bias), peft_type, settings, own, shared
    )
    found = made.weight if parameter == "weight" else made.bias
    if found is None:
        raise NotMergeable(f"{shown(module)} lost its {parameter} in PEFT")
    return found


# --- the config of one layer ------------------------------------------------------------------


def _settings(adapter: Adapter) -> dict[str, Any]:
    """What the config says of the formula."""
    found = {
        field: value
        for field, value in adapter.config.items()
        if value is not None
        and field in method(adapter.method).fields() - _NOT_THE_FORMULA
        and not _DROPOUT.fullmatch(field)
    }
    for field, most in _LOOPS.items():
        if isinstance(found.get(field), int) and found[field] > most:
            raise NotMergeable(
                f"adapter_config.json: {field} is {found[field]}, and no more than {most} are "
                "computed here",
                remedy="check the field",
            )
    return found


def _of_layer(
    adapter: Adapter,
    module: str,
    roles: Roles,
    common: Mapping[str, Any],
    groups: Mapping[str, int],
) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """The settings that make a model of this layer alone, and the tensors that it shares."""
    shared = dict(adapter.modules.get("", {}))
    if adapter.method == "waveft":  # the file tells what a pattern or the other layers did
        return {**common, "n_frequency": roles["waveft_spectrum"].shape[0]}, shared
    if adapter.method == "osf":
        return {**common, "effective_rank": _kept(roles)}, shared
    if adapter.method == "tinylora":
        own = shared[f"tinylora_v.{groups[module]}"]
        return {**common, "weight_tying": 0.0}, {"tinylora_v.0": own}
    return common, shared


def _kept(roles: Roles) -> int:
    """How many singular values OSF has left alone: all but those that it trained."""
    out, trained = roles["osf_svd_params.U_low"].shape
    return int(min(out, roles["osf_svd_params.V_low"].shape[1]) - trained)


def _refuse_derived(adapter: Adapter) -> None:
    """What hangs on the model as a whole and is not in the files."""
    shared = adapter.modules.get("", {})
    saved = {
        "frod": any(role.startswith("frod_V.") for role in shared),
        "unilora": any("unilora_indices_A" in roles for _, roles in adapted(adapter)),
        "tinylora": all("tinylora_P" in roles for _, roles in adapted(adapter)),
    }
    field = "save_indices" if adapter.method == "unilora" else "save_projection"
    if not saved.get(adapter.method, True):
        raise NotMergeable(
            f"{method(adapter.method).title} was saved without what it shares between layers "
            f"({field}), and PEFT makes that anew from the whole model",
            remedy=f"load it with peft, set {field} to true in its config, and save it again",
        )


def _groups(adapter: Adapter) -> Mapping[str, int]:
    """Which of TinyLoRA's vectors a layer uses (Morris et al., https://arxiv.org/abs/2602.04118).

    PEFT numbers the layers in the order of the model and gives each group of neighbours a vector.
    Layers that differ in their numbers alone come in the order of these; others have an order that
    no file tells. Raises NotMergeable.
    """
    modules = [module for module, _ in adapted(adapter)]
    tying = float(Settings(adapter).get("weight_tying"))
    count = max(1, round(len(modules) * (1.0 - tying)))
    size = max(1, len(modules) // count)
    if count > 1 and len({re.sub(r"\d+", "*", module) for module in modules}) > 1:
        raise NotMergeable(
            f"TinyLoRA shares {count} vectors among layers by their order in the model, which the "
            "files do not tell for layers of several kinds",
            remedy="merge it with peft: PeftModel.from_pretrained(…).merge_and_unload()",
        )
    modules.sort(key=lambda module: [int(number) for number in re.findall(r"\d+", module)])
    found = {module: min(i // size, count - 1) for i, module in enumerate(modules)}
    vectors = sum(role.startswith("tinylora_v.") for role in adapter.modules.get("", {}))
    if set(found.values()) != set(range(vectors)):
        raise NotMergeable(
            f"TinyLoRA has {vectors} vectors, and its {len(modules)} layers use "
            f"{len(set(found.values()))}",
            remedy="check weight_tying, and that no layer is missing",
        )
    return found
