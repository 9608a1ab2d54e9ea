"""A wallet's open tasks everywhere, as providers and chain know them: what a guardian has to look after."""

import dataclasses
from collections.abc import Mapping
from typing import Final

import anyio

from zg_async.errors import ProviderUnavailableError, ZgError
from zg_async.managers.context import Context
from zg_async.managers.pages import MOST_ACCOUNTS, PAGE, read_pages
from zg_async.managers.provider_client import ProviderClient
from zg_async.wire.records import (
    Address,
    Deliverable,
    FineTuningAccountDetails,
    FineTuningService,
    Task,
    TaskId,
)

_ASK_SECONDS: Final = 30.0
"""How long one provider may take to answer before the look goes on without it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenTask:
    """A task that isn't finished and whose delivery, if there is one, isn't acknowledged."""

    provider: Address
    task_id: TaskId
    service: FineTuningService | None
    """None: the provider isn't registered any more."""
    task: Task | None
    """The provider's record; None: it doesn't know the task, or didn't answer."""
    deliverable: Deliverable | None
    """The delivery on chain."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenTasks:
    """What one look found."""

    tasks: tuple[OpenTask, ...]
    services: Mapping[Address, FineTuningService]
    """All registered providers, as the chain knows them now."""
    silent: Mapping[Address, ZgError]
    """Providers that didn't answer; of their tasks only deliveries are known."""


async def read_open_tasks(ctx: Context) -> OpenTasks:
    """Ask the chain, and every provider where the wallet has a sub-account; without one there is no task."""
    contract, wallet = ctx.services.fine_tuning, ctx.wallet
    rows = await read_pages(
        lambda offset: ctx.chain.call(contract.get_accounts_by_user(wallet, offset, PAGE)), most=MOST_ACCOUNTS
    )
    services = {s.provider: s for s in await ctx.services.fine_tuning_services()}
    found = await ctx.chain.call_many([contract.get_account(wallet, row.provider) for row in rows])
    accounts = {a.provider: a for a in found if isinstance(a, FineTuningAccountDetails)}
    answers: dict[Address, tuple[Task, ...] | ZgError] = {}

    async def ask(service: FineTuningService) -> None:
        client = ProviderClient(ctx.http, service.url, service.provider, ctx.clock)
        answers[service.provider] = ProviderUnavailableError("no answer in time", provider=service.provider)
        try:
            with anyio.move_on_after(_ASK_SECONDS):
                answers[service.provider] = await client.list_tasks(wallet)
        except ZgError as error:
            answers[service.provider] = error

    async with anyio.create_task_group() as group:
        for provider in accounts:
            if provider in services:
                group.start_soon(ask, services[provider])
    tasks = [
        task
        for provider, account in accounts.items()
        for task in _open(account, services.get(provider), answers.get(provider, ()))
    ]
    silent = {provider: answer for provider, answer in answers.items() if isinstance(answer, ZgError)}
    return OpenTasks(tasks=tuple(tasks), services=services, silent=silent)


def _open(
    account: FineTuningAccountDetails, service: FineTuningService | None, answer: tuple[Task, ...] | ZgError
) -> list[OpenTask]:
    """Join both witnesses; the chain is believed where they differ."""
    known = {task.id: task for task in answer} if not isinstance(answer, ZgError) else {}
    delivered = {d.id: d for d in account.deliverables}
    ids = [d.id for d in account.deliverables if not (d.acknowledged or d.settled)]
    ids += [task.id for task in known.values() if not task.is_terminal and task.id not in delivered]
    return [
        OpenTask(
            provider=account.provider,
            task_id=task_id,
            service=service,
            task=known.get(task_id),
            deliverable=delivered.get(task_id),
        )
        for task_id in ids
    ]
