"""Finding, building and refusing the compiled kernel."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from adapterhub import kernels
from adapterhub.errors import InvalidOption, NotSupported
from adapterhub.kernels import build, library

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("clang") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is looked for; nothing is there yet, and no path is forced."""
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_merge.so")
    monkeypatch.delenv("ADAPTERHUB_KERNEL")
    return tmp_path / "_merge.so"


def merge_one() -> np.ndarray:
    one = np.ones((1, 1), np.float32)
    return kernels.merge_low_rank(one, [kernels.Factor(one, one, np.float32(2))])


# What a library offers on a processor without vectors of use.
STUB = f"""
int adapterhub_merge_abi(void) {{ return {library.ABI}; }}
int adapterhub_merge_runs(int path) {{ return path == 0; }}
void adapterhub_merge_pack(void) {{}}
void adapterhub_merge_run(void) {{}}
"""


def compile_stub(source: str, target: Path) -> None:
    code = target.with_suffix(".c")
    code.write_text(source)
    command = [*build.find_compiler(), "-shared", "-fPIC", "-o", str(target), str(code)]
    subprocess.run(command, check=True)


class TestChoice:
    paths = ("numpy",)

    def test_both_modules_mean_one_file(self) -> None:
        assert build.LIBRARY == library.LIBRARY

    def test_without_a_library_numpy_computes_and_says_why(self, elsewhere: Path) -> None:
        assert kernels.name == "numpy reference"
        assert kernels.describe() == {
            "kernel": "numpy-reference",
            "exact": True,
            "note": "the compiled kernel was not built; "
            "to build it: python -m adapterhub.kernels.build",
        }
        assert merge_one().item() == 3

    @needs_compiler
    def test_a_fresh_library_is_used(self, elsewhere: Path) -> None:
        assert build.build(elsewhere, ["-O0"]) == elsewhere
        assert [p.name for p in elsewhere.parent.iterdir()] == ["_merge.so"]
        assert kernels.describe()["kernel"] in ("c-portable", "c-avx2", "c-avx512")
        assert merge_one().item() == 3

    def test_damaged_library_is_refused_with_a_note(self, elsewhere: Path) -> None:
        elsewhere.write_bytes(b"\x7fELF damaged")
        note = kernels.describe()["note"]
        assert str(note).startswith("_merge.so is damaged or of another system (")
        assert merge_one().item() == 3

    @needs_compiler
    @pytest.mark.parametrize(
        ("source", "note"),
        [
            (
                STUB.replace(f"return {library.ABI};", "return 999;"),
                f"_merge.so is of version 999, this package needs {library.ABI};",
            ),
            ("int other(void) { return 1; }", "_merge.so is damaged or of another system ("),
        ],
    )
    def test_stale_or_foreign_library_is_refused_with_a_note(
        self, elsewhere: Path, source: str, note: str
    ) -> None:
        compile_stub(source, elsewhere)
        assert str(kernels.describe()["note"]).startswith(note)
        assert merge_one().item() == 3

    def test_forced_path_needs_the_library(
        self, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADAPTERHUB_KERNEL", "portable")
        with pytest.raises(NotSupported) as caught:
            merge_one()
        assert "ADAPTERHUB_KERNEL=portable: the compiled kernel was not built" in str(caught.value)
        assert caught.value.remedy == "python -m adapterhub.kernels.build"

    def test_unknown_path_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ADAPTERHUB_KERNEL", "sse9")
        with pytest.raises(InvalidOption, match="ADAPTERHUB_KERNEL=sse9: there is no such kernel"):
            kernels.describe()
        with pytest.raises(InvalidOption, match="one of avx512, avx2, portable, numpy"):
            _ = kernels.name

    @needs_compiler
    def test_path_that_the_processor_lacks_is_refused(
        self, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compile_stub(STUB, elsewhere)
        monkeypatch.setenv("ADAPTERHUB_KERNEL", "avx2")
        with pytest.raises(NotSupported, match="ADAPTERHUB_KERNEL=avx2: this processor") as caught:
            kernels.describe()
        assert caught.value.remedy == "one of portable, numpy, or unset it"
        monkeypatch.delenv("ADAPTERHUB_KERNEL")
        assert kernels.name == "C (portable)"


class TestCompiler:
    paths = ("numpy",)

    @pytest.fixture(autouse=True)
    def no_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CC", raising=False)

    def test_none_on_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(build.BuildError, match="no C compiler: cc, clang, gcc not found"):
            build.build(tmp_path / "_merge.so")
        assert list(tmp_path.iterdir()) == []

    def test_named_one_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "/nowhere/cc -m64")
        with pytest.raises(build.BuildError, match="no C compiler: /nowhere/cc -m64 not found"):
            build.find_compiler()

    @needs_compiler
    def test_named_one_keeps_its_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", f"{COMPILER} -m64")
        assert build.find_compiler() == [COMPILER, "-m64"]

    @needs_compiler
    def test_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "_merge.so"
        target.write_bytes(b"before")
        with pytest.raises(build.BuildError, match="fast-math changes bits"):
            build.build(target, ["-ffast-math"])
        assert target.read_bytes() == b"before"
        assert [p.name for p in tmp_path.iterdir()] == ["_merge.so"]

    @needs_compiler
    @pytest.mark.slow
    def test_source_compiles_without_warnings(self, tmp_path: Path) -> None:
        build.build(tmp_path / "_merge.so", ["-O1", "-Werror"])

    def test_command_without_a_compiler_says_what_follows(self, tmp_path: Path) -> None:
        environment = {**os.environ, "PATH": str(tmp_path)}
        command = [sys.executable, "-m", "adapterhub.kernels.build"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines() == [
            "no C compiler: cc, clang, gcc not found",
            "Merges will use the exact numpy fallback.",
        ]


class TestCode:
    """The promises that depend on how the C code is written."""

    paths = ("numpy",)

    def test_banned_instructions_are_not_called(self) -> None:
        code = "".join(p.read_text() for p in build.SOURCE.parent.glob("merge*.[ch]"))
        assert "fmadd_ps" in code and "cvtneps" not in code.replace("vcvtneps2bf16", "")

    def test_ctypes_structures_match_the_header(self) -> None:
        assert ctypes.sizeof(library.Term) == 32
        assert ctypes.sizeof(library.Plan) == 40
        assert ctypes.sizeof(library.Fault) == 16


def test_bfloat16_subnormals_survive() -> None:
    """vcvtneps2bf16 would flush them."""
    smallest = np.array([1, 0x8001], np.uint16).view(ml_dtypes.bfloat16)
    prepared = kernels.prepare_scaled(2, (), np.dtype(np.float32), smallest.dtype)
    rounded = np.empty(2, smallest.dtype)
    prepared.run(smallest.astype(np.float32), rounded)
    assert rounded.view(np.uint16).tolist() == [1, 0x8001]
