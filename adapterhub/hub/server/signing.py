"""Addresses and tokens that prove themselves: signed claims that expire.

A ticket is `<claims>.<mac>`: the claims as JSON in base64url without padding, and, in hexadecimal,
HMAC-SHA256 over the ticket's purpose and the claims as they are written. Clients send upload
requests without their token, so the address itself must say what may be sent, to which repository,
and until when.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.errors import OutputError, StoreError
from adapterhub.hub.state.errors import Forbidden

KEY_BYTES = 32
LONGEST_TICKET = 4096
_AGAIN = "repeat the upload from its start"


@dataclass(frozen=True)
class Signer:
    """`key` is secret; `now` gives seconds since 1970."""

    key: bytes
    now: Callable[[], float] = time.time

    def sign(self, purpose: str, claims: Mapping[str, Any], seconds: float) -> str:
        """A ticket for one purpose, good for `seconds`. It can be read by whoever sees it."""
        document = {**claims, "exp": int(self.now() + seconds)}
        text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        body = base64.urlsafe_b64encode(text).rstrip(b"=").decode("ascii")
        return f"{body}.{self._mac(purpose, body)}"

    def read(self, purpose: str, ticket: str) -> dict[str, Any]:
        """The claims. Raises Forbidden: not signed here, for another purpose, or expired."""
        body, _, mac = ticket.partition(".")
        if len(ticket) > LONGEST_TICKET or not ticket.isascii():
            raise Forbidden("this address is not one that was given out here", remedy=_AGAIN)
        if not hmac.compare_digest(mac, self._mac(purpose, body)):
            raise Forbidden("the signature of this address does not match it", remedy=_AGAIN)
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if claims["exp"] <= self.now():
            raise Forbidden("this address has expired", remedy=_AGAIN)
        return claims

    def _mac(self, purpose: str, body: str) -> str:
        message = f"{purpose}\0{body}".encode()
        return hmac.digest(self.key, message, hashlib.sha256).hex()


def load_key(path: Path) -> bytes:
    """The key at `path`, made on first use, for its owner's eyes only.

    Raises OutputError where it cannot be read or made, StoreError where it is damaged.
    """
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise OutputError(
            f"cannot read or make the signing key {path}: {error.strerror}",
            remedy="check the permissions of the home",
        ) from error
    if len(key) != KEY_BYTES:
        raise StoreError(
            f"the signing key {path} has {len(key)} bytes; {KEY_BYTES} expected",
            remedy="delete it: a new one is made, and uploads that are under way begin anew",
        )
    return key


def _make_key(path: Path) -> None:
    """Whole or not at all; of several processes, one makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(fd)
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
