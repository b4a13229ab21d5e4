"""Who am I, may I, and is this card well-formed."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from adapterhub.hub.server import cards, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.model import ALL, Caller, Token


def own_namespace(caller: Caller) -> str:
    """Where what they name without a namespace belongs, as on the Hub: the one namespace of their
    token, or where it has all or several, one of their own name.
    """
    namespaces = caller.token.namespaces if caller.token else ()
    return namespaces[0] if len(namespaces) == 1 and namespaces[0] != ALL else caller.name


async def whoami(call: Call) -> Response:
    caller = await call.signed_in("/api/whoami-v2")
    return replies.as_json(_who(caller, caller.token) if caller.token else {})


def _who(caller: Caller, token: Token) -> dict[str, Any]:
    """`hf auth whoami` reads `orgs` unguarded: the namespaces beside one's own."""
    name = own_namespace(caller)
    orgs = [each for each in token.namespaces if each not in (ALL, name)]
    return {
        "type": "user",
        "id": token.id,
        "name": name,
        "fullname": caller.name,
        "isPro": False,
        "canPay": False,
        "emailVerified": True,
        "orgs": [{"type": "org", "name": each, "roleInOrg": token.role} for each in orgs],
        "auth": {
            "type": "access_token",
            "accessToken": {
                "displayName": token.label,
                "role": token.role,
                "createdAt": replies.stamp(token.created),
            },
        },
    }


async def auth_check(call: Call) -> Response:
    await call.readable()
    return replies.as_json({})


async def auth_check_write(call: Call) -> Response:
    await call.writable()
    return replies.as_json({})


async def validate_yaml(call: Call) -> Response:
    """Clients ask before they upload a README.md; 400 keeps it from being uploaded."""
    said = await call.json()
    errors, warnings = await call.heavy(cards.validate, str(said.get("content", "")))
    body = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    if not errors:
        return replies.as_json(body)
    return replies.as_json(body | {"error": f"invalid metadata in README.md: {errors[0]}"}, 400)


ROUTES = (
    Route("GET", "/api/whoami-v2", whoami),
    Route("GET", "/api/{kind}/{repo}/auth-check", auth_check),
    Route("GET", "/api/{kind}/{repo}/auth-check/write", auth_check_write),
    Route("POST", "/api/validate-yaml", validate_yaml),
)
