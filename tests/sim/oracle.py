"""What has to be true of every schedule, checked on the chain's, the providers' and the disk's own words."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from tests.sim.chain_model import check_books, conserved, mined_transactions
from tests.sim.contract_model import Delivered
from tests.sim.stubs import adapter_weights
from zg_async.devnet.evm_records import SignedTx
from zg_async.devnet.storage_network import hash_path
from zg_async.jobs.state import JobStatus, fold
from zg_async.units import NEURON_PER_0G
from zg_async.wire.contracts import FUNCTIONS
from zg_async.wire.contracts import decode_call as decode_contract_call
from zg_async.wire.hashing import checksum_address, hex0x, keccak256
from zg_async.wire.records import TaskProgress

if TYPE_CHECKING:
    from tests.sim.world import Process, World

_MONEY: Final = ("addLedger", "depositFund", "transferFund")
REACH: Final = 40.0
"""Seconds with everything in reach that are enough for an acknowledgement, apart from waits that have bounds of their
own: until a node that was away is asked again, to read the chain, to download, to be mined."""
DAY: Final = 86_400.0
ATTEMPTS: Final = 49
"""Into so many parts what is left of the window is divided by the longest wait between two attempts."""


class Broken(AssertionError):  # noqa: N818
    """A property doesn't hold."""


class Record:
    """What was seen while the schedule ran."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Any]] = []
        """Events that were committed, with the world's time."""
        self.states: dict[str, Any] = {}
        """What they come to, as far as they have been `folded`."""
        self.folded = 0
        self.sent: dict[bytes, float] = {}
        self.intents: dict[tuple[str, int], set[tuple[Any, ...]]] = {}
        self.undelivered: set[str] = set()
        """Tasks whose delivery was in a block that a reorganisation has removed since."""
        self.removed: set[str] = set()
        """Transactions that were in a block which a reorganisation removed."""
        self.marks: Counter[str] = Counter()
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()
        self.keys: dict[str, str] = {}
        """The outbox key of each transaction that was mined, as a failure too."""
        self.gas = Counter[str]()
        """What was paid for gas, by the first part of the outbox key: the job."""

    def reach(self, mark: str) -> None:
        self.marks[mark] += 1

    def require(self, holds: object, what: str) -> None:
        """Note a breach where it happens; the schedule fails at its end."""
        if not holds:
            self.problems.append(what)


def call_of(tx: SignedTx) -> tuple[str, tuple[Any, ...]]:
    """The function's name and the arguments of a transaction to one of the contracts."""
    for name, functions in FUNCTIONS.items():
        if (found := functions.get(tx.data[:4])) is not None and tx.to is not None:
            return found.name, decode_contract_call(tx.data, name)[1]
    return "transfer", ()


def saw_transaction(world: "World", tx: SignedTx) -> None:
    """Judge a transaction of the user's when the node gets it."""
    sender = checksum_address(tx.sender)
    if sender not in {wallet.address for wallet in world.wallets}:
        return
    record, now = world.record, world.loop.now
    if tx.hash in record.sent:
        record.reach("sent the same again")
        return
    record.sent[tx.hash] = now
    intents = record.intents.setdefault((sender, tx.nonce), set())
    if intents:
        record.reach("repriced")
    intents.add((tx.to, tx.value, tx.data))
    _check_held(world)
    record.require(len(intents) == 1, f"two effects were signed with nonce {tx.nonce} of {sender}")
    name, arguments = call_of(tx)
    if name == "acknowledgeDeliverable":
        _judge_acknowledgement(world, sender, *arguments)


def _check_held(world: "World") -> None:
    """What is gone, and what may still go for what is under way, stays below a limit that holds for all."""
    if world.plan.cap != "day" or world.loop.now > DAY:
        return
    users = {bytes.fromhex(wallet.address[2:]) for wallet in world.wallets}
    gone = sum(one.gas_used * one.gas_price for one in mined_transactions(world.evm) if one.tx.sender in users)
    held = sum(tx.gas * tx.max_fee for tx in world.chain.pool if tx.sender in users)
    owed = sum(task.fee for node in world.providers for task in node.store if task.progress is not TaskProgress.FAILED)
    total, most = gone + held + owed, world.plan.cap_amount
    world.record.require(
        total <= most, f"{total} is gone or under way at {world.loop.now:.0f} s, and {most} is the limit"
    )
    if total > 0.9 * most:
        world.record.reach("close to a limit")


