"""The config file: named profiles, one of them the current one. Never a key; wallets are keystore files beside it.

It reads `{"version": 1, "profile": "work", "profiles": {"work": {"network": "testnet", "wallet": "alice"}}}`.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zg_async.errors import ConfigError
from zg_async.paths import read_private, require_private, write_private
from zg_async.text import hidden, printable
from zg_async.wire.strict_json import BadJsonError, decode_json

_LIMIT: Final = 256 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION: Final = 1
KEY_LIKE: Final = re.compile(r"\b(0x)?[0-9a-fA-F]{64}\b")
"""What may be a private key that somebody pasted in the wrong place."""
PEERS_FILE: Final = Path(".0g-compute-cli") / "config.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What the config file says."""

    path: Path
    current: str | None = None
    profiles: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def profile(self, name: str) -> Mapping[str, str]:
        """Return a profile's options.

        Raises:
            ConfigError: There is none of this name.
        """
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            raise ConfigError(
                f"there is no profile {printable(name, limit=80)!r}",
                hint=f"Known: {known}. `zg profile set {printable(name, limit=80)} network=testnet` makes it",
            )
        return self.profiles[name]

    def changed(self, name: str, **options: str | None) -> "ConfigFile":
        """Return it with some options of a profile set, or with None removed; the profile is made if need be.

        Raises:
            ConfigError: A name that can't be one.
        """
        check_name(name, what="profile")
        profile = {**self.profiles.get(name, {}), **options}
        kept = {option: value for option, value in profile.items() if value is not None}
        return dataclasses.replace(self, profiles={**self.profiles, name: kept})


def check_name(name: str, *, what: str) -> str:
    """Return a name that can be a file's.

    Raises:
        ConfigError: It can't.
    """
    refuse_key(name, what=f"name of a {what}")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{printable(name, limit=80)!r} can't name a {what}",
            hint="Letters, digits and _ . - are possible, up to 64",
        )
    return name


def refuse_key(text: str, *, what: str) -> None:
    """Take a private key for nothing else; it isn't repeated.

    Args:
        text: What was given.
        what: As what.

    Raises:
        ConfigError: It looks like a private key.
    """
    if KEY_LIKE.fullmatch(text):
        raise ConfigError(
            f"the {what} has the form of a private key, which mustn't be on a command line",
            hint="If it is one, others may have seen it: use another wallet. A key comes from a file only you can read",
        )


def config_path(environment: Mapping[str, str]) -> Path:
    """Return where the config file lies: `$ZG_CONFIG`, else `zg_async/config.json` in the platform's place for it."""
    if own := environment.get("ZG_CONFIG"):
        return Path(own)
    if sys.platform == "win32":
        folder = Path(environment.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "zg_async" / "config.json"


def read_config(path: Path) -> ConfigFile:
    """Read the config file; without one there are no profiles.

    Raises:
        ConfigError: Others can read it (RPC URLs may hold keys), or it is damaged.
    """
    if not path.exists():
        return ConfigFile(path=path)
    try:
        value = decode_json(read_private(path, what="config file", limit=_LIMIT), limit=_LIMIT, depth=4)
        if value["version"] != _VERSION:
            raise ConfigError(f"{path} is of version {value['version']!r}", hint="Use the zg that wrote it")
        profiles = {str(name): _strings(options) for name, options in value["profiles"].items()}
        return ConfigFile(path=path, current=value.get("profile"), profiles=profiles)
    except (BadJsonError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"the config file {path} can't be read", hint="Mend or remove it") from None


def write_config(config: ConfigFile) -> None:
    """Write the config file, mode 0600, whole or not at all.

    Raises:
        ConfigError: It can't be written.
    """
    if config.path.exists():
        require_private(config.path, what="config file")
    value = {"version": _VERSION, "profile": config.current, "profiles": config.profiles}
    data = json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    write_private(config.path, data, what="config file", replace=True)


def wallets_dir(config: Path) -> Path:
    """Return where the keystores of `zg wallet` lie."""
    return config.parent / "wallets"


def wallet_names(config: Path) -> tuple[str, ...]:
    """Return the names of the keystores of `zg wallet`."""
    return tuple(sorted(p.stem for p in wallets_dir(config).glob("*.json") if _NAME.fullmatch(p.stem)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """The official command line's config file."""

    path: Path
    options: Mapping[str, str]
    """As a profile's."""
    private_key: str | None = dataclasses.field(default=None, repr=False)


def read_peers_config(path: Path) -> PeersConfig:
    """Read the official command line's config file. It is never changed.

    Args:
        path: Usually `~/.0g-compute-cli/config.json`; it is readable by others as that program writes it.

    Raises:
        ConfigError: There is none, or it can't be read.

    Source: @0gfoundation/0g-compute-ts-sdk 0.9.0, cli/config.js: a flat object, every key optional.
    """
    try:
        with path.open("rb") as file:
            value = decode_json(file.read(_LIMIT), limit=_LIMIT, depth=4)
        known = _strings({k: v for k, v in value.items() if k in _PEERS_KEYS or k == "privateKey"})
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}", hint="Name the file with --from") from None
    except (BadJsonError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no config file of 0g-compute-cli") from None
    key = known.pop("privateKey", "")
    options = {_PEERS_KEYS[k]: v for k, v in known.items() if v}
    return PeersConfig(path=path, options=options, private_key=hidden(key) or None)


_PEERS_KEYS: Final[Mapping[str, str]] = {
    "rpcEndpoint": "rpc",
    "network": "network",
    "controllerEndpoint": "controller_endpoint",
}


def _strings(value: Mapping[str, Any]) -> dict[str, str]:
    if not all(isinstance(item, str) for item in value.values()):
        raise TypeError
    return dict(value)
