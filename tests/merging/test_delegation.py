"""What is left to PEFT: what the report says of it, what it may not disturb, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from building import opened, read_adapter
from safetensors.numpy import load_file, save_file
from test_methods_against_peft import Case, made

from adapterhub import merging as merge
from adapterhub.errors import MissingExtra, NotMergeable
from adapterhub.merging import Options, Source
from adapterhub.registry.around import BaseAround
from adapterhub.registry.naming import Naming
from adapterhub.tensorfile import ArrayTensor

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
DEFT = Case("deft", "DeftConfig", {"target_modules": ["q_proj"], "r": 4})
NORM = "model.norm.weight"
GLORA = Case("glora", "GloraConfig", {"target_modules": ["q_proj"], "r": 4})


def planned(path: Path) -> Any:
    source = Source("it", read_adapter(path / "adapter"))
    return merge.plan(opened(path / "base"), [source], Options())


def merged(path: Path) -> Any:
    return merge.run(planned(path), path / "merged")


def reconfigured(path: Path, **fields: Any) -> None:
    file = path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def retensored(path: Path, change: Any) -> None:
    file = path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# --- what is said -----------------------------------------------------------------------------


def test_the_report_says_whose_arithmetic_it_is(tmp_path: Path) -> None:
    made(GLORA, tmp_path)
    report = merged(tmp_path)
    said = f"4 tensors are computed by peft {peft.__version__}, which repeats itself to a tolerance"
    assert [note for note in report.notes if "peft" in note] == [f"{said} only"]
    assert report.reproducible is False
    document = json.loads((tmp_path / "merged" / "adapterhub.json").read_text())
    assert document["reproducible"] is False


def test_a_merge_that_repeats_to_a_tolerance_says_so_when_it_differs(tmp_path: Path) -> None:
    made(GLORA, tmp_path)
    merged(tmp_path)
    plan, report = planned(tmp_path), merge.read_report(tmp_path / "merged")
    assert merge.repeat(plan, report) == []
    whose = f"; peft {peft.__version__} computed it, to the same bits on one machine only"
    for name, end in ((next(n for n, w in plan.works.items() if not w.exact), whose), (NORM, "")):
        other = json.loads(json.dumps(report))
        other["tensors"][name]["digest"] = "sha256:" + "0" * 64
        (said,) = merge.repeat(plan, other)
        assert said.endswith(f"when merged again{end}")


def test_a_plan_imports_neither_peft_nor_torch(tmp_path: Path) -> None:
    made(DEFT, tmp_path)
    code = (
        "import sys; from pathlib import Path; import test_delegation_plan as it; "
        "it.plan(Path(sys.argv[1])); "
        "print([n for n in ('peft', 'torch', 'transformers') if n in sys.modules])"
    )
    (tmp_path / "test_delegation_plan.py").write_text(
        "from building import opened, read_adapter\n"
        "from adapterhub import merging\n"
        "def plan(path):\n"
        "    source = merging.Source('it', read_adapter(path / 'adapter'))\n"
        "    merging.plan(opened(path / 'base'), [source])\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.stdout.strip() == "[]", out.stderr


# --- what it computes -------------------------------------------------------------------------


def test_a_bf16_base_is_rounded_once(tmp_path: Path) -> None:
    """The formula of DEFT in fp64, from the files."""
    case = Case("deft-qr", "DeftConfig", {**DEFT.fields, "decomposition_method": "qr"})
    made(case, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again.bfloat16().save_pretrained(tmp_path / "base")
    merged(tmp_path)
    name = "model.layers.1.self_attn.q_proj"
    own = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    p, r = (own[f"base_model.model.{name}.deft_{x}"].astype(np.float64) for x in "PR")
    weight = again.state_dict()[f"{name}.weight"].double().numpy()
    q = np.linalg.qr(p)[0]
    expected = torch.from_numpy(weight + q @ (r - q.T @ weight))
    out = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    found = out.state_dict()[f"{name}.weight"]
    assert found.dtype == torch.bfloat16
    off = (found.double() - expected).abs() / expected.abs()
    assert float(off.max()) < 2**-8 * 1.001  # half a unit of bf16, and what fp32 is off by
    assert float((found.double() - torch.from_numpy(weight)).abs().max()) > 0.01


def test_frod_takes_u_from_the_v_of_the_file(tmp_path: Path) -> None:
    """W' = U (S + diag λ) Vᵀ with the columns of W V⁻ᵀ, normed, for U."""
    case = Case("frod", "FrodConfig", {"target_modules": ["q_proj"], "sparse_rate": 0.2})
    made(case, tmp_path)
    own: dict[str, Any] = {}

    def flip(tensors: dict[str, Any]) -> None:
        v = tensors["base_model.frod_V.self_attn_q_proj"]
        tensors["base_model.frod_V.self_attn_q_proj"] = np.ascontiguousarray(v[:, ::-1] * -1.0)
        own.update(tensors)

    retensored(tmp_path, flip)
    merged(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    v = own["base_model.frod_V.self_attn_q_proj"].astype(np.float64)
    weight = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"]
    u = np.linalg.solve(v, weight.astype(np.float64).T).T
    u /= np.linalg.norm(u, axis=0)
    s = np.diag(own[f"base_model.model.{name}.frod_lambda_l"].astype(np.float64))
    rows, columns = own["base_model.frod_s_indices.self_attn_q_proj"]
    s[rows, columns] += own[f"base_model.model.{name}.frod_lambda_s_values"]
    found = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    np.testing.assert_allclose(found, u @ s @ v.T, atol=1e-5)


def test_the_state_of_torch_is_as_before(tmp_path: Path) -> None:
    made(
        Case("peanut", "PeanutConfig", {"target_modules": ["q_proj"], "r": 4}),
        tmp_path,
    )
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        merged(tmp_path)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


# --- scikit-learn, which AdaMSS clusters with -------------------------------------------------

ADAMSS = Case(
    "adamss",
    "AdamssConfig",
    {"target_modules": ["q_proj", "down_proj"], "r": 8, "num_subspaces": 3, "subspace_rank": 2},
    exact=False,
)


class _KMeans:
    """Rows by the quantiles of their first entry, in the place of scikit-learn's clustering."""

    def __init__(self, n_clusters: int, **_: Any) -> None:
        self._count = n_clusters

    def fit_predict(self, rows: Any) -> Any:
        places = rows[:, 0].argsort().argsort()
        return (places * self._count // len(rows)).astype(np.int32)


@pytest.fixture
def sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ModuleType("sklearn.cluster")
    vars(cluster)["KMeans"] = _KMeans
    monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.cluster", cluster)


@pytest.mark.usefixtures("sklearn")
def test_adamss_changes_weight_and_bias(tmp_path: Path) -> None:
    live = made(ADAMSS, tmp_path)
    report = merged(tmp_path)
    assert report.actions["merge"] == 6  # down_proj has no bias
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected, found = live(tokens).logits, again(tokens).logits
        with live.disable_adapter():
            plain = live(tokens).logits
    assert float((expected - plain).abs().max()) > 1e-3
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("sklearn")
def test_adamss_of_other_clusters_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT itself would put the rows of one cluster into another."""
    made(ADAMSS, tmp_path)
    others = lambda _, rows: np.minimum(np.arange(len(rows)), 2).astype(np.int32)  # noqa: E731
    monkeypatch.setattr(_KMeans, "fit_predict", others)
    with pytest.raises(NotMergeable, match=r"clusters of \[\d+, \d+, \d+\] rows were trained"):
        merged(tmp_path)


@pytest.mark.usefixtures("sklearn")
def test_adamss_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(ADAMSS, tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtra, match="needs the package scikit-learn") as caught:
        merged(tmp_path)
    assert caught.value.remedy == "pip install 'adapterhub[peft]'"


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(DEFT, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match="computed by PEFT itself, needs the package peft"):
        planned(tmp_path)


# --- what is refused --------------------------------------------------------------------------


def test_what_only_all_layers_tell(tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj"], "save_projection": False}
    made(Case("frod", "FrodConfig", fields), tmp_path)
    with pytest.raises(NotMergeable, match=r"what its layers share \(save_projection\)"):
        planned(tmp_path)


def test_what_peft_refuses_is_said_by_name(tmp_path: Path) -> None:
    made(Case("waveft", "WaveFTConfig", {"target_modules": ["q_proj"], "n_frequency": 9}), tmp_path)
    reconfigured(tmp_path, wavelet_family="db99")
    with pytest.raises(NotMergeable, match=r"q_proj.: peft .* refuses it: .*db99 not supported"):
        merged(tmp_path)


def test_another_layout_than_pefts_own_is_refused(tmp_path: Path) -> None:
    made(DEFT, tmp_path)
    reconfigured(tmp_path, para=True)
    with pytest.raises(NotMergeable, match="expects other tensors than the adapter has") as caught:
        merged(tmp_path)
    assert caught.value.details[0].startswith("unknown: base_model.model.model.layers.0")
    assert not (tmp_path / "merged").exists()


def test_indices_of_frod_outside_of_its_matrix(tmp_path: Path) -> None:
    made(
        Case("frod", "FrodConfig", {"target_modules": ["q_proj"], "sparse_rate": 0.1}),
        tmp_path,
    )
    retensored(
        tmp_path, lambda tensors: tensors["base_model.frod_s_indices.self_attn_q_proj"].fill(99)
    )
    with pytest.raises(NotMergeable, match=r"must lie within \[16, 16\]"):
        merged(tmp_path)


def test_a_count_that_would_never_end(tmp_path: Path) -> None:
    made(Case("psoft", "PsoftConfig", {"target_modules": ["q_proj"], "r": 4}), tmp_path)
    reconfigured(tmp_path, use_cayley_neumann=True, num_cayley_neumann_terms=10**6)
    with pytest.raises(NotMergeable, match="num_cayley_neumann_terms is 1000000, and no more"):
        planned(tmp_path)


def test_a_neighbour_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    """That of a live model may be changed before its neighbour is computed."""
    made(GLORA, tmp_path)
    base, name = opened(tmp_path / "base"), "model.layers.0.self_attn.q_proj"
    live: Any = ArrayTensor(base.tensors[f"{name}.weight"].read())
    view = base.with_tensors({**base.tensors, f"{name}.weight": live}, {})
    assert BaseAround(Naming(base)).read(name, "weight") is not None
    with pytest.raises(NotMergeable, match=r"q_proj\.weight is in memory, where"):
        BaseAround(Naming(view)).read(name, "weight")