def _judge_acknowledgement(world: "World", wallet: str, provider: str, task_id: str) -> None:
    account = world.evm.state.fine_tuning.accounts.get((wallet, provider))
    found = account.delivered.get(task_id) if account else None
    record, now = world.record, world.loop.now
    if found is None:
        known = task_id in record.undelivered
        record.require(known, f"task {task_id} was acknowledged before it was delivered")
        return
    if any(_matches(path, found.root) for path in _copies(world.folder)):
        return
    over = (now + _start() - found.timestamp) / world.plan.window
    record.reach("acknowledged unverified")
    by_policy = world.plan.on_unverified != "forfeit" and (over > 0.94 or abs(world.user_clock.wrong) > 60.0)
    record.require(by_policy, f"task {task_id} was acknowledged without a right copy, {over:.0%} of its window over")


def _copies(folder: Path) -> Iterator[Path]:
    yield from folder.glob("job-*/.zg-*/model.encrypted")
    yield from folder.glob("state/adopted/*/.zg-*/model.encrypted")


def deliveries(world: "World") -> list[str]:
    """Whose deliveries the chain has, in order."""
    accounts = world.evm.state.fine_tuning.accounts
    found = [(one.timestamp, provider) for (_, provider), a in accounts.items() for one in a.delivered.values()]
    return [provider for _, provider in sorted(found)]


def _matches(path: Path, root: bytes) -> bool:
    return root in (keccak256(path.read_bytes()), hash_path(path).root)


def _start() -> int:
    from tests.sim.world import START

    return START


async def check_process(process: "Process") -> None:
    """A process that has ended leaves no task and no connection."""
    world = process.world
    for _ in range(50):
        await anyio.sleep(0.1)
        if not process.tasks and not world.net.left_open(process):
            return
    tasks = [task.get_name() for task in process.tasks]
    pipes = [pipe.port for pipe in world.net.left_open(process)]
    world.record.require(
        not tasks and not pipes, f"process {process.number} left tasks {tasks} and connections {pipes}"
    )
    for task in tuple(process.tasks):
        task.cancel()


async def judge(world: "World") -> None:
    """Look at everything after the end."""
    record = world.record
    await world.read_journal()
    for _, event in record.events:
        detail = {"job_failed": "code", "job_warned": "code", "stage_retrying": "stage"}.get(event.kind)
        record.reach(f"event {event.kind}" + (f" {getattr(event, detail, '')}" if detail else ""))
    record.require(conserved(world.evm.state) == world.total, "money came or went")
    check_books(world.evm.state)
    await _check_outbox(world)
    _check_tasks(world)
    _check_cap(world)
    _check_windows(world)
    _check_jobs(world)
    if record.problems:
        raise Broken("; ".join(dict.fromkeys(record.problems)))


async def _check_outbox(world: "World") -> None:
    record, keys = world.record, Counter[str]()
    books = await world.books()

    def too_late(wallet: str, provider: str, task_id: str) -> bool:
        """Whether a delivery was settled without acknowledgement: what was signed before and lost finds nothing."""
        found = world.evm.state.fine_tuning.accounts[wallet, provider].delivered.get(task_id)
        return found is not None and found.settled and not found.acknowledged

    names, moved = Counter[tuple[str, ...]](), Counter[tuple[Any, ...]]()
    for one in mined_transactions(world.evm):
        sender = checksum_address(one.tx.sender)
        if sender not in books:
            continue
        row = books[sender].find_hash(hex0x(one.tx.hash))
        record.require(row is not None, f"{call_of(one.tx)[0]} of {sender} was mined and isn't in the outbox")
        if row is not None:
            record.gas[row.key.split("/")[0]] += one.gas_used * one.gas_price
            record.keys[hex0x(one.tx.hash)] = row.key
            keys[row.key] += one.status
        name, arguments = call_of(one.tx)
        if one.status:
            if name in ("addLedger", "acknowledgeTEESigner", "acknowledgeDeliverable"):
                names[sender, name, *(str(argument) for argument in arguments)] += 1
            if name in _MONEY:
                moved[sender, name, *arguments[:1]] += arguments[2] if name == "transferFund" else one.tx.value
        may_fail = world.plan.of("reorg") or (name == "acknowledgeDeliverable" and too_late(sender, *arguments))
        record.require(one.status or may_fail, f"{name} was mined as a failure")
        if not one.status:
            record.reach(f"{name} was mined as a failure")
    for (sender, name, *_), amount in moved.items():
        most = NEURON_PER_0G if name == "transferFund" else 3 * NEURON_PER_0G
        record.require(amount <= most, f"{sender} moved {amount} by {name}, though {most} was enough for all")
    for key, count in keys.items():
        record.require(count <= 1, f"{key} had its effect {count} times")
    for what, count in names.items():
        record.require(count == 1, f"{what} was done {count} times")


