"""Talking to a hub: what huggingface_hub and the wire raise becomes one line and a remedy.

No message holds a token, the query of a URL (signed addresses have their secret there), or a name
and password in front of a host.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adapterhub.errors import (
    AdapterHubError,
    InvalidName,
    NotFound,
    OutputError,
    RemoteConflict,
    RemoteError,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MOST_TEXT = 300
_SECRETS = re.compile(
    r"\b(hf_|api_org_|ahub_)\w{4,}|\b(Bearer|Basic)\s+[\w.~+/=-]+|(?<=//)[^/@\s]+@|(?<=\w)\?[^\s'\"]+=\S*",
    re.IGNORECASE,
)
_TRY = re.compile(r"thrown while requesting (\w+) (\S+)")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
_CUT = {"ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ConnectionResetError"}
_CUT |= {"BrokenPipeError", "ConnectionAbortedError"}


def client(doing: str) -> HfApi:
    """The client of $HF_ENDPOINT, with the user's token if there is one.

    `doing` completes “… is not possible offline”. Raises RemoteError where $HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise RemoteError(
            f"{doing} is not possible offline: HF_HUB_OFFLINE is set; nothing was tried",
            remedy="unset HF_HUB_OFFLINE and repeat the command",
            tries=0,
        )
    return HfApi(library_name="adapterhub")


def host() -> str:
    """The endpoint as people may read it: `https://huggingface.co`."""
    from huggingface_hub import constants

    return redacted(constants.ENDPOINT)


