"""The error tree is an interface: its codes are stored, printed and matched on by other programs."""

import ast
import copy
import inspect
import pathlib
import pickle

import pytest

import zg_async
from zg_async import errors
from zg_async.errors import ZgError
from zg_async.jobs.spec import JobSpec, normalise
from zg_async.wire.contract_abi import ERRORS, encode
from zg_async.wire.contract_errors import revert_error
from zg_async.wire.provider_api import rejected

PACKAGE = pathlib.Path(zg_async.__file__).parent
ADDRESS = "0x" + "11" * 20
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
JOB = {"model": "m", "dataset": "d.jsonl", "training_params": PARAMS, "output_dir": "out"}

# class: (code, retryable, parent). A line that changes breaks somebody's program.
TREE = """
ZgError error - Exception
ConfigError config - ZgError
BadKeyError bad_key - ConfigError
UnknownNetworkError unknown_network - ConfigError
DatasetError dataset - ConfigError
TrainingParamsError training_params - ConfigError
ClosedError closed - ZgError
ChainError chain - ZgError
ChainUnavailableError chain_unavailable retry ChainError
RpcError rpc - ChainError
TransactionTimeoutError transaction_timeout retry ChainError
TransactionReplacedError transaction_replaced - ChainError
InsufficientGasFundsError insufficient_gas_funds - ChainError
FeeCapError fee_cap - ChainError
RefusedToSignError refused_to_sign - ChainError
WrongChainError wrong_chain - ChainError
ContractRevertedError reverted - ChainError
AccountNotFoundError account_not_found - ContractRevertedError
LedgerNotFoundError ledger_not_found - ContractRevertedError
LedgerExistsError ledger_exists - ContractRevertedError
ServiceNotFoundError service_not_found - ContractRevertedError
InsufficientBalanceError insufficient_balance - ContractRevertedError
MinimumDepositError minimum_deposit - ContractRevertedError
TooManyRefundsError too_many_refunds - ContractRevertedError
TooManyProvidersError too_many_providers - ContractRevertedError
DeliverableNotFoundError deliverable_not_found - ContractRevertedError
DeliverableSettledError deliverable_settled - ContractRevertedError
PreviousDeliverableNotAcknowledgedError previous_deliverable_not_acknowledged - ContractRevertedError
LimitError limit - ZgError
ProviderError provider - ZgError
ProviderUnavailableError provider_unavailable retry ProviderError
ProviderRejectedError provider_rejected - ProviderError
UnfinishedTaskError unfinished_task - ProviderRejectedError
QueueFullError queue_full retry ProviderRejectedError
SignerNotAcknowledgedError signer_not_acknowledged - ProviderRejectedError
ProviderReplyError provider_reply - ProviderError
EndpointRefusedError endpoint_refused - ProviderError
TaskNotFoundError task_not_found - ProviderError
NoInferenceServiceError no_inference_service - ProviderError
AdapterError adapter - ProviderError
StorageError storage - ZgError
StorageUnavailableError storage_unavailable retry StorageError
NotStoredError not_stored - StorageError
VerificationError verification - ZgError
HashMismatchError hash_mismatch - VerificationError
SignatureMismatchError signature_mismatch - VerificationError
AttestationError attestation - VerificationError
EnvelopeError envelope - VerificationError
UnsafeArchiveError unsafe_archive - VerificationError
KeyNotReleasedError key_not_released retry ZgError
LostKeyError lost_key - KeyNotReleasedError
JobError job - ZgError
JobFailedError job_failed - JobError
JobCancelledError job_cancelled - JobError
TaskFailedError task_failed - JobError
JournalError journal - JobError
"""
ROWS = [tuple(line.split()) for line in TREE.strip().splitlines()]
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, ZgError) and value.__module__ == errors.__name__
}
REQUIRED = {"status": 400, "tx_hash": "0x" + "ab" * 32, "account_nonce": 7, "job_id": "job-1", "stage": "fund"}
REQUIRED |= {"task_id": "task-1"}


def required(cls):
    """What a class can't be made without, beside its message."""
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: REQUIRED[p.name]
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    }


def make(cls, **more):
    return cls("it failed", **(required(cls) | more))


@pytest.mark.goal("ERR-01", part="codes")
def test_the_tree_is_the_one_that_was_published():
    found = {
        (name, cls.code, "retry" if cls.retryable else "-", cls.__bases__[0].__name__) for name, cls in CLASSES.items()
    }
    assert found == set(ROWS)


def test_no_two_classes_share_a_code():
    assert len({cls.code for cls in CLASSES.values()}) == len(CLASSES)


def test_every_class_is_public_and_drawn_in_the_module():
    drawn = errors.__doc__ or ""
    assert [name for name in CLASSES if name not in drawn] == []
    assert [name for name in CLASSES if name not in zg_async.__all__] == []