def _check_tasks(world: "World") -> None:
    record = world.record
    wallets = {event.job_id: event.wallet for _, event in record.events if event.kind == "job_submitted"}
    requests = [event for _, event in record.events if event.kind == "task_requested"]
    owners = {(wallets[event.job_id], event.request_nonce): event.job_id for event in requests}
    nonces = Counter[tuple[str, str]]()
    for node in world.providers:
        for task in node.store:
            nonces[task.user, task.nonce] += 1
            record.require(
                (task.user, int(task.nonce)) in owners, f"task {task.id} was created with a nonce that isn't on record"
            )
    for key, count in nonces.items():
        record.require(count == 1, f"{count} tasks have one request nonce {key}")
    settled = Counter(event["id"] for event in _events(world, "FeesSettled"))
    for task_id, count in settled.items():
        record.require(count == 1, f"task {task_id} was settled {count} times")
    good = Counter[str]()
    for node in world.providers:
        for task in node.store:
            if task.progress is not TaskProgress.FAILED:
                good[owners.get((task.user, int(task.nonce)), "")] += 1
    for job_id, count in good.items():
        record.require(count == 1, f"job {job_id} has {count} tasks")


def _events(world: "World", name: str) -> Iterator[dict[str, Any]]:
    from zg_async.wire import contracts

    for block in world.evm.all_blocks:
        for log in block.logs:
            event = contracts.decode_log(_as_log(block, log))
            if type(event).__name__ == name:
                yield {"id": event.id, "time": block.timestamp, "event": event}  # type: ignore[union-attr]


def _as_log(block: Any, log: Any) -> Any:
    from zg_async.wire.records import Log, TxHash

    return Log(
        address=checksum_address(log.address),
        topics=log.topics,
        data=log.data,
        block_number=block.number,
        block_hash=hex0x(block.hash),
        tx_hash=TxHash(hex0x(log.tx_hash)),
        log_index=log.index,
    )


def _check_cap(world: "World") -> None:
    """What is gone for good, by the chain, stays below the schedule's limit: it only grows, so the end shows it."""
    plan, record = world.plan, world.record
    fees = {event["id"]: event["event"].fee for event in _events(world, "FeesSettled")}
    states, _ = _jobs(world)
    gone = {job_id: record.gas[job_id] + fees.get(state.task_id, 0) for job_id, state in states.items()}
    match plan.cap:
        case "job":
            spent = [amount for job_id, amount in gone.items() if not states[job_id].adopted]
        case "batch":
            spent = [sum(amount for job_id, amount in gone.items() if not states[job_id].adopted)]
        case "day":
            spent = [sum(record.gas.values()) + sum(fees.values())] if world.loop.now < DAY else []
        case _:
            return
    for amount in spent:
        record.require(amount <= plan.cap_amount, f"{amount} is gone, the limit per {plan.cap} is {plan.cap_amount}")
        record.reach("below a limit")
    stopped = sum(state.failure is not None and state.failure.code == "limit" for state in states.values())
    if stopped:
        record.reach("stopped by a limit" if stopped == 1 else "several stopped by a limit")


# --- the acknowledgement window


def _check_windows(world: "World") -> None:
    record, window = world.record, world.plan.window
    acknowledged = {event["id"]: event["time"] for event in _events(world, "DeliverableAcknowledged")}
    for event in _events(world, "DeliverableAdded"):
        begin, task_id, provider = event["time"] - _start(), event["id"], event["event"].provider
        at = acknowledged.get(task_id)
        part = None if at is None else (at - _start() - begin) / window
        if part is not None and part <= 1:
            record.reach("acknowledged in time")
            if part > 0.8:
                record.reach("acknowledged in the last fifth")
            if part > 0.95:
                record.reach("acknowledged in the last twentieth")
            continue
        record.reach("window missed")
        if world.loop.now < begin + window:
            continue
        if world.plan.on_unverified == "forfeit" and _lost(world, task_id):
            continue
        if world.plan.on_unverified != "acknowledge_unverified" and _forfeited(world, task_id):
            continue
        spans = good_spans(world, provider, begin, begin + window)
        # A job that failed is the guardian's, at the last call; so is what its provider has lost, unverified.
        if _stood_still(world, task_id) or _lost(world, task_id):
            spare, spans = world.plan.look, [(max(a, begin + 0.95 * window), b) for a, b in spans]
        else:
            spare = 0.0
        for low, high in spans:
            need = REACH + spare + 3 * world.plan.block_time + (begin + window - low) / ATTEMPTS
            record.require(
                high - low < need,
                f"task {task_id} was not acknowledged in its window, though from {(low - begin) / window:.0%} of it on "
                f"for {high - low:.0f} s the process lived and all was in reach, and {need:.0f} s are enough",
            )


