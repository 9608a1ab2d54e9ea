"""`zg inference`: providers, models, verification, keys, chat. The local servers are in `serve`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zg_async.cli.ledger import receipt_fields
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import coins, confirm, emit, note, table, tick, to_plain
from zg_async.cli.params import AnyModel, Invalid, OutputDir, Provider
from zg_async.cli.verification_view import on_log, verification_end
from zg_async.errors import AccountNotFoundError
from zg_async.text import printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.managers.chat import ChatStream
    from zg_async.wire.catalogue import InferenceServiceDetail, ModelInfo
    from zg_async.wire.records import ChatAnswer, SessionToken

TokenId = Annotated[int, Parameter(name="--token-id")]
AnyTokenId = Annotated[int | None, Parameter(name="--token-id")]


async def list_providers(*, include_invalid: Invalid = False, where: Where = HERE) -> None:
    """List the inference providers with models and prices.

    Args:
        include_invalid: Also those whose TEE signer the contract's owner hasn't approved.
        where: Network, wallet and output.
    """
    await _list(include_invalid, where, detail=False)


async def list_providers_detail(*, include_invalid: Invalid = False, where: Where = HERE) -> None:
    """List the inference providers with everything known of them: limits, verification, health.

    Args:
        include_invalid: Also those whose TEE signer the contract's owner hasn't approved.
        where: Network, wallet and output.
    """
    await _list(include_invalid, where, detail=True)


async def get_models(*, provider: Provider, where: Where = HERE) -> None:
    """List the models a provider serves, as it says now.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        service = await broker.inference.get_service(provider)
        models = await broker.inference.get_provider_models(provider)
    rows = [(m.id, m.type, _model_price(m), m.health.status if m.health else "") for m in models]
    fields = {"provider": provider, "default_model": service.model, "items": [_model_fields(m) for m in models]}
    emit(
        where,
        "provider_models",
        fields,
        lambda: [f"Default model: {printable(service.model)}", table(rows, ("Model", "Type", "Pricing", "Health"))],
    )


async def acknowledge_provider(*, provider: Provider, where: Paying = PAYING) -> None:
    """Acknowledge a provider's TEE signer; where there is no sub-account yet, open one with the least there is.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        moved = 0
        try:
            receipt = await broker.inference.acknowledge_provider_signer(provider)
        except AccountNotFoundError:
            moved = (await broker.ledger.get_limits()).min_transfer_amount
            confirm(where, f"There is no sub-account at {provider}: move {format_amount(moved)} into a new one?")
            receipt = await broker.ledger.transfer_fund(provider, "inference", moved)
    text = "Provider acknowledged" + ("" if receipt else " already")
    fields = {"provider": provider, "amount": moved, "transaction": receipt_fields(receipt) if receipt else None}
    emit(where, "provider_acknowledged", fields, lambda: text)


async def verify(
    *, provider: Provider, output_dir: OutputDir = Path(), accept_changes: bool = False, where: Where = HERE
) -> int:
    """Verify the TEE a provider serves from; exits with 5 unless every needed check passes.

    Args:
        provider: The provider's address.
        output_dir: Gets the reports, and the record by which they can be checked again offline.
        accept_changes: Take over what differs from the last time.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        result = await broker.inference.verify_service(
            provider, output_dir, on_log(where), accept_changes=accept_changes
        )
    return verification_end(where, result)


async def download_report(
    *, provider: Provider, output: Annotated[Path, Parameter(name="--output")], where: Paying = PAYING
) -> None:
    """Save a provider's attestation report as it came.

    Args:
        provider: The provider's address.
        output: The file.
        where: Network, wallet and output.
    """
    async with open_broker(where, wallet=False) as broker:
        path = await broker.inference.download_quote_report(provider, output)
    emit(where, "report", {"path": path}, lambda: f"saved to {path}")


async def get_secret(
    *,
    provider: Provider,
    token_id: AnyTokenId = None,
    duration: Annotated[int, Parameter(name="--duration")] = 0,
    where: Where = HERE,
) -> None:
    """Make an API key for a provider's OpenAI-compatible endpoint. It is shown once.

    Args:
        provider: The provider's address.
        token_id: 0 to 254. Default: the lowest that is free.
        duration: Milliseconds it lives; 0: until it is revoked.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        key = await broker.inference.create_api_key(
            provider, token_id=token_id, expires_in=duration / 1000 if duration else None
        )
        service = await broker.inference.get_service_metadata(provider)
    fields = {**to_plain(key), "api_key": key.raw_token, "endpoint": service.endpoint, "model": service.model}
    emit(where, "api_key", fields, lambda: _key_lines(key, service.endpoint, service.model))


async def list_keys(*, provider: Provider, where: Where = HERE) -> None:
    """List the API keys made here for a provider, and whether each still works.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        keys = await broker.inference.list_api_keys(provider)
    rows = [(k.issued.token_id, k.issued.created_at, k.issued.expires_at or "never", tick(k.works)) for k in keys]
    fields = {"items": [{**to_plain(k), "works": k.works} for k in keys]}
    emit(where, "api_keys", fields, lambda: table(rows, ("Token ID", "Created At", "Expires At", "Works")))


