"""The root of an adapter's tensors, by the names that its format gives them on disk."""

from __future__ import annotations

from adapterhub import digest
from adapterhub.adapter import Adapter
from adapterhub.formats import peft
from adapterhub.tensorfile import FileTensor, Tensor, tensor_digests


def adapter_root(adapter: Adapter) -> str:
    """What a manifest calls `adapter_root`: weights_root over the tensors as PEFT names them.

    Raises NotSupported where PEFT has no name for a tensor, and what reading raises.
    """
    tensors = {peft.key(adapter, module, role): t for module, role, t in adapter.tensors()}
    return tensors_root(tensors)


def tensors_root(tensors: dict[str, Tensor]) -> str:
    """weights_root over these tensors, be they in files or in memory."""
    in_files = {name: t for name, t in tensors.items() if isinstance(t, FileTensor)}
    digests = tensor_digests(in_files)
    for name, tensor in tensors.items():
        if name not in digests:
            hasher = digest.TensorHasher()
            for piece in tensor.pieces():
                hasher.update(piece)
            digests[name] = hasher.digest()
    return digest.weights_root((n, t.dtype, t.shape, digests[n]) for n, t in tensors.items())
