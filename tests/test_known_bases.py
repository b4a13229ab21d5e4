"""The catalogue of bases: its schema, its sources, its names, and what transformers makes of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adapterhub import known_bases, schema
from adapterhub.errors import StoreError
from adapterhub.known_bases import NEUTRAL, OUTER, PREFIXES, KnownBase, known, named, parsed, sizes

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "registry" / "bases").glob("*.json"))
# SPDX ids as the Hub spells them, and ids of the Hub's own.
LICENCES = {"apache-2.0", "mit", "bigscience-bloom-rail-1.0", "gemma", "other"}
LICENCES |= {"llama2", "llama3", "llama3.1", "llama3.2"}
# Counts that publishers of ports state, without heads of their own: KerasHub's presets.
PUBLISHED = {
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom-1b1": 1_065_314_304,
    "bigscience/bloom-1b7": 1_722_408_960,
    "bigscience/bloom-3b": 3_002_557_440,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
}


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def base(name: str) -> KnownBase:
    return next(b for b in known() if b.name == name)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec = importlib.util.spec_from_file_location("make_bases", ROOT / "tools/make_bases.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["make_bases"] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


# --- the data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_follows_the_schema(path: Path) -> None:
    document = read(path)
    schema.check(document, "known_base", what=path.name)
    assert document["family"] == path.stem
    assert list(document["derived"]) == [entry["name"] for entry in document["bases"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_figure_has_one_source(path: Path) -> None:
    document = read(path)
    used = set()
    for entry in document["bases"]:
        told = Counter(key for keys in entry["from"].values() for key in keys)
        assert told.pop("*", 0) == 1, "one source tells all that the others do not"
        assert set(told) < set(entry["config"])
        assert set(told.values()) <= {1}
        assert not {*entry.get("unknown", ())} & {*entry["config"]}
        used |= set(entry["from"])
    assert used == set(document["sources"])


def test_there_are_as_many_as_people_ask_for() -> None:
    assert len(known()) >= 60
    assert len({b.model_type for b in known()}) >= 25


def test_names_are_unique_over_the_catalogue() -> None:
    names = Counter(name.lower() for b in known() for name in b.names)
    assert [name for name, count in names.items() if count > 1] == []


def test_licences_are_ids_of_the_hub() -> None:
    assert {b.licence for b in known()} - {None} == LICENCES


def test_the_counts_are_those_that_others_publish() -> None:
    assert {name: base(name).parameters for name in PUBLISHED} == PUBLISHED


def test_the_prefixes_are_those_of_the_classes() -> None:
    words = {
        word
        for path in FILES
        for derived in read(path)["derived"].values()
        for prefix in derived["prefixes"]
        for word in prefix.split(".")
    }
    assert words - NEUTRAL == PREFIXES
    assert not OUTER & (NEUTRAL | PREFIXES)


def test_what_has_no_source_is_not_told() -> None:
    hybrid = base("Qwen/Qwen3.5-4B").structure.rows
    (full,) = hybrid["layers.*.self_attn.k_proj"]
    (linear,) = hybrid["layers.*.linear_attn.in_proj_z"]
    assert full.sizes == ((1024, 2560),)
    assert sorted(full.layers) == list(range(3, 32, 4))
    assert linear.sizes == ((None, 2560),)
    assert not {*full.layers} & {*linear.layers}
    assert base("HuggingFaceTB/SmolLM2-360M").parameters is None  # tied or not: unknown


def test_heads_of_every_class_are_there_with_labels_free() -> None:
    rows = base("google-bert/bert-base-uncased").structure.rows
    (head,) = rows["classifier"]
    assert head.tensors == {"bias": (None,), "weight": (None, 768)}
    assert {"pooler.dense", "cls.predictions.transform.dense", "qa_outputs"} <= set(rows)


# --- made by the tool -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tinyllama", "vit", "gpt-neo", "mt5"])
def test_the_derived_facts_are_those_of_transformers(tool: ModuleType, family: str) -> None:
    path = tool.FOLDER / f"{family}.json"
    assert tool.contents(path) == path.read_text("utf-8")


@pytest.mark.slow
def test_all_derived_facts_are_those_of_transformers() -> None:
    script = [sys.executable, str(ROOT / "tools" / "make_bases.py"), "--check"]
    said = subprocess.run(script, capture_output=True, text=True, check=False, timeout=900)
    assert (said.returncode, said.stdout) == (0, "all up to date\n")


@pytest.mark.slow
def test_check_finds_a_change(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    document = read(tool.FOLDER / "gpt-j.json")
    document["derived"]["EleutherAI/gpt-j-6b"]["parameters"] += 1
    path = tmp_path / "gpt-j.json"
    path.write_text(json.dumps(document), "utf-8")
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    assert tool.main(["gpt-j", "--check"]) == 1
    assert capsys.readouterr().out == "differs: gpt-j\n"
    assert tool.main(["gpt-j"]) == 0
    assert tool.main(["gpt-j", "--check"]) == 0
    assert path.read_text("utf-8") == (ROOT / "registry/bases/gpt-j.json").read_text("utf-8")


def test_numbers_are_split_into_products(tool: ModuleType) -> None:
    numbers = {(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)}
    found = list(tool.products(numbers))
    assert found == [((0, 1, 2), (0,)), ((0, 2), (1,))]
    assert tool.spelled((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words", "tail", "numbers"),
    [
        ("bert.encoder.layer.3.output.dense", {"bert"}, "encoder.layer.*.output.dense", (3,)),
        ("encoder.layer.3.output.dense", set(), "encoder.layer.*.output.dense", (3,)),
        ("0.auto_model.encoder.layer.3.output", {"auto_model"} - {"auto_model"}, None, (3,)),
        ("language_model.model.layers.0.mlp", {"language_model", "model"}, "layers.*.mlp", (0,)),
        ("decoder.block.11.layer.2.DenseReluDense.wi", set(), None, (11, 2)),
        ("model", set(), "model", ()),
        ("lm_head", set(), "lm_head", ()),
    ],
)
def test_a_path_is_taken_apart(
    path: str, words: set[str], tail: str | None, numbers: tuple[int, ...]
) -> None:
    found = parsed(path)
    assert found is not None
    assert (set(found.words), found.numbers) == (words, numbers)
    assert tail is None or found.tail == tail


@pytest.mark.parametrize("path", ["layers.*.mlp", ".".join(["1"] * 7)])
def test_a_path_that_no_model_has(path: str) -> None:
    assert parsed(path) is None


def test_a_conv1d_is_turned_and_a_convolution_has_no_kernel() -> None:
    assert sizes("Conv1D", {"weight": (768, 2304)}) == ((2304, 768),)
    assert sizes("Conv2d", {"weight": (768, 3, 16, 16)}) == ((768, 3),)
    assert sizes("Norm", {"weight": (768,)}) == ((768, 768),)
    assert sizes("Other", {"bias": (4,)}) == ()


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "means", "variant"),
    [
        ("gpt2", "openai-community/gpt2", None),
        ("unsloth/qwen3-8b-unsloth-bnb-4bit", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("/root/autodl-tmp/google/flan-t5-xxl", "google/flan-t5-xxl", None),
        ("/content/Llama-2-7b-hf/", "meta-llama/Llama-2-7b-hf", None),
        ("C:\\models\\roberta-base", "FacebookAI/roberta-base", None),
        (
            "/x/models--google--gemma-3-270m-it/snapshots/0123/",
            "google/gemma-3-270m",
            "google/gemma-3-270m-it",
        ),
    ],
)
def test_a_declared_name_is_found(text: str, means: str, variant: str | None) -> None:
    found = named(text)
    assert found is not None
    assert (found.base.name, found.variant) == (means, variant)


@pytest.mark.parametrize("text", ["", "/", "model", "someone/else", "/content/model"])
def test_a_name_that_nobody_knows(text: str) -> None:
    assert named(text) is None


# --- loading ----------------------------------------------------------------------------------


def test_loading_is_quick_and_light() -> None:
    code = (
        "import sys, time; from adapterhub import known_bases as k; t = time.perf_counter();"
        "n = sum(len(b.structure.rows) for b in k.known());"
        "print(time.perf_counter() - t, 'torch' in sys.modules, 'jsonschema' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        took, *heavy = said.stdout.split()
        assert heavy == ["False", "False"]
        seconds.append(float(took))
    assert min(seconds) < 0.25  # 0.04 on an idle machine


def test_a_damaged_catalogue_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "broken.json").write_text('{"bases": [{}]}')
    monkeypatch.setattr(known_bases, "data_dir", lambda name: tmp_path)
    known.cache_clear()
    try:
        with pytest.raises(StoreError, match=r"broken\.json cannot be read"):
            known()
    finally:
        known.cache_clear()
