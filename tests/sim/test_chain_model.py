"""The Python contracts against the real ones: random calls give the same results, errors, events and balances."""

import random
from typing import Any

import pytest

from tests.devnet.evm_harness import START, ZG, World, base_world, offer, sign_settlement
from tests.sim.chain_model import ModelEvm, _copy, _execute, check_books, conserved
from tests.sim.contract_model import NOBODY, Context, RevertError, State
from zg_async.devnet.accounts import dev_account
from zg_async.devnet.deploy import FINE_TUNING_NAME
from zg_async.devnet.evm_records import CallRequest, ExecutionFailedError
from zg_async.wire.contracts import FineTuningContract, LedgerContract

OWNER = dev_account(0)
USERS = tuple(dev_account(index) for index in (1, 2))
PROVIDERS = tuple(dev_account(index) for index in (10, 11))
SIGNERS = tuple(dev_account(index) for index in (20, 21))
TASKS = ("a", "b", "c")
ROOTS = (bytes(32), b"\1" * 32)


class Pair:
    """The same contracts twice."""

    def __init__(self) -> None:
        self.real = base_world().fork()
        self.now = START + 100
        world = self.real
        self.state = State(
            chain_id=31337,
            ledger=world.ledger.address,
            fine_tuning=world.fine_tuning.address,
            inference=world.inference.address,
            owner=OWNER.address,
        )
        self.state.ledger.services = {
            "inference-v1.0": world.inference.address,
            FINE_TUNING_NAME: world.fine_tuning.address,
        }
        self.everybody = [dev_account(index).address for index in range(40)]
        self.state.balances = {one: world.machine.balance(one) for one in self.everybody}

    def send(self, sender: Any, to: str, data: bytes, value: int) -> tuple[bool, bytes]:
        """Call both; what they answer and log has to be the same."""
        machine = self.real.machine
        machine.now = self.now
        before = machine._state()
        computation = machine._run(before, sender.address, to, data, value)
        ok = not computation.is_error
        if ok:
            before.persist()
            machine.root = before.state_root
            machine.number += 1
        tried = _copy(self.state)
        ctx = Context(sender.address, value, self.now, tried)
        try:
            answer, refused = _execute(ctx, to, data), False
        except RevertError as revert:
            answer, refused = revert.data, True
        assert refused is not ok, (computation.error, answer)
        assert answer == bytes(computation.output)
        if ok:
            self.state = tried
            logs = [
                ("0x" + address.hex(), tuple(topic.to_bytes(32, "big") for topic in topics), bytes(text))
                for address, topics, text in computation.get_log_entries()
            ]
            assert [(address.lower(), topics, text) for address, topics, text in ctx.logs] == logs
        return ok, answer

    def check(self) -> None:
        """All views and balances agree, and the books balance."""
        world, check_time = self.real, self.now
        contracts = (world.ledger.address, world.fine_tuning.address)
        for address in (*self.everybody, *contracts):
            assert self.state.balances.get(address, 0) == world.machine.balance(address)
        for call in views():
            state = _copy(self.state)
            data, to = call.data, call.to
            real: Any
            computation = world.machine._run(world.machine._state(), PROVIDERS[0].address, to, data, 0)
            real = (not computation.is_error, bytes(computation.output))
            try:
                model = True, _execute(Context(PROVIDERS[0].address, 0, check_time, state), to, data)
            except RevertError as revert:
                model = False, revert.data
            assert model == real, call.name
        check_books(self.state)


