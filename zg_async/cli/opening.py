"""From flags and environment to an open broker: the one place where commands get theirs."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from zg_async.errors import ConfigError
from zg_async.text import hidden, printable

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.transport.fees import FeePolicy

KEYS: Final = ("ZG_PRIVATE_KEY", "PRIVATE_KEY")
RPCS: Final = ("ZG_RPC_ENDPOINT", "RPC_ENDPOINT", "RPC_URL")
_CONTRACTS: Final = {
    "ledger": "LEDGER_CA",
    "inference": "INFERENCE_CA",
    "fine_tuning": "FINE_TUNING_CA",
    "flow": "FLOW_CA",
}
_LOCAL: Final = ("http://127.0.0.1", "http://localhost", "http://[::1]")


@Parameter(name="*", group="Network, wallet and output")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which network and wallet a command is for, and how it talks; a private key never comes as a flag."""

    network: str | None = None
    """mainnet, testnet, testnet-dev or local. Default: NETWORK, else what the RPC endpoint belongs to."""
    rpc: str | None = None
    """Chain endpoint. Default: ZG_RPC_ENDPOINT, RPC_ENDPOINT or RPC_URL, else the network's."""
    ledger_ca: str | None = None
    """The ledger contract. Default: LEDGER_CA, else the network's."""
    inference_ca: str | None = None
    """The inference contract. Default: INFERENCE_CA, else the network's."""
    fine_tuning_ca: str | None = None
    """The fine-tuning contract. Default: FINE_TUNING_CA, else the network's."""
    flow_ca: str | None = None
    """The storage contract that is paid. Default: FLOW_CA, else the network's."""
    indexer: str | None = None
    """Storage indexer. Default: ZG_INDEXER_URL, else the network's."""
    private_key_file: Path | None = None
    """File with the wallet's private key in hex. Default: the variable ZG_PRIVATE_KEY or PRIVATE_KEY."""
    state_dir: Path | None = None
    """Where outbox and journal lie. Default: ZG_STATE_DIR, else the user's state folder."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """One JSON object on standard output; for streams one per line."""
    yes: Annotated[bool, Parameter(name=("--yes", "-y"))] = False
    """Ask nothing: agree to what would be asked."""
    debug: bool = False
    """Show where an error comes from."""


@Parameter(name="*", group="Network, wallet and output")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paying(Where):
    """The same for commands that send transactions."""

    gas_price: int | None = None
    """Neuron per gas, fixed. Default: by the chain."""
    max_gas_price: int | None = None
    """Neuron per gas above which nothing is sent."""
    step: int | None = None
    """By how many tenths the gas price is multiplied for a transaction that isn't mined. Default: 11, the least."""


HERE: Final = Where()
PAYING: Final = Paying()


def open_broker(where: Where, *, wallet: bool = True, **options: Any) -> "Broker":
    """Make the broker that a command's flags and environment ask for; `async with` opens it.

    Args:
        where: The flags.
        wallet: Whether it needs a wallet; without, none is looked for.
        options: More for `create_broker`.

    Returns:
        The broker.

    Raises:
        ConfigError: No network or no key is named, or one can't be used.
    """
    from zg_async.broker import create_broker

    url = where.rpc or first_of(RPCS)
    if fees := _fees(where):
        options["fees"] = fees
    return create_broker(
        private_key(where) if wallet else None,
        network_name(where, url),
        rpc_url=url,
        contracts=_contracts(where),
        indexer_url=where.indexer or os.environ.get("ZG_INDEXER_URL") or None,
        state_dir=where.state_dir,
        **options,
    )


def network_name(where: Where, url: str | None) -> str:
    """Return the network that is meant: as named, else the one whose endpoint is given.

    Raises:
        ConfigError: Neither says it.
    """
    from zg_async.networks import NETWORKS

    if name := where.network or os.environ.get("NETWORK"):
        return name
    known = next((n.name for n in NETWORKS.values() if url and n.rpc_url == url.rstrip("/")), None)
    if known is None and url is not None and url.startswith(_LOCAL):
        known = "local"
    if known is None:
        raise ConfigError("no network was named", hint="Give --network, or set NETWORK; there is no default")
    return known


def private_key(where: Where) -> str:
    """Return the wallet's private key, hidden from `repr`.

    Raises:
        ConfigError: There is none.
    """
    if where.private_key_file is not None:
        return hidden(read_text(where.private_key_file, "private key").strip())
    key = first_of(KEYS)
    if key is None:
        raise ConfigError("no wallet is given", hint=f"Set {KEYS[0]}, or give --private-key-file")
    return hidden(key.strip())


def first_of(names: tuple[str, ...]) -> str | None:
    """Return the first of some environment variables that isn't empty."""
    return next((value for name in names if (value := os.environ.get(name))), None)


def read_text(path: Path, what: str) -> str:
    """Read a small file the user named.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the {what}'s file {printable(str(path))} can't be read") from None


def _contracts(where: Where) -> dict[str, str] | None:
    given = {name: getattr(where, f"{name}_ca") or os.environ.get(variable) for name, variable in _CONTRACTS.items()}
    return {name: address for name, address in given.items() if address} or None


def _fees(where: Where) -> "FeePolicy | None":
    from zg_async.transport.fees import FeePolicy

    if not isinstance(where, Paying):
        return None
    fields = {
        "gas_price": where.gas_price,
        "max_fee_per_gas": where.max_gas_price,
        "bump_tenths": where.step,
    }
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return FeePolicy(**given) if given else None
