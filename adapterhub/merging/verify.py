"""Does a merged directory still hold what its adapterhub.json says?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapterhub import digest, schema, strictjson
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import AdapterHubError, NotFound
from adapterhub.merging import companions
from adapterhub.tensorfile import Checkpoint, open_checkpoint, tensor_digests

Progress = Callable[[int], None]
REPORT = "adapterhub.json"
REPORT_LIMIT = 256 * 1024 * 1024  # one entry per tensor; the largest models have 100,000 of them


def read_report(directory: Path) -> dict[str, Any]:
    """adapterhub.json of a merged directory. Raises NotFound, SchemaError."""
    path = directory / REPORT
    if not path.is_file():
        raise NotFound(
            f"{directory} has no {REPORT}: it was not made by adapterhub merge",
            remedy="verify takes a merged directory, or a ref of the registry",
        )
    report = strictjson.load_object(path, limit=REPORT_LIMIT)
    schema.check(report, "merge", what=str(path))
    return report


def differences(directory: Path, progress: Progress | None = None) -> list[str]:
    """Everything in which `directory` differs from its own report, one sentence each."""
    report = read_report(directory)
    found = list(_file_differences(directory, report["files"]))
    try:
        checkpoint = open_checkpoint(directory)
    except AdapterHubError as error:
        return [*found, error.message]
    return found + list(_tensor_differences(checkpoint, report, progress))


def _file_differences(directory: Path, files: dict[str, str]) -> Iterator[str]:
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif digest.of_bytes(path.read_bytes()) != expected:
            yield f"{name} has changed"
    for name in (*TOKENIZER_FILES, *companions.OTHER_FILES):
        if name not in files and (directory / name).exists():
            yield f"{name} is not in the report"


def _tensor_differences(
    checkpoint: Checkpoint, report: dict[str, Any], progress: Progress | None
) -> Iterator[str]:
    said: dict[str, dict[str, Any]] = report["tensors"]
    for name in sorted(said.keys() - checkpoint.tensors.keys()):
        yield f"tensor {name} is missing"
    for name in sorted(checkpoint.tensors.keys() - said.keys()):
        yield f"tensor {name} is not in the report"
    digests = tensor_digests(checkpoint.tensors, progress=progress)
    for name, tensor in checkpoint.tensors.items():
        expected = said.get(name)
        if expected is None:
            continue
        if (tensor.dtype, list(tensor.shape)) != (expected["dtype"], expected["shape"]):
            yield f"tensor {name} has another dtype or shape"
        elif digest.text(digests[name]) != expected["digest"]:
            yield f"tensor {name} has changed"
    root = digest.weights_root(
        (name, t.dtype, t.shape, digests[name]) for name, t in checkpoint.tensors.items()
    )
    if root != report["weights_root"]:
        yield f"the weights_root is {root}, the report says {report['weights_root']}"
