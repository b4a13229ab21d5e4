"""The server: routes over `hub.state` and `hub.xet`, speaking the Hub's protocol.

    serving.py      the process: its socket, start and end
    connections.py  which of them end, so that there is room for others
    app.py          ASGI: route, call, errors; exchange.py watches one request and its answer
    routing.py      templates over raw paths; routes.py: all of them, in order
    call.py         one request: who asks, for what; signin.py: the Authorization header
    bodies.py       what it sends; load.py: what it waits for, that others may go on meanwhile
    service.py      what all handlers share
    replies.py      JSON, error headers, paging; logs.py, metrics.py, status.py: what is observed

    identity.py     whoami, auth-check, validate-yaml
    repos.py        create, delete, move, settings
    infos.py        one repository; listing.py: many; facts.py, cards.py: what its files say
    browsing.py     folders and paths; history.py: branches, tags, commits
    discussions.py  pull requests, and their diffs.py
    indexing.py     adapters on main become versions in the registry; takeover.py: how

and the transfers: downloads.py, uploads.py, lfs.py, parts.py, committing.py, xet.py, signing.py.
"""
