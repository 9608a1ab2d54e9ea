"""Lists in pages: read to the end, whatever changes meanwhile, and no further than there can be rows."""

import datetime as dt
from types import SimpleNamespace

import pytest

from tests.clock import FakeClock
from zg_async.errors import RpcError
from zg_async.managers.pages import PAGE, read_pages
from zg_async.managers.services import ServiceDirectory
from zg_async.networks import NETWORKS
from zg_async.wire.records import Address, InferenceService


def pages(rows, asked, *, total=None):
    async def ask(offset):
        asked.append(offset)
        return rows[offset : offset + PAGE], len(rows) if total is None else total

    return ask


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 100, 120])
async def test_all_pages_are_read_and_none_twice(count):
    asked = []
    assert await read_pages(pages(list(range(count)), asked), most=1000) == list(range(count))
    assert asked == list(range(0, max(count, 1), PAGE))


async def test_a_first_page_that_is_known_is_not_asked_for():
    asked = []
    rows = list(range(70))
    assert await read_pages(pages(rows, asked), most=1000, first=(rows[:PAGE], 70)) == rows
    assert asked == [PAGE]


async def test_a_list_that_shrinks_ends():
    assert await read_pages(pages([1, 2, 3], [], total=500), most=1000) == [1, 2, 3]


@pytest.mark.parametrize("total", [1001, 10**30])
async def test_a_node_that_never_ends_is_stopped(total):
    asked = []

    async def endless(offset):
        asked.append(offset)
        return [0] * PAGE, total

    with pytest.raises(RpcError, match="at most 1000"):
        await read_pages(endless, most=1000)
    assert len(asked) == 1


async def test_a_node_that_adds_rows_for_ever_is_stopped():
    async def growing(offset):
        return [0] * PAGE, min(offset + 2 * PAGE, 1000)

    async def beyond(offset):
        return [0] * PAGE, offset + PAGE + 1

    assert len(await read_pages(growing, most=1000)) == 1000
    with pytest.raises(RpcError, match="at most 1000"):
        await read_pages(beyond, most=1000)


async def test_services_are_listed_to_the_end_and_one_that_moved_meanwhile_is_listed_once():
    made = [
        InferenceService(
            provider=Address(f"0x{number:040x}"),
            service_type="chatbot",
            url="https://p.example",
            input_price=1,
            output_price=1,
            updated_at=dt.datetime.now(dt.UTC),
            model="m",
            verifiability="TeeML",
            additional_info="{}",
            tee_signer_address=Address("0x" + "11" * 20),
            tee_signer_acknowledged=True,
        )
        for number in range(1, 131)
    ]
    made[60] = made[3]
    asked = []
    ask = pages(made, asked)
    network = NETWORKS["testnet"]
    directory = ServiceDirectory(network, SimpleNamespace(call=ask), FakeClock())
    directory.inference = SimpleNamespace(get_all_services=lambda offset, limit: offset)
    found = await directory.inference_services()
    assert [s.provider for s in found] == [s.provider for n, s in enumerate(made) if n != 60]
    assert asked == [0, 50, 100]
