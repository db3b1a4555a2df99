"""What the tests of the local filesystem share."""

from __future__ import annotations

import os
from pathlib import Path


def temporaries(root: Path) -> list[str]:
    """The names of the files under `root` that are still being written, or were left behind."""
    return sorted(os.listdir(root / ".tmp"))
