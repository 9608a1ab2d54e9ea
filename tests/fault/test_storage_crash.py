"""Crash at every outward call of an upload, before or after it, then go on under the same key: one payment each."""

import pytest

from tests.devnet.storage_kit import make_file, storage_devnet
from zg_async.broker import create_broker
from zg_async.errors import ClosedError
from zg_async.transport.rpc import Rpc
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.transport.storage_nodes import NodeClient
from zg_async.wire.contracts import FlowContract

pytestmark = pytest.mark.slow
OUTWARD = ((Rpc, "_exchange"), (SqliteOutbox, "append"), (NodeClient, "_once"))


class Crash(BaseException):
    """The process is gone: nothing may catch this."""


class Script:
    """Counts outward calls and ends the world at one of them."""

    def __init__(self, at, when):
        self.at, self.when, self.count = at, when, 0
        self.fired = ""

    def wrap(self, monkeypatch, owner, name):
        original = getattr(owner, name)

        async def call(*arguments, **more):
            here, self.count = self.count, self.count + 1
            if here == self.at and self.when == "before":
                self.fired = name
                raise Crash
            result = await original(*arguments, **more)
            if here == self.at and self.when == "after":
                self.fired = name
                raise Crash
            return result

        monkeypatch.setattr(owner, name, call)


def is_crash(error):
    if isinstance(error, BaseExceptionGroup):
        return all(is_crash(inner) for inner in error.exceptions)
    return isinstance(error, Crash | ClosedError)  # the latter where a background task of the chain crashed


@pytest.mark.goal("DUR-03", part="crash at each call of a storage upload")
@pytest.mark.parametrize(("when", "skip_existing"), [("before", True), ("after", False)])
async def test_a_crash_at_any_outward_call_of_an_upload_costs_one_payment(tmp_path, when, skip_existing):
    async with storage_devnet(1) as devnet:
        flow = FlowContract(devnet.storage.flow.address)

        async def upload(number):
            broker = create_broker(
                devnet.accounts[0].private_key,
                "local",
                rpc_url=devnet.rpc_url,
                indexer_url=devnet.storage.indexer.url,
                state_dir=tmp_path / "state",
            )
            source = make_file(tmp_path / f"source-{number}", 1000, number)
            async with broker:
                return await broker.storage.upload(source, key=f"job/{number}", skip_existing=skip_existing)

        async def crashed(number):
            with pytest.MonkeyPatch.context() as patch:
                script = Script(number, when)
                for owner, name in OUTWARD:
                    script.wrap(patch, owner, name)
                try:
                    await upload(number)
                except BaseException as error:
                    if not is_crash(error):
                        raise
                return script.fired

        number, kinds = 0, set()
        while kind := await crashed(number):
            kinds.add(kind)
            stored = await upload(number)
            number += 1
            assert (stored.size, await devnet.client.call(flow.num_submissions())) == (1000, number)
            assert number < 60
        assert kinds == {name for _, name in OUTWARD}
        assert number >= 8  # indexer, status, info, prices, balance, quote, append, send, entry, segment, finality
