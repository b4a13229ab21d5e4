"""The average of AdaMix's experts: what the original computes in its forward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods import is_exact, method
from adapterhub.methods.adamix import averaged
from adapterhub.registry import inspection
from adapterhub.tensorfile import ArrayTensor

OUT, ATTENTION = "bert.encoder.layer.0.output", "bert.encoder.layer.0.attention.output"


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def soup(seed: int, down: int, up: int) -> dict[str, np.ndarray]:
    found = {}
    for side, count, shape in (("MoA_A", down, (3, 8)), ("MoA_B", up, (8, 3))):
        for k in range(count):
            start = f"{side}.deepspeed_experts.{k}"
            found[f"{start}.weight"] = numbers(seed + 2 * k, *shape)
            found[f"{start}.bias"] = numbers(seed + 2 * k + 1, shape[0])
    return found


def mixed(**modules: dict[str, np.ndarray]) -> Adapter:
    paths = {"out": OUT, "attention": ATTENTION, "classifier": "classifier"}
    found = {
        paths[name]: {role: ArrayTensor(array) for role, array in roles.items()}
        for name, roles in modules.items()
    }
    return Adapter("adamix", "native", {"num_experts": 4, "reduction_factor": 16}, found)


def test_equal_shares_and_one_that_all_share() -> None:
    roles = soup(1, down=4, up=1)
    head = numbers(9, 2, 8)
    found = averaged(mixed(out=roles, classifier={"replace:weight": head}))
    one = found.modules[OUT]
    down = sum(roles[f"MoA_A.deepspeed_experts.{k}.weight"].astype(np.float64) for k in range(4))
    np.testing.assert_allclose(one["adapter_down.0.weight"].read(), down / 4, rtol=1e-6)
    up = roles["MoA_B.deepspeed_experts.0.bias"]
    assert np.array_equal(one["adapter_up.bias"].read(), up)
    assert all(is_exact(tensor) for tensor in one.values())
    assert np.array_equal(found.modules["classifier"]["replace:weight"].read(), head)
    assert (found.method, found.config["output_adapter"], found.config["mh_adapter"]) == (
        "bottleneck",
        True,
        False,
    )
    assert "num_experts" not in found.config and found.config["non_linearity"] == "gelu"
    assert not [p for p in method("bottleneck").implementation.problems(found) if p.fatal]


def test_trained_scores_weigh_by_their_softmax() -> None:
    """Against the original's forward pass, written down in fp64."""
    roles = soup(2, down=3, up=3)
    scores = {"MoA_A": numbers(20, 3), "MoA_B": numbers(21, 3)}
    for side, score in scores.items():
        roles[f"{side}.expert_score_weight"] = score
    x = numbers(30, 5, 8).astype(np.float64)

    def layer(side: str, x: np.ndarray) -> np.ndarray:
        shares = np.exp(scores[side].astype(np.float64))
        shares /= shares.sum()
        weight, bias = (
            sum(s * roles[f"{side}.deepspeed_experts.{k}.{w}"] for k, s in enumerate(shares))
            for w in ("weight", "bias")
        )
        return np.asarray(x @ weight.T + bias)

    one = averaged(mixed(attention=roles)).modules[ATTENTION]
    got = np.tanh(x @ one["adapter_down.0.weight"].read().T + one["adapter_down.0.bias"].read())
    got = got @ one["adapter_up.weight"].read().T + one["adapter_up.bias"].read()
    np.testing.assert_allclose(got, layer("MoA_B", np.tanh(layer("MoA_A", x))), rtol=1e-5)
    assert not is_exact(one["adapter_up.weight"])


def test_the_average_is_kept_as_a_native_bottleneck(tmp_path: Path) -> None:
    found = averaged(mixed(out=soup(1, 2, 2), attention=soup(50, 2, 2)))
    formats.write(found, tmp_path, to="native")
    again = inspection.require(formats.read(tmp_path))
    assert again.config["mh_adapter"] is True and again.config["output_adapter"] is True
    for module, role, tensor in found.tensors():
        assert np.array_equal(again.modules[module][role].read(), tensor.read())
    ranks = method("bottleneck").implementation.ranks(again)
    assert ranks is not None and dict(ranks.by_module) == {OUT: 3, ATTENTION: 3}


def test_what_cannot_be() -> None:
    whole = mixed(out=soup(1, 2, 2))
    with pytest.raises(NotMergeable, match="a bottleneck has a nonlinearity within"):
        method("adamix").implementation.meaning(whole)
    roles = soup(1, 3, 1)
    del roles["MoA_A.deepspeed_experts.1.weight"]
    with pytest.raises(InvalidAdapter, match="MoA_A lacks expert 1"):
        averaged(mixed(out=roles))
    roles = soup(1, 2, 1)
    roles["MoA_A.expert_score_weight"] = np.array([np.nan, 0], np.float32)
    with pytest.raises(InvalidAdapter, match="expert_score_weight is not finite"):
        averaged(mixed(out=roles)).modules[OUT]["adapter_down.0.weight"].read()
