"""`adapterhub compare` as a user meets it, and its picture."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from composing_building import SIZES, Q, V, lora
from patience import ends
from safetensors.numpy import load_file, save_file
from test_compose_cli import run

from adapterhub.cli import comparing, output
from adapterhub.composing.comparing import plot
from adapterhub.composing.comparing import verb as comparing_room
from adapterhub.composing.comparing.comparison import Compared, Comparison, Met, ModuleComparison
from adapterhub.errors import MissingExtra

drawn = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Adapters of 12 layers."""
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(12)]
    for name in names:
        monkeypatch.setitem(SIZES, name, (12, 8))
    return [lora(tmp_path / f"adapter-{n}", n, [*names, V]) for n in range(3)]


def test_the_tables_of_two(tmp_path: Path, three: list[Path]) -> None:
    said = run(tmp_path / "home", "compare", *three[:2])
    assert "compared 2 adapters" in said and "by name" in said
    assert "least alike: 10 modules of 13; --layers lists all" in said
    assert "cosine of the whole deltas" not in said  # the pair says it
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 100
    listed = run(tmp_path / "home", "compare", *three[:2], "--layers")
    assert listed.index("model.layers.2.") < listed.index("model.layers.10.")
    assert listed.count("q_proj") == 12


def test_the_matrix_of_three(tmp_path: Path, three: list[Path]) -> None:
    said = run(tmp_path / "home", "compare", *three)
    lines = said[said.index("cosine of the whole deltas") :].splitlines()
    assert lines[1].split() == ["1", "2", "3"]
    assert lines[2].split()[:2] == ["1", "1.000"]
    assert "2–3" in said


