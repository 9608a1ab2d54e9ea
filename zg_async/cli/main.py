"""`zg`: the command line of zg_async."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import cyclopts

from zg_async import __version__
from zg_async.cli import adapter, dataset, demo, devnet, jobs, jobs_admin, serve, storage
from zg_async.cli.render import error_line, exit_code
from zg_async.errors import ZgError

app = cyclopts.App(name="zg", help="Fine-tune and chat on the 0G Compute Network.", version=__version__)
app.command(devnet.app)
app.command(dataset.app)
app.command(adapter.app)
app.command(storage.app)
app.command(storage.upload, name="upload")
app.command(storage.download, name="download")
app.command(demo.demo, name="demo")
app.command(jobs_admin.app)
app.command(jobs_admin.doctor, name="doctor")
app.command(jobs.run, name="run")
app.command(jobs.plan, name="plan")
app.command(jobs.batch, name="batch")
app.command(serve.serve, name="serve")
app.command(serve.router_serve, name="router-serve")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: The words behind `zg`.

    Returns:
        0 ok, 1 failed job, 2 usage, 3 network, 4 insufficient funds, 5 verification, 6 timeout, 130 interrupted.
    """
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError:
        return 2
    try:
        result = command(*bound.args, **bound.kwargs)
        if isinstance(result, Coroutine):
            result = asyncio.run(_interruptible(result))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ZgError as e:
        print(error_line(e), file=sys.stderr)
        return exit_code(e)
    except TimeoutError:
        print("error: timed out", file=sys.stderr)
        return 6
    return int(result or 0)


async def _interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


if __name__ == "__main__":
    main()
