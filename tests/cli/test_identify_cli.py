from __future__ import annotations

from pathlib import Path

from clikit import Run


def test_nothing_fits(run: Run, adapter: Path) -> None:
    said = run("base", "identify", adapter)
    assert said.code == 0
    assert said.out.startswith("no base of the catalogue or the registry has 1 layer and")
    assert run("base", "identify", adapter, "-q").out == ""


def test_a_registered_base_by_path_and_by_ref(run: Run, adapter: Path, base: Path) -> None:
    assert run("base", "add", base, "--name", "mini").code == 0
    assert run("base", "identify", adapter).out.startswith("fits mini: 1 layer; the config says")
    assert run("add", adapter, "--name", "a", "-q").code == 0
    assert run("base", "identify", "a", "-q").out == "mini\n"
    found = run("base", "identify", "a", "--json").json["result"]
    assert found["candidates"][0]["registered"] == ["mini"]
    assert found["candidates"][0]["sure"] == "shapes"
    assert found["declared"] == {
        "text": "owner/tiny-bert",
        "means": None,
        "fits": None,
        "variant": False,
        "why_not": None,
    }


def test_a_base_that_is_gone_is_told(run: Run, adapter: Path, base: Path) -> None:
    run("base", "add", base, "--name", "mini")
    (base / "config.json").unlink()
    said = run("base", "identify", adapter)
    assert "the registered base mini cannot be opened" in said.err


def test_two_candidates_make_a_table(run: Run, adapter: Path, base: Path) -> None:
    """Of the second base the adapter changes one layer of two."""
    import json
    import shutil

    import numpy as np

    from adapterhub.tensorfile import ArrayTensor, open_checkpoint, write_file

    larger = base.parent / "larger"
    shutil.copytree(base, larger)
    tensors = open_checkpoint(base).tensors
    more = {name.replace("layer.0", "layer.1"): t for name, t in tensors.items()}
    both = {**tensors, **more}
    weights = next(larger.glob("*.safetensors"))
    write_file(weights, {n: ArrayTensor(np.zeros(t.shape, np.float32)) for n, t in both.items()})
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    for path in (base, larger):
        assert run("base", "add", path).code == 0
    lines = run("base", "identify", adapter).lines
    assert lines[0].startswith("fits minibert: 1 layer")
    assert [line.split()[0] for line in lines[1:]] == ["base", "minibert", "larger"]
    assert lines[3].endswith("1 of 2 layers")
