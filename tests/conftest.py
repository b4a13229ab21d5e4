"""What all tests share: no network, a home of their own, the corpus where there is one."""

from __future__ import annotations

import os

# Each library reads its own once, when it is imported. Models are tiny here, and workers are as
# many as cores: further threads of each worker would only wait, and wait busily.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing leaves the machine, and each HTTP client would read all certificates of the system.
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)  # noqa: PTH120

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from adapterhub.store import home as homes
from adapterhub.tensorfile import ArrayTensor, write_file

# The same examples in every run, and no deadlines: machines are shared, and a test either holds
# or it does not. To look further: pytest --hypothesis-profile=search
settings.register_profile("default", derandomize=True, deadline=None, database=None)
settings.register_profile("search", derandomize=False, deadline=None, max_examples=2000)
settings.load_profile("default")

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def _folders_when_needed() -> Iterator[None]:
    """Homes are made by the thousand here; to make and remove 256 folders is most of their cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(homes, "FOLDERS", ())
        yield


@pytest.fixture(scope="module")
def without_cards() -> Iterator[None]:
    """PEFT saves adapters without a README, which takes it longer to render than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        if "peft" in sys.modules:
            model = sys.modules["peft"].PeftModel
            patch.setattr(model, "create_or_update_model_card", lambda *given: None)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the registry, named by $ADAPTERHUB_HOME."""
    path = tmp_path / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Adapters made by strangers: $ADAPTERHUB_CORPUS, or shared/corpus beside the checkout."""
    path = Path(os.environ.get("ADAPTERHUB_CORPUS") or REPO.parent / "shared" / "corpus")
    if not (path / "adapters" / "INDEX.json").is_file():
        pytest.skip(f"no corpus of adapters in {path}; $ADAPTERHUB_CORPUS names one")
    return path


@pytest.fixture
def peft_dir(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PEFT adapter: `peft_dir(tensors, name=…, r=…)`, further fields into its config.

    Names of tensors go without `base_model.model.`; a value of `...` takes the field away. Without
    tensors it is one pair of rank 2 on `layer.0.q`, A: (2, 3), B: (2, 2).
    """

    def make(
        tensors: Mapping[str, np.ndarray] | None = None, *, name: str = "adapter", **fields: Any
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        named = TENSORS if tensors is None else tensors
        write_file(
            directory / "adapter_model.safetensors",
            {f"base_model.model.{key}": ArrayTensor(value) for key, value in named.items()},
        )
        config = {key: value for key, value in (CONFIG | fields).items() if value is not ...}
        (directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return directory

    return make


TENSORS = {
    "layer.0.q.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.0.q.lora_B.weight": np.array([[1, 0], [0, 2]], np.float32),
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "revision": "abc123",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q"],
}