@pytest.mark.goal("ERR-01", part="hint")
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_can_be_made_with_a_hint_and_shows_it(name):
    error = make(CLASSES[name], hint="Do this")
    assert (error.message, error.hint, str(error)) == ("it failed", "Do this", "it failed. Do this")
    assert str(make(CLASSES[name])) == "it failed"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_an_error_was_made_with_can_be_read_from_it(name):
    given = required(CLASSES[name])
    error = make(CLASSES[name])
    assert {field: getattr(error, field) for field in given} == given


@pytest.mark.parametrize(
    "name", sorted(n for n, c in CLASSES.items() if "retry_after" in inspect.signature(c).parameters)
)
def test_an_error_keeps_the_time_the_other_side_asked_for(name):
    assert make(CLASSES[name], retry_after=2.5).retry_after == 2.5


@pytest.mark.goal("ERR-01", part="retryable")
def test_whether_a_retry_helps_belongs_to_the_class():
    assert [n for n, c in CLASSES.items() if "retryable" in inspect.signature(c).parameters] == []
    assert not errors.LostKeyError.retryable
    assert errors.KeyNotReleasedError.retryable


def test_verification_errors_are_never_retryable():
    assert not any(c.retryable for c in CLASSES.values() if issubclass(c, errors.VerificationError))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_survives_the_way_to_another_process(name):
    error = make(CLASSES[name], hint="Do this")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is CLASSES[name]
        assert (str(other), vars(other)) == (str(error), vars(error))


def _handlers():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                yield path.relative_to(PACKAGE).as_posix(), node


@pytest.mark.goal("ERR-01", part="cause chained")
def test_every_error_raised_from_another_says_whether_that_is_its_cause():
    loose = [
        f"{path}:{node.lineno}"
        for path, handler in _handlers()
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.cause is None
    ]
    assert loose == []


@pytest.mark.goal("ERR-01", part="no text parsing")
def test_the_package_itself_tells_its_errors_apart_by_class_never_by_text():
    matched = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, handler in _handlers()
        if handler.name
        for node in ast.walk(handler)
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.In | ast.NotIn | ast.Eq) for op in node.ops)
        and f"str({handler.name})" in ast.unparse(node)
    ]
    assert matched == []


@pytest.mark.goal("ERR-01", part="cause chained")
@pytest.mark.parametrize(
    ("call", "raised", "cause"),
    [
        (lambda: normalise(JobSpec(**JOB | {"training_params": "/nowhere/p.json"})), errors.ConfigError, OSError),
        (lambda: normalise(JobSpec(**JOB | {"budget": 1.5})), errors.ConfigError, TypeError),
        (lambda: normalise(JobSpec(**JOB | {"max_spend": "1,5"})), errors.ConfigError, ValueError),
    ],
    ids=["unreadable file", "float amount", "no number"],
)
def test_the_cause_of_an_error_is_chained(call, raised, cause):
    with pytest.raises(raised) as caught:
        call()
    assert isinstance(caught.value.__cause__, cause)


def revert(name, *arguments):
    error = next(e for e in ERRORS.values() if e.name == name)
    return revert_error(error.selector + encode(error.inputs, arguments), call_name="X.y")


# What providers and contracts really say, and all a program needs of it: code, may it be retried, how long to wait.
FAILURES = [
    (lambda: rejected(429, "slow down", headers={"Retry-After": "7"}), "provider_unavailable", True, 7.0),
    (lambda: rejected(503, "<html>busy</html>"), "provider_unavailable", True, None),
    (lambda: rejected(400, '{"error": "task queue is full"}'), "queue_full", True, None),
    (lambda: rejected(400, "there is an unfinished task"), "unfinished_task", False, None),
    (lambda: rejected(400, "user not acknowledge the provider"), "signer_not_acknowledged", False, None),
    (lambda: rejected(404, "task 1-2 not found"), "task_not_found", False, None),
    (lambda: rejected(400, "no such thing"), "provider_rejected", False, None),
    (lambda: revert("LedgerNotExists", ADDRESS), "ledger_not_found", False, None),
    (lambda: revert("InsufficientBalance", ADDRESS), "insufficient_balance", False, None),
    (lambda: revert_error(b"\xde\xad\xbe\xef", call_name="X.y"), "reverted", False, None),
]


@pytest.mark.goal("ERR-01")
@pytest.mark.parametrize(
    ("fail", "code", "retryable", "after"), FAILURES, ids=[f"{n}-{f[1]}" for n, f in enumerate(FAILURES)]
)
def test_a_program_acts_on_a_failure_without_reading_its_text(fail, code, retryable, after):
    error = fail()
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, after)


@pytest.mark.parametrize("fail", [FAILURES[3][0], FAILURES[4][0], FAILURES[7][0], FAILURES[8][0]])
def test_what_the_user_can_mend_comes_with_a_hint(fail):
    assert fail().hint
