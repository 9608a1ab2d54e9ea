"""What somebody who runs a provider, or owns the contracts, does with the wallet of it."""

import dataclasses
import datetime as dt
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import anyio
import anyio.to_thread

from zg_async.errors import ConfigError, ProviderReplyError
from zg_async.managers.controller import Controller
from zg_async.managers.inference_funds import InferenceFunds
from zg_async.transport.files import publish
from zg_async.wire import signing
from zg_async.wire.controller_api import controller_url
from zg_async.wire.hashing import parse_address
from zg_async.wire.provider_api import QUOTE_LIMIT, quote_path
from zg_async.wire.records import Receipt
from zg_async.wire.strict_json import BadJsonError, decode_json

Component = Literal["broker", "event", "both"]
LOG_LIMIT: Final = 64 * 2**20
"""Bytes of a provider's log file that are read."""
_LIST_LIMIT: Final = 1024 * 1024
_TOKEN_SECONDS: Final = 60
_OWN_TOKEN: Final = 255
_NOBODY: Final = "0x" + "0" * 40


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A log file on a provider's machine."""

    component: str
    """`broker` or `event`."""
    name: str
    size: int
    modified_at: dt.datetime
    is_current: bool


class ProviderSide(InferenceFunds):
    """Requests of a provider about itself, and of the contracts' owner."""

    async def download_quote_report(self, provider: str, output_path: str | os.PathLike[str]) -> Path:
        """Save a provider's attestation report as it came, without judging it.

        Args:
            provider: The provider's address.
            output_path: The file; it is replaced when the report is whole.
        """
        service = await self.get_service(provider)
        url = service.url.rstrip("/") + quote_path()
        reply = await self._ctx.http.request("GET", url, limit=QUOTE_LIMIT, provider=service.provider, limited=True)
        return await anyio.to_thread.run_sync(_save, Path(output_path), reply.body)

    async def acknowledge_tee_signer_by_owner(self, provider: str, *, key: str | None = None) -> Receipt:
        """Approve a provider's TEE signer. Only the contract's owner can.

        Raises:
            ContractRevertedError: This wallet isn't the owner, or the provider isn't registered.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.write(self._contract.acknowledge_tee_signer_by_owner(address), key=key)

    async def revoke_tee_signer_acknowledgement(self, provider: str, *, key: str | None = None) -> Receipt:
        """Take the approval of a provider's TEE signer back. Only the contract's owner can.

        Raises:
            ContractRevertedError: This wallet isn't the owner.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.write(self._contract.revoke_tee_signer_acknowledgement(address), key=key)

    async def add_service(
        self,
        *,
        url: str,
        model: str,
        input_price: int,
        output_price: int,
        stake: int,
        service_type: str = "chatbot",
        verifiability: str = "TeeML",
        additional_info: str = "{}",
        tee_signer: str = _NOBODY,
        key: str | None = None,
    ) -> Receipt:
        """Register this wallet as an inference provider.

        Args:
            url: Where it serves.
            model: What it serves.
            input_price: Neuron per input token.
            output_price: Neuron per output token.
            stake: Neuron to stake, at least what the contract demands; it comes back with `remove_service`.
            service_type: What it serves, for example `chatbot`.
            verifiability: How its answers can be verified; `TeeML`, or empty.
            additional_info: JSON with what else there is to say.
            tee_signer: Who signs its answers.
            key: Names the effect in the outbox.

        Raises:
            ContractRevertedError: The stake is too small, or it is registered already.
        """
        call = self._contract.add_or_update_service(
            service_type=service_type,
            url=url,
            model=model,
            verifiability=verifiability,
            input_price=input_price,
            output_price=output_price,
            additional_info=additional_info,
            tee_signer_address=parse_address(tee_signer, what="TEE signer"),
            value=stake,
        )
        return await self._ctx.write(call, key=key)

    async def update_service(
        self,
        *,
        url: str | None = None,
        model: str | None = None,
        input_price: int | None = None,
        output_price: int | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Change this wallet's own inference service; what isn't named stays as it is.

        Another model takes the owner's approval of the TEE signer away; URL and prices don't.

        Args:
            url: Where it serves.
            model: What it serves.
            input_price: Neuron per input token.
            output_price: Neuron per output token.
            key: Names the effect in the outbox.

        Raises:
            NoInferenceServiceError: The wallet has no service.
            ConfigError: Nothing was named.
        """
        if url is None and model is None and input_price is None and output_price is None:
            raise ConfigError("nothing to change was named", hint="Give url, model, input_price or output_price")
        now = await self.get_service(self._ctx.wallet)
        call = self._contract.add_or_update_service(
            service_type=now.service_type,
            url=now.url if url is None else url,
            model=now.model if model is None else model,
            verifiability=now.verifiability,
            input_price=now.input_price if input_price is None else input_price,
            output_price=now.output_price if output_price is None else output_price,
            additional_info=now.additional_info,
            tee_signer_address=now.tee_signer_address,
        )
        return await self._ctx.write(call, key=key)

    async def remove_service(self, *, key: str | None = None) -> Receipt:
        """Withdraw this wallet's own inference service; its stake comes back.

        Raises:
            ServiceNotFoundError: The wallet has no service.
        """
        return await self._ctx.write(self._contract.remove_service(), key=key)

    async def list_logs(self, component: Component = "both") -> tuple[LogFile, ...]:
        """List the log files of this wallet's own provider.

        Args:
            component: `broker`, `event` or both.

        Raises:
            NoInferenceServiceError: The wallet has no service.
            ProviderRejectedError: The provider doesn't take this wallet for its own.
        """
        value: Any = None
        body = await self._own(f"/v1/logs?component={component}", _LIST_LIMIT)
        try:
            value = decode_json(body, limit=_LIST_LIMIT)
            rows = [_log_file(row) for row in value["logs"] or ()]
        except (BadJsonError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProviderReplyError("the provider's list of log files can't be read") from error
        return tuple(rows)

    async def get_provider_log(self, component: Literal["broker", "event"], name: str) -> str:
        """Read a log file of this wallet's own provider.

        Args:
            component: `broker` or `event`.
            name: As `list_logs` has it.
        """
        body = await self._own(f"/v1/logs/{component}/{quote(name, safe='')}", LOG_LIMIT)
        return body.decode("utf-8", "replace")

    async def controller(self, endpoint: str | None = None) -> Controller:
        """Return the controller of this wallet's own provider.

        Args:
            endpoint: Its URL, whose host is allowed; None: derived from the registered service's.

        Raises:
            NoInferenceServiceError: The wallet has no service to derive it from.
            ConfigError: It can't be derived.
        """
        if endpoint is None:
            endpoint = controller_url((await self.get_service(self._ctx.wallet)).url)
        else:
            self._ctx.http.allow(endpoint)
        return Controller(self._ctx, endpoint)

    async def _own(self, path: str, limit: int) -> bytes:
        service = await self.get_service(self._ctx.wallet)
        reply = await self._ctx.http.request(
            "GET",
            service.url.rstrip("/") + path,
            headers=await self._own_headers(),
            limit=limit,
            provider=service.provider,
            signed=True,
        )
        return reply.body

    async def _own_headers(self) -> Mapping[str, str]:
        """Prove that this wallet is the provider (inference.md 5.4)."""
        wallet = self._ctx.wallet
        now = int(self._ctx.clock.now() * 1000)
        raw = signing.session_token_json(
            address=wallet,
            provider=wallet,
            timestamp_ms=now,
            expires_at_ms=now + _TOKEN_SECONDS * 1000,
            nonce=secrets.token_hex(16),
            generation=0,
            token_id=_OWN_TOKEN,
        )
        signature = await self._ctx.sign(signing.session_token_hash(raw), purpose="provider token", provider=wallet)
        return {
            "Address": wallet,
            "Session-Token": raw,
            "Session-Signature": signing.signature_hex(signature),
        }


def _log_file(row: Mapping[str, Any]) -> LogFile:
    return LogFile(
        component=str(row["component"]),
        name=str(row["name"]),
        size=int(row["size"]),
        modified_at=dt.datetime.fromtimestamp(int(row["modifiedTime"]), dt.UTC),
        is_current=bool(row.get("isCurrentLog")),
    )


def _save(path: Path, body: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(body)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="Check the path") from error
    publish(part, path)
    return path