async def revoke_token(*, provider: Provider, token_id: TokenId, where: Paying = PAYING) -> None:
    """Revoke one API key.

    Args:
        provider: The provider's address.
        token_id: Its id, 0 to 254.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        receipt = await broker.inference.revoke_api_key(provider, token_id)
    fields = {"provider": provider, "token_id": token_id, "transaction": receipt_fields(receipt)}
    emit(where, "token_revoked", fields, lambda: f"API key {token_id} revoked")


async def revoke_all_tokens(*, provider: Provider, where: Paying = PAYING) -> None:
    """Revoke every API key and session at a provider.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        receipt = await broker.inference.revoke_all_tokens(provider)
    fields = {"provider": provider, "token_id": None, "transaction": receipt_fields(receipt)}
    emit(where, "token_revoked", fields, lambda: "All API keys and sessions revoked")


async def chat(
    *,
    provider: Provider,
    message: Annotated[str, Parameter(name="--message", allow_leading_hyphen=True)],
    model: AnyModel = None,
    system: str | None = None,
    stream: bool = False,
    where: Where = HERE,
) -> None:
    """Ask a provider's model.

    Args:
        provider: The provider's address.
        message: What to say.
        model: A model. Default: the service's own.
        system: A system prompt.
        stream: Print the answer as it comes.
        where: Network, wallet and output.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": message})
    async with open_broker(where) as broker:
        if stream and not where.as_json:
            await show_answer(where, broker.inference.chat_stream(provider, messages, model=model))
        else:
            await show_answer(where, await broker.inference.chat(provider, messages, model=model))


# --- what they share --------------------------------------------------------------------------------------------------


async def show_answer(where: Where, answer: "ChatAnswer | ChatStream") -> None:
    """Show an answer, whole or as it comes, and what it cost."""
    from zg_async.managers.chat import ChatStream

    if isinstance(answer, ChatStream):
        async with answer as stream:
            async for chunk in stream:
                print("".join(_visible(chunk.content)), end="", flush=True)
            answer = await stream.answer()
        print()
    else:
        emit(where, "chat_answer", _answer_fields(answer), lambda: "".join(_visible(answer.content)))
    used = answer.usage
    tokens = f"{used.prompt_tokens} + {used.completion_tokens} tokens" if used else "tokens not told"
    fee = f", about {format_amount(answer.fee)}" if answer.fee is not None else ""
    proof = f", proof: {answer.proof.status.value}" if answer.proof else ""
    note(where, f"{tokens}{fee}{proof}")


def _visible(text: str) -> Iterator[str]:
    """An answer keeps its lines; everything else that moves a cursor becomes harmless."""
    for character in text:
        yield character if character in "\n\t" else printable(character)


def _answer_fields(answer: "ChatAnswer") -> dict[str, Any]:
    fields: dict[str, Any] = to_plain(answer)
    return fields


async def _list(include_invalid: bool, where: Where, *, detail: bool) -> None:
    async with open_broker(where, wallet=False) as broker:
        found = await broker.inference.list_service_with_detail(include_invalid)
    rows: list[tuple[str, str]] = []
    for number, service in enumerate(found, 1):
        rows += [(f"Provider {number}", service.service.provider), *_rows(service)]
        if detail:
            rows += _detail_rows(service)
    kind = "inference_providers_detail" if detail else "inference_providers"
    items = [to_plain(s) if detail else {**to_plain(s.service), "prices": to_plain(s.prices)} for s in found]
    emit(where, kind, {"items": items}, lambda: table(rows) if rows else "no providers")


def _rows(found: "InferenceServiceDetail") -> Iterable[tuple[str, str]]:
    service, prices = found.service, found.prices
    yield ("Model", service.model + (" and others" if found.info.multi_model else ""))
    yield ("Type", service.service_type)
    most = " (highest of its models)" if prices.is_maximum else ""
    for name, price in (
        ("Input Price Per Token", prices.per_input_token),
        ("Output Price Per Token", prices.per_output_token),
        ("Price Per Image", prices.per_image),
        ("Price Per Second", prices.per_second),
    ):
        if price:
            yield (f"{name} (0G)", coins(price) + most)
    for tier in prices.tiers:
        yield ("Price Tier", json.dumps(to_plain(tier), default=str))
    if prices.cache is not None:
        yield ("Cache Pricing", json.dumps(to_plain(prices.cache), default=str))
    yield ("Verifiability", service.verifiability or "none")
    yield ("Approved TEE Signer", tick(service.tee_signer_acknowledged))


def _detail_rows(found: "InferenceServiceDetail") -> Iterable[tuple[str, str]]:
    yield ("URL", found.service.url)
    yield ("Updated At", str(found.service.updated_at))
    if (model := found.model) is not None:
        yield ("Name", model.name)
        if model.context_length:
            yield ("Context Length", str(model.context_length))
    if (health := found.health) is not None:
        yield ("Health", f"{health.status}, up {health.uptime:g} %")
    else:
        yield ("Health", "not known")


def _model_fields(model: "ModelInfo") -> dict[str, Any]:
    fields: dict[str, Any] = to_plain(model)
    return fields


def _model_price(model: "ModelInfo") -> str:
    prices = {"prompt": model.prices.prompt, "completion": model.prices.completion, "image": model.prices.image}
    return ", ".join(f"{price:f} neuron per {name}" for name, price in prices.items() if price is not None)


def _key_lines(key: "SessionToken", endpoint: str, model: str) -> Iterable[str]:
    ends = key.expires_at.isoformat() if key.expires_at else "never"
    yield f"API key {key.token_id} (expires {ends}):"
    yield key.raw_token
    yield f"OPENAI_BASE_URL={endpoint}"
    yield f"model: {printable(model)}"
    yield f"revoke it with: zg inference revoke-token --provider {key.provider} --token-id {key.token_id}"
