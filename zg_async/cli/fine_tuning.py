"""`zg fine-tuning`: providers, models and datasets. Tasks are in `tasks`, deliveries in `deliveries`."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zg_async.cli import storage
from zg_async.cli.ledger import receipt_fields
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import UNIT, coins, emit, note, table, tick
from zg_async.cli.params import AnyProvider, DataPath, Infer, Invalid, Model, OutputDir, Provider
from zg_async.cli.verification_view import on_log, verification_end

if TYPE_CHECKING:
    from zg_async.managers.tokens import TokenCount
    from zg_async.wire.records import ModelCatalogue

_FOOTNOTE = "Prices are per token today; the heading is that of the first release."


async def list_providers(*, include_invalid: Invalid = False, infer: Infer = False, where: Where = HERE) -> None:
    """List the fine-tuning providers.

    Args:
        include_invalid: Also those whose TEE signer the contract's owner hasn't approved.
        infer: List inference providers instead.
        where: Network, wallet and output.
    """
    if infer:
        from zg_async.cli import inference

        await inference.list_providers(include_invalid=include_invalid, where=where)
        return
    async with open_broker(where, wallet=False) as broker:
        services = await broker.fine_tuning.list_service(include_invalid)
    rows: list[tuple[str, str]] = []
    for number, service in enumerate(services, 1):
        rows += [
            (f"Provider {number}", service.provider),
            ("Available", tick(not service.occupied)),
            (f"Price Per Byte in Dataset ({UNIT})", coins(service.price_per_token)),
        ]
    emit(where, "fine_tuning_providers", {"items": services}, lambda: table(rows) if rows else "no providers")
    note(where, _FOOTNOTE)


async def list_models(*, where: Where = HERE) -> None:
    """List what can be trained: the network's predefined models, and those providers offer themselves.

    Args:
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        catalogue = await broker.fine_tuning.list_model()
    emit(where, "models", catalogue, lambda: _model_tables(catalogue))
    for provider in catalogue.unreachable:
        note(where, f"{provider} announces models of its own and doesn't answer")


async def model_usage(
    *, provider: Provider, model: Model, output: Annotated[Path, Parameter(name="--output")], where: Where = HERE
) -> None:
    """Save a provider's document on one of its own models.

    Args:
        provider: The provider's address.
        model: One of its own models; predefined ones have no such document.
        output: A file, or a folder that gets `<model>.zip`.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        path = await broker.fine_tuning.model_usage(provider, model, output)
    emit(where, "model_usage", {"path": path}, lambda: f"saved to {path}")


async def verify(
    *, provider: Provider, output_dir: OutputDir = Path(), accept_changes: bool = False, where: Where = HERE
) -> int:
    """Verify a provider's TEE; exits with 5 unless every needed check passes.

    Args:
        provider: The provider's address.
        output_dir: Gets the report, and the record by which it can be checked again offline.
        accept_changes: Take over what differs from the last time.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        result = await broker.fine_tuning.verify_service(
            provider, output_dir, on_log(where), accept_changes=accept_changes
        )
    return verification_end(where, result)


async def upload(*, data_path: DataPath, public: bool = False, where: Paying = PAYING) -> int:
    """Check a dataset and store it in 0G Storage; the root is what a task names.

    Args:
        data_path: A JSONL file.
        public: Agree that everybody can read it for ever; needed on public networks.
        where: Network, wallet and output.
    """
    from zg_async.managers.dataset import check_dataset, require_usable

    require_usable(data_path, await check_dataset(data_path, max_size=None, tee=False))
    return await storage.upload(data_path=data_path, public=public, where=where)


async def calculate_token(
    *,
    model: Model,
    dataset_path: Annotated[Path, Parameter(name="--dataset-path")],
    provider: AnyProvider = None,
    tokenizer: Path | None = None,
    where: Where = HERE,
) -> None:
    """Count a dataset's tokens by the provider's rule.

    Args:
        model: The base model.
        dataset_path: A JSONL file.
        provider: Asked for the model if it isn't a predefined one.
        tokenizer: The model's tokenizer.json; without it the answer is a range.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        await broker.fine_tuning.calculate_token(dataset_path, model, provider_address=provider)
        count = await broker.fine_tuning.count_tokens(dataset_path, tokenizer=tokenizer)
    emit(where, "token_count", {"model": model, **count_fields(count)}, lambda: count_text(count))


async def download_counter(*, where: Where = HERE) -> None:
    """Say what counting tokens needs: no program has to be downloaded for it any more.

    Args:
        where: Network, wallet and output.
    """
    exact = importlib.util.find_spec("tokenizers") is not None
    advice = "give --tokenizer for exact figures" if exact else "pip install 'zg-async[tokens]' for exact figures"
    emit(
        where,
        "token_counter",
        {"download_needed": False, "exact_counting_installed": exact},
        lambda: f"nothing to download: `zg fine-tuning calculate-token` counts by itself; {advice}",
    )


async def remove_service(*, where: Paying = PAYING) -> None:
    """Withdraw the wallet's own fine-tuning service and its stake. For providers.

    Args:
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        receipt = await broker.fine_tuning.remove_service()
    emit(where, "service_removed", {"transaction": receipt_fields(receipt)}, lambda: "Service removed")


# --- what they share --------------------------------------------------------------------------------------------------


def count_fields(count: "TokenCount") -> dict[str, object]:
    """Return a token count as plain values."""
    return {
        "low": count.low,
        "high": count.high,
        "likely": count.likely,
        "rows": count.rows,
        "method": count.method,
        "is_exact": count.is_exact,
    }


def count_text(count: "TokenCount") -> str:
    """Say a token count."""
    if count.is_exact:
        return f"{count.low} tokens in {count.rows} rows"
    return f"{count.low} to {count.high} tokens in {count.rows} rows, likely about {count.likely}"


def _model_tables(catalogue: "ModelCatalogue") -> Iterable[str]:
    rows = [(m.name, m.description) for m in catalogue.predefined]
    yield table(rows, ("Name", "Description"), title="Predefined Model:")
    own = [(m.name, m.description, m.provider) for m in catalogue.customised]
    if own:
        yield table(own, ("Name", "Description", "Provider"), title="Provider's Model:")
