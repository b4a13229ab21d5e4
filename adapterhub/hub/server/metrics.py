"""Counters in Prometheus' text format: what came, how it went, how long it took."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)  # seconds
Label = tuple[str, str]  # method, template


class Metrics:
    """Templates and not addresses are counted: names of repositories stay out of it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[Label, float]] = Counter()
        self._seconds: Counter[Label] = Counter()
        self._received = self._sent = self._running = 0

    def began(self) -> None:
        with self._mutex:
            self._running += 1

    def ended(
        self, method: str, template: str, status: int, *, seconds: float, received: int, sent: int
    ) -> None:
        """`received` and `sent` are bytes of bodies; status 0 is a client that went away."""
        label = (method if method in _METHODS else "other", template)
        bound = next((b for b in BUCKETS if seconds <= b), float("inf"))
        with self._mutex:
            self._running -= 1
            self._requests[(*label, status)] += 1
            self._buckets[(label, bound)] += 1
            self._seconds[label] += seconds  # type: ignore[assignment]
            self._received += received
            self._sent += sent

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """`gauges`: name → help, value."""
        with self._mutex:
            lines = [*self._request_lines(), *self._duration_lines()]
            counted = {
                "received_bytes_total": ("counter", "Bytes of request bodies.", self._received),
                "sent_bytes_total": ("counter", "Bytes of response bodies.", self._sent),
                "running_requests": ("gauge", "Requests being answered.", self._running),
            }
        for name, (kind, about, value) in counted.items():
            lines += [*_head(name, kind, about), f"adapterhub_{name} {value}"]
        for name, (about, number) in gauges.items():
            lines += [*_head(name, "gauge", about), f"adapterhub_{name} {number:.17g}"]
        return "\n".join(lines) + "\n"

    def _request_lines(self) -> Iterable[str]:
        yield from _head("requests_total", "counter", "Requests answered; status 0: cut off.")
        for (method, template, status), count in sorted(self._requests.items()):
            labels = f'{_labels((method, template))},status="{status}"'
            yield f"adapterhub_requests_total{{{labels}}} {count}"

    def _duration_lines(self) -> Iterable[str]:
        name = "adapterhub_request_seconds"
        yield from _head("request_seconds", "histogram", "From the request to the last byte.")
        for label in sorted(self._seconds):
            total = 0
            for bound in (*BUCKETS, float("inf")):
                total += self._buckets[(label, bound)]
                shown = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f'{name}_bucket{{{_labels(label)},le="{shown}"}} {total}'
            yield f"{name}_sum{{{_labels(label)}}} {self._seconds[label]:.6f}"
            yield f"{name}_count{{{_labels(label)}}} {total}"


_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


def _labels(label: Label) -> str:
    method, template = (part.replace("\\", r"\\").replace('"', r"\"") for part in label)
    return f'method="{method}",route="{template}"'


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP adapterhub_{name} {about}", f"# TYPE adapterhub_{name} {kind}"]


def memory() -> dict[str, tuple[str, float]]:
    """Of this process, in bytes; empty where the system does not tell."""
    wanted = {"VmRSS": "resident_memory_bytes", "RssAnon": "anonymous_memory_bytes"}
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        key, _, rest = line.partition(":")
        if key in wanted:
            about = "Memory of the process" + (", its own only." if "Anon" in key else ".")
            found[wanted[key]] = (about, 1024.0 * int(rest.split()[0]))
    return found