def views() -> list[Any]:
    world = base_world()
    ledger, tuning = LedgerContract(world.ledger.address), FineTuningContract(world.fine_tuning.address)
    calls = [
        ledger.get_all_ledgers(0, 0),
        ledger.min_account_balance(),
        ledger.min_transfer_amount(),
        ledger.max_providers_per_batch(),
        ledger.max_providers_per_user_per_service(),
        ledger.max_services(),
        ledger.max_additional_info_length(),
        ledger.get_service_address_by_name(FINE_TUNING_NAME),
        tuning.get_all_services(),
        tuning.get_all_accounts(0, 0),
        tuning.get_all_accounts(1, 51),
        tuning.lock_time(),
        tuning.penalty_percentage(),
        tuning.get_batch_accounts_by_users([user.address for user in USERS]),
    ]
    for user in USERS:
        calls += [
            ledger.get_ledger(user.address),
            ledger.get_ledger_providers(user.address, FINE_TUNING_NAME),
            tuning.get_accounts_by_user(user.address, 0, 0),
        ]
        for provider in PROVIDERS:
            calls += [
                tuning.get_account(user.address, provider.address),
                tuning.get_deliverable(user.address, provider.address, "a"),
                tuning.get_pending_refund(user.address, provider.address),
            ]
    return calls


def random_call(rng: random.Random, world: World) -> tuple[Any, str, bytes, int]:
    often = rng.random() < 0.8  # the same pair and task, or no story would go far
    user, provider = (USERS[0], PROVIDERS[0]) if often else (rng.choice(USERS), rng.choice(PROVIDERS))
    signer = SIGNERS[PROVIDERS.index(provider)]
    amount = rng.choice([0, 1, ZG, 2 * ZG, 5 * ZG, 300 * ZG])
    task, root = rng.choice(TASKS[:1] if often else TASKS), ROOTS[0] if often else rng.choice(ROOTS)
    ledger, tuning = world.ledger, world.fine_tuning
    match rng.choice(["money", "money", "task", "task", "task", "task", "task", "owner"]):
        case "money":
            who, name, arguments, value = rng.choice(
                [
                    (user, "addLedger", ("info",), rng.choice([0, 3 * ZG, 9 * ZG])),
                    (user, "depositFund", (), rng.choice([0, 1, 3 * ZG])),
                    (user, "depositFundFor", (rng.choice([user.address, NOBODY]),), rng.choice([1, 3 * ZG])),
                    (user, "transferFund", (provider.address, FINE_TUNING_NAME, amount), 0),
                    (user, "transferFund", (provider.address, FINE_TUNING_NAME, amount), rng.choice([0, 0, 1])),
                    (user, "transferFund", (provider.address, "no such", amount), 0),
                    (user, "retrieveFund", ([p.address for p in PROVIDERS], FINE_TUNING_NAME), 0),
                    (user, "retrieveFund", ([provider.address] * rng.choice([1, 21]), FINE_TUNING_NAME), 0),
                    (user, "refund", (amount,), 0),
                    (user, "deleteLedger", (), 0),
                    (user, "updateAdditionalInfo", (rng.choice(["x", "y" * 4097]),), 0),
                    (user, "spendFund", (user.address, 1), 0),
                ]
            )
            return who, ledger.address, ledger.data(name, *arguments), value
        case "task":
            fields = {"id": task, "secret": rng.choice([b"", b"s" * 129]), "root": root, "nonce": rng.randrange(1, 90)}
            fields["fee"] = rng.choice([0, 1, ZG, ZG, 7 * ZG])
            signed_by = rng.choice([signer, signer, signer, OWNER])
            who, name, arguments, value = rng.choice(
                [
                    (provider, "addDeliverable", (user.address, rng.choice([task, task, "", "z" * 257]), root), 0),
                    (provider, "addDeliverable", (user.address, task, root), 0),
                    (user, "acknowledgeDeliverable", (provider.address, task), 0),
                    (user, "acknowledgeDeliverable", (provider.address, task), 0),
                    (provider, "abandonDeliverable", (user.address, task), 0),
                    (provider, "settleFees", (), 0),
                    (provider, "settleFees", (), 0),
                    (provider, "settleFees", (), 0),
                    (user, "acknowledgeTEESigner", (provider.address, rng.random() < 0.7), 0),
                    (user, "addAccount", (user.address, provider.address, ""), 5),
                    (user, "requestRefundAll", (user.address, provider.address), 0),
                ]
            )
            if name == "settleFees":
                arguments = (sign_settlement(world, signed_by, user, **fields),)
            return who, tuning.address, tuning.data(name, *arguments), value
        case _:
            who, name, arguments, value = rng.choice(
                [
                    (provider, "addOrUpdateService", offer(rng.choice(SIGNERS)), rng.choice([0, 0, 100 * ZG])),
                    (provider, "removeService", (), 0) if rng.random() < 0.3 else (OWNER, "updateLockTime", (1,), 0),
                    (rng.choice([OWNER, OWNER, user]), "acknowledgeTEESignerByOwner", (provider.address,), 0),
                    (OWNER, "revokeTEESignerAcknowledgement", (provider.address,), 0),
                    (OWNER, "updateLockTime", (rng.choice([60, 3600, 7200]),), 0),
                    (OWNER, "updatePenaltyPercentage", (rng.choice([0, 50, 101]),), 0),
                ]
            )
            return who, tuning.address, tuning.data(name, *arguments), value


