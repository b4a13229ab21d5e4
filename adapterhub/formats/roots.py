"""The root of an adapter's tensors, by the names that its format gives them on disk."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub import digest
from adapterhub.adapter import Adapter
from adapterhub.formats.peft_keys import key
from adapterhub.tensorfile import FileTensor, Tensor, tensor_digests


def adapter_root(adapter: Adapter) -> str:
    """What a manifest calls `adapter_root`: weights_root over the tensors as PEFT names them.

    Raises NotSupported where PEFT has no name for a tensor, and what reading raises.
    """
    tensors = {key(adapter, module, role): t for module, role, t in adapter.tensors()}
    return tensors_root(tensors)


def tensors_root(tensors: Mapping[str, Tensor]) -> str:
    """weights_root over these tensors, be they in files or in memory."""
    digests = digests_of(tensors)
    return digest.weights_root((n, t.dtype, t.shape, digests[n]) for n, t in tensors.items())


def digests_of(tensors: Mapping[str, Tensor]) -> Mapping[str, bytes]:
    """D of each tensor."""
    digests = tensor_digests({n: t for n, t in tensors.items() if isinstance(t, FileTensor)})
    for name, tensor in tensors.items():
        if name not in digests:
            hasher = digest.TensorHasher()
            for piece in tensor.pieces():
                hasher.update(piece)
            digests[name] = hasher.digest()
    return digests
