"""Inference: services, session tokens and API keys, funds, chat, images and speech. Adapters are in `lora`.

Listing, tokens and headers never move money; `ensure_funds` does, and an `AutoFunding` policy.
Protocol: 0g-serving-broker api/inference, 0g-serving-contract contracts/inference.
"""

from zg_async.managers.context import Context
from zg_async.managers.inference_services import InferencePolicy
from zg_async.managers.lora import LoraManager
from zg_async.managers.media import InferenceMedia
from zg_async.managers.provider_side import ProviderSide
from zg_async.transport.key_book import KeyBook


class InferenceManager(InferenceMedia, ProviderSide):
    """Inference with one wallet."""

    def __init__(self, context: Context, policy: InferencePolicy | None = None, keys: KeyBook | None = None) -> None:
        """Bind to a wallet.

        Args:
            context: The wallet and its transports.
            policy: How providers are talked to.
            keys: Remembers the API keys issued; None: only while this object lives.
        """
        super().__init__(context, policy, keys)
        self.lora = LoraManager(context, self)
