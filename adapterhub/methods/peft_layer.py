"""One layer, changed by PEFT itself: the only place of the methods that meets peft and torch.

A model of nothing but the layer, under its own path, is wrapped with the adapter's config and
given the adapter's tensors, and PEFT merges it. The state of torch that this could change (random
numbers, default dtype) is put back, and one layer is computed at a time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata, util
from typing import Any

import numpy as np

from adapterhub.errors import AdapterHubError, MissingExtra, NotMergeable
from adapterhub.methods.computed import fp32
from adapterhub.methods.meaning import Values
from adapterhub.tensorfile import Tensor, shown

_PREFIX = "base_model.model."
_LOCK = threading.Lock()
# What PEFT and torch raise for tensors and settings that do not go together.
_REFUSALS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Layer:
    """weight: (out, in); bias: (out,), or None. Both may be written to."""

    module: str
    weight: Values
    bias: Values | None = None


def require() -> None:
    """Without importing it. Raises MissingExtra."""
    if util.find_spec("peft") is None:
        raise MissingExtra("peft", "peft", "this method, which is computed by PEFT itself,")


def version() -> str:
    """`peft 0.21.2`, or `peft` where there is none."""
    try:
        return f"peft {metadata.version('peft')}"
    except metadata.PackageNotFoundError:
        return "peft"


def merged(
    layer: Layer,
    peft_type: str,
    settings: Mapping[str, Any],
    own: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
) -> Layer:
    """The layer as PEFT merges it, in fp32.

    own: the layer's tensors, shared: those of no module, by their roles; PEFT picks of the shared
    ones what this layer needs. Raises MissingExtra, and NotMergeable for what PEFT refuses.
    """
    require()
    with _LOCK, _undisturbed():
        try:
            return _merged(layer, peft_type, settings, own, shared)
        except ImportError as error:
            package = {"sklearn": "scikit-learn"}.get(error.name or "", error.name or "")
            if not package:  # peft says it in words only
                package = "scikit-learn" if "scikit-learn" in str(error) else "peft"
            purpose = f"{peft_type}, which PEFT computes with it,"
            raise MissingExtra(package, "peft", purpose) from error
        except AdapterHubError:
            raise
        except _REFUSALS as error:
            said = " ".join(str(error).split())[:500]
            raise NotMergeable(
                f"{shown(layer.module)}: {version()} refuses it: {said}",
                remedy="check that config and tensors are those of one training",
            ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)  # what PEFT draws is overwritten, and yet the same each time
            yield
    finally:
        torch.set_default_dtype(dtype)


def _merged(
    layer: Layer,
    peft_type: str,
    settings: Mapping[str, Any],
    own: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
) -> Layer:
    import peft

    model, leaf = _model(layer)
    live = peft.get_peft_model(model, _config(layer.module, peft_type, settings))
    _load(live, layer.module, own, shared)
    if peft_type == "FROD":
        _rebase(live.get_submodule(f"{_PREFIX}{layer.module}"))
    if peft_type == "ADAMSS":
        _refuse_other_clusters(live.get_submodule(f"{_PREFIX}{layer.module}"))
    live.merge_and_unload(safe_merge=True)
    bias = None if leaf.bias is None else leaf.bias.detach().numpy()
    return Layer(layer.module, leaf.weight.detach().numpy(), bias)


def _model(layer: Layer) -> tuple[Any, Any]:
    """Modules along the path, with a Linear at its end."""
    import torch

    out, into = layer.weight.shape
    leaf = torch.nn.Linear(into, out, bias=layer.bias is not None, device="meta")
    leaf.weight = torch.nn.Parameter(torch.from_numpy(layer.weight))
    if layer.bias is not None:
        leaf.bias = torch.nn.Parameter(torch.from_numpy(layer.bias))
    model: Any = leaf
    for name in reversed(layer.module.split(".")):
        parent = torch.nn.Module()
        parent.add_module(name, model)
        model = parent
    return model, leaf


def _config(module: str, peft_type: str, settings: Mapping[str, Any]) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    kind = CONFIGS.get(peft_type)
    if kind is None:
        raise NotMergeable(f"{version()} has no {peft_type}", remedy="pip install -U peft")
    known = {field.name for field in fields(kind)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise NotMergeable(
            f"{version()} does not know the settings {', '.join(unknown)} of {peft_type}",
            remedy="pip install -U peft",
        )
    fixed = {"target_modules": [module], "inference_mode": True}
    if "progressbar" in known:
        fixed["progressbar"] = False
    return kind(**settings, **fixed)


def _load(live: Any, module: str, own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
    """Give the wrapped layer its tensors: all that PEFT would save, and nothing else."""
    import peft

    state = {f"{_PREFIX}{module}.{role}": tensor for role, tensor in own.items()}
    common = {f"base_model.{role}": tensor for role, tensor in shared.items()}
    expected = peft.get_peft_model_state_dict(live, save_embedding_layers=False)
    state |= {key: tensor for key, tensor in common.items() if key in expected}
    missing, others = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or others:
        raise NotMergeable(
            f"{shown(module)}: {version()} expects other tensors than the adapter has",
            details=[*(f"missing: {key}" for key in missing), *(f"unknown: {k}" for k in others)],
            remedy="merge with the version of peft that wrote the adapter",
        )
    values = {key: _torch(tensor) for key, tensor in state.items()}
    result = peft.set_peft_model_state_dict(live, values)
    if result.unexpected_keys:
        raise NotMergeable(
            f"{shown(module)}: {version()} does not take {', '.join(result.unexpected_keys)}",
            remedy="merge with the version of peft that wrote the adapter",
        )


def _torch(tensor: Tensor) -> Any:
    import torch

    whole = not tensor.dtype.startswith(("F", "BF"))
    return torch.from_numpy(np.array(tensor.read()) if whole else fp32(tensor))


def _rebase(layer: Any) -> None:
    """FRoD's U for the V of the file; PEFT has it for the V that this machine would make.

    Where the two differ, be it in the signs of a decomposition, only the file's is what the
    adapter was trained with.
    """
    name = layer.active_adapters[0]
    v = layer.frod_V[name]
    size = [v.shape[0], v.shape[0]]
    indices = layer.frod_s_indices[name]
    inside = not indices.numel() or (int(indices.min()) >= 0 and int(indices.max()) < size[0])
    if layer.frod_s_size[name].tolist() != size or not inside:
        raise ValueError(f"frod_s_size and frod_s_indices must lie within {size}")
    weight = layer.get_base_layer().weight
    layer.frod_U[name] = layer._calculate_frod_u_and_lambda(v, weight)[0]


def _refuse_other_clusters(layer: Any) -> None:
    """AdaMSS finds its rows by clustering the weight anew, and PEFT takes whatever sizes come."""
    name = layer.active_adapters[0]
    found = [len(layer.seg_result[name][number]) for number in layer.train_subspace_index[name]]
    trained = [b.shape[0] for b in layer.adamss_B[name]]
    if found != trained:
        raise ValueError(
            f"clusters of {trained} rows were trained, and this weight has clusters of {found}; is "
            "this the base, in the dtype, that it was trained on?"
        )
