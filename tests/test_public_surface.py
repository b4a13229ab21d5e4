"""What `import adapterhub` gives, and what an installed wheel holds."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import adapterhub
from adapterhub import api
from adapterhub.kernels.build import LIBRARY

REPO = Path(__file__).resolve().parent.parent


def in_process(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_the_sorted_public_names() -> None:
    assert adapterhub.__all__ == sorted(adapterhub.__all__)
    public = [name for name in dir(adapterhub) if not name.startswith("_")]
    assert public == adapterhub.__all__
    assert set(adapterhub.__all__) <= set(api.__all__)
    assert sorted(api.__all__) == api.__all__


def test_every_public_name_is_there_and_documented() -> None:
    for name in adapterhub.__all__:
        assert inspect.getdoc(getattr(adapterhub, name)), name
        assert getattr(adapterhub, name) is getattr(api, name)
    for name in api.__all__:
        assert inspect.getdoc(getattr(api, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = adapterhub.nothing


def test_the_verbs_of_the_design_are_there() -> None:
    verbs = {"inspect", "load_model", "merge", "open"}
    assert verbs <= set(adapterhub.__all__)
    assert all(callable(getattr(adapterhub, verb)) for verb in verbs)


def test_importing_it_costs_nothing() -> None:
    loaded = json.loads(
        in_process("import sys, json, adapterhub; print(json.dumps(list(sys.modules)))")
    )
    ours = {name for name in loaded if name.startswith("adapterhub")}
    assert ours == {"adapterhub"}
    assert not {"numpy", "torch", "transformers", "click", "rich"} & set(loaded)


def test_the_library_starts_without_torch() -> None:
    code = "import sys, adapterhub as ah; ah.open, ah.merge; print('torch' in sys.modules)"
    assert in_process(code) == "False\n"


def test_types_are_announced() -> None:
    assert (Path(adapterhub.__file__).parent / "py.typed").is_file()


WHEEL_CODE = """
import json
from pathlib import Path
import adapterhub
from adapterhub import catalogue, schema
from adapterhub.cli import main
print(json.dumps({
    "at": str(Path(adapterhub.__file__).parent),
    "typed": (Path(adapterhub.__file__).parent / "py.typed").is_file(),
    "schemas": str(schema.data_dir("schemas")),
    "manifest": schema.load("manifest")["title"],
    "bert": catalogue.architecture("bert").base_class,
}))
"""


# In place of a compiler: gives the library that is there already.
COPY = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
exec cp {library} "$2"
"""


@pytest.fixture
def compiler(tmp_path: Path) -> dict[str, str]:
    """The environment in which the kernel, if there is one, is not compiled once more."""
    if not LIBRARY.exists():
        return {}
    command = tmp_path / "cc"
    command.write_text(COPY.format(library=shlex.quote(str(LIBRARY))))
    command.chmod(0o755)
    return {"CC": shlex.quote(str(command))}


def test_a_wheel_holds_kernel_schemas_and_catalogue(
    tmp_path: Path, compiler: dict[str, str]
) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPO,
        env={**os.environ, **compiler},
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(place)
    assert not [name for name in names if name.startswith(("tests", "tools", "schemas"))]
    assert ("adapterhub/kernels/_merge.so" in names) is LIBRARY.exists()
    found = json.loads(in_process(f"import sys; sys.path.insert(0, {str(place)!r}){WHEEL_CODE}"))
    assert found["at"] == str(place / "adapterhub")
    assert found["schemas"] == str(place / "adapterhub" / "_data" / "schemas")
    assert found["typed"] is True
    assert found["manifest"] == "Manifest of a version"
    assert found["bert"] == "BertModel"
    for folder in ("schemas", "registry"):
        ours = {p.relative_to(REPO / folder) for p in (REPO / folder).rglob("*.json")}
        theirs = place / "adapterhub" / "_data" / folder
        assert {p.relative_to(theirs) for p in theirs.rglob("*.json")} == ours
