"""All addresses of the server, in the order in which they are tried."""

from __future__ import annotations

from adapterhub.hub.server import committing, downloads, lfs, status, xet
from adapterhub.hub.server.routing import Route

ROUTES: tuple[Route, ...] = (
    *status.ROUTES,
    *committing.ROUTES,
    *lfs.ROUTES,
    *xet.ROUTES,
    *downloads.ROUTES,
)
