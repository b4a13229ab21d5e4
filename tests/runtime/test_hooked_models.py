"""What people do to a model while an adapter runs beside its weights: threads, copies, failures,
compilation, wrappers, generation."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import living
import peft
import torch
import transformers
from living import bits

from adapterhub import api
from adapterhub.errors import InvalidOption, NotSupported
from adapterhub.registry import Registry

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
IDS = torch.tensor([[3, 7, 1, 9, 12], [5, 5, 2, 8, 1]])
CASES = ["llama/houlsby", "llama/prefix", "llama/mam", "llama/unipelt", "bert/late"]
CASES += ["bert/prefix_gated", "distilbert/mam", "gpt2/unipelt"]


def model_of(case: str, kind: Any = transformers.AutoModel, attention: str = "sdpa") -> Any:
    path = GOLDEN / case.partition("/")[0] / "base"
    return kind.from_pretrained(path, attn_implementation=attention).eval()


def output(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS)[0]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Path]]]:
    """A llama with a head; a prompt and a LoRA for it."""
    model, place = living.model_of("llama"), tmp_path_factory.mktemp("lm")
    fields: dict[str, Any] = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    living.adapter_of(model, "PromptTuningConfig", place / "prompt", **fields)
    living.adapter_of(model, "LoraConfig", place / "lora", r=2, target_modules=["q_proj"])
    living.adapter_of(model, "LoraConfig", place / "other", r=2, target_modules=["v_proj"])
    yield model, {name: place / name for name in ("prompt", "lora", "other")}


def in_threads(run: Any, count: int = 4) -> list[Any]:
    """What `run` gives, ten times in each of several threads that interrupt each other often."""
    found: list[Any] = []

    def many() -> None:
        for _ in range(10):
            try:
                found.append(run())
            except Exception as error:  # shown by the assertion
                found.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=many) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 10 * count
    return found


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_see_each_other(case: str, registry: Registry) -> None:
    model = model_of(case)
    with api.attach(model, GOLDEN / case, registry=registry):
        expected = output(model)
        for found in in_threads(lambda: output(model)):
            assert isinstance(found, torch.Tensor), found
            assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_a_prompt_is_there_for_every_thread(lm: Any, registry: Registry) -> None:
    model, paths = lm
    with api.attach(model, paths["prompt"], registry=registry):
        expected = output(model)
        for found in in_threads(lambda: output(model)):
            assert isinstance(found, torch.Tensor) and torch.equal(found, expected)
        given = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        answer = model.generate(IDS, **given)
        for found in in_threads(lambda: model.generate(IDS, **given), 2):
            assert isinstance(found, torch.Tensor) and torch.equal(found, answer)


@pytest.mark.parametrize("case", CASES)
def test_a_pass_that_fails_leaves_no_trace(case: str, registry: Registry) -> None:
    model = model_of(case)
    armed: list[bool] = []

    def fail(*_: Any) -> None:
        if armed:
            raise OSError("out of memory, say")

    before = output(model)
    for _, module in model.named_modules():
        if module is not model:
            module.register_forward_hook(fail)
    with api.attach(model, GOLDEN / case, registry=registry):
        expected, failed = output(model), 0
        for name, module in model.named_modules():
            if ".1." not in name:
                continue
            handle = module.register_forward_hook(lambda *_: armed.append(True))
            with suppress(OSError):
                output(model)
            failed += len(armed)
            handle.remove()
            armed.clear()
            assert torch.equal(output(model), expected), name
        assert failed > 3
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_is_no_base(
    case: str, way: Any, registry: Registry, tmp_path: Path
) -> None:
    model = model_of(case)
    before = output(model)
    with api.attach(model, GOLDEN / case, registry=registry):
        expected, twin = output(model), way(model)
    assert torch.equal(output(twin), expected)
    assert torch.equal(output(model), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(output(twin), expected)
    with pytest.raises(NotSupported, match=r"is a copy of one that .* attached to") as caught:
        api.attach(twin, GOLDEN / case, registry=registry)
    assert caught.value.remedy == "detach, copy, and attach to the copy"
    with pytest.raises(NotSupported, match="save_pretrained would write"):
        twin.save_pretrained(tmp_path)


def test_a_copy_of_a_changed_model_is_no_base(lm: Any, registry: Registry) -> None:
    model, paths = lm
    with api.attach(model, paths["lora"], registry=registry):
        twin = copy.deepcopy(model)
    with pytest.raises(NotSupported, match="is a copy of one"):
        api.attach(twin, paths["other"], registry=registry)
    plain = copy.deepcopy(model)
    with api.attach(plain, paths["other"], registry=registry):
        pass
    assert bits(plain) == bits(model)


@pytest.mark.parametrize("way", [copy.deepcopy, pickle.dumps])
def test_a_model_with_a_prompt_is_not_copied(way: Any, lm: Any, registry: Registry) -> None:
    """Its copy's forward pass would be the original's."""
    model, paths = lm
    with (
        api.attach(model, paths["prompt"], registry=registry),
        pytest.raises(NotSupported, match="would still run the original"),
    ):
        way(model)
    assert torch.equal(output(copy.deepcopy(model)), output(model))


@pytest.mark.parametrize("first", ["prompt", "lora"])
def test_a_prompt_and_a_merged_adapter_go_in_any_order(
    first: str, lm: Any, registry: Registry
) -> None:
    model, paths = lm
    before, weights = output(model), bits(model)
    alone = {}
    for name in ("prompt", "lora"):
        with api.attach(model, paths[name], registry=registry):
            alone[name] = output(model)
    second = "lora" if first == "prompt" else "prompt"
    one = api.attach(model, paths[first], registry=registry)
    two = api.attach(model, paths[second], registry=registry)
    both = output(model)
    assert all(not torch.equal(both[:, -5:], found[:, -5:]) for found in alone.values())
    one.detach()
    assert torch.equal(output(model), alone[second])
    one = api.attach(model, paths[first], registry=registry)
    two.detach()
    assert torch.equal(output(model), alone[first])
    one.detach()
    assert torch.equal(output(model), before) and bits(model) == weights


def test_switching_beside_a_prompt(lm: Any, registry: Registry) -> None:
    model, paths = lm
    before = output(model)
    with (
        api.attach(model, paths["prompt"], registry=registry),
        api.attach(model, paths["lora"], registry=registry) as attached,
    ):
        one = output(model)
        attached.switch(paths["other"])
        assert not torch.equal(output(model), one)
        attached.switch(paths["lora"])
        assert torch.equal(output(model), one)
    assert torch.equal(output(model), before)


def test_what_load_model_guards_stays_guarded(registry: Registry, tmp_path: Path) -> None:
    case = "llama/houlsby"
    model = api.load_model(GOLDEN / case, base=GOLDEN / "llama" / "base", registry=registry)
    expected = output(model)
    with api.attach(model, GOLDEN / "llama" / "prefix", registry=registry):
        assert not torch.equal(output(model), expected)
    assert torch.equal(output(model), expected)
    with pytest.raises(NotSupported, match="houlsby attached to this model"):
        model.save_pretrained(tmp_path)


# --- compiled and checkpointed ----------------------------------------------------------------


@contextmanager
def compiled(model: Any) -> Iterator[Any]:
    torch.compiler.reset()
    try:
        yield torch.compile(model, backend="eager")
    finally:
        torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama/mam", "bert/late"])
def test_what_was_compiled_before_is_compiled_anew(case: str, registry: Registry) -> None:
    model = model_of(case)
    before = output(model)
    with compiled(model) as quick:
        assert torch.allclose(output(quick), before, atol=1e-6)
        with api.attach(model, GOLDEN / case, registry=registry):
            expected = output(model)
            assert not torch.allclose(expected, before, atol=1e-2)
            assert torch.allclose(output(quick), expected, atol=1e-6)
        assert torch.allclose(output(quick), before, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_model_is_the_model(registry: Registry) -> None:
    case = "llama/houlsby"
    model = model_of(case)
    with compiled(model) as quick, api.attach(quick, GOLDEN / case, registry=registry) as attached:
        assert attached.model is model
        assert torch.allclose(output(quick), output(model), atol=1e-6)
        with pytest.raises(NotSupported, match="save_pretrained"):
            model.save_pretrained("nowhere")


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing(case: str, registry: Registry) -> None:
    model = model_of(case)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in vars(model.config):
        if "dropout" in name or name.endswith(("pdrop", "_prob")):
            setattr(model.config, name, 0.0)
    with api.attach(model, GOLDEN / case, registry=registry):
        expected = output(model)
        model.train()
        model(IDS)[0].square().sum().backward()
        plain = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found = model(IDS)[0]
        found.square().sum().backward()
        assert torch.allclose(found, expected, atol=1e-5)
        for one, other in zip(model.parameters(), plain, strict=True):
            assert (one.grad is None) == (other is None)
            assert other is None or torch.allclose(one.grad, other, atol=1e-4, rtol=1e-4)
        model.eval()


# --- wrappers ---------------------------------------------------------------------------------


def test_what_is_no_model_is_refused(lm: Any, registry: Registry) -> None:
    model, paths = lm
    given = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}
    wrapper = peft.get_peft_model(copy.deepcopy(model), peft.PromptTuningConfig(**given))
    with pytest.raises(NotSupported, match="is peft's wrapper of a model, and not the model"):
        api.attach(wrapper, paths["lora"], registry=registry)
    others: list[Any] = [torch.nn.DataParallel(model), torch.nn.Linear(2, 2), "model", None]
    for other in others:
        with pytest.raises(InvalidOption, match="is no model of transformers"):
            api.attach(other, paths["lora"], registry=registry)


# --- generating -------------------------------------------------------------------------------


def greedy(model: Any, steps: int = 4) -> Any:
    """The whole sequence anew for each token, without a cache."""
    found = IDS
    for _ in range(steps):
        with torch.no_grad():
            scores = model(found, use_cache=False).logits[:, -1]
        found = torch.cat((found, scores.argmax(-1, keepdim=True)), dim=1)
    return found


@pytest.mark.parametrize("case", ["llama/houlsby", "llama/prefix", "llama/mam", "gpt2/mam"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation(case: str, attention: str, registry: Registry) -> None:
    model = model_of(case, transformers.AutoModelForCausalLM, attention)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    model.generation_config.eos_token_id = None
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with api.attach(model, GOLDEN / case, registry=registry):
        expected = greedy(model)
        assert torch.equal(model.generate(IDS, **given), expected)
        assert torch.equal(
            model.generate(IDS, cache_implementation="static", disable_compile=True, **given),
            expected,
        )
        padded = torch.cat((torch.zeros(2, 2, dtype=torch.long), IDS), dim=1)
        mask = (torch.arange(7)[None] > 1).long().expand(2, 7)
        found = model.generate(padded, attention_mask=mask, **given)
        assert torch.equal(found[:, 2:], expected)
        beams = [
            model.generate(IDS, num_beams=3, use_cache=use_cache, **given)
            for use_cache in (True, False)
        ]
        assert torch.equal(*beams)


@pytest.mark.parametrize("case", ["t5/prefix", "t5/mam", "t5/houlsby"])
def test_generation_of_an_encoder_and_decoder(case: str, registry: Registry) -> None:
    model = model_of(case, transformers.T5ForConditionalGeneration)
    given = {"max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        model.lm_head.weight.normal_()
    plain = model.generate(IDS, **given)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    with api.attach(model, GOLDEN / case, registry=registry):
        for more in ({}, {"attention_mask": mask}, {"num_beams": 3}):
            found = [model.generate(IDS, use_cache=on, **given, **more) for on in (True, False)]
            assert torch.equal(*found), more
        with torch.no_grad():
            changed = model(IDS, decoder_input_ids=plain).logits
    with torch.no_grad():
        assert not torch.allclose(model(IDS, decoder_input_ids=plain).logits, changed, atol=1e-2)
