"""What an adapter means, applied in fp64 to a base, against peft's forward pass and merge."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import BiasDelta, LowRank, Replacement, TokenRows, lora
from adapterhub.registry import inspection
from adapterhub.tensorfile import Tensor

EXPERTS, TOKENS = 3, torch.arange(18).reshape(3, 6) % 11


class Layers(nn.Module):
    """A layer of every kind that LoRA adapts, one behind the other; heads at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.wide = Conv1D(10, 6)  # GPT-2's: stored (in, out)
        self.square = Conv1D(10, 10)
        self.line = nn.Conv1d(10, 7, 3)
        self.plane = nn.Conv2d(1, 3, (2, 3))
        self.cube = nn.Conv3d(1, 4, (1, 2, 2))
        self.up = nn.Linear(4 * 3 * 5 * 1, 12)
        self.score = nn.Linear(12, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.square(torch.tanh(self.wide(self.table(input_ids))))
        x = torch.tanh(self.line(x.transpose(1, 2)))  # (3, 7, 4)
        x = torch.tanh(self.plane(x[:, None]))  # (3, 3, 6, 2)
        x = torch.tanh(self.cube(x[:, None]))  # (3, 4, 3, 5, 1)
        found: torch.Tensor = self.score(torch.tanh(self.up(x.flatten(1))))
        return found


class Experts(nn.Module):
    """Of transformers' shapes: (experts, out, in), or (experts, in, out) where transposed."""

    def __init__(self, count: int, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = ((6, 10), (5, 6)) if transposed else ((10, 6), (6, 5))
        self.gate_up_proj = nn.Parameter(torch.randn(count, *up))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(count, 10))
        self.down_proj = nn.Parameter(torch.randn(count, *down))
        self.down_proj_bias = nn.Parameter(torch.randn(count, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = self.gate_up_proj, self.down_proj
        if not self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        halves = torch.einsum("bi,eio->ebo", x, up) + self.gate_up_proj_bias[:, None]
        inner = torch.tanh(halves[..., :5]) * halves[..., 5:]
        return (torch.einsum("ebi,eio->ebo", inner, down) + self.down_proj_bias[:, None]).sum(0)


class Mixture(nn.Module):
    def __init__(self, transposed: bool = False, count: int = EXPERTS) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.q_proj = nn.Linear(6, 6)
        self.mlp = nn.Module()
        self.mlp.experts = Experts(count, transposed)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.q_proj(self.table(input_ids)).flatten(0, 1)
        found: torch.Tensor = self.mlp.experts(x)
        return found


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)


ALL = ["table", "wide", "square", "line", "plane", "cube", "up", "score"]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
CASES = {
    "every layer": Case(Layers, {"target_modules": ALL}),
    "dora": Case(Layers, {"target_modules": ALL, "use_dora": True}),
    "dora, rslora, patterns": Case(
        Layers,
        {
            "target_modules": ["table", "square", "up"],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"table": 2, "up": 5},
            "alpha_pattern": {"square": 0.5},
        },
    ),
    "biases": Case(
        Layers,
        {
            "target_modules": ["wide", "line", "up"],
            "lora_bias": True,
            "bias": "all",
            "modules_to_save": ["score"],
        },
    ),
    "tokens": Case(
        Layers, {"target_modules": ["up"], "trainable_token_indices": {"table": [7, 2]}}
    ),
    "velora": Case(Layers, {"target_modules": ["up"], "velora_config": VeloraConfig()}),
    "monteclora": Case(Layers, {"target_modules": ["up"], "monteclora_config": MontecloraConfig()}),
    "mica": Case(Layers, {"target_modules": ["up"], "init_lora_weights": "mica"}),
    "experts": Case(Mixture, {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "transposed experts": Case(lambda: Mixture(True), {"target_parameters": BOTH}),
    "inner experts": Case(Mixture, {"target_parameters": BOTH[:1]}),
    "outer experts": Case(Mixture, {"target_parameters": BOTH[1:]}),
    "names of parameters alone": Case(
        Mixture, {"target_parameters": ["down_proj", "gate_up_proj"], "target_modules": ["q_proj"]}
    ),
    "experts of unlike ranks": Case(
        Mixture,
        {
            "target_parameters": BOTH,
            "use_rslora": True,
            "rank_pattern": {"experts.down_proj": 1, "gate_up_proj": 3},
            "alpha_pattern": {"experts.gate_up_proj": 2, "experts": 50},
        },
    ),
    "biases of experts": Case(
        Mixture, {"target_parameters": [*BOTH, *(f"{name}_bias" for name in BOTH)]}
    ),
    "biases of experts as they are": Case(Mixture, {"target_parameters": BOTH, "bias": "all"}),
    "a single expert": Case(lambda: Mixture(count=1), {"target_parameters": BOTH}),
    "matrices as parameters": Case(
        Layers, {"target_parameters": ["table.weight", "square.weight", "up.weight"]}
    ),
    "nothing but parameters called weight": Case(
        lambda: nn.Sequential(nn.Embedding(11, 6), Conv1D(6, 6), nn.Linear(6, 4)),
        {"target_parameters": ["weight"]},
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def made(case: Case, tmp_path: Path) -> tuple[nn.Module, PeftModel, Adapter]:
    torch.manual_seed(5)
    base = case.model().eval()
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **case.options}
    options.setdefault("target_modules", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of biases, and of layers that are no transformers model
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) / 3)
        model.save_pretrained(tmp_path)
    return base, model, inspection.require(formats.read(tmp_path))


def values(tensor: Tensor) -> torch.Tensor:
    return torch.from_numpy(tensor.read()).double()


def applied(base: nn.Module, adapter: Adapter, *, base_is_initialised: bool = False) -> nn.Module:
    """The base in fp64 with the meaning applied, by what its docstrings say."""
    found = copy.deepcopy(base).double()
    with torch.no_grad():
        # Whole tensors first: rows and products belong to what is there then.
        meaning = lora.meaning(adapter, base_is_initialised=base_is_initialised)
        for part in sorted(meaning, key=lambda part: type(part) is not Replacement):
            module = found.get_submodule(part.module)
            if isinstance(part, LowRank):
                weight = module.get_parameter(part.parameter or "weight")
                weight.copy_(changed(weight, module, part))
            elif isinstance(part, BiasDelta):
                module.bias += part.scale * values(part.value)
            elif isinstance(part, TokenRows):
                module.weight[list(part.indices)] = values(part.value)
            else:
                module.get_parameter(part.parameter).copy_(values(part.value))
    return found


def changed(weight: torch.Tensor, module: nn.Module, part: LowRank) -> torch.Tensor:
    a, b = values(part.a).flatten(1), values(part.b).flatten(1)
    if part.layout == "experts" and weight.dim() == 3:
        a = a.reshape(len(weight), -1, a.shape[1])  # expert by expert
        b = b.reshape(len(b), -1, len(weight))  # rank by rank
        product = part.scale * torch.einsum("ore,eri->eoi", b, a)
        return weight + (product if product.shape == weight.shape else product.mT)
    turned = part.layout == "embedding" or (part.layout == "linear" and isinstance(module, Conv1D))
    stored = weight.T if turned else weight
    rows = stored.flatten(1) + part.scale * (b @ a)
    if part.magnitude is not None:
        rows = values(part.magnitude).reshape(-1, 1) * rows / rows.norm(dim=1, keepdim=True)
    rows = rows.reshape(stored.shape)
    return rows.T if turned else rows


def test_the_meaning_computes_what_peft_computes(
    made: tuple[nn.Module, PeftModel, Adapter],
) -> None:
    base, model, adapter = made
    with torch.no_grad():
        want, got = model(TOKENS).double(), applied(base, adapter)(TOKENS)
        assert (want - base(TOKENS)).abs().max() > 0.05
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_meaning_is_what_peft_merges(made: tuple[nn.Module, PeftModel, Adapter]) -> None:
    base, model, adapter = made
    want = model.merge_and_unload().state_dict()
    got = applied(base, adapter).state_dict()
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name].double(), rtol=1e-5, atol=1e-5)


def test_what_is_written_is_read_again(
    made: tuple[nn.Module, PeftModel, Adapter], tmp_path: Path
) -> None:
    _, model, adapter = made
    written = tmp_path / "again"
    written.mkdir()
    formats.write(adapter, written, to="peft")
    again = inspection.require(formats.read(written))
    assert {(m, r) for m, r, _ in again.tensors()} == {(m, r) for m, r, _ in adapter.tensors()}
    names = {formats.peft.key(adapter, module, role) for module, role, _ in adapter.tensors()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "peft")
    theirs = formats.read(tmp_path / "peft")
    assert theirs.adapter is not None
    assert names == {
        formats.peft.key(theirs.adapter, module, role)
        for module, role, _ in theirs.adapter.tensors()
    }


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_initialisation_that_changes_the_base(tmp_path: Path, init: str, rslora: bool) -> None:
    """The raw adapter belongs to the changed base; what peft converts, to the original one."""
    torch.manual_seed(6)
    base = Layers().eval()
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["up", "score"], init_lora_weights=init, use_rslora=rslora
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), config).eval()
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) / 3)
        model.save_pretrained(tmp_path / "raw")
        converted = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
        model.save_pretrained(tmp_path / "plain", **converted)
    with torch.no_grad():
        want = model(TOKENS).double()
    raw, plain = (inspection.require(formats.read(tmp_path / name)) for name in ("raw", "plain"))
    with pytest.raises(NotMergeable, match=f"init_lora_weights is '{init}'"):
        lora.meaning(raw)
    changed_base = copy.deepcopy(base)
    for name in ("up", "score"):
        weight = model.get_submodule(f"base_model.model.{name}").get_base_layer().weight
        changed_base.get_submodule(name).weight = nn.Parameter(weight.detach().clone())
    with torch.no_grad():
        for found, adapter in ((base, plain), (changed_base, raw)):
            got = applied(found, adapter, base_is_initialised=found is changed_base)(TOKENS)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert (applied(base, raw, base_is_initialised=True)(TOKENS) - want).abs().max() > 0.05
