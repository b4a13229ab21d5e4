"""`/health` and `/metrics`."""

from __future__ import annotations

from starlette.responses import Response

from adapterhub.hub.server import metrics, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route


async def health(call: Call) -> Response:
    """Whether hub.db answers. Needs no token."""
    await call.thread(call.hub.repositories.list, limit=1)
    return replies.as_json({"status": "ok"})


async def show_metrics(call: Call) -> Response:
    """Without a token only where anonymous requests may read anything, and without the number of
    repositories: private ones come and go with it.
    """
    caller = await call.who()
    if not call.service.settings.public_read:
        await call.signed_in("/metrics")
    kept = {}
    if caller.token is not None:
        count = await call.thread(call.hub.repositories.count)
        kept["repositories"] = ("Repositories of all kinds.", float(count))
    text = call.service.metrics.text(kept | metrics.memory())
    return replies.plain(text, "text/plain; version=0.0.4")


ROUTES = (
    Route("GET HEAD", "/health", health),
    Route("GET", "/metrics", show_metrics),
)
