"""The public API is typed: programs that use it pass strict checkers, and no result is a bag of anything."""

import ast
import collections.abc
import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import typing

import pytest

import zg_async

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import anyio

from zg_async import (
    Address, Broker, ChatAnswer, Event, FineTuningAccountDetails, HttpSettings, JobResult, JobRunner, JobSpec, Ledger,
    LocalSigner, Receipt, Task, TaskChange, TaskId, TaskStateChanged, ZgError, create_broker, format_amount,
)


async def use(provider: Address) -> JobResult:
    signer: LocalSigner = LocalSigner.from_key("11" * 32)
    async with (
        create_broker(network="local", signer=signer, http=HttpSettings(idle_timeout=5.0)) as broker,
        JobRunner(broker) as runner,
    ):
        ledger: Ledger = await broker.ledger.get_ledger()
        print(format_amount(ledger.available_balance))
        receipt: Receipt = await broker.ledger.deposit_fund("0.1")
        account: FineTuningAccountDetails = await broker.fine_tuning.get_account(provider)
        balance: int = account.balance
        tasks: tuple[Task, ...] = await broker.fine_tuning.list_task(provider)
        task_id: TaskId = tasks[0].id
        async for change in broker.fine_tuning.watch_task(provider, task_id):
            told: TaskChange = change
            if isinstance(told, TaskStateChanged):
                print(told.state, told.ack_deadline, receipt.tx_hash, balance)
        answer: ChatAnswer = await broker.inference.lora.chat(provider, "ft-x", "hello")
        print(answer.content)
        spec = JobSpec(model="m", dataset="d", training_params={}, output_dir="o", provider=provider)
        job = await runner.submit(spec)
        async with job.events() as events:
            async for event in events:
                seen: Event = event
                print(seen.seq)
        try:
            return await job.result()
        except ZgError as error:
            code: str = error.code
            raise SystemExit(code) from error


def first(broker: Broker) -> Address:
    return broker.wallets[0]


anyio.run(use, Address("0x"))
"""
WRONG = PROGRAM.replace('deposit_fund("0.1")', "deposit_fund(0.1)").replace(
    "balance: int = account.balance", "balance: str = account.balance"
)


def _check(folder: pathlib.Path, program: str) -> str:
    path = folder / "program.py"
    path.write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.goal("DOC-05", part="mypy --strict for users")
def test_a_users_program_passes_mypy_strict(tmp_path):
    assert _check(tmp_path, PROGRAM) == ""


@pytest.mark.slow
def test_a_users_mistake_is_found_by_mypy(tmp_path):
    said = _check(tmp_path, WRONG)
    assert 'incompatible type "float"; expected "int | str"' in said
    assert 'expression has type "int", variable has type "str"' in said


@pytest.mark.slow
@pytest.mark.goal("DOC-05", part="pyright")
@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_a_users_program_passes_pyright(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run(["pyright", "--pythonpath", sys.executable, str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def _members():
    """Every public function: of the module, and of the classes that are public or are reached from the broker."""
    classes = {getattr(zg_async, name) for name in zg_async.__all__ if inspect.isclass(getattr(zg_async, name))}
    for module in ("ledger", "fine_tuning", "deliverables", "inference", "lora"):
        home = __import__(f"zg_async.managers.{module}", fromlist=["x"])
        classes |= {c for c in vars(home).values() if inspect.isclass(c) and c.__module__ == home.__name__}
    for name in zg_async.__all__:
        value = getattr(zg_async, name)
        if inspect.isfunction(value):
            yield name, value
    for cls in sorted(classes, key=lambda c: c.__qualname__):
        for name, value in vars(cls).items():
            if isinstance(value, property):
                value = value.fget
            value = inspect.unwrap(getattr(value, "__func__", value)) if value is not None else None
            if not name.startswith("_") and inspect.isfunction(value) and value.__module__.startswith("zg_async"):
                yield f"{cls.__qualname__}.{name}", value


JSON = re.compile(r"(\.to_json|\bto_rows)$")
"""What is made to be plain."""


def _late(module: str) -> dict[str, object]:
    """What a module imports for annotations only."""
    source = pathlib.Path(sys.modules[module].__file__).read_text()
    blocks = [n for n in ast.parse(source).body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(ast.Module(body=block.body, type_ignores=[]), module, "exec"), names)
    return names


def _is_bag(annotation: object) -> bool:
    if annotation in (dict, list, tuple, collections.abc.Mapping, typing.Any, object):
        return True
    return any(_is_bag(a) for a in typing.get_args(annotation) if a is not Ellipsis)


@pytest.mark.goal("DOC-05", part="no dict results")
def test_no_public_function_returns_a_bag_of_anything():
    bags, untyped = [], []
    for name, function in _members():
        hints = typing.get_type_hints(function, vars(sys.modules[function.__module__]) | _late(function.__module__))
        if "return" not in hints:
            untyped.append(name)
        elif _is_bag(hints["return"]) and not JSON.search(name):
            bags.append(f"{name} -> {hints['return']}")
    assert untyped == []
    assert bags == []


@pytest.mark.goal("DOC-05", part="supported versions")
def test_the_supported_pythons_are_declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    versions = {
        c.rsplit(" ", 1)[1] for c in project["classifiers"] if c.startswith("Programming Language :: Python ::")
    }
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "zg_async" / "py.typed").exists()


def test_the_check_itself_knows_a_bag():
    any_ = typing.Any
    assert all(map(_is_bag, (dict, any_, dict[str, any_], tuple[dict[str, object], ...], list[any_] | None)))
    assert not any(map(_is_bag, (int, str | None, tuple[int, ...], dict[str, int], zg_async.Receipt)))
