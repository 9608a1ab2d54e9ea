"""The known networks: chain ids, endpoints, contract addresses.

Source: spec of the deployed contracts (0g-serving-contract deployments/**, equal in both official SDKs).
All addresses are proxies; implementations change behind them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

from zg_async.errors import UnknownNetworkError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where a network is. Every field can be overridden by the caller of `create_broker`."""

    name: str
    chain_id: int
    rpc_url: str | None
    """None: the caller has to give one."""
    ledger: str
    inference: str
    fine_tuning: str
    flow: str | None = None
    """The pinned 0G Storage flow contract; nobody else is ever paid for storage."""
    indexer_url: str | None = None
    status_url: str | None = None
    """Health and model catalogue of inference providers; None: there is none."""
    explorer_url: str | None = None
    allow_hosts: tuple[str, ...] = ()
    """Hosts whose providers may have private addresses and plain http, by name."""
    tee_root: str | None = None
    """Root certificate that TEE quotes hang on, DER in hex; None: Intel's."""
    pccs_url: str = "https://pccs.phala.network"
    """Where certificates and lists to check TEE quotes with come from. They are signed: it isn't trusted."""
    confirmations: int = 12
    """Blocks until a result counts as final."""
    provider_rate: float | None = 0.1
    """Requests per second that providers allow a client for quotes, uploads and downloads; None: not known, so that it
    waits only when told to."""


NETWORKS: Final[Mapping[str, Network]] = {
    n.name: n
    for n in (
        Network(
            name="mainnet",
            chain_id=16661,
            rpc_url="https://evmrpc.0g.ai",
            ledger="0x2dE54c845Cd948B72D2e32e39586fe89607074E3",
            inference="0x47340d900bdFec2BD393c626E12ea0656F938d84",
            fine_tuning="0x4e3474095518883744ddf135b7E0A23301c7F9c0",
            flow="0x62D4144dB0F0a6fBBaeb6296c785C71B3D57C526",
            indexer_url="https://indexer-storage-turbo.0g.ai",
            status_url="https://compute-status.0g.ai",
            explorer_url="https://chainscan.0g.ai",
        ),
        Network(
            name="testnet",
            chain_id=16602,
            rpc_url="https://evmrpc-testnet.0g.ai",
            ledger="0xE70830508dAc0A97e6c087c75f402f9Be669E406",
            inference="0xa79F4c8311FF93C06b8CfB403690cc987c93F91E",
            fine_tuning="0xC6C075D8039763C8f1EbE580be5ADdf2fd6941bA",
            flow="0x22E03a6A89B950F1c82ec5e74F8eCa321a105296",
            indexer_url="https://indexer-storage-testnet-turbo.0g.ai",
            status_url="https://compute-status-testnet.0g.ai",
            explorer_url="https://chainscan-galileo.0g.ai",
        ),
        Network(
            name="testnet-dev",
            chain_id=16602,
            rpc_url="https://evmrpc-testnet.0g.ai",
            ledger="0x815B93ab4Ba4BDF530dbF1552649a3c534F8BbF7",
            inference="0x41bD7Ac5c19000A974D5c192bcd5FB67b56C85c5",
            fine_tuning="0x4e4158DF35CfdC0ac63264D3E112F5B8E9a5c569",
            flow="0x22E03a6A89B950F1c82ec5e74F8eCa321a105296",
            indexer_url="https://indexer-storage-testnet-turbo.0g.ai",
            status_url="https://compute-status-testnet.0g.ai",
            explorer_url="https://chainscan-galileo.0g.ai",
        ),
        Network(
            name="local",
            chain_id=31337,
            rpc_url="http://127.0.0.1:8545",
            ledger="0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0",
            inference="0x0165878A594ca255338adfa4d48449f69242Eb8F",
            fine_tuning="0xA51c1fc2f0D1a1b8494Ed1FE312d7C3a78Ed91C0",
            flow="0x4ed7c70F96B99c776995fB64377f0d4aB3B0e1C1",
            allow_hosts=("127.0.0.1", "localhost", "::1"),
            confirmations=1,
            provider_rate=None,
        ),
    )
}


def get_network(name: str | Network) -> Network:
    """Look a network up by name.

    Args:
        name: `"mainnet"`, `"testnet"`, `"testnet-dev"`, `"local"`, or a `Network` of the caller's own.

    Returns:
        Its record.

    Raises:
        UnknownNetworkError: The name is not known. There is no default network.
    """
    if isinstance(name, Network):
        return name
    network = NETWORKS.get(str(name).replace("_", "-"))
    if network is None:
        known = ", ".join(sorted(NETWORKS))
        raise UnknownNetworkError(
            f"unknown network {str(name)[:40]!r}", hint=f"Known are {known}; for another chain pass a Network record"
        )
    return network
