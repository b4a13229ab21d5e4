"""Files that are often found where a safetensors file should be, told by their first bytes."""

from __future__ import annotations

_LFS = "git lfs pull, in the repository; or download the file with its contents"
_CONVERT = "convert it with the library that wrote it, saving as safetensors"

# (lower-case beginning, what it is, what to do)
_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer", _LFS),
    (b"/annex/objects/", "a git-annex pointer", "git annex get, in the repository"),
    (b"<!doctype", "an HTML page", "download the file again: a web page was saved in its place"),
    (b"<html", "an HTML page", "download the file again: a web page was saved in its place"),
    (b"<?xml", "an XML document", "download the file again: an answer was saved in its place"),
    (b"pk\x03\x04", "a zip archive (torch.save writes those)", _CONVERT),
    (b"\x80\x02", "a Python pickle", _CONVERT),
    (b"\x80\x03", "a Python pickle", _CONVERT),
    (b"\x80\x04", "a Python pickle", _CONVERT),
    (b"\x80\x05", "a Python pickle", _CONVERT),
    (b"gguf", "a GGUF file", _CONVERT),
    (b"\x89hdf", "an HDF5 file", _CONVERT),
    (b"\x93numpy", "a numpy array", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"{", "a JSON document", "name the weights, not the config or the index"),
    (b"invalid username or password", "an error message", "log in, then download it again"),
    (b"access to model", "an error message", "ask for access, then download it again"),
    (b"entry not found", "an error message", "check the name, then download it again"),
)


def stranger(start: bytes) -> tuple[str, str] | None:
    """`(what it is, remedy)` for the first bytes of a file that is not safetensors."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    return next(((what, remedy) for key, what, remedy in _KNOWN if begin.startswith(key)), None)
