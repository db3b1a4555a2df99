"""What a test needs of the machine it runs on, and how long it waits there."""

from __future__ import annotations

import os
import sys

import pytest

HEAVY = os.environ.get("CHECKPOINT_STORE_HEAVY") == "1"
"""Whether those tests run in full of which there is a sample otherwise."""

TIMEOUT = 300
"""Seconds until what hangs fails the test. Nothing is expected to take nearly as long."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

forks_beside_threads = pytest.mark.filterwarnings(
    # Python 3.12 and later say so of every fork beside a thread. That it works is tested.
    r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"
)
