"""`python -m checkpoint_store [URL]`."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from ._command.command import main


def _terminate(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
