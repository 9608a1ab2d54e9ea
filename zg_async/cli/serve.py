"""`zg serve` and `zg router-serve`: a local OpenAI-compatible server."""

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
import anyio.to_thread
from cyclopts import Parameter

from zg_async.cli.opening import PAYING, Paying, open_broker
from zg_async.cli.output import note, print_json
from zg_async.paths import write_private
from zg_async.units import parse_amount

if TYPE_CHECKING:
    from zg_async.serve.upstreams import Upstream

_TOKEN: Final = "ZG_SERVE_TOKEN"
_SPEND_CAP: Final = "1"


async def serve(
    *,
    provider: Annotated[str, Parameter(name="--provider")],
    model: Annotated[str | None, Parameter(name="--model")] = None,
    host: Annotated[str, Parameter(name="--host")] = "127.0.0.1",
    port: Annotated[int, Parameter(name="--port")] = 3000,
    spend_cap: Annotated[str, Parameter(name="--spend-cap")] = _SPEND_CAP,
    verify: Annotated[Literal["bytes", "signer", "off"], Parameter(name="--verify")] = "bytes",
    origin: Annotated[Sequence[str], Parameter(name="--allow-origin")] = (),
    token_file: Annotated[Path | None, Parameter(name="--token-file")] = None,
    fine_tuning: Annotated[bool, Parameter(name="--fine-tuning", negative="--no-fine-tuning")] = True,
    where: Paying = PAYING,
) -> int:
    """Serve one provider as an OpenAI API on this machine.

    ZG_SERVE_TOKEN sets the clients' token, else one is made and shown.

    Args:
        provider: The provider's address.
        model: The model to ask for instead of the service's own.
        host: The address to listen on. Other machines can reach anything but 127.0.0.1.
        port: The port; 0 takes a free one.
        spend_cap: The most that may be spent while it runs, in 0G; "none" for no cap.
        verify: How answers have to be proven: by their bytes, by the signer alone, or not at all.
        origin: A web origin that may use it; may be repeated.
        token_file: Write the token there instead of showing it.
        fine_tuning: Serve the fine-tuning API too; it drives this wallet's jobs, which only one program can do.
        where: Network, wallet and output.
    """
    from zg_async.serve.upstreams import ProviderUpstream, parse_provider

    address = parse_provider(provider).address
    upstreams = [ProviderUpstream(address=address, model=model)]
    options = {"spend_cap": spend_cap, "verify": verify, "origins": origin}
    return await _run(where, upstreams, host, port, token_file, options, fine_tuning=fine_tuning)


async def router_serve(
    *,
    add_provider: Annotated[Sequence[str], Parameter(name="--add-provider")] = (),
    add_endpoint: Annotated[Sequence[str], Parameter(name="--add-endpoint")] = (),
    host: Annotated[str, Parameter(name="--host")] = "127.0.0.1",
    port: Annotated[int, Parameter(name="--port")] = 3000,
    cache_duration: Annotated[float, Parameter(name="--cache-duration")] = 60.0,
    request_timeout: Annotated[float, Parameter(name="--request-timeout")] = 60.0,
    default_provider_priority: Annotated[int, Parameter(name="--default-provider-priority")] = 100,
    default_endpoint_priority: Annotated[int, Parameter(name="--default-endpoint-priority")] = 50,
    spend_cap: Annotated[str, Parameter(name="--spend-cap")] = _SPEND_CAP,
    verify: Annotated[Literal["bytes", "signer", "off"], Parameter(name="--verify")] = "bytes",
    origin: Annotated[Sequence[str], Parameter(name="--allow-origin")] = (),
    token_file: Annotated[Path | None, Parameter(name="--token-file")] = None,
    where: Paying = PAYING,
) -> int:
    """Serve several providers and endpoints as one OpenAI API; the next takes over when one fails.

    ZG_SERVE_TOKEN sets the clients' token, else one is made and shown.

    Args:
        add_provider: address or address,priority; may be repeated. Lower priorities are asked first; 100 if not given.
        add_endpoint: id,url,env:NAME[,model[,priority]] with the key in variable NAME; may be repeated. Priority 50.
        host: The address to listen on. Other machines can reach anything but 127.0.0.1.
        port: The port; 0 takes a free one.
        cache_duration: Seconds for which one that failed isn't asked.
        request_timeout: Seconds an upstream may take.
        default_provider_priority: The priority of providers given without one.
        default_endpoint_priority: The priority of endpoints given without one.
        spend_cap: The most that may be spent while it runs, in 0G; "none" for no cap.
        verify: How answers have to be proven: by their bytes, by the signer alone, or not at all.
        origin: A web origin that may use it; may be repeated.
        token_file: Write the token there instead of showing it.
        where: Network, wallet and output.
    """
    from zg_async.serve.upstreams import parse_endpoint, parse_provider

    upstreams: list[Upstream] = [parse_provider(text, priority=default_provider_priority) for text in add_provider]
    environment = dict(os.environ)
    upstreams += [parse_endpoint(t, environment, priority=default_endpoint_priority) for t in add_endpoint]
    options = {"spend_cap": spend_cap, "verify": verify, "origins": origin, "pause": cache_duration}
    return await _run(where, upstreams, host, port, token_file, options, timeout_seconds=request_timeout)


async def _run(
    where: Paying,
    upstreams: "Sequence[Upstream]",
    host: str,
    port: int,
    token_file: Path | None,
    options: dict[str, Any],
    *,
    fine_tuning: bool = False,
    timeout_seconds: float | None = None,
) -> int:
    from zg_async.jobs.runner import JobRunner
    from zg_async.serve.proxy import Proxy, serving
    from zg_async.transport.http import HttpSettings

    cap = options.pop("spend_cap")
    more: dict[str, Any] = {}
    if timeout_seconds is not None:
        more["http"] = HttpSettings(idle_timeout=timeout_seconds, control_timeout=timeout_seconds)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(open_broker(where, **more))
        runner = await stack.enter_async_context(JobRunner(broker)) if fine_tuning else None
        proxy = Proxy(
            broker,
            upstreams,
            runner=runner,
            token=os.environ.get(_TOKEN) or None,
            hosts=() if host in ("127.0.0.1", "::1", "localhost") else (host,),
            spend_cap=None if cap == "none" else parse_amount(cap),
            **options,
        )
        async with serving(proxy, host=host, port=port) as url:
            if token_file is not None:
                await anyio.to_thread.run_sync(_write_secret, token_file, proxy.token)
            shown = proxy.token if token_file is None and _TOKEN not in os.environ else None
            if where.as_json:
                print_json("serving", {"url": url, "token": shown, "spend_cap": cap})
            else:
                print(f"OPENAI_BASE_URL={url}", flush=True)
                if shown is not None:
                    print(f"OPENAI_API_KEY={shown}", flush=True)
            if cap == "none":
                note(where, "no spend cap: clients may spend what the provider's account holds")
            await anyio.sleep_forever()
    return 0


def _write_secret(path: Path, text: str) -> None:
    write_private(path, f"{text}\n".encode(), what="token", replace=True)
