"""What an inference provider of the devnet can be told to do, and what it asks of a chain."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from zg_async.wire.records import Address, InferenceAccount, InferenceService, TaskId


@dataclasses.dataclass(slots=True, kw_only=True)
class InferenceSettings:
    """Switches; all may change while the provider runs. Times are in seconds, amounts in neuron."""

    input_price: int = 10**9
    """Per token of a prompt; a token is a byte. Only what a registration says counts."""
    output_price: int = 2 * 10**9
    """Per token of an answer."""
    minimum_locked: int = 10**18
    """What a user's sub-account must hold beyond unsettled fees."""
    limits: bool = True
    """Whether the limits of inference.md 5.5 are on."""
    user_in_flight: int = 5
    global_in_flight: int = 20
    user_requests_per_minute: int = 0
    """0: no such limit."""
    max_tokens: int = 64
    """Tokens of an answer of the base model when the request doesn't say."""
    adapter_max_tokens: int = 256
    """The same for an adapter, which ends its answers by itself once it has learned to."""
    latency: float = 0.0
    """Added to every answer."""
    canned: str = ""
    """Answer with this instead of asking the model, cut to the tokens wanted as words; for measuring clients."""
    poll_interval: float = 0.2
    """Between looks for acknowledged deliverables; real providers take 5."""
    settle_interval: float = 300.0
    session_cache: float = 0.0
    """How long a token once checked is good without another look at the chain; real providers take 300."""
    signature_seconds: float = 1200.0
    """How long an answer's signature is kept."""

    lora_enabled: bool = True
    auto_deploy: bool = True
    """Make an adapter active once it is downloaded; else it stops at ready until its user deploys it."""
    owner_restricted: bool = False
    """The build that shows adapters to their owners only and deploys by task id only."""
    download_delay: float = 0.0
    load_delay: float = 0.0
    restore_delay: float = 0.0
    fail_load: bool = False
    """Let every load fail."""
    offload_after: float = 0.0
    """Idle time after which an active adapter is offloaded; 0: never."""
    max_user_adapters: int = 5
    max_adapters: int = 100
    max_disk_bytes: int = 100 * 2**30
    max_active: int = 0
    """Adapters held in memory; the one used longest ago is archived for another. 0: no bound."""
    blocked_users: tuple[str, ...] = ()

    model_expired: bool = False
    """Answer 410, as for a model that was withdrawn."""
    old_hashes: bool = False
    """Sign as older builds: over the request written anew and the answer before its model is renamed."""
    bad_signature: int = 0
    """Sign this many answers with a key that isn't the TEE signer's; -1: all."""
    error_503: int = 0
    """Answer this many chats with 503; -1: all."""
    cut_stream: int = 0
    """End this many streams before their last chunks; -1: all."""
    stream_delay: float = 0.0
    """Between two chunks of a stream."""
    tamper: int = 0
    """Change this many answers after they are signed; -1: all."""
    no_response_key: bool = False
    """Leave the header out that names an answer's signature."""

    media: bool = True
    """Serve images, image edits and speech beside chat."""
    async_images: bool = True
    """Take image jobs; else answer 503."""
    job_delay: float = 0.0
    """How long an image job takes, half of it pending."""
    fail_job: int = 0
    """Let this many image jobs fail; -1: all."""

    def strikes(self, name: str) -> bool:
        """Tell whether a counted switch is on, and count it down."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """A user took a delivery."""

    user: Address
    task_id: TaskId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeeSettlement:
    """One item of `settleFeesWithTEE`, signed by the TEE key."""

    user: Address
    provider: Address
    total_fee: int
    requests_hash: bytes
    nonce: int
    signature: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettlementResult:
    """What the contract said of one item."""

    user: Address
    status: int
    """0 paid, 1 paid in part, 2 wrong provider, 3 signer not acknowledged, 4 bad nonce, 5 bad signature or account."""
    unsettled: int
    """Neuron not paid."""


class InferenceChain(Protocol):
    """What an inference provider asks of a chain; bound to its wallet. May raise `ZgError`."""

    @property
    def chain_id(self) -> int:
        """The chain's id."""
        ...

    @property
    def inference_address(self) -> Address:
        """InferenceServing, which settlements are signed for."""
        ...

    async def account(self, user: Address) -> InferenceAccount | None:
        """Return a user's sub-account at this provider, None if there is none."""

    async def service(self) -> InferenceService | None:
        """Return this provider's registration."""

    async def block_number(self) -> int:
        """Return the newest block's number."""
        ...

    async def acknowledged(self, from_block: int, to_block: int) -> Sequence[Acknowledgement]:
        """Return this provider's `DeliverableAcknowledged` events in some blocks, both ends included."""
        ...

    async def model_root_hash(self, user: Address, task_id: TaskId) -> bytes:
        """Return a deliverable's root hash.

        Raises:
            LookupError: There is no such deliverable.
        """
        ...

    async def settle_fees(self, settlements: Sequence[FeeSettlement]) -> Sequence[SettlementResult]:
        """Send `settleFeesWithTEE` from the provider's wallet, wait, and return what came of each item."""
        ...
