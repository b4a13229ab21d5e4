"""What the server writes to stderr: JSON, one line for each request and each event.

Neither tokens nor signatures get there: headers are not written at all, and of an address's query
only values that are short and whose name is not that of a secret.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any
from urllib.parse import quote_plus

LOGGER = logging.getLogger("adapterhub.hub.server")
LEVELS = ("debug", "info", "warning", "error")
_SECRET = re.compile(r"sig|token|secret|key|auth|pass|cred|expires", re.IGNORECASE)
_LONGEST_VALUE = 100
_TOKENISH = re.compile(r"(?:hf|ahub)_[A-Za-z0-9]{8,}")


def masked(query: bytes) -> str:
    """A query string for the log: what may be a secret becomes `***`."""
    parts = []
    for part in query.decode("latin-1").split("&"):
        name, equals, value = part.partition("=")
        hidden = _SECRET.search(name) or len(value) > _LONGEST_VALUE or _TOKENISH.search(value)
        parts.append(f"{name[:_LONGEST_VALUE]}{equals}{'***' if hidden and equals else value}")
    return _printable("&".join(parts))


def path(raw: bytes) -> str:
    """An address's path for the log: as it was sent, and in ASCII."""
    return _TOKENISH.sub("***", _printable(raw.decode("latin-1")[:2000]))


def _printable(text: str) -> str:
    return "".join(c if 32 < ord(c) < 127 else quote_plus(c) for c in text)


def untold(text: str) -> str:
    """A message without what looks like a token; clients put them into the oddest places."""
    return _TOKENISH.sub("***", text)


def event(level: int, what: str, **fields: Any) -> None:
    """One line: time, level, event, and the fields that are not None."""
    LOGGER.log(level, what, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


def failure(what: str, error: BaseException, **fields: Any) -> None:
    """What should not have happened, with its traceback."""
    LOGGER.error(what, exc_info=error, extra={"fields": fields})


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """To stderr, from `level` on; uvicorn's own warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in ((LOGGER.name, level), ("uvicorn", "warning")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(least.upper())
