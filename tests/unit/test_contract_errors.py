"""Reverts: the right class, decoded arguments, a hint; unknown data is kept."""

import json

import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import HERE
from zg_async import errors
from zg_async.errors import ContractRevertedError
from zg_async.wire.contracts import ERRORS, decode_error, revert_error
from zg_async.wire.hashing import keccak256

USER = "0x670856BDb03d9cCf66AB545F8f52037bE1e4de47"
PROVIDER = "0xE73B10aa20E0F6FD761664208f084666676010F1"
OG = 10**18


def published_errors() -> list[tuple[str, dict]]:
    return [
        (path.stem, entry)
        for path in sorted((HERE / "abi").glob("*.json"))
        for entry in json.loads(path.read_text())
        if entry["type"] == "error"
    ]


def value_of(kind: str):
    return {"address": USER, "uint256": 7 * OG, "string": "why é", "bytes32": b"\1" * 32}[kind]


def revert(signature: str, *values) -> bytes:
    kinds = signature[signature.index("(") + 1 : -1]
    return keccak256(signature.encode())[:4] + encode(kinds.split(",") if kinds else [], values)


@pytest.mark.goal("ERR-02")
@pytest.mark.parametrize(
    ("contract", "entry"), published_errors(), ids=lambda x: x if isinstance(x, str) else x["name"]
)
def test_every_custom_error_decodes_with_arguments(contract, entry):
    kinds = [i["type"] for i in entry["inputs"]]
    values = tuple(map(value_of, kinds))
    data = revert(f"{entry['name']}({','.join(kinds)})", *values)
    decoded = decode_error(data)
    assert decoded is not None
    assert (decoded.name, decoded.arguments) == (entry["name"], values)
    error = revert_error(data, call_name=f"{contract}.f", contract=PROVIDER, tx_hash="0x12", message="reverted")
    assert (error.error_name, error.arguments, error.data) == (entry["name"], values, data)
    assert (error.contract, error.tx_hash) == (PROVIDER, "0x12")
    assert entry["name"] in str(error)


@pytest.mark.goal("ERR-02")
@pytest.mark.parametrize(
    "data", [b"", b"\1", b"\1\2\3\4", b"\1\2\3\4" + bytes(64), revert("LedgerExists(address)", USER)[:-1]]
)
def test_unknown_data_is_kept(data):
    error = revert_error(data, call_name="LedgerManager.refund", message="execution reverted")
    assert type(error) is ContractRevertedError
    assert (error.error_name, error.arguments, error.data) == (None, (), data)
    assert "LedgerManager.refund was refused" in str(error)


def test_same_name_with_other_parameters_is_told_apart_by_selector():
    one = decode_error(revert("LimitTooLarge(uint256)", 60))
    two = decode_error(revert("LimitTooLarge(uint256,uint256)", 60, 50))
    assert (one.signature, two.signature) == ("LimitTooLarge(uint256)", "LimitTooLarge(uint256,uint256)")
    assert (one.arguments, two.arguments) == ((60,), (60, 50))
    for name in ("AdditionalInfoTooLong", "CallerNotLedger", "LockTimeOutOfRange"):
        assert len({e.signature for e in ERRORS.values() if e.name == name}) == 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (revert("LedgerNotExists(address)", USER), errors.LedgerNotFoundError),
        (revert("LedgerExists(address)", USER), errors.LedgerExistsError),
        (revert("AccountNotExists(address,address)", USER, PROVIDER), errors.AccountNotFoundError),
        (revert("ServiceNotExist(address)", USER), errors.ServiceNotFoundError),
        (revert("ServiceNotFound(address)", USER), errors.ServiceNotFoundError),
        (revert("InsufficientBalance(address)", USER), errors.InsufficientBalanceError),
        (revert("InsufficientAvailableBalance(uint256,uint256)", 1, 2), errors.InsufficientBalanceError),
        (revert("MinimumDepositRequired(uint256,uint256)", 1, 2), errors.MinimumDepositError),
        (revert("TooManyRefunds(address,address)", USER, PROVIDER), errors.TooManyRefundsError),
        (revert("TooManyProviders(uint256,uint256)", 21, 20), errors.TooManyProvidersError),
        (revert("TooManyProvidersForService(uint256,uint256)", 50, 50), errors.TooManyProvidersError),
        (revert("DeliverableNotExists(string)", "x"), errors.DeliverableNotFoundError),
        (revert("CannotAcknowledgeSettledDeliverable(string)", "x"), errors.DeliverableSettledError),
        (revert("DeliverableAlreadySettled(string)", "x"), errors.DeliverableSettledError),
        (
            revert("PreviousDeliverableNotAcknowledged(string)", "x"),
            errors.PreviousDeliverableNotAcknowledgedError,
        ),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_callers_can_catch_a_class_and_read_a_hint(data, kind):
    error = revert_error(data, call_name="C.f")
    assert type(error) is kind
    assert error.hint


def test_amounts_are_shown_in_0g():
    error = revert_error(
        revert("MinimumDepositRequired(uint256,uint256)", OG // 10, 3 * OG), call_name="LedgerManager.addLedger"
    )
    assert str(error) == (
        "LedgerManager.addLedger was refused: MinimumDepositRequired(provided 0.1 0G, required 3 0G). "
        "At least 3 0G is needed, 0.1 0G is there."
    )


def test_counts_are_not_shown_as_amounts():
    assert "requested 21, maximum 20" in str(
        revert_error(revert("TooManyProviders(uint256,uint256)", 21, 20), call_name="f")
    )


def test_solidity_reverts_are_read():
    text = revert_error(revert("Error(string)", "Ownable: caller is not the owner"), call_name="C.f")
    assert (text.error_name, text.arguments) == ("Error", ("Ownable: caller is not the owner",))
    assert "Ownable" in str(text)
    panic = revert_error(revert("Panic(uint256)", 0x11), call_name="C.f")
    assert (panic.error_name, panic.arguments) == ("Panic", (0x11,))
    assert "below zero" in str(panic)


def test_text_from_a_contract_cannot_steer_a_terminal():
    shown = str(revert_error(revert("Error(string)", "\x1b[2Jgone‮"), call_name="C.f", message="\x1b[0m"))
    assert "\x1b" not in shown
    assert "‮" not in shown
    assert "\x1b" not in str(revert_error(revert("DeliverableNotExists(string)", "\x1b[1m"), call_name="C.f"))
    assert "\x1b" not in str(revert_error(b"", call_name="C.f", message="\x1b[1m"))


def test_settlement_refusals_have_hints_of_their_own():
    hints = {
        str(revert_error(revert("InvalidVerifierInput(string)", text), call_name="f").hint)
        for text in (
            "TEE signer not acknowledged",
            "nonce should larger than the current nonce",
            "insufficient balance",
            "model root hash mismatch",
            "TEE settlement validation failed",
        )
    }
    assert len(hints) == 5
    assert revert_error(revert("InvalidVerifierInput(string)", "other"), call_name="f").hint is None


@given(st.binary(max_size=200), st.sampled_from([b"", *ERRORS]))
def test_no_revert_data_makes_the_decoder_raise(data, selector):
    assert isinstance(revert_error(selector + data, call_name="f", message="m"), ContractRevertedError)
