"""The root of an adapter's tensors, by the names that its format gives them on disk."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub import digest
from adapterhub.adapter import Adapter
from adapterhub.formats.peft_keys import key
from adapterhub.tensorfile import FileTensor, Tensor, tensor_digests


def adapter_root(adapter: Adapter) -> str:
    """What a manifest calls `adapter_root`: weights_root over the tensors as its format names them.

    An adapter that came from no file, or of a format that is not written, goes by PEFT's names.
    Raises NotSupported where the format has no name for a tensor, and what reading raises.
    """
    from adapterhub import formats

    row = formats.TABLE.get(adapter.format)
    if row is not None and row.writes:
        return tensors_root(formats.spelled(adapter))
    return tensors_root({key(adapter, m, role): t for m, role, t in adapter.tensors()})


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
