"""What tests need of the machine they run on, and how long they wait for it."""

from __future__ import annotations

import os
import sys

import pytest

HEAVY = os.environ.get("CHECKPOINT_STORE_HEAVY") == "1"
"""Whether to run all cases of the tests that otherwise try a sample of them."""

TIMEOUT = 300
"""Seconds until what hangs fails the test. Nothing is expected to take nearly as long."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

forks_beside_threads = pytest.mark.filterwarnings(
    # Python 3.12 and later give this warning of every fork in a process that has threads.
    r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"
)
