"""Delivery: zip, encrypt, hand the key to the inference side, put the hash on chain (fine-tuning.md 12.2, 14)."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import anyio.to_thread

from zg_async.devnet.provider_rules import StepError
from zg_async.devnet.provider_store import ProviderTask
from zg_async.devnet.storage_network import hash_path
from zg_async.errors import PreviousDeliverableNotAcknowledgedError
from zg_async.wire.envelope import ecies_encrypt, public_key
from zg_async.wire.hashing import hex0x
from zg_async.wire.signing import eip191_hash, session_token_hash, session_token_json, sign_digest, signature_hex

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

_KEY_PUSHES: Final = 3


class Delivery:
    """Delivers one provider's trained models."""

    def __init__(self, node: "ProviderNode") -> None:
        """Deliver for a provider."""
        self._node = node

    async def deliver(self, task: ProviderTask) -> None:
        """Deliver a task's output; raises whatever a retry may mend."""
        node = self._node
        if node.faults.strikes("fail_delivery"):
            raise StepError("upload failed: devnet fault")
        await self._check_previous(task)
        signer = secrets.token_bytes(32) if node.faults.strikes("bad_signature") else node.tee_key
        key, digest = await anyio.to_thread.run_sync(
            node.files.encrypt_output, task.id, lambda tags: sign_digest(signer, tags)
        )
        if node.settings.root == "storage":
            digest = await self._store(node.files.encrypted(task.id))
        task.secret, task.root_hash = key.hex(), hex0x(digest)
        await self._hand_key_over(task, key)
        try:
            await node.wallet.send(node.contract.add_deliverable(task.user, task.id, digest))
        except PreviousDeliverableNotAcknowledgedError as error:
            raise StepError("previous deliverable not acknowledged", final=True) from error
        task.deliver_time = int(node.now())
        await node.clock.sleep(node.settings.delivered_lag)

    async def _store(self, path: Path) -> bytes:
        """Put the encrypted model into 0G Storage, where there is one; return its root."""
        storage = self._node.storage
        if storage is None:
            return (await anyio.to_thread.run_sync(hash_path, path)).root
        return await storage.put_file(path, self._node.wallet)

    async def _check_previous(self, task: ProviderTask) -> None:
        node = self._node
        account = await node.client.call(node.contract.get_account(task.user, node.address))
        if account.deliverables and not account.deliverables[-1].acknowledged:
            raise StepError("previous deliverable not acknowledged", final=True)

    async def _hand_key_over(self, task: ProviderTask, key: bytes) -> None:
        """Give the inference side the file's key, wrapped for their common wallet (inference.md 12.2)."""
        node = self._node
        if node.inference_url is None:
            return
        wrapped = ecies_encrypt(public_key(node.wallet.private_key), key)
        body = {
            "taskId": task.id,
            "storageHash": task.root_hash,
            "providerEncKey": wrapped.hex(),
            "teeSignerAddress": node.tee_signer,
        }
        problem = ""
        for _ in range(_KEY_PUSHES):
            try:
                headers = provider_headers(node.wallet.private_key, node.address, node.clock.now())
                url = f"{node.inference_url}/internal/v1/adapter-keys"
                async with node.session.post(url, json=body, headers=headers) as reply:
                    if reply.status == 200:
                        return
                    problem = f"status {reply.status}: {(await reply.text())[:200]}"
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = repr(error)
            await node.clock.sleep(node.settings.tick)
        raise StepError(f"push adapter key: {problem}")


def provider_headers(private_key: bytes, address: str, now: float) -> dict[str, str]:
    """Return the three headers by which a provider proves itself to its own inference side."""
    stamp = int(now * 1000)
    token = session_token_json(
        address=address,
        provider=address,
        timestamp_ms=stamp,
        expires_at_ms=stamp + 60_000,
        nonce=secrets.token_hex(16),
        generation=0,
        token_id=255,
    )
    signature = sign_digest(private_key, eip191_hash(session_token_hash(token)))
    return {"Address": address, "Session-Token": token, "Session-Signature": signature_hex(signature)}
