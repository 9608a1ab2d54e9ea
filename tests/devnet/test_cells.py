"""Notebooks: each cell awaits at its top level, in a task of its own; blocking calls work inside the running loop."""

import ast
import asyncio
import inspect
from typing import Any

import pytest

from tests.devnet.conftest import new_key
from zg_async import HttpSettings, ProviderLimits

CELLS = (
    """
from zg_async import create_broker, sync
broker = await create_broker(KEY, NETWORK, **OPTIONS).__aenter__()
""",
    'await broker.ledger.add_ledger("4"); await broker.ledger.transfer_fund(PROVIDER, "inference", "2")',
    "accounts = [await broker.inference.get_account(provider) for provider in (PROVIDER,)]",
    """
pieces = []
async with broker.inference.chat_stream(PROVIDER, "Hello", max_tokens=5) as stream:
    async for delta in stream:
        pieces.append(delta.content)
    answer = await stream.answer()
""",
    """
blocking = sync.create_broker(KEY, NETWORK, **OPTIONS)
again = blocking.inference.chat(PROVIDER, "Hello", max_tokens=5)
streamed = "".join(delta.content for delta in blocking.inference.chat_stream(PROVIDER, "Hello", max_tokens=5))
balance = blocking.ledger.get_ledger()["total_balance"]
""",
    "balance_here = (await broker.ledger.get_ledger()).total_balance",
    "blocking.close(); await broker.aclose()",
)


async def run_cell(cell: str, names: dict[str, Any]) -> None:
    """Run it as notebooks do: compiled with top-level await, and what it awaits in a new task of the one loop."""
    result = eval(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(result):
        await asyncio.get_running_loop().create_task(result)


@pytest.mark.slow
@pytest.mark.goal("NBK-02", part="top-level await")
async def test_cells_share_a_broker_and_the_blocking_twin_works_beside_it(devnet, provider, tmp_path):
    http = HttpSettings(limits=ProviderLimits(rate=None))
    names: dict[str, Any] = {
        "KEY": new_key(devnet),
        "NETWORK": devnet.network,
        "PROVIDER": provider,
        "OPTIONS": {"state_dir": tmp_path / "state", "http": http},
    }
    policy = type(asyncio.get_event_loop_policy())
    for cell in CELLS:
        await run_cell(cell, names)
    assert names["answer"].content == "".join(names["pieces"]) == names["again"].content == names["streamed"]
    assert names["balance"] == names["balance_here"]
    assert names["accounts"][0].balance == 2 * 10**18
    assert type(asyncio.get_event_loop_policy()) is policy  # nothing was patched
    assert asyncio.run.__module__ == "asyncio.runners"
