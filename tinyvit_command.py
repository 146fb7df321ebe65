"""The `tinyvit` command begins here, outside the package: Ctrl-C is answered while that is imported, too."""

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run `tinyvit.cli.main` and exit with its code."""
    for number in SIGNALS:
        signal.signal(number, _leave)
    from tinyvit import cli

    code = cli.main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # all is said and kept: one more Ctrl-C shall not change the exit code
    sys.exit(code)


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"tinyvit: interrupted\n")
    os._exit(128 + number)  # no exception, which an import that is under way might swallow
