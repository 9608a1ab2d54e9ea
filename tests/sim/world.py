"""A world of providers and a chain in one loop, and the processes of a user that come and go in it."""

import asyncio
import contextlib
import dataclasses
import itertools
import shutil
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import anyio
from aiohttp import web

from tests.sim import oracle
from tests.sim.chain_model import BASE_FEE, ModelChain, ModelEvm, behind
from tests.sim.chaos import Chaos, Plan, Spell
from tests.sim.contract_model import STAKE, Context, State
from tests.sim.disk import Disk
from tests.sim.loop import SimLoop, current, door
from tests.sim.net import Net, Pipe
from zg_async.broker import Broker, create_broker
from zg_async.clock import Clock
from zg_async.devnet import node as node_module
from zg_async.devnet import provider_workers
from zg_async.devnet.accounts import dev_account, fine_tuning_provider, fine_tuning_signer, owner
from zg_async.devnet.chain_client import ChainClient, Wallet
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.devnet.deploy import FINE_TUNING_NAME, INFERENCE_NAME
from zg_async.devnet.evm_records import MinedTx, SignedTx
from zg_async.devnet.node import Node
from zg_async.devnet.provider import QUOTA, ProviderNode
from zg_async.devnet.provider_gate import Gate, Handler
from zg_async.devnet.provider_settings import Settings
from zg_async.errors import JobFailedError, ZgError
from zg_async.jobs import guardian, sqlite
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.store import Journal, MemoryStore, Owner
from zg_async.managers import funding_line
from zg_async.managers.polling import PollPolicy
from zg_async.networks import NETWORKS
from zg_async.transport import heads
from zg_async.transport.book import LaneBook
from zg_async.transport.budget import SpendLimits
from zg_async.transport.outbox import MemoryOutbox
from zg_async.transport.rows import LaneId
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.units import NEURON_PER_0G
from zg_async.wire.hashing import hex0x
from zg_async.wire.records import Address

START: Final = 1_800_000_000
DAY: Final = 86_400.0
RPC_PORT: Final = 8545
LOCAL: Final = NETWORKS["local"]
NAMES: Final = {INFERENCE_NAME: LOCAL.inference, FINE_TUNING_NAME: LOCAL.fine_tuning}
MODEL: Final = "Qwen2.5-0.5B-Instruct"
PARAMS: Final = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
ROWS: Final = '{"instruction": "Say hello", "input": "", "output": "hello"}\n' * 3


class CrashError(BaseException):
    """The process is dead: nothing of it may have an effect any more."""


