"""A node with the contracts on it, and chains (the client's transport) that talk to it over a socket."""

import contextlib
import dataclasses
import os
from collections.abc import AsyncGenerator
from typing import Any

from zg_async.clock import Clock, SystemClock
from zg_async.devnet.accounts import dev_account, owner
from zg_async.devnet.chain_client import ChainClient, Wallet
from zg_async.devnet.deploy import plan_deployment
from zg_async.devnet.engine import Engine
from zg_async.devnet.engines import make_engine
from zg_async.networks import NETWORKS, Network
from zg_async.transport.chain import Chain
from zg_async.transport.fees import FeePolicy
from zg_async.transport.http import Http
from zg_async.transport.outbox import Outbox
from zg_async.transport.rpc import Rpc
from zg_async.transport.signer import LocalSigner
from zg_async.wire.contracts import FineTuningContract, LedgerContract

ZG = 10**18
ENGINE = os.environ.get("ZG_TEST_ENGINE", "pyevm")
"""The second opinion: `ZG_TEST_ENGINE=anvil` runs the same tests there."""
USER = dev_account(1)
OTHER = dev_account(2)
LOCAL = NETWORKS["local"]
LEDGER = LedgerContract(LOCAL.ledger)
FINE_TUNING = FineTuningContract(LOCAL.fine_tuning)
QUICK = FeePolicy(bump_after=0.3, resend_after=0.15, wait_seconds=20)


@dataclasses.dataclass
class Rig:
    engine: Engine
    http: Http
    client: ChainClient
    asked: list[str]

    def chain(
        self,
        *,
        outbox: Outbox | None = None,
        fees: FeePolicy = QUICK,
        network: Network = LOCAL,
        clock: Clock | None = None,
        confirmations: int = 1,
        url: str | None = None,
    ) -> Chain:
        network = dataclasses.replace(network, rpc_url=self.engine.url, confirmations=confirmations)
        time = clock or SystemClock()
        rpc = Rpc(url or self.engine.url, self.http, clock=time)
        original = rpc._exchange

        async def exchange(index: int, asks: Any) -> Any:
            self.asked.append("+".join(ask.method for ask in asks))
            return await original(index, asks)

        rpc._exchange = exchange
        signers = (LocalSigner.from_key(USER.private_key), LocalSigner.from_key(OTHER.private_key))
        return Chain(network, rpc, outbox=outbox, signers=signers, fees=fees, clock=time)

    async def foreign(self, value: int = 1) -> str:
        """Send a transaction with the user's key, past the outbox."""
        wallet = Wallet(self.client, USER.private_key)
        return (await wallet.transact(OTHER.address, b"", value)).tx_hash

    async def account_nonce(self, tag: str = "latest") -> int:
        return int(await self.engine.request("eth_getTransactionCount", USER.address, tag), 16)


@contextlib.asynccontextmanager
async def open_rig(*, contracts: bool = True, ledger: bool = True, engine: str = ENGINE) -> AsyncGenerator[Rig, None]:
    balances = {account.address: 100_000 * ZG for account in (owner(), USER, OTHER)}
    async with make_engine(engine, balances) as node, Http() as http:
        client = ChainClient(node.request, SystemClock())
        if contracts:
            deployer = Wallet(client, owner().private_key)
            for step in plan_deployment().transactions:
                await deployer.transact(step.to, step.data, step.value)
        if ledger and contracts:
            await Wallet(client, USER.private_key).send(LEDGER.add_ledger("", value=5 * ZG))
        yield Rig(node, http, client, [])
