"""The `Network` record of a devnet, from what it prints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from zg_async.networks import Network, get_network


def network_of(line: Mapping[str, Any]) -> Network:
    """Return the record to make a broker with.

    Args:
        line: What `zg devnet up --json` prints.
    """
    names = ("rpc_url", "chain_id", "ledger", "inference", "fine_tuning", "flow", "indexer_url", "tee_root", "pccs_url")
    return dataclasses.replace(get_network("local"), **{name: line[name] for name in names if name in line})
