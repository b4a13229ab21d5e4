from __future__ import annotations

import sys
from pathlib import Path

# The oracle of the merge formula is shared with the kernels' tests.
sys.path.append(str(Path(__file__).parents[1] / "kernels"))
