"""Where the `zg` script begins: Ctrl-C is understood from the first import on.

What needs no command is answered from a text that was made beforehand, before anything large is imported.
"""

import sys


def entry() -> None:
    """Run `zg`."""
    try:
        if not _quick(sys.argv[1:]):
            _dump_no_core()
            from zg_async.cli.main import main

            main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _dump_no_core() -> None:
    """Keep keys out of the file that a crash would leave."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _quick(words: list[str]) -> bool:
    """Answer `zg`, `zg --help`, `zg --version` and a shell that completes; False: it is none of them."""
    if words in ([], ["--help"], ["-h"]):
        print(_help(), end="")
    elif words == ["--version"]:
        from zg_async import __version__

        print(f"zg-async {__version__}")
    elif words[:2] == ["__complete", "--"]:
        from zg_async.cli.completing import answer

        answer(words[2:])
    else:
        return False
    return True


def _help() -> str:
    with open(__file__.removesuffix("entry.py") + "texts/help.txt", encoding="utf-8") as file:
        return file.read()
