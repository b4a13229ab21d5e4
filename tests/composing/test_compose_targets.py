"""Which modules a composed adapter adapts: those that an input adapts, in PEFT as here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import given as read

from adapterhub import composing
from adapterhub.composing import Options
from adapterhub.composing.building import exactly
from adapterhub.formats import read as read_files
from adapterhub.methods import LowRank, method

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.usefixtures("without_cards")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.out = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Any) -> Any:
        return self.out(torch.tanh(self.q(x)) * self.v(x))


class Nested(torch.nn.Module):
    """Names that end alike: `q` and `layers.0.q`, `layers.1.q` and `more.layers.1.q`."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "custom", "tie_word_embeddings": False}
        self.q = torch.nn.Linear(8, 8)
        self.layers = torch.nn.ModuleList(Block() for _ in range(3))
        self.more = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(Block() for _ in range(2))})

    def forward(self, x: Any) -> Any:
        x = self.q(x)
        for layer in (*self.layers, *self.more["layers"]):
            x = x + layer(x)
        return x


def model() -> Any:
    torch.manual_seed(1)
    return Nested().eval()


def adapter(path: Path, seed: int, said: Any = None, **fields: Any) -> set[str]:
    """The modules that PEFT adapts. `said`: target_modules as the config has them, if not so."""
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "init_lora_weights": False, **fields}
    live = peft.get_peft_model(model(), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    live.peft_config["default"].base_model_name_or_path = "owner/nested"
    live.save_pretrained(path, save_embedding_layers=False)
    if said is not None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": said}))
    return adapted(live)


def adapted(live: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in live.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


FORMS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q", "v"]},
    "one name": {"target_modules": ["out"]},
    "paths": {"target_modules": ["layers.0.q", "more.layers.1.v"]},
    "regex": {"target_modules": r".*\.1\.(q|out)"},
    "top": {"target_modules": "q"},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear said": {"target_modules": "all-linear", "said": "all-linear"},
    "layers": {"target_modules": ["v"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "layer": {"target_modules": ["q"], "layers_to_transform": 0},
    "but": {"target_modules": ["q", "v"], "exclude_modules": ["layers.0.q", "layers.2.v"]},
    "but a regex": {"target_modules": ["out"], "exclude_modules": r"more.*"},
    "ranks": {
        "target_modules": ["q", "v"],
        "rank_pattern": {"layers.0.q": 4, "v": 3},
        "alpha_pattern": {"layers.0.q": 7, "q": 1},
    },
    "rsLoRA": {"target_modules": ["q", "out"], "use_rslora": True, "r": 3},
}
PAIRS = [(name, other) for name in FORMS for other in ("paths", "regex", "ranks")]
QUICK = ("names", "top", "layers", "layer", "but")


def marked(pair: tuple[str, str]) -> Any:
    quick = pair[0] in QUICK and pair[1] == "paths"
    return pytest.param(*pair, id=" + ".join(pair), marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("one", "other"), [marked(pair) for pair in PAIRS])
@pytest.mark.parametrize("name", ["sum", "ties"])
def test_peft_adapts_the_modules_of_the_inputs_and_no_others(
    name: str, one: str, other: str, tmp_path: Path
) -> None:
    modules = adapter(tmp_path / "a", 3, **FORMS[one]) | adapter(tmp_path / "b", 4, **FORMS[other])
    plan = composing.plan([read(tmp_path / "a", 0.8), read(tmp_path / "b", -0.5)], Options(name))
    made = composing.adapter_of(plan, composing.run(plan))
    composing.write(plan, made, tmp_path / "out")
    again = read_files(tmp_path / "out")
    assert again.fatal == () and again.adapter is not None
    live = peft.PeftModel.from_pretrained(model(), tmp_path / "out").eval()
    assert adapted(live) == modules
    plain = model().double()
    for part in method("lora").implementation.meaning(again.adapter):
        assert isinstance(part, LowRank)
        a, b = (np.asarray(t.read(), np.float64) for t in (part.a, part.b))
        layer = live.get_submodule(f"base_model.model.{part.module}")
        assert layer.r["default"] == len(a)
        assert layer.scaling["default"] == pytest.approx(part.scale, rel=1e-12)
        delta = torch.from_numpy(part.scale * b @ a)
        assert delta.norm() > 0.05
        with torch.no_grad():
            plain.get_submodule(part.module).weight.add_(delta)
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(live(x).double(), plain(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("modules", "pattern"),
    [
        (["q"], "q"),
        (["q", "k"], "(?:q|k)"),
        (["a.0.q", "a.1.q", "a.1.k"], r"a\.(?:0\.q|1\.(?:q|k))"),
        (["a.0", "a.0.q", "b"], r"(?:a\.0(?:\.q)?|b)"),
        (["a-b.q*", "a_b.q"], r"(?:a\-b\.q\*|a_b\.q)"),
    ],
)
def test_a_pattern_of_exactly_these(modules: list[str], pattern: str) -> None:
    assert exactly(modules) == pattern
    assert all(re.fullmatch(pattern, name) for name in modules)


def test_a_pattern_of_a_large_model_is_short() -> None:
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("up", "down")]
    modules = {f"model.layers.{layer}.{name}" for layer in range(126) for name in names}
    pattern = exactly(sorted(modules))
    assert len(pattern) < 600
    others = {f"model.layers.126.{names[0]}", "layers.1.mlp.up_proj", f"x.{min(modules)}"}
    assert {n for n in modules | others if re.fullmatch(pattern, n)} == modules
