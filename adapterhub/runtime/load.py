"""From a base and an adapter to a working model, in memory.

The model is made as the class that the adapter was trained in, so that module paths mean the same
in both; the arithmetic is that of a merge, with the same kernel and so the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub import kernels
from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, InvalidAdapter, NotMergeable
from adapterhub.methods import (
    BiasDelta,
    Delta,
    LowRank,
    Meaning,
    Replacement,
    Shaped,
    TokenRows,
    Transform,
    method,
)
from adapterhub.registry import fit
from adapterhub.tensorfile import DTYPES, Tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FLOATS: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_Plain = LowRank | BiasDelta | Replacement
# PEFT's task types, and ours for tasks that PEFT does not name.
AUTO_CLASSES: Mapping[str, str] = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    "MASKED_LM": "AutoModelForMaskedLM",
    "IMAGE_CLS": "AutoModelForImageClassification",
}


def load(base: Base, adapter: Adapter) -> PreTrainedModel:
    """A model of the adapter's task in the base's dtype, in eval mode, the adapter in its weights.

    Raises NotMergeable for variants that have no weight to go into, BaseMismatch with everything
    that does not fit, or that neither base nor adapter has.
    """
    meaning = _plain(method(adapter.method).implementation.meaning(adapter))
    fit.check(base, adapter, name="the adapter")  # before a model is loaded
    heads = _brought(meaning)
    model, missing = _from_pretrained(base, adapter, meaning)
    _refuse_random(missing, heads, base)
    mismatches = [found for part in meaning if (found := _mismatch(model, part))]
    if mismatches:
        raise BaseMismatch(
            f"the adapter does not fit a {type(model).__name__} of {base.path}: "
            f"{len(mismatches)} mismatches",
            details=mismatches,
            remedy="check that this is the base it was trained on: adapterhub show REF",
        )
    for part in sorted(meaning, key=lambda part: not isinstance(part, Replacement)):
        _apply(model, part)  # what is replaced first, since others may add to it
    return model.eval()


def _plain(meaning: Meaning) -> tuple[_Plain, ...]:
    """Raises NotMergeable for what only a merge to files does yet."""
    found = []
    for part in meaning:
        special = isinstance(part, LowRank) and (part.magnitude or part.parameter)
        if isinstance(part, TokenRows | Delta | Transform | Shaped) or special:
            raise NotMergeable(
                f"{part.module}: DoRA, token rows and experts are not loaded into live models yet",
                remedy="adapterhub merge BASE ADAPTER --out DIR, then load DIR",
            )
        found.append(part)
    return tuple(found)


def _brought(meaning: Meaning) -> dict[str, Tensor]:
    return {f"{p.module}.{p.parameter}": p.value for p in meaning if isinstance(p, Replacement)}


# --- the model --------------------------------------------------------------------------------


def _from_pretrained(
    base: Base, adapter: Adapter, meaning: Meaning
) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of parameters that the base's files do not have."""
    import transformers

    options: dict[str, Any] = {"dtype": _dtype(base), "local_files_only": True}
    if labels := _labels(adapter, _brought(meaning)):
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {name: i for i, name in enumerate(labels)}
    auto = getattr(transformers, _class_name(base, adapter, meaning))
    with _quiet_loading():
        model, info = auto.from_pretrained(
            base.path, output_loading_info=True, use_safetensors=True, **options
        )
    return model, set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def _dtype(base: Base) -> str:
    """That of the files, where it is one; config.json may name another, which would round."""
    floats = [FLOATS[dtype] for dtype in base.dtypes if dtype in FLOATS]
    return floats[0] if len(floats) == 1 else "auto"


def _class_name(base: Base, adapter: Adapter, meaning: Meaning) -> str:
    """By the task; without one, the class that has the adapter's head, or the base's own."""
    if adapter.task and adapter.task in AUTO_CLASSES:
        return AUTO_CLASSES[adapter.task]
    found = fit.target_class(base, [(adapter, meaning)]) or base.model_class
    return found.name if found else "AutoModel"


