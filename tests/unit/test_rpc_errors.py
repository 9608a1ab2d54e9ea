import pytest

from zg_async.errors import (
    ChainUnavailableError,
    ContractRevertedError,
    InsufficientBalanceError,
    InsufficientGasFundsError,
    RpcError,
)
from zg_async.transport.rpc_errors import SendFault, error_of, revert_data, send_fault
from zg_async.wire.contract_abi import encode
from zg_async.wire.contracts import ERRORS, FUNCTIONS, decode_error

LEDGER = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"
ENTRY = next(e for e in ERRORS.values() if e.signature == "InsufficientBalance(address)")
DATA = ENTRY.selector + encode(ENTRY.inputs, [LEDGER])
HEX = "0x" + DATA.hex()


@pytest.mark.goal("ERR-02", part="shapes of nodes")
@pytest.mark.parametrize(
    "error",
    [
        {"code": 3, "message": "execution reverted", "data": HEX},  # geth, anvil, reth
        {"code": -32000, "message": "execution reverted: custom error", "data": HEX},
        {"code": -32603, "message": "Error: VM Exception: reverted with custom error 'x'", "data": {"data": HEX}},
        {"code": -32603, "message": "Internal error", "data": {"message": "revert", "data": {"data": HEX}}},
        {"code": -32015, "message": "VM execution error.", "data": f"Reverted {HEX}"},  # parity
        {"code": -32000, "message": "VM Exception: revert", "data": {"0x" + "ab" * 32: {"return": HEX, "result": HEX}}},
        {"code": -32003, "message": "transaction reverted", "data": {"originalError": {"code": 3, "data": HEX}}},
    ],
)
def test_a_revert_is_decoded_wherever_a_node_puts_its_data(error):
    found = error_of(error, what="LedgerManager.refund", contract=LEDGER)
    assert isinstance(found, InsufficientBalanceError)
    assert found.error_name == "InsufficientBalance"
    assert found.data == DATA


@pytest.mark.parametrize(
    "error",
    [
        {"code": 3, "message": "execution reverted"},
        {"code": -32000, "message": "execution reverted", "data": None},
        {"code": -32000, "message": "execution reverted", "data": "b'...'"},
        {"code": -32000, "message": "execution reverted", "data": "0x"},
        {"code": 3, "message": "execution reverted", "data": "0x1"},
        {"code": 3, "message": "execution reverted", "data": [HEX]},
    ],
)
def test_a_revert_without_data_is_still_a_revert(error):
    found = error_of(error, what="X.y", contract=LEDGER)
    assert isinstance(found, ContractRevertedError)
    assert found.error_name is None
    assert "X.y was refused" in str(found)


def test_an_unknown_custom_error_keeps_its_data():
    found = error_of({"code": 3, "message": "execution reverted", "data": "0xdeadbeef01"}, what="X.y", contract=LEDGER)
    assert found.data.hex() == "deadbeef01"


@pytest.mark.goal("ERR-02", part="all errors")
def test_every_custom_error_of_every_contract_decodes():
    assert len(FUNCTIONS) >= 5
    for entry in ERRORS.values():
        zeros = b"".join(bytes(32) for _ in entry.inputs) + bytes(64)
        found = error_of({"code": 3, "message": "", "data": "0x" + (entry.selector + zeros).hex()}, what="a.b")
        assert isinstance(found, ContractRevertedError)
        if decode_error(entry.selector + zeros) is not None:
            assert found.error_name == entry.name


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": -32005, "message": "limit exceeded"}, ChainUnavailableError),
        ({"code": -32000, "message": "Too Many Requests"}, ChainUnavailableError),
        ({"code": 429, "message": "x"}, ChainUnavailableError),
        ({"code": -32000, "message": "header not found"}, ChainUnavailableError),
        ({"code": -32000, "message": "missing trie node 12ab"}, ChainUnavailableError),
        ({"code": -32000, "message": "insufficient funds for gas * price + value"}, InsufficientGasFundsError),
        ({"code": -32003, "message": "Sender doesn't have enough funds to send tx"}, InsufficientGasFundsError),
        ({"code": -32601, "message": "the method eth_foo does not exist"}, RpcError),
        ({"code": -32602, "message": "invalid argument 0"}, RpcError),
        ({"message": 5, "code": "x"}, RpcError),
        ("just text", RpcError),
        ([], RpcError),
        (None, RpcError),
        ({}, RpcError),
    ],
)
@pytest.mark.goal("ERR-01", part="rpc")
def test_every_error_gets_a_class_that_says_whether_a_retry_helps(error, kind):
    found = error_of(error, what="eth_call")
    assert type(found) is kind
    assert found.retryable == (kind is ChainUnavailableError)
    assert found.code
    assert "eth_call" in str(found)