def prepare(pair: Pair, rng: random.Random) -> None:
    """Begin with something, or most calls would only be refused."""
    ledger, tuning = pair.real.ledger, pair.real.fine_tuning
    for provider, signer in zip(PROVIDERS, SIGNERS, strict=True):
        if rng.random() < 0.9:
            pair.send(provider, tuning.address, tuning.data("addOrUpdateService", *offer(signer)), 100 * ZG)
            pair.send(OWNER, tuning.address, tuning.data("acknowledgeTEESignerByOwner", provider.address), 0)
    for user in USERS:
        if rng.random() < 0.9:
            pair.send(user, ledger.address, ledger.data("addLedger", "hello"), 20 * ZG)
            arguments = PROVIDERS[0].address, FINE_TUNING_NAME, 4 * ZG
            pair.send(user, ledger.address, ledger.data("transferFund", *arguments), 0)


def compare(seed: int, calls: int = 20) -> int:
    """Run one random sequence; return how many of its calls succeeded."""
    rng, pair = random.Random(seed), Pair()
    prepare(pair, rng)
    total, done = conserved(pair.state), 0
    for _ in range(calls):
        pair.now += rng.choice([0, 1, 60, 4000, 90_000])
        done += pair.send(*random_call(rng, pair.real))[0]
    pair.check()
    assert conserved(pair.state) == total
    return done


@pytest.mark.slow
@pytest.mark.goal("RLB-24", part="ledger and fine-tuning, 8 sequences")
def test_random_calls_give_the_same_results_errors_and_events_as_the_contracts():
    assert sum(compare(seed) for seed in range(8)) > 30


@pytest.mark.slow
@pytest.mark.goal("RLB-24", part="a full ring of deliverables")
def test_the_twenty_first_deliverable_takes_the_place_of_the_first():
    pair = Pair()
    prepare(pair, random.Random(0))
    user, provider = USERS[0], PROVIDERS[0]
    tuning = pair.real.fine_tuning
    for number in range(22):
        task = f"task-{number}"
        ok, _ = pair.send(provider, tuning.address, tuning.data("addDeliverable", user.address, task, ROOTS[0]), 0)
        assert ok is (number < 21)  # the first is settled, the second isn't
        pair.send(user, tuning.address, tuning.data("acknowledgeDeliverable", provider.address, task), 0)
        if number == 0:
            fields = {"id": task, "secret": b"s", "root": ROOTS[0], "nonce": 1, "fee": 1}
            settlement = sign_settlement(pair.real, SIGNERS[0], user, **fields)
            assert pair.send(provider, tuning.address, tuning.data("settleFees", settlement), 0)[0]
    pair.check()


def test_the_model_refuses_as_a_node_does():
    state = Pair().state
    evm = ModelEvm(state, timestamp=START)
    call = LedgerContract(state.ledger.address).get_ledger(USERS[0].address)
    request = CallRequest(to=bytes.fromhex(call.to[2:]), data=call.data)
    for _ in range(2):  # the second answer is a kept one
        with pytest.raises(ExecutionFailedError):
            evm.call(request, evm.head)
