"""Prompt tuning, P-tuning, multitask prompt tuning and prefix tuning of PEFT and T5X: through PEFT.

PEFT wraps a model; here the model itself stays what callers hold. Its `forward` and `generate` go
to the wrapper, which calls the model's own in turn. Everything that PEFT changed in the model
(gradient flags, wrapped heads, attributes) is noted by comparison, and undone by `detach`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

from adapterhub import formats
from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import BaseMismatch, MissingExtra, NotSupported
from adapterhub.runtime import prefixes
from adapterhub.runtime.arrays import torch_of
from adapterhub.runtime.bottlenecks import misfit, refuse_weight
from adapterhub.runtime.differences import Difference
from adapterhub.runtime.hooks import Hooks, Undo
from adapterhub.runtime.passing import Passing
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMATS = ("peft", "t5x_prompt")
EMBEDDINGS = "prompt_embeddings"
_ROUTED = ("forward", "generate")
# What PEFT's generate leaves in the model, and in its `model`.
_LEFT = ("prepare_inputs_for_generation", "generation_config")
# What initialises a prompt that is trained anew: files and tokenizers that nobody needs now.
_INITIAL = ("prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path")
_GENERATING = threading.RLock()
_RAISED = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """See `hooks.Hooked`; AdapterHub's prefixes go their own way."""
    if adapter.format == "adapterhub" and adapter.method == "prefix_tuning":
        return prefixes.plan(model, adapter, weight)
    refuse_weight(adapter, weight)
    if adapter.format not in FORMATS:
        raise NotSupported(
            f"{adapter.method} of the format {adapter.format} stands elsewhere than PEFT's, and is "
            "not attached",
            remedy="load it with the library that it comes from",
        )
    _check(model, adapter)
    tensors = {name: torch_of(tensor) for name, tensor in _spelled(adapter).items()}
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Hooks(
        others=(partial(_attached, model, _config(model, adapter), tensors),), nbytes=nbytes
    )


def _spelled(adapter: Adapter) -> Mapping[str, Tensor]:
    """Under the names of PEFT's file."""
    if adapter.format == "peft":
        return formats.spelled(adapter)
    return {EMBEDDINGS: adapter.modules[""][EMBEDDINGS]}


def _check(model: PreTrainedModel, adapter: Adapter) -> None:
    embeddings = adapter.modules.get("", {}).get(EMBEDDINGS)
    if embeddings is None or len(embeddings.shape) != 2:
        raise misfit(model, [f"there is no matrix {EMBEDDINGS}"])
    width = model.get_input_embeddings().weight.shape[1]
    if adapter.method != "prefix_tuning" and embeddings.shape[1] != width:
        said = f"{EMBEDDINGS} is {list(embeddings.shape)}, the model's embeddings have {width}"
        raise misfit(model, [said])
    names = dict(model.named_modules())
    heads = [
        f"{module}.{role.removeprefix(REPLACE)}: the model has no such module"
        for module, role, _ in adapter.tensors()
        if role.startswith(REPLACE) and module not in names
    ]
    if heads:
        raise misfit(model, heads)


def _config(model: PreTrainedModel, adapter: Adapter) -> Any:
    """PEFT's config of an adapter that is not trained any more."""
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise MissingExtra("peft", "peft", "attaching a prompt") from error
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.method.upper()]
    known = set(kind.__dataclass_fields__) - {"peft_type", *_INITIAL}
    given = {name: value for name, value in adapter.config.items() if name in known}
    if adapter.format == "t5x_prompt":
        given["num_virtual_tokens"] = adapter.modules[""][EMBEDDINGS].shape[0]
        given["num_transformer_submodules"] = 1  # the encoder's alone
    task = adapter.task or adapter.config.get("task_type") or _task(model)
    return kind(**{**given, "task_type": task, "inference_mode": True})


def _task(model: PreTrainedModel) -> str:
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"


def _attached(model: PreTrainedModel, config: Any, tensors: Mapping[str, torch.Tensor]) -> Undo:
    if "forward" in model.__dict__:
        raise NotSupported(
            "this model's forward pass is not its class's own: a prompt is attached already, or "
            "another tool has taken it over",
            remedy="detach that first",
        )
    difference = Difference(model)
    try:
        wrapper = _wrapped(model, config, tensors)
        _route(model, wrapper)
    except _RAISED as error:
        difference.undo()
        raise BaseMismatch(
            f"PEFT cannot put this adapter on a {type(model).__name__}: {error}",
            remedy="check that this is the model it was trained on: adapterhub show REF",
        ) from error
    except BaseException:
        difference.undo()
        raise
    difference.note()
    return difference.undo


def _wrapped(model: PreTrainedModel, config: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, set_peft_model_state_dict

    if config.task_type not in MODEL_TYPE_TO_PEFT_MODEL_MAPPING:
        raise NotSupported(f"PEFT has no prompts for the task {config.task_type}")
    wrapper = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[config.task_type](model, config)
    result = set_peft_model_state_dict(wrapper, dict(tensors))
    unused = [name for name in getattr(result, "unexpected_keys", ()) if name not in tensors]
    if unused:
        raise ValueError(f"{', '.join(unused[:5])} have no place there")
    wrapper.prompt_encoder.to(model.device).eval().requires_grad_(False)
    return wrapper


def _route(model: PreTrainedModel, wrapper: Any) -> None:
    """The model's own methods to the wrapper's; what the wrapper calls in turn is the own again."""
    inside = Passing()
    for name in _ROUTED:
        own, its = getattr(model, name, None), getattr(wrapper, name, None)
        if own is not None and its is not None:
            model.__dict__[name] = _Routed(model, own, its, inside)


class _Routed:
    """In the place of a method of the model. Copies of the model would call this model."""

    def __init__(
        self,
        model: PreTrainedModel,
        own: Callable[..., Any],
        its: Callable[..., Any],
        inside: Passing,
    ) -> None:
        self._model, self._own, self._its, self._inside = model, own, its, inside
        self._names = list(inspect.signature(own).parameters)
        update_wrapper(self, own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._inside.there:
            return self._own(*args, **kwargs)
        self._inside.put(True)
        try:
            given = {**dict(zip(self._names, args, strict=False)), **kwargs}
            return (
                self._generated(given) if self._own.__name__ == "generate" else self._its(**given)
            )
        finally:
            self._inside.take()

    def _generated(self, given: Mapping[str, Any]) -> Any:
        """PEFT changes the model while it generates, so that threads have to take turns."""
        with _GENERATING:
            inner = self._model.__dict__["_modules"].get("model")
            held = [(m.__dict__, dict(m.__dict__)) for m in (self._model, inner) if m is not None]
            try:
                return self._its(**given)
            finally:
                for now, before in held:
                    _give_back(now, before)

    def __deepcopy__(self, memo: object) -> Any:
        raise _no_copies()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise _no_copies()


def _no_copies() -> NotSupported:
    return NotSupported(
        "a model that a prompt is attached to cannot be copied or pickled: the copy would still "
        "run the original",
        remedy="detach the prompt, and attach it again after",
    )


def _give_back(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in _LEFT:
        if name in before:
            now[name] = before[name]
        else:
            now.pop(name, None)
