"""The main job, on a real model: train adapters, register them, merge one, switch between them.

    make demo

Trains with peft a LoRA that marks source, relation and target of a sentence on all-MiniLM-L6-v2,
and another that tells the field of each name; then goes on as a user would, on the command line and
with a model in memory. Everything happens in `demo-out/`, with a registry of its own; your own one
is not touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nli_task

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-out")
ADAPTER, FIELDS, MERGED = OUT / "adapter", OUT / "fields", OUT / "merged"
SENTENCE = "Arsenal will win the Premier League"
EXPECTED = {"Arsenal": "SRC", "win": "REL", "Premier League": "TGT"}
EXPECTED_FIELDS = {"Arsenal": "SPORT", "Premier League": "SPORT"}
MORE_SENTENCES = (
    SENTENCE,
    "Last year the Red Cross quietly opened a hospital in Nairobi .",
    "Marie Curie has discovered radium",
)
TOLERANCE = 1e-4


def main() -> int:
    os.chdir(ROOT)
    os.environ.update(
        ADAPTERHUB_HOME=str(OUT / "home"), HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error"
    )
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    train()
    base = link_base()
    use_the_command_line(base)
    merged_is_right = check()
    return 0 if switch() and merged_is_right else 1


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def train() -> None:
    """Write two LoRAs, each with a token-classification head, to `ADAPTER` and `FIELDS`."""
    import nli_task

    heading("Train a LoRA with peft (rank 8 on query and value, 120 steps): who does what to whom?")
    print_result(nli_task.train(ADAPTER, on_step=print_step))
    heading("And one for another task, with another head: which field is it about? (80 steps)")
    print_result(nli_task.train(FIELDS, task=nli_task.FIELDS_TASK, steps=80, on_step=print_step))


def print_result(result: nli_task.TrainResult) -> None:
    words = f"{result.accuracy:.1%} of {result.test_words} held-out words right"
    print(f"{result.seconds:.0f} s; {words}")


def print_step(step: int, loss: float) -> None:
    if step % 20 == 0:
        print(f"  step {step:3}  loss {loss:.3f}", flush=True)


def link_base() -> Path:
    """`demo-out/minilm`: a link to the model in the package, so that commands are short to read."""
    import nli_task

    link = OUT / "minilm"
    link.symlink_to(nli_task.base_directory(), target_is_directory=True)
    return link


def use_the_command_line(base: Path) -> None:
    heading("Now as a user would")
    adapterhub("inspect", str(ADAPTER))
    adapterhub("base", "add", str(base), "--name", "all-MiniLM-L6-v2")
    labels = ("--labels", "O,SRC,REL,TGT")
    adapterhub("add", str(ADAPTER), "--name", "nli-graph", "--base", "all-MiniLM-L6-v2", *labels)
    more = ("--labels", "O,SPORT,BUSINESS,CULTURE,POLITICS,SCIENCE")
    adapterhub("add", str(FIELDS), "--name", "nli-fields", "--base", "all-MiniLM-L6-v2", *more)
    adapterhub("list")
    adapterhub("show", "nli-graph")
    adapterhub("merge", "all-MiniLM-L6-v2", "nli-graph", "--out", str(MERGED))
    adapterhub("verify", "nli-graph")
    adapterhub("verify", str(MERGED), "--repeat")


def adapterhub(*arguments: str) -> None:
    """Run one command, showing it; a failure ends the demo."""
    print(f"\n$ adapterhub {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "adapterhub", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.STDOUT)


def check() -> bool:
    """Load the merged model, print its answer, and compare it with PEFT's own forward pass."""
    import nli_task

    model, tokenizer = load_without_warnings()
    heading(f"The merged model on “{SENTENCE}”")
    found = answer(model, tokenizer)
    same_answer = report(found == EXPECTED, "source, relation and target are right")

    heading("Does it agree with PEFT?")
    merged = nli_task.logits(model, tokenizer, MORE_SENTENCES)
    peft = nli_task.peft_forward(ADAPTER, MORE_SENTENCES)
    worst = float((merged - peft).abs().max())
    text = f"the merged model's logits agree with PEFT's forward pass: {worst:.1e} ≤ {TOLERANCE:g}"
    same_logits = report(worst <= TOLERANCE, text)

    started = time.perf_counter()
    import adapterhub as ah

    live = ah.load_model("nli-graph")
    seconds = time.perf_counter() - started
    equal = bool((nli_task.logits(live, tokenizer, MORE_SENTENCES) == merged).all())
    same_bits = report(equal, f'load_model("nli-graph") gives the same bits, in {seconds:.1f} s')
    return same_answer and same_logits and same_bits


def answer(model: Any, tokenizer: Any) -> dict[str, str]:
    """Print what the model says of the sentence; give the words that it has a label for."""
    import nli_task

    spans = nli_task.spans(nli_task.mark(model, tokenizer, SENTENCE))
    for span in spans:
        print(f"  {span.text:<16} {span.label:<8} {span.probability:.3f}")
    return {span.text: span.label for span in spans if span.label != "O"}


def switch() -> bool:
    """One model in memory, two tasks by turns, both compared with PEFT; then the base's bits."""
    import nli_task

    import adapterhub as ah

    model, tokenizer = nli_task.load_base(), nli_task.load_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heading("One model in memory, two tasks")
    print(f'  ah.attach(model, "nli-graph")          “{SENTENCE}”')
    with ah.attach(model, "nli-graph") as attached:
        right = answer(model, tokenizer) == EXPECTED
        logits = [nli_task.logits(model, tokenizer, MORE_SENTENCES)]
        kept, started = attached.memory, time.perf_counter()
        attached.switch("nli-fields")
        seconds = time.perf_counter() - started
        print(f'  attached.switch("nli-fields")          {seconds * 1000:.0f} ms')
        right &= answer(model, tokenizer) == EXPECTED_FIELDS
        logits.append(nli_task.logits(model, tokenizer, MORE_SENTENCES))
    right = report(right, f"both answers are right; kept for going back: {kept / 1e6:.1f} MB")
    tasks = ((ADAPTER, nli_task.GRAPH), (FIELDS, nli_task.FIELDS_TASK))
    expected = [nli_task.peft_forward(path, MORE_SENTENCES, task) for path, task in tasks]
    worst = max(float((a - b).abs().max()) for a, b in zip(logits, expected, strict=True))
    same = report(worst <= TOLERANCE, f"both agree with PEFT: {worst:.1e} ≤ {TOLERANCE:g}")
    after = model.state_dict()
    back = before.keys() == after.keys() and all(bool((before[n] == after[n]).all()) for n in after)
    return report(back, "detached: every bit of the base is back") and right and same


def load_without_warnings() -> tuple[Any, Any]:
    """The merged model and its tokenizer; a warning while loading is an error here."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForTokenClassification.from_pretrained(
            MERGED, output_loading_info=True
        )
    problems = {name: found for name, found in info.items() if found}
    if problems:
        raise SystemExit(f"the merged model does not load cleanly: {problems}")
    return model.eval(), AutoTokenizer.from_pretrained(MERGED)


def report(holds: bool, text: str) -> bool:
    print(f"  {'✓' if holds else '✗ NOT:'} {text}")
    return holds


if __name__ == "__main__":
    sys.exit(main())
