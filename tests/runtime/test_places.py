"""registry/bottlenecks.json, against its schema and against the models of transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub import schema
from adapterhub.runtime.places import FILE, known, layers, places_of

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SMALL: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8},
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "vit": {"image_size": 8, "patch_size": 4},
}
USUAL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}


def model_of(kind: str) -> Any:
    fields = {**SMALL.get(kind, {})} if kind in ("distilbert", "t5", "gpt2") else {
        **USUAL, **SMALL.get(kind, {})}  # fmt: skip
    if kind != "vit":
        fields["vocab_size"] = 16
    if kind in ("llama", "mistral", "qwen2", "qwen3"):
        fields["num_key_value_heads"] = 1
    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **fields))


def test_the_data_is_what_its_schema_says() -> None:
    data = json.loads((schema.data_dir("registry") / FILE).read_text("utf-8"))
    schema.check(data, "bottlenecks", what="registry/bottlenecks.json")
    assert tuple(sorted(data)) == known()
    assert all(row["same_as"] in data for row in data.values() if "same_as" in row)


@pytest.mark.parametrize("kind", known())
def test_every_path_is_one_of_the_model(kind: str) -> None:
    model = model_of(kind)
    places = places_of(model)
    paths = [p for place in places.places for p in (place.hidden, place.residual.of, place.norm)]
    paths += [attention.module for attention in places.attention]
    paths += [f"{a.module}.{name}" for a in places.attention for name in a.projections]
    paths += [lora.module for lora in places.loras]
    paths += [places.embedded[1]] if places.embedded else []
    for path in filter(None, paths):
        for layer in range(2):
            model.get_submodule(path.replace("*", str(layer)))
    assert all(layers(model, place.hidden) == 2 for place in places.places)
