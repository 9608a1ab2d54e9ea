"""What a provider takes for a model: parameters with bounds, dataset formats, size, price."""

import dataclasses
from typing import Final

from zg_async.wire.records import Address, FineTuningService, Model
from zg_async.wire.rows import MAX_TEE_SIZE, PARAMETER_LIMITS, ParameterLimit, RowFormat

TEE_FORMATS: Final = (RowFormat.INSTRUCTION, RowFormat.MESSAGES)
STORAGE_FORMATS: Final = (*TEE_FORMATS, RowFormat.TEXT)
MAX_ROW_TOKENS: Final = 512
"""The trainer cuts longer rows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a provider takes for a model. Rules of the newest provider; only price and model are its own answer."""

    provider: Address
    model: Model
    parameters: tuple[ParameterLimit, ...]
    """All training parameters; each has to be given, and no other."""
    dataset_formats: tuple[RowFormat, ...]
    """What rows may look like in an upload to the provider; a file's first row decides for all."""
    storage_formats: tuple[RowFormat, ...]
    """The same for a dataset that goes through 0G Storage: a provider's TEE empties `text` rows of its own uploads."""
    max_dataset_bytes: int
    """Of an upload to the provider; through 0G Storage there is no such limit."""
    max_row_tokens: int
    """What is behind them in a row isn't trained on."""
    price_per_token: int
    """Neuron, for each token and epoch, the model's coefficient included."""
    storage_fee: int
    """Neuron added to each task's fee."""


def limits_of(service: FineTuningService, model: Model) -> ModelLimits:
    """Put together what is known of a model at a provider."""
    return ModelLimits(
        provider=service.provider,
        model=model,
        parameters=PARAMETER_LIMITS,
        dataset_formats=TEE_FORMATS,
        storage_formats=STORAGE_FORMATS,
        max_dataset_bytes=MAX_TEE_SIZE,
        max_row_tokens=MAX_ROW_TOKENS,
        price_per_token=service.price_per_token * model.price_coefficient,
        storage_fee=model.storage_fee,
    )
