from __future__ import annotations

import sys
from pathlib import Path

# The programs of tools/ import each other by name, as they do when run as scripts.
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
