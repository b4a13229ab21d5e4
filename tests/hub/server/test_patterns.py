"""git itself is the oracle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import ends

from adapterhub.hub.server.patterns import parse_attributes, parse_ignore

PATHS = (
    "a.txt",
    "b.log",
    "sub/a.txt",
    "sub/deep/a.txt",
    "sub/deep/b.log",
    "other/sub/a.txt",
    "build/out.o",
    "src/build/out.o",
    "checkpoint-1/model.safetensors",
    "checkpoint-22/optimizer.pt",
    "[x].txt",
    "x.txt",
    "y.txt",
    "a b.txt",
    "trailing ",
    "#hash",
    "!bang",
    ".hidden",
    "ünï.txt",
    "aXb.txt",
    "foo-bar-baz.bin",
)
IGNORES = (
    "*.txt",
    "/a.txt",
    "sub/",
    "/sub",
    "sub/*.txt",
    "sub/**/*.txt",
    "**/build",
    "**/sub/a.txt",
    "sub/**",
    "**",
    "*\n!*.txt",
    "*.txt\n!sub/a.txt",
    "sub\n!sub/a.txt",
    "checkpoint-*/",
    "checkpoint-?",
    "[x].txt",
    "[!x].txt",
    "[^x].txt",
    "[a-x].txt",
    "\\[x\\].txt",
    "# a comment\na.txt",
    "\\#hash",
    "\\!bang",
    "a b.txt   ",
    "trailing\\ ",
    ".*",
    "?.txt",
    "a*b*.txt",
    "*-*-*.bin",
    "foo*baz.bin",
    "ünï.*",
    "/",
    "//",
    "[",
    "[a",
    "a/../b",
    "deep/a.txt",
    "\\",
    "a.txt\\",
    "sub/deep/",
    "**/",
    "*/deep",
    "\ufeffa.txt",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is the oracle")
    root = tmp_path_factory.mktemp("git")
    git(root, "init", "-q")
    for path in PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def git(root: Path, *words: str, text: str = "") -> str:
    command = ["git", "-c", "core.quotePath=false", "-C", str(root), *words]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize("text", IGNORES)
def test_what_git_ignores(checkout: Path, text: str) -> None:
    (checkout / ".gitignore").write_text(text, "utf-8")
    said = git(checkout, "check-ignore", "--no-index", "-z", "--stdin", text="\0".join(PATHS))
    expected = set(said.split("\0")) - {""}
    ignore = parse_ignore(text)
    assert {path for path in PATHS if ignore.ignores(path)} == expected


@pytest.mark.parametrize(
    "text",
    [
        "*.txt filter=lfs diff=lfs merge=lfs -text",
        "*.txt filter=lfs\nsub/*.txt -filter",
        "*.txt filter=lfs\na.txt !filter",
        "sub/** filter=lfs",
        "checkpoint-* filter=lfs",
        "checkpoint-*/** filter=lfs",
        "*.txt text\n# *.log filter=lfs\n*.log filter=other",
        '"a b.txt" filter=lfs',
        "*.[lt]* filter=lfs",
        "saved/**/* filter=lfs",
        "*a* filter=lfs",
    ],
)
def test_what_git_gives_to_lfs(checkout: Path, text: str) -> None:
    (checkout / ".gitattributes").write_text(text, "utf-8")
    said = git(checkout, "check-attr", "-z", "filter", "--stdin", text="\0".join(PATHS))
    fields = said.split("\0")
    expected = {fields[at] for at in range(0, len(fields) - 2, 3) if fields[at + 2] == "lfs"}
    attributes = parse_attributes(text)
    assert {path for path in PATHS if attributes.lfs(path)} == expected


@given(st.text(alphabet="*?[]!^-\\/ab.# ", max_size=40), st.text(alphabet="ab./", max_size=20))
def test_no_pattern_is_too_much(pattern: str, path: str) -> None:
    parse_ignore(pattern).ignores(path)
    parse_attributes(f"{pattern} filter=lfs").lfs(path)


def test_hostile_patterns_take_no_time() -> None:
    with ends():
        assert not parse_ignore("*a" * 400 + "*c").ignores("a" * 1000 + "b")
        assert not parse_ignore("/".join(["**", "a"] * 15) + "/c").ignores("/".join("a" * 32))
