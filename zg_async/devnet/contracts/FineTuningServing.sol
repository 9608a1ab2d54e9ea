// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {KeySet, wordAddress} from "./KeySet.sol";
import {ServingBase} from "./ServingBase.sol";
import {TypedSignature} from "./TypedSignature.sol";

struct Quota {
    uint256 cpuCount;
    uint256 nodeMemory;
    uint256 gpuCount;
    uint256 nodeStorage;
    string gpuType;
}

struct Service {
    address provider;
    string url;
    Quota quota;
    uint256 pricePerToken;
    bool occupied;
    string[] models;
    address teeSignerAddress;
    bool teeSignerAcknowledged;
}

struct Refund {
    uint256 index;
    uint256 amount;
    uint256 createdAt;
    bool _deprecated_processed;
}

struct Deliverable {
    string id;
    bytes modelRootHash;
    bytes encryptedSecret;
    bool acknowledged;
    uint248 timestamp;
    bool settled;
}

struct AccountDetails {
    address user;
    address provider;
    uint256 nonce;
    uint256 balance;
    uint256 pendingRefund;
    Refund[] refunds;
    string additionalInfo;
    Deliverable[] deliverables;
    uint256 validRefundsLength;
    uint256 deliverablesHead;
    uint256 deliverablesCount;
    bool acknowledged;
}

struct AccountSummary {
    address user;
    address provider;
    uint256 nonce;
    uint256 balance;
    uint256 pendingRefund;
    string additionalInfo;
    uint256 validRefundsLength;
    uint256 deliverablesCount;
    bool acknowledged;
}

struct VerifierInput {
    string id;
    bytes encryptedSecret;
    bytes modelRootHash;
    uint256 nonce;
    bytes signature;
    uint256 taskFee;
    address user;
}

