"""The same API, blocking: for scripts, and for programs written for the peers' SDK.

    from zg_async.sync import create_broker, og_to_wei

    with create_broker(private_key=key, network="testnet") as broker:
        broker.ledger.transfer_fund(provider, "fine-tuning", og_to_wei("1"))

Every broker here has an event loop in a thread of its own, so it works inside a running loop and from many threads.
Ctrl-C cancels the running call. Records answer by name and by key: `result.dataset_hash`, `result["datasetHash"]`.

One default differs: what a chat needs is moved from the ledger to the provider's inference sub-account by itself, as
the peers do, up to `TOP_UP_CAP` in all while the broker lives, with a warning in the log each time. Pass
`inference=InferencePolicy()` to switch it off; everywhere else it is off.
"""

from zg_async.errors import ZgError
from zg_async.sync.facade import TOP_UP_CAP, SyncBroker, create_broker
from zg_async.units import format_amount, og_to_wei, parse_amount, wei_to_og

ContractError = ZgError
"""The peers' name for what their calls raise."""

__all__ = [
    "TOP_UP_CAP",
    "ContractError",
    "SyncBroker",
    "ZgError",
    "create_broker",
    "format_amount",
    "og_to_wei",
    "parse_amount",
    "wei_to_og",
]
