"""Each ends in exit 1, one named error that says what to do, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regkit
from clikit import Run, Said

from adapterhub.store import files

Damage = Callable[[Path], None]


def no_config(path: Path) -> None:
    (path / "adapter_config.json").unlink()


def no_weights(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def other_rank(path: Path) -> None:
    regkit.save_adapter(path, regkit.lora(rank=16))


def other_method(path: Path) -> None:
    regkit.save_adapter(path, peft_type="DIAG")


def lfs_pointer(path: Path) -> None:
    (path / "adapter_model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345678\n"
    )


def holding(value: float) -> Damage:
    def damage(path: Path) -> None:
        arrays = regkit.lora()
        arrays[f"{regkit.QUERY}.lora_A.weight"][1, 2] = value
        regkit.save_adapter(path, arrays)

    return damage


def truncated(path: Path) -> None:
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def broken_json(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"r": 8,')


def pickle(path: Path) -> None:
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")


DAMAGES: list[tuple[str, Damage, str, str, str]] = [
    ("no config", no_config, "invalid-adapter", "has no adapter_config.json", "put the"),
    ("no weights", no_weights, "invalid-adapter", "has no adapter_model.safetensors", "copy"),
    ("rank", other_rank, "invalid-adapter", "rank 16", "r"),
    ("method", other_method, "not-supported", 'peft_type "DIAG" is not supported', "methods"),
    ("lfs", lfs_pointer, "invalid-tensor-file", "Git-LFS pointer", "git lfs pull"),
    ("nan", holding(np.nan), "invalid-adapter", "lora_A holds NaN or infinity", "earlier"),
    ("inf", holding(-np.inf), "invalid-adapter", "first at [1, 2]", "earlier"),
    ("truncated", truncated, "invalid-tensor-file", "adapter_model.safetensors", "download"),
    ("json", broken_json, "invalid-adapter", "adapter_config.json", ""),
    ("pickle", pickle, "pickle-refused", "can run code", "--allow-pickle"),
]


@pytest.fixture
def started(run: Run, home: Path) -> dict[str, bytes]:
    """What a home holds that was used once."""
    run("list")
    return regkit.tree(home)


def one_error(said: Said, code: str) -> dict[str, Any]:
    assert said.code == 1
    assert said.json["schema"] == 1
    error: dict[str, Any] = said.json["error"]
    assert error["code"] == code
    return error


@pytest.mark.parametrize(
    ("damage", "code", "message", "remedy"),
    [pytest.param(*rest, id=name) for name, *rest in DAMAGES],
)
def test_damaged_adapters(
    run: Run,
    home: Path,
    started: dict[str, bytes],
    adapter: Path,
    damage: Damage,
    code: str,
    message: str,
    remedy: str,
) -> None:
    damage(adapter)
    error = one_error(run("add", adapter, "--name", "a", "--json"), code)
    assert message in error["message"]
    assert remedy in error["remedy"]
    assert error["remedy"]
    assert regkit.tree(home) == started
    plain = run("add", adapter, "--name", "a")
    assert plain.code == 1
    assert plain.out == ""
    assert plain.err.startswith("error: ")
    assert "→ " in plain.err
    assert "Traceback" not in plain.err


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage, *_ in DAMAGES])
def test_inspect_says_what_it_sees_of_damage_and_exits_0(
    run: Run, adapter: Path, damage: Damage
) -> None:
    damage(adapter)
    said = run("inspect", adapter, "--json")
    assert said.code == 0
    found = said.json["result"]
    assert [problem for problem in found["problems"] if problem["fatal"]]
    assert found["format"] == "peft"
    plain = run("inspect", adapter)
    assert plain.code == 0
    assert "✗ " in plain.out
    assert "→ " in plain.out


def test_a_model_is_called_a_model(run: Run, base: Path) -> None:
    for verb in ("inspect", "add"):
        error = one_error(run(verb, base, "--json"), "unknown-format")
        assert error["message"] == f"{base} holds a model, not an adapter"
        assert error["remedy"].startswith(f"adapterhub base add {base}")


def test_inspect_of_what_cannot_be_read_at_all(run: Run, tmp_path: Path) -> None:
    one_error(run("inspect", tmp_path / "nowhere", "--json"), "not-found")
    (tmp_path / "empty").mkdir()
    error = one_error(run("inspect", tmp_path / "empty", "--json"), "unknown-format")
    assert "an empty directory" in error["message"]


# --- refs and output --------------------------------------------------------------------------


def test_a_ref_that_does_not_exist(run: Run, adapter: Path, home: Path) -> None:
    run("add", adapter, "--name", "sentiment-en")
    before = regkit.tree(home)
    for command in ("show", "path", "inspect", "verify", "history", "edit --licence mit"):
        verb, *options = command.split()
        error = one_error(run(verb, "sentimnt-en", *options, "--json"), "not-found")
        assert "no adapter is called sentimnt-en" in error["message"]
        assert "did you mean sentiment-en?" in error["remedy"]
    assert regkit.tree(home) == before


def test_an_output_directory_that_is_not_empty(
    run: Run, adapter: Path, base: Path, tmp_path: Path
) -> None:
    run("add", adapter, "--name", "a", "--base", base)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    for command in (("export", "a", out), ("merge", base, "a", "--out", out)):
        error = one_error(run(*command, "--json"), "output-error")
        assert f"{out} is not empty" in error["message"]
        assert "directory" in error["remedy"]
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    assert [path.name for path in out.iterdir()] == ["precious"]


# --- disks ------------------------------------------------------------------------------------


def full_at(number: int) -> Callable[[str, Path], None]:
    """A hook that lets `number` steps through; then every write finds the disk full."""
    steps = 0

    def hook(kind: str, path: Path) -> None:
        nonlocal steps
        steps += 1
        if steps > number and kind != "unlink":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    return hook


def test_a_disk_that_fills_at_any_step_of_add(
    run: Run, adapter: Path, home: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("add", adapter, "--name", "a", "--base", base)
    run("list")
    outcomes = []
    for number in range(200):
        copy = home.with_name(f"home-{number}")
        shutil.copytree(home, copy)
        monkeypatch.setenv("ADAPTERHUB_HOME", str(copy))
        files.HOOK = full_at(number)
        said = run(*command, "--json")
        files.HOOK = None
        if said.code == 0:
            break
        error = one_error(said, "output-error")
        assert error["message"].startswith("disk full while writing")
        assert "free some space" in error["remedy"]
        assert list((copy / "tmp").iterdir()) == []
        outcomes.append(len(run("list", "-q").lines))
        assert run("verify").code == 0
        assert run(*command, "-q").code == 0
        assert len(run("list", "-q").lines) == 1
        shutil.rmtree(copy)
    assert outcomes[0] == 0
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)  # first the old state, then the new one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(
    run: Run, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(small_disk / "home"))
    big = regkit.save_adapter(
        tmp_path / "big",
        regkit.lora(hidden=8) | {"classifier.weight": np.ones((1024, 512), np.float32)},
    )
    small = regkit.save_adapter(tmp_path / "small")
    said = run("add", small, "--name", "small")
    if said.code:  # a filesystem with large blocks
        pytest.skip(f"the small disk does not hold an empty home: {said.err}")
    before = regkit.tree(small_disk / "home")
    error = one_error(run("add", big, "--name", "big", "--json"), "output-error")
    assert error["message"].startswith("disk full while writing")
    assert str(small_disk) in error["remedy"]
    assert regkit.tree(small_disk / "home") == before
    assert run("list", "-q").lines == run("list", "-q").lines != []
    assert run("verify").code == 0


def test_a_home_below_a_file_cannot_be_made(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "home", tmp_path / "file"):
        monkeypatch.setenv("ADAPTERHUB_HOME", str(place))
        error = one_error(run("add", adapter, "--json"), "store-error")
        assert str(tmp_path / "file") in error["message"]
        assert "ADAPTERHUB_HOME" in error["remedy"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def read_only(home: Path, run: Run, adapter: Path) -> Iterator[Path]:
    """The home with one adapter, mounted so that nobody may write, not even root."""
    run("add", adapter, "--name", "a")
    commands = (["mount", "--bind", home, home], ["mount", "-o", "remount,ro,bind", home])
    mounted = False
    for command in commands:
        done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
        mounted = mounted or done.returncode == 0
        if done.returncode:
            if mounted:
                subprocess.run(["umount", "-l", str(home)], check=True)
            pytest.skip("a read-only mount is not possible here")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_home_that_is_not_writable(run: Run, tmp_path: Path, read_only: Path) -> None:
    other = regkit.save_adapter(tmp_path / "other", regkit.lora(7))
    before = regkit.tree(read_only)
    error = one_error(run("add", other, "--name", "b", "--json"), "output-error")
    assert error["message"].startswith(f"home is not writable: {read_only}")
    assert "permissions" in error["remedy"]
    assert regkit.tree(read_only) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_permission(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(place / "home"))
    error = one_error(run("add", adapter, "--json"), "output-error")
    assert "home is not writable" in error["message"]
    assert list(place.iterdir()) == []


# --- bases ------------------------------------------------------------------------------------


def test_a_base_that_does_not_fit(
    run: Run, adapter: Path, base: Path, home: Path, started: dict[str, bytes], tmp_path: Path
) -> None:
    regkit.save_adapter(adapter, regkit.lora(hidden=16))
    error = one_error(run("add", adapter, "--base", base, "--json"), "base-mismatch")
    assert len(error["details"]) == 1
    assert regkit.QUERY in error["details"][0]
    assert regkit.tree(home) == started
    error = one_error(
        run("merge", base, adapter, "--out", tmp_path / "m", "--json"), "base-mismatch"
    )
    assert not (tmp_path / "m").exists()


def test_another_base_than_the_recorded_one(
    run: Run, adapter: Path, base: Path, tmp_path: Path
) -> None:
    run("add", adapter, "--name", "a", "--base", base)
    other = regkit.save_base(tmp_path / "other", seed=50)
    command = ("merge", other, "a", "--out", tmp_path / "merged")
    error = one_error(run(*command, "--json"), "base-mismatch")
    assert "--force-base" in error["remedy"]
    assert not (tmp_path / "merged").exists()
    assert run(*command, "--force-base").code == 0
    said = json.loads((tmp_path / "merged" / "adapterhub.json").read_text())
    assert said["kind"] == "merge"
