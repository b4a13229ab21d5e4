"""Safetensors files without torch: a strict reader, lazy tensors, a streaming writer, digests.

header = read_header("model.safetensors")        # every claim checked, nothing loaded
header.tensors["lm_head.weight"].read()          # one array, numpy or ml_dtypes
open_checkpoint("models/minilm").tensors         # one file, or an index and its shards
write_file("out.safetensors", {"w": ArrayTensor(array)})
"""

from adapterhub.tensorfile.checkpoint import Checkpoint, open_checkpoint
from adapterhub.tensorfile.dtypes import BITS, DTYPES, spelling, storage_bytes
from adapterhub.tensorfile.hashing import tensor_digests, usable_cores
from adapterhub.tensorfile.header import Header, read_header
from adapterhub.tensorfile.names import name_problem, shown
from adapterhub.tensorfile.tensors import ArrayTensor, FileTensor, Tensor
from adapterhub.tensorfile.writer import (
    ShardLayout,
    Spec,
    index_json,
    lay_out,
    plan_shards,
    write_file,
)

__all__ = [
    "BITS",
    "DTYPES",
    "ArrayTensor",
    "Checkpoint",
    "FileTensor",
    "Header",
    "ShardLayout",
    "Spec",
    "Tensor",
    "index_json",
    "lay_out",
    "name_problem",
    "open_checkpoint",
    "plan_shards",
    "read_header",
    "shown",
    "spelling",
    "storage_bytes",
    "tensor_digests",
    "usable_cores",
    "write_file",
]
