"""Small files that many jobs of one process write at the same moment."""

import logging
import threading
from pathlib import Path

import anyio

from tests.clock import FakeClock
from zg_async.managers import verification
from zg_async.managers.dataset_sources import DatasetBook
from zg_async.wire.records import Address

WRITERS = 24


async def test_datasets_that_were_sent_at_the_same_time_are_all_remembered(tmp_path, caplog):
    books = [DatasetBook(tmp_path, genesis="0x" + "ab" * 32, clock=FakeClock()) for _ in range(WRITERS)]
    wallet, providers = Address("0x1"), [Address(f"0x{n:040x}") for n in range(WRITERS)]
    with caplog.at_level(logging.WARNING):
        async with anyio.create_task_group() as group:
            for book, provider in zip(books, providers, strict=True):
                group.start_soon(book.note, wallet, provider, "0xaa")
    assert caplog.records == []
    assert [provider for provider in providers if not await books[0].has(wallet, provider, "0xaa")] == []


def test_what_was_pinned_of_one_provider_by_several_jobs_is_one_of_their_files(tmp_path, monkeypatch):
    path, errors, written = tmp_path / "pins.json", [], threading.Barrier(WRITERS)
    replace = Path.replace

    def when_all_have_written(part, target):
        written.wait(60)
        return replace(part, target)

    def write(number):
        try:
            verification._put(path, str(number).encode())
        except verification.ConfigError as error:
            errors.append(error)

    monkeypatch.setattr(Path, "replace", when_all_have_written)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert int(path.read_bytes()) in range(WRITERS)
    assert [file.name for file in tmp_path.iterdir()] == ["pins.json"]