def _stood_still(world: "World", task_id: str) -> bool:
    """Whether the task's job failed: it waits for its user then."""
    jobs = {e.job_id for _, e in world.record.events if getattr(e, "task_id", None) == task_id}
    return any(e.kind == "job_failed" and e.job_id in jobs for _, e in world.record.events)


def _forfeited(world: "World", task_id: str) -> bool:
    """Whether a copy was fetched that is wrong, and given up by policy."""
    jobs = {e.job_id for _, e in world.record.events if getattr(e, "task_id", None) == task_id}
    return any(e.kind == "delivery_forfeited" and e.job_id in jobs for _, e in world.record.events)


def _lost(world: "World", task_id: str) -> bool:
    """Whether the provider forgot that it has a model, or takes it for settled, which a reorganisation undid."""
    tasks = [task for node in world.providers for task in node.store if task.id == task_id]
    if not tasks or tasks[0].progress is TaskProgress.FAILED:
        return True
    accounts = world.evm.state.fine_tuning.accounts.values()
    settled = any(account.delivered[task_id].settled for account in accounts if task_id in account.delivered)
    return tasks[0].progress is TaskProgress.FINISHED and not settled


def good_spans(world: "World", provider: str, start: float, end: float) -> list[tuple[float, float]]:
    """The parts of a span in which a process lived, and neither chain nor provider failed it in any way."""
    hosts = ("chain", f"provider {next(n for n, node in enumerate(world.providers) if node.address == provider)}")
    bad = [
        (spell.start, min(spell.end, world.plan.heal_at))
        for spell in world.plan.spells
        if spell.kind in ("no_blocks", "clock") or (spell.kind in ("outage", "restart") and spell.host in hosts)
    ]
    bad += [(low, high) for host, low, high in world.chaos.blows if host in hosts]
    good = []
    for process in world.processes:
        low, high = max(process.began, start), min(process.ended, end)
        if low >= high:
            continue
        away = [*bad, *process.pauses]
        cuts = sorted({low, high, *(t for span in away for t in span if low < t < high)})
        good += [(a, b) for a, b in itertools.pairwise(cuts) if not any(x <= (a + b) / 2 <= y for x, y in away)]
    return good


# --- jobs


def is_over(world: "World") -> bool:
    """Whether nothing more can come of any job, however long one waits."""
    states, _ = _jobs(world)
    decided = [state for state in states.values() if state.deliverable_acknowledged]  # forfeited may be thought anew
    hopeless = {(state.wallet, state.provider) for state in decided if _waits_in_vain(world, state)}
    known = [state for state in states.values() if state.spec is not None]
    if not hopeless or len(known) < world.plan.jobs:
        return False
    has_tried = world.loop.now > world.plan.heal_at + 7200.0  # a user resumes what failed, for some time
    return all(_is_vain(world, s, hopeless) or (has_tried and s.status.is_terminal) for s in known)


def is_guarding(world: "World") -> bool:
    """Whether a job that a guardian adopted can still come to an end."""
    states, hopeless = _jobs(world)
    adopted = [state for state in states.values() if state.adopted]
    return not all(state.status.is_terminal or _is_vain(world, state, hopeless) for state in adopted)


def _is_vain(world: "World", state: Any, hopeless: set[tuple[Any, Any]]) -> bool:
    """Whether a job has succeeded, or can be driven nowhere: it isn't tried again where it failed."""
    where = state.provider or (state.spec.provider if state.spec is not None else None)
    wanted = [node.address for node in world.providers] if where is None else [where]
    left = [one for one in wanted if one not in state.excluded]
    return state.status is JobStatus.SUCCEEDED or (left != [] and all((state.wallet, one) in hopeless for one in left))


