"""The whole account in few round trips, and every money operation in both ways to write an amount."""

import aiohttp
import pytest

from tests.devnet.conftest import new_key, open_broker
from zg_async import LedgerNotFoundError
from zg_async.transport.signer import LocalSigner

pytestmark = pytest.mark.slow
OG = 10**18


@pytest.mark.goal("TX-08")
async def test_the_view_of_twenty_providers_takes_at_most_three_requests(devnet, key, tmp_path):
    sent = []
    trace = aiohttp.TraceConfig()

    async def seen(session, context, params):
        sent.append(str(params.url))

    trace.on_request_start.append(seen)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        open_broker(devnet, key, tmp_path, session=session) as broker,
    ):
        await broker.ledger.add_ledger("45")
        providers = [f"0x{n:040x}" for n in range(1, 21)]
        for address in providers:
            await broker.ledger.transfer_fund(address, "fine-tuning", "1")
            await broker.ledger.transfer_fund(address, "inference", "1")
        sent.clear()
        detail = await broker.ledger.get_ledger_with_detail()
        assert len(sent) <= 3
        assert [len(detail.fine_tuning), len(detail.inference)] == [20, 20]
        assert {row.provider.lower() for row in detail.fine_tuning} == set(providers)
        assert sum(row.balance for row in (*detail.fine_tuning, *detail.inference)) == 40 * OG
        assert detail.ledger.total_balance == 45 * OG


@pytest.mark.goal("LED-01")
@pytest.mark.parametrize("amount", [str, int], ids=["decimal strings", "smallest units"])
async def test_every_operation_moves_exactly_what_was_written(devnet, broker, provider, amount):
    def og(text):
        return text if amount is str else int(text.replace(".", "").ljust(len(text.split(".")[0]) + 18, "0"))

    ledger, other = broker.ledger, LocalSigner.from_key(new_key(devnet, 0)).address
    assert og("0.1") in ("0.1", 10**17)
    await ledger.add_ledger(og("5.1"))
    await ledger.deposit_fund(og("0.1"))
    assert (await ledger.get_ledger()).available_balance == 52 * 10**17
    await ledger.deposit_fund_for(other, og("3.000000000000000001"))
    listed = {row.user: row.total_balance for row in await ledger.list_ledger()}
    assert listed[other] == 3 * OG + 1
    for service in ("fine-tuning", "inference"):
        await ledger.transfer_fund(provider, service, og("1"))
    await ledger.transfer_fund(devnet.providers[1]["address"], "inference", og("1"))
    assert (await ledger.get_ledger()).available_balance == 22 * 10**17
    await ledger.retrieve_fund("inference", providers=[provider])
    await ledger.retrieve_fund("inference")
    await ledger.retrieve_fund("fine-tuning")
    for service in ("inference", "fine-tuning"):
        rows = await ledger.get_providers_with_balance(service)
        assert all(row.pending_refund == row.balance for row in rows)
    lock = await broker.fine_tuning.get_locked_time()
    await devnet.control_async("increase_time", seconds=lock + 1)
    for service in ("inference", "fine-tuning"):
        await ledger.retrieve_fund(service)
    assert (await ledger.get_ledger()).available_balance == 52 * 10**17
    for wrong in (0.1, 1.0):
        with pytest.raises(TypeError):
            await ledger.refund(wrong)
    await ledger.refund(og("2.2"))
    assert (await ledger.get_ledger()).available_balance == 3 * OG
    await ledger.refund(og("3"))
    with pytest.raises(LedgerNotFoundError):
        await ledger.get_ledger()
    await ledger.add_ledger(og("3"))
    await ledger.refund(og("3"))
