"""Where the value of each option comes from: the flag, else the environment, else the profile, else the default.

`OPTIONS` is the whole table. An empty environment variable counts as none. The wallet is one option with several
spellings, so what is nearer wins whatever its spelling: a `--wallet` beats a `ZG_PRIVATE_KEY`, which beats a profile's
`signer_url`. Without any of them the only wallet of the wallets folder is taken, if there is just one.

The network is named, or told by the endpoint: a known one's, one on this machine (`local`), or the chain id that the
endpoint answers. With neither it is the testnet, whose coins are worth nothing.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

from zg_async.cli.profiles import ConfigFile, config_path, read_config, refuse_key, wallet_names
from zg_async.errors import ConfigError
from zg_async.networks import NETWORKS, Network, get_network
from zg_async.text import hidden, printable
from zg_async.wire.hashing import parse_address

DEFAULT_NETWORK: Final = "testnet"
MAINNET: Final = NETWORKS["mainnet"].chain_id
_NAMES: Final[Mapping[str, str]] = {"testnetDev": "testnet-dev", "hardhat": "local"}
_OPEN: Final = "custom"
"""The peers' word for: whatever chain the endpoint is on."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_YES: Final = ("true", "1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its spellings, nearest first."""

    flag: str | None = None
    env: tuple[str, ...] = ()
    kept: bool = True
    """Whether a profile may hold it."""


OPTIONS: Final[Mapping[str, Option]] = {
    "profile": Option(flag="--profile", env=("ZG_PROFILE",), kept=False),
    "network": Option(flag="--network", env=("NETWORK",)),
    "dev_mode": Option(env=("ZG_DEV_MODE",), kept=False),
    "rpc": Option(flag="--rpc", env=("ZG_RPC_ENDPOINT", "RPC_ENDPOINT", "RPC_URL")),
    "indexer": Option(flag="--indexer", env=("ZG_INDEXER_URL",)),
    "ledger_ca": Option(flag="--ledger-ca", env=("LEDGER_CA",)),
    "inference_ca": Option(flag="--inference-ca", env=("INFERENCE_CA",)),
    "fine_tuning_ca": Option(flag="--fine-tuning-ca", env=("FINE_TUNING_CA",)),
    "flow_ca": Option(flag="--flow-ca", env=("FLOW_CA",)),
    "controller_endpoint": Option(flag="--controller-endpoint"),
    "state_dir": Option(flag="--state-dir", env=("ZG_STATE_DIR",)),
    "private_key": Option(flag="--private-key-file", env=("ZG_PRIVATE_KEY", "PRIVATE_KEY"), kept=False),
    "wallet": Option(flag="--wallet", env=("ZG_WALLET",)),
    "signer_url": Option(flag="--signer-url", env=("ZG_SIGNER_URL",)),
    "password": Option(flag="--password-fd", env=("ZG_PASSWORD",), kept=False),
}
KEPT: Final = tuple(name for name, option in OPTIONS.items() if option.kept)
_WALLETS: Final = ("private_key", "signer_url", "wallet")
_SECRET: Final = ("private_key", "password")
_CONTRACTS: Final[Mapping[str, str]] = {
    "ledger_ca": "ledger",
    "inference_ca": "inference",
    "fine_tuning_ca": "fine_tuning",
    "flow_ca": "flow",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value and where it comes from."""

    text: str
    source: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WalletChoice:
    """Which wallet signs, before it is opened."""

    kind: Literal["key", "key file", "keystore", "signer"]
    source: str
    where: str = ""
    """The keystore's name or path, the key file's path, or the signer's URL."""
    account: str | None = None
    """The signer's account, if it was named."""
    key: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is in force."""

    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    """By option; only those that were given. No secret is among them."""
    network: Value | None = None
    """None: the endpoint's chain id tells."""
    wallet: WalletChoice | None = None
    password_fd: int | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    is_dev: bool = False

    def text(self, name: str) -> str | None:
        """Return an option's value, None if it wasn't given."""
        value = self.values.get(name)
        return None if value is None else value.text

    @property
    def contracts(self) -> dict[str, str]:
        """The contract addresses that were given."""
        return {contract: self.values[name].text for name, contract in _CONTRACTS.items() if name in self.values}


def settle(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    config: ConfigFile,
    wallets: Sequence[str] = (),
) -> Settings:
    """Decide each option. Reads nothing but its arguments.

    Args:
        flags: By the name of the option they set; `private_key_file` and `password_fd` give the file and the number.
        environment: The variables.
        config: The profiles.
        wallets: The names of the wallets folder.

    Returns:
        The settings, with the source of each.

    Raises:
        ConfigError: Two wallets by flag, an unknown network or profile, a bad address.
    """
    given = {name: value for name, value in flags.items() if name in OPTIONS}
    if "private_key_file" in flags:
        given["private_key"] = flags["private_key_file"]
    chosen = _first("profile", given, environment, {}, "")
    name = chosen.text if chosen is not None else config.current
    profile = config.profile(name) if name is not None else {}
    if chosen is None and name is not None:
        chosen = Value(text=name, source=f"config file {config.path}")
    found = {n: _first(n, given, environment, profile, name or "") for n in OPTIONS if n not in ("profile", *_WALLETS)}
    values = {n: value for n, value in found.items() if value is not None and n not in ("password", "dev_mode")}
    if chosen is not None:
        values["profile"] = chosen
    for option, value in values.items():
        _check(option, value.text)
    is_dev = (v := found["dev_mode"]) is not None and v.text.lower() in _YES
    network = _network(values.pop("network", None), values.get("rpc"), is_dev=is_dev)
    password = found["password"]
    return Settings(
        values=values,
        network=network,
        wallet=_wallet(given, environment, profile, name or "", wallets),
        password_fd=int(flags["password_fd"]) if "password_fd" in flags else None,
        password=None if password is None else hidden(password.text),
        is_dev=is_dev,
    )


def load(flags: Mapping[str, str]) -> Settings:
    """Decide each option by this process's environment and this user's config file. Reads files.

    Raises:
        ConfigError: As `settle`; or others can read the config file.
    """
    config = read_config(config_path(os.environ))
    return settle(flags, os.environ, config, wallet_names(config.path))


def _first(
    name: str, flags: Mapping[str, str], environment: Mapping[str, str], profile: Mapping[str, str], title: str
) -> Value | None:
    if name in flags:
        return Value(text=flags[name], source=OPTIONS[name].flag or "")
    for variable in OPTIONS[name].env:
        if text := environment.get(variable, "").strip():
            return Value(text=hidden(text) if name in _SECRET else text, source=f"environment {variable}")
    if name in profile:
        return Value(text=profile[name], source=f"profile {title}")
    return None


def _network(named: Value | None, rpc: Value | None, *, is_dev: bool) -> Value | None:
    if named is not None and named.text != _OPEN:
        name = get_network(_NAMES.get(named.text, named.text)).name
        return _dev(Value(text=name, source=named.source)) if is_dev else Value(text=name, source=named.source)
    if rpc is None:
        if named is not None:
            raise ConfigError(f"network {_OPEN} needs an endpoint", hint="Give --rpc")
        default = Value(text=DEFAULT_NETWORK, source="default")
        return _dev(default) if is_dev else default
    known = next((n for n in NETWORKS.values() if n.rpc_url == rpc.text.rstrip("/")), None)
    if known is None and urlsplit(rpc.text).hostname in _LOOPBACK:
        known = NETWORKS["local"]
    if known is None:
        return None
    told = Value(text=known.name, source=f"the endpoint ({rpc.source})")
    return _dev(told) if is_dev else told


def _dev(value: Value) -> Value:
    if value.text != "testnet":
        return value
    return Value(text="testnet-dev", source=f"{value.source}, environment ZG_DEV_MODE")


def network_of_chain(chain_id: int, *, is_dev: bool) -> Network:
    """Find the network with a chain id.

    Raises:
        ConfigError: There is none.
    """
    wanted = "testnet-dev" if is_dev and chain_id == NETWORKS["testnet"].chain_id else None
    for network in NETWORKS.values():
        if network.chain_id == chain_id and wanted in (None, network.name):
            return network
    raise ConfigError(
        f"the endpoint is on chain {chain_id}, which is no known network",
        hint="Give --network with --ledger-ca, --inference-ca and --fine-tuning-ca, or another --rpc",
    )


def values_of(settings: Settings) -> Mapping[str, tuple[str, str]]:
    """Return option, value and source of everything in force, for people and for JSON. No secret is among them."""
    rows = {name: (_shown(name, value.text), value.source) for name, value in settings.values.items()}
    if settings.network is not None:
        rows["network"] = (settings.network.text, settings.network.source)
    if (wallet := settings.wallet) is not None:
        where = _shown("rpc", wallet.where) if wallet.kind == "signer" else wallet.where
        rows["wallet"] = (f"{wallet.kind} {where}".strip(), wallet.source)
    return rows


def _shown(name: str, text: str) -> str:
    """Leave out of an endpoint what may be its key: user, path and query."""
    if name not in ("rpc", "indexer", "controller_endpoint"):
        return text
    url = urlsplit(text)
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}" + ("/…" if url.path.strip("/") or url.query or host != url.netloc else "")


