"""Who asks: the token of a request's Authorization header."""

from __future__ import annotations

import base64
import binascii

from adapterhub.hub.state.errors import RepoNotFound, Unauthorized
from adapterhub.hub.state.model import ANONYMOUS, Caller
from adapterhub.hub.state.tokens import Tokens

# Word for word: clients tell a bad token from a missing repository by it.
BAD_CREDENTIALS = "Invalid credentials in Authorization header"
_REMEDY = "adapterhub token list shows which tokens there are; adapterhub token create makes one"


def secret(header: str | None) -> str | None:
    """The token in `Bearer TOKEN`, or in `Basic` as git and curl send it: the password, or the
    user's name where the password is empty. None without a header. Raises Unauthorized.
    """
    if header is None:
        return None
    scheme, _, rest = header.strip().partition(" ")
    value = rest.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic" and (found := _basic(value)):
        return found
    raise bad_credentials()


def _basic(value: str) -> str:
    try:
        text = base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    user, _, password = text.partition(":")
    return password or user


def caller(tokens: Tokens, header: str | None) -> Caller:
    """Raises Unauthorized, in the words that clients know."""
    try:
        return tokens.caller(secret(header))
    except Unauthorized as error:
        raise bad_credentials() from error


def bad_credentials() -> Unauthorized:
    return Unauthorized(BAD_CREDENTIALS, remedy=_REMEDY)


def sign_in_first(what: str) -> Unauthorized:
    return Unauthorized(f"{what} needs a token", remedy="set HF_TOKEN, or hf auth login")


def for_caller(error: RepoNotFound, caller: Caller) -> RepoNotFound:
    """As the Hub does: who is not signed in gets 401 for what is missing or private."""
    if caller is ANONYMOUS:
        error.status = 401
    return error
