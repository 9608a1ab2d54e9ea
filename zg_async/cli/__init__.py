"""The command line: parses, calls one manager or runner method, renders. No logic of its own."""

import sys


def entry() -> None:
    """Run `zg`. Ctrl-C is understood from the first import on."""
    try:
        from zg_async.cli.main import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
