// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {KeySet, wordAddress} from "./KeySet.sol";
import {ServingBase} from "./ServingBase.sol";
import {TypedSignature} from "./TypedSignature.sol";

struct ServiceParams {
    string serviceType;
    string url;
    string model;
    string verifiability;
    uint256 inputPrice;
    uint256 outputPrice;
    string additionalInfo;
    address teeSignerAddress;
}

struct Service {
    address provider;
    string serviceType;
    string url;
    uint256 inputPrice;
    uint256 outputPrice;
    uint256 updatedAt;
    string model;
    string verifiability;
    string additionalInfo;
    address teeSignerAddress;
    bool teeSignerAcknowledged;
}

struct Refund {
    uint256 index;
    uint256 amount;
    uint256 createdAt;
    bool processed;
}

struct Account {
    address user;
    address provider;
    uint256 nonce;
    uint256 balance;
    uint256 pendingRefund;
    Refund[] refunds;
    string additionalInfo;
    bool acknowledged;
    uint256 validRefundsLength;
    uint256 generation;
    uint256 revokedBitmap;
}

struct TEESettlementData {
    address user;
    address provider;
    uint256 totalFee;
    bytes32 requestsHash;
    uint256 nonce;
    bytes signature;
}

enum SettlementStatus {
    SUCCESS,
    PARTIAL,
    PROVIDER_MISMATCH,
    NO_TEE_SIGNER,
    INVALID_NONCE,
    INVALID_SIGNATURE
}

