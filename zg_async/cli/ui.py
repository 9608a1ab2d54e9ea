"""`zg ui`: the status page in a browser on this machine."""

from pathlib import Path
from typing import Annotated, Final

import anyio
import anyio.to_thread
import cyclopts
from cyclopts import Parameter

from zg_async.cli.opening import HERE, Where, open_broker
from zg_async.cli.output import note, print_json
from zg_async.paths import write_private

app = cyclopts.App(name="ui", help="Show jobs, loss curves, deadlines, spending and adapters on a local page.")
web_ui = cyclopts.App(name="web-ui", help=app.help, show=False)
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@app.default
@app.command(name="start-web")
@web_ui.default
@web_ui.command(name="start-web")
async def start_web(
    *,
    port: Annotated[int, Parameter(name=("--port", "-p"))] = 3090,
    host: Annotated[str, Parameter(name=("--host", "-H"))] = "localhost",
    token_file: Path | None = None,
    open_browser: Annotated[bool, Parameter(name="--open")] = False,
    where: Where = HERE,
) -> None:
    """Serve the page until Ctrl-C. It only reads: the wallet's journal, and providers' logs.

    Args:
        port: The port; 0 takes a free one.
        host: The address to listen on. Other machines can reach anything but loopback.
        token_file: Write the address with its token there instead of showing it.
        open_browser: Open it in the browser, too.
        where: Network and wallet.
    """
    from zg_async.serve.gate import listening
    from zg_async.serve.status import StatusPage

    async with open_broker(where) as broker:
        page = StatusPage(broker, host=host)
        async with listening(page.app(), host=host, port=port) as url:
            address = f"{url}/#token={page.token}"
            if token_file is not None:
                await anyio.to_thread.run_sync(_write, token_file, address)
            if where.as_json:
                print_json("status_page", {"url": url if token_file else address})
            else:
                print(url if token_file else address, flush=True)
            if host not in _LOOPBACK:
                note(where, "other machines can reach this page; its token crosses the network unencrypted")
            if open_browser:
                import webbrowser

                await anyio.to_thread.run_sync(webbrowser.open, address)
            note(where, "Ctrl-C ends it")
            await anyio.sleep_forever()


def _write(path: Path, address: str) -> None:
    write_private(path, f"{address}\n".encode(), what="address", replace=True)
