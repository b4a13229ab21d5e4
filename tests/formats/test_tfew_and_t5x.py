"""t-few's (IA)³ and T5X prompts: one file each, without a config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import making
import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter, BaseClaim
from adapterhub.errors import InvalidAdapter, NotSupported, PickleRefused
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor, read_header

# --- t-few ------------------------------------------------------------------------------------


def test_vectors_become_ia3(tmp_path: Path) -> None:
    reading = formats.read(making.tfew(tmp_path), allow_pickle=True)
    adapter = inspection.require(reading)
    assert (adapter.method, adapter.format, adapter.base.name) == ("ia3", "tfew", None)
    wi = "encoder.block.0.layer.1.DenseReluDense.wi_1"
    assert {m: set(roles) for m, roles in adapter.modules.items()} == {
        making.T5: {"ia3_l"},
        wi: {"ia3_l"},
    }
    assert adapter.modules[wi]["ia3_l"].shape == (12, 1)
    assert adapter.config == {"target_modules": ["k", "wi_1"], "feedforward_modules": []}
    (source,) = reading.files
    assert source.safe is not None
    assert (source.name, source.safe.name) == ("finish.pt", "finish.safetensors")
    assert set(source.safe.tensors) == set(making.VECTORS)


def test_tfew_is_named_without_consent(tmp_path: Path) -> None:
    reading = formats.read(making.tfew(tmp_path))
    assert reading.outline is not None
    assert reading.outline.targets == tuple(n.removesuffix(".multi_lora_b") for n in making.VECTORS)
    with pytest.raises(PickleRefused, match=r"finish\.pt is a pickle"):
        inspection.require(reading)


def test_the_path_may_tell_the_base(tmp_path: Path) -> None:
    file = making.pickled(tmp_path / "t03b_ia3_finish.pt", making.VECTORS)
    adapter = inspection.require(formats.read(file, allow_pickle=True))
    assert adapter.base == BaseClaim(name="bigscience/T0_3B")


def test_tfew_both_ways(tmp_path: Path) -> None:
    adapter = inspection.require(formats.read(making.tfew(tmp_path / "a"), allow_pickle=True))
    (tmp_path / "b").mkdir()
    formats.write(adapter, tmp_path / "b", to="tfew")
    again = inspection.require(formats.read(tmp_path / "b"))
    assert (again.config, list(again.modules)) == (adapter.config, list(adapter.modules))
    found = read_header(tmp_path / "b" / "finish.safetensors").tensors
    assert set(found) == set(making.VECTORS)
    for module, role, tensor in adapter.tensors():
        assert np.array_equal(again.modules[module][role].read(), tensor.read())
    with pytest.raises(NotSupported, match="says more than its names"):
        formats.write(replace(adapter, config={"x": 1}), tmp_path / "b", to="tfew")
    other = replace(adapter, modules={"m": {"lora_A": ArrayTensor(np.ones((2, 2)))}})
    with pytest.raises(NotSupported, match="t-few has no spelling for lora_A of m"):
        formats.write(other, tmp_path / "b", to="tfew")


def test_finish_stands_for_the_checkpoints_beside_it(tmp_path: Path) -> None:
    making.tfew(tmp_path)
    making.pickled(tmp_path / "global_step100.pt", making.VECTORS)
    reading = formats.read(tmp_path, allow_pickle=True)
    assert [file.name for file in reading.files] == ["finish.pt"]
    (tmp_path / "finish.pt").rename(tmp_path / "global_step200.pt")
    with pytest.raises(InvalidAdapter, match="holds 2 files of t-few") as caught:
        inspection.require(formats.read(tmp_path, allow_pickle=True))
    assert caught.value.remedy.startswith("name one of them: ")


def test_other_tensors_among_the_vectors_are_refused(tmp_path: Path) -> None:
    shapes = {**making.VECTORS, "x.k.multi_lora_a": (1, 6), "y.k.multi_lora_b": (6, 2)}
    making.pickled(tmp_path / "finish.pt", shapes)
    with pytest.raises(InvalidAdapter, match="2 tensors have names that t-few's"):
        inspection.require(formats.read(tmp_path, allow_pickle=True))


def test_lora_of_tfew_is_named(tmp_path: Path) -> None:
    shapes = {f"{making.T5}.lora_a": (2, 6), f"{making.T5}.lora_b": (6, 2)}
    making.pickled(tmp_path / "finish.pt", shapes)
    reading = formats.read(tmp_path, allow_pickle=True)
    assert (reading.format, reading.method) == ("tfew", "lora")
    assert reading.outline is not None and reading.outline.ranks == {making.T5: 2}
    with pytest.raises(NotSupported, match="t-few's LoRA are recognised and not read"):
        inspection.require(reading)


# --- T5X --------------------------------------------------------------------------------------


def test_a_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "t5_1_1_lm100k_base"
    reading = formats.read(making.t5x_prompt(folder))
    adapter = inspection.require(reading)
    assert (adapter.method, adapter.format) == ("prompt_tuning", "t5x_prompt")
    assert adapter.base.name == "google/t5-base-lm-adapt"
    assert adapter.config == {"num_virtual_tokens": 5, "token_dim": 8}
    tensor = adapter.modules[""]["prompt_embeddings"]
    assert np.array_equal(tensor.read(), np.load(folder / "mrpc.npy"))
    assert [file.name for file in reading.files] == ["mrpc.npy"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_prompts_of_any_order_and_float_type(tmp_path: Path, order: str, dtype: str) -> None:
    values = np.asarray(making.numbers((5, 8)).astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "p.npy", values)
    adapter = inspection.require(formats.read(tmp_path / "p.npy"))
    found = adapter.modules[""]["prompt_embeddings"].read()
    assert found.tobytes() == np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def test_several_prompts_are_several_adapters(tmp_path: Path) -> None:
    making.t5x_prompt(tmp_path)
    np.save(tmp_path / "sst2.npy", making.numbers((5, 8), 7))
    with pytest.raises(InvalidAdapter, match="holds 2 prompts, each an adapter") as caught:
        inspection.require(formats.read(tmp_path))
    first = tmp_path / "mrpc.npy"
    assert caught.value.remedy == f"name one of them: {first}; or add all: --recursive"
    assert inspection.require(formats.read(tmp_path / "sst2.npy")).parameters == 40


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), ()])
def test_other_arrays_are_no_prompts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "p.npy", np.ones(shape, np.float32))
    assert formats.read(tmp_path / "p.npy").format == "unknown"
    np.save(tmp_path / "p.npy", np.ones((5, 8), np.int64))
    assert formats.read(tmp_path / "p.npy").format == "unknown"


def test_t5x_both_ways(tmp_path: Path) -> None:
    adapter = inspection.require(formats.read(making.t5x_prompt(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    formats.write(adapter, tmp_path / "b", to="t5x_prompt")
    again = inspection.require(formats.read(tmp_path / "b"))
    assert again.config == adapter.config
    expected = np.load(tmp_path / "a" / "mrpc.npy")
    assert np.array_equal(np.load(tmp_path / "b" / "prompt.npy"), expected)
    with pytest.raises(NotSupported, match="has more than its shape"):
        formats.write(replace(adapter, config={}), tmp_path / "b", to="t5x_prompt")
    two = Adapter("prompt_tuning", "t5x_prompt", {}, {"a": {"b": ArrayTensor(np.ones((1, 1)))}})
    with pytest.raises(NotSupported, match="a T5X prompt is one tensor"):
        formats.write(two, tmp_path / "b", to="t5x_prompt")
