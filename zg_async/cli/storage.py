"""`zg upload`, `zg download`, `zg storage`: files in 0G Storage."""

import json
import os
import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import anyio
import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from zg_async.background import Background
from zg_async.cli.render import size_text
from zg_async.clock import SystemClock
from zg_async.errors import ConfigError
from zg_async.text import printable

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.transport.storage_settings import StorageProgress

T = TypeVar("T")
app = cyclopts.App(name="storage", help="0G Storage: roots of files.")
_REDRAW: Final = 0.1
_KEYS: Final = ("ZG_PRIVATE_KEY", "PRIVATE_KEY")
_RPC: Final = ("RPC_ENDPOINT", "ZG_RPC_ENDPOINT", "RPC_URL")
_LOCAL: Final = ("http://127.0.0.1", "http://localhost", "http://[::1]")
_STAGES: Final[Mapping[str, str]] = {
    "hashing": "hashing",
    "looking": "looking for nodes",
    "paying": "paying the storage fee",
    "entry": "waiting for the nodes to see it",
    "sending": "sending",
    "finality": "waiting for confirmation",
    "fetching": "fetching",
    "checking": "checking",
    "done": "done",
}
Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


async def upload(
    *,
    data_path: Path,
    network: str | None = None,
    rpc: str | None = None,
    indexer: str | None = None,
    flow_ca: str | None = None,
    private_key_file: Path | None = None,
    replicas: int | None = None,
    fragment_size: int | None = None,
    public: Flag = False,
    encryption_key_file: Path | None = None,
    json_: Json = False,
) -> int:
    """Store a file or a folder in 0G Storage.

    Parameters
    ----------
    data_path
        The file or folder.
    network
        mainnet, testnet, testnet-dev or local. Default: NETWORK, else local for an endpoint on this machine.
    rpc
        Chain endpoint. Default: RPC_ENDPOINT, ZG_RPC_ENDPOINT or RPC_URL, else the network's.
    indexer
        Storage indexer. Default: ZG_INDEXER_URL, else the network's.
    flow_ca
        The flow contract that is paid. Default: the network's.
    private_key_file
        File with the private key in hex. Default: the variable ZG_PRIVATE_KEY or PRIVATE_KEY.
    replicas
        How often each part must be held.
    fragment_size
        Bytes of an entry at most; larger files get several roots.
    public
        Agree that everybody can read it for ever; needed on public networks.
    encryption_key_file
        File with 32 bytes in hex to encrypt with.
    json_
        Print one JSON object as last line.
    """
    key = _private_key(private_key_file)
    secret = None if encryption_key_file is None else _hex_file(encryption_key_file, "encryption key")
    async with await _broker(network, rpc, indexer, flow_ca, key) as broker:
        progress = _progress()
        stored = await _shown(
            broker.storage.upload(
                data_path,
                public=public,
                replicas=replicas,
                fragment_size=fragment_size,
                encryption_key=secret,
                progress=progress,
            ),
            progress,
        )
    _note(f"{size_text(stored.size)} held by {len(stored.nodes)} nodes")
    print(json.dumps(stored.to_json()) if json_ else "\n".join(stored.roots))
    return 0


async def download(
    *,
    data_path: Path,
    data_root: str,
    network: str | None = None,
    rpc: str | None = None,
    indexer: str | None = None,
    size: int | None = None,
    folder: Flag = False,
    encryption_key_file: Path | None = None,
    json_: Json = False,
) -> int:
    """Fetch a file from 0G Storage and prove it.

    Parameters
    ----------
    data_path
        Where it goes; nothing is overwritten.
    data_root
        Its root; for a file in fragments all roots, joined by commas.
    network
        mainnet, testnet, testnet-dev or local. Default: NETWORK, else local for an endpoint on this machine.
    rpc
        Chain endpoint. Default: RPC_ENDPOINT, ZG_RPC_ENDPOINT or RPC_URL, else the network's.
    indexer
        Storage indexer. Default: ZG_INDEXER_URL, else the network's.
    size
        Bytes it must have, if known.
    folder
        The root is a folder's.
    encryption_key_file
        File with the 32 bytes in hex that it was encrypted with.
    json_
        Print one JSON object as last line.
    """
    secret = None if encryption_key_file is None else _hex_file(encryption_key_file, "encryption key")
    async with await _broker(network, rpc, indexer, None, None) as broker:
        progress = _progress()
        work = (
            broker.storage.download_directory(data_root, data_path, progress=progress)
            if folder
            else broker.storage.download(data_root, data_path, size=size, encryption_key=secret, progress=progress)
        )
        fetched = await _shown(work, progress)
    _note(f"{size_text(fetched.size)} proved")
    print(json.dumps(fetched.to_json()) if json_ else fetched.path)
    return 0


@app.command
async def root(file: Path, *, json_: Json = False) -> int:
    """Compute a file's storage root. Asks nobody.

    Parameters
    ----------
    file
        The file.
    json_
        Print one JSON object as last line.
    """
    from zg_async.transport.file_tree import hash_file

    progress = _progress()
    tree = await _shown(hash_file(file, progress=progress), progress)
    print(json.dumps({"root": tree.root_hash, "size": tree.size}) if json_ else tree.root_hash)
    return 0


# --- what they share --------------------------------------------------------------------------------------------------


def _progress() -> "StorageProgress":
    from zg_async.transport.storage_settings import StorageProgress

    return StorageProgress()


async def _broker(
    network: str | None, rpc: str | None, indexer: str | None, flow: str | None, key: str | None
) -> "Broker":
    from zg_async.broker import create_broker

    url = rpc or _first(_RPC)
    name = network or os.environ.get("NETWORK") or ("local" if (url or "").startswith(_LOCAL) else None)
    if name is None:
        raise ConfigError("no network was named", hint="Give --network, or set NETWORK; there is no default")
    return create_broker(
        key,
        name,
        rpc_url=url,
        indexer_url=indexer or os.environ.get("ZG_INDEXER_URL") or None,
        contracts={"flow": flow} if flow is not None else None,
    )


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _private_key(path: Path | None) -> str:
    if path is not None:
        return _read(path, "private key").strip()
    key = _first(_KEYS)
    if key is None:
        raise ConfigError("the private key is missing", hint=f"Set {_KEYS[0]}, or give --private-key-file")
    return key.strip()


def _hex_file(path: Path, what: str) -> bytes:
    try:
        return bytes.fromhex(_read(path, what).strip().removeprefix("0x"))
    except ValueError:
        raise ConfigError(f"the {what}'s file isn't hex") from None


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the {what}'s file {printable(str(path))} can't be read") from None


async def _shown(work: Awaitable[T], state: Any) -> T:
    """Show a bar on standard error while something goes on; nothing if that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return await work
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    background = Background()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_STAGES["hashing"], total=None)

        async def redraw() -> None:
            clock = SystemClock()
            while True:
                text = _STAGES[state.stage]
                bar.update(task, description=text, completed=state.bytes_done, total=state.bytes_total)
                await clock.sleep(_REDRAW)

        background.start(redraw(), name="progress bar")
        try:
            return await work
        finally:
            with anyio.CancelScope(shield=True):
                await background.aclose()


def _note(text: str) -> None:
    print(text, file=sys.stderr)
