"""Money that moves by itself: only when allowed, never more than allowed, each move on record, none after the end."""

import anyio
import pytest

from tests.devnet.conftest import new_key, open_broker
from zg_async import AutoFunding, ConfigError, InferencePolicy, LimitError, SpendLimits, SystemClock, read_audit
from zg_async.devnet.faults import Fault, FaultProxy
from zg_async.devnet.process import DevnetProcess
from zg_async.managers.inference_funds import InferenceFunds
from zg_async.transport.budget import AUTO_FUNDING
from zg_async.transport.fees import FeePolicy
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow
QUICK = FeePolicy(bump_after=0.5, resend_after=0.1, wait_seconds=1.5)
OG = NEURON_PER_0G


class MovedClock(SystemClock):
    ahead = 0.0

    def now(self):
        return super().now() + self.ahead


@pytest.fixture
def greedy(monkeypatch):
    """A provider that claims all there is, each time it is asked: whatever is moved is never enough."""
    looks = []

    async def unsettled(self, provider):
        looks.append(provider)
        return await moved(self, provider)

    monkeypatch.setattr(InferenceFunds, "_unsettled", unsettled)
    return looks


async def moved(inference, provider):
    account = await inference._account_or_none(provider)
    return account.balance if account else 0


async def looked(looks, count):
    """Wait until the account has been looked at so many times more."""
    want = len(looks) + count
    with anyio.fail_after(60):
        while len(looks) < want:
            await anyio.sleep(0.01)


@pytest.mark.goal("LED-05", part="cap per hour through faults and restarts")
async def test_a_loop_with_faults_and_restarts_never_moves_more_than_its_cap_within_an_hour(tmp_path, greedy):
    async with DevnetProcess("--limits", "off", "--providers", "1") as devnet:  # of its own: its time is moved
        await capped_within_an_hour(devnet, devnet.providers[0]["address"], tmp_path, greedy)


async def capped_within_an_hour(devnet, provider, tmp_path, greedy):
    key, clock, cap = new_key(devnet), MovedClock(), 3 * OG
    funding = AutoFunding(per_hour=cap, buffer=OG // 2, interval=0.02)
    async with FaultProxy(devnet.rpc_url) as proxy:
        options = {"rpc_url": proxy.url, "clock": clock, "fees": QUICK}
        async with open_broker(devnet, key, tmp_path / "s", **options) as broker:
            await broker.ledger.add_ledger("40")
        for kind, skip in (("lose_answer", 0), ("lose_request", 1)):
            proxy.faults.add(Fault(kind=kind, operation="eth_sendRawTransaction", times=2, skip=skip))
        proxy.faults.add(Fault(kind="status", operation="eth_getTransactionReceipt", times=None, chance=0.2))
        for hour in (1, 2):
            for _ in range(3):  # each block is left in the middle of whatever goes on
                async with open_broker(devnet, key, tmp_path / "s", **options) as broker:
                    async with broker.inference.auto_funding(provider, funding=funding):
                        await looked(greedy, 4)
                    done = await moved(broker.inference, provider)
                    assert done <= hour * cap
            clock.ahead += 3700
            await devnet.control_async("increase_time", seconds=3700)
        assert len(proxy.faults.hits) >= 4
    async with open_broker(devnet, key, tmp_path / "s", clock=clock) as broker:
        for _ in range(3):
            await broker.chain.sweep()
        done, path = await moved(broker.inference, provider), broker.audit_path
    assert done == 2 * cap
    automatic = [t for t in read_audit(path).transactions if t.key.startswith(f"{AUTO_FUNDING}/")]
    assert sum(t.transferred for t in automatic if t.status) == done
    assert {t.payee for t in automatic} == {provider}


@pytest.mark.goal("LED-05", part="off by default, ends with its scope, each move is an event")
async def test_nothing_moves_before_the_block_or_after_it_and_each_move_is_on_record(broker, provider, greedy, caplog):
    await broker.ledger.add_ledger("12")
    with pytest.raises(LimitError, match="automatic funding is off"):
        await broker.ledger.transfer_fund(provider, "inference", OG, key=f"{AUTO_FUNDING}/x")
    assert not await broker.inference._fund_by_policy(provider, refused=True)
    assert greedy == []
    async with broker.inference.auto_funding(
        provider, funding=AutoFunding(per_hour=4 * OG, buffer=OG // 2, interval=0.01)
    ):
        await looked(greedy, 12)
        with pytest.raises(ConfigError, match="on already"):
            async with broker.inference.auto_funding(provider, funding=AutoFunding(cap=OG)):
                pass
    count, events = len(greedy), broker.inference.auto_funded
    assert await moved(broker.inference, provider) == sum(event.amount for event in events) == 4 * OG
    audited = {t.tx_hash: t for t in read_audit(broker.audit_path).transactions}
    for event in events:
        assert (event.provider, audited[event.tx_hash].transferred) == (provider, event.amount)
    told = [r for r in caplog.records if r.getMessage().startswith("automatic funding moved")]
    assert [r.provider for r in told] == [provider] * len(events)
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    assert not await broker.inference._fund_by_policy(provider, refused=True)
    assert len(greedy) == count


@pytest.mark.goal("LED-05", part="counts in the spend limits")
async def test_what_moves_by_itself_counts_in_the_spend_limits_and_a_leave_needs_a_bound(
    devnet, key, provider, tmp_path, greedy
):
    with pytest.raises(ConfigError, match="needs a bound"):
        AutoFunding()
    policy = InferencePolicy(funding=AutoFunding(per_hour=9 * OG, buffer=OG // 2, interval=0.0))
    async with open_broker(devnet, key, tmp_path / "elsewhere") as broker:
        await broker.ledger.add_ledger("20")
    options = {"inference": policy, "limits": SpendLimits(bound_per_day="12")}
    async with open_broker(devnet, key, tmp_path / "s", **options) as broker:
        await broker.ledger.transfer_fund(provider, "fine-tuning", "8")
        for _ in range(6):
            await broker.inference._fund_by_policy(provider)
        assert await moved(broker.inference, provider) == 4 * OG
        with pytest.raises(LimitError, match="bound_per_day"):
            await broker.ledger.transfer_fund(provider, "fine-tuning", "1")
