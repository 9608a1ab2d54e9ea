"""A local 0G network that speaks the real protocols: chain, contracts, providers that really train, inference.

Not loaded by the rest of the package; needs the extra `devnet`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zg_async.devnet.network import Devnet, start_devnet
    from zg_async.devnet.process import DevnetProcess

__all__ = ["Devnet", "DevnetProcess", "start_devnet"]
_HOMES = {"Devnet": "network", "start_devnet": "network", "DevnetProcess": "process"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
