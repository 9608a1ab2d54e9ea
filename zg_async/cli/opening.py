"""From flags to an open broker: the one place where commands get theirs."""

import base64
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio.to_thread
from cyclopts import Parameter

from zg_async.cli.config import MAINNET, Settings, load, network_of_chain
from zg_async.cli.unlocking import unlock
from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.networks import Network
    from zg_async.transport.budget import FirstSpending, SpendLimits
    from zg_async.transport.fees import FeePolicy


@Parameter(name="*", group="Network, wallet and output")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which network and wallet a command is for, and how it talks; a private key never comes as a flag."""

    network: str | None = None
    """mainnet, testnet, testnet-dev or local. Default: NETWORK, else what the RPC endpoint belongs to, else testnet."""
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
    profile: str | None = None
    """Where to take what isn't given. Default: ZG_PROFILE, else the current one of `zg profile`."""
    wallet: str | None = None
    """A name or address of `zg wallet list`, or a keystore file. Default: ZG_WALLET, else the only one there is."""
    private_key_file: Path | None = None
    """File with the wallet's private key in hex. Default: the variable ZG_PRIVATE_KEY or PRIVATE_KEY."""
    signer_url: str | None = None
    """JSON-RPC signer that holds the key (web3signer's dialect); --wallet names its account. Default: ZG_SIGNER_URL."""
    password_fd: int | None = None
    """File descriptor to read the keystore's password from. Default: the variable ZG_PASSWORD, else it is asked for."""
    tee_root: Path | None = None
    """File with the root certificate of TEE quotes, PEM or DER in hex. Default: the network's, else Intel's."""
    pccs_url: str | None = None
    """Where certificates to check TEE quotes come from. Default: the network's."""
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
    verified_only: bool = False
    """Pay, send and acknowledge nothing to providers whose TEE isn't verified."""


HERE: Final = Where()
PAYING: Final = Paying()


@contextlib.asynccontextmanager
async def open_broker(where: Where, *, wallet: bool = True, **options: Any) -> "AsyncGenerator[Broker, None]":
    """Open the broker that a command's flags, the environment and the profile ask for.

    Args:
        where: The flags.
        wallet: Whether it needs a wallet; without, none is looked for.
        options: More for `create_broker`.

    Raises:
        ConfigError: No key is named, or something can't be used.
    """
    from zg_async.broker import create_broker

    settings = await settings_of(where)
    if isinstance(where, Paying):
        options["require_verified"] = where.verified_only
        if fees := _fees(where):
            options["fees"] = fees
    async with contextlib.AsyncExitStack() as stack:
        signer = await unlock(settings, stack) if wallet else None
        network = _root_of_trust(where, await network_of(settings))
        if signer is not None and network.chain_id == MAINNET:
            options["limits"] = ask_before_spending(where, options.get("limits"))
        broker = create_broker(
            None,
            network,
            signer=signer,
            rpc_url=settings.text("rpc"),
            contracts=settings.contracts,
            indexer_url=settings.text("indexer"),
            state_dir=settings.text("state_dir"),
            **options,
        )
        yield await stack.enter_async_context(broker)


async def settings_of(where: Where) -> Settings:
    """Decide each option by flags, environment, profile and default; see `cli.config`.

    Raises:
        ConfigError: Two wallets, an unknown network or profile, or others can read the config file.
    """
    flags = {f.name: str(v) for f in dataclasses.fields(where) if (v := getattr(where, f.name)) is not None}
    return await anyio.to_thread.run_sync(load, flags)


async def network_of(settings: Settings) -> "Network":
    """Return the network, asking the endpoint for its chain if nothing else tells.

    Raises:
        ConfigError: The chain is unknown.
        ChainUnavailableError: The endpoint doesn't answer.
    """
    from zg_async.networks import get_network

    if settings.network is not None:
        return get_network(settings.network.text)
    from zg_async.transport.http import Http
    from zg_async.transport.rpc import Rpc, quantity

    async with Http() as http:
        chain_id = quantity(await Rpc(settings.text("rpc") or "", http).request("eth_chainId"))
    return network_of_chain(chain_id, is_dev=settings.is_dev)


def ask_before_spending(where: Where, limits: "SpendLimits | None" = None) -> "SpendLimits":
    """Return limits that ask, once, before a wallet's first transaction."""
    from zg_async.cli.output import confirm
    from zg_async.transport.budget import SpendLimits

    async def ask(first: "FirstSpending") -> bool:
        what = (
            f"{first.wallet} spends up to {format_amount(first.amount)} on mainnet, for the first time: {first.name}."
        )
        await anyio.to_thread.run_sync(confirm, where, f"{what} Go on?")
        return True

    return dataclasses.replace(limits or SpendLimits(), first_spending=ask)


def read_text(path: Path, what: str) -> str:
    """Read a small file the user named.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the {what}'s file {printable(str(path))} can't be read") from None


def _root_of_trust(where: Where, network: "Network") -> "Network":
    """Return the network with the root certificate and the certificate service that were asked for."""
    if where.tee_root is not None:
        network = dataclasses.replace(network, tee_root=_certificate(where.tee_root))
    return network if where.pccs_url is None else dataclasses.replace(network, pccs_url=where.pccs_url)


def _certificate(path: Path) -> str:
    """Read a certificate as hex of its DER."""
    text = read_text(path, "root certificate").strip()
    if "-----BEGIN CERTIFICATE-----" in text:
        text = base64.b64decode("".join(line for line in text.splitlines() if "-----" not in line)).hex()
    try:
        return bytes.fromhex(text.removeprefix("0x")).hex()
    except ValueError:
        raise ConfigError(f"{path} holds no certificate", hint="Give it as PEM, or as DER in hex") from None


def _fees(where: Paying) -> "FeePolicy | None":
    from zg_async.transport.fees import FeePolicy

    fields = {
        "gas_price": where.gas_price,
        "max_fee_per_gas": where.max_gas_price,
        "bump_tenths": where.step,
    }
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return FeePolicy(**given) if given else None
