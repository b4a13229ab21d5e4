"""Tokens: who is asking.

`ahub_`, 12 hex digits that name the token, 48 (192 bits) that are its secret. hub.db keeps the
sha256 of the whole; there is nothing to guess in it, so a slow hash would only slow us down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from adapterhub.errors import NotFound
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import InvalidRequest, Unauthorized
from adapterhub.hub.state.model import ALL, ANONYMOUS, Caller, Token
from adapterhub.hub.state.names import check_namespace
from adapterhub.hub.state.paths import shown

PREFIX = "ahub_"
ROLES = ("read", "write")
_SECRET = re.compile(r"ahub_[0-9a-f]{60}")
_COLUMNS = "id, label, role, namespaces, created, expires, used, revoked"
_USED_SECONDS = 3600  # how exactly the last use is known
_NOBODY = bytes(32)


class Tokens:
    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    def create(
        self,
        label: str,
        role: str = "read",
        namespaces: Sequence[str] = (ALL,),
        *,
        days: float | None = None,
    ) -> tuple[Token, str]:
        """A new token and its secret, which nobody can ask for again. Raises InvalidRequest.

        `label` is the name of who has it, and stands as the author in what they commit.
        """
        if role not in ROLES:
            raise InvalidRequest(f"no such role: {shown(role)}", remedy="use read or write")
        if not namespaces:
            raise InvalidRequest("a token needs a namespace", remedy=f"or {ALL}, for all of them")
        if days is not None and not 0 < days < 100_000:
            raise InvalidRequest(
                f"a token cannot expire in {days:g} days", remedy="more than 0, less than 100,000"
            )
        spaces = sorted({each if each == ALL else check_namespace(each) for each in namespaces})
        self._refuse_likeness(spaces)
        id, moment = secrets.token_hex(6), int(self._now())
        secret = f"{PREFIX}{id}{secrets.token_hex(24)}"
        expires = None if days is None else int(self._now() + days * 86400)
        row = (
            id,
            _hash(secret),
            check_namespace(label, "name"),
            role,
            " ".join(spaces),
            moment,
            expires,
        )
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO tokens (id, hash, label, role, namespaces, created, expires)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return self.get(id), secret

    def _refuse_likeness(self, spaces: Sequence[str]) -> None:
        """Ids that differ in case only exclude each other: who had the namespace in another
        spelling would learn from that what is in it, and could take its names.
        """
        rows = self._database.rows("SELECT DISTINCT namespace COLLATE BINARY FROM repositories")
        known = {namespace for (namespace,) in rows}
        known.update(*(token.namespaces for token in self.list() if token.revoked is None))
        folded = {each.lower(): each for each in known}
        for each in spaces:
            other = folded.get(each.lower(), each)
            if each not in known and other != each:
                raise InvalidRequest(
                    f"namespace {each} is {other} in another spelling", remedy=f"use {other}"
                )

    def get(self, id: str) -> Token:
        """By the 12 digits behind `ahub_`. Raises NotFound."""
        row = None
        if id.isascii():
            row = self._database.row(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (id,))
        if row is None:
            raise NotFound(f"no token {shown(id)}", remedy="`adapterhub token list` shows them")
        return _token(row)

    def list(self) -> tuple[Token, ...]:
        """Revoked and expired ones too, the oldest first."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM tokens ORDER BY created, id")
        return tuple(map(_token, rows))

    def revoke(self, id: str) -> Token:
        """From now on nobody gets in with it. Raises NotFound."""
        with self._database.transaction() as connection:
            sql = "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?"
            connection.execute(sql, (int(self._now()), self.get(id).id))
            return self.get(id)

    def caller(self, secret: str | None) -> Caller:
        """ANONYMOUS without a secret. Raises Unauthorized for one that is not (or no more) ours."""
        if not secret:
            return ANONYMOUS
        row = None
        if _SECRET.fullmatch(secret):
            sql = f"SELECT hash, {_COLUMNS} FROM tokens WHERE id = ?"
            row = self._database.row(sql, (secret[5:17],))
        given = _hash(secret)
        if not hmac.compare_digest(given, row[0] if row else _NOBODY) or row is None:
            raise Unauthorized("this token is not known here", remedy="check it, or get a new one")
        token = _token(row[1:])
        self._check_valid(token)
        self._record(token)
        return Caller(token.label, token)

    def _check_valid(self, token: Token) -> None:
        ended = "revoked" if token.revoked is not None else ""
        if token.expires is not None and token.expires <= self._now():
            ended = ended or "expired"
        if ended:
            raise Unauthorized(f"this token has {_ENDED[ended]}", remedy="get a new one")

    def _record(self, token: Token) -> None:
        moment = int(self._now())
        if token.used is not None and moment - token.used < _USED_SECONDS:
            return
        # a full disk, or a long queue of writers, must not keep readers out
        self._database.attempt("UPDATE tokens SET used = ? WHERE id = ?", (moment, token.id))


_ENDED = {"revoked": "been revoked", "expired": "expired"}


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _token(row: tuple[Any, ...]) -> Token:
    id, label, role, namespaces, *times = row
    return Token(id, label, role, tuple(namespaces.split()), *times)