# --- the wallet -------------------------------------------------------------------------------------------------------


def _wallet(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    profile: Mapping[str, str],
    title: str,
    wallets: Sequence[str],
) -> WalletChoice | None:
    nothing: Mapping[str, str] = {}
    for by_flag, by_env, kept in (
        (flags, nothing, nothing),
        (nothing, environment, nothing),
        (nothing, nothing, profile),
    ):
        key, signer, wallet = (_first(name, by_flag, by_env, kept, title) for name in _WALLETS)
        if by_flag and key is not None and (signer is not None or wallet is not None):
            raise ConfigError("two wallets are given", hint="Give --private-key-file alone, --wallet or --signer-url")
        if key is not None and by_flag:
            return WalletChoice(kind="key file", source=key.source, where=key.text)
        if key is not None:
            return WalletChoice(kind="key", source=key.source, key=hidden(key.text))
        if signer is not None:
            account = None if wallet is None else wallet.text
            return WalletChoice(kind="signer", source=signer.source, where=signer.text, account=account)
        if wallet is not None:
            return WalletChoice(kind="keystore", source=wallet.source, where=wallet.text)
    if len(wallets) == 1:
        return WalletChoice(kind="keystore", source="default: the only wallet", where=wallets[0])
    return None


def check_option(name: str, value: str) -> str:
    """Return an option's name if a profile may hold it with this value (empty: removed).

    Raises:
        ConfigError: It may not; a private key, for example.
    """
    name = name.replace("-", "_")
    if name not in KEPT:
        hint = f"A profile can hold {', '.join(KEPT)}"
        if name == "private_key":
            hint = "A private key lies in a keystore only: `zg wallet import`, then wallet=NAME"
        raise ConfigError(f"a profile can't hold {printable(name, limit=80)!r}", hint=hint)
    if value:
        _check(name, value)
    if value and name == "network" and value != _OPEN:
        get_network(_NAMES.get(value, value))
    return name


def _check(name: str, value: str) -> None:
    if name in _CONTRACTS:
        parse_address(value, what=name.replace("_", "-"))
    if name == "wallet":
        refuse_key(value, what="wallet")
