"""Blobs that the hub's server keeps here: what hub.db says of them, read and never written.

The store knows nothing of the hub but this: a database that, in a view `gc_roots (digest)`, names
what must stay.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from adapterhub.digest import is_digest
from adapterhub.errors import IntegrityError

_SECONDS = 60.0


def read(path: Path) -> set[str]:
    """Digests that must stay; none where there is no hub. Raises IntegrityError."""
    if not os.path.lexists(path):
        return set()
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            connection.execute(f"PRAGMA busy_timeout = {int(_SECONDS * 1000)}")
            connection.execute("BEGIN")
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return set()  # whoever made it has not come to its first table
            found = {row[0] for row in connection.execute("SELECT digest FROM gc_roots")}
    except sqlite3.Error as error:
        raise IntegrityError(
            f"{path} cannot be read ({error}), so nobody knows what the hub needs",
            remedy="correct its permissions, or restore it from a backup",
        ) from error
    wrong = [each for each in found if not is_digest(each)]
    if wrong:
        raise IntegrityError(
            f"{path} names {wrong[0]!r}, which is no digest", remedy="restore it from a backup"
        )
    return found