def test_outside_text_is_made_harmless_and_short():
    found = error_of({"code": 1, "message": "\x1b[31mred" + "x" * 10_000}, what="eth_call")
    assert "\x1b" not in str(found)
    assert len(str(found)) < 400


@pytest.mark.parametrize("value", ["0x" + "zz", {"data": {"data": {"data": {"data": {"data": HEX}}}}}, 5, [], {}])
def test_junk_where_revert_data_should_be_is_none(value):
    assert revert_data({"data": value}) is None


WORDS = {
    SendFault.KNOWN: [
        "already known",  # geth, reth, own node
        "known transaction: 0xabc",  # old geth
        "AlreadyKnown",  # nethermind
        "Transaction with the same hash was already imported.",  # openethereum
        "ALREADY_EXISTS: already known",  # erigon
        "transaction already imported",  # anvil
        "tx already in mempool",  # cosmos
        "tx already exists in cache",  # cosmos
        "duplicate transaction",
        "Known transaction. Nonce: 1",  # besu, hardhat
        "transaction is already in the pool",
    ],
    SendFault.NONCE_LOW: [
        "nonce too low",
        "nonce too low: next nonce 5, tx nonce 3",
        "Nonce too low. Expected nonce to be 5 but got 3.",  # hardhat
        "OldNonce",  # nethermind
        "Transaction nonce is too low. Try incrementing the nonce.",  # openethereum
        "invalid nonce; got 3, expected 5: invalid sequence",  # ethermint
        "account sequence mismatch, expected 5, got 3: incorrect account sequence",  # cosmos
        "the tx doesn't have the correct nonce: nonce has already been used",  # ganache
        "invalid transaction nonce",
    ],
    SendFault.UNDERPRICED: [
        "replacement transaction underpriced",  # geth, anvil, reth
        "Replacement transaction underpriced. A gasPrice/maxFeePerGas of at least 2 is necessary",  # hardhat
        "could not replace existing tx",  # erigon
        "replacement fee too low",
        "INTERNAL_ERROR: could not replace existing tx",  # erigon
        "Transaction with same nonce is already in the pool",
    ],
    SendFault.FEES_LOW: [
        "transaction underpriced",  # geth
        "max fee per gas less than block base fee: address 0xabc, maxFeePerGas: 1 baseFee: 7",  # geth
        "transaction gas price below minimum: gas tip cap 0",
        "FeeTooLow",  # nethermind
        "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 2",
        "Gas price too low",  # besu
        "fee cap less than block base fee",  # erigon
        "insufficient fee: got 1 required 2",  # ethermint
        "Transaction gas price below chain minimum",
        "transaction fee too low",
    ],
    SendFault.FUNDS: [
        "insufficient funds for gas * price + value: balance 0",
        "Insufficient funds for gas * price + value",
        "InsufficientFunds, Balance is 0",  # nethermind
        "sender doesn't have enough funds to send tx. The max upfront cost is: 2",
        "Upfront cost exceeds account balance: insufficient balance",
    ],
    SendFault.BUSY: [
        "txpool is full",
        "Transaction pool is full",
        "mempool is full: number of txs 5000",
        "too many transactions from sender",
        "rate limit exceeded",
        "transaction discarded outright",
    ],
    SendFault.REVERTED: [
        "Error: VM Exception while processing transaction: reverted with reason string 'no'",  # hardhat, mined
        "execution reverted",
    ],
    SendFault.REFUSED: [
        "intrinsic gas too low",
        "exceeds block gas limit",
        "invalid sender",
        "only replay-protected (EIP-155) transactions allowed over RPC",
        "rlp: expected List",
    ],
}


@pytest.mark.goal("TX-04", part="error texts of nodes")
@pytest.mark.parametrize(("fault", "words"), [(fault, text) for fault, texts in WORDS.items() for text in texts])
def test_the_words_of_nodes_about_a_send_are_understood(fault, words):
    for code in (-32000, -32003, -32010, -32603):
        error = error_of({"code": code, "message": words}, what="a.b", contract=LEDGER)
        assert send_fault(error) is fault
