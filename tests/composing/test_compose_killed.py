"""Killed at any moment, and twice at once: all of the result or nothing, and nothing that stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import killing
import pytest
from composing_building import composed, given, lora

from adapterhub import api
from adapterhub.composing import writing
from adapterhub.errors import OutputError
from adapterhub.registry import Registry, checkout, manifests

HERE = Path(__file__).parent
OLD = 7200.0  # seconds: more than what still may be in use


def killed(folder: Path, verb: str, to: str, temporaries: Path) -> int:
    if verb == "extract":
        from extracting_building import LLAMA, nudged, saved, tuned

        base = saved(LLAMA, folder / "base")
        inputs = [base, tuned(base, folder / "tuned", nudged("q_proj.weight", "norm.weight"))]
    else:
        inputs = [lora(folder / "a", 1), lora(folder / "b", 2)]
    temporaries.mkdir()
    driver = HERE / "compose_driver.py"
    return killing.drive(driver, verb, to, folder, *inputs, TMPDIR=str(temporaries))


@pytest.mark.parametrize(
    "verb", ["compose", *(pytest.param(v, marks=pytest.mark.slow) for v in ("resize", "extract"))]
)
def test_killed_while_writing_a_directory(tmp_path: Path, verb: str) -> None:
    temporaries = tmp_path / "tmp"
    count = killed(tmp_path, verb, "out", temporaries)
    assert count >= 8
    whole = 0
    for number in range(1, count + 1):
        place = tmp_path / str(number)
        if (place / "out").exists():  # then all of it, and named only once it was there
            whole += 1
            assert checkout.differences(place / "out") == []
        else:
            again(tmp_path, verb, place)
        assert sorted(path.name for path in place.iterdir()) == ["home", "out"]
    assert whole < count / 2
    assert not any(temporaries.iterdir())


def again(folder: Path, verb: str, place: Path) -> None:
    with Registry(place / "home") as registry:
        if verb == "compose":
            api.compose([folder / "a", (folder / "b", 0.5)], out=place / "out", registry=registry)
        elif verb == "resize":
            api.resize(folder / "a", rank=1, out=place / "out", registry=registry)
        else:
            api.extract(
                folder / "base", folder / "tuned", rank=2, out=place / "out", registry=registry
            )
    assert checkout.differences(place / "out") == []


@pytest.mark.slow
def test_killed_while_adding_to_the_registry(tmp_path: Path) -> None:
    temporaries = tmp_path / "tmp"
    count = killed(tmp_path, "compose", "name", temporaries)
    assert count >= 20
    assert not any(temporaries.iterdir())  # which nobody would collect
    left = 0
    for number in range(1, count + 1):
        with Registry(tmp_path / str(number) / "home") as registry:
            assert registry.verify()["problems"] == []
            cache = registry.home / "cache" / "adapters"
            scratches = list(cache.glob(".*"))
            left += len(scratches)
            registry.gc(grace_seconds=0)
            assert list(cache.glob(".*")) == scratches  # they may be in use
            for each in scratches:
                os.utime(each, (time.time() - OLD,) * 2)
            registry.gc(grace_seconds=0)
            assert list(cache.glob(".*")) == []
            api.compose([tmp_path / "a", (tmp_path / "b", 0.5)], name="both", registry=registry)
            assert len(registry.show("both")["versions"]) == 1
    assert left >= 5


def artefact(path: Path) -> Any:
    source = given(path)
    adapter, _ = composed([source])
    lineage = {"operation": "compose", "inputs": [], "parameters": {}}
    return writing.Artefact(adapter, manifests.BaseRecord("owner/base"), lineage)


def test_two_that_write_one_directory(tmp_path: Path) -> None:
    made, out = artefact(lora(tmp_path / "a", 1)), tmp_path / "out"

    def meanwhile() -> None:
        with pytest.raises(OutputError, match="another process is writing"):
            writing.write(made, out)

    writing.write(made, out, meanwhile)
    assert checkout.differences(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]
    with pytest.raises(OutputError, match="not empty"):
        writing.write(made, out)


@pytest.mark.slow
def test_two_compositions_of_one_name(tmp_path: Path) -> None:
    """Both are versions, whichever is the latest."""
    code = (
        "import sys; from adapterhub import api\n"
        "with api.open(sys.argv[1]) as registry:\n"
        "    for n in range(4):\n"
        "        weight = float(sys.argv[3]) + n\n"
        "        api.compose([(sys.argv[2], weight)], name='both', registry=registry)\n"
    )
    path, home = lora(tmp_path / "a", 1), tmp_path / "home"
    running = [
        subprocess.Popen([sys.executable, "-c", code, home, path, start]) for start in ("1", "10")
    ]
    assert [each.wait() for each in running] == [0, 0]
    with Registry(home) as registry:
        assert len(registry.show("both")["versions"]) == 8
        assert registry.verify()["problems"] == []
        assert not list((home / "cache" / "adapters").glob(".*"))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_remainder_that_is_none_is_left_alone(tmp_path: Path, kind: str) -> None:
    made, out = artefact(lora(tmp_path / "a", 1)), tmp_path / "out"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    odd = tmp_path / ".out.adapterhub-partial"
    if kind == "file":
        odd.write_text("mine")
    else:
        odd.symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="cannot be written"):
        writing.write(made, out)
    assert (tmp_path / "mine" / "text").read_text() == "mine"
    assert os.path.lexists(odd) and not out.exists()


@pytest.mark.parametrize("name", [".", "..", "", "x/.."])
def test_directories_that_cannot_be_new(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is no new directory"):
        writing.check_out(Path(name))


def test_the_result_has_the_users_own_mode(tmp_path: Path) -> None:
    made, before = artefact(lora(tmp_path / "a", 1)), os.umask(0o077)
    try:
        writing.write(made, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_pickles_are_converted_below_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    path = lora(tmp_path / "a", 1)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with Registry(tmp_path / "home") as registry:
        registry.add(path, name="a", allow_pickle=True)
        assert registry.verify()["problems"] == []
        assert not list((registry.home / "cache" / "adapters").glob(".*"))