def _jobs(world: "World") -> tuple[dict[str, Any], set[tuple[Any, Any]]]:
    """All jobs, and the pairs of wallet and provider of which nothing more comes."""
    states, record = world.record.states, world.record
    for _, event in record.events[record.folded :]:
        states[event.job_id] = fold([event], states.get(event.job_id))
    record.folded = len(record.events)
    return states, {(state.wallet, state.provider) for state in states.values() if _waits_in_vain(world, state)}


def _check_jobs(world: "World") -> None:
    record = world.record
    states, hopeless = _jobs(world)
    own = [state for state in states.values() if state.spec is not None and not state.adopted]
    record.require(len(own) == world.plan.jobs, f"{len(own)} jobs are on record instead of {world.plan.jobs}")
    for state in states.values():
        has_ended = state.status.is_terminal or _is_vain(world, state, hopeless)
        record.require(has_ended, f"job {state.job_id} has not ended: {_where(world, state)}")
        failure = state.failure
        end = state.status.value if failure is None else f"{failure.stage}: {failure.code}"
        record.ends[end] += 1
        if state.status is JobStatus.SUCCEEDED:
            _check_success(world, state)
        elif failure is not None:
            record.require(_may_fail(world, state), f"job {state.job_id} failed in {end}: {failure.message}")


def _waits_in_vain(world: "World", state: Any) -> bool:
    """Whether nothing more comes of a delivery that its provider has forgotten; others of the pair wait behind it."""
    is_decided = state.deliverable_acknowledged or state.forfeited
    return state.task_id is not None and is_decided and _lost(world, state.task_id)


def _where(world: "World", state: Any) -> str:
    from zg_async.jobs.stages import next_stage

    stage = next_stage(state)
    return f"{stage.name if stage else None}, {state.retry}, {world.processes[-1].failures}"


def _may_fail(world: "World", state: Any) -> bool:
    """Jobs end well unless a limit stops them, a provider forgot their task, or nobody was there to acknowledge."""
    nonces = {
        e.request_nonce for _, e in world.record.events if e.job_id == state.job_id and e.kind == "task_requested"
    }
    tasks = [task for node in world.providers for task in node.store if int(task.nonce) in nonces]
    if any(task.progress is TaskProgress.FAILED for task in tasks):
        return True
    if world.plan.of("restart") or world.plan.of("forget"):
        return True
    if state.task_id and (_lost(world, state.task_id) or state.forfeited):
        return True
    if any(abs(spell.amount) > 300 for spell in world.plan.of("clock")) and state.task_id is None:
        return True  # providers refuse what is signed at another time
    if state.failure is not None and state.failure.code == "limit" and world.plan.cap and state.task_id is None:
        return True
    return any(delivery.settled and not delivery.acknowledged for delivery in _deliveries(world, state).values())


def _deliveries(world: "World", state: Any) -> dict[str, Delivered]:
    """All deliveries of a provider to a wallet: one that nobody acknowledged ends all jobs of the two."""
    account = world.evm.state.fine_tuning.accounts.get((state.wallet, state.provider))
    return account.delivered if account else {}


def _delivered(world: "World", state: Any) -> Delivered | None:
    return _deliveries(world, state).get(state.task_id)


def _check_success(world: "World", state: Any) -> None:
    record, found = world.record, _delivered(world, state)
    record.require(found is not None and found.settled and found.acknowledged, f"{state.job_id} isn't settled")
    folder = Path(state.decrypted.path)
    record.require((folder / "adapter_model.safetensors").read_bytes() == adapter_weights(), "the adapter is another")
    manifest = json.loads((folder / "zg_job.json").read_text())
    record.require(manifest["job_id"] == state.job_id, "the adapter is another job's")
    left = [path.name for path in folder.parent.iterdir()]
    record.require(left == ["adapter"], f"left behind: {left}")
    books = {tx for tx, key in world.record.keys.items() if key.startswith(f"{state.job_id}/")}
    told = {paid.tx_hash for paid in state.paid}
    same = told == books
    if world.plan.of("reorg"):  # it may have come back dearer, and what was paid before have been told
        same = len(told) >= len(books) and told - books <= record.removed
    record.require(same, f"{state.job_id} accounts for {len(told)} transactions and has {len(books)}")
    fees = [event["event"].fee for event in _events(world, "FeesSettled") if event["id"] == state.task_id]
    record.require(fees == [state.fee], f"{state.job_id} says its fee is {state.fee}, the chain {fees}")
