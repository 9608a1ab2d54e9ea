"""`zg devnet`: a local network for development and tests."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
import cyclopts
from anyio.lowlevel import EventLoopToken

from zg_async.background import Background
from zg_async.cli.output import JSON_VERSION, UsageError
from zg_async.errors import ConfigError

if TYPE_CHECKING:
    from zg_async.devnet.network import Attachment, Devnet

OWNER_KEY_VARIABLE = "ZG_OWNER_KEY"
app = cyclopts.App(name="devnet", help="A local network: chain, contracts, providers that really train, inference.")


@app.command
async def up(
    *,
    providers: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0, lte=100))] = 1,
    engine: Literal["pyevm", "anvil"] = "pyevm",
    port: int | None = None,
    block_time: float | None = None,
    lock_time: int = 86_400,
    ack_timeout: float = 48 * 3600.0,
    train_seconds: float = 0.0,
    limits: Literal["default", "off"] = "default",
    ticks: Literal["fast", "real"] = "fast",
    attach: str | None = None,
    ledger_ca: str | None = None,
    inference_ca: str | None = None,
    fine_tuning_ca: str | None = None,
    flow_ca: str | None = None,
    storage_nodes: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0, lte=64))] = 0,
    shards: str = "1",
    indexer_port: int = 0,
    owner_key_file: Path | None = None,
    state_dir: Path | None = None,
    json_: Annotated[bool, cyclopts.Parameter(name="--json", negative="")] = False,
    until_stdin_closes: Annotated[bool, cyclopts.Parameter(show=False, negative="")] = False,
) -> int:
    """Run a local network until SIGINT or SIGTERM.

    Prints one JSON line on standard output when everything is ready, and what a person wants to know on standard error.

    Parameters
    ----------
    providers
        How many fine-tuning providers, each with an inference side.
    engine
        The chain: the embedded one, or anvil if it is installed.
    port
        Of the chain's JSON-RPC. Default: 8545 if it is free, else any.
    block_time
        Seconds between blocks. Default: each transaction gets its block at once.
    lock_time
        Seconds a refund stays locked, 3600 to 604800.
    ack_timeout
        Seconds to acknowledge a delivery in; half the lock time is the other bound.
    train_seconds
        The least time a training takes.
    limits
        Whether providers limit the rate of quote, upload and download as real ones do.
    ticks
        How often provider workers look: every 0.2 s, or every 60 s as real ones.
    attach
        JSON-RPC URL of a chain whose contracts stand already; needs the three addresses and the owner's key.
    ledger_ca
        LedgerManager, with --attach.
    inference_ca
        InferenceServing, with --attach.
    fine_tuning_ca
        FineTuningServing, with --attach.
    flow_ca
        The storage flow contract, with --attach and --storage-nodes. Default: a new one.
    storage_nodes
        How many storage nodes, with an indexer before them.
    shards
        Into how many shards the nodes divide the segments (a power of two; nodes are dealt to them in turn), or each
        node's own as shard/shards, such as 0/2,1/2,0/1.
    indexer_port
        Of the indexer. Default: any.
    owner_key_file
        File with the owner's private key in hex. Default: the variable ZG_OWNER_KEY.
    state_dir
        Where providers keep their files. Default: a temporary folder, removed at the end.
    json_
        Print nothing but the JSON line.
    until_stdin_closes
        End also when standard input is closed: for programs that start this one.
    """
    from zg_async.devnet.network import start_devnet  # chain, numpy and all: only when they are wanted

    attachment = None
    if attach is not None:
        attachment = _attachment(attach, ledger_ca, inference_ca, fine_tuning_ca, owner_key_file, flow_ca)
    elif ledger_ca or inference_ca or fine_tuning_ca or flow_ca or owner_key_file:
        raise UsageError("contract addresses and an owner's key belong to --attach")
    background = Background()
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, anyio.CancelScope() as scope:
            background.start(_stop_on_signal(signals, scope), name="devnet signals")
            if until_stdin_closes:
                _stop_on_eof(scope)
            async with start_devnet(
                providers=providers,
                engine=engine,
                port=port,
                block_time=block_time,
                lock_time=lock_time,
                ack_timeout=ack_timeout,
                train_seconds=train_seconds,
                limits=limits,
                ticks=ticks,
                storage_nodes=storage_nodes,
                shards=shards,
                indexer_port=indexer_port,
                state_dir=state_dir,
                attach=attachment,
            ) as devnet:
                if not json_:
                    print(_summary(devnet), file=sys.stderr)
                print(json.dumps({"version": JSON_VERSION, "kind": "devnet", **devnet.describe()}), flush=True)
                await anyio.sleep_forever()
    finally:
        await background.aclose()
    return 0


async def _stop_on_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return


def _stop_on_eof(scope: anyio.CancelScope) -> None:
    token = anyio.lowlevel.current_token()
    threading.Thread(target=_read_to_eof, args=(scope, token), daemon=True).start()  # mustn't hold up the end


def _read_to_eof(scope: anyio.CancelScope, token: EventLoopToken) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(anyio.RunFinishedError):
        anyio.from_thread.run_sync(scope.cancel, token=token)


def _attachment(
    url: str,
    ledger: str | None,
    inference: str | None,
    fine_tuning: str | None,
    key_file: Path | None,
    flow: str | None = None,
) -> "Attachment":
    from zg_async.devnet.network import Attachment

    if not (ledger and inference and fine_tuning):
        raise UsageError("--attach needs --ledger-ca, --inference-ca and --fine-tuning-ca")
    return Attachment(
        rpc_url=url,
        ledger=ledger,
        inference=inference,
        fine_tuning=fine_tuning,
        owner_key=_owner_key(key_file),
        flow=flow,
    )


def _owner_key(key_file: Path | None) -> bytes:
    try:
        text = os.environ.get(OWNER_KEY_VARIABLE, "") if key_file is None else key_file.read_text()
    except OSError as error:
        raise ConfigError(f"the owner's key file can't be read: {error.strerror}") from error
    if not text.strip():
        raise ConfigError("the owner's key is missing", hint=f"Give --owner-key-file, or set {OWNER_KEY_VARIABLE}")
    try:
        key = bytes.fromhex(text.strip().removeprefix("0x"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError("the owner's key isn't 32 bytes in hex")
    return key


def _summary(devnet: "Devnet") -> str:
    lines = [f"0G devnet   chain {devnet.chain_id}   {devnet.rpc_url}"]
    lines += [f"  provider  {node.address}  {node.url}" for node in devnet.providers]
    if devnet.storage is not None:
        lines.append(f"  storage   {len(devnet.storage.nodes)} nodes   indexer {devnet.storage.indexer.url}")
    lines += [f"  account   {account.address}" for account in devnet.accounts[:3]]
    lines.append(f"  control   {devnet.control.url}")
    lines.append("  keys are public, only for development; Ctrl-C ends it")
    return "\n".join(lines)