def has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def redacted(text: str) -> str:
    """One line, without what may be a secret, at most MOST_TEXT characters."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "***")
    text = _SECRETS.sub("***", " ".join(text.split()))
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


@contextmanager
def named_errors(doing: str, *, repo: str = "", safe: str = "") -> Iterator[None]:
    """Names what fails inside. `doing`: “reading OWNER/NAME”; `safe`: what may be done next.

    Put only calls of huggingface_hub inside. Its lines about single tries are kept off stderr.
    Raises NotFound, InvalidName, OutputError, RemoteConflict (412), RemoteError.
    """
    with _LISTENER.counting() as tries:
        try:
            yield
        except AdapterHubError:
            raise
        # KeyError and ValueError: an answer that huggingface_hub could not read.
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _named(error, doing, repo, safe, tries) from error
        except Exception as error:
            if "HTTPError" not in _classes(error) and not _is_xet(error):
                raise
            raise _named(error, doing, repo, safe, tries) from error


@contextmanager
def quiet(*, bars: bool = True) -> Iterator[None]:
    """Keeps huggingface_hub's bars to terminals, and its warnings, meant for programmers, away.

    `bars=False`: no bars at all. Both are switches of the whole process.
    """
    from huggingface_hub import utils

    switch: Any = utils
    hide = not (bars and sys.stderr.isatty()) and not switch.are_progress_bars_disabled()
    with warnings.catch_warnings(action="ignore"):
        if hide:
            switch.disable_progress_bars()
        try:
            yield
        finally:
            if hide:
                switch.enable_progress_bars()


# --- which error ------------------------------------------------------------------------------


def _named(
    error: BaseException, doing: str, repo: str, safe: str, tries: _Tries
) -> AdapterHubError:
    root = _root(error)
    status = getattr(getattr(root, "response", None), "status_code", None)
    count = tries.of(root)
    kinds = _classes(root)
    if "HFValidationError" in kinds:
        return InvalidName(f"{doing}: {redacted(str(root))}", remedy="spell it as OWNER/NAME")
    if isinstance(root, OSError) and status is None and root.errno in _DISK:
        return OutputError(f"{doing} failed: {root.strerror}", remedy="free some space; " + safe)
    if (missing := _missing(kinds, repo)) is not None:
        return NotFound(f"{doing} failed: {missing}", remedy=_sign_in("check the spelling"))
    why, cure = _http(root, status) if status is not None else _wire(root, kinds)
    after = f", after {count} tries" if count > 1 else ""
    cls = RemoteConflict if status == 412 else RemoteError
    return cls(
        f"{doing} failed: {why}{after}",
        remedy="; ".join(part for part in (cure, safe) if part),
        status=status,
        tries=count,
    )


def _root(error: BaseException) -> BaseException:
    """What lies below “Error while uploading …” and the like."""
    seen: BaseException = error
    while (cause := seen.__cause__) is not None and _is_wrapper(seen):
        seen = cause
    return seen


def _is_wrapper(error: BaseException) -> bool:
    kinds = _classes(error)
    plain = type(error) is RuntimeError or "LocalEntryNotFoundError" in kinds
    return plain or type(error).__name__ in ("IncompleteSnapshotError", "RevisionResolutionError")


def _missing(kinds: set[str], repo: str) -> str | None:
    if "GatedRepoError" in kinds or "OfflineModeIsEnabled" in kinds:
        return None
    if "RepositoryNotFoundError" in kinds:
        return f"{host()} has no repository {repo or 'of that name'}, or does not show it to you"
    if "RevisionNotFoundError" in kinds:
        return f"{repo or 'the repository'} has no such revision"
    if "EntryNotFoundError" in kinds:
        return f"{repo or 'the repository'} has no such file"
    return None


def _http(error: BaseException, status: int) -> tuple[str, str]:
    """Why, and the cure."""
    said = redacted(_said(str(getattr(error, "server_message", None) or "")))
    why = f"{host()} answered {status}{f' ({said})' if said else ''}"
    cures = {
        401: _sign_in("the token is wrong or has expired" if has_token() else "no token is set"),
        402: "the hub wants to be paid for this",
        403: _sign_in("the token lacks the right to do this, or the repository is gated"),
        409: "somebody else is at work there: wait a moment",
        412: "the branch has moved since it was read",
        413: "it is more than this hub takes",
        429: "too many requests: wait some minutes",
    }
    if status >= 500:
        return why, "the hub has trouble: wait some minutes"
    if status in cures:
        return why, cures[status]
    request = _request(error)
    return (f"{why} to {request.method} {urlsplit(str(request.url)).path}" if request else why), ""


def _said(message: str) -> str:
    """Header and body often say the same, one of them at greater length."""
    lines = list(dict.fromkeys(message.splitlines()))
    longer = [[other for other in lines if other != line] for line in lines]
    pairs = zip(lines, longer, strict=True)
    return "; ".join(line for line, others in pairs if not any(line in other for other in others))


def _wire(error: BaseException, kinds: set[str]) -> tuple[str, str]:
    text = redacted(str(error))
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    if kinds & {"TimeoutException", "TimeoutError"}:
        return f"{host()} did not answer in time", "wait, or raise HF_HUB_DOWNLOAD_TIMEOUT"
    if kinds & _CUT:
        return f"the connection to {host()} was cut", ""
    if kinds & {"ConnectError", "ConnectionError", "XetAuthenticationError"} or _is_xet(error):
        return f"{host()} cannot be reached ({text})", "check the network and HF_ENDPOINT"
    if isinstance(error, KeyError):
        return f"the answer of {host()} lacks {text}", "is HF_ENDPOINT a hub?"
    if "UnsupportedProtocol" in kinds:
        return text, "HF_ENDPOINT is an address such as https://huggingface.co"
    return text or type(error).__name__, ""


def _sign_in(otherwise: str) -> str:
    if has_token():
        return f"{otherwise} (hf auth whoami tells whose token is used)"
    return f"{otherwise}; to sign in: hf auth login, or HF_TOKEN=…"


def _classes(error: BaseException) -> set[str]:
    """Names, since httpx is another package in each generation of huggingface_hub."""
    return {cls.__name__ for cls in type(error).__mro__}


def _is_xet(error: BaseException) -> bool:
    return type(error).__module__.startswith("hf_xet")


# --- how often --------------------------------------------------------------------------------


class _Tries:
    """How often each address was asked, as far as huggingface_hub logs it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, url: str) -> None:
        self._counts[_address(url)] += 1

    def of(self, error: Any) -> int:
        """How often the request of `error` was made; of one without, the most of any."""
        request = _request(error)
        if request is None:
            return max(self._counts.values(), default=1)
        return max(self._counts[_address(str(request.url))], 1)


def _request(error: Any) -> Any:
    """The request that failed, if it is known."""
    try:
        return error.response.request if hasattr(error, "response") else error.request
    except (AttributeError, RuntimeError):  # httpx raises where there is none
        return None


class _Listener(logging.Filter):
    """Counts tries for all who listen, and keeps the lines about them to itself while they do."""

    def __init__(self) -> None:
        super().__init__()
        self._listening: list[_Tries] = []
        self._mutex = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        found = _TRY.search(text)
        with self._mutex:
            if found:
                for tries in self._listening:
                    tries.add(found.group(2))
            about = found is not None or text.startswith(("Retrying in", "Rate limited"))
            return not (about and self._listening)

    @contextmanager
    def counting(self) -> Iterator[_Tries]:
        tries = _Tries()
        logging.getLogger("huggingface_hub.utils._http").addFilter(self)  # once, however often
        with self._mutex:
            self._listening.append(tries)
        try:
            yield tries
        finally:
            with self._mutex:
                self._listening.remove(tries)


_LISTENER = _Listener()


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}"
