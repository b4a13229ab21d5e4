"""Tokens: `ahub_` and 60 hex digits: who is asking. Only their sha256 is kept."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.hub.state.model import Caller, Token


class Tokens:
    def create(
        self,
        label: str,
        role: str = "read",
        namespaces: Sequence[str] = ("*",),
        *,
        days: float | None = None,
    ) -> tuple[Token, str]:
        """A new token and its secret, which nobody can ask for again. Raises InvalidRequest."""
        raise NotImplementedError

    def list(self) -> tuple[Token, ...]:
        raise NotImplementedError

    def revoke(self, id: str) -> Token:
        """Raises NotFound."""
        raise NotImplementedError

    def caller(self, secret: str | None) -> Caller:
        """ANONYMOUS without a secret. Raises Unauthorized for one that is not (or no more) ours."""
        raise NotImplementedError
