"""`zg serve` and `zg router-serve`: a local OpenAI-compatible server."""

import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
import anyio.to_thread
from cyclopts import Parameter

from zg_async.errors import ConfigError
from zg_async.units import parse_amount

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.serve.upstreams import Upstream

_KEY: Final = "ZG_PRIVATE_KEY"
_TOKEN: Final = "ZG_SERVE_TOKEN"
_SPEND_CAP: Final = "1"
Network = Annotated[str, Parameter(name="--network")]


async def serve(
    *,
    provider: Annotated[str, Parameter(name="--provider")],
    network: Network,
    model: Annotated[str | None, Parameter(name="--model")] = None,
    rpc: Annotated[str | None, Parameter(name="--rpc")] = None,
    host: Annotated[str, Parameter(name="--host")] = "127.0.0.1",
    port: Annotated[int, Parameter(name="--port")] = 3000,
    spend_cap: Annotated[str, Parameter(name="--spend-cap")] = _SPEND_CAP,
    verify: Annotated[Literal["bytes", "signer", "off"], Parameter(name="--verify")] = "bytes",
    origin: Annotated[Sequence[str], Parameter(name="--allow-origin")] = (),
    token_file: Annotated[Path | None, Parameter(name="--token-file")] = None,
    fine_tuning: Annotated[bool, Parameter(name="--fine-tuning")] = True,
) -> int:
    """Serve one provider as an OpenAI API on this machine.

    The wallet's key is read from ZG_PRIVATE_KEY; ZG_SERVE_TOKEN sets the clients' token, else one is made and shown.

    Args:
        provider: The provider's address.
        network: mainnet, testnet or local.
        model: The model to ask for instead of the service's own.
        rpc: An RPC endpoint instead of the network's.
        host: The address to listen on. Other machines can reach anything but 127.0.0.1.
        port: The port; 0 takes a free one.
        spend_cap: The most that may be spent while it runs, in 0G; "none" for no cap.
        verify: How answers have to be proven: by their bytes, by the signer alone, or not at all.
        origin: A web origin that may use it; may be repeated.
        token_file: Write the token there instead of showing it.
        fine_tuning: Serve the fine-tuning API too; it drives this wallet's jobs, which only one program can do.
    """
    from zg_async.serve.upstreams import ProviderUpstream, parse_provider

    address = parse_provider(provider).address
    upstreams = [ProviderUpstream(address=address, model=model)]
    options = {"spend_cap": spend_cap, "verify": verify, "origins": origin}
    return await _run(network, rpc, upstreams, host, port, token_file, 60.0, options, fine_tuning=fine_tuning)


async def router_serve(
    *,
    network: Network,
    add_provider: Annotated[Sequence[str], Parameter(name="--add-provider")] = (),
    add_endpoint: Annotated[Sequence[str], Parameter(name="--add-endpoint")] = (),
    rpc: Annotated[str | None, Parameter(name="--rpc")] = None,
    host: Annotated[str, Parameter(name="--host")] = "127.0.0.1",
    port: Annotated[int, Parameter(name="--port")] = 3000,
    cache_duration: Annotated[float, Parameter(name="--cache-duration")] = 60.0,
    spend_cap: Annotated[str, Parameter(name="--spend-cap")] = _SPEND_CAP,
    verify: Annotated[Literal["bytes", "signer", "off"], Parameter(name="--verify")] = "bytes",
    origin: Annotated[Sequence[str], Parameter(name="--allow-origin")] = (),
    token_file: Annotated[Path | None, Parameter(name="--token-file")] = None,
) -> int:
    """Serve several providers and endpoints as one OpenAI API; the next takes over when one fails.

    The wallet's key is read from ZG_PRIVATE_KEY; ZG_SERVE_TOKEN sets the clients' token, else one is made and shown.

    Args:
        network: mainnet, testnet or local.
        add_provider: address or address,priority; may be repeated. Lower priorities are asked first; 100 if not given.
        add_endpoint: id,url,env:NAME[,model[,priority]] with the key in variable NAME; may be repeated. Priority 50.
        rpc: An RPC endpoint instead of the network's.
        host: The address to listen on. Other machines can reach anything but 127.0.0.1.
        port: The port; 0 takes a free one.
        cache_duration: Seconds for which one that failed isn't asked.
        spend_cap: The most that may be spent while it runs, in 0G; "none" for no cap.
        verify: How answers have to be proven: by their bytes, by the signer alone, or not at all.
        origin: A web origin that may use it; may be repeated.
        token_file: Write the token there instead of showing it.
    """
    from zg_async.serve.upstreams import parse_endpoint, parse_provider

    upstreams: list[Upstream] = [parse_provider(text) for text in add_provider]
    upstreams += [parse_endpoint(text, dict(os.environ)) for text in add_endpoint]
    options = {"spend_cap": spend_cap, "verify": verify, "origins": origin}
    return await _run(network, rpc, upstreams, host, port, token_file, cache_duration, options)


async def _run(
    network: str,
    rpc: str | None,
    upstreams: "Sequence[Upstream]",
    host: str,
    port: int,
    token_file: Path | None,
    pause: float,
    options: dict[str, Any],
    *,
    fine_tuning: bool = False,
) -> int:
    from zg_async.jobs.runner import JobRunner
    from zg_async.serve.proxy import Proxy, serving

    cap = options.pop("spend_cap")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(_broker(network, rpc))
        runner = await stack.enter_async_context(JobRunner(broker)) if fine_tuning else None
        proxy = Proxy(
            broker,
            upstreams,
            runner=runner,
            token=os.environ.get(_TOKEN) or None,
            hosts=() if host in ("127.0.0.1", "::1", "localhost") else (host,),
            spend_cap=None if cap == "none" else parse_amount(cap),
            pause=pause,
            **options,
        )
        async with serving(proxy, host=host, port=port) as url:
            print(f"OPENAI_BASE_URL={url}", flush=True)
            if token_file is not None:
                await anyio.to_thread.run_sync(_write_secret, token_file, proxy.token)
            elif _TOKEN not in os.environ:
                print(f"OPENAI_API_KEY={proxy.token}", flush=True)
            if cap == "none":
                print("no spend cap: clients may spend what the provider's account holds", file=sys.stderr)
            await anyio.sleep_forever()
    return 0


def _broker(network: str, rpc: str | None) -> "Broker":
    from zg_async.broker import create_broker

    key = os.environ.get(_KEY)
    if not key:
        raise ConfigError("no wallet is given", hint=f"Put its private key into the environment variable {_KEY}")
    return create_broker(key, network, rpc_url=rpc)


def _write_secret(path: Path, text: str) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise ConfigError(f"the token can't be written: {error.strerror}") from error
