"""Two adapters for two domains become one: trained, compared, composed, measured.

    make tour

Trains with peft one LoRA on active and one on passive sentences, over one head (`nli_domains`),
adds them to a registry in `tour-out/`, composes them by several methods on the command line, and
prints how many held-out words of each domain every adapter gets right.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("tour-out")
METHODS: tuple[tuple[str, ...], ...] = (
    ("sum",),
    ("average",),
    ("ties", "-p", "density=0.5", "--rank", "8"),
    ("knots_ties", "-p", "density=0.5"),
)
ENOUGH = 0.9  # of both domains, for a composed adapter; each alone knows its own


def main() -> int:
    os.chdir(ROOT)
    os.environ.update(
        ADAPTERHUB_HOME=str(OUT / "home"), HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error"
    )
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    return report(measure([*train(), *compose()]))


def train() -> list[str]:
    """Add an adapter for each domain to the registry; their names."""
    import nli_domains
    import nli_task

    print("training an adapter for each domain …", flush=True)
    base = OUT / "minilm"
    base.symlink_to(nli_task.base_directory(), target_is_directory=True)
    adapterhub("base", "add", str(base), "--name", "minilm")
    for name, path in nli_domains.train(OUT / "trained").items():
        labels = ("--labels", ",".join(nli_task.LABELS))
        adapterhub("add", str(path), "--name", name, "--base", "minilm", *labels)
    adapterhub("compare", *nli_domains.DOMAINS)
    return list(nli_domains.DOMAINS)


def compose() -> list[str]:
    """One adapter of both, by each method; their names."""
    for method, *options in METHODS:
        adapterhub(
            "compose", "active", "passive", "-m", method, *options, "--name", f"both-{method}"
        )
    return [f"both-{method}" for method, *_ in METHODS]


def adapterhub(*arguments: str) -> None:
    """Run one command, showing it; a failure ends the tour."""
    print(f"\n$ adapterhub {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "adapterhub", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.STDOUT)


def measure(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """name → domain → the share of words that are right, of one model in memory."""
    import nli_domains
    import nli_task

    import adapterhub as ah

    model, tokenizer = nli_task.load_base(), nli_task.load_tokenizer()
    found = {}
    with ah.attach(model, names[0]) as attached:
        for name in names:
            if name != names[0]:
                attached.switch(name)
            found[name] = nli_domains.accuracies(model, tokenizer)
    return found


def report(found: dict[str, dict[str, float]]) -> int:
    """Print the table; 0 if every composed adapter knows both domains better than either alone."""
    domains = list(next(iter(found.values())))
    print(f"\n{'':<16}" + "".join(f"{domain:>10}" for domain in domains))
    for name, shares in found.items():
        print(f"{name:<16}" + "".join(f"{share:>10.1%}" for share in shares.values()))
    alone = max(min(found[domain].values()) for domain in domains)
    composed = [min(shares.values()) for name, shares in found.items() if name not in domains]
    holds = min(composed) > alone and max(composed) >= ENOUGH
    print(
        f"  {'✓' if holds else '✗ NOT:'} composed, the worse domain is better than of either alone"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