def test_tables_fit_a_terminal_of_80_columns(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path keeps its end, whole parts of it, and no line is broken."""
    monkeypatch.setattr(output, "columns", lambda: 80)
    for adapters in (three[:2], three):
        said = run(tmp_path / "home", "compare", *adapters)
        table = said[said.index("least alike") :].splitlines()[1:]
        assert max(map(len, table)) <= 80
        assert all(re.match(r"…?(\w+\.)*(\d+\.)?self_attn\.[qv]_proj ", row) for row in table[1:])
        assert ("pair" in table[0]) is (len(adapters) > 2)  # of two there is one pair


def test_notes_name_versions_briefly(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number, base in enumerate(("owner/base", "owner/other")):
        one = lora(tmp_path / str(number), number, base_model_name_or_path=base)
        run(home, "add", one, "--name", f"a{number}")
    said = run(home, "compare", "a0", "a1")
    assert re.search(r"bases: a0@sha256:[0-9a-f]{12} is for owner/base, a1@sha256:", said)


def test_of_many_pairs_those_that_are_shown_are_explained(
    tmp_path: Path, three: list[Path]
) -> None:
    said = run(tmp_path / "home", "compare", *three, *three)
    assert "the 10 pairs of 15 whose cosine is farthest from 0; --json has all" in said


def test_signs_are_those_of_what_both_change(tmp_path: Path) -> None:
    paths = [lora(tmp_path / str(n), 1, [Q]) for n in range(3)]
    for path, kept, sign in ((paths[1], 3, -1), (paths[2], 0, 1)):  # a few rows; none
        tensors = load_file(path / "adapter_model.safetensors")
        (b,) = (tensor for name, tensor in tensors.items() if "lora_B" in name)
        b[kept:] = 0
        b *= sign
        save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    lines = run(tmp_path / "home", "compare", *paths).splitlines()
    rows = {line.split()[0]: line.split()[2] for line in lines if "–" in line[:5]}
    assert rows == {"1–2": "100.0%", "1–3": "–", "2–3": "–"}


def test_an_adapter_of_zeros_is_said_to_change_nothing(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    file = b / "adapter_model.safetensors"
    zeros = {name: values * ("lora_A" in name) for name, values in load_file(file).items()}
    save_file(zeros, file, {"format": "pt"})
    said = run(tmp_path / "home", "compare", a, b)
    assert f"{b} changes nothing: its deltas are zeros" in said and f"{a} changes" not in said


def test_json_has_everything(tmp_path: Path, three: list[Path]) -> None:
    said = json.loads(run(tmp_path / "home", "compare", *three, "--json", "--exact"))["result"]
    assert [len(row) for row in said["cosine"]] == [3, 3, 3]
    assert len(said["modules"]) == 13 and len(said["modules"][0]["pairs"]) == 3
    met = said["modules"][0]["pairs"][0]
    assert {"pair", "cosine", "sign_conflicts", "columns", "rows"} <= met.keys()
    assert met["columns"].keys() == {"mean", "largest"}


def test_what_it_refuses(tmp_path: Path, three: list[Path]) -> None:
    home = tmp_path / "home"
    run(home, "compare", three[0], code=2)
    assert "no kind of picture" in run(
        home, "compare", *three, "--plot", tmp_path / "x.jpg", code=1
    )
    assert "cannot be written" in run(
        home, "compare", *three, "--plot", tmp_path / "no" / "x.png", code=1
    )


# --- the picture ------------------------------------------------------------------------------


@drawn
@pytest.mark.parametrize(
    "suffix", ["png", *(pytest.param(other, marks=pytest.mark.slow) for other in ("svg", "pdf"))]
)
def test_the_picture_is_the_same_twice(tmp_path: Path, three: list[Path], suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file in files:
        said = run(tmp_path / "home", "compare", *three, "--plot", file)
        assert str(file) in said
    one, two = (file.read_bytes() for file in files)
    assert one == two
    assert one.startswith({"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert b"date>" not in one and b"Date" not in one
    assert not list(tmp_path.glob(".*"))
    if suffix == "png":
        width, height = struct.unpack(">II", one[16:24])
        assert 600 < width < 3000 and 400 < height < 2500
        assert b"tEXt" not in one and b"IEND" in one[-12:]


@drawn
def test_a_picture_shows_layers_by_modules_and_adapters_by_adapters(three: list[Path]) -> None:
    found = comparing_room.compare(three)
    modules, adapters = plot.draw(found).axes[:2]
    cosines = {one.module: one.cosine for one in found.modules}
    expected = np.full((12, 2), np.nan)
    for module, value in cosines.items():
        expected[int(module.split(".")[2]), int(module == V)] = value
    layers, columns = modules.get_yticklabels(), modules.get_xticklabels()
    assert [label.get_text() for label in layers] == [str(n) for n in range(12)]
    assert [label.get_text() for label in columns] == ["q_proj", "v_proj"]
    shown = np.ma.filled(modules.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, expected, equal_nan=True)
    matrix = np.ma.filled(adapters.images[0].get_array(), np.nan)
    np.testing.assert_allclose(matrix, np.array(found.cosine, np.float64))
    written = [text.get_text() for text in adapters.texts]
    flat = [value for row in found.cosine for value in row]
    assert written == [f"{value:.2f}".replace("-", "−") for value in flat if value is not None]
    names = [label.get_text() for label in adapters.get_yticklabels()]
    assert names == [f"{n + 1} {path.name}" for n, path in enumerate(three)]


@drawn
def test_a_picture_of_nothing_in_common(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a $x$ 漢", 1, [Q]), lora(tmp_path / "b", 2, [V])
    said = run(tmp_path / "home", "compare", a, b, "--plot", tmp_path / "x.png")
    assert "no module is changed by two of them" in said
    assert (tmp_path / "x.png").stat().st_size > 2000


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="matplotlib") as error:
        plot.check(tmp_path / "x.png")
    assert "adapterhub[plot]" in error.value.remedy


def compared(*modules: str) -> Comparison:
    met = Met((0, 1), 0.5, None, None, None, None)
    ones = [ModuleComparison(m, (1, 1), 1, (1.0,), (None,), None, (met,)) for m in modules]
    both = tuple(Compared(name, None, "lora", (), None, 1, 1.0, None, ()) for name in "ab")
    return Comparison(both, (), (met,), tuple(ones), (), None)


def grid(*modules: str) -> plot.Grid:
    return plot.grid(compared(*modules))


def test_rows_are_layers_and_columns_short_names() -> None:
    found = grid("lm_head", "model.layers.10.self_attn.q_proj", "model.layers.2.mlp.experts.7.w1")
    assert found.rows == ("2", "10", "–")
    assert set(found.columns) == {"lm_head", "q_proj", "w1"}
    assert sum(value is not None for row in found.values for value in row) == 3


def test_names_that_end_alike_are_told_apart() -> None:
    found = grid("e.layer.0.attention.output.dense", "e.layer.0.output.dense", "e.layer.0.k")
    assert found.columns == ("attention.output.dense", "output.dense", "k")


def test_two_towers_and_no_layers() -> None:
    assert grid("encoder.block.0.q", "decoder.block.1.q").rows == ("decoder 1", "encoder 0")
    assert grid("fc1", "fc2") == plot.Grid(("–",), ("fc1", "fc2"), ((0.5, 0.5),))


def test_figures_and_names_are_plain() -> None:
    assert comparing._figure(-0.0002) == "0.000" and comparing._figure(-0.0006) == "-0.001"
    path = "bert.encoder.layer.0.attention.self.query"
    assert comparing._tail(path, 36) == "…layer.0.attention.self.query"
    assert comparing._tail(path, 41) == path and comparing._tail("x" * 50, 10) == "…" + "x" * 9


def test_figures_are_explained_and_what_is_left_out_stands_once(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", 1), lora(tmp_path / "b", 2)
    for path in (a, b):
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        head = np.ones((3, 8), np.float32) * len(tensors)
        save_file({**tensors, "base_model.model.score.weight": head}, file, {"format": "pt"})
        config = json.loads((path / "adapter_config.json").read_text())
        config["modules_to_save"] = ["score"]
        (path / "adapter_config.json").write_text(json.dumps(config))
    said = run(tmp_path / "home", "compare", a, b)
    assert "cosine: 1 one direction" in said
    line = next(line for line in said.splitlines() if "not compared" in line)
    assert line.endswith("score.weight: it is saved whole") and f"{a}, {b}" in line
    assert "-0.000" not in said and "replace:" not in said


@pytest.mark.slow
@drawn
def test_a_picture_of_thousands_of_odd_modules(tmp_path: Path) -> None:
    """Names that have nothing in common, and one that is longer than the picture is wide."""
    names = [*(f"m{n}.n{n}.q" for n in range(10_000)), "x" * 900, "a$\\frac{$.p"]
    with ends():
        columns = grid(*names).columns
        assert len(set(columns)) == len(names) and columns[1] == "n1.q"
        plot.write(compared(*names), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
