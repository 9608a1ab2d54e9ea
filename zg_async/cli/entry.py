"""Where the `zg` script begins: Ctrl-C is understood from the first import on."""

import sys


def entry() -> None:
    """Run `zg`."""
    try:
        from zg_async.cli.main import main

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
