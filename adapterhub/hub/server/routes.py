"""All addresses of the server, in the order in which they are tried."""

from __future__ import annotations

from adapterhub.hub.server import (
    browsing,
    committing,
    discussions,
    downloads,
    history,
    identity,
    infos,
    lfs,
    listing,
    repos,
    status,
    xet,
)
from adapterhub.hub.server.routing import Route

ROUTES: tuple[Route, ...] = (
    *status.ROUTES,
    *committing.ROUTES,
    *lfs.ROUTES,
    *xet.ROUTES,
    *downloads.ROUTES,
    *identity.ROUTES,
    *repos.ROUTES,
    *listing.ROUTES,
    *browsing.ROUTES,
    *history.ROUTES,
    *discussions.ROUTES,
    *infos.ROUTES,  # the last: a bare `{repo}` would fit what has words behind the id
)