class SimClock(Clock):
    """A machine's time."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.wrong = 0.0

    def now(self) -> float:
        return START + self._loop.now + self.wrong

    def monotonic(self) -> float:
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(max(seconds, 1e-6) if seconds > 0 else 0)  # a machine's time always moves


class SimGate(Gate):
    """A provider's gate with the schedule's faults in front."""

    world: "World"
    name: str

    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        async def inner(request: web.Request) -> web.StreamResponse:
            return await super(SimGate, self).middleware(request, handler)

        return await self.world.disturb(self.name, request, inner)

    middleware.__middleware_version__ = 1  # type: ignore[attr-defined]


class World:
    """Everything outside the user's processes; survives them."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.network = dataclasses.replace(LOCAL, confirmations=plan.confirmations)
        self.folder = folder
        self.chaos = Chaos(plan)
        self.loop = cast("SimLoop", asyncio.get_running_loop())
        self.net = Net(self.loop)
        self.clock = SimClock(self.loop)
        self.user_clock = SimClock(self.loop)
        self.journal = Journal()
        self.outbox = Outlast()
        self.disk = Disk(self)
        self.locks: dict[Path, HeldLock] = {}
        self.wallets = [dev_account(index + 1) for index in range(plan.wallets)]
        self.providers: list[ProviderNode] = []
        self.processes: list[Process] = []
        self.record = oracle.Record()
        self.sent = anyio.Event()
        """Set and replaced when the node gets a transaction."""
        self.is_over = False
        self.seconds: dict[Process, anyio.Event] = {}
        """Runners beside the one that is always there, and when they have ended."""
        self.dataset = folder / "train.jsonl"
        self.dataset.write_text(ROWS)
        self._build_chain()

    # --- the chain

    def _build_chain(self) -> None:
        own = owner().address
        state = State(
            chain_id=LOCAL.chain_id,
            ledger=LOCAL.ledger,
            fine_tuning=LOCAL.fine_tuning,
            inference=LOCAL.inference,
            owner=own,
        )
        state.ledger.services = dict(NAMES)
        state.fine_tuning.lock = state.inference.lock = self.plan.lock_time
        everybody = [own, *(wallet.address for wallet in self.wallets)]
        for number in range(self.plan.providers):
            everybody.append(fine_tuning_provider(number).address)
        state.balances = dict.fromkeys(everybody, 200 * NEURON_PER_0G)
        for number in range(self.plan.providers):
            self._register(state, number)
        self.evm = ModelEvm(state, timestamp=START)
        self.total = sum(state.balances.values())
        with mock.patch.object(node_module, "NodeChain", ModelChain):
            self.node = Node(
                cast("Any", self.evm), port=RPC_PORT, clock=self.clock, middlewares=(self._rpc_middleware(),)
            )
        self.chain = cast("ModelChain", self.node.core.chain)
        self.chain.saw = self._saw
        self.node.core.automine = not self.plan.block_time

    def _saw(self, tx: SignedTx) -> None:
        oracle.saw_transaction(self, tx)
        sent, self.sent = self.sent, anyio.Event()
        sent.set()

    def _register(self, state: State, number: int) -> None:
        provider, signer = fine_tuning_provider(number).address, fine_tuning_signer(number).address
        offer = (f"http://127.0.0.1:{provider_port(number)}", dataclasses.astuple(QUOTA), 10**12 + number, False)
        ctx = Context(provider, STAKE, START, state)
        state.pay(provider, LOCAL.fine_tuning, STAKE)
        state.fine_tuning.addOrUpdateService(ctx, *offer, [], signer)
        state.fine_tuning.acknowledgeTEESignerByOwner(Context(owner().address, 0, START, state), provider)

    async def _mine(self) -> None:
        """Make blocks: by the clock while something waits, else now and then."""
        core, after = self.node.core, 0
        while True:
            if not (len(self.chain.pool) or after):
                await self._wait_sent(60.0)
            await anyio.sleep(self.plan.block_time or 5.0)
            if self._is_on("no_blocks"):
                core.automine = False
                continue
            core.automine = not self.plan.block_time
            after = 3 if len(self.chain.pool) else max(after - 1, 0)
            await core.mine()

    async def _wait_sent(self, seconds: float) -> None:
        sent = anyio.Event()
        stop = self.node.core.listen(lambda _: sent.set(), lambda _: sent.set())
        try:
            with anyio.move_on_after(seconds):
                await sent.wait()
        finally:
            stop()

    def _is_on(self, kind: str, host: str = "") -> bool:
        now = self.loop.now
        return any(s.start <= now < s.end and s.host == host for s in self.plan.of(kind)) and not self.chaos.healed

    # --- faults of requests

    def _rpc_middleware(self) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            async def late(request: web.Request) -> web.StreamResponse:
                body = await request.read()
                sends = b"eth_sendRawTransaction" in body
                if sends or not self.chaos.strikes("late_head", "chain"):
                    answer = await handler(request)
                    if sends and self.chaos.strikes("drop_tx", "chain"):
                        self._hit("chain", 60.0)
                        self._drop()
                    return answer
                self._hit("chain")
                self.record.reach("old head")
                token = behind.set(self.chaos.choose("late by", (1, 1, 2, 5)))
                try:
                    return await handler(request)
                finally:
                    behind.reset(token)

            return await self.disturb("chain", request, late)

        return middleware

    def _drop(self) -> None:
        waiting = [tx for tx in self.chain.pool if tx.sender in self._users()]
        if waiting and self.chain.drop(waiting[-1].hash):
            self.record.reach("transaction dropped")

    async def disturb(self, host: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the schedule's faults strike one request."""
        chaos, pipe = self.chaos, cast("Pipe", request.transport)
        site = f"{host} {request.method} {_route(request)}"
        process = cast("Process", pipe.peer.owner)
        self.loop.note(f"{self.loop.now:.3f} {site}")
        process.point(f"before {site}", quiet=True)
        if process.dead or chaos.strikes("lose_request", site):
            self._hit(host)
            return hang_up(pipe)
        if chaos.strikes("slow", site):
            wait = chaos.choose("slow by", (0.5, 5.0, 20.0, 45.0))
            self._hit(host, wait)
            await anyio.sleep(wait)
        if chaos.strikes("status", site):
            return self._status(host, site)
        if chaos.strikes("cut", site):
            self._hit(host)
            pipe.limit = chaos.choose("cut at", (0, 1, 20, 200, 400))
        elif chaos.strikes("stall", site):
            self._hit(host, 61.0)  # the longest silence that is borne
            pipe.limit, pipe.silent = chaos.choose("stall at", (0, 1, 20, 200, 400)), True
        sent = len(self.record.sent)
        if site.endswith("/lora") and chaos.strikes("wrong_bytes", site):
            self._hit(host)
            self.providers[int(host.split()[1])].faults.wrong_hash = 1
        try:
            answer = await handler(request)
        except (KeyError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError) as error:
            self.record.require(False, f"the server itself failed: {''.join(traceback.format_exception(error))}")
            raise
        process.point(f"after {site}", quiet=True)
        if process.dead or (not answer.prepared and chaos.strikes("lose_answer", site)):
            self._hit(host)
            if len(self.record.sent) > sent or site.endswith(" POST /v1/user/{address}/task"):
                self.record.reach(f"answer lost: {'transaction' if host == 'chain' else 'task'}")
            return hang_up(pipe)
        return answer

    def _hit(self, host: str, seconds: float = 0.0) -> None:
        """Note that a host fails the user for some time."""
        self.chaos.blows.append((host, self.loop.now, self.loop.now + seconds))

    def _status(self, host: str, site: str) -> web.StreamResponse:
        status = self.chaos.choose("status", (429, 429, 500, 502, 503, 504))
        headers = {}
        if status == 429:
            wait = self.chaos.choose("retry after", (None, None, "2", "30", "1000000000", "soon"))
            headers = {} if wait is None else {"Retry-After": wait}
        self._hit(host, 61.0 if status == 429 else 0.0)  # the longest that a busy host is left alone
        body = self.chaos.choose("status body", ("", "<html>busy</html>", '{"error": "busy"}'))
        return web.Response(status=status, text=body, headers=headers)

    # --- providers

    async def _open_providers(self, stack: contextlib.AsyncExitStack) -> None:
        client = ChainClient(self.node.request, self.clock)
        watch = self.watch = ChainWatch(client, (LOCAL.fine_tuning,), interval=self.plan.tick / 2)
        stack.push_async_callback(watch.aclose)
        await watch.start()
        for number in range(self.plan.providers):
            node = ProviderNode(
                wallet=Wallet(client, fine_tuning_provider(number).private_key),
                tee_key=fine_tuning_signer(number).private_key,
                contract=LOCAL.fine_tuning,  # type: ignore[arg-type]
                watch=watch,
                session=cast("Any", None),
                folder=self.folder / f"provider-{number}",
                settings=Settings(
                    ack_timeout=self.plan.ack_timeout,
                    tick=self.plan.tick,
                    price_per_token=10**12 + number,
                    root=cast("Any", self.plan.root),
                ),
                clock=self.clock,
            )
            gate = SimGate(node.settings, node.faults, self.clock)
            gate.world, gate.name = self, f"provider {number}"
            node.gate = gate
            node.port = provider_port(number)
            await node.start()
            stack.push_async_callback(node.stop)
            self.providers.append(node)

    # --- time

    async def _spell(self, spell: Spell) -> None:
        if spell.kind not in ("reorg", "dark"):
            await anyio.sleep(max(spell.start - self.loop.now, 0.0))
        length = spell.end - spell.start
        self.chaos.fired.append(f"{spell.kind} {spell.host} {spell.how} {spell.amount:g} at {spell.start:.0f}")
        match spell.kind:
            case "outage":
                port = self._port(spell.host)
                self.net.take_down(port, spell.how)
                await anyio.sleep(length)
                self.net.bring_up(port)
            case "restart":
                node = self.providers[int(spell.host.split()[1])]
                await node.stop()
                await anyio.sleep(length)
                node.store = type(node.store)(node.files.tasks)
                await node.start()
            case "forget":
                node = self.providers[int(spell.host.split()[1])]
                if list(node.store):
                    self.record.reach("provider forgot")
                node.store.forget()
                await anyio.to_thread.run_sync(shutil.rmtree, node.files.tasks, True)
            case "reorg":
                await self._reorg(spell)
            case "dark":
                await self._darken(spell)
            case "fees":
                self.evm.base_fee = int(BASE_FEE * spell.amount)
                await anyio.sleep(length)
                self.evm.base_fee = BASE_FEE
            case "pause":
                await self._pause(spell)
            case "second":
                await self._run_second(spell)
            case "clock":
                self.user_clock.wrong += spell.amount
                await anyio.sleep(length)
                self.user_clock.wrong -= spell.amount
            case "stop":
                if self.processes:
                    self.processes[-1].stop(spell.amount)

    async def _reorg(self, spell: Spell) -> None:
        """Replace blocks. What was in them comes back to the pool, or the user's newest transactions are lost."""
        while len(self.record.sent) < spell.start:
            await self.sent.wait()
        await anyio.sleep(spell.end)
        if self.chaos.healed:
            return
        accounts = self.evm.state.fine_tuning.accounts.values()
        self.record.undelivered.update(task_id for account in accounts for task_id in account.delivered)
        change = await self.node.core.change(lambda: self.chain.replace(int(spell.amount), self._loses(spell)))
        users = self._users()
        gone = [tx.hash for block in change.removed for tx in (one.tx for one in block.mined) if tx.sender in users]
        self.record.removed.update(map(hex0x, gone))
        if gone:
            self.record.reach("reorg took a receipt")
        if any(self.chain.pool.get(tx_hash) is None for tx_hash in gone):
            self.record.reach("reorg lost a transaction")
        self.chaos.blows += [("chain", self.loop.now, self.loop.now + 60.0)]

    async def _darken(self, spell: Spell) -> None:
        """Take a host away when a delivery has come."""
        pause = 1.0
        while len(found := oracle.deliveries(self)) < spell.start:
            pause = min(pause * 1.05, 60.0)
            await anyio.sleep(pause)
        if self.chaos.healed:
            return
        host = "chain" if spell.host == "chain" else self._name(found[int(spell.start) - 1])
        self.record.reach(f"dark {spell.host}")
        end = min(self.loop.now + spell.end, self.plan.heal_at)
        self.chaos.blows.append((host, self.loop.now, end))
        self.net.take_down(self._port(host), spell.how)
        await anyio.sleep(end - self.loop.now)
        self.net.bring_up(self._port(host))

    def _name(self, provider: str) -> str:
        return next(f"provider {number}" for number, node in enumerate(self.providers) if node.address == provider)

    def _loses(self, spell: Spell) -> Callable[[Sequence[MinedTx]], Iterable[MinedTx]]:
        users = self._users()

        def loses(removed: Sequence[MinedTx]) -> Iterable[MinedTx]:
            newest = reversed(removed) if spell.how == "drop" else ()
            return itertools.takewhile(lambda one: one.tx.sender in users, newest)

        return loses

    async def _pause(self, spell: Spell) -> None:
        process = self.processes[-1] if self.processes else None
        if process is None or process.dead or process.paused:
            return
        process.pauses.append((self.loop.now, spell.end))
        process.paused = True
        self.loop.hold(process)
        self.record.reach("paused")
        await anyio.sleep(spell.end - spell.start)
        process.wake()

    async def _run_second(self, spell: Spell) -> None:
        process, ended = Process(self, -1 - len(self.seconds)), anyio.Event()
        self.seconds[process] = ended
        await process.run(spell.end)
        ended.set()

    async def _end_seconds(self) -> None:
        for process, ended in self.seconds.items():
            process.stop(0.0)
            await ended.wait()

    def _users(self) -> set[bytes]:
        return {bytes.fromhex(wallet.address[2:]) for wallet in self.wallets}

    def _port(self, host: str) -> int:
        return RPC_PORT if host == "chain" else provider_port(int(host.split()[1]))

    async def _heal(self) -> None:
        await anyio.sleep(self.plan.heal_at)
        self.chaos.healed = True
        for port in list(self.net.down):
            self.net.bring_up(port)

    async def _give_up(self) -> None:
        """End the schedule when all that is left waits for what a provider has forgotten."""
        while not self.is_over:
            await anyio.sleep(600.0)
            self.is_over = oracle.is_over(self)
        await anyio.sleep(600.0)
        self.processes[-1].stop(1.0)

    async def _slow_down(self) -> None:
        """Let providers look for work ever more rarely: a job that isn't done soon has to wait for other things."""
        for after, tick in ((200.0, 15.0), (1000.0, 30.0), (3000.0, 60.0)):
            await anyio.sleep(after)
            if after > 200.0:
                heads._SLOWEST = 20.0  # type: ignore[misc]
            self.watch.interval = tick / 2
            for node in self.providers:
                node.settings.tick = tick
        guardian.LOOK_SECONDS = max(guardian.LOOK_SECONDS, 200.0)  # type: ignore[misc]

    # --- the schedule

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None, None]:
        async with contextlib.AsyncExitStack() as stack:
            await self.node.start()
            stack.push_async_callback(self.node.aclose)
            await self._open_providers(stack)
            async with anyio.create_task_group() as group:
                group.start_soon(self._mine)
                group.start_soon(self._heal)
                group.start_soon(self._slow_down)
                group.start_soon(self._give_up)
                for spell in self.plan.spells:
                    if spell.kind not in ("crash", "no_blocks", "disk"):
                        group.start_soon(self._spell, spell)
                yield
                group.cancel_scope.cancel()

    async def run(self) -> None:
        """Run processes until all jobs have ended, then judge."""
        with self._training(), self.disk.installed():
            async with self._opened():
                forgets = self.plan.of("restart") or self.plan.of("forget")
                awake = max((spell.end for spell in self.plan.of("pause")), default=0.0)
                end = max(self.plan.heal_at, awake) + (DAY / 6 if forgets else DAY)  # what is forgotten stays so
                while self.loop.now < end and not self.is_over:
                    process = Process(self, len(self.processes))
                    self.processes.append(process)
                    await process.run(end)
                    if process.is_done or self.loop.now >= end:
                        break
                    await anyio.sleep(process.downtime)
                    end = max(end, self.loop.now + DAY / 6)  # time to finish, however long it was down
                await self._end_seconds()
                if self.plan.of("reorg"):  # what it removed last comes back, once there are blocks
                    last = max((spell.end for spell in self.plan.of("no_blocks")), default=0.0)
                    await anyio.sleep(max(last - self.loop.now, 0.0) + 300.0)
                await oracle.judge(self)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Let training take its time: the trainer itself runs in no time."""
        trained = provider_workers.Workers._run_trainer
        seconds = self.plan.train_seconds

        async def train(workers: Any, task: Any) -> None:
            await anyio.sleep(seconds)
            await trained(workers, task)

        with (
            mock.patch.object(provider_workers.Workers, "_run_trainer", train),
            mock.patch.object(guardian, "LOOK_SECONDS", self.plan.look),
            mock.patch.object(sqlite, "_POLL_SECONDS", 2.0),
            mock.patch.object(funding_line, "take_lock", self._take_lock),
            mock.patch.object(heads, "_SLOWEST", self.plan.head_pause),
            mock.patch.object(heads, "_QUICK", self.plan.head_first),
        ):
            yield

    def _take_lock(self, path: Path) -> "HeldLock | None":
        return None if path in self.locks else HeldLock(self, path)

    async def books(self) -> dict[str, LaneBook]:
        """What the outbox holds, by wallet."""
        outbox = SqliteOutbox(self.folder / "state" / "outbox.sqlite") if self.plan.durable else self.outbox
        chain_hash = hex0x(self.evm.all_blocks[0].hash)
        lanes = [LaneId(LOCAL.chain_id, chain_hash, wallet.address) for wallet in self.wallets]
        try:
            return {lane.address: await outbox.open_lane(lane) for lane in lanes}
        finally:
            await outbox.aclose()

    async def read_journal(self) -> None:
        """Take the events from the file: a process may have died before it was told of its own commit."""
        if not self.plan.durable:
            return
        store = SqliteStore(self.folder / "state" / "jobs.sqlite", clock=self.user_clock)
        wallets = tuple(Address(wallet.address) for wallet in self.wallets)
        genesis = hex0x(self.evm.all_blocks[0].hash)
        await store.open(Owner(chain_id=LOCAL.chain_id, genesis=genesis, wallets=wallets))
        try:
            events = [event for job_id in await store.list_jobs() for event in await store.read(job_id)]
        finally:
            await store.aclose()
        self.record.events = [(event.at.timestamp() - START, event) for event in events]
        self.record.states, self.record.folded = {}, 0

    def specs(self) -> list[JobSpec]:
        """The user's jobs: the same ones each time the program starts."""
        return [
            JobSpec(
                model=MODEL,
                dataset=self.dataset,
                training_params=PARAMS,
                output_dir=self.folder / f"job-{number}",
                wallet=self.wallets[number % len(self.wallets)].address,
                provider=self.providers[number % len(self.providers)].address if self.plan.named else None,
                on_unverified=cast("Any", self.plan.on_unverified),
                max_spend=self.plan.cap_amount if self.plan.cap == "job" else None,
                batch="all" if self.plan.cap == "batch" else None,
                batch_max_spend=self.plan.cap_amount if self.plan.cap == "batch" else None,
                key=f"job-{number}",
            )
            for number in range(self.plan.jobs)
        ]


