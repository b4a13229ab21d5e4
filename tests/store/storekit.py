"""What the tests of the store share: small manifests, an add, and a check of a whole home."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from adapterhub.store import Store

BASE = "sha256:" + "ab" * 32


def document(blob: str, size: int, number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "adapter",
        "format": "peft",
        "method": "lora",
        "variants": [],
        "rank": {"min": 8, "max": 16, "pattern": {}},
        "alpha": number,
        "dtype": "F32",
        "parameters": 123,
        "task": "TOKEN_CLS",
        "labels": ["O", "SRC", "REL"],
        "base": {"name": "org/MiniLM", "structure_root": BASE, "weights_root": None},
        "files": [{"path": "adapter_model.safetensors", "size": size, "sha256": blob}],
        "lineage": None,
        **changes,
    }


def put(store: Store, number: int, **changes: Any) -> str:
    """A manifest with one blob of its own; its digest."""
    blob, size = store.put_blob_bytes(b"weights of %d" % number)
    return store.put_manifest(document(blob, size, number, **changes))


def add(store: Store, name: str, number: int, **options: Any) -> str:
    with store.writing():
        digest = put(store, number, **options.pop("changes", {}))
        store.add_version(name, digest, **options)
    return digest


def sha(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def check_home(store: Store) -> None:
    """Nothing visible has a wrong digest; the index says what the logs say; gc leaves no halves."""
    store.gc(grace_seconds=0)
    manifests = sorted((store.home / "manifests").glob("sha256/??/*"))
    blobs = sorted((store.home / "blobs").glob("sha256/??/*"))
    for path in (*manifests, *blobs):
        assert sha(path) == "sha256:" + path.name
    stored = {"sha256:" + path.name for path in blobs}
    for path in manifests:
        files = store.manifest("sha256:" + path.name)["files"]
        assert {each["sha256"] for each in files} <= stored
    assert list((store.home / "tmp").iterdir()) == []
    rows = store.list(limit=10_000)
    assert {row.name for row in rows} == set(store.names())
    for row in rows:
        state = store.state(row.name)
        assert (row.digest, dict(row.tags)) == (state.latest, dict(state.tags))
        assert row.versions == len(state.versions)
        assert all(store.is_whole(digest) for digest in state.versions)
