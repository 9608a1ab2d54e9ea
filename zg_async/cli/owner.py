"""Commands of the contracts' owner: approve providers' TEE signers, or take that back."""

from zg_async.cli.ledger import receipt_fields
from zg_async.cli.opening import PAYING, Paying, open_broker
from zg_async.cli.output import emit
from zg_async.cli.params import Provider, ServiceType


async def approve_fine_tuning(*, provider: Provider, where: Paying = PAYING) -> None:
    """Approve a provider's TEE signer for fine-tuning. For the contract's owner.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    await _decide("fine-tuning", provider, where, approved=True)


async def revoke_fine_tuning(*, provider: Provider, where: Paying = PAYING) -> None:
    """Take the approval of a provider's TEE signer for fine-tuning back. For the contract's owner.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    await _decide("fine-tuning", provider, where, approved=False)


async def approve_inference(*, provider: Provider, where: Paying = PAYING) -> None:
    """Approve a provider's TEE signer for inference. For the contract's owner.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    await _decide("inference", provider, where, approved=True)


async def revoke_inference(*, provider: Provider, where: Paying = PAYING) -> None:
    """Take the approval of a provider's TEE signer for inference back. For the contract's owner.

    Args:
        provider: The provider's address.
        where: Network, wallet and output.
    """
    await _decide("inference", provider, where, approved=False)


async def _decide(service: ServiceType, provider: str, where: Paying, *, approved: bool) -> None:
    async with open_broker(where) as broker:
        manager = broker.fine_tuning if service == "fine-tuning" else broker.inference
        decide = manager.acknowledge_tee_signer_by_owner if approved else manager.revoke_tee_signer_acknowledgement
        receipt = await decide(provider)
    kind, said = ("owner_approval", "approved") if approved else ("owner_revocation", "revoked")
    emit(where, kind, {"provider": provider, "transaction": receipt_fields(receipt)}, lambda: said)
