"""Compile the merge kernel with the machine's C compiler: `python -m adapterhub.kernels.build`.

The build hook of the package loads this file by its path, before the package is installed. So it
stands on the standard library alone.

Why a plain shared library with a C ABI, and neither cffi nor nanobind: one command compiles it, no
headers of Python are needed, one wheel serves every Python of a platform, `ctypes` releases the
GIL, and where there is no compiler the same install still works, on numpy.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("merge.c")
LIBRARY = Path(__file__).with_name("_merge.so")

# $CFLAGS is not read: fast-math or contraction in it would change the bits of merges.
FLAGS = (
    *("-std=c11", "-O3", "-ffp-contract=off", "-fno-fast-math"),
    *("-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"),
)


class BuildError(Exception):
    """No compiler, or it refused; the message is for people."""


def build(target: Path = LIBRARY, extra: Sequence[str] = ()) -> Path:
    """Compile merge.c to `target`, atomically. Raises BuildError."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        output = Path(scratch) / target.name
        run([*compiler, *FLAGS, *extra, "-o", str(output), str(SOURCE), "-lm"])
        output.replace(target)
    return target


def find_compiler() -> list[str]:
    """The command in $CC, else the first of cc, clang and gcc on the path. Raises BuildError."""
    wanted = os.environ.get("CC", "").strip()
    for command in [wanted] if wanted else ["cc", "clang", "gcc"]:
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    raise BuildError(f"no C compiler: {wanted or 'cc, clang, gcc'} not found")


def run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")


def main() -> int:
    try:
        print(build())
    except BuildError as error:
        print(f"{error}\nMerges will use the exact numpy fallback.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