/// Sub-accounts, services, access tokens and fee batches of inference providers.
contract InferenceServing is ServingBase {
    using KeySet for KeySet.Set;

    struct Offer {
        string serviceType;
        string url;
        uint256 inputPrice;
        uint256 outputPrice;
        uint256 updatedAt;
        string model;
        string verifiability;
        string additionalInfo;
    }

    /// Tokens of older generations are void, and so are those of this one whose bit is set.
    struct Tokens {
        uint256 generation;
        uint256 revoked;
    }

    uint256 private constant MAX_SETTLEMENTS = 50;
    uint256 private constant MAX_BATCH = 500;
    bytes32 private constant DOMAIN_NAME = keccak256("0G Inference Serving");
    bytes32 private constant MESSAGE_TYPE = keccak256(
        "TEESettlement(bytes32 requestsHash,uint256 nonce,address provider,address user,uint256 totalFee)"
    );

    mapping(address provider => Offer) private _offers;
    mapping(bytes32 key => Tokens) private _tokens;

    event AllTokensRevoked(address indexed user, address indexed provider, uint256 newGeneration);
    event BatchBalanceUpdated(address[] users, uint256[] balances, uint256[] pendingRefunds);
    event ContractInitialized(address indexed owner, uint256 lockTime, address ledgerAddress);
    event ServiceRemoved(address indexed service);
    event ServiceUpdated(
        address indexed service,
        string serviceType,
        string url,
        uint256 inputPrice,
        uint256 outputPrice,
        uint256 updatedAt,
        string model,
        string verifiability
    );
    event TEESettlementResult(address indexed user, SettlementStatus status, uint256 unsettledAmount);
    event TokenRevoked(address indexed user, address indexed provider, uint8 tokenId);
    event TokensRevoked(address indexed user, address indexed provider, uint8[] tokenIds);

    error BatchSizeTooLarge(uint256 size, uint256 max);
    error CallerNotLedger(address caller);
    error InvalidAddress(address addr);
    error InvalidTEESignature(string reason);
    error LimitTooLarge(uint256 limit, uint256 max);
    error LockTimeOutOfRange(uint256 lockTime, uint256 min, uint256 max);
    error NoSettlementsProvided();
    error ProviderCannotBeUser();
    error TooManySettlements(uint256 count, uint256 max);
    error TransferFailed();

    constructor() {
        _lockForever();
    }

    function initialize(uint256 _locktime, address _ledgerAddress, address owner) external once {
        _setLockTime(_locktime);
        _setOwner(owner);
        ledgerAddress = _ledgerAddress;
        emit ContractInitialized(owner, _locktime, _ledgerAddress);
    }

    function updateLockTime(uint256 _locktime) external onlyOwner {
        uint256 former = lockTime;
        _setLockTime(_locktime);
        emit LockTimeUpdated(former, _locktime);
    }

    // ---- services

    function addOrUpdateService(ServiceParams calldata params) external payable {
        _enlist(params.teeSignerAddress);
        _checkInfo(params.additionalInfo);
        Offer storage offer = _offers[msg.sender];
        if (
            _differ(offer.serviceType, params.serviceType) || _differ(offer.model, params.model)
                || _differ(offer.verifiability, params.verifiability)
                || _differ(offer.additionalInfo, params.additionalInfo)
        ) _standings[msg.sender].approved = false;
        offer.serviceType = params.serviceType;
        offer.url = params.url;
        offer.inputPrice = params.inputPrice;
        offer.outputPrice = params.outputPrice;
        offer.updatedAt = block.timestamp;
        offer.model = params.model;
        offer.verifiability = params.verifiability;
        offer.additionalInfo = params.additionalInfo;
        emit ServiceUpdated(
            msg.sender,
            params.serviceType,
            params.url,
            params.inputPrice,
            params.outputPrice,
            block.timestamp,
            params.model,
            params.verifiability
        );
    }

    function removeService() external nonReentrant {
        _delist();
        delete _offers[msg.sender];
        emit ServiceRemoved(msg.sender);
    }

    function serviceExists(address provider) external view returns (bool) {
        return _isProvider(provider);
    }

    function getService(address provider) external view returns (Service memory service) {
        _requireProvider(provider);
        return _service(provider);
    }

    function getAllServices(uint256 offset, uint256 limit)
        external
        view
        returns (Service[] memory services, uint256 total)
    {
        bytes32[] memory page;
        (page, total) = _providers.slice(offset, _pageSize(limit));
        services = new Service[](page.length);
        for (uint256 i; i < page.length; ++i) services[i] = _service(wordAddress(page[i]));
    }

    // ---- accounts

    function getAccount(address user, address provider) external view returns (Account memory) {
        _account(user, provider);
        return _view(_key(user, provider));
    }

    function getAllAccounts(uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        return _views(_keys, offset, limit);
    }

    function getAccountsByProvider(address provider, uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        return _views(_keysOfProvider[provider], offset, limit);
    }

    function getAccountsByUser(address user, uint256 offset, uint256 limit)
        external
        view
        returns (Account[] memory accounts, uint256 total)
    {
        return _views(_keysOfUser[user], offset, limit);
    }

    /// The provider is the caller. A user without a sub-account gives a record of zeros.
    function getBatchAccountsByUsers(address[] calldata users) external view returns (Account[] memory accounts) {
        if (users.length > MAX_BATCH) revert BatchSizeTooLarge(users.length, MAX_BATCH);
        accounts = new Account[](users.length);
        for (uint256 i; i < users.length; ++i) {
            bytes32 key = _key(users[i], msg.sender);
            if (_keys.has(key)) accounts[i] = _view(key);
        }
    }

    // ---- access tokens

    function revokeToken(address provider, uint8 tokenId) external {
        _account(msg.sender, provider);
        _tokens[_key(msg.sender, provider)].revoked |= 1 << tokenId;
        emit TokenRevoked(msg.sender, provider, tokenId);
    }

    function revokeTokens(address provider, uint8[] calldata tokenIds) external {
        _account(msg.sender, provider);
        uint256 bits;
        for (uint256 i; i < tokenIds.length; ++i) bits |= 1 << tokenIds[i];
        _tokens[_key(msg.sender, provider)].revoked |= bits;
        emit TokensRevoked(msg.sender, provider, tokenIds);
    }

    function revokeAllTokens(address provider) external {
        _account(msg.sender, provider);
        Tokens storage tokens = _tokens[_key(msg.sender, provider)];
        tokens.revoked = 0;
        emit AllTokensRevoked(msg.sender, provider, ++tokens.generation);
    }

    function isTokenRevoked(address user, address provider, uint8 tokenId) external view returns (bool) {
        _account(user, provider);
        return _tokens[_key(user, provider)].revoked >> tokenId & 1 == 1;
    }

    // ---- settlement

    function settleFeesWithTEE(TEESettlementData[] calldata settlements)
        external
        nonReentrant
        returns (uint8[] memory statuses)
    {
        _checkBatch(settlements.length);
        statuses = new uint8[](settlements.length);
        uint256 earned;
        for (uint256 i; i < settlements.length; ++i) {
            (SettlementStatus status, uint256 unsettled) = _judge(settlements[i]);
            statuses[i] = uint8(status);
            if (status <= SettlementStatus.PARTIAL) {
                SubAccount storage account = _accounts[_key(settlements[i].user, msg.sender)];
                account.nonce = settlements[i].nonce;
                uint256 fee = settlements[i].totalFee - unsettled;
                earned += fee;
                if (fee != 0) _spend(account, fee);
            }
            emit TEESettlementResult(settlements[i].user, status, unsettled);
        }
        if (earned != 0 && !_pay(msg.sender, earned)) revert TransferFailed();
    }

    function previewSettlementResults(TEESettlementData[] calldata settlements)
        external
        view
        returns (
            address[] memory failedUsers,
            SettlementStatus[] memory failureReasons,
            address[] memory partialUsers,
            uint256[] memory partialAmounts
        )
    {
        _checkBatch(settlements.length);
        failedUsers = new address[](settlements.length);
        failureReasons = new SettlementStatus[](settlements.length);
        partialUsers = new address[](settlements.length);
        partialAmounts = new uint256[](settlements.length);
        uint256 failed;
        uint256 partly;
        for (uint256 i; i < settlements.length; ++i) {
            (SettlementStatus status, uint256 unsettled) = _judge(settlements[i]);
            if (status == SettlementStatus.PARTIAL) {
                partialUsers[partly] = settlements[i].user;
                partialAmounts[partly++] = unsettled;
            } else if (status != SettlementStatus.SUCCESS) {
                failedUsers[failed] = settlements[i].user;
                failureReasons[failed++] = status;
            }
        }
        assembly {
            mstore(failedUsers, failed)
            mstore(failureReasons, failed)
            mstore(partialUsers, partly)
            mstore(partialAmounts, partly)
        }
    }

    // ---- inside

    function _checkBatch(uint256 count) private pure {
        if (count == 0) revert NoSettlementsProvided();
        if (count > MAX_SETTLEMENTS) revert TooManySettlements(count, MAX_SETTLEMENTS);
    }

    /// The status an item gets and what of its fee stays unpaid.
    function _judge(TEESettlementData calldata item) private view returns (SettlementStatus, uint256) {
        if (item.provider != msg.sender) return (SettlementStatus.PROVIDER_MISMATCH, item.totalFee);
        bytes32 key = _key(item.user, msg.sender);
        if (!_keys.has(key)) return (SettlementStatus.INVALID_SIGNATURE, item.totalFee);
        if (!_isProvider(msg.sender)) return (SettlementStatus.PROVIDER_MISMATCH, item.totalFee);
        SubAccount storage account = _accounts[key];
        Standing storage standing = _standings[msg.sender];
        if (!account.acknowledged || !standing.approved || standing.teeSigner == address(0)) {
            return (SettlementStatus.NO_TEE_SIGNER, item.totalFee);
        }
        if (account.nonce >= item.nonce) return (SettlementStatus.INVALID_NONCE, item.totalFee);
        if (!TypedSignature.isBy(standing.teeSigner, _digest(item), item.signature)) {
            return (SettlementStatus.INVALID_SIGNATURE, item.totalFee);
        }
        if (account.balance < item.totalFee) return (SettlementStatus.PARTIAL, item.totalFee - account.balance);
        return (SettlementStatus.SUCCESS, 0);
    }

    function _digest(TEESettlementData calldata item) private view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(MESSAGE_TYPE, item.requestsHash, item.nonce, item.provider, item.user, item.totalFee)
        );
        return TypedSignature.digest(DOMAIN_NAME, structHash);
    }

    function _differ(string storage stored, string calldata given) private pure returns (bool) {
        return keccak256(bytes(stored)) != keccak256(bytes(given));
    }

    function _service(address provider) private view returns (Service memory) {
        Offer storage offer = _offers[provider];
        Standing storage standing = _standings[provider];
        return Service(
            provider,
            offer.serviceType,
            offer.url,
            offer.inputPrice,
            offer.outputPrice,
            offer.updatedAt,
            offer.model,
            offer.verifiability,
            offer.additionalInfo,
            standing.teeSigner,
            standing.approved
        );
    }

    function _views(KeySet.Set storage set, uint256 offset, uint256 limit)
        private
        view
        returns (Account[] memory accounts, uint256 total)
    {
        bytes32[] memory page;
        (page, total) = set.slice(offset, _pageSize(limit));
        accounts = new Account[](page.length);
        for (uint256 i; i < page.length; ++i) accounts[i] = _view(page[i]);
    }

    function _view(bytes32 key) private view returns (Account memory result) {
        SubAccount storage account = _accounts[key];
        Refund[] memory refunds = new Refund[](account.refunds.length);
        for (uint256 i; i < refunds.length; ++i) {
            RefundEntry storage entry = account.refunds[i];
            refunds[i] = Refund(i, entry.amount, entry.createdAt, false);
        }
        return Account(
            account.user,
            account.provider,
            account.nonce,
            account.balance,
            account.pending,
            refunds,
            account.info,
            account.acknowledged,
            account.live,
            _tokens[key].generation,
            _tokens[key].revoked
        );
    }

    function _forget(bytes32 key) internal override {
        _tokens[key].revoked = 0;
    }

    function _checkParties(address user, address provider) internal pure override {
        if (user == address(0)) revert InvalidAddress(user);
        if (provider == address(0)) revert InvalidAddress(provider);
        if (user == provider) revert ProviderCannotBeUser();
    }

    function _refuseCaller() internal view override {
        revert CallerNotLedger(msg.sender);
    }

    function _refuseLockTime(uint256 value) internal pure override {
        revert LockTimeOutOfRange(value, MIN_LOCKTIME, MAX_LOCKTIME);
    }

    function _refuseLimit(uint256 limit) internal pure override {
        revert LimitTooLarge(limit, MAX_PAGE);
    }

    function _refuseToLedger() internal pure override {
        revert TransferFailed();
    }

    function _refusePayment() internal pure override {
        revert TransferFailed();
    }
}
