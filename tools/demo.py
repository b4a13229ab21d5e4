"""The main job, on a real model: train an adapter, register it, merge it, use the result.

    make demo

Trains with peft a LoRA that marks source, relation and target of a sentence on all-MiniLM-L6-v2,
then goes on as a user would, on the command line. Everything happens in `demo-out/`, with a
registry of its own; your own one is not touched.
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-out")
ADAPTER, MERGED = OUT / "adapter", OUT / "merged"
SENTENCE = "Arsenal will win the Premier League"
EXPECTED = {"Arsenal": "SRC", "win": "REL", "Premier League": "TGT"}
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
    return check()


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def train() -> None:
    """Write a LoRA with a token-classification head to `demo-out/adapter`."""
    import nli_task

    heading("Train a LoRA with peft (rank 8 on query and value, 120 steps)")
    result = nli_task.train(ADAPTER, on_step=print_step)
    print(
        f"{result.seconds:.0f} s; {result.accuracy:.1%} of {result.test_words} held-out words right"
    )


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


def check() -> int:
    """Load the merged model, print its answer, and compare it with PEFT's own forward pass."""
    import nli_task

    model, tokenizer = load_without_warnings()
    heading(f"The merged model on “{SENTENCE}”")
    spans = nli_task.spans(nli_task.mark(model, tokenizer, SENTENCE))
    for span in spans:
        print(f"  {span.text:<16} {span.label:<4} {span.probability:.3f}")
    found = {span.text: span.label for span in spans if span.label != "O"}
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
    return 0 if same_answer and same_logits and same_bits else 1


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