/// Sub-accounts, services and delivered models of fine-tuning providers.
contract FineTuningServing is ServingBase {
    using KeySet for KeySet.Set;

    struct Offer {
        string url;
        Quota quota;
        uint256 pricePerToken;
        bool occupied;
        string[] models;
    }

    /// The last deliverables of a sub-account; once full, the oldest is at `head`.
    struct Ring {
        uint256 head;
        uint256 count;
        string[20] ids;
        mapping(bytes32 idHash => Deliverable) byId;
    }

    uint256 private constant RING_SIZE = 20;
    uint256 private constant MAX_ID_LENGTH = 256;
    uint256 private constant MAX_BATCH = 50;
    bytes32 private constant DOMAIN_NAME = keccak256("0G Fine-Tuning Serving");
    bytes32 private constant MESSAGE_TYPE = keccak256(
        "VerifierMessage(string id,bytes encryptedSecret,bytes modelRootHash,uint256 nonce,uint256 taskFee,address user)"
    );

    uint256 public penaltyPercentage;
    mapping(address provider => Offer) private _offers;
    mapping(bytes32 key => Ring) private _rings;

    event DeliverableAbandoned(
        address indexed user, address indexed provider, string deliverableId, uint256 timestamp
    );
    event DeliverableAcknowledged(
        address indexed user, address indexed provider, string deliverableId, uint256 timestamp
    );
    event DeliverableAdded(
        address indexed user,
        address indexed provider,
        string deliverableId,
        bytes modelRootHash,
        uint256 timestamp
    );
    event DeliverableEvicted(
        address indexed provider,
        address indexed user,
        string evictedDeliverableId,
        string newDeliverableId,
        uint256 timestamp
    );
    event FeesSettled(
        address indexed user,
        address indexed provider,
        string deliverableId,
        uint256 fee,
        bool acknowledged,
        uint256 nonce
    );
    event ServiceRemoved(address indexed provider);
    event ServiceUpdated(
        address indexed provider,
        string url,
        Quota quota,
        uint256 pricePerToken,
        address teeSignerAddress,
        bool occupied
    );

    error BatchSizeTooLarge(uint256 size, uint256 maxSize);
    error CallerNotLedger();
    error CannotAbandonSettledDeliverable(string id);
    error CannotAcknowledgeSettledDeliverable(string id);
    error CannotEvictUnsettledDeliverable(string id);
    error DeliverableAlreadyExists(string id);
    error DeliverableAlreadySettled(string id);
    error DeliverableIdInvalidLength(uint256 length);
    error DeliverableNotExists(string id);
    error ETHTransferFailed();
    error InvalidLedgerAddress();
    error InvalidVerifierInput(string reason);
    error LimitTooLarge(uint256 limit);
    error LockTimeOutOfRange(uint256 lockTime);
    error PenaltyPercentageTooHigh(uint256 percentage);
    error PreviousDeliverableNotAcknowledged(string id);
    error SecretShouldBeEmpty();
    error SecretShouldNotBeEmpty();
    error TransferToLedgerFailed();

    function initialize(uint256 _locktime, address _ledgerAddress, address owner, uint256 _penaltyPercentage)
        external
        once
    {
        if (_ledgerAddress.code.length == 0) revert InvalidLedgerAddress();
        _setPenalty(_penaltyPercentage);
        _setLockTime(_locktime);
        _setOwner(owner);
        ledgerAddress = _ledgerAddress;
    }

    function updateLockTime(uint256 _locktime) external onlyOwner {
        uint256 former = lockTime;
        _setLockTime(_locktime);
        if (former != _locktime) emit LockTimeUpdated(former, _locktime);
    }

    function updatePenaltyPercentage(uint256 _penaltyPercentage) external onlyOwner {
        _setPenalty(_penaltyPercentage);
    }

    // ---- services

    function addOrUpdateService(
        string calldata url,
        Quota calldata quota,
        uint256 pricePerToken,
        bool occupied,
        string[] calldata models,
        address teeSignerAddress
    ) external payable {
        _enlist(teeSignerAddress);
        Offer storage offer = _offers[msg.sender];
        offer.url = url;
        offer.quota = quota;
        offer.pricePerToken = pricePerToken;
        offer.occupied = occupied;
        offer.models = models;
        emit ServiceUpdated(msg.sender, url, quota, pricePerToken, teeSignerAddress, occupied);
    }

    function removeService() external nonReentrant {
        _delist();
        delete _offers[msg.sender];
        emit ServiceRemoved(msg.sender);
    }

    function getService(address provider) external view returns (Service memory service) {
        _requireProvider(provider);
        return _service(provider);
    }

    function getAllServices() external view returns (Service[] memory services) {
        bytes32[] storage words = _providers.words;
        services = new Service[](words.length);
        for (uint256 i; i < services.length; ++i) services[i] = _service(wordAddress(words[i]));
    }

    // ---- accounts

    function getAccount(address user, address provider) external view returns (AccountDetails memory) {
        AccountDetails memory details;
        SubAccount storage account = _account(user, provider);
        Ring storage ring = _rings[_key(user, provider)];
        details.user = user;
        details.provider = provider;
        details.nonce = account.nonce;
        details.balance = account.balance;
        details.pendingRefund = account.pending;
        details.refunds = new Refund[](account.refunds.length);
        for (uint256 i; i < details.refunds.length; ++i) {
            RefundEntry storage entry = account.refunds[i];
            details.refunds[i] = Refund(i, entry.amount, entry.createdAt, false);
        }
        details.additionalInfo = account.info;
        details.deliverables = _list(ring);
        details.validRefundsLength = account.live;
        details.deliverablesHead = ring.head;
        details.deliverablesCount = ring.count;
        details.acknowledged = account.acknowledged;
        return details;
    }

    function getAllAccounts(uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        return _summaries(_keys, offset, limit);
    }

    function getAccountsByProvider(address provider, uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        return _summaries(_keysOfProvider[provider], offset, limit);
    }

    function getAccountsByUser(address user, uint256 offset, uint256 limit)
        external
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        return _summaries(_keysOfUser[user], offset, limit);
    }

    /// The provider is the caller. A user without a sub-account gives a record of zeros.
    function getBatchAccountsByUsers(address[] calldata users)
        external
        view
        returns (AccountSummary[] memory accounts)
    {
        if (users.length > MAX_BATCH) revert BatchSizeTooLarge(users.length, MAX_BATCH);
        accounts = new AccountSummary[](users.length);
        for (uint256 i; i < users.length; ++i) {
            bytes32 key = _key(users[i], msg.sender);
            if (_keys.has(key)) accounts[i] = _summary(key);
        }
    }

    // ---- deliverables

    function addDeliverable(address user, string calldata id, bytes calldata modelRootHash) external {
        _checkId(id);
        _account(user, msg.sender);
        Ring storage ring = _rings[_key(user, msg.sender)];
        Deliverable storage fresh = ring.byId[keccak256(bytes(id))];
        if (fresh.timestamp != 0) revert DeliverableAlreadyExists(id);
        uint256 count = ring.count;
        uint256 head = ring.head;
        if (count != 0) {
            string storage newest = ring.ids[(head + count - 1) % RING_SIZE];
            if (!ring.byId[keccak256(bytes(newest))].acknowledged) revert PreviousDeliverableNotAcknowledged(newest);
        }
        uint256 place = (head + count) % RING_SIZE;
        if (count == RING_SIZE) {
            _evict(ring, user, id);
            ring.head = (head + 1) % RING_SIZE;
        } else {
            ring.count = count + 1;
        }
        ring.ids[place] = id;
        fresh.id = id;
        fresh.modelRootHash = modelRootHash;
        fresh.timestamp = uint248(block.timestamp);
        emit DeliverableAdded(user, msg.sender, id, modelRootHash, block.timestamp);
    }

    function acknowledgeDeliverable(address provider, string calldata id) external {
        Deliverable storage deliverable = _deliverable(msg.sender, provider, id);
        if (deliverable.settled) revert CannotAcknowledgeSettledDeliverable(id);
        deliverable.acknowledged = true;
        emit DeliverableAcknowledged(msg.sender, provider, id, block.timestamp);
    }

    function abandonDeliverable(address user, string calldata id) external {
        Deliverable storage deliverable = _deliverable(user, msg.sender, id);
        if (deliverable.settled) revert CannotAbandonSettledDeliverable(id);
        deliverable.acknowledged = true;
        deliverable.settled = true;
        emit DeliverableAbandoned(user, msg.sender, id, block.timestamp);
    }

    function getDeliverable(address user, address provider, string calldata id)
        external
        view
        returns (Deliverable memory)
    {
        return _deliverable(user, provider, id);
    }

    function getDeliverables(address user, address provider) external view returns (Deliverable[] memory) {
        _account(user, provider);
        return _list(_rings[_key(user, provider)]);
    }

    // ---- settlement

    function settleFees(VerifierInput calldata verifierInput) external nonReentrant {
        SubAccount storage account = _account(verifierInput.user, msg.sender);
        _requireProvider(msg.sender);
        Standing storage standing = _standings[msg.sender];
        address signer = standing.teeSigner;
        if (!account.acknowledged || !standing.approved || signer == address(0)) {
            revert InvalidVerifierInput("TEE signer not acknowledged");
        }
        if (account.nonce >= verifierInput.nonce) {
            revert InvalidVerifierInput("nonce should larger than the current nonce");
        }
        if (account.balance < verifierInput.taskFee) revert InvalidVerifierInput("insufficient balance");
        Deliverable storage deliverable = _deliverable(verifierInput.user, msg.sender, verifierInput.id);
        if (deliverable.settled) revert DeliverableAlreadySettled(verifierInput.id);
        if (keccak256(deliverable.modelRootHash) != keccak256(verifierInput.modelRootHash)) {
            revert InvalidVerifierInput("model root hash mismatch");
        }
        _checkId(verifierInput.id);
        if (!TypedSignature.isBy(signer, _digest(verifierInput), verifierInput.signature)) {
            revert InvalidVerifierInput("TEE settlement validation failed");
        }
        uint256 fee = _deliver(deliverable, verifierInput);
        account.nonce = verifierInput.nonce;
        emit FeesSettled(
            verifierInput.user, msg.sender, verifierInput.id, fee, deliverable.acknowledged, verifierInput.nonce
        );
        _spend(account, fee);
        if (!_pay(msg.sender, fee)) revert ETHTransferFailed();
    }

    // ---- inside

    function _setPenalty(uint256 percentage) private {
        if (percentage > 100) revert PenaltyPercentageTooHigh(percentage);
        penaltyPercentage = percentage;
    }

    function _service(address provider) private view returns (Service memory) {
        Offer storage offer = _offers[provider];
        Standing storage standing = _standings[provider];
        return Service(
            provider,
            offer.url,
            offer.quota,
            offer.pricePerToken,
            offer.occupied,
            offer.models,
            standing.teeSigner,
            standing.approved
        );
    }

    function _summaries(KeySet.Set storage set, uint256 offset, uint256 limit)
        private
        view
        returns (AccountSummary[] memory accounts, uint256 total)
    {
        bytes32[] memory page;
        (page, total) = set.slice(offset, _pageSize(limit));
        accounts = new AccountSummary[](page.length);
        for (uint256 i; i < page.length; ++i) accounts[i] = _summary(page[i]);
    }

    function _summary(bytes32 key) private view returns (AccountSummary memory) {
        SubAccount storage account = _accounts[key];
        return AccountSummary(
            account.user,
            account.provider,
            account.nonce,
            account.balance,
            account.pending,
            account.info,
            account.live,
            _rings[key].count,
            account.acknowledged
        );
    }

    function _list(Ring storage ring) private view returns (Deliverable[] memory list) {
        list = new Deliverable[](ring.count);
        for (uint256 i; i < list.length; ++i) {
            list[i] = ring.byId[keccak256(bytes(ring.ids[(ring.head + i) % RING_SIZE]))];
        }
    }

    function _deliverable(address user, address provider, string calldata id)
        private
        view
        returns (Deliverable storage deliverable)
    {
        _account(user, provider);
        deliverable = _rings[_key(user, provider)].byId[keccak256(bytes(id))];
        if (deliverable.timestamp == 0) revert DeliverableNotExists(id);
    }

    function _checkId(string calldata id) private pure {
        uint256 length = bytes(id).length;
        if (length == 0 || length > MAX_ID_LENGTH) revert DeliverableIdInvalidLength(length);
    }

    function _evict(Ring storage ring, address user, string calldata newId) private {
        string memory oldest = ring.ids[ring.head];
        bytes32 oldestHash = keccak256(bytes(oldest));
        if (!ring.byId[oldestHash].settled) revert CannotEvictUnsettledDeliverable(oldest);
        delete ring.byId[oldestHash];
        emit DeliverableEvicted(msg.sender, user, oldest, newId, block.timestamp);
    }

    /// Releases the secret for the full fee, or keeps it back for the penalty share.
    function _deliver(Deliverable storage deliverable, VerifierInput calldata input) private returns (uint256 fee) {
        fee = input.taskFee;
        if (deliverable.acknowledged) {
            if (input.encryptedSecret.length == 0) revert SecretShouldNotBeEmpty();
            deliverable.encryptedSecret = input.encryptedSecret;
        } else {
            if (input.encryptedSecret.length != 0) revert SecretShouldBeEmpty();
            fee = fee * penaltyPercentage / 100;
        }
        deliverable.settled = true;
    }

    function _digest(VerifierInput calldata input) private view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                MESSAGE_TYPE,
                keccak256(bytes(input.id)),
                keccak256(input.encryptedSecret),
                keccak256(input.modelRootHash),
                input.nonce,
                input.taskFee,
                input.user
            )
        );
        return TypedSignature.digest(DOMAIN_NAME, structHash);
    }

    function _forget(bytes32 key) internal override {
        Ring storage ring = _rings[key];
        for (uint256 i; i < ring.count; ++i) {
            delete ring.byId[keccak256(bytes(ring.ids[i]))];
            delete ring.ids[i];
        }
        ring.head = 0;
        ring.count = 0;
    }

    function _checkParties(address, address) internal pure override {}

    function _refuseCaller() internal pure override {
        revert CallerNotLedger();
    }

    function _refuseLockTime(uint256 value) internal pure override {
        revert LockTimeOutOfRange(value);
    }

    function _refuseLimit(uint256 limit) internal pure override {
        revert LimitTooLarge(limit);
    }

    function _refuseToLedger() internal pure override {
        revert TransferToLedgerFailed();
    }

    function _refusePayment() internal pure override {
        revert ETHTransferFailed();
    }
}