def _labels(adapter: Adapter, heads: Mapping[str, Tensor]) -> list[str]:
    if adapter.labels:
        return list(adapter.labels)
    if adapter.task not in ("SEQ_CLS", "TOKEN_CLS", "IMAGE_CLS"):
        return []
    rows = [t.shape[0] for name, t in heads.items() if name.endswith(".bias") or len(t.shape) == 2]
    return [f"LABEL_{i}" for i in range(rows[-1])] if rows else []


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bar, and no warning of a new head: `_refuse_random` looks at what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_random(missing: set[str], heads: Mapping[str, Tensor], base: Base) -> None:
    random = sorted(missing - heads.keys())
    if random:
        raise BaseMismatch(
            "the model has parameters that neither base nor adapter brings; they would be random",
            details=random[:20],
            remedy=f"check that {base.path} is the base that this adapter was trained on",
        )


# --- the adapter ------------------------------------------------------------------------------


def _mismatch(model: PreTrainedModel, part: _Plain) -> str:
    name = f"{part.module}.{_parameter(part)}"
    parameter = _find(model, name)
    if parameter is None:
        return f"{name}: the model has no such parameter"
    if sharing := _sharing(model, parameter):
        raise NotMergeable(
            f"{name} is tied: {' and '.join(sharing)} share one weight",
            remedy="a later version attaches beside tied weights; until then use peft",
        )
    shape = _delta_shape(model, part) if isinstance(part, LowRank) else part.value.shape
    expected = tuple(parameter.shape)
    return "" if shape == expected else f"{name}: {list(shape)}, the model has {list(expected)}"


def _parameter(part: _Plain) -> str:
    if isinstance(part, Replacement):
        return part.parameter
    return "weight" if isinstance(part, LowRank) else "bias"


def _find(model: PreTrainedModel, name: str) -> torch.nn.Parameter | None:
    try:
        parameter: torch.nn.Parameter = model.get_parameter(name)
    except AttributeError:
        return None
    return parameter


def _sharing(model: PreTrainedModel, parameter: torch.nn.Parameter) -> list[str]:
    """The names of a parameter that has several."""
    everywhere = model.named_parameters(remove_duplicate=False)
    names = [name for name, other in everywhere if other is parameter]
    return names if len(names) > 1 else []


def _is_transposed(model: PreTrainedModel, part: LowRank) -> bool:
    kind = type(model.get_submodule(part.module)).__name__
    return part.layout == "embedding" or kind == "Conv1D"


def _delta_shape(model: PreTrainedModel, part: LowRank) -> tuple[int, ...]:
    out, rest = part.b.shape[0], part.a.shape[1:]
    return (*rest, out) if _is_transposed(model, part) else (out, *rest)


def _apply(model: PreTrainedModel, part: _Plain) -> None:
    """Change one parameter in place, on the CPU."""
    import torch

    name = f"{part.module}.{_parameter(part)}"
    parameter = model.get_parameter(name)
    stored = _numpy(parameter)
    try:
        changed = _changed(model, part, stored)
    except kernels.NonFinite as error:
        raise InvalidAdapter(
            f"{name}: {error}", remedy="the adapter or its base is damaged; verify both"
        ) from error
    with torch.no_grad():
        stored[...] = changed


def _changed(model: PreTrainedModel, part: _Plain, stored: np.ndarray) -> np.ndarray:
    if isinstance(part, Replacement):
        value = part.value.read().astype(np.float32)
        return kernels.round_to(value, stored.dtype)
    if isinstance(part, BiasDelta):
        return kernels.add_scaled(stored, [(np.float32(part.scale), _fp32(part.value))])
    a, b = _fp32(part.a), _fp32(part.b)
    factor = kernels.Factor(
        a=a.reshape(a.shape[0], -1), b=b.reshape(b.shape[0], -1), scale=np.float32(part.scale)
    )
    turned = _is_transposed(model, part)
    matrix = stored.T if turned else stored.reshape(stored.shape[0], -1)
    merged = kernels.merge_low_rank(matrix, [factor])
    return merged.T if turned else merged.reshape(stored.shape)


def _fp32(tensor: Tensor) -> np.ndarray:
    return tensor.read().astype(np.float32, copy=False)


def _numpy(parameter: torch.nn.Parameter) -> np.ndarray:
    """A view of the parameter's memory; numpy itself has no bfloat16."""
    import torch

    data = parameter.detach()
    if data.dtype == torch.bfloat16:
        return data.view(torch.int16).numpy().view(DTYPES["BF16"])
    return data.numpy()
