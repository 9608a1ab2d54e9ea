"""What every test gets: a working aioresponses, and a check that it leaves no task behind."""

import asyncio
import inspect
import signal
import sys
from collections.abc import AsyncGenerator, Generator, Iterator
from unittest import mock

import aiohttp
import aioresponses.core
import pytest

from tests.canary import SuiteWatch
from tests.clock import FakeClock
from tests.goals import Collector, note_marks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goals", action="store_true", help="write .goals-report.json for `python -m tests.goals`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    note_marks(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a test printed writable: a worker process can't send lone surrogates."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's `&` does that, and what tests start inherits it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--goals") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector())


def pytest_collection_finish() -> None:
    """Undo what importing eth_account and py-evm does to a process: deep JSON would end it instead of a test."""
    sys.setrecursionlimit(min(sys.getrecursionlimit(), 12_288))  # what devnet/evm.py needs


def _mend_aioresponses() -> None:
    """Let aioresponses 0.7.9 make answers with aiohttp >= 3.14 (its issue 289) and bodies over the read buffer."""
    if "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters:

        class Response(aiohttp.ClientResponse):
            def __init__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
                kwargs.setdefault("stream_writer", mock.Mock(output_size=0))
                super().__init__(*args, **kwargs)

        aioresponses.core.ClientResponse = Response
    make = aioresponses.core.stream_reader_factory

    def factory(*args, **kwargs):  # type: ignore[no-untyped-def]
        reader = make(*args, **kwargs)
        reader._protocol._parser = mock.Mock()
        return reader

    aioresponses.core.stream_reader_factory = factory


_mend_aioresponses()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
async def _no_task_left() -> AsyncGenerator[None, None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(20):
        left = [t for t in asyncio.all_tasks() - before - {asyncio.current_task()} if not t.done()]
        if not left:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail(f"tasks left behind: {[t.get_name() + ' ' + repr(t.get_coro()) for t in left]}")


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests has profiles and jobs of their own: neither is touched, neither has a say."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZG_STATE_DIR", str(folder / "state"))
        patch.setenv("ZG_CONFIG", str(folder / "config.json"))
        yield


@pytest.fixture(scope="session")
def suite_watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuiteWatch]:
    with SuiteWatch().installed() as watch:
        yield watch
        assert watch.in_files(tmp_path_factory.getbasetemp()) == [], "a private key or session token was stored"


@pytest.fixture(autouse=True)
def _no_secret_logged(suite_watch: SuiteWatch) -> Iterator[None]:
    yield
    found, suite_watch.found = suite_watch.found, []
    assert found == [], "a private key or session token was logged, or given to a child process"
