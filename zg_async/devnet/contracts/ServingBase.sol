// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC165, IServing, ISpending} from "./IServing.sol";
import {KeySet, addressWord} from "./KeySet.sol";
import {Managed} from "./Managed.sol";

/// Sub-accounts with refunds, providers with a stake, owner's approval of TEE signers: what both kinds share.
abstract contract ServingBase is Managed, IServing, IERC165 {
    using KeySet for KeySet.Set;

    struct RefundEntry {
        uint256 amount;
        uint256 createdAt;
    }

    /// The first `live` entries of `refunds` count, the rest is stale.
    struct SubAccount {
        address user;
        address provider;
        uint256 nonce;
        uint256 balance;
        uint256 pending;
        uint256 live;
        RefundEntry[] refunds;
        string info;
        bool acknowledged;
    }

    struct Standing {
        uint256 stake;
        address teeSigner;
        bool approved;
    }

    uint256 public constant MIN_LOCKTIME = 1 hours;
    uint256 public constant MAX_LOCKTIME = 7 days;
    uint256 public constant MIN_PROVIDER_STAKE = 100 ether;
    uint256 internal constant MAX_INFO_LENGTH = 4096;
    uint256 internal constant MAX_PAGE = 50;
    uint256 private constant MAX_REFUNDS = 5;

    uint256 public lockTime;
    address public ledgerAddress;
    mapping(bytes32 key => SubAccount) internal _accounts;
    KeySet.Set internal _keys;
    mapping(address user => KeySet.Set) internal _keysOfUser;
    mapping(address provider => KeySet.Set) internal _keysOfProvider;
    KeySet.Set internal _providers;
    mapping(address provider => Standing) internal _standings;

    event AccountDeleted(address indexed user, address indexed provider, uint256 refundedAmount);
    event BalanceUpdated(address indexed user, address indexed provider, uint256 amount, uint256 pendingRefund);
    event LockTimeUpdated(uint256 oldLockTime, uint256 newLockTime);
    event ProviderStakeReturned(address indexed provider, uint256 amount);
    event ProviderStaked(address indexed provider, uint256 amount);
    event ProviderTEESignerAcknowledged(
        address indexed provider, address indexed teeSignerAddress, bool acknowledged
    );
    event RefundRequested(
        address indexed user, address indexed provider, uint256 indexed index, uint256 timestamp
    );

    error AccountExists(address user, address provider);
    error AccountNotExists(address user, address provider);
    error AdditionalInfoTooLong();
    error CannotAddStakeWhenUpdating();
    error CannotRevokeWithNonZeroBalance(address user, address provider, uint256 balance);
    error InsufficientStake(uint256 provided, uint256 required);
    error ServiceNotExist(address provider);
    error TooManyRefunds(address user, address provider);

    modifier onlyLedger() {
        if (msg.sender != ledgerAddress) _refuseCaller();
        _;
    }

    receive() external payable {
        revert DirectDepositsDisabled();
    }

    // ---- what differs

    function _refuseCaller() internal view virtual;
    function _refuseLockTime(uint256 value) internal pure virtual;
    function _refuseLimit(uint256 limit) internal pure virtual;
    function _refuseToLedger() internal pure virtual;
    function _refusePayment() internal pure virtual;
    function _checkParties(address user, address provider) internal pure virtual;
    function _forget(bytes32 key) internal virtual;

    // ---- for LedgerManager

    function addAccount(address user, address provider, string calldata additionalInfo)
        external
        payable
        onlyLedger
    {
        _checkParties(user, provider);
        _checkInfo(additionalInfo);
        bytes32 key = _key(user, provider);
        if (!_keys.add(key)) revert AccountExists(user, provider);
        _keysOfUser[user].add(key);
        _keysOfProvider[provider].add(key);
        SubAccount storage account = _accounts[key];
        account.user = user;
        account.provider = provider;
        account.balance = msg.value;
        account.info = additionalInfo;
        account.acknowledged = true;
        emit BalanceUpdated(user, provider, msg.value, 0);
    }

    function depositFund(address user, address provider, uint256 cancelRetrievingAmount)
        external
        payable
        onlyLedger
    {
        _checkParties(user, provider);
        SubAccount storage account = _account(user, provider);
        _unrequest(account, cancelRetrievingAmount);
        account.balance += msg.value;
        account.acknowledged = true;
        emit BalanceUpdated(user, provider, account.balance, account.pending);
    }

    function requestRefundAll(address user, address provider) external onlyLedger {
        SubAccount storage account = _account(user, provider);
        uint256 live = account.live;
        uint256 amount = account.balance - account.pending;
        if (amount != 0) {
            if (live >= MAX_REFUNDS) revert TooManyRefunds(user, provider);
            if (live == account.refunds.length) account.refunds.push();
            account.refunds[live] = RefundEntry(amount, block.timestamp);
            account.live = ++live;
            account.pending += amount;
        }
        if (live != 0) emit RefundRequested(user, provider, live - 1, block.timestamp);
    }

    function processRefund(address user, address provider)
        external
        onlyLedger
        nonReentrant
        returns (uint256 totalAmount, uint256 balance, uint256 pendingRefund)
    {
        SubAccount storage account = _account(user, provider);
        totalAmount = _takeExpired(account);
        balance = account.balance;
        pendingRefund = account.pending;
        if (totalAmount != 0) {
            account.balance = balance -= totalAmount;
            account.pending = pendingRefund -= totalAmount;
            emit BalanceUpdated(user, provider, balance, pendingRefund);
            if (!_pay(msg.sender, totalAmount)) _refuseToLedger();
        }
    }

    function deleteAccount(address user, address provider) external onlyLedger {
        bytes32 key = _key(user, provider);
        _keys.remove(key);
        _keysOfUser[user].remove(key);
        _keysOfProvider[provider].remove(key);
        SubAccount storage account = _accounts[key];
        uint256 balance = account.balance;
        account.balance = 0;
        account.pending = 0;
        account.live = 0;
        account.acknowledged = false;
        delete account.refunds;
        delete account.info;
        _forget(key);
        emit AccountDeleted(user, provider, balance);
    }

    // ---- for users

    function acknowledgeTEESigner(address provider, bool acknowledged) external {
        SubAccount storage account = _account(msg.sender, provider);
        if (!acknowledged && account.acknowledged && account.balance != 0) {
            revert CannotRevokeWithNonZeroBalance(msg.sender, provider, account.balance);
        }
        account.acknowledged = acknowledged;
    }

    // ---- for the owner

    function acknowledgeTEESignerByOwner(address provider) external onlyOwner {
        _approve(provider, true);
    }

    function revokeTEESignerAcknowledgement(address provider) external onlyOwner {
        _approve(provider, false);
    }

    // ---- views

    function accountExists(address user, address provider) public view returns (bool) {
        return _keys.has(_key(user, provider));
    }

    function getPendingRefund(address user, address provider) external view returns (uint256) {
        return _account(user, provider).pending;
    }

    function supportsInterface(bytes4 interfaceId) external view returns (bool) {
        return interfaceId == type(IServing).interfaceId || interfaceId == type(IERC165).interfaceId;
    }

    // ---- inside

    function _key(address user, address provider) internal pure returns (bytes32) {
        return keccak256(abi.encode(user, provider));
    }

    function _account(address user, address provider) internal view returns (SubAccount storage) {
        bytes32 key = _key(user, provider);
        if (!_keys.has(key)) revert AccountNotExists(user, provider);
        return _accounts[key];
    }

    function _isProvider(address provider) internal view returns (bool) {
        return _providers.has(addressWord(provider));
    }

    function _requireProvider(address provider) internal view {
        if (!_isProvider(provider)) revert ServiceNotExist(provider);
    }

    function _checkInfo(string calldata info) internal pure {
        if (bytes(info).length > MAX_INFO_LENGTH) revert AdditionalInfoTooLong();
    }

    function _pageSize(uint256 limit) internal pure returns (uint256) {
        if (limit > MAX_PAGE) _refuseLimit(limit);
        return limit == 0 ? MAX_PAGE : limit;
    }

    function _setLockTime(uint256 value) internal {
        if (value < MIN_LOCKTIME || value > MAX_LOCKTIME) _refuseLockTime(value);
        lockTime = value;
    }

    function _approve(address provider, bool approved) private {
        _requireProvider(provider);
        Standing storage standing = _standings[provider];
        standing.approved = approved;
        emit ProviderTEESignerAcknowledged(provider, standing.teeSigner, approved);
    }

    /// The stake is due once, with the first registration.
    function _enlist(address teeSigner) internal {
        Standing storage standing = _standings[msg.sender];
        if (_isProvider(msg.sender)) {
            if (msg.value != 0) revert CannotAddStakeWhenUpdating();
            if (standing.teeSigner != teeSigner) standing.approved = false;
        } else {
            if (msg.value < MIN_PROVIDER_STAKE) revert InsufficientStake(msg.value, MIN_PROVIDER_STAKE);
            _providers.add(addressWord(msg.sender));
            standing.stake = msg.value;
            emit ProviderStaked(msg.sender, msg.value);
        }
        standing.teeSigner = teeSigner;
    }

    function _delist() internal {
        _requireProvider(msg.sender);
        uint256 stake = _standings[msg.sender].stake;
        _providers.remove(addressWord(msg.sender));
        delete _standings[msg.sender];
        if (!_pay(msg.sender, stake)) _refusePayment();
        emit ProviderStakeReturned(msg.sender, stake);
    }

    /// Takes `amount` out of the requested refunds, the newest first.
    function _unrequest(SubAccount storage account, uint256 amount) internal {
        uint256 pending = account.pending;
        if (amount > pending) amount = pending;
        if (amount == 0) return;
        account.pending = pending - amount;
        uint256 live = account.live;
        while (amount != 0) {
            RefundEntry storage entry = account.refunds[live - 1];
            if (entry.amount > amount) {
                entry.amount -= amount;
                break;
            }
            amount -= entry.amount;
            entry.amount = 0;
            --live;
        }
        account.live = live;
    }

    function _takeExpired(SubAccount storage account) private returns (uint256 taken) {
        uint256 live = account.live;
        uint256 kept;
        for (uint256 i; i < live; ++i) {
            RefundEntry memory entry = account.refunds[i];
            if (block.timestamp >= entry.createdAt + lockTime) {
                taken += entry.amount;
            } else {
                if (kept != i) account.refunds[kept] = entry;
                ++kept;
            }
        }
        if (kept != live) account.live = kept;
    }

    /// Spends `fee` of the sub-account, pending refunds last. The caller pays it out.
    function _spend(SubAccount storage account, uint256 fee) internal {
        uint256 free = account.balance - account.pending;
        if (fee > free) _unrequest(account, fee - free);
        account.balance -= fee;
        ISpending(ledgerAddress).spendFund(account.user, fee);
        emit BalanceUpdated(account.user, account.provider, account.balance, account.pending);
    }
}
