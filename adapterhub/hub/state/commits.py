"""History: commits, logs, files of a revision."""

from __future__ import annotations


class Commits:
    """See Hub."""