class HeldLock:
    """A lock file that a process holds."""

    def __init__(self, world: World, path: Path) -> None:
        self.holder = current.get()
        self._locks, self._path = world.locks, path
        world.locks[path] = self

    def close(self) -> None:
        if self._locks.get(self._path) is self:
            del self._locks[self._path]


class Process:
    """One run of the user's program."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.dead = self.paused = False
        self.pauses: list[tuple[float, float]] = []
        """From when to when it stood still."""
        self.is_done = False
        self.downtime = 30.0
        self.points = Counter[str]()
        """How many places it has passed: of all kinds, and of each."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        crashes = world.plan.of("crash")
        self._crash = crashes[number] if 0 <= number < len(crashes) else None
        self._scope = anyio.CancelScope()
        self.began = self.ended = world.loop.now
        self.failures: dict[str, str] = {}
        self._files: list[SqliteStore | SqliteOutbox] = []

    def point(self, name: str, *, quiet: bool = False) -> None:
        """A place at which it may die."""
        if not self.dead:
            when, what = name.split(" ")[:2]
            self.points.update(("", what))
            crash = self._crash
            is_there = crash is not None and crash.how in ("", what) and self.points[crash.how] == crash.start
            if crash is not None and is_there and not self.world.chaos.healed:
                self.world.chaos.fired.append(f"crash of process {self.number} at point {self.points['']}: {name}")
                self.world.record.reach(f"crash {when} {what}")
                self._die(crash.amount)
        if self.dead and not quiet:
            raise CrashError

    def wake(self) -> None:
        """Go on, if it stands still."""
        if self.paused:
            self.paused = False
            self.world.loop.release(self)

    def _die(self, downtime: float) -> None:
        self.wake()
        self.dead, self.downtime = True, downtime
        self.world.net.kill(self)
        self._scope.cancel()

    def stop(self, downtime: float) -> None:
        """Ask it to end, as a signal does."""
        self.wake()
        if not self.dead:
            self.downtime = downtime
            self._scope.cancel()

    async def run(self, end: float) -> None:
        """Live until done, dead, asked to stop, or until a time."""
        token, place = current.set(self), door.set(self.point)
        loop = self.world.loop
        loop.set_task_factory(self._task)
        try:
            with self._scope:
                with anyio.move_on_after(end - loop.now):
                    try:
                        await self._main()
                    except ZgError as error:
                        self.world.chaos.fired.append(f"process {self.number} ended: {type(error).__name__}: {error}")
        except CrashError:
            pass
        except BaseExceptionGroup:
            if not self.dead:
                raise
        finally:
            current.reset(token)
            door.reset(place)
        self.ended = loop.now
        self.world.journal.writer = None  # what the system does with the locks of a dead process
        for lock in [lock for lock in self.world.locks.values() if lock.holder is self]:
            lock.close()
        for file in self._files:
            file._close()
        await oracle.check_process(self)

    def _task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        if (process := current.get()) is not None:
            process.tasks[task] = None
            task.add_done_callback(lambda task: process.tasks.pop(task, None))
        return task

    async def _main(self) -> None:
        world = self.world
        store, outbox = self._stores()
        async with self._broker(outbox) as broker, JobRunner(broker, cast("Any", store)) as runner:
            async with anyio.create_task_group() as group:
                for spec in world.specs():
                    group.start_soon(self._job, runner, spec)
            while oracle.is_guarding(world):  # what the runner adopted is driven as long as it runs
                await anyio.sleep(60.0)
            self.is_done = True

    async def _job(self, runner: JobRunner, spec: JobSpec) -> None:
        """What a user does with a job: submit, wait, and try a failed one again a few times."""
        name, waits = str(spec.key), [120.0, 600.0, 1800.0]
        is_failed, handle = False, None
        while True:
            try:
                handle = handle or await runner.submit(spec)
                if is_failed:
                    handle = await runner.resume(handle.id)
                await handle.result()
                self.failures.pop(name, None)
                return
            except JobFailedError as error:
                self.failures[name] = f"{error.stage}: {error.error_code}: {error.message}"
                left = self.world.plan.heal_at - self.world.loop.now
                if is_failed and not waits and left < 0:
                    return
                await anyio.sleep(waits.pop(0) if waits else left + 60.0)
                is_failed, handle = True, None
            except ZgError as error:  # not to be had now, or another runner has it
                self.failures[name] = f"{type(error).__name__}: {error}"
                await anyio.sleep(60)

    def _stores(self) -> tuple[Any, Any]:
        world = self.world
        if not world.plan.durable:
            return DoorStore(MemoryStore(world.journal), self), DoorOutbox(world.outbox, self)
        state = world.folder / "state"
        store = SqliteStore(state / "jobs.sqlite", clock=world.user_clock)
        outbox = SqliteOutbox(state / "outbox.sqlite")
        self._files += [store, outbox]
        return DoorStore(store, self), DoorOutbox(outbox, self)

    def _broker(self, outbox: Any) -> Broker:
        world = self.world
        broker = create_broker(
            private_keys=[wallet.private_key for wallet in world.wallets],
            network=world.network,
            outbox=outbox,
            state_dir=world.folder / "state",
            clock=world.user_clock,
            limits=SpendLimits(per_day=world.plan.cap_amount) if world.plan.cap == "day" else None,
            polling=PollPolicy(first=world.plan.poll_first, growth=2.0 if world.plan.poll_first > 1 else 1.4),
        )
        broker.chain.heads._block_time = world.plan.head_pause  # what it would measure in time
        return broker


class Outlast(MemoryOutbox):
    """Lives on when its chain is closed, as a file does."""


class _Door:
    def __init__(self, inner: Any, process: Process) -> None:
        self._inner = inner
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _through(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        self._process.point(f"before {name}")
        result = await call(*arguments)
        if name == "commit" and result is not None:
            record = self._process.world.record
            record.events += [(self._process.world.loop.now, event) for event in result]
        self._process.point(f"after {name}")
        return result


class DoorStore(_Door):
    """A journal with a point around each commit."""

    async def append(self, job_id: Any, *events: Any) -> Any:
        return await self._through("commit", self._inner.append, job_id, *events)

    async def create(self, job_id: Any, *events: Any) -> Any:
        return await self._through("commit", self._inner.create, job_id, *events)


class DoorOutbox(_Door):
    """An outbox with a point around each commit."""

    async def append(self, lane: Any, entries: Any) -> Any:
        name = "signing" if any(entry["kind"] == "signed" for entry in entries) else "outbox"
        return await self._through(name, self._inner.append, lane, entries)


def provider_port(number: int) -> int:
    return 9000 + number


def hang_up(pipe: Pipe) -> web.StreamResponse:
    pipe.abort()
    return web.Response(status=500)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
