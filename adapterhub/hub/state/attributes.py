"""The `.gitattributes` that a repository begins with, as on the Hub: what is kept by LFS."""

from __future__ import annotations

PATH = ".gitattributes"
_EXTENSIONS = """
7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle
pkl pt pth rar safetensors tar.* tar tflite tgz wasm xz zip zst
"""
PATTERNS = (*(f"*.{each}" for each in _EXTENSIONS.split()), "saved_model/**/*", "*tfevents*")
CONTENT = "".join(f"{each} filter=lfs diff=lfs merge=lfs -text\n" for each in PATTERNS).encode()
